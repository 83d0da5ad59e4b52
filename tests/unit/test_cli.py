"""The command line: verbs, exit statuses, one line for bad input, light start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import art_fingerprint
from art_fingerprint import cli, cli_bench
from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.testing.models import tiny_classifier
from art_fingerprint.verifiers import ModelDiffVerifier
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.zoo import presets
from tests.tiny_preset import tiny
from tests.unit.test_reporting import FAR, NEAR, example, failed, make_rows

FILES = (
    *("table.md", "table.csv", "table.tex", "report.html", "robustness.md", "robustness.csv"),
    *("tradeoff.md", "tradeoff.csv", "tradeoff.png", "heat-map.png"),
    *(
        f"{name}.{form}"
        for name in ("verifiers", "verdicts", "attacks", "heat-map", "published")
        for form in ("md", "csv", "tex")
    ),
)


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)


def bench(folder: Path, *more: str) -> int:
    return cli.main(
        ["bench", "--preset", "tiny", "--out", str(folder), "--seeds", "1", "--device", "cpu", "--quiet", *more]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", tiny)
        assert bench(folder) == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was written to stderr, which must be one line; nothing may be on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("art-fingerprint")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


# ---------------------------------------------------------------------- list
@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("attacks", {"DistillationAttack", "FineTuningAttack", "RemovalNetAttack", "WeightPruningAttack"}),
        ("verifiers", {"DeepJudgeVerifier", "IPGuardVerifier", "ModelDiffVerifier", "ZestVerifier"}),
        ("presets", {"digits", "tiny"}),
    ],
)
def test_list(what: str, names: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", what]) == 0
    out, err = capsys.readouterr()
    listed = dict(line.split(maxsplit=1) for line in out.rstrip("\n").split("\n"))  # each has a line
    assert names <= set(listed)
    assert not {"RemovalAttack", "Verifier", "Fingerprint", "Verdict"} & set(listed)
    assert out.endswith("\n")
    assert err == ""


def test_nobody_reads_the_list() -> None:
    command = f"{sys.executable} -m art_fingerprint.cli list attacks | true; echo ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout in ("141\n", "0\n")  # it may have been quicker
    assert found.stderr == ""


# ---------------------------------------------------------------------- bench and report
def test_bench_writes_rows_tables_and_report(finished: Path) -> None:
    assert len(read_rows(finished)) == 2 * (1 + 2 + 1 + 2)
    for name in FILES:
        assert (finished / name).stat().st_size > 90


def test_bench_prints_the_table_and_where_the_report_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "rows.jsonl").read_bytes()
    assert bench(folder) == 0
    out, err = capsys.readouterr()
    lines = out.rstrip("\n").split("\n")
    assert lines[0].startswith("digits (Acc: ")
    assert [line.split()[0] for line in lines[2:5]] == ["FT(0.5)", "RemovalNet(apart)", "Negative"]
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    sections = [line for before, line in zip(lines, lines[1:], strict=False) if before == ""]
    assert sections == ["Verifiers", "Robustness (Table IV)", lines[-1]]
    assert err == ""
    assert (folder / "rows.jsonl").read_bytes() == before


def test_report_needs_rows_alone(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(finished / "rows.jsonl", tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "rows.jsonl"])
    same = [name for name in FILES if name != "report.html"]
    assert all((tmp_path / name).read_bytes() == (finished / name).read_bytes() for name in same)
    assert "Negative" in capsys.readouterr().out
    assert "the folder has no plan of these rows" in (tmp_path / "report.html").read_text(encoding="utf-8")
    shutil.copy(finished / "plan.json", tmp_path)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_bytes() == (finished / "report.html").read_bytes()


def test_chosen_rows_and_verifiers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.jsonl").unlink()
    assert bench(folder, "--attacks", " FT(0.5) ,", "--verifiers", "ZestVerifier") == 0
    rows = read_rows(folder)
    assert {row["verifier"] for row in rows} == {"ZestVerifier"}
    assert {row["suspect"] for row in rows} == {"Victim", "Reference", "Negative", "FT(0.5)"}
    assert "IPGuard-MR" not in capsys.readouterr().out


def test_options_reach_the_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Spy:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            seen.append((arguments, options))

        def run(self) -> None:
            pass

    monkeypatch.setattr("art_fingerprint.cli_bench.Bench", Spy)
    assert cli.main(["bench", "--out", str(tmp_path)]) == 2  # no rows
    ((plan, out), options), *_ = seen
    assert (plan.presets[0].name, plan.seeds, out) == ("digits", (0, 1, 2), tmp_path)
    default = {"executor": "serial", "workers": None, "ray_address": None, "device_type": "gpu", "verbose": True}
    assert options == default
    more = ["--executor", "ray", "--workers", "3", "--ray-address", "auto", "--verifiers", "Zest,ModelDiff"]
    assert bench(tmp_path, "--attacks", "RemovalNet(apart), FT(0.5)", *more) == 2
    ((plan, _), options) = seen[1]
    assert list(plan.presets[0].attacks) == ["RemovalNet(apart)", "FT(0.5)"]
    assert plan.presets[0].verifiers == {"ZestVerifier": tiny().verifiers["ZestVerifier"], "ModelDiffVerifier": {}}
    assert (plan.seeds, options) == (
        (0,),
        {"executor": "ray", "workers": 3, "ray_address": "auto", "device_type": "cpu", "verbose": False},
    )
    assert bench(tmp_path, "--seeds", "4,2") == 2
    assert seen[2][0][0].seeds == (4, 2)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, None),
        ("", []),
        ("A,B", ["A", "B"]),
        (" A , ", ["A"]),
        ("A(1,2),B", ["A(1,2)", "B"]),
        ("A)(,B", ["A)(", "B"]),
    ],
)
def test_names_are_split_at_commas_outside_brackets(text: str | None, names: list[str] | None) -> None:
    assert cli_bench._names(text) == names


# ---------------------------------------------------------------------- plans
PLAN = """
seeds: 1
victims: [tiny]
attacks: {"FT(0.5)": {params: {max_iter: 3}}}
verifiers: [IPGuard]
"""


def test_plan_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    plan, out = str(tmp_path / "plan.yaml"), tmp_path / "run"
    options = ["bench", "--plan", plan, "--out", str(out), "--device", "cpu", "--quiet"]
    assert cli.main([*options, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert not out.exists()
    assert "fingerprint IPGuardVerifier" in text
    assert [line.split()[:5] for line in text.split("\n") if "FT(0.5)" in line] == [["tiny", "FT(0.5)", "1", "1", "0"]]
    assert [line.split()[:3] for line in text.split("\n") if line.startswith("total")] == [["total", "5", "0"]]
    assert "Executor: serial, workers: 1. Nothing was run." in text
    assert cli.main(options) == 0
    rows = read_rows(out)
    assert len(rows) == 5
    assert [row["attack_params"]["max_iter"] for row in rows if row["attack"]] == [3]
    capsys.readouterr()
    assert cli.main([*options, "--seeds", "0,5", "--dry-run"]) == 0
    done = [line.split() for line in capsys.readouterr().out.split("\n")]
    assert [line[:5] for line in done if line[:2] == ["tiny", "Negative"]] == [["tiny", "Negative", "2", "2", "1"]]
    assert ["tiny", "Victim", "1", "1", "1", "0"] in done
    # Another verifier asks models that are there, and have been tested: what is left are its queries.
    (tmp_path / "plan.yaml").write_text(PLAN.replace("IPGuard", "ModelDiff"))
    assert cli.main([*options, "--dry-run"]) == 0
    queries = f"{ModelDiffVerifier(tiny_classifier()).expected_queries():,.0f}"
    left = [line.split() for line in capsys.readouterr().out.split("\n")]
    for label in ("Victim", "Negative", "FT(0.5)"):
        assert ["tiny", label, "1", "1", "0", queries] in left


def test_attack_with_too_little_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run says so, and a run marks those rows as failed: the others of the plan stand."""
    share = "FT(0.8): {attack: FineTuning, params: {max_iter: 3}, source: apart, ratio: 0.002}"
    (tmp_path / "plan.yaml").write_text(PLAN.replace("attacks: {", f"attacks: {{{share}, "))
    out = tmp_path / "run"
    options = ["bench", "--plan", str(tmp_path / "plan.yaml"), "--out", str(out), "--device", "cpu", "--quiet"]
    assert cli.main([*options, "--dry-run"]) == cli.OK
    why = "`ratio`=0.002 of 437 samples selects none."
    assert f"tiny, FT(0.8): its rows will fail. {why}" in capsys.readouterr().out
    assert cli.main(options) == cli.SOME_FAILED
    found = {row["suspect"]: row["reason"] for row in read_rows(out)}
    assert why in found["FT(0.8)"]
    assert why not in (found["FT(0.5)"] or "")


