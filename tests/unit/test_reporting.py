"""Tables and the HTML report from hand-written rows."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from art_fingerprint.benchmark.store import KEYS
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting import tables
from art_fingerprint.reporting.attack_tables import attack_sheet
from art_fingerprint.reporting.html import report
from art_fingerprint.reporting.layout import render
from art_fingerprint.reporting.robustness import table_four, tradeoff
from art_fingerprint.reporting.strips import ticks
from art_fingerprint.reporting.tables import (
    COLUMNS,
    as_csv,
    as_latex,
    as_markdown,
    as_text,
    by_preset,
    latest_rows,
    table_one,
)
from art_fingerprint.reporting.verdict_tables import verdict_sheet, verifier_lines, verifier_sheet

Row = dict[str, Any]
DIRECTIONS = {name: "similarity" if name in ("DDV", "MR") else "distance" for name, _, _ in COLUMNS}
VERIFIERS = {
    "DeepJudgeVerifier": ("LOD", "LAD"),
    "ZestVerifier": ("ZEST-L2", "ZEST-cosine"),
    "ModelDiffVerifier": ("DDV",),
    "IPGuardVerifier": ("MR",),
}
THRESHOLDS = {"LOD": 1.5, "LAD": 7.0, "ZEST-L2": 20.0, "ZEST-cosine": 0.1, "DDV": 0.9, "MR": 0.35}
NEAR = {"LOD": 0.1, "LAD": 0.5, "ZEST-L2": 5.0, "ZEST-cosine": 0.01, "DDV": 0.97, "MR": 1.0}
FAR = {"LOD": 3.0, "LAD": 9.0, "ZEST-L2": 30.0, "ZEST-cosine": 0.3, "DDV": 0.5, "MR": 0.2}


def make_rows(
    label: str,
    seed: int,
    values: Mapping[str, float | None],
    role: str = "surrogate",
    accuracy: float | None = 0.95,
    **changes: Any,
) -> list[Row]:
    """Return a suspect's rows, one for each verifier; metrics that are missing from ``values`` are left out."""
    found = []
    for verifier, names in VERIFIERS.items():
        metrics = {}
        for name in names:
            if name not in values:
                continue
            value, tau = values[name], THRESHOLDS[name]
            low = DIRECTIONS[name] == "distance"
            metrics[name] = {
                "value": value,
                "threshold": tau,
                "direction": DIRECTIONS[name],
                "derived": None if value is None else (value < tau if low else value > tau),
                "p_value": 0.25,
            }
        row = {
            "key": f"{label}/{seed}/{verifier}",
            "preset": "digits",
            "dataset": "digits",
            "victim": "v1",
            "suspect": label,
            "role": role,
            "attack": "FineTuningAttack" if role == "surrogate" else None,
            "attack_params": {"ratio": 0.5} if role == "surrogate" else {},
            "seed": seed,
            "verifier": verifier,
            "verifier_params": {"nb_probes": 100} if verifier == "IPGuardVerifier" else {},
            "metrics": metrics,
            "derived": True,
            "accuracy": accuracy,
            "accuracy_drop": None if accuracy is None else 100 * (0.97 - accuracy),
            "agreement": 0.9,
            "attack_seconds": 1.0,
            "verify_seconds": 0.5,
            "queries": 100,
            "status": "ok",
            "reason": "",
            "versions": {"art_fingerprint": "0.1.0", "torch": "2.14.1"},
            "device": "cpu",
            **changes,
        }
        assert set(row) == set(KEYS)
        found.append(row)
    return found


def failed(rows: Sequence[Row], reason: str, accuracy: float | None = None) -> list[Row]:
    empty: Row = {"metrics": {}, "derived": None, "accuracy": accuracy, "accuracy_drop": accuracy, "queries": None}
    return [{**row, **empty, "status": "failed", "reason": reason} for row in rows]


