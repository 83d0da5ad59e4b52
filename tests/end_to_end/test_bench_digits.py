"""The digits preset as `make demo` runs it, with three seeds, and the paper's claim in its table.

Fine-tuning, pruning and distillation leave recognisable copies; RemovalNet, with a fifth of the training set or with
data held apart, gives surrogates that the majority of the metrics takes for independent, at little cost in accuracy.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.cli import main
from art_fingerprint.reporting.tables import Table, table_one
from art_fingerprint.zoo.presets import load_preset

pytestmark = pytest.mark.slow
BASELINES = ("FT(0.5)", "FT(0.8)", "WP(0.5)", "WP(0.8)", "Distill")
REMOVALS = ("RemovalNet(train)", "RemovalNet(apart)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("digits")
    assert (
        main(["bench", "--preset", "digits", "--out", str(folder), "--seeds", "3", "--device", "cpu", "--quiet"]) == 0
    )
    return folder


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return table_one(read_rows(folder))


def test_every_cell_has_a_result(folder: Path) -> None:
    preset = load_preset("digits")
    rows = read_rows(folder)
    assert len(rows) == len(preset.verifiers) * (1 + preset.nb_references + 3 * (1 + len(preset.attacks)))
    assert {row["status"] for row in rows} == {"ok"}
    assert all(isinstance(row["derived"], bool) for row in rows)


def test_victim_is_accurate(table: Table) -> None:
    assert table.victim_accuracy is not None
    assert table.victim_accuracy >= 98.5


def test_ownership(table: Table) -> None:
    assert {line.label: line.ownership for line in table.lines} == {
        **dict.fromkeys(BASELINES, "Yes (3/3)"),
        **dict.fromkeys((*REMOVALS, "Negative"), "No (0/3)"),
    }


@pytest.mark.parametrize("label", REMOVALS)
def test_removal_keeps_the_accuracy(table: Table, label: str) -> None:
    (line,) = [line for line in table.lines if line.label == label]
    assert len(line.drop) == 3
    assert statistics.fmean(line.drop) <= 3


def test_victim_is_recognised_and_references_are_not(folder: Path) -> None:
    for row in read_rows(folder):
        if row["role"] in ("victim", "reference"):
            assert row["derived"] is (row["role"] == "victim"), (row["suspect"], row["seed"], row["verifier"])


def test_all_outputs_are_written(folder: Path) -> None:
    for name in ("table.md", "table.csv", "table.tex", "report.html"):
        assert "RemovalNet(apart)" in (folder / name).read_text(encoding="utf-8")
