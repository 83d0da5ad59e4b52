"""The paper's numbers, and our lines beside them."""

from __future__ import annotations

import csv
import io
import re
from importlib import resources

import pytest

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.comparison import beside_published
from art_fingerprint.reporting.layout import render
from art_fingerprint.reporting.published import published_datasets, published_robustness, published_table
from art_fingerprint.reporting.robustness import table_four
from art_fingerprint.reporting.tables import COLUMNS, table_one
from tests.unit.test_reporting import FAR, HOSTILE, NEAR, example, hostile, make_rows
from tests.unit.test_robustness_report import example as robust_rows

LABELS = ["FT(0.5)", "FT(0.8)", "WP(0.5)", "WP(0.8)", "Distill", "RemovalNet(train)", "RemovalNet(apart)", "Negative"]
METRICS = [name for name, _, _ in COLUMNS]


# ---------------------------------------------------------------------- the numbers
def test_six_data_sets_and_what_they_have() -> None:
    assert published_datasets() == ("CIFAR10", "GTSRB", "Skin Lesion", "CelebA+20", "CelebA+31", "ImageNet")
    for name in published_datasets():
        table = published_table(name)
        whole = name != "ImageNet"
        metrics = METRICS if whole else [metric for metric in METRICS if metric not in ("LOD", "LAD")]
        assert [row.label for row in table.rows] == [label for label in LABELS if whole or label != "RemovalNet(apart)"]
        assert list(table.thresholds) == metrics
        assert all(list(row.metrics) == metrics for row in table.rows)
        assert bool(table.notes) is not whole


@pytest.mark.parametrize(
    ("dataset", "label", "metric", "printed"),
    [
        ("CIFAR10", "FT(0.5)", "LOD", "0.01±0.02"),
        ("CIFAR10", "RemovalNet(train)", "MR", "0.061±0.043"),
        ("CIFAR10", "RemovalNet(apart)", "DDV", "0.211±0.162"),
        ("CIFAR10", "Negative", "MR", "0.010±0.021"),
        ("GTSRB", "Distill", "ZEST-L2", "21.74±3.11"),
        ("Skin Lesion", "WP(0.8)", "ZEST-cosine", "0.02±0.01"),
        ("CelebA+20", "RemovalNet(apart)", "LAD", "7.51±1.89"),
        ("CelebA+31", "Negative", "LAD", "7.01±1.36"),
        ("ImageNet", "RemovalNet(train)", "ZEST-cosine", "31.50±2.10"),
    ],
)
def test_numbers_of_the_paper(dataset: str, label: str, metric: str, printed: str) -> None:
    row = next(row for row in published_table(dataset).rows if row.label == label)
    value = row.metrics[metric]
    assert value.printed == printed
    assert f"{value.mean:g} {value.spread:g}".split() == [f"{float(part):g}" for part in printed.split("±")]
    assert row.ownership == ("No (0/10)" if label.startswith(("RemovalNet", "Negative")) else "Yes (10/10)")


def test_accuracies_and_thresholds_of_the_paper() -> None:
    table = published_table("CIFAR10")
    assert (table.victim_accuracy.printed, table.victim_accuracy.spread) == ("90.58", None)
    assert {name: value.mean for name, value in table.thresholds.items()} == {
        **{"LOD": 6.49, "LAD": 2.95, "ZEST-L2": 75.12, "ZEST-cosine": 0.319},
        **{"DDV": 0.45, "MR": 0.25},
    }
    removal = next(row for row in table.rows if row.label == "RemovalNet(train)")
    assert (removal.accuracy.printed, removal.drop.printed, removal.drop.spread) == ("87.17±1.75", "2.89", None)


