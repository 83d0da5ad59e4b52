"""How far a removal attack moved a model away from the victim, in one unit for all metrics."""

from __future__ import annotations

from collections.abc import Sequence

from art_fingerprint.core.checks import check_number, check_values


def distance_gained(value: float, victim: float, references: Sequence[float]) -> float:
    """Return how far a suspect lies on the way from the victim to an average independent model.

    ``(value - victim) / (mean(references) - victim)``: 0 for a copy, 1 where reference models lie on average, above 1
    beyond them, below 0 nearer than the victim itself. Distances and similarities alike. Ours; the paper's figures 4
    and 5 scale each metric between the extremes of all models shown, so that every added model moves the others.

    :param value: The suspect's metric.
    :param victim: The victim's own.
    :param references: Those of the reference models, one or more.
    :return: The share, or NaN where the references do not differ from the victim.
    :raises InvalidInputError: a value that is not finite, or no references.
    """
    check_number("value", value)
    check_number("victim", victim)
    span = float(check_values("references", references).mean() - victim)
    return float(value - victim) / span if span else float("nan")
