"""One folder of a run: append-only rows, and models, fingerprints and measurements under the digest of what made them.

Several runs may work in one folder at the same time, on one machine or on several that share it: lines are appended
under a lock, files appear whole or not at all, and a task is claimed before it is begun.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from art.estimators.classification import PyTorchClassifier
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from art_fingerprint.benchmark.rows import ADDED_KEYS as ADDED_KEYS
from art_fingerprint.benchmark.rows import KEYS as KEYS
from art_fingerprint.benchmark.rows import STATUSES as STATUSES
from art_fingerprint.benchmark.rows import check_row
from art_fingerprint.core.checks import shown
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.files import regular_file, write_whole
from art_fingerprint.exceptions import FingerprintFileError, InvalidInputError, StoreError
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.zoo.loading import save_weights

ROWS = "rows.jsonl"
PLAN = "plan.json"
_PARTS = _MODELS, _FINGERPRINTS, _FACTS = "models", "fingerprints", "facts"

_ABANDONED_SECONDS = 3600.0


def cell_key(**facts: Any) -> str:
    """Return a digest of everything that can change a result; JSON values only."""
    text = json.dumps(facts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def is_done(row: Mapping[str, Any]) -> bool:
    """Tell whether a row's cell is not to be tried again."""
    return bool(row["status"] != "failed")


def read_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a run's folder, oldest first. A last line that was not written to its end is left out.

    :raises InvalidInputError: there are no rows, or a line is not a JSON object with all of :data:`KEYS`.
    """
    try:
        path = Path(folder) / ROWS
    except TypeError as error:
        raise InvalidInputError(f"The folder of a run is needed, got {shown(folder)}.") from error
    try:
        content = regular_file(path, "file of result rows").read_bytes()
    except (OSError, InvalidInputError) as error:
        raise InvalidInputError(f"No result rows can be read from {path}: {error}.") from error
    return _parsed(content, path, 1)


def kept(folder: str | os.PathLike[str]) -> frozenset[str]:
    """Return the names of the models, fingerprints and facts in a run's folder, sound or not. Writes nothing."""
    return frozenset(path.stem for part in _PARTS for path in (Path(folder) / part).glob("*.*"))


def _parsed(content: bytes, path: Path, first: int) -> list[dict[str, Any]]:
    """Return the rows in whole lines, the first of which has the number ``first``."""
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], first):
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"No result rows can be read from {path}: line {number}: {error}.") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"Line {number} of {path} is not JSON: {error}.") from error
        # halves of characters, as names of files may have them, cannot be written into any table
        if b"\\ud" in line.lower():
            row = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        try:
            check_row(row)
        except InvalidInputError as error:
            raise InvalidInputError(f"Line {number} of {path} cannot be used: {str(error).rstrip('.')}.") from error
        rows.append(row)
    return rows


