"""Every exported verifier goes through every check. A new one needs one row in ``CASES``."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from art.exceptions import EstimatorError

from art_fingerprint import verifiers
from art_fingerprint.core.digests import array_digest
from art_fingerprint.exceptions import (
    CalibrationError,
    FingerprintError,
    InvalidInputError,
    NonFiniteOutputError,
    NotExtractedError,
)
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
    WeightAlignmentVerifier,
    ZestVerifier,
)
from art_fingerprint.verifiers.calibration import Calibration
from tests.conformance.discovery import concrete_subclasses
from tests.states import black_box, label_box, mark, random_states, state_of
from tests.victims import several_classes

Options = dict[str, Any]

# what the paper's parameters are cut down to, so that a network of three layers gives a fingerprint in a blink
_FEW_PROBES: Options = {"nb_seeds_whitebox": 3, "max_iter": 40}


X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
Y = np.arange(40) % 4
# Labels that the victim, which has learned Y by heart, gets wrong on every third image.
Y_WRONG = np.where(np.arange(40) % 3 == 0, (Y + 1 + np.arange(40) // 12) % 4, Y)
X_OTHER = np.random.default_rng(2).random((40, 1, 8, 8), dtype=np.float32)
X_UNSEEN = np.random.default_rng(1).random((40, 1, 8, 8), dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """One verifier: cheap parameters, and the samples that its fingerprint says it will send; one that sends none reads
    the weights.

    :ivar y: Labels for extraction.
    :ivar more: Further arguments of extraction.
    :ivar extremes: Whether the victim itself has similarity 1 or distance 0.
    :ivar adaptive: Whether the number of queries depends on the answers; the fingerprint then says how many at most.
    """

    verifier: type[Verifier]
    options: Options
    counts: tuple[str, ...]
    profile: Options
    times: int = 1
    y: np.ndarray = field(default_factory=lambda: Y)
    more: Options = field(default_factory=dict)
    extremes: bool = True
    adaptive: bool = False

    def probes(self, fingerprint: Fingerprint) -> int:
        """Return the queries that the fingerprint's facts announce."""
        return self.times * sum(int(fingerprint.facts[name]) for name in self.counts)


_WALKS: Options = {"nb_fit": 20, "nb_test": 10, "nb_draws": 1, "max_steps": 8, "noise": 20.0, "nb_epochs": 100}

CASES = [
    Case(
        AKHVerifier,
        {"nb_probes": 10, "fill": "none"},
        counts=("nb_probes",),
        profile={"nb_probes": 12},
        y=Y_WRONG,
    ),
    Case(
        DatasetInferenceVerifier,
        _WALKS,
        counts=("nb_queries",),
        profile=_WALKS,
        more={"x_unseen": X_UNSEEN, "y_unseen": Y},
        extremes=False,
        adaptive=True,
    ),
    Case(
        DeepJudgeVerifier,
        {"nb_seeds": 30, "radius": 0.3, "multiplier": 1.2, "learning_rate": 0.05, "layer": "block2", **_FEW_PROBES},
        counts=("nb_examples", "nb_tests"),
        profile={**_FEW_PROBES, "radius": 0.3, "multiplier": 1.2},
    ),
    Case(
        FBIVerifier,
        {"nb_probes": 20},
        counts=("nb_probes",),
        profile={"nb_probes": 20},
        y=Y_WRONG,
    ),
    Case(
        IPGuardVerifier,
        {"nb_probes": 15, "margin": 0.5, "learning_rate": 0.02, "max_iter": 40},
        counts=("nb_probes",),
        profile={"nb_probes": 15, "margin": 0.5, "learning_rate": 0.02, "max_iter": 40},
    ),
    Case(
        ModelDiffVerifier,
        {"nb_pairs": 12, "radius": 0.3, "step": 0.1, "max_iter": 4},
        counts=("nb_pairs",),
        times=2,
        profile={"nb_pairs": 12, "max_iter": 4, "search_iterations": 20},
    ),
    Case(
        RobustnessVerifier,
        {"nb_seeds": 30, "eps": 0.1, "alpha": 0.05, "steps": 3, "deepfool_steps": 4},
        counts=("nb_FGSM", "nb_PGD", "nb_DeepFool"),
        profile={"nb_seeds": 20, "steps": 3, "deepfool_steps": 4},
    ),
    Case(WeightAlignmentVerifier, {}, counts=(), profile={}),
    Case(
        SACVerifier,
        {"nb_probes": 10},
        counts=("nb_probes",),
        profile={"nb_probes": 12},
        y=Y_WRONG,
    ),
    Case(
        ZestVerifier,
        {"nb_images": 12, "nb_masks": 24, "segmenter": "grid", "grid_cells": 3},
        counts=("nb_probes",),
        profile={"nb_images": 12, "nb_masks": 20, "segmenter": "grid", "grid_cells": 3},
    ),
]
every_verifier = pytest.mark.parametrize("case", CASES, ids=[case.verifier.__name__ for case in CASES])
every_query_verifier = pytest.mark.parametrize(
    "case", [case for case in CASES if case.counts], ids=[case.verifier.__name__ for case in CASES if case.counts]
)
FORESEEN = [case for case in CASES if case.verifier._extraction_passes is not Verifier._extraction_passes]
every_foreseen_verifier = pytest.mark.parametrize("case", FORESEEN, ids=[case.verifier.__name__ for case in FORESEEN])
NONSENSE: list[Any] = [object(), {"a": 1}, -1.5, "nonsense", float("nan")]


