"""Data sets by name, each with a deterministic split into the victim's data, held-apart data and test data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from art_fingerprint.core.digests import array_digest
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.exceptions import InvalidInputError


@dataclass(frozen=True)
class Dataset:
    """Images ``(n, C, H, W)`` float32 in [0, 1] and labels ``(n,)`` int64, in three disjoint parts.

    :ivar name: Name of the data set.
    :ivar x_train: The victim's training images.
    :ivar y_train: Their labels.
    :ivar x_apart: Images of the same kind that no victim or negative is trained on: the paper's "surrogate data".
    :ivar y_apart: Their labels.
    :ivar x_test: Test images.
    :ivar y_test: Their labels.
    :ivar nb_classes: Number of classes.
    :ivar hflip: Whether mirroring keeps the class.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_apart: np.ndarray
    y_apart: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    nb_classes: int
    hflip: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return tuple(self.x_train.shape[1:])

    @property
    def digest(self) -> str:
        """SHA-256 over all parts."""
        return array_digest(self.x_train, self.y_train, self.x_apart, self.y_apart, self.x_test, self.y_test)


def split_by_class(y: np.ndarray, sizes: tuple[int, ...], seed: int, *purpose: str) -> list[np.ndarray]:
    """Return disjoint index sets of the given sizes, each with the class shares of ``y`` as nearly as possible.

    :param y: Labels ``(n,)``.
    :param sizes: Sizes that sum to at most n.
    :raises InvalidInputError: more is asked for than there is.
    """
    if sum(sizes) > len(y):
        raise InvalidInputError(f"Parts of {sizes} samples were asked for, but there are {len(y)}.")
    generator = numpy_generator(seed, "split", *purpose)
    order = generator.permutation(len(y))
    # The k-th of n_c samples of a class gets position (k + u) / n_c: sorted by position, every stretch is stratified.
    position = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        position[members] = (np.arange(len(members)) + generator.random()) / len(members)
    ranked = np.argsort(position, kind="stable")
    return [np.sort(part) for part in np.split(ranked, np.cumsum(sizes))[: len(sizes)]]


def load_digits() -> Dataset:
    """Return scikit-learn's handwritten digits: 1797 images of 8x8, 1000 for the victim, 437 held apart, 360 for tests.

    The split never changes; it does not depend on any seed of an experiment.
    """
    from sklearn.datasets import load_digits as read

    raw = read()
    x = (raw.images[:, None] / 16).astype(np.float32)
    y = raw.target.astype(np.int64)
    train, apart, test = split_by_class(y, (1000, 437, 360), 0, "digits")
    return Dataset("digits", x[train], y[train], x[apart], y[apart], x[test], y[test], 10, hflip=False)


DATASETS = {"digits": load_digits}


def load_dataset(name: str) -> Dataset:
    """Return a data set by name.

    :raises InvalidInputError: unknown name.
    """
    if name not in DATASETS:
        raise InvalidInputError(f"There is no data set {name!r}; known are {', '.join(sorted(DATASETS))}.")
    return DATASETS[name]()
