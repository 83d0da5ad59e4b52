"""The verdict: what was measured on a suspect, against which thresholds, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.calibration import Direction

Vote = Literal["majority", "any", "all"]
VOTES: tuple[Vote, ...] = ("majority", "any", "all")


@dataclass(frozen=True)
class MetricResult:
    """One metric of one suspect.

    :ivar value: The score, unrounded.
    :ivar direction: ``"distance"``: low means derived; ``"similarity"``: high means derived.
    :ivar threshold: Decision threshold; ``None`` if the verifier is not calibrated.
    :ivar derived: This metric's decision; ``None`` if not calibrated or the value is undefined.
    :ivar p_value: Chance of so extreme a value from an independent model; ``None`` if not calibrated.
    """

    value: float
    direction: Direction
    threshold: float | None = None
    derived: bool | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Immutable result of ``Verifier.verify``. ``verdict["MR"].value`` reads one metric.

    :ivar verifier: Class name of the verifier.
    :ivar metrics: Metric name to :class:`MetricResult`.
    :ivar derived: ``True`` derived from the victim, ``False`` not, ``None`` undecided (see :attr:`reason`).
    :ivar vote: How the metrics were combined.
    :ivar queries: Samples that were sent to the suspect.
    :ivar nb_references: Reference models behind the thresholds, 0 if uncalibrated.
    :ivar seed: Seed of the fingerprint.
    :ivar fingerprint_digest: Digest of the fingerprint.
    :ivar skipped: Metric name to the reason why it could not be computed.
    :ivar reason: Why the verdict is undecided, else empty.
    """

    verifier: str
    metrics: Mapping[str, MetricResult]
    derived: bool | None
    vote: Vote
    queries: int
    nb_references: int
    seed: int
    fingerprint_digest: str
    skipped: Mapping[str, str]
    reason: str = ""

    def __getitem__(self, name: str) -> MetricResult:
        if name not in self.metrics:
            why = f" ({self.skipped[name]})" if name in self.skipped else ""
            raise KeyError(f"The verdict has no metric {name!r}{why}; it has {', '.join(self.metrics)}.")
        return self.metrics[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {
            **{
                name: getattr(self, name)
                for name in ("verifier", "derived", "vote", "queries", "nb_references", "seed")
            },
            "fingerprint_digest": self.fingerprint_digest,
            "reason": self.reason,
            "skipped": dict(self.skipped),
            "metrics": {name: asdict(result) for name, result in self.metrics.items()},
        }

    def __repr__(self) -> str:
        words = {True: "DERIVED from the victim", False: "not derived", None: f"undecided: {self.reason}"}
        lines = [
            f"{self.verifier}: {words[self.derived]} ({self.vote} of {len(self.metrics)} metrics, {self.queries} "
            f"queries, {self.nb_references} reference models)"
        ]
        for name, result in self.metrics.items():
            sign = "<" if result.direction == "distance" else ">"
            limit = "no threshold" if result.threshold is None else f"derived if {sign} {result.threshold:.4g}"
            p_value = "" if result.p_value is None else f", p = {result.p_value:.3g}"
            flag = {True: "derived", False: "-", None: "?"}[result.derived]
            lines.append(f"  {name:<12} {result.value:>10.4g}   {flag:<8} ({limit}{p_value})")
        lines += [f"  {name:<12} {'skipped':>10}   {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)


def combine(flags: Iterable[bool | None], vote: Vote = "majority") -> bool | None:
    """Combine the decisions of single metrics; ``None`` entries are left out, and nothing left gives ``None``.

    ``majority`` needs more than half of the votes.
    """
    if vote not in VOTES:
        raise InvalidInputError(f"`vote` must be one of {', '.join(VOTES)}, got {vote!r}.")
    votes = [flag for flag in flags if flag is not None]
    if not votes:
        return None
    if vote == "majority":
        return sum(votes) * 2 > len(votes)
    return any(votes) if vote == "any" else all(votes)
