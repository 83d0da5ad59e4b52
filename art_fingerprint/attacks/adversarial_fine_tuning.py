"""Adversarial fine-tuning: train a copy on clean samples and on adversarial examples of itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import torch
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.soft_tuning import SoftTuningAttack
from art_fingerprint.attacks.supervised import Masks
from art_fingerprint.core.checks import check_number, check_sequence
from art_fingerprint.core.classifier import LogitsNetwork, network_of
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.seeding import derive_seed, torch_generator
from art_fingerprint.core.training import Batch, Batches, nb_batches
from art_fingerprint.exceptions import InvalidInputError


class AdversarialBatches:
    """Endless batches of clean samples and of adversarial examples, which are made anew in each epoch.

    :param data: The substitute set.
    :param labels: What the examples must not be, ``(n,)`` on the host.
    :param attacks: Each makes an example of each chosen sample.
    :param network: The network they attack.
    :param nb_chosen: Samples chosen at random in each epoch.
    :param seed: Seed of choice, order and flips.
    """

    def __init__(
        self,
        data: SubstituteSet,
        labels: Tensor,
        attacks: Sequence[ProjectedGradientDescentPyTorch],
        network: nn.Module,
        nb_chosen: int,
        seed: int,
    ) -> None:
        self._data = data
        self._labels = labels
        self._attacks = attacks
        self._network = network
        self._nb_chosen = min(nb_chosen, len(data.x))
        self._seed = seed

    def __len__(self) -> int:
        return nb_batches(len(self._data.x) + len(self._attacks) * self._nb_chosen, self._data.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        data = self._data
        generator = torch_generator(self._seed, "adversarial")
        everything = torch.arange(len(data.x))
        for epoch in count():
            chosen = torch.randperm(len(data.x), generator=generator)[: self._nb_chosen]
            x, y = data.x[chosen].numpy(), self._labels[chosen].numpy()
            with frozen(self._network):
                examples = [torch.from_numpy(attack.generate(x, y)) for attack in self._attacks]
            batches = Batches(
                torch.cat([data.x, *examples]),
                data.victim.preprocess,
                data.batch_size,
                data.victim.device,
                derive_seed(self._seed, epoch),
                data.hflip,
                origin=torch.cat([everything, *[chosen] * len(examples)]),
            )
            yield from islice(batches, len(self))


class StraightThrough(nn.Module):
    """A classifier's logits, differentiable in the raw input also where its defences run in NumPy.

    Such preprocessing passes gradients on as if it were the identity. Standardisation is part of it, which moves no
    gradient's sign.
    """

    def __init__(self, view: LogitsNetwork) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        prepared = self.view.preprocess(x)
        if not self.view.preprocess.differentiable:
            prepared = x + (prepared - x).detach()
        return self.view.logits(self.view.network(prepared))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Take gradients with respect to inputs alone for a block."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class AdversarialFineTuningAttack(SoftTuningAttack):
    """Fine-tune a copy of the victim on clean samples and on its own adversarial examples.

    In each epoch ART's PGD (Linf, untargeted, from the sample itself) makes an example of up to ``nb_adversarial``
    samples for each radius against the surrogate as it is; the epoch runs over the whole set and the examples, which
    have the labels of their samples. Source: the toolbox behind "SoK: How Robust is Image Classification Deep Neural
    Network Watermarking?" (``eps=(0.01, 0.1, 0.25)``, ``eps_step=0.01``, ``max_iter_attack=40``).

    Deviations: radius, step and number of steps are ours; the victim's labels are its probabilities, asked once for
    each sample and its mirror image; the rate falls to zero along a cosine.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None``.

    Cost of an epoch: the whole set and the examples forward and backward; for each example ``max_iter_attack`` + 2
    forward passes and ``max_iter_attack`` backward to the input. Once: one victim query for each sample (two with
    flips), and a batch forward.

    :param classifier: The victim. Where its defences run in NumPy, gradients pass them as if they were the identity.
    :param eps: Radius of the examples, or several radii, > 0, in units of x (8/255 is for images in [0, 1]). Examples
        stay in ``clip_values``.
    :param eps_step: Step of PGD in units of x, > 0; never longer than the radius.
    :param max_iter_attack: Steps of PGD.
    :param nb_adversarial: Most samples of an epoch that examples are made of.
    :param learning_rate: SGD learning rate.
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param nb_epochs: Passes over the set and the examples.
    :param max_iter: SGD steps instead of ``nb_epochs``.
    :param use_victim_labels: Train on the victim's probabilities, also where y is given; ``False``: on y, or else on
        the victim's labels.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    attack_params = [*SoftTuningAttack.attack_params, "eps", "eps_step", "max_iter_attack", "nb_adversarial"]
    reads_streams = False

    def __init__(
        self,
        classifier: PyTorchClassifier,
        eps: float | Sequence[float] = 8 / 255,
        *,
        eps_step: float = 2 / 255,
        max_iter_attack: int = 10,
        nb_adversarial: int = 1000,
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nb_epochs: int = 5,
        max_iter: int | None = None,
        use_victim_labels: bool = True,
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
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            nb_epochs=nb_epochs,
            max_iter=max_iter,
            use_victim_labels=use_victim_labels,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.eps = eps
        self.eps_step = eps_step
        self.max_iter_attack = max_iter_attack
        self.nb_adversarial = nb_adversarial
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        if not isinstance(self.eps, int | float):
            self.eps = check_sequence("eps", self.eps)
            if not self.eps:
                raise InvalidInputError("`eps` is empty; give a radius, or several.")
        for radius in self._radii():
            check_number("eps", radius, 0, open_low=True)
        check_number("eps_step", self.eps_step, 0, open_low=True)
        check_number("max_iter_attack", self.max_iter_attack, 1, integer=True)
        check_number("nb_adversarial", self.nb_adversarial, 1, integer=True)

    def _radii(self) -> tuple[float, ...]:
        return (self.eps,) if isinstance(self.eps, int | float) else tuple(self.eps)

    def _nb_examples(self, n: int) -> int:
        return len(self._radii()) * min(self.nb_adversarial, n)

    def _nb_pooled(self, n: int) -> int:
        return n + self._nb_examples(n)

    def _expected_work(self, n: int) -> float:
        epoch = nb_batches(self._nb_pooled(n), self.batch_size)
        begun = math.ceil(self._nb_steps(range(epoch)) / epoch)
        examples = begun * self._nb_examples(n) * (2 * self.max_iter_attack + 2)
        return super()._expected_work(n) + examples + min(self.batch_size, n)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        before, after = data.x[:1].shape, data.example(1).x.shape
        if not data.victim.preprocess.differentiable and before != after:
            raise InvalidInputError(
                f"The classifier's preprocessing in NumPy turns inputs of shape {tuple(before[1:])} into "
                f"{tuple(after[1:])}; gradients cannot pass it. Use one in PyTorch, or one that keeps the shape."
            )

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        given = data.victim_logits(self.hflip).argmax(2) if self.use_victim_labels else data.labels(self.hflip)
        seed = derive_seed(self.seed, type(self).__name__)
        attacks = self._attacks(surrogate, data)
        batches = AdversarialBatches(data, given[0].cpu(), attacks, network, self.nb_adversarial, seed)
        masks = Masks.of_zeros(network)
        return self._train(
            surrogate,
            data,
            network.parameters(),
            after_step=masks.apply,
            targets=self._targets(data),
            batches=batches,
        )

    def _attacks(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> list[ProjectedGradientDescentPyTorch]:
        device = data.victim.device
        view = LogitsNetwork(surrogate)
        with evaluating(view.network), torch.no_grad():
            view.logits(view.network(data.example(data.batch_size).x))  # what it answers is seen once, on clean samples
        with torch.cuda.device(device if device.type == "cuda" else -1):
            # Logits and cross-entropy, whatever the model returns and the classifier's loss is.
            target = PyTorchClassifier(
                model=StraightThrough(view),
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(surrogate.input_shape),
                nb_classes=surrogate.nb_classes,
                clip_values=surrogate.clip_values,
                preprocessing=None,
                device_type="cpu" if device.type == "cpu" else "gpu",
            )
        return [
            ProjectedGradientDescentPyTorch(
                target,
                eps=float(radius),
                eps_step=float(min(self.eps_step, radius)),
                max_iter=self.max_iter_attack,
                batch_size=data.batch_size,
                verbose=False,
            )
            for radius in self._radii()
        ]
