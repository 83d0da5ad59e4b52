"""Classifiers and images that are small enough to try everything on them, and yet have an opinion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.core.seeding import forked_random_state


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

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.block3(self.block2(self.block1(x)))).flatten(1))


def tiny_images(n: int = 40, seed: int = 0) -> np.ndarray:
    """Return ``(n, 1, 8, 8)`` float32 noise in [0, 1]."""
    return np.random.default_rng(seed).random((n, 1, 8, 8), dtype=np.float32)


def wrapped(
    network: nn.Module, input_shape: tuple[int, ...] = (1, 8, 8), nb_classes: int = 4, **options: Any
) -> PyTorchClassifier:
    """Return an ART classifier on the CPU around a network; options are those of ``PyTorchClassifier``."""
    arguments: dict[str, Any] = {"clip_values": (0.0, 1.0), "device_type": "cpu", **options}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), input_shape, nb_classes, **arguments)


def tiny_classifier(
    images: np.ndarray | None = None,
    seed: int = 0,
    nb_classes: int = 4,
    network: Callable[..., nn.Module] = TinyCNN,
    **options: Any,
) -> PyTorchClassifier:
    """Return a new classifier that has learned the classes 0, 1, 2, ... of some images by heart.

    The same arguments give the same weights; training takes a fraction of a second, and is done once.

    :param images: ``(n, 1, 8, 8)`` as they are after preprocessing; default :func:`tiny_images`.
    :param seed: Seed of its first weights.
    :param network: ``network(nb_classes=...)`` makes it.
    :param options: As of ``PyTorchClassifier``.
    """
    x = tiny_images() if images is None else images
    with forked_random_state():
        made = network(nb_classes=nb_classes)
    made.load_state_dict(_learned(network, nb_classes, seed, x.astype(np.float32).tobytes(), x.shape[1:]))
    return wrapped(made.eval(), x.shape[1:], nb_classes, **options)


def independent_classifier(seed: int) -> PyTorchClassifier:
    """Return a classifier that has never seen :func:`tiny_images`, but others."""
    return tiny_classifier(tiny_images(seed=2), seed)


@functools.cache
def _learned(
    network: Callable[..., nn.Module], nb_classes: int, seed: int, data: bytes, shape: tuple[int, ...]
) -> dict[str, Tensor]:
    x = torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, *shape).copy())
    y = torch.arange(len(x)) % nb_classes
    with forked_random_state(), torch.enable_grad():
        torch.manual_seed(seed)
        made = network(nb_classes=nb_classes)
        optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(made(x), y).backward()
            optimizer.step()
    return made.state_dict()
