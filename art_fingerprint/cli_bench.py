"""The verb ``bench`` of the command line: a preset or a plan file, run, or only outlined."""

from __future__ import annotations

import argparse

from art_fingerprint.benchmark.plan_files import load_plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.cli_runs import outline, plan_of_preset, run_options


def run(arguments: argparse.Namespace) -> Bench | None:
    """Run what is not done yet and return it, or only say what that is."""
    bench = _bench(arguments)
    if arguments.dry_run:
        outline(bench)
        return None
    bench.run()
    return bench


def _bench(arguments: argparse.Namespace) -> Bench:
    if arguments.plan is None:
        plan = plan_of_preset(arguments.preset or "digits", arguments)
    else:
        plan = load_plan(arguments.plan)
        if arguments.seeds is not None:
            plan = plan.with_seeds(arguments.seeds)
    return Bench(
        plan.restricted(_names(arguments.attacks), _names(arguments.verifiers)).at_scale(arguments.scale),
        arguments.out,
        **run_options(arguments),
    )


def _names(text: str | None) -> list[str] | None:
    """Split at commas, but not inside brackets: rows are called ``FT(0.5)``, and may be called ``A(1,2)``."""
    if text is None:
        return None
    names, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += character
    return [name.strip() for name in names if name.strip()]
