"""Images that stay on disk: indexing, fitting against torchvision, modes, damage, digests, shared files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from art_fingerprint.exceptions import DatasetError, InvalidInputError
from art_fingerprint.zoo import lazy_images
from art_fingerprint.zoo.lazy_images import LazyImages, fit_image, same_files
from tests.photo_sets import picture


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Forty pictures of different sizes."""
    paths = [tmp_path / f"{k:02d}.png" for k in range(40)]
    for k, path in enumerate(paths):
        picture(k, 20 + k, 50 - k).save(path)
    return paths


def by_hand(path: Path, size: int) -> np.ndarray:
    fit = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()])
    with Image.open(path) as image:
        return fit(image.convert("RGB")).numpy()


# ---------------------------------------------------------------------- like an array
def test_it_reads_like_the_array_of_all_images(files: list[Path]) -> None:
    images = LazyImages(files, 16)
    whole = np.stack([by_hand(path, 16) for path in files])
    assert images.shape == whole.shape == (40, 3, 16, 16)
    assert len(images) == 40
    assert images.nbytes == whole.nbytes
    assert images.ndim == 4
    assert images.dtype == np.asarray(images).dtype == np.float32
    for index in (
        slice(None),
        slice(30, 3, -2),
        slice(5, 5),
        [3, 1, 3],
        np.array([39, 0]),
        np.arange(40) % 3 == 0,
        np.array([], dtype=int),
        7,
        np.int64(7),
        -1,
    ):
        got, wanted = images[index], whole[index]
        assert isinstance(got, np.ndarray)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(images), images[:])
    np.testing.assert_array_equal(np.stack(list(images)), images[:])
    assert np.asarray(images, dtype=np.float64).dtype == np.float64
    assert np.shape(images) == (40, 3, 16, 16)


@pytest.mark.parametrize("index", [40, -41, [0, 40], (3, 0), (slice(3), 0), "3", 1.5])
def test_other_indices_are_refused(files: list[Path], index: Any) -> None:
    with pytest.raises(IndexError):
        LazyImages(files, 16)[index]


def test_only_what_is_asked_for_is_decoded(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = LazyImages._open

    def spy(self: LazyImages, item: Any) -> np.ndarray:
        opened.append(item)
        return read(self, item)

    monkeypatch.setattr(LazyImages, "_open", spy)
    images = LazyImages(files, 16)
    part = images.take(np.arange(10, 30)).take(slice(2, 6))
    assert part.shape == (4, 3, 16, 16)
    assert part.digest != images.digest
    assert opened == []
    _ = part[1:3]
    assert opened == [str(path) for path in files[13:15]]
    np.testing.assert_array_equal(part[:], images[12:16])


def test_threads_change_nothing(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with_threads = LazyImages(files, 16)[:]
    monkeypatch.setattr(lazy_images, "_WORTH_THREADS", 1000)
    np.testing.assert_array_equal(LazyImages(files, 16)[:], with_threads)


def test_it_travels_to_other_processes(files: list[Path]) -> None:
    images = LazyImages(files, 16)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.digest == images.digest
    np.testing.assert_array_equal(copy[3:6], images[3:6])


def test_pixels_in_memory_are_a_source_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8)
    images = LazyImages(pixels, 12)
    np.testing.assert_allclose(images[:], pixels.transpose(0, 3, 1, 2) / 255, atol=1e-7)
    np.testing.assert_array_equal(images[4], images[:][4])
    assert images.take([1, 2])[:].shape == (2, 3, 12, 12)
    assert images.files == []
    assert images[4].flags.c_contiguous
    for size, crop in ((24, 1.0), (12, 0.8)):
        wanted = fit_image(Image.fromarray(pixels[4]), size, crop).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(LazyImages(pixels, size, crop)[4], wanted, atol=1e-7)
    assert LazyImages(pixels[:0], 12)[:].shape == (0, 3, 12, 12)


@pytest.mark.parametrize(("size", "crop"), [(0, 1.0), (8.5, 1.0), (8, 0.0), (8, 1.5)])
def test_bad_sizes_are_refused(size: Any, crop: float) -> None:
    with pytest.raises(InvalidInputError, match="must be"):
        LazyImages([], size, crop)


# ---------------------------------------------------------------------- fitting
@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (16, 19), (8, 5), (100, 31), (33, 64), (1, 1), (60, 45)])
@pytest.mark.parametrize(("size", "crop"), [(16, 1.0), (16, 0.875), (15, 1.0)])
def test_fitting_is_that_of_torchvision(shape: tuple[int, int], size: int, crop: float) -> None:
    image = picture(3, *shape)
    theirs = transforms.CenterCrop(size)(transforms.Resize(round(size / crop))(image))
    ours = fit_image(image, size, crop)
    assert ours.shape == (size, size, 3)
    np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "png"),
        ("L", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("L", "jpg"),
    ],
)
def test_other_modes_become_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    path = tmp_path / f"image.{kind}"
    picture(1, 20, 20).convert("L" if mode == "LA" else "RGB").convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    np.testing.assert_allclose(LazyImages([path], 20)[0], by_hand(path, 20), atol=1e-7)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    image = picture(1, 20, 20)
    seen = image.copy()
    image.putalpha(Image.new("L", (20, 20), 0))
    np.testing.assert_array_equal(fit_image(image, 20), np.asarray(seen))


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_more_than_eight_bits_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "deep.tiff"
    Image.new(mode, (20, 20)).save(path)
    with pytest.raises(DatasetError, match=r"deep\.tiff .* eight bits in a channel"):
        LazyImages([path], 16)[0]


