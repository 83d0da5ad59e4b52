"""The bench on a preset of a few optimiser steps: rows, resumption, caches, failures; and fidelity, a part of rows."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from safetensors.torch import save_file
from torch import nn

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.attacks.base import RemovalAttack
from art_fingerprint.benchmark import independents, workbench
from art_fingerprint.benchmark.materials import substitute_data
from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import ADDED_KEYS, KEYS, Store, cell_key, read_rows
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.evaluation.fidelity import accuracy, accuracy_drop, agreement
from art_fingerprint.exceptions import CalibrationError, InvalidInputError, SuspectFailedError, TrainingDivergedError
from art_fingerprint.reporting.tables import latest_rows
from art_fingerprint.verifiers import IPGuardVerifier, ZestVerifier
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.loading import load_weights
from art_fingerprint.zoo.presets import AttackSetting, Preset
from tests import bench_plugins
from tests.conftest import wrap
from tests.tiny_preset import small, tiny

Row = dict[str, Any]
DESIGN_KEYS = {
    *("preset", "dataset", "victim", "suspect", "role", "attack", "attack_params", "seed", "verifier"),
    *("verifier_params", "metrics", "derived", "accuracy", "accuracy_drop", "agreement", "attack_seconds"),
    *("verify_seconds", "queries", "status", "reason", "versions", "device"),
}
SUSPECTS = {"Victim": 1, "Reference": 2, "Negative": 2, "FT(0.5)": 2, "RemovalNet(apart)": 2}
CELLS = 2 * sum(SUSPECTS.values())


def bench(
    folder: Path,
    preset: Preset | None = None,
    seeds: int = 2,
    attacks: list[str] | None = None,
    verifiers: list[str] | None = None,
) -> list[Row]:
    Bench(Plan.from_preset(preset or tiny(), seeds, attacks, verifiers), folder, device_type="cpu", verbose=False).run()
    return read_rows(folder)


def rewrite(folder: Path, rows: list[Row]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def other_attack(preset: Preset, label: str = "FT(0.5)") -> Preset:
    """Change a parameter of one attack."""
    setting = preset.attacks[label]
    changed = replace(setting, params={**setting.params, "max_iter": 3})
    return replace(preset, attacks={**preset.attacks, label: changed})


def facts(rows: list[Row]) -> dict[str, Row]:
    """What must not depend on when and where a row was made."""
    found = {row["key"]: {k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows}
    for row in found.values():
        row["cost"] = {k: v for k, v in (row["cost"] or {}).items() if k not in ("seconds", "peak_memory_bytes")}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a" / "b"
    bench(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts trainings, attacks, extractions and verdicts."""
    count: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            count[name] += 1
            return function(*arguments, **options)

        return wrapped

    for module, name in (
        *((workbench, "train_victim"), (independents, "train_victim"), (independents, "train_negative")),
    ):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    monkeypatch.setattr(RemovalAttack, "generate", counted("generate", RemovalAttack.generate))
    for name in ("extract", "verify"):
        monkeypatch.setattr(Verifier, name, counted(name, getattr(Verifier, name)))
    return count


# ---------------------------------------------------------------------- rows
def test_one_row_for_each_suspect_and_verifier(finished: Path) -> None:
    rows = read_rows(finished)
    cells = Counter((row["suspect"], row["verifier"]) for row in rows)
    assert cells == {(s, v): n for s, n in SUSPECTS.items() for v in ("IPGuardVerifier", "ZestVerifier")}
    assert len({row["key"] for row in rows}) == CELLS == len(rows)
    assert {(row["suspect"], row["seed"]) for row in rows if row["role"] == "surrogate"} == {
        (label, seed) for label in ("FT(0.5)", "RemovalNet(apart)") for seed in (0, 1)
    }
    roles = {row["suspect"]: row["role"] for row in rows}
    assert roles == {
        "Victim": "victim",
        "Reference": "reference",
        "Negative": "negative",
        "FT(0.5)": "surrogate",
        "RemovalNet(apart)": "surrogate",
    }


