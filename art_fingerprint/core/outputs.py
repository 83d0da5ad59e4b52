"""What a model returns: logits or probabilities. Decided once per model, converted in one place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

OutputKind = Literal["auto", "logits", "probabilities"]

_SMALLEST_PROBABILITY = 1e-30


def detect_kind(outputs: Tensor, tolerance: float = 1e-3) -> OutputKind:
    """Return ``"probabilities"`` if all rows of ``(n, K)`` are non-negative and sum to 1, else ``"logits"``."""
    is_probability = bool(((outputs >= 0).all() & ((outputs.sum(1) - 1).abs() <= tolerance).all()).item())
    return "probabilities" if is_probability else "logits"


def nonfinite_rows(outputs: Tensor) -> int:
    """Return how many rows of ``(n, K)`` hold a NaN or infinite value."""
    return int((~torch.isfinite(outputs)).any(1).sum())


def to_logits(probabilities: Tensor) -> Tensor:
    """Return ``log(max(p, 1e-30))``: exact for every difference of logits until ``p`` underflows."""
    return probabilities.clamp_min(_SMALLEST_PROBABILITY).log()


def to_probabilities(logits: Tensor) -> Tensor:
    """Return the softmax over classes, computed in float64."""
    return torch.softmax(logits.double(), dim=1)
