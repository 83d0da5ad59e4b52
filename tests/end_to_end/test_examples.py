"""Every example runs, quickly, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def marks(script: Path) -> list[pytest.MarkDecorator]:
    """Ray takes its time to start."""
    return [pytest.mark.slow] if script.stem == "06_grid_on_ray" else []


@pytest.mark.parametrize("script", [pytest.param(path, marks=marks(path), id=path.stem) for path in EXAMPLES])
def test_example_runs(script: Path, tmp_path: Path) -> None:
    """`--quick` ends without an error; an example has fewer than 80 lines."""
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80
    done = subprocess.run(
        [sys.executable, str(script), "--quick"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    if script.stem == "01_quickstart":
        verdicts = done.stdout.split("ZestVerifier: ")[1:]
        copy, _, independent = (float(re.findall(r"ZEST-cosine +([0-9.e-]+)", text)[0]) for text in verdicts)
        assert verdicts[0].startswith("DERIVED")
        # Not the independent model's verdict: five references accuse one in six by chance.
        assert copy < 0.2 * independent
    if script.stem == "02_art_workflow":
        lines = {line[:16].strip(): line for line in done.stdout.splitlines()}
        assert "not derived" not in lines["fine-tuned copy"]
        transferred = {name: float(lines[name].split("%")[2]) for name in ("victim", "fine-tuned copy", "independent")}
        assert transferred["fine-tuned copy"] < transferred["independent"]  # the victim's PGD images fool its copy more
    if script.stem == "05_own_verifier":
        verdicts = re.findall(r"RunnerUpVerifier: (DERIVED|not derived)", done.stdout)
        assert verdicts[:2] == ["DERIVED", "DERIVED"]
    if script.stem == "06_grid_on_ray":
        assert re.search(r"^FT\(0.5\) +derived +1/1 +1/1$", done.stdout, flags=re.MULTILINE)
        assert "30 rows in" in done.stdout
    if script.stem == "03_query_only_suspect":
        verdicts = re.findall(r"^\w+Verifier: (DERIVED|not derived|undecided)", done.stdout, flags=re.MULTILINE)
        assert len(verdicts) == 4
        assert verdicts[:2] == ["DERIVED", "DERIVED"]  # the copy; the independent model's are left to chance
