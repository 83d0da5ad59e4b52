"""What a report shows of the experiments in a folder: from their rows, or as they left it where that needs models."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from art_fingerprint.exceptions import FingerprintError
from art_fingerprint.experiments.catalogue import EXPERIMENTS
from art_fingerprint.experiments.experiment import failures
from art_fingerprint.reporting.layout import Sheet
from art_fingerprint.reporting.pictures import Exhibit

Row = Mapping[str, Any]
Groups = Mapping[str, Sequence[Row]]


def split_name(preset: str) -> tuple[str, str]:
    """Return the preset and the experiment that rows called ``PRESET EXPERIMENT`` belong to; no experiment: empty."""
    base, _, name = preset.rpartition(" ")
    return (base, name) if base and name in EXPERIMENTS else (preset, "")


def by_experiment(groups: Groups) -> tuple[dict[str, list[Row]], dict[str, dict[str, list[Row]]]]:
    """Return the rows of presets' own grids, and preset to experiment to rows, in the order of the catalogue."""
    own: dict[str, list[Row]] = {}
    inner: dict[str, dict[str, list[Row]]] = {}
    for preset, rows in groups.items():
        base, name = split_name(preset)
        if name:
            inner.setdefault(base, {})[name] = list(rows)
        else:
            own[preset] = list(rows)
    order = list(EXPERIMENTS)
    return own, {base: dict(sorted(found.items(), key=lambda i: order.index(i[0]))) for base, found in inner.items()}


def exhibits(folder: Path, preset: str, experiments: Mapping[str, Sequence[Row]], own: Sequence[Row]) -> list[Exhibit]:
    """Return what there is to show of a preset's experiments.

    :param folder: Folder of the run, with what the experiments wrote.
    :param preset: The preset.
    :param experiments: Experiment to its rows.
    :param own: Rows of the preset's own grid, to tell whether they are about the same victim.
    """
    found = []
    for name, rows in experiments.items():
        chosen, stem = EXPERIMENTS[name], Path(f"{name}-{preset}").name  # of this folder alone
        notes = _warnings(rows, own)
        image = None
        with suppress(OSError):
            image = (folder / f"{stem}.png").read_bytes()
        sheets: Mapping[str, Sheet] = {}
        figure = None
        if chosen.from_rows is not None:
            try:
                findings = chosen.from_rows(rows)
                sheets, figure = findings.sheets, findings.figure
                notes += failures(rows)
            except FingerprintError as error:
                notes.append(f"The rows cannot be read: {error}")
        else:
            sheet = _written(folder, stem)
            if sheet is None:
                notes.append(_absent(f"{stem}.csv", name, preset))
            else:
                sheets = {"": sheet}
            if image is None and name.startswith("fig"):
                notes.append(_absent(f"{stem}.png", name, preset))
        found.append(Exhibit(name, chosen.title, rows, sheets, figure, image, tuple(notes)))
    return found


def _warnings(rows: Sequence[Row], own: Sequence[Row]) -> list[str]:
    notes = []
    if own and rows and own[0]["victim"] != rows[0]["victim"]:
        notes.append("About another victim than the tables above: another version, recipe or seed.")
    failed = sum(row["status"] != "ok" for row in rows)
    if failed:
        notes.append(f"{failed} of {len(rows)} cells have no result; see How this was measured.")
    return notes


def _absent(file: str, name: str, preset: str) -> str:
    return (
        f"The folder has no {file}. It is made from the models: art-fingerprint experiment {name} --preset {preset} "
        "--out DIR writes it (pictures: pip install 'art-fingerprint[plots]')."
    )


def _written(folder: Path, stem: str) -> Sheet | None:
    """Return the table that an experiment wrote, with the notes below it; ``None`` if there is none."""
    try:
        with (folder / f"{stem}.csv").open(encoding="utf-8", newline="") as file:
            cells = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return None
    if not cells or any(len(row) != len(cells[0]) for row in cells):
        return None
    notes: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        lines = (folder / f"{stem}.md").read_text(encoding="utf-8").splitlines()
        notes = [re.sub(r"\\(.)", r"\1", line[2:]) for line in lines if line.startswith("- ")]
    return Sheet(cells, tuple(notes))
