"""Every preset of files at its full size for a handful of iterations: does it fit in memory, and how fast is it?

For each preset a process of its own makes random weights and synthetic files, as many and as large as the published
ones (``full_size_files.py``), and does what ``art-fingerprint bench`` does, for a few iterations at a rate under which
random weights do not diverge: it loads the data set with the package's loader, trains a victim, runs the first row of
each class of attack at the preset's batch size, extracts every fingerprint, asks the victim for it, and attacks it for
Table IV. Printed are the peak of the resident memory after each stage (of CUDA's allocated memory, too) and the time of
an iteration.

On a CPU four things are cut that take hours and no memory: RemovalNet's inner steps; the images of attacks and
verifiers for which a network labels all of them first (the whole set stays loaded); the images attacked for Table IV;
and the network of ZEST and DeepJudge, whose probes are many thousand. A small one with as many classes, and as many
neurons at the layer, gets all of them. ``--real`` takes the preset's own network for these, too.

``python benchmarks/full_size_smoke.py --files DIR [--presets A,B] [--device cpu] [--iterations 2] [--out FILE.json]``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import full_size_files
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.benchmark.materials import dataset, owners_data, robustness_of, share_of_source
from art_fingerprint.benchmark.suspects import derive
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.core.taps import tap
from art_fingerprint.core.versions import versions
from art_fingerprint.evaluation.fidelity import predicted_labels
from art_fingerprint.zoo.dataset import Dataset
from art_fingerprint.zoo.lazy_batches import labels_in_chunks
from art_fingerprint.zoo.lazy_images import LazyImages
from art_fingerprint.zoo.loading import attack_class, verifier_class
from art_fingerprint.zoo.preset import AttackSetting, Preset
from art_fingerprint.zoo.presets import PRESETS, load_preset
from art_fingerprint.zoo.recipes import train_victim, wrap
from art_fingerprint.zoo.substitutes import select_substitute
from art_fingerprint.zoo.victims import victim_network

MANY_PROBES = ("ZestVerifier", "DeepJudgeVerifier")
GIB = 2**30
RATE = 1e-6  # random weights diverge at the preset's
# On a CPU: images of attacks that label all of them first, RemovalNet's inner steps, images attacked for Table IV.
FEW_IMAGES, FEW_INNER_STEPS, FEW_ATTACKED = 256, 2, 8


class Light(nn.Module):
    """A network of no work: the image in 8x8 pixels, one layer of so many positive neurons, and classes."""

    def __init__(self, channels: int, neurons: int, nb_classes: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(channels, neurons, 1), nn.Softplus())
        self.head = nn.Linear(neurons, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        small: Tensor = nn.functional.adaptive_avg_pool2d(x, 8)
        return self.head(self.layer(small).mean((2, 3)))


def random_vit() -> nn.Module:
    """Return ImageNet's network without its published weights."""
    return victim_network("vit_base_patch32_224", 1000)


