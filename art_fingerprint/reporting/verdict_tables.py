"""Which verifier can be trusted: its metrics with AUC and error counts, and its verdicts attack by attack."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.reporting.layout import Sheet, one_line, short
from art_fingerprint.reporting.tables import COLUMNS, rows_of_one_preset
from art_fingerprint.verifiers.calibration import Direction, allowed_positives

Row = Mapping[str, Any]
#: False-positive rate behind the table's true-positive rate.
FPR = 0.05
_DERIVED = "surrogate"
_INDEPENDENT = "negative"  # references set the thresholds: judging them again would flatter the verifier
_TRUTH = {_DERIVED: "derived", _INDEPENDENT: "independent"}
_DIGITS = {name: digits for name, _, digits in COLUMNS}


@dataclass(frozen=True)
class Share:
    """``judged`` of ``total`` decided models were judged derived."""

    judged: int
    total: int

    def __str__(self) -> str:
        return f"{self.judged}/{self.total}" if self.total else "-"


@dataclass(frozen=True)
class MetricLine:
    """One metric of a verifier over all suspects.

    :ivar name: Metric name.
    :ivar space: ``"logits"`` or ``"probabilities"`` where suspects were compared in both, which gives two lines.
    :ivar threshold: Decision threshold, if the rows have one.
    :ivar direction: ``"distance"``: low means derived; ``"similarity"``: high means derived.
    :ivar recognised: Surrogates that the metric judges derived.
    :ivar accused: Negatives that the metric judges derived.
    :ivar auc: Area under the ROC curve, surrogates against negatives; ``None`` without one of them.
    :ivar tpr: True-positive rate at :data:`FPR`; with fewer than 20 negatives that is the rate at no false positive.
    :ivar nb_surrogates: Surrogates with a finite value.
    :ivar nb_negatives: Negatives with a finite value.
    :ivar nb_scored: Surrogates and negatives with a verdict; those without a finite value are left out of the line.
    """

    name: str
    space: str
    threshold: float | None
    direction: Direction
    recognised: Share
    accused: Share
    auc: float | None
    tpr: float | None
    nb_surrogates: int
    nb_negatives: int
    nb_scored: int

    @property
    def nb_values(self) -> int:
        """Models behind the line."""
        return self.nb_surrogates + self.nb_negatives


@dataclass(frozen=True)
class VerifierLine:
    """One verifier over all suspects.

    :ivar name: Class name.
    :ivar metrics: Its metrics.
    :ivar recognised: Surrogates that its verdict calls derived.
    :ivar accused: Negatives that its verdict calls derived.
    :ivar counts: How many verdicts on surrogates and negatives were ``derived``, ``not``, ``undecided``, ``failed`` and
        ``skipped``.
    :ivar queries: Median queries, over all suspects.
    :ivar seconds: Median time of a verdict in seconds, over all suspects.
    """

    name: str
    metrics: tuple[MetricLine, ...]
    recognised: Share
    accused: Share
    counts: Mapping[str, int]
    queries: float | None
    seconds: float | None


def verifier_lines(rows: Iterable[Row]) -> list[VerifierLine]:
    """Return what every verifier makes of the suspects, in order of appearance.

    :param rows: Rows of one preset. Surrogates count as derived, negatives as independent; the victim and the
        reference models, which set the thresholds, are left out of everything but thresholds and cost.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    return [
        _verifier(name, [row for row in kept if row["verifier"] == name])
        for name in dict.fromkeys(row["verifier"] for row in kept)
    ]


def _verifier(name: str, rows: Sequence[Row]) -> VerifierLine:
    scored = [row for row in rows if row["status"] == "ok"]
    verdicts = Counter(_outcome(row) for row in rows if row["role"] in _TRUTH)
    return VerifierLine(
        name=name,
        metrics=tuple(
            line
            for metric in dict.fromkeys(m for row in scored for m in row["metrics"])
            for line in _metric(metric, scored)
        ),
        recognised=_share(row["derived"] for row in scored if row["role"] == _DERIVED),
        accused=_share(row["derived"] for row in scored if row["role"] == _INDEPENDENT),
        counts={outcome: verdicts[outcome] for outcome in ("derived", "not", "undecided", "failed", "skipped")},
        queries=_median(row["queries"] for row in scored),
        seconds=_median(row["verify_seconds"] for row in scored),
    )


def _metric(name: str, scored: Sequence[Row]) -> list[MetricLine]:
    """Return a line, or one for each space: distances between logits and between probabilities have other scales."""
    results = [(row["role"], row["metrics"][name]) for row in scored if name in row["metrics"]]
    suspects = [(role, result) for role, result in results if role in _TRUTH and _is_finite(result["value"])]
    spaces = list(dict.fromkeys(_space(result) for _, result in suspects)) or [_space(results[0][1])]
    lines = []
    for space in spaces:
        mine = [(role, result) for role, result in suspects if _space(result) == space]
        limits = [r["threshold"] for _, r in results if _space(r) == space and r["threshold"] is not None]
        direction = results[0][1]["direction"]
        derived, independent = (
            [result["value"] for role, result in mine if role == wanted] for wanted in (_DERIVED, _INDEPENDENT)
        )
        both = bool(derived and independent)
        lines.append(
            MetricLine(
                name=name,
                space=space if len(spaces) > 1 else "",
                threshold=limits[-1] if limits else None,
                direction=direction,
                recognised=_share(result["derived"] for role, result in mine if role == _DERIVED),
                accused=_share(result["derived"] for role, result in mine if role == _INDEPENDENT),
                auc=roc_auc(derived, independent, direction) if both else None,
                tpr=tpr_at_fpr(derived, independent, direction, FPR) if both else None,
                nb_surrogates=len(derived),
                nb_negatives=len(independent),
                nb_scored=sum(row["role"] in _TRUTH for row in scored),
            )
        )
    return lines


