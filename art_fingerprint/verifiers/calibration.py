"""From scores to decisions: thresholds and p-values from independently trained reference models.

Every rule is written for distances and mirrored for similarities. Source: RemovalNet section 4.1.4 (``extreme``),
DeepJudge (``t-mean``), ``scaled-mean`` describes the thresholds that RemovalNet printed, ``t-pred`` is the prediction
bound for one more independent model, ``fpr`` (ours) is a quantile of the references.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from scipy import stats

from art_fingerprint.core.checks import check_choice, check_number, check_values, shown
from art_fingerprint.exceptions import CalibrationError

_Key = TypeVar("_Key")
Direction = Literal["distance", "similarity"]
Rule = Literal["extreme", "fpr", "t-mean", "t-pred", "scaled-mean"]
RULES: tuple[Rule, ...] = ("extreme", "fpr", "t-mean", "t-pred", "scaled-mean")
# Their threshold is the score of a reference, which would flag itself if the bound were included.
STRICT_RULES: tuple[Rule, ...] = ("extreme", "fpr")


def allowed_positives(nb_references: int, false_positive_rate: float) -> int:
    """Return how many of R references may be flagged at a rate q: ``floor(q R)``."""
    # 0.29 * 100 is 28.999999999999996
    return math.floor(false_positive_rate * nb_references + 1e-9)


def check_rule(
    rule: Rule, nb_references: int, false_positive_rate: float = 0.05, alpha: float = 1.0, confidence: float = 0.99
) -> None:
    """Raise unless a threshold rule's numbers are in their ranges, and so many references are enough for it.

    :raises CalibrationError: unknown rule or too few references. The message says how many are needed.
    :raises InvalidInputError: a false-positive rate outside [0, 1), alpha outside (0, 1], confidence outside [0.5, 1).
    """
    check_number("alpha", alpha, 0, 1, open_low=True)
    check_number("confidence", confidence, 0.5, 1, open_high=True)
    check_number("false_positive_rate", false_positive_rate, 0, 1, open_high=True)
    if not isinstance(rule, str) or rule not in RULES:
        raise CalibrationError(f"Unknown threshold rule {shown(rule)}; known are {', '.join(RULES)}.")
    if nb_references == 0:
        raise CalibrationError("Calibration needs at least one reference model; five or more are advised.")
    if rule in ("t-mean", "t-pred") and nb_references < 2:
        raise CalibrationError(f"The rule {rule!r} needs at least two reference models, got {nb_references}.")
    if rule == "fpr" and false_positive_rate > 0 and allowed_positives(nb_references, false_positive_rate) == 0:
        raise CalibrationError(
            f"A false-positive rate of {false_positive_rate:g} needs at least "
            f"{np.ceil(1 / false_positive_rate - 1e-9):.0f} reference models, got {nb_references}. Add models, "
            "raise the rate, or use rule='extreme', which flags none of the references."
        )


def threshold(
    references: Sequence[float],
    direction: Direction,
    rule: Rule = "extreme",
    alpha: float = 1.0,
    confidence: float = 0.99,
    false_positive_rate: float = 0.05,
) -> float:
    """Return the decision threshold for one metric.

    With mean ``m``, standard deviation ``s`` (n-1) and Student quantile ``t`` over ``R`` references, for distances:
    ``extreme`` = min r; ``t-mean`` = alpha (m - t s / sqrt(R)); ``t-pred`` = alpha (m - t s sqrt(1 + 1/R));
    ``scaled-mean`` = alpha m; ``fpr`` = the (floor(q R) + 1)-th smallest r, so that at most the share q of the
    references lies strictly below it. For similarities ``extreme`` = max r, ``fpr`` counts from the largest, and the
    others are relaxed towards 1: 1 - alpha (1 - bound). An alpha below 1 makes the threshold stricter where distances
    are at least 0 and similarities at most 1; a bound beyond these makes it laxer.

    :param references: Metric values between the victim and independently trained models.
    :param direction: ``"distance"`` (low means derived) or ``"similarity"`` (high means derived).
    :param rule: One of :data:`RULES`.
    :param alpha: Relaxation factor in (0, 1].
    :param confidence: One-sided confidence of the t rules.
    :param false_positive_rate: Target rate q of ``fpr`` in [0, 1); 0 is ``extreme``.
    :raises CalibrationError: no reference; too few for the rule; a value that is not finite.
    :raises InvalidInputError: an unknown direction, or a number out of its range.
    """
    check_choice("direction", direction, ("distance", "similarity"))
    values = np.asarray(references, dtype=np.float64)
    check_rule(rule, values.size, false_positive_rate, alpha, confidence)
    if not np.isfinite(values).all():
        raise CalibrationError(f"Reference scores must be finite, got {values.tolist()}.")
    if rule in STRICT_RULES:
        rank = 0 if rule == "extreme" else min(allowed_positives(values.size, false_positive_rate), values.size - 1)
        return float(np.sort(values)[rank if direction == "distance" else -1 - rank])
    bound = float(values.mean())
    if rule in ("t-mean", "t-pred"):
        width = math.sqrt(1 / values.size + (1 if rule == "t-pred" else 0))
        margin = float(stats.t.ppf(confidence, values.size - 1) * values.std(ddof=1) * width)
        bound += -margin if direction == "distance" else margin
    return alpha * bound if direction == "distance" else 1 - alpha * (1 - bound)


def is_derived(value: float, tau: float, direction: Direction, rule: Rule = "extreme") -> bool:
    """Decide one metric: strictly for :data:`STRICT_RULES` (the reference that sets tau is not flagged), else
    inclusively."""
    if rule in STRICT_RULES:
        return value < tau if direction == "distance" else value > tau
    return value <= tau if direction == "distance" else value >= tau


def blind_metrics(
    thresholds: Mapping[str, float],
    directions: Mapping[str, Direction],
    facts: Mapping[str, Any],
    rule: Rule = "extreme",
) -> tuple[str, ...]:
    """Return metrics by whose threshold not even the victim is judged derived: they can accuse, but never acquit.

    :param thresholds: Metric to threshold.
    :param directions: Metric to direction.
    :param facts: The fingerprint's; ``own_METRIC`` is the victim's own value. Where a fingerprint does not say,
        distance 0 and similarity 1 are the nearest that it can be, which only a threshold beyond them rules out.
    :param rule: One of :data:`RULES`.
    """
    blind = []
    for name, tau in thresholds.items():
        own = facts.get(f"own_{name}")
        if own is None:
            own = 0.0 if directions[name] == "distance" else 1.0
        if isinstance(own, int | float) and not is_derived(own, tau, directions[name], rule):
            blind.append(name)
    return tuple(blind)


def empirical_p_value(value: float, references: Sequence[float], direction: Direction) -> float:
    """Return (1 + number of references at least as close to the victim) / (R + 1).

    The chance of so extreme a value if the suspect were one more independent model; never below 1 / (R + 1).
    """
    check_choice("direction", direction, ("distance", "similarity"))
    values = check_values("references", references)
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
    :ivar target_false_positive_rate: Target rate of ``fpr``.
    :ivar spaces: Metric name to what was compared, ``"logits"`` or ``"probabilities"``, where that can differ from one
        suspect to the next. Thresholds of one space say nothing about scores of the other.
    :ivar digests: Full to short digest of the references' networks, as far as they show one.
    :ivar order: Full digests in the order of the scores, empty for references that show no network; ``()`` if it is not
        known.
    :ivar fingerprint: Digest of the fingerprint that the references were scored by; empty if not known.
    :ivar softened: The same references compared as probabilities, for metrics that :attr:`spaces` has as logits;
        ``None`` if there is none.
    """

    references: dict[str, tuple[float, ...]]
    thresholds: dict[str, float]
    rule: Rule = "extreme"
    alpha: float = 1.0
    confidence: float = 0.99
    target_false_positive_rate: float = 0.05
    spaces: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    softened: Calibration | None = None
    order: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def nb_references(self) -> int:
        """Number of reference models."""
        return max((len(scores) for scores in self.references.values()), default=0)

    @property
    def false_positive_rate(self) -> float | None:
        """Upper estimate of the rate at which one more independent model would beat the rule, for each metric.

        ``extreme``: 1 / (R + 1); ``fpr``: (floor(q R) + 1) / (R + 1), which is above the target q because the threshold
        itself was estimated. It holds for models drawn as the references were. ``None`` for other rules, which give no
        such bound, and without references.
        """
        if self.rule not in STRICT_RULES or not self.nb_references:
            return None
        positives = allowed_positives(self.nb_references, self.target_false_positive_rate) if self.rule == "fpr" else 0
        return (positives + 1) / (self.nb_references + 1)

    def within(self, name: str, space: str) -> Calibration | None:
        """Return the calibration that holds for a metric in a space, this one or :attr:`softened`, if there is one.

        :param name: The metric.
        :param space: What was compared, ``"logits"`` or ``"probabilities"``; empty if that is always the same.
        """
        candidates = (c for c in (self, self.softened) if c is not None and name in c.thresholds)
        return next((c for c in candidates if c.spaces.get(name, space) == space), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as JSON values."""
        return {
            "references": {name: list(scores) for name, scores in self.references.items()},
            "thresholds": dict(self.thresholds),
            "rule": self.rule,
            "alpha": self.alpha,
            "confidence": self.confidence,
            "target_false_positive_rate": self.target_false_positive_rate,
            "spaces": dict(self.spaces),
            "softened": None if self.softened is None else self.softened.to_dict(),
            "digests": dict(self.digests),
            "order": list(self.order),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """Rebuild a calibration from :meth:`to_dict`.

        :raises ValueError: something in it has another form, or a number is not finite or out of its range; or another
            of the errors that come of reading what has another form.
        """
        if not isinstance(data["rule"], str) or data["rule"] not in RULES:
            raise ValueError(f"unknown threshold rule {shown(data['rule'])}")
        alpha, confidence = data["alpha"], data["confidence"]
        rate = data.get("target_false_positive_rate", 0.05)  # files of the first versions lack it, and what follows
        check_number("alpha", alpha, 0, 1, open_low=True)
        check_number("confidence", confidence, 0.5, 1, open_high=True)
        check_number("target_false_positive_rate", rate, 0, 1, open_high=True)
        softened = data.get("softened")
        references = {
            str(name): tuple(_number(name, value) for value in scores) for name, scores in data["references"].items()
        }
        if len({len(scores) for scores in references.values()}) > 1:
            raise ValueError("the metrics have scores of different numbers of references")
        order = tuple(_texts("order", dict(enumerate(data.get("order", ())))).values())
        return cls(
            references=references,
            thresholds={str(name): _number(name, value) for name, value in data["thresholds"].items()},
            rule=data["rule"],
            alpha=float(alpha),
            confidence=float(confidence),
            target_false_positive_rate=float(rate),
            spaces=_texts("spaces", data.get("spaces", {})),
            softened=None if softened is None else cls.from_dict({**softened, "softened": None}),
            digests=_texts("digests", data.get("digests", {})),
            order=order,
            fingerprint=_texts("fingerprint", {"": data.get("fingerprint", "")})[""],
        )


def _number(name: str, value: object) -> float:
    check_number(f"threshold or reference of {name}", value)
    return float(value)  # type: ignore[arg-type]


def _texts(name: str, found: Mapping[_Key, object]) -> dict[_Key, str]:
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"`{name}` must hold texts, got {shown(found)}")
    return {key: str(value) for key, value in found.items()}
