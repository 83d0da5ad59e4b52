"""p-values as pure functions: of one verifier's own tests, and their combination over several verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from art_fingerprint.core.checks import check_choice, check_number, check_values, shown
from art_fingerprint.exceptions import InvalidInputError

Combination = Literal["fisher", "cauchy", "holm"]
COMBINATIONS: tuple[Combination, ...] = ("fisher", "cauchy", "holm")


# ---------------------------------------------------------------------- single tests
def binomial_p_value(matches: int, n: int, rate: float) -> float:
    """Return ``P(Bin(n, rate) >= matches)``.

    Queries are not independent of each other, so it is an index of how unusual the matches are, not a guarantee.

    :param matches: Matching answers, 0 to n.
    :param n: Queries.
    :param rate: Chance that an independent model matches on one query; the highest match rate among such models.
    """
    check_number("n", n, 1, integer=True)
    check_number("matches", matches, 0, n, integer=True)
    check_number("rate", rate, 0, 1)
    return float(stats.binom.sf(matches - 1, n, rate))


def welch_p_value(high: np.ndarray, low: np.ndarray) -> float:
    """Return the one-sided p-value of Welch's t-test for ``mean(high) > mean(low)``.

    Two samples without any variance give 1, whatever their means.

    :param high: Sample that is larger under the alternative, two or more values.
    :param low: The other sample.
    """
    a, b = check_values("high", high), check_values("low", low)
    if min(a.size, b.size) < 2:
        raise InvalidInputError(f"`high` and `low` need two values or more each, got {a.size} and {b.size}.")
    # not by scipy's test, which warns of values that are nearly equal
    share_a, share_b = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    total = share_a + share_b
    if total == 0:
        return 1.0
    # by shares of the total, whose squares do not vanish where the variances are tiny
    freedom = 1 / ((share_a / total) ** 2 / (a.size - 1) + (share_b / total) ** 2 / (b.size - 1))
    return float(stats.t.sf((a.mean() - b.mean()) / np.sqrt(total), freedom))


def harmonic_mean(values: Sequence[float] | np.ndarray) -> float:
    """Return ``n / sum(1 / v)``; 0 if a value is 0. Of p-values it is a summary, and no p-value itself."""
    numbers = np.asarray(values, dtype=np.float64)
    return 0.0 if (numbers == 0).any() else float(numbers.size / (1 / numbers).sum())


# ---------------------------------------------------------------------- combinations
def fisher_p_value(p_values: Sequence[float]) -> float:
    """Return ``P(chi2_{2k} >= -2 sum ln p_i)`` (Fisher 1932).

    Valid if the k p-values are independent under the null hypothesis. If they go together, it is too small.
    """
    values = _checked(p_values)
    return float(stats.chi2.sf(-2 * np.log(values).sum(), 2 * values.size))


def cauchy_p_value(p_values: Sequence[float]) -> float:
    """Return ``1/2 - arctan(T) / pi`` with ``T = (1/k) sum tan((1/2 - p_i) pi)`` (Liu and Xie 2020).

    Exact for independent p-values; for dependent ones the level holds in the limit of small p. A p-value of 1 makes T
    minus infinity and the result 1: one verifier that sees a suspect farther away than every independent model
    overrules all others.
    """
    values = _checked(p_values)
    if (values == 1).any():
        return 1.0
    return float(stats.cauchy.sf(np.tan((0.5 - values) * np.pi).mean()))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: ``max_{j <= i} min(1, (k - j + 1) p_(j))``, in the order given (Holm 1979).

    Rejecting where they are at most alpha falsely rejects any hypothesis at all with a chance of at most alpha,
    whatever the p-values have in common.
    """
    values = _checked(p_values)
    order = np.argsort(values, kind="stable")
    stepped = np.minimum(1, np.arange(values.size, 0, -1) * values[order])
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(stepped)
    return [float(value) for value in adjusted]


def combine_p_values(p_values: Sequence[float], method: Combination) -> float:
    """Return one p-value for "this model is independent in the eyes of all".

    :param p_values: One or more, in (0, 1].
    :param method: ``"fisher"``, ``"cauchy"``, or ``"holm"``: the smallest of :func:`holm_adjusted`, ``k min p``.
    :raises InvalidInputError: no p-value, one outside (0, 1], or an unknown method.
    """
    check_choice("method", method, COMBINATIONS)
    if method == "holm":
        return min(holm_adjusted(p_values))
    return fisher_p_value(p_values) if method == "fisher" else cauchy_p_value(p_values)


def votes_p_value(p_values: Sequence[float], needed: int) -> float:
    """Return ``min(1, k p_(m) / m)``, the p-value of "m of k metrics call the model derived" (Rueger 1978).

    Valid whatever the k p-values have in common: of k rates of at most t, m or more happen together at most at the rate
    ``k t / m`` (Markov). m = 1 is Bonferroni, m = k the largest p-value.

    :param p_values: Those of k metrics, in (0, 1].
    :param needed: m, 1 to k.
    """
    values = np.sort(_checked(p_values))
    check_number("needed", needed, 1, values.size, integer=True)
    return min(1.0, float(values.size * values[needed - 1] / needed))


def _checked(p_values: Sequence[float]) -> np.ndarray:
    values = check_values("p_values", p_values)
    if not ((values > 0) & (values <= 1)).all():
        raise InvalidInputError(f"`p_values` must hold one or more numbers in (0, 1], got {shown(p_values)}.")
    return values
