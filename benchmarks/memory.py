"""Memory settings that timings need."""

from __future__ import annotations

import os
import sys


def keep_freed_memory() -> None:
    """Start this script anew with glibc told not to give memory back to the system, unless somebody has told it."""
    settings = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
    if sys.platform == "linux" and not set(settings) & set(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})
