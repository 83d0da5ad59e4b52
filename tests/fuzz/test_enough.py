"""The rule itself, and the number of cases of the slow suite."""

from __future__ import annotations

import time

import numpy as np
import pytest

from art_fingerprint.exceptions import InvalidInputError
from tests.fuzz.conftest import ENOUGH
from tests.fuzz.outcomes import Hang, Refused, memory_limit, outcome_is_allowed


def test_the_slow_suite_has_ten_thousand_cases(declared_cases: int | None) -> None:
    if declared_cases is None:
        pytest.skip("only some of the modules were collected")
    assert declared_cases >= ENOUGH


def failing(error: BaseException) -> None:
    raise error


def test_results_and_named_errors_are_allowed() -> None:
    assert outcome_is_allowed(lambda: 3) == 3
    for error in (InvalidInputError("`x` is empty"), ValueError("x is odd")):
        found = outcome_is_allowed(lambda error=error: failing(error), "x")
        assert isinstance(found, Refused)
        assert found.error is error


@pytest.mark.parametrize("error", [TypeError("x"), RuntimeError("x"), KeyError("x"), MemoryError("x")])
def test_other_errors_are_not(error: Exception) -> None:
    with pytest.raises(type(error)):
        outcome_is_allowed(lambda: failing(error), "x")
    outcome_is_allowed(lambda: failing(error), "x", also=(type(error),))


@pytest.mark.parametrize("message", ["", "the truth value is ambiguous"])
def test_errors_that_name_nothing_are_not(message: str) -> None:
    with pytest.raises(AssertionError):
        outcome_is_allowed(lambda: failing(ValueError(message)), "x", "y")


def test_a_hang_is_not() -> None:
    with pytest.raises(Hang):
        outcome_is_allowed(lambda: time.sleep(5), seconds=0.05)


def test_memory_beyond_the_input_is_not() -> None:
    with memory_limit(1_000_000):
        np.zeros(9_000_000, np.uint8)
    with pytest.raises(AssertionError, match="bytes for an input"), memory_limit(1_000):
        np.zeros(9_000_000, np.uint8)