def victim() -> PyTorchClassifier:
    return several_classes(X)


def independent(seed: int) -> PyTorchClassifier:
    """A model of other images: one that has learned the victim's by heart answers them as the victim does."""
    return several_classes(X_OTHER, seed=seed)


def make(case: Case, classifier: PyTorchClassifier | None = None, **changes: Any) -> Verifier:
    return case.verifier(classifier or victim(), **{**case.options, **changes})


def extracted(case: Case, **changes: Any) -> Verifier:
    verifier = make(case, **changes)
    verifier.extract(X, case.y, **case.more)
    return verifier


@cache
def _file(name: str, folder: Path) -> Path:
    case = next(case for case in CASES if case.verifier.__name__ == name)
    verifier = extracted(case)
    verifier.calibrate([independent(seed) for seed in (11, 12, 13, 14, 15)])
    assert verifier.fingerprint is not None
    return verifier.fingerprint.save(folder / f"{name}.safetensors")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for fingerprints that several tests read."""
    return tmp_path_factory.mktemp("fingerprints")


def ready(case: Case, folder: Path) -> Verifier:
    """Return a calibrated verifier without a victim. It is extracted once for all tests."""
    return case.verifier.from_fingerprint(Fingerprint.load(_file(case.verifier.__name__, folder)))


# ---------------------------------------------------------------------- the list
def test_every_verifier_is_exported_and_has_a_case() -> None:
    concrete = concrete_subclasses(verifiers, Verifier)
    assert {kind.__name__ for kind in concrete} <= set(verifiers.__all__)
    assert concrete == {case.verifier for case in CASES}
    assert all(hasattr(verifiers, name) for name in verifiers.__all__)


@every_verifier
def test_facts_of_the_class(case: Case) -> None:
    kind = case.verifier
    names = [metric.name for metric in kind.metrics]
    assert len(set(names)) == len(names) > 0
    assert not set(names) & set(kind.extras)
    levels = ("labels", "scores", "layers", "gradients")
    assert {kind.source_access, kind.suspect_access, *(m.access for m in kind.metrics)} <= set(levels)
    assert kind.suspect_access == max((m.access for m in kind.metrics), key=levels.index)
    assert {m.direction for m in kind.metrics} <= {"distance", "similarity"}
    assert {"paper", "removalnet", "removalnet-legacy"} <= set(kind.profiles)
    assert kind.profiles["paper"] == {}


# ---------------------------------------------------------------------- parameters
@every_verifier
def test_every_parameter_is_listed_and_documented(case: Case) -> None:
    kind = case.verifier
    parameters = {n: p for n, p in inspect.signature(kind).parameters.items() if n != "classifier"}
    assert sorted(parameters) == sorted(kind.verifier_params)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters.values())
    text = f"{kind.__doc__}\n{kind.__init__.__doc__}"
    assert [name for name in ("classifier", *parameters) if f":param {name}:" not in text] == []
    plain = kind(None)
    assert {name: getattr(plain, name) for name in parameters} == {n: p.default for n, p in parameters.items()}


@every_verifier
def test_repr_shows_every_parameter(case: Case) -> None:
    verifier = make(case)
    assert repr(verifier).startswith(f"{case.verifier.__name__}(")
    for name in case.verifier.verifier_params:
        assert f"{name}={getattr(verifier, name)!r}" in repr(verifier)


@every_verifier
def test_set_params_rolls_back(case: Case) -> None:
    verifier = make(case)
    before = verifier.params()
    for name in case.verifier.verifier_params:
        for nonsense in NONSENSE:
            if name in ("layer", "suspect_layer") and nonsense == "nonsense":
                continue  # the name of a layer, for all we know before extraction
            if name == "fill" and nonsense == -1.5:
                continue  # a colour
            with pytest.raises(InvalidInputError):
                verifier.set_params(**{"seed": 3, name: nonsense})
            assert verifier.params() == before
            with pytest.raises(InvalidInputError):
                case.verifier(None, **{name: nonsense})
    with pytest.raises(InvalidInputError, match="no parameter"):
        verifier.set_params(classifier=None)
    verifier.set_params(seed=5, batch_size=3)
    assert verifier.params() == {**before, "seed": 5, "batch_size": 3}


@every_verifier
@pytest.mark.parametrize("wrong", ["victim", None, 3])
def test_wrong_estimators(case: Case, wrong: object, folder: Path) -> None:
    for other in (wrong, victim().model, black_box(victim())):
        if other is not None:
            with pytest.raises(EstimatorError):
                case.verifier(other)  # type: ignore[arg-type]
    for other in (wrong, victim().model):
        with pytest.raises(EstimatorError):
            ready(case, folder).verify(other)
        with pytest.raises(EstimatorError):
            ready(case, folder).calibrate([independent(11), other])


# ---------------------------------------------------------------------- extraction
@every_verifier
def test_nothing_works_before_extraction(case: Case) -> None:
    verifier = make(case)
    for call in (verifier.verify, verifier.score, lambda suspect: verifier.calibrate([suspect])):
        with pytest.raises(NotExtractedError):
            call(independent(1))


@contextmanager
def failing(classifier: PyTorchClassifier, after: int) -> Iterator[None]:
    """Make a network raise at one of its forward passes."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise RuntimeError("half-way")

    hook = classifier.model.block1[0].register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


