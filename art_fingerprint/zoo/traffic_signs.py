"""GTSRB, the German Traffic Sign Recognition Benchmark (Stallkamp et al., 2012)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from art_fingerprint.zoo.listing import (
    Listing,
    Place,
    check_classes,
    check_listed,
    class_folders,
    images_in,
    listed,
    read_table,
    subfolders,
)

CLASSES = tuple(f"{number:05d}" for number in range(43))
GTSRB = Place(
    "GTSRB",
    ("gtsrb", "GTSRB", "."),
    "Unpack GTSRB_Final_Training_Images.zip (or torchvision's GTSRB-Training_fixed.zip), GTSRB_Final_Test_Images.zip "
    "and GTSRB_Final_Test_GT.zip from benchmark.ini.rub.de in <folder>/gtsrb, or Kaggle's Train, Test, Train.csv and "
    "Test.csv, or let torchvision fetch them with download=True.",
)
_TRACK = re.compile(r"(?:\d{5}_)?(\d{5})_\d{5}\.(?:ppm|png)")  # Kaggle's begin with the class

_CLASS = ("ClassId", lambda number: str(number).zfill(5))


def read_gtsrb(root: Path | None) -> tuple[Listing, Listing]:
    """Return training and test images, 39209 (26640 in torchvision's archive) and 12630 in 43 classes.

    Files of one class with the same first number show one physical sign as a car comes near: they are one group.
    """
    tables = _kaggle(root)
    if tables is not None:
        return _of_kaggle(tables[0], "Train"), _of_kaggle(tables[1], "Test")
    train, test, table = GTSRB.find(
        root,
        [
            ["GTSRB/Final_Training/Images", "GTSRB/Training"],
            ["GTSRB/Final_Test/Images"],
            ["GT-final_test.csv", "GTSRB/Final_Test/Images/GT-final_test.csv"],
        ],
    )
    images = class_folders(train, CLASSES, GTSRB)
    if "Final_Training" in train.parts:
        _check_whole(train, images)
    return _grouped(images), _test(test, table)


def _kaggle(root: Path | None) -> list[Path] | None:
    """Return the tables of training and test images of Kaggle's form, from the first folder that has them."""
    for base in () if root is None else [root / folder for folder in GTSRB.folders]:
        found = [base / name for name in ("Train.csv", "Test.csv")]
        if all(path.is_file() for path in found):
            return found
    return None


def _of_kaggle(table: Path, part: str) -> Listing:
    folder = table.parent / part
    found = listed(table, ("Path", table.parent.joinpath), _CLASS, CLASSES, GTSRB)
    if not folder.is_dir():
        raise GTSRB.error(f"{table.parent} has no {part}")
    nb_images = len(images_in(folder)) + sum(len(images_in(folder / name)) for name in subfolders(folder))
    check_listed(len(found), nb_images, table, folder, GTSRB)
    check_classes(found, table, GTSRB)
    return _grouped(found) if part == "Train" else found


def _grouped(images: Listing) -> Listing:
    return replace(images, groups=np.array([_track(Path(path)) for path in images.source], dtype=object))


def _check_whole(folder: Path, images: Listing) -> None:
    """Refuse a folder that lacks images of its classes' own lists."""
    there = {(path.parent.name, path.name) for path in map(Path, images.source)}
    for name in CLASSES:
        table = folder / name / f"GT-{name}.csv"
        for where, row in read_table(table, ("Filename",), GTSRB, ";") if table.exists() else ():
            if (name, row["Filename"]) not in there:
                raise GTSRB.error(f"{where}: there is no image {row['Filename']} in {table.parent} (cut off?)")


def _track(path: Path) -> str:
    match = _TRACK.fullmatch(path.name)
    if match is None:
        raise GTSRB.error(f"{path} is not named like an image of GTSRB, track_frame.ppm")
    return f"{path.parent.name}/{match[1]}"


def _test(folder: Path, table: Path) -> Listing:
    found = listed(table, ("Filename", folder.joinpath), _CLASS, CLASSES, GTSRB, ";")
    check_listed(len(found), len(images_in(folder)), table, folder, GTSRB)
    return found
