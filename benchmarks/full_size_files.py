"""Synthetic files of the paper's data sets: names, folders, label files and numbers as published, contents random.

Each part has a few hundred different images of the usual size; all its files are hard links to them, so that a folder
of a million images is made in minutes and takes little space. Readers and memory see a million files.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from art_fingerprint.zoo import cifar, datasets
from art_fingerprint.zoo.idx import IdxFile
from art_fingerprint.zoo.skin_lesions import CLASSES as LESIONS

POOL = 200
PEOPLE, FACES = 8631, 364  # of VGGFace2, and images of each
DIAGNOSES = ("AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")
ATTRIBUTES = [f"attribute_{number}" for number in range(40)]
ATTRIBUTES[20], ATTRIBUTES[31] = "Male", "Smiling"


def pool(folder: Path, seed: int, width: int, height: int, suffix: str, count: int = POOL) -> Iterator[Path]:
    """Write different images, and return them one after the other without end."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
        noise = rng.integers(-12, 13, (height, width, 3))
        path = folder / f"{seed}_{number}.{suffix}"
        Image.fromarray(np.clip(np.asarray(coarse, dtype=np.int64) + noise, 0, 255).astype(np.uint8)).save(path)
        paths.append(path)
    return itertools.cycle(paths)


def link(images: Iterator[Path], folder: Path, names: Sequence[str]) -> None:
    """Give images names in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.link(next(images), folder / name)


def table(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> None:
    """Write a label file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def cifar10(root: Path) -> None:
    """Write six batches of 10000 images, and CINIC-10's 70000 training images from ImageNet."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate((*cifar.TRAINING_BATCHES, *cifar.TEST_BATCHES)):
        rng = np.random.default_rng(seed)
        data = rng.integers(0, 256, (10_000, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": [k % 10 for k in range(len(data))]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    images = pool(root / "pool", 1, 32, 32, "png")
    for label, name in enumerate(cifar.CLASSES):
        link(images, root / "cinic10" / "train" / name, [f"n{label:08d}_{k}.png" for k in range(7000)])
    for part in ("valid", "test"):
        (root / "cinic10" / part).mkdir()


def gtsrb(root: Path) -> None:
    """Write 39209 training images in tracks of 30 frames, and 12630 test images."""
    images = pool(root / "pool", 2, 50, 52, "ppm")
    for label in range(43):
        count = 39_209 // 43 + (label < 39_209 % 43)
        names = [f"{k // 30:05d}_{k % 30:05d}.ppm" for k in range(count)]
        link(images, root / "gtsrb" / "GTSRB" / "Final_Training" / "Images" / f"{label:05d}", names)
    tests = [f"{k:05d}.ppm" for k in range(12_630)]
    link(pool(root / "pool", 3, 50, 52, "ppm"), root / "gtsrb" / "GTSRB" / "Final_Test" / "Images", tests)
    table(
        root / "gtsrb" / "GT-final_test.csv",
        [["Filename", "ClassId"], *([name, k % 43] for k, name in enumerate(tests))],
        ";",
    )


def ham10000(root: Path) -> None:
    """Write 10015 images of 7470 lesions, and BCN20000's 12413 training images."""
    names = [f"ISIC_{24_306 + k:07d}" for k in range(10_015)]
    lesions = [k if k < 7470 else k - 7470 for k in range(len(names))]
    images = pool(root / "pool", 4, 600, 450, "jpg")
    for part, own in ((1, names[:5000]), (2, names[5000:])):
        link(images, root / "ham10000" / f"HAM10000_images_part_{part}", [f"{name}.jpg" for name in own])
    rows = [
        [f"HAM_{lesion:07d}", name, LESIONS[lesion % len(LESIONS)]] for name, lesion in zip(names, lesions, strict=True)
    ]
    table(root / "ham10000" / "HAM10000_metadata.csv", [["lesion_id", "image_id", "dx"], *rows])
    names = [f"BCN_{k:010d}.jpg" for k in range(12_413)]
    link(pool(root / "pool", 5, 512, 512, "jpg"), root / "bcn20000" / "BCN_20k_train" / "bcn_20k_train", names)
    rows = [[name, DIAGNOSES[k % 8], f"BCN_{k:07d}"] for k, name in enumerate(names)]
    table(root / "bcn20000" / "bcn_20k_train.csv", [["bcn_filename", "diagnosis", "lesion_id"], *rows])