def test_rows_carry_the_cost_of_an_attack(finished: Path, tmp_path: Path) -> None:
    for row in read_rows(finished):
        assert (row["cost"] is None) == (row["role"] != "surrogate")
        if row["cost"] is not None:
            assert row["cost"]["seconds"] == row["attack_seconds"]
            assert row["cost"]["surrogate"]["backward"] > 0
            assert row["cost"]["forward_equivalents"] > row["cost"]["victim_queries"]
    older = [{name: value for name, value in row.items() if name != "cost"} for row in read_rows(finished)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in older), encoding="utf-8")
    assert read_rows(tmp_path) == older


def test_rows_have_every_key_of_the_design(finished: Path) -> None:
    assert {*DESIGN_KEYS, "key"} == set(KEYS)
    for row in read_rows(finished):
        assert set(row) == {*KEYS, *ADDED_KEYS}
        assert row["status"] == "ok"
        assert row["reason"] == ""
        assert row["preset"] == "tiny"
        assert row["dataset"] == "digits"
        assert row["device"] == "cpu"
        assert set(row["versions"]) == {"art_fingerprint", "art", "numpy", "python", "torch"}
        assert row["queries"] > 0
        assert row["verify_seconds"] > 0
        assert row["data"] == load_digits().digest
        assert 0 <= time.time() - row["finished_seconds"] < 3600
        assert isinstance(row["derived"], bool)
        for result in row["metrics"].values():
            assert set(result) == {"value", "threshold", "direction", "derived", "p_value", "space"}
            assert 1 / 3 <= result["p_value"] <= 1
        assert row["verifier_params"] == json.loads(json.dumps(tiny().verifiers[row["verifier"]]))
    assert len({row["victim"] for row in read_rows(finished)}) == 1


def test_rows_say_what_was_attacked_and_how(finished: Path) -> None:
    for row in read_rows(finished):
        if row["role"] == "surrogate":
            setting = tiny().attacks[row["suspect"]]
            assert row["attack"] == setting.attack
            assert row["attack_params"] == json.loads(json.dumps(setting.params))
            assert row["attack_seconds"] > 0
        else:
            assert row["attack"] is None
            assert row["attack_params"] == {}
            assert row["attack_seconds"] is None


def test_fidelity_in_rows(finished: Path) -> None:
    rows = read_rows(finished)
    victim = next(row for row in rows if row["role"] == "victim")
    assert victim["accuracy_drop"] == 0
    assert victim["agreement"] == 1
    for row in rows:
        assert row["accuracy_drop"] == pytest.approx(100 * (victim["accuracy"] - row["accuracy"]))
        assert 0 <= row["agreement"] <= 1
    assert all(row["metrics"]["MR"]["value"] == 1 for row in rows if row["role"] == "victim" and "MR" in row["metrics"])


def test_references_set_the_thresholds(finished: Path) -> None:
    rows = [row for row in read_rows(finished) if row["verifier"] == "ZestVerifier"]
    references = [row["metrics"]["ZEST-L2"] for row in rows if row["role"] == "reference"]
    assert len(references) == 2
    assert {row["metrics"]["ZEST-L2"]["threshold"] for row in rows} == {min(r["value"] for r in references)}
    assert not any(result["derived"] for result in references)


