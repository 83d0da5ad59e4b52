"""ImageNet, the 1000 classes of ILSVRC 2012 (Russakovsky et al., 2015)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from art_fingerprint.zoo.listing import Listing, Place, check_listed, class_folders, images_in, listed, subfolders

NB_CLASSES = 1000
_SOLUTION = "LOC_val_solution.csv"  # Kaggle's, beside the folder ILSVRC
IMAGENET = Place(
    "ImageNet",
    ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
    "Put train and val with one folder for each class (n01440764, ...) in <folder>/imagenet, or Kaggle's ILSVRC folder "
    "and LOC_val_solution.csv in <folder>. torchvision makes the former: "
    "put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org there "
    "and call torchvision.datasets.ImageNet('<folder>/imagenet', 'train') and (..., 'val') once.",
)


def read_imagenet(root: Path | None) -> tuple[Listing, Listing]:
    """Return training (1281167) and validation images (50000); classes are numbered in the order of their names, which
    is that of timm and torchvision.
    """
    train, val = IMAGENET.find(root, [["train"], ["val"]])
    classes = [name for name in subfolders(train) if re.fullmatch(r"n\d{8}", name)]
    if len(classes) != NB_CLASSES:
        raise IMAGENET.error(
            f"{train} has {len(classes)} folders named like a class (n01440764), expected {NB_CLASSES}"
        )
    solution = next((path for path in (folder / _SOLUTION for folder in val.parents[:4]) if path.exists()), None)
    if solution is None or subfolders(val):
        return class_folders(train, classes, IMAGENET), class_folders(val, classes, IMAGENET)
    return class_folders(train, classes, IMAGENET), _flat(val, solution, classes)


def _flat(folder: Path, table: Path, classes: Sequence[str]) -> Listing:
    """Return images of one folder whose classes a table gives: the first word of each prediction."""
    file = ("ImageId", lambda name: folder / f"{name}.JPEG")
    found = listed(table, file, ("PredictionString", lambda text: text.split(" ")[0]), classes, IMAGENET)
    check_listed(len(found), len(images_in(folder)), table, folder, IMAGENET)
    return found
