"""References of docstrings, by short names as there, and each class on one API page only.

A reference is resolved if one documented object has the name, also through the bases of the class it stands in. What
exists in Python and is documented nowhere (a constant, a type of another package) is printed as it is. Everything else
stays a warning, and so an error of the build.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contents: nodes.Element) -> nodes.Node | None:
    """Answer Sphinx's question about a reference that it cannot resolve itself."""
    if node.get("refdomain") != "py":
        return None
    domain: Any = env.get_domain("py")
    target = node["reftarget"].lstrip(".")
    owner = found_in(node.get("py:module"), node.get("py:class"))
    bases = inspect.getmro(owner) if inspect.isclass(owner) else ()
    for name in (*(f"{base.__name__}.{target}" for base in bases), target):
        found = {full for full, _ in domain.find_obj(env, None, None, name, None, 1)}
        if len(found) == 1:
            return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], found.pop(), node, contents)
    return contents if exists(target, node.get("py:module"), bases) else None


def exists(target: str, module: str | None, bases: tuple[type, ...]) -> bool:
    """Tell whether a name is known in a class, in the modules of its bases, or by its full path."""
    known = (target in {**vars(base), **base.__dict__.get("__annotations__", {})} for base in bases)
    if any(known) or any(f"ivar {target}:" in (base.__doc__ or "") for base in bases):
        return True
    places = [module, *(base.__module__ for base in bases)]
    if any(found_in(place, target) is not None for place in places if place):
        return True
    parts = target.split(".")
    return any(found_in(".".join(parts[:i]), ".".join(parts[i:])) is not None for i in range(1, len(parts)))


def found_in(module: str | None, dotted: str | None) -> Any:
    """Return what a module holds under a dotted name, or ``None``."""
    if not (module and dotted):
        return None
    try:
        found: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in dotted.split("."):
        known = getattr(found, "__annotations__", {})  # a field of a dataclass without a default is no attribute
        found = getattr(found, part, known.get(part))
    return found


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, given: str | None, returned: str | None
) -> Any:
    """Write what Sphinx cannot parse, the default of a dataclass' field that is made anew each time, as dots."""
    return (given.replace("<factory>", "..."), returned) if given else None


def at_home(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave what a package exports to the package's page, and what a module only imports to that module's."""
    home = getattr(obj, "__module__", None)
    if what != "module" or not isinstance(home, str):
        return None
    page = importlib.import_module(app.env.temp_data["autodoc:module"])
    if hasattr(page, "__path__"):
        return None
    return True if home != page.__name__ or name in exports(page) else None


def exports(module: ModuleType) -> Iterator[str]:
    """Return what the package of a module exports."""
    return iter(getattr(importlib.import_module(module.__name__.rpartition(".")[0]), "__all__", ()))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all three."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-skip-member", at_home)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True}
