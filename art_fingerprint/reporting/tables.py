"""The layout of the RemovalNet paper's Table I, from result rows."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.verdict import combine

# Metric name, heading in the paper, digits after the point.
COLUMNS = (
    ("LOD", "DJ-LOD", 2),
    ("LAD", "DJ-LAD", 2),
    ("ZEST-L2", "ZEST-L2", 2),
    ("ZEST-cosine", "ZEST-Cosine", 3),
    ("DDV", "ModelDiff-DDV", 3),
    ("MR", "IPGuard-MR", 3),
)


@dataclass(frozen=True)
class Line:
    """One line of the table: a suspect over its seeds.

    :ivar label: Row label.
    :ivar accuracy: Accuracy in percent, one value a seed.
    :ivar drop: Accuracy drop in points, one value a seed.
    :ivar metrics: Metric name to one value a seed.
    :ivar derived: Majority verdict over all metrics, one a seed.
    :ivar failed: Cells without a result, with the reason.
    """

    label: str
    accuracy: tuple[float, ...]
    drop: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    derived: tuple[bool | None, ...]
    failed: tuple[str, ...]

    @property
    def ownership(self) -> str:
        """``Yes (n/seeds)`` if most seeds are judged derived, else ``No (n/seeds)``; ``?`` where nothing was
        decided.
        """
        votes = [flag for flag in self.derived if flag is not None]
        if not votes:
            return "?"
        return f"{'Yes' if sum(votes) * 2 > len(votes) else 'No'} ({sum(votes)}/{len(self.derived)})"


@dataclass(frozen=True)
class Table:
    """Table I of one preset.

    :ivar dataset: Name of the data set.
    :ivar victim_accuracy: The victim's accuracy in percent.
    :ivar lines: Suspects: surrogates in order of appearance, negatives last.
    :ivar thresholds: Metric name to threshold.
    """

    dataset: str
    victim_accuracy: float
    lines: tuple[Line, ...]
    thresholds: Mapping[str, float]


def latest_rows(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keep the newest row of every cell: a failed one is replaced by a later success, and the other way round."""
    newest: dict[Any, Mapping[str, Any]] = {}
    for row in rows:
        newest[row["suspect"], row["seed"], row["verifier"]] = row
    return list(newest.values())


def table_one(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Build the table from the rows of one preset.

    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = latest_rows(rows)
    if not kept:
        raise InvalidInputError("There are no result rows to make a table of.")
    presets = {str(row["preset"]) for row in kept}
    if len(presets) > 1:
        raise InvalidInputError(
            f"The rows belong to several presets ({', '.join(sorted(presets))}); pass those of one."
        )
    victim = [row["accuracy"] for row in kept if row["role"] == "victim" and row["status"] == "ok"]
    thresholds = {
        name: result["threshold"]
        for row in kept
        for name, result in row["metrics"].items()
        if result["threshold"] is not None
    }
    wanted = [row for row in kept if row["role"] in ("surrogate", "negative")]
    labels = sorted(dict.fromkeys(row["suspect"] for row in wanted), key=lambda label: label == "Negative")
    return Table(
        dataset=str(kept[0]["dataset"]),
        victim_accuracy=100 * victim[0] if victim else float("nan"),
        lines=tuple(_line(label, [row for row in wanted if row["suspect"] == label]) for label in labels),
        thresholds=thresholds,
    )


def _line(label: str, rows: list[Mapping[str, Any]]) -> Line:
    seeds = sorted({row["seed"] for row in rows})
    by_seed = {seed: [row for row in rows if row["seed"] == seed] for seed in seeds}
    scored = {seed: [row for row in group if row["status"] == "ok"] for seed, group in by_seed.items()}
    results = {
        seed: {name: result for row in group for name, result in row["metrics"].items()}
        for seed, group in scored.items()
    }
    table_metrics = [name for name, _, _ in COLUMNS]
    return Line(
        label=label,
        accuracy=tuple(100 * group[0]["accuracy"] for group in scored.values() if group),
        drop=tuple(group[0]["accuracy_drop"] for group in scored.values() if group),
        metrics={
            name: tuple(r[name]["value"] for r in results.values() if name in r and r[name]["value"] is not None)
            for name in table_metrics
        },
        derived=tuple(combine(r[name]["derived"] for name in table_metrics if name in r) for r in results.values()),
        failed=tuple(
            f"{label} seed {row['seed']} {row['verifier']}: {row['reason']}" for row in rows if row["status"] != "ok"
        ),
    )


def mean_std(values: Iterable[float], digits: int) -> str:
    """Return ``mean±std`` (sample standard deviation), the mean alone for one value, ``-`` for none."""
    numbers = list(values)
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return f"{mean}±{statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def cells(table: Table) -> list[list[str]]:
    """Return the table as text cells, headings first, thresholds last."""
    shown = [(name, heading, digits) for name, heading, digits in COLUMNS if _has(table, name)]
    head = f"{table.dataset} (Acc: {table.victim_accuracy:.2f}%)"
    rows = [[head, "Accuracy %", "Drop", *(heading for _, heading, _ in shown), "Ownership?"]]
    for line in table.lines:
        values = [mean_std(line.metrics.get(name, ()), digits) for name, _, digits in shown]
        rows.append([line.label, mean_std(line.accuracy, 2), mean_std(line.drop, 2), *values, line.ownership])
    limits = [f"{table.thresholds[n]:.{d}f}" if n in table.thresholds else "-" for n, _, d in shown]
    rows.append(["threshold", "-", "-", *limits, "-"])
    return rows


def _has(table: Table, name: str) -> bool:
    return name in table.thresholds or any(line.metrics.get(name) for line in table.lines)


def as_text(table: Table) -> str:
    """Return the table in columns for a terminal."""
    rows = cells(table)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *_footnotes(table)])


def as_markdown(table: Table) -> str:
    """Return the table in Markdown."""
    rows = cells(table)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], "", *_footnotes(table)]).rstrip() + "\n"


def as_csv(table: Table) -> str:
    """Return the table as comma-separated values."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(cells(table))
    return out.getvalue()


def as_latex(table: Table) -> str:
    """Return the table as a LaTeX ``tabular``."""
    escapes = str.maketrans({"%": r"\%", "_": r"\_", "±": r"$\pm$", "&": r"\&", "#": r"\#"})
    rows = [[cell.translate(escapes) for cell in row] for row in cells(table)]
    body = [" & ".join(row) + r" \\" for row in rows]
    spec = "l" + "r" * (len(rows[0]) - 2) + "l"
    head, tail = rf"\begin{{tabular}}{{{spec}}}", r"\end{tabular}"
    return "\n".join([head, r"\hline", body[0], r"\hline", *body[1:-1], r"\hline", body[-1], r"\hline", tail]) + "\n"


def _footnotes(table: Table) -> list[str]:
    return [f"failed: {reason}" for line in table.lines for reason in line.failed]
