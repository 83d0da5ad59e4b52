"""Figure 8: what the weights of RemovalNet's three terms do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.experiments.experiment import (
    Experiment,
    Findings,
    Model,
    Row,
    Seeds,
    band,
    directions,
    models_of,
    places,
    planned,
    removal_rows,
    scaled,
)
from art_fingerprint.experiments.learning import metric_cells, tidy
from art_fingerprint.reporting.figures import colour_of, legend_entries, new_figure
from art_fingerprint.reporting.layout import Sheet
from art_fingerprint.zoo.paper_presets import PAPER_PRESETS
from art_fingerprint.zoo.presets import Preset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0)
LEARNING_RATE = 0.03  # of the paper's ablation
RATE_MULTIPLE = 3  # what that is of the 0.01 of the paper's text
HATCHES = ("", "////", "....", "xxxx", "----", "++++")  # so that bars are not told apart by colour alone
_DEFAULTS = {"alpha": 0.2, "beta": 2.0, "gamma": 0.6, "learning_rate": 8e-3}
_SYMBOLS = {"gamma": "γ (victim's labels)", "alpha": "α (KL), γ = 1 - α", "beta": "β (latent)"}


def plan(preset: Preset, seeds: Seeds) -> Plan:
    """Return the first RemovalNet row with each weight swept: γ alone, α with γ = 1 - α, β alone.

    The grid is 0, 1/4, 1/2, 1 and 2 times the preset's weight. The learning rate is the paper's 0.03 for the paper's
    presets; for others it is three times the row's, as 0.03 is three times the rate of the paper's text: a network that
    needs a smaller rate is ruined by 0.03, whatever the weights.
    """
    setting = next(iter(removal_rows(preset).values()))
    given = {name: float(setting.params.get(name, default)) for name, default in _DEFAULTS.items()}
    own = preset.name not in PAPER_PRESETS
    given["learning_rate"] = round(RATE_MULTIPLE * given["learning_rate"], 9) if own else LEARNING_RATE
    attacks = {}
    for name in _SYMBOLS:
        for multiple in MULTIPLES:
            value = round(multiple * given[name], 6)
            weights = {**given, name: value}
            if name == "alpha":
                weights["gamma"] = round(max(0.0, 1 - value), 6)
            attacks[f"{name}@{value}"] = replace(setting, params={**setting.params, **weights})
    return planned("fig8", preset, seeds, attacks)


def read(rows: Sequence[Row]) -> Findings:
    """Return accuracy and metrics for each weight over seeds, and the figure."""
    models = [model for model in models_of(rows) if model.role != "reference"]
    known = directions(rows)
    values = places(rows)
    return Findings({"": Sheet(metric_cells(models, known, values))}, lambda: draw(models, known, values))


def draw(models: Sequence[Model], known: Mapping[str, str], values: Mapping[str, float]) -> Figure:
    """Draw a row for each weight: bars of accuracy, of scaled distances, and of scaled similarities."""
    figure = new_figure(11.0, 7.6)
    panels = figure.subplots(len(_SYMBOLS), 3, squeeze=False, sharey="col")
    shares = {name: scaled(models, name, None) for name in known}
    kinds = {kind: [n for n, d in known.items() if d == kind] for kind in ("distance", "similarity")}
    for row, (weight, symbol) in enumerate(_SYMBOLS.items()):
        labels = sorted((label for label in values if label.startswith(f"{weight}@")), key=values.__getitem__)
        ticks = [f"{values[label]:g}" for label in labels]
        own = {label: [model for model in models if model.label == label] for label in labels}
        accuracies = {"accuracy": [[m.accuracy for m in own[label]] for label in labels]}
        _bars(panels[row, 0], ticks, accuracies, {"accuracy": "#666666"})
        for column, names in enumerate(kinds.values(), 1):
            found = {
                name: [
                    [shares[name][m.label, m.seed] for m in own[label] if (m.label, m.seed) in shares[name]]
                    for label in labels
                ]
                for name in names
            }
            _bars(panels[row, column], ticks, found, {name: colour_of(name) for name in names})
        panels[row, 0].set_ylabel(f"{symbol}\naccuracy %", fontsize=8)
        panels[row, 1].set_ylabel("scaled distance", fontsize=8)
        panels[row, 2].set_ylabel("scaled similarity", fontsize=8)
        for axes in panels[row]:
            axes.set_xlabel(weight, fontsize=8)
    tidy(panels.reshape(-1))
    for axes, column in zip(panels[0, 1:], panels[:, 1:].T, strict=True):
        handles, drawn = legend_entries(column)
        if drawn:
            axes.legend(
                handles, drawn, fontsize=7, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0)
            )
    figure.supxlabel(
        "bars: mean over seeds, lines: least to greatest\nDistances and similarities: scaled by the extremes of all "
        "models, the victim among them: a high distance and a low similarity evade",
        fontsize=8,
        color="#555555",
    )
    return figure


def _bars(
    axes: Axes, ticks: Sequence[str], found: Mapping[str, Sequence[Sequence[float]]], colours: Mapping[str, str]
) -> None:
    """Draw a group of bars for each tick, a bar for each name."""
    places = np.arange(len(ticks), dtype=float)
    width = 0.8 / max(len(found), 1)
    for index, (name, groups) in enumerate(found.items()):
        bands = [band(values) for values in groups]
        known = [(place, b) for place, b in zip(places, bands, strict=True) if b is not None]
        if not known:
            continue
        x = [place + (index - (len(found) - 1) / 2) * width for place, _ in known]
        means = [b.mean for _, b in known]
        spread = [[b.mean - b.low for _, b in known], [b.high - b.mean for _, b in known]]
        axes.bar(
            x,
            means,
            width,
            yerr=spread,
            color=colours[name],
            label=name,
            gid=name,
            hatch=HATCHES[index % len(HATCHES)],
            edgecolor="#ffffff",
            linewidth=0,
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
        )
    axes.set_axisbelow(True)
    axes.set_xticks(places, ticks)


FIG8 = Experiment("ablation of RemovalNet's weights", plan, from_rows=read)