def test_lines_are_strict_json(finished: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (finished / "rows.jsonl").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    for line in text.splitlines():
        json.loads(line, parse_constant=refuse)


def test_undefined_metric_gives_null(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IPGuardVerifier, "_score", lambda *_: {"MR": float("nan")})
    rewrite(folder, [row for row in read_rows(folder) if (row["suspect"], row["seed"]) != ("Negative", 0)])
    rows = bench(folder)
    assert len(rows) == CELLS
    (row,) = [r for r in rows[-2:] if r["verifier"] == "IPGuardVerifier"]
    assert row["metrics"]["MR"]["value"] is None
    assert row["metrics"]["MR"]["derived"] is row["derived"] is None
    assert row["status"] == "ok"
    assert row["reason"] == "MR undefined on this suspect"


def test_a_suspect_that_fails_under_a_verifier_is_a_failed_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> dict[str, float]:
        raise SuspectFailedError("by hand")

    rewrite(folder, [row for row in read_rows(folder) if (row["suspect"], row["seed"]) != ("Negative", 0)])
    monkeypatch.setattr(IPGuardVerifier, "_score", fail)
    (row,) = [r for r in bench(folder)[-2:] if r["verifier"] == "IPGuardVerifier"]
    assert (row["status"], row["derived"], row["reason"]) == ("failed", None, "by hand")


# ---------------------------------------------------------------------- resumption
def test_second_run_repeats_nothing(folder: Path, work: Counter[str]) -> None:
    before = (folder / "rows.jsonl").read_bytes()
    bench(folder)
    assert (folder / "rows.jsonl").read_bytes() == before
    assert work == {}


def test_more_seeds_compute_only_what_is_new(folder: Path, work: Counter[str]) -> None:
    rows = bench(folder, seeds=3)
    assert len(rows) == CELLS + 6
    assert {row["seed"] for row in rows[CELLS:]} == {2}
    assert work == {"train_negative": 1, "generate": 2, "verify": 6}


def test_changed_attack_parameter_computes_only_that_row(folder: Path, work: Counter[str]) -> None:
    rows = bench(folder, other_attack(tiny()))
    assert {row["suspect"] for row in rows[CELLS:]} == {"FT(0.5)"}
    assert {row["attack_params"]["max_iter"] for row in rows[CELLS:]} == {3}
    assert len(rows) == CELLS + 4
    assert work == {"generate": 2, "verify": 4}


def test_parameter_changed_and_changed_back_puts_the_old_rows_last(folder: Path, work: Counter[str]) -> None:
    bench(folder, other_attack(tiny()))
    work.clear()
    rows = bench(folder)
    assert work == {}
    assert len(rows) == CELLS + 8
    newest = {(row["suspect"], row["seed"], row["verifier"]): row for row in rows}
    assert newest["FT(0.5)", 0, "IPGuardVerifier"] in rows[:CELLS]
    assert newest["FT(0.5)", 0, "IPGuardVerifier"]["attack_params"]["max_iter"] == 2
    assert bench(folder) == rows


def test_victim_changed_and_changed_back_is_shown_again(folder: Path, work: Counter[str]) -> None:
    bench(folder, replace(tiny(), victim_seed=7), verifiers=["IPGuardVerifier"])
    assert {row["victim"] for row in latest_rows(read_rows(folder))} != {read_rows(folder)[0]["victim"]}
    work.clear()
    rows = bench(folder)
    assert work == {}
    shown = latest_rows(rows)
    assert len(shown) == CELLS
    assert {row["victim"] for row in shown} == {rows[0]["victim"]}
    assert bench(folder) == rows


def test_a_network_that_changes_under_its_name_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"surrogate_factory": "tests.bench_plugins:narrow", "max_iter": 2}
    knock = AttackSetting("KnockoffNetsAttack", own, "apart", False)
    given = replace(tiny(), attacks={"K": knock}, independent_architecture="tests.bench_plugins:narrow")

    def keys() -> dict[str, str]:
        made = workbench.Workbench(given, tmp_path, (0,), "cpu")
        return {**{s.label: s.key for s in made.suspects}, "fingerprint": made.fingerprint_key("ZestVerifier")}

    before = keys()
    assert keys() == before
    monkeypatch.setattr(bench_plugins, "narrow", lambda: small(5))
    assert {name for name, key in keys().items() if key != before[name]} == {
        "K",
        "Reference",
        "Negative",
        "fingerprint",
    }


def test_the_share_of_data_concerns_rows_that_take_it(tmp_path: Path) -> None:
    base = tiny().attacks["RemovalNet(apart)"]
    limited = replace(base, source="subset")
    own = {"subset": limited, "ratio": replace(limited, ratio=0.3), **tiny().attacks}

    def keys(share: float) -> dict[str, str]:
        given = replace(tiny(), attacks=own, subset_ratio=share)
        return {s.label: s.key for s in workbench.Workbench(given, tmp_path, (0,), "cpu").suspects}

    before = keys(0.1)
    assert {name for name, key in keys(0.2).items() if key != before[name]} == {"subset"}


