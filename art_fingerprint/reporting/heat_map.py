"""Attacks against verifiers on one page: who recognises what, who is falsely accused, and what each attack costs."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.figures import new_figure, save_figure
from art_fingerprint.reporting.layout import Sheet, mean_std, one_line, short
from art_fingerprint.reporting.tables import rows_of_one_preset
from art_fingerprint.reporting.verdict_tables import Share, outcome_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
# Role to colours. A model that is recognised is good news, one that is accused is bad: they must not look alike.
_BLOCKS = {"surrogate": "Blues", "negative": "Oranges"}
_LEGEND = (
    "k/n: judged derived, of n models with a verdict.  blue: recognised   orange: falsely accused\n"
    "hatched: no verdict (n/a: the verifier does not apply, ?: nothing decided)   grey: mean accuracy drop in points"
)
_LARGEST_DROP = 10.0  # points; a model that lost more is of no use, and would make all others look alike
_LONGEST_LABEL = 34


@dataclass(frozen=True)
class HeatLine:
    """One attack, or one kind of independent models, against all verifiers.

    :ivar label: Row label.
    :ivar role: ``"surrogate"`` or ``"negative"``.
    :ivar drop: Accuracy drop in points, one value for each model that could be made.
    :ivar cells: Verifier to the verdicts on these models.
    """

    label: str
    role: str
    drop: tuple[float, ...]
    cells: Mapping[str, HeatCell]


@dataclass(frozen=True)
class HeatCell:
    """Verdicts of one verifier on the models of one label.

    :ivar share: Judged derived, of those with a decision.
    :ivar skipped: Models that the verifier cannot judge by their nature, another architecture say.
    :ivar open: Models whose verdict is undecided or failed.
    """

    share: Share
    skipped: int
    open: int

    @property
    def text(self) -> str:
        """``k/n``; ``n/a`` where the verifier does not apply; ``?`` where nothing was decided."""
        return str(self.share) if self.share.total else "n/a" if self.skipped and not self.open else "?"

    @property
    def value(self) -> float | None:
        """The share in [0, 1], or ``None`` where nothing was decided."""
        return self.share.judged / self.share.total if self.share.total else None


def heat_lines(rows: Iterable[Row]) -> list[HeatLine]:
    """Return verdicts by label and verifier: attacks in order of appearance, then the kinds of negatives.

    :param rows: Rows of one preset; the victim and reference models are left out.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = rows_of_one_preset(rows)
    verifiers = list(dict.fromkeys(row["verifier"] for row in kept))
    lines = []
    for role in _BLOCKS:
        for label in dict.fromkeys(row["suspect"] for row in kept if row["role"] == role):
            mine = [row for row in kept if (row["suspect"], row["role"]) == (label, role)]
            drop = {row["seed"]: row["accuracy_drop"] for row in mine if row["accuracy_drop"] is not None}
            cells = {name: _cell(row for row in mine if row["verifier"] == name) for name in verifiers}
            lines.append(HeatLine(label, role, tuple(drop.values()), cells))
    return lines


def _cell(rows: Iterable[Row]) -> HeatCell:
    count = Counter(outcome_of(row) for row in rows)
    share = Share(count["derived"], count["derived"] + count["not"])
    return HeatCell(share, count["skipped"], count["undecided"] + count["failed"])


