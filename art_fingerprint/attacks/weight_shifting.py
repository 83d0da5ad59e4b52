"""Weight shifting: move every filter away from the layer's mean filter, add noise, then fine-tune."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.soft_tuning import SoftTuningAttack
from art_fingerprint.attacks.supervised import editable_weights
from art_fingerprint.core.checks import check_number
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError


def shifted(weight: Tensor, mean_weight: float, noise_weight: float, noise: Tensor) -> Tensor:
    """Return w - lambda1 mean_out(w) - lambda2 std(w) e for a convolution's weight ``(out, in, ...)``.

    :param mean_weight: lambda1, weight of the mean over the output axis.
    :param noise_weight: lambda2, weight of the noise.
    :param noise: e, standard normal, of the weight's shape.
    """
    spread = weight.std(correction=0)
    return weight - mean_weight * weight.mean(0, keepdim=True) - noise_weight * spread * noise


class WeightShiftingAttack(SoftTuningAttack):
    """Shift the victim's convolution filters and repair the copy by fine-tuning.

    Every convolution's weight becomes w - lambda1 mean_out(w) - lambda2 N(0, std(w)^2), mean_out over the filters; then
    the copy learns the victim's probabilities. Settings: the toolbox behind "SoK: How Robust is Image Classification
    Deep Neural Network Watermarking?" (a variant has ``mean_weight=2.5``).

    Deviations: the victim is asked once for each sample and its mirror image; the rate, which is ours, falls to zero
    along a cosine; std is over the whole weight.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None``.

    Cost: ``nb_epochs`` passes over the set, forward and backward; one victim query for each sample (two with flips).

    :param classifier: The victim.
    :param mean_weight: lambda1, weight of the mean filter that is taken off, >= 0.
    :param noise_weight: lambda2, standard deviation of the noise in standard deviations of the weight, >= 0.
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

    attack_params = [*SoftTuningAttack.attack_params, "mean_weight", "noise_weight"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        mean_weight: float = 1.5,
        noise_weight: float = 1.0,
        *,
        learning_rate: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nb_epochs: int = 10,
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
        self.mean_weight = mean_weight
        self.noise_weight = noise_weight
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("mean_weight", self.mean_weight, 0)
        check_number("noise_weight", self.noise_weight, 0)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        if not editable_weights(network, ("conv",)):
            raise InvalidInputError("The network has no convolution whose filters could be shifted.")

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        weights = editable_weights(network_of(surrogate), ("conv",))
        generator = torch_generator(self.seed, type(self).__name__, "noise")
        with torch.no_grad():
            for weight in weights.values():
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.copy_(shifted(weight, self.mean_weight, self.noise_weight, noise))
        return {**self._tune(surrogate, data), "shifted_weights": len(weights)}
