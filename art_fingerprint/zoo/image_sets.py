"""The photo data sets of the paper by name: read, held apart, limited, checked for shared images, put in memory."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np

from art_fingerprint.core.checks import check_choice, check_flag, check_number
from art_fingerprint.exceptions import DatasetError, InvalidInputError
from art_fingerprint.zoo import cifar, faces, imagenet, skin_lesions, traffic_signs
from art_fingerprint.zoo.dataset import Dataset, split_by_class, split_by_group, stratified_order
from art_fingerprint.zoo.lazy_images import LazyImages, same_files
from art_fingerprint.zoo.listing import DATA_VARIABLE, Listing, Place, check_classes
from art_fingerprint.zoo.substitutes import overlap

logger = logging.getLogger(__name__)

APART = 0.15  # of the training set, as the paper does with GTSRB
TEST = 0.2  # where no split is published; the authors' code takes the same share of skin lesions
IN_MEMORY_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Parts:
    """Training and test images of a set, and what it holds apart itself; without the last, 15 % of training are."""

    train: Listing
    test: Listing
    apart: Listing | None = None


@dataclass(frozen=True)
class Substitute:
    """A set as substitute of another one.

    :ivar read: From the user's folder.
    :ivar aliases: Its names of the victim's classes, where they differ.
    :ivar limit: Most images that are used.
    """

    read: Callable[[Path | None], Listing]
    aliases: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None


@dataclass(frozen=True)
class ImageSet:
    """How a data set is loaded.

    :ivar place: Where it is.
    :ivar read: From the user's folder.
    :ivar substitutes: Whose images may be its held-apart part, the default first; ``"own"`` and ``"none"`` always may.
    :ivar size: Height and width.
    :ivar hflip: Whether mirroring keeps the class.
    :ivar crop: See :class:`.LazyImages`.
    :ivar fetch: Downloads it into a folder.
    """

    place: Place
    read: Callable[[Path | None], Parts]
    substitutes: tuple[str, ...] = ("own",)
    size: int = 32
    hflip: bool = True
    crop: float = 1.0
    fetch: Callable[[Path], None] | None = None


def _cifar10(root: Path | None) -> Parts:
    return Parts(*cifar.read_cifar10(root))


def _cinic10(root: Path | None) -> Parts:
    train, apart, test = (cifar.read_cinic10(root, part) for part in ("train", "valid", "test"))
    return Parts(train, test, apart)


def _gtsrb(root: Path | None) -> Parts:
    return Parts(*traffic_signs.read_gtsrb(root))


def _isic2018(root: Path | None) -> Parts:
    return Parts(*skin_lesions.read_isic2018(root))


def _celeba(root: Path | None, attribute: int) -> Parts:
    return Parts(*faces.read_celeba(root, attribute))


def _imagenet(root: Path | None) -> Parts:
    return Parts(*imagenet.read_imagenet(root))


def _split(root: Path | None, read: Callable[[Path | None], Listing], name: str) -> Parts:
    return Parts(*hold_apart(read(root), TEST, f"{name} test"))


def _people(root: Path | None, read: Callable[[Path | None], Listing], place: Place) -> Listing:
    try:
        return faces.people_with_many_images(read(root))
    except ValueError as error:
        raise place.error(str(error)) from error


def _split_set(name: str, read: Callable[[Path | None], Listing]) -> Callable[[Path | None], Parts]:
    return functools.partial(_split, read=read, name=name)


def _split_people(name: str, read: Callable[[Path | None], Listing], place: Place) -> Callable[[Path | None], Parts]:
    return _split_set(name, functools.partial(_people, read=read, place=place))


def _fetch_cifar10(root: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(str(root), download=True)


def _fetch_gtsrb(root: Path) -> None:
    from torchvision.datasets import GTSRB

    for split in ("train", "test"):
        GTSRB(str(root), split, download=True)


def _fetch_celeba(root: Path) -> None:
    from torchvision.datasets import CelebA

    CelebA(str(root), download=True)


SUBSTITUTES: Mapping[str, Substitute] = {
    "cinic10": Substitute(functools.partial(cifar.read_cinic10, part="train")),
    "bcn20000": Substitute(skin_lesions.read_bcn20000, skin_lesions.BCN_ALIASES),
    "lfw": Substitute(faces.read_lfw),
    "vggface2": Substitute(faces.read_vggface2, limit=20_000),  # the paper's 2 % are 400 images
}
IMAGE_SETS: Mapping[str, ImageSet] = {
    "cifar10": ImageSet(cifar.CIFAR10, _cifar10, ("cinic10",), fetch=_fetch_cifar10),
    "cinic10": ImageSet(cifar.CINIC10, _cinic10),
    # many signs are mirror images of others: turn left, turn right
    "gtsrb": ImageSet(traffic_signs.GTSRB, _gtsrb, hflip=False, fetch=_fetch_gtsrb),
    "ham10000": ImageSet(skin_lesions.HAM10000, _split_set("ham10000", skin_lesions.read_ham10000), ("bcn20000",)),
    "isic2018": ImageSet(skin_lesions.ISIC2018, _isic2018, ("bcn20000",)),
    "bcn20000": ImageSet(skin_lesions.BCN20000, _split_set("bcn20000", skin_lesions.read_bcn20000)),
    "celeba-20": ImageSet(
        faces.CELEBA, functools.partial(_celeba, attribute=20), ("lfw", "vggface2"), fetch=_fetch_celeba
    ),
    "celeba-31": ImageSet(
        faces.CELEBA, functools.partial(_celeba, attribute=31), ("vggface2", "lfw"), fetch=_fetch_celeba
    ),
    "lfw": ImageSet(faces.LFW, _split_people("lfw", faces.read_lfw, faces.LFW)),
    "vggface2": ImageSet(faces.VGGFACE2, _split_people("vggface2", faces.read_vggface2, faces.VGGFACE2)),
    "imagenet": ImageSet(imagenet.IMAGENET, _imagenet, ("none",), size=224, crop=0.875),
}


def data_root(root: str | os.PathLike[str] | None) -> Path | None:
    """Return the user's folder: the one given, else what the environment variable names, else ``None``."""
    named = os.fspath(root) if root is not None else os.environ.get(DATA_VARIABLE)
    return Path(named).expanduser() if named else None


