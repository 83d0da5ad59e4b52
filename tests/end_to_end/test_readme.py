"""The README's code blocks run as printed, in order, and say what the text around them says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_python_blocks_run_and_give_the_stated_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block's two verdicts are `derived` and `not derived`; the second block reads a file's verdict."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(blocks[0], "README.md", "exec"), scope)
    assert scope["verifier"].verify(scope["copy"]).derived is True
    assert scope["verifier"].verify(scope["surrogate"]).derived is False
    exec(compile(blocks[1], "README.md", "exec"), scope)
    assert scope["verdict"].to_dict() == scope["verifier"].verify(scope["surrogate"]).to_dict()


def test_commands_of_the_readme_exist() -> None:
    """Every make target and command-line verb that the README names is there."""
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"make ([a-z-]+)", text)) - {"and"}
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
