"""What a data set is, and how one is split."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from art_fingerprint.core.checks import check_groups, check_number
from art_fingerprint.core.digests import array_digest
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.lazy_images import LazyImages

UNKNOWN = -1  # label of a substitute image whose class the victim does not have


@dataclass(frozen=True)
class Dataset:
    """Images ``(n, C, H, W)`` float32 in [0, 1] and labels ``(n,)`` int64, in three disjoint parts.

    A part that is too large for memory is a :class:`.LazyImages`: it has shape, dtype and length, and gives arrays when
    it is indexed.

    :ivar name: Name of the data set.
    :ivar x_train: The victim's training images.
    :ivar y_train: Their labels.
    :ivar x_apart: Images that no victim or negative is trained on: the paper's "surrogate data", of the same set or of
        another one. May be empty.
    :ivar y_apart: Their labels; -1 where their class is none of the victim's or is not known.
    :ivar x_test: Test images.
    :ivar y_test: Their labels.
    :ivar nb_classes: Number of classes.
    :ivar hflip: Whether mirroring keeps the class.
    :ivar groups: Names ``(n,)`` of what the training images show, one lesion or one sign; images of one group are
        nearly the same image. ``None``: each image is its own.
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
    groups: np.ndarray | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return tuple(self.x_train.shape[1:])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over all parts, computed once; of a part that is not in memory, over names and sizes of its files."""
        parts = (self.x_train, self.y_train, self.x_apart, self.y_apart, self.x_test, self.y_test)
        return array_digest(*(_named(part) if isinstance(part, LazyImages) else part for part in parts))


def _named(images: LazyImages) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(images.digest), np.uint8)


def stratified_order(y: np.ndarray, seed: int, *purpose: str) -> np.ndarray:
    """Return an order of the samples in which every stretch has the class shares of all, as nearly as possible."""
    generator = numpy_generator(seed, "split", *purpose)
    order = generator.permutation(len(y))
    # The k-th of n_c samples of a class gets position (k + u) / n_c: sorted by position, every stretch is stratified.
    position = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        position[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(position, kind="stable")


def split_by_class(y: np.ndarray, sizes: tuple[int, ...], seed: int, *purpose: str) -> list[np.ndarray]:
    """Return disjoint index sets of the given sizes, each with the class shares of ``y`` as nearly as possible.

    :param y: Labels ``(n,)``.
    :param sizes: Sizes that sum to at most n.
    :raises InvalidInputError: more is asked for than there is.
    """
    y = check_groups("y", y)
    if sum(sizes) > len(y):
        raise InvalidInputError(f"Parts of {sizes} samples were asked for, but there are {len(y)}.")
    ranked = stratified_order(y, seed, *purpose)
    return [np.sort(part) for part in np.split(ranked, np.cumsum(sizes))[: len(sizes)]]


def halves(data: Dataset) -> tuple[Dataset, Dataset]:
    """Return the set twice, each time with another half of its training images, which share none.

    The halves have the class shares of the whole, and no group of images in common; the other parts are those of the
    set. The split depends on no seed.

    :raises InvalidInputError: fewer than two training images, or all of them of one group.
    """
    x, y, groups = data.x_train, data.y_train, data.groups
    if groups is None:
        parts = split_by_class(y, (len(y) - len(y) // 2, len(y) // 2), 0, "halves", data.name)
    else:
        parts = split_by_group(y, groups, 0.5, 0, "halves", data.name)
    if not all(map(len, parts)):
        which = "" if groups is None else ", all of one group,"
        raise InvalidInputError(f"{len(y)} training images of {data.name!r}{which} cannot be halved.")
    first, second = (
        replace(
            data,
            x_train=x.take(part) if isinstance(x, LazyImages) else x[part],
            y_train=y[part],
            groups=None if groups is None else groups[part],
        )
        for part in parts
    )
    return first, second


def split_by_group(y: np.ndarray, groups: np.ndarray, share: float, seed: int, *purpose: str) -> list[np.ndarray]:
    """Return two disjoint index sets; the second has ``share`` of the *groups*, stratified by class.

    Images of one group (a lesion, a physical sign) stay together, since they are nearly the same image. The class of a
    group is that of its first image.

    :param y: Labels ``(n,)``.
    :param groups: Group of each sample, ``(n,)``.
    :param share: Share of the second part, [0, 1].
    :raises InvalidInputError: a bad argument.
    """
    check_number("share", share, 0, 1)
    y = check_groups("y", y)
    groups = check_groups("groups", groups, len(y))
    names, first, member = np.unique(groups, return_index=True, return_inverse=True)
    nb_second = int(share * len(names) + 1e-9)
    first_part, second_part = split_by_class(y[first], (len(names) - nb_second, nb_second), seed, *purpose)
    return [np.flatnonzero(np.isin(member, part)) for part in (first_part, second_part)]