def test_changed_verifier_parameter_scores_all_suspects_and_makes_none(folder: Path, work: Counter[str]) -> None:
    preset = tiny()
    changed = {**preset.verifiers["IPGuardVerifier"], "nb_probes": 21}
    rows = bench(folder, replace(preset, verifiers={**preset.verifiers, "IPGuardVerifier": changed}))
    assert len(rows) == CELLS * 3 // 2
    assert {row["verifier"] for row in rows[CELLS:]} == {"IPGuardVerifier"}
    assert work == {"extract": 1, "verify": CELLS // 2}


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": lambda: small(5)},
        {"victim_seed": 7},
        {"victim_recipe": replace(tiny().victim_recipe, momentum=0.5)},
    ],
    ids=["architecture", "seed", "recipe"],
)
def test_another_victim_computes_everything_that_hangs_on_it(folder: Path, change: Row, work: Counter[str]) -> None:
    rows = bench(folder, replace(tiny(), **change), seeds=1, verifiers=["IPGuardVerifier"])
    new = rows[CELLS:]
    assert len(new) == 6
    assert {row["victim"] for row in new}.isdisjoint(row["victim"] for row in rows[:CELLS])
    assert work["train_victim"] == 3
    assert work["train_negative"] == (1 if "architecture" in change else 0)
    assert work["generate"] == 2


def test_half_written_last_line_is_repaired(folder: Path, work: Counter[str]) -> None:
    path = folder / "rows.jsonl"
    before = read_rows(folder)
    path.write_bytes(path.read_bytes()[:-40])
    assert read_rows(folder) == before[:-1]
    after = bench(folder)
    assert facts(after) == facts(before)
    assert len(after) == CELLS
    assert work == {"verify": 1}


def test_half_line_without_content_is_cut_off(folder: Path) -> None:
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"preset": "ti')
    assert len(bench(folder)) == CELLS


def test_stopped_run_goes_on(tmp_path: Path, work: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    score = Workbench._score

    def stop(self: Workbench, suspect: Any, name: str, model: Any) -> Row:
        if suspect.label == "FT(0.5)" and name == "ZestVerifier":
            raise KeyboardInterrupt
        return score(self, suspect, name, model)

    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "_score", stop)
        with pytest.raises(KeyboardInterrupt):
            bench(tmp_path, seeds=1)
    assert len(read_rows(tmp_path)) == 9
    work.clear()
    assert len(bench(tmp_path, seeds=1)) == 12
    assert work == {"generate": 1, "verify": 3}


# ---------------------------------------------------------------------- caches
def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x40
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped": flip_a_byte,
    "rubbish": lambda path: path.write_bytes(b"rubbish" * 100),
}


def test_damaged_weights_are_computed_anew(folder: Path, work: Counter[str]) -> None:
    before = read_rows(folder)
    paths = sorted((folder / "models").glob("*.safetensors"))
    assert len(paths) == 9
    for number, path in enumerate(paths):
        list(DAMAGES.values())[number % len(DAMAGES)](path)
    rewrite(folder, [row for row in before if row["seed"] != 1])
    assert facts(bench(folder)) == facts(before)
    # The victim, the second reference (seed 1), the second negative, one surrogate of each attack.
    assert work == {"train_victim": 2, "train_negative": 1, "generate": 2, "verify": 8}


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_fingerprints_are_computed_anew(folder: Path, work: Counter[str], damage: str) -> None:
    before = read_rows(folder)
    for path in (folder / "fingerprints").iterdir():
        DAMAGES[damage](path)
    rewrite(folder, [row for row in before if row["suspect"] != "Negative"])
    assert facts(bench(folder)) == facts(before)
    assert work == {"extract": 2, "verify": 4}


def test_results_do_not_depend_on_what_was_cached(finished: Path, tmp_path: Path) -> None:
    bench(tmp_path, attacks=["RemovalNet(apart)"], verifiers=["ZestVerifier"], seeds=1)
    shutil.rmtree(tmp_path / "fingerprints")
    bench(tmp_path, attacks=[], verifiers=["IPGuardVerifier"])
    shutil.rmtree(tmp_path / "models")
    assert facts(bench(tmp_path)) == facts(read_rows(finished))


