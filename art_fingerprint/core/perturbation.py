"""Moves in input space: signed-gradient ascent in a Linf ball (FGSM, PGD), and the unit in which lengths are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from art_fingerprint.core.checks import check_number
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.exceptions import InvalidInputError

UNITS = ("input", "standardised")


def unit_length(victim: LogitsNetwork, units: str, ndim: int) -> Tensor:
    """Return the input-space length of one unit, a tensor that broadcasts to a batch with ``ndim`` axes.

    ``"input"``: 1. ``"standardised"``: the standard deviation of the classifier's standardisation, per channel (1 if it
    has none), because the published codes work on ``(x - mean) / std``.

    :raises InvalidInputError: the classifier standardises per pixel.
    """
    if units == "input":
        return torch.ones(())
    _, std = victim.standardisation
    return per_channel(std, ndim)


def per_channel(values: Tensor, ndim: int) -> Tensor:
    """Return values per channel ``(C,)`` in a shape that broadcasts to a batch with ``ndim`` axes, channels second."""
    return values.view(-1, *([1] * (ndim - 2)))


def linf_ascent(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    radius: float | Tensor,
    step: float | Tensor,
    max_iter: int,
    low: float | Tensor,
    high: float | Tensor,
    start: Tensor | None = None,
    project: bool = True,
) -> Tensor:
    """Maximise an objective over the inputs by signed gradient steps.

    ``x_{t+1} = clip(project(x_t + step * sign(grad_x sum_b objective(x_t)_b)))`` from ``x_0 = clip(project(start))``.
    The gradient of the sum is, row by row, the gradient of that row alone as long as rows do not influence each other
    (networks in evaluation mode). FGSM is ``max_iter=1, step=radius``; PGD draws ``start`` in the ball.

    Source: Madry et al. 2018 (PGD). Ours: a row whose objective or gradient is not finite goes back to its last iterate
    with a finite objective and stays there. The objective of the very last iterate is not evaluated.

    :param objective: ``(n, ...)`` inputs to ``(n,)`` values, differentiable; entry b may depend on row b only.
    :param x: Centres of the balls, ``(n, ...)``; not modified.
    :param radius: Linf radius, ``>= 0``, in the units of ``x``; a number or a tensor that broadcasts to ``x``.
    :param step: Length of one step in every coordinate with a non-zero gradient, as ``radius``.
    :param max_iter: Number of steps, 0 or more.
    :param low: Lower bound of the domain, as ``radius``. Clipping comes after the projection and wins over it.
    :param high: Upper bound of the domain.
    :param start: First iterate, shape of ``x``; default ``x``.
    :param project: ``False`` leaves the ball out, ``radius`` is then unused: iterates may drift by ``max_iter * step``.
    :return: Last iterates, shape and device of ``x``, detached.
    :raises InvalidInputError: wrong shape of ``start`` or of the objective's values, negative ``max_iter``.

    Cost: ``n * max_iter`` forward and as many backward samples, gradients for the input only.
    """
    check_number("max_iter", max_iter, 0, integer=True)
    centre = x.detach()
    if start is not None and start.shape != x.shape:
        raise InvalidInputError(f"`start` must have the shape of `x`, {tuple(x.shape)}, got {tuple(start.shape)}.")
    radius, step, low, high = (
        torch.as_tensor(value, dtype=x.dtype, device=x.device) for value in (radius, step, low, high)
    )
    column = (-1, *([1] * (x.ndim - 1)))  # shape that makes a per-row flag broadcast over a sample

    def feasible(points: Tensor) -> Tensor:
        if project:
            points = torch.minimum(torch.maximum(points, centre - radius), centre + radius)
        return torch.minimum(torch.maximum(points, low), high)

    current = feasible(centre if start is None else start.detach().to(centre))
    finite = current
    alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(max_iter):
        with torch.enable_grad():
            leaf = current.detach().requires_grad_(True)
            values = objective(leaf)
            if values.shape != (len(x),):
                raise InvalidInputError(
                    f"`objective` must return one value per row, ({len(x)},), got {tuple(values.shape)}."
                )
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        valid = torch.isfinite(values.detach())
        # A row is dead for good once its value is not finite: it must not walk into the same hole again.
        finite = torch.where(valid.view(column), current, finite)
        alive = alive & valid & torch.isfinite(gradient).flatten(1).all(1)
        current = torch.where(alive.view(column), feasible(current + step * gradient.sign()), finite)
    return current
