"""Data sets by name, each with a deterministic split into the victim's data, held-apart data and test data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from art_fingerprint.core.checks import check_choice, check_flag, check_number
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.dataset import Dataset, split_by_class
from art_fingerprint.zoo.idx import IdxFile, read_published
from art_fingerprint.zoo.image_sets import IMAGE_SETS, data_root, fetch, load_image_set
from art_fingerprint.zoo.listing import DATA_VARIABLE

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "Dataset",
    "fashion_mnist_folders",
    "load_dataset",
    "load_digits",
    "load_fashion_mnist",
    "split_by_class",
]

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


def fashion_mnist_folders(root: Path | None = None) -> list[Path]:
    """Return the folders in which Fashion-MNIST is looked for, in this order.

    :param root: The user's folder; default: what the environment variable ``ART_FINGERPRINT_DATA`` names.
    """
    own = data_root(root)
    folders = [own / "fashion-mnist", own / "FashionMNIST" / "raw"] if own else []
    return [*folders, FASHION_MNIST_FOLDER]


def load_fashion_mnist(root: Path | None = None) -> Dataset:
    """Return Fashion-MNIST (Xiao et al., 2017): 28x28 grey images of ten kinds of clothes, 51000 for the victim, 9000
    held apart, 10000 for tests.

    The first two are the published training images; 15 % are held apart, as the RemovalNet paper does with GTSRB. The
    split never changes; it does not depend on any seed of an experiment. A mirrored garment is still one of its class.

    The four IDX files, packed by gzip or not, are read from the first folder that has them all: ``fashion-mnist`` or
    torchvision's ``FashionMNIST/raw`` in the user's folder, then the folder of Debian's package
    ``dataset-fashion-mnist``. Memory: 220 MB.

    :param root: The user's folder; default: what the environment variable ``ART_FINGERPRINT_DATA`` names.
    :raises DatasetError: a file is missing, damaged, or holds other data than were published.
    """
    advice = (
        f"Install Debian's package dataset-fashion-mnist, or put {', '.join(FASHION_MNIST_FILES)} (.gz or not) from "
        f"github.com/zalandoresearch/fashion-mnist into <folder>/fashion-mnist and set {DATA_VARIABLE}=<folder>."
    )
    x, y, x_test, y_test = read_published(fashion_mnist_folders(root), FASHION_MNIST_FILES, advice)
    nb_apart = int(0.15 * len(x))
    train, apart = split_by_class(y, (len(x) - nb_apart, nb_apart), 0, "fashion-mnist")

    def scaled(pixels: np.ndarray) -> np.ndarray:
        return (pixels[:, None] / np.float32(255)).astype(np.float32)

    y, y_test = y.astype(np.int64), y_test.astype(np.int64)
    x_train, x_apart = scaled(x[train]), scaled(x[apart])
    return Dataset("fashion-mnist", x_train, y[train], x_apart, y[apart], scaled(x_test), y_test, 10, hflip=True)


def _fetch_fashion_mnist(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(root), download=True)


_PARTS = ("train", "apart", "test")
DATASETS = tuple(sorted({"digits", "fashion-mnist", *IMAGE_SETS}))


def load_dataset(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    size: int | None = None,
    max_samples: int | Mapping[str, int] | None = None,
    substitute: str | None = None,
    lazy: bool | None = None,
) -> Dataset:
    """Return a data set by name. What each one needs on disk, its split and its licence: ``docs/data.md``.

    Splits, and the samples that ``max_samples`` keeps, are the same on each call and depend on no seed.

    :param name: One of :data:`DATASETS`.
    :param root: Folder that holds the data sets; default: what the environment variable ``ART_FINGERPRINT_DATA`` names.
    :param download: Let torchvision fetch the set into ``root`` first (Fashion-MNIST, CIFAR-10, GTSRB, CelebA). Its
        substitute set is never fetched.
    :param size: Height and width of the images; default: the set's own choice (32; 224 for ImageNet).
    :param max_samples: Most samples in each part, drawn with the class shares of the whole; or by part, as in
        ``{"train": 1000, "test": 500}``, parts being ``"train"``, ``"apart"`` and ``"test"``.
    :param substitute: Where the held-apart part is from: ``"own"``, 15 % of the training set; ``"none"``, empty; or a
        data set that goes with this one (CIFAR-10: ``"cinic10"``; HAM10000 and ISIC 2018: ``"bcn20000"``; CelebA:
        ``"lfw"``, ``"vggface2"``). Default: the paper's.
    :param lazy: ``True``: parts are :class:`.LazyImages`; ``False``: arrays; ``None``: arrays where a part
        takes no more than 3 GiB.
    :raises InvalidInputError: unknown name, or an option that this data set does not have.
    :raises DatasetError: files are missing, damaged or of another set: which, and what to put where.
    """
    if name not in DATASETS:
        raise InvalidInputError(f"There is no data set {name!r}; known are {', '.join(DATASETS)}.")
    check_flag("download", download)
    limits = _limits(max_samples)
    folder = data_root(root)
    if name in IMAGE_SETS:
        return load_image_set(name, folder, download, size, limits, substitute, lazy)
    given = [key for key, value in (("size", size), ("substitute", substitute), ("lazy", lazy)) if value is not None]
    if given:
        raise InvalidInputError(f"The data set {name!r} is as it is: {' and '.join(given)} must be left out.")
    if name == "digits":
        data = load_digits()
    else:
        if download:
            fetch("Fashion-MNIST", _fetch_fashion_mnist, folder)
        data = load_fashion_mnist(folder)
    return _limited(data, limits) if limits else data


def _limits(max_samples: object) -> dict[str, int]:
    if max_samples is None:
        return {}
    limits = max_samples if isinstance(max_samples, Mapping) else dict.fromkeys(_PARTS, max_samples)
    for part, limit in limits.items():
        check_choice("part in max_samples", part, _PARTS)
        check_number("max_samples", limit, 1, integer=True)
    return dict(limits)


def _limited(data: Dataset, limits: Mapping[str, int]) -> Dataset:
    train, apart, test = (
        split_by_class(y, (min(limits.get(part, len(y)), len(y)),), 0, "limit", data.name, part)[0]
        for part, y in zip(_PARTS, (data.y_train, data.y_apart, data.y_test), strict=True)
    )
    return replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_apart=data.x_apart[apart],
        y_apart=data.y_apart[apart],
        x_test=data.x_test[test],
        y_test=data.y_test[test],
    )
