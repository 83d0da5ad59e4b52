"""The one training loop: attacks and the model zoo give it batches and a loss, it does the steps and the
book-keeping.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from art_fingerprint.core.classifier import Preprocessing, has_batch_norm
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError, TrainingDivergedError

logger = logging.getLogger(__name__)

Losses = dict[str, Tensor]
Callback = Callable[[int, Mapping[str, float]], bool | None]

_RESIDENT_BYTES = 2**30


@dataclass(frozen=True)
class Batch:
    """One mini-batch on the device.

    :ivar x: Preprocessed inputs.
    :ivar index: Position of each sample in the data set, ``(B,)`` int64; empty where samples have none.
    :ivar flipped: 1 where the sample is mirrored, else 0, ``(B,)`` int64; selects the row of a label table ``(2, n)``.
    :ivar y: Labels ``(B,)`` that came with the samples of a stream, else ``None``.
    """

    x: Tensor
    index: Tensor
    flipped: Tensor
    y: Tensor | None = None


class EpochBatches(Protocol):
    """Endless batches that know how many of them make an epoch."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


def nb_batches(n: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of n samples: a remainder of one sample is dropped."""
    whole, rest = divmod(n, min(batch_size, n))
    return whole + (rest > 1)


def samples_in_steps(n: int, batch_size: int, steps: int) -> int:
    """Return how many samples so many batches hold, over as many epochs of n samples as that takes."""
    size = min(batch_size, n)
    epochs, left = divmod(steps, nb_batches(n, size))
    return epochs * (n - (n % size == 1)) + left * size


class Batches:
    """Endless mini-batches of one data set, reshuffled every epoch from a seed of their own.

    A remainder of one sample is dropped, since BatchNorm cannot work on it. The data stays on the device when it takes
    less than 1 GiB. Flips come before preprocessing. Torch preprocessing runs per batch on the device; other
    preprocessing runs once, up front, on the data and on its mirror image.

    :param x: Raw inputs ``(n, *input_shape)`` float32 on the host.
    :param preprocess: The classifier's preprocessing.
    :param batch_size: Samples in a batch.
    :param device: Where batches are needed.
    :param seed: Seed of order and flips.
    :param hflip: Mirror each sample left to right with probability 1/2.
    :param max_shift: Move each sample by up to so many pixels in both directions, zeros coming in (torch preprocessing
        only). For training with given labels: those of a victim are not cached for shifted samples.
    :param origin: What :attr:`Batch.index` says of each sample, ``(n,)`` int64; default: its position in ``x``.
    """

    def __init__(
        self,
        x: Tensor,
        preprocess: Preprocessing,
        batch_size: int,
        device: torch.device,
        seed: int,
        hflip: bool = False,
        max_shift: int = 0,
        origin: Tensor | None = None,
    ) -> None:
        self._origin = None if origin is None else origin.to(device)
        self._max_shift = max_shift if preprocess.differentiable else 0
        self.batch_size = min(batch_size, len(x))
        self.device = device
        self._generator = torch_generator(seed, "batches")
        self._hflip = hflip
        self._preprocess: Callable[[Tensor], Tensor] = preprocess
        variants = [x]
        if not preprocess.differentiable:
            variants = [preprocess(x)] + ([preprocess(x.flip(-1))] if hflip else [])
            self._preprocess = lambda prepared: prepared
        resident = sum(v.numel() * v.element_size() for v in variants) <= _RESIDENT_BYTES
        self._resident = resident or device.type == "cpu"
        self._variants = [v.to(device) if self._resident else v.pin_memory() for v in variants]

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return nb_batches(len(self._variants[0]), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        n = len(self._variants[0])
        while True:
            order = torch.randperm(n, generator=self._generator)
            flips = (
                torch.randint(2, (n,), generator=self._generator) if self._hflip else torch.zeros(n, dtype=torch.long)
            )
            for index in order.split(self.batch_size):
                if len(index) > 1 or self.batch_size == 1:
                    yield self._batch(index, flips[index])

    def _batch(self, index: Tensor, flipped: Tensor) -> Batch:
        where = index.to(self.device, non_blocking=True)
        mirrored = flipped.to(self.device, non_blocking=True)
        rows = where if self._resident else index
        x = self._variants[0][rows].to(self.device, non_blocking=True)
        if self._hflip:
            twin = self._variants[1][rows].to(self.device, non_blocking=True) if len(self._variants) > 1 else x.flip(-1)
            x = torch.where(mirrored.bool().view(-1, *[1] * (x.ndim - 1)), twin, x)
        if self._max_shift:
            x = random_shift(x, self._max_shift, self._generator)
        return Batch(self._preprocess(x), where if self._origin is None else self._origin[where], mirrored)


def random_shift(x: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Return images ``(n, C, H, W)``, each moved by up to ``max_shift`` pixels in both directions, zeros coming in."""
    n, channels, height, width = x.shape
    padded = F.pad(x, (max_shift,) * 4)
    dy, dx = torch.randint(2 * max_shift + 1, (2, n, 1), generator=generator).to(x.device)
    rows = dy + torch.arange(height, device=x.device)
    columns = dx + torch.arange(width, device=x.device)
    sample = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def check_batches(n: int, batch_size: int, network: nn.Module) -> None:
    """Refuse data that a network with BatchNorm cannot be trained on; warn of less than one batch, and of a last batch
    below an eighth of the others: statistics of so few samples cost RemovalNet a point of accuracy on Fashion-MNIST.

    :raises InvalidInputError: one sample, or batches of one, with BatchNorm.
    """
    if min(n, batch_size) == 1 and has_batch_norm(network):
        raise InvalidInputError(
            f"The model has BatchNorm layers, which cannot be trained on batches of one: got {n} sample(s) and "
            f"batch_size={batch_size}; use two or more of both."
        )
    if n < batch_size:
        warn_caller(f"There are only {n} samples; batch_size is reduced from {batch_size} to {n}.")
    elif 1 < n % batch_size < batch_size / 8 and has_batch_norm(network):
        warn_caller(
            f"The last batch of an epoch has {n % batch_size} of {n} samples, few for BatchNorm's statistics: another "
            f"batch_size than {batch_size} may keep more accuracy."
        )


def fit(
    batches: Iterable[Batch],
    loss: Callable[[Batch], Losses],
    optimizer: torch.optim.Optimizer,
    max_iter: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    after_step: Callable[[], bool | None] | None = None,
    callback: Callback | None = None,
    callback_interval: int = 100,
    description: str = "training",
    verbose: bool = False,
) -> dict[str, float]:
    """Take ``max_iter`` optimiser steps on the sum of the loss terms.

    Losses stay on the device and are read only every ``callback_interval`` steps; nothing else waits for the device.

    :param batches: Where data comes from.
    :param loss: Runs the forward passes of one step and returns the weighted loss terms by name, the same names at each
        step.
    :param optimizer: Stepped once for each batch.
    :param max_iter: Number of steps.
    :param scheduler: Stepped after the optimiser.
    :param after_step: Called after each step, e.g. to re-apply a pruning mask. True ends the training.
    :param callback: Called with the step and the mean of each term since the last call: at step 0 (no terms), every
        ``callback_interval`` steps, and at the end. True ends the training.
    :param callback_interval: Steps between two readings.
    :param description: Label of the progress bar.
    :param verbose: Show the progress bar.
    :return: Mean loss terms of the last interval.
    :raises TrainingDivergedError: a loss term became NaN or infinite; carries the first such step and its terms. Found
        out at the next reading.
    """
    unread: list[Tensor] = []
    means: dict[str, float] = {}
    if callback is not None:
        callback(0, {})
    source = iter(batches)
    with tqdm(total=max_iter, desc=description, disable=not verbose) as bar:
        for step in range(1, max_iter + 1):
            terms = loss(next(source))
            values = torch.stack(list(terms.values()))
            optimizer.zero_grad(set_to_none=True)
            values.sum().backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            ended = after_step is not None and after_step() is True
            unread.append(values.detach())
            bar.update()
            if ended or step % callback_interval == 0 or step == max_iter:
                table = torch.stack(unread).tolist()
                for earlier, row in enumerate(table, step - len(table) + 1):
                    if not all(map(math.isfinite, row)):
                        raise TrainingDivergedError(
                            f"The loss became NaN or infinite at step {earlier} of {max_iter}: "
                            f"{dict(zip(terms, row, strict=True))}. Lower the learning rate. The victim is unchanged."
                        )
                means = {n: sum(column) / len(table) for n, column in zip(terms, zip(*table, strict=True), strict=True)}
                bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()}, refresh=False)
                ended = (callback is not None and callback(step, means) is True) or ended
                unread = []
            if ended:
                break
    return means


def linear_l2(network: nn.Module) -> Tensor:
    """Return 0.5 * sum of squared weights and biases of all Linear layers (RemovalNet's code adds 0.01 times this).

    Of a re-parametrised layer (``weight_norm``) that is the weight it multiplies with, not what that is computed from.
    """
    squares = [
        tensor.square().sum()
        for module in network.modules()
        if isinstance(module, nn.Linear)
        for tensor in (module.weight, module.bias)
        if tensor is not None
    ]
    return 0.5 * torch.stack(squares).sum() if squares else next(network.parameters()).new_zeros(())


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, batches: Iterable[Batch], nb_batches: int) -> None:
    """Re-estimate BatchNorm statistics as the plain average over some batches; everything else is in evaluation mode.

    Layers that track no statistics are left alone; without any that does, nothing happens. Cost: ``nb_batches`` forward
    passes.
    """
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not layers:
        logger.info("The network tracks no BatchNorm statistics; there is nothing to recalibrate.")
        return
    momenta = [layer.momentum for layer in layers]
    network.eval()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative average
            layer.train()
        for _, batch in zip(range(nb_batches), batches, strict=False):
            network(batch.x)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
