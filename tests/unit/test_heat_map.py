"""The heat map from hand-written rows: shares, texts, hatched cells, the drop beside, and what is refused."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.heat_map import HeatCell, heat_lines, heat_map, heat_map_sheet
from art_fingerprint.reporting.layout import render
from art_fingerprint.reporting.verdict_tables import Share
from tests.unit.test_reporting import FAR, HOSTILE, NEAR, failed, hostile, make_rows

Row = dict[str, Any]
VERIFIERS = ["DeepJudgeVerifier", "ZestVerifier", "ModelDiffVerifier", "IPGuardVerifier"]


def judged(label: str, seed: int, verdicts: str, role: str = "surrogate", accuracy: float = 0.95) -> list[Row]:
    """Rows of one model; a letter for each verifier: y(es), n(o), u(ndecided), s(kipped), f(ailed)."""
    rows = make_rows(label, seed, NEAR, role, accuracy)
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict in "sf":
            row.update(failed([row], "why", accuracy)[0], status={"s": "skipped", "f": "failed"}[verdict])
            row["accuracy_drop"] = 100 * (0.97 - accuracy)
        else:
            row["derived"] = {"y": True, "n": False, "u": None}[verdict]
    return rows


def grid() -> list[Row]:
    return [
        *make_rows("Victim", 1000, NEAR, "victim", 0.97),
        *make_rows("Reference", 0, FAR, "reference"),
        *judged("Negative", 0, "nnny", "negative", 0.93),
        *judged("Negative", 1, "nnnn", "negative", 0.91),
        *judged("Negative (other architecture)", 0, "snuf", "negative", 0.9),
        *judged("FT", 0, "yyyy", accuracy=0.96),
        *judged("FT", 1, "ynuf", accuracy=0.94),
        *judged("KnockOff", 0, "snnn", accuracy=0.77),
    ]


EXPECTED = {
    "FT": ["2/2", "1/2", "1/1", "1/1"],
    "KnockOff": ["n/a", "0/1", "0/1", "0/1"],
    "Negative": ["0/2", "0/2", "0/2", "1/2"],
    "Negative (other architecture)": ["n/a", "0/1", "?", "?"],
}


def test_lines_by_hand() -> None:
    lines = heat_lines(grid())
    assert {line.label: [cell.text for cell in line.cells.values()] for line in lines} == EXPECTED
    assert [line.label for line in lines] == list(EXPECTED)
    assert [line.role for line in lines] == ["surrogate"] * 2 + ["negative"] * 2
    assert [list(line.cells) for line in lines] == [VERIFIERS] * 4
    assert lines[0].drop == pytest.approx((1, 3))
    assert lines[1].drop == pytest.approx((20,))


def test_cells_that_are_partly_open() -> None:
    assert HeatCell(Share(0, 0), 2, 1).text == "?"
    assert HeatCell(Share(1, 2), 2, 1).text == "1/2"
    assert (HeatCell(Share(1, 4), 0, 0).value, HeatCell(Share(0, 0), 1, 0).value) == (0.25, None)


def test_sheet_holds_what_the_figure_shows() -> None:
    sheet = heat_map_sheet(grid())
    assert sheet.cells[0] == ["Model", "Role", "DeepJudge", "Zest", "ModelDiff", "IPGuard", "Accuracy drop"]
    assert {row[0]: row[2:-1] for row in sheet.cells[1:]} == EXPECTED
    assert [row[-1] for row in sheet.cells[1:]] == ["2.00±1.41", "20.00", "5.00±1.41", "7.00"]


def test_figure_has_a_block_of_each_role_and_the_drop_beside() -> None:
    figure = heat_map(grid())
    attacks, drop, negatives, negatives_drop = figure.axes
    for axes, labels in ((attacks, list(EXPECTED)[:2]), (negatives, list(EXPECTED)[2:])):
        assert [label.get_text() for label in axes.get_yticklabels()] == labels
        assert [text.get_text() for text in axes.texts] == [text for label in labels for text in EXPECTED[label]]
    assert [label.get_text() for label in attacks.get_xticklabels()] == ["DeepJudge", "Zest", "ModelDiff", "IPGuard"]
    assert [label.get_text() for label in negatives.get_xticklabels()] == []
    assert [text.get_text() for text in (*drop.texts, *negatives_drop.texts)] == ["2.0", "20.0", "5.0", "7.0"]
    assert np.asarray(attacks.images[0].get_array()) == pytest.approx(
        np.array([[1, 0.5, 1, 1], [np.nan, 0, 0, 0]]), nan_ok=True
    )
    assert attacks.images[0].get_clim() == negatives.images[0].get_clim() == (0, 1)
    names = [image.get_cmap().name for axes in figure.axes for image in axes.images]
    assert names == ["Blues", "Greys", "Oranges", "Greys"]
    assert drop.images[0].get_clim() == negatives_drop.images[0].get_clim()


def test_cells_without_a_verdict_are_hatched() -> None:
    attacks, _, negatives, _ = heat_map(grid()).axes
    for axes, nb_open in ((attacks, 1), (negatives, 3)):
        hatched = [patch for patch in axes.patches if patch.get_gid() == "no value"]
        assert len(hatched) == nb_open
        assert all(patch.get_hatch() for patch in hatched)
        assert len(axes.patches) == 8
        assert not any(patch.get_hatch() for patch in axes.patches if patch not in hatched)


def test_texts_can_be_read_on_their_cells() -> None:
    attacks = heat_map(grid()).axes[0]
    colours = {text.get_text(): text.get_color() for text in attacks.texts}
    assert colours["2/2"] == "white"
    assert colours["0/1"] == colours["n/a"] == "#222222"


def test_attacks_alone_and_negatives_alone() -> None:
    assert len(heat_map(judged("FT", 0, "yyyy")).axes) == 2
    assert len(heat_map(judged("Negative", 0, "nnnn", "negative")).axes) == 2


def test_models_that_could_not_be_made() -> None:
    rows = failed(make_rows("FT", 0, NEAR), "RuntimeError: no")
    assert [text.get_text() for text in heat_map(rows).axes[1].texts] == ["?"]


def test_any_label_is_drawn_and_written(tmp_path: Path) -> None:
    for name in ("a.png", "a.svg"):
        heat_map(hostile(), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    read = list(csv.reader(io.StringIO(render({"": heat_map_sheet(hostile())}, "csv"))))
    assert " ".join(HOSTILE.split()) in {row[0] for row in read}


def test_too_little_to_draw_is_refused(tmp_path: Path) -> None:
    one = [row for row in judged("FT", 0, "yyyy") if row["verifier"] == "ZestVerifier"]
    for rows in (one, make_rows("Victim", 0, NEAR, "victim")):
        with pytest.raises(InvalidInputError, match="two verifiers or more"):
            heat_map(rows)
    with pytest.raises(InvalidInputError, match="no result rows"):
        heat_map([])
    with pytest.raises(InvalidInputError, match="several presets"):
        heat_map([*judged("FT", 0, "yyyy"), {**judged("FT", 0, "yyyy")[0], "preset": "other"}])
    with pytest.raises(InvalidInputError, match="cannot be written"):
        heat_map(grid(), tmp_path / "a.nothing")
    assert len(heat_map_sheet(make_rows("Victim", 0, NEAR, "victim")).cells) == 1


def test_nothing_is_imported_before_it_is_drawn() -> None:
    code = "import sys, art_fingerprint.reporting.heat_map; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
