"""Parameters, alike for attacks and verifiers: JSON values, and changes that hold together or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from art_fingerprint.core.checks import shown
from art_fingerprint.exceptions import InvalidInputError


def as_json(value: Any) -> Any:
    """Return a value as JSON keeps it: tuples become lists, NumPy scalars Python numbers, whatever holds them."""
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def as_python(owner: object, names: Iterable[str]) -> None:
    """Turn those of an object's attributes that are NumPy scalars, which torch and JSON do not always take, into
    Python numbers."""
    for name in names:
        value = getattr(owner, name, None)  # a subclass may set its own after the base class has checked
        if isinstance(value, np.generic):
            setattr(owner, name, value.item())


def strict_json(text: str) -> Any:
    """Read JSON in which no key comes twice and every number is one.

    :raises ValueError: it is no such JSON.
    :raises RecursionError: it is nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError(f"a key comes twice among {shown([name for name, _ in pairs])}")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


@contextmanager
def changed_together(owner: object, known: Collection[str], names: Collection[str]) -> Iterator[None]:
    """Give ``owner`` all its old values back if the block, which sets and checks some parameters, raises.

    :param owner: Object whose attributes the parameters are.
    :param known: Names of all its parameters.
    :param names: Those that are about to be changed.
    :raises InvalidInputError: a name is not known; the block does not run.
    """
    unknown = set(names) - set(known)
    if unknown:
        raise InvalidInputError(
            f"{type(owner).__name__} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(known)}."
        )
    before = {name: getattr(owner, name) for name in names}
    try:
        yield
    except BaseException:
        for name, value in before.items():
            setattr(owner, name, value)
        raise