def _space(result: Mapping[str, Any]) -> str:
    return result.get("space") or ""  # rows of earlier versions have none


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _share(flags: Iterable[bool | None]) -> Share:
    known = [flag for flag in flags if flag is not None]
    return Share(sum(known), len(known))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _outcome(row: Row) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    return {True: "derived", False: "not", None: "undecided"}[row["derived"]]


def verifier_sheet(rows: Iterable[Row]) -> Sheet:
    """Return the table of verifiers: a line for each metric, then one for the verdict.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    lines = verifier_lines(rows)
    head = ["Verifier", "Metric", "Threshold", "Direction", "Recognised", "Accused", "AUC", f"TPR at {FPR:.0%} FPR"]
    cells = [[*head, "Queries", "Seconds", "Models"]]
    for line in lines:
        cells += [_metric_cells(line.name, metric) for metric in line.metrics]
        shown = [(count, outcome) for outcome, count in line.counts.items() if count or outcome in ("derived", "not")]
        counts = ", ".join(f"{count} {outcome}" for count, outcome in shown)
        shares = [str(line.recognised), str(line.accused)]
        cost = [_form(line.queries, ".0f"), _form(line.seconds, ".2g")]
        cells.append([one_line(short(line.name)), "verdict", "-", "-", *shares, "-", "-", *cost, counts])
    return Sheet(cells, _notes([metric for line in lines for metric in line.metrics]))


def _metric_cells(verifier: str, metric: MetricLine) -> list[str]:
    digits = _DIGITS.get(metric.name)
    return [
        one_line(short(verifier)),
        one_line(metric.name + (f" ({metric.space})" if metric.space else "")),
        _form(metric.threshold, ".4g" if digits is None else f".{digits}f"),
        metric.direction,
        str(metric.recognised),
        str(metric.accused),
        _form(metric.auc, ".3f"),
        _form(metric.tpr, ".3f"),
        *("-", "-"),
        f"{metric.nb_values} of {metric.nb_scored} values",
    ]


def _form(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _notes(metrics: Sequence[MetricLine]) -> tuple[str, ...]:
    notes = [
        "Recognised, accused: surrogates, negatives (independent models) judged derived, of those with a decision.",
        "Verdict: the verifier's own, from its metrics. Queries and seconds are medians over all suspects.",
        "AUC and TPR: surrogates against negatives. Reference models set the thresholds and are left out.",
    ]
    few = {m.nb_negatives for m in metrics if m.tpr is not None and allowed_positives(m.nb_negatives, FPR) == 0}
    if few:
        span = " to ".join(map(str, sorted({min(few), max(few)})))
        rate = f"the TPR at {FPR:.0%} FPR is that at no false positive"
        notes.append(f"Fewer than {math.ceil(1 / FPR)} negatives ({span}): {rate}.")
    if any(metric.nb_values < metric.nb_scored for metric in metrics):
        notes.append("Models without a finite value are left out of a metric's line.")
    return tuple(notes)


@dataclass(frozen=True)
class VerdictLine:
    """What the verifiers say about one row label.

    :ivar label: Row label.
    :ivar truth: ``"derived"`` or ``"independent"``.
    :ivar outcomes: Verifier to how many verdicts were ``derived``, ``not``, ``undecided``, ``failed`` and ``skipped``.
    """

    label: str
    truth: str
    outcomes: Mapping[str, Mapping[str, int]]


def verdict_lines(rows: Iterable[Row]) -> list[VerdictLine]:
    """Return verdicts by model and verifier; surrogates in order of appearance, negatives last.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    verifiers = list(dict.fromkeys(row["verifier"] for row in kept))
    wanted = sorted((row for row in kept if row["role"] in _TRUTH), key=lambda row: row["role"] == _INDEPENDENT)
    lines = []
    for label, role in dict.fromkeys((row["suspect"], row["role"]) for row in wanted):
        mine = [row for row in wanted if (row["suspect"], row["role"]) == (label, role)]
        outcomes = {name: Counter(_outcome(row) for row in mine if row["verifier"] == name) for name in verifiers}
        lines.append(VerdictLine(one_line(label), _TRUTH[role], outcomes))
    return lines


def verdict_sheet(rows: Iterable[Row]) -> Sheet:
    """Return verdicts by model and verifier: ``k/n`` judged derived of those with a verdict, then what has none.

    Surrogates in order of appearance, negatives last.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    verifiers = list(dict.fromkeys(row["verifier"] for row in kept))
    cells = [["Model", "Truth", *(one_line(short(name)) for name in verifiers)]]
    cells += [[line.label, line.truth, *map(verdicts, line.outcomes.values())] for line in verdict_lines(kept)]
    return Sheet(cells, ("k/n: k models are judged derived, of n with a verdict.",))


def verdicts(outcomes: Mapping[str, int]) -> str:
    """Return how many verdicts were "derived", of those that decided, and how many are none."""
    share = Share(outcomes["derived"], outcomes["derived"] + outcomes["not"])
    parts = [str(share)] if share.total else []
    parts += [f"{outcomes[name]} {name}" for name in ("undecided", "failed", "skipped") if outcomes[name]]
    return ", ".join(parts) or "-"
