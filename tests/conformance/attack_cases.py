"""How every attack of the package is run in a blink: discovered, with its defaults shrunk, and with what some need."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint import attacks
from art_fingerprint.attacks import RemovalAttack
from art_fingerprint.attacks.stealing import StealingAttack
from art_fingerprint.testing import AttackCase, concrete_subclasses
from art_fingerprint.testing.state import equal as equal
from art_fingerprint.testing.state import everything as everything
from art_fingerprint.testing.state import marked
from art_fingerprint.testing.state import parameters_equal as parameters_equal
from art_fingerprint.testing.state import weights as state
from tests.victims import several_classes

Options = dict[str, Any]

ATTACKS = sorted(concrete_subclasses(attacks, RemovalAttack), key=lambda kind: kind.__name__)

REMOVAL: Options = {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 2}
# One row for every attack: what it is given besides its defaults, which are shrunk. Two entries are two cases.
OPTIONS: dict[str, list[Options]] = {
    "AdversarialFineTuningAttack": [{"max_iter_attack": 2}],
    "CompositeAttack": [
        {"attacks": (("WeightPruningAttack", {"max_iter": 2}), ("FineTuningAttack", {"ratio": 1.0, "max_iter": 2}))}
    ],
    "DistillationAttack": [{}],
    "FeaturePermutationAttack": [{}, {"rescale": 10.0}],
    "FinePruningAttack": [{"ratio": 0.5}],
    "FineTuningAttack": [{}],
    "KnockoffNetsAttack": [{}, {"sampling_strategy": "adaptive", "draws": 4, "nb_stolen": 16}],
    "LabelSmoothingAttack": [{}],
    "LayerFineTuningAttack": [{}],
    "LogitDistillationAttack": [{}],
    "RegularizationAttack": [{}],
    "RemovalNetAttack": [REMOVAL, {**REMOVAL, "error_repair": 1.0, "weight_repulsion": 5.0}],
    "RetrainingAttack": [{}],
    "WeightNoiseAttack": [{}],
    "WeightPruningAttack": [{}],
    "WeightQuantizationAttack": [{}],
    "WeightShiftingAttack": [{}],
}
# Strength zero: the victim's parameters come out. Others have none, as they quantise, permute or start anew.
_STILL: Options = {"learning_rate": 0.0, "weight_decay": 0.0}
ZERO: dict[str, Options] = {
    "AdversarialFineTuningAttack": _STILL,
    "CompositeAttack": {"attacks": (("FineTuningAttack", {**_STILL, "max_iter": 2}),)},
    "DistillationAttack": _STILL,
    "FinePruningAttack": {**_STILL, "ratio": 0.0},
    "FineTuningAttack": _STILL,
    "LabelSmoothingAttack": _STILL,
    "LayerFineTuningAttack": {**_STILL, "variant": "FTAL"},
    "RegularizationAttack": _STILL,
    "RemovalNetAttack": _STILL,
    "RemovalNetAttack-error_repair": _STILL,
    "WeightNoiseAttack": {**_STILL, "strength": 0.0},
    "WeightPruningAttack": {**_STILL, "ratio": 0.0},
    "WeightShiftingAttack": {**_STILL, "mean_weight": 0.0, "noise_weight": 0.0},
}
# the names of layers are only known with the data
FREE: dict[str, type] = {"layer": str, "layers": dict, "student_layers": dict}
# What a few attacks do not have in common with all others.
NEED_LABELS = {"KnockoffNetsAttack-adaptive", "RemovalNetAttack-error_repair"}  # y must be given
NEED_ARRAYS = {"KnockoffNetsAttack-adaptive", "RemovalNetAttack-error_repair"}  # no DataGenerator, unlike their class
# The callback is also called between the attacks of a row, and while queries are chosen.
OWN_STEPS = {"CompositeAttack", "KnockoffNetsAttack-adaptive"}
OWN_INPUTS = {"AdversarialFineTuningAttack"}  # learns from inputs that it makes itself, in front of preprocessing
DRAWS = {"KnockoffNetsAttack-adaptive"}  # draws as many samples as it likes from however few
NEED_CONVOLUTIONS = {"WeightShiftingAttack"}  # refuses networks without them
# Parameters that say how long a run is, and what they are shrunk to: the first that an attack has.
LENGTHS: Options = {"max_iter": 4, "nb_epochs": 1}


def parameters(attack: type) -> dict[str, Any]:
    """Return the constructor's parameters and their defaults, without the estimator and ART's summary writer."""
    found = dict(inspect.signature(attack).parameters)
    return {name: p.default for name, p in found.items() if name not in ("classifier", "summary_writer")}


@dataclass(frozen=True)
class Case:
    """One attack with the options of its tests."""

    attack: Any  # a subclass of RemovalAttack; their constructors differ
    own: Options = field(default_factory=dict)

    @property
    def name(self) -> str:
        """That of the class, and the first option that its first case has not."""
        first = OPTIONS.get(self.attack.__name__, [{}])[0]
        more = [v if isinstance(v, str) else k for k, v in self.own.items() if k not in first]
        return "-".join([self.attack.__name__, *more[:1]])

    @property
    def options(self) -> Options:
        """The options of a short run."""
        length = next(({name: LENGTHS[name]} for name in LENGTHS if name in parameters(self.attack)), {})
        return {"batch_size": 16, **length, **self.own}

    @property
    def trains(self) -> bool:
        """Whether the attack takes optimiser steps."""
        return "learning_rate" in parameters(self.attack) or "attacks" in self.own

    def make(self, victim: PyTorchClassifier, **changes: Any) -> Any:
        return self.attack(victim, **{**self.options, **changes})

    @property
    def reads_streams(self) -> bool:
        """Whether an ART ``DataGenerator`` is read."""
        return self.attack.reads_streams and self.name not in NEED_ARRAYS

    @property
    def lenient(self) -> Options:
        """What lifts the check of classes, where there is one."""
        return {"allow_degenerate": True} if "allow_degenerate" in parameters(self.attack) else {}

    def fresh(self, network: Callable[[], nn.Module]) -> Options:
        """What makes the network of an attack that starts from fresh weights."""
        return {"surrogate_factory": network} if issubclass(self.attack, StealingAttack) else {}


CASES = [Case(kind, own) for kind in ATTACKS for own in OPTIONS.get(kind.__name__, [{}])]
every_attack = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def conformance(case: Case) -> AttackCase:
    """Return a case as the checks of the package take it."""
    return AttackCase(
        case.attack,
        case.options,
        label=case.name,
        zero=ZERO.get(case.name),
        needs_labels=case.name in NEED_LABELS,
        free=FREE,
    )


def close(a: PyTorchClassifier, b: PyTorchClassifier, tolerance: float) -> bool:
    other = state(b)
    return all(
        torch.allclose(tensor.double(), other[name].double(), atol=tolerance, rtol=10 * tolerance)
        for name, tensor in state(a).items()
    )


def odd_victim(images: np.ndarray) -> PyTorchClassifier:
    """A victim with mixed flags, a gradient, a frozen weight, and hooks of its own."""
    return marked(several_classes(images))