def test_dry_run_of_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    options = ["experiment", "fig4", "--preset", "tiny", "--seeds", "1", "--out", str(out), "--device", "cpu"]
    assert cli.main([*options, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "tiny fig4" in text
    assert "Nothing was run." in text
    assert not out.exists()


def test_plan_and_preset_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--plan", "x", "--preset", "digits", "--out", "y"])
    assert stop.value.code == 2
    assert "not allowed with" in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no plan file"),
        ("victims: digit", "is wrong: There is no preset 'digit'. Near names: digits."),
        ("victims: [tiny]\nattacks: {A: {attack: FineTuning, params: {max_itr: 1}}}", "has no parameter 'max_itr'"),
    ],
)
def test_bad_plan_gives_2_and_one_line(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "plan.yaml").write_text(text)
    assert cli.main(["bench", "--plan", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- the paper's numbers, several presets
def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_report_is_the_same_whichever_worker_finished_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*example(), *failed(make_rows("WP(0.5)", 0, FAR)[::-1], "full"), *make_rows("FT(0.8)", 0, NEAR)]
    found = []
    for given in (rows, rows[::-1], rows[5::2] + rows[:5] + rows[6::2]):
        write_rows(tmp_path, given)
        assert cli.main(["report", str(tmp_path)]) == 3
        files = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}
        found.append({name: text for name, text in files.items() if name not in ("rows.jsonl", "report.html")})
    assert found[0] == found[1] == found[2]
    assert {"table.md", "verifiers.csv", "verdicts.tex", "attacks.md", "heat-map.png"} <= set(found[0])
    capsys.readouterr()
    labels = [line.split(",")[0] for line in found[0]["table.csv"].decode().splitlines()]
    assert labels[1:-1] == ["FT(0.5)", "FT(0.8)", "WP(0.5)", "RemovalNet", "Negative"]


