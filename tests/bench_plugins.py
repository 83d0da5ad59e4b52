"""Attacks, verifiers and networks that a plan names as ``tests.bench_plugins:Name``: they misbehave on purpose."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.attacks.base import SubstituteSet
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.queries import Suspect
from art_fingerprint.verifiers import IPGuardVerifier
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.datasets import Dataset, load_digits


class OwnAttack(FineTuningAttack):
    """Fine-tuning with a parameter ``how`` that says what goes wrong."""

    attack_params = [*FineTuningAttack.attack_params, "how"]

    def __init__(self, classifier: PyTorchClassifier, how: str = "", **options: Any) -> None:
        self.how = how  # before the base class, which checks parameters
        super().__init__(classifier, **options)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        kind, _, rest = self.how.partition(":")
        if kind == "raise":
            raise RuntimeError(f"by hand, seed {self.seed}")
        if kind == "die" or (kind == "die-once" and not Path(rest).exists()):
            if rest:
                Path(rest).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "sleep":
            time.sleep(float(rest))
        return super()._derive(surrogate, data)


class OwnVerifier(IPGuardVerifier):
    """IPGuard that answers NaN for every suspect but the references, or that cannot extract."""

    verifier_params = [*IPGuardVerifier.verifier_params, "how"]

    def __init__(self, classifier: PyTorchClassifier | None, how: str = "nan", **options: Any) -> None:
        super().__init__(classifier, **options)
        self.how = how

    def _extract(
        self, victim: LogitsNetwork, x: torch.Tensor, y: torch.Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if self.how == "raise":
            raise RuntimeError("no fingerprint")
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._extract(victim, x, y)

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        found = super()._score(suspect, fingerprint)
        return found if fingerprint.calibration is None else {**found, "MR": float("nan")}


def narrow() -> SmallCNN:
    """Return a network of width 4."""
    return SmallCNN(width=4)


def narrower() -> SmallCNN:
    """Return a network of width 3."""
    return SmallCNN(width=3)


def three_classes() -> SmallCNN:
    """Return a network for another number of classes."""
    return SmallCNN(nb_classes=3, width=4)


def colour() -> SmallCNN:
    """Return a network of width 4 for colour images."""
    return SmallCNN(channels=3, width=4)


def few_digits() -> Dataset:
    """Return a part of the digits."""
    data = load_digits()
    return Dataset(
        *("few digits", data.x_train[:200], data.y_train[:200], data.x_apart[:80], data.y_apart[:80]),
        *(data.x_test[:60], data.y_test[:60], 10, False),
    )
