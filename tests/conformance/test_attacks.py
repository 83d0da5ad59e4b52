"""Every attack of the package, exported or not, goes through all checks; none is left out unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

import art_fingerprint
from art_fingerprint import attacks
from art_fingerprint.testing import Check, attack_checks, parametrize, without_a_page
from tests.conformance.attack_cases import ATTACKS, CASES, NEED_LABELS, OPTIONS, ZERO, conformance

DOCS = Path(__file__).parents[2] / "docs"
NAMES = [kind.__name__ for kind in ATTACKS]


def test_every_attack_is_exported() -> None:
    assert set(NAMES) <= set(attacks.__all__)
    assert set(NAMES) <= set(art_fingerprint.__all__)
    assert all(hasattr(attacks, name) for name in attacks.__all__)


def test_every_attack_has_a_case() -> None:
    assert sorted(OPTIONS) == NAMES
    assert {*ZERO, *NEED_LABELS} <= {case.name for case in CASES}


def test_every_attack_has_a_page() -> None:
    assert without_a_page(NAMES, DOCS) == []


@pytest.mark.filterwarnings("error::UserWarning")
@parametrize([check for case in CASES for check in attack_checks(conformance(case))])
def test_attack(check: Check) -> None:
    check()
