"""Intervals against closed forms, polynomial roots, sums of binomial chances, DeLong's variance, and their coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from art_fingerprint.evaluation.intervals import auc_interval, fpr_interval, models_needed, share_interval
from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.exceptions import InvalidInputError


# ---------------------------------------------------------------------- shares
def test_shares_in_closed_form() -> None:
    assert share_interval(0, 3) == pytest.approx((0, 1 - 0.025 ** (1 / 3)))
    assert share_interval(3, 3) == pytest.approx((0.025 ** (1 / 3), 1))
    assert share_interval(1, 1, 0.9) == pytest.approx((0.05, 1))
    assert share_interval(0, 20) == pytest.approx((0, 0.168433), abs=1e-6)
    assert share_interval(4, 10) == pytest.approx((0.121552, 0.737622), abs=1e-6)  # the textbook's 40 %


@pytest.mark.parametrize("total", [1, 2, 5, 20, 57])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_shares_against_tails_of_the_binomial(total: int, confidence: float) -> None:
    tail = (1 - confidence) / 2
    for count in range(total + 1):
        low, high = share_interval(count, total, confidence)

        def tails(chance: float, count: int = count) -> tuple[float, float]:
            sums = [math.comb(total, k) * chance**k * (1 - chance) ** (total - k) for k in range(total + 1)]
            return sum(sums[count:]), sum(sums[: count + 1])

        assert low == 0 if count == 0 else tails(low)[0] == pytest.approx(tail, rel=1e-6)
        assert high == 1 if count == total else tails(high)[1] == pytest.approx(tail, rel=1e-6)
        mirrored = share_interval(total - count, total, confidence)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


# ---------------------------------------------------------------------- areas
def by_polynomial(auc: float, derived: int, independent: int, z: float) -> tuple[float, float]:
    """The same equation cleared of denominators, by the roots of a quartic."""
    a = np.polynomial.Polynomial([0, 1])
    half = (derived + independent) / 2 - 1
    below = (2 - a) * (1 + a)
    spread = a * (1 - a) * (below + half * ((1 - a) * (1 + a) + a * (2 - a)))
    roots = ((auc - a) ** 2 * below * derived * independent - z**2 * spread).roots()
    real = sorted(float(r.real) for r in roots if abs(r.imag) < 1e-7 and -1e-9 <= r.real <= 1 + 1e-9)
    return max(0.0, real[0]), min(1.0, real[-1])


@pytest.mark.parametrize(("derived", "independent"), [(1, 1), (1, 4), (3, 20), (5, 20), (54, 20), (300, 200)])
@pytest.mark.parametrize("auc", [0.0, 0.03, 0.5, 0.81, 0.995, 1.0])
def test_areas_against_roots_of_the_quartic(auc: float, derived: int, independent: int) -> None:
    found = auc_interval(auc, derived, independent)
    assert found == pytest.approx(by_polynomial(auc, derived, independent, 1.959963985), abs=1e-6)
    assert 0 <= found[0] <= auc <= found[1] <= 1
    assert found[1] - found[0] > 0.0005
    low, high = auc_interval(1 - auc, derived, independent)
    assert (1 - high, 1 - low) == pytest.approx(found, abs=1e-9)
    assert auc_interval(auc, independent, derived) == pytest.approx(found)


def test_one_model_on_each_side_is_one_trial() -> None:
    z2 = 1.959963985**2
    assert auc_interval(1, 1, 1) == pytest.approx((1 / (1 + z2), 1))  # Wilson's interval of 1 of 1
    middle, width = 0.5, math.sqrt(z2 * (0.25 + z2 / 4)) / (1 + z2)
    assert auc_interval(0.5, 1, 1) == pytest.approx((middle - width, middle + width))


def test_more_models_narrow_it() -> None:
    assert (
        auc_interval(1, 3, 20)[0] < auc_interval(1, 5, 20)[0] < auc_interval(1, 5, 40)[0] < auc_interval(1, 50, 40)[0]
    )


def delong_interval(derived: np.ndarray, independent: np.ndarray) -> tuple[float, float]:
    """DeLong et al. 1988, by loops over all pairs."""
    wins = (derived[:, None] > independent).astype(float) + (derived[:, None] == independent) / 2
    variance = wins.mean(1).var(ddof=1) / len(derived) + wins.mean(0).var(ddof=1) / len(independent)
    return wins.mean() - 1.96 * math.sqrt(variance), wins.mean() + 1.96 * math.sqrt(variance)


def test_it_agrees_with_delong_on_many_models() -> None:
    draws = np.random.default_rng(0)
    for shift in (0.3, 1.0, 1.7):
        derived, independent = draws.normal(shift, 1, 800), draws.normal(0, 1, 900)
        found = auc_interval(roc_auc(derived, independent, "similarity"), 800, 900)
        assert found == pytest.approx(delong_interval(derived, independent), abs=5e-3)


@pytest.mark.parametrize("shift", [0.0, 1.2, 2.5])
def test_areas_are_covered(shift: float) -> None:
    """With five surrogates and twenty negatives, where DeLong's interval is often a point."""
    truth = float(stats.norm.cdf(shift / math.sqrt(2)))
    draws = np.random.default_rng(1)
    covered = points = 0
    for _ in range(600):
        derived, independent = draws.normal(shift, 1, 5), draws.normal(0, 1, 20)
        low, high = auc_interval(roc_auc(derived, independent, "similarity"), 5, 20)
        covered += low <= truth <= high
        points += len(set(delong_interval(derived, independent))) == 1
    assert covered / 600 >= 0.93
    assert (points > 60) is (shift == 2.5)


