"""Damaged and hostile result rows: refused by line, or shown without breaking a table or a page."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from art_fingerprint import cli_report
from art_fingerprint.benchmark.rows import check_row
from art_fingerprint.benchmark.store import Store, read_rows
from art_fingerprint.cli_report import write_report
from art_fingerprint.exceptions import MissingDependencyError
from art_fingerprint.reporting import html
from art_fingerprint.reporting.html import report
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import Refused, memory_limit, outcome_is_allowed
from tests.fuzz.strategies import damaged, json_values, mutated, values
from tests.unit.test_robustness_report import example

PAYLOADS = [
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "'><svg onload=alert(1)>",
    '" onmouseover="alert(1)',
    "javascript:alert(1)",
    "</style><b>",
    "]]>",
    "&lt;&amp;",
    "\0\x07\x1b[31m",
    "a\nb\r\nc",
    "|x|`y`[z](http://x)",
    "=cmd|' /C calc'!A0",
    r"\input{/etc/passwd}$%&_#{}~^",
    "\ud800",
    "\u202e\ufeff",
    "x" * 3000,
    "",
    "../../etc",
]
TEXT_KEYS = ("preset", "dataset", "victim", "suspect", "verifier", "device", "reason", "attack")
NUMBER_KEYS = ("accuracy", "accuracy_drop", "agreement", "queries", "verify_seconds")
# Of matplotlib's drawings: whether the usual page has any depends on the test that asked for it first.
DRAWN = {"defs", "g", "path", "use", "clippath", "image", "style"}
ROBUSTNESS = [
    None,
    {},
    {PAYLOADS[0]: {"accuracy": 1, "undecided": 0}},
    {"PGD": {"accuracy": 0.0, "undecided": 1}},
    *({"PGD": {"accuracy": 0.5, "undecided": 0, "median_l2": norm}} for norm in (0.3, "far", None)),
]
LINES = [json.dumps(row) for row in example()]
WHOLE = ("\n".join(LINES) + "\n").encode()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Figures take a second each: they are drawn in a test of their own only."""
    if "figures" not in request.node.name:

        def refuse(_: object) -> None:
            raise MissingDependencyError("figures need matplotlib")

        for module, name in ((cli_report, "plot_tradeoff"), (cli_report, "heat_map"), (html, "plot_tradeoff")):
            monkeypatch.setattr(module, name, refuse)


