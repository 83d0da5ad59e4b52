"""Channel groups: which axes of which weights hold the same channels, and can only be permuted together.

Where :mod:`.chains` looks for channels that one tensor alone holds, this follows them through everything: a residual
stream is one group that many weights write and read, a concatenation is a list of groups, a grouped convolution ties
the blocks of its input to those of its output, and attention ties the heads of query, key and value.

What is found is for comparing two networks of one shape. Behind an operation that is not known the channels begin anew
as a free group: nothing then ties their order to the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from art_fingerprint.core.chains import CONVOLUTIONS, REDUCTIONS, RESHAPES, SPATIAL, VALUEWISE, Call, Tape, reduced
from art_fingerprint.core.channel_labels import (
    PICKS,
    TRANSPOSITIONS,
    Label,
    Place,
    Scores,
    Split,
    picked,
    reshaped,
    transposed,
)
from art_fingerprint.core.group_sets import GroupSets, Segment

_SUMS = frozenset(
    f"{prefix}{name}{suffix}"
    for name in ("add", "sub", "mul", "div", "truediv")
    for prefix, suffix in (("", ""), ("__", "__"), ("__i", "__"), ("__r", "__"))
)
_KEEPING = VALUEWISE | {"softmax", "log_softmax", "normalize", "roll", "expand", "__neg__", "neg", "to", "type_as"}
_NORMALISATIONS = frozenset(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "prelu"))
_CUTS = frozenset(("chunk", "split", "tensor_split", "split_with_sizes"))
_PRODUCTS = frozenset(("matmul", "__matmul__", "bmm"))


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
    :ivar shape: Its shape.
    :ivar rows: Segments of axis 0.
    :ivar columns: Segments of axis 1; none for a depthwise convolution.
    :ivar groups: Groups of the convolution. With more than one, ``columns`` are the channels of one block.
    :ivar scale: Name of the BatchNorm weight that multiplies the rows before anything else does, or empty.
    """

    name: str
    shape: tuple[int, ...]
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


