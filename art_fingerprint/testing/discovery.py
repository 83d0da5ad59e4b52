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
    """Return the names that no Markdown page below a folder mentions as a word of its own."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(folder.rglob("*.md")))
    words = set(re.findall(r"\w+", text))
    return sorted(set(names) - words)
