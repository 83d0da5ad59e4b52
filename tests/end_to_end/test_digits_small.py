"""The claim in small: under the digits preset, a fine-tuned copy is recognised and an independent model is not.

Half the preset's training steps. Measured: accuracy of the victim 1.00; matching rate of the copy 1.00, of the negative
0.14, threshold 0.31; ZEST's L2 distance 6.5, 38 and 27.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.reporting.tables import table_one
from art_fingerprint.zoo.presets import load_preset

VERIFIERS = ("IPGuardVerifier", "ZestVerifier")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """One victim, three references, one negative and one fine-tuned copy, under two verifiers."""
    preset = load_preset("digits")
    few = replace(
        preset,
        victim_recipe=replace(preset.victim_recipe, max_iter=400),
        negative_recipe=replace(preset.negative_recipe, max_iter=400),
        verifiers={name: preset.verifiers[name] for name in VERIFIERS},
        nb_references=3,
    )
    folder: Path = tmp_path_factory.mktemp("digits")
    Bench(Plan.from_preset(few, 1, attacks=["FT(0.5)"]), folder, device_type="cpu", verbose=False).run()
    return read_rows(folder)


def test_every_cell_has_a_result(rows: list[Row]) -> None:
    assert len(rows) == 2 * (1 + 3 + 1 + 1)
    assert {row["status"] for row in rows} == {"ok"}


def test_models_are_good(rows: list[Row]) -> None:
    for row in rows:
        assert row["accuracy"] >= (0.985 if row["role"] == "victim" else 0.97), row["suspect"]
    assert all(abs(row["accuracy_drop"]) <= 1 for row in rows if row["suspect"] == "FT(0.5)")


def test_copies_are_recognised_and_independent_models_are_not(rows: list[Row]) -> None:
    expected = {"Victim": True, "FT(0.5)": True, "Negative": False, "Reference": False}
    for row in rows:
        assert row["derived"] is expected[row["suspect"]], (row["suspect"], row["verifier"], row["metrics"])
        for name, result in row["metrics"].items():
            assert result["derived"] is expected[row["suspect"]], (row["suspect"], name, result)


def test_table(rows: list[Row]) -> None:
    assert {line.label: line.ownership for line in table_one(rows).lines} == {
        "FT(0.5)": "Yes (1/1)",
        "Negative": "No (0/1)",
    }
