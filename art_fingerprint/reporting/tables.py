"""The layout of the RemovalNet paper's Table I, from result rows."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.layout import Sheet, mean_std, one_line, render
from art_fingerprint.reporting.published import published_table
from art_fingerprint.verifiers.verdict import combine
from art_fingerprint.zoo.preset import KNOWN, NEGATIVES, OTHER_DATA_REFERENCE, REFERENCE, VICTIM

# Metric name, heading in the paper, digits after the point.
COLUMNS = (
    ("LOD", "DJ-LOD", 2),
    ("LAD", "DJ-LAD", 2),
    ("ZEST-L2", "ZEST-L2", 2),
    ("ZEST-cosine", "ZEST-Cosine", 3),
    ("DDV", "ModelDiff-DDV", 3),
    ("MR", "IPGuard-MR", 3),
)


SMOKE_TITLE = " (smoke, no results)"
SMOKE = (
    "SMOKE SCALE: a handful of iterations on few images, to see that everything runs. No number here says anything "
    "about a verifier or an attack."
)


@dataclass(frozen=True)
class Line:
    """One line of the table: a suspect over its seeds.

    :ivar label: Row label.
    :ivar role: ``"surrogate"`` or ``"negative"``.
    :ivar accuracy: Accuracy in percent, one value a seed.
    :ivar drop: Accuracy drop in points, one value a seed.
    :ivar metrics: Metric name to one value a seed.
    :ivar derived: Majority verdict over all metrics, one a seed.
    """

    label: str
    role: str
    accuracy: tuple[float, ...]
    drop: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    derived: tuple[bool | None, ...]

    @property
    def ownership(self) -> str:
        """``Yes (k/n)`` if most of the n seeds with a verdict are judged derived, else ``No (k/n)``, and how many have
        none; ``?`` where nothing was decided.
        """
        owned, none = combine(self.derived), self.derived.count(None)
        if owned is None:
            return "?"
        share = f"{'Yes' if owned else 'No'} ({self.derived.count(True)}/{len(self.derived) - none})"
        return share + (f", {none} without verdict" if none else "")


@dataclass(frozen=True)
class Table:
    """Table I of one preset.

    :ivar dataset: Name of the data set.
    :ivar victim_accuracy: The victim's accuracy in percent; ``None`` if no row has it.
    :ivar lines: Suspects: surrogates in order of appearance, negatives last.
    :ivar thresholds: Metric name to threshold.
    :ivar notes: Cells without a result, with the reason, those of one reason together.
    :ivar warnings: What keeps the numbers from being results: smoke scale.
    """

    dataset: str
    victim_accuracy: float | None
    lines: tuple[Line, ...]
    thresholds: Mapping[str, float]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The data set, with a word of a smoke run, for forms that have no notes."""
        return one_line(self.dataset) + (SMOKE_TITLE if self.warnings else "")


