"""What a model returns: logits, probabilities or labels. Decided once per model, converted in one place."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from art_fingerprint.core.notices import warn_caller

OutputKind = Literal["auto", "logits", "probabilities"]
AnswerKind = Literal["auto", "logits", "probabilities", "labels"]
ANSWER_KINDS: tuple[AnswerKind, ...] = ("auto", "logits", "probabilities", "labels")

_SMALLEST_PROBABILITY = 1e-30


def detect_kind(outputs: Tensor, tolerance: float = 1e-3) -> OutputKind:
    """Return ``"probabilities"`` if all rows of ``(n, K)`` are non-negative and sum to 1, else ``"logits"``."""
    is_probability = bool(((outputs >= 0).all() & ((outputs.sum(1) - 1).abs() <= tolerance).all()).item())
    return "probabilities" if is_probability else "logits"


def only_labels(outputs: Tensor) -> bool:
    """Tell whether rows of ``(n, K)`` show a label and nothing else.

    That is one score for the winner and another for all other classes, the same two in all rows: one-hot rows, or a
    label with a constant confidence. Two scores always have that form for a single sample, so of two classes the
    scores must be 1 and 0.
    """
    high, low = outputs.max(), outputs.min()
    hard = ((outputs == high).sum(1) == 1).all() & ((outputs == low).sum(1) == outputs.shape[1] - 1).all()
    if outputs.shape[1] == 2:
        hard &= (high == 1) & (low == 0)
    return bool(hard.item())


def may_be_probabilities(outputs: Tensor) -> bool:
    """Tell whether rows of ``(n, K)`` stay in [0, 1], as rounded or cut-off probabilities do whose sum is not 1."""
    return bool(((outputs >= 0) & (outputs <= 1)).all().item())


def labels_of(outputs: Tensor) -> Tensor:
    """Return the labels of ``(n, K)``, ``(n,)`` int64; -1, which is no label, for a row that is not finite."""
    return torch.where(torch.isfinite(outputs).all(1), outputs.argmax(1), -1)


def nonfinite_rows(outputs: Tensor) -> int:
    """Return how many rows of ``(n, K)`` hold a NaN or infinite value."""
    if math.isfinite(outputs.sum().item()):  # then every entry is, found out in a single pass
        return 0
    return int((~torch.isfinite(outputs)).any(1).sum())


def to_logits(probabilities: Tensor) -> Tensor:
    """Return ``log(max(p, 1e-30))``: exact for every difference of logits until ``p`` underflows."""
    if probabilities.dtype in (torch.float16, torch.bfloat16):  # where the smallest probability would be 0
        probabilities = probabilities.float()
    return probabilities.clamp_min(_SMALLEST_PROBABILITY).log()


def to_probabilities(logits: Tensor) -> Tensor:
    """Return the softmax over classes, computed in float64."""
    return torch.softmax(logits.double(), dim=1)


def same_space(kind: str, other: str) -> bool:
    """Warn and return ``False`` when one model gives logits and the other probabilities: compare probabilities then."""
    if kind == other:
        return True
    warn_caller(f"The victim's answers are {kind}, the suspect's are {other}: both are compared as probabilities.")
    return False
