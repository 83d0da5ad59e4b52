"""The paper's Tables I to IV as experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from art_fingerprint.benchmark.plan import Plan, architecture_name
from art_fingerprint.core.classifier import network_of
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.experiments.experiment import (
    Experiment,
    Findings,
    Row,
    Run,
    Seeds,
    models_of,
    planned,
    removal_rows,
    without_negatives,
    without_verdicts,
)
from art_fingerprint.reporting.layout import Sheet
from art_fingerprint.reporting.robustness import table_four
from art_fingerprint.reporting.tables import sheet, table_one
from art_fingerprint.zoo.presets import Preset


def plan_whole(preset: Preset, seeds: Seeds) -> Plan:
    """Return the preset's own grid, the one of ``art-fingerprint bench``: in one folder its rows are the same."""
    return Plan((preset,), tuple(seeds))


def read_one(rows: Sequence[Row]) -> Findings:
    """Return Table I."""
    return Findings({"": sheet(table_one(rows))})


def plan_three(preset: Preset, seeds: Seeds) -> Plan:
    """Return the victim alone, with what a row needs."""
    return planned("table3", preset, seeds, {}, **without_negatives(preset), **without_verdicts(preset))


def read_three(run: Run) -> Findings:
    """Return data set, architecture, number of parameters and accuracy of the victim."""
    network = network_of(run.bench.untrained)
    size = sum(parameter.numel() for parameter in network.parameters())
    accuracies = [model.accuracy for model in models_of(run.rows) if model.role == "victim"]
    name = f"{type(network).__name__} ({architecture_name(run.preset.architecture)})"
    line = [run.preset.dataset, name, f"{size:,}", f"{accuracies[0]:.2f}" if accuracies else "-"]
    return Findings({"": Sheet([["data set", "model", "parameters", "accuracy %"], line])})


def plan_four(preset: Preset, seeds: Seeds) -> Plan:
    """Return the last RemovalNet row under the preset's evasion attacks, with as few verdicts as a row needs."""
    label = list(removal_rows(preset))[-1]
    if not preset.robustness:
        raise InvalidInputError(f"Table IV needs evasion attacks; `robustness` of the preset {preset.name!r} is empty.")
    plan = planned("table4", preset, seeds, {label: preset.attacks[label]}, **without_verdicts(preset))
    return Plan((replace(plan.presets[0], robustness=preset.robustness),), plan.seeds)


def read_four(rows: Sequence[Row]) -> Findings:
    """Return Table IV."""
    return Findings({"": Sheet(table_four(rows))})


TABLE1 = Experiment("all metrics of all attacks against the thresholds", plan_whole, from_rows=read_one)
TABLE3 = Experiment("the victim", plan_three, from_models=read_three)
TABLE4 = Experiment("robustness of victim, surrogate and negative", plan_four, from_rows=read_four)
