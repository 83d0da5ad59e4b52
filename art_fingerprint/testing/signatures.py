"""Parameters of a constructor and what is written of them, also where ``**options`` hands them to a base class."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any


def _constructors(kind: type) -> Iterator[Any]:
    """Yield a class's constructor, and those of its bases as far as each hands on what it does not name."""
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        yield vars(base)["__init__"]
        found = inspect.signature(vars(base)["__init__"]).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
            return


def parameters_of(kind: type) -> dict[str, inspect.Parameter]:
    """Return name to parameter of what a class is made with."""
    found: dict[str, inspect.Parameter] = {}
    for constructor in _constructors(kind):
        for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
    return found


def documentation_of(kind: type) -> str:
    """Return the docstrings in which the parameters may be described."""
    return "\n".join(str(text) for text in (kind.__doc__, *(made.__doc__ for made in _constructors(kind))))
