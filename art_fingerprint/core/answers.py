"""What a suspect's answers say about the suspect: that they are all alike, or differ from one call to the next."""

from __future__ import annotations

import torch
from torch import Tensor

# so many answers that are alike are no chance, not even of labels
_FEWEST = 10
# what batches of another size change in a score
_ROUNDING = 1e-5


class AnswerLog:
    """Remembers of all answers whether they are alike, and of the first ones what they were.

    :param repeats: How many samples to remember with their answers, so that they can be asked about again.
    :ivar asked: Samples that are remembered, one tensor for each batch, as they were sent.
    :ivar answered: Their answers, ``(k, K)`` each.
    """

    def __init__(self, repeats: int = 0) -> None:
        self._left = repeats
        self.asked: list[Tensor] = []
        self.answered: list[Tensor] = []
        self._first: Tensor | None = None
        self._alike = True
        self._count = 0

    def note(self, x: Tensor, answer: Tensor) -> None:
        """Take down a batch.

        :param x: Samples ``(n, ...)``.
        :param answer: One row for each, ``(n, K)``.
        """
        if self._left:
            kept = min(self._left, len(x))
            self.asked.append(x[:kept].detach().cpu().clone())
            self.answered.append(answer[:kept].detach().cpu().clone())
            self._left -= kept
        if self._alike and len(answer):
            first = answer[:1].detach().clone() if self._first is None else self._first
            self._first = first
            self._alike = bool(((answer - first).abs() <= _ROUNDING * first.abs().max()).all())  # never true of NaN
            self._count += len(answer)

    @property
    def constant(self) -> str:
        """Why nothing follows from the answers if all of them, ten or more, are alike, else empty."""
        if not self._alike or self._count < _FEWEST:
            return ""
        return f"The suspect gave one and the same answer to all {self._count} probes, which says nothing about it."


def differing(first: Tensor, again: Tensor) -> int:
    """Return how many rows of ``(n, K)`` differ by more than rounding, 0.1 % of the largest score."""
    scale = first.abs().amax(1, keepdim=True).clamp_min(1e-6)
    apart = ((first - again).abs() > 1e-3 * scale).any(1) | ~torch.isfinite(again).all(1)
    return int((apart & torch.isfinite(first).all(1)).sum())