# ---------------------------------------------------------------------- damage
def test_missing_and_empty_files_are_found_at_once(files: list[Path]) -> None:
    files[5].write_bytes(b"")
    with pytest.raises(DatasetError, match=r"05\.png is empty"):
        LazyImages(files, 16)
    files[5].unlink()
    with pytest.raises(DatasetError, match=r"05\.png cannot be read: No such file"):
        LazyImages(files, 16)


@pytest.mark.parametrize("damage", ["cut", "web page", "noise"])
@pytest.mark.parametrize("kind", ["png", "jpg", "ppm"])
def test_damaged_files_are_named_when_they_are_read(tmp_path: Path, damage: str, kind: str) -> None:
    paths = [tmp_path / f"{k}.{kind}" for k in range(3)]
    for k, path in enumerate(paths):
        picture(k, 64, 64).save(path)
    content = paths[1].read_bytes()
    paths[1].write_bytes({"cut": content[: len(content) // 2], "web page": b"<html>", "noise": b"\xff" * 99}[damage])
    images = LazyImages(paths, 16)
    assert images[0].shape == (3, 16, 16)
    with pytest.raises(DatasetError, match=rf"1\.{kind} cannot be read as an image .* Get this file again"):
        images[:]


def test_a_file_that_disappears_is_named(files: list[Path]) -> None:
    images = LazyImages(files, 16)
    files[20].unlink()
    with pytest.raises(DatasetError, match=r"20\.png cannot be read"):
        images[:]


# ---------------------------------------------------------------------- digests and shared files
def test_digest_tells_what_was_read(files: list[Path], tmp_path: Path) -> None:
    first = LazyImages(files, 16).digest
    assert LazyImages([str(path) for path in files], 16).digest == first
    others = [LazyImages(files, 17), LazyImages(files, 16, 0.9), LazyImages(files[::-1], 16), LazyImages(files[1:], 16)]
    assert len({first, *(images.digest for images in others)}) == 5
    (tmp_path / "elsewhere" / tmp_path.name).mkdir(parents=True)
    moved = [path.rename(tmp_path / "elsewhere" / tmp_path.name / path.name) for path in files]
    assert LazyImages(moved, 16).digest == first  # wherever the data folder is
    moved[3].write_bytes(moved[3].read_bytes() + b"\0")
    assert LazyImages(moved, 16).digest != first


def test_digest_of_pixels_is_of_their_content() -> None:
    pixels = np.zeros((3, 8, 8, 3), np.uint8)
    changed = pixels.copy()
    changed[2, 7, 7, 2] = 1
    digests = {LazyImages(p, 8).digest for p in (pixels, changed, pixels[:2], pixels.reshape(3, 4, 16, 3))}
    assert len(digests) == 4


def test_same_files_are_found_under_other_names(files: list[Path], tmp_path: Path) -> None:
    others = [tmp_path / f"other{k}.png" for k in range(3)]
    others[0].write_bytes(files[7].read_bytes())
    content = files[8].read_bytes()
    others[1].write_bytes(content[:-1] + b"\1")  # as long, not the same
    others[2].write_bytes(files[30].read_bytes())
    found = same_files(LazyImages(files, 16), LazyImages(others, 24))
    assert np.flatnonzero(found).tolist() == [7, 30]
    assert same_files(LazyImages(others, 16), LazyImages(files, 16)).tolist() == [True, False, True]
    pixels = LazyImages(np.zeros((2, 8, 8, 3), np.uint8), 8)
    assert not same_files(LazyImages(files, 16), pixels).any()
    assert same_files(pixels, LazyImages(files, 16)).tolist() == [False, False]
