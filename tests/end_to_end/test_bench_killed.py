"""`kill -9` at random moments of a run on digits, each followed by a restart: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.zoo.presets import Preset, load_preset
from tests.end_to_end.test_bench_executors import ROOT, facts, until

pytestmark = pytest.mark.slow
KILLS = 10
PROGRAM = """
import sys
from pathlib import Path
from tests.end_to_end.test_bench_killed import run
if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
"""


def shorter() -> Preset:
    """The digits preset with shorter trainings."""
    preset = load_preset("digits")
    recipes: dict[str, Any] = {
        name: replace(getattr(preset, name), max_iter=300) for name in ("victim_recipe", "negative_recipe")
    }
    attacks = {label: replace(s, params={**s.params, "max_iter": 40}) for label, s in preset.attacks.items()}
    return replace(preset, **recipes, attacks=attacks, nb_references=3)


def run(folder: Path, executor: Any = "serial") -> None:
    workers = None if executor == "serial" else 2
    Bench(Plan.from_preset(shorter(), 1), folder, executor, workers, device_type="cpu", verbose=False).run()


def start(program: Path, folder: Path, executor: str) -> subprocess.Popen[bytes]:
    """Begin a run, and return when it has looked at what is there and goes to work."""
    plan = folder / "plan.json"
    before = plan.stat().st_mtime_ns if plan.exists() else 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, str(program), str(folder), executor], cwd=ROOT, env=environment)
    until(lambda: (plan.exists() and plan.stat().st_mtime_ns > before) or child.poll() is not None)
    return child


@pytest.mark.parametrize(("executor", "seed"), [("serial", 0), ("process", 1)])
def test_killed_runs_end_with_the_rows_of_an_undisturbed_one(tmp_path: Path, executor: str, seed: int) -> None:
    undisturbed, folder, program = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "program.py"
    program.write_text(PROGRAM)
    began = time.monotonic()
    run(undisturbed)
    seconds = time.monotonic() - began
    expected = read_rows(undisturbed)
    assert len(expected) == 4 * (1 + 3 + 1 + 7)
    assert {row["status"] for row in expected} == {"ok"}
    moments = random.Random(seed)
    seen = 0
    for _ in range(KILLS):
        child = start(program, folder, executor)
        time.sleep(moments.uniform(0, seconds / KILLS))
        assert child.poll() is None, "the run was over before it could be killed"
        child.kill()
        child.wait()
        rows = read_rows(folder) if (folder / "rows.jsonl").exists() else []
        assert len(rows) >= seen  # nothing that was there is lost
        seen = len(rows)
    assert start(program, folder, executor).wait() == 0
    assert facts(read_rows(folder)) == facts(expected)
    leftovers = [path for path in folder.rglob(".*.*") if path.is_file()]
    assert len(leftovers) <= KILLS  # at most one half-written file for each kill, swept when it is old