def example() -> list[Row]:
    return [
        *make_rows("Victim", 1000, {**NEAR, "LOD": 0.0, "LAD": 0.0}, "victim", 0.97),
        *make_rows("Reference", 0, THRESHOLDS, "reference"),
        *make_rows("Negative", 0, FAR, "negative", 0.93),
        *make_rows("Negative", 1, {**FAR, "LOD": 4.0}, "negative", 0.91),
        *make_rows("FT(0.5)", 0, NEAR, accuracy=0.96),
        *make_rows("FT(0.5)", 1, {**NEAR, "LOD": 0.3, "MR": 0.96}, accuracy=0.94),
        *make_rows("FT(0.5)", 2, {**NEAR, "LOD": 0.2, "MR": 0.98}, accuracy=0.98),
        *make_rows("RemovalNet", 0, FAR),
    ]


# ---------------------------------------------------------------------- the table
def test_table_by_hand() -> None:
    assert tables.cells(table_one(example())) == [
        ["digits (Acc: 97.00%)", "Accuracy %", "Drop", *(heading for _, heading, _ in COLUMNS), "Ownership?"],
        [
            *("FT(0.5)", "96.00±2.00", "1.00±2.00", "0.20±0.10", "0.50±0.00", "5.00±0.00", "0.010±0.000"),
            *("0.970±0.000", "0.980±0.020", "Yes (3/3)"),
        ],
        ["RemovalNet", "95.00", "2.00", "3.00", "9.00", "30.00", "0.300", "0.500", "0.200", "No (0/1)"],
        [
            *("Negative", "92.00±1.41", "5.00±1.41", "3.50±0.71", "9.00±0.00", "30.00±0.00", "0.300±0.000"),
            *("0.500±0.000", "0.200±0.000", "No (0/2)"),
        ],
        ["threshold", "-", "-", "1.50", "7.00", "20.00", "0.100", "0.900", "0.350", "-"],
    ]


@pytest.mark.parametrize("near", range(7))
def test_ownership_is_the_majority_of_six_metrics(near: int) -> None:  # G14: three of six is not enough
    names = [name for name, _, _ in COLUMNS]
    values: dict[str, float | None] = {name: (NEAR if i < near else FAR)[name] for i, name in enumerate(names)}
    (line,) = table_one(make_rows("FT(0.5)", 0, values)).lines
    assert line.ownership == ("Yes (1/1)" if near >= 4 else "No (0/1)")


@pytest.mark.parametrize(
    ("owned", "text"),
    [((1, 1, 1), "Yes (3/3)"), ((1, 1, 0), "Yes (2/3)"), ((1, 0), "No (1/2)"), ((1, 0, 0), "No (1/3)")],
)
def test_ownership_is_the_majority_of_seeds(owned: tuple[int, ...], text: str) -> None:
    rows = [row for seed, flag in enumerate(owned) for row in make_rows("WP", seed, NEAR if flag else FAR)]
    assert table_one(rows).lines[0].ownership == text


def test_metrics_on_the_threshold_are_not_flagged() -> None:  # G14
    (line,) = table_one(make_rows("FT(0.5)", 0, THRESHOLDS)).lines
    assert line.ownership == "No (0/1)"


def test_undecided_metrics_do_not_vote() -> None:
    rows = make_rows("FT(0.5)", 0, {**FAR, "LOD": None, "LAD": None, "ZEST-L2": None, "DDV": 0.95, "MR": 0.9})
    table = table_one(rows)
    assert table.lines[0].ownership == "Yes (1/1)"  # two of three
    assert tables.cells(table)[1][3:6] == ["-", "-", "-"]
    undecided = table_one(make_rows("FT(0.5)", 0, dict.fromkeys(FAR)))
    assert undecided.lines[0].ownership == "?"


def test_metrics_without_a_column_do_not_vote() -> None:
    rows = make_rows("FT(0.5)", 0, {"MR": 1.0})
    rows[0]["metrics"] = {"NAD": {"value": 9.0, "threshold": 1.0, "direction": "distance", "derived": False}}
    table = table_one(rows)
    assert table.lines[0].ownership == "Yes (1/1)"
    assert tables.cells(table)[0][3:] == ["IPGuard-MR", "Ownership?"]


