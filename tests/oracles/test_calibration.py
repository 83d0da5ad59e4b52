"""Thresholds, decisions and p-values against the specification's numbers (8.10) and worked-out cases."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from art_fingerprint.exceptions import CalibrationError, InvalidInputError
from art_fingerprint.verifiers.calibration import (
    RULES,
    STRICT_RULES,
    Calibration,
    Direction,
    Rule,
    empirical_p_value,
    is_derived,
    threshold,
)
from art_fingerprint.verifiers.verdict import combine

REFERENCES = (10.0, 11.0, 12.0, 9.0)
SIMILARITIES = (0.1, 0.3, 0.2, 0.4)


@pytest.mark.parametrize(
    ("rule", "alpha", "expected"),
    [
        ("extreme", 1.0, 9.0),
        ("t-mean", 1.0, 7.568989),
        ("t-mean", 0.9, 6.812090),
        ("t-pred", 1.0, 3.946060),
        ("scaled-mean", 2 / 3, 7.0),
    ],
)
def test_specification_numbers(rule: Rule, alpha: float, expected: float) -> None:
    assert threshold(REFERENCES, "distance", rule, alpha, 0.99) == pytest.approx(expected, abs=1e-6)


def test_similarities_by_hand() -> None:
    assert threshold(SIMILARITIES, "similarity") == 0.4
    # mean 0.25, s 0.129099, t_{0.99,3} 4.540703: upper bound 0.25 + 4.540703 * 0.129099 / 2
    assert threshold(SIMILARITIES, "similarity", "t-mean") == pytest.approx(0.543101, abs=1e-6)
    assert threshold(SIMILARITIES, "similarity", "t-mean", 0.9) == pytest.approx(1 - 0.9 * (1 - 0.543101), abs=1e-6)
    assert threshold(SIMILARITIES, "similarity", "scaled-mean", 2 / 3) == pytest.approx(0.5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_similarity_rules_mirror_the_distance_rules(rule: Rule, alpha: float) -> None:
    distances = [1 - value for value in SIMILARITIES]
    mirrored = 1 - threshold(distances, "distance", rule, alpha, false_positive_rate=0.3)
    found = threshold(SIMILARITIES, "similarity", rule, alpha, false_positive_rate=0.3)
    assert found == pytest.approx(mirrored, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_t_rules_against_textbook_formulas(confidence: float) -> None:
    values = np.random.default_rng(0).normal(5, 2, 7)
    s = math.sqrt(sum((v - values.mean()) ** 2 for v in values) / 6)
    t = stats.t(6).ppf(confidence)
    mean = threshold(values.tolist(), "distance", "t-mean", 1.0, confidence)
    predicted = threshold(values.tolist(), "distance", "t-pred", 1.0, confidence)
    assert mean == pytest.approx(values.mean() - t * s / math.sqrt(7))
    assert predicted == pytest.approx(values.mean() - t * s * math.sqrt(1 + 1 / 7))


@pytest.mark.parametrize(
    ("rate", "distance", "similarity"),
    [(0.0, 9.0, 0.4), (0.25, 10.0, 0.3), (0.3, 10.0, 0.3), (0.5, 11.0, 0.2), (0.74, 11.0, 0.2), (0.99, 12.0, 0.1)],
)
def test_false_positive_rates_by_hand(rate: float, distance: float, similarity: float) -> None:
    # floor(4 q) references may lie strictly below: of 9, 10, 11, 12 and of 0.4, 0.3, 0.2, 0.1
    assert threshold(REFERENCES, "distance", "fpr", false_positive_rate=rate) == distance
    assert threshold(SIMILARITIES, "similarity", "fpr", false_positive_rate=rate) == similarity


def test_false_positive_rate_zero_is_extreme() -> None:
    for direction in ("distance", "similarity"):
        expected = threshold(REFERENCES, direction, "extreme")  # type: ignore[arg-type]
        assert threshold(REFERENCES, direction, "fpr", false_positive_rate=0) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["distance", "similarity"])
@pytest.mark.parametrize("ties", [False, True])
def test_false_positive_rates_over_the_references_are_kept(direction: Direction, ties: bool) -> None:
    draws = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 10, 19, 20, 29, 100):
        values = draws.integers(0, 4, size).astype(float) if ties else draws.normal(size=size)
        for percent in range(100):
            rate = percent / 100
            allowed = percent * size // 100  # exact, unlike rate * size: 0.29 * 100 is below 29
            if rate > 0 and allowed == 0:
                with pytest.raises(CalibrationError, match=f"at least {-(-100 // percent)} reference models"):
                    threshold(values.tolist(), direction, "fpr", false_positive_rate=rate)
                continue
            tau = threshold(values.tolist(), direction, "fpr", false_positive_rate=rate)
            flagged = sum(is_derived(value, tau, direction, "fpr") for value in values)
            assert flagged <= allowed
            assert ties or flagged == allowed
            assert tau in values


def test_the_false_positive_rate_of_a_new_model() -> None:
    """The stated bound holds, and is met, for one more model drawn as the references were."""
    draws = np.random.default_rng(0).normal(size=(20_000, 21))
    flags = []
    for row in draws:
        tau = threshold(row[:20].tolist(), "distance", "fpr", false_positive_rate=0.1)
        flags.append(is_derived(row[20], tau, "distance", "fpr"))
    calibration = Calibration({"A": tuple(draws[0][:20])}, {"A": 0.0}, "fpr", target_false_positive_rate=0.1)
    assert calibration.false_positive_rate == pytest.approx(3 / 21)
    assert np.mean(flags) == pytest.approx(3 / 21, abs=0.01)


def test_identical_references() -> None:
    for rule in ("t-mean", "t-pred", "scaled-mean"):
        assert threshold([3.0, 3.0, 3.0], "distance", rule, 0.5) == pytest.approx(1.5)  # type: ignore[arg-type]


def test_too_few_or_bad_references() -> None:
    assert threshold([3.0], "distance", "extreme") == 3.0
    with pytest.raises(CalibrationError, match="at least one"):
        threshold([], "distance")
    for rule in ("t-mean", "t-pred"):
        with pytest.raises(CalibrationError, match="two reference"):
            threshold([3.0], "distance", rule)  # type: ignore[arg-type]
    for bad in (math.nan, math.inf):
        with pytest.raises(CalibrationError, match="finite"):
            threshold([1.0, bad], "distance")
    with pytest.raises(CalibrationError, match="Unknown threshold rule"):
        threshold([1.0, 2.0], "distance", "median")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("direction", "below", "above"),
    [("distance", True, False), ("similarity", False, True)],
    ids=["distance", "similarity"],
)
def test_ties_at_the_threshold(direction: Direction, below: bool, above: bool) -> None:
    for rule in RULES:
        assert is_derived(0.4, 0.5, direction, rule) is below
        assert is_derived(0.6, 0.5, direction, rule) is above
        # the reference that sets a threshold of `extreme` or `fpr` is not flagged by it; other rules include the bound
        assert is_derived(0.5, 0.5, direction, rule) is (rule not in ("extreme", "fpr"))
    assert STRICT_RULES == ("extreme", "fpr")


@pytest.mark.parametrize("direction", ["distance", "similarity"])
def test_extreme_flags_none_of_its_own_references(direction: Direction) -> None:
    tau = threshold(REFERENCES, direction)
    assert not any(is_derived(value, tau, direction) for value in REFERENCES)


def test_p_values() -> None:
    assert empirical_p_value(8.0, REFERENCES, "distance") == pytest.approx(1 / 5)
    assert empirical_p_value(9.0, REFERENCES, "distance") == pytest.approx(2 / 5)
    assert empirical_p_value(10.5, REFERENCES, "distance") == pytest.approx(3 / 5)
    assert empirical_p_value(13.0, REFERENCES, "distance") == 1.0
    assert empirical_p_value(13.0, REFERENCES, "similarity") == pytest.approx(1 / 5)
    assert empirical_p_value(12.0, REFERENCES, "similarity") == pytest.approx(2 / 5)
    assert empirical_p_value(8.0, REFERENCES, "similarity") == 1.0


def test_majority_needs_more_than_half() -> None:
    assert combine([True] * 3 + [False] * 3) is False
    assert combine([True] * 4 + [False] * 2) is True
    assert combine([True]) is True
    assert combine([True, False]) is False


def test_undecided_metrics_do_not_vote() -> None:
    assert combine([True, True, False, None, None, None]) is True
    assert combine([None, None]) is None
    assert combine([]) is None


def test_other_votes() -> None:
    assert combine([True, False, False], "any") is True
    assert combine([False, None], "any") is False
    assert combine([True, True, False], "all") is False
    assert combine([True, None, True], "all") is True
    with pytest.raises(InvalidInputError, match="majority"):
        combine([True], "most")  # type: ignore[arg-type]


def test_calibration_as_json() -> None:
    calibration = Calibration({"A": (1.0, 0.1), "B": (2.0, 3.0)}, {"A": 0.1, "B": 1 / 3}, "t-mean", 0.9, 0.95)
    whole = Calibration({"A": (1.0, 0.1)}, {"A": 0.1}, "fpr", 0.9, 0.95, 0.5, {"A": "logits"}, {"0a": "0b", "1a": "1b"})
    whole = replace(whole, order=("1a", "0a"), fingerprint="f")
    for each in (calibration, whole):
        assert Calibration.from_dict(json.loads(json.dumps(each.to_dict()))) == each
    old = {k: v for k, v in calibration.to_dict().items() if k in ("references", "thresholds", "rule", "alpha")}
    assert Calibration.from_dict({**old, "confidence": 0.95}) == calibration  # as the first version wrote it
    assert calibration.nb_references == 2
    assert calibration.false_positive_rate is None
    assert replace(calibration, rule="extreme").false_positive_rate == pytest.approx(1 / 3)
    assert Calibration({}, {"A": 0.1}).false_positive_rate is None
    with pytest.raises(ValueError, match="median"):
        Calibration.from_dict({**calibration.to_dict(), "rule": "median"})
