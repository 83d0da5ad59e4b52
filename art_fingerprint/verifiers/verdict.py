"""The verdict: what was measured on a suspect, against which thresholds, and what follows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from art_fingerprint.core.checks import shown
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.calibration import (
    STRICT_RULES,
    Calibration,
    Direction,
    Rule,
    blind_metrics,
    empirical_p_value,
    is_derived,
)
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.measurement import Chance, Measurement

Vote = Literal["majority", "any", "all"]
VOTES: tuple[Vote, ...] = ("majority", "any", "all")


def votes_needed(count: int, vote: Vote) -> int:
    """Return how many of so many votes a verdict of "derived" takes."""
    return {"majority": count // 2 + 1, "any": 1, "all": count}[vote]


@dataclass(frozen=True)
class MetricResult:
    """One metric of one suspect.

    :ivar value: The score, unrounded.
    :ivar direction: ``"distance"``: low means derived; ``"similarity"``: high means derived.
    :ivar threshold: Decision threshold; ``None`` if the verifier is not calibrated.
    :ivar derived: This metric's decision; ``None`` if undecided, see :attr:`reason`.
    :ivar p_value: Chance of so extreme a value from an independent model; ``None`` if undecided.
    :ivar reason: Why this metric is undecided, else empty.
    :ivar space: What was compared, ``"logits"`` or ``"probabilities"``; empty if that is always the same.
    """

    value: float
    direction: Direction
    threshold: float | None = None
    derived: bool | None = None
    p_value: float | None = None
    reason: str = ""
    space: str = ""


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
    :ivar complete: ``False`` if scoring ended early, because the query budget was spent or the suspect failed. The
        verdict is then undecided; metrics that were complete by then are there.
    :ivar references: Metric name to the scores of the reference models, for metrics with a threshold.
    :ivar false_positive_rate: Upper estimate of the rate at which one metric flags an independent model; ``None`` if
        uncalibrated or the threshold rule gives none.
    :ivar blind: Metrics by whose thresholds not even the victim would be judged derived: of these only a "derived"
        says anything. See :func:`.blind_metrics`.
    :ivar rule: Rule of the thresholds; the strict ones do not flag a value that equals its threshold.
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
    complete: bool = True
    references: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    false_positive_rate: float | None = None
    blind: tuple[str, ...] = ()
    rule: Rule = "extreme"

    def __getitem__(self, name: str) -> MetricResult:
        if name not in self.metrics:
            why = f" ({self.skipped[name]})" if name in self.skipped else ""
            raise KeyError(f"The verdict has no metric {name!r}{why}; it has {', '.join(self.metrics)}.")
        return self.metrics[name]

    @property
    def verdict_false_positive_rate(self) -> float | None:
        """Upper bound of the rate at which this vote calls an independent model derived; ``None`` as for one metric.

        Of k metrics that vote, each flagging at most the rate q, m or more flag a model at most at the rate
        ``k q / m`` (Markov), whatever they have in common; m is what the vote needs.
        """
        votes = sum(result.derived is not None for result in self.metrics.values())
        if self.false_positive_rate is None or self.derived is None:
            return None
        return min(1.0, self.false_positive_rate * votes / votes_needed(votes, self.vote))

    @property
    def meaning(self) -> str:
        """What decision, rates and p-values say, in words."""
        return " ".join(self._sentences())

    def _sentences(self) -> list[str]:
        missed = [name for name in self.blind if name in self.metrics and not self.metrics[name].derived]
        acquits = f"Not even the victim would be judged derived by {', '.join(missed)}: this acquits nobody."
        n = self.nb_references
        if n == 0 and any(result.p_value is not None for result in self.metrics.values()):
            known = "No reference models: p bounds the chance of so close a value by what is known of unrelated models."
            return [known, acquits] if missed else [known]
        if not self.metrics:
            return []
        if n == 0:
            return ["Without reference models nothing says which values are unusual."]
        known = f"{n} references" if n > 1 else "one reference"
        sentences = []
        closer = [name for name in self.metrics if self._beyond_all(name)]
        if self.derived is False and closer:
            sentences.append(
                f"Closer to the victim than all references by {', '.join(closer)}, which by these thresholds and "
                "this vote is not derived."
            )
        elif self.derived is False:
            sentences.append("No closer to the victim than independent models; a removal attack can bring that about.")
        if missed:
            sentences.append(acquits)
        rate, whole = self.false_positive_rate, self.verdict_false_positive_rate
        if rate is not None:
            vote = "" if whole is None or whole == rate else f", this vote at most {whole:.1%}"
            sentences.append(
                f"False positives: of models trained independently, like the {known}, one metric is expected to call "
                f"at most {rate:.1%} derived{vote}."
            )
        sentences.append(
            f"p: the expected share of such models at least as close to the victim, with {known} never below "
            f"{1 / (n + 1):.3g}."
        )
        return sentences

    def _beyond_all(self, name: str) -> bool:
        result, scores = self.metrics[name], self.references.get(name)
        if not scores or not math.isfinite(result.value):
            return False
        nearest = min(scores) if result.direction == "distance" else max(scores)
        return is_derived(result.value, nearest, result.direction)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values. A value that is not finite is ``None``."""
        return {
            **{
                name: getattr(self, name)
                for name in ("verifier", "derived", "vote", "queries", "nb_references", "seed")
            },
            "fingerprint_digest": self.fingerprint_digest,
            "reason": self.reason,
            "complete": self.complete,
            "blind": list(self.blind),
            "rule": self.rule,
            "false_positive_rate": self.false_positive_rate,
            "verdict_false_positive_rate": self.verdict_false_positive_rate,
            "meaning": self.meaning,
            "skipped": dict(self.skipped),
            "references": {name: list(scores) for name, scores in self.references.items()},
            "metrics": {
                name: {**asdict(result), "value": result.value if math.isfinite(result.value) else None}
                for name, result in self.metrics.items()
            },
        }

    def __repr__(self) -> str:
        words = {True: "DERIVED from the victim", False: "not derived", None: f"undecided: {self.reason}"}
        votes = sum(result.derived is not None for result in self.metrics.values()) or len(self.metrics)
        voters = f"{self.vote} of {votes} metrics" if votes > 1 else "one metric" if votes else "no metric"
        equal = "" if self.rule in STRICT_RULES else "="
        lines = [
            f"{self.verifier}: {words[self.derived]} ({voters}, {self.queries} queries, {self.nb_references} "
            "reference models)"
        ]
        for name, result in self.metrics.items():
            sign = ("<" if result.direction == "distance" else ">") + equal
            limit = "no threshold" if result.threshold is None else f"derived if {sign} {result.threshold:.4g}"
            if result.reason and not self.reason:  # other metrics decided
                limit = result.reason
            p_value = "" if result.p_value is None else f", p = {result.p_value:.3g}"
            flag = {True: "derived", False: "-", None: "?"}[result.derived]
            lines.append(f"  {name:<12} {result.value:>10.4g}   {flag:<8} ({limit}{p_value})")
        lines += [f"  {name:<12} {'skipped':>10}   {why}" for name, why in self.skipped.items()]
        lines += [
            textwrap.fill(words, 110, initial_indent="  ", subsequent_indent="    ") for words in self._sentences()
        ]
        return "\n".join(lines)


