"""One plan on the three executors: the same rows; and what happens when attacks raise, verifiers fail, workers die."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from art_fingerprint.benchmark.on_ray import RayExecutor
from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.processes import ProcessExecutor, visible_gpus
from art_fingerprint.benchmark.runner import Bench, _claim
from art_fingerprint.benchmark.store import Store, read_rows
from art_fingerprint.benchmark.tasks import Hands, Job, Task
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.exceptions import InvalidInputError, MissingDependencyError, StoreError
from art_fingerprint.zoo.presets import AttackSetting, Preset, load_preset
from tests.tiny_preset import tiny

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
FAST = {"max_iter": 2, "hflip": False}
OWN_VERIFIER = "tests.bench_plugins:OwnVerifier"


def attacks(**how: str) -> dict[str, AttackSetting]:
    """Attacks by label: what goes wrong in each."""
    return {
        label: AttackSetting("tests.bench_plugins:OwnAttack", {**FAST, "how": text}, "train", True)
        for label, text in how.items()
    }


def run(preset: Preset, folder: Path, executor: Any = "process", seeds: Any = 1, workers: int | None = 2) -> list[Row]:
    workers = None if executor == "serial" else workers
    Bench(Plan.from_preset(preset, seeds), folder, executor, workers, device_type="cpu", verbose=False).run()
    return read_rows(folder)


def facts(rows: list[Row]) -> dict[str, Row]:
    """What must not depend on when and where a row was made, by key; no key may come twice."""
    assert len({row["key"] for row in rows}) == len(rows)
    found = {}
    for row in rows:
        kept = {name: value for name, value in row.items() if not name.endswith("_seconds")}
        cost = row["cost"] or {}
        kept["cost"] = {name: value for name, value in cost.items() if name not in ("seconds", "peak_memory_bytes")}
        found[row["key"]] = kept
    return found


def alike(one: object, two: object) -> bool:
    """Tell whether two JSON values agree, numbers to 1e-5."""
    if isinstance(one, float) or isinstance(two, float):
        return one == pytest.approx(two, rel=1e-5, abs=1e-5)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[name], two[name]) for name in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    return one == two


# ---------------------------------------------------------------------- the same rows
@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return run(tiny(), tmp_path_factory.mktemp("serial"), "serial", seeds=2)


@pytest.mark.parametrize("executor", ["process", "ray"])
def test_executors_give_the_same_rows(executor: str, serial: list[Row], tmp_path: Path) -> None:
    if executor == "ray":
        pytest.importorskip("ray", reason="the extra `ray` is not installed")
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
    before = [os.environ.get(name) for name in names], torch.get_num_threads()
    rows = run(tiny(), tmp_path, executor, seeds=2)
    assert ([os.environ.get(name) for name in names], torch.get_num_threads()) == before
    assert {row["status"] for row in rows} == {"ok"}
    assert facts(rows) == facts(serial)
    assert run(tiny(), tmp_path, "serial", seeds=2) == rows  # and what one has done, another does not repeat


@pytest.mark.slow
def test_executors_agree_on_the_digits_preset(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    preset = load_preset("digits")
    recipes = {name: replace(getattr(preset, name), max_iter=200) for name in ("victim_recipe", "negative_recipe")}
    shorter = {label: replace(s, params={**s.params, "max_iter": 30}) for label, s in preset.attacks.items()}
    preset = replace(preset, **recipes, attacks=shorter, nb_references=3)
    found = {name: facts(run(preset, tmp_path / name, name)) for name in ("serial", "process", "ray")}
    assert len(found["serial"]) == 4 * (1 + 3 + 1 + 7)
    for other in ("process", "ray"):
        assert found[other].keys() == found["serial"].keys()
        for key, row in found["serial"].items():
            assert alike(row, found[other][key]), (other, row, found[other][key])


def test_every_verifier_gets_the_data_that_it_extracts_from(tmp_path: Path) -> None:
    """Errors are looked for on held-out images, membership on both; weights need none."""
    params: dict[str, dict[str, Any]] = {
        "AKHVerifier": {"nb_probes": 10, "min_errors": 2},
        "SACVerifier": {"nb_probes": 10, "min_errors": 2},
        "FBIVerifier": {"nb_probes": 20},
        "DatasetInferenceVerifier": {"nb_test": 20, "nb_targets": 3},
        "WeightAlignmentVerifier": {},
        "RobustnessVerifier": {"nb_seeds": 10, "metric_names": ["RobD-FGSM"], "eps": 0.1},
    }
    preset = replace(tiny(), attacks={}, verifiers=params, robustness={}, nb_other_data_references=2)
    rows = run(preset, tmp_path)
    assert len(rows) == len(params) * (1 + 2 + 2 + 1)
    for row in rows:
        assert (row["status"], row["verifier"]) == ("ok", row["verifier"]), row["reason"]
        assert (row["queries"] == 0) == (row["verifier"] == "WeightAlignmentVerifier")


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [("", 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), (" GPU-a , GPU-b ", 2, ["GPU-a", "GPU-b"]), ("", 0, [])],
)
def test_each_worker_gets_a_gpu_of_those_that_this_process_sees(
    named: str, count: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus() == expected


def test_a_worker_sees_its_own_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the workers are started with, taken down in place of starting them."""
    seen = []

    class Process:
        def __init__(self, **_options: Any) -> None:
            pass

        def start(self) -> None:
            seen.append((os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]))

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Process", Process)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    ProcessExecutor(Job(Plan.from_preset(tiny()), str(tmp_path), "gpu", True, nb_workers=3), ["3", "5"])
    assert seen == [("3", "1"), ("5", "1"), ("3", "1")]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


