"""Tests on generated cases: few of them by default, many with ``-m slow``, counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

Test = Callable[..., None]


def generated(few: int, many: int, **strategies: SearchStrategy[Any]) -> Callable[[Test], Test]:
    """Run a test on cases from hypothesis. Its other arguments are fixtures and parameters, as in any test.

    :param few: Cases by default.
    :param many: Cases with ``-m slow``.
    :param strategies: Argument to strategy.
    """

    def decorate(test: Test) -> Test:
        def run(request: pytest.FixtureRequest, nb_cases: int, **others: Any) -> None:
            count = 0

            def case(**drawn: Any) -> None:
                nonlocal count
                count += 1
                test(**others, **drawn)

            settings(max_examples=nb_cases)(given(**strategies)(case))()
            request.node.user_properties.append(("cases", count))
            assert count >= nb_cases

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        run.__dict__.update(vars(test))  # marks
        own = [p for name, p in inspect.signature(test).parameters.items() if name not in strategies]
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("request", "nb_cases")]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]
        )
        depths = [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]
        return pytest.mark.parametrize("nb_cases", depths)(run)

    return decorate
