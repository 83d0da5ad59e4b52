"""Versions that a result may depend on, kept beside every result."""

from __future__ import annotations

import platform

import art
import numpy as np
import torch

from art_fingerprint._version import __version__


def versions() -> dict[str, str]:
    """Return the versions of this package, of the libraries that compute, and of Python."""
    return {
        "art_fingerprint": __version__,
        "art": art.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
