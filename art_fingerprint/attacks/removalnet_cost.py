"""What a RemovalNet run will cost, from its settings and one measurement of the cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from art_fingerprint.core.classifier import check_classifier, clip_bounds, has_batch_norm, network_of
from art_fingerprint.core.cost import CostMeter
from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.core.training import samples_in_steps

if TYPE_CHECKING:
    from art_fingerprint.attacks.removalnet import RemovalNetAttack


def passes_of_a_sample(attack: RemovalNetAttack) -> float:
    """Return the forward passes that an iteration costs for each sample of its batch.

    Three for the step, one for each network that targets are made from, and two tails for each inner step: with the
    published settings ``4 h + (4 + 2 J) t``. Cost: that of :func:`measured_tail`, where there are inner steps.
    """
    used = ((attack.latent_source, attack.beta), (attack.logit_source, attack.alpha))
    passes = 3.0 + len({source for source, weight in used if weight}) + attack.reference_double_pass
    if not attack.beta:
        return passes
    share, head_again = measured_tail(attack)
    return passes + head_again + 2 * attack.inner_steps * share


def measured_tail(attack: RemovalNetAttack) -> tuple[float, bool]:
    """Return the tail's share of the network, and whether each batch runs the head once more, for its side inputs.

    The share is 1 where the cut works by hooks, which run the whole network. Cost: a trace of the network and a few
    passes of two samples.

    :raises InvalidInputError: as from ``generate``, if the network cannot be run, or cut at the layer.
    """
    start, source = attack._start(), attack.estimator
    if attack.latent_source == "surrogate":
        source = start
    with guarded(start, source, weights=False), CostMeter() as meter:
        views = [check_classifier(classifier) for classifier in (start, source)]
        middle = sum(clip_bounds(source)) / 2
        x = torch.full((2, *source.input_shape), middle, device=source.device)
        for view in views:
            view.network.eval().requires_grad_(False)
        layer = resolve_layer(views[0].network, attack.layer, views[0].preprocess(x))
        example = views[1].preprocess(x)
        cut = LayerCut(views[1].network, layer, example, attack.require_single_tensor)
        meter.watch_cut("surrogate", cut, example)
    share = meter.account()["surrogate"]["tail_share"]
    return (1.0, False) if share is None else (share, cut.nb_side_inputs > 0)


def passes_of_judgements(attack: RemovalNetAttack, nb_trained: int, nb_held: int) -> float:
    """Return the passes of ``bn_recalibrate`` and of ``keep_best``, whose patience is not counted on.

    :param nb_trained: Samples that are trained on.
    :param nb_held: Samples held back.
    """
    again = 0
    if has_batch_norm(network_of(attack._start())):
        again = samples_in_steps(nb_trained, attack.batch_size, attack.bn_recalibrate)
    if attack.keep_best is None:
        return again
    return (1 + math.ceil(attack.max_iter / attack.callback_interval)) * (2 * nb_held + again)
