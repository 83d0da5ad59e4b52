"""Filters of a network in a normal form, and sketches of them.

A weight is a tensor ``(G, R, C, E)``: G groups of a convolution (else 1), R filters of each, C input channels that a
filter reads, E entries for each of them (kernel pixels, or pixels of a flattened map).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from art_fingerprint.core.channel_groups import GroupedWeight
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.core.stored_weights import stored_weight

_MAX_ROUNDS = 30  # with many zeros the factors need not converge, and would grow without end


def read_filters(network: nn.Module, axes: GroupedWeight) -> Tensor | str:
    """Return a network's filters of one weight, ``(G, R, C, E)`` float32 on the host, or why it has none.

    Filters have the sign of the BatchNorm factor behind them: with it negative, the filter's negative is what the
    network computes. Sizes of filters do not matter, see :func:`balanced`.
    """
    weight = stored_weight(network, axes.name)
    if weight is None:
        return "missing"
    if weight.shape != axes.shape:
        return f"{tuple(weight.shape)} instead of {axes.shape}"
    scale = stored_weight(network, axes.scale) if axes.scale else None
    if scale is not None and scale.shape == weight.shape[:1]:
        weight[scale < 0] *= -1
    return as_filters(weight, axes)


def as_filters(weight: Tensor, axes: GroupedWeight) -> Tensor:
    """Return a weight as ``(G, R, C, E)``, float32. A depthwise filter is one entry list for each channel, C = 1."""
    if not axes.columns:
        channels = sum(segment.channels for segment in axes.rows)
        return weight.reshape(1, channels, 1, -1)
    channels = sum(segment.channels for segment in axes.columns)
    return weight.reshape(axes.groups, weight.shape[0] // axes.groups, channels, -1)


def balanced(filters: Tensor) -> Tensor:
    """Return D_r W D_c with filters of norm 1 and input channels of equal norm, up to 1e-6: Sinkhorn on the squares.

    The same for every positive rescaling of filters and of input channels. The diagonal matrices exist for weights
    without zeros; those with many get what so many rounds make of them. Filters and channels of zeros stay zero.

    :param filters: ``(G, R, C, E)``.
    """
    energy = filters.square().sum(-1, dtype=torch.float64)
    rows = energy.new_ones(energy.shape[:2])
    columns = energy.new_ones(energy.shape[0], energy.shape[2])
    for _ in range(_MAX_ROUNDS):
        rows = _inverse(torch.einsum("grc,gc->gr", energy, columns))
        sums = torch.einsum("grc,gr->gc", energy, rows) * columns
        columns = columns * _inverse(sums * energy.shape[2] / energy.shape[1])
        alive = sums > 0
        if not alive.any() or float((sums[alive] / sums[alive].mean() - 1).abs().max()) < 1e-7:
            break
    rows = _inverse(torch.einsum("grc,gc->gr", energy, columns))
    return filters * rows.sqrt().float()[:, :, None, None] * columns.sqrt().float()[:, None, :, None]


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values.clamp_min(1e-300), torch.zeros_like(values))


def projection(size: int, count: int, seed: int, name: str) -> Tensor:
    """Return orthonormal columns ``(size, count)``, float32: random cosines with random signs of the entries.

    The type-II cosine transform is orthonormal, so is any choice of its columns after random signs, and products with
    it are spread evenly over all entries.

    :param size: Entries of a filter.
    :param count: Columns, at most ``size``.
    :param seed: Seed.
    :param name: Draws differ from name to name.
    """
    generator = numpy_generator(seed, "sketch", name)
    signs = generator.choice([-1.0, 1.0], size)
    frequencies = np.sort(generator.permutation(size)[:count])
    angles = np.pi / size * np.outer(np.arange(size) + 0.5, frequencies)
    matrix = np.cos(angles) * math.sqrt(2 / size) * signs[:, None]
    matrix[:, frequencies == 0] /= math.sqrt(2)
    # which column is for matching and which is held out must not follow the frequency
    return torch.from_numpy(matrix[:, generator.permutation(count)].astype(np.float32))


@dataclass(frozen=True)
class Layer:
    """A weight of the victim: its axes and the sketch of its balanced filters.

    :ivar axes: Name and groups.
    :ivar sketch: ``(G, R, m + h)``: m columns for matching, h held out for the score.
    :ivar basis: The projection ``(C * E, m + h)``.
    :ivar matching: The number m.
    """

    axes: GroupedWeight
    sketch: Tensor
    basis: Tensor
    matching: int

    @property
    def size(self) -> int:
        """Entries of a filter."""
        return len(self.basis)
