"""Presets of the paper's data sets: settings against the tables of the paper's code, networks, one step of each."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from art_fingerprint.attacks import RemovalNetAttack
from art_fingerprint.benchmark.plan import Plan, architecture_name
from art_fingerprint.benchmark.validation import check_preset
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.datasets import load_dataset
from art_fingerprint.zoo.image_sets import IMAGE_SETS
from art_fingerprint.zoo.loading import load_object
from art_fingerprint.zoo.paper_presets import PAPER_PRESETS
from art_fingerprint.zoo.presets import PRESETS, load_preset
from art_fingerprint.zoo.recipes import train_victim, wrap
from art_fingerprint.zoo.victims import imagenet_vit, victim_network
from tests import photo_sets

timm = pytest.importorskip("timm")

# data set, network, classes, rate, iterations of victim, negative, fine-tuning, pruning, distillation
RECIPES: dict[str, tuple[str, str, int, float, int, int, int, int, int]] = {
    "cifar10-vgg19": ("cifar10", "vgg", 10, 1e-2, 10_000, 10_000, 1000, 1000, 1000),
    "gtsrb-inceptionv3": ("gtsrb", "inception", 43, 1e-2, 2000, 2000, 200, 200, 200),
    "skin-lesion-resnet50": ("ham10000", "resnet", 7, 1e-2, 5000, 10_000, 500, 500, 500),
    "celeba20-densenet121": ("celeba-20", "densenet", 2, 5e-3, 10_000, 5000, 500, 500, 500),
    "celeba31-densenet121": ("celeba-31", "densenet", 2, 5e-3, 10_000, 5000, 500, 500, 500),
    "imagenet-vit_b32": ("imagenet", "visiontransformer", 1000, 1e-2, 20_000, 100_000, 1000, 50, 1000),
}
# alpha, beta, gamma, temperature, rate, shuffle ratio, inner steps, iterations; limited and held-apart data
REMOVAL: dict[str, list[tuple[float, ...]]] = {
    "cifar10-vgg19": [(0.2, 2, 0.6, 20, 8e-3, 0.02, 20, 1000), (0.2, 2, 0.6, 20, 8e-3, 0.02, 20, 1000)],
    "gtsrb-inceptionv3": [(0.2, 2, 0.8, 10, 1e-2, 0.1, 30, 1000), (0.2, 2, 0.8, 10, 1e-2, 0.1, 30, 1000)],
    "skin-lesion-resnet50": [(0.2, 2, 0.8, 20, 1e-2, 0.1, 30, 1000), (0.22, 2, 0.8, 20, 6e-3, 0.1, 30, 1000)],
    "celeba20-densenet121": [(0.2, 2, 0.8, 20, 1e-2, 0.1, 30, 1000), (0.2, 2, 0.8, 20, 3e-3, 0.1, 30, 1000)],
    "celeba31-densenet121": [(0.2, 2, 0.8, 20, 1e-2, 0.1, 30, 1000), (0.2, 2, 0.8, 20, 6e-3, 0.1, 30, 1000)],
    "imagenet-vit_b32": [(0.4, 4, 0.8, 20, 1e-2, 0.2, 30, 2000)],
}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let timm give random weights where published ones are asked for; return what was asked for."""
    asked: list[str] = []
    create = timm.create_model

    def random_weights(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            asked.append(name)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", random_weights)
    return asked


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with tiny files of the data sets of all presets, named by the variable."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        photo_sets.make_cifar10(folder, patch)
        photo_sets.make_gtsrb(folder, tracks=2)
        for maker in dict.fromkeys(maker for makers in photo_sets.MAKERS.values() for maker in makers):
            if maker is not photo_sets.make_gtsrb:
                maker(folder)
        patch.setenv("ART_FINGERPRINT_DATA", str(folder))
        yield folder


def test_every_preset_of_the_paper_is_here() -> None:
    assert list(PAPER_PRESETS) == list(RECIPES) == list(REMOVAL)
    assert set(PRESETS) == {"digits", "fashion-mnist", *RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_those_of_the_code(name: str) -> None:
    preset = load_preset(name)
    dataset, _, _, rate, victim, negative, tune, prune, distill = RECIPES[name]
    assert (preset.name, preset.dataset) == (name, dataset)
    hflip = IMAGE_SETS[dataset].hflip
    for recipe, steps, momentum, linear_l2 in (
        (preset.victim_recipe, victim, 0.8, 1e-2),
        (preset.negative_recipe, negative, 0.9, 0.0),
    ):
        assert (recipe.learning_rate, recipe.max_iter, recipe.batch_size) == (rate, steps, 100)
        assert (recipe.momentum, recipe.weight_decay, recipe.linear_l2) == (momentum, 5e-3, linear_l2)
    assert preset.negative_recipe.stage_divisors == ((1, 10, 100) if dataset == "cifar10" else (1, 5, 50))
    tuning = 1e-3 if dataset == "imagenet" else 1e-2
    found = {label: (setting.attack, dict(setting.params)) for label, setting in preset.attacks.items()}
    removal = [label for label in found if label.startswith("RemovalNet")]
    assert {label: entry for label, entry in found.items() if label not in removal} == {
        **{
            f"FT({ratio})": (
                "FineTuningAttack",
                {"ratio": ratio, "max_iter": tune, "learning_rate": tuning, "hflip": hflip},
            )
            for ratio in (0.5, 0.8)
        },
        **{
            f"WP({ratio})": (
                "WeightPruningAttack",
                {"ratio": ratio, "max_iter": prune, "learning_rate": rate, "hflip": hflip},
            )
            for ratio in (0.5, 0.8)
        },
        "Distill": ("DistillationAttack", {"max_iter": distill, "hflip": hflip}),
    }
    for label, setting in preset.attacks.items():
        assert (setting.source, setting.true_labels) == (
            {"RemovalNet(train)": "subset", "RemovalNet(apart)": "apart"}.get(label, "train"),
            label not in removal,
        )


@pytest.mark.parametrize("name", REMOVAL)
def test_removalnet_s_settings_are_those_of_the_code(name: str) -> None:
    names = ("alpha", "beta", "gamma", "temperature", "learning_rate", "shuffle_ratio", "inner_steps", "max_iter")
    rows = [setting.params for setting in load_preset(name).attacks.values() if setting.attack == "RemovalNetAttack"]
    assert [tuple(row[key] for key in names) for row in rows] == REMOVAL[name]
    assert [row["layer"] for row in rows] == [2] * len(rows)
    assert [row.get("subset_ratio") for row in rows] == [load_preset(name).subset_ratio, None][: len(rows)]


@pytest.mark.parametrize("name", RECIPES)
def test_networks_travel_to_other_processes_and_have_a_name(name: str, no_weights: list[str]) -> None:
    preset = load_preset(name)
    made = pickle.loads(pickle.dumps(preset)).architecture
    assert made is preset.architecture
    named = architecture_name(preset.architecture)
    assert load_object(named) is preset.architecture  # the same in each process: keys of kept results rest on it
    plan = Plan.from_preset(preset, 1).to_dict()
    assert "0x" not in str(plan)
    with torch.random.fork_rng():
        network = made()
    _, kind, nb_classes, *_ = RECIPES[name]
    assert type(network).__name__.lower().startswith(kind)
    size = IMAGE_SETS[preset.dataset].size
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, size, size)).shape == (1, nb_classes)


