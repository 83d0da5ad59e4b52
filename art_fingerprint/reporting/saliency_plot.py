"""Saliency maps over their images as a figure: a column for each image, a row for each model. Needs ``plots``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.figures import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP = "viridis"  # even in brightness, and the same for colour-blind readers
_OPACITY = 0.6


def plot_saliency(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    captions: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    clip_values: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Draw the images in the first row, and each model's maps over them in a row of its own.

    :param images: ``(n, C, H, W)``, C is 1 or 3.
    :param maps: Model to its maps ``(n, H, W)`` in [0, 1].
    :param captions: Text above each image.
    :param path: Where to write the figure; the suffix decides the format.
    :param clip_values: Range of the images.
    :return: A ``matplotlib.figure.Figure`` outside pyplot.
    :raises MissingDependencyError: matplotlib is not installed.
    :raises InvalidInputError: nothing to draw, shapes that do not fit together, or a format that cannot be written.
    """
    n = len(images)
    shape = (n, *images.shape[2:])
    if not n or not maps or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise InvalidInputError(
            f"Images (n, 1 or 3, H, W) and at least one model's maps are needed, got {images.shape}."
        )
    wrong = {name: found.shape for name, found in maps.items() if found.shape != shape}
    if wrong:
        raise InvalidInputError(f"Maps must have the shape {shape} of the images, got {wrong}.")
    if captions is not None and len(captions) != n:
        raise InvalidInputError(f"`captions` must hold one text for each of {n} images, got {len(captions)}.")
    low, high = clip_values
    pictures = np.clip((np.moveaxis(images, 1, -1) - low) / (high - low), 0, 1)
    figure = new_figure(1.15 * n + 2.2, 1.2 * (len(maps) + 1) + 0.4)
    panels = figure.subplots(len(maps) + 1, n, squeeze=False)
    drawn = None
    for row, name in enumerate(["image", *maps]):
        panels[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for column in range(n):
            axes = panels[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            grey = pictures.shape[-1] == 1
            picture = pictures[column, ..., 0] if grey else pictures[column]
            axes.imshow(picture, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest")
            if row:
                drawn = axes.imshow(maps[name][column], cmap=_MAP, vmin=0, vmax=1, alpha=_OPACITY, gid="map")
            elif captions is not None:
                axes.set_title(captions[column], fontsize=8)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, fraction=0.02, aspect=40)
        bar.set_label("LayerCAM, each map scaled to [0, 1]", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return save_figure(figure, path)