class Tags(HTMLParser):
    """Collects elements, and the attributes that run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.bad: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        for name, value in attrs:
            own = ("#", "data:image/png;base64,")  # the table of contents, pixels of a figure
            inside = name in ("href", "xlink:href") and (value or "").startswith(own)
            if name.startswith("on") or (name in ("src", "href", "xlink:href", "srcdoc") and not inside):
                self.bad.append((tag, name))


@functools.cache
def usual_tags() -> frozenset[str]:
    return frozenset(tags(report(example())).found | {"strong"})  # strong: the title of several victims


def tags(page: str) -> Tags:
    parser = Tags()
    parser.feed(page)
    parser.close()
    return parser


def is_harmless(page: str) -> None:
    """A page has the elements that it always has, and nothing runs or is loaded."""
    found = tags(page)
    assert found.bad == []
    ours = {"svg", "title", "figure", "circle", "line", "rect", "text", "ul", "li", "b"}
    assert found.found <= usual_tags() | ours | DRAWN


def is_reported_or_refused(folder: Path, content: bytes) -> Any:
    (folder / "rows.jsonl").write_bytes(content)
    with contextlib.redirect_stdout(io.StringIO()):
        found = outcome_is_allowed(lambda: write_report(folder), "rows.jsonl", "Line", "rows", "seeds")
    if not isinstance(found, Refused):
        is_harmless((folder / "report.html").read_text(encoding="utf-8"))
        for name in ("table.md", "table.csv", "table.tex", "verdicts.csv"):
            assert (folder / name).stat().st_size
    return found


# ---------------------------------------------------------------------- bytes
@generated(8, 300, content=damaged(WHOLE))
def test_damaged_bytes(content: bytes, folder: Path) -> None:
    (folder / "rows.jsonl").write_bytes(content)
    with memory_limit(len(content)):
        found = outcome_is_allowed(lambda: read_rows(folder), "rows.jsonl")
    if not isinstance(found, Refused):
        for row in found:
            check_row(row)
    is_reported_or_refused(folder, content)


SPECIAL = {
    "byte-order mark": b"\xef\xbb\xbf" + WHOLE,
    "carriage returns": WHOLE.replace(b"\n", b"\r\n"),
    "no end of line": WHOLE[:-1],
    "empty lines": WHOLE.replace(b"\n", b"\n\n"),
    "blank line": WHOLE + b"   \n",
    "twice": WHOLE + WHOLE,
    "NUL bytes": WHOLE + bytes(4096) + b"\n",
    "UTF-16": WHOLE.decode().encode("utf-16"),
    "invalid UTF-8": WHOLE + b'{"key": "\xff"}\n',
    "lone surrogate": WHOLE.replace(b'"suspect": "FT(0.5)"', b'"suspect": "\\ud800"'),
    "a long line": WHOLE + b'{"key": "' + b"x" * 3_000_000 + b'"}\n',
    "a long text": WHOLE.replace(b'"reason": ""', b'"reason": "' + b"y" * 100_000 + b'"'),
    "deep": WHOLE + b"[" * 100_000 + b"\n",
    "digits": WHOLE.replace(b'"queries": 100', b'"queries": ' + b"9" * 5000),
    "large": WHOLE.replace(b'"queries": 100', b'"queries": ' + b"9" * 400),
    "infinite": WHOLE.replace(b'"queries": 100', b'"queries": 1e999'),
    "NaN": WHOLE.replace(b'"value": 0.1', b'"value": NaN'),
    "empty": b"",
    "one line": b"\n",
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_files(name: str, folder: Path) -> None:
    found = is_reported_or_refused(folder, SPECIAL[name])
    readable = ("carriage returns", "no end of line", "twice", "a long text", "lone surrogate")
    assert isinstance(found, Refused) == (name not in readable), name


def test_a_line_is_bounded_in_memory(folder: Path) -> None:
    for name in ("a long line", "deep", "digits"):
        (folder / "rows.jsonl").write_bytes(SPECIAL[name])
        with memory_limit(len(SPECIAL[name])):
            outcome_is_allowed(lambda: read_rows(folder), "rows.jsonl")


# ---------------------------------------------------------------------- rows
@generated(10, 600, row=mutated(example()[0]) | json_values, place=st.integers(0, len(LINES) - 1))
def test_other_kinds_of_values(row: Any, place: int, folder: Path) -> None:
    lines = list(LINES)
    lines[place] = json.dumps(row)
    is_reported_or_refused(folder, ("\n".join(lines) + "\n").encode())


@st.composite
def odd_but_sound(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows that every check lets pass, with extreme numbers and names."""
    rows = copy.deepcopy(example())
    numbers = st.sampled_from([None, 0, -0.0, 1e100, -1e100, 5e-324, 1, -1, 10**99, 0.5, 1e-9]) | st.floats(-1e3, 1e3)
    for row in draw(st.lists(st.sampled_from(rows), min_size=1, max_size=6)):
        kind = draw(st.sampled_from(["number", "metric", "text", "role", "status", "metrics", "robustness", "params"]))
        if kind == "number":
            row[draw(st.sampled_from(NUMBER_KEYS))] = draw(numbers)
        elif kind == "metric" and row["metrics"]:
            result = row["metrics"][draw(st.sampled_from(sorted(row["metrics"])))]
            result[draw(st.sampled_from(["value", "threshold", "p_value"]))] = draw(numbers)
            result["derived"] = draw(st.sampled_from([None, True, False]))
            result["direction"] = draw(st.sampled_from(["distance", "similarity"]))
            result["space"] = draw(st.sampled_from([None, "", "logits", "probabilities"]))
        elif kind == "text":
            row[draw(st.sampled_from(TEXT_KEYS))] = draw(st.sampled_from(PAYLOADS) | st.text(max_size=20))
        elif kind == "role":
            row["role"] = draw(st.sampled_from(["victim", "surrogate", "negative", "reference"]))
        elif kind == "status":
            row["status"] = draw(st.sampled_from(["ok", "skipped", "failed"]))
            row["reason"] = draw(st.sampled_from([None, *PAYLOADS]))
        elif kind == "metrics":
            row["metrics"] = {draw(st.sampled_from(PAYLOADS)): result for result in row["metrics"].values()}
        elif kind == "robustness":
            row["robustness"] = draw(st.sampled_from(ROBUSTNESS))
        else:
            row["attack_params"] = draw(st.dictionaries(st.sampled_from(PAYLOADS), json_values, max_size=2))
            row["versions"] = {draw(st.sampled_from(PAYLOADS)): draw(st.sampled_from(PAYLOADS))}
    return rows


@generated(1, 5, rows=odd_but_sound())
def test_figures_of_extreme_rows(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        is_reported_or_refused(Path(name), ("\n".join(map(json.dumps, rows)) + "\n").encode())


@generated(5, 150, rows=odd_but_sound())
def test_extreme_rows(rows: list[dict[str, Any]], folder: Path) -> None:
    content = ("\n".join(map(json.dumps, rows)) + "\n").encode()
    is_reported_or_refused(folder, content)


def test_payloads_are_text_and_nothing_else(folder: Path) -> None:
    for payload in PAYLOADS:
        rows = copy.deepcopy(example())
        for row in rows:
            row |= dict.fromkeys(TEXT_KEYS, payload)
            row["metrics"] = {**row["metrics"], payload: next(iter(row["metrics"].values()))}
            row["robustness"] = {payload: {"accuracy": 0.5, "undecided": 0}, **(row.get("robustness") or {})}
            row["versions"] = row["attack_params"] = row["verifier_params"] = {payload: payload}
        rows[-1]["status"] = "failed"
        found = is_reported_or_refused(folder, ("\n".join(map(json.dumps, rows)) + "\n").encode())
        assert not isinstance(found, Refused)


# ---------------------------------------------------------------------- a run that goes on
@generated(10, 200, content=damaged(WHOLE), more=st.sampled_from(example()))
def test_a_run_goes_on_or_says_why_not(content: bytes, more: dict[str, Any], folder: Path) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "rows.jsonl").write_bytes(content)
    store = Store(run)
    store.append(more)
    whole = content[: content.rfind(b"\n") + 1]
    assert (run / "rows.jsonl").read_bytes() == whole + (json.dumps(more) + "\n").encode()
    outcome_is_allowed(store.new_rows, "rows.jsonl")
    outcome_is_allowed(store.rows, "rows.jsonl")


@generated(10, 200, row=values)
def test_what_is_no_row(row: Any) -> None:
    assert isinstance(outcome_is_allowed(lambda: check_row(row), "row", "object"), Refused)
