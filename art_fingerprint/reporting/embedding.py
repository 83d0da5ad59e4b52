"""Several models' answers to the same images in one t-SNE embedding (RemovalNet, Fig. 10). The figure needs ``plots``.

L. van der Maaten, G. Hinton, "Visualizing Data using t-SNE", Journal of Machine Learning Research 9, 2008.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.checks import check_images, check_number, check_seed, check_values
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.core.outputs import to_probabilities
from art_fingerprint.core.taps import tapped
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.figures import colour_of, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 12345  # of the paper's code
_PERPLEXITY = 30.0
_NEIGHBOURS = 15
_GRID = 120
_NUMBERED = 50  # more classes' numbers would hide the points
# Light tints for the regions of classes, in turn; told apart by their borders and the numbers in them.
_TINTS = "Pastel1"
_NB_TINTS = 8  # the ninth is grey, as nothing is


def probabilities(classifier: PyTorchClassifier, x: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """Return a model's probabilities ``(n, nb_classes)`` float64; it is as before. Cost: n forward samples.

    :param classifier: The model.
    :param x: Images ``(n, C, H, W)`` float32.
    :param batch_size: Images in a batch.
    """
    images = torch.from_numpy(check_images(x, tuple(classifier.input_shape)))
    view = LogitsNetwork(classifier)
    with guarded(classifier, weights=False):
        view.network.eval()
        return to_probabilities(view.predict(images, batch_size)).numpy()


@torch.no_grad()
def features(
    classifier: PyTorchClassifier, x: np.ndarray, layer: str | int | None = None, batch_size: int = 128
) -> np.ndarray:
    """Return a layer's output, averaged over pixels or tokens, ``(n, channels)`` float64. Cost: n passes up to it.

    :param classifier: The model; it is as before.
    :param x: Images ``(n, C, H, W)`` float32.
    :param layer: Dotted name, stage number, or ``None`` for the choice of :func:`.auto_layer`.
    :param batch_size: Images in a batch.
    :raises LayerNotFoundError: no such layer, or one without a tensor.
    """
    images = torch.from_numpy(check_images(x, tuple(classifier.input_shape)))
    view = LogitsNetwork(classifier, "logits")
    with guarded(classifier, weights=False):
        view.network.eval()
        name = resolve_layer(view.network, layer, view.preprocess(images[:2].to(view.device)))
        with tapped(view.network, name) as run:
            parts = [run(view.preprocess(part.to(view.device))).double() for part in images.split(batch_size)]
    z = torch.cat(parts)
    if z.ndim == 4:
        z = z.mean((2, 3))
    elif z.ndim == 3:
        z = z.mean(1)
    return z.flatten(1).cpu().numpy()


def embed(
    answers: Mapping[str, np.ndarray], seed: int = SEED, perplexity: float = _PERPLEXITY
) -> dict[str, np.ndarray]:
    """Return every model's answers as points in the plane, all placed by ONE t-SNE, so that places can be compared.

    1000 iterations from the two principal components. Deviation: the paper's code starts at random points.

    :param answers: Model to answers ``(n, d)``, probabilities or features; n may differ, d may not.
    :param seed: Seed; the default is that of the paper's code.
    :param perplexity: Neighbours that count; a third of all points at most.
    :return: Model to points ``(n, 2)`` float64.
    :raises InvalidInputError: fewer than four points, values that are not finite, or answers of different widths.
    """
    from sklearn.manifold import TSNE

    check_seed(seed)
    check_number("perplexity", perplexity, 0, open_low=True)
    if not isinstance(answers, Mapping):
        raise InvalidInputError(f"`answers` must be a mapping of models to arrays, got {type(answers).__name__}.")
    answers = {name: check_values("answers", found, 2) for name, found in answers.items()}
    widths = {name: found.shape[1:] for name, found in answers.items()}
    if len(set(widths.values())) != 1:
        raise InvalidInputError(f"Answers (n, d) with one d are needed for one embedding, got widths {widths}.")
    every = np.concatenate(list(answers.values()))
    if len(every) < 4:
        raise InvalidInputError("An embedding needs four or more points.")
    limit = max(1.0, (len(every) - 1) / 3)
    state = int(seed) % 2**32
    start = "pca" if every.shape[1] > 1 and np.ptp(every) > 0 else "random"
    placed = TSNE(2, perplexity=min(perplexity, limit), init=start, learning_rate="auto", random_state=state)
    points = placed.fit_transform(every).astype(np.float64)
    ends = np.cumsum([len(found) for found in answers.values()])
    return dict(zip(answers, np.split(points, ends[:-1]), strict=True))


def shift(points: np.ndarray, others: np.ndarray) -> float:
    """Return how far the same images lie apart, as a share of the two models' spread: 0 where models answer alike.

    The mean distance between an image's two points, over the root mean square distance of both models' points to their
    centre; at most about 2, that of two clouds far apart.

    :param points: ``(n, 2)`` of one model.
    :param others: Those of the other, for the same images in the same order.
    """
    points, others = check_values("points", points, 2), check_values("others", others, 2)
    if points.shape != others.shape:
        raise InvalidInputError(f"Points of the same images are needed, got {points.shape} and {others.shape}.")
    every = np.concatenate([points, others])
    spread = float(np.sqrt(((every - every.mean(0)) ** 2).sum(1).mean()))
    return float(np.linalg.norm(points - others, axis=1).mean()) / spread if spread else 0.0


def plot_embedding(
    points: Mapping[str, np.ndarray],
    labels: np.ndarray,
    reference: str = "Victim",
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw a panel for each model: its points over the reference's, over the regions of the classes.

    Regions: the class of most of the 15 nearest points, of both models. Axes are the same in all panels.

    :param points: What :func:`embed` returned: model to points, the reference's among them.
    :param labels: Class of each image, ``(n,)``.
    :param reference: The model that all others are compared with.
    :param path: Where to write the figure; the suffix decides the format.
    :return: A ``matplotlib.figure.Figure`` outside pyplot.
    :raises MissingDependencyError: matplotlib is not installed.
    :raises InvalidInputError: no such reference or nothing beside it, points that do not fit the labels, or a format
        that cannot be written.
    """
    others = [name for name in points if name != reference]
    if reference not in points or not others:
        raise InvalidInputError(f"{reference!r} and another model are needed, got {', '.join(points) or 'none'}.")
    if any(found.shape != (len(labels), 2) for found in points.values()):
        raise InvalidInputError(f"Every model needs a point for each of the {len(labels)} labels.")
    columns = 4 if len(others) % 4 == 0 else min(3, len(others))
    lines = -(-len(others) // columns)
    figure = new_figure(3.6 * columns, 3.7 * lines + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    every = np.concatenate(list(points.values()))
    low, high = every.min(0), every.max(0)
    low, high = low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9
    grid = [np.linspace(*ends, _GRID) for ends in zip(low, high, strict=True)]
    classes = np.unique(labels)
    for axes, name in zip(panels, others, strict=False):
        both = np.concatenate([points[reference], points[name]])
        regions, centres = class_regions(both, np.concatenate([labels, labels]), low, high)
        places = np.searchsorted(classes, regions)
        axes.imshow(
            places % _NB_TINTS,
            origin="lower",
            extent=(low[0], high[0], low[1], high[1]),
            aspect="auto",
            cmap=_TINTS,
            vmin=0,
            vmax=_NB_TINTS,  # the last of nine
            alpha=0.45,
            interpolation="nearest",
            gid="regions",
        )
        for number in np.unique(places) if len(centres) > 1 else ():
            border = {"levels": [0.5], "colors": "#777777", "linewidths": 0.5}
            axes.contour(*grid, (places == number).astype(float), **border)
        for drawn, marker, size in ((reference, "o", 9), (name, "^", 9)):
            colour = colour_of("Victim") if drawn == reference else "#d55e00"
            axes.scatter(*points[drawn].T, s=size, marker=marker, color=colour, linewidth=0, alpha=0.65, gid=drawn)
        for label, (x, y) in centres.items() if len(centres) <= _NUMBERED else ():
            box = {"facecolor": "#ffffff", "alpha": 0.75, "linewidth": 0, "pad": 1.0}
            axes.text(x, y, str(label), fontsize=9, ha="center", va="center", weight="bold", gid="class", bbox=box)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{name}\nshift {shift(points[reference], points[name]):.2f}", fontsize=9)
    for axes in panels[len(others) :]:
        axes.set_visible(False)
    figure.supxlabel(
        f"black circles: {reference}    orange triangles: the model named above    tints and numbers: classes",
        fontsize=8,
        color="#555555",
    )
    return save_figure(figure, path)


def class_regions(
    points: np.ndarray, labels: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, dict[int, tuple[float, float]]]:
    """Return the class that rules each place of a grid, ``(120, 120)`` in order of y, and a place in each class.

    :param points: ``(n, 2)``.
    :param labels: Class of each, ``(n,)``.
    :param low: Lower corner of the grid, ``(2,)``.
    :param high: Upper corner.
    """
    from sklearn.neighbors import KNeighborsClassifier

    across, up = (np.linspace(low[axis], high[axis], _GRID) for axis in (0, 1))
    places = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)
    nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(points))).fit(points, labels)
    regions = nearest.predict(places).reshape(_GRID, _GRID)
    centres = {}
    for label in np.unique(labels):
        own = points[labels == label]
        middle = np.median(own, axis=0)
        x, y = own[np.linalg.norm(own - middle, axis=1).argmin()]
        centres[int(label)] = (float(x), float(y))
    return regions, centres
