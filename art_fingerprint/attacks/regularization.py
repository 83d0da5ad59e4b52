"""Regularisation: strong weight decay for a while, then fine-tuning until a held-back part gets no better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.soft_tuning import SoftTuningAttack
from art_fingerprint.attacks.supervised import Masks
from art_fingerprint.core.checks import check_number
from art_fingerprint.core.classifier import LogitsNetwork, has_batch_norm, network_of
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.seeding import derive_seed, torch_generator
from art_fingerprint.core.training import Batch, Batches, nb_batches
from art_fingerprint.exceptions import InvalidInputError


@torch.no_grad()
def held_back_loss(surrogate: PyTorchClassifier, held: Iterable[Batch], targets: Callable[[Batch], Tensor]) -> float:
    """Return the mean cross-entropy of a classifier in evaluation mode over some batches."""
    view = LogitsNetwork(surrogate)
    with evaluating(view.network):
        losses = [
            F.cross_entropy(view.logits(view.network(batch.x)), targets(batch), reduction="none") for batch in held
        ]
    return float(torch.cat(losses).mean())


class EarlyStopping:
    """Watches a loss on held-back samples, and keeps the weights that it was lowest with.

    :param network: The network that is trained.
    :param loss: Its loss on the held-back samples.
    :param patience: Readings in a row without a new minimum after which training is to end.
    """

    def __init__(self, network: nn.Module, loss: Callable[[], float], patience: int) -> None:
        self._network = network
        self._loss = loss
        self._patience = patience
        self._best: dict[str, Tensor] = {}
        self._waited = 0
        self.lowest: float | None = None

    def read(self) -> bool:
        """Read the loss and tell whether training is to end."""
        loss = self._loss()
        if self.lowest is None or loss < self.lowest:
            self.lowest, self._waited = loss, 0
            self._best = {name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()}
        else:
            self._waited += 1
        return self._waited >= self._patience

    def restore(self) -> None:
        """Give the network the weights of the lowest loss; without a reading it keeps those it has."""
        if self._best:
            self._network.load_state_dict(self._best)


class RegularizationAttack(SoftTuningAttack):
    """Fine-tune a copy of the victim under strong weight decay, then normally, on the victim's probabilities.

    ``strong_epochs`` with ``strong_decay``, then up to ``nb_epochs`` with ``weight_decay``. In the second phase the
    loss on a held-back part is read after each epoch; after ``patience`` readings without a new minimum training ends,
    and the weights of the lowest loss are the result (the callback's last call comes before). Settings: the toolbox
    behind "SoK: How Robust is Image Classification Deep Neural Network Watermarking?".

    Deviations: the victim is asked once for each sample and its mirror image; the rate, which is ours, falls to zero
    along one cosine over both phases; the held-back part is a share of the substitute set.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None``.

    Cost: ``strong_epochs`` and at most ``nb_epochs`` passes over the set, forward and backward, and one forward pass of
    the held-back part in an epoch; one victim query for each sample (two with flips).

    :param classifier: The victim.
    :param strong_decay: Weight decay of the first phase, >= 0.
    :param strong_epochs: Passes over the set in the first phase.
    :param patience: Readings without a new minimum after which training ends; ``None``: no part is held back, and
        training never ends early.
    :param holdout_ratio: Share of the set that is held back, (0, 1). Where it selects no sample, it is as if
        ``patience`` were ``None``, with a warning.
    :param learning_rate: SGD learning rate.
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay of the second phase.
    :param nb_epochs: Most passes over the set in the second phase.
    :param max_iter: SGD steps instead of epochs, of both phases in their proportion.
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

    attack_params = [*SoftTuningAttack.attack_params, "strong_decay", "strong_epochs", "patience", "holdout_ratio"]
    reads_streams = False

    def __init__(
        self,
        classifier: PyTorchClassifier,
        strong_decay: float = 0.1,
        *,
        strong_epochs: int = 5,
        patience: int | None = 5,
        holdout_ratio: float = 0.1,
        learning_rate: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nb_epochs: int = 50,
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
        self.strong_decay = strong_decay
        self.strong_epochs = strong_epochs
        self.patience = patience
        self.holdout_ratio = holdout_ratio
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("strong_decay", self.strong_decay, 0)
        check_number("strong_epochs", self.strong_epochs, 0, integer=True)
        if self.patience is not None:
            check_number("patience", self.patience, 1, integer=True)
        check_number("holdout_ratio", self.holdout_ratio, 0, 1, open_low=True, open_high=True)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        held = self._nb_held_back(len(data.x))
        if self.patience is not None and not held:
            warn_caller(
                f"`holdout_ratio`={self.holdout_ratio} of {len(data.x)} samples holds none back, so training will not "
                "end early; give more samples, or set patience=None to say so."
            )
        if held and len(data.x) - held < 1 + has_batch_norm(network):
            raise InvalidInputError(
                f"`holdout_ratio`={self.holdout_ratio} holds {held} of {len(data.x)} samples back, which leaves too "
                "few to train a model with BatchNorm on. Lower it, or set patience=None to hold none back."
            )

    def _nb_held_back(self, n: int) -> int:
        return 0 if self.patience is None else int(self.holdout_ratio * n)

    def _nb_steps(self, epoch: Sized) -> int:
        return self.max_iter or (self.strong_epochs + (self.nb_epochs or 0)) * len(epoch)

    def _nb_strong_steps(self, steps: int) -> int:
        return round(steps * self.strong_epochs / (self.strong_epochs + (self.nb_epochs or 0)))

    def _nb_pooled(self, n: int) -> int:
        return n - self._nb_held_back(n)

    def _expected_work(self, n: int) -> float:
        work, epoch = super()._expected_work(n), nb_batches(self._nb_pooled(n), self.batch_size)
        steps = self._nb_steps(range(epoch))
        return work + (steps - self._nb_strong_steps(steps)) // epoch * self._nb_held_back(n)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        targets = self._targets(data)
        batches, stopping = self._batches(data), None
        if self.patience is not None and self._nb_held_back(len(data.x)):
            held, batches = self._split(data)
            stopping = EarlyStopping(
                network, lambda: held_back_loss(surrogate, _in_order(data, held), targets), self.patience
            )
        epoch, steps = len(batches), self._nb_steps(batches)
        strong = self._nb_strong_steps(steps)
        first = self.strong_decay if strong else self.weight_decay
        optimizer = torch.optim.SGD(network.parameters(), self._rate(), self.momentum, weight_decay=first)
        masks = Masks.of_zeros(network)
        step = 0

        def after_step() -> bool:
            nonlocal step
            step += 1
            masks.apply()
            if step == strong:
                optimizer.param_groups[0]["weight_decay"] = self.weight_decay
            return stopping is not None and step > strong and (step - strong) % epoch == 0 and stopping.read()

        report = self._train(surrogate, data, optimizer, after_step=after_step, targets=targets, batches=batches)
        if stopping is not None:
            stopping.restore()
            report = {**report, "held_back_loss": stopping.lowest}
        return {**report, "steps": step, "strong_steps": min(strong, step)}

    def _split(self, data: SubstituteSet) -> tuple[Tensor, Batches]:
        """Return the positions of held-back samples, and endless batches of the others."""
        order = torch.randperm(len(data.x), generator=torch_generator(self.seed, type(self).__name__, "held back"))
        held, kept = order.split([self._nb_held_back(len(order)), self._nb_pooled(len(order))])
        seed = derive_seed(self.seed, type(self).__name__)
        view = data.victim
        return held, Batches(data.x[kept], view.preprocess, data.batch_size, view.device, seed, self.hflip, origin=kept)


def _in_order(data: SubstituteSet, index: Tensor) -> Iterator[Batch]:
    """Yield samples of a set, as they are, in batches."""
    for part in index.split(data.batch_size):
        where = part.to(data.victim.device)
        yield Batch(data.victim.preprocess(data.x[part].to(where.device)), where, torch.zeros_like(where))
