"""Many small optimisation problems in one batch: each row has its own optimiser state and stop, and no neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_number
from art_fingerprint.exceptions import InvalidInputError

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Optimizer = Literal["adam", "sign"]
Keep = Literal["last", "best"]
Store = Literal["stop", "next"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adam", "sign")

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
# Finished rows still ride along in the forward pass until the block is tidied. On the host that check is free; on a
# device it waits for the queue of kernels, so it is made rarely and a fuller block is tolerated.
_CHECK_EVERY = {"cpu": 1}
_CHECK_EVERY_ON_DEVICES = 10
_SMALLEST_ACTIVE_SHARE = {"cpu": 0.95}
_SMALLEST_ACTIVE_SHARE_ON_DEVICES = 0.7


@dataclass(frozen=True)
class Optimised:
    """What :func:`optimise` found, one entry per row, on the device of its ``start``.

    :ivar x: Points, ``(n, ...)``.
    :ivar converged: Whether the row's stop flag was raised, ``(n,)`` bool.
    :ivar updates: Updates the row received, ``(n,)`` int64.
    """

    x: Tensor
    converged: Tensor
    updates: Tensor


def optimise(
    objective: Objective,
    start: Tensor,
    *,
    learning_rate: float | Tensor,
    max_iter: int,
    index: Tensor | None = None,
    optimizer: Optimizer = "adam",
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    at_least_one_update: bool = False,
    keep: Keep = "last",
    store: Store = "stop",
    batch_size: int = 128,
    device: torch.device | None = None,
    progress: Callable[[int], None] | None = None,
) -> Optimised:
    """Minimise an objective for many rows at once, each exactly as if it were alone.

    A row starts at ``x_0``, is evaluated at every iterate ``x_t``, and is finished at the first ``x_t`` whose stop flag
    is raised, or at ``x_{max_iter}``. It is never updated again; its place is given to a waiting row, which starts with
    moments 0 and counter 0. ``adam`` is Adam (Kingma and Ba 2015; beta 0.9/0.999, epsilon 1e-8) with the bias
    correction of the row's own counter; ``sign`` moves by ``-lr g / (|g| + 1e-8)``, which is Adam rebuilt before every
    step (RemovalNet's code): a zero gradient does not move. The gradient is that of the sum over rows, for the input
    only: a mean would let Adam's epsilon see the batch size. A row whose objective or gradient is not finite ends, not
    converged, at its last iterate with a finite objective.

    :param objective: ``(x, rows) -> (values, stop)``: active points ``(b, ...)``, their row numbers ``(b,)`` int64 for
        gathering constants, values ``(b,)`` to minimise and stop flags ``(b,)``. Row b may depend on nothing but row b
        (networks in evaluation mode). Everything is on ``device``.
    :param start: Starting points ``(m, ...)``; only read.
    :param learning_rate: Step size in the units of ``start``; a number or a tensor that broadcasts to one batch.
    :param max_iter: Most updates of a row, 0 or more.
    :param index: ``(n,)`` int64, the entry of ``start`` where each row begins; default one row per entry. Many rows
        can so share a start without n copies of it.
    :param optimizer: ``"adam"`` or ``"sign"``.
    :param low: Lower clip bound applied after every update; ``None`` for no clipping from below.
    :param high: Upper clip bound.
    :param at_least_one_update: Ignore the stop flag at ``x_0``.
    :param keep: What a row that never stops returns: its ``"last"`` iterate or its ``"best"``, the lowest objective.
    :param store: ``"stop"`` returns the iterate that raised the flag, ``"next"`` the one after a further update
        (RemovalNet's code tests before the update and stores after it; ``x_{max_iter}`` is then not tested).
    :param batch_size: Rows in one block.
    :param device: Where to compute; default the device of ``start``.
    :param progress: Called with the number of rows finished since the last call.
    :raises InvalidInputError: bad arguments, or an objective that does not return two ``(b,)`` tensors.

    Cost with ``T_b`` updates of row b: ``sum_b (T_b + 1)`` forward and about ``sum_b T_b`` backward samples;
    finished rows that wait for the next tidying add at most 5 % on the host.
    """
    _check(max_iter, batch_size, optimizer, keep, store)
    origin = start.device
    device = origin if device is None else device
    index = torch.arange(len(start), device=origin) if index is None else index.to(origin)
    n, shape = len(index), start.shape[1:]
    column = (-1, *([1] * len(shape)))  # makes a per-row number broadcast over a sample
    rate = torch.as_tensor(learning_rate, dtype=start.dtype, device=device)
    lower, upper = (
        None if value is None else torch.as_tensor(value, dtype=start.dtype, device=device) for value in (low, high)
    )
    unbias_first = _unbias(_BETA1, max_iter, rate)
    unbias_second = _unbias(_BETA2, max_iter, rate).sqrt()
    found = Optimised(
        x=torch.empty((n, *shape), dtype=start.dtype, device=origin),
        converged=torch.zeros(n, dtype=torch.bool, device=origin),
        updates=torch.zeros(n, dtype=torch.int64, device=origin),
    )
    check_every = _CHECK_EVERY.get(device.type, _CHECK_EVERY_ON_DEVICES)
    smallest_share = _SMALLEST_ACTIVE_SHARE.get(device.type, _SMALLEST_ACTIVE_SHARE_ON_DEVICES)

    def fresh(first: int, last: int) -> dict[str, Tensor]:
        rows = torch.arange(first, last, device=origin)
        x = start[index[rows]].detach().to(device)
        return {
            "rows": rows.to(device),
            "x": x,
            "first": torch.zeros_like(x),
            "second": torch.zeros_like(x),
            "kept": x.clone(),
            "lowest": torch.full((len(rows),), torch.inf, dtype=x.dtype, device=device),
            "t": torch.zeros(len(rows), dtype=torch.int64, device=device),
            "active": torch.ones(len(rows), dtype=torch.bool, device=device),
            "converged": torch.zeros(len(rows), dtype=torch.bool, device=device),
        }

    def advance(s: dict[str, Tensor]) -> None:
        with torch.enable_grad():
            leaf = s["x"].detach().requires_grad_(True)
            values, stop = objective(leaf, s["rows"])
            if values.shape != s["t"].shape or stop.shape != s["t"].shape:
                raise InvalidInputError(
                    f"`objective` must return values and stop flags of shape ({len(leaf)},), got {tuple(values.shape)} "
                    f"and {tuple(stop.shape)}."
                )
            total = values.sum()
        values = values.detach()
        valid = s["active"] & torch.isfinite(values)
        stop = valid & stop.detach()
        if at_least_one_update:
            stop = stop & (s["t"] > 0)
        unspent = s["t"] < max_iter
        if store == "next":
            stop = stop & unspent
        worth_keeping = valid
        if keep == "best":
            worth_keeping = valid & (stop | (values < s["lowest"]))
            s["lowest"] = torch.where(worth_keeping, values, s["lowest"])
        s["kept"] = torch.where(worth_keeping.view(column), s["x"], s["kept"])
        s["converged"] = s["converged"] | stop
        moving = valid & unspent if store == "next" else valid & unspent & ~stop
        if device.type == "cpu" and not moving.any():
            s["active"] = moving
            return
        (gradient,) = torch.autograd.grad(total, leaf)
        moving = moving & torch.isfinite(gradient).flatten(1).all(1)
        s["t"] = s["t"] + moving
        if optimizer == "adam":
            s["first"].lerp_(gradient, 1 - _BETA1)
            s["second"].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            spread = s["second"].sqrt().mul_(unbias_second[s["t"]].view(column)).add_(_EPSILON)
            direction = (s["first"] * unbias_first[s["t"]].view(column)).div_(spread)
        else:
            direction = gradient / (gradient.abs() + _EPSILON)
        x = s["x"] - rate * direction
        x = x if lower is None else torch.maximum(x, lower)
        x = x if upper is None else torch.minimum(x, upper)
        s["x"] = torch.where(moving.view(column), x, s["x"])
        if store == "next":
            s["kept"] = torch.where((moving & stop).view(column), x, s["kept"])
        s["active"] = moving & ~stop

    def harvest(s: dict[str, Tensor], done: Tensor) -> None:
        rows = s["rows"][done].to(origin)
        found.x[rows] = s["kept"][done].to(origin)
        found.converged[rows] = s["converged"][done].to(origin)
        found.updates[rows] = s["t"][done].to(origin)
        if progress is not None:
            progress(len(rows))

    waiting = min(batch_size, n)
    state = fresh(0, waiting)
    while len(state["rows"]):
        for _ in range(check_every):
            advance(state)
        done = (~state["active"]).nonzero()[:, 0]
        size = len(state["rows"])
        if size - len(done) > smallest_share * size:
            continue
        harvest(state, done)
        # Waiting rows take over the slots of finished ones in place, so the batch keeps its shape.
        entering = fresh(waiting, min(waiting + len(done), n))
        waiting += len(entering["rows"])
        slots = done[: len(entering["rows"])]
        for name, value in state.items():
            value[slots] = entering[name]
        if len(slots) < len(done):
            remaining = state["active"].nonzero()[:, 0]
            state = {name: value[remaining] for name, value in state.items()}
    return found


def _unbias(beta: float, max_iter: int, like: Tensor) -> Tensor:
    """Return ``1 / (1 - beta^t)`` for t = 0..max_iter, computed in float64; rows at t = 0 never move, so 1 there."""
    t = torch.arange(max_iter + 1, dtype=torch.float64).clamp_min_(1)
    return (1 / -torch.expm1(t * math.log(beta))).to(like)


def _check(max_iter: int, batch_size: int, optimizer: str, keep: str, store: str) -> None:
    check_number("max_iter", max_iter, 0, integer=True)
    check_number("batch_size", batch_size, 1, integer=True)
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_choice("keep", keep, ("last", "best"))
    check_choice("store", store, ("stop", "next"))
