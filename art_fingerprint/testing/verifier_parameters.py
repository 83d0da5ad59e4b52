"""Checks of a verifier's class and parameters: facts, declared, documented, kept, shown, nonsense refused."""

from __future__ import annotations

from art.exceptions import EstimatorError

from art_fingerprint.core.parameters import as_json
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.testing.checks import expect, refused
from art_fingerprint.testing.nonsense import NONSENSE
from art_fingerprint.testing.signatures import documentation_of, parameters_of
from art_fingerprint.testing.suspects import black_box
from art_fingerprint.testing.verifier_case import VerifierCase

_LEVELS = ("labels", "scores", "layers", "gradients")


def facts_of_the_class_agree(case: VerifierCase) -> None:
    """Metrics have names of their own, known directions, and the access that the class says it needs."""
    kind = case.verifier
    names = [metric.name for metric in kind.metrics]
    expect(names and len(set(names)) == len(names), f"The metrics must have different names, got {names}.")
    expect(not set(names) & set(kind.extras), f"Metrics and extras share names: {names}, {kind.extras}.")
    for metric in kind.metrics:
        expect(metric.direction in ("distance", "similarity"), f"{metric.name} has direction {metric.direction!r}.")
        expect(metric.access in _LEVELS, f"{metric.name} has access {metric.access!r}, not one of {_LEVELS}.")
    expect(kind.source_access in _LEVELS, f"source_access is {kind.source_access!r}, not one of {_LEVELS}.")
    most = max((metric.access for metric in kind.metrics), key=_LEVELS.index)
    expect(kind.suspect_access == most, f"suspect_access is {kind.suspect_access!r}, its metrics need {most!r}.")
    expect(kind.profiles.get("paper") == {}, "profiles must have 'paper', the defaults: {}.")


def parameters_are_declared(case: VerifierCase) -> None:
    """``verifier_params`` has the names of the constructor's parameters; each is keyword-only and has a default."""
    declared, found = sorted(case.verifier.verifier_params), sorted(case.parameters)
    expect(declared == found, f"verifier_params is {declared}, but the constructor takes {found}.")
    for name, parameter in parameters_of(case.verifier).items():
        if name != "classifier":
            expect(parameter.kind is parameter.KEYWORD_ONLY, f"{name} must be keyword-only.")
            expect(parameter.default is not parameter.empty, f"{name} has no default.")


def parameters_are_documented(case: VerifierCase) -> None:
    """The docstring of the class, or of its constructor, has a ``:param name:`` for each parameter."""
    text = documentation_of(case.verifier)
    missing = [name for name in ("classifier", *case.parameters) if f":param {name}:" not in text]
    expect(not missing, f"These parameters have no ':param name:' in the docstring: {missing}.")


def parameters_are_kept_and_shown(case: VerifierCase) -> None:
    """Each parameter is an attribute of its own name, and ``repr`` shows all of them."""
    for options in ({}, dict(case.options)):
        made = case.verifier(None, **options)
        text = repr(made)
        expect(text.startswith(f"{case.verifier.__name__}("), f"repr must begin with the name of the class: {text}")
        for name, default in case.parameters.items():
            wanted, kept = options.get(name, default), getattr(made, name)
            expect(kept == wanted or as_json(kept) == as_json(wanted), f"{name}={wanted!r} was kept as {kept!r}.")
            expect(f"{name}={kept!r}" in text, f"repr does not show {name}={kept!r}: {text}")


def bad_parameters_are_refused(case: VerifierCase) -> None:
    """Nonsense raises ``InvalidInputError``, and ``set_params`` then changes nothing."""
    verifier = case.make()
    before = verifier.params()
    for name in case.parameters:
        for value in NONSENSE:
            if isinstance(value, case.free.get(name, ())):
                continue
            what = f"{name}={value!r}"
            refused(lambda n=name, v=value: verifier.set_params(**{"seed": 3, n: v}), InvalidInputError, what)  # type: ignore[misc]
            expect(verifier.params() == before, f"set_params(seed=3, {what}) was refused, but has changed something.")
            refused(lambda n=name, v=value: case.verifier(None, **{n: v}), InvalidInputError, what)  # type: ignore[misc]


def set_params_makes_a_round_trip(case: VerifierCase) -> None:
    """``set_params(**params())`` gives the same parameters, also to another object, and unknown names are refused."""
    made, other = case.make(seed=11), case.verifier(None)
    wanted = made.params()
    expect(sorted(wanted) == sorted(case.parameters), f"params() has {sorted(wanted)}, not all parameters.")
    for verifier in (made, other):
        verifier.set_params(**wanted)
        expect(verifier.params() == wanted, f"set_params({wanted}) gave {verifier.params()}.")
    refused(lambda: made.set_params(nonsense=1), InvalidInputError, "set_params(nonsense=1)", "nonsense")
    made.set_params(seed=5, batch_size=3)
    expect(
        made.params() == {**wanted, "seed": 5, "batch_size": 3}, "set_params(seed=5, batch_size=3) did more or less."
    )


def wrong_estimators_are_refused(case: VerifierCase) -> None:
    """A victim that is no ``PyTorchClassifier``, and a suspect or reference that is no classifier at all."""
    victim = case.victim()
    for wrong in ("victim", 3, victim.model, black_box(victim)):
        refused(lambda w=wrong: case.verifier(w), EstimatorError, f"A victim of type {type(wrong).__name__}")  # type: ignore[misc]
    verifier = case.ready()
    for wrong in ("suspect", None, 3, victim.model):
        what = f"A suspect of type {type(wrong).__name__}"
        refused(lambda w=wrong: verifier.verify(w), EstimatorError, what)  # type: ignore[misc]
        refused(lambda w=wrong: verifier.calibrate([case.independent(11), w]), EstimatorError, what)  # type: ignore[misc]


CHECKS = (
    facts_of_the_class_agree,
    parameters_are_declared,
    parameters_are_documented,
    parameters_are_kept_and_shown,
    bad_parameters_are_refused,
    set_params_makes_a_round_trip,
    wrong_estimators_are_refused,
)