def test_published_numbers_of_a_named_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(folder), "--published", "cifar-10"]) == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    start = lines.index("The paper's numbers beside ours")
    assert lines[start + 5].split()[:4] == ["FT(0.5)", "ours:", "digits", "77.78"]
    assert lines[start + 6].split()[:4] == ["FT(0.5)", "paper:", "CIFAR10", "88.21±0.31"]
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    for form in ("md", "csv", "tex"):
        assert "90.58" in (folder / f"published.{form}").read_text(encoding="utf-8")


def test_published_numbers_of_the_rows_own_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(folder), "--published"]) == 0
    assert "paper: CIFAR10" in capsys.readouterr().out  # the nearest to digits
    for path in folder.glob("published.*"):
        path.unlink()
    rows = read_rows(folder)
    write_rows(folder, [{**row, "dataset": "letters"} for row in rows])
    before = {path.name for path in folder.iterdir()}
    assert cli.main(["report", str(folder), "--published"]) == 2
    message = one_line(capsys)
    assert "no table of the rows' data set (letters)" in message
    assert "CIFAR10, GTSRB, Skin Lesion, CelebA+20, CelebA+31, ImageNet" in message
    assert cli.main(["report", str(folder), "--published", "CIFAR100"]) == 2
    assert "no table of the data set 'CIFAR100'; it has CIFAR10," in one_line(capsys)
    assert {path.name for path in folder.iterdir()} == before
    assert cli.main(["report", str(folder)]) == 0
    capsys.readouterr()
    assert not list(folder.glob("published.*"))
    assert "The paper's lines are those of" not in (folder / "report.html").read_text(encoding="utf-8")
    write_rows(folder, [{**row, "dataset": "celeba31"} for row in rows])
    assert cli.main(["report", str(folder), "--published"]) == 0
    assert "paper: CelebA+31" in capsys.readouterr().out


