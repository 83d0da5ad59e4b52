"""Dataset Inference on a victim that has memorised its data: 400 digits, three labels of ten wrong.

Prints DI and its p-value for copies, RemovalNet's surrogates, and independent models of the same and of other images.
Run as ``python benchmarks/dataset_inference.py``; results stand in docs/query-verifiers.md.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.evaluation.fidelity import accuracy
from art_fingerprint.verifiers import DatasetInferenceVerifier
from art_fingerprint.zoo.datasets import Dataset, load_dataset
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_victim


def mislabelled(y: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Return labels of which three of ten are wrong, so that a model has something to learn by heart."""
    wrong = draws.random(len(y)) < 0.3
    y = y.copy()
    y[wrong] = (y[wrong] + draws.integers(1, 10, wrong.sum())) % 10
    return y


def main() -> None:
    """Train, score, print."""
    torch.set_num_threads(1)
    preset, data = load_preset("digits"), load_dataset("digits")
    draws = np.random.default_rng(0)
    y, y_other, y_unseen = (mislabelled(side, draws) for side in (data.y_train[:400], data.y_apart[:400], data.y_test))
    own = replace(data, x_train=data.x_train[:400], y_train=y)
    other = replace(data, x_train=data.x_apart[:400], y_train=y_other)
    recipe = replace(preset.victim_recipe, max_shift=0, weight_decay=0.0, linear_l2=0.0, max_iter=500)

    def trained(part: Dataset, seed: int) -> PyTorchClassifier:
        return train_victim(preset.architecture, part, recipe, seed, "cpu")

    victim = trained(own, 0)
    verifier = DatasetInferenceVerifier(victim, nb_fit=200, nb_test=100, noise=16.0, batch_size=1024)
    verifier.extract(own.x_train, y, data.x_test, y_unseen)
    removal = preset.attacks["RemovalNet(train)"].params
    groups = {
        "victim": [victim],
        "FT(0.5)": [
            FineTuningAttack(victim, ratio=0.5, max_iter=200, hflip=False, seed=seed).generate(own.x_train, y)
            for seed in range(3)
        ],
        "RemovalNet, half": [
            RemovalNetAttack(victim, seed=seed, **removal).generate(own.x_train[:200]) for seed in range(3)
        ],
        "RemovalNet, apart": [
            RemovalNetAttack(victim, seed=seed, **removal).generate(data.x_apart) for seed in range(3)
        ],
        "same images": [trained(own, 20 + seed) for seed in range(3)],
        "other images": [trained(other, 10 + seed) for seed in range(5)],
    }
    for group, models in groups.items():
        for model in models:
            scores = verifier.score(model)
            print(
                f"{group:<20} DI {scores['DI']:6.3f}  p {scores['DI-p']:.2g}  accuracy "
                f"{accuracy(model, data.x_test, data.y_test):.3f}"
            )


if __name__ == "__main__":
    main()