def _celeba(root: Path) -> None:
    names = [f"{k + 1:06d}.jpg" for k in range(202_599)]
    link(pool(root / "pool", 6, 178, 218, "jpg"), root / "celeba" / "img_align_celeba", names)
    lines = [f"{name} {' '.join('1' if (k + a) % 2 else '-1' for a in range(40))}" for k, name in enumerate(names)]
    (root / "celeba" / "list_attr_celeba.txt").write_text("\n".join([str(len(names)), " ".join(ATTRIBUTES), *lines]))
    parts = [f"{name} {0 if k < 162_770 else 1 if k < 182_637 else 2}" for k, name in enumerate(names)]
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(parts))


def celeba_20(root: Path) -> None:
    """Write CelebA's 202599 images, and LFW's 13233 of 5749 people."""
    _celeba(root)
    images = pool(root / "pool", 7, 250, 250, "jpg")
    for person in range(5749):
        name = f"Person_{person:05d}"
        count = 2 + (person < 13_233 - 2 * 5749)
        link(images, root / "lfw-py" / "lfw_funneled" / name, [f"{name}_{k + 1:04d}.jpg" for k in range(count)])


def celeba_31(root: Path) -> None:
    """Write CelebA's images, and the 3.14 million training images of VGGFace2."""
    _celeba(root)
    images = pool(root / "pool", 8, 137, 180, "jpg")
    for person in range(PEOPLE):
        names = [f"{k + 1:04d}_01.jpg" for k in range(FACES)]
        link(images, root / "vggface2" / "train" / f"n{person + 2:06d}", names)


def imagenet(root: Path) -> None:
    """Write 1281167 training and 50000 validation images."""
    train, val = (pool(root / "pool", seed, 500, 375, "jpg", 100) for seed in (9, 10))
    for label in range(1000):
        wnid = f"n{1_440_764 + 13 * label:08d}"
        count = 1281 + (label < 167)
        link(train, root / "imagenet" / "train" / wnid, [f"{wnid}_{k}.JPEG" for k in range(count)])
        names = [f"ILSVRC2012_val_{50 * label + k + 1:08d}.JPEG" for k in range(50)]
        link(val, root / "imagenet" / "val" / wnid, names)


def fashion_mnist(root: Path) -> None:
    """Write 60000 training and 10000 test images."""
    folder = root / "fashion-mnist"
    folder.mkdir(parents=True)
    for seed, (part, count) in enumerate({"train": 60_000, "t10k": 10_000}.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())


def publish(dataset: str, root: Path) -> None:
    """Let the files be the published ones to readers that compare digests; in this process."""
    if dataset == "cifar10":
        cifar.TRAINING_BATCHES = dict.fromkeys(cifar.TRAINING_BATCHES)  # type: ignore[assignment, arg-type]
        cifar.TEST_BATCHES = dict.fromkeys(cifar.TEST_BATCHES)  # type: ignore[assignment, arg-type]
    if dataset == "fashion-mnist":
        for name, known in list(datasets.FASHION_MNIST_FILES.items()):
            content = (root / "fashion-mnist" / name).read_bytes()[4 + 4 * len(known.shape) :]
            datasets.FASHION_MNIST_FILES[name] = IdxFile(known.shape, hashlib.sha256(content).hexdigest())


MAKERS: Mapping[str, Callable[[Path], None]] = {
    "cifar10": cifar10,
    "gtsrb": gtsrb,
    "ham10000": ham10000,
    "celeba-20": celeba_20,
    "celeba-31": celeba_31,
    "imagenet": imagenet,
    "fashion-mnist": fashion_mnist,
}


def make(dataset: str, root: Path) -> Path:
    """Return the folder of a data set's files, which are written if they are not there."""
    folder = root / dataset
    done = folder / "done"
    if not done.exists():
        MAKERS[dataset](folder)
        done.touch()
    return folder
