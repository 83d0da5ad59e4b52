"""How every verifier of the package is tried: one row each, and what tests share of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

from art_fingerprint.testing import VerifierCase, independent_classifier
from art_fingerprint.verifiers import (
    AKHVerifier,
    DatasetInferenceVerifier,
    DeepJudgeVerifier,
    FBIVerifier,
    IPGuardVerifier,
    ModelDiffVerifier,
    RobustnessVerifier,
    SACVerifier,
    Verifier,
    WeightAlignmentVerifier,
    ZestVerifier,
)
from tests.victims import several_classes

Options = dict[str, Any]

# what the paper's parameters are cut down to, so that a network of three layers gives a fingerprint in a blink
_FEW_PROBES: Options = {"nb_seeds_whitebox": 3, "max_iter": 40}


X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
Y = np.arange(40) % 4
# Labels that the victim, which has learned Y by heart, gets wrong on every third image.
Y_WRONG = np.where(np.arange(40) % 3 == 0, (Y + 1 + np.arange(40) // 12) % 4, Y)
X_OTHER = np.random.default_rng(2).random((40, 1, 8, 8), dtype=np.float32)
X_UNSEEN = np.random.default_rng(1).random((40, 1, 8, 8), dtype=np.float32)


# the names of layers are only known with the data, and any number is a colour
FREE: dict[str, type] = {"layer": str, "suspect_layer": str, "fill": float}


@dataclass(frozen=True)
class Case(VerifierCase):
    """A case of the package's checks, and what makes the verifier's other profiles quick.

    :ivar profile: Options besides a profile's own.
    """

    profile: Options = field(default_factory=dict)
    free: Mapping[str, type] = field(default_factory=lambda: FREE)


_WALKS: Options = {"nb_fit": 20, "nb_test": 10, "nb_draws": 1, "max_steps": 8, "noise": 20.0, "nb_epochs": 100}

CASES = [
    Case(
        AKHVerifier,
        {"nb_probes": 10, "fill": "none"},
        counts=("nb_probes",),
        profile={"nb_probes": 12},
        y=Y_WRONG,
    ),
    Case(
        DatasetInferenceVerifier,
        _WALKS,
        counts=("nb_queries",),
        profile=_WALKS,
        more={"x_unseen": X_UNSEEN, "y_unseen": Y},
        extremes=False,
        adaptive=True,
    ),
    Case(
        DeepJudgeVerifier,
        {"nb_seeds": 30, "radius": 0.3, "multiplier": 1.2, "learning_rate": 0.05, "layer": "block2", **_FEW_PROBES},
        counts=("nb_examples", "nb_tests"),
        profile={**_FEW_PROBES, "radius": 0.3, "multiplier": 1.2},
    ),
    Case(
        FBIVerifier,
        {"nb_probes": 20},
        counts=("nb_probes",),
        profile={"nb_probes": 20},
        y=Y_WRONG,
    ),
    Case(
        IPGuardVerifier,
        {"nb_probes": 15, "margin": 0.5, "learning_rate": 0.02, "max_iter": 40},
        counts=("nb_probes",),
        profile={"nb_probes": 15, "margin": 0.5, "learning_rate": 0.02, "max_iter": 40},
    ),
    Case(
        ModelDiffVerifier,
        {"nb_pairs": 12, "radius": 0.3, "step": 0.1, "max_iter": 4},
        counts=("nb_pairs",),
        times=2,
        profile={"nb_pairs": 12, "max_iter": 4, "search_iterations": 20},
    ),
    Case(
        RobustnessVerifier,
        {"nb_seeds": 30, "eps": 0.1, "alpha": 0.05, "steps": 3, "deepfool_steps": 4},
        counts=("nb_FGSM", "nb_PGD", "nb_DeepFool"),
        extreme_tolerance=2.1 / 30,  # DeepFool's examples lie on the boundary: rounding decides a label or two
        profile={"nb_seeds": 20, "steps": 3, "deepfool_steps": 4},
    ),
    Case(WeightAlignmentVerifier, {}, counts=(), profile={}),
    Case(
        SACVerifier,
        {"nb_probes": 10},
        counts=("nb_probes",),
        profile={"nb_probes": 12},
        y=Y_WRONG,
    ),
    Case(
        ZestVerifier,
        {"nb_images": 12, "nb_masks": 24, "segmenter": "grid", "grid_cells": 3},
        counts=("nb_probes",),
        profile={"nb_images": 12, "nb_masks": 20, "segmenter": "grid", "grid_cells": 3},
    ),
]
every_verifier = pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
every_query_verifier = pytest.mark.parametrize(
    "case", [case for case in CASES if case.counts], ids=[case.verifier.__name__ for case in CASES if case.counts]
)
FORESEEN = [case for case in CASES if case.verifier._extraction_passes is not Verifier._extraction_passes]
every_foreseen_verifier = pytest.mark.parametrize("case", FORESEEN, ids=[case.verifier.__name__ for case in FORESEEN])


def victim() -> PyTorchClassifier:
    return several_classes(X)


independent = independent_classifier


def extracted(case: Case, **changes: Any) -> Verifier:
    found: Verifier = case.extracted(**changes)
    return found


def label_metrics(case: Case) -> list[str]:
    return case.metrics("labels")


def soft_box(classifier: PyTorchClassifier) -> BlackBoxClassifierNeuralNetwork:
    """Return a classifier that answers the probabilities of ``classifier`` and shows nothing else."""
    return BlackBoxClassifierNeuralNetwork(
        lambda x: torch.softmax(torch.from_numpy(classifier.predict(x)), 1).numpy(), (1, 8, 8), 4
    )
