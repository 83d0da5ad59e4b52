"""Channel chains: which weights read and write the channels of one tensor inside a network.

The network runs once on an example while every torch function it calls is written down with the tensors that go in and
come out. What the pass does is seen as it is done, for inputs of this shape: control flow, in-place operations,
functional calls and subclasses of layers need no care of their own, and nothing has to be traceable.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain as joined
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.taps import get_layer

# Functions of one value at a time, by what they make of zero. In-place twins (relu_) have the same name here.
_ZERO_KEEPING = frozenset(
    ("relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "tanh")
    + (
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "feature_dropout",
        "contiguous",
        "clone",
        "detach",
        "float",
        "abs",
    )
)
_ZERO_MOVING = frozenset(("sigmoid", "hardsigmoid", "softplus", "logsigmoid", "exp", "clamp"))
VALUEWISE = _ZERO_KEEPING | _ZERO_MOVING
SPATIAL = frozenset(
    f"{kind}_pool{rank}d" for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max") for rank in (1, 2, 3)
) | {"interpolate", "pad"}
RESHAPES = frozenset(("flatten", "view", "reshape", "squeeze"))
REDUCTIONS = frozenset(("mean", "sum", "amax"))
CONVOLUTIONS = frozenset(("conv1d", "conv2d", "conv3d"))
# What may be asked of a tensor without reading its values.
_QUESTIONS = frozenset(
    ("__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous")
    + ("is_floating_point", "is_complex", "get_device", "element_size", "data_ptr")
)


@dataclass(frozen=True)
class ChannelSlice:
    """Where a weight or buffer holds the channels: entries ``c * block`` to ``(c + 1) * block`` of an axis belong to c.

    :ivar name: Dotted name in the network.
    :ivar role: ``"weight"``, ``"bias"``, ``"running_mean"`` or ``"running_var"``.
    :ivar axis: Its axis.
    :ivar block: Entries of one channel; more than one behind a flattened map.
    """

    name: str
    role: str
    axis: int
    block: int = 1

    def entries(self, channels: Tensor) -> Tensor:
        """Return the entries of some channels, in their order, ``(m,) -> (m * block,)``."""
        return (channels[:, None] * self.block + torch.arange(self.block, device=channels.device)).flatten()


@dataclass(frozen=True)
class ChannelChain:
    """One tensor's channels: who writes them, what they pass, and who reads them all.

    A change of the channels (a permutation, say) that is made in ``written`` and ``carried`` and undone in ``read``
    leaves the network's function as it is, if ``operations`` allow it.

    :ivar source: Weight that writes the channels, or the layer where the chain was asked to begin.
    :ivar channels: Their number.
    :ivar written: Weight and bias that write them; none for a chain that begins at a layer.
    :ivar carried: Entries per channel on the way: normalisations, depthwise convolutions, PReLU.
    :ivar read: Weights that mix the channels and end the chain.
    :ivar operations: Names of the torch functions on the way, those of ``carried`` among them.
    """

    source: str
    channels: int
    written: tuple[ChannelSlice, ...]
    carried: tuple[ChannelSlice, ...]
    read: tuple[ChannelSlice, ...]
    operations: tuple[str, ...]

    @property
    def keeps_zero(self) -> bool:
        """Whether a channel that is zero where the chain begins is zero for all that read it."""
        return not self.carried and not set(self.operations) & (_ZERO_MOVING | set(_CARRIERS) - {"prelu"})


@torch.no_grad()
def find_chains(network: nn.Module, example: Tensor) -> list[ChannelChain]:
    """Return every chain that begins at a convolution or Linear layer, in order of execution.

    A chain is left out where the channels go anywhere else than through channelwise operations into convolutions and
    Linear layers: into a sum or a concatenation, out of the network, through an operation that is not known. So is one
    whose weights are used twice, that begins or ends at a grouped convolution (depthwise ones are passed), or of one
    channel. Cost: one forward pass of one sample, all its activations in memory.

    :param network: The network; it is run in evaluation mode.
    :param example: Preprocessed inputs ``(B, ...)``.
    """
    tape = Tape(network)
    tape.record(network, example[:1])
    chains = []
    for call in tape.calls:
        begin = tape.writer(call)
        if begin is not None:
            chain = tape.follow(*begin)
            if chain is not None and chain.channels > 1:
                chains.append(chain)
    return chains


@torch.no_grad()
def chain_from(network: nn.Module, layer: str, example: Tensor) -> tuple[ChannelChain, int] | None:
    """Return the chain that begins at a layer's output and the output's channel axis, or ``None`` if there is none.

    The axis is 1, and the last one for tokens ``(B, N, D)``; where that leads nowhere, the other of the two. Cost: as
    :func:`find_chains`.

    :param layer: Dotted name of a layer that is called once and returns one tensor.
    :raises LayerNotFoundError: no such layer.
    """
    tape = Tape(network)
    seen: list[Tensor] = []
    marks: list[int] = []

    def mark(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.append(output)
            marks.append(tape.value(output))

    handle = get_layer(network, layer).register_forward_hook(mark)
    try:
        tape.record(network, example[:1])
    finally:
        handle.remove()
    if len(marks) != 1 or len(tape.shapes[marks[0]]) < 2:
        return None
    shape = tape.shapes[marks[0]]
    for axis in (len(shape) - 1, 1) if len(shape) == 3 else (1, len(shape) - 1):
        chain = tape.follow(layer, marks[0], shape[axis], axis, ())
        if chain is not None:
            return chain, axis
    return None


@torch.no_grad()
def permute_chain(network: nn.Module, chain: ChannelChain, order: Tensor) -> None:
    """Reorder a chain's channels in place: the new channel c is the old ``order[c]``. The function stays the same.

    :param order: A permutation of ``0..channels-1``, ``(channels,)`` int64.
    """
    tensors = dict(joined(network.named_parameters(), network.named_buffers()))
    for part in (*chain.written, *chain.carried, *chain.read):
        tensor = tensors[part.name]
        tensor.copy_(tensor.index_select(part.axis, part.entries(order.to(tensor.device))))


@dataclass(frozen=True)
class Call:
    """One call of a torch function. Holds its tensors, so that none of their ids is given away a second time."""

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    inputs: list[int]
    outputs: list[int]
    held: object

    def argument(self, position: int, keyword: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(keyword, default)


@dataclass(frozen=True)
class _Place:
    """Where a tensor holds the channels that are followed."""

    axis: int
    block: int
    channels: int


class Tape(TorchFunctionMode):
    """Writes down a forward pass: values (versions of tensors), and the calls that make and use them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        owned = joined(network.named_parameters(), network.named_buffers())
        self._names = {id(tensor): name for name, tensor in owned}
        self._values: dict[int, int] = {}
        self._reads: Counter[str] = Counter()
        self._users: dict[int, list[Call]] = defaultdict(list)
        self.shapes: list[torch.Size] = []
        self.calls: list[Call] = []

    def record(self, network: nn.Module, example: Tensor) -> None:
        with evaluating(network):
            with self:
                output = network(example)
            self._note("output", (output,), {}, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        self._note(name if name.endswith("__") else name.removesuffix("_"), args, kwargs or {}, result)
        return result

    def _note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: object) -> None:
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in _QUESTIONS and not found:
            return
        given = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
        self._reads.update(self._names[id(tensor)] for tensor in given if id(tensor) in self._names)
        inputs = [self.value(tensor) for tensor in given if id(tensor) not in self._names]
        for tensor in found:  # an in-place operation returns its input: a new version of it
            self._values[id(tensor)] = len(self.shapes)
            self.shapes.append(tensor.shape)
        call = Call(name, args, kwargs, inputs, [self._values[id(tensor)] for tensor in found], result)
        self.calls.append(call)
        for value in set(inputs):
            self._users[value].append(call)

    def value(self, tensor: Tensor) -> int:
        if id(tensor) not in self._values:
            self._values[id(tensor)] = len(self.shapes)
            self.shapes.append(tensor.shape)
        return self._values[id(tensor)]

    def name_of(self, tensor: Tensor) -> str | None:
        """Return the name of a tensor that the network owns."""
        return self._names.get(id(tensor))

    # ------------------------------------------------------------------ chains
    def writer(self, call: Call) -> tuple[str, int, int, int, tuple[ChannelSlice, ...]] | None:
        """Return (weight, value, channels, axis, slices) of a call that may begin a chain."""
        convolution = call.name in CONVOLUTIONS
        if not convolution and call.name != "linear":
            return None
        weight = call.argument(1, "weight")
        slices = self._slices(("weight", weight, 0), ("bias", call.argument(2, "bias"), 0))
        if slices is None or (convolution and call.argument(6, "groups", 1) != 1):
            return None
        value = call.outputs[0]
        return slices[0].name, value, weight.shape[0], 1 if convolution else len(self.shapes[value]) - 1, slices

    def follow(
        self, source: str, value: int, channels: int, axis: int, written: tuple[ChannelSlice, ...]
    ) -> ChannelChain | None:
        """Walk from a value to all that use it; ``None`` if one of them is no part of a chain."""
        carried: list[ChannelSlice] = []
        read: list[ChannelSlice] = []
        operations: list[str] = []
        waiting = [(value, _Place(axis, 1, channels))]
        while waiting:
            value, place = waiting.pop()
            for call in self._users[value]:
                if call.name in CONVOLUTIONS or call.name == "linear":
                    reader = self._reader(call, value, place)
                    if reader is not None:
                        read.append(reader)
                        continue
                passed = self._passed(call, value, place)
                if passed is None:
                    return None
                place_after, slices = passed
                carried += slices
                operations.append(call.name)
                waiting += [(output, place_after) for output in call.outputs]
        slices = (*written, *carried, *read)
        if not read or any(self._reads[part.name] != 1 for part in slices):
            return None
        return ChannelChain(source, channels, written, tuple(carried), tuple(read), tuple(operations))

    def _slices(self, *wanted: tuple[str, Tensor | None, int], block: int = 1) -> tuple[ChannelSlice, ...] | None:
        """Return slices of the network's own tensors; ``None`` if the first is missing or one is computed."""
        given = [(role, tensor, axis) for role, tensor, axis in wanted if tensor is not None]
        if wanted[0][1] is None or any(id(tensor) not in self._names for _, tensor, _ in given):
            return None
        return tuple(ChannelSlice(self._names[id(tensor)], role, axis, block) for role, tensor, axis in given)

    def _reader(self, call: Call, value: int, place: _Place) -> ChannelSlice | None:
        """Return the slice of a weight that mixes all channels of a value."""
        weight = call.argument(1, "weight")
        if call.inputs != [value] or id(weight) not in self._names:
            return None
        if call.name == "linear":
            fits = place.axis == len(self.shapes[value]) - 1
        else:
            fits = place.axis == 1 and place.block == 1 and call.argument(6, "groups", 1) == 1
        return ChannelSlice(self._names[id(weight)], "weight", 1, place.block) if fits else None

    def _passed(self, call: Call, value: int, place: _Place) -> tuple[_Place, tuple[ChannelSlice, ...]] | None:
        """Return where the channels are after a call, and what the call holds for each of them."""
        if call.inputs != [value] or len(call.outputs) != 1:
            return None
        before, after = self.shapes[value], self.shapes[call.outputs[0]]
        if call.name in _CARRIERS:
            slices = _CARRIERS[call.name](self, call, before, place)
            return None if slices is None else (place, slices)
        axis: int | None = None
        block = place.block
        if call.name in VALUEWISE:
            axis = place.axis
        elif call.name in SPATIAL:
            axis = 1 if place.axis == 1 and len(after) == len(before) and after[:2] == before[:2] else None
        elif call.name in RESHAPES:
            # Row-major, so with everything before the axis as it was, a channel stays one run of entries.
            kept = len(after) > place.axis and after[: place.axis] == before[: place.axis]
            if kept and after[place.axis] % place.channels == 0:
                axis, block = place.axis, after[place.axis] // place.channels
        elif call.name in REDUCTIONS:
            axis = reduced(call, len(before), place.axis)
        elif call.name == "__getitem__":
            axis = indexed(call.args[1], place.axis)
        return None if axis is None else (_Place(axis, block, place.channels), ())

    def depthwise(self, call: Call, shape: torch.Size, place: _Place) -> tuple[ChannelSlice, ...] | None:
        weight = call.argument(1, "weight")
        if place != _Place(1, 1, shape[1]) or not call.argument(6, "groups", 1) == shape[1] == weight.shape[0]:
            return None
        return self._slices(("weight", weight, 0), ("bias", call.argument(2, "bias"), 0))

    def batch_norm(self, call: Call, shape: torch.Size, place: _Place) -> tuple[ChannelSlice, ...] | None:
        if place.axis != 1:
            return None
        roles = ("running_mean", "running_var", "weight", "bias")
        held = [(role, call.argument(i, role), 0) for i, role in enumerate(roles, 1)]
        held = [entry for entry in held if entry[1] is not None]
        return self._slices(*held, block=place.block) if held else ()

    def layer_norm(self, call: Call, shape: torch.Size, place: _Place) -> tuple[ChannelSlice, ...] | None:
        if place.axis != len(shape) - 1 or len(call.argument(1, "normalized_shape")) != 1:
            return None
        held = [(role, call.argument(i, role), 0) for i, role in enumerate(("weight", "bias"), 2)]
        held = [entry for entry in held if entry[1] is not None]
        return self._slices(*held, block=place.block) if held else ()

    def prelu(self, call: Call, shape: torch.Size, place: _Place) -> tuple[ChannelSlice, ...] | None:
        weight = call.argument(1, "weight")
        if weight.numel() == 1:
            return ()
        return self._slices(("weight", weight, 0), block=place.block) if place.axis == 1 else None


_Carrier = Callable[[Tape, Call, torch.Size, _Place], tuple[ChannelSlice, ...] | None]
_CARRIERS: Mapping[str, _Carrier] = {
    **dict.fromkeys(CONVOLUTIONS, Tape.depthwise),
    "batch_norm": Tape.batch_norm,
    "layer_norm": Tape.layer_norm,
    "prelu": Tape.prelu,
}


def reduced(call: Call, rank: int, axis: int) -> int | None:
    """Return the axis after a reduction over others."""
    dims = call.argument(1, "dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, tuple | list) or not all(isinstance(dim, int) for dim in dims):
        return None
    gone = {dim % rank for dim in dims}
    if axis in gone:
        return None
    return axis if call.argument(2, "keepdim", False) else axis - sum(dim < axis for dim in gone)


def indexed(index: object, axis: int) -> int | None:
    """Return the axis after plain indexing of the axes before it."""
    items = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(item, int | slice) for item in items) or any(item != slice(None) for item in items[axis:]):
        return None
    return axis - sum(isinstance(item, int) for item in items[:axis])