class Record:
    """Peaks and times of one preset, by stage."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stages: dict[str, dict[str, Any]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure a block; peaks of the process are those since it began."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        entry: dict[str, Any] = {}
        started, cpu = time.perf_counter(), time.process_time()
        yield entry
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            entry["gpu_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
        unit = 1 if sys.platform == "darwin" else 1024
        entry["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
        entry["seconds"], entry["cpu_seconds"] = time.perf_counter() - started, time.process_time() - cpu
        self.stages[name] = entry
        print(f"  {name}: {json.dumps({key: round(value, 3) for key, value in entry.items()})}", flush=True)


class Clock:
    """A callback that measures the last iteration: in processor time on a CPU, which others may be using, too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []

    def __call__(self, step: int, _surrogate: object, _losses: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._times.append(time.perf_counter() if self._device.type == "cuda" else time.process_time())

    @property
    def seconds(self) -> float:
        """Of the last iteration."""
        return self._times[-1] - self._times[-2]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Do everything for one preset, in this process."""
    warnings.simplefilter("ignore")
    preset = load_preset(name)
    if preset.independent_architecture is not None:
        preset = replace(preset, architecture=random_vit, independent_architecture=None)
    full_size_files.publish(preset.dataset, options.files / preset.dataset)
    torch.set_num_threads(options.threads)
    kind = "gpu" if options.device == "cuda" else "cpu"
    record = Record(torch.device(options.device))
    with record.stage("data"):
        root = {"root": str(options.files / preset.dataset)}
        data = dataset(preset.dataset, json.dumps({**preset.dataset_options, **root}))
    with record.stage("training"):
        recipe = replace(preset.victim_recipe, max_iter=options.iterations, learning_rate=RATE)
        victim = train_victim(preset.architecture, data, recipe, 0, kind)
    attacks(preset, data, victim, options, record)
    light = wrap(light_twin(victim, data), data, kind)
    with record.stage("labels"):
        labels_in_chunks(
            light, data.x_train[:4096] if isinstance(data.x_train, np.ndarray) else data.x_train.take(slice(4096))
        )
        predicted_labels(light, data.x_test)
    verdicts(preset, data, victim, light, options, record)
    with record.stage("Table IV"):
        quick = {
            name: {**params, **({} if name == "FGSM" else {"steps": 1})} for name, params in preset.robustness.items()
        }
        few = FEW_ATTACKED if kind == "cpu" else preset.nb_robustness
        assert len(robustness_of(victim, data, replace(preset, robustness=quick, nb_robustness=few))) == len(quick)
        robustness_of(light, data, replace(preset, robustness=quick))
    parts = {part: list(getattr(data, f"x_{part}").shape) for part in ("train", "apart", "test")}
    on_disk = [part for part in parts if isinstance(getattr(data, f"x_{part}"), LazyImages)]
    return {
        "preset": name,
        "parts": parts,
        "on_disk": on_disk,
        "batch": preset.victim_recipe.batch_size,
        **record.stages,
    }


def attacks(
    preset: Preset, data: Dataset, victim: PyTorchClassifier, options: argparse.Namespace, record: Record
) -> None:
    """Run the first row of each class of attack."""
    rows = {setting.attack: (label, setting) for label, setting in reversed(preset.attacks.items())}
    for label, setting in reversed(rows.values()):
        params = {**setting.params, "max_iter": options.iterations, "learning_rate": RATE, "callback_interval": 1}
        known = attack_class(setting.attack).attack_params
        if options.device == "cpu" and "inner_steps" in known:
            params["inner_steps"] = FEW_INNER_STEPS
        labels = "allow_degenerate" in known  # the victim labels all images first
        if labels:
            params["allow_degenerate"] = True  # random weights may see one class
        clock = Clock(torch.device(options.device))
        with record.stage(label) as entry:
            x, y = attackers_data(preset, data, setting)
            if options.device == "cpu" and labels and isinstance(x, np.ndarray):
                x, y = x[:FEW_IMAGES], y[:FEW_IMAGES]
            attack = attack_class(setting.attack)(victim, seed=0, callback=clock, **params)
            derive(attack, x, y if setting.true_labels else None)
            entry["iteration"] = clock.seconds


def attackers_data(preset: Preset, data: Dataset, setting: AttackSetting) -> tuple[np.ndarray | LazyImages, np.ndarray]:
    """Return an attacker's data as the bench does, with random labels in place of the victim's, which take hours."""
    x, y = (data.x_apart, data.y_apart) if setting.source == "apart" else (data.x_train, data.y_train)
    share = share_of_source(setting.source, preset.subset_ratio, setting.ratio)
    if share is None:
        return x, y
    chosen = select_substitute(np.random.default_rng(0).integers(0, data.nb_classes, len(x)), share)
    return x.take(chosen) if isinstance(x, LazyImages) else x[chosen], y[chosen]


def light_twin(victim: PyTorchClassifier, data: Dataset) -> Light:
    """Return a light network with as many neurons as the victim's layer that DeepJudge takes."""
    network = network_of(victim).eval()
    example = torch.zeros(2, *data.input_shape, device=victim.device)
    with torch.no_grad(), forked_random_state(0):
        neurons = tap(network, resolve_layer(network, None, example), example).shape[1]
        return Light(data.input_shape[0], neurons, data.nb_classes)


def verdicts(
    preset: Preset,
    data: Dataset,
    victim: PyTorchClassifier,
    light: PyTorchClassifier,
    options: argparse.Namespace,
    record: Record,
) -> None:
    """Extract each verifier's fingerprint at its full size, and ask its own victim for it."""
    with record.stage("references"):  # the bench holds them all while it calibrates
        references = [
            wrap(preset.architecture(), data, "cpu" if options.device == "cpu" else "gpu")
            for _ in range(preset.nb_references)
        ]
    for name, given in preset.verifiers.items():
        kind = verifier_class(name)
        known = kind.verifier_params
        cut = {key: options.iterations for key in ("max_iter", "max_iter_attack") if key in known}
        params = {**given, **cut, **({"keep": "all"} if "keep" in known else {})}
        if name == "DeepJudgeVerifier":
            params["multiplier"] = 1e-3  # so that every neuron gets its tests, as many as there can be
        small = name in MANY_PROBES and not options.real
        if small and "layer" in params or name == "DeepJudgeVerifier" and small:
            params["layer"] = "layer"
        with record.stage(name) as entry:
            arguments = owners_data(data, kind, preset)
            if options.device == "cpu" and not small:
                arguments = tuple(part[:FEW_IMAGES] for part in arguments)
            judge = kind(light if small else victim, **params)
            fingerprint = judge.extract(*arguments)
            started = time.process_time() if options.device == "cpu" else time.perf_counter()
            judge.score(light if small else victim)
            entry["score"] = (time.process_time() if options.device == "cpu" else time.perf_counter()) - started
            entry["references"] = len(references)
            entry["fingerprint_mib"] = sum(array.nbytes for array in fingerprint.arrays.values()) / 2**20


def _child(name: str, options: argparse.Namespace, results: Any) -> None:
    results.put(measure(name, options))


def in_its_own_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a preset in a new process, whose peak of memory is then that preset's alone."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_child, args=(name, options, queue))
    process.start()
    process.join()
    if process.exitcode != 0 or queue.empty():
        return {"preset": name, "failed": f"exit status {process.exitcode}"}
    found: dict[str, Any] = queue.get()
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as Markdown: peaks of memory, and seconds of an iteration of each kind of attack."""
    kinds = ("FT", "WP", "Distill", "RemovalNet")
    lines = [f"| preset | peak GiB | after the data | after the attacks | GPU GiB | {' | '.join(kinds)} |"]
    lines.append("|---" * (5 + len(kinds)) + "|")
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"| `{name}` | {found['failed']} |")
            continue
        stages = {key: value for key, value in found.items() if isinstance(value, dict) and "peak_gib" in value}
        rows = {kind: [value for key, value in stages.items() if key.startswith(kind)] for kind in kinds}
        peaks = [max(v["peak_gib"] for v in stages.values()), stages["data"]["peak_gib"]]
        peaks.append(max(value["peak_gib"] for own in rows.values() for value in own))
        device = max((value.get("gpu_gib", 0.0) for value in stages.values()), default=0.0)
        cells = [*(f"{peak:.1f}" for peak in peaks), f"{device:.1f}" if device else "-"]
        cells += [f"{own[0]['iteration']:.2f}" if own else "-" for own in rows.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure."""
    presets = [name for name in PRESETS if name != "digits"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", type=Path, required=True, help="folder for synthetic files, made if they are missing"
    )
    parser.add_argument("--presets", default=",".join(presets))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--iterations", type=int, default=2, help="of each attack and extraction, two or more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--real", action="store_true", help="ZEST and DeepJudge on the preset's own network")
    parser.add_argument("--out", type=Path, help="JSON file for all that was measured, added to if it is there")
    options = parser.parse_args()
    options.real |= options.device == "cuda"
    results = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for name in options.presets.split(","):
        print(f"{name}: files", flush=True)
        full_size_files.make(load_preset(name).dataset, options.files)
        results[name] = in_its_own_process(name, options)
        if options.out:
            options.out.write_text(json.dumps(results, indent=2))
    print(f"{versions()}, {options.device}, {options.threads} threads\n{table(results)}")


if __name__ == "__main__":
    main()
