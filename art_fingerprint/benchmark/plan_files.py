"""Plans from YAML, TOML and JSON files."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import yaml

from art_fingerprint.benchmark.plan import Plan, plan_from
from art_fingerprint.core.files import regular_file
from art_fingerprint.exceptions import FingerprintError, InvalidInputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


# The largest plan that makes sense is far from either: it would run for years.
_MOST_BYTES = 500_000
_MOST_NODES = 50_000


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan from a YAML, TOML or JSON file; see :func:`plan_from` for what it may hold.

    :raises InvalidInputError: the file cannot be read, or something in it is unknown or wrong.
    """
    file = regular_file(path, "plan file")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text) if file.suffix == ".toml" else _from_yaml(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError, TypeError) as error:
        raise InvalidInputError(f"The plan {file} cannot be read: {error}") from error
    try:
        return plan_from(found)
    except FingerprintError as error:
        raise InvalidInputError(f"The plan {file} is wrong: {error}") from error


def _from_yaml(text: str) -> object:
    loader = _Strict(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _MOST_NODES:
            raise ValueError(f"its aliases unfold to more than {_MOST_NODES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node stands for if every alias is written out; infinity if it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


class _Strict(yaml.SafeLoader):
    """YAML without two things that make settings vanish: a key that comes twice, and 1e-3 as a text."""


def _unique(loader: _Strict, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag != "tag:yaml.org,2002:merge":
            key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} comes twice", key_node.start_mark)
            seen.add(key)
    loader.flatten_mapping(node)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Strict.add_constructor("tag:yaml.org,2002:map", _unique)
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
