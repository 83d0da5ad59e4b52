"""From scores to decisions: thresholds and p-values from independently trained reference models.

Every rule is written for distances and mirrored for similarities. Source: RemovalNet section 4.1.4 (``extreme``),
DeepJudge (``t-mean``), ``scaled-mean`` describes the thresholds that RemovalNet printed, ``t-pred`` is the prediction
bound for one more independent model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from art_fingerprint.exceptions import CalibrationError

Direction = Literal["distance", "similarity"]
Rule = Literal["extreme", "t-mean", "t-pred", "scaled-mean"]
RULES: tuple[Rule, ...] = ("extreme", "t-mean", "t-pred", "scaled-mean")


def threshold(
    references: Sequence[float],
    direction: Direction,
    rule: Rule = "extreme",
    alpha: float = 1.0,
    confidence: float = 0.99,
) -> float:
    """Return the decision threshold for one metric.

    With mean ``m``, standard deviation ``s`` (n-1) and Student quantile ``t`` over ``R`` references, for distances:
    ``extreme`` = min r; ``t-mean`` = alpha (m - t s / sqrt(R)); ``t-pred`` = alpha (m - t s sqrt(1 + 1/R));
    ``scaled-mean`` = alpha m. For similarities ``extreme`` = max r, and the others are relaxed towards 1:
    1 - alpha (1 - bound).

    :param references: Metric values between the victim and independently trained models.
    :param direction: ``"distance"`` (low means derived) or ``"similarity"`` (high means derived).
    :param rule: One of :data:`RULES`.
    :param alpha: Relaxation factor in (0, 1].
    :param confidence: One-sided confidence of the t rules.
    :raises CalibrationError: no reference; fewer than two for the t rules; a value that is not finite.
    """
    values = np.asarray(references, dtype=np.float64)
    if values.size == 0:
        raise CalibrationError("Calibration needs at least one reference model; five or more are advised.")
    if not np.isfinite(values).all():
        raise CalibrationError(f"Reference scores must be finite, got {values.tolist()}.")
    if rule == "extreme":
        return float(values.min() if direction == "distance" else values.max())
    bound = float(values.mean())
    if rule in ("t-mean", "t-pred"):
        if values.size < 2:
            raise CalibrationError(f"The rule {rule!r} needs at least two reference models, got {values.size}.")
        width = math.sqrt(1 / values.size + (1 if rule == "t-pred" else 0))
        margin = float(stats.t.ppf(confidence, values.size - 1) * values.std(ddof=1) * width)
        bound += -margin if direction == "distance" else margin
    elif rule != "scaled-mean":
        raise CalibrationError(f"Unknown threshold rule {rule!r}; known are {', '.join(RULES)}.")
    return alpha * bound if direction == "distance" else 1 - alpha * (1 - bound)


def is_derived(value: float, tau: float, direction: Direction, rule: Rule = "extreme") -> bool:
    """Decide one metric: strictly for ``extreme`` (the reference that sets tau is not flagged), else inclusively."""
    if rule == "extreme":
        return value < tau if direction == "distance" else value > tau
    return value <= tau if direction == "distance" else value >= tau


def empirical_p_value(value: float, references: Sequence[float], direction: Direction) -> float:
    """Return (1 + number of references at least as close to the victim) / (R + 1).

    The chance of so extreme a value if the suspect were one more independent model; never below 1 / (R + 1).
    """
    values = np.asarray(references, dtype=np.float64)
    as_close = (values <= value) if direction == "distance" else (values >= value)
    return float((1 + as_close.sum()) / (values.size + 1))


@dataclass(frozen=True)
class Calibration:
    """Scores of the reference models and the rule that makes thresholds of them.

    :ivar references: Metric name to the scores of all reference models, in one order.
    :ivar thresholds: Metric name to threshold.
    :ivar rule: Threshold rule.
    :ivar alpha: Relaxation factor of the rule.
    :ivar confidence: Confidence of the t rules.
    """

    references: dict[str, tuple[float, ...]]
    thresholds: dict[str, float]
    rule: Rule = "extreme"
    alpha: float = 1.0
    confidence: float = 0.99

    @property
    def nb_references(self) -> int:
        """Number of reference models."""
        return max((len(scores) for scores in self.references.values()), default=0)

    @property
    def false_positive_rate(self) -> float:
        """Upper estimate of the rate at which one more independent model would beat ``extreme``: 1 / (R + 1)."""
        return 1 / (self.nb_references + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        return {
            "references": {name: list(scores) for name, scores in self.references.items()},
            "thresholds": dict(self.thresholds),
            "rule": self.rule,
            "alpha": self.alpha,
            "confidence": self.confidence,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """Rebuild a calibration from :meth:`to_dict`."""
        if data["rule"] not in RULES:
            raise ValueError(f"unknown threshold rule {data['rule']!r}")
        return cls(
            references={str(k): tuple(float(v) for v in values) for k, values in data["references"].items()},
            thresholds={str(k): float(v) for k, v in data["thresholds"].items()},
            rule=data["rule"],
            alpha=float(data["alpha"]),
            confidence=float(data["confidence"]),
        )
