"""One folder of a run: append-only rows, and weights and fingerprints under the digest of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.files import write_whole
from art_fingerprint.exceptions import InvalidInputError

ROWS = "rows.jsonl"
# What readers of rows rely on.
KEYS = (
    *("key", "preset", "dataset", "victim", "suspect", "role", "attack", "attack_params", "seed"),
    *("verifier", "verifier_params", "metrics", "derived", "accuracy", "accuracy_drop", "agreement"),
    *("attack_seconds", "verify_seconds", "queries", "status", "reason", "versions", "device"),
)
# What rows of earlier versions lack: `cost` is the attack's account (CostMeter), null where there is none; `robustness`
# is attack name to `Robustness`.
ADDED_KEYS = ("cost", "robustness")


def cell_key(**facts: Any) -> str:
    """Return a digest of everything that can change a result; JSON values only."""
    text = json.dumps(facts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a run's folder, oldest first. A last line that was not written to its end is left out.

    :raises InvalidInputError: there are no rows, or a line is not a JSON object with all of :data:`KEYS`.
    """
    path = Path(folder) / ROWS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"No result rows can be read from {path}: {error}.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"Line {number} of {path} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise InvalidInputError(f"Line {number} of {path} is not a JSON object.")
        missing = [key for key in KEYS if key not in row]
        if missing:
            raise InvalidInputError(f"Line {number} of {path} is not a result row: it has no {', '.join(missing)}.")
        rows.append(row)
    return rows


class Store:
    """A run's folder.

    ``rows.jsonl`` is only ever appended to, one flushed line a cell. Weights lie in ``models/``, fingerprints in
    ``fingerprints/``; files appear whole or not at all.

    :param folder: The folder; made if it is not there.
    :raises InvalidInputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            for part in (self.folder, self.models, self.fingerprints):
                part.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InvalidInputError(f"The folder {self.folder} cannot be used for results: {error}.") from error
        self._repair()

    @property
    def models(self) -> Path:
        """Folder of weights."""
        return self.folder / "models"

    @property
    def fingerprints(self) -> Path:
        """Folder of fingerprint files."""
        return self.folder / "fingerprints"

    @property
    def rows_path(self) -> Path:
        """The file of result rows."""
        return self.folder / ROWS

    def _repair(self) -> None:
        """Cut off a last line that was not written to its end."""
        if self.rows_path.exists():
            content = self.rows_path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with self.rows_path.open("r+b") as file:
                    file.truncate(whole)

    def append(self, row: dict[str, Any]) -> None:
        """Add one row; it is on disk when this returns."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with self.rows_path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, oldest first."""
        return read_rows(self.folder) if self.rows_path.exists() else []

    def load_weights(self, key: str, network: nn.Module) -> dict[str, Any] | None:
        """Put kept weights into ``network``; return their notes, or ``None`` if there are none or the file is
        damaged.
        """
        path = self.models / f"{key}.safetensors"
        notes = path.with_suffix(".json")
        try:
            network.load_state_dict(load_file(path))
            card = json.loads(notes.read_text(encoding="utf-8"))
            return dict(card["notes"]) if card["weights"] == network_digest(network) else None
        except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError):
            return None

    def save_weights(self, key: str, network: nn.Module, notes: dict[str, Any]) -> None:
        """Keep weights and JSON notes under a key."""
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
        path = self.models / f"{key}.safetensors"
        card = json.dumps({"weights": network_digest(network), "notes": notes})
        write_whole(path, save(state))
        write_whole(path.with_suffix(".json"), card.encode())
