"""Values that are no value of any parameter."""

from __future__ import annotations

from typing import Any

NONSENSE: tuple[Any, ...] = (object(), {"a": 1}, -1.5, "nonsense", float("nan"))
