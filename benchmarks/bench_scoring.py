"""Scoring a suspect: what a verifier adds to the suspect's bare forward passes on the same probes.

Numbers of probes are the papers': 100 for IPGuard, 2 x 100 for ModelDiff, 100 seeds times all neurons of a layer for
DeepJudge's white-box part, 128 images x 1000 masks for ZEST (only ``--images`` for the VGG, whose full set takes a
minute a pass: the ratio is one per batch). Extraction is cut short by few iterations and long steps, which changes the
probes and not what scoring costs. Bare forward passes: the network in evaluation mode without gradients, on batches of
the same size that are ready in memory, up to the layer for DeepJudge.

All contenders alternate call by call in one process on ``--threads`` threads. Ratios are medians over rounds of
processor times, which other work on the machine disturbs least. ``verify`` gives verdicts by calibrated thresholds,
``score`` the metrics alone; ``first`` is the first verdict of a verifier made from a stored fingerprint, which for ZEST
includes finding the distinct masks and their regression matrices. Last comes ZEST's memory: the largest tensor that
scoring makes, and by how much the process grows, for several batch sizes.

On Linux the script starts itself anew with settings under which the C library keeps freed memory. Else every large
activation may be given back to the system and mapped again, which doubles the time of a contender or not, by chance.

Run as ``python benchmarks/bench_scoring.py``; ``--seconds 1 --images 2`` for a quick look.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from digits_cnn import digits
from memory import keep_freed_memory
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from art_fingerprint.verifiers import DeepJudgeVerifier, IPGuardVerifier, ModelDiffVerifier, ZestVerifier
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.verifiers.deepjudge import WHITE_BOX
from art_fingerprint.verifiers.zest_probes import ProbePlan
from art_fingerprint.zoo.architectures import SmallCNN

CPU = torch.device("cpu")
BATCH = 128


def small_vgg() -> nn.Sequential:
    """Three stages of two convolutions for 28 x 28 grey images, 16, 32 and 64 channels."""
    stages: list[nn.Module] = []
    channels = 1
    for width in (16, 32, 64):
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        stages.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(64 * 9, 10))


def trained(network: nn.Module, x: np.ndarray, y: np.ndarray, nb_epochs: int) -> PyTorchClassifier:
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(nb_epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return PyTorchClassifier(
        network.eval(), nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu"
    )


@dataclass
class Setting:
    """A victim, a suspect of the same architecture, and where DeepJudge looks into it."""

    name: str
    victim: PyTorchClassifier
    suspect: PyTorchClassifier
    references: list[PyTorchClassifier]
    x: np.ndarray
    y: np.ndarray
    layer: str
    head: nn.Module
    nb_images: int


def settings(nb_images: int) -> list[Setting]:
    torch.manual_seed(0)
    x, y = (array[:1200] for array in digits())
    large = F.interpolate(torch.from_numpy(x), size=28, mode="bilinear").numpy()
    cnns = [trained(SmallCNN(), x, y, 3) for _ in range(3)]
    vggs = [trained(small_vgg(), large[:256], y[:256], 1) for _ in range(3)]
    cnn, vgg = cnns[1].model, vggs[1].model
    blocks = nn.Sequential(cnn.block1, cnn.block2)
    return [
        Setting("SmallCNN, 8 x 8", cnns[0], cnns[1], cnns[2:], x, y, "block2", blocks, 128),
        Setting("small VGG, 28 x 28", vggs[0], vggs[1], vggs[2:], large, y, "0", vgg[:1], nb_images),
    ]


def verifiers(setting: Setting) -> dict[str, Verifier]:
    options: dict[str, Any] = {"batch_size": BATCH}
    push = {"layer": setting.layer, "multiplier": 1.0, "learning_rate": 0.1, "max_iter": 20}
    return {
        "IPGuard": IPGuardVerifier(setting.victim, max_iter=5, **options),
        "ModelDiff": ModelDiffVerifier(setting.victim, max_iter=5, **options),
        "DeepJudge white-box": DeepJudgeVerifier(setting.victim, metric_names=WHITE_BOX, **push, **options),
        "ZEST": ZestVerifier(setting.victim, nb_images=setting.nb_images, **options),
    }


def batches_of(verifier: Verifier) -> list[Tensor]:
    """Return the probes in the batches in which a suspect gets them."""
    fingerprint = verifier.fingerprint
    assert fingerprint is not None
    if isinstance(verifier, ZestVerifier):
        return list(ProbePlan.build(fingerprint.arrays, 10).batches(BATCH, CPU))
    names = [name for name in ("probes", "seeds", "partners", "tests") if name in fingerprint.arrays]
    return list(torch.cat(fingerprint.tensors(*names)).split(BATCH))


def forward(network: nn.Module, batches: list[Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            network(batch)


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def compare(title: str, setting: Setting, verifier: Verifier, budget: float) -> None:
    """Print one line: medians over so many rounds as fit into ``budget`` seconds, fifteen or more."""
    fingerprint = verifier.extract(setting.x, setting.y)
    verifier.calibrate(setting.references)
    batches = batches_of(verifier)
    network = setting.head if isinstance(verifier, DeepJudgeVerifier) else setting.suspect.model
    contenders: dict[str, Callable[[], object]] = {
        "bare": lambda: forward(network, batches),
        "verify": lambda: verifier.verify(setting.suspect),
        "score": lambda: verifier.score(setting.suspect),
        "first": lambda: type(verifier).from_fingerprint(fingerprint).verify(setting.suspect),
    }
    for call in contenders.values():
        call()
    rounds = max(15, int(budget / (4.5 * seconds(contenders["bare"]))))
    times = {name: [] for name in contenders}  # type: dict[str, list[float]]
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(seconds(call))
    bare = np.array(times["bare"])
    verify, score, first = (np.median(times[name] / bare) for name in ("verify", "score", "first"))
    print(
        f"  {title:<20} {sum(map(len, batches)):>7} {1e3 * np.median(bare):>8.1f} ms"
        f" {1e3 * np.median(times['verify']):>8.1f} ms {verify:>8.2f} {score:>6.2f} {first:>6.2f}   ({rounds} rounds)"
    )


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel() * tensor.element_size())
        return out


def resident(peak: bool) -> float:
    """Return this process' memory in MiB, or its peak since :func:`forget_peak`."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory(setting: Setting) -> None:
    """Print what ZEST holds while it scores, for several batch sizes."""
    verifier = ZestVerifier(setting.victim, nb_images=setting.nb_images)
    probes = verifier.extract(setting.x, setting.y).facts["nb_probes"]
    image = setting.x[0].nbytes
    print(f"ZEST's memory, {setting.name}: all {probes} masked images would take {probes * image / 2**20:.1f} MiB")
    verifier.score(setting.suspect)
    for batch_size in (32, 128, 512):
        verifier.set_params(batch_size=batch_size)
        with Largest() as largest:
            verifier.score(setting.suspect)
        grown = "unknown"
        if Path("/proc/self/clear_refs").exists():  # Linux
            forget_peak()
            before = resident(peak=False)
            verifier.score(setting.suspect)
            grown = f"{resident(peak=True) - before:.1f} MiB"
        print(
            f"  batches of {batch_size:>3} ({batch_size * image / 2**20:.2f} MiB of images): largest tensor "
            f"{largest.size / 2**20:.2f} MiB, the process grows by {grown} at most"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="for each verifier; fifteen rounds at least")
    parser.add_argument("--images", type=int, default=8, help="ZEST's reference images for the VGG (paper: 128)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", UserWarning)  # extraction that was cut short
    for setting in settings(arguments.images):
        print(f"{setting.name}, {arguments.threads} thread(s)")
        print(f"  {'':<20} {'probes':>7} {'bare':>11} {'verify':>11}   verify  score  first x bare")
        for title, verifier in verifiers(setting).items():
            compare(title, setting, verifier, arguments.seconds)
        memory(setting)


if __name__ == "__main__":
    main()
