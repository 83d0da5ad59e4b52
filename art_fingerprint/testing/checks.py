"""What a check is: a name and a call that raises ``AssertionError``, so that any test runner can use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn


@dataclass(frozen=True)
class Check:
    """One promise of one class, ready to be tried: ``check()``.

    :ivar name: What is promised.
    :ivar case: Name of the case it is tried on.
    :ivar run: Raises ``AssertionError`` if the promise is broken; whatever else the class raises passes.
    """

    name: str
    case: str
    run: Callable[[], None]

    def __call__(self) -> None:
        self.run()

    def __repr__(self) -> str:
        return f"Check({self.case}: {self.name})"


def checks_of(case: Any, functions: Mapping[str, Callable[[Any], None]]) -> list[Check]:
    """Return one check of a case for each function, by its name."""
    return [Check(name, case.label, partial(function, case)) for name, function in functions.items()]


def parametrize(checks: Sequence[Check]) -> Any:
    """Return ``pytest.mark.parametrize`` over checks: the test has one argument, ``check``, and calls it.

    :param checks: Of any number of cases.
    """
    import pytest  # no dependency of the package

    return pytest.mark.parametrize("check", [pytest.param(check, id=f"{check.case}-{check.name}") for check in checks])


def fail(message: str) -> NoReturn:
    """Raise ``AssertionError``; other than ``assert`` also under ``python -O``."""
    raise AssertionError(message)


def expect(condition: object, message: str) -> None:
    """Raise ``AssertionError`` with a message unless ``condition`` holds."""
    if not condition:
        fail(message)


def refused(
    call: Callable[[], object], error: type[BaseException] | tuple[type[BaseException], ...], what: str, name: str = ""
) -> BaseException:
    """Return the error that ``call`` raises, or fail.

    :param call: What must not work.
    :param error: What it has to raise.
    :param what: The call in words, for the message.
    :param name: What the error's message has to name, if anything.
    """
    kinds = error if isinstance(error, tuple) else (error,)
    wanted = " or ".join(kind.__name__ for kind in kinds)
    try:
        call()
    except kinds as raised:
        expect(name in str(raised), f"{what} is refused, but the message does not name {name!r}: {raised}")
        return raised
    except Exception as raised:
        raise AssertionError(f"{what} must raise {wanted}, it raised {type(raised).__name__}: {raised}") from raised
    fail(f"{what} must raise {wanted}, it was accepted.")
