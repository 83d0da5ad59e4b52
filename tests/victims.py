"""Untrained victims for the tests of attacks: tiny, of several kinds, and never of one opinion."""

from __future__ import annotations

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from tests.conftest import TinyCNN, wrap


class TinyTokens(nn.Module):
    """A token model: patch embedding, class token first, two blocks, class token to the head. No BatchNorm."""

    def __init__(self, nb_classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.start = nn.Identity()
        self.block1 = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.mix = nn.Linear(5, 5)
        self.block2 = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.start(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))
        tokens = self.block1(tokens) + tokens
        tokens = self.block2(self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        return self.head(self.norm(tokens)[:, 0])


@torch.no_grad()
def settle(network: nn.Module, x: np.ndarray, head: nn.Linear, spread: float = 2.0) -> nn.Module:
    """Shift and scale the head so that its logits over ``x`` have mean 0 and standard deviation ``spread``."""
    network.train()
    for _ in range(3):
        network(torch.from_numpy(x))
    network.eval()
    s = network(torch.from_numpy(x))
    scale = spread / s.std(0)
    head.bias.copy_((head.bias - s.mean(0)) * scale)
    head.weight.mul_(scale[:, None])
    return network


def several_classes(x: np.ndarray, seed: int = 0, nb_classes: int = 4, **options: object) -> PyTorchClassifier:
    """Return a TinyCNN classifier that sees all its classes in ``x`` (raw images, before ``preprocessing``)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TinyCNN(x.shape[1], nb_classes)
        return wrap(settle(network, x, network.head), x.shape[1:], nb_classes, **options)


def token_classifier(x: np.ndarray, seed: int = 0) -> PyTorchClassifier:
    """Return a TinyTokens classifier that sees several classes in ``x``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = TinyTokens()
        return wrap(settle(network, x, network.head), x.shape[1:])