@every_verifier
@pytest.mark.parametrize("after", [None, 1, 2, 3, 5])
def test_the_victim_and_the_random_state_come_back(case: Case, after: int | None) -> None:
    owned = victim()
    mark(owned)
    x = X.copy()
    verifier = make(case, owned, batch_size=7)
    before, drawn = state_of(owned), random_states()
    if after is None or (after > 1 and not case.counts):  # one pass gives the structure of the network
        verifier.extract(x, case.y, **case.more)
    else:
        with failing(owned, after), pytest.raises((RuntimeError, FingerprintError), match="half-way"):
            verifier.extract(x, case.y, **case.more)
        assert verifier.fingerprint is None
    assert state_of(owned) == before
    assert random_states() == drawn
    assert np.array_equal(x, X)


@every_verifier
def test_the_seed_decides(case: Case) -> None:
    first = extracted(case).fingerprint
    torch.manual_seed(99), np.random.seed(99), random.seed(99)  # noqa: B018, NPY002
    again = extracted(case).fingerprint
    other = extracted(case, seed=1).fingerprint
    assert first is not None
    assert again is not None
    assert other is not None
    assert again.digest == first.digest
    assert again.facts["versions"] == first.facts["versions"]
    assert other.digest != first.digest
    assert arrays_digest(other) != arrays_digest(first)


