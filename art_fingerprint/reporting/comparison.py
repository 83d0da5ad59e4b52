"""Our lines of Table I beside those that the RemovalNet paper prints."""

from __future__ import annotations

from art_fingerprint.reporting.layout import Sheet, mean_std, one_line
from art_fingerprint.reporting.published import PublishedTable, plain_name
from art_fingerprint.reporting.tables import COLUMNS, Line, Table, has_metric


def beside_published(table: Table, published: PublishedTable) -> Sheet:
    """Return the paper's lines, each below ours of the same label; ``-`` for what either does not have.

    Rows that the paper does not have are named in a note.

    :param table: Our table.
    :param published: The paper's, for one data set.
    """
    shown = [
        (name, heading, digits)
        for name, heading, digits in COLUMNS
        if name in published.thresholds or has_metric(table, name)
    ]
    ours, theirs = f"ours: {one_line(table.dataset)}", f"paper: {published.dataset}"
    dashes = ["-"] * len(shown)
    own_accuracy = "-" if table.victim_accuracy is None else f"{table.victim_accuracy:.2f}"
    cells = [
        ["Model", "Source", "Accuracy %", "Drop", *(heading for _, heading, _ in shown), "Ownership?"],
        ["Victim", ours, own_accuracy, "-", *dashes, "-"],
        ["Victim", theirs, published.victim_accuracy.printed, "-", *dashes, "-"],
    ]
    lines = {line.label: line for line in table.lines}
    for row in published.rows:
        values = [row.metrics[name].printed if name in row.metrics else "-" for name, _, _ in shown]
        cells.append([row.label, ours, *_own(lines.get(row.label), shown)])
        cells.append([row.label, theirs, row.accuracy.printed, row.drop.printed, *values, row.ownership])
    own_limits = [f"{table.thresholds[n]:.{d}f}" if n in table.thresholds else "-" for n, _, d in shown]
    limits = [published.thresholds[n].printed if n in published.thresholds else "-" for n, _, _ in shown]
    cells += [["threshold", ours, "-", "-", *own_limits, "-"], ["threshold", theirs, "-", "-", *limits, "-"]]
    return Sheet(cells, _notes(table, published))


def _own(line: Line | None, shown: list[tuple[str, str, int]]) -> list[str]:
    if line is None:
        return ["-"] * (len(shown) + 3)
    values = [mean_std(line.metrics.get(name, ()), digits) for name, _, digits in shown]
    return [mean_std(line.accuracy, 2), mean_std(line.drop, 2), *values, line.ownership]


def _notes(table: Table, published: PublishedTable) -> tuple[str, ...]:
    notes = ["Paper: mean ± spread over 10 models, as printed."]
    if plain_name(table.dataset) != plain_name(published.dataset):
        notes.append("Other images and other networks: compare the order of the lines, not the size of the numbers.")
    known = {row.label for row in published.rows}
    apart = [one_line(line.label) for line in table.lines if line.label not in known]
    if apart:
        notes.append(f"Not in the paper's table: {', '.join(apart)}.")
    return (*notes, *published.notes)
