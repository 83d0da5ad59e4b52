"""Shared fixtures: tiny classifiers on the CPU, one thread, and ART's data folder out of the user's home."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

os.environ.setdefault("ART_DATA_PATH", tempfile.mkdtemp(prefix="art-data-"))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(1)
# The same cases in every run; tests/fuzz/generated.py says how many.
settings.register_profile(
    "fuzz", derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
settings.load_profile("fuzz")


class TinyCNN(nn.Module):
    """Three stages with BatchNorm for ``(C, 8, 8)`` images: 8x8, 4x4, then a vector."""

    def __init__(self, channels: int = 1, nb_classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block2 = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)
        )
        self.block3 = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, nb_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.block3(self.block2(self.block1(x)))).flatten(1))


def wrap(
    network: nn.Module, input_shape: tuple[int, ...] = (1, 8, 8), nb_classes: int = 4, **options: object
) -> PyTorchClassifier:
    """Return an ART classifier on the CPU around a network."""
    arguments: dict[str, object] = {"clip_values": (0.0, 1.0), "device_type": "cpu", **options}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), input_shape, nb_classes, **arguments)


@pytest.fixture
def make_classifier() -> Callable[..., PyTorchClassifier]:
    """Factory of untrained tiny classifiers with BatchNorm statistics away from their start values."""

    def make(seed: int = 0, channels: int = 1, nb_classes: int = 4, **options: object) -> PyTorchClassifier:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = TinyCNN(channels, nb_classes)
            network(torch.rand(64, channels, 8, 8))
        return wrap(network.eval(), (channels, 8, 8), nb_classes, **options)

    return make


@pytest.fixture
def images() -> np.ndarray:
    """Forty one-channel images in [0, 1]."""
    return np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
