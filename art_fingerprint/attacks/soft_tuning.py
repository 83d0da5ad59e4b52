"""What attacks from watermark research share: a change to the copy, and fine-tuning on the victim's answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor

from art_fingerprint.attacks.base import RemovalAttack, SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.supervised import Masks, SupervisedAttack
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.training import Batch


class SoftTuningAttack(SupervisedAttack):
    """Base of the attacks that fine-tune a copy of the victim on the victim's class probabilities.

    Loss: CE against the probabilities. SGD with momentum and a cosine schedule to zero; weights that are exactly zero
    when training starts stay zero.

    :ivar use_victim_labels: Train on the victim's probabilities, also where labels are given; ``False``: on the labels
        given, or else on the victim's labels.
    """

    attack_params = [
        *RemovalAttack.attack_params,
        "learning_rate",
        "momentum",
        "weight_decay",
        "nb_epochs",
        "max_iter",
        "use_victim_labels",
    ]
    reads_streams = True

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        nb_epochs: int,
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
            learning_rate=learning_rate,
            lr_jitter=0.0,
            momentum=momentum,
            weight_decay=weight_decay,
            linear_l2=0.0,
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
        self.nb_epochs = nb_epochs

    def _targets(self, data: SubstituteSet) -> Callable[[Batch], Tensor]:
        """Return what the cross-entropy of a batch is taken against: indices ``(B,)`` or probabilities ``(B, K)``."""
        if not self.use_victim_labels:
            return data.labels_of
        return lambda batch: data.victim_logits_of(batch).softmax(1)

    def _tune(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        """Fine-tune all parameters of the surrogate in place and return what the report needs."""
        network = network_of(surrogate)
        masks = Masks.of_zeros(network)
        return self._train(surrogate, data, network.parameters(), after_step=masks.apply, targets=self._targets(data))
