"""The verb ``report`` of the command line: every table and the HTML report of a run's folder, from its rows alone."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.core.files import write_whole
from art_fingerprint.exceptions import FingerprintError, InvalidInputError
from art_fingerprint.reporting import robustness, tables
from art_fingerprint.reporting.comparison import beside_published
from art_fingerprint.reporting.html import report
from art_fingerprint.reporting.layout import Sheet, render, text
from art_fingerprint.reporting.published import PublishedTable, published_datasets, published_table
from art_fingerprint.reporting.tradeoff_plot import plot_tradeoff
from art_fingerprint.reporting.verdict_tables import verdict_sheet, verifier_sheet

logger = logging.getLogger(__name__)
Groups = Mapping[str, list[Mapping[str, Any]]]
_FORMS = {"robustness": ("md", "csv"), "tradeoff": ("md", "csv")}  # the others have a LaTeX form, too


def write_report(folder: Path, published: str | None = None) -> bool:
    """Write tables, figure and HTML report into a run's folder, print the tables, and tell whether no cell failed.

    ``table`` (Table I), ``verifiers``, ``verdicts`` and, if asked for, ``published`` are written as Markdown,
    comma-separated values and LaTeX; ``robustness`` (Table IV) and ``tradeoff`` without LaTeX, as far as the rows have
    them. A folder with rows of several presets gets the same files, with a table for each preset.

    :param folder: Folder of a run.
    :param published: The paper's data set whose numbers are set beside ours; empty for the rows' own data set, ``None``
        for no comparison.
    :raises InvalidInputError: no rows, or a data set that the paper does not have.
    :raises OSError: a file cannot be written.
    """
    groups = tables.by_preset(read_rows(folder))
    twins = {} if published is None else _twins(groups, published)
    sheets: dict[str, dict[str, Sheet]] = {}  # table, preset
    figures = {}
    for preset, rows in groups.items():
        table = tables.table_one(rows)
        found = {"table": tables.sheet(table), "verifiers": verifier_sheet(rows), "verdicts": verdict_sheet(rows)}
        robust, figure = _robustness(rows)
        found |= robust
        if preset in twins:
            found["published"] = beside_published(table, twins[preset])
        for name, sheet in found.items():
            warned = () if name == "table" else tables.warnings_of(rows)
            sheets.setdefault(name, {})[preset] = replace(sheet, notes=(*warned, *sheet.notes))
        if figure is not None:
            figures[preset] = figure
    several = len(groups) > 1
    for name, by_preset in sheets.items():
        for form in _FORMS.get(name, ("md", "csv", "tex")):
            write_whole(folder / f"{name}.{form}", render(by_preset, form, named=several).encode())
    for number, preset in enumerate(groups, 1):
        own = f"-{number}-{re.sub('[^A-Za-z0-9.-]+', '_', preset)}" if several else ""
        if preset in figures:
            write_whole(folder / f"tradeoff{own}.png", figures[preset])
    everything = [row for rows in groups.values() for row in rows]
    write_whole(folder / "report.html", report(everything).encode())
    for line in _printed(groups, sheets):
        print(line)
    print(f"\nReport: {folder / 'report.html'}")
    return all(row["status"] != "failed" for row in everything)


def _twins(groups: Groups, published: str) -> dict[str, PublishedTable]:
    """Return the paper's table for each preset that has one."""
    if published:
        return dict.fromkeys(groups, published_table(published))
    known = published_datasets()
    found = {}
    for preset, rows in groups.items():
        with suppress(InvalidInputError):  # a data set of ours
            found[preset] = published_table(str(rows[0]["dataset"]))
    if not found:
        own = ", ".join(dict.fromkeys(str(rows[0]["dataset"]) for rows in groups.values()))
        raise InvalidInputError(
            f"The paper has no table of the rows' data set ({own}); name the one to compare with: {', '.join(known)}."
        )
    return found


def _robustness(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Sheet], bytes | None]:
    """Return Table IV, and robustness beside removal, with a figure where matplotlib is installed."""
    found = {}
    try:
        found["robustness"] = Sheet(robustness.table_four(rows))
        points = robustness.tradeoff(rows)
        found["tradeoff"] = Sheet(robustness.tradeoff_cells(points))
        image = io.BytesIO()
        plot_tradeoff(points).savefig(image, format="png", dpi=150)
    except FingerprintError as error:  # an earlier version's rows, no references, no matplotlib
        logger.info("Not all of robustness and removal: %s", error)
        return found, None
    return found, image.getvalue()


def _printed(groups: Groups, sheets: Mapping[str, Mapping[str, Sheet]]) -> Iterable[str]:
    headings = {
        "table": "",
        "verifiers": "Verifiers",
        "robustness": "Robustness (Table IV)",
        "published": "The paper's numbers beside ours",
    }
    for number, preset in enumerate(groups):
        if len(groups) > 1:
            yield ("\n" if number else "") + f"== {preset}"
        for name, heading in headings.items():
            sheet = sheets.get(name, {}).get(preset)
            if sheet is None:
                if name == "published" and name in sheets:
                    yield "\nThe paper has no table of this data set."
                continue
            # the last column of Table IV holds the paper's numbers: too wide for a terminal
            cells = [row[:-1] for row in sheet.cells] if name == "robustness" else sheet.cells
            yield (f"\n{heading}\n" if heading else "") + text(cells, sheet.rule_before_last, sheet.notes)
