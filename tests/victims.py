"""Victims for the tests of attacks: tiny, trained in a blink, and of more than one opinion."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
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
        tokens = self.start(torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1))
        tokens = self.block1(tokens) + tokens
        tokens = self.block2(self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        return self.head(self.norm(tokens)[:, 0])


def _make(tokens: bool, nb_classes: int) -> nn.Module:
    return TinyTokens(nb_classes) if tokens else TinyCNN(nb_classes=nb_classes)


@functools.cache
def _weights(tokens: bool, nb_classes: int, seed: int, data: bytes) -> dict[str, Tensor]:
    x = torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, 1, 8, 8).copy())
    y = torch.arange(len(x)) % nb_classes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _make(tokens, nb_classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network.state_dict()


def several_classes(
    x: np.ndarray, seed: int = 0, nb_classes: int = 4, tokens: bool = False, **options: object
) -> PyTorchClassifier:
    """Return a classifier that has learned the classes 0, 1, 2, ... by heart.

    :param x: Images ``(n, 1, 8, 8)`` as they are after preprocessing.
    :param tokens: A :class:`TinyTokens` instead of a :class:`TinyCNN`.
    """
    network = _make(tokens, nb_classes)
    network.load_state_dict(_weights(tokens, nb_classes, seed, x.astype(np.float32).tobytes()))
    return wrap(network.eval(), x.shape[1:], nb_classes, **options)


token_classifier = functools.partial(several_classes, tokens=True)
