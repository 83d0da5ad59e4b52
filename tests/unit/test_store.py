"""The folder of a run: what happens to it when disks fill, processes are killed, and several runs write at once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint import cli
from art_fingerprint.benchmark import store as store_module
from art_fingerprint.benchmark.store import KEYS, Store, read_rows
from art_fingerprint.exceptions import InvalidInputError, StoreError
from art_fingerprint.zoo import presets
from tests.conftest import wrap
from tests.tiny_preset import small, tiny

ROOT = Path(__file__).parents[2]


def row(number: int, writer: int = 0, **more: Any) -> dict[str, Any]:
    texts = dict.fromkeys(("preset", "dataset", "victim", "suspect", "verifier", "device"), "a")
    objects: dict[str, Any] = {name: {} for name in ("attack_params", "verifier_params", "metrics", "versions")}
    known = {"key": f"{writer}-{number}", "status": "ok", "role": "surrogate", "seed": number}
    return {**dict.fromkeys(KEYS), **texts, **objects, **known, **more}


# ---------------------------------------------------------------------- rows
def test_new_rows_are_told_once_whoever_wrote_them(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    assert one.new_rows() == []
    two.append(row(1))
    one.append(row(2))
    assert [r["key"] for r in one.new_rows()] == ["0-1", "0-2"]
    assert one.new_rows() == []
    two.append(row(3))
    assert [r["key"] for r in one.new_rows()] == ["0-3"]
    assert [r["key"] for r in one.rows()] == ["0-1", "0-2", "0-3"]


def test_half_a_line_of_a_killed_run_is_cut_off_by_the_next_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(row(1))
    with store.rows_path.open("ab") as file:
        file.write(b'{"key": "0-')
    assert [r["key"] for r in store.new_rows()] == ["0-1"]
    store.append(row(2))
    assert [r["key"] for r in store.new_rows()] == ["0-2"]
    assert len(read_rows(tmp_path)) == 2


@pytest.mark.parametrize("size", [1, 65535, 65536, 65537, 200_000])
def test_half_lines_of_any_length_are_cut_off(tmp_path: Path, size: int) -> None:
    store = Store(tmp_path)
    store.append(row(1, reason="x" * 70_000))
    whole = store.rows_path.read_bytes()
    store.rows_path.write_bytes(whole + b"y" * size)
    Store(tmp_path)
    assert store.rows_path.read_bytes() == whole
    store.rows_path.write_bytes(b"y" * size)
    Store(tmp_path)
    assert store.rows_path.read_bytes() == b""


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(3):
        store.append(row(number))
    lines = store.rows_path.read_bytes().split(b"\n")
    for bad, message in ((b"\xff\xfe", "line 2"), (b"[" * 3000, "Line 2 .* is not JSON"), (b"{}", "Line 2 .*no key")):
        store.rows_path.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(InvalidInputError, match=message):
            read_rows(tmp_path)


def _append(folder: str, writer: int, count: int) -> None:
    store = Store(folder)
    for number in range(count):
        store.append(row(number, writer, reason="x" * (number * 37 % 5000)))


def test_runs_that_write_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    """Two writers, and a third that is killed while it writes: what the first two wrote is whole."""
    context = multiprocessing.get_context("fork")
    count = 150
    writers = [context.Process(target=_append, args=(str(tmp_path), w, count if w < 2 else 10**6)) for w in range(3)]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    os.kill(int(writers[2].pid or 0), signal.SIGKILL)
    for writer in writers:
        writer.join()
    Store(tmp_path)
    rows = Counter(r["key"] for r in read_rows(tmp_path))
    assert set(rows.values()) == {1}
    assert {f"{w}-{n}" for w in range(2) for n in range(count)} <= set(rows)
    third = sorted(int(key.split("-")[1]) for key in rows if key.startswith("2-"))
    assert third == list(range(len(third)))


# ---------------------------------------------------------------------- claims
def test_a_task_is_claimed_once_and_given_back(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    release = one.claim("task")
    assert release is not None
    assert two.claim("task") is None
    other = two.claim("other")
    assert other is not None
    release()
    again = two.claim("task")
    assert again is not None
    again()
    other()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, time; from art_fingerprint.benchmark.store import Store\n"
        f"release = Store({str(tmp_path)!r}).claim('task'); print(release is not None, flush=True); time.sleep(60)"
    )
    store = Store(tmp_path)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "True"
        assert store.claim("task") is None
        child.kill()
        child.wait()
    release = store.claim("task")
    assert release is not None
    release()


# ---------------------------------------------------------------------- full and read-only disks
class Full:
    """Replaces a function by one that finds no space."""

    def __init__(self, code: int = errno.ENOSPC) -> None:
        self.code = code

    def __call__(self, *_arguments: object, **_options: object) -> None:
        raise OSError(self.code, os.strerror(self.code))


def test_a_row_that_finds_no_space_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.append(row(1))
    before = store.rows_path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Full())
        with pytest.raises(
            StoreError, match=r"cannot be written to: .*No space left.*the same command goes on"
        ) as caught:
            store.append(row(2))
    assert str(tmp_path) in str(caught.value)
    assert store.rows_path.read_bytes() == before
    store.append(row(2))
    assert len(read_rows(tmp_path)) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_files_that_find_no_space_are_missing_not_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = Store(tmp_path)
    model = wrap(small(), (1, 8, 8), 10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Full(code))
        for save in (
            lambda: store.save_model("k", model, {}),
            lambda: store.save_facts("k", {"a": 1}),
            lambda: store.save_plan({}),
        ):
            with pytest.raises(StoreError, match=os.strerror(code)):
                save()
    assert store.load_model("k", model) is None
    assert store.load_facts("k") is None
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "locks"] == []


LIMITED = """
import resource, sys
from art_fingerprint.zoo import presets
from tests.tiny_preset import tiny
presets.PRESETS["tiny"] = tiny
from art_fingerprint import cli
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.main(["bench", "--preset", "tiny", "--out", sys.argv[1], "--seeds", "1", "--device", "cpu", "--quiet"]))
"""


def limited(folder: Path, limit: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(limit)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("limit", [pytest.param(4_000, marks=pytest.mark.slow), 25_000])
def test_a_run_that_may_write_no_more_stops_with_one_line_and_goes_on_later(tmp_path: Path, limit: int) -> None:
    """The system refuses to let files grow: at 4 kB no weights fit, at 25 kB the rows reach the limit half-way."""
    stopped = limited(tmp_path, limit)
    assert stopped.returncode == 2, stopped.stderr
    assert stopped.stderr.count("\n") == 1
    assert "cannot be written to" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    kept = read_rows(tmp_path) if (tmp_path / "rows.jsonl").exists() else []
    assert bool(kept) == (limit > 4_000)
    done = limited(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path)
    assert rows[: len(kept)] == kept
    assert len({r["key"] for r in rows}) == len(rows) == 12


LINES = """
import resource, signal, sys
from pathlib import Path
from art_fingerprint.benchmark.store import KEYS, Store, read_rows
from art_fingerprint.exceptions import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
texts = dict.fromkeys(("preset", "dataset", "victim", "suspect", "verifier", "device"), "x" * 20)
objects = {name: {} for name in ("attack_params", "verifier_params", "metrics", "versions")}
row = {**dict.fromkeys(KEYS), **texts, **objects, "key": "k", "status": "ok", "role": "victim", "seed": 1}
for limit in range(1000, 2000, 90):
    folder = Path(sys.argv[1]) / str(limit)
    store = Store(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    written = 0
    try:
        while written < 9:
            store.append(row)
            written += 1
    except StoreError:
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert written < 9
    assert len(read_rows(folder) if written else store.rows()) == written, limit
    store.append(row)
    assert len(read_rows(folder)) == written + 1, limit
"""


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    """Wherever in a line the limit lies: what did not fit must not be written when the file is closed."""
    run = subprocess.run(
        [sys.executable, "-c", LINES, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system takes rights that this user lacks")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.slow
def test_a_full_disk_stops_a_run_and_more_space_lets_it_go_on(tiny_disk: Path) -> None:
    stopped = limited(tiny_disk, 0)
    assert stopped.returncode == 2, stopped.stderr
    assert "No space left on device" in stopped.stderr
    assert stopped.stderr.count("\n") == 1
    kept = read_rows(tiny_disk) if (tiny_disk / "rows.jsonl").exists() else []
    subprocess.run(["mount", "-o", "remount,size=16m", str(tiny_disk)], check=True)
    assert limited(tiny_disk, 0).returncode == 0
    rows = read_rows(tiny_disk)
    assert rows[: len(kept)] == kept
    assert len(rows) == 12


def test_a_read_only_folder_is_refused(tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert cli.main(["bench", "--preset", "tiny", "--out", str(tiny_disk), "--device", "cpu", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert "cannot be used for results" in err
    assert "Read-only file system" in err
    assert err.count("\n") == 1


def test_what_killed_runs_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = store.models / ".k.safetensors.abc", store.models / ".l.safetensors.def"
    for path in (old, new):
        path.write_bytes(b"half")
    past = time.time() - 2 * store_module._ABANDONED_SECONDS
    os.utime(old, (past, past))
    Store(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_limits_of_this_process_are_as_before() -> None:
    """The tests above limit children only."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_row_is_one_line_of_strict_json(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(row(1, reason="a\nb\u2028c"))
    assert store.rows_path.read_bytes().count(b"\n") == 1
    assert json.loads(store.rows_path.read_text())["reason"] == "a\nb\u2028c"
