"""Shared fixtures: tiny classifiers on the CPU, one thread, and ART's data folder out of the user's home."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable

if "ART_DATA_PATH" not in os.environ:
    os.environ["ART_DATA_PATH"] = tempfile.mkdtemp(prefix="art-data-")
    atexit.register(shutil.rmtree, os.environ["ART_DATA_PATH"], ignore_errors=True)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from art.estimators.classification import PyTorchClassifier  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from art_fingerprint.testing.models import TinyCNN as TinyCNN  # noqa: E402
from art_fingerprint.testing.models import wrapped as wrap  # noqa: E402

torch.set_num_threads(1)
# The same cases in every run; tests/fuzz/generated.py says how many.
settings.register_profile(
    "fuzz", derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
settings.load_profile("fuzz")


@pytest.fixture
def make_classifier() -> Callable[..., PyTorchClassifier]:
    """Factory of untrained tiny classifiers with BatchNorm statistics away from their start values."""

    def make(seed: int = 0, channels: int = 1, nb_classes: int = 4, **options: object) -> PyTorchClassifier:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = TinyCNN(channels, nb_classes)
            network(torch.rand(64, channels, 8, 8))
        return wrap(network.eval(), (channels, 8, 8), nb_classes, **options)

    return make


@pytest.fixture
def images() -> np.ndarray:
    """Forty one-channel images in [0, 1]."""
    return np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
