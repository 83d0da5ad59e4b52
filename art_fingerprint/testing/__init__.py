"""The checks that every attack and verifier of this package goes through, for your own as well.

Each check is a small call with a name that raises ``AssertionError`` with a message; any test runner can use them::

    from art_fingerprint.testing import AttackCase, VerifierCase, attack_checks, verifier_checks, parametrize

    @parametrize(attack_checks(AttackCase(MyAttack, {"max_iter": 2})))
    def test_my_attack(check):
        check()

A case comes with a victim, images and reference models that are small enough to try everything on them; give your own
where your class needs others. pytest is only needed for :func:`parametrize`.
"""

from collections.abc import Callable

from art_fingerprint.testing import (
    attack_parameters,
    attack_runs,
    verifier_extraction,
    verifier_parameters,
    verifier_verdicts,
)
from art_fingerprint.testing.attack_case import AttackCase
from art_fingerprint.testing.checks import Check, checks_of, parametrize
from art_fingerprint.testing.discovery import concrete_subclasses, without_a_page
from art_fingerprint.testing.models import TinyCNN, independent_classifier, tiny_classifier, tiny_images
from art_fingerprint.testing.suspects import HOSTILE, HostileSuspect, black_box, label_box
from art_fingerprint.testing.verifier_case import VerifierCase

__all__ = [
    "HOSTILE",
    "AttackCase",
    "Check",
    "HostileSuspect",
    "TinyCNN",
    "VerifierCase",
    "attack_checks",
    "black_box",
    "concrete_subclasses",
    "independent_classifier",
    "label_box",
    "parametrize",
    "tiny_classifier",
    "tiny_images",
    "verifier_checks",
    "without_a_page",
]


def attack_checks(case: AttackCase) -> list[Check]:
    """Return all checks of an attack."""
    return checks_of(case, _named(attack_parameters.CHECKS, attack_runs.CHECKS))


def verifier_checks(case: VerifierCase) -> list[Check]:
    """Return all checks of a verifier; those of hostile suspects only if it can judge one that answers queries."""
    found = _named(verifier_parameters.CHECKS, verifier_extraction.CHECKS, verifier_verdicts.CHECKS)
    return checks_of(case, {**found, **(verifier_verdicts.hostile_checks(case) if case.asks else {})})


def _named(*groups: tuple[Callable[..., None], ...]) -> dict[str, Callable[..., None]]:
    return {function.__name__: function for group in groups for function in group}
