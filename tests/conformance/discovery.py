"""Find every class of a kind in a package, exported or not."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
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
            if not inspect.isabstract(kind) and kind.__module__.startswith(package.__name__):
                found.add(kind)
    return found
