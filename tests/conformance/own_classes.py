"""A small correct attack and verifier, as somebody else might write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.attacks import RemovalAttack
from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.core.checks import check_number
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.verifiers import Fingerprint, Metric, Verifier


class OwnAttack(RemovalAttack):
    """Add noise to all biases.

    :param classifier: The victim.
    :param strength: Standard deviation of the noise, 0 or more.
    :param batch_size: Not used.
    :param hflip: Not used.
    :param callback: ``callback(step, surrogate, losses)``.
    :param callback_interval: Not used.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Not used.
    """

    attack_params = [*RemovalAttack.attack_params, "strength"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        strength: float = 0.1,
        *,
        batch_size: int = 64,
        hflip: bool = False,
        callback: SurrogateCallback | None = None,
        callback_interval: int = 100,
        seed: int = 0,
        summary_writer: Any = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.strength = strength
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("strength", self.strength, 0)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        watch = self._watch(surrogate)
        watch(0, {})
        with torch.no_grad():
            for name, parameter in surrogate.model.named_parameters():
                if name.endswith("bias"):
                    parameter += self._noise(name, parameter)
        watch(1, {"strength": self.strength})
        return {}

    def _noise(self, name: str, parameter: Tensor) -> Tensor:
        generator = torch_generator(self.seed, "own attack", name)
        return self.strength * torch.randn(parameter.shape, generator=generator)


class OwnVerifier(Verifier):
    """Compare the answers to a few of the owner's images.

    :param classifier: The victim.
    :param nb_probes: Images that are sent.
    :param power: Power of the gap.
    :param metric_names: Metrics.
    :param nan_policy: See the base class.
    :param batch_size: Samples in a batch.
    :param seed: Seed.
    :param verbose: Not used.
    """

    metrics = (Metric("agreement", "similarity", "labels"), Metric("gap", "distance", "scores"))
    source_access = "scores"
    suspect_access = "scores"
    verifier_params = [*Verifier.verifier_params, "nb_probes", "power"]

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_probes: int = 20,
        power: float = 1.0,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            metric_names=metric_names,
            nan_policy=nan_policy,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.nb_probes = nb_probes
        self.power = power
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("nb_probes", self.nb_probes, 1, integer=True)
        check_number("power", self.power, 0, open_low=True)

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        chosen = torch.randperm(len(x), generator=self._generator())[: self.nb_probes]
        known = torch.softmax(self._as_suspect().logits(x[chosen]).double(), 1)
        return {"probes": x[chosen].numpy(), "known": known.numpy()}, {"nb_probes": len(chosen)}

    def _generator(self) -> torch.Generator:
        return torch_generator(self.seed, "own verifier")

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        probes, known = fingerprint.tensors("probes", "known")
        answers = suspect.rows(probes)
        agreement = (suspect.as_labels(answers) == known.argmax(1)).double().mean()
        self._keep({"agreement": float(agreement)})
        found = torch.softmax(suspect.as_logits(answers).double(), 1)
        return {"gap": float((found - known).abs().sum(1).mean() ** self.power)}
