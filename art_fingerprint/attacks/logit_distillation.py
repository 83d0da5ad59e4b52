"""Logit distillation: a fresh network learns the victim's tempered outputs and its labels."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.stealing import StealingAttack, SurrogateFactory
from art_fingerprint.core.checks import check_choice, check_number
from art_fingerprint.core.training import Batch, Losses

KLReduction = Literal["mean", "batchmean"]


def distillation_terms(
    logits: Tensor, wanted: Tensor, alpha: float, temperature: float, kl_reduction: KLReduction
) -> Losses:
    """Return alpha T^2 KL(softmax(t/T) || softmax(s/T)) and (1 - alpha) CE(s, argmax t), without terms of weight 0.

    :param logits: The student's s, ``(B, K)``.
    :param wanted: The teacher's t, ``(B, K)``.
    :param kl_reduction: ``"mean"`` over samples and classes (RemovalNet's code), ``"batchmean"`` over samples, K times
        as much.
    """
    terms: Losses = {}
    if alpha > 0:
        student = F.log_softmax(logits / temperature, 1)
        teacher = F.log_softmax(wanted / temperature, 1)
        kl = F.kl_div(student, teacher, reduction="sum", log_target=True)
        # torch's own "mean" is going to become "batchmean"
        terms["kl"] = alpha * temperature**2 * kl / (logits.numel() if kl_reduction == "mean" else len(logits))
    if alpha < 1:
        terms["ce"] = (1 - alpha) * F.cross_entropy(logits, wanted.argmax(1))
    return terms


class LogitDistillationAttack(StealingAttack):
    """Logit distillation into a fresh network, "steal" in the code of the RemovalNet authors.

    Loss: alpha T^2 KL(victim || surrogate, both tempered by T) + (1 - alpha) CE(victim's label), see
    :func:`distillation_terms`. Teacher in evaluation, student in training mode. Settings: the authors' code. Its KL is
    a mean over samples *and* classes, so it weighs K times less than the usual one: ``kl_reduction``. The robustness
    toolbox behind "SoK: How Robust is Image Classification Deep Neural Network Watermarking?" distils with T = 3 and
    alpha = 1.

    Deviations: the victim is asked once for each sample and its mirror image, not at every step.

    Shape: ``generate(x)`` with x ``(n, C, H, W)`` float32 in ``clip_values``; y is not used.

    Cost: ``max_iter`` batches forward and backward; one victim query for each sample, two with flips.

    :param classifier: The victim.
    :param alpha: Weight of the divergence, [0, 1].
    :param temperature: T.
    :param kl_reduction: ``"mean"`` or ``"batchmean"``.
    :param surrogate_factory: Makes the surrogate's network, any architecture with the victim's inputs and classes;
        ``None``: the victim's architecture with fresh weights.
    :param learning_rate: SGD learning rate.
    :param lr_jitter: The rate is multiplied by ``1 + lr_jitter u``, u uniform on [0, 1).
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param max_iter: SGD steps (code: 1000 for CIFAR10, up to 20,000 elsewhere).
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
    attack_params = [*StealingAttack.attack_params, "max_iter", "alpha", "temperature", "kl_reduction"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        alpha: float = 0.5,
        *,
        temperature: float = 1.0,
        kl_reduction: KLReduction = "mean",
        surrogate_factory: SurrogateFactory | None = None,
        learning_rate: float = 1e-2,
        lr_jitter: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 5e-3,
        max_iter: int = 1000,
        allow_degenerate: bool = False,
        batch_size: int = 100,
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
        self.max_iter = max_iter
        self.alpha = alpha
        self.temperature = temperature
        self.kl_reduction = kl_reduction
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("max_iter", self.max_iter, 1, integer=True)
        check_number("alpha", self.alpha, 0, 1)
        check_number("temperature", self.temperature, 0, open_low=True)
        check_choice("kl_reduction", self.kl_reduction, ("mean", "batchmean"))

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        data.check_classes(self.estimator.nb_classes, self.allow_degenerate)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        def losses(batch: Batch, logits: Tensor) -> Losses:
            wanted = data.victim_logits_of(batch)
            return distillation_terms(logits, wanted, self.alpha, self.temperature, self.kl_reduction)

        return self._train(surrogate, self._batches(data), losses, self.max_iter, self._watch(surrogate))
