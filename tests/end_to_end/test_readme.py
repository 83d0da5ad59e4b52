"""The README's code blocks run as printed, in order, and say what the text around them says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_python_blocks_run_and_give_the_stated_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block's two verdicts are `derived` and `not derived`; the second block reads a file's verdict.

    The third runs with that file alone, and prints what stands below it, but for numbers.
    """
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    assert all(len(block.splitlines()) <= 15 for block in blocks[1:])
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(blocks[0], "README.md", "exec"), scope)
    assert scope["verifier"].verify(scope["copy"]).derived is True
    assert scope["verifier"].verify(scope["surrogate"]).derived is False
    exec(compile(blocks[1], "README.md", "exec"), scope)
    assert scope["verdict"].to_dict() == scope["verifier"].verify(scope["surrogate"]).to_dict()
    stranger = subprocess.run(
        [sys.executable, "-c", blocks[2]], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert stranger.returncode == 0, stranger.stderr
    printed = text.split(blocks[2])[1].split("```")[2].strip()
    assert without_numbers(stranger.stdout.strip()) == without_numbers(printed)


def without_numbers(text: str) -> str:
    """Return a text without its numbers, which differ a little from one machine to the next."""
    return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?", "#", text))


def test_commands_of_the_readme_exist() -> None:
    """Every make target and command-line verb that the README names is there."""
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z-]+)", text)) - {"and"}
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
