"""CIFAR-10 from its Python batches, and the part of CINIC-10 that is not CIFAR-10."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from art_fingerprint.zoo.listing import Listing, Place, class_folders

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAINING_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_BATCHES = {"test_batch": "40351d587109b95175f43aff81a1287e"}
CIFAR10 = Place(
    "CIFAR-10",
    ("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "CIFAR10/cifar-10-batches-py"),
    "Unpack cifar-10-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html in <folder>, or let torchvision fetch it "
    "with download=True.",
)
CINIC10 = Place(
    "CINIC-10",
    ("cinic10", "CINIC-10", "cinic-10"),
    "Unpack CINIC-10.tar.gz (doi.org/10.7488/ds/2448) in <folder>/cinic10, so that it holds train, valid and test with "
    "one folder for each class.",
)
# All that the batches of the Toronto page call; nothing in this list runs code of the file.
_ALLOWED = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no batch of CIFAR-10 does")
        return super().find_class(module, name)


def read_batch(path: Path, md5: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(n, 32, 32, 3)`` uint8 and labels ``(n,)`` int64 of one batch.

    Batches are pickles, which can run code when they are read. So the MD5 of the published file is compared first, and
    then an unpickler that knows NumPy arrays and nothing else reads it.

    :param md5: Digest of the published file; ``None`` does not compare.
    :raises DatasetError: unreadable, not the published file, or no such batch.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CIFAR10.error(f"{path} cannot be read: {error.strerror}") from error
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise CIFAR10.error(f"{path} ({len(content)} bytes) is not what was published: cut off, damaged, or changed")
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its remains call for
        raise CIFAR10.error(f"{path} cannot be read as a batch: {type(error).__name__}: {error}") from error
    data, labels = (batch.get(key) for key in ("data", "labels")) if isinstance(batch, dict) else (None, None)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise CIFAR10.error(f"{path} holds no array `data` of (n, 3072) bytes")
    if not isinstance(labels, list) or len(labels) != len(data) or not set(labels) <= set(range(10)):
        raise CIFAR10.error(f"{path} holds no list `labels` of {len(data)} numbers from 0 to 9")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, dtype=np.int64)


def read_cifar10(root: Path | None) -> tuple[Listing, Listing]:
    """Return the 50000 training and 10000 test images."""
    paths = CIFAR10.find(root, [[name] for name in (*TRAINING_BATCHES, *TEST_BATCHES)])
    folder = paths[0].parent
    return _batches(folder, TRAINING_BATCHES), _batches(folder, TEST_BATCHES)


def _batches(folder: Path, batches: Mapping[str, str]) -> Listing:
    read = [read_batch(folder / name, md5) for name, md5 in batches.items()]
    return Listing(np.concatenate([x for x, _ in read]), np.concatenate([y for _, y in read]), CLASSES)


def read_cinic10(root: Path | None, part: str) -> Listing:
    """Return the ImageNet images of ``"train"``, ``"valid"`` or ``"test"``, 70000 each.

    The files named ``cifar*`` are left out: they are all of CIFAR-10, its test images included.
    """
    folders = CINIC10.find(root, [["train"], ["valid"], ["test"]])
    folder = folders[("train", "valid", "test").index(part)]
    return class_folders(folder, CLASSES, CINIC10, lambda name: not name.lower().startswith("cifar"))
