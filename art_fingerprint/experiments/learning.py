"""Figures 4 and 5: accuracy and distance over RemovalNet's iterations, and one against the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.experiments.experiment import (
    Band,
    Experiment,
    Findings,
    Model,
    Row,
    Seeds,
    band,
    base_label,
    checkpoints,
    directions,
    in_order,
    max_iter_of,
    models_of,
    places,
    planned,
    removal_rows,
    scaled,
    thresholds,
)
from art_fingerprint.reporting.figures import colour_of, legend_entries, marker_of, new_figure
from art_fingerprint.reporting.layout import Sheet, mean_std
from art_fingerprint.reporting.tables import COLUMNS
from art_fingerprint.zoo.presets import Preset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

NB_CHECKPOINTS = 11  # t = 0, 100, .., 1000 in the paper
COLUMNS_BELOW = 3
MOST_METRICS = 12
DERIVED: dict[str, Any] = {"color": "#d55e00", "alpha": 0.1, "linewidth": 0, "label": "judged derived"}
DIGITS = {name: digits for name, _, digits in COLUMNS}


def plan(name: str, preset: Preset, seeds: Seeds) -> Plan:
    """Return eleven checkpoints of every RemovalNet row, judged by all verifiers."""
    attacks = {}
    for label, setting in removal_rows(preset).items():
        last = max_iter_of(setting.params)
        steps = (round(index * last / (NB_CHECKPOINTS - 1)) for index in range(NB_CHECKPOINTS))
        attacks.update(checkpoints(label, setting, steps))
    return planned(name, preset, seeds, attacks)


def read(rows: Sequence[Row]) -> Findings:
    """Return accuracy and metrics of each checkpoint over seeds, and the figure."""
    models = [model for model in models_of(rows) if model.role != "reference"]
    known = directions(rows)
    steps = places(rows)
    sheet = Sheet(metric_cells(models, known, steps))
    return Findings({"": sheet}, lambda: draw(models, known, steps, thresholds(rows)))


def metric_cells(models: Sequence[Model], known: Mapping[str, str], places: Mapping[str, object]) -> list[list[str]]:
    """Return a line for each label: its place (a step, a share), accuracy and metrics over seeds.

    :param models: Models in the order of the lines, but for places of one curve, see :func:`.in_order`.
    :param known: Metric to direction.
    :param places: Label to place; a label that has none is shown whole.
    """
    cells = [["model", "at", "seeds", "accuracy %", *known]]
    for label in in_order(model.label for model in models):
        own = [model for model in models if model.label == label]
        values = ([m.metrics[name] for m in own if name in m.metrics] for name in known)
        cells.append(
            [
                base_label(label) if label in places else label,
                str(places.get(label, "-")),
                str(len(own)),
                mean_std([m.accuracy for m in own], 2),
                *(mean_std(found, DIGITS.get(name, 3)) for name, found in zip(known, values, strict=True)),
            ]
        )
    return cells


def draw(
    models: Sequence[Model], known: Mapping[str, str], steps: Mapping[str, float], limits: Mapping[str, float]
) -> Figure:
    """Draw accuracy and scaled distances over iterations, a column for each row; below, a trade-off for each metric.

    :param models: All models but references.
    :param known: Metric to direction.
    :param steps: Label of a checkpoint to its step.
    :param limits: Metric to threshold.
    """
    rows = list(dict.fromkeys(base_label(label) for label in steps))
    paths = {row: by_place(models, steps, row) for row in rows}
    victim = next((model.accuracy for model in models if model.role == "victim"), None)
    scored = [name for name in known if any(name in model.metrics for model in models)]
    shown, left = scored[:MOST_METRICS], scored[MOST_METRICS:]
    lines = -(-len(shown) // COLUMNS_BELOW)
    figure = new_figure(max(4.3 * len(rows), 8.6), 5.4 + 2.3 * lines)
    both = figure.subfigures(2, 1, height_ratios=(5.4, max(2.3 * lines, 0.1)), squeeze=False)
    above, below = both[:, 0]
    panels = above.subplots(2, max(len(rows), 1), squeeze=False, sharey="row", sharex="col")
    distances = {name: scaled(models, name, known[name]) for name in shown}
    for column, (row, path) in enumerate(paths.items()):
        top, bottom = panels[:, column]
        top.set_title(row, fontsize=10)
        draw_bands(
            top, {p: band(m.accuracy for m in own) for p, own in path.items()}, row, colour_of(row), marker_of(row)
        )
        if victim is not None:
            top.axhline(victim, color=colour_of("Victim"), linestyle="--", linewidth=1, gid="victim")
        for name, values in distances.items():
            found = {p: band(values[m.label, m.seed] for m in own if name in m.metrics) for p, own in path.items()}
            draw_bands(bottom, found, name, colour_of(name), marker_of(name))
        bottom.set_xlabel("iteration", fontsize=8)
    panels[0, 0].set_ylabel("accuracy %", fontsize=8)
    panels[1, 0].set_ylabel("scaled distance", fontsize=8)
    tidy(panels.reshape(-1))
    above.legend(*legend_entries(panels[1]), loc="outside right lower", fontsize=8, frameon=False)
    if shown:
        _tradeoffs(below, models, paths, {name: known[name] for name in shown}, limits, victim)
    figure.supxlabel(
        "Dashed: the victim's accuracy. Bands: least to greatest over seeds. Scaled distance: between the extremes of "
        "all models shown;\nsimilarities turned round, so that 1 is far from the victim. Below: means over seeds; the "
        "larger the marker, the later the checkpoint." + (f" Not drawn: {', '.join(left)}." if left else ""),
        fontsize=8,
        color="#555555",
    )
    return figure


def _tradeoffs(
    figure: SubFigure,
    models: Sequence[Model],
    paths: Mapping[str, Mapping[float, list[Model]]],
    known: Mapping[str, str],
    limits: Mapping[str, float],
    victim: float | None,
) -> None:
    """Draw accuracy against each metric as it is, with its threshold and the negatives: a panel for each metric."""
    lines = -(-len(known) // COLUMNS_BELOW)
    grid = figure.subplots(lines, min(COLUMNS_BELOW, len(known)), squeeze=False, sharey=True)
    panels = list(grid.reshape(-1))
    for axes, (name, direction) in zip(panels, known.items(), strict=False):
        for row, path in paths.items():
            scored = [[m for m in own if name in m.metrics] for own in path.values()]
            places = [(fmean(m.metrics[name] for m in own), fmean(m.accuracy for m in own)) for own in scored if own]
            if places:
                x, y = zip(*places, strict=True)
                axes.plot(x, y, color=colour_of(row), linewidth=0.8, alpha=0.6, label=row, gid=row)
                sizes = [6 + 40 * index / max(len(x) - 1, 1) for index in range(len(x))]
                axes.scatter(x, y, s=sizes, color=colour_of(row), marker=marker_of(row), linewidths=0, zorder=3)
        negatives = [(m.metrics[name], m.accuracy) for m in models if m.role == "negative" and name in m.metrics]
        if negatives:
            look = {"marker": "x", "s": 30, "linewidths": 1.3, "color": colour_of("Negative"), "zorder": 4}
            axes.scatter(*zip(*negatives, strict=True), label="Negative", gid="negatives", **look)
        if victim is not None:
            axes.axhline(victim, color=colour_of("Victim"), linestyle="--", linewidth=0.8)
        if name in limits:
            low, high = axes.get_xlim()
            low, high = min(low, limits[name]), max(high, limits[name])
            axes.axvspan(*((low, limits[name]) if direction == "distance" else (limits[name], high)), **DERIVED)
            axes.axvline(limits[name], color="#333333", linewidth=1, gid="threshold")
            axes.set_xlim(low, high)
        axes.set_xlabel(f"{name} ({direction})", fontsize=8)
    for axes in panels[len(known) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy %", fontsize=8)
    tidy(panels)
    figure.legend(*legend_entries(panels), loc="outside right upper", fontsize=8, frameon=False)


def by_place(models: Sequence[Model], places: Mapping[str, float], row: str) -> dict[float, list[Model]]:
    """Return place to the models of one curve, in ascending order of the places."""
    own = sorted((place, label) for label, place in places.items() if base_label(label) == row)
    return {place: [model for model in models if model.label == label] for place, label in own}


def draw_bands(
    axes: Axes, points: Mapping[int, Band | None] | Mapping[float, Band | None], name: str, colour: str, marker: str
) -> None:
    """Draw a curve of means, with a band from the least to the greatest; places without a value are left out."""
    known = {x: found for x, found in sorted(points.items()) if found is not None}
    if not known:
        return
    x = list(known)
    axes.plot(x, [b.mean for b in known.values()], color=colour, marker=marker, markersize=4, label=name, gid=name)
    if any(b.low < b.high for b in known.values()):
        low, high = [b.low for b in known.values()], [b.high for b in known.values()]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def tidy(panels: Iterable[Axes]) -> None:
    """Give panels small ticks and a faint grid."""
    for axes in panels:
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.2)


def experiment(name: str) -> Experiment:
    """Return Fig. 4 or 5, which differ in their data sets alone."""
    title = "accuracy against distance to the victim over RemovalNet's iterations"
    return Experiment(title, lambda preset, seeds: plan(name, preset, seeds), from_rows=read)
