"""DeepJudge's distances between two models: pooled activations of one layer, and answers to adversarial examples.

``A`` and ``B`` are pooled activations ``(T, K)`` of victim and suspect on T tests at a layer of K neurons, ``nu`` the
neuron ``(T,)`` that each test was made for. Everything is computed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from art_fingerprint.exceptions import InvalidInputError

POOLINGS = ("channel", "last-axis")
_RANGE_EPSILON = 1e-6


def pool_activations(z: Tensor, pooling: str = "channel") -> Tensor:
    """Return one value per neuron of a layer's output, ``(N, K)``.

    ``"channel"``: feature maps ``(N, K, ...)`` are averaged over space, token sequences ``(N, tokens, K)`` over tokens,
    vectors ``(N, K)`` stay. ``"last-axis"`` averages over everything between the first and the last axis: for
    ``(N, C, H, W)`` it keeps image *columns*, which is what RemovalNet's port of a channels-last formula does; it is
    right only for layers that put their channels last.

    :raises InvalidInputError: a scalar per sample, or an unknown pooling.
    """
    if z.ndim < 2 or pooling not in POOLINGS:
        raise InvalidInputError(f"Activations of shape {tuple(z.shape)} cannot be pooled by {pooling!r}.")
    if z.ndim == 2:
        return z
    if z.ndim == 3 or pooling == "last-axis":
        return z.flatten(1, -2).mean(1)
    return z.flatten(2).mean(2)


def binarise(activations: Tensor, threshold: float = 0.5) -> Tensor:
    """Return ``S(u)_i = 1[(u_i - min u) / (max u - min u + 1e-6) > threshold]``, per sample across the layer's neurons.

    Strict inequality; a constant row gives zeros, so with one neuron S is always 0.

    :param activations: ``(T, K)``.
    :return: ``(T, K)`` bool.
    """
    u = activations.double()
    low, high = u.amin(1, keepdim=True), u.amax(1, keepdim=True)
    return (u - low) / (high - low + _RANGE_EPSILON) > threshold


def flips(a: Tensor, b: Tensor) -> Tensor:
    """Return where the binarised activations of two models differ, ``(T, K)`` bool."""
    return binarise(a) ^ binarise(b)


def mean_flips(flipped: Tensor, nu: Tensor | None = None) -> float:
    """Return how many of :func:`flips` a test has on average, among all neurons or at its own neuron ``nu`` alone."""
    counted = flipped.sum(1) if nu is None else _at(flipped, nu)
    return float(counted.double().mean())


def layer_output_distance(a: Tensor, b: Tensor, order: float = 2.0) -> float:
    """Return ``LOD_p = (1/T) sum_t |A_t - B_t|_p``, in [0, inf)."""
    return float(torch.linalg.vector_norm(a.double() - b.double(), ord=order, dim=1).mean())


def layer_activation_distance(a: Tensor, b: Tensor) -> float:
    """Return ``LAD = (1/T) sum_t sum_i |S(A_t)_i - S(B_t)_i|``, a count in [0, K]; divide by K for the fraction."""
    return mean_flips(flips(a, b))


def neuron_output_distance(a: Tensor, b: Tensor, nu: Tensor) -> float:
    """Return ``NOD = (1/T) sum_t |A[t, nu_t] - B[t, nu_t]|``, in [0, inf)."""
    return float(_at(a.double() - b.double(), nu).abs().mean())


def normalised_neuron_output_distance(a: Tensor, b: Tensor, nu: Tensor) -> float:
    """Return NOD after dividing every neuron by its largest activation over the tests.

    An extension in DeepJudge's code, not one of its six metrics. That the victim's maximum serves both models is our
    reading. Neurons without a positive maximum count as 0.
    """
    peaks = a.double().amax(0)
    scale = torch.where(peaks > 0, peaks, torch.inf)
    return float((_at(a.double() - b.double(), nu) / scale[nu]).abs().mean())


def neuron_activation_distance(a: Tensor, b: Tensor, nu: Tensor) -> float:
    """Return ``NAD = (1/T) sum_t |S(A_t)[nu_t] - S(B_t)[nu_t]|``, in [0, 1].

    Both public codes report it times the number of distinct neurons that have tests.
    """
    return mean_flips(flips(a, b), nu)


def robustness(labels: Tensor, reference: Tensor) -> float:
    """Return ``Rob = (1/n) sum_j 1[label_j = reference_j]``: accuracy on adversarial examples, in [0, 1]."""
    return float((labels == reference).double().mean())


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Return the mean Jensen-Shannon divergence of probability rows, natural logarithm, in [0, log 2].

    ``(1/n) sum_j (KL(p_j|m_j) + KL(q_j|m_j)) / 2`` with ``m = (p + q) / 2`` and ``0 log 0 = 0``. Rows are normalised.

    :param p: ``(n, C)``, non-negative.
    :param q: ``(n, C)``, non-negative.
    """
    p, q = (rows.double() / rows.double().sum(1, keepdim=True) for rows in (p, q))
    # not rows / ((p + q) / 2): half of the smallest number is 0
    terms = [torch.where(rows > 0, rows * (2 * rows / (p + q)).log(), 0.0) for rows in (p, q)]
    return max(0.0, float(sum(terms).sum(1).mean()) / 2)  # type: ignore[union-attr]


def _at(values: Tensor, nu: Tensor) -> Tensor:
    return values.gather(1, nu[:, None])[:, 0]
