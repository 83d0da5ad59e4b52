"""Victims for the tests of attacks: tiny, trained in a blink, and of more than one opinion."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from art_fingerprint.testing.models import tiny_classifier


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


several_classes = tiny_classifier
token_classifier = functools.partial(several_classes, network=TinyTokens)