def test_metrics_that_nobody_has_get_no_column() -> None:
    rows = make_rows("FT(0.5)", 0, {"MR": 1.0, "ZEST-L2": 3.0})
    assert tables.cells(table_one(rows))[0][3:-1] == ["ZEST-L2", "IPGuard-MR"]


def test_values_without_thresholds() -> None:
    rows = make_rows("FT(0.5)", 0, {"MR": 1.0})
    for row in rows:
        for result in row["metrics"].values():
            result.update(threshold=None, derived=None)
    body = tables.cells(table_one(rows))
    assert body[1][-2:] == ["1.000", "?"]
    assert body[-1][-2:] == ["-", "-"]


def test_newest_row_of_a_cell_wins() -> None:
    old, new = make_rows("FT(0.5)", 0, NEAR), make_rows("FT(0.5)", 0, FAR)
    assert table_one([*old, *new]).lines[0].ownership == "No (0/1)"
    assert table_one([*new, *old]).lines[0].ownership == "Yes (1/1)"
    broken = failed(new, "RuntimeError: late")
    assert table_one([*broken, *old]).notes == ()
    assert table_one([*old, *broken]).lines[0].ownership == "?"
    assert latest_rows([*old, *new, *old]) == old


def test_rows_about_a_former_victim_are_left_out() -> None:
    old = [row for seed in range(3) for row in make_rows("FT(0.5)", seed, FAR, victim="v0")]
    new = make_rows("FT(0.5)", 0, NEAR)
    assert latest_rows([*old, *new]) == new
    assert table_one([*old, *new]).lines[0].ownership == "Yes (1/1)"
    assert latest_rows([*new, *old]) == old


def test_rows_of_a_verifiers_former_settings_are_left_out() -> None:
    made = [row for seed in range(3) for row in make_rows("FT(0.5)", seed, FAR)]
    old = [{**row, "fingerprint": "f0 " + row["verifier"]} for row in made]
    new = [{**row, "fingerprint": "f1 " + row["verifier"]} for row in make_rows("FT(0.5)", 0, NEAR)]
    assert latest_rows([*old, *new]) == new
    assert latest_rows([*new, *old]) == old
    ipguard = [row for row in new if row["verifier"] == "IPGuardVerifier"]
    assert latest_rows([*old, *ipguard]) == [*(r for r in old if r["verifier"] != "IPGuardVerifier"), *ipguard]


def test_rows_of_an_attacks_former_parameters_are_left_out() -> None:
    old = [row for seed in range(3) for row in make_rows("FT(0.5)", seed, FAR)]
    negatives = make_rows("Negative", 1, FAR, "negative")
    new = make_rows("FT(0.5)", 0, NEAR, attack_params={"ratio": 0.5, "max_iter": 9})
    assert latest_rows([*old, *negatives, *new]) == [*negatives, *new]


def test_no_rows_are_refused() -> None:
    for function in (table_one, by_preset, verifier_sheet, verdict_sheet, report):
        with pytest.raises(InvalidInputError, match="no result rows"):
            function([])


def test_several_presets_are_refused() -> None:
    rows = example()
    other = [{**row, "preset": "cifar10"} for row in rows]
    for mixed in ([*rows, *other], [*rows, other[0]], [*rows, *({**row, "victim": "v2"} for row in other)]):
        for function in (table_one, verifier_lines, verifier_sheet, verdict_sheet, table_four, tradeoff):
            with pytest.raises(InvalidInputError, match=r"several presets \(cifar10, digits\)"):
                function(mixed)


def test_victim_without_a_row() -> None:
    rows = [row for row in example() if row["role"] != "victim"]
    assert table_one(rows).victim_accuracy is None
    assert tables.cells(table_one(rows))[0][0] == "digits"
    assert "nan" not in report(rows).lower()


def test_only_the_victim_makes_an_empty_table() -> None:
    table = table_one(make_rows("Victim", 0, NEAR, "victim"))
    assert table.lines == ()
    assert len(tables.cells(table)) == 2
    assert "Victim" in report(make_rows("Victim", 0, NEAR, "victim"))


