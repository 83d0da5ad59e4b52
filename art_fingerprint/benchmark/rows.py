"""What a result row may hold: checked when rows are read, so that whoever makes tables of them can rely on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_seed, shown
from art_fingerprint.exceptions import InvalidInputError

# What readers of rows rely on.
KEYS = (
    *("key", "preset", "dataset", "victim", "suspect", "role", "attack", "attack_params", "seed"),
    *("verifier", "verifier_params", "metrics", "derived", "accuracy", "accuracy_drop", "agreement"),
    *("attack_seconds", "verify_seconds", "queries", "status", "reason", "versions", "device"),
)
# What rows of earlier versions lack: `cost` is the attack's account (CostMeter), null where there is none; `robustness`
# is attack name to `Robustness`; `model` and `fingerprint` name files of the folder; `traceback` is that of a failure;
# `data` is the data set's digest, `finished_seconds` the Unix time at which the row was known; `scale` is "smoke" where
# numbers are no results, else "full".
ADDED_KEYS = ("cost", "robustness", "model", "fingerprint", "traceback", "data", "finished_seconds", "scale")
#: What a row says about its cell: done, impossible by nature (with the reason), or failed (with the error).
STATUSES = ("ok", "skipped", "failed")
ROLES = ("victim", "surrogate", "negative", "reference")
_TEXTS = ("key", "preset", "dataset", "victim", "suspect", "verifier", "device")
_TEXTS_OR_NONE = ("attack", "reason", "model", "fingerprint", "traceback", "data", "scale")
_MAPPINGS = ("attack_params", "verifier_params", "metrics", "versions")
_NUMBERS = ("accuracy", "accuracy_drop", "agreement", "attack_seconds", "verify_seconds", "queries")
# Beyond it means and deviations are no floats any more.
_LARGEST = 1e100
_LAST_SECOND = 253_402_300_799.0  # of the year 9999: later times are no dates


def check_row(row: object) -> None:
    """Raise unless a value is a result row. It may have further keys.

    :raises InvalidInputError: the message names the key.
    """
    if not isinstance(row, dict):
        raise InvalidInputError("it is not a JSON object")
    missing = [key for key in KEYS if key not in row]
    if missing:
        raise InvalidInputError(f"it is not a result row: it has no {', '.join(missing)}")
    for name in _TEXTS:
        _check_text(name, row[name])
    for name in _TEXTS_OR_NONE:
        if row.get(name) is not None:
            _check_text(name, row[name])
    for name in _MAPPINGS:
        _check_mapping(name, row[name])
    for name in _NUMBERS:
        _check_measured(name, row[name])
    if row.get("finished_seconds") is not None:
        check_number("finished_seconds", row["finished_seconds"], 0, _LAST_SECOND)
    check_choice("role", row["role"], ROLES)
    check_choice("status", row["status"], STATUSES)
    check_seed(row["seed"])
    _check_flag("derived", row["derived"])
    for name, result in row["metrics"].items():
        _check_metric(name, result)
    if row.get("cost") is not None:
        _check_mapping("cost", row["cost"])
    if row.get("robustness") is not None:
        _check_mapping("robustness", row["robustness"])
        for name, found in row["robustness"].items():
            _check_mapping(f"robustness under {name}", found)
            for key in ("accuracy", "undecided"):
                check_number(f"{key} under {name}", found.get(key), 0, 1)
            _check_measured(f"median_l2 under {name}", found.get("median_l2"))


def _check_metric(name: str, result: Any) -> None:
    _check_mapping(f"metric {name}", result)
    for key in ("value", "threshold", "p_value"):
        _check_measured(f"{key} of {name}", result.get(key))
    check_choice(f"direction of {name}", result.get("direction"), ("distance", "similarity"))
    _check_flag(f"derived of {name}", result.get("derived"))
    if result.get("space") is not None:
        _check_text(f"space of {name}", result["space"])
    missing = [key for key in ("value", "threshold", "derived") if key not in result]
    if missing:
        raise InvalidInputError(f"metric {name} has no {', '.join(missing)}")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidInputError(f"`{name}` must be a text, got {shown(value)}")


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"`{name}` must be a JSON object, got {shown(value)}")


def _check_measured(name: str, value: object) -> None:
    if value is not None:
        check_number(name, value, -_LARGEST, _LARGEST)


def _check_flag(name: str, value: object) -> None:
    if value is not None:
        check_flag(name, value)
