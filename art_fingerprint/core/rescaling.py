"""Positive rescaling of the channels of a chain: the weights change, the network's function does not."""

from __future__ import annotations

from itertools import chain as joined

import torch
from torch import Tensor, nn

from art_fingerprint.core.chains import ChannelChain, ChannelSlice

# Functions f with f(s x) = s f(x) for every s > 0, channel by channel. Padding is not among them: with a constant.
_HOMOGENEOUS = (
    {"relu", "leaky_relu", "prelu", "abs", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"}
    | {"contiguous", "clone", "detach", "float", "flatten", "view", "reshape", "squeeze", "__getitem__"}
    | {"mean", "sum", "amax", "interpolate"}
    | {f"{kind}_pool{rank}d" for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max") for rank in (1, 2, 3)}
)
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}  # depthwise ones, within a chain
_NORM_ROLES = ("running_mean", "running_var", "weight", "bias")


def log_uniform(count: int, most: float, generator: torch.Generator) -> Tensor:
    """Return factors whose logarithms are uniform between those of ``1 / most`` and ``most``, ``(count,)`` float64."""
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.as_tensor(most, dtype=torch.float64) ** (2 * drawn - 1)


def can_rescale(network: nn.Module, chain: ChannelChain) -> bool:
    """Tell whether a chain's channels can be scaled: all its operations are positively homogeneous, or BatchNorm with
    running statistics and factors of its own.
    """
    return _by_call(network, chain) is not None


@torch.no_grad()
def rescale_chain(network: nn.Module, chain: ChannelChain, factors: Tensor) -> None:
    """Multiply every value of a chain by its channel's factor s, in place, and undo it in the weights that read it.

    Writers, and biases on the way: times s. BatchNorm with mean m, variance v, factors w, b: s m, s^2 v, s b, and
    w sqrt((s^2 v + eps) / (v + eps)), for eps does not scale. Depthwise filters and slopes of PReLU stay. Readers: over
    s. The network answers the same up to rounding, in evaluation mode; in training mode up to BatchNorm's eps, too.

    :param chain: One that :func:`can_rescale` accepts.
    :param factors: Positive, ``(channels,)`` float64.
    :raises ValueError: it does not.
    """
    tensors = dict(joined(network.named_parameters(), network.named_buffers()))

    def multiply(part: ChannelSlice, by: Tensor) -> None:
        tensor = tensors[part.name]
        shape = [1] * tensor.ndim
        shape[part.axis] = -1
        spread = by.to(tensor.device).repeat_interleave(part.block).view(shape)
        tensor.copy_((tensor.double() * spread).to(tensor.dtype))

    calls = _by_call(network, chain)
    if calls is None:
        raise ValueError(f"The chain that begins at {chain.source} cannot be rescaled.")
    for part in chain.written:
        multiply(part, factors)
    for part in chain.read:
        multiply(part, 1 / factors)
    for eps, parts in calls:
        held = {part.role: part for part in parts}
        if eps is None:
            if "bias" in held:
                multiply(held["bias"], factors)
            continue
        variance = tensors[held["running_var"].name].double().cpu()
        each = factors.repeat_interleave(held["running_var"].block)
        ratio = ((each.square() * variance + eps) / (variance + eps)).sqrt()
        weight = tensors[held["weight"].name]
        weight.copy_((weight.double() * ratio.to(weight.device)).to(weight.dtype))
        multiply(held["running_mean"], factors)
        multiply(held["running_var"], factors.square())
        multiply(held["bias"], factors)


def _by_call(network: nn.Module, chain: ChannelChain) -> list[tuple[float | None, list[ChannelSlice]]] | None:
    """Return what each call on the way holds, and its eps if it is a BatchNorm; ``None`` if one cannot be rescaled."""
    if not chain.written or not set(chain.operations) <= _HOMOGENEOUS | _CONVOLUTIONS | {"batch_norm"}:
        return None
    modules = dict(network.named_modules())
    tensors = dict(network.named_parameters())
    waiting = list(chain.carried)
    calls: list[tuple[float | None, list[ChannelSlice]]] = []
    for operation in chain.operations:
        if operation == "batch_norm":
            parts, waiting = waiting[: len(_NORM_ROLES)], waiting[len(_NORM_ROLES) :]
            owners = [modules.get(part.name.rpartition(".")[0]) for part in parts]
            norm = owners[0] if owners else None
            whole = tuple(part.role for part in parts) == _NORM_ROLES and all(owner is norm for owner in owners)
            if not whole or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                return None
            calls.append((norm.eps, parts))
        elif operation in _CONVOLUTIONS:
            end = 1 + sum(part.role == "bias" for part in waiting[1:2])
            calls.append((None, waiting[:end]))
            waiting = waiting[end:]
        elif operation == "prelu" and waiting and waiting[0].role == "weight":
            # one slope for all channels is no part of the chain; what waits is then a depthwise filter
            waiting = waiting[tensors[waiting[0].name].ndim == 1 :]
    return None if waiting else calls
