"""What all verifiers of the package have in common beyond the checks of `art_fingerprint.testing`, on tiny victims."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

from art_fingerprint.exceptions import CalibrationError, InvalidInputError, NonFiniteOutputError
from art_fingerprint.testing.verifier_extraction import failing
from art_fingerprint.verifiers import (
    AKHVerifier,
    DatasetInferenceVerifier,
    DeepJudgeVerifier,
    FBIVerifier,
    Fingerprint,
    IPGuardVerifier,
    ModelDiffVerifier,
    RobustnessVerifier,
    SACVerifier,
    Verifier,
    ZestVerifier,
)
from art_fingerprint.verifiers.calibration import Calibration
from tests.conformance.verifier_cases import (
    CASES,
    Case,
    Options,
    X,
    Y,
    every_foreseen_verifier,
    every_query_verifier,
    every_verifier,
    independent,
    soft_box,
    victim,
)
from tests.states import black_box, random_states, state_of


# ---------------------------------------------------------------------- profiles
@every_verifier
@pytest.mark.parametrize("profile", ["paper", "removalnet", "removalnet-legacy"])
def test_profiles(case: Case, profile: str) -> None:
    kind = case.verifier
    named = kind.from_profile(None, profile)
    defaults = kind(None).params()
    assert named.params() == {**defaults, **kind.from_profile(None, profile, **kind.profiles[profile]).params()}
    changed = {name for name, value in named.params().items() if value != defaults[name]}
    assert changed == set(kind.profiles[profile])
    cheap = {n: v for n, v in case.profile.items() if n not in kind.profiles[profile] or isinstance(v, int)}
    verifier = kind.from_profile(victim(), profile, **cheap)
    if profile == "removalnet-legacy" and kind is DeepJudgeVerifier:
        verifier.set_params(layer="block1")  # its columns are the neurons, and block3 has four of them
    if getattr(verifier, "models", None) == "both":  # the published search asks the suspect as well
        fingerprint = verifier.extract_joint(independent(1), X, Y)  # type: ignore[attr-defined]
    else:
        fingerprint = verifier.extract(X, case.y, **case.more)
    assert_extreme(case, verifier, verifier.score(victim()))
    assert_announced(case, verifier.verify(independent(1)).queries, fingerprint)


# ---------------------------------------------------------------------- scores
def assert_announced(case: Case, queries: int, fingerprint: Fingerprint) -> None:
    """As many queries as the fingerprint states, or no more than those."""
    assert queries <= case.queries(fingerprint)
    assert (queries > 0) == bool(case.counts)
    assert case.adaptive or queries == case.queries(fingerprint)


def assert_extreme(case: Case, verifier: Verifier, scores: dict[str, float]) -> None:
    """Similarities are 1, distances 0, within 1e-6 of what an independent model scores where that is more than 1.

    Where a metric has no such end, the victim is nearer to itself than an independent model.
    """
    scale = verifier.score(independent(1))
    for metric in verifier.metrics:
        if not case.extremes:
            nearer = scores[metric.name] - scale[metric.name]
            assert (nearer > 0) is (metric.direction == "similarity"), metric.name
        elif metric.direction == "similarity":
            assert 1 - 1e-6 < scores[metric.name] <= 1, metric.name
        else:
            assert 0 <= scores[metric.name] < 1e-6 * max(1, scale[metric.name]), metric.name


# ---------------------------------------------------------------------- what it costs, said beforehand
@contextmanager
def counted(classifier: PyTorchClassifier) -> Iterator[list[int]]:
    """Count samples that pass the first layer, forward and backward, also where a pass ends at a layer."""
    passed: list[int] = []

    def count(_module: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        passed.append(len(inputs[0]))
        if output.requires_grad:
            output.register_hook(lambda gradient: passed.append(len(gradient)))

    hook = classifier.model.block1[0].register_forward_hook(count)
    try:
        yield passed
    finally:
        hook.remove()


_CHECKS = 10  # samples of checks at the border, which no bound counts
_EXACT: list[tuple[type[Verifier], Options]] = [
    (DeepJudgeVerifier, {"metric_names": ["RobD"], "method": "pgd", "max_iter_attack": 3}),
    (DeepJudgeVerifier, {"metric_names": ["JSD"], "method": "fgsm"}),
    (DeepJudgeVerifier, {"neurons": 3, "multiplier": 1e6, "keep_best": True, "reference": "data"}),
    (DeepJudgeVerifier, {"neurons": (0, 2), "multiplier": 1e6, "keep_best": True, "max_tests_per_neuron": 1}),
    (IPGuardVerifier, {"margin": 1e6}),
    (IPGuardVerifier, {"margin": 1e6, "initial_points": "noise", "nb_probes": 50}),
    (ModelDiffVerifier, {}),
    (ModelDiffVerifier, {"generator": "search", "search_iterations": 30}),
    (ModelDiffVerifier, {"generator": "natural", "nb_pairs": 100}),
    (RobustnessVerifier, {"metric_names": ["RobD-FGSM", "RobD-PGD"]}),
    (RobustnessVerifier, {"metric_names": ["RobD-PGD"], "eps_space": "normalised"}),
    (ZestVerifier, {"nb_masks": 10, "grid_cells": 8}),
    (AKHVerifier, {}),
    (AKHVerifier, {"fill": "low-margin", "min_errors": 100, "nb_probes": 100}),
    (SACVerifier, {}),
    (FBIVerifier, {"symbols": "ranks"}),
    (DatasetInferenceVerifier, {"noise": 1e-9}),
]


@every_foreseen_verifier
def test_extraction_costs_at_most_what_is_said_beforehand(case: Case) -> None:
    for changes in ({}, {"batch_size": 7}):
        owned = victim()
        verifier = case.make(owned, **changes)
        before, drawn = state_of(owned), random_states()
        most, queries = verifier.expected_extraction_passes(len(X)), verifier.expected_queries()
        assert state_of(owned) == before
        assert random_states() == drawn
        assert most is not None
        assert queries is not None
        with counted(owned) as passed:
            fingerprint = verifier.extract(X, case.y, **case.more)
        assert most / 20 <= sum(passed) <= most + _CHECKS
        assert queries >= case.queries(fingerprint) == verifier.expected_queries()
        assert_announced(case, verifier.verify(independent(1)).queries, fingerprint)


@pytest.mark.parametrize(("kind", "changes"), _EXACT, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.filterwarnings("ignore:.*(Only|only|neurons|own margins)")
def test_extraction_that_never_ends_early_costs_the_bound(kind: type[Verifier], changes: Options) -> None:
    owned = victim()
    case = next(case for case in CASES if case.verifier is kind)
    verifier = case.make(owned, **changes)
    most = verifier.expected_extraction_passes(len(X))
    assert most is not None
    with counted(owned) as passed:
        verifier.extract(X, case.y, **case.more)
    # DeepJudge counts on a test from every pair; here a neuron has one
    assert abs(sum(passed) - most) <= _CHECKS


@every_foreseen_verifier
def test_bounds_grow_with_the_images_and_know_what_they_do_not_know(case: Case) -> None:
    verifier = case.make()
    bounds = [verifier.expected_extraction_passes(n) or 0.0 for n in (2, 4, 20, 40, 10_000)]
    assert bounds == sorted(bounds)
    assert 0 < bounds[0] < bounds[2] or not case.counts and bounds[0] == bounds[2] == 1  # where weights are read
    for bad in (0, 2.5, True):
        with pytest.raises(InvalidInputError, match="`nb_images`"):
            verifier.expected_extraction_passes(bad)  # type: ignore[arg-type]
    asked = case.ready()
    for names in (None, [case.verifier.metrics[-1].name]):
        asked.set_params(metric_names=names)
        queries, most = asked.verify(independent(1)).queries, asked.expected_queries()
        assert most is not None
        assert queries == most or case.adaptive and queries < most


def test_what_nobody_can_say_is_none() -> None:
    assert DeepJudgeVerifier(None).expected_queries() is None  # the layer is the victim's
    assert DeepJudgeVerifier(None).expected_extraction_passes(40) is None
    assert DeepJudgeVerifier(None, metric_names=["RobD"]).expected_queries() == 1000
    assert DeepJudgeVerifier(victim(), method="cw").expected_extraction_passes(40) is None
    assert RobustnessVerifier(None).expected_extraction_passes(40) is None
    assert DatasetInferenceVerifier(None, mode="mingd").expected_queries() is None  # targets are the victim's classes
    assert DatasetInferenceVerifier(None, mode="mingd").expected_extraction_passes(40) is None
    for verifier in (IPGuardVerifier(None), ModelDiffVerifier(None), ZestVerifier(None)):
        assert verifier.expected_extraction_passes(40) is not None
        assert verifier.expected_queries() is not None


# ---------------------------------------------------------------------- suspects that fail, budgets that end
@every_query_verifier
def test_budgets_keep_what_is_complete(case: Case) -> None:
    verifier = case.ready()
    verifier.set_params(batch_size=7)
    suspect = independent(1)
    whole = verifier.verify(suspect)
    seen: list[set[str]] = []
    for budget in range(3, whole.queries, 9):
        sent: list[int] = []
        hook = suspect.model.block1.register_forward_pre_hook(lambda _, inputs, sent=sent: sent.append(len(inputs[0])))
        verdict = verifier.verify(suspect, budget=budget)
        hook.remove()
        assert budget - 7 < verdict.queries == sum(sent) <= budget
        assert (verdict.derived, verdict.complete) == (None, False)
        assert f"budget of {budget}" in verdict.reason
        assert verdict.metrics.items() <= whole.metrics.items()
        assert {*verdict.metrics, *verdict.skipped} == {metric.name for metric in verifier.metrics}
        seen.append(set(verdict.metrics))
    assert all(before <= after for before, after in pairwise(seen))
    assert (seen[-1] != set()) is (len(case.counts) > 1)  # families of probes come one after the other
    assert verifier.verify(suspect, budget=whole.queries) == whole


@every_query_verifier
@pytest.mark.parametrize("after", [1, 2])
def test_suspects_that_raise_or_answer_nan_are_undecided(case: Case, after: int) -> None:
    verifier = case.ready()
    verifier.set_params(batch_size=5)
    suspect = independent(1)
    with failing(suspect, after):
        raised = verifier.verify(suspect)
    assert "RuntimeError" in raised.reason
    assert "half-way" in raised.reason
    calls = iter(range(99))

    def answer(x: np.ndarray) -> np.ndarray:
        return suspect.predict(x) * (np.nan if next(calls) == after - 1 else 1)

    service = BlackBoxClassifierNeuralNetwork(answer, (1, 8, 8), 4)
    for verdict in (raised, verifier.verify(service)):
        assert (verdict.derived, verdict.complete) == (None, False)
        assert verdict.queries == 5 * after
        assert dict(verdict.metrics) == {}
        assert verdict.reason in repr(verdict)
    calls = iter(range(99))
    with pytest.raises(NonFiniteOutputError, match="5 of 5"):
        verifier.score(service)


def in_two_spaces(case: Case) -> list[str]:
    """Return the metrics that can be compared as logits or as probabilities."""
    two = "space" in case.verifier.verifier_params
    return [m.name for m in case.verifier.metrics if two and m.access == "scores"]


@every_query_verifier
@pytest.mark.filterwarnings("ignore:.*compared as probabilities")
def test_references_that_give_logits_set_thresholds_for_probabilities_too(case: Case) -> None:
    verifier, soft = case.ready(), case.ready()
    if in_two_spaces(case):
        soft.set_params(space="probabilities")
    models = [independent(seed) for seed in (11, 12, 13, 14, 15)]
    soft.calibrate([soft_box(model) for model in models])
    for suspect in (independent(1), victim()):
        verdict, plain = verifier.verify(soft_box(suspect)), verifier.verify(black_box(suspect))
        expected = soft.verify(soft_box(suspect))
        for name, result in verdict.metrics.items():
            assert result.space == ("probabilities" if name in in_two_spaces(case) else "")
            assert plain[name].space == ("logits" if name in in_two_spaces(case) else "")
            assert result.value == pytest.approx(expected[name].value, abs=1e-4)
            assert result.threshold == pytest.approx(expected[name].threshold, abs=1e-4)
            assert verdict.references[name] == pytest.approx(expected.references[name], abs=1e-4)
            assert (result.derived, result.p_value) == (expected[name].derived, expected[name].p_value)
            assert (result.threshold == plain[name].threshold) is (name not in in_two_spaces(case))
        assert verdict.queries == plain.queries


@every_query_verifier
@pytest.mark.filterwarnings("ignore:.*compared as probabilities")
def test_references_of_both_kinds_are_compared_as_probabilities(case: Case) -> None:
    verifier = case.ready()
    models = [independent(seed) for seed in (11, 12, 13)]
    sent: list[int] = []
    models[0].model.block1.register_forward_pre_hook(lambda _, inputs: sent.append(len(inputs[0])))
    verifier.set_params(metric_names=[m.name for m in case.verifier.metrics if m.access != "layers"])
    verifier.calibrate([models[0], soft_box(models[1]), models[2]])
    verdict = verifier.verify(victim())
    assert sum(sent) == verdict.queries
    assert verdict.derived is True
    assert verdict.derived == verifier.verify(soft_box(victim())).derived
    soft = verifier.verify(soft_box(independent(1)))
    for name, result in verifier.verify(independent(1)).metrics.items():
        assert result.space == ("probabilities" if name in in_two_spaces(case) else "")
        assert result.value == pytest.approx(soft[name].value, abs=1e-4)
        assert result.threshold == soft[name].threshold


@every_query_verifier
@pytest.mark.filterwarnings("ignore:.*compared as probabilities")
def test_thresholds_of_another_space_decide_nothing(case: Case) -> None:
    verifier = case.ready()
    fingerprint = verifier.fingerprint
    assert fingerprint is not None
    assert fingerprint.calibration is not None
    data = fingerprint.calibration.to_dict()
    del data["softened"]  # as in files of the first version
    fingerprint.calibration = Calibration.from_dict(data)
    verdict = verifier.verify(soft_box(independent(1)))
    undecided = [name for name, result in verdict.metrics.items() if result.derived is None]
    assert undecided == in_two_spaces(case)
    for name in undecided:
        assert (verdict[name].threshold, verdict[name].p_value) == (None, None)
        assert "thresholds come from logits" in verdict[name].reason
        assert name in verdict.reason or verdict.derived is not None  # other metrics decided
        assert verdict[name].reason in repr(verdict)
        assert name not in verdict.references


@every_verifier
def test_references_are_no_suspects(case: Case) -> None:
    verifier = case.ready()
    with pytest.raises(CalibrationError, match="allow_reference"):
        verifier.verify(independent(13))
    verdict = verifier.verify(independent(13), allow_reference=True)
    assert verdict.derived is False
    assert {name: scores[2] for name, scores in verdict.references.items()} == pytest.approx(
        {name: result.value for name, result in verdict.metrics.items()}
    )
    with pytest.raises(CalibrationError, match="victim itself"):
        verifier.calibrate([independent(11), victim()])
