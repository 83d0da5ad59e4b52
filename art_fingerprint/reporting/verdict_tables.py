"""Which verifier can be trusted: its metrics with AUC and error counts, and its verdicts attack by attack."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art_fingerprint.evaluation.intervals import Interval, auc_interval, fpr_interval, models_needed, share_interval
from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.reporting.layout import Sheet, one_line, short
from art_fingerprint.reporting.tables import COLUMNS, rows_of_one_preset
from art_fingerprint.verifiers.calibration import Direction, allowed_positives

Row = Mapping[str, Any]
#: False-positive rate behind the table's true-positive rate.
FPR = 0.05
#: Headings of AUC and TPR with their intervals.
RATES = ("AUC", "AUC, 95%", f"TPR at {FPR:.0%} FPR", "TPR, 95%")
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
    """One metric of a verifier: surrogates against negatives of one kind.

    :ivar name: Metric name.
    :ivar space: ``"logits"`` or ``"probabilities"`` where suspects were compared in both, which gives two lines.
    :ivar threshold: Decision threshold, if the rows have one.
    :ivar direction: ``"distance"``: low means derived; ``"similarity"``: high means derived.
    :ivar recognised: Surrogates that the metric judges derived.
    :ivar accused: Negatives that the metric judges derived.
    :ivar auc: Area under the ROC curve, surrogates against negatives; ``None`` without one of them.
    :ivar tpr: True-positive rate at :data:`FPR`; with fewer than 20 negatives that is the rate at no false positive.
    :ivar auc_interval: Of 95 %, :func:`.auc_interval`.
    :ivar tpr_interval: Of 95 %, :func:`.share_interval`, at the threshold that these negatives give.
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
    auc_interval: Interval | None
    tpr_interval: Interval | None
    nb_surrogates: int
    nb_negatives: int
    nb_scored: int

    @property
    def nb_values(self) -> int:
        """Models behind the line."""
        return self.nb_surrogates + self.nb_negatives


@dataclass(frozen=True)
class VerifierLine:
    """One verifier: surrogates against negatives of one kind.

    :ivar name: Class name.
    :ivar negatives: Row label of these negatives; empty if there are none.
    :ivar metrics: Its metrics.
    :ivar recognised: Surrogates that its verdict calls derived.
    :ivar accused: Negatives that its verdict calls derived.
    :ivar counts: How many verdicts on surrogates and negatives were ``derived``, ``not``, ``undecided``, ``failed`` and
        ``skipped``.
    :ivar queries: Median queries, over all suspects.
    :ivar seconds: Median time of a verdict in seconds, over all suspects.
    """

    name: str
    negatives: str
    metrics: tuple[MetricLine, ...]
    recognised: Share
    accused: Share
    counts: Mapping[str, int]
    queries: float | None
    seconds: float | None


def verifier_lines(rows: Iterable[Row]) -> list[VerifierLine]:
    """Return what every verifier makes of the suspects, a line for each kind of negatives, in order of appearance.

    :param rows: Rows of one preset. Surrogates count as derived, negatives as independent; the victim and the
        reference models, which set the thresholds, are left out of everything but thresholds and cost.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    return [
        _verifier(name, kind, [row for row in against(kept, kind) if row["verifier"] == name])
        for name in dict.fromkeys(row["verifier"] for row in kept)
        for kind in kinds_of_negatives(kept)
    ]


def kinds_of_negatives(rows: Iterable[Row]) -> list[str]:
    """Return the row labels of the negatives, in order of appearance; one empty name if there are none."""
    return list(dict.fromkeys(row["suspect"] for row in rows if row["role"] == _INDEPENDENT)) or [""]


def against(rows: Iterable[Row], kind: str) -> list[Row]:
    """Return the rows without negatives of other kinds: an AUC over several would say how they were mixed."""
    return [row for row in rows if row["role"] != _INDEPENDENT or row["suspect"] == kind]


def _verifier(name: str, kind: str, rows: Sequence[Row]) -> VerifierLine:
    scored = [row for row in rows if row["status"] == "ok"]
    verdicts = Counter(outcome_of(row) for row in rows if row["role"] in _TRUTH)
    return VerifierLine(
        name=name,
        negatives=kind,
        metrics=metric_lines(scored),
        recognised=_share(row["derived"] for row in scored if row["role"] == _DERIVED),
        accused=_share(row["derived"] for row in scored if row["role"] == _INDEPENDENT),
        counts={outcome: verdicts[outcome] for outcome in ("derived", "not", "undecided", "failed", "skipped")},
        queries=_median(row["queries"] for row in scored),
        seconds=_median(row["verify_seconds"] for row in scored),
    )


def metric_lines(scored: Sequence[Row]) -> tuple[MetricLine, ...]:
    """Return the lines of every metric in a verifier's rows of status ``ok``, with negatives of one kind."""
    names = dict.fromkeys(name for row in scored for name in row["metrics"])
    return tuple(line for name in names for line in _metric(name, scored))


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
        auc = roc_auc(derived, independent, direction) if both else None
        tpr = tpr_at_fpr(derived, independent, direction, FPR) if both else None
        lines.append(
            MetricLine(
                name=name,
                space=space if len(spaces) > 1 else "",
                threshold=limits[-1] if limits else None,
                direction=direction,
                recognised=_share(result["derived"] for role, result in mine if role == _DERIVED),
                accused=_share(result["derived"] for role, result in mine if role == _INDEPENDENT),
                auc=auc,
                tpr=tpr,
                auc_interval=None if auc is None else _auc_interval(auc, len(derived), len(independent)),
                tpr_interval=None if tpr is None else share_interval(round(tpr * len(derived)), len(derived)),
                nb_surrogates=len(derived),
                nb_negatives=len(independent),
                nb_scored=sum(row["role"] in _TRUTH for row in scored),
            )
        )
    return lines


