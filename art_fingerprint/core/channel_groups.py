"""Channel groups: which axes of which weights hold the same channels, and can only be permuted together.

Where :mod:`.chains` looks for channels that one tensor alone holds, this follows them through everything: a residual
stream is one group that many weights write and read, a concatenation is a list of groups, a grouped convolution ties
the blocks of its input to those of its output, and attention ties the heads of query, key and value.

What is found is for comparing two networks of one shape. Behind an operation that is not known the channels begin anew
as a free group: nothing then ties their order to the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from art_fingerprint.core.chains import CONVOLUTIONS, REDUCTIONS, RESHAPES, SPATIAL, VALUEWISE, Call, Tape, indexed, reduced

_SUMS = frozenset(
    f"{prefix}{name}{suffix}"
    for name in ("add", "sub", "mul", "div", "truediv")
    for prefix, suffix in (("", ""), ("__", "__"), ("__i", "__"), ("__r", "__"))
)
_KEEPING = VALUEWISE | {"softmax", "log_softmax", "normalize", "roll", "expand", "__neg__", "neg", "to", "type_as"}
_NORMALISATIONS = frozenset(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "prelu"))
_TRANSPOSITIONS = frozenset(("transpose", "swapaxes", "permute", "movedim"))
_CUTS = frozenset(("chunk", "split", "tensor_split", "split_with_sizes"))
_PRODUCTS = frozenset(("matmul", "__matmul__", "bmm"))


@dataclass(frozen=True)
class Segment:
    """Consecutive entries of an axis that hold a group's channels, ``block`` entries for each of them."""

    group: int
    channels: int
    block: int = 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are permuted together.

    :ivar size: Their number.
    :ivar pinned: Their order means something: the network's inputs and outputs.
    :ivar blocks: Blocks of equal size that a permutation keeps together, as groups of a convolution and heads do.
    :ivar family: Groups of one family permute their blocks in the same way.
    """

    size: int
    pinned: bool = False
    blocks: int = 1
    family: int = 0


@dataclass(frozen=True)
class GroupedWeight:
    """A weight ``(rows, columns, *kernel)`` and the groups on its axes.

    :ivar name: Dotted name of the parameter.
    :ivar rows: Segments of axis 0.
    :ivar columns: Segments of axis 1; none for a depthwise convolution.
    :ivar groups: Groups of the convolution. With more than one, ``columns`` are the channels of one block.
    :ivar scale: Name of the BatchNorm weight that multiplies the rows before anything else does, or empty.
    """

    name: str
    rows: tuple[Segment, ...]
    columns: tuple[Segment, ...]
    groups: int = 1
    scale: str = ""


@dataclass(frozen=True)
class ChannelGroups:
    """All groups of a network, and the weights that write and read them in order of execution."""

    groups: tuple[ChannelGroup, ...]
    weights: tuple[GroupedWeight, ...]


@torch.no_grad()
def find_groups(network: nn.Module, example: Tensor) -> ChannelGroups:
    """Follow the channels of every convolution and Linear layer. Cost: one forward pass of one sample.

    A weight that is used twice ties the groups of both uses. Weights that are computed (weight normalisation) have no
    name and are left out.

    :param network: The network; it is run in evaluation mode.
    :param example: Preprocessed inputs ``(B, C, ...)``.
    """
    tape, x = Tape(network), example[:1]
    finder = _Finder(tape, tape.value(x), x.shape)
    tape.record(network, x)
    for call in tape.calls:
        finder.visit(call)
    return finder.result()


@dataclass(frozen=True)
class _Place:
    """A value's channels lie along one axis."""

    axis: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class _Split:
    """An axis of one group was cut into several, as attention does: (q, k, v) x heads x channels of a head.

    :ivar axes: Where each factor is; -1 once an entry of it was picked.
    :ivar picked: That entry, else -1.
    """

    group: int
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    picked: tuple[int, ...]

    @property
    def left(self) -> list[int]:
        return [i for i, entry in enumerate(self.picked) if entry < 0]


@dataclass(frozen=True)
class _Scores:
    """Products of queries with keys."""

    query: _Split
    key: _Split


_Label = _Place | _Split | _Scores


