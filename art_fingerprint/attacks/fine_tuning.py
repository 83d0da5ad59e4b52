"""Fine-tuning FT(p): train the last share of the victim's parameters on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.supervised import Masks, SupervisedAttack, check_editable
from art_fingerprint.core.checks import check_choice, check_number
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError


def last_parameters(network: nn.Module, ratio: float, unit: str = "tensor") -> list[nn.Parameter]:
    """Return the last int(ratio * n) of the network's n parameter tensors, in order of registration.

    :param ratio: Share p in (0, 1].
    :param unit: ``"tensor"``: weights and biases count one by one, so the border may run through a module (what
        RemovalNet's code does); ``"module"``: modules with own parameters are counted, and stay whole.
    :raises InvalidInputError: the share selects nothing.
    """
    if unit == "module":
        groups = [own for m in network.modules() if (own := list(m.parameters(recurse=False)))]
    else:
        groups = [[parameter] for parameter in network.parameters()]
    count = int(ratio * len(groups))
    if count == 0:
        raise InvalidInputError(
            f"`ratio`={ratio} of {len(groups)} parameter {unit}s selects none; use at least "
            f"{_least_share(len(groups))}."
        )
    return list(dict.fromkeys(parameter for group in groups[-count:] for parameter in group))  # tied ones once


def _least_share(n: int) -> str:
    """Return a short share of n that selects one of them."""
    shares = (math.ceil(10**digits / max(n, 1)) / 10**digits for digits in (3, 6, 9))
    return f"{next(share for share in shares if int(share * n) == 1 or n < 2):g}"


def last_linear_layers(network: nn.Module, ratio: float) -> list[nn.Linear]:
    """Return the last int(ratio * n) of the network's n Linear layers, in order of registration; none for ratio 0.

    :param ratio: Share in [0, 1].
    :raises InvalidInputError: a share above 0 selects nothing.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    count = int(ratio * len(layers))
    if ratio > 0 and count == 0:
        raise InvalidInputError(
            f"`retrain_ratio`={ratio} of {len(layers)} Linear layers selects none; use 0 for none, or at least "
            f"{_least_share(len(layers))}."
        )
    return layers[len(layers) - count :]


@torch.no_grad()
def reinitialise(layers: Iterable[nn.Module], generator: torch.Generator) -> None:
    """Give layers He-normal weights (standard deviation sqrt(2 / fan-in)) and zero biases, in place.

    :param generator: On the host; the weights are the same on every device.
    """
    for layer in layers:
        check_editable("weight", getattr(layer, "weight", None))
        for name, parameter in layer.named_parameters(recurse=False):
            fresh = torch.zeros(parameter.shape, dtype=parameter.dtype)
            if name == "weight":
                nn.init.kaiming_normal_(fresh, nonlinearity="relu", generator=generator)
            parameter.copy_(fresh)


class FineTuningAttack(SupervisedAttack):
    """Fine-tune the last share of the victim, FT(p) of the RemovalNet paper (p = 0.5 and 0.8).

    Trains the last int(p n) parameter tensors; the rest is frozen, its BatchNorm statistics still move. The last layer
    is not re-initialised, unless ``retrain_ratio`` says so. Weights that are exactly zero stay zero. Settings: the
    authors' code for 32-pixel data sets; its "retraining" is ``retrain_ratio=1``. Last layer or all layers, as they are
    or from fresh weights (FTLL, FTAL, RTLL, RTAL): :class:`.LayerFineTuningAttack`.

    Deviations: frozen tensors get ``requires_grad=False`` (the code only keeps them from the optimiser), with the same
    result; labels may be the victim's; layers with fresh weights are He-normal and always trained.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None`` for
    the victim's labels.

    Cost: ``max_iter`` batches forward and backward; one victim query for each sample (two with flips) if y is ``None``.

    :param classifier: The victim.
    :param ratio: Share p of parameter tensors that is trained, (0, 1].
    :param unit: ``"tensor"`` or ``"module"``, see :func:`last_parameters`.
    :param retrain_ratio: Share of Linear layers, from the last, that get fresh weights first, [0, 1].
    :param learning_rate: SGD learning rate (code: 1e-2 for 32-pixel, 1e-3 for 224-pixel images).
    :param lr_jitter: The rate is multiplied by ``1 + lr_jitter u``, u uniform on [0, 1).
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param linear_l2: Weight of 0.5 * sum of squares over Linear layers.
    :param max_iter: SGD steps.
    :param use_victim_labels: Train on the victim's labels although y is given.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    reads_streams = True
    attack_params = [*SupervisedAttack.attack_params, "ratio", "unit", "retrain_ratio"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        ratio: float = 0.5,
        *,
        unit: str = "tensor",
        retrain_ratio: float = 0.0,
        learning_rate: float = 1e-2,
        lr_jitter: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 1e-4,
        linear_l2: float = 1e-2,
        max_iter: int = 1000,
        use_victim_labels: bool = False,
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
            learning_rate=learning_rate,
            lr_jitter=lr_jitter,
            momentum=momentum,
            weight_decay=weight_decay,
            linear_l2=linear_l2,
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
        self.ratio = ratio
        self.unit = unit
        self.retrain_ratio = retrain_ratio
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("ratio", self.ratio, 0, 1, open_low=True)
        check_choice("unit", self.unit, ("tensor", "module"))
        check_number("retrain_ratio", self.retrain_ratio, 0, 1)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        last_parameters(network, self.ratio, self.unit)
        last_linear_layers(network, self.retrain_ratio)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        fresh = last_linear_layers(network, self.retrain_ratio)
        reinitialise(fresh, torch_generator(self.seed, type(self).__name__, "fresh weights"))
        trained = last_parameters(network, self.ratio, self.unit)
        trained = list(dict.fromkeys([*trained, *(p for layer in fresh for p in layer.parameters())]))
        network.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        report = self._train(surrogate, data, trained, after_step=Masks.of_zeros(network).apply)
        return {**report, "trained_tensors": len(trained)}
