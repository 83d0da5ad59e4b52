"""Fine-pruning: silence the least active channels of a late layer, then fine-tune."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.soft_tuning import SoftTuningAttack
from art_fingerprint.core.chains import ChannelChain, chain_from
from art_fingerprint.core.checks import check_number, shown
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.layers import resolve_layer, stages
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.taps import tap
from art_fingerprint.core.training import Batch, samples_in_steps
from art_fingerprint.exceptions import InvalidInputError

_MAX_SAMPLES = 50_000


@torch.no_grad()
def mean_activity(network: nn.Module, layer: str, axis: int, batches: Iterable[Batch]) -> Tensor:
    """Return the mean absolute activation of each channel of a layer over some batches, ``(C,)`` float64.

    :param axis: The channel axis of the layer's output.
    """
    total: Tensor | float = 0.0
    count = 0
    for batch in batches:
        z = tap(network, layer, batch.x).movedim(axis, 0).flatten(1)
        total = total + z.abs().double().sum(1)
        count += z.shape[1]
    return torch.as_tensor(total) / count


@torch.no_grad()
def silence(network: nn.Module, chain: ChannelChain, channels: Tensor) -> None:
    """Set to zero, in place, the weights that read some channels: as if those channels were always zero."""
    for part in chain.read:
        weight = network.get_parameter(part.name)
        weight.index_fill_(part.axis, part.entries(channels.to(weight.device)), 0.0)


def silent_channels(network: nn.Module, chain: ChannelChain) -> Tensor:
    """Tell for each channel whether no weight reads it, ``(C,)`` bool."""
    weights = [(network.get_parameter(part.name).detach(), part.axis) for part in chain.read]
    parts = [(weight.movedim(axis, 0).reshape(chain.channels, -1) == 0).all(1) for weight, axis in weights]
    return torch.stack(parts).all(0)


def last_prunable_stage(network: nn.Module, example: Tensor) -> str | None:
    """Return the network's last stage whose channels can be silenced, or ``None``."""
    for name in reversed(stages(network)):
        found = chain_from(network, name, example)
        if found is not None and found[0].keeps_zero:
            return name
    return None


class FinePruningAttack(SoftTuningAttack):
    """Silence the least active channels of a late layer of the victim and fine-tune the copy on its probabilities.

    The floor(ratio C) channels of smallest mean absolute activation, over at most 50,000 samples of the substitute set,
    are multiplied by zero, during fine-tuning and after it. The zeros are in the weights that read the layer (of all
    convolutions and Linear layers behind it), which is the same function as a mask on the layer's output: the surrogate
    is a plain network of the victim's architecture. Source: K. Liu et al., "Fine-Pruning", RAID 2018. Settings: the
    toolbox behind "SoK: How Robust is Image Classification Deep Neural Network Watermarking?".

    Deviations from the toolbox: whole channels are pruned, as in the paper, not single positions of the map; absolute
    activations, which differ where the layer gives negative ones; they are measured on training batches, flips
    included; the victim is asked once for each sample and its mirror image; the rate falls to zero along a cosine. The
    layer itself still computes the silenced channels, which matters to who looks at them.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None``.

    Cost: one forward pass of the samples up to the layer; ``nb_epochs`` passes over the set, forward and backward; one
    victim query for each sample (two with flips).

    :param classifier: The victim.
    :param ratio: Share of channels that is silenced, [0, 1).
    :param layer: Dotted name or stage number (1 = first); ``None``: the last stage whose channels can be silenced.
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

    attack_params = [*SoftTuningAttack.attack_params, "ratio", "layer"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        ratio: float = 0.96,
        *,
        layer: str | int | None = None,
        learning_rate: float = 1e-3,
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
        self.ratio = ratio
        self.layer = layer
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("ratio", self.ratio, 0, 1, open_high=True)
        if self.layer is not None and (isinstance(self.layer, bool) or not isinstance(self.layer, str | int)):
            raise InvalidInputError(f"`layer` must be a layer name, a stage number or None, got {shown(self.layer)}.")

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        name, chain, _ = self._pruned(network, data.example(2).x)
        left = chain.channels - self._nb_silenced(chain)
        if left < self.estimator.nb_classes:
            warn_caller(
                f"`ratio`={self.ratio} leaves {left} of {chain.channels} channels at {name!r} for "
                f"{self.estimator.nb_classes} classes; expect a loss of accuracy, or lower it."
            )

    def _expected_work(self, n: int) -> float:
        return super()._expected_work(n) + samples_in_steps(n, self.batch_size, self._nb_measured(n, self.batch_size))

    @staticmethod
    def _nb_measured(n: int | None, batch_size: int) -> int:
        """Return how many batches the channels' activity is measured on."""
        return math.ceil(min(n or _MAX_SAMPLES, _MAX_SAMPLES) / min(n or batch_size, batch_size))

    def _nb_silenced(self, chain: ChannelChain) -> int:
        return math.floor(self.ratio * chain.channels + 1e-9)

    def _pruned(self, network: nn.Module, example: Tensor) -> tuple[str, ChannelChain, int]:
        """Return the layer, the chain of its channels, and its channel axis."""
        if self.layer is None:
            name = last_prunable_stage(network, example)
            if name is None:
                raise InvalidInputError(
                    "No stage of the network can be fine-pruned: none has channels that go into convolutions and "
                    f"Linear layers alone and are zero there when they are zero in the stage ({stages(network)}). Name "
                    "another layer."
                )
        else:
            name = resolve_layer(network, self.layer, example)
        found = chain_from(network, name, example)
        if found is None or not found[0].keeps_zero:
            raise InvalidInputError(
                f"`layer` {name!r} cannot be fine-pruned: its channels must go into convolutions and Linear layers "
                "alone, through channelwise operations that keep zeros (activations, pooling, flattening), and not "
                "through a normalisation, a sum or a concatenation. Name another layer, or pass None."
            )
        return name, *found

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        name, chain, axis = self._pruned(network, data.example(2).x)
        measured = self._nb_measured(data.size, data.batch_size)
        activity = mean_activity(network, name, axis, islice(self._batches(data, "activity"), measured))
        silence(network, chain, activity.argsort(stable=True)[: self._nb_silenced(chain)])
        report = self._tune(surrogate, data)
        silent = int(silent_channels(network, chain).sum())
        return {**report, "layer": name, "silent_channels": silent, "sparsity": silent / chain.channels}
