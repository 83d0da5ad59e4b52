"""Checks of arrays and parameters at the border, parameters as JSON, changes that hold together."""

from __future__ import annotations

import json
import math
import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from art_fingerprint.core.checks import (
    check_choice,
    check_flag,
    check_images,
    check_labels,
    check_number,
    check_seed,
    check_sequence,
)
from art_fingerprint.core.parameters import as_json, changed_together
from art_fingerprint.exceptions import InvalidInputError

SHAPE = (1, 2, 3)


# ---------------------------------------------------------------------- images
def test_images_are_cast_and_copied_only_if_need_be() -> None:
    x = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)
    assert check_images(x, SHAPE) is x
    frozen = x.copy()
    frozen.setflags(write=False)
    for given in (x.astype(np.float64), np.asfortranarray(x), frozen, x.astype(np.float16)):
        found = check_images(given, SHAPE)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.flags.writeable
        np.testing.assert_allclose(found, x, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], "NumPy array"),
        (torch.zeros(2, *SHAPE), "NumPy array"),
        (np.zeros((2, 3, 1, 2)), r"shape \(n, 1, 2, 3\)"),
        (np.zeros(SHAPE), "sample axis"),
        (np.zeros((0, *SHAPE)), "empty"),
        (np.zeros((2, *SHAPE), np.uint8), "Scale integer"),
        (np.zeros((2, *SHAPE), object), "dtype object"),
        (np.full((2, *SHAPE), np.nan), "12 NaN"),
        (np.full((2, *SHAPE), 1e300), "infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_bad_images(x: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        check_images(x, SHAPE, name="probes")
    assert "`probes`" in str(error.value)


def test_images_outside_the_range_give_a_warning() -> None:
    x = np.linspace(0, 2, 12, dtype=np.float32).reshape(2, *SHAPE)
    with pytest.warns(UserWarning, match=r"\[0, 2\]"):
        check_images(x, SHAPE, (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images(x, SHAPE, (0, 2))
        check_images(x, SHAPE, (np.zeros((1, 1, 1)), np.full((1, 1, 1), 2.0)))
        check_images(x, SHAPE, None)


# ---------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    "y",
    [
        [2, 0, 1],
        np.array([2, 0, 1], np.uint8),
        np.array([2, 0, 1], np.uint64),
        np.array([[2], [0], [1]]),
        np.array([2.0, 0.0, 1.0]),
        np.eye(3)[[2, 0, 1]],
        np.eye(3, dtype=bool)[[2, 0, 1]],
        torch.tensor([2, 0, 1]),
    ],
)
def test_labels(y: Any) -> None:
    found = check_labels(y, 3, 3)
    assert found.dtype == np.int64
    assert found.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (3, "each of the 3"),
        ([0, 1], "each of the 3"),
        ([[1], [1, 2], [0]], "array of class indices"),
        (torch.zeros(3, requires_grad=True), "array of class indices"),
        (np.zeros((3, 4)), "shape"),
        (np.full((3, 3), 1 / 3), "one-hot"),
        ([0.5, 1, 2], "fractions"),
        ([0.0, np.inf, 1], "infinite"),
        ([0.0, np.nan, 1], "NaN"),
        (["a", "b", "c"], "dtype"),
        ([True, False, True], "dtype bool"),
        ([0, 1, 3], "0 to 2"),
        ([0, -1, 2], "from -1"),
        (np.array([0, 1, 2**64 - 1], np.uint64), "0 to 2"),
    ],
)
def test_bad_labels(y: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_labels(y, 3, 3)


# ---------------------------------------------------------------------- parameters
@pytest.mark.parametrize("value", [1, 0, np.int64(1), np.float32(0.5), 0.25, np.uint8(1)])
def test_numbers(value: Any) -> None:
    check_number("rate", value, 0, 1)


@pytest.mark.parametrize("value", [True, np.bool_(True), "1", None, math.nan, math.inf, np.float32("nan"), 2, -1, [1]])
def test_bad_numbers(value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"`rate` must be a number in \[0, 1\]"):
        check_number("rate", value, 0, 1)


def test_bounds_of_numbers() -> None:
    check_number("rate", 1e-9, 0, 1, open_low=True)
    for value, options in ((0, {"open_low": True}), (1, {"open_high": True})):
        check_number("rate", value, 0, 1)
        with pytest.raises(InvalidInputError, match=r"[(\[]0, 1[)\]]"):
            check_number("rate", value, 0, 1, **options)
    with pytest.raises(InvalidInputError, match="an integer"):
        check_number("count", 1.0, 1, integer=True)
    check_number("count", 2**63 - 1, 1, integer=True)
    for value in (2**63, 10**400, 10**5000):
        with pytest.raises(InvalidInputError, match="`count` must be an integer in"):
            check_number("count", value, 1, integer=True)
        with pytest.raises(InvalidInputError, match="`share` must be a number") if value > 2**63 else nullcontext():
            check_number("share", value, 1)


def test_seeds_are_63_bit_numbers() -> None:
    for seed in (0, 2**63 - 1, np.int64(5)):
        check_seed(seed)
    for seed in (-1, 2**63, 10**400, 1.0, None):
        with pytest.raises(InvalidInputError, match="seed"):
            check_seed(seed)


def test_choices() -> None:
    check_choice("units", "input", ("input", "standardised"))
    check_choice("axis", -1, (1, -1))
    for value in ("pixels", None, 1, ["input"], np.array(["input", "input"])):
        with pytest.raises(InvalidInputError, match="'input', 'standardised'"):
            check_choice("units", value, ("input", "standardised"))
    with pytest.raises(InvalidInputError, match="axis"):
        check_choice("axis", 1.0, (1, -1))


def test_sequences_and_flags() -> None:
    found = check_sequence("layers", np.array([1, 2]))
    assert found == (1, 2)
    assert all(type(item) is int for item in found)
    assert check_sequence("layers", {"a": 1}.keys()) == ("a",)
    for value in ("abc", b"abc", 3, None, np.array(3)):
        with pytest.raises(InvalidInputError, match="sequence"):
            check_sequence("layers", value)
    check_flag("clip", np.bool_(False))
    for value in (0, "yes", None):
        with pytest.raises(InvalidInputError, match="True or False"):
            check_flag("clip", value)


def test_parameters_as_json() -> None:
    value = {"a": (1, [np.float32(0.5), (np.int64(2),)]), "b": np.bool_(True), "c": None}
    assert as_json(value) == json.loads(json.dumps(as_json(value))) == {"a": [1, [0.5, [2]]], "b": True, "c": None}


def test_changes_hold_together_or_not_at_all() -> None:
    class Owner:
        first = 1
        second = 2

    owner = Owner()
    with changed_together(owner, ["first", "second"], ["first"]):
        owner.first = 3

    def fail() -> None:
        with changed_together(owner, ["first", "second"], ["first", "second"]):
            owner.first = 5
            owner.second = owner.first // 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (owner.first, owner.second) == (3, 2)
    with pytest.raises(InvalidInputError, match="Owner has no parameter third; it has first, second"):
        changed_together(owner, ["first", "second"], ["first", "third"]).__enter__()