def arrays_digest(fingerprint: Fingerprint) -> str:
    return array_digest(*(fingerprint.arrays[name] for name in sorted(fingerprint.arrays)))


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
    assert queries <= case.probes(fingerprint)
    assert (queries > 0) == bool(case.counts)
    assert case.adaptive or queries == case.probes(fingerprint)


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


@every_verifier
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_victim_is_its_own_copy(case: Case, batch_size: int, folder: Path) -> None:
    verifier = ready(case, folder)
    verifier.set_params(batch_size=batch_size)
    assert_extreme(case, verifier, verifier.score(victim()))
    assert verifier.verify(victim()).derived is True


@every_verifier
def test_results_do_not_depend_on_the_batch_size(case: Case) -> None:
    suspect = independent(1)
    expected = extracted(case, batch_size=1000).score(suspect)
    for extraction in (1, 7):
        verifier = extracted(case, batch_size=extraction)
        for scoring in (1, 7, 1000):
            verifier.set_params(batch_size=scoring)
            assert verifier.score(suspect) == pytest.approx(expected, abs=1e-5, rel=1e-6)


@every_verifier
def test_the_order_of_suspects_does_not_matter(case: Case, folder: Path) -> None:
    suspects = [independent(1), victim(), black_box(independent(2)) if _query_only(case) else independent(2)]
    verifier = ready(case, folder)
    forward = [verifier.verify(suspect) for suspect in suspects]
    backward = [verifier.verify(suspect) for suspect in reversed(suspects)]
    assert forward == backward[::-1]
    assert forward == [ready(case, folder).verify(suspect) for suspect in suspects]


@every_verifier
@pytest.mark.parametrize("fails", [False, True])
def test_the_suspect_and_the_random_state_come_back(case: Case, fails: bool, folder: Path) -> None:
    verifier = ready(case, folder)
    verifier.set_params(batch_size=7)
    suspect = independent(1)
    expected = verifier.score(suspect)
    mark(suspect)
    before, drawn = state_of(suspect), random_states()
    if fails and case.counts:
        with failing(suspect, 2), pytest.raises((RuntimeError, FingerprintError), match="half-way"):
            verifier.score(suspect)
    else:
        assert verifier.score(suspect) == expected  # in training mode too
    assert state_of(suspect) == before
    assert random_states() == drawn


@every_verifier
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_queries_are_those_that_the_fingerprint_states(case: Case, batch_size: int, folder: Path) -> None:
    verifier = ready(case, folder)
    verifier.set_params(batch_size=batch_size)
    suspect = independent(1)
    sent: list[int] = []
    suspect.model.block1.register_forward_pre_hook(lambda _, inputs: sent.append(len(inputs[0])))
    verdict = verifier.verify(suspect)
    assert verifier.fingerprint is not None
    assert verdict.queries == sum(sent)
    assert_announced(case, verdict.queries, verifier.fingerprint)
    assert max(sent, default=0) <= batch_size
    expected = verifier.expected_queries()
    assert expected is None or verdict.queries <= expected


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
]


@every_foreseen_verifier
def test_extraction_costs_at_most_what_is_said_beforehand(case: Case) -> None:
    for changes in ({}, {"batch_size": 7}):
        owned = victim()
        verifier = make(case, owned, **changes)
        before, drawn = state_of(owned), random_states()
        most, queries = verifier.expected_extraction_passes(len(X)), verifier.expected_queries()
        assert state_of(owned) == before
        assert random_states() == drawn
        assert most is not None
        assert queries is not None
        with counted(owned) as passed:
            fingerprint = verifier.extract(X, case.y, **case.more)
        assert most / 20 <= sum(passed) <= most + _CHECKS
        assert queries >= case.probes(fingerprint) == verifier.expected_queries()
        assert verifier.verify(independent(1)).queries == verifier.expected_queries()


