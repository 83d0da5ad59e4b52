"""The verb ``experiment`` of the command line: one table or figure of the paper, by name, for a preset."""

from __future__ import annotations

import argparse
from typing import Any

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.cli_outline import outline
from art_fingerprint.cli_signals import terminated_as_interrupted
from art_fingerprint.experiments.catalogue import bench_of, experiment, run_experiment


def run(arguments: argparse.Namespace) -> bool:
    """Run what is not done yet, print the table, and tell whether no cell failed; or only say what is not done."""
    experiment(arguments.name)
    seeds = (1 if arguments.scale == "smoke" else 3) if arguments.seeds is None else arguments.seeds
    plan = Plan.from_preset(arguments.preset, seeds).at_scale(arguments.scale)
    what: Any = (arguments.name, plan.presets[0], arguments.out, plan.seeds)
    options: dict[str, Any] = {
        "executor": arguments.executor,
        "workers": arguments.workers,
        "ray_address": arguments.ray_address,
        "device_type": arguments.device,
        "verbose": not arguments.quiet,
    }
    if arguments.dry_run:
        outline(bench_of(*what, **options))
        return True
    with terminated_as_interrupted():
        paths, whole = run_experiment(*what, **options)
    print(paths[0].read_text(encoding="utf-8"))
    for path in paths:
        print(path)
    return whole
