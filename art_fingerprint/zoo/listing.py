"""Folders and label files of published data sets: found, read and checked; no image is decoded here."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from art_fingerprint.exceptions import DatasetError
from art_fingerprint.zoo.dataset import UNKNOWN, split_by_class

DATA_VARIABLE = "ART_FINGERPRINT_DATA"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm")


@dataclass(frozen=True)
class Place:
    """Where a data set is looked for.

    :ivar title: Its published name.
    :ivar folders: Below the user's folder, in this order.
    :ivar advice: What to put there, and where it comes from; ends errors.
    """

    title: str
    folders: tuple[str, ...]
    advice: str

    def error(self, problem: str) -> DatasetError:
        """Return the error of this data set for one problem."""
        return DatasetError(f"{self.title}: {problem}. {self.advice}")

    def has(self, root: Path | None, names: Sequence[str]) -> bool:
        """Return whether any of these names is in any of the folders."""
        return root is not None and any((root / folder / name).exists() for folder in self.folders for name in names)

    def find(self, root: Path | None, needed: Sequence[Sequence[str]]) -> list[Path]:
        """Return the paths of everything needed, from the first folder that has it all.

        :param root: The user's folder.
        :param needed: What is needed, each as its possible names below the folder.
        :raises DatasetError: no folder has it all: what is missing, where to put it, what names the folder.
        """
        how = f"<folder> is `root` of load_dataset() or the environment variable {DATA_VARIABLE}"
        if root is None:
            raise self.error(f"no folder is given: {how}")
        missing = []
        for folder in self.folders:
            base = root / folder
            found = [next((base / name for name in names if (base / name).exists()), None) for names in needed]
            if None not in found:
                return [path for path in found if path is not None]
            lacking = [" or ".join(names) for names, path in zip(needed, found, strict=True) if path is None]
            missing.append(f"{base} has no {' and no '.join(lacking)}" if base.is_dir() else f"{base} does not exist")
        raise self.error(f"{'; '.join(missing)} ({how})")


@dataclass(frozen=True)
class Listing:
    """Images that are not decoded yet, with their labels.

    :ivar source: Paths ``(n,)`` of type object, or pixels ``(n, H, W, 3)`` uint8.
    :ivar labels: Class indices ``(n,)`` int64.
    :ivar classes: Names of the classes.
    :ivar groups: Names ``(n,)``; images of one group show the same thing. ``None``: each image is its own.
    """

    source: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Listing:
        """Return some of the images."""
        groups = None if self.groups is None else self.groups[index]
        return Listing(self.source[index], self.labels[index], self.classes, groups)

    def limited(self, max_samples: int | None, purpose: str) -> Listing:
        """Return at most so many images with the class shares of all of them; the same ones on each call."""
        if max_samples is None or len(self) <= max_samples:
            return self
        return self.take(split_by_class(self.labels, (max_samples,), 0, "limit", purpose)[0])

    def relabelled(self, classes: Sequence[str], aliases: Mapping[str, str]) -> Listing:
        """Return the images with labels of another list of classes, -1 where it has none of that name.

        :param aliases: Own class name to its name there, where they differ.
        """
        index = {name: position for position, name in enumerate(classes)}
        table = np.array([index.get(aliases.get(name, name), UNKNOWN) for name in self.classes], dtype=np.int64)
        return replace(self, labels=table[self.labels], classes=tuple(classes))


def listing(
    paths: Sequence[Path | str],
    labels: Sequence[int],
    classes: Sequence[str],
    groups: Sequence[str] | None = None,
) -> Listing:
    """Return a :class:`Listing` of files."""
    source = np.array([os.fspath(path) for path in paths], dtype=object)
    grouped = None if groups is None else np.array(groups, dtype=object)
    return Listing(source, np.array(labels, dtype=np.int64), tuple(classes), grouped)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def images_in(folder: Path) -> list[str]:
    """Return the names of the image files in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.name.startswith(".")
        )


