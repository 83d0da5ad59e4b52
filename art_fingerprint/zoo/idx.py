"""Files of the IDX format, in which MNIST and the data sets made after it are published."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from art_fingerprint.exceptions import DatasetError

_UINT8 = 8


@dataclass(frozen=True)
class IdxFile:
    """What a file of a published data set holds.

    :ivar shape: Shape of the array of uint8.
    :ivar sha256: Digest of the array's bytes, which tells it from another data set's file of the same name and shape.
    """

    shape: tuple[int, ...]
    sha256: str


def read_published(folders: Sequence[Path], files: Mapping[str, IdxFile], advice: str) -> list[np.ndarray]:
    """Return the arrays of a data set, from the first folder that has all files, packed by gzip (``.gz``) or not.

    :param folders: Where to look.
    :param files: File name without ``.gz`` to its contents.
    :param advice: What to do about missing or wrong files; ends the error's message.
    :raises DatasetError: files are missing, or one cannot be read, is damaged, or holds something else.
    """
    missing = []
    for folder in folders:
        paths = {name: _packed_or_not(folder / name) for name in files}
        lacking = [name for name, path in paths.items() if path is None]
        if not lacking:
            return [_read_checked(path, files[name], advice) for name, path in paths.items() if path is not None]
        missing.append(f"{folder} has no {' and no '.join(lacking)}" if folder.is_dir() else f"{folder} does not exist")
    raise DatasetError(f"{'; '.join(missing)}. {advice}")


def read_idx(path: Path) -> np.ndarray:
    """Return the array of uint8 in an IDX file, unpacked if its name ends in ``.gz``.

    Two zero bytes, the type, the number of axes; the length of each axis in four bytes, big-endian; the elements.
    torchvision's reader takes unpacked files only, and too short ones fail in torch.

    :raises ValueError: not such a file, of another type, or its length does not fit its header.
    :raises OSError, EOFError, zlib.error: it cannot be read or unpacked.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError("it does not start with two zero bytes, type and number of axes")
    if content[2] != _UINT8:
        raise ValueError(f"its elements are of type {content[2]}, expected {_UINT8}, bytes")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else None
    if shape is None or len(content) - start != math.prod(shape):
        raise ValueError(f"its {len(content)} bytes are not those of an array of {shape or 'the promised axes'}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _packed_or_not(path: Path) -> Path | None:
    return next((p for p in (path.with_name(f"{path.name}.gz"), path) if p.is_file()), None)


def _read_checked(path: Path, wanted: IdxFile, advice: str) -> np.ndarray:
    try:
        array = read_idx(path)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as an IDX file: {error}. {advice}") from error
    if array.shape != wanted.shape:
        raise DatasetError(f"{path} holds an array of {array.shape}, expected {wanted.shape}. {advice}")
    if hashlib.sha256(array.tobytes()).hexdigest() != wanted.sha256:
        raise DatasetError(f"{path} does not hold what was published: another data set, or a changed file. {advice}")
    return array
