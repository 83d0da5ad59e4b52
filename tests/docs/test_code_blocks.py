"""Every Python block of README and docs runs, page by page from top to bottom, and every command line is understood."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint import cli
from art_fingerprint.experiments.catalogue import experiment
from art_fingerprint.zoo.loading import attack_class, check_parameters, verifier_class
from art_fingerprint.zoo.presets import load_preset
from tests.docs.pages import GIVEN, PAGES, ROOT, Scope, blocks, name_of

SLOW = {
    "README.md": "trains six models at full length; tests/end_to_end/test_readme.py runs it",
    "docs/quickstart.md": "trains six models at full length",
    "docs/bench.md": "starts worker processes",
}
# Blocks that cannot run here: page, number from 0, and why.
NOT_RUN: dict[tuple[str, int], str] = {}
WITH_CODE = [page for page in PAGES if blocks(page, "python")]


def says(verdict: Any, derived: bool | None) -> None:
    assert verdict.derived is derived, repr(verdict)


def quickstart(scope: Scope) -> None:
    says(scope["verdict"], True)
    says(scope["fooled"], False)
    says(scope["second_opinion"], True)
    assert (Path("victim.zest.safetensors").is_file(), Path("verdict.png").is_file()) == (True, True)


def query_only(scope: Scope) -> None:
    says(scope["verdict"], True)
    says(scope["strangers_verdict"], False)
    says(scope["short"], None)
    says(scope["label_verdict"], True)
    assert 0 < scope["verdict"].queries <= 5000
    assert scope["short"].queries <= 50
    assert scope["label_verdict"].queries == 50


def own_verifier(scope: Scope) -> None:
    assert scope["verifier"].verify(scope["suspect"]).derived is not None


# What a page says of its results.
CHECKS: dict[str, Callable[[Scope], None]] = {
    "docs/howto/own-verifier.md": own_verifier,
    "docs/howto/query-only.md": query_only,
    "docs/quickstart.md": quickstart,
    "docs/in-use.md": lambda scope: says(scope["verifier"].verify(scope["surrogate"]), None),
    "docs/weight-alignment.md": lambda scope: says(scope["verdict"], True),
}


def cases() -> Iterator[Any]:
    for page in WITH_CODE:
        if name_of(page) != "README.md":
            marks = [pytest.mark.slow] if name_of(page) in SLOW else []
            yield pytest.param(page, id=name_of(page), marks=marks)


@pytest.mark.parametrize("page", list(cases()))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_of(page)
    monkeypatch.chdir(tmp_path)
    scope: Scope = {"__name__": "__main__"}
    if name in GIVEN:
        scope |= GIVEN[name](tmp_path, monkeypatch)
    for number, block in enumerate(blocks(page, "python")):
        if (name, number) not in NOT_RUN:
            exec(compile(block, f"{name}, block {number}", "exec"), scope)
    if name in CHECKS:
        CHECKS[name](scope)


def test_lists_name_what_is_there() -> None:
    """Nothing is excused, prepared or checked that no page has any more."""
    names = {name_of(page): len(blocks(page, "python")) for page in WITH_CODE}
    assert {*SLOW, *CHECKS, *GIVEN} <= set(names)
    assert all(number < names[page] and why for (page, number), why in NOT_RUN.items())


def command_lines() -> Iterator[Any]:
    for page in PAGES:
        for block in blocks(page, "", "console", "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("art-fingerprint "):
                    yield pytest.param(line, id=f"{name_of(page)}: {line[:60]}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_command_lines_are_understood(line: str) -> None:
    """The parser takes them, and what they name is there."""
    parsed = cli._parser().parse_args(shlex.split(line, comments=True)[1:])
    found = vars(parsed)
    kind = None
    if parsed.verb == "attack":
        kind = attack_class(parsed.attack)
    elif parsed.verb == "extract":
        kind = verifier_class(parsed.verifier)
        assert parsed.profile in kind.profiles
    if kind is not None:
        check_parameters(kind, dict(parsed.set))
    if found.get("preset"):
        assert load_preset(parsed.preset).name == parsed.preset
    if parsed.verb == "experiment":
        assert experiment(parsed.name)
    if found.get("plan"):
        assert (ROOT / parsed.plan).is_file()


def test_saved_models_are_what_the_command_line_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of docs/command-line.md go through an attack, an extraction and a verdict."""
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(ROOT / "docs" / "command-line.md", "python")[0], "command-line.md", "exec"), {})
    model = "--model mymodels:make --weights W.pt --data D.npz --device cpu --quiet"
    few = "--set nb_images=10 --set nb_masks=20 --references W.pt"
    assert cli.main(f"attack --attack WeightNoiseAttack {model} --out S.safetensors".split()) == 0
    assert cli.main(f"extract --verifier Zest {model} --out V.safetensors {few}".split()) == 2
    assert "is the victim itself" in capsys.readouterr().err
    suspect = "--model mymodels:make --weights S.safetensors --device cpu"
    assert cli.main(f"verify --fingerprint V.safetensors {suspect} --fail-if-derived".split()) == 0
    assert "undecided: not calibrated" in capsys.readouterr().out


def test_short_command_lines_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lists, and the outline of a grid."""
    monkeypatch.chdir(ROOT)
    lines = {case.values[0] for case in command_lines()}
    for line in lines:
        if " list " in line or "--dry-run" in line:
            assert cli.main(shlex.split(line, comments=True)[1:]) == 0
    assert "Nothing was run." in capsys.readouterr().out


def test_there_are_command_lines() -> None:
    """The search above finds those of the README and of more than five pages."""
    pages = {case.id.split(":")[0] for case in command_lines()}
    assert "README.md" in pages
    assert len(pages) > 5


def test_examples_are_named_as_they_are_called() -> None:
    """Scripts that pages tell readers to run, and files that they name, exist."""
    missing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?<![\w/.-])((?:examples|benchmarks|tests|docs)/[\w./-]+\.(?:py|yaml|md|png|svg))", text)
        missing += [f"{name_of(page)}: {path}" for path in named if not (ROOT / path).exists()]
    assert not missing


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link is that of a file, also for readers of the repository, who see no built pages."""
    missing = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                missing.append(f"{name_of(page)}: {target}")
    assert not missing
