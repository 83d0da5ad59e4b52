"""The README's code block runs as printed and says what the text around it says; its commands exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_python_block_runs_and_gives_the_stated_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy is `derived`, the surrogate is not; what stands below is the beginning of what is printed, but for
    numbers."""
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) < 15
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(blocks[0], "README.md", "exec"), scope)
    printed = text.split(blocks[0])[1].split("```")[2].strip().removesuffix("...")
    assert without_numbers(capsys.readouterr().out.strip()).startswith(without_numbers(printed).strip())
    assert scope["verifier"].verify(scope["copy"]).derived is True
    assert scope["verifier"].verify(scope["surrogate"]).derived is False


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
