"""Weight pruning WP(p): set the smallest share of weights to zero, then fine-tune what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet, SurrogateCallback
from art_fingerprint.attacks.supervised import Masks, SupervisedAttack, editable_weights
from art_fingerprint.core.checks import check_choice, check_number, check_sequence
from art_fingerprint.core.classifier import network_of
from art_fingerprint.exceptions import InvalidInputError

_KINDS = ("conv", "linear")


def magnitude_masks(
    weights: Mapping[str, Tensor], ratio: float, rule: str = "exact", scope: str = "global"
) -> dict[str, Tensor]:
    """Return for each tensor which weights are kept under magnitude pruning.

    :param weights: Name to weight tensor; n weights in all.
    :param ratio: Share p in [0, 1) to prune.
    :param rule: ``"exact"`` (ours): the floor(p n) smallest magnitudes go, ties by position, and a tensor that would
        lose everything keeps its largest weight. ``"reference"`` (RemovalNet's code): the threshold is element int(p n)
        of the ascending magnitudes and only weights above it stay, at least one more than p n goes.
    :param scope: ``"global"``: the smallest of all weights; ``"layer"``: the smallest of each tensor.
    :raises InvalidInputError: the reference rule empties a tensor.
    """
    if scope == "layer" and len(weights) > 1:
        return {name: magnitude_masks({name: weight}, ratio, rule)[name] for name, weight in weights.items()}
    names = list(weights)
    flat = torch.cat([weights[name].detach().abs().flatten() for name in names])
    if rule == "reference":
        threshold = flat.sort().values[int(ratio * len(flat))]
        kept = flat > threshold
    else:
        kept = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        kept[flat.argsort(stable=True)[: math.floor(ratio * len(flat) + 1e-9)]] = False
    parts = kept.split([weights[name].numel() for name in names])
    masks = {name: part.view_as(weights[name]).clone() for name, part in zip(names, parts, strict=True)}
    for name, mask in masks.items():
        if not bool(mask.any()):
            if rule == "reference":
                raise InvalidInputError(
                    f"`ratio`={ratio} prunes every weight of {name}; lower it, or use rule='exact'."
                )
            mask.view(-1)[weights[name].detach().abs().flatten().argmax()] = True
    return masks


def ramp(ratio: float, stages: int) -> list[float]:
    """Return the sparsities p (1 - (1 - k / n)^3), k = 1..n, of pruning in n stages; the last is ``ratio``."""
    return [ratio * (1 - (1 - k / stages) ** 3) for k in range(1, stages)] + [ratio]


class WeightPruningAttack(SupervisedAttack):
    """Prune the victim's smallest weights and fine-tune, WP(p) of the RemovalNet paper (p = 0.5 and 0.8).

    Magnitude pruning, global and at once as in that paper, or by layer and in stages that grow to p as in DeepJudge's
    (``scope="layer"``, ``ramp_stages=10``; p from 0.2 to 0.6). Pruned weights stay zero during fine-tuning.

    Deviations from the authors' code: exactly floor(p n) weights are pruned (``rule="reference"`` for theirs); a layer
    never loses its last weight; transformers are pruned in their Linear layers too. From DeepJudge's: SGD; the stages
    are equal parts of training.

    Shape: ``generate(x, y)`` with x ``(n, C, H, W)`` float32 in ``clip_values``, y indices, one-hot, or ``None`` for
    the victim's labels.

    Cost: ``max_iter`` batches forward and backward; one victim query for each sample (two with flips) if y is ``None``.

    :param classifier: The victim.
    :param ratio: Share p of weights that is set to zero, [0, 1).
    :param modules: Kinds of layers, of ``"conv"`` and ``"linear"``; ``None``: convolutions alone, as the code, and
        Linear layers too where there is at most one convolution (the patch embedding of a transformer).
    :param rule: ``"exact"`` or ``"reference"``, see :func:`magnitude_masks`.
    :param scope: ``"global"``: the smallest of all weights; ``"layer"``: the smallest of each layer.
    :param ramp_stages: Stages in which the sparsity grows, see :func:`ramp`; at most ``max_iter``. 1 prunes at once.
    :param learning_rate: SGD learning rate of fine-tuning.
    :param lr_jitter: The rate is multiplied by ``1 + lr_jitter u``, u uniform on [0, 1).
    :param momentum: SGD momentum.
    :param weight_decay: SGD weight decay.
    :param linear_l2: Weight of 0.5 * sum of squares over Linear layers.
    :param max_iter: SGD steps of fine-tuning.
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
    attack_params = [*SupervisedAttack.attack_params, "ratio", "modules", "rule", "scope", "ramp_stages"]

    def __init__(
        self,
        classifier: PyTorchClassifier,
        ratio: float = 0.5,
        *,
        modules: Sequence[str] | None = None,
        rule: str = "exact",
        scope: str = "global",
        ramp_stages: int = 1,
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
        self.modules = modules
        self.rule = rule
        self.scope = scope
        self.ramp_stages = ramp_stages
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("ratio", self.ratio, 0, 1, open_high=True)
        check_choice("rule", self.rule, ("exact", "reference"))
        check_choice("scope", self.scope, ("global", "layer"))
        check_number("ramp_stages", self.ramp_stages, 1, self.max_iter or math.inf, integer=True)
        if self.modules is not None:
            self.modules = check_sequence("modules", self.modules)
            for kind in self.modules:
                check_choice("modules", kind, ("conv", "linear"))
            if not self.modules:
                raise InvalidInputError("`modules` is empty; name 'conv', 'linear', or both, or pass None.")

    def _weights(self, network: nn.Module) -> dict[str, nn.Parameter]:
        kinds = self.modules
        if kinds is None:
            kinds = ("conv",) if len(editable_weights(network, ("conv",))) > 1 else _KINDS
        weights = editable_weights(network, kinds)
        if not weights:
            raise InvalidInputError(f"The network has no {' or '.join(kinds)} layer to prune; set `modules`.")
        return weights

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        super()._check_data(data, network)
        weights = self._weights(network)
        if self.rule == "reference":  # the other rule empties no tensor
            magnitude_masks(weights, self.ratio, self.rule, self.scope)

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        network = network_of(surrogate)
        weights = self._weights(network)
        batches = self._batches(data)
        steps = self._nb_steps(batches)
        begins = {k * steps // self.ramp_stages: p for k, p in enumerate(ramp(self.ratio, self.ramp_stages))}
        masks = Masks(())
        step = 0

        def prune() -> None:
            nonlocal masks, step
            if step in begins:
                kept = magnitude_masks(weights, begins[step], self.rule, self.scope)
                masks = Masks((weights[name], kept[name]) for name in weights)
            masks.apply()
            step += 1

        prune()
        report = self._train(surrogate, data, network.parameters(), after_step=prune, batches=batches)
        zeros = sum(int((weight == 0).sum()) for weight in weights.values())
        return {**report, "sparsity": zeros / sum(weight.numel() for weight in weights.values())}
