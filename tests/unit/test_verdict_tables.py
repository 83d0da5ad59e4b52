"""The tables of verifiers and of verdicts from hand-written rows: counts, AUC, gaps."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from art_fingerprint.evaluation.intervals import auc_interval, share_interval
from art_fingerprint.reporting.layout import render
from art_fingerprint.reporting.verdict_tables import (
    MetricLine,
    VerifierLine,
    verdict_sheet,
    verifier_lines,
    verifier_sheet,
)
from tests.unit.test_reporting import FAR, HOSTILE, NEAR, THRESHOLDS, example, failed, hostile, make_rows

Row = dict[str, Any]


def verifier(rows: list[Row], name: str) -> VerifierLine:
    return next(line for line in verifier_lines(rows) if line.name == name)


def metric(rows: list[Row], name: str) -> MetricLine:
    return next(line for found in verifier_lines(rows) for line in found.metrics if line.name == name)


def models(name: str, derived: list[float | None], independent: list[float | None]) -> list[Row]:
    """Return rows of models with these values of one metric."""
    rows = [row for seed, value in enumerate(derived) for row in make_rows("FT(0.5)", seed, {name: value})]
    rows += [
        row for seed, value in enumerate(independent) for row in make_rows("Negative", seed, {name: value}, "negative")
    ]
    return rows


def skipped(rows: list[Row]) -> list[Row]:
    return [{**row, "status": "skipped"} for row in failed(rows, "other architecture", 0.9)]


# ---------------------------------------------------------------------- verifiers
def test_a_metric_that_misses_the_victim_itself_is_named() -> None:
    rows = [*make_rows("Victim", 0, {"LOD": 0.0, "LAD": 9.0}, "victim"), *models("LOD", [0.1], [2.0])]
    note = "does not judge even the victim itself derived: nothing that it says here can be trusted."
    assert [text for text in verifier_sheet(rows).notes if "victim itself" in text] == [f"DeepJudge LAD {note}"]
    assert not any("victim itself" in text for text in verifier_sheet(example()).notes)


def test_verifiers_by_hand() -> None:
    rows = example()
    for row in rows:
        row["derived"] = row["suspect"] == "FT(0.5)" or (row["verifier"] == "ZestVerifier" and row["seed"] == 1)
        row["queries"] = 10 + row["seed"] % 7
    sheet = verifier_sheet(rows)
    assert sheet.cells[0] == [
        *("Verifier", "Metric", "Threshold", "Direction", "Recognised", "Accused"),
        *("AUC", "AUC, 95%", "TPR at 5% FPR", "TPR, 95%", "Queries", "Seconds", "Models"),
    ]
    # FT(0.5) has three models that are near, RemovalNet one that is as far as the two negatives
    three, rest = ["0.750", "0.19 to 0.99"], ["-", "-", "6 of 6 values"]
    blank, cost = ["-"] * 4, ["10", "0.5"]
    first, other = ([f"{auc:.3f}", "{:.2f} to {:.2f}".format(*auc_interval(auc, 4, 2))] for auc in (7.5 / 8, 7 / 8))
    assert sheet.cells[1:] == [
        ["DeepJudge", "LOD", "1.50", "distance", "3/4", "0/2", *first, *three, *rest],
        ["DeepJudge", "LAD", "7.00", "distance", "3/4", "0/2", *other, *three, *rest],
        ["DeepJudge", "verdict", "-", "-", "3/4", "0/2", *blank, *cost, "3 derived, 3 not"],
        ["Zest", "ZEST-L2", "20.00", "distance", "3/4", "0/2", *other, *three, *rest],
        ["Zest", "ZEST-cosine", "0.100", "distance", "3/4", "0/2", *other, *three, *rest],
        ["Zest", "verdict", "-", "-", "3/4", "1/2", *blank, *cost, "4 derived, 2 not"],
        ["ModelDiff", "DDV", "0.900", "similarity", "3/4", "0/2", *other, *three, *rest],
        ["ModelDiff", "verdict", "-", "-", "3/4", "0/2", *blank, *cost, "3 derived, 3 not"],
        ["IPGuard", "MR", "0.350", "similarity", "3/4", "0/2", *other, *three, *rest],
        ["IPGuard", "verdict", "-", "-", "3/4", "0/2", *blank, *cost, "3 derived, 3 not"],
    ]
    low, high = 1 - 0.975**0.5, 1 - 0.025**0.5  # the smallest of two uniform numbers
    assert f"that of 2 negatives lies between {low:.1%} and {high:.0%}." in sheet.notes[-2]
    assert any("Reference models set the thresholds and are left out" in note for note in sheet.notes)
    assert sheet.notes[-1] == "Fewer than 20 negatives (2): the TPR at 5% FPR is that at no false positive."


@pytest.mark.parametrize("name", ["LOD", "MR"])
def test_auc_and_tpr_against_loops_and_scikit_learn(name: str) -> None:
    draws = np.random.default_rng(5)
    closer = 1 if name == "MR" else -1
    for nb_derived, nb_independent in ((3, 2), (9, 19), (12, 20), (15, 41)):
        # rounded, so that there are ties
        derived = [round(float(v), 1) for v in draws.normal(closer, 1, nb_derived)]
        independent = [round(float(v), 1) for v in draws.normal(0, 1, nb_independent)]
        line = metric(models(name, [*derived], [*independent]), name)
        pairs = [(closer * d, closer * i) for d in derived for i in independent]
        assert line.auc == pytest.approx(sum((d > i) + (d == i) / 2 for d, i in pairs) / len(pairs), abs=1e-12)
        truth = [1] * nb_derived + [0] * nb_independent
        scores = [closer * value for value in (*derived, *independent)]
        assert line.auc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
        false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
        assert line.tpr == pytest.approx(true[false <= 0.05 + 1e-12].max())
        cuts = sorted(set(scores))
        accepted = [c for c in (*cuts, math.inf) if sum(closer * i >= c for i in independent) <= 0.05 * nb_independent]
        assert line.tpr == pytest.approx(max(sum(closer * d >= c for d in derived) for c in accepted) / nb_derived)


def test_worked_cases_of_the_protocol() -> None:
    line = metric(models("MR", [0.9, 0.8, 0.7, 0.4], [0.6, 0.3, 0.2, 0.1]), "MR")
    assert (line.auc, line.tpr) == (0.9375, 0.75)
    line = metric(models("MR", [0.5, 0.5], [0.5, 0.1]), "MR")
    assert (line.auc, line.tpr) == (0.75, 0.0)


@pytest.mark.parametrize("nb_negatives", [19, 20])
def test_twenty_negatives_allow_one_false_positive(nb_negatives: int) -> None:
    rows = models("MR", [0.8, 0.4], [0.9, *(i / 100 for i in range(nb_negatives - 1))])
    assert metric(rows, "MR").tpr == (1.0 if nb_negatives == 20 else 0.0)
    note = "Fewer than 20 negatives (19): the TPR at 5% FPR is that at no false positive."
    assert (note in verifier_sheet(rows).notes) is (nb_negatives == 19)


def test_intervals_are_those_of_the_models_behind_them() -> None:
    line = metric(models("MR", [0.9, 0.8, 0.7, 0.1], [i / 100 for i in range(30)]), "MR")
    assert (line.auc, line.tpr) == (pytest.approx((3 * 30 + 10.5) / 120), 0.75)
    assert line.auc_interval == auc_interval(line.auc or 0, 4, 30)
    assert line.tpr_interval == share_interval(3, 4)
    alone = metric(models("MR", [0.9], []), "MR")
    assert (alone.auc_interval, alone.tpr_interval) == (None, None)


def test_kinds_of_negatives_are_kept_apart() -> None:
    rows = models("MR", [0.9, 0.5], [0.1, 0.2])
    rows += [row for seed in range(3) for row in make_rows("Negative (other data)", seed, {"MR": 0.6}, "negative")]
    rows += skipped(make_rows("Negative (other architecture)", 0, NEAR, "negative"))
    same, data, architecture = [line for line in verifier_lines(rows) if line.name == "IPGuardVerifier"]
    assert [line.negatives for line in (same, data, architecture)] == [
        *("Negative", "Negative (other data)", "Negative (other architecture)")
    ]
    assert [(line.metrics[0].auc, line.metrics[0].tpr) for line in (same, data, architecture)] == [
        *((1.0, 1.0), (0.5, 0.5), (None, None))
    ]
    assert [str(line.metrics[0].accused) for line in (same, data, architecture)] == ["0/2", "3/3", "-"]
    assert architecture.counts == {"derived": 2, "not": 0, "undecided": 0, "failed": 0, "skipped": 1}
    cells = [row for row in verifier_sheet(rows).cells if row[0] in ("Verifier", "IPGuard")]
    assert [row[1:3] for row in cells] == [
        ["Metric", "Negatives"],
        *[[name, line.negatives] for line in (same, data, architecture) for name in ("MR", "verdict")],
    ]
    assert len({len(row) for row in cells}) == 1
    assert [row[:2] for row in verdict_sheet(rows).cells[1:]] == [
        *(["FT(0.5)", "derived"], ["Negative", "independent"], ["Negative (other data)", "independent"]),
        ["Negative (other architecture)", "independent"],
    ]
    assert "that of 2 negatives lies" in verifier_sheet(rows).notes[-2]
    assert "that of 3 negatives lies" in verifier_sheet(rows).notes[-2]
    assert verifier_sheet(rows).notes[-1].startswith("Fewer than 20 negatives (2 to 3)")


def test_references_and_victim_change_nothing_but_threshold_and_cost() -> None:
    rows = models("MR", [0.9, 0.5], [0.3])
    more = [*rows, *make_rows("Reference", 0, {"MR": 1.0}, "reference"), *make_rows("Victim", 0, {"MR": 0.0}, "victim")]
    assert verifier_lines(more) == verifier_lines(rows)
    alone = verifier(make_rows("Reference", 0, {"MR": 1.0}, "reference"), "IPGuardVerifier")
    assert alone.metrics[0].threshold == THRESHOLDS["MR"]
    assert (alone.metrics[0].nb_scored, alone.metrics[0].auc, str(alone.recognised)) == (0, None, "-")
    assert set(alone.counts.values()) == {0}


def test_values_that_are_missing_or_not_finite_are_left_out_and_counted() -> None:
    rows = models("MR", [0.9, None, math.nan, 0.1], [0.2, math.inf])
    del rows[-1 - 4]["metrics"]["MR"]  # the first negative: the verifier skipped the metric
    line = metric(rows, "MR")
    assert (line.nb_surrogates, line.nb_negatives, line.nb_scored) == (2, 0, 6)
    assert (line.auc, line.tpr) == (None, None)
    assert (str(line.recognised), str(line.accused)) == ("1/2", "-")
    sheet = verifier_sheet(rows)
    cells = next(row for row in sheet.cells if row[1] == "MR")
    assert cells[6:10] + cells[-1:] == [*["-"] * 4, "2 of 6 values"]
    assert sheet.notes[-1] == "Models without a finite value are left out of a metric's line."


def test_undecided_failed_and_skipped_verdicts_are_counted() -> None:
    rows = [
        *make_rows("FT(0.5)", 0, NEAR, derived=True),
        *make_rows("FT(0.5)", 1, NEAR, derived=False),
        *make_rows("FT(0.5)", 2, NEAR, derived=None),
        *failed(make_rows("FT(0.5)", 3, NEAR), "RuntimeError: no"),
        *skipped(make_rows("KnockOff", 0, NEAR)),
        *make_rows("Negative", 0, FAR, "negative", derived=False),
        *skipped(make_rows("Reference", 0, FAR, "reference")),
    ]
    line = verifier(rows, "IPGuardVerifier")
    assert line.counts == {"derived": 1, "not": 2, "undecided": 1, "failed": 1, "skipped": 1}
    assert (str(line.recognised), str(line.accused)) == ("1/2", "0/1")
    cells = verifier_sheet(rows).cells
    assert [row[-1] for row in cells if row[:2] == ["IPGuard", "verdict"]] == [
        "1 derived, 2 not, 1 undecided, 1 failed, 1 skipped"
    ]
    assert verdict_sheet(rows).cells == [
        ["Model", "Truth", "DeepJudge", "Zest", "ModelDiff", "IPGuard"],
        ["FT(0.5)", "derived", *["1/2, 1 undecided, 1 failed"] * 4],
        ["KnockOff", "derived", *["1 skipped"] * 4],
        ["Negative", "independent", *["0/1"] * 4],
    ]


def test_the_newest_row_counts() -> None:
    rows = [*make_rows("FT(0.5)", 0, FAR, derived=False), *make_rows("FT(0.5)", 0, NEAR, derived=True)]
    assert verifier(rows, "IPGuardVerifier").counts["derived"] == 1
    assert verifier(rows, "IPGuardVerifier").counts["not"] == 0


def test_logits_and_probabilities_are_not_put_in_one_curve() -> None:
    rows = models("ZEST-L2", [5.0, 0.1], [30.0, 0.9])
    rows = [row for row in rows if row["verifier"] == "ZestVerifier"]
    for row, space in zip(rows, ["logits", "probabilities"] * 2, strict=True):
        row["metrics"]["ZEST-L2"] |= {"space": space, "threshold": 20.0 if space == "logits" else 0.5}
    first, second = verifier(rows, "ZestVerifier").metrics
    assert (first.space, first.threshold, first.auc, first.nb_values) == ("logits", 20.0, 1.0, 2)
    assert (second.space, second.threshold, second.auc, second.nb_values) == ("probabilities", 0.5, 1.0, 2)
    assert [row[1] for row in verifier_sheet(rows).cells[1:3]] == ["ZEST-L2 (logits)", "ZEST-L2 (probabilities)"]
    for row in rows:
        row["metrics"]["ZEST-L2"]["space"] = "logits"
    assert [line.space for line in verifier(rows, "ZestVerifier").metrics] == [""]


def test_metrics_without_a_column_in_table_one_are_there() -> None:
    rows = [row for row in make_rows("FT(0.5)", 0, {"MR": 1.0}) if row["verifier"] == "IPGuardVerifier"]
    rows[0]["metrics"]["AKH"] = {"value": 0.25, "threshold": 1234.5678, "direction": "similarity", "derived": None}
    assert verifier_sheet(rows).cells[2][:6] == ["IPGuard", "AKH", "1235", "similarity", "-", "-"]


@pytest.mark.parametrize(
    "rows",
    [
        make_rows("Victim", 0, NEAR, "victim"),
        make_rows("FT(0.5)", 0, NEAR),
        make_rows("Negative", 0, FAR, "negative"),
        make_rows("FT(0.5)", 0, dict.fromkeys(FAR)),
        failed(make_rows("FT(0.5)", 0, NEAR), "no"),
        skipped(make_rows("Negative", 0, NEAR, "negative")),
        hostile(),
    ],
    ids=["victim", "surrogate", "negative", "no values", "failed", "skipped", "hostile"],
)
def test_few_models_give_dashes_in_every_form(rows: list[Row]) -> None:
    for make in (verifier_sheet, verdict_sheet):
        sheet = make(rows)
        assert {len(row) for row in sheet.cells} == {len(sheet.cells[0])}
        assert all(cell and "\n" not in cell for row in sheet.cells for cell in row)
        text = render({"a": sheet}, "txt")
        assert text.count("\n") == len(sheet.cells) + len(sheet.notes)
        assert list(csv.reader(io.StringIO(render({"a": sheet}, "csv")))) == [list(row) for row in sheet.cells]
        assert "<script" not in render({"a": sheet}, "md").replace("\\<", "")
        assert render({"a": sheet}, "tex").count(r" \\" + "\n") == len(sheet.cells)
    if len(rows) == 4:
        assert {row[6] for row in verifier_sheet(rows).cells[1:]} == {"-"}


def test_verdicts_name_every_model_once() -> None:
    labels = [row[0] for row in verdict_sheet(hostile()).cells[1:]]
    assert labels == ["FT(0.5)", "RemovalNet", " ".join(HOSTILE.split()), "FT(0.8)", "Negative"]
