"""Figures 4 and 5: accuracy and distance over RemovalNet's iterations, and one against the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.experiments.experiment import (
    Band,
    Experiment,
    Findings,
    Model,
    Run,
    Seeds,
    band,
    base_label,
    checkpoints,
    directions,
    max_iter_of,
    models_of,
    planned,
    removal_rows,
    scaled,
)
from art_fingerprint.reporting.figures import colour_of, marker_of, new_figure
from art_fingerprint.reporting.layout import Sheet, mean_std
from art_fingerprint.reporting.tables import COLUMNS
from art_fingerprint.zoo.presets import Preset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NB_CHECKPOINTS = 11  # t = 0, 100, .., 1000 in the paper
DIGITS = {name: digits for name, _, digits in COLUMNS}


def plan(name: str, preset: Preset, seeds: Seeds) -> Plan:
    """Return eleven checkpoints of every RemovalNet row, judged by all verifiers."""
    attacks = {}
    for label, setting in removal_rows(preset).items():
        last = max_iter_of(setting)
        steps = (round(index * last / (NB_CHECKPOINTS - 1)) for index in range(NB_CHECKPOINTS))
        attacks.update(checkpoints(label, setting, steps))
    return planned(name, preset, seeds, attacks)


def read(run: Run) -> Findings:
    """Return accuracy and metrics of each checkpoint over seeds, and the figure."""
    models = [model for model in models_of(run.rows) if model.role != "reference"]
    known = directions(run.rows)
    steps = {label: setting.step or 0 for label, setting in run.preset.attacks.items()}
    return Findings({"": Sheet(metric_cells(models, known, steps))}, lambda: draw(models, known, steps))


def metric_cells(models: Sequence[Model], known: Mapping[str, str], places: Mapping[str, object]) -> list[list[str]]:
    """Return a line for each label: its place (a step, a share), accuracy and metrics over seeds.

    :param models: Models in the order of the lines.
    :param known: Metric to direction.
    :param places: Label to place; a label that has none is shown whole.
    """
    cells = [["model", "at", "seeds", "accuracy %", *known]]
    for label in dict.fromkeys(model.label for model in models):
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


def draw(models: Sequence[Model], known: Mapping[str, str], steps: Mapping[str, int]) -> Figure:
    """Draw a column for each RemovalNet row: accuracy and scaled distances over iterations, and their trade-off."""
    rows = list(dict.fromkeys(base_label(label) for label in steps))
    distances = {name: scaled(models, name, direction) for name, direction in known.items()}
    victim = next((model.accuracy for model in models if model.role == "victim"), None)
    negatives = [model for model in models if model.role == "negative"]
    figure = new_figure(4.6 * len(rows) + 1.2, 9.0)
    panels = figure.subplots(3, len(rows), squeeze=False, sharey="row")
    for column, row in enumerate(rows):
        own = {step: label for label, step in steps.items() if base_label(label) == row}
        by_step = {step: [m for m in models if m.label == label] for step, label in own.items()}
        top, middle, bottom = panels[:, column]
        top.set_title(row, fontsize=10)
        accuracies = {step: band(m.accuracy for m in found) for step, found in by_step.items()}
        draw_bands(top, accuracies, "accuracy", colour_of(row), marker_of(row))
        for name, values in distances.items():
            keys = {step: [values.get((m.label, m.seed)) for m in found] for step, found in by_step.items()}
            path = {step: band(v for v in found if v is not None) for step, found in keys.items()}
            draw_bands(middle, path, name, colour_of(name), marker_of(name))
            _tradeoff(bottom, path, accuracies, name)
            points = [(values.get((m.label, m.seed)), m.accuracy) for m in negatives]
            found = [(x, y) for x, y in points if x is not None]
            bottom.scatter(
                [x for x, _ in found], [y for _, y in found], marker="x", s=36, color=colour_of(name), gid="negatives"
            )
        for axes in (top, bottom):
            if victim is not None:
                axes.axhline(victim, color=colour_of("Victim"), linestyle="--", linewidth=1, gid="victim")
        top.set_xlabel("iteration", fontsize=8)
        middle.set_xlabel("iteration", fontsize=8)
        bottom.set_xlabel("scaled distance to the victim", fontsize=8)
    for axes, text in zip(panels[:, 0], ("accuracy %", "scaled distance", "accuracy %"), strict=True):
        axes.set_ylabel(text, fontsize=8)
    tidy(panels.reshape(-1))
    handles, names = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8, frameon=False)
    figure.supxlabel(
        "dashed: the victim; crosses: negatives; large marker: the last iteration; bands: least to greatest of seeds\n"
        "Distances: scaled by the extremes of all models shown; similarities turned round: 1 is far from the victim",
        fontsize=8,
        color="#555555",
    )
    return figure


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


def _tradeoff(
    axes: Axes, distances: Mapping[int, Band | None], accuracies: Mapping[int, Band | None], name: str
) -> None:
    both = [(distances.get(step), accuracies.get(step)) for step in sorted(accuracies)]
    known = [(d.mean, a.mean) for d, a in both if d is not None and a is not None]
    if not known:
        return
    x, y = [point[0] for point in known], [point[1] for point in known]
    colour, marker = colour_of(name), marker_of(name)
    axes.plot(x, y, color=colour, marker=marker, markersize=3, linewidth=0.6, alpha=0.5, gid=name)
    axes.scatter(x[-1:], y[-1:], color=colour, marker=marker, s=60, edgecolors="#000000", linewidths=0.8, zorder=3)


def tidy(panels: Iterable[Axes]) -> None:
    """Give panels small ticks and a faint grid."""
    for axes in panels:
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.2)


def experiment(name: str) -> Experiment:
    """Return Fig. 4 or 5, which differ in their data sets alone."""
    title = "accuracy against distance to the victim over RemovalNet's iterations"
    return Experiment(title, lambda preset, seeds: plan(name, preset, seeds), read)
