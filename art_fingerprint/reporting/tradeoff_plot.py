"""Robustness beside removal as a figure: a panel for each verifier, a point for each attack. Needs ``plots``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from art_fingerprint.exceptions import InvalidInputError, MissingDependencyError
from art_fingerprint.reporting.layout import short
from art_fingerprint.reporting.robustness import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL = np.array([190.0, 150.0])  # width and height of a panel, about, in typographic points
_AROUND = np.array([(6, 6), (-6, 6), (6, -6), (-6, -6), (0, 8.5), (0, -8.5), (8.5, 0), (-8.5, 0)])
_MARKERS = {"victim": "*", "surrogate": "o", "negative": "s"}


def _offsets(places: Mapping[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Return where the number of each point stands, in typographic points from it: far from markers and numbers."""
    at = np.array(list(places.values()), dtype=np.float64)
    span = np.maximum(np.ptp(at, axis=0), 1e-12)
    at = (at - at.min(0)) / span * _PANEL
    taken, found = list(at), {}
    for number, place in zip(places, at, strict=True):
        room = [
            min(float(np.hypot(*(place + offset - other))) for other in taken if other is not place)
            if len(taken) > 1
            else 0.0
            for offset in _AROUND
        ]
        best = _AROUND[int(np.argmax(np.minimum(room, 8.0)))]  # farther than that is as good
        taken.append(place + best)
        found[number] = (float(best[0]), float(best[1]))
    return found


def plot_tradeoff(points: Sequence[Point], path: str | os.PathLike[str] | None = None, attack: str = "PGD") -> Figure:
    """Draw robust accuracy against distance gained, a panel for each verifier; the colour is the accuracy.

    Numbers stand for the models that the list beside the panels names. The dotted lines are a copy (0) and an average
    reference model (1).

    :param points: What :func:`.tradeoff` returned.
    :param path: Where to write the figure; the suffix decides the format.
    :param attack: The evasion attack, for the label of the axis.
    :return: A ``matplotlib.figure.Figure`` outside pyplot.
    :raises MissingDependencyError: matplotlib is not installed.
    :raises InvalidInputError: no points, or a format that matplotlib cannot write.
    """
    verifiers = list(dict.fromkeys(name for point in points for name in point.gained))
    if not verifiers:
        raise InvalidInputError("There are no points to draw: the comparison is empty.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Figures need matplotlib, which is not installed: pip install 'art-fingerprint[plots]'."
        ) from error
    columns = min(2, len(verifiers))
    lines = -(-len(verifiers) // columns)
    figure = Figure(figsize=(4.2 * columns + 2.6, max(3.4 * lines, 0.21 * len(points) + 1)), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).reshape(-1)
    accuracies = [100 * point.accuracy for point in points]
    limits = {"vmin": min(accuracies), "vmax": max(accuracies), "cmap": "viridis"}
    drawn = None
    for axes, verifier in zip(panels, verifiers, strict=False):
        for edge in (0, 1):
            axes.axvline(edge, color="#999999", linewidth=0.8, linestyle=":")
        for point in points:
            if verifier not in point.gained:
                continue
            x, y = point.gained[verifier], 100 * point.robust_accuracy
            options = {"marker": _MARKERS[point.role], "s": 110 if point.role == "victim" else 45, "zorder": 3}
            drawn = axes.scatter(
                [x], [y], c=[100 * point.accuracy], edgecolors="#333333", linewidths=0.5, **options, **limits
            )
        shown = {
            number: (point.gained[verifier], 100 * point.robust_accuracy)
            for number, point in enumerate(points, 1)
            if verifier in point.gained
        }
        for number, offset in _offsets(shown).items():
            style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 7}
            axes.annotate(str(number), shown[number], xytext=offset, zorder=4, **style)
        axes.set_title(short(verifier), fontsize=10)
        axes.set_xlabel("distance gained (0: copy, 1: independent)", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.2)
        axes.margins(0.1, 0.15)
    for axes in panels[len(verifiers) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(f"accuracy % under {attack}", fontsize=8)
    names = "\n".join(f"{number:2d}  {point.label}" for number, point in enumerate(points, 1))
    figure.legend(handles=[], title=names, loc="outside right upper", title_fontsize=8, alignment="left", frameon=False)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=list(panels), location="bottom", fraction=0.04, aspect=50)
        bar.set_label("accuracy % on test images", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    if path is not None:
        try:
            figure.savefig(path, dpi=150)
        except ValueError as error:
            raise InvalidInputError(f"The figure cannot be written to {os.fspath(path)}: {error}") from error
    return figure
