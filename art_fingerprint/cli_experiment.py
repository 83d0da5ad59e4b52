"""The verb ``experiment`` of the command line: one table or figure of the paper, by name, for a preset."""

from __future__ import annotations

import argparse
from typing import Any

from art_fingerprint.cli_runs import outline, plan_of_preset, run_options
from art_fingerprint.experiments.catalogue import bench_of, experiment, run_experiment


def run(arguments: argparse.Namespace) -> bool:
    """Run what is not done yet, print the table, and tell whether no cell failed; or only say what is not done."""
    experiment(arguments.name)
    plan = plan_of_preset(arguments.preset, arguments).at_scale(arguments.scale)
    what: Any = (arguments.name, plan.presets[0], arguments.out, plan.seeds)
    options = run_options(arguments)
    if arguments.dry_run:
        outline(bench_of(*what, **options))
        return True
    paths, whole = run_experiment(*what, **options)
    print(paths[0].read_text(encoding="utf-8"))
    for path in paths:
        print(path)
    return whole
