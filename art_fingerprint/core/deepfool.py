"""DeepFool for whole batches: the nearest linearised decision boundary, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from art_fingerprint.core.checks import check_number
from art_fingerprint.exceptions import InvalidInputError


def shortest_move(gaps: Tensor, normals: Tensor) -> Tensor:
    """Return the shortest move onto a boundary of the linearised classifier, ``(n, d)``.

    That of the smallest ``|f'| / ||w'||``: ``|f'| w' / ||w'||^2``, with ``f' = f_k - f_y`` and ``w'`` its gradient.
    Rows without a finite distance get a move of zero.

    :param gaps: ``|f'|`` for K other classes k, ``(n, K)``.
    :param normals: Their ``w'``, ``(n, K, d)``.
    """
    rows = torch.arange(len(gaps), device=gaps.device)
    length = normals.norm(dim=2)
    distance = (gaps / length).nan_to_num(torch.inf).masked_fill(length == 0, torch.inf)
    nearest = distance.argmin(1)
    reachable = torch.isfinite(distance[rows, nearest])
    scale = torch.where(reachable, gaps[rows, nearest] / length[rows, nearest].square(), 0.0)
    return torch.where(reachable[:, None], scale[:, None] * normals[rows, nearest], 0.0)


def deepfool(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    max_iter: int = 50,
    overshoot: float = 0.02,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    nb_candidates: int | None = None,
    reach: float = 2.0,
) -> Tensor:
    """Move every sample by DeepFool until it is classified other than its label says.

    ``x_{t+1} = clip(x_t + (1 + overshoot) r_t)``, with r_t of :func:`shortest_move`. A sample stops as soon as its
    class is not its label; a sample that is misclassified at first is left as it is. The last iterate is returned
    whether or not it fools the network. Where bounds swallow half of each move, as with black backgrounds, iterates
    approach the boundary without crossing it, and the class of the last one is a matter of rounding.

    Source: Moosavi-Dezfooli et al., CVPR 2016, in the form of torchattacks 3.5.1 (the overshoot multiplies every single
    step, the boundary is that against the label), with its results. Ours: samples that are finished leave the batch, as
    do those whose move is zero or swallowed whole, which no later step would change, and those with logits or gradients
    that are not finite (there torchattacks returns NaN); ``nb_candidates`` and ``reach``.

    :param logits_of: Network, ``(n, ...) -> (n, C)``, rows independent of each other (evaluation mode). Its parameters
        are best frozen: gradients are taken in the inputs alone.
    :param x: Samples, ``(n, ...)``; not modified.
    :param labels: Labels, ``(n,)`` int64.
    :param max_iter: Most steps.
    :param overshoot: Share by which a step goes beyond the boundary, >= 0.
    :param low: Lower bound of the inputs; a number or a tensor that broadcasts to ``x``.
    :param high: Upper bound.
    :param nb_candidates: Boundaries against so many classes only, those of the highest logits at each step; ``None``:
        all. Thousands of classes would cost as many backward passes.
    :param reach: After the first step a class is left out whose boundary could be the nearest only if its gradient
        were more than ``reach`` times as long as any w' of that sample so far; infinity leaves none out.
    :return: Last iterates, as ``x``, detached.
    :raises InvalidInputError: a number out of range, or a network that does not return ``(n, C)``.

    Cost with T_b steps of sample b: at most ``3 sum_b (T_b + 1)`` forward and ``K sum_b T_b`` backward samples, K the
    number of classes (or of candidates and the label); close to a boundary 2 backward samples a step.
    """
    check_number("max_iter", max_iter, 1, integer=True)
    check_number("overshoot", overshoot, 0)
    if nb_candidates is not None:
        check_number("nb_candidates", nb_candidates, 1, integer=True)
    if reach != math.inf:
        check_number("reach", reach, 1)
    result = x.detach().clone()
    active = torch.arange(len(x), device=x.device)
    longest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)  # w' so far; unknown at first
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (low, high))
    for _ in range(max_iter):
        if not len(active):
            break
        points, logits = _forward(logits_of, result[active])
        going = (logits.detach().argmax(1) == labels[active]) & torch.isfinite(logits.detach()).all(1)
        if not going.all():  # a forward pass more, many backward passes through finished samples less
            active = active[going]
            if not len(active):
                break
            points, logits = _forward(logits_of, result[active])
        columns = _candidates(logits.detach(), labels[active], nb_candidates)
        gaps, normals = _boundaries(logits_of, points, logits, columns, longest[active] * reach)
        seen = normals.norm(dim=2).amax(1)
        longest[active] = torch.where(torch.isinf(longest[active]), seen, seen.maximum(longest[active]))
        before = points.detach()
        moved = before + (1 + overshoot) * shortest_move(gaps, normals).view(before.shape)
        moved = torch.minimum(torch.maximum(moved, low), high)
        sound = torch.isfinite(moved).flatten(1).all(1) & (moved != before).flatten(1).any(1)
        active = active[sound]
        result[active] = moved[sound]
    return result


def _forward(logits_of: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        points = x.detach().requires_grad_(True)
        logits = logits_of(points)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InvalidInputError(
            f"The network must return (n, C) logits of two or more classes, got {tuple(logits.shape)}."
        )
    return points, logits


def _candidates(logits: Tensor, labels: Tensor, nb_candidates: int | None) -> Tensor:
    """Return class numbers ``(n, 1 + K)`` by descending logits: the label first, which has the highest."""
    order = logits.scatter(1, labels[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
    return order if nb_candidates is None else order[:, : nb_candidates + 1]


def _boundaries(
    logits_of: Callable[[Tensor], Tensor], points: Tensor, logits: Tensor, columns: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``|f'|`` and ``w'`` of all classes that can be the nearest, infinity and 0 for the others.

    :param columns: Label and other classes by :func:`_candidates`, so that gaps ascend.
    :param limit: Longest w' that is to be reckoned with, ``(n,)``.
    """
    n, nb_others = len(points), columns.shape[1] - 1
    values = logits.detach().gather(1, columns)
    gaps = values[:, :1] - values[:, 1:]
    normals = points.new_zeros((n, nb_others, points[0].numel()))
    own = _gradients(logits, points, columns[:, 0])
    normals[:, 0] = _gradients(logits, points, columns[:, 1]) - own
    first = gaps[:, 0] / normals[:, 0].norm(dim=1)
    # NaN, where the first gradient is zero or not finite, keeps the class.
    near = ~(gaps > (first * limit)[:, None])
    near[:, 0] = True
    gaps = gaps.masked_fill(~near, torch.inf)
    rows = (near.sum(1) > 1).nonzero()[:, 0]
    if len(rows) == 0:
        return gaps, normals
    if 2 * len(rows) < n:
        points, logits = _forward(logits_of, points[rows])
        columns, own, target = columns[rows], own[rows], rows
    else:
        target = torch.arange(n, device=points.device)
    for rank in range(1, int(near.sum(1).max())):
        normals[target, rank] = _gradients(logits, points, columns[:, rank + 1]) - own
    return gaps, normals * near[:, :, None]


def _gradients(logits: Tensor, points: Tensor, classes: Tensor) -> Tensor:
    """Return the gradient of each sample's own logit, ``(n, d)``."""
    with torch.enable_grad():  # the caller may have switched it off
        chosen = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, points, retain_graph=True)
    return gradient.flatten(1)
