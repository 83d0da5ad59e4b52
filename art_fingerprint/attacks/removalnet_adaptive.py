"""RemovalNet against verifiers of another kind: loss terms that move the weights, and the victim's errors.

Ours: the paper's attack bends what a network computes and leaves its weights, and its mistakes, nearly where they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from art_fingerprint.attacks.base import SubstituteSet
from art_fingerprint.attacks.supervised import editable_weights
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.training import Batch, Losses
from art_fingerprint.exceptions import InvalidInputError

if TYPE_CHECKING:
    from art_fingerprint.attacks.removalnet import RemovalNetAttack


def unit_filters(weight: Tensor) -> Tensor:
    """Return a weight's output filters with norm 1, ``(out, in, ...) -> (out, entries)``; zero filters stay zero."""
    return F.normalize(weight.flatten(1))


def filter_similarity(weights: Sequence[Tensor], filters: Sequence[Tensor]) -> Tensor:
    """Return the mean over weights of the mean over filters i of max(0, cos(w_i, v_i)), a scalar in [0, 1].

    1 for a copy, 0 where every filter is orthogonal to its counterpart or points away from it, which is as far as it
    pays to go: filters that are the victim's negatives would be telling again. At cos = 1 the gradient, the sine of the
    angle, is zero; the other terms of the loss take the first step.

    :param weights: The surrogate's, ``(out, in, ...)``.
    :param filters: The victim's :func:`unit_filters`, in the same order.
    """
    means = [(unit_filters(w) * v).sum(1).clamp_min(0).mean() for w, v in zip(weights, filters, strict=True)]
    return torch.stack(means).mean()


def repair_loss(logits: Tensor, victim_labels: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies to the true labels where the victim is wrong, over the batch size.

    Over the batch size as the other terms, so that such a sample has the same pull in every batch. 0 without errors.

    :param logits: ``(B, K)``.
    :param victim_labels: What the victim says, ``(B,)``.
    :param labels: What is true, ``(B,)``.
    """
    wrong = (victim_labels != labels).to(logits.dtype)
    return (F.cross_entropy(logits, labels, reduction="none") * wrong).mean()


class AdaptiveTerms:
    """The added terms of one run. With both weights 0 there are none, and nothing is computed.

    :param attack: Holds the weights of the terms.
    :param network: The surrogate's network.
    :param data: The substitute set, with the victim's view.
    :raises InvalidInputError: ``weight_repulsion``: no layer has the name and shape of one of the victim's.
    """

    def __init__(self, attack: RemovalNetAttack, network: nn.Module, data: SubstituteSet) -> None:
        self._attack = attack
        self._data = data
        self._weights: dict[str, nn.Parameter] = {}
        self._filters: list[Tensor] = []
        self._errors = 0
        if attack.weight_repulsion:
            self._match(network, data.victim.network)
        if attack.error_repair:
            self._find_errors()

    def _match(self, network: nn.Module, victim: nn.Module) -> None:
        """Pair each filter with the victim's in its place: training starts there and has no reason to reorder them."""
        kinds = ("conv", "linear")
        victims = editable_weights(victim, kinds)
        self._weights = {
            name: weight
            for name, weight in editable_weights(network, kinds).items()
            if name in victims and victims[name].shape == weight.shape
        }
        if not self._weights:
            raise InvalidInputError(
                "`weight_repulsion` needs convolutions or Linear layers with the names and shapes of the victim's, and "
                "`surrogate` has none: set it to 0."
            )
        with torch.no_grad():
            self._filters = [unit_filters(victims[name]) for name in self._weights]

    def _find_errors(self) -> None:
        data = self._data
        self._errors = int((data.victim_labels(False)[0] != data.labels(False)[0]).sum())
        if not self._errors:
            warn_caller(
                f"`error_repair`: the victim gets all {len(data.x)} samples right, so there is nothing to repair; the "
                "term is 0."
            )

    def losses(self, logits: Tensor, y: Tensor, batch: Batch) -> Losses:
        """Return the weighted terms of a batch. Waits for nothing.

        :param logits: The surrogate's, ``(B, K)``.
        :param y: The victim's labels ``(B,)``.
        """
        found: Losses = {}
        if self._attack.error_repair:
            found["repair"] = self._attack.error_repair * repair_loss(logits, y, self._data.labels_of(batch))
        if self._filters:
            similarity = filter_similarity(list(self._weights.values()), self._filters)
            found["repulsion"] = self._attack.weight_repulsion * similarity
        return found

    @torch.no_grad()
    def report(self) -> dict[str, Any]:
        """Return what became of it, as JSON values; empty where there are no added terms."""
        found: dict[str, Any] = {}
        if self._attack.error_repair:
            found["victim_errors"] = self._errors
        if self._filters:
            found["filter_similarity"] = {
                name.removesuffix(".weight"): float(filter_similarity([weight], [filters]))
                for (name, weight), filters in zip(self._weights.items(), self._filters, strict=True)
            }
        return found


def check_adaptive_data(attack: RemovalNetAttack, data: SubstituteSet) -> None:
    """Refuse data without the true labels that ``error_repair`` needs."""
    if not attack.error_repair:
        return
    data.needs_array("error_repair")
    if data.y is None:
        raise InvalidInputError(
            f"`error_repair`={attack.error_repair} needs the true labels of the samples, to know where the victim is "
            "wrong: pass `y`, or set error_repair=0."
        )
