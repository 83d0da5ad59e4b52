"""RemovalNet's claim on scikit-learn's digits: latents leave the victim's, accuracy stays; fine-tuning does not leave.

Measured with the network below (seed 0, 500 iterations): accuracy of the victim 0.990, of the surrogate 0.98; mean
confidence 0.99 and 0.77; root mean square difference of the latents at 100 and 500 iterations 1.4 and 4.4, with the
victim's latents as source 0.71 and 0.79; after fine-tuning 0.005; between independent models 0.94.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.core.digests import network_digest
from tests.conftest import wrap


def block(inputs: int, outputs: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), *more)


class DigitsCNN(nn.Module):
    """Three blocks: 16 maps of 8 x 8, 32 of 4 x 4, 64 of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = block(1, 16)
        self.block2 = block(16, 32, nn.MaxPool2d(2))
        self.block3 = block(32, 64, nn.MaxPool2d(2))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block3(self.block2(self.block1(x))).flatten(1))


@dataclass
class Measures:
    accuracy: float
    confidence: float
    rms: float


@dataclass
class Digits:
    """1200 images for training and as substitute set, the rest for measuring, and a victim."""

    x: np.ndarray
    y: np.ndarray
    test_x: Tensor
    test_y: Tensor
    victim: PyTorchClassifier

    @torch.no_grad()
    def measure(self, classifier: PyTorchClassifier) -> Measures:
        latents = [m.block2(m.block1(self.test_x)) for m in (classifier.model.eval(), self.victim.model.eval())]
        p = classifier.model(self.test_x).softmax(1)
        return Measures(
            (p.argmax(1) == self.test_y).double().mean().item(),
            p.amax(1).double().mean().item(),
            (latents[0] - latents[1]).square().mean().sqrt().item(),
        )

    def removal(self, iterations: int, source: str) -> dict[int, Measures]:
        """Run RemovalNet with the weights for CIFAR10 and return what was measured every 100 iterations."""
        found: dict[int, Measures] = {}

        def watch(step: int, surrogate: PyTorchClassifier, _losses: Mapping[str, float]) -> None:
            found[step] = self.measure(surrogate)

        before = network_digest(self.victim.model)
        RemovalNetAttack(
            self.victim,
            "block2",
            alpha=0.2,
            beta=2.0,
            gamma=0.6,
            temperature=20.0,
            learning_rate=8e-3,
            shuffle_ratio=0.1,
            inner_steps=20,
            hflip=False,
            latent_source=source,
            max_iter=iterations,
            callback=watch,
        ).generate(self.x)
        assert network_digest(self.victim.model) == before
        return found


def train(x: Tensor, y: Tensor, seed: int) -> PyTorchClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DigitsCNN()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(15):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()
    return wrap(network.eval(), nb_classes=10)


@pytest.fixture(scope="module")
def digits() -> Digits:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels[order].astype(np.int64)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    victim = train(tensors[0][:1200], tensors[1][:1200], seed=0)
    return Digits(x[:1200], y[:1200], tensors[0][1200:], tensors[1][1200:], victim)


def test_fine_tuning_stays_near_the_victim_and_removalnet_leaves(digits: Digits) -> None:
    assert digits.measure(digits.victim).accuracy > 0.98
    tuned = digits.measure(FineTuningAttack(digits.victim, 0.5, hflip=False, max_iter=100).generate(digits.x, digits.y))
    found = digits.removal(100, "surrogate")
    assert tuned.rms < 0.1
    assert found[0].rms == 0.0
    assert found[100].rms > 0.5 > 10 * tuned.rms
    assert found[100].accuracy > 0.95
    assert found[100].confidence < 0.9


@pytest.mark.slow
def test_drift_from_the_victim_keeps_growing(digits: Digits) -> None:
    found = digits.removal(500, "surrogate")
    assert sorted(found) == [0, 100, 200, 300, 400, 500]
    assert found[500].accuracy >= 0.95
    assert found[500].rms > 2 * found[100].rms
    assert found[500].confidence < 0.9 < found[0].confidence
    independent = train(torch.from_numpy(digits.x), torch.from_numpy(digits.y), seed=1)
    assert found[500].rms > digits.measure(independent).rms


@pytest.mark.slow
def test_drift_saturates_with_the_latents_of_the_victim(digits: Digits) -> None:
    found = digits.removal(500, "victim")
    assert found[500].accuracy >= 0.95
    assert found[500].rms < 1.0
    assert found[500].rms < 2 * found[100].rms
    assert found[500].confidence < 0.9


@pytest.mark.slow
def test_fine_tuning_with_the_same_budget_stays(digits: Digits) -> None:
    tuned = FineTuningAttack(digits.victim, 0.5, hflip=False, max_iter=500, batch_size=128)
    found = digits.measure(tuned.generate(digits.x, digits.y))
    assert found.rms < 0.1
    assert found.accuracy >= 0.95
