"""Somebody else's attack and verifier pass all checks; each broken one fails the checks meant for it, and no others."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint import testing
from art_fingerprint.core.precision import full_precision
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.testing import AttackCase, Check, VerifierCase, attack_checks, parametrize, verifier_checks
from art_fingerprint.testing.signatures import documentation_of, parameters_of
from art_fingerprint.verifiers import Metric
from tests.conformance.own_classes import OwnAttack, OwnVerifier

ATTACK = AttackCase(OwnAttack, {"batch_size": 16}, zero={"strength": 0.0})
VERIFIER = VerifierCase(OwnVerifier, {"nb_probes": 15, "power": 2.0}, counts=("nb_probes",))


@parametrize([*attack_checks(ATTACK), *verifier_checks(VERIFIER)])
def test_correct_classes_pass(check: Check) -> None:
    check()


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    with full_precision():  # restores both of torch's interfaces; setting the old one leaves a mark in the new one
        yield


def failed(checks: list[Check]) -> set[str]:
    """Return the names of the checks that fail, each on settings that the one before has not changed."""
    found = set()
    for check in checks:
        torch.set_float32_matmul_precision("highest")
        try:
            check()
        except AssertionError as error:
            found.add(check.name if len(str(error)) > 20 else f"{check.name} says nothing")
    return found


# ---------------------------------------------------------------------- broken attacks
Broken = Callable[[Any, Any, Any], Any]  # (attack, x, y) to the surrogate


def generating(act: Broken) -> type[OwnAttack]:
    """Return an attack with another ``generate``."""

    class Changed(OwnAttack):
        def generate(self, x: Any, y: Any = None, **kwargs: Any) -> PyTorchClassifier:
            return act(self, x, y) if not kwargs else super().generate(x, y, **kwargs)

    Changed.__doc__ = OwnAttack.__doc__
    return Changed


def after(act: Callable[[Any, Any, Any], Any]) -> type[OwnAttack]:
    """Return an attack that does something to itself, the surrogate and x when it has finished."""

    def run(attack: Any, x: Any, y: Any) -> PyTorchClassifier:
        surrogate = OwnAttack.generate(attack, x, y)
        act(attack, surrogate, x)
        return surrogate

    return generating(run)


def write_into_victim(attack: Any, _surrogate: Any, _x: Any) -> None:
    with torch.no_grad():
        next(attack.estimator.model.parameters()).add_(1e-3)


def leave_a_hook(attack: Any, _surrogate: Any, _x: Any) -> None:
    attack.estimator.model.register_forward_hook(lambda *_: None)


def share_storage(attack: Any, surrogate: Any, _x: Any) -> None:
    surrogate.model.block1[0].weight.data = attack.estimator.model.block1[0].weight.data


def write_into_x(_attack: Any, _surrogate: Any, x: Any) -> None:
    x[0] = 0


def blame_the_victim(attack: Any, x: Any, y: Any) -> Any:
    try:
        return OwnAttack.generate(attack, x, y)
    except BaseException:
        attack.estimator.model.eval()
        raise


def no_rows(attack: Any, x: Any, y: Any) -> Any:
    if np.ndim(y) == 2 and np.shape(y)[1] > 1 and np.max(y) == 1:
        raise AssertionError("labels must be indices")
    return OwnAttack.generate(attack, x, y)


def float32_only(attack: Any, x: Any, y: Any) -> Any:
    if isinstance(x, np.ndarray) and x.dtype == np.float64:
        raise AssertionError("images must be float32")
    return OwnAttack.generate(attack, x, y)


class IgnoresSeed(OwnAttack):
    __doc__ = OwnAttack.__doc__

    def _noise(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        return self.strength * torch.randn(parameter.shape, generator=torch_generator(0, name))


class RemembersRuns(OwnAttack):
    __doc__ = OwnAttack.__doc__
    runs = 0

    def _noise(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return super()._noise(name, parameter) * (1 + self.runs)


class NeverStill(OwnAttack):
    __doc__ = OwnAttack.__doc__

    def _noise(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        return super()._noise(name, parameter) + 1e-3


class DoesNothing(OwnAttack):
    __doc__ = OwnAttack.__doc__

    def _noise(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(parameter)


class ChangesSettings(OwnAttack):
    __doc__ = OwnAttack.__doc__

    def _noise(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision("high")
        return super()._noise(name, parameter)


class AcceptsNonsense(OwnAttack):
    __doc__ = OwnAttack.__doc__

    def _check_params(self) -> None:
        strength, self.strength = self.strength, 0.0
        try:
            super()._check_params()
        finally:
            self.strength = strength


class Undocumented(OwnAttack):
    """Add noise to all biases."""


class Undeclared(OwnAttack):
    __doc__ = OwnAttack.__doc__
    attack_params = [*OwnAttack.attack_params, "forgotten"]
    forgotten = 1


BROKEN_ATTACKS: dict[str, tuple[type[OwnAttack], set[str]]] = {
    "writes into the victim": (after(write_into_victim), {"victim_keeps_its_weights"}),
    "leaves a hook": (after(leave_a_hook), {"victim_keeps_flags_hooks_and_gradients"}),
    "moves NumPy's random state": (after(lambda *_: np.random.rand()), {"random_state_is_kept"}),  # noqa: NPY002
    "moves torch's random state": (after(lambda *_: torch.rand(1)), {"random_state_is_kept"}),
    "changes torch's settings": (ChangesSettings, {"torch_settings_are_kept"}),
    "writes into x": (after(write_into_x), {"arrays_are_only_read"}),
    "leaves another victim after an error": (generating(blame_the_victim), {"errors_leave_everything_alone"}),
    "returns its victim's weights": (after(share_storage), {"surrogate_is_new"}),
    "returns a network in training mode": (after(lambda _, s, __: s.model.train()), {"surrogate_is_ready"}),
    "forgets clip values": (
        after(lambda _, s, __: s.set_params(clip_values=(0.0, 2.0))),
        {"surrogate_keeps_the_metadata"},
    ),
    "ignores the seed": (IgnoresSeed, {"the_seed_decides"}),
    "remembers former runs": (RemembersRuns, {"one_object_runs_twice"}),
    "is never still": (NeverStill, {"zero_strength_gives_the_victim"}),
    "does nothing": (
        DoesNothing,
        {"surrogate_differs_from_the_victim", "the_seed_decides", "batch_sizes_may_be_odd"},
    ),
    "refuses one-hot labels": (generating(no_rows), {"labels_may_have_any_form"}),
    "refuses float64": (generating(float32_only), {"float64_and_float16_are_converted"}),
    "accepts nonsense": (AcceptsNonsense, {"bad_parameters_are_refused"}),
    "is not documented": (Undocumented, {"parameters_are_documented"}),
    "declares a parameter that it does not take": (Undeclared, {"parameters_are_declared"}),
}


@pytest.mark.parametrize("name", BROKEN_ATTACKS)
def test_broken_attacks_fail_the_check_meant_for_them(name: str) -> None:
    kind, expected = BROKEN_ATTACKS[name]
    assert failed(attack_checks(replace(ATTACK, attack=kind))) == expected


# ---------------------------------------------------------------------- broken verifiers
class MovesRandomState(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def extract(self, x: Any, y: Any = None) -> Any:
        found = super().extract(x, y)
        torch.rand(1)
        return found


class WritesIntoVictim(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def extract(self, x: Any, y: Any = None) -> Any:
        found = super().extract(x, y)
        with torch.no_grad():
            next(self.estimator.model.parameters()).add_(1e-3)  # type: ignore[union-attr]
        return found


class FreezesVictim(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def extract(self, x: Any, y: Any = None) -> Any:
        found = super().extract(x, y)
        self.estimator.model.eval()  # type: ignore[union-attr]
        return found


class HasNoSeed(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def _generator(self) -> torch.Generator:
        return torch_generator(0)


class CountsWrongly(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def _extract(self, victim: Any, x: Any, y: Any) -> Any:
        arrays, facts = super()._extract(victim, x, y)
        return arrays, {"nb_probes": facts["nb_probes"] + 1}


class DecidesTheOtherWay(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def verify(self, suspect: Any, *args: Any, **options: Any) -> Any:
        found = super().verify(suspect, *args, **options)
        return found if found.derived is None else replace(found, derived=not found.derived)


class LosesASetting(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    @classmethod
    def from_fingerprint(cls, fingerprint: Any) -> Any:
        found = super().from_fingerprint(fingerprint)
        found.power = 1.0
        return found


class ClaimsLabels(OwnVerifier):
    __doc__ = OwnVerifier.__doc__
    metrics = (OwnVerifier.metrics[0], Metric("gap", "distance", "labels"))
    suspect_access = "labels"


class ClaimsTooLittle(OwnVerifier):
    __doc__ = OwnVerifier.__doc__
    suspect_access = "labels"


class Guesses(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def verify(self, suspect: Any, *args: Any, **options: Any) -> Any:
        found = super().verify(suspect, *args, **options)
        return replace(found, derived=False) if found.reason == "not calibrated" else found


class WorksWithoutFingerprint(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def score(self, suspect: Any, *args: Any, **options: Any) -> Any:
        return super().score(suspect, *args, **options) if self.fingerprint else {"agreement": 0.0, "gap": 0.0}


class LeavesAHook(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def verify(self, suspect: Any, *args: Any, **options: Any) -> Any:
        found = super().verify(suspect, *args, **options)
        if isinstance(suspect, PyTorchClassifier):
            suspect.model.register_forward_hook(lambda *_: None)
        return found


class SwallowsInterrupts(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def _score(self, suspect: Any, fingerprint: Any) -> Any:
        try:
            return super()._score(suspect, fingerprint)
        except KeyboardInterrupt:
            return {"agreement": 0.0, "gap": 1.0}


class DoublesTheGap(OwnVerifier):
    __doc__ = OwnVerifier.__doc__

    def _score(self, suspect: Any, fingerprint: Any) -> Any:
        found = super()._score(suspect, fingerprint)
        return {"gap": found["gap"] + 0.01}


BROKEN_VERIFIERS: dict[str, tuple[type[OwnVerifier], set[str]]] = {
    "moves torch's random state": (MovesRandomState, {"extraction_keeps_the_random_state"}),
    "writes into the victim": (WritesIntoVictim, {"victim_keeps_its_weights"}),
    "puts the victim into evaluation mode": (FreezesVictim, {"victim_keeps_flags_hooks_and_gradients"}),
    "ignores the seed": (HasNoSeed, {"the_seed_decides"}),
    "counts queries wrongly": (CountsWrongly, {"queries_are_those_declared"}),
    "decides against its direction": (DecidesTheOtherWay, {"decisions_follow_direction_and_threshold"}),
    "loses a setting in the file": (LosesASetting, {"files_give_the_identical_verdict"}),
    "claims to need labels only": (ClaimsLabels, {"label_metrics_need_labels_only"}),
    "claims less access than its metrics need": (ClaimsTooLittle, {"facts_of_the_class_agree"}),
    "guesses": (Guesses, {"uncalibrated_verifiers_do_not_guess"}),
    "scores without a fingerprint": (WorksWithoutFingerprint, {"nothing_works_before_extraction"}),
    "leaves a hook on the suspect": (LeavesAHook, {"suspects_keep_everything"}),
    "swallows Ctrl-C": (SwallowsInterrupts, {"interrupts_pass"}),
    "is no copy of itself": (
        DoublesTheGap,
        {"the_victim_is_its_own_copy", "defences_leave_the_victim_its_own_copy"},
    ),
}


@pytest.mark.parametrize("name", BROKEN_VERIFIERS)
def test_broken_verifiers_fail_the_check_meant_for_them(name: str) -> None:
    kind, expected = BROKEN_VERIFIERS[name]
    assert failed(verifier_checks(replace(VERIFIER, verifier=kind))) == expected


# ---------------------------------------------------------------------- the package itself
def test_pytest_is_loaded_for_nothing_but_parametrize() -> None:
    """No module of the package imports it, only the function that gives a pytest mark."""
    for path in Path(testing.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        allowed: set[ast.AST] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "parametrize":
                allowed.update(ast.walk(node))
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert node in allowed or not any(name.split(".")[0] == "pytest" for name in names), path


def test_names_of_checks_are_unique() -> None:
    for checks in (attack_checks(ATTACK), verifier_checks(VERIFIER)):
        assert len({check.name for check in checks}) == len(checks) > 20


def test_a_refusal_must_be_the_right_one() -> None:
    from art_fingerprint.testing.checks import refused

    with pytest.raises(AssertionError, match="it was accepted"):
        refused(lambda: None, InvalidInputError, "Nothing")
    with pytest.raises(AssertionError, match="must raise InvalidInputError, it raised KeyError"):
        refused(lambda: {}["x"], InvalidInputError, "A lookup")  # type: ignore[index]


def test_parameters_that_are_handed_on_are_found() -> None:
    class Top(OwnVerifier):
        """:param more: Something."""

        def __init__(self, classifier: Any, *, more: int = 1, **options: Any) -> None:
            """:param nb_probes: Something else."""
            super().__init__(classifier, **options)

    class Closed(Top):
        def __init__(self, classifier: Any) -> None:
            super().__init__(classifier)

    assert list(parameters_of(Top)) == ["classifier", "more", *list(parameters_of(OwnVerifier))[1:]]
    assert parameters_of(Top)["nb_probes"].default == 20
    assert ":param more:" in documentation_of(Top)
    assert ":param nb_probes:" in documentation_of(Top)
    assert list(parameters_of(Closed)) == ["classifier"]
