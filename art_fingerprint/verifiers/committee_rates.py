"""What the false-positive rate of a committee rests on: a member's p-value, the smallest one, and bounds of errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from art_fingerprint.verifiers.p_values import Combination, combine_p_values, votes_p_value
from art_fingerprint.verifiers.verdict import Verdict, Vote, votes_needed


def member_p_value(verdict: Verdict, vote: Vote) -> float | None:
    """Return one p-value for a member: :func:`.votes_p_value` of its metrics, as many as the vote needs.

    ``None`` if the verdict is undecided or no metric has a p-value, or has one that is not from reference models, of
    which the committee's rates count the smallest possible.
    """
    decided = {name: result.p_value for name, result in verdict.metrics.items() if result.p_value is not None}
    if not all(verdict.references.get(name) for name in decided):
        return None
    values = list(decided.values())
    if verdict.derived is None or verdict.nb_references == 0 or not values:
        return None
    return votes_p_value(values, votes_needed(len(values), vote))


def floor_p_value(nb_references: int, nb_metrics: int, vote: Vote) -> float:
    """Return the smallest p-value that a member can have: 1 / (R + 1) for each metric, combined by the vote."""
    return votes_p_value([1 / (nb_references + 1)] * nb_metrics, votes_needed(nb_metrics, vote))


def equal_level(count: int, method: Combination, level: float) -> float:
    """Return t such that ``count`` p-values of t combine to ``level``: no verdict without one of them at most t."""
    if method == "holm":
        return level / count
    low, high = 0.0, 1.0
    for _ in range(100):  # both formulas rise with t
        middle = (low + high) / 2
        low, high = (middle, high) if combine_p_values([middle] * count, method) <= level else (low, middle)
    return high


def worst_case_rate(members: Sequence[tuple[int, int]], method: Combination, vote: Vote, level: float) -> float:
    """Return a bound of the false-positive rate whatever the members' p-values have in common.

    A combined p-value of at most ``level`` needs one p-value of at most t, :func:`equal_level`. p-values from R
    references are multiples of 1 / (R + 1), so m of a member's k metrics are that small at most at the rate
    ``(k / m) floor((m / k) t (R + 1)) / (R + 1)``; these are added up over the members.

    :param members: R and k of each.
    :param method: How they are combined.
    :param vote: How a member's metrics are.
    :param level: Largest combined p-value that is called derived.
    """
    t = equal_level(len(members), method, level)
    total = 0.0
    for nb_references, k in members:
        share = votes_needed(k, vote) / k
        total += math.floor(share * t * (nb_references + 1) + 1e-9) / (share * (nb_references + 1))
    return min(1.0, total)
