"""Queries where a model errs: its errors on labelled images, and mixtures and mirror images of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Queries:
    """Images to ask a suspect.

    :ivar x: Images ``(n, ...)``.
    :ivar rows: Where each stands in the owner's data, ``(n,)`` int64; -1 for one that was made.
    """

    x: Tensor
    rows: Tensor

    @property
    def synthetic(self) -> int:
        """How many were made."""
        return int((self.rows < 0).sum())


def paste(x: Tensor, other: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Return images with a box of another image in each: inside the box ``other``, elsewhere ``x``.

    :param x: ``(n, C, H, W)``.
    :param other: As ``x``.
    :param top: First row of each box, ``(n,)``; boxes are cut off at the borders.
    :param left: First column.
    :param height: Rows of each box.
    :param width: Columns of each box.
    """
    rows, columns = torch.arange(x.shape[2]), torch.arange(x.shape[3])
    inside_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    box = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    return torch.where(box, other, x)


def cutmix(x: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """CutMix with alpha = 1 (Yun et al. 2019): a box of a uniform share of the image, around a uniform centre.

    :param x: ``(n, C, H, W)`` on the host.
    :param other: As ``x``.
    :param generator: Source of boxes.
    """
    n, _, height, width = x.shape
    share = (1 - torch.rand(n, generator=generator)).sqrt()
    box_h, box_w = (height * share).long(), (width * share).long()
    top = (height * torch.rand(n, generator=generator)).long() - box_h // 2
    left = (width * torch.rand(n, generator=generator)).long() - box_w // 2
    # the published boxes are cut off at the border, which is what happens to those that begin before it
    return paste(x, other, top, left, box_h, box_w)


def corner_cutmix(x: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
    """CutMix of SAC-m: a square of side ``int(0.2 W)``, one pixel at least, whose centre lies in a corner.

    Both coordinates of the centre are outside the middle two thirds (6 of 32 pixels in the released code).

    :param x: ``(n, C, H, W)`` on the host.
    :param other: As ``x``.
    :param generator: Source of corners.
    """
    n, _, height, width = x.shape
    side = torch.full((n,), max(1, int(0.2 * width)))

    def start(length: int) -> Tensor:
        offset = (torch.rand(n, generator=generator) * length / 6).long()
        far = torch.rand(n, generator=generator) < 0.5
        return torch.where(far, length - 1 - offset, offset) - side // 2

    return paste(x, other, start(height), start(width), side, side)


def more_like(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return further images made of a few: mirror images in both directions in random order, then CutMix of pairs.

    :param x: ``(n, C, H, W)`` on the host; of samples without rows and columns nothing can be made.
    :param count: Images wanted; fewer come back if there is one image, which has no pairs, or none can be made.
    :param generator: Source of choices.
    """
    if x.ndim != 4 or count <= 0:
        return x[:0]
    mirrored = torch.cat([x.flip(3), x.flip(2)])
    mirrored = mirrored[torch.randperm(len(mirrored), generator=generator)[:count]]
    missing = count - len(mirrored)
    if missing <= 0 or len(x) < 2:
        return mirrored
    return torch.cat([mirrored, mixtures(x, missing, generator, cutmix)])


def mixtures(
    x: Tensor, count: int, generator: torch.Generator, mix: Callable[[Tensor, Tensor, torch.Generator], Tensor]
) -> Tensor:
    """Return mixtures of random pairs of different images.

    :param x: ``(n, C, H, W)``, two images or more.
    :param count: Mixtures.
    :param generator: Source of pairs and boxes.
    :param mix: :func:`cutmix` or :func:`corner_cutmix`.
    """
    first = torch.randint(len(x), (count,), generator=generator)
    second = (first + 1 + torch.randint(len(x) - 1, (count,), generator=generator)) % len(x)
    return mix(x[first], x[second], generator)


def draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return up to ``count`` of some row numbers, drawn without replacement, in ascending order."""
    return rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values


def error_queries(x: Tensor, errors: Tensor, count: int, generator: torch.Generator, fill: bool) -> Queries:
    """Return errors of a model, and images made of them if there are fewer than ``count``.

    :param x: Owner's images ``(n, ...)`` on the host.
    :param errors: Rows of the errors, ``(m,)`` int64.
    :param count: Queries wanted.
    :param generator: Source of choices.
    :param fill: Make images by :func:`more_like` where errors are too few.
    """
    rows = draw(errors, count, generator)
    made = more_like(x[errors], count - len(rows), generator) if fill else x[:0]
    return Queries(torch.cat([x[rows], made]), torch.cat([rows, torch.full((len(made),), -1)]))
