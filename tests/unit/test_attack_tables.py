"""The table of attacks from hand-written rows: AUC, TPR, accuracy, cells without a verdict, kinds of negatives."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from art_fingerprint.evaluation.intervals import auc_interval, share_interval
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.attack_tables import AttackLine, attack_lines, attack_sheet
from art_fingerprint.reporting.layout import render
from tests.unit.test_reporting import FAR, HOSTILE, NEAR, failed, hostile, make_rows

Row = dict[str, Any]


def one(label: str, seed: int, value: float, role: str = "surrogate", accuracy: float = 0.95) -> list[Row]:
    """Rows of one model and one verifier."""
    rows = make_rows(label, seed, {"MR": value}, role, accuracy)
    return [row for row in rows if row["verifier"] == "IPGuardVerifier"]


def grid() -> list[Row]:
    """Two attacks of three seeds against twenty negatives, of which 0.19 is the closest but one."""
    rows = [row for seed, value in enumerate((0.9, 0.8, 0.15)) for row in one("FT", seed, value, accuracy=0.9)]
    rows += [row for seed, a in enumerate((0.90, 0.92, 0.94)) for row in one("KnockOff", seed, 0.0, accuracy=a)]
    return rows + [row for seed in range(20) for row in one("Negative", seed, (seed + 1) / 100, "negative")]


def line(rows: list[Row], label: str, negatives: str = "Negative") -> AttackLine:
    return next(found for found in attack_lines(rows) if (found.label, found.negatives) == (label, negatives))


def test_each_attack_is_held_against_all_negatives() -> None:
    first, second = attack_lines(grid())
    assert (first.label, first.verifier, first.negatives) == ("FT", "IPGuardVerifier", "Negative")
    assert first.metric is not None
    assert second.metric is not None
    assert (first.metric.nb_surrogates, first.metric.nb_negatives) == (3, 20)
    assert first.metric.auc == pytest.approx((20 + 20 + 14.5) / 60)
    assert first.metric.tpr == pytest.approx(2 / 3)  # above the second of twenty
    assert first.metric.auc_interval == auc_interval(first.metric.auc, 3, 20)
    assert first.metric.tpr_interval == share_interval(2, 3)
    assert (second.metric.auc, second.metric.tpr) == (0.0, 0.0)
    assert second.accuracy == pytest.approx((90, 92, 94))


def test_cells_by_hand() -> None:
    sheet = attack_sheet(grid())
    low, high = auc_interval(54.5 / 60, 3, 20)
    assert sheet.cells == [
        *[["Model", "Accuracy %", "Verifier", "Metric", "Recognised", "AUC", "AUC, 95%", "TPR at 5% FPR", "TPR, 95%"]],
        ["FT", "90.00±0.00", "IPGuard", "MR", "2/3", "0.908", f"{low:.2f} to {high:.2f}", "0.667", "0.09 to 0.99"],
        ["KnockOff", "92.00±2.00", "IPGuard", "MR", "0/3", "0.000", "0.00 to 0.33", "0.000", "0.00 to 0.71"],
    ]
    assert "between 1.2% and 25%" in sheet.notes[-1]


def test_cells_without_a_verdict_say_why() -> None:
    rows = grid()
    for row in rows:
        if row["suspect"] == "KnockOff":
            row.update(failed([row], "other architecture", 0.9)[0], status="skipped")
    rows = [*rows, *failed(one("FT", 3, 0.0), "RuntimeError: no")]
    assert line(rows, "KnockOff").metric is None
    assert attack_sheet(rows).cells[2][2:] == ["IPGuard", "-", "3 skipped", *["-"] * 4]
    assert attack_sheet(rows).cells[1][4] == "2/3, 1 failed"
    assert line(rows, "FT").accuracy == pytest.approx((90, 90, 90))


def test_metrics_that_an_attack_lacks_have_no_line() -> None:
    rows = [*make_rows("FT", 0, NEAR), *make_rows("Other", 0, NEAR), *make_rows("Negative", 0, FAR, "negative")]
    for row in rows:
        if row["suspect"] == "Other":
            row["metrics"].pop("LOD", None)  # the verifier skipped the metric
    found = [(found.label, found.metric and found.metric.name) for found in attack_lines(rows)]
    assert ("FT", "LOD") in found
    assert ("Other", "LOD") not in found
    assert ("Other", "LAD") in found


def test_kinds_of_negatives_are_kept_apart() -> None:
    rows = [*grid(), *(row for seed in (0, 1) for row in one("Negative (other data)", seed, 0.85, "negative"))]
    data = line(rows, "FT", "Negative (other data)").metric
    assert data is not None
    assert (data.nb_negatives, data.tpr, str(data.accused)) == (2, pytest.approx(1 / 3), "2/2")
    assert line(rows, "FT").metric == line(grid(), "FT").metric
    assert [row[4] for row in attack_sheet(rows).cells] == ["Negatives", *["Negative", "Negative (other data)"] * 2]


def test_rows_without_negatives_or_without_attacks() -> None:
    alone = attack_sheet(one("FT", 0, 0.9))
    assert alone.cells[1][4:] == ["1/1", *["-"] * 4]
    assert len(alone.notes) == 2
    assert len(attack_sheet(one("Negative", 0, 0.9, "negative")).cells) == 1
    with pytest.raises(InvalidInputError, match="no result rows"):
        attack_sheet([])


@pytest.mark.parametrize("form", ["txt", "md", "csv", "tex"])
def test_every_form_holds_any_label(form: str) -> None:
    text = render({"": attack_sheet(hostile())}, form)
    assert text
    if form == "csv":
        read = list(csv.reader(io.StringIO(text)))
        assert " ".join(HOSTILE.split()) in {row[0] for row in read}
        assert len({len(row) for row in read}) == 1
