"""RemovalNet: one iteration of ours against the straightforward reading of the published algorithm.

The straightforward version follows the algorithm line by line, on the same network, batches and settings (batch 128, 20
inner steps, every 10th channel shuffled): the victim labels each batch with its graph recorded; latent, logits and both
terms of the upper loss get passes of their own, so that the head runs twice in training mode; the shuffle loops over
samples, and ILBS a loop over samples and weights that reads every candidate. With a backward pass to inputs counted as
one pass and a full one as two, that makes 9 head and 45 tail passes, against 4 and 44 of ours.

The straightforward version keeps the usual memory order and BatchNorm; ours runs in channels-last order and folds the
tail's BatchNorm into its convolutions. A second row runs the passes in bfloat16, where the processor has instructions
for it.

Iterations of both alternate one by one. Printed are medians of the processor time of an iteration and of the ratio of
neighbours, and ours' cost before the first one (copying, tracing, the victim's labels). Run as
``python benchmarks/bench_removalnet.py``; ``--iterations 10`` for a quick look.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from digits_cnn import digits
from torch import Tensor, nn

from art_fingerprint.attacks import RemovalNetAttack

ALPHA, BETA, GAMMA, TEMPERATURE, RATE = 0.2, 2.0, 0.6, 20.0, 8e-3
INNER_STEPS, INNER_RATE, LOG_WEIGHT, RATIO, BATCH = 20, 0.01, 0.1, 0.1, 128
WARM_UP = 3
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Cut(nn.Module):
    """A network that can be run in two parts."""

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(x))


def convolutions(*channels: int) -> list[nn.Module]:
    """Return conv, BatchNorm and ReLU for each pair of neighbours, and max-pooling at the end."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(channels, channels[1:], strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return [*layers, nn.MaxPool2d(2)]


def digits_network() -> Cut:
    """8 x 8 images, cut behind 32 maps of 4 x 4."""
    head = nn.Sequential(*convolutions(1, 16, 32))
    return Cut(head, nn.Sequential(*convolutions(32, 64), nn.Flatten(), nn.Linear(256, 10)))


def vgg_network() -> Cut:
    """28 x 28 images, cut behind 32 maps of 7 x 7."""
    head = nn.Sequential(*convolutions(1, 16, 16), *convolutions(16, 32, 32))
    return Cut(head, nn.Sequential(*convolutions(32, 64, 64), nn.Flatten(), nn.Linear(576, 10)))


class Straightforward:
    """RemovalNet as it reads; ``step`` is one iteration."""

    def __init__(self, victim: Cut, x: Tensor, max_iter: int) -> None:
        self.x = x
        self.victim = copy.deepcopy(victim).eval()
        self.surrogate = copy.deepcopy(victim)
        self.optimizer = torch.optim.SGD(self.surrogate.parameters(), RATE, 0.9, weight_decay=1e-4)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, int(1.5 * max_iter))
        self.order: list[int] = []

    @staticmethod
    def shuffle(z: Tensor) -> Tensor:
        size = int(np.ceil(RATIO * z.shape[1]))
        out = z.clone()
        for i in range(len(z)):
            source = torch.randperm(z.shape[1])[:size]
            out[i, source.sort().values] = z[i, source]
        return out

    @staticmethod
    def ilbs(p: Tensor, y: Tensor) -> Tensor:
        out = p.clone()
        partners = torch.cdist(p, p).argmax(1).tolist()
        for i, j in enumerate(partners):
            for w in GRID:
                candidate = w * p[i] + (1 - w) * p[j]
                if candidate.argmax().item() == y[i].item():
                    out[i] = candidate
                    break
        return out

    def batch(self) -> Tensor:
        if len(self.order) < BATCH:
            self.order = torch.randperm(len(self.x)).tolist()
        rows, self.order = self.order[:BATCH], self.order[BATCH:]
        return self.x[rows]

    def step(self) -> None:
        x, network = self.batch(), self.surrogate
        y = self.victim(x).argmax(1)
        network.eval()
        with torch.no_grad():
            z = network.head(x)
        u = self.shuffle(z + torch.rand_like(z).tan())
        for _ in range(INNER_STEPS):
            u = self.shuffle(u).detach().requires_grad_(True)
            loss = F.cross_entropy(network.tail(u), y) - LOG_WEIGHT * torch.norm(u - z).log()
            u = (u - INNER_RATE * torch.autograd.grad(loss, u)[0].sign()).detach()
        with torch.no_grad():
            p = network(x).softmax(1)
        q = (self.ilbs(p, y) / TEMPERATURE).softmax(1)
        network.train()
        logits = network(x)
        latent = network.head(x)
        kl = F.kl_div((logits / TEMPERATURE).log_softmax(1), q, reduction="batchmean")
        loss = ALPHA * TEMPERATURE**2 * kl + BETA * F.mse_loss(latent, u) + GAMMA * F.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()


def interleaved(victim: Cut, x: Tensor, iterations: int, **options: object) -> tuple[np.ndarray, np.ndarray, float]:
    """Return seconds of each straightforward iteration, of the one of ours after it, and of ours before the first."""
    run = Straightforward(victim, x, iterations)
    plain: list[float] = []
    ours: list[float] = []
    marks = [time.process_time()]

    def watch(_step: int, _surrogate: PyTorchClassifier, _losses: Mapping[str, float]) -> None:
        begin = time.process_time()
        ours.append(begin - marks[-1])
        run.step()
        marks.append(time.process_time())
        plain.append(marks[-1] - begin)

    shape = tuple(x.shape[1:])
    classifier = PyTorchClassifier(victim, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu")
    attack = RemovalNetAttack(
        classifier,
        "head",
        shuffle_ratio=RATIO,
        max_iter=iterations,
        batch_size=BATCH,
        hflip=False,
        callback=watch,
        callback_interval=1,
        **options,
    )
    attack.generate(x.numpy())
    return np.array(plain[:-1]), np.array(ours[1:]), ours[0]


def report(name: str, victim: Cut, x: Tensor, iterations: int, **options: object) -> None:
    plain, ours, setup = interleaved(victim, x, iterations + WARM_UP, **options)
    plain, ours = plain[WARM_UP:], ours[WARM_UP:]
    slow, fast = (1e3 * statistics.median(times.tolist()) for times in (plain, ours))
    print(
        f"{name}: straightforward {slow:.1f} ms, ours {fast:.1f} ms an iteration, ratio "
        f"{statistics.median((plain / ours).tolist()):.2f} (ours once before: {1e3 * setup:.0f} ms)"
    )


def bfloat16_instructions() -> bool:
    """Tell whether this processor multiplies bfloat16 itself; others emulate it, several times slower than float32."""
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(ask is not None and ask() for ask in known)


def trained(network: Cut, x: Tensor, y: Tensor) -> Cut:
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--samples", type=int, default=1280)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array)[: arguments.samples] for array in digits())
    cases = {
        "digits CNN, 8 x 8": (digits_network(), images),
        "small VGG, 28 x 28": (vgg_network(), F.interpolate(images, size=28, mode="bilinear")),
    }
    for name, (network, x) in cases.items():
        victim = trained(network, x, labels)
        report(name, victim, x, arguments.iterations)
        if bfloat16_instructions():
            report(f"{name}, bf16", victim, x, arguments.iterations, autocast="bf16")
        else:
            print(f"{name}, bf16: skipped, this processor has no bfloat16 instructions (AVX512-BF16 or AMX)")


if __name__ == "__main__":
    main()
