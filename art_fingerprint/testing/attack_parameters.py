"""Checks of an attack's parameters: declared, documented, kept, shown, and refused if they are nonsense."""

from __future__ import annotations

import inspect

from art.estimators.classification import BlackBoxClassifierNeuralNetwork
from art.exceptions import EstimatorError

from art_fingerprint.core.parameters import as_json
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.testing.attack_case import AttackCase
from art_fingerprint.testing.checks import expect, refused
from art_fingerprint.testing.nonsense import NONSENSE
from art_fingerprint.testing.signatures import documentation_of, parameters_of


def parameters_are_declared(case: AttackCase) -> None:
    """``attack_params`` has the names of the constructor's parameters, and each has a default."""
    declared, found = sorted(case.attack.attack_params), sorted(case.parameters)
    expect(declared == found, f"attack_params is {declared}, but the constructor takes {found}.")
    missing = [name for name, default in case.parameters.items() if default is inspect.Parameter.empty]
    expect(not missing, f"These parameters have no default: {missing}.")


def parameters_are_documented(case: AttackCase) -> None:
    """The docstring of the class, or of its constructor, has a ``:param name:`` for each parameter."""
    text = documentation_of(case.attack)
    names = [name for name in parameters_of(case.attack) if name != "classifier"]
    missing = [name for name in names if f":param {name}:" not in text]
    expect(not missing, f"These parameters have no ':param name:' in the docstring: {missing}.")


def parameters_are_kept_and_shown(case: AttackCase) -> None:
    """Each parameter is an attribute of its own name, and ``repr`` shows all of them."""
    for options in ({}, dict(case.options)):
        made = case.attack(case.victim(), **options)
        text = repr(made)
        expect(text.startswith(f"{case.attack.__name__}("), f"repr must begin with the name of the class: {text}")
        for name, default in case.parameters.items():
            wanted, kept = options.get(name, default), getattr(made, name)
            expect(kept == wanted or as_json(kept) == as_json(wanted), f"{name}={wanted!r} was kept as {kept!r}.")
            expect(f"{name}=" in text, f"repr does not show {name!r}: {text}")


def bad_parameters_are_refused(case: AttackCase) -> None:
    """Nonsense raises ``InvalidInputError`` that names the parameter, and ``set_params`` then changes nothing."""
    victim = case.victim()
    made = case.attack(victim)
    before = repr(made)
    for name in case.parameters:
        for value in NONSENSE:
            if isinstance(value, case.free.get(name, ())):
                continue
            what = f"{name}={value!r}"
            refused(lambda n=name, v=value: made.set_params(**{"seed": 3, n: v}), InvalidInputError, what, f"`{name}`")  # type: ignore[misc]
            expect(repr(made) == before, f"set_params(seed=3, {what}) was refused, but has changed {before} to {made}")
            refused(lambda n=name, v=value: case.attack(victim, **{n: v}), InvalidInputError, what, f"`{name}`")  # type: ignore[misc]


def set_params_makes_a_round_trip(case: AttackCase) -> None:
    """``set_params(**params())`` gives the same parameters, also to another object, and unknown names are refused."""
    made, other = case.make(seed=11), case.attack(case.victim())
    wanted = made.params()
    values = {name: getattr(made, name) for name in case.parameters if name not in wanted}
    missing = [name for name, value in values.items() if value is not None and not callable(value)]
    expect(not missing, f"params() leaves out {missing}.")  # callables, and models in place of None, are no JSON
    for attack in (made, other):
        attack.set_params(**wanted)
        expect(attack.params() == wanted, f"set_params({wanted}) gave {attack.params()}.")
    refused(lambda: made.set_params(nonsense=1), InvalidInputError, "set_params(nonsense=1)", "nonsense")
    refused(lambda: made.set_params(batch_size=9, seed=-1), InvalidInputError, "set_params(batch_size=9, seed=-1)")
    expect(made.params() == wanted, "set_params changed something although it was refused: all or nothing.")


def wrong_estimators_are_refused(case: AttackCase) -> None:
    """Whatever is no ``PyTorchClassifier`` raises ART's ``EstimatorError``."""
    victim = case.victim()
    service = BlackBoxClassifierNeuralNetwork(victim.predict, victim.input_shape, victim.nb_classes)
    for wrong in (service, victim.model, None, "victim"):
        refused(lambda w=wrong: case.attack(w), EstimatorError, f"An estimator of type {type(wrong).__name__}")  # type: ignore[misc]


CHECKS = (
    parameters_are_declared,
    parameters_are_documented,
    parameters_are_kept_and_shown,
    bad_parameters_are_refused,
    set_params_makes_a_round_trip,
    wrong_estimators_are_refused,
)