class Store:
    """A run's folder.

    ``rows.jsonl`` is only ever appended to, one flushed line a cell. Weights lie in ``models/``, fingerprints in
    ``fingerprints/``, what was measured on a model in ``facts/``, all named by :func:`cell_key` and all safe to delete:
    what is missing or damaged is computed anew. ``locks/`` holds empty files.

    :param folder: The folder; made if it is not there.
    :raises InvalidInputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.models = self.folder / _MODELS
        self.fingerprints = self.folder / _FINGERPRINTS
        self._facts = self.folder / _FACTS
        self._locks = self.folder / "locks"
        try:
            for part in (self.folder, self.models, self.fingerprints, self._facts, self._locks):
                part.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            self._sweep()
            with self._locked():
                self._repair()
        except OSError as error:
            raise InvalidInputError(f"The folder {self.folder} cannot be used for results: {error}.") from error
        self._read_bytes = 0
        self._read_lines = 0

    # ------------------------------------------------------------------ rows
    @property
    def rows_path(self) -> Path:
        """The file of result rows."""
        return self.folder / ROWS

    def append(self, row: dict[str, Any]) -> None:
        """Add one row; it is on disk when this returns.

        :raises StoreError: it cannot be written; the file is as before.
        """
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with self._writing(), self._locked():
            whole = self._repair()  # another run may have been killed while it wrote
            # unbuffered: a buffer would write what is left of a line when it is closed, behind the truncation
            with self.rows_path.open("ab", buffering=0) as file:
                try:
                    left = memoryview(line)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.rows_path, whole)
                    raise

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, oldest first."""
        return read_rows(self.folder) if self.rows_path.exists() else []

    def new_rows(self) -> list[dict[str, Any]]:
        """Return the rows that were added, by whatever run, since this was last called."""
        if not self.rows_path.exists():
            return []
        with self.rows_path.open("rb") as file:
            file.seek(self._read_bytes)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        found = _parsed(whole, self.rows_path, self._read_lines + 1)
        self._read_bytes += len(whole)
        self._read_lines += len(found)
        return found

    def _repair(self) -> int:
        """Cut off a last line that was not written to its end. Return the length of what is left."""
        if not self.rows_path.exists():
            return 0
        with self.rows_path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            whole = end
            while whole:
                start = max(0, whole - 65536)
                file.seek(start)
                found = file.read(whole - start).rfind(b"\n")
                whole = start + found + 1
                if found >= 0:
                    break
            if whole < end:
                file.truncate(whole)
        return whole

    # ------------------------------------------------------------------ several runs at once
    @contextmanager
    def _locked(self) -> Iterator[None]:
        with FileLock(self._locks / "rows"):
            yield

    def claim(self, name: str) -> Callable[[], None] | None:
        """Claim a task. Return what gives it back, or ``None`` if another run holds it now.

        A claim ends with the process that holds it, however it ends.
        """
        lock = FileLock(self._locks / name, timeout=0)
        try:
            with self._writing():
                lock.acquire()
        except Timeout:
            return None
        return lock.release

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Run a block while no other run or worker is in one of this name; wait until that is so."""
        with FileLock(self._locks / name):
            yield

    def _sweep(self) -> None:
        """Delete what killed runs left half-written; a file that is being written now is younger."""
        for pattern in (f".{PLAN}.*", "models/.*.safetensors.*", "fingerprints/.*.safetensors.*", "facts/.*.json.*"):
            for path in self.folder.glob(pattern):
                with suppress(FileNotFoundError):  # swept by another run
                    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                        path.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Timeout:
            raise
        except OSError as error:
            raise StoreError(
                f"The folder {self.folder} cannot be written to: {error}. What was finished before is kept; when this "
                "is mended, the same command goes on from there."
            ) from error

    # ------------------------------------------------------------------ artefacts
    def save_plan(self, plan: dict[str, Any]) -> None:
        """Keep the plan of the newest run beside its rows."""
        with self._writing():
            write_whole(self.folder / PLAN, json.dumps(plan, indent=2).encode())

    def has_model(self, key: str) -> bool:
        """Tell whether there are weights under a key, sound or not."""
        return (self.models / f"{key}.safetensors").exists()

    def load_model(self, key: str, classifier: PyTorchClassifier) -> dict[str, Any] | None:
        """Put kept weights into a network and return their notes, or ``None`` if there are none or they are damaged."""
        path = self.models / f"{key}.safetensors"
        network = network_of(classifier)
        try:
            with safe_open(path, "pt") as file:
                card = json.loads(file.metadata()["art_fingerprint"])
            network.load_state_dict(load_file(path))
            return dict(card["notes"]) if card["digest"] == network_digest(network) else None
        except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError):
            return None

    def save_model(self, key: str, classifier: PyTorchClassifier, notes: dict[str, Any]) -> None:
        """Keep weights and JSON notes under a key, as a file that ``art-fingerprint verify --weights`` takes, too."""
        card = {"digest": network_digest(network_of(classifier)), "notes": notes}
        with self._writing():
            save_weights(classifier, self.models / f"{key}.safetensors", card)

    def has_fingerprint(self, key: str) -> bool:
        """Tell whether there is a fingerprint file under a key."""
        return (self.fingerprints / f"{key}.safetensors").exists()

    def load_fingerprint(self, key: str) -> Fingerprint | None:
        """Return a kept fingerprint, or ``None`` if there is none or the file is damaged."""
        try:
            return Fingerprint.load(self.fingerprints / f"{key}.safetensors")
        except FingerprintFileError:
            return None

    def save_fingerprint(self, key: str, fingerprint: Fingerprint) -> None:
        """Keep a fingerprint, with its thresholds, under a key."""
        with self._writing():
            fingerprint.save(self.fingerprints / f"{key}.safetensors")

    def load_facts(self, key: str) -> dict[str, Any] | None:
        """Return what was measured on a model, or ``None`` if nothing was or the file is damaged."""
        try:
            card = json.loads((self._facts / f"{key}.json").read_text(encoding="utf-8"))
            return dict(card["facts"]) if card["digest"] == cell_key(**card["facts"]) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save_facts(self, key: str, facts: dict[str, Any]) -> None:
        """Keep what was measured on a model, JSON values, under a key."""
        with self._writing():
            write_whole(self._facts / f"{key}.json", json.dumps({"digest": cell_key(**facts), "facts": facts}).encode())