def conclude(
    found: Measurement,
    directions: Mapping[str, Direction],
    calibration: Calibration | None,
    vote: Vote,
    fingerprint: Fingerprint,
) -> Verdict:
    """Return the verdict on a suspect.

    A metric that was compared as logits, while the thresholds are for probabilities, is judged by its softened score.

    :param found: What was measured.
    :param directions: Metric name to its direction, in the order of the verdict.
    :param calibration: Thresholds, if there are any.
    :param vote: How metrics combine.
    :param fingerprint: What it was measured with.
    """
    results, references = {}, {}
    for name, direction in directions.items():
        if name not in found.scores:
            continue
        value, space = found.scores[name], found.spaces.get(name, "")
        if name in found.softened and calibration is not None and calibration.within(name, space) is None:
            value, space = found.softened[name], "probabilities"
        results[name] = _judge(value, direction, name, calibration, space, found.chances.get(name))
        known = None if calibration is None else calibration.within(name, space)
        if known is not None and name in known.references:
            references[name] = known.references[name]
    rule: Rule = "extreme" if calibration is None else calibration.rule
    calibrated = {} if calibration is None else calibration.references
    limits = {name: result.threshold for name, result in results.items() if result.threshold is not None}
    derived = None if found.trouble else combine((result.derived for result in results.values()), vote)
    return Verdict(
        verifier=fingerprint.verifier,
        metrics=results,
        derived=derived,
        vote=vote,
        queries=found.queries,
        nb_references=max((len(scores) for name, scores in calibrated.items() if name in directions), default=0),
        seed=int(fingerprint.params["seed"]),
        fingerprint_digest=fingerprint.digest,
        skipped=found.skipped,
        reason=found.trouble or (why_undecided(results) if derived is None else ""),
        complete=found.failure is None,
        references=references,
        false_positive_rate=false_positive_rate(calibration, results, references),
        blind=blind_metrics(limits, directions, fingerprint.facts, rule),
        rule=rule,
    )


