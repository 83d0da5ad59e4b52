"""The verb ``report`` of the command line: every table and the HTML report of a run's folder, from its rows alone."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from art_fingerprint.benchmark.store import PLAN, ROWS, is_done, read_rows
from art_fingerprint.core.files import write_whole
from art_fingerprint.exceptions import FingerprintError, InvalidInputError
from art_fingerprint.experiments.exhibits import by_experiment, exhibits
from art_fingerprint.reporting import robustness, tables
from art_fingerprint.reporting.attack_tables import attack_sheet
from art_fingerprint.reporting.comparison import beside_published
from art_fingerprint.reporting.heat_map import heat_map, heat_map_sheet
from art_fingerprint.reporting.html import report
from art_fingerprint.reporting.layout import Sheet, render, text
from art_fingerprint.reporting.measured import Provenance
from art_fingerprint.reporting.published import PublishedTable, published_datasets, published_table
from art_fingerprint.reporting.published.differences import Counterpart, counterpart
from art_fingerprint.reporting.tradeoff_plot import plot_tradeoff
from art_fingerprint.reporting.verdict_tables import verdict_sheet, verifier_sheet

logger = logging.getLogger(__name__)
Groups = Mapping[str, list[Mapping[str, Any]]]
_FORMS = {"robustness": ("md", "csv"), "tradeoff": ("md", "csv")}  # the others have a LaTeX form, too


def write_report(folder: Path, published: str | None = None) -> bool:
    """Write tables, figures and HTML report into a run's folder, print the tables, and tell whether no cell failed.

    ``table`` (Table I), ``verifiers``, ``verdicts``, ``attacks``, ``heat-map`` and ``published`` (where the paper has
    the data set, or one near it) are written as Markdown, comma-separated values and LaTeX; ``robustness`` (Table IV)
    and ``tradeoff`` without LaTeX, as far as the rows have them; ``tradeoff`` and ``heat-map`` as figures, too, if the
    rows have two verifiers and matplotlib is installed. A folder with rows of several presets gets the same files, with
    a table for each preset. Rows of experiments go into the report, below their preset.

    :param folder: Folder of a run.
    :param published: Print the paper's numbers beside ours, too: of this data set; empty for the rows' own, or the
        nearest. ``None``: they are in the files alone.
    :raises InvalidInputError: no rows, or a data set that the paper does not have.
    :raises OSError: a file cannot be written.
    """
    newest = tables.by_preset(read_rows(folder))
    groups, inner = by_experiment({preset: tables.ordered(rows) for preset, rows in newest.items()})
    twins = _twins({**{base: next(iter(found.values())) for base, found in inner.items()}, **groups}, published)
    sheets: dict[str, dict[str, Sheet]] = {}  # table, preset
    figures = {}
    for preset, rows in groups.items():
        table = tables.table_one(rows)
        own = {"table": tables.sheet(table), "verifiers": verifier_sheet(rows), "verdicts": verdict_sheet(rows)}
        own |= {"attacks": attack_sheet(rows), "heat-map": heat_map_sheet(rows)}
        robust, figure = _robustness(rows)
        own |= robust
        twin = twins.get(preset)
        if twin is not None:
            own["published"] = beside_published(table, twin.table, twin.same)
        for name, sheet in own.items():
            sheets.setdefault(name, {})[preset] = tables.marked(sheet, table.warnings)
        if figure is not None:
            figures["tradeoff", preset] = figure
        if (drawn := _heat_map(rows)) is not None:
            figures["heat-map", preset] = drawn
    several = len(groups) > 1
    for name, by_preset in sheets.items():
        for form in _FORMS.get(name, ("md", "csv", "tex")):
            write_whole(folder / f"{name}.{form}", render(by_preset, form, named=several).encode())
    for number, preset in enumerate(groups, 1):
        suffix = f"-{number}-{re.sub('[^A-Za-z0-9.-]+', '_', preset)}" if several else ""
        for name in ("tradeoff", "heat-map"):
            if (name, preset) in figures:
                write_whole(folder / f"{name}{suffix}.png", figures[name, preset])
    shown = {base: exhibits(folder, base, found, groups.get(base, ())) for base, found in inner.items()}
    own_rows = [row for rows in groups.values() for row in rows]
    page = report(own_rows, shown, _provenance(folder), twins)
    write_whole(folder / "report.html", page.encode())
    for line in _printed(groups, sheets, published is not None):
        print(line)
    print(f"\nReport: {folder / 'report.html'}")
    everything = [*own_rows, *(row for found in inner.values() for rows in found.values() for row in rows)]
    return all(map(is_done, everything))


def _twins(groups: Groups, published: str | None) -> dict[str, Counterpart | None]:
    """Return the paper's table for each preset, ``None`` where it has none."""
    datasets = {preset: str(rows[0]["dataset"]) for preset, rows in groups.items()}
    if published:
        table = published_table(published)
        return {preset: Counterpart(table, _is_of(table, dataset)) for preset, dataset in datasets.items()}
    found = {preset: counterpart(dataset) for preset, dataset in datasets.items()}
    if published is not None and not any(found.values()):
        own = ", ".join(dict.fromkeys(datasets.values()))
        raise InvalidInputError(
            f"The paper has no table of the rows' data set ({own}); name the one to compare with: "
            f"{', '.join(published_datasets())}."
        )
    return found


def _is_of(table: PublishedTable, dataset: str) -> bool:
    found = counterpart(dataset)
    return found is not None and found.same and found.table.dataset == table.dataset


def _provenance(folder: Path) -> Provenance:
    """Return the newest plan, and the digest of the rows."""
    content = (folder / ROWS).read_bytes()
    lines, digest = len(content.splitlines()), hashlib.sha256(content).hexdigest()
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        logger.info("No plan: %s", error)
        plan = {}
    return Provenance(plan if isinstance(plan, dict) else {}, {ROWS: f"{lines} lines, SHA-256 {digest}"})


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


def _heat_map(rows: Iterable[Mapping[str, Any]]) -> bytes | None:
    """Return attacks against verifiers as a picture, where there are enough and matplotlib is installed."""
    image = io.BytesIO()
    try:
        heat_map(rows).savefig(image, format="png", dpi=150)
    except FingerprintError as error:
        logger.info("No heat map: %s", error)
        return None
    return image.getvalue()


def _printed(groups: Groups, sheets: Mapping[str, Mapping[str, Sheet]], published: bool) -> Iterable[str]:
    headings = {"table": "", "verifiers": "Verifiers", "robustness": "Robustness (Table IV)"}
    if published:
        headings["published"] = "The paper's numbers beside ours"
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
