"""Images that stay on disk until they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from art_fingerprint.core.checks import check_number
from art_fingerprint.exceptions import DatasetError

if TYPE_CHECKING:  # Pillow comes with torchvision, which a verifier does not need
    from PIL import Image

_WORKERS = 8
_WORTH_THREADS = 16


def fit_image(image: Image.Image, size: int, crop: float = 1.0) -> np.ndarray:
    """Return the middle of an image as RGB, ``(size, size, 3)`` uint8.

    The shorter side becomes ``round(size / crop)`` pixels (bilinear with antialiasing), then the middle is cut out: the
    pixels of torchvision's ``Resize`` and ``CenterCrop`` on the same image. Grey, palette, CMYK and one-bit images are
    converted; transparency is dropped, as torchvision's loader does.

    :raises ValueError: more than eight bits in a channel, which have no agreed range.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its mode is {image.mode}, expected eight bits in a channel")
    rgb = image.convert("RGB")
    short, side = min(rgb.size), round(size / crop)
    width, height = (side if length == short else int(side * length / short) for length in rgb.size)
    if (width, height) != rgb.size:
        from PIL.Image import Resampling

        rgb = rgb.resize((width, height), Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(rgb.crop((left, top, left + size, top + size)))


class LazyImages:
    """Images of one data set that read like an array ``(n, 3, size, size)`` float32 in [0, 1].

    ``images[3]``, ``images[10:20]`` and ``images[index_array]`` decode the images asked for, in threads, and return
    arrays; ``np.asarray(images)`` decodes all. :meth:`take` returns a part without decoding. Nothing that was decoded
    is kept, so memory is that of the names: about 150 bytes an image. How images are fitted: :func:`fit_image`.

    :param source: Paths of image files, or pixels ``(n, H, W, 3)`` uint8.
    :param size: Height and width of the images returned.
    :param crop: Share of the shorter side that is kept, (0, 1]; 1 keeps all of it.
    :ivar shape: ``(n, 3, size, size)``.
    :raises DatasetError: a file is missing or empty; when images are read: a file is damaged, or no image with eight
        bits in a channel. The message names the file.
    """

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(self, source: Sequence[str | os.PathLike[str]] | np.ndarray, size: int, crop: float = 1.0) -> None:
        check_number("size", size, 1, integer=True)
        check_number("crop", crop, 0, 1, open_low=True)
        self._size, self._crop = size, crop
        if isinstance(source, np.ndarray) and source.dtype == np.uint8:
            self._items, self._bytes = source, np.zeros(len(source), np.int64)
        else:
            self._items = np.array([os.fspath(path) for path in source], dtype=object)
            self._bytes = np.array([_file_size(path) for path in self._items], dtype=np.int64)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array that these images stand for."""
        return len(self._items), 3, self._size, self._size

    @property
    def nbytes(self) -> int:
        """Bytes that all images take when they are decoded."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def files(self) -> list[str]:
        """The files, in order; empty for images that are held as pixels."""
        return [] if self._items.dtype == np.uint8 else self._items.tolist()

    @property
    def file_sizes(self) -> np.ndarray:
        """Bytes of each file, ``(n,)``."""
        return self._bytes

    @property
    def digest(self) -> str:
        """SHA-256 over how images are fitted and, of files, folder, name and size; of pixels, the pixels.

        Files are not read, so a file that was changed and kept its size is not noticed.
        """
        digest = hashlib.sha256(f"{self._size}:{self._crop}".encode())
        if self._items.dtype == np.uint8:
            digest.update(f"{self._items.shape}".encode() + np.ascontiguousarray(self._items).tobytes())
        for path, size in zip(self.files, self._bytes.tolist(), strict=False):
            digest.update(f"\n{'/'.join(path.split(os.sep)[-2:])}:{size}".encode())
        return digest.hexdigest()

    def take(self, index: Any) -> LazyImages:
        """Return the images of a slice, an index array or a mask, without decoding any."""
        part = object.__new__(LazyImages)
        part._size, part._crop = self._size, self._crop
        part._items, part._bytes = self._items[index], self._bytes[index]
        return part

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, tuple):
            raise IndexError("Images on disk take one index, of images: take them first, then index the array.")
        chosen = self._items[np.asarray(index) if not isinstance(index, slice | int) else index]
        single = isinstance(chosen, str) or (isinstance(chosen, np.ndarray) and chosen.ndim == self._items.ndim - 1)
        decoded = self._decode([chosen] if single else chosen)
        return decoded[0] if single else decoded

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            yield self[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Images on disk cannot become an array without a copy.")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"LazyImages(shape={self.shape})"

    def _decode(self, items: Any) -> np.ndarray:
        if self._items.dtype == np.uint8 and self._items.shape[1:3] == (self._size, self._size) and self._crop == 1:
            pixels = np.asarray(items).transpose(0, 3, 1, 2)  # nothing to fit
            return np.divide(pixels, np.float32(255), dtype=np.float32, order="C")
        found = np.empty((len(items), 3, self._size, self._size), np.float32)

        def fill(position: int) -> None:
            found[position] = self._open(items[position]).transpose(2, 0, 1)

        if len(items) < _WORTH_THREADS:
            for position in range(len(items)):
                fill(position)
        else:
            with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
                for _ in pool.map(fill, range(len(items))):
                    pass
        found /= np.float32(255)
        return found

    def _open(self, item: Any) -> np.ndarray:
        from PIL import Image

        if isinstance(item, np.ndarray):
            return fit_image(Image.fromarray(item), self._size, self._crop)
        try:
            with Image.open(item) as image:
                return fit_image(image, self._size, self._crop)
        except Exception as error:  # readers of damaged files raise many kinds
            raise DatasetError(
                f"{item} cannot be read as an image ({type(error).__name__}: {error}). Get this file again, or take it "
                "out of the folder and the label file."
            ) from error


def _file_size(path: str) -> int:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}. Get this file again.") from error
    if size == 0:
        raise DatasetError(f"{path} is empty. Get this file again.")
    return size


def same_files(images: LazyImages, others: LazyImages) -> np.ndarray:
    """Return which images are byte for byte a file of another set, ``(n,)`` bool; none of those held as pixels.

    Files of a size that does not occur in both sets are not read.
    """
    sizes = set(images.file_sizes.tolist()) & set(others.file_sizes.tolist())

    def hashes(of: LazyImages) -> list[str | None]:
        pairs = zip(of.files, of.file_sizes.tolist(), strict=False)
        return [_file_hash(path) if size in sizes else None for path, size in pairs]

    known = set(hashes(others)) - {None}
    found = [name in known for name in hashes(images)] if images.files else [False] * len(images)
    return np.array(found, dtype=bool)


def _file_hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}. Get this file again.") from error
