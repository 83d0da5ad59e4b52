"""ImageNet, the 1000 classes of ILSVRC 2012 (Russakovsky et al., 2015)."""

from __future__ import annotations

import re
from pathlib import Path

from art_fingerprint.zoo.listing import Listing, Place, class_folders, subfolders

NB_CLASSES = 1000
IMAGENET = Place(
    "ImageNet",
    ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
    "Put train and val with one folder for each class (n01440764, ...) in <folder>/imagenet. torchvision makes them: "
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
    return class_folders(train, classes, IMAGENET), class_folders(val, classes, IMAGENET)