class _Union:
    """Sets of groups that turned out to be one, and groups that turned out to be several."""

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.sizes: list[int] = []
        self.pinned: list[bool] = []
        self.blocks: list[int] = []
        self.families: list[int] = []
        self.parts: dict[int, tuple[Segment, ...]] = {}

    def new(self, size: int, pinned: bool = False, blocks: int = 1) -> int:
        number = len(self.parents)
        self.parents.append(number)
        self.sizes.append(size)
        self.pinned.append(pinned)
        self.blocks.append(blocks)
        self.families.append(number)
        return number

    def root(self, group: int) -> int:
        while self.parents[group] != group:
            group = self.parents[group]
        return group

    def join(self, one: int, other: int) -> None:
        one, other = self.root(one), self.root(other)
        if one == other:
            return
        self.parents[other] = one
        self.pinned[one] |= self.pinned[other]
        self.blocks[one] = max(self.blocks[one], self.blocks[other])
        self.tie(one, other)
        if other in self.parts and one in self.parts:
            self.unify(self.parts[one], self.parts[other])
        elif other in self.parts:
            self.parts[one] = self.parts[other]

    def tie(self, one: int, other: int) -> None:
        kept, gone = self.families[self.root(one)], self.families[other]
        self.families = [kept if family == gone else family for family in self.families]

    def unify(self, one: Sequence[Segment], other: Sequence[Segment]) -> bool:
        """Make the groups of two equally cut axes the same; tell whether they are equally cut."""
        one, other = self.expanded(one), self.expanded(other)
        if [(s.channels, s.block) for s in one] != [(s.channels, s.block) for s in other]:
            return False
        for left, right in zip(one, other, strict=True):
            self.join(left.group, right.group)
        return True

    def cut(self, segments: Sequence[Segment], sizes: Sequence[int]) -> list[tuple[Segment, ...]] | None:
        """Cut an axis into pieces; a single group is cut into groups of its own. ``None`` where that is not possible."""
        flat = self.expanded(segments)
        if len(flat) == 1 and len(sizes) > 1 and flat[0].block == 1 and sum(sizes) == flat[0].channels:
            whole = self.root(flat[0].group)
            if self.pinned[whole] or self.blocks[whole] > 1:
                return None
            self.parts[whole] = flat = tuple(Segment(self.new(size), size) for size in sizes)
        pieces: list[tuple[Segment, ...]] = []
        waiting = list(flat)
        for size in sizes:
            piece: list[Segment] = []
            while waiting and sum(s.channels * s.block for s in piece) < size:
                piece.append(waiting.pop(0))
            if sum(s.channels * s.block for s in piece) != size:
                return None
            pieces.append(tuple(piece))
        return pieces

    def expanded(self, segments: Sequence[Segment]) -> tuple[Segment, ...]:
        found: list[Segment] = []
        for segment in segments:
            root = self.root(segment.group)
            if root in self.parts:
                found += self.expanded([replace(part, block=segment.block) for part in self.parts[root]])
            else:
                found.append(replace(segment, group=root))
        return tuple(found)


