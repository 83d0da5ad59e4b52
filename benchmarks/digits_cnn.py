"""The setting of the verifier benchmarks: a small CNN on scikit-learn's digits (8 x 8 grey images, ten classes)."""

from __future__ import annotations

import time

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn


def small_cnn(width: int = 32) -> nn.Sequential:
    """Two blocks, 8 x 8 and 4 x 4, ``width`` and ``2 * width`` channels."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1797 images ``(n, 1, 8, 8)`` float32 in [0, 1] and their labels."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y.astype(np.int64)


def trained_classifier(seed: int = 0, nb_epochs: int = 20, width: int = 32) -> PyTorchClassifier:
    """Train the CNN on the first 1200 digits; about 98 % of the rest are then right."""
    torch.manual_seed(seed)
    x, y = (torch.from_numpy(array)[:1200] for array in digits())
    network = small_cnn(width)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(nb_epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return PyTorchClassifier(
        network.eval(), nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


def elapsed(begin: tuple[float, float]) -> tuple[float, float]:
    """Return wall and CPU seconds since ``(perf_counter(), process_time())``; CPU time bears a busy machine better."""
    return time.perf_counter() - begin[0], time.process_time() - begin[1]
