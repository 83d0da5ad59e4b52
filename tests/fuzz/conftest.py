"""How many cases were generated is counted, printed, and checked to be enough."""

from __future__ import annotations

import pytest

ENOUGH = 10_000
_DECLARED = pytest.StashKey[int]()
_MODULES = pytest.StashKey[set[str]]()


@pytest.hookimpl(tryfirst=True)  # before items are deselected by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    many = [item for item in items if item.get_closest_marker("slow") and "nb_cases" in _parameters(item)]
    config.stash[_DECLARED] = sum(_parameters(item)["nb_cases"] for item in many)
    config.stash[_MODULES] = {item.path.stem for item in many}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    found = [value for report in reports for name, value in report.user_properties if name == "cases"]
    if found:
        terminalreporter.write_line(f"{sum(found):,} generated cases in {len(found)} fuzz tests")


@pytest.fixture
def declared_cases(pytestconfig: pytest.Config) -> int | None:
    """The cases of all slow fuzz tests; ``None`` if only some modules were collected."""
    here = {path.stem for path in pytestconfig.rootpath.glob("tests/fuzz/test_*.py")} - {"test_enough"}
    return pytestconfig.stash[_DECLARED] if here <= pytestconfig.stash[_MODULES] else None


def _parameters(item: pytest.Item) -> dict[str, int]:
    spec = getattr(item, "callspec", None)
    return {} if spec is None else spec.params