class _Finder:
    """Carries labels along a tape."""

    def __init__(self, tape: Tape, start: int, shape: torch.Size) -> None:
        self.tape = tape
        self.union = _Union()
        self.weights: dict[str, GroupedWeight] = {}
        self.labels: dict[int, _Label] = {start: _Place(1, (Segment(self.union.new(shape[1], True), shape[1]),))}
        self.writers: dict[int, str] = {}  # values that are a weight's output and nothing else

    def visit(self, call: Call) -> None:
        if call.name in CONVOLUTIONS or call.name == "linear":
            self._weight(call)
        elif call.name == "output":
            for value in call.inputs:
                place = self.labels.get(value)
                for segment in self.union.expanded(place.segments) if isinstance(place, _Place) else ():
                    self.union.pinned[segment.group] = True
        elif call.name == "scaled_dot_product_attention" and len(call.inputs) >= 3:
            query, key, value = (self.labels.get(v) for v in call.inputs[:3])
            self._attend(query, key, value, call.outputs[0])
        elif call.name == "multi_head_attention_forward":
            self._multi_head(call)
        elif call.name in _PRODUCTS and len(call.inputs) == 2:
            one, other = (self.labels.get(value) for value in call.inputs)
            if isinstance(one, _Split) and isinstance(other, _Split):
                self.labels[call.outputs[0]] = _Scores(one, other)
            elif isinstance(one, _Scores):
                self._attend(one.query, one.key, other, call.outputs[0])
        elif call.name == "cat":
            self._concatenate(call)
        elif call.name in _SUMS and len(call.inputs) == 2:
            self._sum(call)
        elif len(call.inputs) == 1:
            self._unary(call)

    # ------------------------------------------------------------------ weights
    def _fresh(self, size: int, blocks: int = 1) -> tuple[Segment, ...]:
        return (Segment(self.union.new(size, blocks=blocks), size),)

    def _weight(self, call: Call) -> None:
        convolution = call.name != "linear"
        weight = call.argument(1, "weight")
        groups = call.argument(6, "groups", 1) if convolution else 1
        value, output = call.inputs[0], call.outputs[0]
        place = self.labels.get(value)
        shape = self.tape.shapes[value]
        axis = 1 if convolution else len(shape) - 1
        known = isinstance(place, _Place) and place.axis == axis and len(shape) == (weight.ndim if convolution else axis + 1)
        columns = place.segments if known and isinstance(place, _Place) else self._fresh(weight.shape[1] * groups)
        if groups > 1 and groups == shape[1]:
            plain = all(segment.block == 1 for segment in self.union.expanded(columns))
            columns = columns if plain else self._fresh(groups)
            rows = tuple(replace(s, block=weight.shape[0] // groups) for s in self.union.expanded(columns))
            columns = ()
        elif groups > 1:
            columns = self._in_blocks(columns, groups)
            rows = self._fresh(weight.shape[0], groups)
            self.union.tie(columns[0].group, rows[0].group)
            columns = (replace(columns[0], channels=columns[0].channels // groups),)
        else:
            rows = self._fresh(weight.shape[0])
        self.labels[output] = _Place(1 if convolution else len(self.tape.shapes[output]) - 1, rows)
        self._keep(self.tape.name_of(weight), rows, columns, groups if columns else 1, output)

    def _keep(
        self, name: str | None, rows: tuple[Segment, ...], columns: tuple[Segment, ...], groups: int, output: int
    ) -> None:
        if name is None:
            return
        if name in self.weights:  # tied: both uses have one order
            first = self.weights[name]
            self.union.unify(first.rows, rows)
            self.union.unify(first.columns, columns)
            self.writers.pop(output, None)
            return
        self.weights[name] = GroupedWeight(name, rows, columns, groups)
        self.writers[output] = name

    def _in_blocks(self, columns: tuple[Segment, ...], groups: int) -> tuple[Segment, ...]:
        """Return columns of one group that keeps so many blocks together; a free one if the channels have others."""
        flat = self.union.expanded(columns)
        total = sum(segment.channels * segment.block for segment in flat)
        if len(flat) > 1 or flat[0].block > 1 or self.union.blocks[flat[0].group] not in (1, groups):
            return self._fresh(total, groups)
        self.union.blocks[flat[0].group] = groups
        return flat

    # ------------------------------------------------------------------ attention
    def _attend(self, query: _Label | None, key: _Label | None, value: _Label | None, output: int) -> None:
        """Query and key share the order inside their heads, all three share the order of the heads."""
        parts = [self._heads(label) for label in (query, key, value)]
        if any(part is None for part in parts):
            return
        (q, heads), (k, _), (v, values) = parts  # type: ignore[misc]
        if self.union.sizes[q] != self.union.sizes[k] or heads != values:
            return
        self.union.join(q, k)
        for group in (self.union.root(q), self.union.root(v)):
            self.union.blocks[group] = heads
        self.union.tie(q, self.union.root(v))
        width = self.union.sizes[v] // heads
        rank = len(self.tape.shapes[output])
        self.labels[output] = _Split(v, (heads, width), (rank - 3, rank - 1), (-1, -1))

    def _heads(self, label: _Label | None) -> tuple[int, int] | None:
        """Return the group of queries, keys or values and the number of heads."""
        if not isinstance(label, _Split) or len(label.left) != 2:
            return None
        head = label.left[0]
        group = self.union.root(label.group)
        if len(label.sizes) == 2:
            return group, label.sizes[head]
        if len(label.sizes) != 3 or head != 1:  # (q, k, v) come first
            return None
        size = label.sizes[1] * label.sizes[2]
        pieces = self.union.cut((Segment(group, self.union.sizes[group]),), [size] * label.sizes[0])
        return None if pieces is None else (self.union.root(pieces[label.picked[0]][0].group), label.sizes[1])

    def _multi_head(self, call: Call) -> None:
        """The functional form of ``nn.MultiheadAttention`` with one weight for q, k and v."""
        heads, inside, outside = (call.argument(i, n) for i, n in ((4, "num_heads"), (5, "in_proj_weight"), (11, "out_proj_weight")))
        if inside is None or len(set(call.inputs[:3])) != 1:
            return
        width, value, output = inside.shape[1], call.inputs[0], call.outputs[0]
        place = self.labels.get(value)
        last = len(self.tape.shapes[value]) - 1
        stream = place.segments if isinstance(place, _Place) and place.axis == last else self._fresh(width)
        (shared,), (values,), rows = self._fresh(width, heads), self._fresh(width, heads), self._fresh(outside.shape[0])
        self.union.tie(shared.group, values.group)
        self._keep(self.tape.name_of(inside), (shared, shared, values), stream, 1, -1)
        self._keep(self.tape.name_of(outside), rows, (values,), 1, output)
        self.labels[output] = _Place(last, rows)

    # ------------------------------------------------------------------ other operations
    def _concatenate(self, call: Call) -> None:
        after = self.tape.shapes[call.outputs[0]]
        axis = call.argument(1, "dim", 0) % len(after)
        places = [(self.labels.get(value), self.tape.shapes[value]) for value in call.inputs]
        known = [place for place, _ in places if isinstance(place, _Place)]
        if not known or any(place.axis != known[0].axis for place in known):
            return
        if axis == known[0].axis:
            if sum(shape[axis] for _, shape in places) != after[axis]:
                return
            joint = [p.segments if isinstance(p, _Place) else self._fresh(shape[axis]) for p, shape in places]
            self.labels[call.outputs[0]] = _Place(axis, tuple(segment for part in joint for segment in part))
        elif all(self.union.unify(known[0].segments, place.segments) for place in known[1:]):
            self.labels[call.outputs[0]] = known[0]

    def _sum(self, call: Call) -> None:
        """Sums and products: the channels of both sides are the same."""
        after = self.tape.shapes[call.outputs[0]]
        found: list[_Label] = []
        for value in call.inputs:
            label, shape = self.labels.get(value), self.tape.shapes[value]
            if isinstance(label, _Place):
                axis = label.axis - len(shape) + len(after)
                if shape[label.axis] == after[axis]:
                    found.append(_Place(axis, label.segments))
            elif label is not None and shape == after:
                found.append(label)
        if len(found) == 2:
            one, other = found
            if not (isinstance(one, _Place) and isinstance(other, _Place) and one.axis == other.axis):
                return
            if not self.union.unify(one.segments, other.segments):
                return
        if found:
            self.labels[call.outputs[0]] = found[0]

    def _unary(self, call: Call) -> None:
        value, output = call.inputs[0], call.outputs[0] if call.outputs else -1
        label = self.labels.get(value)
        if label is None or output < 0:
            return
        before, after = self.tape.shapes[value], self.tape.shapes[output]
        found: _Label | None = None
        if call.name in _NORMALISATIONS or call.name in _KEEPING or call.name in _SUMS:
            found = label if after == before or call.name == "expand" else None
            if call.name == "batch_norm" and value in self.writers:
                scale = call.argument(3, "weight")
                name = None if scale is None else self.tape.name_of(scale)
                weight = self.weights[self.writers[value]]
                self.weights[weight.name] = replace(weight, scale=name or "")
        elif call.name in _TRANSPOSITIONS:
            found = self._transposed(call, label, len(before))
        elif isinstance(label, _Scores):
            return
        elif call.name in RESHAPES or call.name == "unflatten":
            found = self._reshaped(label, before, after)
        elif call.name in ("__getitem__", "select", "unbind"):
            self._picked(call, label)
            return
        elif isinstance(label, _Split):
            return
        elif call.name in SPATIAL:
            found = label if len(after) == len(before) and after[label.axis] == before[label.axis] else None
        elif call.name in REDUCTIONS:
            axis = reduced(call, len(before), label.axis)
            found = None if axis is None else _Place(axis, label.segments)
        elif call.name in _CUTS:
            axis = call.argument(2, "dim", 0) % len(before)
            sizes = [self.tape.shapes[part][axis] for part in call.outputs]
            pieces = self.union.cut(label.segments, sizes) if axis == label.axis else [label.segments] * len(sizes)
            for part, segments in zip(call.outputs, pieces or (), strict=False):
                self.labels[part] = _Place(label.axis, segments)
            return
        if found is not None:
            self.labels[output] = found

    def _transposed(self, call: Call, label: _Label, rank: int) -> _Label | None:
        order = _order(call, rank)
        if order is None or isinstance(label, _Scores):
            return None
        if isinstance(label, _Place):
            return replace(label, axis=order.index(label.axis))
        return replace(label, axes=tuple(order.index(axis) if axis >= 0 else -1 for axis in label.axes))

    def _reshaped(self, label: _Place | _Split, before: torch.Size, after: torch.Size) -> _Label | None:
        if isinstance(label, _Split):
            axes = [label.axes[i] for i in label.left]
            whole = math.prod(label.sizes[i] for i in label.left)
            if len(label.left) != len(label.sizes) or axes != list(range(len(before) - len(axes), len(before))):
                return None
            if not after or after[-1] != whole:
                return None
            return _Place(len(after) - 1, (Segment(label.group, whole),))
        size, behind = before[label.axis], math.prod(before[label.axis + 1 :])
        for axis in range(len(after)):  # the axis is still there, whatever became of the others
            if after[axis] == size and math.prod(after[axis + 1 :]) == behind:
                return _Place(axis, label.segments)
        axis = label.axis
        if len(after) > axis and after[:axis] == before[:axis] and after[axis] % size == 0:
            wider = tuple(replace(s, block=s.block * (after[axis] // size)) for s in label.segments)
            return _Place(axis, wider)  # flattened: a channel is a run of entries
        flat = self.union.expanded(label.segments)
        if axis == len(before) - 1 and after[:axis] == before[:axis] and math.prod(after[axis:]) == size:
            tail = tuple(after[axis:])
            if len(label.segments) == 1 and flat[0].block == 1:
                return _Split(label.segments[0].group, tail, tuple(range(axis, len(after))), (-1,) * len(tail))
        return None

    def _picked(self, call: Call, label: _Place | _Split) -> None:
        """One entry, or each, of some axes."""
        if isinstance(label, _Place):
            axis = label.axis
            if call.name == "__getitem__":
                position = indexed(call.args[1], axis)
            else:
                dim = call.argument(1, "dim", 0) % len(self.tape.shapes[call.inputs[0]])
                position = None if dim == axis else axis - (dim < axis)
            if position is not None:
                self.labels.update(dict.fromkeys(call.outputs, _Place(position, label.segments)))
            return
        if call.name == "unbind":
            dim, entries = call.argument(1, "dim", 0), list(range(len(call.outputs)))
        elif call.name == "select":
            dim, entries = call.argument(1, "dim"), [call.argument(2, "index")]
        else:
            dim, entries = 0, [call.args[1]]
        if dim not in label.axes or not all(isinstance(entry, int) and entry >= 0 for entry in entries):
            return
        factor = label.axes.index(dim)
        axes = tuple(-1 if axis == dim else axis - (axis > dim) for axis in label.axes)
        for output, entry in zip(call.outputs, entries, strict=True):
            picked = tuple(entry if i == factor else old for i, old in enumerate(label.picked))
            self.labels[output] = replace(label, axes=axes, picked=picked)

    # ------------------------------------------------------------------ result
    def result(self) -> ChannelGroups:
        numbers: dict[int, int] = {}
        groups: list[ChannelGroup] = []

        def numbered(segments: Sequence[Segment]) -> tuple[Segment, ...]:
            found = self.union.expanded(segments)
            for segment in found:
                if segment.group not in numbers:
                    numbers[segment.group] = len(groups)
                    root = segment.group
                    size = self.union.sizes[root]
                    groups.append(
                        ChannelGroup(size, self.union.pinned[root], self.union.blocks[root], self.union.families[root])
                    )
            return tuple(replace(segment, group=numbers[segment.group]) for segment in found)

        weights = []
        for weight in self.weights.values():
            columns = weight.columns
            blocks = {segment.block for segment in self.union.expanded(columns)}
            grouped = weight.groups > 1 and self.union.blocks[self.union.root(columns[0].group)] != weight.groups
            if len(blocks) > 1 or grouped:  # a later use of the channels has another cut
                size = sum(s.channels * s.block for s in columns)
                columns = (replace(self._fresh(size * weight.groups, weight.groups)[0], channels=size),)
            weights.append(replace(weight, columns=numbered(columns), rows=numbered(weight.rows)))
        return ChannelGroups(tuple(groups), tuple(weights))


def _order(call: Call, rank: int) -> list[int] | None:
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
