"""Feature distillation: train a copy on labels while its late features stay close to the victim's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.supervised import SupervisedAttack
from art_fingerprint.core.checks import check_flag, check_number, check_sequence
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.layers import LayerTrace, recorded, resolve_layer, stages
from art_fingerprint.core.training import Losses
from art_fingerprint.exceptions import InvalidInputError


@torch.no_grad()
def distillation_layers(network: nn.Module, example: Tensor) -> list[str]:
    """Return the layers whose features are distilled: the last two stages; the whole block stack for a ViT.

    The classifier, where it counts as a stage, is left out. Cost: one forward pass of ``example``.

    :raises InvalidInputError: no stage returns one tensor; name layers then.
    """
    names = dict(network.named_modules())
    if "features.denseblock4" in names:
        return ["features.denseblock3", "features.denseblock4"]
    for blocks, token_model in (("blocks", "norm_pre"), ("encoder.layers", "encoder.ln")):
        if blocks in names and token_model in names:
            return [blocks]
    with recorded(network, stages(network)) as traces:
        output = network(example)
    outputs = {name: trace.single_tensor for name, trace in traces.items()}
    found = [name for name, z in outputs.items() if z is not None and z.shape != output.shape]
    if not found:
        raise InvalidInputError("No features can be chosen automatically for this network; pass `layers`.")
    return found[-2:]


class DistillationAttack(SupervisedAttack):
    """Feature distillation from the victim, the row "Distill" of the RemovalNet paper.

    The student starts from the victim's weights. Loss: CE + ``feature_weight`` * sum over late layers of the mean
    squared difference to the victim's features + ``linear_l2`` * 0.5 * sum of squares over Linear layers. Teacher in
    evaluation, student in training mode. Settings: the authors' code.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None`` for
    the victim's labels.

    Cost: ``max_iter`` batches, forward through both networks and backward through one.

    :param classifier: The victim.
    :param layers: Names or stage numbers of the layers; ``None``: see :func:`distillation_layers`.
    :param feature_weight: Weight of each layer's squared difference.
    :param learning_rate: SGD learning rate.
    :param lr_jitter: The rate is multiplied by ``1 + lr_jitter u``, u uniform on [0, 1).
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param linear_l2: Weight of 0.5 * sum of squares over Linear layers.
    :param max_iter: SGD steps.
    :param use_victim_labels: Train on the victim's labels although y is given.
    :param allow_degenerate: Accept a substitute set that the victim puts into one class.
    :param batch_size: Samples in a batch.
    :param hflip: Random horizontal flips.
    :param callback: ``callback(step, surrogate, losses)``.
    :param callback_interval: Steps between two calls.
    :param seed: Seed.
    :param summary_writer: As in ART.
    :param verbose: Show a progress bar.
    """

    attack_params = [*SupervisedAttack.attack_params, "layers", "feature_weight", "allow_degenerate"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        layers: Sequence[str | int] | None = None,
        *,
        feature_weight: float = 0.1,
        learning_rate: float = 1e-3,
        lr_jitter: float = 1.0,
        momentum: float = 0.8,
        weight_decay: float = 1e-4,
        linear_l2: float = 1e-2,
        max_iter: int = 1000,
        use_victim_labels: bool = False,
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
        self.layers = layers
        self.feature_weight = feature_weight
        self.allow_degenerate = allow_degenerate
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("feature_weight", self.feature_weight, 0)
        check_flag("allow_degenerate", self.allow_degenerate)
        if self.layers is not None:
            self.layers = check_sequence("layers", self.layers)
            if not self.layers:
                raise InvalidInputError("`layers` is empty; give names or stage numbers, or None.")

    def _layers(self, network: nn.Module, example: Tensor) -> list[str]:
        if self.layers is None:
            return distillation_layers(network, example)
        return [resolve_layer(network, layer, example) for layer in self.layers]

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        data.check_classes(self.estimator.nb_classes, self.allow_degenerate)
        example = data.victim.preprocess(data.x[:2].to(data.victim.device))
        names = self._layers(network, example)
        with torch.no_grad(), recorded(network, names) as traces:
            network(example)
        for name, trace in traces.items():
            _features(name, trace)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        teacher = data.victim.network
        names = self._layers(teacher, data.victim.preprocess(data.x[:2].to(data.victim.device)))

        def features(student: nn.Module, prepared: Tensor) -> tuple[Tensor, Losses]:
            with torch.no_grad(), recorded(teacher, names) as wanted:
                teacher(prepared)
            with recorded(student, names) as found:
                output = student(prepared)
            gaps = [F.mse_loss(_features(name, found[name]), _features(name, wanted[name])) for name in names]
            return output, {"features": self.feature_weight * torch.stack(gaps).sum()}

        report = self._train(surrogate, data, network_of(surrogate).parameters(), more_losses=features)
        return {**report, "layers": names}


def _features(name: str, trace: LayerTrace) -> Tensor:
    output = trace.single_tensor
    if output is None:
        raise InvalidInputError(
            f"Layer {name!r} does not return one tensor in one call ({trace.calls} calls); name others in `layers`."
        )
    return output