def test_weights_of_one_setting_are_shared_between_rows(tmp_path: Path, work: Counter[str]) -> None:
    preset = tiny()
    twice = {"FT(0.5)": preset.attacks["FT(0.5)"], "tuned": preset.attacks["FT(0.5)"]}
    rows = bench(tmp_path, replace(preset, attacks=twice), seeds=1, verifiers=["IPGuardVerifier"])
    assert work["generate"] == 1
    assert rows[-1]["suspect"] == "tuned"
    assert rows[-1]["metrics"] == rows[-2]["metrics"]
    assert rows[-1]["attack_seconds"] == rows[-2]["attack_seconds"]


# ---------------------------------------------------------------------- failures
@pytest.mark.parametrize("error", [RuntimeError("no\nmemory"), KeyError("layer"), TrainingDivergedError("NaN")])
def test_attack_that_raises_gives_failed_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, work: Counter[str], error: Exception
) -> None:
    generate = FineTuningAttack.generate

    def fail(self: FineTuningAttack, *arguments: Any) -> PyTorchClassifier:
        if self.seed == 0:
            raise error
        return generate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuningAttack, "generate", fail)
        rows = bench(folder, other_attack(tiny()))[CELLS:]
    assert [(row["suspect"], row["seed"], row["status"]) for row in rows] == [
        *[("FT(0.5)", 0, "failed")] * 2,
        *[("FT(0.5)", 1, "ok")] * 2,
    ]
    for row in rows[:2]:
        assert set(row) == {*KEYS, *ADDED_KEYS}
        assert row["reason"] == f"{type(error).__name__}: {error}"
        assert row["metrics"] == {}
        assert row["derived"] is row["accuracy"] is row["accuracy_drop"] is row["agreement"] is row["queries"] is None
        assert row["attack"] == "FineTuningAttack"
        assert row["attack_params"]["max_iter"] == 3
    work.clear()
    again = bench(folder, other_attack(tiny()))[CELLS + 4 :]
    assert [(row["suspect"], row["seed"], row["status"]) for row in again] == [("FT(0.5)", 0, "ok")] * 2
    assert work == {"generate": 1, "verify": 2}


def test_verdict_that_raises_fails_one_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> dict[str, float]:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(IPGuardVerifier, "_score", fail)
    rewrite(folder, [row for row in read_rows(folder) if row["suspect"] != "Victim"])
    one, two = sorted(bench(folder)[CELLS - 2 :], key=lambda row: row["verifier"])
    assert (one["suspect"], one["status"], one["reason"]) == ("Victim", "failed", "ZeroDivisionError: by hand")
    assert one["accuracy"] == two["accuracy"] > 0
    assert two["status"] == "ok"


@pytest.mark.parametrize("verb", ["extract", "calibrate"])
def test_verifier_that_cannot_start_fails_its_own_cells(
    folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise CalibrationError("no luck")

    before = read_rows(folder)
    rewrite(folder, [row for row in before if row["suspect"] != "Negative"])
    shutil.rmtree(folder / "fingerprints")
    with monkeypatch.context() as patch:
        patch.setattr(ZestVerifier, verb, fail)
        rows = bench(folder)[CELLS - 4 :]
    assert [row["verifier"] for row in rows] == ["IPGuardVerifier", "ZestVerifier"] * 2
    assert [row["status"] for row in rows] == ["ok", "failed"] * 2
    assert {row["reason"] for row in rows} == {"", "CalibrationError: no luck"}
    rows = bench(folder)
    assert len(rows) == CELLS + 2
    assert facts(rows) == facts(before)


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["FT(0.5)", "FT"]}, r"no attack row 'FT'; it has FT\(0.5\), RemovalNet\(apart\)"),
        ({"verifiers": ["IPGard"]}, "no verifier .IPGard"),
        ({"seeds": 0}, "`seeds` must be an integer in .1, 100000., got 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path: Path, options: Row, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        bench(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_unknown_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="known are .*digits"):
        bench(tmp_path, replace(tiny(), dataset="mnist"))


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInputError, match="cannot be used for results"):
            bench(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InvalidInputError, match="cannot be used for results"):
            bench(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_read_only_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_options: Any) -> None:
        raise PermissionError("Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(InvalidInputError, match="cannot be used for results: Read-only file system"):
        bench(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense}", "Line 1 of .* is not JSON"),
        ("[1, 2]", "Line 1 of .* is not a JSON object"),
        ('{"preset": "tiny"}', "Line 1 of .* is not a result row: it has no key, dataset"),
    ],
)
def test_foreign_rows_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidInputError, match=message):
        bench(tmp_path)


