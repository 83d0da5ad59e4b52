"""The fingerprint file: exact round trip, whole or not at all, and every damaged or foreign file refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from art_fingerprint.exceptions import FingerprintFileError
from art_fingerprint.verifiers.calibration import Calibration
from art_fingerprint.verifiers.fingerprint import FORMAT_VERSION, Fingerprint


def make(**changes: Any) -> Fingerprint:
    draws = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "verifier": "SomeVerifier",
        "params": {"seed": 3, "rate": 0.1, "metric_names": None, "name": "läyer"},
        "facts": {"input_shape": [1, 4, 4], "outputs": "logits", "nested": {"a": [1, 2.5, True]}},
        "arrays": {
            "probes": draws.random((5, 1, 4, 4), dtype=np.float32),
            "labels": draws.integers(0, 9, 5),
            "outputs": draws.normal(size=(5, 3)),
            "flags": np.array([True, False]),
        },
        "calibration": Calibration({"M": (0.5, 1 / 3)}, {"M": 1 / 3}),
        **changes,
    }
    return Fingerprint(**parts)


def same(a: Fingerprint, b: Fingerprint) -> bool:
    return (
        (a.verifier, a.params, a.facts, a.calibration, a.digest)
        == (b.verifier, b.params, b.facts, b.calibration, b.digest)
        and a.arrays.keys() == b.arrays.keys()
        and all(a.arrays[n].dtype == b.arrays[n].dtype and np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
    )


# ---------------------------------------------------------------------- round trip and digest
@pytest.mark.parametrize("calibration", [None, Calibration({"M": (0.5, 1 / 3)}, {"M": 0.1}, "t-pred", 0.9, 0.95)])
def test_round_trip(tmp_path: Path, calibration: Calibration | None) -> None:
    fingerprint = make(calibration=calibration)
    path = fingerprint.save(tmp_path / "a.safetensors")
    loaded = Fingerprint.load(path)
    assert same(loaded, fingerprint)
    assert loaded.calibration == calibration
    assert same(Fingerprint.load(str(path)), fingerprint)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_arrays_in_any_memory_layout(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {"strided": base[:, ::2], "transposed": base.transpose(2, 0, 1), "empty": np.zeros((0, 3), np.float32)}
    fingerprint = make(arrays=arrays)
    assert fingerprint.digest == make(arrays={name: array.copy() for name, array in arrays.items()}).digest
    assert same(Fingerprint.load(fingerprint.save(tmp_path / "a")), fingerprint)


def test_the_digest_covers_everything_but_the_calibration() -> None:
    digest = make().digest
    assert make().digest == digest
    assert make(calibration=None).digest == digest
    assert make(verifier="Other").digest != digest
    assert make(params={}).digest != digest
    assert make(facts={}).digest != digest
    arrays = make().arrays
    changes: list[dict[str, np.ndarray]] = [
        {"outputs": np.nextafter(arrays["outputs"], 9)},
        {"probes": arrays["probes"].astype(np.float64)},
        {"probes": arrays["probes"].reshape(5, 16)},
        {"more": arrays["flags"]},
    ]
    assert len({digest, *(make(arrays={**arrays, **change}).digest for change in changes)}) == 5
    assert make(arrays=dict(reversed(arrays.items()))).digest == digest


def test_the_arrays_never_change() -> None:
    mine = {"probes": np.zeros((2, 3), np.float32)}
    fingerprint = make(arrays=mine)
    mine["probes"][0] = 1
    mine["more"] = np.ones(2)
    assert set(fingerprint.arrays) == {"probes"}
    assert not fingerprint.arrays["probes"].any()
    with pytest.raises(ValueError, match="read-only"):
        fingerprint.arrays["probes"][0] = 1
    with pytest.raises(TypeError):
        fingerprint.arrays["probes"] = np.ones(2)  # type: ignore[index]
    with pytest.raises(AttributeError):
        fingerprint.arrays = mine  # type: ignore[misc]


def test_tensors_share_memory_without_a_warning() -> None:
    fingerprint = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (probes,) = fingerprint.tensors("probes")
    assert probes.data_ptr() == fingerprint.arrays["probes"].ctypes.data


def test_arrays_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = make()
    digest = fingerprint.digest
    hashed: list[int] = []

    class Counting:
        def __init__(self, data: bytes) -> None:
            hashed.append(len(data))
            self.inner = hashlib.new("sha256", data)

        def update(self, data: bytes) -> None:
            self.inner.update(data)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    monkeypatch.setattr("art_fingerprint.verifiers.fingerprint.hashlib.sha256", Counting)
    fingerprint.calibration = None
    assert fingerprint.digest == digest
    assert not hashed
    fingerprint.facts["nested"]["a"].append(3)  # facts and parameters may change at any depth, and are noticed
    changed = fingerprint.digest
    assert changed != digest
    assert len(hashed) == 1
    fingerprint.facts["nested"]["a"].pop()
    fingerprint.params["seed"] = 4
    assert fingerprint.digest not in (digest, changed)
    fingerprint.params["seed"] = 3
    assert fingerprint.digest == digest


def test_copies_and_pickles_are_whole() -> None:
    fingerprint = make()
    for twin in (copy.deepcopy(fingerprint), pickle.loads(pickle.dumps(fingerprint))):
        assert same(twin, fingerprint)
        with pytest.raises(ValueError, match="read-only"):
            twin.arrays["probes"][0] = 1


def test_repr_says_what_is_inside() -> None:
    text = repr(make())
    assert "SomeVerifier" in text
    assert "calibrated" in text
    assert "probes (5, 1, 4, 4)" in text
    assert "uncalibrated" in repr(make(calibration=None))


# ---------------------------------------------------------------------- files that are not whole
def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FingerprintFileError, match="no fingerprint file"):
        Fingerprint.load(tmp_path / "none.safetensors")
    with pytest.raises(FingerprintFileError, match="no fingerprint file"):
        Fingerprint.load(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = make().save(tmp_path / "whole").read_bytes()
    path = tmp_path / "part"
    for length in {*range(0, 24), *range(24, len(content), 37), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(FingerprintFileError):
            Fingerprint.load(path)


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    path = make().save(tmp_path / "a")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FingerprintFileError):
        Fingerprint.load(path)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = make().save(tmp_path / "a")
    content = path.read_bytes()
    bits = np.random.default_rng(0).integers(0, 8, len(content))
    for position, bit in enumerate(bits):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(bit)
        path.write_bytes(bytes(damaged))
        with pytest.raises(FingerprintFileError):
            Fingerprint.load(path)


def test_a_changed_threshold_is_noticed(tmp_path: Path) -> None:
    path = make(calibration=Calibration({"M": (0.5, 0.25)}, {"M": 0.25})).save(tmp_path / "a")
    content = path.read_bytes()
    assert content.count(b"0.25") == 2
    path.write_bytes(content.replace(b"0.25", b"0.95"))
    with pytest.raises(FingerprintFileError):
        Fingerprint.load(path)


# ---------------------------------------------------------------------- files that are something else
def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["art_fingerprint"])
    assert isinstance(header, dict)
    return header


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays: dict[str, Any] = {"probes": np.zeros((2, 2), np.float32)}
    save_file(arrays, path)
    with pytest.raises(FingerprintFileError, match="not a fingerprint"):
        Fingerprint.load(path)
    save_file(arrays, path, metadata={"format": "pt"})
    with pytest.raises(FingerprintFileError, match="not a fingerprint"):
        Fingerprint.load(path)
    np.savez(tmp_path / "b.npz", **arrays)
    for content in (b"", b"text", b"\x89PNG\r\n", b"\xff" * 64, (tmp_path / "b.npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(FingerprintFileError):
            Fingerprint.load(path)


def test_a_newer_format_says_what_to_do(tmp_path: Path) -> None:
    path = make().save(tmp_path / "a")
    header = {**header_of(path), "format": FORMAT_VERSION + 1}
    save_file(make().arrays, path, metadata={"art_fingerprint": json.dumps(header)})
    with pytest.raises(FingerprintFileError, match="Update"):
        Fingerprint.load(path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "[" * 100_000,
        '{"format": "one"}',
        '{"format": null}',
        '{"format": 1e999}',
        '{"format": 1}',
        '{"format": 1, "verifier": "V", "params": 3, "facts": {}, "calibration": null, "digest": ""}',
        '{"format": 1, "verifier": "V", "params": {}, "facts": "ab", "calibration": null, "digest": ""}',
        '{"format": 1, "verifier": "V", "params": {}, "facts": {}, "calibration": {}, "digest": ""}',
        '{"format": 1, "verifier": "V", "params": {}, "facts": {}, "calibration": [1], "digest": ""}',
        '{"format": 1, "verifier": "V", "params": {"a": NaN}, "facts": {}, "calibration": null, "digest": ""}',
        '{"format": 1, "verifier": "V", "params": {}, "facts": {}, "calibration": null, "digest": ""}',
        '{"format": 0, "verifier": "V", "params": {}, "facts": {}, "calibration": null, "digest": ""}',
    ],
)
def test_damaged_headers(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a"
    save_file({"probes": np.zeros(2, np.float32)}, path, metadata={"art_fingerprint": header})
    with pytest.raises(FingerprintFileError):
        Fingerprint.load(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_dtypes_that_numpy_lacks(tmp_path: Path, dtype: torch.dtype) -> None:
    path = make().save(tmp_path / "a")
    header = json.dumps(header_of(path))
    save_torch_file({"probes": torch.zeros(2).to(dtype)}, path, metadata={"art_fingerprint": header})
    with pytest.raises(FingerprintFileError):
        Fingerprint.load(path)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def test_a_pickle_in_disguise_is_not_executed(tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    path = tmp_path / "a.safetensors"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Bomb(exploded), protocol))
        with pytest.raises(FingerprintFileError):
            Fingerprint.load(path)
    torch.save({"probes": Bomb(exploded)}, path)
    with pytest.raises(FingerprintFileError):
        Fingerprint.load(path)
    assert not exploded.exists()


# ---------------------------------------------------------------------- whole or not at all
@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = make().save(tmp_path / "a")
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        make(params={"seed": 4}).save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == before


def test_an_unwritable_place_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    for path in (file / "a", tmp_path / "missing" / "a"):
        with pytest.raises(OSError, match="[Nn]o"):
            make().save(path)
    assert os.listdir(tmp_path) == ["file"]
    assert file.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write to any folder")
def test_a_read_only_folder_keeps_the_old_file(tmp_path: Path) -> None:
    path = make().save(tmp_path / "a")
    before = path.read_bytes()
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            make(params={}).save(path)
    finally:
        tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == before


def test_saving_replaces_an_older_file(tmp_path: Path) -> None:
    path = make().save(tmp_path / "a")
    newer = make(params={"seed": 4}, calibration=None)
    newer.save(path)
    assert same(Fingerprint.load(path), newer)
