"""Warnings in the name of the caller, however deep in the package they are found."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


def warn_caller(message: str) -> None:
    """Issue a ``UserWarning`` that points at the nearest caller outside the package."""
    level = 2
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "art_fingerprint":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
