"""Faces: CelebA (Liu et al., 2015), LFW (Huang et al., 2007), VGGFace2 (Cao et al., 2018)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from art_fingerprint.zoo.listing import (
    Listing,
    Place,
    check_classes,
    check_listed,
    images_in,
    listing,
    nested,
    subfolders,
)

ATTRIBUTES = {20: "Male", 31: "Smiling"}  # position in the published list, from 0
CELEBA = Place(
    "CelebA",
    ("celeba", "CelebA"),
    "Put list_attr_celeba.txt, list_eval_partition.txt and the unpacked img_align_celeba.zip from "
    "mmlab.ie.cuhk.edu.hk/projects/CelebA.html in <folder>/celeba, with identity_CelebA.txt if images of a person are "
    "to stay together, or let torchvision fetch them with download=True (needs the package gdown; the drive often "
    "refuses for a day).",
)
LFW = Place(
    "LFW",
    ("lfw-py", "lfw", "LFW", "."),
    "Unpack lfw-funneled.tgz or lfw-deepfunneled.tgz of Labeled Faces in the Wild (vis-www.cs.umass.edu/lfw, which no "
    "longer serves it; mirrors do) in <folder>/lfw.",
)
VGGFACE2 = Place(
    "VGGFace2",
    ("vggface2", "VGGFace2", "VGG-Face2/data"),
    "Unpack vggface2_train.tar.gz in <folder>/vggface2, so that it holds train/n000002/0001_01.jpg and so on. The "
    "authors no longer serve it.",
)
_PEOPLE = 20  # images of a person that make a class


def read_celeba(root: Path | None, attribute: int) -> tuple[Listing, Listing]:
    """Return the published training (162770) and test images (19962) in the classes without and with an attribute.

    Images of one person are a group if the list of identities is there; the published parts share no person.

    :param attribute: 20, male; 31, smiling.
    """
    table, partition, folder = CELEBA.find(
        root,
        [
            ["list_attr_celeba.txt", "Anno/list_attr_celeba.txt", "list_attr_celeba.csv"],
            ["list_eval_partition.txt", "Eval/list_eval_partition.txt", "list_eval_partition.csv"],
            [*nested("img_align_celeba"), "Img/img_align_celeba"],
        ],
    )
    people = _people_of(table.parent / "identity_CelebA.txt")
    labels = _attribute(table, ATTRIBUTES[attribute])
    classes = (f"not {ATTRIBUTES[attribute]}", ATTRIBUTES[attribute])
    members: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    for where, fields in _lines(partition):
        if fields == ["image_id", "partition"]:
            continue
        if len(fields) != 2 or fields[1] not in members:
            raise CELEBA.error(f"{where}: expected a file name and 0, 1 or 2, got {' '.join(fields)!r}")
        if fields[0] not in labels:
            raise CELEBA.error(f"{where}: {table.name} does not know the image {fields[0]!r}")
        members[fields[1]].append(fields[0])
    check_listed(sum(map(len, members.values())), len(labels), partition, table, CELEBA)
    parts = []
    for names in (members["0"], members["2"]):
        if people and not people.keys() >= set(names):
            raise CELEBA.error(f"identity_CelebA.txt in {table.parent} does not know all images of {partition.name}")
        groups = [people[name] for name in names] if people else None
        found = listing([folder / name for name in names], [labels[name] for name in names], classes, groups)
        check_classes(found, f"{partition} with {table.name}", CELEBA)
        parts.append(found)
    return parts[0], parts[1]


def _attribute(table: Path, name: str) -> dict[str, int]:
    lines = _lines(table)
    where, count = next(lines, (f"{table}, line 1", []))
    if count[:1] == ["image_id"]:  # the form with commas promises no number
        heading, count = count[1:], []
    else:
        where, heading = next(lines, (f"{table}, line 2", []))
        if len(count) != 1 or not count[0].isdecimal():
            heading = []
    if name not in heading:
        raise CELEBA.error(f"{where}: expected the number of images in line 1 and attributes with {name!r} in line 2")
    column, found = heading.index(name) + 1, {}
    for where, fields in lines:
        if len(fields) != len(heading) + 1 or fields[column] not in ("1", "-1"):
            raise CELEBA.error(f"{where}: expected a file name and {len(heading)} values 1 or -1")
        found[fields[0]] = int(fields[column] == "1")
    if count and len(found) != int(count[0]):
        raise CELEBA.error(f"{table} promises {count[0]} images in line 1 and lists {len(found)} (cut off?)")
    return found


def _people_of(table: Path) -> dict[str, str]:
    """Return file name to person; nothing without the list."""
    found = {}
    for where, fields in _lines(table) if table.exists() else ():
        if len(fields) != 2:
            raise CELEBA.error(f"{where}: expected a file name and a person's number, got {' '.join(fields)!r}")
        found[fields[0]] = fields[1]
    return found


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", line.replace(",", " ").split()
    except (OSError, UnicodeDecodeError) as error:
        raise CELEBA.error(f"{path} cannot be read: {error}") from error


def read_lfw(root: Path | None) -> Listing:
    """Return the 13233 images in the classes of 5749 people."""
    (folder,) = LFW.find(
        root, [["lfw_funneled", "lfw-funneled/lfw_funneled", *nested("lfw-deepfunneled"), "lfw", "lfw-funneled"]]
    )
    return _people(folder, LFW)


def read_vggface2(root: Path | None) -> Listing:
    """Return the training images in the classes of 8631 people."""
    (folder,) = VGGFACE2.find(root, [["train", "vggface2_train"]])
    return _people(folder, VGGFACE2)


def people_with_many_images(faces: Listing) -> Listing:
    """Return the images of people who have at least 20 of them.

    :raises ValueError: fewer than two people have.
    """
    counts = np.bincount(faces.labels, minlength=len(faces.classes))
    kept = np.flatnonzero(counts >= _PEOPLE)
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} of {len(faces.classes)} people have {_PEOPLE} images or more, two are needed")
    chosen = np.isin(faces.labels, kept)
    return Listing(
        faces.source[chosen],
        np.searchsorted(kept, faces.labels[chosen]),
        tuple(faces.classes[label] for label in kept),
    )


def _people(folder: Path, place: Place) -> Listing:
    paths: list[str] = []
    labels: list[int] = []
    names = subfolders(folder)
    if not names:
        raise place.error(f"{folder} has no folders, one for each person")
    for label, name in enumerate(names):
        files = images_in(folder / name)
        if not files:
            raise place.error(f"{folder / name} holds no image")
        paths += [os.path.join(folder, name, file) for file in files]
        labels += [label] * len(files)
    return listing(paths, labels, names)
