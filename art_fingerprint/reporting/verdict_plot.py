"""One verdict as a figure: every metric against the reference models, with its threshold. Needs the extra ``plots``."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from art_fingerprint.exceptions import InvalidInputError, MissingDependencyError
from art_fingerprint.verifiers.verdict import MetricResult, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {True: "#d55e00", False: "#0072b2", None: "#333333"}
_WORDS = {True: "derived", False: "not derived", None: "undecided"}
_LEGEND = "points: reference models    diamond: suspect    line: threshold    shaded: derived"
_GOLDEN = 0.6180339887498949


def plot_verdict(verdict: Verdict, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw a verdict, a strip for each metric.

    Grey points are the reference models, the diamond is the suspect, the line is the threshold, and the shaded side
    means derived. Metrics that were skipped or have no finite value are named with their reasons.

    :param verdict: What ``Verifier.verify`` returned.
    :param path: Where to write the figure; the suffix decides the format (``.png``, ``.svg``, ``.pdf``).
    :return: A ``matplotlib.figure.Figure`` outside pyplot: no window, no global state.
    :raises MissingDependencyError: matplotlib is not installed.
    :raises InvalidInputError: not a verdict, or a format that matplotlib cannot write.
    """
    if not isinstance(verdict, Verdict):
        raise InvalidInputError(f"`verdict` must be a Verdict, got {type(verdict).__name__}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Figures need matplotlib, which is not installed: pip install 'art-fingerprint[plots]'."
        ) from error
    drawn = [name for name, result in verdict.metrics.items() if math.isfinite(result.value)]
    notes = {name: result.reason for name, result in verdict.metrics.items() if name not in drawn}
    notes |= {name: f"skipped: {why}" for name, why in verdict.skipped.items()}
    heights = [*(1.0 for _ in drawn), *(0.4 for _ in notes)] or [1.0]
    figure = Figure(figsize=(8, 1.2 + 0.85 * sum(heights)), layout="constrained")
    figure.suptitle(_title(verdict), color=_COLOURS[verdict.derived], fontsize=10, x=0.01, ha="left")
    figure.supxlabel(_LEGEND, fontsize=8, color="#555555")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    for row, name in enumerate([*drawn, *notes]):
        axes = figure.add_subplot(grid[row])
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.spines[["left", "right", "top"]].set_visible(False)
        label = f"{name}\n{verdict.metrics[name].direction}" if name in drawn else name
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        if name in drawn:
            _strip(axes, verdict.metrics[name], verdict.references.get(name, ()))
        else:
            _note(axes, notes[name])
    if path is not None:
        try:
            figure.savefig(path, dpi=150)
        except ValueError as error:
            raise InvalidInputError(f"The figure cannot be written to {os.fspath(path)}: {error}") from error
    return figure


def _title(verdict: Verdict) -> str:
    references = f"{verdict.nb_references} reference models" if verdict.nb_references else "no reference models"
    head = f"{verdict.verifier}: {_WORDS[verdict.derived]} ({references}, {verdict.queries} queries)"
    return head + "".join(f"\n{line}" for line in textwrap.wrap(verdict.reason, 105))


def _strip(axes: Axes, result: MetricResult, references: Sequence[float]) -> None:
    tau = result.threshold
    values = [result.value, *references, *([] if tau is None else [tau])]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.06
    axes.set_xlim(low - margin, high + margin)
    if tau is not None:
        edge = low - margin if result.direction == "distance" else high + margin
        axes.axvspan(min(edge, tau), max(edge, tau), color=_COLOURS[True], alpha=0.12, linewidth=0, gid="derived")
        axes.axvline(tau, color="#333333", linewidth=1.2, gid="threshold")
    # spread over the height so that close points stay apart, in the same way every time
    heights = [1.2 * (index * _GOLDEN % 1) - 0.6 for index in range(len(references))]
    axes.scatter(references, heights, s=26, color="#777777", alpha=0.75, linewidth=0, gid="references")
    axes.scatter([result.value], [0], s=90, marker="D", color=_COLOURS[result.derived], zorder=3, gid="suspect")
    axes.tick_params(axis="x", labelsize=8)
    chance = "" if result.p_value is None else f", p = {result.p_value:.3g}"
    axes.set_title(
        f"{result.value:.4g}: {_WORDS[result.derived]}{chance}", loc="right", fontsize=9, color=_COLOURS[result.derived]
    )


def _note(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.text(0, 0, textwrap.fill(text, 110), va="center", fontsize=8, color=_COLOURS[None])
