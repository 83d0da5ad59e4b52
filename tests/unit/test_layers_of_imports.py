"""Imports inside the package point one way, also those inside functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import art_fingerprint

ROOT = Path(art_fingerprint.__file__).parent
PACKAGE = ROOT.name
# From the bottom up: a part may import itself and what stands in an earlier row, not its neighbours in the same row.
ROWS = (
    ("exceptions", "_version"),
    ("core",),
    ("attacks", "verifiers"),
    ("evaluation",),
    ("zoo",),
    ("benchmark",),
    ("reporting", "testing"),
    ("experiments", "cli_runs", "cli_signals"),
    ("cli_bench", "cli_experiment", "cli_models", "cli_report"),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(ROWS) for part in parts}
# `art_fingerprint/__init__.py` loads every part on first use and is imported by none.
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything a module imports from the package.

    :param source: Text of the module.
    :param module: Its dotted name; that of a package's ``__init__.py`` ends in ``.__init__``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module.split(".")[: -node.level], *([node.module] if node.module else [])])
            origin = base if node.level else str(node.module)
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE:
                yield node.lineno, name


def wrong_imports(source: str, module: str) -> list[str]:
    """Return what a module imports against the order of :data:`ROWS`, with line numbers."""
    own = module.split(".")[1]
    found = []
    for line, name in imported(source, module):
        part = [*name.split("."), ""][1]
        if part != own and (part not in RANK or RANK[part] >= RANK[own]):
            found.append(f"line {line}: {name}")
    return found


def dotted(path: Path) -> str:
    return ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts])


def test_every_part_has_a_place_in_the_order() -> None:
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in MODULES}
    assert parts == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_imports(path.read_text(encoding="utf-8"), dotted(path)) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("core.cut", "from art_fingerprint.exceptions import LayerCutError", False),
        ("core.cut", "from art_fingerprint.core.taps import tap", False),
        ("core.cut", "from .taps import tap", False),
        ("core.cut", "from ..attacks import base", True),
        ("core.cut", "from .. import verifiers", True),
        ("core.__init__", "from . import taps", False),
        ("core.cut", "import art_fingerprint.zoo.presets", True),
        ("attacks.base", "from art_fingerprint.verifiers.base import Verifier", True),
        ("verifiers.base", "def f():\n    import art_fingerprint.attacks as attacks", True),
        ("verifiers.base", "if TYPE_CHECKING:\n    from art_fingerprint.evaluation import fidelity", True),
        ("benchmark.runner", "from art_fingerprint.reporting import tables", True),
        ("benchmark.runner", "from art_fingerprint import attacks, verifiers", False),
        ("reporting.tables", "from art_fingerprint.verifiers.verdict import combine", False),
        ("reporting.tables", "from art_fingerprint import Verdict", True),
        ("reporting.tables", "import art_fingerprint", True),
        ("reporting.tables", "from art_fingerprint.cli import main", True),
        ("cli", "from art_fingerprint.reporting import tables", False),
        ("testing.models", "from art_fingerprint.zoo.presets import PRESETS", False),
        ("testing.models", "from art_fingerprint.reporting import tables", True),
        ("verifiers.base", "from art_fingerprint.testing import tiny_images", True),
        ("core.cut", "import torch\nfrom art.attacks import attack\nimport art_fingerprint_tools", False),
    ],
)
def test_the_check_finds_what_it_should(module: str, source: str, wrong: bool) -> None:
    assert bool(wrong_imports(source, f"{PACKAGE}.{module}")) is wrong


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.cli", f"{PACKAGE}.exceptions"])
def test_the_entrances_load_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(sorted({{'torch', 'art', 'numpy', 'timm', 'pytest'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert run.stdout.strip() == "[]"
