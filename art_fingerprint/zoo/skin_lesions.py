"""Dermatoscopic images: HAM10000 (Tschandl et al., 2018), task 3 of ISIC 2018, BCN20000 (Combalia et al., 2019)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from art_fingerprint.zoo.listing import (
    Listing,
    Place,
    check_classes,
    check_listed,
    class_index,
    images_in,
    listing,
    nested,
    read_table,
)

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
BCN_CLASSES = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")
# A test image that the organisers' scoring leaves out; the test images of HAM10000's own record lack it.
NOT_SCORED = "ISIC_0035068"
BCN_ALIASES = {"ak": "akiec"}
HAM10000 = Place(
    "HAM10000",
    ("ham10000", "HAM10000"),
    "Put HAM10000_metadata (.csv, .tab or without ending) and the unpacked HAM10000_images_part_1 and "
    "HAM10000_images_part_2 (or one HAM10000_images with all of both) "
    "from doi.org/10.7910/DVN/DBW86T in <folder>/ham10000.",
)
ISIC2018 = Place(
    "ISIC 2018, task 3",
    ("isic2018", "ISIC2018"),
    "Unpack ISIC2018_Task3_Training_Input.zip, ISIC2018_Task3_Training_GroundTruth.zip, ISIC2018_Task3_Test_Input.zip "
    "and ISIC2018_Task3_Test_GroundTruth.zip from challenge.isic-archive.com/data in <folder>/isic2018, and put "
    "ISIC2018_Task3_Training_LesionGroupings.csv there. (Test files of HAM10000's record have another form.)",
)
BCN20000 = Place(
    "BCN20000",
    ("bcn20000", "BCN20000", "isic2019", "ISIC2019"),
    "Put bcn_20k_train.csv and the unpacked BCN_20k_train.zip from doi.org/10.6084/m9.figshare.24140028 in "
    "<folder>/bcn20000; or ISIC_2019_Training_GroundTruth.csv, ISIC_2019_Training_Metadata.csv and the unpacked "
    "ISIC_2019_Training_Input.zip from challenge.isic-archive.com/data in <folder>/isic2019, of which only the images "
    "of BCN20000 are used.",
)


def read_ham10000(root: Path | None) -> Listing:
    """Return the 10015 images in seven classes, grouped by lesion (7470)."""
    parts = [[*nested(f"HAM10000_images_part_{part}"), f"ham10000_images_part_{part}"] for part in (1, 2)]
    merged = ["HAM10000_images", "images"]
    if HAM10000.has(root, merged) and not any(HAM10000.has(root, part) for part in parts):
        parts = [merged]
    tables = ["HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata"]
    table, *folders = HAM10000.find(root, [tables, *parts])
    files = _files(folders)
    paths, labels, lesions = [], [], []
    for where, row in read_table(table, ("lesion_id", "image_id", "dx"), HAM10000):
        paths.append(_file(files, row["image_id"], where, folders, HAM10000))
        labels.append(class_index(row["dx"], CLASSES, where, HAM10000))
        lesions.append(row["lesion_id"] or row["image_id"])
    found = listing(paths, labels, CLASSES, lesions)
    check_classes(found, table, HAM10000)
    check_listed(len(set(paths)), len(files), table, " and ".join(map(str, folders)), HAM10000)
    return found


def read_isic2018(root: Path | None) -> tuple[Listing, Listing]:
    """Return the training images, those of HAM10000, grouped by lesion, and the test images: 1511 of 1512 that are
    scored, see :data:`NOT_SCORED`.
    """
    paths = ISIC2018.find(
        root,
        [
            nested("ISIC2018_Task3_Training_Input"),
            _packed("ISIC2018_Task3_Training_GroundTruth"),
            ["ISIC2018_Task3_Training_LesionGroupings.csv"],
            nested("ISIC2018_Task3_Test_Input"),
            _packed("ISIC2018_Task3_Test_GroundTruth"),
        ],
    )
    train, table, groupings, test, test_table = paths
    lesions = {row["image"]: row["lesion_id"] for _, row in read_table(groupings, ("image", "lesion_id"), ISIC2018)}
    return _challenge(train, table, lesions), _challenge(test, test_table, None)


def _challenge(folder: Path, table: Path, lesions: dict[str, str] | None) -> Listing:
    columns = tuple(name.upper() for name in CLASSES)
    files = _files([folder])
    files.pop(NOT_SCORED, None)
    paths, labels, groups = [], [], []
    for where, row in read_table(table, ("image", *columns), ISIC2018):
        if row["image"] == NOT_SCORED:
            continue
        paths.append(_file(files, row["image"], where, [folder], ISIC2018))
        labels.append(columns.index(_hot(row, columns, where, ISIC2018)))
        if lesions is not None:
            if row["image"] not in lesions:
                raise ISIC2018.error(f"{where}: the lesion groupings do not know the image {row['image']!r}")
            groups.append(lesions[row["image"]])
    found = listing(paths, labels, CLASSES, None if lesions is None else groups)
    check_classes(found, table, ISIC2018)
    check_listed(len(set(paths)), len(files), table, folder, ISIC2018)
    return found


def read_bcn20000(root: Path | None) -> Listing:
    """Return the images whose diagnosis is published, in eight classes, grouped by lesion.

    From the files of BCN20000 itself (12413 training images), or from those of ISIC 2019. The latter hold HAM10000 and
    MSK as well; images of BCN20000 are those whose lesion is named ``BCN_...``. Images without a lesion's name are
    each a group in the former, and are left out of the latter, since nothing says where they are from.
    """
    own = [
        ["bcn_20k_train.csv", "BCN_20k_train.csv"],
        ["BCN_20k_train/bcn_20k_train", "bcn_20k_train", "BCN_20k_train"],
    ]
    challenge = [
        nested("ISIC_2019_Training_Input"),
        ["ISIC_2019_Training_GroundTruth.csv"],
        ["ISIC_2019_Training_Metadata.csv"],
    ]

    if BCN20000.has(root, challenge[1]) and not BCN20000.has(root, own[0]):
        folder, table, metadata = BCN20000.find(root, challenge)
        found = _bcn_of_isic2019(folder, table, metadata)
    else:
        table, folder = BCN20000.find(root, own)
        found = _bcn_alone(folder, table)
    check_classes(found, table, BCN20000)
    return found


def _bcn_alone(folder: Path, table: Path) -> Listing:
    files = _files([folder])
    paths, labels, lesions = [], [], []
    for where, row in read_table(table, ("bcn_filename", "diagnosis", "lesion_id"), BCN20000):
        image = row["bcn_filename"]
        paths.append(_file(files, image, where, [folder], BCN20000))
        labels.append(class_index(row["diagnosis"].lower(), BCN_CLASSES, where, BCN20000))
        lesions.append(row["lesion_id"] or image)
    check_listed(len(set(paths)), len(files), table, folder, BCN20000)
    return listing(paths, labels, BCN_CLASSES, lesions)


def _bcn_of_isic2019(folder: Path, table: Path, metadata: Path) -> Listing:
    columns = (*(name.upper() for name in BCN_CLASSES), "UNK")
    lesions = {row["image"]: row["lesion_id"] for _, row in read_table(metadata, ("image", "lesion_id"), BCN20000)}
    files, nb_rows = _files([folder]), 0
    paths, labels, groups = [], [], []
    for where, row in read_table(table, ("image", *columns), BCN20000):
        nb_rows += 1
        if row["image"] not in lesions:
            raise BCN20000.error(f"{where}: {metadata.name} does not know the image {row['image']!r}")
        if not lesions[row["image"]].startswith("BCN_"):
            continue
        diagnosis = _hot(row, columns, where, BCN20000)
        if diagnosis == "UNK":
            continue
        paths.append(_file(files, row["image"], where, [folder], BCN20000))
        labels.append(columns.index(diagnosis))
        groups.append(lesions[row["image"]])
    check_listed(nb_rows, len(files), table, folder, BCN20000)
    return listing(paths, labels, BCN_CLASSES, groups)


def _packed(name: str) -> list[str]:
    return [f"{name}/{name}/{name}.csv", f"{name}/{name}.csv", f"{name}.csv"]


def _files(folders: Sequence[Path]) -> dict[str, str]:
    return {
        os.path.splitext(name)[0]: os.path.join(folder, name)
        for folder in folders
        for name in images_in(folder)
        if name.lower().endswith((".jpg", ".jpeg"))
    }


def _file(files: dict[str, str], image: str, where: str, folders: Sequence[Path], place: Place) -> str:
    name = image.removesuffix(".jpg")
    # names of ISIC 2019 carry this ending where the image was made smaller
    path = files.get(name) or files.get(f"{name}_downsampled")
    if path is None:
        raise place.error(f"{where}: there is no image {name}.jpg in {' or '.join(map(str, folders))}")
    return path


def _hot(row: dict[str, str], columns: Sequence[str], where: str, place: Place) -> str:
    try:
        values = [float(row[column]) for column in columns]
    except ValueError as error:
        raise place.error(f"{where}: {error}") from error
    if sorted(values) != [0.0] * (len(columns) - 1) + [1.0]:
        raise place.error(f"{where}: one of {', '.join(columns)} must be 1 and the others 0, got {values}")
    return columns[values.index(1.0)]
