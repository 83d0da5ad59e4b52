"""Robust accuracy (Rob) and robustness distance (RobD) of victims and suspects, white-box or by transfer.

RemovalNet section 5.1 and Table IV: a removal attack may give itself away by a loss of adversarial robustness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.adversarial import Evasion, adversarial_examples, describe, evasion
from art_fingerprint.core.art_attacks import ArtFactory
from art_fingerprint.core.checks import check_images, check_labels
from art_fingerprint.core.outputs import OutputKind
from art_fingerprint.evaluation.fidelity import labels_in, scores
from art_fingerprint.exceptions import InvalidInputError

Attack: TypeAlias = str | Evasion | EvasionAttack | ArtFactory
#: The attacks of the paper's Table IV.
TABLE_FOUR_ATTACKS = ("FGSM", "PGD", "DeepFool")
# Two highest scores nearer than this, relative to the largest, are told apart by rounding.
_TIE = 1e-5


@dataclass(frozen=True)
class Robustness:
    """How one classifier stands up to one evasion attack.

    :ivar accuracy: Rob: share of adversarial examples that are classified as their label says, in [0, 1]. Examples
        count whether or not the attack succeeded.
    :ivar clean_accuracy: Accuracy on the images themselves, in [0, 1].
    :ivar undecided: Share of examples whose two highest scores differ by less than 1e-5 of the largest, so that the
        class depends on rounding. DeepFool's last iterates lie there where ``clip_values`` swallow part of each step.
    :ivar median_l2: Median L2 norm of the perturbations, over all examples, in input units.
    :ivar max_linf: Largest change of one input value, in input units.
    :ivar nb_samples: Number of images.
    :ivar attack: Name, all parameters, and torchattacks' version.
    """

    accuracy: float
    clean_accuracy: float
    undecided: float
    median_l2: float
    max_linf: float
    nb_samples: int
    attack: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def robustness(
    classifier: Any,
    x: np.ndarray,
    y: np.ndarray,
    attack: Attack = "PGD",
    *,
    source: PyTorchClassifier | None = None,
    outputs: OutputKind = "auto",
    batch_size: int = 128,
    seed: int = 0,
    verbose: bool = False,
    **params: Any,
) -> Robustness:
    """Attack a classifier and measure what is left of its accuracy.

    Predictions go through ``predict``, so that postprocessing defences count.

    :param classifier: The classifier under attack: a ``PyTorchClassifier``, or any ART classifier with ``source``.
    :param x: Test images ``(n, *input_shape)`` float32 in ``clip_values``.
    :param y: True labels, indices or one-hot.
    :param attack: torchattacks class name (``"FGSM"``, ``"PGD"``, ``"DeepFool"``, ...), an :class:`.Evasion`, an ART
        evasion attack, or a function that makes one for a classifier.
    :param source: Whose examples: ``None``, the classifier's own (white-box, as in Table IV); another classifier:
        transfer.
    :param outputs: What the attacked model returns; see :func:`~art_fingerprint.core.adversarial.adversarial_examples`.
    :param batch_size: Samples in a batch.
    :param seed: Seed of the attack's draws.
    :param verbose: Show a progress bar.
    :param params: With a name: its parameters, ``eps_space`` and ``engine``; see :class:`.Evasion`.
    :raises InvalidInputError: as :func:`~art_fingerprint.core.adversarial.adversarial_examples`.

    Cost: the attack (FGSM 1, PGD ``steps`` forward and backward samples each, DeepFool see :func:`.deepfool`) and 2n
    predictions.
    """
    chosen = evasion(attack, **params)
    examples = adversarial_examples(
        classifier if source is None else source,
        chosen,
        x,
        y,
        outputs=outputs,
        batch_size=batch_size,
        seed=seed,
        verbose=verbose,
    )
    return _measured(classifier, x, y, examples, describe(chosen), batch_size)


def robust_accuracy(classifier: Any, x: np.ndarray, y: np.ndarray, attack: Attack = "PGD", **options: Any) -> float:
    """Return Rob, the accuracy under attack, in [0, 1]; parameters and errors as :func:`robustness`."""
    return robustness(classifier, x, y, attack, **options).accuracy


def robustness_distance(
    victim: PyTorchClassifier,
    suspect: Any,
    x: np.ndarray,
    y: np.ndarray,
    attack: Attack = "PGD",
    *,
    transfer: bool = False,
    **options: Any,
) -> float:
    """Return RobD = abs(Rob(victim) - Rob(suspect)), in [0, 1] (section 5.1).

    :param victim: The victim.
    :param suspect: The suspect; any ART classifier with ``transfer=True``.
    :param x: Test images.
    :param y: True labels.
    :param attack: As in :func:`robustness`.
    :param transfer: ``False``: each model is attacked with its own examples (Table IV). ``True``: both are given the
        victim's examples; a derived model falls for them as the victim does.
    :param options: Further options of :func:`robustness`.
    """
    first = robust_accuracy(victim, x, y, attack, **options)
    other = robust_accuracy(suspect, x, y, attack, source=victim if transfer else None, **options)
    return abs(first - other)


def robustness_table(
    classifiers: Mapping[str, PyTorchClassifier],
    x: np.ndarray,
    y: np.ndarray,
    attacks: Iterable[Attack] = TABLE_FOUR_ATTACKS,
    **options: Any,
) -> dict[str, dict[str, Robustness]]:
    """Attack several classifiers, each with its own examples: attack name to classifier's name to result (Table IV).

    :param classifiers: Name to classifier, e.g. victim, surrogate and negative.
    :param x: Test images.
    :param y: True labels.
    :param attacks: As in :func:`robustness`; names may not come twice.
    :param options: Further options of :func:`robustness`, but no parameters of an attack.
    """
    chosen = [evasion(attack) for attack in attacks]
    names = [describe(attack)["attack"] for attack in chosen]
    if len(set(names)) < len(names) or not names:
        raise InvalidInputError(f"`attacks` must be one or more different attacks, got {', '.join(names) or 'none'}.")
    return {
        name: {key: robustness(classifier, x, y, attack, **options) for key, classifier in classifiers.items()}
        for name, attack in zip(names, chosen, strict=True)
    }


def _measured(
    classifier: Any, x: np.ndarray, y: np.ndarray, examples: np.ndarray, facts: Mapping[str, Any], batch_size: int
) -> Robustness:
    images = check_images(x, tuple(classifier.input_shape))
    labels = check_labels(y, len(images), int(classifier.nb_classes))
    clean, answers = (scores(classifier, data, batch_size=batch_size) for data in (images, examples))
    ordered = np.sort(answers, axis=1)
    tied = ~(ordered[:, -1] - ordered[:, -2] > _TIE * np.abs(answers).max(1))  # NaN among them
    moved = (examples - images).reshape(len(images), -1)
    return Robustness(
        accuracy=float((labels_in(answers) == labels).mean()),
        clean_accuracy=float((labels_in(clean) == labels).mean()),
        undecided=float(tied.mean()),
        median_l2=float(np.median(np.linalg.norm(moved.astype(np.float64), axis=1))),
        max_linf=float(np.abs(moved).max()),
        nb_samples=len(images),
        attack=dict(facts),
    )