@pytest.mark.parametrize(("kind", "changes"), _EXACT, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.filterwarnings("ignore:.*(Only|only|neurons)")
def test_extraction_that_never_ends_early_costs_the_bound(kind: type[Verifier], changes: Options) -> None:
    owned = victim()
    verifier = make(next(case for case in CASES if case.verifier is kind), owned, **changes)
    most = verifier.expected_extraction_passes(len(X))
    assert most is not None
    with counted(owned) as passed:
        verifier.extract(X)  # every seed is right
    # DeepJudge counts on a test from every pair; here a neuron has one
    assert abs(sum(passed) - most) <= _CHECKS


@every_foreseen_verifier
def test_bounds_grow_with_the_images_and_know_what_they_do_not_know(case: Case, folder: Path) -> None:
    verifier = make(case)
    bounds = [verifier.expected_extraction_passes(n) or 0.0 for n in (2, 4, 20, 40, 10_000)]
    assert bounds == sorted(bounds)
    assert 0 < bounds[0] < bounds[2]
    for bad in (0, 2.5, True):
        with pytest.raises(InvalidInputError, match="`nb_images`"):
            verifier.expected_extraction_passes(bad)  # type: ignore[arg-type]
    asked = ready(case, folder)
    assert asked.expected_queries() == asked.verify(independent(1)).queries
    asked.set_params(metric_names=[case.verifier.metrics[-1].name])
    assert asked.expected_queries() == asked.verify(independent(1)).queries


def test_what_nobody_can_say_is_none() -> None:
    assert DeepJudgeVerifier(None).expected_queries() is None  # the layer is the victim's
    assert DeepJudgeVerifier(None).expected_extraction_passes(40) is None
    assert DeepJudgeVerifier(None, metric_names=["RobD"]).expected_queries() == 1000
    assert DeepJudgeVerifier(victim(), method="cw").expected_extraction_passes(40) is None
    assert RobustnessVerifier(None).expected_extraction_passes(40) is None
    for verifier in (IPGuardVerifier(None), ModelDiffVerifier(None), ZestVerifier(None)):
        assert verifier.expected_extraction_passes(40) is not None
        assert verifier.expected_queries() is not None


# ---------------------------------------------------------------------- suspects that fail, budgets that end
@every_query_verifier
def test_budgets_keep_what_is_complete(case: Case, folder: Path) -> None:
    verifier = ready(case, folder)
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
def test_suspects_that_raise_or_answer_nan_are_undecided(case: Case, after: int, folder: Path) -> None:
    verifier = ready(case, folder)
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


def soft_box(classifier: PyTorchClassifier) -> BlackBoxClassifierNeuralNetwork:
    return BlackBoxClassifierNeuralNetwork(
        lambda x: torch.softmax(torch.from_numpy(classifier.predict(x)), 1).numpy(), (1, 8, 8), 4
    )


def in_two_spaces(case: Case) -> list[str]:
    """Return the metrics that can be compared as logits or as probabilities."""
    two = "space" in case.verifier.verifier_params
    return [m.name for m in case.verifier.metrics if two and m.access == "scores"]


@every_query_verifier
@pytest.mark.filterwarnings("ignore:.*compared as probabilities")
def test_references_that_give_logits_set_thresholds_for_probabilities_too(case: Case, folder: Path) -> None:
    verifier, soft = ready(case, folder), ready(case, folder)
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
def test_references_of_both_kinds_are_compared_as_probabilities(case: Case, folder: Path) -> None:
    verifier = ready(case, folder)
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
def test_thresholds_of_another_space_decide_nothing(case: Case, folder: Path) -> None:
    verifier = ready(case, folder)
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
def test_references_are_no_suspects(case: Case, folder: Path) -> None:
    verifier = ready(case, folder)
    with pytest.raises(CalibrationError, match="allow_reference"):
        verifier.verify(independent(13))
    verdict = verifier.verify(independent(13), allow_reference=True)
    assert verdict.derived is False
    assert {name: scores[2] for name, scores in verdict.references.items()} == pytest.approx(
        {name: result.value for name, result in verdict.metrics.items()}
    )
    with pytest.raises(CalibrationError, match="victim itself"):
        verifier.calibrate([independent(11), victim()])


# ---------------------------------------------------------------------- suspects that show less
def _query_only(case: Case) -> bool:
    return case.verifier.suspect_access in ("labels", "scores")


def label_metrics(case: Case) -> list[str]:
    return [metric.name for metric in case.verifier.metrics if metric.access == "labels"]


@every_query_verifier
def test_query_only_suspects_get_the_same_scores(case: Case, folder: Path) -> None:
    verifier = ready(case, folder)
    whole, asked = verifier.verify(independent(1)), verifier.verify(black_box(independent(1)))
    allowed = [m.name for m in verifier.metrics if m.access in ("labels", "scores")]
    assert list(asked.metrics) == allowed != []
    for name in allowed:
        assert asked[name].value == pytest.approx(whole[name].value, abs=1e-6)
        assert (asked[name].threshold, asked[name].derived) == (whole[name].threshold, whole[name].derived)
    assert set(asked.skipped) == {m.name for m in verifier.metrics} - set(allowed)
    assert all(asked.skipped.values())


@pytest.mark.parametrize("case", [case for case in CASES if label_metrics(case)], ids=lambda c: c.verifier.__name__)
def test_label_metrics_need_labels_only(case: Case, folder: Path) -> None:
    verifier = ready(case, folder)
    verifier.set_params(metric_names=label_metrics(case))
    for suspect in (independent(1), victim()):
        expected = verifier.verify(suspect)
        verdict = verifier.verify(label_box(suspect))
        assert dict(verdict.metrics) == dict(expected.metrics)
        assert verdict.derived == expected.derived


# ---------------------------------------------------------------------- decisions and files
@every_verifier
@pytest.mark.parametrize("rule", ["extreme", "t-mean"])
def test_decisions_follow_direction_and_threshold(case: Case, rule: Any, folder: Path) -> None:
    verifier = ready(case, folder)
    references = [independent(seed) for seed in (11, 12, 13)]
    verifier.calibrate(references, rule=rule)
    for suspect in (victim(), independent(1), independent(2)):
        verdict = verifier.verify(suspect)
        assert verdict.nb_references == 3
        for metric in verifier.metrics:
            result = verdict[metric.name]
            assert result.direction == metric.direction
            assert result.threshold is not None
            assert result.p_value is not None
            assert 1 / 4 <= result.p_value <= 1
            nearer = (
                result.threshold - result.value if metric.direction == "distance" else result.value - result.threshold
            )
            assert result.derived is (nearer > 0 or (rule != "extreme" and nearer == 0))
        votes = [result.derived for result in verdict.metrics.values()]
        assert verdict.derived is (2 * sum(map(bool, votes)) > len(votes))


@every_verifier
def test_files_give_the_identical_verdict(case: Case, tmp_path: Path) -> None:
    verifier = extracted(case)
    verifier.calibrate([independent(11), independent(12)], rule="t-pred", alpha=0.9, confidence=0.95)
    fingerprint = verifier.fingerprint
    assert fingerprint is not None
    loaded = Fingerprint.load(fingerprint.save(tmp_path / "a"))
    assert loaded.digest == fingerprint.digest
    third_party = case.verifier.from_fingerprint(loaded)
    assert third_party.params() == verifier.params()
    for suspect in (victim(), independent(1), independent(2)):
        assert third_party.verify(suspect) == verifier.verify(suspect)
        assert third_party.verify(suspect).to_dict() == verifier.verify(suspect).to_dict()
        assert third_party.score(suspect) == verifier.score(suspect)
    with pytest.raises(NotExtractedError, match="no victim"):
        third_party.extract(X)
