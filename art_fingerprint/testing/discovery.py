"""Find every class of a kind in a package, exported or not, and the pages that say nothing about one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


def concrete_subclasses(package: ModuleType, base: type) -> set[type]:
    """Return the subclasses of ``base`` that a package's modules define and that can be instantiated."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found: set[type] = set()
    queue: list[type] = [base]
    while queue:
        kinds: list[type] = queue.pop().__subclasses__()
        for kind in kinds:
            queue.append(kind)
            if not inspect.isabstract(kind) and f"{kind.__module__}.".startswith(f"{package.__name__}."):
                found.add(kind)
    return found


def without_a_page(names: Iterable[str], folder: Path) -> list[str]:
    """Return the names that no Markdown page below a folder has as a word of its own, or through ``automodule``.

    :param names: Names of classes.
    :param folder: Where the pages are. ``.. automodule:: package.module`` with ``:members:`` stands for the names in
        that module's ``__all__``.
    """
    known: set[str] = set()
    for page in sorted(folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        known.update(re.findall(r"\w+", text))
        for module in re.findall(r"\.\. automodule:: ([\w.]+)\n\s+:members:", text):
            known.update(getattr(importlib.import_module(module), "__all__", ()))
    return sorted(set(names) - known)