def test_rows_of_several_presets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "dataset": "letters"} for row in read_rows(folder)]
    other = [{**row, "preset": "a/b", "dataset": "gtsrb", "victim": "w"} for row in rows]
    write_rows(folder, [row for pair in zip(other, rows, strict=True) for row in pair])
    for name in ("tradeoff.png", "heat-map.png"):
        (folder / name).unlink()
    assert cli.main(["report", str(folder), "--published"]) == 0
    out = capsys.readouterr().out
    first, second = out.split("== tiny\n")
    assert first.startswith("== a/b\ngtsrb (Acc: ")
    assert "paper: GTSRB" in first
    assert "The paper has no table of this data set." in second
    for part in (first, second):
        assert [line.split()[0] for line in part.split("\n") if line.startswith(("RemovalNet", "Verif", "Rob"))][
            :4
        ] == [*("RemovalNet(apart)", "Verifiers", "Verifier", "Robustness")]
    names = {path.name for path in folder.iterdir()}
    figures = {f"{name}-{end}.png" for name in ("tradeoff", "heat-map") for end in ("1-a_b", "2-tiny")}
    assert ({*FILES, "published.md"} | figures) - {"tradeoff.png", "heat-map.png"} <= names
    assert not {"tradeoff.png", "heat-map.png"} & names
    for name in ("table", "verifiers", "verdicts", "attacks", "robustness", "tradeoff"):
        text = (folder / f"{name}.md").read_text(encoding="utf-8")
        assert [line for line in text.split("\n") if line.startswith("## ")] == ["## a/b", "## tiny"]
    assert (folder / "published.md").read_text(encoding="utf-8").startswith("## a/b\n")
    assert (folder / "report.html").read_text(encoding="utf-8").count("<h1>") == 2


def test_skipped_cells_are_named_and_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty: dict[str, Any] = {"metrics": {}, "derived": None, "queries": None, "verify_seconds": None}
    rows = [
        {**row, **empty, "status": "skipped", "reason": "other architecture"}
        if (row["suspect"], row["verifier"]) == ("FT(0.5)", "ZestVerifier")
        else row
        for row in read_rows(folder)
    ]
    write_rows(folder, rows)
    assert cli.main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "skipped: FT(0.5) (seed 0), ZestVerifier: other architecture" in out
    assert "1 derived, 1 not, 1 skipped" in out
    assert "| FT(0.5) | derived | 1 skipped | 1/1 |" in (folder / "verdicts.md").read_text()
    write_rows(folder, [{**row, "status": "skipped"} | empty for row in rows])
    assert cli.main(["report", str(folder)]) == 0


# ---------------------------------------------------------------------- exit statuses
def test_failures_of_other_runs_in_the_folder_are_not_those_of_this_one(folder: Path) -> None:
    """Some experiments fail in part on purpose, and may share a folder with a grid."""
    rows = read_rows(folder)
    foreign = {**rows[0], "preset": "tiny fig6", "key": "0" * 32, "status": "failed", "reason": "too few images"}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, foreign]))
    assert bench(folder) == 0
    assert cli.main(["report", str(folder)]) == 3


def test_failed_cells_give_3_and_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in read_rows(folder) if row["suspect"] != "FT(0.5)"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    setting = tiny().attacks["FT(0.5)"]
    changed = replace(setting, params={**setting.params, "max_iter": 3})
    monkeypatch.setitem(
        presets.PRESETS, "tiny", lambda: replace(tiny(), attacks={**tiny().attacks, "FT(0.5)": changed})
    )

    def fail(*_arguments: Any) -> None:
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr(FineTuningAttack, "generate", fail)
        assert bench(folder) == 3
    out = capsys.readouterr().out
    assert "failed: FT(0.5) (seed 0), IPGuardVerifier: RuntimeError: out of memory" in out
    assert "RemovalNet(apart)" in out
    assert cli.main(["report", str(folder)]) == 3
    assert bench(folder) == 0  # tried again
    assert cli.main(["report", str(folder)]) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "digit"], "There is no preset 'digit'; known are "),
        (["--attacks", "FT"], "The preset has no attack row 'FT'; it has FT(0.5), RemovalNet(apart)."),
        (["--verifiers", "IPGard"], "There is no verifier 'IPGard'. Near names: IPGuardVerifier"),
        (["--workers", "2"], "`workers`=2 needs executor='process' or 'ray'."),
        (["--ray-address", "auto"], "`ray_address` needs executor='ray'."),
        (["--seeds", "0"], "`seeds` must be an integer in [1, 100000], got 0."),
    ],
)
def test_bad_bench_input_gives_2_and_one_line(
    tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path / "new", *more) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "new").exists()


def test_file_in_place_of_a_folder_gives_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert bench(tmp_path / "file") == 2
    assert "cannot be used for results" in one_line(capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No result rows can be read from"),
        ("", "There are no result rows to make a table of."),
        ("rubbish\n", "Line 1 of"),
        ('{"preset": "tiny"}\n', "is not a result row"),
    ],
)
def test_report_on_bad_rows_gives_2(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.glob("table*"))


