"""Weight noise: Gaussian noise on the weights, in proportion to their own spread, then fine-tuning if wanted."""

from __future__ import annotations

from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.soft_tuning import SoftTuningAttack
from art_fingerprint.attacks.supervised import editable_weights
from art_fingerprint.core.checks import check_choice, check_number
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError


def noisy(weight: Tensor, strength: float, noise: Tensor, scope: str = "tensor") -> Tensor:
    """Return w + strength std(w) e where w is not exactly 0, and 0 where it is (a pruned weight stays pruned).

    :param weight: ``(out, in, ...)``.
    :param strength: Standard deviation of the noise in standard deviations of the weights.
    :param noise: e, standard normal, of the weight's shape.
    :param scope: Whose standard deviation: that of the whole ``"tensor"``, or of each ``"filter"`` ``w[i]``.
    """
    axes = tuple(range(scope == "filter", weight.ndim))
    spread = weight.std(axes, correction=0, keepdim=True)
    return weight + strength * spread * noise * (weight != 0)


class WeightNoiseAttack(SoftTuningAttack):
    """Add Gaussian noise to the weights of the copy's convolutions and Linear layers, and fine-tune it if wanted.

    Every such weight w becomes w + strength std(w) N(0, 1); biases and normalisations stay. If a filter's entries have
    mean zero, its cosine to the victim's is near 1 / sqrt(1 + strength^2): 0.995 at 0.1, 0.71 at 1. With ``nb_epochs``
    or ``max_iter`` the copy then learns the victim's probabilities. Strength 0 without training is the victim itself.
    Ours; the baseline that every verifier of weights should be measured against.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None``.

    Cost: nothing without training; with it ``nb_epochs`` passes over the set, forward and backward, and one victim
    query for each sample (two with flips).

    :param classifier: The victim.
    :param strength: Standard deviation of the noise in standard deviations of the weights, >= 0.
    :param scope: ``"tensor"``: one standard deviation for a weight tensor; ``"filter"``: one for each output filter.
    :param learning_rate: SGD learning rate.
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param nb_epochs: Passes over the substitute set; 0 trains nothing.
    :param max_iter: SGD steps instead of ``nb_epochs``.
    :param use_victim_labels: Train on the victim's probabilities, also where y is given; ``False``: on y, or else on
        the victim's labels.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``; step 0 is after the noise.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    attack_params = [*SoftTuningAttack.attack_params, "strength", "scope"]
    fewest_epochs = 0

    def __init__(
        self,
        classifier: PyTorchClassifier,
        strength: float = 0.1,
        *,
        scope: str = "tensor",
        learning_rate: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nb_epochs: int = 0,
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
        self.strength = strength
        self.scope = scope
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("strength", self.strength, 0)
        check_choice("scope", self.scope, ("tensor", "filter"))

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        if self._trains():
            super()._check_data(data, network)
        if not editable_weights(network, ("conv", "linear")):
            raise InvalidInputError("The network has no convolution and no Linear layer whose weights could be noised.")

    def _trains(self) -> bool:
        return self._nb_steps(range(1)) > 0

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        weights = editable_weights(network_of(surrogate), ("conv", "linear"))
        generator = torch_generator(self.seed, type(self).__name__, "noise")
        with torch.no_grad():
            for weight in weights.values():
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.copy_(noisy(weight, self.strength, noise, self.scope))
        if self._trains():
            return {**self._tune(surrogate, data), "noised_weights": len(weights)}
        self._watch(surrogate)(0, {})
        return {"max_iter": 0, "losses": {}, "noised_weights": len(weights)}
