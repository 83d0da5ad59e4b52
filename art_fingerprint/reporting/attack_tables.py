"""Every attack against every metric: AUC, TPR at a false-positive rate, and what the attack costs in accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art_fingerprint.reporting.layout import Sheet, mean_std, one_line, short
from art_fingerprint.reporting.tables import rows_of_one_preset
from art_fingerprint.reporting.verdict_tables import (
    RATES,
    MetricLine,
    against,
    kinds_of_negatives,
    metric_lines,
    metric_name,
    outcome_of,
    rate_cells,
    rate_notes,
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class AttackLine:
    """One attack against one metric of a verifier, and one kind of negatives.

    :ivar label: Row label of the attack.
    :ivar accuracy: Accuracy in percent, one value for each model.
    :ivar verifier: Class name.
    :ivar negatives: Row label of the negatives; empty if there are none.
    :ivar metric: The metric on this attack's models; ``None`` where none of them could be scored.
    :ivar missing: ``skipped`` or ``failed`` to the number of models without a verdict.
    """

    label: str
    accuracy: tuple[float, ...]
    verifier: str
    negatives: str
    metric: MetricLine | None
    missing: Mapping[str, int]


def attack_lines(rows: Iterable[Row]) -> list[AttackLine]:
    """Return the lines of every attack, verifier, metric and kind of negatives, in order of appearance.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    verifiers = dict.fromkeys(row["verifier"] for row in kept)
    found = []
    for label in dict.fromkeys(row["suspect"] for row in kept if row["role"] == "surrogate"):
        mine = [row for row in kept if row["role"] != "surrogate" or row["suspect"] == label]
        surrogates = [row for row in mine if row["role"] == "surrogate"]
        accuracy = {row["seed"]: 100 * row["accuracy"] for row in surrogates if row["accuracy"] is not None}
        for name in verifiers:
            cells = [row for row in mine if row["verifier"] == name]
            missing = Counter(outcome_of(row) for row in cells if row["role"] == "surrogate" and row["status"] != "ok")
            for kind in kinds_of_negatives(kept):
                scored = [row for row in against(cells, kind) if row["status"] == "ok"]
                known = {m for row in scored if row["role"] == "surrogate" for m in row["metrics"]}
                metrics: Sequence[MetricLine | None] = [m for m in metric_lines(scored) if m.name in known] or [None]
                found += [
                    AttackLine(label, tuple(accuracy.values()), name, kind, metric, missing) for metric in metrics
                ]
    return found


def attack_sheet(rows: Iterable[Row]) -> Sheet:
    """Return the table of attacks: a line for each attack, verifier, metric and kind of negatives.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    lines = attack_lines(rows)
    several = len({line.negatives for line in lines}) > 1
    cells = [
        ["Model", "Accuracy %", "Verifier", "Metric", *(["Negatives"] if several else []), "Recognised", *RATES],
    ]
    for line in lines:
        kind = [one_line(line.negatives)] if several else []
        gaps = ", ".join(f"{count} {outcome}" for outcome, count in line.missing.items())
        if line.metric is None:
            result = ["-", *kind, gaps or "-", *["-"] * len(RATES)]
        else:
            share = str(line.metric.recognised) + (f", {gaps}" if gaps else "")
            result = [metric_name(line.metric), *kind, share, *rate_cells(line.metric)]
        cells.append([one_line(line.label), mean_std(line.accuracy, 2), one_line(short(line.verifier)), *result])
    notes = [
        "Accuracy: mean ± sample standard deviation over the attack's seeds.",
        "Recognised: models that the metric judges derived, by the threshold that the reference models set.",
        *rate_notes([line.metric for line in lines if line.metric is not None]),
    ]
    return Sheet(cells, tuple(notes))