class _Finder:
    """Carries labels along a tape."""

    def __init__(self, tape: Tape, start: int, shape: torch.Size) -> None:
        self.tape = tape
        self.sets = GroupSets()
        self.weights: dict[str, GroupedWeight] = {}
        self.labels: dict[int, Label] = {start: Place(1, (Segment(self.sets.new(shape[1], True), shape[1]),))}
        self.writers: dict[int, str] = {}  # values that are a weight's output and nothing else

    def visit(self, call: Call) -> None:
        if call.name in CONVOLUTIONS or call.name == "linear":
            self._weight(call)
        elif call.name == "output":
            for value in call.inputs:
                place = self.labels.get(value)
                for segment in self.sets.expanded(place.segments) if isinstance(place, Place) else ():
                    self.sets.pinned[segment.group] = True
        elif call.name == "scaled_dot_product_attention" and len(call.inputs) >= 3:
            query, key, values = (self.labels.get(value) for value in call.inputs[:3])
            self._attend(query, key, values, call.outputs[0])
        elif call.name == "multi_head_attention_forward":
            self._multi_head(call)
        elif call.name in _PRODUCTS and len(call.inputs) == 2:
            one, other = (self.labels.get(value) for value in call.inputs)
            if isinstance(one, Split) and isinstance(other, Split):
                self.labels[call.outputs[0]] = Scores(one, other)
            elif isinstance(one, Scores):
                self._attend(one.query, one.key, other, call.outputs[0])
        elif call.name == "cat":
            self._concatenate(call)
        elif call.name in _SUMS and len(call.inputs) == 2:
            self._sum(call)
        elif len(call.inputs) == 1:
            self._unary(call)

    # ------------------------------------------------------------------ weights
    def _fresh(self, size: int, blocks: int = 1) -> tuple[Segment, ...]:
        return (Segment(self.sets.new(size, blocks=blocks), size),)

    def _weight(self, call: Call) -> None:
        convolution = call.name != "linear"
        weight = call.argument(1, "weight")
        groups = call.argument(6, "groups", 1) if convolution else 1
        output = call.outputs[0]
        # what is no function of the input, a table of positions, say, has no channels that are known
        place = self.labels.get(call.inputs[0]) if call.inputs else None
        shape = tuple(call.argument(0, "input").shape)
        axis = 1 if convolution else len(shape) - 1
        known = (
            isinstance(place, Place) and place.axis == axis and len(shape) == (weight.ndim if convolution else axis + 1)
        )
        columns = place.segments if known and isinstance(place, Place) else self._fresh(weight.shape[1] * groups)
        if groups > 1 and groups == shape[1]:
            plain = all(segment.block == 1 for segment in self.sets.expanded(columns))
            columns = columns if plain else self._fresh(groups)
            rows = tuple(replace(s, block=weight.shape[0] // groups) for s in self.sets.expanded(columns))
            columns = ()
        elif groups > 1:
            columns = self._in_blocks(columns, groups)
            rows = self._fresh(weight.shape[0], groups)
            self.sets.tie(columns[0].group, rows[0].group)
            columns = (replace(columns[0], channels=columns[0].channels // groups),)
        else:
            rows = self._fresh(weight.shape[0])
        self.labels[output] = Place(1 if convolution else len(self.tape.shapes[output]) - 1, rows)
        self._keep(weight, rows, columns, groups if columns else 1, output)

    def _keep(
        self, weight: Tensor, rows: tuple[Segment, ...], columns: tuple[Segment, ...], groups: int, output: int
    ) -> None:
        name = self.tape.name_of(weight)
        if name is None:
            return
        if name in self.weights:  # tied: both uses have one order
            first = self.weights[name]
            self.sets.unify(first.rows, rows)
            self.sets.unify(first.columns, columns)
            self.writers.pop(output, None)
            return
        self.weights[name] = GroupedWeight(name, tuple(weight.shape), rows, columns, groups)
        self.writers[output] = name

    def _in_blocks(self, columns: tuple[Segment, ...], groups: int) -> tuple[Segment, ...]:
        """Return columns of one group that keeps so many blocks together; a free one if the channels have others."""
        flat = self.sets.expanded(columns)
        total = sum(segment.channels * segment.block for segment in flat)
        if len(flat) > 1 or flat[0].block > 1 or self.sets.blocks[flat[0].group] not in (1, groups):
            return self._fresh(total, groups)
        self.sets.blocks[flat[0].group] = groups
        return flat

    # ------------------------------------------------------------------ attention
    def _attend(self, query: Label | None, key: Label | None, value: Label | None, output: int) -> None:
        """Query and key share the order inside their heads, all three share the order of the heads."""
        parts = [self._heads(label) for label in (query, key, value)]
        if any(part is None for part in parts):
            return
        (q, heads), (k, _), (v, values) = parts  # type: ignore[misc]
        if self.sets.sizes[q] != self.sets.sizes[k] or heads != values:
            return
        self.sets.join(q, k)
        for group in (self.sets.root(q), self.sets.root(v)):
            self.sets.blocks[group] = heads
        self.sets.tie(q, self.sets.root(v))
        width = self.sets.sizes[v] // heads
        rank = len(self.tape.shapes[output])
        self.labels[output] = Split(v, (heads, width), (rank - 3, rank - 1), (-1, -1))

    def _heads(self, label: Label | None) -> tuple[int, int] | None:
        """Return the group of queries, keys or values and the number of heads."""
        if not isinstance(label, Split) or len(label.left) != 2:
            return None
        head = label.left[0]
        group = self.sets.root(label.group)
        if len(label.sizes) == 2:
            return group, label.sizes[head]
        if len(label.sizes) != 3 or head != 1:  # (q, k, v) come first
            return None
        size = label.sizes[1] * label.sizes[2]
        pieces = self.sets.cut((Segment(group, self.sets.sizes[group]),), [size] * label.sizes[0])
        return None if pieces is None else (self.sets.root(pieces[label.picked[0]][0].group), label.sizes[1])

    def _multi_head(self, call: Call) -> None:
        """The functional form of ``nn.MultiheadAttention`` with one weight for q, k and v."""
        heads, inside, outside = (
            call.argument(i, n) for i, n in ((4, "num_heads"), (5, "in_proj_weight"), (11, "out_proj_weight"))
        )
        if inside is None or len(set(call.inputs[:3])) != 1:
            return
        width, value, output = inside.shape[1], call.inputs[0], call.outputs[0]
        place = self.labels.get(value)
        last = len(self.tape.shapes[value]) - 1
        stream = place.segments if isinstance(place, Place) and place.axis == last else self._fresh(width)
        (shared,), (values,), rows = self._fresh(width, heads), self._fresh(width, heads), self._fresh(outside.shape[0])
        self.sets.tie(shared.group, values.group)
        self._keep(inside, (shared, shared, values), stream, 1, -1)
        self._keep(outside, rows, (values,), 1, output)
        self.labels[output] = Place(last, rows)

    # ------------------------------------------------------------------ other operations
    def _concatenate(self, call: Call) -> None:
        after = self.tape.shapes[call.outputs[0]]
        axis = call.argument(1, "dim", 0) % len(after)
        places = [(self.labels.get(value), self.tape.shapes[value]) for value in call.inputs]
        known = [place for place, _ in places if isinstance(place, Place)]
        if not known or any(place.axis != known[0].axis for place in known):
            return
        if axis == known[0].axis:
            if sum(shape[axis] for _, shape in places) != after[axis]:
                return
            joint = [p.segments if isinstance(p, Place) else self._fresh(shape[axis]) for p, shape in places]
            self.labels[call.outputs[0]] = Place(axis, tuple(segment for part in joint for segment in part))
        elif all(self.sets.unify(known[0].segments, place.segments) for place in known[1:]):
            self.labels[call.outputs[0]] = known[0]

    def _sum(self, call: Call) -> None:
        """Sums and products: the channels of both sides are the same."""
        after = self.tape.shapes[call.outputs[0]]
        found: list[Label] = []
        for value in call.inputs:
            label, shape = self.labels.get(value), self.tape.shapes[value]
            if isinstance(label, Place):
                axis = label.axis - len(shape) + len(after)
                if shape[label.axis] == after[axis]:
                    found.append(Place(axis, label.segments))
            elif label is not None and shape == after:
                found.append(label)
        if len(found) == 2:
            one, other = found
            if not (isinstance(one, Place) and isinstance(other, Place) and one.axis == other.axis):
                return
            if not self.sets.unify(one.segments, other.segments):
                return
        if found:
            self.labels[call.outputs[0]] = found[0]

    def _unary(self, call: Call) -> None:
        value, output = call.inputs[0], call.outputs[0] if call.outputs else -1
        label = self.labels.get(value)
        if label is None or output < 0:
            return
        before, after = self.tape.shapes[value], self.tape.shapes[output]
        found: Label | None = None
        if call.name in _NORMALISATIONS or call.name in _KEEPING or call.name in _SUMS:
            found = label if after == before or call.name == "expand" else None
            if call.name == "batch_norm" and value in self.writers:
                scale = call.argument(3, "weight")
                name = None if scale is None else self.tape.name_of(scale)
                weight = self.weights[self.writers[value]]
                self.weights[weight.name] = replace(weight, scale=name or "")
        elif call.name in TRANSPOSITIONS:
            found = None if isinstance(label, Scores) else transposed(call, label, len(before))
        elif isinstance(label, Scores):
            return
        elif call.name in RESHAPES or call.name == "unflatten":
            found = reshaped(label, before, after, self.sets.expanded)
        elif call.name in PICKS:
            self.labels.update(zip(call.outputs, picked(call, label, len(before)), strict=False))
            return
        elif isinstance(label, Split):
            return
        elif call.name in SPATIAL:
            found = label if len(after) == len(before) and after[label.axis] == before[label.axis] else None
        elif call.name in REDUCTIONS:
            axis = reduced(call, len(before), label.axis)
            found = None if axis is None else Place(axis, label.segments)
        elif call.name in _CUTS:
            axis = call.argument(2, "dim", 0) % len(before)
            sizes = [self.tape.shapes[part][axis] for part in call.outputs]
            pieces = self.sets.cut(label.segments, sizes) if axis == label.axis else [label.segments] * len(sizes)
            for part, segments in zip(call.outputs, pieces or (), strict=False):
                self.labels[part] = Place(label.axis, segments)
            return
        if found is not None:
            self.labels[output] = found

    # ------------------------------------------------------------------ result
    def result(self) -> ChannelGroups:
        numbers: dict[int, int] = {}
        groups: list[ChannelGroup] = []

        def numbered(segments: Sequence[Segment]) -> tuple[Segment, ...]:
            found = self.sets.expanded(segments)
            for segment in found:
                if segment.group not in numbers:
                    numbers[segment.group] = len(groups)
                    root = segment.group
                    size = self.sets.sizes[root]
                    groups.append(
                        ChannelGroup(size, self.sets.pinned[root], self.sets.blocks[root], self.sets.families[root])
                    )
            return tuple(replace(segment, group=numbers[segment.group]) for segment in found)

        weights = []
        for weight in self.weights.values():
            columns = weight.columns
            blocks = {segment.block for segment in self.sets.expanded(columns)}
            grouped = weight.groups > 1 and self.sets.blocks[self.sets.root(columns[0].group)] != weight.groups
            if len(blocks) > 1 or grouped:  # a later use of the channels has another cut
                size = sum(s.channels * s.block for s in columns)
                columns = (replace(self._fresh(size * weight.groups, weight.groups)[0], channels=size),)
            weights.append(replace(weight, columns=numbered(columns), rows=numbered(weight.rows)))
        return ChannelGroups(tuple(groups), tuple(weights))
