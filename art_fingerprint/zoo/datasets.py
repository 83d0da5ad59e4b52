"""Data sets by name, each with a deterministic split into the victim's data, held-apart data and test data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from art_fingerprint.core.digests import array_digest
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.idx import IdxFile, read_published

DATA_VARIABLE = "ART_FINGERPRINT_DATA"
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": IdxFile(
        (60000, 28, 28), "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"
    ),
    "train-labels-idx1-ubyte": IdxFile((60000,), "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"),
    "t10k-images-idx3-ubyte": IdxFile(
        (10000, 28, 28), "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"
    ),
    "t10k-labels-idx1-ubyte": IdxFile((10000,), "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9"),
}


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


def fashion_mnist_folders() -> list[Path]:
    """Return the folders in which Fashion-MNIST is looked for, in this order."""
    own = os.environ.get(DATA_VARIABLE)
    folders = [Path(own, "fashion-mnist"), Path(own, "FashionMNIST", "raw")] if own else []
    return [*folders, FASHION_MNIST_FOLDER]


def load_fashion_mnist() -> Dataset:
    """Return Fashion-MNIST (Xiao et al., 2017): 28x28 grey images of ten kinds of clothes, 51000 for the victim, 9000
    held apart, 10000 for tests.

    The first two are the published training images; 15 % are held apart, as the RemovalNet paper does with GTSRB. The
    split never changes; it does not depend on any seed of an experiment. A mirrored garment is still one of its class.

    The four IDX files, packed by gzip or not, are read from the first folder that has them all: ``fashion-mnist`` or
    torchvision's ``FashionMNIST/raw`` in the folder that the environment variable ``ART_FINGERPRINT_DATA`` names, then
    the folder of Debian's package ``dataset-fashion-mnist``. Memory: 220 MB.

    :raises DatasetError: a file is missing, damaged, or holds other data than were published.
    """
    advice = (
        f"Install Debian's package dataset-fashion-mnist, or put {', '.join(FASHION_MNIST_FILES)} (.gz or not) from "
        f"github.com/zalandoresearch/fashion-mnist into <folder>/fashion-mnist and set {DATA_VARIABLE}=<folder>."
    )
    x, y, x_test, y_test = read_published(fashion_mnist_folders(), FASHION_MNIST_FILES, advice)
    nb_apart = int(0.15 * len(x))
    train, apart = split_by_class(y, (len(x) - nb_apart, nb_apart), 0, "fashion-mnist")

    def scaled(pixels: np.ndarray) -> np.ndarray:
        return (pixels[:, None] / np.float32(255)).astype(np.float32)

    y, y_test = y.astype(np.int64), y_test.astype(np.int64)
    x_train, x_apart = scaled(x[train]), scaled(x[apart])
    return Dataset("fashion-mnist", x_train, y[train], x_apart, y[apart], scaled(x_test), y_test, 10, hflip=True)


DATASETS = {"digits": load_digits, "fashion-mnist": load_fashion_mnist}


def load_dataset(name: str) -> Dataset:
    """Return a data set by name.

    :raises InvalidInputError: unknown name.
    """
    if name not in DATASETS:
        raise InvalidInputError(f"There is no data set {name!r}; known are {', '.join(sorted(DATASETS))}.")
    return DATASETS[name]()
