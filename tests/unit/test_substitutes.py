"""Substitute sets: shares that nest, rebalancing with new samples, and sets that must not share any."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.substitutes import (
    RATIOS,
    check_disjoint,
    kernel_widths,
    overlap,
    oversample,
    rebalance_samples,
    select_substitute,
)

COUNTS = np.repeat([0, 1, 2], [5, 2, 1])  # G14


def some_images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 1, 3, 4), dtype=np.float32)


# ---------------------------------------------------------------------- selection
@pytest.mark.parametrize("selection", ["stratified", "random"])
def test_smaller_shares_are_the_beginning_of_larger_ones(selection: str) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 500)
    assert RATIOS == (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2)
    sets = [select_substitute(labels, ratio, selection, seed=3) for ratio in RATIOS]
    assert [len(chosen) for chosen in sets] == list(range(10, 101, 10))
    for chosen in sets:
        assert chosen.tolist() == sets[-1][: len(chosen)].tolist()


def test_new_samples_have_no_index() -> None:
    with pytest.raises(InvalidInputError, match="makes new samples.*rebalance_samples"):
        select_substitute(COUNTS, 1.0, rebalance="rose")


# ---------------------------------------------------------------------- rebalancing
@pytest.mark.parametrize("method", ["ros", "rose"])
def test_every_class_becomes_as_large_as_the_largest(method: str) -> None:
    x = some_images(8)
    kept = x.copy()
    more, labels = rebalance_samples(x, COUNTS, method, seed=2)
    assert more.shape == (15, 1, 3, 4)
    assert more.dtype == np.float32
    assert np.bincount(labels).tolist() == [5, 5, 5]
    assert np.array_equal(more[:8], x)
    assert np.array_equal(labels[:8], COUNTS)
    assert np.array_equal(x, kept)
    added = zip(more[8:], labels[8:], strict=True)
    same = [any(np.array_equal(row, old) for old in x[label == COUNTS]) for row, label in added]
    # the class of one sample has no deviation to draw from
    assert same == ([True] * 7 if method == "ros" else (labels[8:] == 2).tolist())


def test_repeats_are_those_of_the_selection() -> None:
    x, y = some_images(40), np.repeat([0, 1, 2], [25, 10, 5])
    more, labels = rebalance_samples(x, y, "ros", seed=7)
    filled = np.concatenate([np.arange(40), oversample(y, 7)])
    assert np.array_equal(more, x[filled])
    assert np.array_equal(labels, y[filled])
    for method in ("ros", "rose"):
        first, again, other = (rebalance_samples(x, y, method, seed=seed)[0] for seed in (7, 7, 8))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_kernel_width_by_hand() -> None:
    x = np.array([[0.0], [1.0]])
    assert kernel_widths(x) == pytest.approx([0.6520], abs=1e-4)  # (2/3)^0.2 = 0.92211, sigma = 0.70711
    wide = np.stack([np.zeros(96), np.ones(96), np.full(96, 2.0)])  # d = 96, n = 3: (4 / 294)^(1 / 100), sigma = 1
    assert kernel_widths(wide, 0.1) == pytest.approx([0.1 * (4 / 294) ** 0.01] * 96)
    assert kernel_widths(wide[:1]).tolist() == [0.0] * 96


def test_smoothed_bootstrap_has_the_kernel_s_spread() -> None:
    """Two samples far apart: what lies around each of them is noise of the width of the kernel in each pixel."""
    x = np.concatenate([some_images(20_000), -np.ones((1, 1, 3, 4), np.float32), np.ones((1, 1, 3, 4), np.float32)])
    x[-1, 0, 0, 0] = -1.0  # no spread in this pixel
    y = np.repeat([0, 1], [20_000, 2])
    more, _ = rebalance_samples(x, y, "rose", bandwidth=0.1, clip_values=(-5.0, 5.0))
    added = more[20_002:].astype(np.float64)
    nearest = np.where(added[:, 0, 1, 1] > 0, 1, 0)
    assert abs(nearest.mean() - 0.5) < 0.02
    noise = added - x[[20_000, 20_001]][nearest]
    assert not noise[:, 0, 0, 0].any()
    wanted = 0.1 * (4 / (14 * 2)) ** (1 / 16) * math.sqrt(2)
    spread = noise.reshape(len(noise), -1)[:, 1:]
    np.testing.assert_allclose(spread.std(0), wanted, rtol=0.03)
    np.testing.assert_allclose(spread.mean(0), 0, atol=0.01)
    correlation = np.corrcoef(spread[:, :4].T) - np.eye(4)
    assert np.abs(correlation).max() < 0.04  # noise is drawn for each pixel


def test_smoothed_bootstrap_stays_in_range() -> None:
    x = np.clip(some_images(60) * 2 - 0.5, 0, 1)
    y = np.repeat([0, 1], [50, 10])
    more, _ = rebalance_samples(x, y, "rose", bandwidth=1.0)
    assert more.min() == 0.0
    assert more.max() == 1.0
    plain, _ = rebalance_samples(x, y, "rose", bandwidth=0.0)
    assert np.array_equal(plain, rebalance_samples(x, y, "ros")[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "smote"}, "`method`"),
        ({"method": None}, "`method`"),
        ({"bandwidth": -0.1}, "`bandwidth`"),
        ({"bandwidth": math.nan}, "`bandwidth`"),
        ({"clip_values": (1.0, 0.0)}, "`clip_values`"),
        ({"seed": -1}, "`seed`"),
        ({"y": COUNTS[:7]}, r"each of the 8 samples, got shape \(7,\)"),
        ({"y": np.eye(3)[COUNTS]}, r"got shape \(8, 3\)"),
        ({"x": np.zeros((8, 2), np.uint8)}, "x / 255"),
        ({"x": np.full((8, 2), np.nan)}, "NaN"),
        ({"x": np.zeros((0, 2), np.float32), "y": COUNTS[:0]}, "empty"),
        ({"x": [[0.0]] * 8}, "NumPy array"),
    ],
    ids=str,
)
def test_bad_arguments_of_rebalancing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        rebalance_samples(**{"x": some_images(8), "y": COUNTS, **options})


# ---------------------------------------------------------------------- disjointness
def test_overlap_names_what_is_in_both() -> None:
    a, b = some_images(6), some_images(9, seed=1)
    assert [found.tolist() for found in overlap(a, b)] == [[], []]
    b[4], b[7], b[8] = a[2], a[5], a[2]
    assert [found.tolist() for found in overlap(a, b)] == [[2, 5], [4, 7, 8]]
    assert [found.tolist() for found in overlap(b, a)] == [[4, 7, 8], [2, 5]]
    assert overlap(a, a)[0].tolist() == list(range(6))
    assert [len(found) for found in overlap(a[:0], b)] == [0, 0]


def test_number_types_and_last_bits_make_no_difference() -> None:
    raw = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    wide, narrow = raw / 255, raw.astype(np.float32) * np.float32(1 / 255)
    assert not np.array_equal(wide.astype(np.float32), narrow)  # another rounding
    assert overlap(wide, narrow)[0].tolist() == list(range(50))
    assert overlap(raw, raw.astype(np.float64))[1].tolist() == list(range(50))
    changed = narrow.copy()
    changed[:, 1, 2, 3] += 1 / 255  # one grey level in one pixel
    assert overlap(narrow, changed)[0].tolist() == []
    zero = np.zeros((1, 2, 2), np.float32)
    assert len(overlap(zero, -zero)[0]) == 1


def test_shared_samples_are_refused_with_counts_and_indices() -> None:
    train, test = some_images(30), some_images(20, seed=1)
    apart = some_images(25, seed=2)
    check_disjoint(apart, {"training": train, "test": test})
    apart[3] = train[20]
    apart[5:17] = test[:12]
    with pytest.raises(InvalidInputError) as error:
        check_disjoint(apart, {"training": train, "test": test, "other": some_images(4, seed=3)})
    text = str(error.value)
    assert "1 of its 25 samples (indices 3) are 1 of the 30 in 'training' (indices 20)" in text
    assert "12 of its 25 samples (indices 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ...) are 12 of the 20 in 'test'" in text
    assert "other" not in text


def test_samples_of_other_shapes_cannot_be_compared() -> None:
    with pytest.raises(InvalidInputError, match=r"one shape, got \(1, 3, 4\) and \(3, 4\)"):
        overlap(some_images(2), some_images(2)[:, 0])


def test_digits_are_held_apart() -> None:
    data = load_digits()
    check_disjoint(data.x_apart, {"training": data.x_train, "test": data.x_test})
    with pytest.raises(InvalidInputError, match="1000 of the 1000 in 'training'"):
        check_disjoint(data.x_train, {"training": data.x_train})
