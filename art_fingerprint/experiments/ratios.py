"""Figure 6: RemovalNet with little data, from 2 % to 20 % of the substitute set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

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
from art_fingerprint.experiments.learning import draw_bands, metric_cells, tidy
from art_fingerprint.reporting.figures import colour_of, legend_entries, marker_of, new_figure
from art_fingerprint.reporting.layout import Sheet
from art_fingerprint.zoo.presets import Preset, Source
from art_fingerprint.zoo.substitutes import RATIOS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plan(preset: Preset, seeds: Seeds) -> Plan:
    """Return every RemovalNet row with ten shares r of its data, at the learning rate lr (1 - r).

    Limited training data is a share of the training set, surrogate data one of what is held apart.
    """
    attacks = {}
    for label, setting in removal_rows(preset).items():
        source: Source = "apart" if setting.source == "apart" else "subset"
        for ratio in RATIOS:
            params = {**setting.params, "subset_ratio": ratio}
            attacks[f"{label}@{ratio}"] = replace(setting, params=params, source=source, ratio=ratio)
    return planned("fig6", preset, seeds, attacks)


def read(rows: Sequence[Row]) -> Findings:
    """Return accuracy and metrics for each share over seeds, and the figure."""
    models = [model for model in models_of(rows) if model.role != "reference"]
    known = directions(rows)
    ratios = places(rows)
    return Findings({"": Sheet(metric_cells(models, known, ratios))}, lambda: draw(models, known, ratios))


def draw(models: Sequence[Model], known: Mapping[str, str], ratios: Mapping[str, float]) -> Figure:
    """Draw accuracy over the share for all rows, and each row's scaled metrics."""
    rows = list(dict.fromkeys(label.rpartition("@")[0] for label in ratios))
    figure = new_figure(3.4 * (len(rows) + 1) + 1.0, 3.9)
    panels = figure.subplots(1, len(rows) + 1, squeeze=False).reshape(-1)
    victim = next((model.accuracy for model in models if model.role == "victim"), None)
    values = {name: scaled(models, name, direction) for name, direction in known.items()}
    for row, axes in zip(rows, panels[1:], strict=True):
        own = {ratio: label for label, ratio in ratios.items() if label.rpartition("@")[0] == row}
        by_ratio = {ratio: [m for m in models if m.label == label] for ratio, label in own.items()}
        accuracies = {ratio: band(m.accuracy for m in found) for ratio, found in by_ratio.items()}
        draw_bands(panels[0], accuracies, row, colour_of(row), marker_of(row))
        for name, found in values.items():
            path = {
                ratio: band(found[m.label, m.seed] for m in group if (m.label, m.seed) in found)
                for ratio, group in by_ratio.items()
            }
            draw_bands(axes, path, name, colour_of(name), marker_of(name))
        axes.set_title(row, fontsize=10)
        axes.set_ylim(-0.04, 1.04)
    if victim is not None:
        panels[0].axhline(victim, color=colour_of("Victim"), linestyle="--", linewidth=1, label="Victim", gid="victim")
    panels[0].set_ylabel("accuracy %", fontsize=8)
    panels[0].legend(fontsize=8, frameon=False)
    panels[0].set_title("Accuracy", fontsize=10)
    panels[1].set_ylabel("scaled distance", fontsize=8)
    tidy(panels)
    for axes in panels:
        axes.set_xticks(RATIOS[1::2], [f"{ratio:.0%}" for ratio in RATIOS[1::2]])
    figure.legend(*legend_entries(panels[1:]), loc="outside right center", fontsize=8, frameon=False)
    figure.supxlabel(
        "share of its source that the attacker holds; bands: least to greatest over seeds\nDistances: "
        "scaled by the extremes of all models, similarities turned round: 1 is far from the victim",
        fontsize=8,
        color="#555555",
    )
    return figure


FIG6 = Experiment("RemovalNet with 2 to 20 % of the data", plan, from_rows=read)
