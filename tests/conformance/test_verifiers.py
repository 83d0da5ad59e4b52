"""Every verifier of the package, exported or not, goes through all checks; none is left out unnoticed."""

from __future__ import annotations

from pathlib import Path

import art_fingerprint
from art_fingerprint import verifiers
from art_fingerprint.testing import Check, concrete_subclasses, parametrize, verifier_checks, without_a_page
from art_fingerprint.verifiers import CommitteeVerifier, Verifier
from tests.conformance.verifier_cases import CASES

DOCS = Path(__file__).parents[2] / "docs"
VERIFIERS = concrete_subclasses(verifiers, Verifier)
# Exported under such a name without being a Verifier, with the reason why it has tests of its own.
OTHERS = {CommitteeVerifier: "is made of verifiers, extracts nothing; tests/unit/test_committee.py"}
NAMES = sorted(kind.__name__ for kind in (*VERIFIERS, *OTHERS))


def test_every_verifier_is_exported() -> None:
    assert set(NAMES) <= set(verifiers.__all__)
    assert set(NAMES) <= set(art_fingerprint.__all__)
    assert all(hasattr(verifiers, name) for name in verifiers.__all__)


def test_every_verifier_has_a_case() -> None:
    assert {case.verifier for case in CASES} == VERIFIERS
    named = {getattr(verifiers, name) for name in verifiers.__all__ if name.endswith("Verifier")}
    assert named - {Verifier} == {*VERIFIERS, *OTHERS}


def test_every_verifier_has_a_page() -> None:
    assert without_a_page(NAMES, DOCS) == []


def test_every_verifier_has_the_three_profiles() -> None:
    assert all({"paper", "removalnet", "removalnet-legacy"} <= set(kind.profiles) for kind in VERIFIERS)


@parametrize([check for case in CASES for check in verifier_checks(case)])
def test_verifier(check: Check) -> None:
    check()