@pytest.mark.parametrize("name", ["cifar10", "CIFAR-10", " CIFAR10", "skin-lesion", "Skin Lesion", "celeba20", "gtsrb"])
def test_case_and_punctuation_of_a_name_do_not_matter(name: str) -> None:
    assert published_table(name).dataset in published_datasets()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("CIFAR100", "CIFAR10"), ("celeba", "CelebA+31, CelebA+20"), ("imagenet-1k", "ImageNet"), ("", "CIFAR10, GTSRB")],
)
def test_unknown_names_are_refused_with_near_ones(name: str, nearest: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        published_table(name)
    assert str(error.value).startswith(f"The paper has no table of the data set {name!r}; it has {nearest}")
    assert all(known in str(error.value) for known in published_datasets())


def test_table_four() -> None:
    found = published_robustness()
    assert list(found) == ["FGSM", "PGD", "DeepFool"]
    assert (found["PGD"].rob_victim, found["PGD"].rob_surrogate, found["PGD"].rob_negative) == (0.501, 0.422, 0.419)
    for line in found.values():
        assert line.robd_surrogate == pytest.approx(abs(line.rob_victim - line.rob_surrogate), abs=1e-9)
        assert line.robd_negative == pytest.approx(abs(line.rob_victim - line.rob_negative), abs=1e-9)
    assert table_four(robust_rows())[2][-1] == "0.501, 0.422, 0.419, 0.079, 0.082"


def test_the_data_is_in_the_package() -> None:
    folder = resources.files("art_fingerprint.reporting.published")
    text = (folder / "tables_1_2.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 5 * 9 + 8  # with a line of thresholds for each data set
    numbers = [value for line in lines for key, value in line.items() if key not in ("dataset", "row", "substitute")]
    assert all(re.fullmatch(r"(\d+(\.\d+)?)?|(Yes|No) \(\d+/10\)", value) for value in numbers)


# ---------------------------------------------------------------------- beside ours
def test_lines_of_the_same_label_stand_together() -> None:
    rows = [*example(), *make_rows("RemovalNet(apart)", 0, FAR)]
    sheet = beside_published(table_one(rows), published_table("CIFAR10"))
    head, *body = sheet.cells
    assert head == ["Model", "Source", "Accuracy %", "Drop", *(h for _, h, _ in COLUMNS), "Ownership?"]
    assert [row[0] for row in body] == [label for label in ("Victim", *LABELS, "threshold") for _ in range(2)]
    assert [row[1] for row in body] == ["ours: digits", "paper: CIFAR10"] * 10
    assert body[0] == ["Victim", "ours: digits", "97.00", *["-"] * 8]
    assert body[1][2] == "90.58"
    assert body[2][2:] == [
        *("96.00±2.00", "1.00±2.00", "0.20±0.10", "0.50±0.00", "5.00±0.00", "0.010±0.000"),
        *("0.970±0.000", "0.980±0.020", "Yes (3/3)"),
    ]
    assert body[3][2:] == [
        *("88.21±0.31", "2.05", "0.01±0.02", "0.04±0.03", "0.76±0.14", "0.01±0.01"),
        *("0.998±0.002", "0.885±0.020", "Yes (10/10)"),
    ]
    assert body[4][2:] == ["-"] * 9  # FT(0.8) did not run
    apart = 2 + 2 * LABELS.index("RemovalNet(apart)")
    assert body[apart][4] == "3.00"
    assert body[apart + 1][4] == "8.42±0.41"
    assert body[-2][4:] == ["1.50", "7.00", "20.00", "0.100", "0.900", "0.350", "-"]
    assert body[-1][4:] == ["6.49", "2.95", "75.12", "0.319", "0.450", "0.250", "-"]
    notes = " ".join(sheet.notes)
    assert "Other images and other networks" in notes
    assert "Not in the paper's table: RemovalNet." in notes


def test_the_same_data_set_needs_no_warning() -> None:
    rows = [{**row, "dataset": "cifar10"} for row in example()]
    sheet = beside_published(table_one(rows), published_table("cifar10"))
    assert not any("Other images" in note for note in sheet.notes)
    lesions = table_one([{**row, "dataset": "ham10000"} for row in example()])  # which the paper calls by another name
    for same in (True, False):
        notes = beside_published(lesions, published_table("Skin Lesion"), same).notes
        assert any("Other images" in note for note in notes) is not same


def test_columns_that_only_one_side_has() -> None:
    rows = make_rows("FT(0.5)", 0, {"MR": NEAR["MR"]})
    imagenet = published_table("ImageNet")
    sheet = beside_published(table_one(rows), imagenet)
    assert sheet.cells[0][4:-1] == ["ZEST-L2", "ZEST-Cosine", "ModelDiff-DDV", "IPGuard-MR"]
    assert sheet.cells[3][4:] == ["-", "-", "-", "1.000", "Yes (1/1)"]
    assert sheet.notes[-1].startswith("The paper prints ZEST-Cosine of ImageNet on a larger scale")
    ours = beside_published(table_one(example()), imagenet)
    assert ours.cells[0][4] == "DJ-LOD"
    assert ours.cells[4][4:6] == ["-", "-"]


def test_every_form_and_hostile_names() -> None:
    sheet = beside_published(table_one(hostile()), published_table("CelebA+20"))
    assert list(csv.reader(io.StringIO(render({"a": sheet}, "csv")))) == [list(row) for row in sheet.cells]
    assert render({"a": sheet}, "txt").count("\n") == len(sheet.cells) + len(sheet.notes)
    assert "<script" not in render({"a": sheet}, "md").replace("\\<", "")
    assert "±" not in render({"a": sheet}, "tex")
    assert " ".join(HOSTILE.split()) in " ".join(sheet.notes)


def test_a_victim_alone() -> None:
    sheet = beside_published(table_one(make_rows("FT(0.5)", 0, {}, accuracy=None)), published_table("GTSRB"))
    assert sheet.cells[1][2] == "-"
    assert sheet.cells[3][2:] == [*["-"] * 8, "?"]
