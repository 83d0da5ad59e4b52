"""Label smoothing: fine-tune a copy on softened answers of the victim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.soft_tuning import SoftTuningAttack
from art_fingerprint.core.checks import check_number
from art_fingerprint.core.training import Batch
from art_fingerprint.exceptions import InvalidInputError


def smoothed(probabilities: Tensor, epsilon: float, top_k: int = 1) -> Tensor:
    """Return (1 - epsilon) p + epsilon / K for each row p, ``(B, K) -> (B, K)``.

    :param epsilon: Share of the uniform distribution, in [0, 1].
    :param top_k: Before that, the entries of ranks 2 to ``top_k`` are removed and the rest sums to one again; 1: none.
    """
    if top_k > 1:
        runners_up = probabilities.topk(top_k, dim=1).indices[:, 1:]
        probabilities = probabilities.scatter(1, runners_up, 0.0)
        probabilities = probabilities / probabilities.sum(1, keepdim=True)
    return (1 - epsilon) * probabilities + epsilon / probabilities.shape[1]


class LabelSmoothingAttack(SoftTuningAttack):
    """Fine-tune a copy of the victim on smoothed answers of the victim.

    Loss: CE against (1 - epsilon) p + epsilon / K, p the victim's probabilities. Settings: the toolbox behind "SoK: How
    Robust is Image Classification Deep Neural Network Watermarking?" (CIFAR10; ImageNet: ``epsilon=0.9``, ``top_k=3``,
    20 epochs). The rate is ten times that of the toolbox's other attacks.

    Deviations: the victim is asked once for each sample and its mirror image; the rate falls to zero along a cosine.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None``.

    Cost: ``nb_epochs`` passes over the set, forward and backward; one victim query for each sample (two with flips).

    :param classifier: The victim.
    :param epsilon: Share of the uniform distribution in a label, [0, 1).
    :param top_k: The victim's probabilities of ranks 2 to ``top_k`` are removed and the rest sums to one again; 1
        removes none.
    :param learning_rate: SGD learning rate.
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param nb_epochs: Passes over the substitute set.
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

    attack_params = [*SoftTuningAttack.attack_params, "epsilon", "top_k"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        epsilon: float = 0.3,
        *,
        top_k: int = 1,
        learning_rate: float = 1e-2,
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
        self.epsilon = epsilon
        self.top_k = top_k
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("epsilon", self.epsilon, 0, 1, open_high=True)
        check_number("top_k", self.top_k, 1, integer=True)
        if self.top_k > self.estimator.nb_classes:
            raise InvalidInputError(
                f"`top_k`={self.top_k}, but the classifier has {self.estimator.nb_classes} classes; use at most that."
            )

    def _targets(self, data: SubstituteSet) -> Callable[[Batch], Tensor]:
        found = super()._targets(data)
        nb_classes = self.estimator.nb_classes

        @torch.no_grad()
        def targets(batch: Batch) -> Tensor:
            answer = found(batch)
            rows = F.one_hot(answer, nb_classes).float() if answer.ndim == 1 else answer
            return smoothed(rows, self.epsilon, self.top_k)

        return targets

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        return self._tune(surrogate, data)
