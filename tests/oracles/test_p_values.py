"""p-values and their combinations against scipy, closed forms, numbers worked by hand, and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.committee_rates import equal_level, floor_p_value, worst_case_rate
from art_fingerprint.verifiers.p_values import (
    COMBINATIONS,
    binomial_p_value,
    cauchy_p_value,
    combine_p_values,
    fisher_p_value,
    harmonic_mean,
    holm_adjusted,
    votes_p_value,
    welch_p_value,
)


def test_binomial_by_hand() -> None:
    assert binomial_p_value(9, 10, 0.55) == pytest.approx(0.0232571, abs=1e-7)
    assert binomial_p_value(10, 10, 0.55) == pytest.approx(0.00253295, abs=1e-8)
    assert binomial_p_value(75, 100, 0.5) == pytest.approx(2.818e-7, rel=1e-3)
    assert binomial_p_value(0, 10, 0.55) == 1
    with pytest.raises(InvalidInputError, match="matches"):
        binomial_p_value(11, 10, 0.5)


def test_welch_against_scipy() -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        a, b = draws.normal(0.3, 2, 7), draws.normal(0, 1, 12)
        expected = stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue
        assert welch_p_value(a, b) == pytest.approx(expected, rel=1e-9)
    high, low = np.array([0.9, 0.8, 0.85, 0.95]), np.array([0.3, 0.4, 0.35, 0.45])
    assert welch_p_value(high, low) == pytest.approx(1.7182e-5, rel=1e-4)
    assert welch_p_value(np.ones(3), np.zeros(3)) == 1  # without variance nothing is tested
    tiny = welch_p_value(np.array([0, 1e-100, 0]), np.array([0, 0, 2e-100]))
    assert tiny == pytest.approx(welch_p_value(np.array([0, 1.0, 0]), np.array([0, 0, 2.0])))
    with pytest.raises(InvalidInputError, match="two values"):
        welch_p_value(np.ones(1), np.zeros(3))
    assert harmonic_mean([0.5, 0.0]) == 0


def test_fisher_against_scipy() -> None:
    draws = np.random.default_rng(1)
    for k in (1, 2, 5):
        values = draws.random(k)
        assert fisher_p_value(values) == pytest.approx(stats.combine_pvalues(values, method="fisher").pvalue, rel=1e-12)
    assert fisher_p_value([0.2]) == pytest.approx(0.2)
    # of two p-values the closed form is q (1 - ln q) of their product q
    assert fisher_p_value([0.1, 0.3]) == pytest.approx(0.03 * (1 - math.log(0.03)))


def test_cauchy_against_its_formula() -> None:
    values = [0.01, 0.2, 0.7]
    statistic = sum(math.tan((0.5 - p) * math.pi) for p in values) / 3
    assert cauchy_p_value(values) == pytest.approx(0.5 - math.atan(statistic) / math.pi, abs=1e-12)
    assert cauchy_p_value([0.04] * 7) == pytest.approx(0.04)
    assert cauchy_p_value([0.05, 0.95]) == pytest.approx(0.5)  # they cancel
    assert cauchy_p_value([1e-6, 1.0]) == 1
    assert cauchy_p_value([1e-12, 0.5]) == pytest.approx(2e-12, rel=1e-3)


def test_holm_by_hand() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.6, 0.7]) == [1, 1]
    assert holm_adjusted([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert combine_p_values([0.01, 0.04, 0.03, 0.005], "holm") == pytest.approx(0.02)


def test_votes_by_hand() -> None:
    values = [0.3, 0.01, 0.02]
    assert votes_p_value(values, 1) == pytest.approx(0.03)  # Bonferroni
    assert votes_p_value(values, 2) == pytest.approx(0.03)
    assert votes_p_value(values, 3) == pytest.approx(0.3)
    assert votes_p_value([0.9, 0.8], 1) == 1


@pytest.mark.parametrize("method", COMBINATIONS)
def test_combined_p_values_keep_their_level_and_rise_with_each_of_them(method: str) -> None:
    draws = np.random.default_rng(2)
    independent = draws.random((4000, 3))
    for level in (0.01, 0.05, 0.2):
        rate = np.mean([combine_p_values(row, method) <= level for row in independent])  # type: ignore[arg-type]
        assert rate <= level + 3 * math.sqrt(level / 4000)
        assert rate > 0.7 * level
    for row in independent[:50]:
        for index in range(3):
            larger = row.copy()
            larger[index] = (1 + row[index]) / 2
            assert combine_p_values(larger, method) >= combine_p_values(row, method) - 1e-12  # type: ignore[arg-type]
    for bad in ([], [0.0, 0.5], [1.2], [math.nan], [[0.5]]):
        with pytest.raises(InvalidInputError, match="p_values"):
            combine_p_values(bad, method)  # type: ignore[arg-type]


def test_members_that_see_the_same_break_fishers_level_and_not_holms() -> None:
    same = np.random.default_rng(3).random(4000)
    rates = {m: np.mean([combine_p_values([p] * 4, m) <= 0.05 for p in same]) for m in COMBINATIONS}
    assert rates["fisher"] > 0.1
    assert rates["holm"] < 0.02
    assert rates["cauchy"] == pytest.approx(0.05, abs=0.01)


def test_floors_are_what_so_many_references_can_reach() -> None:
    assert floor_p_value(8, 1, "majority") == pytest.approx(1 / 9)
    assert floor_p_value(19, 4, "majority") == pytest.approx(4 / 3 / 20)
    assert floor_p_value(19, 4, "any") == pytest.approx(4 / 20)
    three = [1 / 9] * 3  # the numbers of the class's docstring
    assert [round(combine_p_values(three, m), 2) for m in COMBINATIONS] == [0.04, 0.11, 0.33]


@pytest.mark.parametrize("method", COMBINATIONS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_verdict_without_a_p_value_at_the_equal_level(method: str, count: int) -> None:
    t = equal_level(count, method, 0.05)  # type: ignore[arg-type]
    assert combine_p_values([t] * count, method) == pytest.approx(0.05, abs=1e-9)  # type: ignore[arg-type]


def test_worst_case_by_hand() -> None:
    # holm, two members of one metric, 99 references: t = 0.025, so 2 of 100 values each
    assert worst_case_rate([(99, 1), (99, 1)], "holm", "majority", 0.05) == pytest.approx(0.04)
    # three metrics, two votes needed: (3 / 2) floor((2 / 3) 0.025 100) / 100
    assert worst_case_rate([(99, 3), (99, 1)], "holm", "majority", 0.05) == pytest.approx(0.015 + 0.02)
    assert worst_case_rate([(99, 1), (99, 1)], "cauchy", "majority", 0.05) == pytest.approx(0.1)
    assert worst_case_rate([(8, 1)] * 3, "holm", "majority", 0.05) == 0  # nothing can be called derived


@pytest.mark.parametrize("method", COMBINATIONS)
def test_the_worst_case_bounds_every_dependence_of_small_grids(method: str) -> None:
    # two members with three references: p in {1/4, ..., 1}; every way to pair four equally likely values
    level = 0.6
    bound = worst_case_rate([(3, 1), (3, 1)], method, "majority", level)  # type: ignore[arg-type]
    grid = [0.25, 0.5, 0.75, 1.0]
    rates = [
        sum(combine_p_values([a, b], method) <= level for a, b in zip(grid, other, strict=True)) / 4  # type: ignore[arg-type]
        for other in itertools.permutations(grid)
    ]
    assert max(rates) <= bound + 1e-12