# ---------------------------------------------------------------------- failures
def test_failures_are_rows_and_the_rest_goes_on(tmp_path: Path) -> None:
    """In workers: one attack raises, one kills its worker each time, one only once; a verifier answers NaN, another
    cannot be extracted."""
    marker = tmp_path / "died"
    preset = replace(
        tiny(),
        attacks=attacks(raises="raise", dies="die", once=f"die-once:{marker}", good=""),
        verifiers={"IPGuardVerifier": tiny().verifiers["IPGuardVerifier"], OWN_VERIFIER: {"nb_probes": 20}},
        robustness={},
    )
    folder = tmp_path / "run"
    rows = run(preset, folder)
    found = {(row["suspect"], row["verifier"]): row for row in rows if row["role"] == "surrogate"}
    assert len(rows) == 2 * (1 + 2 + 1 + 4)
    for verifier in preset.verifiers:
        row = found["raises", verifier]
        assert (row["status"], row["reason"]) == ("failed", "RuntimeError: by hand, seed 0")
        assert "_derive" in row["traceback"]
        row = found["dies", verifier]
        assert row["status"] == "failed"
        assert "worker process died (signal SIGKILL, short of memory?)" in row["reason"]
        assert row["accuracy"] is None
    assert marker.exists()
    for label in ("once", "good"):
        assert found[label, "IPGuardVerifier"]["status"] == "ok"
        row = found[label, OWN_VERIFIER]
        assert (row["derived"], row["metrics"]["MR"]["value"]) == (None, None)
        assert row["reason"] == "MR undefined on this suspect"
    again = run(preset, folder)
    assert Counter(row["suspect"] for row in again[len(rows) :]) == {"raises": 2, "dies": 2}


@pytest.mark.parametrize(("how", "reason"), [("raise", "RuntimeError: no fingerprint"), ("die", "worker process died")])
@pytest.mark.slow
def test_verifier_without_a_fingerprint_fails_its_own_cells(tmp_path: Path, how: str, reason: str) -> None:
    verifiers = {OWN_VERIFIER: {"how": how}, "IPGuardVerifier": tiny().verifiers["IPGuardVerifier"]}
    rows = run(replace(tiny(), attacks={}, nb_references=1, verifiers=verifiers, robustness={}), tmp_path)
    statuses = {(row["verifier"], row["status"]) for row in rows}
    assert statuses == {(OWN_VERIFIER, "failed"), ("IPGuardVerifier", "ok")}
    for row in rows:
        assert row["accuracy"] is not None
        assert reason in row["reason"] or row["status"] == "ok"


def test_victim_that_cannot_be_made_fails_every_cell_once(tmp_path: Path) -> None:
    recipe = replace(tiny().victim_recipe, learning_rate=1e30)  # diverges
    rows = run(replace(tiny(), victim_recipe=recipe), tmp_path, "serial")
    assert len(rows) == 2 * (1 + 2 + 1 + 2)
    assert {row["status"] for row in rows} == {"failed"}
    assert all(row["reason"].startswith("the victim could not be made: TrainingDivergedError") for row in rows)


@pytest.mark.slow
def test_folder_that_fills_up_in_a_worker_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers inherit a limit on the size of files."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    start = Bench._executor

    def limited(self: Bench) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
        try:
            return start(self)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(Bench, "_executor", limited)
    with pytest.raises(StoreError, match="cannot be written to"):
        run(tiny(), tmp_path)
    monkeypatch.undo()
    assert len(run(tiny(), tmp_path, "serial")) == 12


# ---------------------------------------------------------------------- Ray
def test_ray_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    job = Job(Plan.from_preset(tiny()), str(tmp_path), "cpu")
    with pytest.raises(MissingDependencyError, match=r"pip install 'art-fingerprint\[ray\]'"):
        RayExecutor(job)


