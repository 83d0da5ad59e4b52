"""Networks whose channels were put into another order, and rescaled: by loops over what is known of their groups."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from art_fingerprint.core.channel_groups import ChannelGroups, GroupedWeight
from art_fingerprint.core.group_sets import Segment


def random_orders(groups: ChannelGroups, seed: int) -> list[Tensor]:
    """Return for each group a random order that keeps its blocks, those of one family in one order of blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks: dict[int, list[int]] = {}
    orders = []
    for group in groups.groups:
        if group.pinned:
            orders.append(torch.arange(group.size))
            continue
        width = group.size // group.blocks
        drawn = torch.randperm(group.blocks, generator=generator).tolist()
        if group.blocks > 1:
            drawn = blocks.setdefault(group.family, drawn)
        orders.append(torch.cat([b * width + torch.randperm(width, generator=generator) for b in drawn]))
    return orders


def entries(segments: Sequence[Segment], orders: Sequence[Tensor]) -> list[int]:
    """Return the old entry for each new entry of an axis."""
    found, start = [], 0
    for segment in segments:
        for channel in orders[segment.group].tolist():
            found += [start + channel * segment.block + i for i in range(segment.block)]
        start += segment.channels * segment.block
    return found


def reordered(weight: Tensor, axes: GroupedWeight, orders: Sequence[Tensor]) -> Tensor:
    """Return a weight with its rows and columns in the new order."""
    rows = entries(axes.rows, orders)
    if axes.groups == 1:
        return weight[rows][:, entries(axes.columns, orders)] if axes.columns else weight[rows]
    (segment,) = axes.columns
    width = weight.shape[0] // axes.groups
    inputs = orders[segment.group].reshape(axes.groups, segment.channels) % segment.channels
    return torch.stack([weight[old][inputs[new // width]] for new, old in enumerate(rows)])


def shuffled(network: nn.Module, groups: ChannelGroups, seed: int = 0, rescale: bool = False) -> nn.Module:
    """Return a copy with all channels in a random order; vectors of channels (biases, statistics) stay as they are.

    :param rescale: Multiply every filter and every input channel of every weight by a random positive number. With
        that the copy computes something else; its weights are the same up to scale.
    """
    twin = copy.deepcopy(network)
    orders = random_orders(groups, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    parameters = dict(twin.named_parameters())
    with torch.no_grad():
        for axes in groups.weights:
            weight = parameters[axes.name]
            weight.copy_(reordered(weight.clone(), axes, orders))
            if axes.scale:
                parameters[axes.scale].copy_(parameters[axes.scale].clone()[entries(axes.rows, orders)])
            if rescale:
                weight.mul_(torch.exp(torch.randn(len(weight), *[1] * (weight.ndim - 1), generator=generator)))
                block = axes.columns[0].block if axes.columns else 0
                if block:
                    factors = torch.exp(torch.randn(weight.shape[1] // block, generator=generator))
                    weight.mul_(factors.repeat_interleave(block).reshape(1, -1, *[1] * (weight.ndim - 2)))
    return twin


def plain(network: nn.Module) -> nn.Module:
    """Return the network with all vectors of channels constant, so that they have no order; tokens are zero."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith(("token", "pos_embed", "pos_embedding")):
                parameter.zero_()
    return network.double().eval()
