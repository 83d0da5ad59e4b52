"""Why our numbers differ from the paper's, as far as it is known: all of this text lives here.

What is listed is checked against the rows first: a setting that is the paper's, or a verdict that agrees, is not
explained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.published import PublishedTable, plain_name, published_table

#: Our data sets by other names than the paper's, and those that the paper does not have: the nearest of its own.
_OTHER_NAMES = {"ham10000": "Skin Lesion", "isic2018": "Skin Lesion"}
_NEAREST = {"digits": "CIFAR10", "fashionmnist": "CIFAR10"}
#: The paper's victims (its Table III).
VICTIMS = {
    "CIFAR10": "VGG19, 38.96M parameters",
    "GTSRB": "InceptionV3, 21.64M parameters",
    "Skin Lesion": "ResNet50, 23.52M parameters",
    "CelebA+20": "DenseNet121, 6.96M parameters",
    "CelebA+31": "DenseNet121, 6.96M parameters",
    "ImageNet": "ViT-B/32, 88.19M parameters",
}
#: Row label to the settings of the authors' code, by their name in ``attacks.removalnet_presets``.
REMOVAL_ROWS: Mapping[str, Mapping[str, str]] = {
    "CIFAR10": {"RemovalNet(train)": "cifar10", "RemovalNet(apart)": "cifar10"},
    "GTSRB": {"RemovalNet(train)": "gtsrb", "RemovalNet(apart)": "gtsrb"},
    "Skin Lesion": {"RemovalNet(train)": "skin-lesion", "RemovalNet(apart)": "skin-lesion-bcn20000"},
    "CelebA+20": {"RemovalNet(train)": "celeba", "RemovalNet(apart)": "celeba20-lfw"},
    "CelebA+31": {"RemovalNet(train)": "celeba", "RemovalNet(apart)": "celeba31-vggface2"},
    "ImageNet": {"RemovalNet(train)": "imagenet"},
}


@dataclass(frozen=True)
class Setting:
    """A parameter that the paper, or its code, sets.

    :ivar of: Class of the attack or verifier.
    :ivar name: The parameter.
    :ivar says: What it is, in words.
    :ivar paper: The paper's value; ``None``: that of the data set, see :data:`REMOVAL_ROWS`.
    :ivar why: Our data set to the value of its preset, and why it differs; holds for this value alone.
    """

    of: str
    name: str
    says: str
    paper: object = None
    why: Mapping[str, tuple[object, str]] = field(default_factory=dict)


_REMOVAL, _IPGUARD, _ZEST, _DEEPJUDGE = "RemovalNetAttack", "IPGuardVerifier", "ZestVerifier", "DeepJudgeVerifier"
SETTINGS = (
    Setting(
        _REMOVAL,
        "max_iter",
        "iterations",
        why={"digits": (300, "enough on 8x8 images"), "fashionmnist": (300, "1000 cost this network 9 to 31 points")},
    ),
    Setting(
        _REMOVAL,
        "inner_steps",
        "inner steps",
        why={"digits": (10, "enough on 8x8 images"), "fashionmnist": (10, "half the time, as accurate")},
    ),
    Setting(
        _REMOVAL,
        "learning_rate",
        "learning rate",
        why={
            "digits": (1e-2, "that of most of the paper's data sets"),
            "fashionmnist": (4e-3, "buys half a point of accuracy"),
        },
    ),
    Setting(
        _REMOVAL,
        "lr_horizon",
        "length of the cosine schedule, in runs",
        1.5,
        {"fashionmnist": (1.0, "the rate ends at zero")},
    ),
    Setting(_REMOVAL, "alpha", "α, weight of the KL term"),
    Setting(_REMOVAL, "beta", "β, weight of the latent term"),
    Setting(
        _REMOVAL,
        "gamma",
        "γ, weight of the victim's labels",
        why={"fashionmnist": (2.0, "buys two points of accuracy")},
    ),
    Setting(_REMOVAL, "temperature", "temperature"),
    Setting(
        _REMOVAL,
        "shuffle_ratio",
        "share of channels shuffled",
        why={
            "digits": (0.1, "2 % of 32 channels is less than one"),
            "fashionmnist": (0.1, "2 % of 24 channels is less than one"),
        },
    ),
    Setting(_REMOVAL, "batch_size", "batch", 128),
    Setting(
        _REMOVAL,
        "hflip",
        "horizontal flips",
        True,
        {"digits": (False, "a mirrored digit is another sign"), "gtsrb": (False, "a mirrored sign is another sign")},
    ),
    Setting(
        _REMOVAL,
        "bn_recalibrate",
        "batches that re-estimate BatchNorm at the end",
        0,
        {
            "digits": (10, "200 to 437 samples leave the statistics noisy"),
            "fashionmnist": (30, "no difference that one seed could show"),
        },
    ),
    Setting(
        _IPGUARD,
        "margin",
        "IPGuard's margin k",
        10.0,
        {
            "digits": (2.0, "inside [0, 1] no probe of 8x8 pixels reaches 10"),
            "fashionmnist": (5.0, "most probes do not reach 10"),
        },
    ),
    Setting(
        _IPGUARD,
        "learning_rate",
        "IPGuard's step",
        0.001,
        {"digits": (1e-2, "so that probes converge"), "fashionmnist": (1e-2, "so that probes converge")},
    ),
    Setting(_ZEST, "nb_images", "ZEST's images", 128, {"digits": (64, "cost"), "fashionmnist": (64, "cost")}),
    Setting(_ZEST, "nb_masks", "ZEST's masks", 1000, {"digits": (200, "cost"), "fashionmnist": (200, "cost")}),
    Setting(
        _DEEPJUDGE,
        "nb_seeds_whitebox",
        "DeepJudge's white-box seeds",
        100,
        {"digits": (5, "cost"), "fashionmnist": (10, "cost")},
    ),
)

#: What holds for any comparison with the paper's tables.
GENERAL = (
    "Spreads: the paper says ten seeds. In its published scripts RemovalNet's ten values are ten late checkpoints of "
    "one run. Ours are seeds, each at its last iteration; mean ± sample standard deviation.",
    "Thresholds: the paper names the extreme of its reference models, but the thresholds that it prints lie far from "
    "its independent models. Ours are computed from the references of this run and lie close to independent models: "
    "with the extreme of n references one metric accuses one independent model in n + 1, by chance.",
    "Accuracy drops: those that the paper prints are not always the differences of the accuracies that it prints.",
)


@dataclass(frozen=True)
class Reason:
    """Why a verdict differs.

    :ivar metrics: Whose verdict; empty for all.
    :ivar rows: Beginning of the row labels.
    :ivar text: Why.
    :ivar needs: Class and parameter to the value with which it holds; empty if it holds whatever was set.
    """

    metrics: tuple[str, ...]
    rows: str
    text: str
    needs: Mapping[tuple[str, str], object] = field(default_factory=dict)


#: Our data set to reasons.
REASONS: Mapping[str, tuple[Reason, ...]] = {
    "digits": (
        Reason(
            ("MR",),
            "RemovalNet",
            "IPGuard at k = 2 sees a matching rate that has fallen, but that of independent models is lower still. "
            "With the paper's k = 10 no probe converged.",
            {("IPGuardVerifier", "margin"): 2.0},
        ),
    ),
    "fashionmnist": (
        Reason(
            ("LAD", "DDV", "MR"),
            "RemovalNet",
            "The preset keeps the accuracy; it moves what LOD and ZEST look at, and little else. The settings of the "
            "paper's code escape nearly all metrics, and cost 9 to 31 points here.",
            {("RemovalNetAttack", "learning_rate"): 4e-3, ("RemovalNetAttack", "max_iter"): 300},
        ),
    ),
}

#: What the paper says of its figures.
FIGURES = {
    "fig4": "accuracy falls fast at first, then grows and settles; the distances fluctuate meanwhile and end high.",
    "fig5": "accuracy falls fast at first, then grows and settles; the distances fluctuate meanwhile and end high.",
    "fig6": "accuracy grows with the share of data; distances fall slightly, since the rate lr (1 - r) falls.",
    "fig7": "KnockoffNets needs many times RemovalNet's iterations for its accuracy: a saving of nearly 85 % at most.",
    "fig8": "γ moves ZEST, ModelDiff and IPGuard, and DeepJudge little; β moves DeepJudge, and the others little.",
    "fig9": "the activated areas of victim and surrogate differ remarkably.",
    "fig10": "the answers overlap at the start, move to the centre after 100 iterations, and end apart.",
}


@dataclass(frozen=True)
class Counterpart:
    """The paper's table to hold beside rows.

    :ivar table: The table.
    :ivar same: Whether it is of the rows' own data set; else of the nearest that the paper has.
    """

    table: PublishedTable
    same: bool


def counterpart(dataset: str) -> Counterpart | None:
    """Return the paper's table of a data set, or of the nearest that it has; ``None`` where nothing is near."""
    name = plain_name(dataset)
    if name in _NEAREST:
        return Counterpart(published_table(_NEAREST[name]), False)
    try:
        return Counterpart(published_table(_OTHER_NAMES.get(name, dataset)), True)
    except InvalidInputError:
        return None