def class_folders(
    folder: Path, classes: Sequence[str], place: Place, keep: Callable[[str], bool] = lambda _name: True
) -> Listing:
    """Return the images of a folder that has one folder for each class.

    :param keep: Which file names count.
    :raises DatasetError: a folder that is no class, a class without folder or without images.
    """
    found, known = set(subfolders(folder)), set(classes)
    strange = sorted(found - known)
    if strange:
        raise place.error(
            f"{folder} has a folder {strange[0]!r}, which is no class; classes are {_few(classes)} (another data set?)"
        )
    lacking = [name for name in classes if name not in found]
    if lacking:
        raise place.error(f"{folder} has no folder for {len(lacking)} of {len(classes)} classes: {_few(lacking)}")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = [os.path.join(folder, name, file) for file in images_in(folder / name) if keep(file)]
        if not files:
            raise place.error(f"{folder / name} holds no image of this set ({', '.join(IMAGE_SUFFIXES)})")
        paths += files
        labels += [label] * len(files)
    return listing(paths, labels, classes)


def read_table(
    path: Path, columns: Sequence[str], place: Place, delimiter: str | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place (``file, line n``) and fields of each row of a label file with a heading.

    :param columns: Columns that are needed.
    :param delimiter: Between fields; ``None``: a tab if the heading has one, else a comma.
    :raises DatasetError: the file cannot be read, has no rows, lacks a column, or a row has too few or too many fields.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            heading = file.readline()
            file.seek(0)
            delimiter = delimiter or ("\t" if "\t" in heading else ",")
            reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
            names = reader.fieldnames or ()
            lacking = [column for column in columns if column not in names]
            if lacking:
                raise place.error(f"{path}, line 1: the heading has no column {' and no '.join(map(repr, lacking))}")
            line = 0
            for row in reader:
                line = reader.line_num
                if None in row or None in row.values():
                    raise place.error(f"{path}, line {line}: expected {len(names)} fields (a damaged file?)")
                yield f"{path}, line {line}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise place.error(f"{path} cannot be read as a table: {error}") from error
    if line == 0:
        raise place.error(f"{path} has no rows")


def nested(name: str) -> list[str]:
    """Return where an archive's folder may be: unpackers put it into one of its name."""
    return [f"{name}/{name}", name]


def listed(
    table: Path,
    file: tuple[str, Callable[[str], Path]],
    label: tuple[str, Callable[[str], str]],
    classes: Sequence[str],
    place: Place,
    delimiter: str | None = None,
) -> Listing:
    """Return the images of a label file that has one for each row.

    :param file: A column, and the path that an entry of it stands for.
    :param label: A column, and the class that an entry of it stands for.
    :raises DatasetError: as :func:`read_table` and :func:`class_index`.
    """
    paths, labels = [], []
    for where, row in read_table(table, (file[0], label[0]), place, delimiter):
        paths.append(file[1](row[file[0]]))
        labels.append(class_index(label[1](row[label[0]]), classes, where, place))
    return listing(paths, labels, classes)


def class_index(name: str, classes: Sequence[str], where: str, place: Place) -> int:
    """Return the index of a class name that a label file gives.

    :raises DatasetError: unknown; names file and line.
    """
    if name not in classes:
        raise place.error(f"{where}: unknown class {name!r}; known are {_few(classes)}")
    return classes.index(name)


def check_listed(nb_listed: int, nb_found: int, table: Path, where: object, place: Place) -> None:
    """Raise if a label file lists another number of images than there are: it was cut off, or is of another set."""
    if nb_listed != nb_found:
        raise place.error(f"{table} lists {nb_listed} images, {where} has {nb_found} (cut off, or another set's?)")


def check_classes(found: Listing, where: object, place: Place) -> None:
    """Raise unless every class has an image.

    :raises DatasetError: names the first classes that have none.
    """
    lacking = [found.classes[k] for k in np.flatnonzero(np.bincount(found.labels, minlength=len(found.classes)) == 0)]
    if lacking:
        raise place.error(
            f"{where} gives no image to {len(lacking)} of {len(found.classes)} classes: {_few(lacking)} (cut off?)"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:3])}, ..., {names[-1]}"
