"""Arrays of every shape, type and value where images, labels or scores are expected."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import DataGenerator
from art.estimators.classification import PyTorchClassifier
from hypothesis import strategies as st

from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.core.adversarial import adversarial_examples
from art_fingerprint.evaluation.fidelity import accuracy, agreement
from art_fingerprint.evaluation.removal import distance_gained
from art_fingerprint.evaluation.robustness import (
    robust_accuracy,
    robustness,
    robustness_distance,
    robustness_table,
)
from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.reporting.embedding import embed, features, shift
from art_fingerprint.reporting.embedding import probabilities as model_probabilities
from art_fingerprint.reporting.saliency import compare_maps, saliency_maps
from art_fingerprint.verifiers.calibration import empirical_p_value
from art_fingerprint.verifiers.p_values import binomial_p_value, combine_p_values, votes_p_value, welch_p_value
from art_fingerprint.zoo.dataset import split_by_class, split_by_group
from art_fingerprint.zoo.substitutes import check_disjoint, overlap, rebalance_samples, select_substitute
from tests.conformance.attack_cases import CASES as ATTACKS
from tests.conformance.attack_cases import NEED_LABELS
from tests.conformance.attack_cases import Case as AttackCase
from tests.conformance.verifier_cases import CASES as VERIFIERS
from tests.conformance.verifier_cases import Case as VerifierCase
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import Refused, outcome_is_allowed
from tests.fuzz.strategies import arrays, values
from tests.states import state_of
from tests.victims import several_classes

X = np.random.default_rng(0).random((24, 1, 8, 8), dtype=np.float32)
Y = np.arange(24) % 4
SCORES = np.linspace(0.1, 1, 12)
images, labels = arrays(X), arrays(Y)
#: What hangs on a single argument stays valid, so that the other one is reached.
either = st.one_of(
    st.tuples(images, st.just(Y)),
    st.tuples(st.just(X), labels),
    st.tuples(images, labels),
    st.tuples(images, st.none()),
)


@functools.cache
def victim() -> PyTorchClassifier:
    return several_classes(X)


@functools.cache
def state() -> tuple[object, ...]:
    return state_of(victim())


# ---------------------------------------------------------------------- attacks and verifiers
@pytest.mark.parametrize("case", ATTACKS, ids=[case.name for case in ATTACKS])
@generated(3, 30, pair=either)
def test_generate(case: AttackCase, pair: tuple[Any, Any]) -> None:
    before = state()
    short = {"max_iter": 1} if "max_iter" in case.options else {}
    attack = case.make(victim(), batch_size=12, verbose=False, **short, **case.lenient)
    found = outcome_is_allowed(lambda: attack.generate(*pair), "x", "y")
    assert state_of(victim()) == before
    if not isinstance(found, Refused):
        answers = found.predict(X)
        assert answers.shape == (24, 4)
        assert np.isfinite(answers).all()
    elif pair[0] is X and pair[1] is Y and case.name not in NEED_LABELS:
        raise found.error


@pytest.mark.parametrize("case", VERIFIERS, ids=[case.verifier.__name__ for case in VERIFIERS])
@generated(3, 40, pair=either, unseen=either)
def test_extract(case: VerifierCase, pair: tuple[Any, Any], unseen: tuple[Any, Any]) -> None:
    before = state()
    verifier = case.verifier(victim(), **case.options)
    more = dict(zip(("x_unseen", "y_unseen"), unseen, strict=True)) if case.more else {}
    found = outcome_is_allowed(lambda: verifier.extract(*pair, **more), "x", "y", "images", "samples", "probe")
    assert state_of(victim()) == before
    if not isinstance(found, Refused):
        assert len(found.digest) == 64
        scores = verifier.score(victim())
        assert all(math.isfinite(value) for value in scores.values())


class Batches(DataGenerator):  # type: ignore[misc]
    """Gives the same batch again and again."""

    def __init__(self, batch: Any) -> None:
        super().__init__(size=24, batch_size=8)
        self._batch = batch

    def get_batch(self) -> Any:
        return self._batch


@generated(
    10, 200, batch=st.one_of(st.tuples(arrays(X[:8]), arrays(Y[:8])), st.tuples(arrays(X[:8]), st.none()), values)
)
def test_streams(batch: Any) -> None:
    attack = FineTuningAttack(victim(), ratio=1.0, max_iter=1, batch_size=8)
    outcome_is_allowed(lambda: attack.generate(Batches(batch)), "x of", "y of", "DataGenerator")


# ---------------------------------------------------------------------- measures of models
MEASURES = {
    "accuracy": lambda x, y: accuracy(victim(), x, y),
    "agreement": lambda x, y: agreement(victim(), victim(), x),
    "robustness": lambda x, y: robustness(victim(), x, y, "FGSM").accuracy,
    "robust_accuracy": lambda x, y: robust_accuracy(victim(), x, y, "PGD", steps=1),
    "robustness_distance": lambda x, y: robustness_distance(victim(), victim(), x, y, "FGSM"),
    "robustness_table": lambda x, y: robustness_table({"a": victim()}, x, y, ["FGSM"])["FGSM"]["a"].accuracy,
    "adversarial_examples": lambda x, y: float(adversarial_examples(victim(), "FGSM", x, y).max()),
    "saliency_maps": lambda x, y: float(saliency_maps(victim(), x, "block2", y).max()),
    "features": lambda x, y: float(features(victim(), x, "block2").min() >= 0),
    "probabilities": lambda x, y: float(model_probabilities(victim(), x).max()),
}


@pytest.mark.parametrize("name", MEASURES)
@generated(3, 60, pair=either)
def test_measures(name: str, pair: tuple[Any, Any]) -> None:
    found = outcome_is_allowed(lambda: MEASURES[name](*pair), "`x`", "`y`", "`classes`")
    assert isinstance(found, Refused) or 0 <= found <= 1


# ---------------------------------------------------------------------- substitute sets and splits
few_images, few_labels = arrays(X, huge=False), arrays(Y, huge=False)


@generated(
    10, 150, y=few_labels, ratio=st.sampled_from([0.1, 0.5, 1.0]), selection=st.sampled_from(["stratified", "random"])
)
def test_select_substitute(y: Any, ratio: float, selection: str) -> None:
    found = outcome_is_allowed(lambda: select_substitute(y, ratio, selection, "ros"), "y_victim", "ratio")
    assert isinstance(found, Refused) or (found.min() >= 0 and found.max() < len(y))


@generated(
    10, 200, x=few_images, y=few_labels, method=st.sampled_from(["ros", "rose"]), clip=st.just((0.0, 1.0)) | values
)
def test_rebalance_samples(x: Any, y: Any, method: str, clip: Any) -> None:
    found = outcome_is_allowed(lambda: rebalance_samples(x, y, method, clip_values=clip), "`x`", "`y`", "`clip_values`")
    assert isinstance(found, Refused) or len(found[0]) == len(found[1]) >= len(x)


@generated(10, 150, x=few_images, other=few_images)
def test_overlap(x: Any, other: Any) -> None:
    found = outcome_is_allowed(lambda: overlap(x, other), "x_a", "x_b", "samples")
    assert isinstance(found, Refused) or all(part.dtype == np.int64 for part in found)
    outcome_is_allowed(lambda: check_disjoint(x, {"training": other}), "x_a", "x_b", "samples")


@generated(10, 150, y=few_labels, groups=few_labels, share=st.sampled_from([0.0, 0.3, 1.0]) | values)
def test_splits(y: Any, groups: Any, share: Any) -> None:
    outcome_is_allowed(lambda: split_by_class(y, (2, 1), 0), "`y`", "samples")
    found = outcome_is_allowed(lambda: split_by_group(y, groups, share, 0), "`y`", "groups", "share")
    assert isinstance(found, Refused) or len(np.intersect1d(*found)) == 0


# ---------------------------------------------------------------------- statistics and maps
scores = arrays(SCORES, huge=False)
maps = arrays(np.random.default_rng(1).random((5, 6, 6)), huge=False)
points = arrays(np.eye(6), huge=False)
STATISTICS = {
    "roc_auc": lambda a, b: roc_auc(a, b, "distance"),
    "tpr_at_fpr": lambda a, b: tpr_at_fpr(a, b, "similarity"),
    "welch": welch_p_value,
    "combine": lambda a, b: combine_p_values(a, "fisher") * combine_p_values(b, "cauchy"),
    "votes": lambda a, b: votes_p_value(a, 1),
    "binomial": lambda a, b: binomial_p_value(a, 12, 0.5),
    "empirical": lambda a, b: empirical_p_value(0.5, a, "distance"),
}


@pytest.mark.parametrize("name", STATISTICS)
@generated(5, 80, a=scores, b=scores)
def test_statistics(name: str, a: Any, b: Any) -> None:
    found = outcome_is_allowed(
        lambda: STATISTICS[name](a, b), "derived", "independent", "p_values", "matches", "references", "high", "low"
    )
    assert isinstance(found, Refused) or 0 <= found <= 1


@generated(10, 150, value=values, references=scores)
def test_distance_gained(value: Any, references: Any) -> None:
    found = outcome_is_allowed(lambda: distance_gained(value, 0.0, references), "references", "value")
    assert isinstance(found, Refused | float)


@generated(5, 100, a=maps, b=maps)
def test_maps(a: Any, b: Any) -> None:
    found = outcome_is_allowed(lambda: compare_maps(a, b), "maps", "Maps", "others")
    assert isinstance(found, Refused) or 0 <= found.overlap <= 1


@generated(3, 30, a=points, b=points)
def test_embedding(a: Any, b: Any) -> None:
    found = outcome_is_allowed(lambda: embed({"a": a, "b": b}), "answers", "Answers", "embedding")
    if not isinstance(found, Refused):
        assert found["a"].shape == (len(a), 2)
    outcome_is_allowed(lambda: shift(a, b), "points", "Points", "others")


@generated(10, 100, x=arrays(X), device=st.just(torch.device("cpu")))
def test_arrays_are_left_alone(x: Any, device: torch.device) -> None:
    """What was given is not changed, whatever comes of it."""
    if not isinstance(x, np.ndarray) or x.dtype == object or x.nbytes > 10**6 or x.size != x.flags.owndata * x.size:
        return
    before = x.tobytes()
    outcome_is_allowed(lambda: FineTuningAttack(victim(), ratio=1.0, max_iter=1).generate(x, Y), "x", "y")
    assert x.tobytes() == before
