"""Skips for tests of data sets that are not on every machine."""

from __future__ import annotations

import pytest

from art_fingerprint.zoo.datasets import fashion_mnist_folders

# Files that are there but wrong do not skip a test: they fail it.
NEEDS_FASHION_MNIST = pytest.mark.skipif(
    not any(folder.is_dir() for folder in fashion_mnist_folders()),
    reason="needs Fashion-MNIST: Debian's package dataset-fashion-mnist, or its files and ART_FINGERPRINT_DATA",
)
