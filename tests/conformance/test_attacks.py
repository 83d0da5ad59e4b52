"""Every attack of the package, exported or not: its parameters are declared, documented and checked, unasked."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from art_fingerprint import attacks
from art_fingerprint.exceptions import InvalidInputError
from tests.conformance.attack_cases import ATTACKS, OPTIONS, every_class, parameters
from tests.victims import several_classes

# the names of layers are only known with the data
FREE: dict[str, type] = {"layer": str, "layers": dict, "student_layers": dict}


def test_every_attack_is_exported() -> None:
    assert {kind.__name__ for kind in ATTACKS} <= set(attacks.__all__)
    assert all(hasattr(attacks, name) for name in attacks.__all__)
    assert set(OPTIONS) <= {kind.__name__ for kind in ATTACKS}


@every_class
def test_every_parameter_is_listed_and_documented(attack: Any) -> None:
    found = inspect.signature(attack).parameters
    assert sorted(parameters(attack)) == sorted(attack.attack_params)
    assert [name for name in found if name != "classifier" and f":param {name}:" not in attack.__doc__] == []


@every_class
def test_every_parameter_has_a_default_that_is_kept_and_shown(attack: Any, images: np.ndarray) -> None:
    made = attack(several_classes(images))
    text = repr(made)
    assert text.startswith(f"{attack.__name__}(")
    for name, default in parameters(attack).items():
        assert default is not inspect.Parameter.empty
        assert getattr(made, name) == default, name
        assert f"{name}=" in text


@every_class
def test_nonsense_is_refused_everywhere(attack: Any, images: np.ndarray) -> None:
    victim = several_classes(images)
    made = attack(victim)
    before = made.params()
    for name in attack.attack_params:
        for nonsense in (object(), {"a": 1}, -1.5, "nonsense", float("nan")):
            if name in FREE and isinstance(nonsense, FREE[name]):
                continue
            with pytest.raises(InvalidInputError, match=f"`{name}`"):
                made.set_params(**{"seed": 3, name: nonsense})
            assert made.params() == before, name
            with pytest.raises(InvalidInputError, match=f"`{name}`"):
                attack(victim, **{name: nonsense})


@every_class
def test_set_params_changes_all_or_nothing(attack: Any, images: np.ndarray) -> None:
    made = attack(several_classes(images))
    made.set_params(batch_size=7, seed=3)
    assert (made.batch_size, made.seed) == (7, 3)
    before = repr(made)
    for bad in (
        {"batch_size": 9, "seed": -1},
        {"batch_size": 9, "nonsense": 1},
        {"seed": 9, "batch_size": 0},
        {"seed": True},
        {"hflip": 1},
        {"callback_interval": 2.5},
    ):
        with pytest.raises(InvalidInputError):
            made.set_params(**bad)
        assert repr(made) == before
    with pytest.raises(InvalidInputError, match="no parameter nonsense; it has .*batch_size"):
        made.set_params(nonsense=1)
