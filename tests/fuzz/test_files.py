"""Files that somebody else made or damaged: fingerprints, weights, thresholds, data, checkpoints, and odd paths."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.numpy import save as save_arrays

from art_fingerprint.benchmark.plan_files import load_plan
from art_fingerprint.benchmark.store import Store, read_rows
from art_fingerprint.cli_models import load_thresholds
from art_fingerprint.verifiers import CommitteeVerifier, Fingerprint, Verifier
from art_fingerprint.verifiers.calibration import Calibration
from art_fingerprint.verifiers.fingerprint import _HEADER_KEY, _checksum, _json
from art_fingerprint.zoo.loading import load_arrays, load_weights
from tests.conformance.verifier_cases import CASES as VERIFIERS
from tests.conformance.verifier_cases import extracted, independent
from tests.conformance.verifier_cases import victim as make_victim
from tests.conftest import TinyCNN, wrap
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import Refused, memory_limit, outcome_is_allowed
from tests.fuzz.strategies import damaged, json_values, mutated, values
from tests.states import label_box
from tests.unit.test_fingerprint import make, same


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def state() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in TinyCNN().state_dict().items()}


def in_zip(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


@functools.cache
def good() -> dict[str, bytes]:
    """A sound file of each kind."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        make().save(here / "f")
        torch.save(state(), here / "w.pt")
        torch.save(state(), here / "old.pt", _use_new_zipfile_serialization=False)
        np.savez(here / "d.npz", x=np.zeros((4, 1, 8, 8), np.float32), y=np.arange(4))
        weights = {key: tensor.numpy() for key, tensor in state().items()}
        return {
            "fingerprint": (here / "f").read_bytes(),
            "weights.safetensors": save_arrays(weights),
            "weights.pt": (here / "w.pt").read_bytes(),
            "old.pt": (here / "old.pt").read_bytes(),
            "data.npz": (here / "d.npz").read_bytes(),
            "thresholds.json": json.dumps(Calibration({"M": (0.5, 0.3)}, {"M": 0.3}).to_dict(), indent=2).encode(),
        }


def load_into(path: Path) -> TinyCNN:
    network = TinyCNN()
    load_weights(network, path)
    return network


LOADERS: dict[str, Callable[[Path], Any]] = {
    "fingerprint": Fingerprint.load,
    "weights.safetensors": load_into,
    "weights.pt": load_into,
    "old.pt": load_into,
    "data.npz": load_arrays,
    "thresholds.json": load_thresholds,
}


def is_read_or_refused(kind: str, path: Path, content: bytes) -> Any:
    path.write_bytes(content)
    with memory_limit(len(content)):
        return outcome_is_allowed(lambda: LOADERS[kind](path), path.name)


