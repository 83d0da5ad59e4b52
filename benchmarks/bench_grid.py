"""The bench against the bare Python calls, and two workers against one, on digits. Not a test: run it by hand.

``python benchmarks/bench_grid.py``. Overhead: the calls that a grid consists of, written down one after the other, and
the bench, in turn, in one process; what both do before they begin (the data, imports) is left out. Workers: a plan of
eight equal attacks whose victim and fingerprint are there already, one thread for each worker.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from memory import keep_freed_memory

from art_fingerprint import attacks, verifiers
from art_fingerprint.benchmark.materials import substitute_data
from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.core.seeding import derive_seed
from art_fingerprint.evaluation.fidelity import accuracy, agreement
from art_fingerprint.evaluation.robustness import robustness
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.presets import AttackSetting, Preset, load_preset
from art_fingerprint.zoo.recipes import train_negative, train_victim


def grid() -> Preset:
    """The digits preset with fewer models."""
    preset = load_preset("digits")
    labels = ("FT(0.5)", "WP(0.5)", "Distill", "RemovalNet(apart)")
    return replace(preset, nb_references=3, attacks={label: preset.attacks[label] for label in labels})


def by_hand(preset: Preset) -> float:
    """Do what the grid does, call by call. Return the seconds that it took."""
    data, make = load_digits(), preset.architecture
    began = time.perf_counter()
    victim = train_victim(make, data, preset.victim_recipe, preset.victim_seed, "cpu")
    references = [
        train_victim(make, data, preset.victim_recipe, derive_seed(preset.victim_seed, "reference", i), "cpu")
        for i in range(preset.nb_references)
    ]
    judges = []
    for name, params in preset.verifiers.items():
        judge = getattr(verifiers, name)(victim, **params)
        judge.extract(data.x_train, data.y_train)
        judges.append(judge.calibrate(references))
    suspects = [victim, *references, train_negative(make, data, preset.negative_recipe, 0, "cpu")]
    for setting in preset.attacks.values():
        x, y = substitute_data(data, victim, setting.source, preset.subset_ratio, 0)
        attack = getattr(attacks, setting.attack)(victim, seed=0, **setting.params)
        suspects.append(attack.generate(x, y if setting.true_labels else None))
    for suspect in suspects:
        accuracy(suspect, data.x_test, data.y_test)
        agreement(victim, suspect, data.x_test)
        for name, params in preset.robustness.items():
            count = preset.nb_robustness
            robustness(suspect, data.x_test[:count], data.y_test[:count], name, **params)
        for judge in judges:
            judge.verify(suspect, allow_reference=True)
    return time.perf_counter() - began


def by_bench(plan: Plan, folder: Path, workers: int = 1) -> float:
    """Run the grid in a folder. Return the seconds that it took."""
    executor = "serial" if workers == 1 else "process"
    bench = Bench(plan, folder, executor, None if workers == 1 else workers, device_type="cpu", verbose=False)
    began = time.perf_counter()
    bench.run()
    seconds = time.perf_counter() - began
    assert {row["status"] for row in read_rows(folder)} == {"ok"}
    return seconds


def overhead(repeats: int) -> None:
    """Print the bench's wall time relative to the bare calls."""
    plan = Plan.from_preset(grid(), 1)
    shares, on_cpu = [], []
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            calls = [lambda: by_hand(plan.presets[0]), lambda f=Path(folder): by_bench(plan, f)]  # type: ignore[misc]
            order = (0, 1) if number % 2 == 0 else (1, 0)  # neither always comes first
            seconds, cpu = [0.0, 0.0], [0.0, 0.0]
            for which in order:
                began = time.process_time()
                seconds[which] = calls[which]()
                cpu[which] = time.process_time() - began
        shares.append(seconds[1] / seconds[0])
        on_cpu.append(cpu[1] / cpu[0])
        print(
            f"bare calls {seconds[0]:6.2f} s, bench {seconds[1]:6.2f} s; processor time {cpu[0]:.2f} and {cpu[1]:.2f} s"
        )
    for name, found in (("wall time", shares), ("processor time", on_cpu)):
        print(
            f"bench / bare calls, {name}: median {statistics.median(found):.3f}, {min(found):.3f} to {max(found):.3f}"
        )


def two_workers(repeats: int, max_iter: int) -> None:
    """Print how much faster two worker processes are than one, start of the processes included."""
    preset = load_preset("digits")
    setting = preset.attacks["RemovalNet(apart)"]
    longer = AttackSetting(setting.attack, {**setting.params, "max_iter": max_iter}, setting.source, False)
    common = {"nb_references": 1, "nb_negatives": 0, "robustness": {}, "verifiers": {"ModelDiffVerifier": {}}}
    ready = Plan.from_preset(replace(preset, attacks={}, **common), 8)  # type: ignore[arg-type]
    plan = Plan.from_preset(replace(preset, attacks={"equal": longer}, **common), 8)  # type: ignore[arg-type]
    ratios = []
    for _ in range(repeats):
        seconds = []
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                by_bench(ready, Path(folder))
                bench = Bench(plan, folder, "process", workers, device_type="cpu", verbose=False)
                began = time.perf_counter()
                bench.run()
                seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
        print(f"one worker {seconds[0]:6.2f} s, two {seconds[1]:6.2f} s, speed-up {ratios[-1]:.2f}")
    print(f"speed-up of two workers: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-iter", type=int, default=600, help="steps of each of the eight equal attacks")
    options = parser.parse_args()
    keep_freed_memory()
    warnings.simplefilter("ignore", UserWarning)  # of a single reference model
    torch.set_num_threads(1)
    overhead(options.repeats)
    two_workers(options.repeats, options.max_iter)


if __name__ == "__main__":
    main()