def _judge(
    value: float,
    direction: Direction,
    name: str,
    calibration: Calibration | None,
    space: str,
    chance: Chance | None = None,
) -> MetricResult:
    known = None if calibration is None else calibration.within(name, space)
    tau = None if known is None else known.thresholds[name]
    if not math.isfinite(value):
        return MetricResult(value, direction, tau, reason="undefined on this suspect", space=space)
    if calibration is None or name not in calibration.thresholds:
        if chance is not None:
            derived = is_derived(value, chance.threshold, direction)
            return MetricResult(value, direction, chance.threshold, derived, chance.p_value, space=space)
        return MetricResult(value, direction, reason="not calibrated", space=space)
    if known is None or tau is None:
        return MetricResult(
            value,
            direction,
            reason=f"compared as {space}, while the thresholds come from {calibration.spaces[name]}: calibrate again",
            space=space,
        )
    derived = is_derived(value, tau, direction, known.rule)
    scores = known.references.get(name)  # none where somebody set the threshold by hand
    p_value = empirical_p_value(value, scores, direction) if scores else None
    return MetricResult(value, direction, tau, derived, p_value, space=space)


def why_undecided(results: Mapping[str, MetricResult]) -> str:
    """Return one sentence from the reasons of single metrics."""
    whys = dict.fromkeys(result.reason for result in results.values() if result.reason)
    if list(whys) == ["not calibrated"]:
        return "not calibrated"
    return "; ".join(f"{', '.join(n for n, r in results.items() if r.reason == why)} {why}" for why in whys)


def false_positive_rate(
    calibration: Calibration | None,
    results: Mapping[str, MetricResult],
    references: Mapping[str, Sequence[float]],
) -> float | None:
    """Return the greatest false-positive rate of the metrics, by a calibration whose rule gives one.

    The rule's own, or (1 + number of references beyond the threshold) / (R + 1) where that is more: somebody set the
    threshold. ``None`` if a metric decided without references: nothing bounds how often it flags.

    :param calibration: Thresholds, if there are any.
    :param results: Metrics as they were judged.
    :param references: Metric to the scores of its references.
    """
    own = None if calibration is None else calibration.false_positive_rate
    deciding = [name for name, result in results.items() if result.derived is not None]
    if calibration is None or own is None or not all(references.get(name) for name in deciding):
        return None
    rates = [own]
    for name, scores in references.items():
        tau, direction = results[name].threshold, results[name].direction
        beyond = 0 if tau is None else sum(is_derived(score, tau, direction, calibration.rule) for score in scores)
        rates.append((1 + beyond) / (len(scores) + 1))
    return max(rates)


def combine(flags: Iterable[bool | None], vote: Vote = "majority") -> bool | None:
    """Combine the decisions of single metrics; ``None`` entries are left out, and nothing left gives ``None``.

    ``majority`` needs more than half of the votes.
    """
    if vote not in VOTES:
        raise InvalidInputError(f"`vote` must be one of {', '.join(VOTES)}, got {shown(vote)}.")
    votes = [flag for flag in flags if flag is not None]
    if not votes:
        return None
    if vote == "majority":
        return sum(votes) * 2 > len(votes)
    return any(votes) if vote == "any" else all(votes)
