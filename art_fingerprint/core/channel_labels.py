"""Where a tensor holds the channels of a group, and what operations that move axes make of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from art_fingerprint.core.chains import Call, indexed
from art_fingerprint.core.group_sets import Segment

TRANSPOSITIONS = frozenset(("transpose", "swapaxes", "permute", "movedim"))
PICKS = frozenset(("__getitem__", "select", "unbind"))


@dataclass(frozen=True)
class Place:
    """A value's channels lie along one axis."""

    axis: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Split:
    """An axis of one group was cut into several, as attention does: (q, k, v) x heads x channels of a head.

    :ivar group: The group.
    :ivar sizes: Sizes of the factors, in the order of the axis.
    :ivar axes: Where each factor is; -1 once an entry of it was picked.
    :ivar picked: That entry, else -1.
    """

    group: int
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    picked: tuple[int, ...]

    @property
    def left(self) -> list[int]:
        """The factors of which no entry was picked."""
        return [i for i, entry in enumerate(self.picked) if entry < 0]


@dataclass(frozen=True)
class Scores:
    """Products of queries with keys."""

    query: Split
    key: Split


Label = Place | Split | Scores


def transposed(call: Call, label: Place | Split, rank: int) -> Label | None:
    """Return the label behind a transposition, ``None`` if its arguments are not understood."""
    order = _axes_before(call, rank)
    if order is None:
        return None
    if isinstance(label, Place):
        return replace(label, axis=order.index(label.axis))
    return replace(label, axes=tuple(order.index(axis) if axis >= 0 else -1 for axis in label.axes))


def _axes_before(call: Call, rank: int) -> list[int] | None:
    """Return for each axis after a transposition the axis before it."""
    order = list(range(rank))
    given = [argument for argument in (*call.args[1:], *call.kwargs.values()) if not isinstance(argument, Tensor)]
    if call.name == "permute":
        dims = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
        return [dim % rank for dim in dims] if len(dims) == rank else None
    if len(given) != 2 or not all(isinstance(dim, int) for dim in given):
        return None
    one, other = (dim % rank for dim in given)
    if call.name == "movedim":
        order.insert(other, order.pop(one))
    else:
        order[one], order[other] = order[other], order[one]
    return order


def reshaped(
    label: Place | Split,
    before: torch.Size,
    after: torch.Size,
    expanded: Callable[[Sequence[Segment]], Sequence[Segment]],
) -> Label | None:
    """Return the label behind a reshape of a row-major tensor.

    The channels' axis may stay as it is, swallow the axes behind it, or be cut into factors; factors may be joined.

    :param expanded: Replaces groups that were cut by their parts.
    """
    if isinstance(label, Split):
        axes = [label.axes[i] for i in label.left]
        whole = math.prod(label.sizes)
        joined = len(axes) == len(label.sizes) and axes == list(range(len(before) - len(axes), len(before)))
        return Place(len(after) - 1, (Segment(label.group, whole),)) if joined and after[-1] == whole else None
    axis, size = label.axis, before[label.axis]
    behind = math.prod(before[axis + 1 :])
    for position in range(1, len(after)):  # 0 is the samples
        if after[position] == size and math.prod(after[position + 1 :]) == behind:
            return Place(position, label.segments)
    if len(after) <= axis or after[:axis] != before[:axis]:
        return None
    if after[axis] % size == 0:  # flattened: a channel is a run of entries
        return Place(axis, tuple(replace(s, block=s.block * (after[axis] // size)) for s in label.segments))
    tail = tuple(after[axis:])
    single = len(label.segments) == 1 and expanded(label.segments)[0].block == 1
    if single and axis == len(before) - 1 and math.prod(tail) == size:
        return Split(label.segments[0].group, tail, tuple(range(axis, len(after))), (-1,) * len(tail))
    return None


def picked(call: Call, label: Place | Split, rank: int) -> list[Label]:
    """Return the labels of what indexing, ``select`` or ``unbind`` give, one for each output; or none."""
    if isinstance(label, Place):
        if call.name == "__getitem__":
            axis = indexed(call.args[1], label.axis)
        else:
            dim = call.argument(1, "dim", 0) % rank
            axis = None if dim == label.axis else label.axis - (dim < label.axis)
        return [] if axis is None else [Place(axis, label.segments)] * len(call.outputs)
    if call.name == "unbind":
        dim, entries = call.argument(1, "dim", 0) % rank, list(range(len(call.outputs)))
    elif call.name == "select":
        dim, entries = call.argument(1, "dim") % rank, [call.argument(2, "index")]
    else:
        dim, entries = 0, [call.args[1]]
    if dim not in label.axes or not all(isinstance(entry, int) and entry >= 0 for entry in entries):
        return []
    factor = label.axes.index(dim)
    axes = tuple(-1 if axis == dim else axis - (axis > dim) for axis in label.axes)
    return [
        replace(label, axes=axes, picked=tuple(entry if i == factor else old for i, old in enumerate(label.picked)))
        for entry in entries
    ]