def test_missing_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="No result rows can be read"):
        read_rows(tmp_path / "nowhere")


# ---------------------------------------------------------------------- the caller's process
@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("wanted", "inside"), [(1, 1), (2, 2), (None, 3)])
def test_thread_count_comes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wanted: int | None, inside: int
) -> None:
    seen = []
    score = Workbench._score

    def watch(self: Workbench, *arguments: Any) -> Row:
        seen.append(torch.get_num_threads())
        return score(self, *arguments)

    monkeypatch.setattr(Workbench, "_score", watch)
    bench(folder, replace(tiny(), threads=wanted), seeds=3, attacks=[])
    assert seen == [inside] * 2
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_thread_count_comes_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workbench, "_score", fail)
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path)
    assert torch.get_num_threads() == 3


def test_callers_random_state_is_untouched(tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        keys: Any = np.random.get_state()[1]  # type: ignore[index] # noqa: NPY002 - the global state is what is tested
        return random.getstate(), keys.tobytes(), torch.get_rng_state().numpy().tobytes()

    before = state()
    bench(tmp_path, seeds=1)
    assert state() == before


# ---------------------------------------------------------------------- substitute data
def test_substitute_data_of_each_source() -> None:
    data = load_digits()

    class Labels:
        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.eye(10)[data.y_train[: len(x)]]

    def get(source: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return substitute_data(data, Labels(), source, 0.2, seed)  # type: ignore[arg-type]

    assert get("train")[0] is data.x_train
    assert get("apart")[0] is data.x_apart
    x, y = get("subset")
    assert x.shape == (200, 1, 8, 8)
    assert np.bincount(y).tolist() == [20] * 10
    known = {image.tobytes(): label for image, label in zip(data.x_train, data.y_train, strict=True)}
    assert [known[image.tobytes()] for image in x] == y.tolist()
    assert not np.array_equal(x, get("subset", 1)[0])


def test_attacker_gets_true_labels_only_where_the_setting_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    for kind in (FineTuningAttack, RemovalNetAttack):

        def generate(self: Any, x: np.ndarray, y: Any = None) -> PyTorchClassifier:
            seen[type(self).__name__] = (len(x), y)
            raise RuntimeError("enough")

        monkeypatch.setattr(kind, "generate", generate)
    bench(folder, other_attack(other_attack(tiny()), "RemovalNet(apart)"), seeds=1)
    assert seen["FineTuningAttack"][0] == 1000
    assert np.array_equal(seen["FineTuningAttack"][1], load_digits().y_train)
    assert seen["RemovalNetAttack"] == (437, None)


# ---------------------------------------------------------------------- store
def test_cell_key_depends_on_every_fact_and_not_on_their_order() -> None:
    assert cell_key(a=1, b=(2, 3)) == cell_key(b=[2, 3], a=1)
    assert len({cell_key(a=1), cell_key(a=2), cell_key(b=1), cell_key(a="1"), cell_key(a=1.5), cell_key()}) == 6


def test_store_refuses_nan(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append({"accuracy": float("nan")})
    assert store.rows() == []


def small_model(width: int = 4) -> PyTorchClassifier:
    return wrap(small(width), (1, 8, 8), 10)


def test_models_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = small_model(), small_model()
    one.model.block1[1].num_batches_tracked += 5
    store.save_model("k", one, {"seconds": 1.5, "layers": ["block2"]})
    assert store.load_model("k", two) == {"seconds": 1.5, "layers": ["block2"]}
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, two.model.state_dict()[name]), name
    assert store.load_model("missing", two) is None
    assert [path.name for path in store.models.iterdir()] == ["k.safetensors"]


def test_kept_models_are_weights_for_the_command_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = small_model(), small()
    store.save_model("k", one, {})
    load_weights(two, store.models / "k.safetensors")
    assert torch.equal(two.head.weight, one.model.head.weight)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_count_as_missing(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.save_model("k", small_model(), {"params": {"ratio": 0.5}, "seconds": 1.25, "losses": {"ce": 0.1}})
    DAMAGES[damage](store.models / "k.safetensors")
    assert store.load_model("k", small_model()) is None


@pytest.mark.parametrize("card", [None, "null", "[1]", "{}", "3", '{"digest": "0", "notes": {}}', "{"])
def test_foreign_notes_count_as_missing(tmp_path: Path, card: str | None) -> None:
    store = Store(tmp_path)
    state = {name: tensor.clone() for name, tensor in small().state_dict().items()}
    save_file(state, store.models / "k.safetensors", metadata=None if card is None else {"art_fingerprint": card})
    assert store.load_model("k", small_model()) is None


def test_weights_of_another_network_are_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_model("k", small_model(), {})
    assert store.load_model("k", small_model(5)) is None


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    def tied() -> PyTorchClassifier:
        network: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
        network[2].weight = network[1].weight
        return wrap(network, (1, 8, 8), 64)

    store = Store(tmp_path)
    one, two = tied(), tied()
    store.save_model("k", one, {})
    assert store.load_model("k", two) == {}
    assert torch.equal(two.model[1].weight, one.model[1].weight)
    assert two.model[2].weight is two.model[1].weight


@pytest.mark.parametrize("damage", ["gone", "empty", "truncated", "rubbish", "changed"])
def test_damaged_facts_count_as_missing(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.save_facts("k", {"accuracy": 0.75, "robustness": {"FGSM": {"accuracy": 0.5, "note": "x" * 100}}})
    facts_of = store.load_facts("k")
    assert facts_of is not None
    assert facts_of["accuracy"] == 0.75
    path = tmp_path / "facts" / "k.json"
    if damage == "changed":
        path.write_text(path.read_text().replace("0.75", "0.85"))
    else:
        DAMAGES[damage](path)
    assert store.load_facts("k") is None


# ---------------------------------------------------------------------- fidelity
def test_accuracy_and_agreement_by_hand() -> None:
    x = np.eye(4, dtype=np.float32)

    def black_box(table: list[int]) -> BlackBoxClassifierNeuralNetwork:
        return BlackBoxClassifierNeuralNetwork(lambda x: np.eye(4)[np.array(table)[x.argmax(1)]], (4,), 4)

    victim, suspect = black_box([0, 1, 2, 3]), black_box([0, 1, 1, 1])
    assert accuracy(victim, x, np.arange(4)) == 1
    assert accuracy(suspect, x, np.arange(4)) == 0.5
    assert accuracy(suspect, x, np.eye(4)) == 0.5
    assert agreement(victim, suspect, x) == 0.5
    assert accuracy_drop(1.0, 0.5) == 50
    assert accuracy_drop(0.5, 0.75) == -25


def test_fidelity_leaves_the_model_in_its_mode(
    make_classifier: Callable[..., PyTorchClassifier], images: np.ndarray
) -> None:
    victim, suspect = make_classifier(0), make_classifier(1)
    victim.model.train()
    accuracy(victim, images, np.arange(40) % 4)
    agreement(victim, suspect, images)
    assert victim.model.training
    assert not suspect.model.training


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 1, 8, 7), np.float32), np.zeros(3, int), "`x` must have shape"),
        (np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, int), "`x` is empty"),
        (np.zeros((3, 1, 8, 8), np.float32), np.zeros(2, int), "`y` must have one label"),
        (np.zeros((3, 1, 8, 8), np.float32), np.full(3, 9), "`y` holds labels from 9"),
    ],
)
def test_accuracy_refuses_bad_data(
    make_classifier: Callable[..., PyTorchClassifier], x: np.ndarray, y: np.ndarray, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        accuracy(make_classifier(), x, y)
