"""Same seed, same bits on the CPU: here and in two other processes, whatever the order of hashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from art_fingerprint.testing.state import changes, random_state, torch_settings
from tests.conformance.attack_cases import CASES as ATTACKS
from tests.conformance.digests import digests
from tests.conformance.verifier_cases import CASES as VERIFIERS


def elsewhere(hash_seed: str) -> dict[str, Any]:
    """Return what another process prints."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.conformance.digests"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_processes_make_the_same_bits_and_change_nothing_of_the_callers() -> None:
    before = {**random_state(), **torch_settings()}
    here = digests()
    assert changes(before, {**random_state(), **torch_settings()}) == []
    assert len(here) == len(ATTACKS) + len(VERIFIERS)
    for hash_seed in ("1", "2"):
        there = elsewhere(hash_seed)
        assert changes(here, there["digests"]) == []
        assert there["changed"] == []