_auc_interval = functools.lru_cache(maxsize=None)(auc_interval)  # many cells of a grid have one area


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


def outcome_of(row: Row) -> str:
    """Return ``derived``, ``not`` or ``undecided``, or the status of a row without a verdict."""
    if row["status"] != "ok":
        return str(row["status"])
    return {True: "derived", False: "not", None: "undecided"}[row["derived"]]


def verifier_sheet(rows: Iterable[Row]) -> Sheet:
    """Return the table of verifiers: a line for each metric, then one for the verdict; for each kind of negatives.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    lines = verifier_lines(kept)
    several = len({line.negatives for line in lines}) > 1
    head = ["Verifier", "Metric", *(["Negatives"] if several else []), "Threshold", "Direction", "Recognised"]
    cells = [[*head, "Accused", *RATES, "Queries", "Seconds", "Models"]]
    for line in lines:
        names = one_line(short(line.name))
        kind = [one_line(line.negatives)] if several else []
        cells += [[names, metric_name(metric), *kind, *_metric_cells(metric)] for metric in line.metrics]
        shown = [(count, outcome) for outcome, count in line.counts.items() if count or outcome in ("derived", "not")]
        counts = ", ".join(f"{count} {outcome}" for count, outcome in shown)
        shares = [str(line.recognised), str(line.accused)]
        cost = [_form(line.queries, ".0f"), _form(line.seconds, ".2g")]
        cells.append([names, "verdict", *kind, "-", "-", *shares, *["-"] * len(RATES), *cost, counts])
    return Sheet(cells, (*_notes([metric for line in lines for metric in line.metrics]), *_blind_notes(kept)))


def metric_name(metric: MetricLine) -> str:
    """Return a metric's name, with the space where there are several."""
    return one_line(metric.name + (f" ({metric.space})" if metric.space else ""))


def rate_cells(metric: MetricLine) -> list[str]:
    """Return AUC and TPR with their intervals, under the headings :data:`RATES`."""
    return [
        _form(metric.auc, ".3f"),
        interval_cell(metric.auc_interval),
        _form(metric.tpr, ".3f"),
        interval_cell(metric.tpr_interval),
    ]


def interval_cell(interval: Interval | None) -> str:
    """Return an interval as text."""
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _metric_cells(metric: MetricLine) -> list[str]:
    digits = _DIGITS.get(metric.name)
    return [
        _form(metric.threshold, ".4g" if digits is None else f".{digits}f"),
        metric.direction,
        str(metric.recognised),
        str(metric.accused),
        *rate_cells(metric),
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
        *rate_notes(metrics),
    ]
    if any(metric.nb_values < metric.nb_scored for metric in metrics):
        notes.append("Models without a finite value are left out of a metric's line.")
    return tuple(notes)


def _blind_notes(rows: Iterable[Row]) -> list[str]:
    """Return a sentence for each metric by which the victim itself is not judged derived."""
    return [
        f"{one_line(short(row['verifier']))} {one_line(name)} does not judge even the victim itself derived: nothing "
        "that it says here can be trusted."
        for row in rows
        if row["role"] == "victim"
        for name, result in row["metrics"].items()
        if result["derived"] is False
    ]


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
        outcomes = {name: Counter(outcome_of(row) for row in mine if row["verifier"] == name) for name in verifiers}
        lines.append(VerdictLine(one_line(label), _TRUTH[role], outcomes))
    return lines


def rate_notes(metrics: Sequence[MetricLine]) -> list[str]:
    """Return what is to be said of AUC, TPR and their intervals."""
    sizes = sorted({metric.nb_negatives for metric in metrics if metric.tpr is not None})
    if not sizes:
        return []
    notes = [
        "Intervals: 95 %, as if every model were an independent draw, which seeds of one attack are not. AUC: "
        "Newcombe's score interval; TPR: Clopper and Pearson's, at the threshold as it is.",
        "That threshold comes from the negatives; its own uncertainty is not in the TPR's interval: the true FPR at "
        + "; ".join(_spread(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        + ".",
    ]
    few = [size for size in sizes if allowed_positives(size, FPR) == 0]
    if few:
        span = " to ".join(map(str, dict.fromkeys((few[0], few[-1]))))
        rate = f"the TPR at {FPR:.0%} FPR is that at no false positive"
        notes.append(f"Fewer than {models_needed(FPR)} negatives ({span}): {rate}.")
    return notes


def _spread(nb_negatives: int) -> str:
    low, high = fpr_interval(nb_negatives, FPR)
    return f"that of {nb_negatives} negative{'s' * (nb_negatives > 1)} lies between {low:.1%} and {high:.0%}"


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