@pytest.mark.parametrize("name", RECIPES)
def test_presets_can_run(name: str, root: Path, no_weights: list[str]) -> None:
    """The bench's own check before it starts: parameters of attacks and verifiers, layers."""
    preset = load_preset(name)
    data = load_dataset(preset.dataset, **{**preset.dataset_options, "max_samples": 20})
    model = wrap(preset.architecture(), data, "cpu")
    check_preset(preset, model)
    assert preset.reason
    for setting in preset.attacks.values():
        assert setting.params["hflip"] is data.hflip
        assert setting.source != "apart" or len(data.x_apart)
    named = preset.independent_architecture
    assert (named is None) is (name != "imagenet-vit_b32")
    if named is not None:
        load_object(named)()
        assert no_weights == ["vit_base_patch32_224.augreg_in21k_ft_in1k", "vit_base_patch32_224.sam_in1k"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The substitute set is unbalanced", "ignore:The output's gradient")
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_of_training_and_of_removal(name: str, root: Path, no_weights: list[str]) -> None:
    preset = load_preset(name)
    data = load_dataset(preset.dataset, max_samples=12)
    victim = train_victim(
        preset.architecture, data, replace(preset.victim_recipe, max_iter=1, batch_size=4), preset.victim_seed, "cpu"
    )
    before = network_digest(network_of(victim))
    for setting in preset.attacks.values():
        if setting.attack == "RemovalNetAttack":
            params = {**setting.params, "max_iter": 1, "inner_steps": 1, "batch_size": 4, "allow_degenerate": True}
            surrogate = RemovalNetAttack(victim, seed=0, **params).generate(
                data.x_apart if setting.source == "apart" else data.x_train
            )
            assert network_digest(network_of(surrogate)) != before
            assert np.isfinite(surrogate.predict(data.x_test)).all()
    assert network_digest(network_of(victim)) == before


# ---------------------------------------------------------------------- weights of timm
def test_standardisation_is_folded_into_the_patch_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, std = (0.3, 0.5, 0.6), (0.2, 0.5, 0.7)
    create = timm.create_model
    made: list[Any] = []

    def published(name: str, pretrained: bool, **options: Any) -> Any:
        assert (name, pretrained) == ("vit_base_patch32_224.some_weights", True)
        network = create("vit_tiny_patch16_224", num_classes=options["num_classes"], img_size=options["img_size"])
        network.pretrained_cfg = {**network.pretrained_cfg, "mean": mean, "std": std}
        made.append(copy.deepcopy(network))
        return network

    monkeypatch.setattr(timm, "create_model", published)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        ours = imagenet_vit("some_weights").eval()
        x = torch.rand(2, 3, 224, 224)
        standardised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        theirs = made[0].eval()
        torch.testing.assert_close(ours(x), theirs(standardised), rtol=1e-4, atol=1e-5)
        assert (theirs(x) - theirs(standardised)).abs().max() > 1e-2


def test_weights_that_cannot_be_had_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_arguments: Any, **_options: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InvalidInputError, match=r"weights of vit_base_patch32_224\.sam_in1k .*no route to host"):
        imagenet_vit("sam_in1k")
    with pytest.raises(InvalidInputError, match="`name` must be one of"):
        victim_network("vit_base_patch32_224.sam_in1k", 1000)  # a name of weights without weights
    with pytest.raises(InvalidInputError, match="`name` must be one of"):
        victim_network("vit_base_patch16_224.sam_in1k", 1000, pretrained=True)
