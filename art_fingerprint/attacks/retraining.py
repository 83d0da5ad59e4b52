"""Retraining: a fresh network learns the victim's probabilities, of the samples or averaged over altered copies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.stealing import StealingAttack, SurrogateFactory
from art_fingerprint.core.checks import check_number
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.core.training import Batch, Losses, random_shift
from art_fingerprint.exceptions import InvalidInputError

_MILESTONES = (20, 35, 50)  # of 60 epochs


def augmented(x: Tensor, hflip: bool, max_shift: int, generator: torch.Generator) -> Tensor:
    """Return images ``(n, C, H, W)``, each mirrored with probability 1/2 and moved by up to ``max_shift`` pixels."""
    if hflip:
        mirrored = torch.randint(2, (len(x), 1, 1, 1), generator=generator).bool()
        x = torch.where(mirrored, x.flip(-1), x)
    return random_shift(x, max_shift, generator) if max_shift else x


def smooth_labels(
    data: SubstituteSet, nb_queries: int, hflip: bool, max_shift: int, generator: torch.Generator
) -> Tensor:
    """Return the victim's probabilities averaged over altered copies of each sample, ``(n, K)`` on the victim's device.

    y = (1/m) sum over i of softmax(f_v(tau_i(x))), tau_i from :func:`augmented`. Cost: m queries for each sample.
    """
    parts = []
    for x in data.x.split(data.batch_size):
        answers = [data.ask(augmented(x, hflip, max_shift, generator)).softmax(1) for _ in range(nb_queries)]
        parts.append(torch.stack(answers).mean(0))
    return torch.cat(parts).to(data.victim.device)


class RetrainingAttack(StealingAttack):
    """Retrain a fresh network on the victim's probabilities; smooth retraining with ``label_queries`` > 1.

    Loss: CE against the victim's probabilities. Settings: the toolbox behind "SoK: How Robust is Image Classification
    Deep Neural Network Watermarking?" (CIFAR10): 60 epochs of SGD with Nesterov's momentum, the rate times 0.2 after
    20, 35 and 50 of them. Another architecture (``surrogate_factory``) makes it cross-architecture retraining; a
    factory that returns a network trained on another task makes it transfer learning.

    Smooth retraining asks the victim about ``label_queries`` altered copies of each sample (toolbox: 3) and learns
    their mean, see :func:`smooth_labels`; a mirror image has the label of its sample then.

    Deviations: the victim is asked once for each sample and its mirror image; the schedule is in shares of
    ``max_iter``; copies are mirrored and moved, the toolbox takes its data set's augmentation.

    Shape: ``generate(x)`` with x ``(n, C, H, W)`` float32 in ``clip_values``; y is not used.

    Cost: ``nb_epochs`` passes over the set, forward and backward; one victim query for each sample, two with flips,
    ``label_queries`` with smooth labels.

    :param classifier: The victim.
    :param label_queries: Queries behind each label; 1 asks about the samples themselves.
    :param max_shift: Most pixels by which altered copies are moved; only used with ``label_queries`` > 1. ``None``: an
        eighth of the image's height, 4 of CIFAR10's 32.
    :param surrogate_factory: Makes the surrogate's network, any architecture with the victim's inputs and classes;
        ``None``: the victim's architecture with fresh weights.
    :param learning_rate: SGD learning rate.
    :param lr_jitter: The rate is multiplied by ``1 + lr_jitter u``, u uniform on [0, 1).
    :param momentum: SGD momentum (Nesterov).
    :param weight_decay: SGD weight decay.
    :param nb_epochs: Passes over the substitute set.
    :param max_iter: SGD steps instead of ``nb_epochs``.
    :param allow_degenerate: Accept a substitute set that the victim puts into one class.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    reads_streams = True
    attack_params = [*StealingAttack.attack_params, "label_queries", "max_shift", "nb_epochs", "max_iter"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        label_queries: int = 1,
        *,
        max_shift: int | None = None,
        surrogate_factory: SurrogateFactory | None = None,
        learning_rate: float = 0.1,
        lr_jitter: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nb_epochs: int = 60,
        max_iter: int | None = None,
        allow_degenerate: bool = False,
        batch_size: int = 64,
        hflip: bool = True,
        callback: SurrogateCallback | None = None,
        callback_interval: int = 100,
        seed: int = 0,
        summary_writer: str | bool | SummaryWriter = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            surrogate_factory=surrogate_factory,
            learning_rate=learning_rate,
            lr_jitter=lr_jitter,
            momentum=momentum,
            weight_decay=weight_decay,
            allow_degenerate=allow_degenerate,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.label_queries = label_queries
        self.max_shift = max_shift
        self.nb_epochs = nb_epochs
        self.max_iter = max_iter
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("label_queries", self.label_queries, 1, integer=True)
        if self.max_shift is not None:
            check_number("max_shift", self.max_shift, 0, integer=True)
        check_number("nb_epochs", self.nb_epochs, 1, integer=True)
        if self.max_iter is not None:
            check_number("max_iter", self.max_iter, 1, integer=True)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        if self.label_queries == 1:
            data.check_classes(self.estimator.nb_classes, self.allow_degenerate)
            return
        data.needs_array("label_queries")
        victim = self.estimator
        if len(victim.input_shape) != 3 or not victim.channels_first:
            raise InvalidInputError(
                f"`label_queries`={self.label_queries} asks about altered images (channels, height, width), but the "
                f"classifier has input_shape={tuple(victim.input_shape)} and channels_first={victim.channels_first}; "
                "set it to 1."
            )
        if not self.hflip and not self._shift():
            raise InvalidInputError(
                f"`label_queries`={self.label_queries} with hflip=False and no shift asks the same question every "
                "time; allow one of them, or set it to 1."
            )

    def _own_queries(self, n: int) -> int:
        return 0 if self.label_queries == 1 else n * self.label_queries

    def _expected_queries(self, n: int, labelled: bool) -> int:
        return self._own_queries(n) or super()._expected_queries(n, labelled)

    def _shift(self) -> int:
        return self.estimator.input_shape[1] // 8 if self.max_shift is None else self.max_shift

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        averaged: Tensor | None = None
        if self.label_queries > 1:
            generator = torch_generator(self.seed, type(self).__name__, "altered copies")
            averaged = smooth_labels(data, self.label_queries, self.hflip, self._shift(), generator)
            data.check_classes(self.estimator.nb_classes, self.allow_degenerate, averaged.argmax(1))

        def losses(batch: Batch, logits: Tensor) -> Losses:
            wanted = data.victim_logits_of(batch).softmax(1) if averaged is None else averaged[batch.index]
            return {"ce": F.cross_entropy(logits, wanted)}

        batches = self._batches(data)
        steps = self._nb_steps(batches)

        def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
            return MultiStepLR(optimizer, [max(1, steps * epoch // 60) for epoch in _MILESTONES], gamma=0.2)

        return self._train(surrogate, batches, losses, steps, self._watch(surrogate), schedule, nesterov=True)
