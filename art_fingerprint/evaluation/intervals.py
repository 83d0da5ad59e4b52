"""How sure an AUC, a share of models, or a false-positive rate is, from as few models as a zoo has."""

from __future__ import annotations

import math

from scipy import optimize, stats

from art_fingerprint.core.checks import check_number
from art_fingerprint.verifiers.calibration import allowed_positives

Interval = tuple[float, float]


def share_interval(count: int, total: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a chance, of which ``count`` of ``total`` trials came true (Clopper-Pearson 1934).

    Quantiles of beta distributions: ``(B(a/2; k, n - k + 1), B(1 - a/2; k + 1, n - k))`` with a = 1 - confidence, so
    that 0 of n gives ``(0, 1 - (a/2)^(1/n))``. It covers the chance at least as often as it says, for any n; Wilson's
    is shorter, and for the two to five seeds of an attack it covers less often than it says.

    :param count: k, 0 to n.
    :param total: n, 1 or more.
    :param confidence: In (0, 1).
    :raises InvalidInputError: numbers out of these ranges.
    """
    check_number("total", total, 1, integer=True)
    check_number("count", count, 0, total, integer=True)
    tail = _tail(confidence)
    low = float(stats.beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return low, high


def auc_interval(auc: float, nb_derived: int, nb_independent: int, confidence: float = 0.95) -> Interval:
    """Return the score interval of an area under the ROC curve (Newcombe 2006, method 5).

    All A with ``|A^ - A| <= z sqrt(V(A))``, where V is Hanley and McNeil's variance of the Mann-Whitney estimate,
    ``V(A) = A (1 - A) (1 + h (1 - A) / (2 - A) + h A / (1 + A)) / (D I)``, h = (D + I) / 2 - 1.

    DeLong's interval and the bootstrap say [1, 1] when no independent model lies among the derived ones, which with few
    models is the usual case: both estimate the spread from the overlap that was seen. This one takes the spread that
    the area would have at each A, stays inside [0, 1], and for one model on each side it is Wilson's interval of one
    trial. V is exact for exponential scores and near enough for others; for ties it is a little too large.

    The models must be independent draws. Seeds of one attack on one victim share that victim and the attack's settings,
    so the interval speaks of more such seeds, not of other attacks.

    :param auc: Estimate A^ in [0, 1], :func:`.roc_auc`.
    :param nb_derived: D, derived models behind it, 1 or more.
    :param nb_independent: I, independent models, 1 or more.
    :param confidence: In (0, 1).
    :raises InvalidInputError: numbers out of these ranges.
    """
    check_number("auc", auc, 0, 1)
    check_number("nb_derived", nb_derived, 1, integer=True)
    check_number("nb_independent", nb_independent, 1, integer=True)
    z = float(stats.norm.isf(_tail(confidence)))
    half = (nb_derived + nb_independent) / 2 - 1

    def excess(a: float) -> float:
        spread = a * (1 - a) * (1 + half * ((1 - a) / (2 - a) + a / (1 + a))) / (nb_derived * nb_independent)
        return (auc - a) ** 2 - z**2 * spread

    # at the estimate itself `excess` is not positive, at 0 and 1 not negative
    low = 0.0 if auc == 0 else float(optimize.brentq(excess, 0.0, auc if auc < 1 else 1 - 1e-12))
    high = 1.0 if auc == 1 else float(optimize.brentq(excess, auc if auc > 0 else 1e-12, 1.0))
    return low, high


def fpr_interval(nb_independent: int, fpr: float = 0.05, confidence: float = 0.95) -> Interval:
    """Return where the true false-positive rate lies at the threshold of :func:`.tpr_at_fpr`.

    The threshold is the (k + 1)-th closest of n independent models, k = floor(fpr n). For scores without ties the
    chance that one more independent model is closer has the distribution Beta(k + 1, n - k), whatever the scores: these
    are its quantiles. Its mean is (k + 1) / (n + 1): no n below 1 / fpr - 1 gives the rate that was asked for.

    :param nb_independent: n, 1 or more.
    :param fpr: The rate asked for, in [0, 1]; with k = n everything is flagged, and the rate is 1.
    :param confidence: In (0, 1).
    :raises InvalidInputError: numbers out of these ranges.
    """
    check_number("nb_independent", nb_independent, 1, integer=True)
    check_number("fpr", fpr, 0, 1)
    tail = _tail(confidence)
    k = allowed_positives(nb_independent, fpr)
    if k >= nb_independent:
        return 1.0, 1.0
    return tuple(float(stats.beta.ppf(p, k + 1, nb_independent - k)) for p in (tail, 1 - tail))  # type: ignore[return-value]


def models_needed(fpr: float) -> int:
    """Return the fewest independent models of which one may be flagged at a false-positive rate: ``ceil(1 / fpr)``."""
    check_number("fpr", fpr, 0, 1, open_low=True)
    return math.ceil(1 / fpr - 1e-9)


def _tail(confidence: float) -> float:
    check_number("confidence", confidence, 0, 1, open_low=True, open_high=True)
    return (1 - confidence) / 2
