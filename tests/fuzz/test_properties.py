"""Properties that formulas must have for any numbers: bounds, symmetry, order, and what they must not depend on."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from art_fingerprint.attacks import FeaturePermutationAttack
from art_fingerprint.evaluation.removal import distance_gained
from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.verifiers import Fingerprint, WeightAlignmentVerifier
from art_fingerprint.verifiers.calibration import RULES, empirical_p_value, is_derived, threshold
from art_fingerprint.verifiers.committee_rates import worst_case_rate
from art_fingerprint.verifiers.deepjudge_metrics import (
    jensen_shannon,
    layer_output_distance,
    neuron_activation_distance,
    robustness,
)
from art_fingerprint.verifiers.modeldiff_metrics import ddm_distance, ddv_similarity, decision_distances
from art_fingerprint.verifiers.p_values import (
    COMBINATIONS,
    binomial_p_value,
    combine_p_values,
    holm_adjusted,
    votes_p_value,
    welch_p_value,
)
from art_fingerprint.verifiers.verdict import VOTES, combine
from art_fingerprint.zoo.dataset import split_by_class
from art_fingerprint.zoo.substitutes import rebalance_samples, select_substitute
from tests.fuzz.generated import generated
from tests.fuzz.strategies import json_values
from tests.fuzz.test_arrays import X, Y, victim
from tests.unit.test_fingerprint import same

scores = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=20)
p_values = st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=8)
directions = st.sampled_from(["distance", "similarity"])
seeds = st.integers(0, 2**32 - 1)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------- from scores to decisions
@generated(20, 400, derived=scores, independent=scores, direction=directions, shift=st.integers(-1000, 1000))
def test_auc(derived: list[float], independent: list[float], direction: Any, shift: int) -> None:
    auc = roc_auc(derived, independent, direction)
    other = "similarity" if direction == "distance" else "distance"
    assert 0 <= auc <= 1
    assert auc == pytest.approx(1 - roc_auc(independent, derived, direction), abs=1e-12)
    assert auc == pytest.approx(1 - roc_auc(derived, independent, other), abs=1e-12)
    assert auc == roc_auc([4 * s for s in derived], [4 * s for s in independent], direction)
    pairs = [
        (d < i) + (d == i) / 2 if direction == "distance" else (d > i) + (d == i) / 2
        for d in derived
        for i in independent
    ]
    assert auc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@generated(
    20, 300, derived=scores, independent=scores, direction=directions, rates=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
def test_tpr(derived: list[float], independent: list[float], direction: Any, rates: tuple[float, float]) -> None:
    low, high = (tpr_at_fpr(derived, independent, direction, rate) for rate in sorted(rates))
    assert 0 <= low <= high <= 1


@generated(
    30, 500, references=st.lists(st.floats(0, 1), min_size=2, max_size=30), value=st.floats(0, 1), direction=directions
)
def test_empirical_p_values(references: list[float], value: float, direction: Any) -> None:
    p = empirical_p_value(value, references, direction)
    n = len(references)
    assert 1 / (n + 1) <= p <= 1
    closer = value / 2 if direction == "distance" else (1 + value) / 2
    assert empirical_p_value(closer, references, direction) <= p
    assert p == empirical_p_value(value, references[::-1], direction)
    # each of n + 1 models is at most as likely as its rank says: the p-value is never too small
    every = [*references, value]
    ranks = [empirical_p_value(v, every[:i] + every[i + 1 :], direction) for i, v in enumerate(every)]
    for level in ranks:
        assert sum(rank <= level + 1e-12 for rank in ranks) <= level * (n + 1) + 1e-9


@generated(
    30,
    500,
    references=st.lists(st.floats(0, 1), min_size=2, max_size=40),
    direction=directions,
    rate=st.floats(0.05, 0.9),
)
def test_thresholds(references: list[float], direction: Any, rate: float) -> None:
    if rate * len(references) < 1:
        rate = 1 / len(references)
    for rule in RULES:
        tau = threshold(references, direction, rule, 0.9, 0.95, min(rate, 0.99))
        assert math.isfinite(tau)
        assert tau == pytest.approx(threshold(references[::-1], direction, rule, 0.9, 0.95, min(rate, 0.99)), abs=1e-9)
    flagged = [is_derived(r, threshold(references, direction), direction) for r in references]
    assert not any(flagged)
    tau = threshold(references, direction, "fpr", false_positive_rate=min(rate, 0.99))
    assert sum(is_derived(r, tau, direction, "fpr") for r in references) <= rate * len(references) + 1e-9
    strict, loose = (threshold(references, direction, "t-mean", alpha) for alpha in (0.5, 1.0))
    closer = min if direction == "distance" else max
    if loose >= 0 if direction == "distance" else loose <= 1:  # beyond, nothing is derived anyhow
        assert closer(strict, loose) == strict or strict == pytest.approx(loose)


@generated(20, 300, flags=st.lists(st.sampled_from([True, False, None]), max_size=8))
def test_votes(flags: list[bool | None]) -> None:
    found = {vote: combine(flags, vote) for vote in VOTES}
    assert all((value is None) == (not [f for f in flags if f is not None]) for value in found.values())
    if found["any"] is not None:
        assert bool(found["all"]) <= bool(found["majority"]) <= bool(found["any"])


@generated(30, 400, values=p_values, smaller=st.floats(0.01, 1.0))
def test_combined_p_values(values: list[float], smaller: float) -> None:
    for method in COMBINATIONS:
        p = combine_p_values(values, method)
        assert 0 <= p <= 1
        assert p == pytest.approx(combine_p_values(values[::-1], method), rel=1e-6)
        assert combine_p_values([smaller * value for value in values], method) <= p * (1 + 1e-6) + 1e-12
    adjusted = holm_adjusted(values)
    assert all(value <= found * (1 + 1e-12) <= 1 + 1e-9 for value, found in zip(values, adjusted, strict=True))
    for needed in range(1, len(values) + 1):
        assert 0 < votes_p_value(values, needed) <= 1


@generated(10, 200, n=st.integers(1, 300), rate=st.floats(0, 1), seed=seeds)
def test_single_tests(n: int, rate: float, seed: int) -> None:
    tails = [binomial_p_value(k, n, rate) for k in range(0, n + 1, max(1, n // 7))]
    assert tails[0] == 1
    assert all(0 <= b <= a + 1e-12 for a, b in zip(tails, tails[1:], strict=False))
    a, b = numbers(seed, 5).numpy(), numbers(seed + 1, 7).numpy()
    assert welch_p_value(a, b) + welch_p_value(b, a) == pytest.approx(1)
    assert welch_p_value(a + 1, b) < welch_p_value(a, b)


@generated(
    10,
    100,
    sizes=st.lists(st.tuples(st.integers(2, 40), st.integers(1, 3)), min_size=2, max_size=4),
    level=st.floats(0.01, 0.5),
)
def test_worst_case_rates(sizes: list[tuple[int, int]], level: float) -> None:
    for method in COMBINATIONS:
        for vote in VOTES:
            assert 0 <= worst_case_rate(sizes, method, vote, level) <= 1


@generated(20, 200, victim_value=st.floats(-10, 10), far=st.floats(-10, 10), share=st.floats(-2, 2))
def test_distance_gained(victim_value: float, far: float, share: float) -> None:
    if abs(far - victim_value) < 1e-3:
        return
    value = victim_value + share * (far - victim_value)
    assert distance_gained(value, victim_value, [far]) == pytest.approx(share, abs=1e-6)


# ---------------------------------------------------------------------- metrics
@generated(20, 300, seed=seeds, n=st.integers(2, 12), k=st.integers(2, 6), scale=st.floats(0.1, 30))
def test_metrics(seed: int, n: int, k: int, scale: float) -> None:
    a, b = numbers(seed, n, k), scale * numbers(seed + 1, n, k)
    p, q = a.softmax(1), b.softmax(1)
    js = jensen_shannon(p, q)
    assert -1e-9 <= js <= 1 + 1e-9
    assert js == pytest.approx(jensen_shannon(q, p), abs=1e-9)
    assert jensen_shannon(p, p) == pytest.approx(0, abs=1e-9)
    distance = layer_output_distance(a, b)
    assert distance == pytest.approx(layer_output_distance(b, a))
    assert layer_output_distance(a, a) == 0
    labels, other = p.argmax(1), q.argmax(1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert robustness(labels, other) == robustness(labels[order], other[order])
    nu = torch.arange(n) % k
    assert neuron_activation_distance(a, b, nu) >= 0


@generated(20, 300, seed=seeds, n=st.integers(2, 10), k=st.integers(2, 6), scale=st.floats(0.1, 10))
def test_decision_distances(seed: int, n: int, k: int, scale: float) -> None:
    a, b, c, d = (numbers(seed + i, n, k) for i in range(4))
    first, second = decision_distances(a, b), decision_distances(c, d)
    assert first.shape == (n,)
    torch.testing.assert_close(first, decision_distances(b, a))
    torch.testing.assert_close(first, decision_distances(scale * a, scale * b))
    similarity = ddv_similarity(first, second)
    assert -1 - 1e-9 <= similarity <= 1 + 1e-9
    assert ddv_similarity(first, first) == pytest.approx(1, abs=1e-6)
    assert similarity == pytest.approx(ddv_similarity(second, first), abs=1e-6)
    square = a @ a.T
    assert ddm_distance(square, square) == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------------- files and splits
@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


plain = json_values.filter(
    lambda value: "NaN" not in repr(value) and "inf" not in repr(value) and "nan" not in repr(value)
)
arrays = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@generated(
    20,
    400,
    params=st.dictionaries(texts, plain, max_size=3),
    facts=st.dictionaries(texts, plain, max_size=3),
    kept=st.dictionaries(texts.filter(lambda name: name != "__metadata__"), arrays, max_size=4),
    verifier=texts,
)
def test_fingerprints_come_back_as_they_were(params: Any, facts: Any, kept: Any, verifier: str, folder: Path) -> None:
    whole = Fingerprint(verifier, params, facts, kept)
    loaded = Fingerprint.load(whole.save(folder / "f.safetensors"))
    assert loaded.digest == whole.digest
    assert {name: array.tobytes() for name, array in loaded.arrays.items()} == {
        name: np.ascontiguousarray(array).tobytes() for name, array in kept.items()
    }
    assert (loaded.verifier, loaded.params, loaded.facts) == (verifier, params, facts)
    first = (folder / "f.safetensors").read_bytes()
    assert loaded.save(folder / "f.safetensors").read_bytes() == first
    if not any(np.isnan(array.astype(float)).any() for array in kept.values()):
        assert same(loaded, whole)


@generated(
    20, 300, y=st.lists(st.integers(0, 4), min_size=3, max_size=60).map(np.array), seed=seeds, ratio=st.floats(0.1, 1)
)
def test_substitute_sets(y: np.ndarray, seed: int, ratio: float) -> None:
    parts = split_by_class(y, (len(y) // 3, len(y) // 3), seed)
    assert len(np.unique(np.concatenate(parts))) == 2 * (len(y) // 3)
    if int(ratio * len(y) + 1e-9):
        chosen = select_substitute(y, ratio, seed=seed)
        assert len(set(chosen)) == len(chosen) == int(ratio * len(y) + 1e-9)
        assert set(select_substitute(y, ratio / 2, seed=seed) if int(ratio / 2 * len(y) + 1e-9) else []) <= set(chosen)
    x = np.random.default_rng(seed).random((len(y), 1, 2, 2), dtype=np.float32)
    more, labels = rebalance_samples(x, y, "rose", seed=seed)
    assert len(set(np.bincount(labels)[np.unique(y)])) == 1
    assert more.min() >= 0
    assert more.max() <= 1
    assert (more[: len(x)] == x).all()


# ---------------------------------------------------------------------- weights
@functools.cache
def aligned() -> WeightAlignmentVerifier:
    verifier = WeightAlignmentVerifier(victim())
    verifier.extract(X)
    return verifier


@generated(3, 60, seed=st.integers(0, 10**6), rescale=st.sampled_from([1.0, 1.5, 10.0, 100.0]))
def test_order_and_scale_of_channels_change_nothing(seed: int, rescale: float) -> None:
    twin = FeaturePermutationAttack(victim(), rescale=rescale, seed=seed).generate(X, Y)
    np.testing.assert_allclose(twin.predict(X), victim().predict(X), rtol=1e-3, atol=1e-3)
    for name, value in aligned().score(victim()).items():
        assert aligned().score(twin)[name] == pytest.approx(value, abs=1e-3)