def fetch(title: str, download: Callable[[Path], None], root: Path | None) -> None:
    """Download a data set into the user's folder.

    :raises DatasetError: no folder is given, or the download failed.
    """
    if root is None:
        raise DatasetError(
            f"{title}: there is no folder to download to; name one by `root` or the environment variable "
            f"{DATA_VARIABLE}."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        download(root)
    except Exception as error:  # of the network, the server, the disk, a package that is not there
        raise DatasetError(f"{title} could not be downloaded to {root}: {type(error).__name__}: {error}") from error


def hold_apart(images: Listing, share: float, purpose: str) -> tuple[Listing, Listing]:
    """Return the images without a share of them, and that share; stratified, and groups stay together.

    The split is the same on each call.
    """
    if images.groups is None:
        nb_apart = int(share * len(images) + 1e-9)
        kept, apart = split_by_class(images.labels, (len(images) - nb_apart, nb_apart), 0, purpose)
    else:
        kept, apart = split_by_group(images.labels, images.groups, share, 0, purpose)
    return images.take(kept), images.take(apart)


def _mixed(images: Listing, purpose: str) -> Listing:
    return images.take(stratified_order(images.labels, 0, "order", purpose))


def load_image_set(
    name: str,
    root: Path | None,
    download: bool = False,
    size: int | None = None,
    limits: Mapping[str, int] = MappingProxyType({}),
    substitute: str | None = None,
    lazy: bool | None = None,
) -> Dataset:
    """Return one of :data:`IMAGE_SETS`; for the arguments see :func:`.load_dataset`.

    Files come sorted by class; parts are put in an order in which every stretch has the class shares of the whole, so
    that the first hundred images are a fair sample.

    Substitute images that are also training or test images are left out, with a note in the log. They are found by
    their pixels if all parts are in memory; if not, by the bytes of the files, and only in substitute sets of other
    origin, since all files are read for that.

    :param limits: Most samples of ``"train"``, ``"apart"`` and ``"test"``.
    """
    kind = IMAGE_SETS[name]
    place = kind.place
    if size is not None:
        check_number("size", size, 8, integer=True)
    if lazy is not None:
        check_flag("lazy", lazy)
    source = kind.substitutes[0] if substitute is None else substitute
    check_choice("substitute", source, tuple(dict.fromkeys((*kind.substitutes, "own", "none"))))
    if download:
        if kind.fetch is None:
            raise InvalidInputError(f"{place.title} cannot be downloaded by this package. {place.advice}")
        fetch(place.title, kind.fetch, root)
    read = kind.read(root)
    train, apart = read.train, read.apart
    if source == "own" and apart is None:
        train, apart = hold_apart(train, APART, f"{name} apart")
    elif source == "none":
        apart = train.take(np.arange(0))
    elif source != "own":
        other = SUBSTITUTES[source]
        apart = other.read(root).limited(other.limit, f"{source} as substitute")
    assert apart is not None
    check_classes(train, "the training set", place)
    listings = [
        _mixed(part.limited(limits.get(purpose), f"{name} {purpose}"), name)
        for part, purpose in ((train, "train"), (apart, "apart"), (read.test, "test"))
    ]
    foreign = source in SUBSTITUTES
    if foreign:
        listings[1] = listings[1].relabelled(train.classes, SUBSTITUTES[source].aliases)
    images = [LazyImages(part.source, size or kind.size, kind.crop) for part in listings]
    x = [
        np.asarray(part)
        if lazy is False or (lazy is None and part.nbytes <= IN_MEMORY_BYTES)
        else cast(np.ndarray, part)
        for part in images
    ]
    held = all(isinstance(part, np.ndarray) for part in x)
    y = [part.labels for part in listings]
    shared = np.zeros(len(x[1]), dtype=bool)
    if len(x[1]) and held:
        for other_x in (x[0], x[2]):
            shared[overlap(x[1], other_x)[0]] = True
    elif foreign:
        shared = np.logical_or(*(same_files(images[1], part) for part in (images[0], images[2])))
    if shared.any():
        logger.warning(
            "%d of %d substitute images (%s) are also training or test images of %s; they are left out.",
            shared.sum(),
            len(shared),
            source,
            place.title,
        )
        kept = np.flatnonzero(~shared)
        x[1] = x[1][kept] if isinstance(x[1], np.ndarray) else cast(np.ndarray, images[1].take(kept))
        y[1] = y[1][kept]
    parts = (x[0], y[0], x[1], y[1], x[2], y[2])
    return Dataset(name, *parts, len(train.classes), kind.hflip, listings[0].groups)