@pytest.mark.parametrize("name", ["table.md", "verdicts.tex", "tradeoff.png", "report.html"])
def test_report_that_cannot_be_written_gives_2(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert cli.main(["report", str(folder)]) == 2
    assert name in one_line(capsys)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["list"],
        ["list", "models"],
        ["bench"],
        ["bench", "--out", "x", "--seeds", "many"],
        ["bench", "--out", "x", "--seeds", "1,,"],
        ["bench", "--out", "x", "--executor", "cluster"],
        ["bench", "--out", "x", "--device", "tpu"],
        ["report"],
        ["report", "a", "b"],
        ["report", "--published"],
    ],
    ids=" ".join,
)
def test_bad_usage_gives_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "--help" in one_line(capsys)


def test_one_seed_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli._seeds("7,") == [7]
    assert (cli._seeds("7"), cli._seeds("7,3")) == (7, [7, 3])


def test_a_defect_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_what: str) -> int:
        raise TypeError("ours")

    monkeypatch.setattr(cli, "_list", broken)
    assert cli.main(["list", "attacks"]) == cli.DEFECT == 70
    found = capsys.readouterr().err
    assert "Traceback" in found
    assert "please report it" in found


def test_warnings_are_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def warns(_what: str) -> int:
        warnings.warn("one\ntwo", stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_list", warns)
    before = warnings.showwarning
    assert cli.main(["list", "attacks"]) == 0
    assert capsys.readouterr().err == "art-fingerprint: warning: one two\n"
    assert warnings.showwarning is before


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(redirection: str) -> None:
    call = f"exec {sys.executable} -m art_fingerprint.cli list presets {redirection}"
    assert subprocess.run(["sh", "-c", call], check=False).returncode == 0


def test_streams_without_our_characters() -> None:
    show = "import sys; from art_fingerprint import cli; cli._prepare_streams(); print('90 \u00b1 1')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, check=True, text=True)
    assert found.stdout == "90 ? 1\n"


def test_home_is_found_in_arguments() -> None:
    assert cli._parser().parse_args(["report", "~/x"]).folder == Path.home() / "x"


def test_interruption_gives_130_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_self: Bench) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "run", stop)
    assert bench(tmp_path) == 130
    assert "run the same command again" in one_line(capsys)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"art-fingerprint {art_fingerprint.__version__}\n"


# ---------------------------------------------------------------------- light start
def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, env={**os.environ}
    )


HEAVY = {"torch", "art", "numpy", "scipy", "sklearn", "timm", "matplotlib", "torchattacks"}


def loaded(code: str) -> set[str]:
    done = python("-c", f"{code}\nimport sys; print('loaded', *sys.modules)")
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.split("loaded")[-1].split())


def test_import_is_light() -> None:
    assert loaded("import art_fingerprint; art_fingerprint.__version__; dir(art_fingerprint)") == set()
    assert loaded("import art_fingerprint; art_fingerprint.Verdict") >= {"numpy"}  # the test sees what is loaded


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["--version"], ["bench"]], ids=" ".join)
def test_help_is_light(arguments: list[str]) -> None:
    call = f"with contextlib.suppress(SystemExit): cli.main({arguments})"
    assert loaded(f"import contextlib\nfrom art_fingerprint import cli\n{call}") == set()


def test_module_runs_as_a_program(tmp_path: Path) -> None:
    done = python("-m", "art_fingerprint.cli", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: art-fingerprint")
    assert done.stderr == ""
    done = python("-m", "art_fingerprint.cli", "report", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- lazy names
def test_every_public_name_loads() -> None:
    for name in art_fingerprint.__all__:
        assert getattr(art_fingerprint, name) is not None
    assert dir(art_fingerprint) == sorted(art_fingerprint.__all__)
    assert art_fingerprint.Verifier is Verifier
    namespace: dict[str, Any] = {}
    exec("from art_fingerprint import *", namespace)
    assert set(art_fingerprint.__all__) <= set(namespace)


def test_classes_of_the_subpackages_are_all_offered() -> None:
    import art_fingerprint.attacks as attacks
    import art_fingerprint.verifiers as verifiers

    wanted = [name for name in (*attacks.__all__, *verifiers.__all__) if name.endswith(("Attack", "Verifier"))]
    assert set(wanted) <= set(art_fingerprint.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    missing: Callable[[], Any] = lambda: art_fingerprint.NoSuchAttack  # noqa: E731
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchAttack'"):
        missing()
