"""Sets of channel groups: groups that turn out to be one, groups that turn out to be several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Segment:
    """Consecutive entries of an axis that hold a group's channels, ``block`` entries for each of them."""

    group: int
    channels: int
    block: int = 1


class GroupSets:
    """Union-find over groups. A group of :attr:`parts` was cut into those; only its parts are real."""

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
        """Cut an axis into pieces; a single group is cut into groups of its own. ``None`` if impossible."""
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