# ---------------------------------------------------------------------- failures
def test_failed_cells_are_noted_once_for_each_reason() -> None:
    rows = [
        *example(),
        *failed(make_rows("WP(0.5)", 0, NEAR), "RuntimeError: out of\nmemory"),
        *failed(make_rows("WP(0.5)", 1, NEAR), "RuntimeError: out of\nmemory"),
        *make_rows("WP(0.5)", 2, NEAR),
    ]
    table = table_one(rows)
    line = next(line for line in table.lines if line.label == "WP(0.5)")
    assert line.ownership == "Yes (1/1), 2 without verdict"
    assert len(line.accuracy) == 1
    assert table.notes == tuple(
        f"failed: WP(0.5) (seed 0, 1), {verifier}: RuntimeError: out of memory" for verifier in VERIFIERS
    )
    for text in (as_text(table), as_markdown(table), report(rows)):
        for note in table.notes:
            assert note in text.replace("\\", "")


def test_failures_of_victim_and_references_are_noted() -> None:
    rows = [*example(), *failed(make_rows("Reference", 1, NEAR, "reference"), "x")[:1]]
    assert table_one(rows).notes == ("failed: Reference (seed 1), DeepJudgeVerifier: x",)


def test_skipped_cells_are_called_so() -> None:
    rows = make_rows("FT(0.5)", 0, NEAR)
    rows[0].update(status="skipped", reason="other architecture", metrics={})
    table = table_one(rows)
    assert table.notes == ("skipped: FT(0.5) (seed 0), DeepJudgeVerifier: other architecture",)
    assert table.lines[0].ownership == "Yes (1/1)"


def test_values_of_two_scales_are_noted() -> None:
    rows = [*make_rows("FT(0.5)", 0, NEAR), *make_rows("FT(0.5)", 1, NEAR)]
    for row, space in zip(rows, ["logits"] * 4 + ["probabilities"] * 4, strict=True):
        for name, result in row["metrics"].items():
            result["space"] = space if name == "ZEST-L2" else "logits"
    (note,) = table_one(rows).notes
    assert note.startswith("ZEST-L2 is of logits for some models and of probabilities for others")


def test_failed_verifier_leaves_accuracy_and_the_other_metrics() -> None:
    rows = make_rows("FT(0.5)", 0, NEAR, accuracy=0.95)
    rows[:1] = failed(rows[:1], "EmptyFingerprintError: no probe", accuracy=0.95)
    body = tables.cells(table_one(rows))[1]
    assert body[1] == "95.00"
    assert body[-1] == "Yes (1/1)"
    everything = failed(make_rows("FT(0.5)", 0, NEAR), "no", accuracy=0.95)
    assert tables.cells(table_one(everything))[1] == ["FT(0.5)", "95.00", "0.95", "?"]
    assert tables.cells(table_one(failed(make_rows("FT(0.5)", 0, NEAR), "no")))[1] == ["FT(0.5)", "-", "-", "?"]


def test_metrics_of_an_incomplete_verdict_do_not_count() -> None:
    rows = make_rows("FT(0.5)", 0, NEAR)
    rows[3].update(status="failed", reason="the query budget is spent")
    assert table_one(rows).lines[0].metrics["MR"] == ()
    assert Document(report(rows)).count("svg") == 5


# ---------------------------------------------------------------------- numbers
@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "-"),
        ([1.23456], "1.235"),
        ([1.0, 3.0], "2.000±1.414"),
        ([0.5, 0.5, 0.5], "0.500±0.000"),
        ([-0.0001], "0.000"),
        ([-0.0001, -0.0002], "0.000±0.000"),
        ([-1.0], "-1.000"),
    ],
)
def test_mean_and_sample_standard_deviation(values: list[float], text: str) -> None:
    assert tables.mean_std(values, 3) == text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 3.99), (0, 1), (0, 0.987), (0, 34), (-0.2, 1), (0, 0), (0, 1e-7), (0, 1.2e9), (-5, -1)]
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert marks[0] <= low + 1e-12
    assert marks[-1] >= high * (1 - 1e-9)
    assert 2 <= len(marks) <= 9
    steps = {round((b - a) / (marks[1] - marks[0]), 6) for a, b in zip(marks, marks[1:], strict=False)}
    assert steps == {1}
    mantissa = (marks[1] - marks[0]) / 10 ** math.floor(math.log10((marks[1] - marks[0]) * (1 + 1e-9)))
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 2.5, 5)) < 1e-6


