"""Matching the channels of two networks of one shape; weights have the form of :mod:`.weight_sketch`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from art_fingerprint.core.channel_groups import ChannelGroups, GroupedWeight
from art_fingerprint.core.group_sets import Segment
from art_fingerprint.verifiers.weight_sketch import Layer

_MAX_SWEEPS = 10
_CLEAR = 6.0  # standard deviations


Orders = Mapping[int, np.ndarray]


def column_order(axes: GroupedWeight, orders: Orders) -> np.ndarray:
    """Return for each of the victim's G x C input channels the suspect's, counted in its block: ``(G, C)``."""
    if not axes.columns:
        return np.zeros((1, 1), np.int64)
    if axes.groups > 1:
        (segment,) = axes.columns
        return (orders[segment.group] % segment.channels).reshape(axes.groups, segment.channels)
    return _joined(axes.columns, orders)[None]


def row_order(axes: GroupedWeight, orders: Orders) -> np.ndarray:
    """Return for each of the victim's filters the suspect's, over all groups, ``(G * R,)``."""
    return _joined(axes.rows, orders)


def _joined(segments: Sequence[Segment], orders: Orders) -> np.ndarray:
    parts, start = [], 0
    for segment in segments:
        parts.append(orders[segment.group] + start)
        start += segment.channels
    return np.concatenate(parts)


def block_order(axes: GroupedWeight, orders: Orders) -> np.ndarray:
    """Return for each group of the victim's convolution the suspect's, ``(G,)``."""
    if axes.groups == 1:
        return np.zeros(1, np.int64)
    return orders[axes.columns[0].group][:: axes.columns[0].channels] // axes.columns[0].channels


def projected(layer: Layer, suspect: Tensor, orders: Orders, part: slice) -> Tensor:
    """Return the sketch of the suspect's filters with input channels in the victim's order, ``(G, R, m)``.

    Block g holds the filters of the suspect's block that is matched to the victim's block g, in the suspect's order.
    """
    count, _, channels, entries = suspect.shape
    basis = layer.basis[:, part].reshape(channels, entries, -1)
    columns = column_order(layer.axes, orders)
    blocks = block_order(layer.axes, orders)
    found = []
    for g in range(count):
        moved = torch.empty_like(basis)
        moved[torch.from_numpy(columns[g])] = basis
        found.append(suspect[blocks[g]].flatten(1) @ moved.flatten(0, 1))
    return torch.stack(found)


def matched_filters(layer: Layer, suspect: Tensor, orders: Orders, part: slice) -> Tensor:
    """Return the sketch of the suspect's filters in the victim's order, inputs and filters both: ``(G R, m)``."""
    found = projected(layer, suspect, orders, part)
    width = found.shape[1]
    position = np.arange(len(found) * width) // width * width + row_order(layer.axes, orders) % width
    return found.flatten(0, 1)[torch.from_numpy(position)]


def row_gains(layer: Layer, suspect: Tensor, groups: ChannelGroups, orders: Orders, group: int) -> Tensor:
    """Return what pairs (victim's channel, suspect's) of a group add to the objective as filters: ``(n, n)``."""
    size = groups.groups[group].size
    gains = torch.zeros(size, size)
    ours = layer.sketch[:, :, : layer.matching]
    theirs = projected(layer, suspect, orders, slice(0, layer.matching))
    if layer.axes.groups > 1:
        for g, other in enumerate(block_order(layer.axes, orders)):
            _tile(gains, g, other, ours.shape[1]).copy_(ours[g] @ theirs[g].T)
    else:
        for start, stop in _spans(layer.axes.rows, group):
            gains += ours[0, start:stop] @ theirs[0, start:stop].T
    return gains * layer.size


def column_gains(layer: Layer, suspect: Tensor, groups: ChannelGroups, orders: Orders, group: int) -> Tensor:
    """Return what pairs (victim's channel, suspect's) of a group add to the objective as inputs: ``(n, n)``."""
    size = groups.groups[group].size
    gains = torch.zeros(size, size)
    count, width, channels, entries = suspect.shape
    basis = layer.basis[:, : layer.matching].reshape(channels, -1)  # (C, E m)
    rows = torch.from_numpy(row_order(layer.axes, orders) % width).reshape(count, width)
    for g, other in enumerate(block_order(layer.axes, orders)):
        moved = torch.empty(width, layer.matching)
        moved[rows[g]] = layer.sketch[g, :, : layer.matching]
        mixed = (moved.T @ suspect[other].flatten(1)).reshape(-1, channels, entries)  # of the suspect's channels
        found = mixed.permute(2, 0, 1).flatten(0, 1)  # (E m, C)
        if layer.axes.groups > 1:
            _tile(gains, g, other, channels).copy_(basis @ found)
        else:
            for start, stop in _spans(layer.axes.columns, group):
                gains += basis[start:stop] @ found[:, start:stop]
    return gains * layer.size


def _tile(gains: Tensor, row: int, column: int, width: int) -> Tensor:
    return gains[row * width : (row + 1) * width, column * width : (column + 1) * width]


def _spans(segments: Sequence[Segment], group: int) -> list[tuple[int, int]]:
    """Return where the channels of a group begin and end on an axis; it may be there more than once."""
    found, start = [], 0
    for segment in segments:
        stop = start + segment.channels
        if segment.group == group:
            found.append((start, stop))
        start = stop
    return found


def best_order(gains: np.ndarray, blocks: int = 1, block_order: np.ndarray | None = None) -> np.ndarray:
    """Return the permutation of largest total gain, for each victim's channel the suspect's, ``(n,)``.

    With blocks, the best of those that map blocks to blocks: the best order inside every pair of blocks, then the best
    pairs.

    :param gains: ``(n, n)``.
    :param block_order: Pairs of blocks that are given already.
    """
    if blocks == 1:
        return np.asarray(linear_sum_assignment(gains, maximize=True)[1])
    width = len(gains) // blocks
    tiles = gains.reshape(blocks, width, blocks, width).transpose(0, 2, 1, 3)
    inner: dict[tuple[int, int], np.ndarray] = {}
    if block_order is None:
        totals = np.zeros((blocks, blocks))
        for one in range(blocks):
            for other in range(blocks):
                rows, columns = linear_sum_assignment(tiles[one, other], maximize=True)
                inner[one, other] = columns
                totals[one, other] = tiles[one, other][rows, columns].sum()
        block_order = np.asarray(linear_sum_assignment(totals, maximize=True)[1])
    else:
        for one, other in enumerate(block_order):
            inner[one, int(other)] = linear_sum_assignment(tiles[one, other], maximize=True)[1]
    return np.concatenate([inner[one, int(other)] + other * width for one, other in enumerate(block_order)])


def match(layers: Sequence[Layer], suspects: Sequence[Tensor], groups: ChannelGroups) -> dict[int, np.ndarray]:
    """Match the channels of every group: a first pass, then coordinate descent.

    The objective is the sum over layers of n <Z, P>: Z the victim's sketch for matching, P that of the suspect's
    filters in the victim's order, n the entries of a filter. Up to a factor it is the log-likelihood ratio of matched
    against unrelated filters, if all have the same share of noise. It starts from the order as it is, if that is
    clearly better than chance. Otherwise a first pass matches each group by the filters whose other side is matched
    already ("layer by layer"), once from the image on and once from the logits back; the better one counts. Each later
    step is the optimal assignment of one group given all others, by all that write and all that read it, until nothing
    changes or after ten sweeps. As in weight matching for model merging (Ainsworth et al., "Git Re-Basin", ICLR 2023,
    section 3.2), on normalised sketches.

    :param layers: The victim's.
    :param suspects: Balanced filters of the suspect, in the same order.
    :return: Group to order: the suspect's channel for each of the victim's.
    """
    return _Matching(layers, suspects, groups).run()


class _Matching:
    """State of :func:`match`."""

    def __init__(self, layers: Sequence[Layer], suspects: Sequence[Tensor], groups: ChannelGroups) -> None:
        self.pairs = list(zip(layers, suspects, strict=True))
        self.groups = groups
        self.writers: dict[int, list[int]] = {}
        self.readers: dict[int, list[int]] = {}
        for index, layer in enumerate(layers):
            for side, segments in ((self.writers, layer.axes.rows), (self.readers, layer.axes.columns)):
                for group in dict.fromkeys(segment.group for segment in segments):
                    side.setdefault(group, []).append(index)
        present = list(dict.fromkeys((*self.writers, *self.readers)))
        self.free = [group for group in present if not groups.groups[group].pinned]
        self.pinned = [group for group in present if groups.groups[group].pinned]
        self.orders: dict[int, np.ndarray] = {}
        self.blocks: dict[int, np.ndarray] = {}  # how the blocks of a family are paired, once that is known
        self.settled: set[int] = set()

    def run(self) -> dict[int, np.ndarray]:
        self._begin((*self.pinned, *self.free))
        # its standard deviation for unrelated filters is that of so many products of unit vectors
        noise = math.sqrt(
            sum(layer.sketch.shape[0] * layer.sketch.shape[1] * layer.matching for layer, _ in self.pairs)
        )
        if self._objective() <= _CLEAR * noise:
            starts = []
            for order in (self.free, self.free[::-1]):
                self._begin(self.pinned)
                for group in order:
                    self._improve(group, first=True)
                    self.settled.add(group)
                starts.append((self._objective(), self.orders, self.blocks))
            _, self.orders, self.blocks = max(starts, key=lambda start: start[0])
        waiting = set(self.free)
        for _ in range(_MAX_SWEEPS):
            for group in self.free:
                if group in waiting:
                    waiting.discard(group)
                    if self._improve(group, first=False):
                        waiting |= self._neighbours(group)
            if not waiting:
                break
        return self.orders

    def _begin(self, settled: Sequence[int]) -> None:
        """Put all groups in the order as it is, of which those that are settled count as known."""
        facts = self.groups.groups
        self.orders = {group: np.arange(facts[group].size) for group in (*self.pinned, *self.free)}
        self.blocks = {facts[group].family: np.arange(facts[group].blocks) for group in settled}
        self.settled = set(settled)

    def _objective(self) -> float:
        total = 0.0
        for layer, suspect in self.pairs:
            part = slice(0, layer.matching)
            found = matched_filters(layer, suspect, self.orders, part)
            total += layer.size * float((layer.sketch[:, :, part].flatten(0, 1) * found).sum())
        return total

    def _neighbours(self, group: int) -> set[int]:
        """Return the free groups whose gains depend on a group's order."""
        layers = {*self.writers.get(group, ()), *self.readers.get(group, ())}
        found = {s.group for i in layers for s in (*self.pairs[i][0].axes.rows, *self.pairs[i][0].axes.columns)}
        return (found - {group}) & set(self.free)

    def _gains(self, group: int, first: bool) -> np.ndarray | None:
        total: Tensor | None = None
        for side, gains in ((self.writers, row_gains), (self.readers, column_gains)):
            for index in side.get(group, ()):
                axes = self.pairs[index][0].axes
                others = axes.columns if side is self.writers else axes.rows
                if not first or all(segment.group in self.settled for segment in others):
                    found = gains(*self.pairs[index], self.groups, self.orders, group)
                    total = found if total is None else total.add_(found)
        return None if total is None else total.numpy()

    def _improve(self, group: int, first: bool) -> bool:
        """Give a group its best order and tell whether that is another one."""
        gains = self._gains(group, first)
        if gains is None:
            return False
        facts = self.groups.groups[group]
        order = best_order(gains, facts.blocks, self.blocks.get(facts.family))
        if facts.blocks > 1:
            width = facts.size // facts.blocks
            self.blocks.setdefault(facts.family, order[::width] // width)
        rows, before = np.arange(facts.size), self.orders[group]
        gain, old = (float(gains[rows, columns].sum(dtype=np.float64)) for columns in (order, before))
        if not first and gain <= old + 1e-5 * abs(old):  # a tie, up to rounding
            return False
        self.orders[group] = order
        return not np.array_equal(order, before)
