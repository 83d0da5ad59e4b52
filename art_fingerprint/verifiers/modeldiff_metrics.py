"""ModelDiff's numbers: decision distance vectors and matrices of one model, and how alike two models' are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from art_fingerprint.core.outputs import to_probabilities
from art_fingerprint.exceptions import InvalidInputError

# Cosine distances below this are the rounding of float32 outputs (relative 2^-23, squared, with room), not a change.
ZERO_DISTANCE = 1e-12


def decision_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the decision distance vector ``DDV_i = 1 - cos(a_i, b_i)``.

    Computed as ``|a_i/|a_i| - b_i/|b_i||^2 / 2``, the same number without the cancellation near 0. Two zero rows have
    distance 0, a zero and a non-zero row distance 1. A positive factor on any row and a common permutation of the
    columns change nothing; a shift does, so logits and probabilities must not be mixed.

    :param a: Outputs on the seeds, ``(n, K)``.
    :param b: Outputs on the partners, ``(n, K)``.
    :return: ``(n,)`` float64 in [0, 2].
    """
    unit_a, unit_b = (F.normalize(_scaled(rows), dim=1, eps=1e-300) for rows in (a, b))
    zeros = (unit_a == 0).all(1) ^ (unit_b == 0).all(1)
    distances = (unit_a - unit_b).square().sum(1) / 2
    return torch.where(zeros, 1.0, distances).clamp(0, 2)


def _scaled(rows: Tensor) -> Tensor:
    # norms of tiny (probabilities of 1e-30) or huge rows must neither vanish nor overflow
    rows = rows.double()
    peak = rows.abs().amax(1, keepdim=True)
    return rows / torch.where(peak > 0, peak, 1.0)


def ddv_similarity(ddv_f: Tensor, ddv_g: Tensor) -> float:
    """Return the cosine of two decision distance vectors, in [0, 1]; NaN if either is zero everywhere.

    Entries below 1e-12 everywhere count as zero: float32 outputs cannot show so small an angle. Unrelated models do
    not score near 0: two independent non-negative vectors have a cosine near ``(E d)^2 / E[d^2]``, 0.75 for uniform
    entries.

    :param ddv_f: The victim's ``(n,)``.
    :param ddv_g: The suspect's ``(n,)``.
    """
    f, g = ddv_f.double(), ddv_g.double()
    if float(f.max()) <= ZERO_DISTANCE or float(g.max()) <= ZERO_DISTANCE:
        return math.nan
    return min(1.0, float(F.normalize(f, dim=0, eps=1e-300) @ F.normalize(g, dim=0, eps=1e-300)))


def decision_distance_matrix(outputs: Tensor) -> Tensor:
    """Return the Euclidean distances between the outputs on all inputs, ``(N, K) -> (N, N)`` float64.

    Differences are taken directly: the matrix-product form leaves a residue on the diagonal.
    """
    outputs = outputs.double()
    return torch.cdist(outputs, outputs, compute_mode="donot_use_mm_for_euclid_dist")


def ddm_distance(matrix_f: Tensor, matrix_g: Tensor) -> float:
    """Return ``DDM = 1 - (1 + cos(vec M_f, vec M_g)) / 2``, in [0, 0.5]; NaN if a matrix is zero.

    The published codes call it a similarity, yet identical models give 0: it is a distance.
    """
    f, g = matrix_f.double().flatten(), matrix_g.double().flatten()
    length_f, length_g = float(f.norm()), float(g.norm())
    if length_f == 0 or length_g == 0:
        return math.nan
    return float((f / length_f - g / length_g).square_().sum()) / 4


def in_space(logits: Tensor, space: str) -> Tensor:
    """Return logits ``(n, K)`` as float64, or their probabilities where that is the space."""
    return to_probabilities(logits) if space == "probabilities" else logits.double()


def both_distances(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decision distance vector and matrix of answers to seeds and, behind them, their partners."""
    return decision_distances(*outputs.chunk(2)), decision_distance_matrix(outputs)


def population_minmax(values: Sequence[float] | np.ndarray, *, invert: bool = False) -> np.ndarray:
    """Return ``(v - min) / (max - min)`` over a population of models and seeds, or 1 minus that.

    RemovalNet's scripts normalise a table's ModelDiff column in this way, DDM inverted (deviation M3 of the published
    column from raw DDV cosines; an inference from its values). Such numbers depend on who else is in the table: never
    use them as scores. NaN entries stay NaN and do not count.

    :param values: One metric over the whole comparison, any shape.
    :param invert: Turn a distance into a similarity.
    :raises InvalidInputError: fewer than two different finite values.
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    if finite.size == 0 or finite.min() == finite.max():
        raise InvalidInputError("`values` must hold at least two different finite numbers to be normalised.")
    scaled = (array - finite.min()) / (finite.max() - finite.min())
    return 1 - scaled if invert else scaled