# ---------------------------------------------------------------------- formats
HOSTILE = 'a|b & <script>alert("x")</script> 50%_#${}~^\\ `c` *d*\nnext, line'


def hostile() -> list[Row]:
    rows = [*example(), *make_rows(HOSTILE, 0, NEAR)]
    rows += failed(make_rows("FT(0.8)", 0, NEAR), f"RuntimeError: {HOSTILE}")
    return [{**row, "dataset": HOSTILE, "preset": HOSTILE, "device": HOSTILE} for row in rows]


def test_text_table_is_aligned() -> None:
    head, rule, *body = as_text(table_one(example())).split("\n")
    assert set(rule) == {"-"}
    assert len(rule) >= max(map(len, body)) - 2
    for heading in ("Accuracy %", "DJ-LOD", "IPGuard-MR", "Ownership?"):
        column = head.index(heading)
        assert all(line[column - 1] == " " and line[column] != " " for line in body if set(line) != {"-"})


def test_text_table_stays_one_line_a_row() -> None:
    lines = as_text(table_one(hostile())).split("\n")
    assert len(lines) == 1 + 1 + 5 + 1 + 1 + 4


def test_markdown_has_one_cell_for_each_column() -> None:
    lines = as_markdown(table_one(hostile())).rstrip("\n").split("\n")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 1 + 1 + 5 + 1
    for line in table:
        assert len(re.split(r"(?<!\\)\|", line)) == 10 + 2
    assert [line[:2] for line in lines[len(table) + 1 :]] == ["- "] * 4
    assert "<script" not in "\n".join(lines).replace("\\<", "")


def test_plain_markdown() -> None:
    lines = as_markdown(table_one(example())).split("\n")
    assert lines[0].startswith("| digits (Acc: 97.00%) | Accuracy % | Drop | DJ-LOD |")
    assert lines[1] == "|" + "---|" * 10
    assert lines[3] == "| RemovalNet | 95.00 | 2.00 | 3.00 | 9.00 | 30.00 | 0.300 | 0.500 | 0.200 | No (0/1) |"
    assert lines[-1] == ""


def test_csv_round_trip() -> None:
    table = table_one(hostile())
    assert list(csv.reader(io.StringIO(as_csv(table)))) == tables.cells(table)


def test_latex_escapes_and_structure() -> None:
    text = as_latex(table_one(hostile()))
    assert text.startswith("\\begin{tabular}{lrrrrrrrrl}\n\\hline\n")
    assert text.endswith("\\hline\n\\end{tabular}\n")
    rows = [line for line in text.split("\n") if line.endswith(r"\\")]
    assert len(rows) == 1 + 5 + 1
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 9
        assert not re.search(r"(?<!\\)[%#_]", row)
        assert "±" not in row
        assert not set("<>|~^") & set(row)
    assert r"50\%\_\#\$\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"$\pm$" in text


