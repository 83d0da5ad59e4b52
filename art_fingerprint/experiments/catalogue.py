"""The experiments by name, and how one is run."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import is_done
from art_fingerprint.core.files import write_whole
from art_fingerprint.core.taps import near_names
from art_fingerprint.exceptions import InvalidInputError, MissingDependencyError
from art_fingerprint.experiments import ablation, insides, learning, ratios, stealing, tables
from art_fingerprint.experiments.experiment import Experiment, Findings, Run, Seeds, failures
from art_fingerprint.reporting.layout import render
from art_fingerprint.reporting.tables import warned, warnings_of
from art_fingerprint.zoo.presets import Preset

logger = logging.getLogger(__name__)

#: Name to experiment. Tables I and II, and figures 4 and 5, differ in their data sets alone.
EXPERIMENTS: Mapping[str, Experiment] = {
    "table1": tables.TABLE1,
    "table2": tables.TABLE1,
    "table3": tables.TABLE3,
    "table4": tables.TABLE4,
    "fig4": learning.experiment("fig4"),
    "fig5": learning.experiment("fig5"),
    "fig6": ratios.FIG6,
    "fig7": stealing.FIG7,
    "fig8": ablation.FIG8,
    "fig9": insides.FIG9,
    "fig10": insides.FIG10,
}


def experiment(name: str) -> Experiment:
    """Return an experiment by name.

    :raises InvalidInputError: unknown name; near names are listed.
    """
    if name not in EXPERIMENTS:
        near = near_names(EXPERIMENTS, name) or list(EXPERIMENTS)
        raise InvalidInputError(f"There is no experiment {name!r}. Known are, among others, {', '.join(near)}.")
    return EXPERIMENTS[name]


def bench_of(
    name: str, preset: Preset, folder: str | os.PathLike[str], seeds: Seeds = (0, 1, 2), **options: Any
) -> Bench:
    """Return the grid of an experiment, checked and not run. Arguments and errors as in :func:`run_experiment`."""
    return Bench(experiment(name).plan(preset, seeds), folder, **options)


def run_experiment(
    name: str, preset: Preset, folder: str | os.PathLike[str], seeds: Seeds = (0, 1, 2), **options: Any
) -> tuple[list[Path], bool]:
    """Run what is not done yet of an experiment, and write its tables and its figure beside the rows.

    ``NAME-PRESET.md``, ``.csv`` and, for a figure, ``.png``; further tables have their own name at the end. Several
    experiments and presets may share a folder, and then share victim, references and negatives.

    :param name: One of :data:`EXPERIMENTS`.
    :param preset: The victim with its attacks and verifiers.
    :param folder: Folder of the run.
    :param seeds: Seeds of attacks and negatives.
    :param options: Those of :class:`.Bench`.
    :return: The files that were written, and whether all cells of the experiment have a result.
    :raises InvalidInputError: unknown name, or a preset that does not fit the experiment.
    """
    bench = bench_of(name, preset, folder, seeds, **options)
    bench.run()
    plan = bench.plan
    title = plan.presets[0].name
    rows = bench.rows()
    findings = EXPERIMENTS[name].read(Run(plan, rows, bench.benches[title]))
    warnings = warnings_of(rows)
    missing = () if EXPERIMENTS[name] is tables.TABLE1 else failures(rows)  # that table says it itself
    paths = _write(findings, Path(folder), f"{name}-{preset.name}", warnings, missing)
    return paths, all(map(is_done, rows))


def _write(
    findings: Findings, folder: Path, stem: str, warnings: tuple[str, ...], missing: tuple[str, ...]
) -> list[Path]:
    paths = []
    for part, found in findings.sheets.items():
        sheet = warned(replace(found, notes=(*found.notes, *missing)), warnings)
        for form in ("md", "csv"):
            path = folder / f"{stem}{f'-{part}' if part else ''}.{form}"
            write_whole(path, render({stem: sheet}, form).encode())
            paths.append(path)
    if findings.figure is not None:
        image = io.BytesIO()
        try:
            figure = findings.figure()
            if warnings:
                figure.text(0.5, 0.5, "SMOKE SCALE", ha="center", va="center", rotation=20, fontsize=40, alpha=0.15)
            figure.savefig(image, format="png", dpi=150)
        except MissingDependencyError as error:  # the tables are worth something without it
            logger.warning("%s", error)
            return paths
        write_whole(folder / f"{stem}.png", image.getvalue())
        paths.append(folder / f"{stem}.png")
    return paths
