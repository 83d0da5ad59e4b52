"""Tiny files of the paper's data sets, named, packed and laid out like the published ones."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from art_fingerprint.zoo import cifar, datasets
from art_fingerprint.zoo.idx import IdxFile
from art_fingerprint.zoo.skin_lesions import CLASSES as LESIONS

CELEBA_ATTRIBUTES = [
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
]


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """Return a smooth picture that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, kind: str | None = None) -> None:
    """Write an image, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind)


def table(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> None:
    """Write a label file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


# ---------------------------------------------------------------------- CIFAR-10 and CINIC-10
def python2_pickle(data: np.ndarray, labels: Sequence[int]) -> bytes:
    """Return a batch as Python 2 pickled those of CIFAR-10: protocol 2, byte strings, NumPy of its time."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    raw = np.ascontiguousarray(data).tobytes()
    dtype = b"cnumpy\ndtype\n" + text("u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text("|") + b"NNN" + (b"J" + struct.pack("<i", -1)) * 2 + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text("b") + b"\x87R"
    array += b"(" + number(1) + number(data.shape[0]) + number(data.shape[1]) + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    items = [
        (text("batch_label"), text("training batch 1 of 5")),
        (text("labels"), b"](" + b"".join(map(number, labels)) + b"e"),
        (text("data"), array),
        (text("filenames"), b"](" + b"".join(text(f"leptodactylus_s_{k:06d}.png") for k in range(len(data))) + b"e"),
    ]
    return b"\x80\x02}(" + b"".join(key + value for key, value in items) + b"u."


def cifar_pixels(batch: int, n: int) -> np.ndarray:
    """Return pixels of a batch, ``(n, 3072)`` uint8, red before green before blue."""
    images = np.stack([np.asarray(picture(1000 * batch + k)) for k in range(n)])
    return images.transpose(0, 3, 1, 2).reshape(n, 3072)


def make_cifar10(root: Path, patch: pytest.MonkeyPatch, n: int = 20) -> Path:
    """Write six batches of n images and let them be the published ones."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate((*cifar.TRAINING_BATCHES, *cifar.TEST_BATCHES)):
        (folder / name).write_bytes(python2_pickle(cifar_pixels(number, n), [k % 10 for k in range(n)]))
    publish_cifar10(folder, patch)
    return folder