def latest_rows(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keep the newest row of every cell: a failed one is replaced by a later success, and the other way round.

    Rows about a former victim of the same preset (another seed, recipe or version) are left out, and so are those of a
    verifier's former settings or calibration and of an attack's former parameters: a table is of one setting.
    """
    given = list(rows)
    victims = {row["preset"]: row["victim"] for row in given}
    given = [row for row in given if row["victim"] == victims[row["preset"]]]
    fingerprints = {_verifier_of(row): row["fingerprint"] for row in given if row.get("fingerprint") is not None}
    attacks = {_suspect_of(row): _attack_of(row) for row in given}
    newest = {
        (*_suspect_of(row), row["seed"], row["verifier"]): row
        for row in given
        if row.get("fingerprint") in (None, fingerprints.get(_verifier_of(row)))
        and _attack_of(row) == attacks[_suspect_of(row)]
    }
    return list(newest.values())


def _verifier_of(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["preset"], row["verifier"]


def _suspect_of(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["preset"], row["suspect"]


def _attack_of(row: Mapping[str, Any]) -> tuple[object, object]:
    return row["attack"], row["attack_params"]


def by_preset(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the newest rows of every preset, in order of appearance: a folder may hold several victims.

    :raises InvalidInputError: no rows.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in latest_rows(rows):
        groups.setdefault(str(row["preset"]), []).append(row)
    if not groups:
        raise InvalidInputError("There are no result rows to make a table of.")
    return groups


def rows_of_one_preset(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the newest rows, which must be of one preset: thresholds hold for one victim.

    :raises InvalidInputError: no rows, or rows of several presets.
    """
    groups = by_preset(rows)
    if len(groups) > 1:
        raise InvalidInputError(f"The rows belong to several presets ({', '.join(sorted(groups))}); pass those of one.")
    return next(iter(groups.values()))


@functools.cache
def _known_labels() -> tuple[str, ...]:
    lines = (row.label for row in published_table("CIFAR10").rows)
    return tuple(dict.fromkeys((VICTIM, REFERENCE, OTHER_DATA_REFERENCE, KNOWN, *lines, *NEGATIVES.values())))


def label_place(label: str) -> tuple[int, str, str]:
    """Return a sort key of row labels: victim, references, the paper's lines in its order, negatives, others by name.

    Numbers in names count by their size.
    """
    known = _known_labels()
    by_size = re.sub(r"[0-9]+(?:\.[0-9]+)?", lambda number: f"{float(number[0]):020.6f}", label)
    return known.index(label) if label in known else len(known), by_size, label


def ordered(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return rows by label, seed and verifier, the paper's first: workers finish in any order."""
    given, columns = list(rows), [name for name, _, _ in COLUMNS]
    first: dict[str, int] = {}  # column of each verifier; a row without a result names no metric
    for row in given:
        found = [columns.index(name) for name in row["metrics"] if name in columns]
        first[row["verifier"]] = min(found + [first.get(row["verifier"], len(columns))])

    def place(row: Mapping[str, Any]) -> tuple[object, ...]:
        return label_place(row["suspect"]), row["seed"], first[row["verifier"]], row["verifier"]

    return sorted(given, key=place)


def table_one(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Build the table from the rows of one preset.

    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    victim = [row["accuracy"] for row in kept if row["role"] == "victim" and row["accuracy"] is not None]
    thresholds = {
        name: result["threshold"]
        for row in kept
        for name, result in row["metrics"].items()
        if result["threshold"] is not None
    }
    wanted = [row for row in kept if row["role"] in ("surrogate", "negative")]
    roles = {row["suspect"]: row["role"] for row in wanted}
    labels = sorted(roles, key=lambda label: roles[label] == "negative")
    return Table(
        dataset=str(kept[0]["dataset"]),
        victim_accuracy=100 * victim[0] if victim else None,
        lines=tuple(_line(label, [row for row in wanted if row["suspect"] == label]) for label in labels),
        thresholds=thresholds,
        notes=(*_notes(kept), *_mixed(wanted)),
        warnings=warnings_of(kept),
    )


def warnings_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what a reader of these rows must know: that they are of a smoke run, if they are."""
    return (SMOKE,) if any(row.get("scale") == "smoke" for row in rows) else ()


def marked(sheet: Sheet, warnings: Sequence[str]) -> Sheet:
    """Return a table with what its reader must know, in its first heading, too: not every form has notes."""
    first, *others = sheet.cells[0]
    known = not warnings or SMOKE_TITLE in first
    cells = sheet.cells if known else [[first + SMOKE_TITLE, *others], *sheet.cells[1:]]
    return replace(warned(sheet, warnings), cells=cells)


def warned(sheet: Sheet, warnings: Sequence[str]) -> Sheet:
    """Return a table with what its reader must know as its first notes, once."""
    return replace(sheet, notes=(*warnings, *(note for note in sheet.notes if note not in warnings)))


def _line(label: str, rows: list[Mapping[str, Any]]) -> Line:
    seeds = sorted({row["seed"] for row in rows})
    by_seed = [[row for row in rows if row["seed"] == seed] for seed in seeds]
    made = [next((row for row in group if row["accuracy"] is not None), None) for group in by_seed]
    results = [
        {name: result for row in group if row["status"] == "ok" for name, result in row["metrics"].items()}
        for group in by_seed
    ]
    table_metrics = [name for name, _, _ in COLUMNS]
    return Line(
        label=label,
        role=rows[0]["role"],
        accuracy=tuple(100 * row["accuracy"] for row in made if row),
        drop=tuple(row["accuracy_drop"] for row in made if row and row["accuracy_drop"] is not None),
        metrics={
            name: tuple(r[name]["value"] for r in results if name in r and r[name]["value"] is not None)
            for name in table_metrics
        },
        derived=tuple(combine(r[name]["derived"] for name in table_metrics if name in r) for r in results),
    )


def _notes(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    seeds: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            cell = tuple(str(row[name]) for name in ("status", "suspect", "verifier", "reason"))
            seeds.setdefault(cell, []).append(str(row["seed"]))
    return tuple(
        one_line(f"{status}: {suspect} (seed {', '.join(found)}), {verifier}: {reason}")
        for (status, suspect, verifier, reason), found in seeds.items()
    )


def _mixed(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a note on every metric whose values are partly of logits and partly of probabilities."""
    spaces: dict[str, set[str]] = {}
    for row in rows:
        for name, result in row["metrics"].items():
            if result["value"] is not None:
                spaces.setdefault(name, set()).add(result.get("space") or "")
    return [
        f"{one_line(name)} is of logits for some models and of probabilities for others: mean and threshold are "
        "of no one scale. The table of verifiers keeps them apart."
        for name, found in spaces.items()
        if len(found) > 1
    ]


def cells(table: Table) -> list[list[str]]:
    """Return the table as text cells, headings first, thresholds last."""
    shown = [(name, heading, digits) for name, heading, digits in COLUMNS if has_metric(table, name)]
    accuracy = "" if table.victim_accuracy is None else f" (Acc: {table.victim_accuracy:.2f}%)"
    rows = [[table.title + accuracy, "Accuracy %", "Drop", *(heading for _, heading, _ in shown), "Ownership?"]]
    for line in table.lines:
        values = [mean_std(line.metrics.get(name, ()), digits) for name, _, digits in shown]
        rows.append([one_line(line.label), mean_std(line.accuracy, 2), mean_std(line.drop, 2), *values, line.ownership])
    limits = [f"{table.thresholds[n]:.{d}f}" if n in table.thresholds else "-" for n, _, d in shown]
    rows.append(["threshold", "-", "-", *limits, "-"])
    return rows


def has_metric(table: Table, name: str) -> bool:
    """Tell whether any line, or the thresholds, have this metric."""
    return name in table.thresholds or any(line.metrics.get(name) for line in table.lines)


def sheet(table: Table) -> Sheet:
    """Return the table with its notes, ready for every form."""
    return Sheet(cells(table), (*table.warnings, *table.notes), rule_before_last=True)


def as_text(table: Table) -> str:
    """Return the table in columns for a terminal."""
    return render({"": sheet(table)}, "txt")


def as_markdown(table: Table) -> str:
    """Return the table in Markdown."""
    return render({"": sheet(table)}, "md")


def as_csv(table: Table) -> str:
    """Return the table as comma-separated values."""
    return render({"": sheet(table)}, "csv")


def as_latex(table: Table) -> str:
    """Return the table as a LaTeX ``tabular``."""
    return render({"": sheet(table)}, "tex")
