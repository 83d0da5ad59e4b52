"""Command lines of any words: a status, at most one line on stderr for bad input, never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from art_fingerprint import cli
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import time_limit
from tests.fuzz.strategies import NUMBERS
from tests.fuzz.test_files import good, lies, paths, sound
from tests.fuzz.test_plans import BOMBS, FORMS
from tests.fuzz.test_rows import SPECIAL

VERBS = ("list", "bench", "experiment", "attack", "extract", "verify", "report", "doctor")
FLAGS = (
    *("--out", "--seeds", "--executor", "--workers", "--ray-address", "--device", "--quiet", "--preset", "--plan"),
    *("--attacks", "--verifiers", "--dry-run", "--data", "--seed", "--set", "--model", "--weights", "--nb-classes"),
    *("--clip", "--mean", "--std", "--attack", "--no-labels", "--verifier", "--profile", "--references", "--rule"),
    *("--thresholds", "--fingerprint", "--outputs", "--budget", "--json", "--fail-if-derived", "--published", "--help"),
    *("--version", "-h", "--", "-", "--se", "--set=a=1", "--mean=nan"),
)
WORDS = [
    *("digits", "tiny", "FT(0.5)", "IPGuardVerifier", "Zest,Zest", ",,,", "((", "nowhere:x", "os:getcwd", "timm:none"),
    *("tests.tiny_preset:small", "tests.tiny_preset:nothing", "FineTuningAttack", "max_iter=1", "ratio=nan", "=", "a="),
    *("0", "1", "-1", "1e9", "nan", "inf", "9" * 400, "1,2", "0,0", "all", "logits", "labels", "extreme", "fig4"),
    *(
        "",
        " ",
        "\n",
        "\0",
        "\udcff",
        "ü",
        "x" * 3000,
        "--x",
        "attacks",
        "verifiers",
        "presets",
        "experiments",
        "CIFAR10",
    ),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder of sound, damaged and odd files, with a current folder of its own."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        for kind, content in good().items():
            (here / kind).write_bytes(content)
            (here / f"cut-{kind}").write_bytes(content[: len(content) // 2])
        for number, content in enumerate(lies()):
            (here / f"lie{number}").write_bytes(content)
        sound("ZestVerifier").save(here / "zest.safetensors")
        x = np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32)
        np.savez(here / "small.npz", x=x, y=np.arange(12) % 4)
        np.savez(here / "odd.npz", x=x.astype(complex), y=np.full(12, np.nan))
        np.savez(here / "flat.npz", x=x[0, 0], y=np.arange(3))
        for plan, content in FORMS.items():
            (here / plan).write_bytes(content)
        for number, text in enumerate(BOMBS):
            if len(text) < 2000 and "1:30:00" not in text:  # 5400 seeds in YAML, which take their time
                (here / f"bomb{number}.yaml").write_text(text)
        for number, content in enumerate(list(SPECIAL.values())[:8]):
            (here / f"run{number}").mkdir()
            (here / f"run{number}" / "rows.jsonl").write_bytes(content)
        paths(here)
        os.chdir(here)
        yield here
        os.chdir(before)


@pytest.fixture(autouse=True)
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run for minutes once its arguments are accepted is only begun."""
    monkeypatch.setattr("art_fingerprint.cli_bench.Bench.run", lambda self: self.outline())
    monkeypatch.setattr("art_fingerprint.cli_experiment.run_experiment", lambda *_, **__: ([Path("zest.txt")], True))
    monkeypatch.setattr("art_fingerprint.cli_models.doctor", lambda: True)
    monkeypatch.setattr("art_fingerprint.cli_report.plot_tradeoff", lambda _: pytest.fail("a figure"))
    monkeypatch.setattr("art_fingerprint.cli_report._robustness", lambda _: ({}, None))


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Return exit status, stdout and stderr; the streams encode as a terminal's do."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit(30):
        try:
            status = cli.main(arguments)
        except SystemExit as error:
            status = int(str(error.code))
        out.flush()
        err.flush()
    shown = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return status, shown[0], shown[1]