# ---------------------------------------------------------------------- thresholds
def test_rates_at_a_threshold_in_closed_form() -> None:
    # n models and none flagged: the rate is the smallest of n uniform numbers
    assert fpr_interval(10) == pytest.approx((1 - 0.975 ** (1 / 10), 1 - 0.025 ** (1 / 10)))
    assert fpr_interval(1, 0.0, 0.5) == pytest.approx((0.25, 0.75))
    assert fpr_interval(20) == pytest.approx((0.01235, 0.24873), abs=1e-5)
    assert fpr_interval(3, 1.0) == (1.0, 1.0)


def test_rates_at_a_threshold_against_draws() -> None:
    draws = np.random.default_rng(2)
    rates = []
    for _ in range(2000):
        seen = draws.random(40)
        rates.append(tpr_at_fpr(np.linspace(0, 1, 2001)[1:], seen, "distance", 0.05))  # scores are uniform: the rate
    low, high = fpr_interval(40, 0.05, 0.9)
    assert np.mean(np.array(rates) < low) == pytest.approx(0.05, abs=0.015)
    assert np.mean(np.array(rates) > high) == pytest.approx(0.05, abs=0.015)


def test_models_needed() -> None:
    assert [models_needed(fpr) for fpr in (0.05, 0.1, 0.29, 1 / 3, 1)] == [20, 10, 4, 3, 1]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: share_interval(3, 2), "count"),
        (lambda: share_interval(-1, 2), "count"),
        (lambda: share_interval(0, 0), "total"),
        (lambda: share_interval(1, 2, 1.0), "confidence"),
        (lambda: auc_interval(1.1, 2, 2), "auc"),
        (lambda: auc_interval(math.nan, 2, 2), "auc"),
        (lambda: auc_interval(0.5, 0, 2), "nb_derived"),
        (lambda: auc_interval(0.5, 2, 0), "nb_independent"),
        (lambda: auc_interval(0.5, 2, 2, 0.0), "confidence"),
        (lambda: fpr_interval(0), "nb_independent"),
        (lambda: fpr_interval(3, -0.1), "fpr"),
        (lambda: models_needed(0), "fpr"),
    ],
)
def test_bad_numbers(call: Any, name: str) -> None:
    with pytest.raises(InvalidInputError, match=name):
        call()
