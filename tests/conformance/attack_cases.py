"""How every attack of the package is run in a blink: discovered, with its defaults shrunk, and with what some need."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint import attacks
from art_fingerprint.attacks import RemovalAttack
from art_fingerprint.attacks.stealing import StealingAttack
from tests.conformance.discovery import concrete_subclasses
from tests.victims import several_classes

Options = dict[str, Any]

ATTACKS = sorted(concrete_subclasses(attacks, RemovalAttack), key=lambda kind: kind.__name__)
every_class = pytest.mark.parametrize("attack", ATTACKS, ids=[kind.__name__ for kind in ATTACKS])

REMOVAL: Options = {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 2}
# An attack that is not named here is tested with its defaults, shrunk: nothing has to be added for it.
OPTIONS: dict[str, list[Options]] = {
    "AdversarialFineTuningAttack": [{"max_iter_attack": 2}],
    "CompositeAttack": [
        {"attacks": (("WeightPruningAttack", {"max_iter": 2}), ("FineTuningAttack", {"ratio": 1.0, "max_iter": 2}))}
    ],
    "FeaturePermutationAttack": [{}, {"rescale": 10.0}],
    "FinePruningAttack": [{"ratio": 0.5}],
    "KnockoffNetsAttack": [{}, {"sampling_strategy": "adaptive", "draws": 4, "nb_stolen": 16}],
    "RemovalNetAttack": [REMOVAL, {**REMOVAL, "error_repair": 1.0, "weight_repulsion": 5.0}],
}
# What a few attacks do not have in common with all others.
DETERMINISTIC: set[str] = set()  # the seed makes no difference
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


def state(classifier: PyTorchClassifier) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in classifier.model.state_dict().items()}


def equal(a: PyTorchClassifier, b: PyTorchClassifier) -> bool:
    other = state(b)
    return all(torch.equal(tensor, other[name]) for name, tensor in state(a).items())


def close(a: PyTorchClassifier, b: PyTorchClassifier, tolerance: float) -> bool:
    other = state(b)
    return all(
        torch.allclose(tensor.double(), other[name].double(), atol=tolerance, rtol=10 * tolerance)
        for name, tensor in state(a).items()
    )


def parameters_equal(a: PyTorchClassifier, b: PyTorchClassifier) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def everything(classifier: PyTorchClassifier) -> dict[str, Any]:
    """All of a victim and of the caller that an attack has to leave alone, in a form that compares."""
    modules = list(classifier.model.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "state": {name: tensor.numpy().tobytes() for name, tensor in state(classifier).items()},
        "storage": [tensor.data_ptr() for tensor in classifier.model.state_dict().values()],
        "training": [module.training for module in modules],
        "requires_grad": [p.requires_grad for p in classifier.model.parameters()],
        "grad": [None if p.grad is None else p.grad.numpy().tobytes() for p in classifier.model.parameters()],
        "hooks": [tuple(getattr(module, name).items()) for module in modules for name in hooks],
        "attributes": [sorted(vars(module)) for module in modules],
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
        "autograd": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }


def odd_victim(images: np.ndarray) -> PyTorchClassifier:
    """A victim with mixed flags, a gradient, a frozen weight, and hooks of its own."""
    victim = several_classes(images)
    network = victim.model
    network.train()
    network.block2.eval()
    network.head(torch.ones(1, 12)).sum().backward()
    network.block1[0].weight.requires_grad_(False)
    network.block1.register_forward_hook(lambda *_: None)
    network.head.register_forward_pre_hook(lambda *_: None)
    return victim