def publish_cifar10(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the batches in a folder be the published ones."""
    for names in ("TRAINING_BATCHES", "TEST_BATCHES"):
        patch.setattr(cifar, names, {name: md5(folder / name) for name in getattr(cifar, names)})


def md5(path: Path) -> str:
    """Return the MD5 of a file."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def make_cinic10(root: Path, n: int = 3) -> Path:
    """Write n images of ImageNet and two of CIFAR-10 in each class of train, valid and test."""
    seed = 20_000
    for part in ("train", "valid", "test"):
        for label, name in enumerate(cifar.CLASSES):
            for k in range(n):
                seed += 1
                save(root / "cinic10" / part / name / f"n0{2691156 + label}_{k}.png", picture(seed))
            for k in range(2):
                pixels = cifar_pixels(0, 20)[label + 10 * k].reshape(3, 32, 32).transpose(1, 2, 0)
                save(root / "cinic10" / part / name / f"cifar10-train-{label + 10 * k}.png", Image.fromarray(pixels))
    return root / "cinic10"


# ---------------------------------------------------------------------- Fashion-MNIST
def make_fashion_mnist(root: Path, patch: pytest.MonkeyPatch, n: int = 300) -> Path:
    """Write n training and n / 5 test images as IDX files, and let them be the published ones."""
    folder = root / "fashion-mnist"
    folder.mkdir(parents=True)
    known = {}
    for seed, (part, count) in enumerate({"train": n, "t10k": n // 5}.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
            name = f"{part}-{kind}-ubyte"
            header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / name).write_bytes(header + array.tobytes())
            known[name] = IdxFile(array.shape, hashlib.sha256(array.tobytes()).hexdigest())
    patch.setattr(datasets, "FASHION_MNIST_FILES", known)
    return folder


# ---------------------------------------------------------------------- GTSRB
def make_gtsrb(root: Path, tracks: int = 8, layout: str = "Final_Training/Images") -> Path:
    """Write tracks of three frames in 43 classes and two test images of each."""
    folder = root / "gtsrb"
    rows: list[Sequence[object]] = [["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"]]
    for label in range(43):
        inside = folder / "GTSRB" / layout / f"{label:05d}"
        listed: list[Sequence[object]] = [rows[0]]
        for track in range(tracks):
            for frame in range(3):
                image = picture(1000 * label + 10 * track + frame, 15 + frame, 16)
                save(inside / f"{track:05d}_{frame:05d}.ppm", image)
                listed.append([f"{track:05d}_{frame:05d}.ppm", 15 + frame, 16, 5, 5, 10, 11, label])
        table(inside / f"GT-{label:05d}.csv", listed, ";")
    for k in range(86):
        save(folder / "GTSRB" / "Final_Test" / "Images" / f"{k:05d}.ppm", picture(90_000 + k, 20, 18))
        rows.append([f"{k:05d}.ppm", 20, 18, 5, 5, 15, 13, k // 2])
    table(folder / "GT-final_test.csv", rows, ";")
    return folder


# ---------------------------------------------------------------------- skin lesions
def make_ham10000(root: Path, lesions: int = 10, name: str = "HAM10000_metadata.csv") -> Path:
    """Write two images of each lesion, in two folders, in seven classes."""
    folder = root / "ham10000"
    rows: list[Sequence[object]] = [["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]]
    for number in range(7 * lesions):
        for k in range(2):
            image = f"ISIC_{24306 + 2 * number + k:07d}"
            save(folder / f"HAM10000_images_part_{k + 1}" / f"{image}.jpg", picture(2 * number + k, 60, 45))
            rows.append([f"HAM_{number:07d}", image, LESIONS[number % 7], "histo", "60.0", "male", "back"])
    table(folder / name, rows, "," if name.endswith(".csv") else "\t")
    return folder


def make_isic2018(root: Path, lesions: int = 10) -> Path:
    """Write the files of task 3, with one-hot labels."""
    folder = root / "isic2018"
    heading = ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    groups: list[Sequence[object]] = [["image", "lesion_id", "diagnosis_confirm_type"]]
    for part, count, first in (("Training", 7 * lesions, 24306), ("Test", 14, 34524)):
        rows: list[Sequence[object]] = [heading]
        for number in range(count):
            for k in range(2):
                image = f"ISIC_{first + 2 * number + k:07d}"
                save(folder / f"ISIC2018_Task3_{part}_Input" / f"{image}.jpg", picture(first + 2 * number + k, 60, 45))
                hot = [f"{float(column.lower() == LESIONS[number % 7])}" for column in heading[1:]]
                rows.append([image, *hot])
                groups.append([image, f"HAM_{number:07d}", "histopathology"])
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        table(folder / name / f"{name}.csv", rows)
    table(folder / "ISIC2018_Task3_Training_LesionGroupings.csv", groups)
    return folder


def make_bcn20000(root: Path, lesions: int = 10) -> Path:
    """Write the files that BCN20000 is published as; one lesion of each class has no name."""
    folder = root / "bcn20000"
    rows: list[Sequence[object]] = [
        ["bcn_filename", "age_approx", "anatom_site_general", "diagnosis", "lesion_id", "capture_date", "sex", "split"]
    ]
    for number in range(8 * lesions):
        diagnosis = ["AK", "BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC"][number % 8]
        for k in range(2):
            image = f"BCN_{2 * number + k:010d}.jpg"
            save(folder / "BCN_20k_train" / "bcn_20k_train" / image, picture(50_000 + 2 * number + k, 64, 64))
            lesion = f"BCN_{number:07d}" if number >= 8 else ""
            rows.append([image, "55.0", "anterior torso", diagnosis, lesion, "2012-05-16", "male", "train"])
    table(folder / "bcn_20k_train.csv", rows)
    return folder


def make_isic2019(root: Path) -> Path:
    """Write the files of ISIC 2019: five images of each class from BCN20000, two from HAM10000, one of no lesion."""
    folder = root / "isic2019"
    heading = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    truth: list[Sequence[object]] = [["image", *heading]]
    metadata: list[Sequence[object]] = [["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]]
    for number in range(72):
        column, origin = number % 9, number // 9
        image = f"ISIC_{number:07d}" + ("_downsampled" if origin == 5 else "")
        save(folder / "ISIC_2019_Training_Input" / f"{image}.jpg", picture(60_000 + number, 40, 30))
        truth.append([image, *(f"{float(k == column)}" for k in range(9))])
        lesion = f"BCN_{number:07d}" if origin < 5 else f"HAM_{number:07d}" if origin < 7 else ""
        metadata.append([image, "55.0", "anterior torso", lesion, "female"])
    table(folder / "ISIC_2019_Training_GroundTruth.csv", truth)
    table(folder / "ISIC_2019_Training_Metadata.csv", metadata)
    return folder


# ---------------------------------------------------------------------- faces
def make_celeba(root: Path, n: int = 40) -> Path:
    """Write n training, n / 4 validation and n / 2 test images; every second is male, every third smiles."""
    folder = root / "celeba"
    count = n + n // 4 + n // 2
    attributes = [str(count), " ".join(CELEBA_ATTRIBUTES) + " "]
    partition = []
    for number in range(1, count + 1):
        name = f"{number:06d}.jpg"
        save(folder / "img_align_celeba" / name, picture(30_000 + number, 44, 54))
        values = {"Male": 1 - 2 * (number % 2), "Smiling": 1 if number % 3 == 0 else -1}
        attributes.append(name + "".join(f"{values.get(attribute, -1):>3}" for attribute in CELEBA_ATTRIBUTES))
        partition.append(f"{name} {0 if number <= n else 1 if number <= n + n // 4 else 2}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return folder


def make_lfw(root: Path) -> Path:
    """Write 24 images of each of three people and one of each of five."""
    folder = root / "lfw-py" / "lfw_funneled"
    for person, count in enumerate([24, 1, 24, 1, 1, 24, 1, 1]):
        name = f"{'ABCDEFGH'[person]}nna_Example"
        for k in range(1, count + 1):
            save(folder / name / f"{name}_{k:04d}.jpg", picture(40_000 + 100 * person + k, 50, 50))
    (folder / "pairs_01.txt").write_text("Anna_Example\t1\t2\n")
    return folder


def make_vggface2(root: Path, people: int = 4) -> Path:
    """Write 25 images of each person."""
    folder = root / "vggface2" / "train"
    for person in range(people):
        for k in range(25):
            save(folder / f"n{person + 2:06d}" / f"{k + 1:04d}_01.jpg", picture(70_000 + 100 * person + k, 40 + k, 48))
    return folder


# ---------------------------------------------------------------------- ImageNet
def make_imagenet(root: Path, n: int = 2, nb_classes: int = 1000) -> Path:
    """Write n training images and one validation image in each class; every tenth class has the same pictures."""

    @functools.cache
    def jpeg(seed: int) -> bytes:
        buffer = io.BytesIO()
        picture(seed, 50, 40).save(buffer, "JPEG")
        return buffer.getvalue()

    for label in range(nb_classes):
        wnid = f"n{1440764 + 13 * label:08d}"
        for part, count in (("train", n), ("val", 1)):
            folder = root / "imagenet" / part / wnid
            folder.mkdir(parents=True)
            for k in range(count):
                name = f"{wnid}_{k}.JPEG" if part == "train" else f"ILSVRC2012_val_{label + 1:08d}.JPEG"
                (folder / name).write_bytes(jpeg(100 * (part == "val") + 10 * k + label % 10))
    return root / "imagenet"


MAKERS: Mapping[str, tuple[Callable[[Path], Path], ...]] = {
    "cinic10": (make_cinic10,),
    "gtsrb": (make_gtsrb,),
    "ham10000": (make_ham10000, make_bcn20000),
    "isic2018": (make_isic2018, make_bcn20000),
    "bcn20000": (make_bcn20000,),
    "celeba-20": (make_celeba, make_lfw),
    "celeba-31": (make_celeba, make_vggface2),
    "lfw": (make_lfw,),
    "vggface2": (make_vggface2,),
    "imagenet": (make_imagenet,),
}


def make(name: str, root: Path, patch: pytest.MonkeyPatch) -> None:
    """Write the files of a data set and of its default substitute set."""
    if name == "cifar10":
        make_cifar10(root, patch)
        make_cinic10(root)
    if name == "fashion-mnist":
        make_fashion_mnist(root, patch)
    for maker in MAKERS.get(name, ()):
        maker(root)
