"""What fine-tuning, pruning and distillation share: supervised training of the surrogate with the baselines' recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import RemovalAttack, SubstituteSet, SurrogateCallback
from art_fingerprint.core.checks import check_flag, check_number
from art_fingerprint.core.classifier import LogitsNetwork, network_of
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.core.training import Batch, EpochBatches, Losses, fit, linear_l2
from art_fingerprint.exceptions import InvalidInputError


class SupervisedAttack(RemovalAttack):
    """Base of the baselines that train a copy of the victim on labels with SGD and a cosine schedule to zero.

    Loss: CE + ``linear_l2`` * 0.5 * sum of squares over all Linear layers, plus the subclass's own terms.

    :ivar learning_rate: SGD learning rate; multiplied once by ``1 + lr_jitter u``, u uniform on [0, 1) from the seed.
    :ivar lr_jitter: See there; the authors' code has 1.
    :ivar momentum: SGD momentum.
    :ivar weight_decay: SGD weight decay.
    :ivar linear_l2: Weight of the squares of Linear layers.
    :ivar max_iter: Number of SGD steps; ``None`` in an attack that counts ``nb_epochs``.
    :ivar nb_epochs: Passes over the substitute set, in the attacks that count them.
    :ivar use_victim_labels: Train on the victim's labels although labels are given.
    """

    attack_params = [
        *RemovalAttack.attack_params,
        "learning_rate",
        "lr_jitter",
        "momentum",
        "weight_decay",
        "linear_l2",
        "max_iter",
        "use_victim_labels",
    ]
    nb_epochs: int | None = None
    #: Fewest epochs; 0 in an attack that need not train.
    fewest_epochs = 1

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        learning_rate: float,
        lr_jitter: float,
        momentum: float,
        weight_decay: float,
        linear_l2: float,
        max_iter: int | None,
        use_victim_labels: bool,
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
        self.learning_rate = learning_rate
        self.lr_jitter = lr_jitter
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.linear_l2 = linear_l2
        self.max_iter = max_iter
        self.use_victim_labels = use_victim_labels

    def _check_params(self) -> None:
        super()._check_params()
        for name in ("learning_rate", "lr_jitter", "momentum", "weight_decay", "linear_l2"):
            check_number(name, getattr(self, name), 0)
        if self.nb_epochs is not None:
            check_number("nb_epochs", self.nb_epochs, self.fewest_epochs, integer=True)
        if self.nb_epochs is None or self.max_iter is not None:
            check_number("max_iter", self.max_iter, 1, integer=True)
        check_flag("use_victim_labels", self.use_victim_labels)

    def _train(
        self,
        surrogate: PyTorchClassifier,
        data: SubstituteSet,
        parameters: Iterable[nn.Parameter] | torch.optim.Optimizer,
        more_losses: Callable[[nn.Module, Tensor], tuple[Tensor, Losses]] | None = None,
        after_step: Callable[[], bool | None] | None = None,
        targets: Callable[[Batch], Tensor] | None = None,
        batches: EpochBatches | None = None,
    ) -> dict[str, Any]:
        """Train the surrogate in place and return what the report needs.

        :param parameters: What SGD trains, or an optimiser that knows it.
        :param more_losses: Runs the surrogate on preprocessed inputs and returns its output and further loss terms.
        :param after_step: Called after each step.
        :param targets: What the cross-entropy of a batch is taken against: class indices ``(B,)`` or probabilities
            ``(B, K)``. Default: the labels given, or the victim's.
        :param batches: Where batches come from; default: the substitute set.
        """
        view = LogitsNetwork(surrogate)
        network = network_of(surrogate)
        if targets is None:
            targets = data.victim_labels_of if self.use_victim_labels else data.labels_of
        optimizer = parameters
        if not isinstance(optimizer, torch.optim.Optimizer):
            optimizer = torch.optim.SGD(optimizer, self._rate(), self.momentum, weight_decay=self.weight_decay)
        batches = self._batches(data) if batches is None else batches
        steps = self._nb_steps(batches)
        rate = optimizer.param_groups[0]["lr"]

        def losses(batch: Batch) -> Losses:
            self._to_training_mode(network)
            output, found = (network(batch.x), {}) if more_losses is None else more_losses(network, batch.x)
            found["ce"] = F.cross_entropy(view.logits(output), targets(batch))
            if self.linear_l2:
                found["l2"] = self.linear_l2 * linear_l2(network)
            return found

        means = fit(
            batches=batches,
            loss=losses,
            optimizer=optimizer,
            max_iter=steps,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
            after_step=after_step,
            callback=self._watch(surrogate),
            callback_interval=self.callback_interval,
            description=type(self).__name__.removesuffix("Attack"),
            verbose=self.verbose,
        )
        return {"max_iter": steps, "learning_rate": rate, "losses": means}

    def _rate(self) -> float:
        """Return the learning rate of this seed."""
        return self.learning_rate * (1 + self.lr_jitter * float(numpy_generator(self.seed, "learning rate").random()))

    def _to_training_mode(self, network: nn.Module) -> None:
        """Put the network into the mode it is trained in; called before each step."""
        network.train()


def prunable_weights(network: nn.Module, kinds: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the weight tensors of the named kinds of layers, each shared tensor once.

    :param kinds: ``"conv"`` and/or ``"linear"``.
    """
    types: dict[str, type[nn.Module]] = {"conv": nn.modules.conv._ConvNd, "linear": nn.Linear}
    wanted = tuple(types[kind] for kind in kinds)
    found: dict[str, nn.Parameter] = {}
    for name, module in network.named_modules():
        # of a transposed convolution the first axis counts inputs, not filters
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if isinstance(module, wanted) and not transposed and not any(module.weight is w for w in found.values()):
            found[f"{name}.weight" if name else "weight"] = cast(nn.Parameter, module.weight)
    return found


def editable_weights(network: nn.Module, kinds: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return :func:`prunable_weights`, of which none is computed from other tensors: it would not keep what is written.

    :raises InvalidInputError: a layer is re-parametrised.
    """
    found = prunable_weights(network, kinds)
    for name, weight in found.items():
        check_editable(name, weight)
    return found


def check_editable(name: str, weight: object) -> None:
    """Raise unless a weight is a parameter."""
    if not isinstance(weight, nn.Parameter):
        raise InvalidInputError(
            f"{name!r} is computed from other tensors (weight_norm, spectral_norm), so writing to it changes nothing: "
            "make it a weight of its own first, with torch.nn.utils.parametrize.remove_parametrizations(layer, "
            "'weight') or torch.nn.utils.remove_weight_norm(layer)."
        )


class Masks:
    """Keeps chosen weights at exactly zero during training, whatever the optimiser does."""

    def __init__(self, pairs: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        self._pairs = list(pairs)

    @classmethod
    def of_zeros(cls, network: nn.Module) -> Masks:
        """Return masks that keep what is exactly zero in Conv and Linear weights now."""
        weights = prunable_weights(network, ("conv", "linear")).values()
        own = [weight for weight in weights if isinstance(weight, nn.Parameter)]
        return cls((weight, weight.detach() != 0) for weight in own if bool((weight == 0).any()))

    @torch.no_grad()
    def apply(self) -> None:
        """Set the masked-out weights to zero."""
        for weight, keep in self._pairs:
            weight.mul_(keep)
