"""What the verbs ``bench`` and ``experiment`` have in common: options of a run, and what ``--dry-run`` prints."""

from __future__ import annotations

import argparse
from typing import Any

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.reporting import layout


def plan_of_preset(preset: str, arguments: argparse.Namespace) -> Plan:
    """Return a preset's plan at its full scale, with the seeds asked for: three unless told otherwise, one at smoke."""
    seeds = (1 if arguments.scale == "smoke" else 3) if arguments.seeds is None else arguments.seeds
    return Plan.from_preset(preset, seeds)


def run_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of :class:`.Bench` that were given."""
    return {
        "executor": arguments.executor,
        "workers": arguments.workers,
        "ray_address": arguments.ray_address,
        "device_type": arguments.device,
        "verbose": not arguments.quiet,
    }


def outline(bench: Bench) -> None:
    """Print the cells of a plan, what is done of them, and what the rest will cost."""
    lines = bench.outline()
    rows = [["victim", "what", "models", "cells", "done", "forward passes"]]
    for line in lines:
        passes = "not known" if line.passes is None else f"{line.passes:,.0f}"
        rows.append([line.preset, line.what, str(line.seeds), str(line.cells), str(line.done), passes])
    total = sum(line.passes or 0 for line in lines)
    cells, done = sum(line.cells for line in lines), sum(line.done for line in lines)
    rows.append(["total", "", "", str(cells), str(done), f"{total:,.0f}"])
    print(layout.text(rows, rule_before_last=True))
    for line in lines:
        if line.problem:
            print(f"{line.preset}, {line.what}: its rows will fail. {line.problem}")
    print(
        "\nForward passes of one sample, estimated: a sample that is trained on counts as three, extraction as if no "
        "probe were found early, and what the folder keeps as nothing.\n"
        f"Executor: {bench.executor}, workers: {bench.workers}. Nothing was run."
    )
