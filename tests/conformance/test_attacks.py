"""Every attack of the package, exported or not: its parameters are declared, documented and checked, unasked."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from art_fingerprint import attacks
from art_fingerprint.attacks import RemovalAttack
from art_fingerprint.exceptions import InvalidInputError
from tests.conformance.discovery import concrete_subclasses
from tests.victims import several_classes

ATTACKS = sorted(concrete_subclasses(attacks, RemovalAttack), key=lambda kind: kind.__name__)
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=[kind.__name__ for kind in ATTACKS])
# the names of layers are only known with the data
FREE: dict[str, type] = {"layer": str, "layers": dict}


def parameters(attack: type) -> dict[str, Any]:
    """Return the constructor's parameters and their defaults, without the estimator and ART's summary writer."""
    found = dict(inspect.signature(attack).parameters)
    return {name: p.default for name, p in found.items() if name not in ("classifier", "summary_writer")}


def test_every_attack_is_exported() -> None:
    assert {kind.__name__ for kind in ATTACKS} <= set(attacks.__all__)
    assert all(hasattr(attacks, name) for name in attacks.__all__)


@every_attack
def test_every_parameter_is_listed_and_documented(attack: Any) -> None:
    found = inspect.signature(attack).parameters
    assert sorted(parameters(attack)) == sorted(attack.attack_params)
    assert [name for name in found if name != "classifier" and f":param {name}:" not in attack.__doc__] == []


@every_attack
def test_every_parameter_has_a_default_that_is_kept(attack: Any, images: np.ndarray) -> None:
    made = attack(several_classes(images))
    for name, default in parameters(attack).items():
        assert default is not inspect.Parameter.empty
        assert getattr(made, name) == default, name


@every_attack
def test_nonsense_is_refused_everywhere(attack: Any, images: np.ndarray) -> None:
    victim = several_classes(images)
    made = attack(victim)
    before = made.params()
    for name in attack.attack_params:
        for nonsense in (object(), {"a": 1}, -1.5, "nonsense", float("nan")):
            if name in FREE and isinstance(nonsense, FREE[name]):
                continue
            with pytest.raises(InvalidInputError):
                made.set_params(**{"seed": 3, name: nonsense})
            assert made.params() == before, name
            with pytest.raises(InvalidInputError):
                attack(victim, **{name: nonsense})
