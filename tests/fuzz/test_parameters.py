"""Constructor parameters of everything that is exported: taken as they are, or refused by name."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import strategies as st

from art_fingerprint.attacks import RemovalAttack
from art_fingerprint.benchmark.plan import Factory, Plan
from art_fingerprint.benchmark.validation import check_preset
from art_fingerprint.core.adversarial import Evasion, evasion
from art_fingerprint.core.parameters import as_json
from art_fingerprint.verifiers import CommitteeVerifier, IPGuardVerifier, Verifier, ZestVerifier
from art_fingerprint.verifiers.calibration import threshold
from art_fingerprint.zoo.preset import AttackSetting
from art_fingerprint.zoo.recipes import Recipe
from tests.conformance.attack_cases import CASES as ATTACKS
from tests.conformance.attack_cases import Case as AttackCase
from tests.conformance.verifier_cases import CASES as VERIFIERS
from tests.conformance.verifier_cases import Case as VerifierCase
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import Refused, outcome_is_allowed
from tests.fuzz.strategies import near, values
from tests.tiny_preset import tiny
from tests.victims import several_classes

X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
drawn = st.data()


@functools.cache
def victim() -> PyTorchClassifier:
    return several_classes(X)


def defaults(kind: Callable[..., Any]) -> dict[str, Any]:
    """Parameter name to default, without what has none."""
    found = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in found if p.default is not p.empty}


def plain(value: Any) -> Any:
    """A value in a form that compares: JSON, arrays as lists, and what is neither as its identity."""
    if isinstance(value, np.ndarray | torch.Tensor | range | set | frozenset):
        value = list(value) if getattr(value, "ndim", 1) else value.item()
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [(key, plain(item)) for key, item in items]
    if isinstance(value, torch.Tensor | np.generic):
        value = value.item()
    return value if isinstance(value, bool | int | float | str | bytes | None) else id(value)


def is_sound(value: Any) -> bool:
    """Tell whether no number in a value is NaN or infinite: such a one never makes sense."""
    if isinstance(value, dict | list | tuple):
        return all(map(is_sound, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float | np.floating) or math.isfinite(value)


def is_taken_or_refused(
    make: Callable[..., Any], name: str, value: Any, read: Callable[[Any], Any] | None = None
) -> Any:
    """Give one parameter a value: it reads back, or the error names the parameter."""
    found = outcome_is_allowed(lambda: make(**{name: value}), name)
    if not isinstance(found, Refused):
        kept = getattr(found, name) if read is None else read(found)
        assert plain(kept) == plain(value)
        assert is_sound(as_json(kept))
        repr(found)
    return found


def value_for(data: st.DataObject, default: Any) -> Any:
    return data.draw(st.one_of(values, near(default)), label="value")


# ---------------------------------------------------------------------- attacks and verifiers
@pytest.mark.parametrize("case", ATTACKS, ids=[case.name for case in ATTACKS])
@generated(4, 60, data=drawn)
def test_attacks(case: AttackCase, data: st.DataObject) -> None:
    known = {name: value for name, value in defaults(case.attack).items() if name != "summary_writer"}
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    value = value_for(data, case.options.get(name, known[name]))
    is_taken_or_refused(lambda **given: case.make(victim(), **given), name, value)


@pytest.mark.parametrize("case", VERIFIERS, ids=[case.verifier.__name__ for case in VERIFIERS])
@generated(4, 100, data=drawn)
def test_verifiers(case: VerifierCase, data: st.DataObject) -> None:
    known = defaults(case.verifier)
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    value = value_for(data, case.options.get(name, known[name]))
    is_taken_or_refused(lambda **given: case.verifier(victim(), **{**case.options, **given}), name, value)


@functools.cache
def tunable() -> list[Any]:
    """One object of every class, to be changed by set_params."""
    return [
        *(case.make(victim()) for case in ATTACKS),
        *(case.verifier(victim(), **case.options) for case in VERIFIERS),
    ]


@generated(20, 500, data=drawn)
def test_set_params(data: st.DataObject) -> None:
    owner = data.draw(st.sampled_from(tunable()), label="owner")
    known = owner.attack_params if isinstance(owner, RemovalAttack) else owner.verifier_params
    name = data.draw(st.sampled_from([name for name in known if name != "summary_writer"]), label="name")
    before = getattr(owner, name)
    found = outcome_is_allowed(lambda: owner.set_params(**{name: data.draw(values, label="value")}), name)
    assert not isinstance(found, Refused) or getattr(owner, name) is before
    assert is_sound(as_json(getattr(owner, name)))
    owner.set_params(**{name: before})


@generated(10, 150, owner=st.integers(0, 10**6), name=st.text(max_size=12), value=values)
def test_unknown_parameters(owner: int, name: str, value: Any) -> None:
    chosen = tunable()[owner % len(tunable())]
    if name in (chosen.attack_params if isinstance(chosen, RemovalAttack) else chosen.verifier_params):
        return
    assert isinstance(outcome_is_allowed(lambda: chosen.set_params(**{name: value}), name), Refused)
    made = outcome_is_allowed(lambda: type(chosen)(victim(), **{name: value}), name, also=(TypeError,))
    assert isinstance(made, Refused)


@generated(10, 150, kind=st.sampled_from([*ATTACKS, *VERIFIERS]), value=values)
def test_classifiers(kind: Any, value: Any) -> None:
    make = kind.attack if isinstance(kind, AttackCase) else kind.verifier
    if value is None and issubclass(make, Verifier):
        return
    assert isinstance(outcome_is_allowed(lambda: make(value, **kind.options)), Refused)


@generated(5, 150, data=drawn, value=values)
def test_steps_of_a_composite(data: st.DataObject, value: Any) -> None:
    step = data.draw(
        st.sampled_from([("FineTuningAttack", value), (value, {}), ("WeightPruningAttack", {"ratio": value}), value])
    )
    case = next(case for case in ATTACKS if case.name == "CompositeAttack")
    outcome_is_allowed(lambda: case.make(victim(), attacks=(step, step)), "attacks", "ratio", "FineTuningAttack")


@generated(10, 150, data=drawn)
def test_committees(data: st.DataObject) -> None:
    members = [ZestVerifier(victim()), IPGuardVerifier(victim())]
    known = {"members": members, **defaults(CommitteeVerifier)}
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    make = functools.partial(CommitteeVerifier, **({} if name == "members" else {"members": members}))
    value = value_for(data, known[name])
    is_taken_or_refused(make, name, value, (lambda found: list(found.members.values())) if name == "members" else None)


# ---------------------------------------------------------------------- calibration and verdict
@functools.cache
def extracted() -> Verifier:
    verifier = IPGuardVerifier(victim(), nb_probes=5, max_iter=20, margin=0.0)
    verifier.extract(X)
    return verifier


@functools.cache
def references() -> tuple[PyTorchClassifier, ...]:
    return tuple(several_classes(X, seed) for seed in (1, 2))


@generated(10, 200, data=drawn)
def test_calibrate(data: st.DataObject) -> None:
    known = {"references": references(), **defaults(Verifier.calibrate)}
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    rule = data.draw(st.sampled_from(["extreme", "t-pred", "fpr"]), label="rule")
    given = {"references": references(), "rule": rule, "false_positive_rate": 0.5, name: value_for(data, known[name])}
    outcome_is_allowed(lambda: extracted().calibrate(**given), name, name.rstrip("s"), "false-positive rate")


@generated(10, 200, data=drawn)
def test_verify(data: st.DataObject) -> None:
    known = {"suspect": victim(), **defaults(Verifier.verify)}
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    given = {"suspect": victim(), name: value_for(data, known[name])}
    outcome_is_allowed(lambda: extracted().verify(**given), *([] if name == "suspect" else [name]))


@generated(
    20, 200, data=drawn, references=st.lists(st.floats(0, 2) | st.sampled_from([math.nan, math.inf]), max_size=30)
)
def test_thresholds(data: st.DataObject, references: list[float]) -> None:
    name = data.draw(st.sampled_from(["direction", "rule", "alpha", "confidence", "false_positive_rate"]), label="name")
    good = {"direction": "distance", "rule": data.draw(st.sampled_from(["extreme", "t-pred", "fpr", "t-mean"]))}
    given = {**good, name: value_for(data, defaults(threshold).get(name, "distance"))}
    found = outcome_is_allowed(
        lambda: threshold(references, **given), name, "false-positive rate", "reference", "Reference"
    )
    assert isinstance(found, Refused) or math.isfinite(found)


# ---------------------------------------------------------------------- evasion attacks
@generated(20, 300, data=drawn)
def test_evasion(data: st.DataObject) -> None:
    attack = data.draw(st.sampled_from(["FGSM", "PGD", "DeepFool"]), label="attack")
    own = (
        {"nb_candidates": None, **Evasion("DeepFool").params} if attack == "DeepFool" else dict(Evasion(attack).params)
    )
    known = {**own, "eps_space": "pixel", "engine": "auto"}
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    value = value_for(data, known[name])
    found = outcome_is_allowed(lambda: evasion(attack, **{name: value}), name)
    if not isinstance(found, Refused):
        assert plain(found.params.get(name, getattr(found, name, None))) == plain(value)
        assert is_sound(dict(found.params))
    outcome_is_allowed(lambda: Evasion(value))
    outcome_is_allowed(lambda: Evasion(attack, value), "params", "parameter")
    outcome_is_allowed(lambda: evasion(value), "attack")


# ---------------------------------------------------------------------- plans' dataclasses
@generated(20, 200, data=drawn)
def test_recipes(data: st.DataObject) -> None:
    known = {f.name: 1 if f.default is MISSING else f.default for f in fields(Recipe)}
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    make = lambda **given: Recipe(**{"learning_rate": 0.1, "max_iter": 3, **given})  # noqa: E731
    is_taken_or_refused(make, name, value_for(data, known[name]))


@generated(10, 200, data=drawn)
def test_plans(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["presets", "seeds", "preset", "attacks", "verifiers"]), label="name")
    value = value_for(data, {"seeds": (0, 1)}.get(name, ("FT(0.5)",)))
    make = {
        "presets": lambda: Plan(value),
        "seeds": lambda: Plan((tiny(),), value),
        "preset": lambda: Plan.from_preset(value),
    }.get(name, lambda: Plan.from_preset(tiny(), **{name: value}))
    # a plan names what is in it, one of its victims, attacks or verifiers
    outcome_is_allowed(make, name, name.rstrip("s"), "victims", "seed")


@generated(10, 150, data=drawn)
def test_presets(data: st.DataObject) -> None:
    known = vars(tiny())
    name = data.draw(st.sampled_from(sorted(known)), label="name")
    value = value_for(data, known[name])
    preset = outcome_is_allowed(lambda: replace(tiny(), **{name: value}), name)
    if not isinstance(preset, Refused):
        outcome_is_allowed(lambda: check_preset(preset, victim()), name, name.rstrip("s"))


@generated(10, 150, data=drawn)
def test_settings_of_attacks(data: st.DataObject) -> None:
    good = tiny().attacks["FT(0.5)"]
    name = data.draw(st.sampled_from(sorted(f.name for f in fields(AttackSetting))), label="name")
    value = value_for(data, getattr(good, name))
    preset = replace(tiny(), attacks={"FT": replace(good, **{name: value})})
    outcome_is_allowed(lambda: check_preset(preset, victim()), f"`{name}`", name[:5])


@generated(5, 100, name=values, nb_classes=values, channels=values)
def test_factories(name: Any, nb_classes: Any, channels: Any) -> None:
    outcome_is_allowed(lambda: Factory(name, nb_classes, channels)(), "model", "Model")
    outcome_is_allowed(lambda: Factory("tests.tiny_preset:small", nb_classes, channels)(), "nb_classes", "channels")
