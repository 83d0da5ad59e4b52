"""What matched filters say: alignment of a layer beyond chance, and the p-value of many layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """Cosines of matched filters in one layer.

    :ivar cosine: Their mean.
    :ivar chance: The mean over all pairs of a victim's and a suspect's filter, matched or not.
    :ivar variance: Of the mean cosine, if filters are paired at random.
    """

    cosine: float
    chance: float
    variance: float

    @property
    def alignment(self) -> float:
        """``(cosine - chance) / (1 - chance)``: 1 for a copy, 0 on average for filters that are paired at random."""
        return (self.cosine - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    @property
    def alignment_variance(self) -> float:
        """Variance of :attr:`alignment` under random pairing."""
        return self.variance / (1 - self.chance) ** 2 if self.chance < 1 else 0.0


def agreement(ours: Tensor, theirs: Tensor) -> Agreement:
    """Compare paired rows.

    With cosines c_ij of all pairs, R rows: cosine = mean of c_ii, chance = mean of c_ij, and for a random permutation s
    the mean of c_is(i) has variance ``sum d_ij^2 / (R^2 (R - 1))``, d = c without its row and column means (Hoeffding
    1951). A row of zeros has cosine 0 with all others.

    :param ours: The victim's rows ``(R, h)``.
    :param theirs: The suspect's, ``(R, h)``, in the matched order.
    """
    unit = [torch.nn.functional.normalize(rows.double(), dim=1, eps=1e-12) for rows in (ours, theirs)]
    cosines = unit[0] @ unit[1].T
    count = len(cosines)
    chance = float(cosines.mean())
    rest = cosines - cosines.mean(0, keepdim=True) - cosines.mean(1, keepdim=True) + chance
    variance = float(rest.square().sum()) / (count**2 * max(count - 1, 1))
    return Agreement(float(cosines.diagonal().mean()), chance, variance)


def mean_alignment(layers: Sequence[Agreement]) -> tuple[float, float]:
    """Return the mean alignment of layers and its variance under random pairing, independent from layer to layer."""
    count = len(layers)
    return (
        sum(layer.alignment for layer in layers) / count,
        sum(layer.alignment_variance for layer in layers) / count**2,
    )


def p_bound(alignment: float, variance: float, tolerance: float) -> float:
    """Return ``exp(-a^2 / (2 (variance + tolerance^2)))``, 1 for a <= 0: the sub-Gaussian tail of an unrelated model.

    :param tolerance: Standard deviation of the alignment that independent training itself brings about.
    """
    spread = variance + tolerance**2
    return 1.0 if alignment <= 0 else math.exp(-min(alignment**2 / (2 * spread), 700.0)) if spread else 0.0


def p_threshold(variance: float, tolerance: float, significance: float) -> float:
    """Return the alignment above which :func:`p_bound` is below ``significance``."""
    return math.sqrt(-2 * math.log(significance) * (variance + tolerance**2))
