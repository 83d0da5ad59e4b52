"""Every example runs, quickly, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
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
    if script.stem == "02_third_party":
        verdicts = re.findall(r"^\w+Verifier: (DERIVED|not derived|undecided)", done.stdout, flags=re.MULTILINE)
        assert len(verdicts) == 4
        assert verdicts[:2] == ["DERIVED", "DERIVED"]  # the copy; the independent model's are left to chance
