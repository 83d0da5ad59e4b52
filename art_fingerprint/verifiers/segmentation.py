"""Superpixels for ZEST: quickshift and a regular grid, for a whole batch of images at once.

Quickshift (Vedaldi and Soatto, 2008) is written as shifted tensor operations over the batch, so it needs no image
library and runs on the classifier's device. It gives the labels of scikit-image 0.26, whose noise it draws; only two
candidate parents that are equally near up to the last bit of float64 may be told apart in another way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from art_fingerprint.exceptions import InvalidInputError

# sRGB to XYZ, CIE 1931 2 degrees, and the D65 white point
_XYZ_FROM_RGB = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.95047, 1.0, 1.08883)
# Pixels in one chunk of images: large enough to hide the cost of a call, small enough for the processor's cache.
_CHUNK_PIXELS = {"cpu": 1 << 16, "cuda": 1 << 23}


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Return CIE Lab of sRGB values, ``(..., 3, h, w)`` float64, without any clipping.

    The formula is meant for values in [0, 1]. ZEST applies it to 0..255, which makes the colour term about 255 times
    stronger; that is part of the method.
    """
    rgb = rgb.double()
    linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    red, green, blue = linear.unbind(-3)

    def f(row: tuple[float, float, float], white: float) -> Tensor:
        t = (row[0] * red + row[1] * green + row[2] * blue) / white
        return torch.where(t > 0.008856, t.clamp_min(0) ** (1 / 3), 7.787 * t + 16 / 116)

    fx, fy, fz = (f(row, white) for row, white in zip(_XYZ_FROM_RGB, _WHITE, strict=True))
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -3)


def grid(n: int, height: int, width: int, cells: int = 8) -> Tensor:
    """Return ``g * g`` rectangular segments with ``g = min(cells, height, width)``, ``(n, height, width)`` int64.

    Cell sides differ by at most one pixel. Ours: the remedy for images too small for quickshift.
    """
    g = min(cells, height, width)
    rows, columns = (torch.arange(size) * g // size for size in (height, width))
    return (rows[:, None] * g + columns).expand(n, -1, -1).clone()


def quickshift(
    images: Tensor, *, kernel_size: float = 4.0, max_dist: float = 200.0, ratio: float = 0.2, noise_seed: int = 42
) -> Tensor:
    """Return quickshift segments of every image, ``(n, h, w)`` int64 on the images' device, labels ``0..F_i-1``.

    With ``phi(q) = (ratio * Lab(q), row, column)`` and the window ``|drow|, |dcolumn| <= ceil(3 * kernel_size)``:
    density ``E(q) = sum_q' exp(-|phi(q) - phi(q')|^2 / (2 kernel_size^2)) + N(0, 1e-5^2)``; the parent of ``q`` is the
    nearest pixel of the window with a larger ``E``, the first in row-major order among equals, or ``q`` itself if there
    is none within ``max_dist``. Trees are segments, numbered by the row-major position of their roots.

    Every unordered pair of pixels is visited once: half of the ``(2r+1)^2`` shifts, each for both ends.

    :param images: ``(n, C, h, w)`` on the scale 0..255. Three channels are RGB; one channel is repeated to three; other
        counts are used as they are, without Lab.
    :param kernel_size: Width of the density kernel in pixels, at least 1.
    :param max_dist: Longest link of a tree.
    :param ratio: Weight of colour against position.
    :param noise_seed: Seed of the noise that breaks ties of density, the same for all images.
    :raises InvalidInputError: not four axes, or an empty axis.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InvalidInputError(
            f"Segmentation needs images (n, C, h, w) without empty axes, got {tuple(images.shape)}."
        )
    n, channels, height, width = images.shape
    noise = np.random.default_rng(noise_seed).normal(scale=1e-5, size=(height, width))
    tie_break = torch.from_numpy(noise).to(images.device)
    chunk = max(1, _CHUNK_PIXELS.get(images.device.type, 1 << 16) // (height * width))
    parts = []
    for part in images.split(chunk):
        colour = part.double().expand(-1, 3, -1, -1) if channels == 1 else part.double()
        colour = (rgb_to_lab(colour) if channels in (1, 3) else colour) * ratio
        parts.append(_quickshift(colour, kernel_size, max_dist, tie_break))
    return torch.cat(parts)


class _Shift(NamedTuple):
    """One displacement: the two overlapping regions, and the step between them in flat pixel positions."""

    near: tuple[Any, ...]
    far: tuple[Any, ...]
    rows: int
    columns: int
    step: int


def _shifts(radius: int, height: int, width: int) -> Iterator[_Shift]:
    # Row-major over the half plane after the pixel itself: the far region always lies later in row-major order.
    down, side = min(radius, height - 1), min(radius, width - 1)
    for dr in range(down + 1):
        for dc in range(1 if dr == 0 else -side, side + 1):
            near = (..., slice(0, height - dr), slice(max(0, -dc), width - max(0, dc)))
            far = (..., slice(dr, height), slice(max(0, dc), width + min(0, dc)))
            yield _Shift(near, far, dr, dc, dr * width + dc)


def _squared_distance(colour: Tensor, shift: _Shift) -> Tensor:
    # One term after the other, in scikit-image's order: equal distances must stay equal to the last bit.
    difference = colour[shift.near] - colour[shift.far]
    squares = difference.mul_(difference).unbind(1)
    total = squares[0].clone()
    for square in squares[1:]:
        total += square
    return total.add_(shift.rows**2).add_(shift.columns**2)


def _quickshift(colour: Tensor, kernel_size: float, max_dist: float, tie_break: Tensor) -> Tensor:
    n, _, height, width = colour.shape
    radius = math.ceil(3 * kernel_size)

    density = colour.new_ones(n, height, width)
    for shift in _shifts(radius, height, width):
        weight = _squared_distance(colour, shift).mul_(-0.5 / kernel_size**2).exp_()
        density[shift.near] += weight
        density[shift.far] += weight
    density += tie_break

    # Nearest denser pixel after (0) and before (1) each pixel in row-major order. Before it, shifts come in the order
    # of falling position, so the last of equals is the first in row-major order.
    best = colour.new_full((2, n, height, width), math.inf)
    step = torch.zeros((2, n, height, width), dtype=torch.int64, device=colour.device)
    for shift in _shifts(radius, height, width):
        squared = _squared_distance(colour, shift)
        far_denser = density[shift.far] > density[shift.near]
        near_denser = density[shift.far] < density[shift.near]
        nearest, towards = best[0][shift.near], step[0][shift.near]
        towards.masked_fill_(far_denser & (squared < nearest), shift.step)
        nearest.copy_(torch.minimum(nearest, squared.masked_fill(~far_denser, math.inf)))
        nearest, towards = best[1][shift.far], step[1][shift.far]
        towards.masked_fill_(near_denser & (squared <= nearest), -shift.step)
        nearest.copy_(torch.minimum(nearest, squared.masked_fill_(~near_denser, math.inf)))
    link = torch.where(best[1] <= best[0], step[1], step[0])
    link.masked_fill_(torch.minimum(best[0], best[1]).sqrt() > max_dist, 0)

    pixels = torch.arange(height * width, device=colour.device)
    parent = link.flatten(1) + pixels
    for _ in range(math.ceil(math.log2(max(2, height * width)))):  # a path is shorter than the number of pixels
        parent = parent.gather(1, parent)
    number = (parent == pixels).cumsum(1) - 1
    return number.gather(1, parent).view(n, height, width)