# ---------------------------------------------------------------------- HTML
class Document(HTMLParser):
    """Collects elements and text; fails if tags do not nest."""

    VOID = ("meta", "br", "link", "img", "input", "rect", "line", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID or tag == "circle":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return [name for name, _ in self.elements].count(tag)


@pytest.mark.parametrize("rows", [example(), hostile()], ids=["plain", "hostile"])
def test_html_is_well_formed(rows: list[Row]) -> None:
    text = report(rows, published={})
    assert text.startswith("<!doctype html><html lang='en'>")
    document = Document(text)
    for tag in ("html", "head", "body", "style", "h1"):
        assert document.count(tag) == 1
    assert document.count("svg") == 6
    # verdicts, Table I, a line for each metric and verifier; facts, attacks, verifiers; all but facts with heads
    models = 3 if len(rows) == len(example()) else 5
    measured = 12 + (1 + models - 1) + (1 + 4)
    attacks = len(attack_sheet(rows).cells)
    assert document.count("tr") == (1 + models) + (1 + models + 1) + (1 + 6 + 4) + attacks + measured


def test_html_escapes_hostile_text() -> None:
    text = report(hostile())
    document = Document(text)
    assert document.count("script") == 0
    assert "<script" not in text
    words = " ".join("".join(document.texts).split())
    assert " ".join(HOSTILE.split()) in words
    assert f"RuntimeError: {' '.join(HOSTILE.split())}" in words
    for _, attributes in document.elements:
        assert not any(name.startswith("on") for name in attributes)


def test_html_refers_to_nothing_outside() -> None:
    text = report(hostile())
    for name, attributes in Document(text).elements:
        assert not {"src", "srcset", "xlink:href", "action", "data"} & set(attributes)
        assert "href" not in attributes or (name == "a" and str(attributes["href"]).startswith("#"))
    assert not re.search(r"https?:|//|url\(|@import|<link|<iframe|<img|<object", text)


def test_html_shows_every_suspect_in_every_strip() -> None:
    document = Document(report(example()))
    svgs = re.findall(r"<svg.*?</svg>", report(example()))
    assert len(svgs) == 6
    for svg in svgs:
        for label in ("Victim", "Reference", "Negative", "FT(0.5)", "RemovalNet"):
            assert svg.count(f">{label}</text>") == 1
    assert document.count("circle") == 6 * (1 + 1 + 2 + 3 + 1)
    assert document.count("rect") == 6
    assert "FT(0.5), seed 1: 0.3" in document.texts


def test_html_points_lie_inside_and_on_the_right_side() -> None:
    text = report(example())
    for svg in re.findall(r"<svg.*?</svg>", text):
        width, height = map(float, re.search(r"viewBox='0 0 ([\d.]+) ([\d.]+)'", svg).groups())  # type: ignore[union-attr]
        ((start, size),) = re.findall(r"<rect x='([\d.]+)' y='4' width='([\d.]+)'", svg)
        for x, y, tip in re.findall(r"<circle cx='([\d.]+)' cy='([\d.]+)'.*?<title>(.*?)</title>", svg):
            assert 0 < float(x) < width
            assert 0 < float(y) < height
            shaded = float(start) - 0.1 <= float(x) <= float(start) + float(size) + 0.1
            if not tip.startswith("Reference"):  # lies on the line
                assert shaded is tip.startswith(("FT", "Victim")), tip


def test_html_marks_right_and_wrong_decisions() -> None:
    text = report(
        [*example(), *make_rows("Negative", 2, NEAR, "negative"), *make_rows("Negative", 3, NEAR, "negative")]
    )
    assert "<td class='right'>Yes (3/3)</td>" in text  # FT(0.5)
    assert "<td class='wrong'>No (0/1)</td>" in text  # RemovalNet
    assert "<td class='right'>No (2/4)</td>" in text
    accused = report(make_rows("Negative", 0, NEAR, "negative"))
    assert "<td class='wrong'>Yes (1/1)</td>" in accused
    assert "<td class='right'>3/3</td>" in text  # FT(0.5), a verifier
    assert "<td>?</td>" in report(failed(make_rows("FT(0.5)", 0, NEAR), "no"))


def test_html_shows_both_tables_of_verdicts() -> None:
    rows = example()
    document = Document(report(rows))
    for sheet in (verifier_sheet(rows), verdict_sheet(rows)):
        flat = [cell for line in sheet.cells for cell in line]
        assert any(flat == document.texts[i : i + len(flat)] for i in range(len(document.texts)))
        assert set(sheet.notes) <= set(document.texts)


def test_html_states_the_settings() -> None:
    words = Document(report(example())).texts
    for said in ("FineTuningAttack", "ratio=0.5", "nb_probes=100", "art_fingerprint 0.1.0, torch 2.14.1", "cpu"):
        assert said in words


def test_strip_without_values_or_threshold() -> None:
    rows = make_rows("FT(0.5)", 0, {"MR": 0.0})
    rows[-1]["metrics"]["MR"].update(threshold=None, derived=None)
    document = Document(report(rows))
    assert document.count("svg") == 1
    assert document.count("rect") == 0
    assert document.count("circle") == 1
    assert Document(report(make_rows("FT(0.5)", 0, {"MR": None}))).count("svg") == 0


# ---------------------------------------------------------------------- several presets
def two_presets() -> list[Row]:
    """Return rows of two victims, mixed, the second without ZEST and with a worse fine-tuned model."""
    other = [
        {**row, "preset": "digits|wide", "victim": "v7"}
        for row in [*make_rows("FT(0.5)", 0, FAR), *make_rows("Negative", 0, FAR, "negative")]
        if row["verifier"] != "ZestVerifier"
    ]
    first = example()
    return [first[0], *other[:2], *first[1:], *other[2:]]


def test_rows_are_split_by_preset_in_order_of_appearance() -> None:
    groups = by_preset(two_presets())
    assert list(groups) == ["digits", "digits|wide"]
    assert groups["digits"] == example()
    assert {row["victim"] for row in groups["digits|wide"]} == {"v7"}
    assert list(by_preset(reversed(two_presets()))) == ["digits|wide", "digits"]
    assert [line.ownership for line in table_one(groups["digits|wide"]).lines] == ["No (0/1)", "No (0/1)"]


def test_a_former_victim_of_one_preset_does_not_touch_the_other() -> None:
    old = [{**row, "victim": "v0", "suspect": "old"} for row in example()]
    assert by_preset([*old, *two_presets()]) == by_preset(two_presets())


def test_one_table_has_no_heading_and_several_have() -> None:
    sheets = {preset: tables.sheet(table_one(rows)) for preset, rows in by_preset(two_presets()).items()}
    one = {"digits": sheets["digits"]}
    table = table_one(example())
    for form, function in (("txt", as_text), ("md", as_markdown), ("csv", as_csv), ("tex", as_latex)):
        assert render(one, form) == function(table)
    markdown = render(sheets, "md", named=True)
    assert markdown.startswith("## digits\n\n" + as_markdown(table))
    assert "\n\n## digits\\|wide\n\n| digits | Accuracy % |" in markdown
    text = render(sheets, "txt", named=True)
    assert text.startswith("digits\n" + as_text(table) + "\n\ndigits|wide\ndigits ")
    latex = render(sheets, "tex", named=True)
    assert latex.startswith("% digits\n" + as_latex(table))
    assert "\n% digits|wide\n\\begin{tabular}{lrrrrrrl}\n" in latex


def test_several_tables_in_csv_name_the_preset_on_every_line() -> None:
    groups = by_preset(two_presets())
    text = render({preset: tables.sheet(table_one(rows)) for preset, rows in groups.items()}, "csv", named=True)
    found = list(csv.reader(io.StringIO(text)))
    for preset, rows in groups.items():
        assert [line[1:] for line in found if line[0] == preset] == tables.cells(table_one(rows))
    assert {line[0] for line in found} == set(groups)


def test_html_of_several_presets() -> None:
    text = report(two_presets())
    document = Document(text)
    assert document.count("html") == document.count("style") == 1
    assert re.findall("<h1>(.*?)</h1>", text) == ["digits", "digits|wide"]
    assert document.count("svg") == 6 + 4
    parts = re.findall("<section id='v[12]'>(?:<h1>.*?</h1>)?(.*?)</section>", text, re.DOTALL)
    for number, rows in enumerate(by_preset(two_presets()).values(), 1):
        (alone,) = re.findall("<section id='v1'>(.*?)</section>", report(rows), re.DOTALL)
        assert parts[number - 1] == alone.replace("id='v1", f"id='v{number}")