@pytest.mark.slow
def test_ray_reports_dead_workers_and_wrong_addresses(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    preset = replace(tiny(), attacks=attacks(dies="die", good=""), nb_references=1, robustness={})
    rows = run(preset, tmp_path / "run", "ray")
    statuses = {(row["suspect"], row["status"]) for row in rows if row["role"] == "surrogate"}
    assert statuses == {("dies", "failed"), ("good", "ok")}
    assert any("Ray worker died" in row["reason"] for row in rows if row["suspect"] == "dies")
    with pytest.raises(InvalidInputError, match="Ray cannot be reached at 127.0.0.1:1"):
        RayExecutor(Job(Plan.from_preset(tiny()), str(tmp_path), "cpu"), "127.0.0.1:1")


@pytest.mark.slow
def test_ray_that_runs_already_is_used_and_left_running(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        rows = run(replace(tiny(), attacks={}, nb_references=1, robustness={}), tmp_path, "ray")
        assert {row["status"] for row in rows} == {"ok"}
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_host_that_does_not_share_the_folder_is_told_so(tmp_path: Path) -> None:
    job = Job(Plan.from_preset(tiny()), str(tmp_path / "elsewhere"), "cpu")
    with pytest.raises(StoreError, match="not to be seen from .*on a file system that they share"):
        Hands(job)


# ---------------------------------------------------------------------- ends
PROGRAM = """
import signal, sys
from art_fingerprint import cli
from art_fingerprint.zoo import presets
from dataclasses import replace
from tests.end_to_end.test_bench_executors import attacks
from tests.tiny_preset import tiny
presets.PRESETS["tiny"] = lambda: replace(tiny(), attacks=attacks(slow="sleep:60"), robustness={})
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with &
    sys.exit(cli.main(["bench", "--preset", "tiny", "--seeds", "1", "--device", "cpu", "--quiet", *sys.argv[1:]]))
"""


def start(tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), "--out", str(tmp_path / "run"), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.05)


def is_waiting(folder: Path) -> bool:
    """Tell whether all but the slow attack is done."""
    return (folder / "rows.jsonl").exists() and len(read_rows(folder)) == 8


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "executor"),
    [
        (signal.SIGINT, "serial"),
        (signal.SIGINT, "process"),
        pytest.param(signal.SIGTERM, "process", marks=pytest.mark.slow),
    ],
)
def test_interruption_ends_a_run_cleanly(tmp_path: Path, number: signal.Signals, executor: str) -> None:
    more = ["--executor", executor, *(["--workers", "2"] if executor == "process" else [])]
    with start(tmp_path, *more) as program:
        until(lambda: is_waiting(tmp_path / "run"))
        workers = children(program.pid)
        program.send_signal(number)
        out, err = program.communicate(timeout=300)
    assert program.returncode == 130, err
    assert err == "art-fingerprint: stopped; run the same command again to go on.\n"
    assert out == ""
    assert len(read_rows(tmp_path / "run")) == 8
    until(lambda: not any(map(alive, workers)), 10)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks into /proc")
def test_workers_die_with_a_killed_run(tmp_path: Path) -> None:
    with start(tmp_path, "--executor", "process", "--workers", "2") as program:
        until(lambda: is_waiting(tmp_path / "run"))
        workers = children(program.pid)
        assert len(workers) >= 2
        program.kill()
        program.communicate()
    until(lambda: not any(map(alive, workers)), 10)
    assert len(read_rows(tmp_path / "run")) == 8


def test_two_runs_in_one_folder_share_the_work(tmp_path: Path) -> None:
    preset = replace(tiny(), robustness={})
    program = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from tests.end_to_end.test_bench_executors import run; from tests.tiny_preset import tiny\n"
        f"run(replace(tiny(), robustness={{}}), Path({str(tmp_path)!r}), 'serial', seeds=4)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for _ in range(2)
    ]
    assert [one.wait(300) for one in runs] == [0, 0]
    rows = read_rows(tmp_path)
    plan = Plan.from_preset(preset, 4)
    expected = {
        bench.cell(s, v)
        for bench in Bench(plan, tmp_path, device_type="cpu").benches.values()
        for s in bench.suspects
        for v in preset.verifiers
    }
    assert Counter(row["key"] for row in rows) == Counter(expected)
    assert {row["status"] for row in rows} == {"ok"}


def test_a_run_waits_for_what_another_is_at(tmp_path: Path) -> None:
    """The other holds the last suspect, finishes it, and this run takes its rows for done."""
    preset = replace(tiny(), attacks={}, robustness={})
    run(preset, tmp_path, "serial")
    rows = read_rows(tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["suspect"] != "Negative"]
    (tmp_path / "rows.jsonl").write_text("".join(kept))
    work = Workbench(preset, tmp_path, [0], "cpu")
    (suspect,) = [s for s in work.suspects if s.role == "negative"]
    store = Store(tmp_path)
    release = store.claim(_claim(work, Task("rows", "tiny", suspect, ())))
    assert release is not None
    other = threading.Thread(target=run, args=(preset, tmp_path, "serial"))
    other.start()
    time.sleep(2)
    assert other.is_alive()
    for row in rows:
        if row["suspect"] == "Negative":
            store.append(row)
    release()
    other.join(30)
    assert not other.is_alive()
    assert facts(read_rows(tmp_path)) == facts(rows)
