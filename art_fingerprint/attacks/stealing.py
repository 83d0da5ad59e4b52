"""What model stealing needs: a network with fresh random weights, and its training on the victim's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from art_fingerprint.attacks.base import RemovalAttack, SurrogateCallback
from art_fingerprint.core.checks import check_flag, check_number
from art_fingerprint.core.classifier import LogitsNetwork, check_classifier, network_of
from art_fingerprint.core.copies import clone_classifier, clone_network
from art_fingerprint.core.seeding import forked_random_state, numpy_generator
from art_fingerprint.core.training import Batch, Losses, fit
from art_fingerprint.exceptions import InvalidInputError

SurrogateFactory = Callable[[], nn.Module]


@torch.no_grad()
def reinitialised(network: nn.Module) -> nn.Module:
    """Return a copy of a network with fresh weights from the global random state, by each module's reset_parameters().

    These are torch's own initial weights, not those of the architecture's recipe. BatchNorm statistics start anew,
    other buffers are copied. No weight of the original survives: one that nothing resets is an error.

    :raises InvalidInputError: some parameter is reset by no module (class tokens, position embeddings, attention
        projections, ...).
    """
    twin = clone_network(network)
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            parameter.fill_(torch.nan)
    for module in twin.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    left = [name for name, parameter in twin.named_parameters() if bool(parameter.isnan().any())]
    if left:
        raise InvalidInputError(
            f"The victim's network cannot be given fresh weights: no reset_parameters() covers {', '.join(left[:5])}"
            f"{f' and {len(left) - 5} more' if len(left) > 5 else ''}. Pass `surrogate_factory`, a function that "
            "returns a new network."
        )
    return twin


def check_factory(factory: object) -> None:
    """Raise unless ``factory`` is ``None`` or can be called and is no network itself."""
    if isinstance(factory, nn.Module) or not (factory is None or callable(factory)):
        kind = f"a {type(factory).__name__} itself" if isinstance(factory, nn.Module) else repr(factory)
        raise InvalidInputError(
            f"`surrogate_factory` must be a function without arguments that returns a network, or None, got {kind}."
        )


def fresh_classifier(
    victim: PyTorchClassifier, factory: SurrogateFactory | None, seed: int, *purpose: str
) -> PyTorchClassifier:
    """Return a classifier with the victim's metadata around a network with fresh weights, in evaluation mode.

    :param victim: Only read.
    :param factory: Makes the network, which is copied; ``None``: the victim's architecture, see :func:`reinitialised`.
    :param seed: Seed of the weights, with ``purpose``.
    :raises InvalidInputError: no network, or one that does not fit the victim's inputs and classes.
    """
    with forked_random_state(seed, *purpose, "initial weights"):
        network = reinitialised(network_of(victim)) if factory is None else factory()
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"`surrogate_factory` must return an nn.Module, got {type(network).__name__}.")
    thief = clone_classifier(victim, clone_network(network).eval())
    try:
        check_classifier(thief)
    except InvalidInputError as error:
        raise InvalidInputError(f"`surrogate_factory` made a network that does not fit the victim. {error}") from error
    return thief


class StealingAttack(RemovalAttack):
    """Base of the attacks that train a network with fresh weights on nothing but the victim's answers, with SGD.

    The answers are those that clients see, with the victim's postprocessing defences; such a victim takes no stream.

    :ivar surrogate_factory: Makes the network; ``None``: the victim's architecture with fresh weights.
    :ivar learning_rate: SGD learning rate; multiplied once by ``1 + lr_jitter u``, u uniform on [0, 1) from the seed.
    :ivar lr_jitter: See there.
    :ivar momentum: SGD momentum.
    :ivar weight_decay: SGD weight decay.
    :ivar allow_degenerate: Accept a substitute set that the victim puts into one class.
    """

    asks_as_client = True
    attack_params = [
        *RemovalAttack.attack_params,
        "surrogate_factory",
        "learning_rate",
        "lr_jitter",
        "momentum",
        "weight_decay",
        "allow_degenerate",
    ]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        surrogate_factory: SurrogateFactory | None,
        learning_rate: float,
        lr_jitter: float,
        momentum: float,
        weight_decay: float,
        allow_degenerate: bool,
        batch_size: int,
        hflip: bool,
        callback: SurrogateCallback | None,
        callback_interval: int,
        seed: int,
        summary_writer: str | bool | SummaryWriter,
        verbose: bool,
    ) -> None:
        super().__init__(
            classifier,
            batch_size=batch_size,
            hflip=hflip,
            callback=callback,
            callback_interval=callback_interval,
            seed=seed,
            summary_writer=summary_writer,
            verbose=verbose,
        )
        self.surrogate_factory = surrogate_factory
        self.learning_rate = learning_rate
        self.lr_jitter = lr_jitter
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.allow_degenerate = allow_degenerate

    def _check_params(self) -> None:
        super()._check_params()
        check_factory(self.surrogate_factory)
        for name in ("learning_rate", "lr_jitter", "momentum", "weight_decay"):
            check_number(name, getattr(self, name), 0)
        check_flag("allow_degenerate", self.allow_degenerate)

    def _start(self) -> PyTorchClassifier:
        return fresh_classifier(self.estimator, self.surrogate_factory, self.seed, type(self).__name__)

    def _expected_queries(self, n: int, labelled: bool) -> int:
        return n * (1 + self.hflip)

    def _rate(self) -> float:
        return self.learning_rate * (1 + self.lr_jitter * float(numpy_generator(self.seed, "learning rate").random()))

    def _train(
        self,
        surrogate: PyTorchClassifier,
        batches: Iterable[Batch],
        losses: Callable[[Batch, Tensor], Losses],
        max_iter: int,
        watch: Callable[[int, Mapping[str, float]], None],
        schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
        nesterov: bool = False,
    ) -> dict[str, Any]:
        """Train the surrogate in place, in training mode at every step, and return what the report needs.

        :param losses: Loss terms of a batch, from it and the surrogate's logits.
        :param watch: See :meth:`_watch`.
        :param schedule: Learning rate schedule; default: cosine to zero.
        """
        view = LogitsNetwork(surrogate)
        network = view.network
        rate = self._rate()
        optimizer = torch.optim.SGD(
            network.parameters(),
            rate,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=nesterov and self.momentum > 0,
        )

        def loss(batch: Batch) -> Losses:
            network.train()
            return losses(batch, view.logits(network(batch.x)))

        means = fit(
            batches=batches,
            loss=loss,
            optimizer=optimizer,
            max_iter=max_iter,
            scheduler=CosineAnnealingLR(optimizer, T_max=max_iter) if schedule is None else schedule(optimizer),
            callback=watch,
            callback_interval=self.callback_interval,
            description=type(self).__name__.removesuffix("Attack"),
            verbose=self.verbose,
        )
        return {"max_iter": max_iter, "learning_rate": rate, "losses": means}