# ---------------------------------------------------------------------- damage
@pytest.mark.parametrize("kind", LOADERS)
@generated(15, 300, data=st.data())
def test_damage(kind: str, data: st.DataObject, folder: Path) -> None:
    content = data.draw(damaged(good()[kind]), label="content")
    found = is_read_or_refused(kind, folder / kind, content)
    if kind == "fingerprint" and not isinstance(found, Refused):
        assert same(found, make())


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, which may lie about its own length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length % 2**64) + text + body


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def npy(shape: str, body: bytes, dtype: str = "<f4") -> bytes:
    """An array of NumPy's own format, whose header may promise anything."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00v\x00" + header.ljust(118) + body


SMALL = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@functools.cache
def lies() -> list[bytes]:
    """Files whose headers lie, bombs, programs, and files of other kinds."""
    return [
        safetensors({"a": tensor()}, bytes(8), length=2**60),
        safetensors({"a": tensor()}, bytes(8), length=2**64 - 1),
        safetensors({"a": tensor()}, bytes(8), length=99_999_999),
        safetensors({"a": tensor()}, bytes(8), length=0),
        safetensors({"a": tensor(shape=(2**40,))}, bytes(8)),
        safetensors({"a": tensor(shape=(2**40,), offsets=(0, 2**42))}, bytes(8)),
        safetensors({"a": tensor(shape=(2**32, 2**32, 2), offsets=(0, 8))}, bytes(8)),
        safetensors({"a": tensor(shape=(2**63, 2), offsets=(0, 8))}, bytes(8)),
        safetensors({"a": tensor(shape=(0, 2**62), offsets=(0, 0))}),
        safetensors({"a": tensor(shape=(0, 2**62, 2**62), offsets=(0, 0))}),
        safetensors({"a": tensor(), "b": tensor()}, bytes(8)),
        safetensors({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)),
        safetensors({"a": tensor(offsets=(8, 0))}, bytes(8)),
        safetensors({"a": tensor(offsets=(-8, 0))}, bytes(8)),
        safetensors({"a": tensor(dtype="F8_E5M2", shape=(8,))}, bytes(8)),
        safetensors({"a": tensor(dtype="F4", shape=(16,))}, bytes(8)),
        safetensors({"a": tensor(dtype="BF16", shape=(4,))}, bytes(8)),
        safetensors({"a": tensor(dtype="none")}, bytes(8)),
        safetensors({"__metadata__": {"art_fingerprint": 3}, "a": tensor()}, bytes(8)),
        safetensors({"__metadata__": {"art_fingerprint": "[" * 100_000}, "a": tensor()}, bytes(8)),
        safetensors(
            {"__metadata__": {"art_fingerprint": '{"a":' * 5_000 + "1" + "}" * 5_000}, "a": tensor()}, bytes(8)
        ),
        safetensors({"__metadata__": {"art_fingerprint": "9" * 10_000}, "a": tensor()}, bytes(8)),
        safetensors({"__metadata__": {"art_fingerprint": '{"format": 1e999}'}, "a": tensor()}, bytes(8)),
        safetensors({"__metadata__": {"art_fingerprint": '{"format": NaN}'}, "a": tensor()}, bytes(8)),
        safetensors(
            {"__metadata__": {"art_fingerprint": "{" + '"format": ' + "9" * 5000 + "}"}, "a": tensor()}, bytes(8)
        ),
        safetensors(b'{"a":' * 200_000),
        safetensors(b"[" * 1_000_000),
        safetensors(b"{" + SMALL + b"," + SMALL + b"}", bytes(8)),
        safetensors({f"a{i}": tensor(shape=(0,), offsets=(0, 0)) for i in range(3_000)}),
        pickle.dumps(print),
        pickle.dumps({"conv": [1, 2, 3]}),
        b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        b"",
        b"\0" * 8,
        b"\xff" * 4096,
        b"PK\x03\x04" + bytes(64),
        b"\x89HDF\r\n\x1a\n" + bytes(64),
        npy("(99999999999, 64)", bytes(16)),
        in_zip({"x.npy": npy("(99999999999, 64)", bytes(16))}),
        in_zip({"x.npy": npy("(90000000, 1)", bytes(16))}),
        in_zip({"x.npy": npy("(1,)", pickle.dumps(print), "|O")}),
        in_zip({"x.npy": npy("(2, -1)", bytes(16))}),
        in_zip({"x.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"}),
        in_zip({"x.npy": npy("(120000000,)", bytes(120_000_000), "|u1")}),
        in_zip({"archive/data.pkl": b"\x80\x02}.", "archive/version": b"3"}),
        in_zip({"archive/data.pkl": b"\x80\x02" + b"(" * 3_000, "archive/version": b"3"}),
        in_zip({"archive/data.pkl": pickle.dumps(os.system), "archive/version": b"3"}),
        b"[" * 200_000,
        b'{"a": ' * 20_000,
        b'{"M": 1e999}',
        b'{"M": NaN}',
        b'{"M": ' + b"9" * 5000 + b"}",
        b'{"M": 0.5, "M": 0.7}',
        b"\xef\xbb\xbf{}",
        b'{"references": {"M": null}, "thresholds": {"M": 1}}',
        b'{"references": {}, "thresholds": {}, "rule": ["extreme"], "alpha": 1, "confidence": 1}',
        b'{"references": {"M": ["a"]}, "thresholds": {"M": true}, "rule": "extreme", "alpha": NaN, "confidence": 1}',
    ]


@pytest.mark.parametrize("kind", LOADERS)
def test_lies(kind: str, folder: Path) -> None:
    for content in lies():
        is_read_or_refused(kind, folder / kind, content)
    assert not Path("/tmp/owned").exists()


@generated(30, 600, data=st.data())
def test_headers(data: st.DataObject, folder: Path) -> None:
    """Headers that are JSON, but not quite those of a fingerprint."""
    content = good()["fingerprint"]
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if data.draw(st.booleans(), label="outer"):
        header = data.draw(mutated(header), label="header")
    else:
        inner = data.draw(mutated(json.loads(header["__metadata__"][_HEADER_KEY])), label="inner")
        if isinstance(inner, dict):
            inner.pop("checksum", None)
            inner["checksum"] = _checksum(json.loads(json.dumps(inner).replace("NaN", "0").replace("Infinity", "0")))
        header["__metadata__"][_HEADER_KEY] = json.dumps(inner, sort_keys=True, separators=(",", ":"))
    found = is_read_or_refused("fingerprint", folder / "h.safetensors", safetensors(header, content[8 + size :]))
    if not isinstance(found, Refused):
        repr(found)
        found.save(folder / "again.safetensors")
        assert same(Fingerprint.load(folder / "again.safetensors"), found)


@generated(30, 600, tree=mutated(json.loads(good()["thresholds.json"])) | json_values)
def test_thresholds(tree: Any, folder: Path) -> None:
    found = is_read_or_refused("thresholds.json", folder / "t.json", json.dumps(tree).encode())
    if not isinstance(found, Refused):
        assert all(np.isfinite(list(found.thresholds.values())))
        assert found.nb_references >= 0
        json.dumps(found.to_dict(), allow_nan=False)


# ---------------------------------------------------------------------- fingerprints that are sound files, but forged
@functools.cache
def calibrated(name: str) -> Verifier:
    verifier = extracted(next(case for case in VERIFIERS if case.verifier.__name__ == name))
    return verifier.calibrate([independent(seed) for seed in (11, 12)])


def sound(name: str) -> Fingerprint:
    """A calibrated fingerprint of a verifier, or of a committee of two."""
    if name == "CommitteeVerifier":
        members = [calibrated("IPGuardVerifier"), calibrated("ZestVerifier")]
        return CommitteeVerifier(members, false_positive_rate=0.9).fingerprint
    found = calibrated(name).fingerprint
    assert found is not None
    return found


@functools.cache
def suspects() -> list[Any]:
    model = make_victim()
    return [model, label_box(model), wrap(TinyCNN(nb_classes=3).eval(), nb_classes=3)]


KINDS = {**{case.verifier.__name__: case.verifier for case in VERIFIERS}, "CommitteeVerifier": CommitteeVerifier}


@st.composite
def forged(draw: st.DrawFn, whole: Fingerprint) -> Fingerprint:
    """A fingerprint with other parameters, facts, arrays or thresholds, and a digest that fits."""
    arrays = dict(whole.arrays)
    parts: dict[str, Any] = {"params": whole.params, "facts": whole.facts}
    calibration = whole.calibration
    part = draw(st.sampled_from(["params", "facts", "arrays", "arrays", "calibration"]))
    if part == "calibration" and calibration is not None:
        changed = draw(mutated(json.loads(json.dumps(calibration.to_dict()))))
        try:
            calibration = Calibration.from_dict(changed)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            calibration = None
    elif part == "arrays" and arrays:
        name = draw(st.sampled_from(sorted(arrays)))
        array = arrays[name]
        change = draw(
            st.sampled_from(
                [
                    lambda: array[:0],
                    lambda: array[:1],
                    lambda: array[..., :-1] if array.ndim else array,
                    lambda: array.reshape(-1),
                    lambda: array[None],
                    lambda: array.astype(np.float64),
                    lambda: array.astype(np.uint8),
                    lambda: array.astype(bool),
                    lambda: array.astype(np.float32) * np.nan,
                    lambda: array.astype(np.int64) * 0 + 10**6,
                    lambda: -array if array.dtype != bool else ~array,
                    lambda: np.zeros((2, 2), np.float32),
                    None,
                ]
            )
        )
        if change is None:
            del arrays[name]
        else:
            arrays[name] = change()
    elif part in parts:
        parts[part] = draw(mutated(parts[part]))
    return Fingerprint(whole.verifier, parts["params"], parts["facts"], arrays, calibration)


@pytest.mark.parametrize("name", KINDS)
@generated(3, 60, data=st.data())
def test_forged_fingerprints(name: str, data: st.DataObject, folder: Path) -> None:
    forgery = data.draw(forged(sound(name)), label="forgery")
    path = folder / "forged.safetensors"
    written = outcome_is_allowed(lambda: forgery.save(path))
    if isinstance(written, Refused):  # NaN in the facts
        return
    size = path.stat().st_size
    suspect = data.draw(st.sampled_from(suspects()), label="suspect")

    def judge() -> Any:
        return KINDS[name].from_fingerprint(Fingerprint.load(path)).verify(suspect)

    with memory_limit(size):
        found = outcome_is_allowed(judge)
    if not isinstance(found, Refused):
        repr(found)
        json.dumps(found.to_dict())


# ---------------------------------------------------------------------- checkpoints of a run
@generated(15, 300, data=st.data())
def test_checkpoints(data: st.DataObject, folder: Path) -> None:
    """What is damaged is as if it were not there."""
    store = Store(folder / "run")
    classifier = wrap(TinyCNN().eval())
    kind = data.draw(st.sampled_from(["models", "fingerprints", "facts"]), label="kind")
    if not (folder / "run" / "sound").exists():
        store.save_model("sound", classifier, {"a": 1})
        store.save_fingerprint("sound", make())
        store.save_facts("sound", {"accuracy": 0.5})
        (folder / "run" / "sound").touch()
    ending = "json" if kind == "facts" else "safetensors"
    whole = (folder / "run" / kind / f"sound.{ending}").read_bytes()
    (folder / "run" / kind / f"k.{ending}").write_bytes(data.draw(damaged(whole), label="content"))
    read: dict[str, Callable[[], Any]] = {
        "models": lambda: store.load_model("k", classifier),
        "fingerprints": lambda: store.load_fingerprint("k"),
        "facts": lambda: store.load_facts("k"),
    }
    with memory_limit(len(whole)):
        found = read[kind]()
    assert found in (None, {"a": 1}, {"accuracy": 0.5}) or same(found, make())


# ---------------------------------------------------------------------- paths
def paths(folder: Path) -> list[Any]:
    """Paths that are no files, and some that never end."""
    (folder / "directory").mkdir(exist_ok=True)
    for name, target in (("loop", "loop"), ("dangling", "nowhere"), ("zero", "/dev/zero"), ("device", "/dev/tty")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
    return [
        *(folder / name for name in ("directory", "loop", "dangling", "zero", "device", "pipe", "nowhere")),
        *(folder / "nul\0byte", folder / ("x" * 5000), folder / "\udcff\udcfe", folder / "loop" / "below"),
        *(
            folder / "directory" / ".." / "nowhere",
            Path("/dev/zero"),
            Path("/dev/null"),
            Path("/proc/self/mem"),
            Path(),
        ),
    ]


ALL_LOADERS = {**LOADERS, "plan": load_plan, "rows": read_rows}


@pytest.mark.parametrize("kind", ALL_LOADERS)
def test_paths(kind: str, folder: Path) -> None:
    for path in paths(folder):
        names = [str(path), path.name] if path.name else []
        with memory_limit(0):
            assert isinstance(outcome_is_allowed(lambda path=path: ALL_LOADERS[kind](path), *names, seconds=5), Refused)


@pytest.mark.parametrize("kind", ["fingerprint", "plan", "rows"])
@generated(10, 100, path=values)
def test_what_is_no_path(kind: str, path: Any) -> None:
    if isinstance(path, int) and not isinstance(path, bool):
        path = -5  # never a file descriptor of the test's own
    assert isinstance(outcome_is_allowed(lambda: ALL_LOADERS[kind](path), seconds=5), Refused)


def test_places_that_cannot_be_written_to(folder: Path) -> None:
    for path in paths(folder):
        if path.name in ("zero", "null", "nowhere", "dangling", "device", "pipe", "mem", "loop") or "\udcff" in str(
            path
        ):
            continue  # replacing a name by a file is what is asked for
        found = outcome_is_allowed(lambda path=path: make().save(path), also=(OSError,))
        assert isinstance(found, Refused)


def test_committees_of_forged_members_are_refused(folder: Path) -> None:
    whole = sound("CommitteeVerifier")
    for members in (None, [], [1], [{}], [whole.facts["members"][0]], [{**whole.facts["members"][0], "facts": []}] * 2):
        forgery = Fingerprint("CommitteeVerifier", whole.params, {**whole.facts, "members": members}, whole.arrays)
        path = folder / "committee.safetensors"
        path.write_bytes(b"")
        forgery.save(path)
        loaded = Fingerprint.load(path)
        found = outcome_is_allowed(
            lambda loaded=loaded: CommitteeVerifier.from_fingerprint(loaded), "committee", "Member"
        )
        assert isinstance(found, Refused)


def test_the_header_of_the_tests_is_that_of_the_package() -> None:
    content = good()["fingerprint"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][_HEADER_KEY]
    assert header == _json(json.loads(header))
    assert issubclass(KINDS["ZestVerifier"], Verifier)