def is_answered(arguments: list[str]) -> int:
    status, _, err = run(arguments)
    assert status in (0, 1, 2, 3, 130), status
    assert "Traceback" not in err
    if status == 2:
        lines = [line for line in err.splitlines() if line.startswith("art-fingerprint")]
        lines = [line for line in lines if not line.startswith("art-fingerprint: warning: ")]
        assert len(lines) == 1, err
        assert err.endswith("\n")
    return status


files = st.deferred(lambda: st.sampled_from(sorted(os.listdir())))
words = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(FLAGS), files, st.text(max_size=8), st.sampled_from(NUMBERS[:10]).map(str)
)


@pytest.mark.filterwarnings("ignore")
@generated(15, 600, verb=st.sampled_from(VERBS) | words, rest=st.lists(words, max_size=8))
def test_any_words(verb: str, rest: list[str], folder: Path) -> None:
    is_answered([verb, *rest])


@pytest.mark.filterwarnings("ignore")
@generated(10, 400, data=st.data())
def test_nearly_right(data: st.DataObject, folder: Path) -> None:
    """Every option that is needed, each with any word."""
    model = ["--model", "tests.fuzz.test_command_line:small", "--device", "cpu"]
    given: dict[str, list[str]] = {
        "attack": [
            "--attack",
            "FineTuningAttack",
            "--data",
            "small.npz",
            "--out",
            "o.safetensors",
            "--set",
            "max_iter=1",
        ],
        "extract": [
            "--verifier",
            "IPGuardVerifier",
            "--data",
            "small.npz",
            "--out",
            "f.safetensors",
            "--set",
            "max_iter=2",
        ],
        "verify": ["--fingerprint", "zest.safetensors"],
        "report": ["run0"],
        "bench": ["--plan", "plan.yaml", "--out", "bench", "--device", "cpu", "--dry-run"],
    }
    verb = data.draw(st.sampled_from(sorted(given)), label="verb")
    arguments = [*given[verb], *(model if verb in ("attack", "extract", "verify") else [])]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(arguments) - 1), label="place")
        arguments[place] = data.draw(words, label="word")
    more = data.draw(st.lists(words, max_size=3), label="more")
    is_answered([verb, *arguments, *more])


@pytest.mark.filterwarnings("ignore")
@generated(10, 300, data=st.data())
def test_every_file_in_every_place(data: st.DataObject, folder: Path) -> None:
    file = data.draw(files, label="file")
    model = ["--model", "tests.fuzz.test_command_line:small", "--device", "cpu"]
    verb, *rest = data.draw(
        st.sampled_from(
            [
                ["verify", "--fingerprint", file, *model],
                ["verify", "--fingerprint", "zest.safetensors", "--weights", file, *model],
                ["verify", "--fingerprint", "zest.safetensors", "--thresholds", file, *model],
                ["extract", "--verifier", "Zest", "--data", file, "--out", "f.safetensors", *model],
                ["extract", "--verifier", "Zest", "--data", "small.npz", "--out", file + "/f", *model],
                [
                    "attack",
                    "--attack",
                    "WeightNoise",
                    "--weights",
                    file,
                    "--data",
                    "small.npz",
                    "--out",
                    "o.st",
                    *model,
                ],
                ["bench", "--plan", file, "--out", "bench", "--dry-run", "--device", "cpu"],
                ["bench", "--preset", "digits", "--out", file, "--dry-run", "--device", "cpu"],
                ["report", file],
            ]
        ),
        label="command",
    )
    is_answered([verb, *rest])


def test_a_sound_verdict_is_json(folder: Path) -> None:
    (folder / "loose.json").write_text(json.dumps({"ZEST-L2": 1.0}))
    command = ["verify", "--fingerprint", "zest.safetensors", "--model", "tests.fuzz.test_command_line:small", "--json"]
    status, out, err = run([*command, "--thresholds", "loose.json", "--device", "cpu"])
    assert (status, err) == (0, "")
    verdict: dict[str, Any] = json.loads(out)
    assert verdict["metrics"]["ZEST-L2"]["threshold"] == 1.0


def small() -> Any:
    """A network for eight pixels squared and four classes."""
    from tests.conftest import TinyCNN

    with torch.random.fork_rng():
        torch.manual_seed(0)  # a model without --weights must have some of its own
        return TinyCNN()
