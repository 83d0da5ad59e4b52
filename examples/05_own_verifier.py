"""A verifier of your own: two hooks and a formula. Files, calibration, verdicts and query counts come with the base.

Run:  python examples/05_own_verifier.py [--quick]     (half a minute on two CPU cores; --quick: ten seconds)
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from art_fingerprint.attacks import FineTuningAttack, WeightPruningAttack
from art_fingerprint.verifiers import Fingerprint, Metric, Verifier
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_victim


def runner_up_agreement(victim: torch.Tensor, suspect: torch.Tensor) -> float:
    """Share of images on which both put the same class second: ``(n, K)`` scores each, in [0, 1]."""
    return float((victim.topk(2).indices[:, 1] == suspect.topk(2).indices[:, 1]).double().mean())


class RunnerUpVerifier(Verifier):
    """Models trained apart agree on what an image shows, less on what it resembles next."""

    metrics = (Metric("RUA", "similarity", "scores"),)
    source_access = "scores"
    suspect_access = "scores"
    verifier_params: ClassVar[list[str]] = [*Verifier.verifier_params, "nb_probes"]

    def __init__(self, classifier, *, nb_probes: int = 100, **options: Any) -> None:
        """
        :param classifier: The victim, or ``None`` for a verifier that is made from a file.
        :param nb_probes: Images that are kept, those of the smallest gap between the two best classes.
        :param options: Those of every verifier: `seed`, `batch_size`, ...
        """
        super().__init__(classifier, **options)
        self.nb_probes = nb_probes

    def _extract(self, victim, x, y):
        scores = self._as_suspect().logits(x)
        best = scores.topk(2).values
        chosen = (best[:, 0] - best[:, 1]).argsort()[: self.nb_probes]
        return {"probes": x[chosen].numpy(), "scores": scores[chosen].numpy()}, {}

    def _score(self, suspect, fingerprint):
        answers = suspect.logits(torch.from_numpy(np.array(fingerprint.arrays["probes"])))
        return {"RUA": runner_up_agreement(torch.from_numpy(np.array(fingerprint.arrays["scores"])), answers)}


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter training")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    data, digits = load_digits(), load_preset("digits")
    recipe = replace(digits.victim_recipe, max_iter=100 if quick else 400)
    victim, independent, *references = [train_victim(digits.architecture, data, recipe, seed) for seed in range(7)]
    verifier = RunnerUpVerifier(victim)
    verifier.extract(data.x_apart)
    path = verifier.calibrate(references).fingerprint.save(Path(tempfile.mkdtemp()) / "victim.runner-up.safetensors")

    judge = RunnerUpVerifier.from_fingerprint(Fingerprint.load(path))
    steps = {"max_iter": 50, "hflip": False}
    print("tuned: ", judge.verify(FineTuningAttack(victim, **steps).generate(data.x_train, data.y_train)))
    print("pruned:", judge.verify(WeightPruningAttack(victim, **steps).generate(data.x_train, data.y_train)))
    print("other: ", judge.verify(independent))


if __name__ == "__main__":
    main()
