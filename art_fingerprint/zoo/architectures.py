"""Network architectures of the presets that are too small for timm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three convolution stages with BatchNorm and a linear classifier, for images from 8x8 pixels on.

    ``block1`` keeps the input size, ``block2`` and ``block3`` halve it; each block is two 3x3 convolutions, and the
    first of a halving block has stride 2. Global average pooling feeds ``head``.

    :param channels: Input channels.
    :param nb_classes: Classes K; the output is ``(n, K)`` logits.
    :param width: Channels of ``block1``; the other blocks have two and four times as many.
    """

    def __init__(self, channels: int = 1, nb_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.block1 = _block(channels, width, 1)
        self.block2 = _block(width, 2 * width, 2)
        self.block3 = _block(2 * width, 4 * width, 2).append(nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4 * width, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.block3(self.block2(self.block1(x)))
        return self.head(torch.flatten(z, 1))


class SmallVGG(nn.Module):
    """A VGG of four convolution stages with BatchNorm and a linear classifier, for images from 16x16 pixels on.

    Stages ``block1`` to ``block4`` have one, one, two and two 3x3 convolutions; each of the first three ends with a 2x2
    max-pooling, ``block4`` with global average pooling, which feeds ``head``.

    :param channels: Input channels.
    :param nb_classes: Classes K; the output is ``(n, K)`` logits.
    :param width: Channels of ``block1``; each following block has twice as many as the one before.
    """

    def __init__(self, channels: int = 1, nb_classes: int = 10, width: int = 12) -> None:
        super().__init__()
        self.block1 = _stage(channels, width, 1).append(nn.MaxPool2d(2))
        self.block2 = _stage(width, 2 * width, 1).append(nn.MaxPool2d(2))
        self.block3 = _stage(2 * width, 4 * width, 2).append(nn.MaxPool2d(2))
        self.block4 = _stage(4 * width, 8 * width, 2).append(nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8 * width, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.block4(self.block3(self.block2(self.block1(x))))
        return self.head(torch.flatten(z, 1))


def _stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in [inputs] + [outputs] * (depth - 1):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
