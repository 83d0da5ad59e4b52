"""Weight quantisation: few values for each parameter tensor, then fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.soft_tuning import SoftTuningAttack
from art_fingerprint.core.checks import check_flag, check_number
from art_fingerprint.core.classifier import network_of


def quantised(weight: Tensor, bits: int) -> Tensor:
    """Return a tensor with each value on one of 2^bits equally spaced levels, or half-way between two of them.

    The levels run from the smallest to the largest value. A value strictly between two moves to their midpoint, a value
    on a level stays: at most 2^(bits+1) - 1 values are left, and a second call changes nothing.
    """
    low, high = weight.min().double(), weight.max().double()
    shares = torch.linspace(0, 1, 2**bits, dtype=torch.float64, device=weight.device)
    exact = low + (high - low) * shares
    exact[-1] = high
    levels = exact.to(weight.dtype)
    above = torch.searchsorted(levels, weight.contiguous()).clamp_max(len(levels) - 1)  # first level not below
    midpoints = ((exact[:-1] + exact[1:]) / 2).to(weight.dtype)
    return torch.where(levels[above] == weight, weight, midpoints[(above - 1).clamp_min(0)])


class WeightQuantizationAttack(SoftTuningAttack):
    """Quantise the victim's parameters and fine-tune the copy on the victim's probabilities.

    Each parameter tensor keeps 2^bits equally spaced levels and their midpoints, see :func:`quantised`. Fine-tuning
    moves the values off them again; ``requantise`` quantises the result once more. Settings: the toolbox behind "SoK:
    How Robust is Image Classification Deep Neural Network Watermarking?" (5 or 6 bits, one epoch).

    Deviations: ``requantise``; the victim is asked once for each sample and its mirror image; the rate, which is ours,
    falls to zero along a cosine.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None``.

    Cost: ``nb_epochs`` passes over the set, forward and backward; one victim query for each sample (two with flips).

    :param classifier: The victim.
    :param bits: Levels in bits, 1 to 16.
    :param requantise: Quantise again after fine-tuning, so that the surrogate's weights are quantised.
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

    attack_params = [*SoftTuningAttack.attack_params, "bits", "requantise"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        bits: int = 5,
        *,
        requantise: bool = False,
        learning_rate: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nb_epochs: int = 1,
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
        self.bits = bits
        self.requantise = requantise
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("bits", self.bits, 1, 16, integer=True)
        check_flag("requantise", self.requantise)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        self._quantise(network)
        report = self._tune(surrogate, data)
        if not self.requantise:
            return report
        self._quantise(network)
        most = max(parameter.unique().numel() for parameter in network.parameters())
        return {**report, "most_values_in_a_tensor": most}

    @torch.no_grad()
    def _quantise(self, network: nn.Module) -> None:
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.copy_(quantised(parameter, self.bits))
