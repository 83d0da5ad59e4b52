"""Segmentation against known answers: a loop over pixels in float64, scikit-image, and colours from tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from art_fingerprint.verifiers import segmentation
from art_fingerprint.verifiers.segmentation import grid, quickshift, rgb_to_lab

# Labels of scikit-image 0.26 for the first of scikit-learn's digits, scaled to 0..255
FIRST_DIGIT = [
    [3, 3, 2, 4, 6, 5, 3, 3],
    [3, 3, 4, 0, 6, 0, 2, 3],
    [3, 2, 0, 5, 3, 4, 1, 3],
    [3, 2, 4, 3, 3, 1, 1, 3],
    [3, 2, 1, 3, 3, 6, 1, 3],
    [3, 2, 4, 3, 5, 4, 1, 3],
    [3, 5, 0, 2, 6, 4, 3, 3],
    [3, 3, 1, 4, 6, 3, 3, 3],
]


def digits(n: int) -> torch.Tensor:
    """Return handwritten digits on the scale 0..255."""
    return torch.from_numpy(load_digits().images[:n, None] / 16 * 255)


def blobs(n: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return smooth random images on the scale 0..255, whole numbers as in photos."""
    small = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.nn.functional.interpolate(small, (height, width), mode="bilinear", align_corners=True) * 255).round()


def lab_of_pixel(rgb: list[float]) -> list[float]:
    linear = [((v + 0.055) / 1.055) ** 2.4 if v > 0.04045 else v / 12.92 for v in rgb]
    rows = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
    t = [
        sum(a * b for a, b in zip(row, linear, strict=True)) / white
        for row, white in zip(rows, (0.95047, 1, 1.08883), strict=True)
    ]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in t)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def slow_quickshift(image: np.ndarray, kernel_size: float, max_dist: float, ratio: float) -> list[list[int]]:
    """Follow the definition with one loop per pixel and per neighbour."""
    channels, height, width = image.shape
    pixels = [(r, c) for r in range(height) for c in range(width)]
    colour = {}
    for r, c in pixels:
        values = [float(v) for v in image[:, r, c]] * (3 if channels == 1 else 1)
        colour[r, c] = [ratio * v for v in (lab_of_pixel(values) if channels in (1, 3) else values)]
    radius = math.ceil(3 * kernel_size)

    def neighbours(r: int, c: int) -> list[tuple[int, int]]:
        return [(i, j) for i, j in pixels if abs(i - r) <= radius and abs(j - c) <= radius]

    def squared(p: tuple[int, int], q: tuple[int, int]) -> float:
        colours = sum((a - b) ** 2 for a, b in zip(colour[p], colour[q], strict=True))
        return colours + (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2

    noise = np.random.default_rng(42).normal(scale=1e-5, size=(height, width))
    density = {
        p: sum(math.exp(-squared(p, q) / (2 * kernel_size**2)) for q in neighbours(*p)) + noise[p] for p in pixels
    }
    parent = {}
    for p in pixels:
        denser = [q for q in neighbours(*p) if density[q] > density[p]]
        nearest = min(denser, key=lambda q: squared(p, q), default=p)
        parent[p] = nearest if math.sqrt(squared(p, nearest)) <= max_dist else p
    roots = {}
    for p in pixels:
        root = p
        while parent[root] != root:
            root = parent[root]
        roots[p] = root
    number = {root: i for i, root in enumerate(sorted(set(roots.values())))}
    return [[number[roots[r, c]] for c in range(width)] for r in range(height)]


@pytest.mark.parametrize(
    ("channels", "height", "width", "options"),
    [
        (1, 8, 8, {}),
        (3, 9, 14, {}),
        (3, 11, 10, {"kernel_size": 1.0, "max_dist": 3.0, "ratio": 0.5}),
        (2, 7, 9, {"kernel_size": 1.5, "max_dist": 10.0}),
        (3, 1, 6, {"kernel_size": 2.0}),
        (3, 1, 1, {}),
    ],
)
def test_quickshift_equals_the_loop_over_pixels(
    channels: int, height: int, width: int, options: dict[str, float]
) -> None:
    images = blobs(3, channels, height, width)
    settings: dict[str, Any] = {"kernel_size": 4.0, "max_dist": 200.0, "ratio": 0.2, **options}
    ours = quickshift(images, **settings).tolist()
    assert ours == [slow_quickshift(image, **settings) for image in images.numpy()]


def test_first_digit_has_scikit_image_labels() -> None:
    assert quickshift(digits(1))[0].tolist() == FIRST_DIGIT


@pytest.mark.parametrize(
    ("channels", "size", "n"), [(1, 8, 300), (3, 8, 50), (3, 28, 20), (1, 32, 10), (3, 32, 20), (3, 64, 4), (3, 100, 1)]
)
def test_quickshift_equals_scikit_image(channels: int, size: int, n: int) -> None:
    skimage = pytest.importorskip("skimage.segmentation", reason="scikit-image is a test oracle only")
    images = digits(n) if (channels, size) == (1, 8) else blobs(n, channels, size, size)
    for image, labels in zip(images.numpy(), quickshift(images).numpy(), strict=True):
        rgb = np.moveaxis(np.broadcast_to(image, (3, size, size)), 0, -1)
        expected = skimage.quickshift(rgb, kernel_size=4, max_dist=200, ratio=0.2)
        np.testing.assert_array_equal(labels, expected)


def test_scale_decides_the_number_of_segments() -> None:
    images = digits(50)
    assert quickshift(images).flatten(1).amax(1).min() + 1 >= 4
    assert quickshift(images / 255).max() == 0


def test_lab_of_known_colours() -> None:
    colours = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]).T.reshape(3, 2, 2)
    lab = rgb_to_lab(colours).reshape(3, 4).T
    expected = np.array([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    np.testing.assert_allclose(lab, expected, atol=0.02)
    wild = [-3.0, 100.0, 254.0]
    np.testing.assert_allclose(rgb_to_lab(torch.tensor(wild)[:, None, None]).flatten(), lab_of_pixel(wild), rtol=1e-6)


def test_flat_image_is_one_segment() -> None:
    assert quickshift(torch.full((2, 3, 20, 31), 100.0)).unique().tolist() == [0]


def test_labels_are_consecutive_and_images_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    images = blobs(6, 3, 24, 20)
    together = quickshift(images)
    for labels in together:
        assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    monkeypatch.setattr(segmentation, "_CHUNK_PIXELS", {"cpu": 2 * 24 * 20})
    assert torch.equal(quickshift(images), together)


def test_grid() -> None:
    assert grid(1, 2, 4, 2).tolist() == [[[0, 0, 1, 1], [2, 2, 3, 3]]]
    assert grid(2, 8, 8).flatten(1).tolist() == [list(range(64))] * 2
    assert grid(1, 3, 5, 8).unique().tolist() == list(range(9))
    sizes = grid(1, 28, 30, 8).flatten().bincount()
    assert len(sizes) == 64
    assert sizes.min() >= 3 * 3
    assert sizes.max() <= 4 * 4
