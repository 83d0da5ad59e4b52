"""The fingerprint: probes and the victim's cached answers, independent of any suspect, kept as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from art_fingerprint.core.checks import check_number, check_sequence, shown
from art_fingerprint.core.files import regular_file, write_whole
from art_fingerprint.exceptions import FingerprintError, FingerprintFileError, InvalidInputError
from art_fingerprint.verifiers.calibration import Calibration

_Score = Callable[[Any, "Fingerprint"], dict[str, float]]
FORMAT_VERSION = 1
# Values of one sample: 3 x 2300 x 2300 pixels.
_LARGEST_INPUT = 2**24
_HEADER_KEY = "art_fingerprint"
# what reading malformed content may raise; AttributeError: a dtype that NumPy lacks, or a list in place of a dict
_MALFORMED = (ValueError, TypeError, KeyError, OverflowError, AttributeError)


class Fingerprint:
    """What an owner keeps: everything needed to score a suspect without the victim.

    The arrays never change: they are copied in, and can only be looked at from outside. A digest is therefore computed
    once, and again only if ``params`` or ``facts`` were changed.

    :param verifier: Class name of the verifier that made it.
    :param params: The verifier's parameters, JSON values only.
    :param facts: What extraction found out (shapes, clip values, counts, output kind, victim digest, versions), JSON
        only.
    :param arrays: Probes and cached answers of the victim, name to array.
    :param calibration: Thresholds from reference models, set by ``Verifier.calibrate``; not part of the digest.
    """

    def __init__(
        self,
        verifier: str,
        params: dict[str, Any],
        facts: dict[str, Any],
        arrays: Mapping[str, np.ndarray],
        calibration: Calibration | None = None,
    ) -> None:
        self.verifier = verifier
        self.params = params
        self.facts = facts
        self.calibration = calibration
        self._arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
        self._digest: tuple[str, str] | None = None

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Probes and cached answers of the victim, name to read-only array."""
        return MappingProxyType({name: _read_only(array) for name, array in self._arrays.items()})

    @property
    def digest(self) -> str:
        """SHA-256 over verifier, parameters, facts and arrays: one digest, one set of scores for a suspect."""
        described = _json({"verifier": self.verifier, "params": self.params, "facts": self.facts})
        if self._digest is None or self._digest[0] != described:
            digest = hashlib.sha256(described.encode())
            for name in sorted(self._arrays):
                array = np.ascontiguousarray(self._arrays[name])
                digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
                digest.update(array.tobytes())
            self._digest = (described, digest.hexdigest())
        return self._digest[1]

    def tensors(self, *names: str) -> tuple[torch.Tensor, ...]:
        """Return the named arrays as tensors on the host that share their memory: do not write to them."""
        return tuple(torch.from_numpy(self._arrays[name]) for name in names)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the fingerprint to one safetensors file with a JSON header. The file appears whole or not at all."""
        path = Path(path)
        header: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "verifier": self.verifier,
            "params": self.params,
            "facts": self.facts,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "digest": self.digest,
        }
        header["checksum"] = _checksum(header)
        write_whole(path, save(self._arrays, metadata={_HEADER_KEY: _json(header)}))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fingerprint:
        """Read a fingerprint file. Nothing in it is executed; its digest is checked, and a checksum of its header.

        :raises FingerprintFileError: missing, damaged, truncated, foreign, or written by a newer version.
        """
        path = regular_file(path, "fingerprint file", FingerprintFileError)
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, *_MALFORMED, MemoryError) as error:
            raise FingerprintFileError(f"{path} is not a readable fingerprint file: {error}") from error
        if _HEADER_KEY not in metadata:
            raise FingerprintFileError(
                f"{path} is a safetensors file, but not a fingerprint: it has no header for one."
            )
        try:
            header = json.loads(metadata[_HEADER_KEY])
            if "verifier" not in header:
                raise FingerprintFileError(f"{path} is no fingerprint: it holds weights, as `attack` writes them.")
            version = int(header["format"])
            if version < 1:
                raise ValueError(f"unknown format {version}")
            if version > FORMAT_VERSION:
                raise FingerprintFileError(
                    f"{path} has format {version}; this version reads up to {FORMAT_VERSION}. Update art-fingerprint."
                )
            calibration = header["calibration"]
            fingerprint = cls(
                verifier=str(header["verifier"]),
                params=dict(header["params"]),
                facts=dict(header["facts"]),
                arrays=arrays,
                calibration=None if calibration is None else Calibration.from_dict(calibration),
            )
            intact = _json(header) == metadata[_HEADER_KEY]  # JSON has other spellings of the same content
            intact = intact and header.pop("checksum") == _checksum(header) and header["digest"] == fingerprint.digest
        except FingerprintFileError:
            raise
        except (*_MALFORMED, RecursionError) as error:
            raise FingerprintFileError(f"The header of {path} is damaged: {type(error).__name__}: {error}") from error
        if not intact:
            raise FingerprintFileError(f"The content of {path} does not match its checksum: it was damaged or changed.")
        return fingerprint

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {array.shape}" for name, array in self._arrays.items())
        state = "calibrated" if self.calibration is not None else "uncalibrated"
        return f"Fingerprint({self.verifier}, {state}, {arrays}, digest={self.digest[:12]})"


def check_facts(fingerprint: Fingerprint, params: Iterable[str] | None = None) -> None:
    """Raise unless a fingerprint that somebody else may have made says what every scoring needs to know.

    :param fingerprint: The fingerprint.
    :param params: Names of the parameters that it may have; ``None``: any.
    :raises FingerprintFileError: it does not, or has other parameters.
    """
    unknown = set() if params is None else set(fingerprint.params) - set(params)
    if unknown:
        raise FingerprintFileError(f"The fingerprint has unknown parameters: {', '.join(sorted(unknown))}.")
    facts = fingerprint.facts
    try:
        for side in check_sequence("input_shape", facts["input_shape"]):
            check_number("input_shape", side, 1, integer=True)
        check_number("size of `input_shape`", math.prod(facts["input_shape"]), 1, _LARGEST_INPUT, integer=True)
        check_number("nb_classes", facts["nb_classes"], 2, integer=True)
        low, high = facts["clip_values"]
        check_number("clip_values", low)
        check_number("clip_values", high, low, open_low=True)
        if not isinstance(facts["victim"], str):
            raise ValueError("`victim` must be a digest")
    except (*_MALFORMED, InvalidInputError) as error:
        raise FingerprintFileError(
            f"The fingerprint's facts are not those of a {shown(fingerprint.verifier)}: {type(error).__name__}: {error}"
        ) from error


def content_trusted(score: _Score, trusted: bool) -> _Score:
    """Return a scoring hook as it is, or one that says so where an untrusted fingerprint's content makes it fail."""

    def run(suspect: Any, fingerprint: Fingerprint) -> dict[str, float]:
        try:
            return score(suspect, fingerprint)
        except FingerprintError:
            raise
        except (*_MALFORMED, RuntimeError, IndexError) as error:
            raise FingerprintFileError(
                f"The fingerprint's content is not that of a {fingerprint.verifier}: {type(error).__name__}: {error}"
            ) from error

    return score if trusted else run


def warn_if_few(count: int, what: str, stacklevel: int) -> None:
    """Warn of a fingerprint with fewer than ten probes.

    :param count: Number of probes.
    :param what: What they are, in the plural.
    :param stacklevel: As in ``warnings.warn`` called from here: 2 is the caller.
    """
    if count < 10:
        warnings.warn(f"The fingerprint has only {count} {what}; ten or more are advised.", stacklevel=stacklevel)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checksum(header: dict[str, Any]) -> str:
    # the digest leaves the calibration out, a damaged file must not
    return hashlib.sha256(_json(header).encode()).hexdigest()