def heat_map_sheet(rows: Iterable[Row]) -> Sheet:
    """Return what the heat map shows as a table.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    lines = heat_lines(rows)
    verifiers = list(lines[0].cells) if lines else []
    cells = [["Model", "Role", *(one_line(short(name)) for name in verifiers), "Accuracy drop"]]
    for line in lines:
        shares = [cell.text for cell in line.cells.values()]
        cells.append([one_line(line.label), line.role, *shares, mean_std(line.drop, 2)])
    notes = (
        "k/n: k models are judged derived, of n with a verdict: recognised surrogates, falsely accused negatives.",
        "n/a: the verifier does not apply to such a model. ?: nothing was decided.",
        "Accuracy drop: points, mean ± sample standard deviation.",
    )
    return Sheet(cells, notes)


def heat_map(rows: Iterable[Row], path: str | os.PathLike[str] | None = None) -> Figure:
    """Draw attacks against verifiers: blue is recognised, orange below is falsely accused.

    Each cell says k/n: k of n models with a decision are judged derived. Hatched cells have none: ``n/a`` where the
    verifier does not apply, ``?`` where nothing was decided. The grey column beside is the mean accuracy drop.

    :param rows: Rows of one preset with two verifiers or more.
    :param path: Where to write the figure; the suffix decides the format (``.png``, ``.svg``, ``.pdf``).
    :return: A ``matplotlib.figure.Figure`` outside pyplot: no window, no global state.
    :raises MissingDependencyError: matplotlib is not installed.
    :raises InvalidInputError: no rows, rows of several presets, fewer than two verifiers, no attack or negative, or a
        format that matplotlib cannot write.
    """
    lines = heat_lines(rows)
    verifiers = list(lines[0].cells) if lines else []
    if len(verifiers) < 2:
        raise InvalidInputError(
            f"A heat map needs attacks or negatives and two verifiers or more; the rows have {len(verifiers)}."
        )
    blocks = {role: found for role in _BLOCKS if (found := [line for line in lines if line.role == role])}
    longest = max(min(len(line.label), _LONGEST_LABEL) for line in lines)
    figure = new_figure(1.6 + 0.075 * longest + 0.78 * (len(verifiers) + 1), 1.9 + 0.27 * len(lines))
    grid = figure.add_gridspec(
        len(blocks), 2, height_ratios=[len(found) for found in blocks.values()], width_ratios=[len(verifiers), 1]
    )
    panels: list[Axes] = []
    for place, (role, found) in enumerate(blocks.items()):
        left, right = figure.add_subplot(grid[place, 0]), figure.add_subplot(grid[place, 1])
        values = [[cell.value for cell in line.cells.values()] for line in found]
        texts = [[cell.text for cell in line.cells.values()] for line in found]
        _matrix(left, values, texts, _BLOCKS[role], 1.0)
        drops = [statistics.fmean(line.drop) if line.drop else None for line in found]
        shown = ["?" if drop is None else f"{round(drop, 1) + 0.0:.1f}" for drop in drops]
        _matrix(right, [[drop] for drop in drops], [[text] for text in shown], "Greys", _LARGEST_DROP)
        left.set_yticks(range(len(found)), [_shortened(line.label) for line in found], fontsize=8)
        right.set_yticks([])
        panels += [left, right]
    for axes in panels:
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    top_left, top_right = panels[:2]
    top_left.xaxis.tick_top()
    names = [one_line(short(name)) for name in verifiers]
    top_left.set_xticks(range(len(names)), names, fontsize=8, rotation=35, ha="left", rotation_mode="anchor")
    top_right.xaxis.tick_top()
    top_right.set_xticks([0], ["accuracy\ndrop"], fontsize=8)
    figure.supxlabel(_LEGEND, fontsize=7, color="#555555")
    return save_figure(figure, path)


def _matrix(
    axes: Axes, values: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]], colours: str, top: float
) -> None:
    """Draw cells with their texts; those without a value are hatched."""
    from matplotlib.patches import Rectangle

    filled = [[float("nan") if value is None else value for value in line] for line in values]
    axes.imshow(filled, cmap=colours, vmin=0, vmax=top, aspect="auto", interpolation="nearest")
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            dark = value is not None and value / top > 0.6
            axes.text(x, y, texts[y][x], ha="center", va="center", fontsize=7, color="white" if dark else "#222222")
            frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=0.8)
            if value is None:
                frame.set(hatch="/////", edgecolor="#bbbbbb", gid="no value")
            axes.add_patch(frame)


def _shortened(label: str) -> str:
    text = one_line(label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
