"""AUC and true-positive rates against worked cases, a slow count of all pairs and thresholds, and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.calibration import Direction, is_derived, threshold

DIRECTIONS: tuple[Direction, ...] = ("distance", "similarity")


@pytest.mark.parametrize(
    ("derived", "independent", "expected"),
    [
        ([1, 2], [3, 4, 5], 1.0),
        ([6, 7], [3, 4, 5], 0.0),
        ([1], [1], 0.5),
        ([2, 2, 2], [2, 2], 0.5),
        ([1, 4], [3, 5], 3 / 4),  # 1 < 3, 1 < 5, 4 < 5
        ([1, 3], [3, 5], 3.5 / 4),  # the pair 3, 3 counts half
        ([0, 0, 9], [0, 9], (0.5 + 1 + 0.5 + 1 + 0 + 0.5) / 6),
    ],
)
def test_auc_by_hand(derived: list[float], independent: list[float], expected: float) -> None:
    assert roc_auc(derived, independent, "distance") == pytest.approx(expected, abs=1e-15)
    assert roc_auc([-d for d in derived], [-i for i in independent], "similarity") == pytest.approx(expected)
    assert roc_auc(derived, independent, "similarity") == pytest.approx(1 - expected)


@pytest.mark.parametrize(
    ("derived", "independent", "fpr", "expected"),
    [
        ([1, 2, 8], [3, 4, 5, 6], 0.0, 2 / 3),
        ([1, 2, 8], [3, 4, 5, 6], 0.05, 2 / 3),  # four models cannot show 5 %: none may be flagged
        ([1, 3, 3.5, 8], [3, 4, 5, 6], 0.24, 1 / 4),  # a tie with the closest independent model flags neither
        ([1, 3, 3.5, 8], [3, 4, 5, 6], 0.25, 3 / 4),  # below 4: one independent model with them
        ([1, 3, 4, 8], [3, 3, 5, 6], 0.25, 1 / 4),  # two tie: flagging one flags both
        ([1, 3, 4, 8], [3, 3, 5, 6], 0.5, 3 / 4),
        ([1, 3, 4, 8], [3, 3, 5, 6], 0.99, 3 / 4),
        ([1, 3, 4, 8], [3, 3, 5, 6], 1.0, 1.0),
        ([7, 8], [3, 4], 0.5, 0.0),
        ([2], [2], 0.5, 0.0),
    ],
)
def test_tpr_by_hand(derived: list[float], independent: list[float], fpr: float, expected: float) -> None:
    assert tpr_at_fpr(derived, independent, "distance", fpr) == expected
    assert tpr_at_fpr([-d for d in derived], [-i for i in independent], "similarity", fpr) == expected


def samples() -> list[tuple[np.ndarray, np.ndarray]]:
    draws = np.random.default_rng(0)
    found = []
    for nb_derived, nb_independent in ((1, 1), (1, 7), (5, 3), (20, 20), (33, 40), (100, 57)):
        for ties in (False, True):
            derived, independent = draws.normal(0, 1, nb_derived), draws.normal(0.7, 1, nb_independent)
            found.append((derived.round(0), independent.round(0)) if ties else (derived, independent))
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_against_scikit_learn(direction: Direction) -> None:
    for derived, independent in samples():
        truth = np.repeat([1, 0], [len(derived), len(independent)])
        closeness = np.concatenate([derived, independent]) * (-1 if direction == "distance" else 1)
        assert roc_auc(derived, independent, direction) == pytest.approx(roc_auc_score(truth, closeness), abs=1e-12)
        false, true, _ = roc_curve(truth, closeness, drop_intermediate=False)
        for fpr in (0, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1):
            expected = true[false <= fpr + 1e-12].max()
            assert tpr_at_fpr(derived, independent, direction, fpr) == pytest.approx(expected, abs=1e-12)


def test_against_all_pairs_and_all_thresholds() -> None:
    for derived, independent in samples():
        pairs = [(d < i) + (d == i) / 2 for d in derived for i in independent]
        assert roc_auc(derived, independent, "distance") == pytest.approx(np.mean(pairs), abs=1e-12)
        best = 0.0
        for tau in (*derived, *independent, math.inf):
            if np.mean(independent < tau) <= 0.1:
                best = max(best, float(np.mean(derived < tau)))
        assert tpr_at_fpr(derived, independent, "distance", 0.1) == pytest.approx(best)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_rate_is_that_of_calibrated_thresholds(direction: Direction) -> None:
    for derived, independent in samples():
        if len(independent) < 10:
            continue
        tau = threshold(independent.tolist(), direction, "fpr", false_positive_rate=0.1)
        flagged = np.mean([is_derived(float(value), tau, direction, "fpr") for value in derived])
        assert tpr_at_fpr(derived, independent, direction, 0.1) == flagged


@pytest.mark.parametrize("bad", [[], [[1.0]], [math.nan], [1.0, math.inf], "text", None, 3.0, [None]])
def test_bad_scores(bad: Any) -> None:
    for call in (roc_auc, tpr_at_fpr):
        with pytest.raises(InvalidInputError, match="`derived`"):
            call(bad, [1.0], "distance")
        with pytest.raises(InvalidInputError, match="`independent`"):
            call([1.0], bad, "distance")


def test_bad_options() -> None:
    for call in (roc_auc, tpr_at_fpr):
        with pytest.raises(InvalidInputError, match="direction"):
            call([1.0], [2.0], "lower")  # type: ignore[arg-type]
    for fpr in (-0.1, 1.1, math.nan, "5 %"):
        with pytest.raises(InvalidInputError, match="fpr"):
            tpr_at_fpr([1.0], [2.0], "distance", fpr)  # type: ignore[arg-type]
