"""Training recipes: the victim, independent negatives and references, after the code of the RemovalNet authors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint.core.checks import check_number, check_sequence, shown
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.seeding import derive_seed, forked_random_state, numpy_generator
from art_fingerprint.core.training import Batch, Batches, Losses, fit, linear_l2
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.dataset import Dataset
from art_fingerprint.zoo.lazy_batches import Prefetched, training_images
from art_fingerprint.zoo.lazy_images import LazyImages


@dataclass(frozen=True)
class Recipe:
    """How a model is trained from random weights.

    :ivar learning_rate: SGD learning rate.
    :ivar max_iter: SGD steps.
    :ivar batch_size: Samples in a batch.
    :ivar momentum: SGD momentum (code: 0.8 for victims, 0.9 for negatives).
    :ivar weight_decay: SGD weight decay.
    :ivar linear_l2: Weight of 0.5 * sum of squares over Linear layers.
    :ivar max_shift: Random shifts in pixels.
    :ivar stage_divisors: Of the rate in the three stages of a negative (code: these for CIFAR10, 1, 5, 50 otherwise).
    :raises InvalidInputError: a number out of its range.
    """

    learning_rate: float
    max_iter: int
    batch_size: int = 100
    momentum: float = 0.8
    weight_decay: float = 5e-3
    linear_l2: float = 1e-2
    max_shift: int = 0
    stage_divisors: tuple[float, float, float] = (1, 10, 100)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "momentum", "weight_decay", "linear_l2"):
            check_number(name, getattr(self, name), 0)
        for name in ("max_iter", "batch_size", "max_shift"):
            check_number(name, getattr(self, name), 1 if name == "batch_size" else 0, integer=True)
        divisors = check_sequence("stage_divisors", self.stage_divisors)
        if len(divisors) != 3:
            raise InvalidInputError(f"`stage_divisors` must be three positive numbers, got {shown(divisors)}.")
        for divisor in divisors:
            check_number("stage_divisors", divisor, 0, open_low=True)
        object.__setattr__(self, "stage_divisors", divisors)


def wrap(network: nn.Module, data: Dataset, device_type: str = "gpu") -> PyTorchClassifier:
    """Return an ART classifier around a network for this data set; ``"gpu"`` means CUDA where there is one."""
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        data.input_shape,
        data.nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing=None,
        device_type=device_type,
    )


def train_victim(
    architecture: Callable[[], nn.Module],
    data: Dataset,
    recipe: Recipe,
    seed: int,
    device_type: str = "gpu",
    verbose: bool = False,
) -> PyTorchClassifier:
    """Train a model from random weights with one cosine schedule to zero, the recipe of victims and references.

    Deviation: the code multiplies the rate by 1 + u, u uniform on [0, 1).
    """
    return _train(architecture, data, recipe, seed, "victim", [(recipe.max_iter, 1.0)], True, device_type, verbose)


def train_negative(
    architecture: Callable[[], nn.Module],
    data: Dataset,
    recipe: Recipe,
    seed: int,
    device_type: str = "gpu",
    verbose: bool = False,
) -> PyTorchClassifier:
    """Train an independent model the way the authors train negatives: three stages of falling rate, drawn at random.

    The total is int(n k), k in 0.90..0.99; stages end at shares a and 1 - a of it, a in 0.20..0.39; each has a fresh
    SGD at (0.8 + 0.2 u) lr / d, d from ``recipe.stage_divisors``, without a schedule. The code trains negatives on
    cross-entropy alone: ``linear_l2=0``.
    """
    generator = numpy_generator(seed, "negative recipe")
    total = int(recipe.max_iter * generator.integers(90, 100) / 100)
    share = generator.integers(20, 40) / 100
    borders = [0, math.ceil(share * total), math.ceil((1 - share) * total), total]
    rates = [(0.8 + 0.2 * generator.random()) / divisor for divisor in recipe.stage_divisors]
    stages = [(end - start, rate) for start, end, rate in zip(borders, borders[1:], rates, strict=False)]
    return _train(architecture, data, recipe, seed, "negative", stages, False, device_type, verbose)


def _train(
    architecture: Callable[[], nn.Module],
    data: Dataset,
    recipe: Recipe,
    seed: int,
    role: str,
    stages: list[tuple[int, float]],
    cosine: bool,
    device_type: str,
    verbose: bool,
) -> PyTorchClassifier:
    with forked_random_state(seed, role, "initial weights"):
        classifier = wrap(architecture(), data, device_type)
        view = LogitsNetwork(classifier, "logits")
        labels = torch.from_numpy(data.y_train).to(view.device)
        batches = Batches(
            training_images(data.x_train),
            view.preprocess,
            recipe.batch_size,
            view.device,
            derive_seed(seed, role),
            hflip=data.hflip,
            max_shift=recipe.max_shift,
        )

        source = Prefetched(batches) if isinstance(data.x_train, LazyImages) else batches

        def losses(batch: Batch) -> Losses:
            return {
                "ce": F.cross_entropy(view.network(batch.x), labels[batch.index]),
                "l2": recipe.linear_l2 * linear_l2(view.network),
            }

        view.network.train()
        for steps, factor in stages:
            optimizer = torch.optim.SGD(
                view.network.parameters(),
                recipe.learning_rate * factor,
                recipe.momentum,
                weight_decay=recipe.weight_decay,
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps) if cosine else None
            fit(source, losses, optimizer, steps, schedule, description=role, verbose=verbose)
        view.network.eval()
    return classifier
