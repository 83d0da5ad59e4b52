"""How well one metric separates derived from independent models, without a threshold or at a false-positive rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from art_fingerprint.core.checks import check_choice, check_number, check_values
from art_fingerprint.verifiers.calibration import Direction, allowed_positives

Scores = Sequence[float] | np.ndarray


def roc_auc(derived: Scores, independent: Scores, direction: Direction) -> float:
    """Return the area under the ROC curve, in [0, 1].

    The chance that a derived model is closer to the victim than an independent one, ties counted half:
    ``(1 / D I) sum_d sum_i (1[d closer than i] + 1[d = i] / 2)`` (Mann-Whitney). 1 is perfect, 0.5 is chance.

    :param derived: Scores of models derived from the victim, finite.
    :param independent: Scores of independently trained models, finite.
    :param direction: ``"distance"`` (low means derived) or ``"similarity"`` (high means derived).
    :raises InvalidInputError: an empty side, a value that is not finite, or an unknown direction.
    """
    positive, negative = _closeness(derived, independent, direction)
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    not_above = np.searchsorted(ordered, positive, side="right")
    return float((below + not_above).mean() / (2 * len(negative)))


def tpr_at_fpr(derived: Scores, independent: Scores, direction: Direction, fpr: float = 0.05) -> float:
    """Return the largest share of derived models that one threshold flags at a false-positive rate of at most ``fpr``.

    A point of the ROC curve, never between two: ``floor(fpr I)`` of I independent models may be flagged, so fewer than
    ``1 / fpr`` of them give the rate at which none is. The threshold lies at the next independent model and excludes
    it, as the rule ``fpr`` of ``Verifier.calibrate`` has it.

    :param derived: Scores of models derived from the victim, finite.
    :param independent: Scores of independently trained models, finite.
    :param direction: ``"distance"`` or ``"similarity"``.
    :param fpr: False-positive rate in [0, 1].
    :raises InvalidInputError: an empty side, a value that is not finite, an unknown direction, or a bad rate.
    """
    check_number("fpr", fpr, 0, 1)
    positive, negative = _closeness(derived, independent, direction)
    allowed = allowed_positives(len(negative), fpr)
    if allowed >= len(negative):
        return 1.0
    return float((positive > np.sort(negative)[-1 - allowed]).mean())


def _closeness(derived: Scores, independent: Scores, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides as float64 values that are high for models close to the victim."""
    check_choice("direction", direction, ("distance", "similarity"))
    sides = []
    for name, values in (("derived", derived), ("independent", independent)):
        side = check_values(name, values)
        sides.append(-side if direction == "distance" else side)
    return sides[0], sides[1]
