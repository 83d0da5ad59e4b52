"""The state of one RemovalNet run: what ``generate`` sets up once, and what one iteration computes."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.attacks.base import SubstituteSet
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.core.taps import tap
from art_fingerprint.core.training import Batch, Losses
from art_fingerprint.exceptions import InvalidInputError

if TYPE_CHECKING:
    from art_fingerprint.attacks.removalnet import RemovalNetAttack

logger = logging.getLogger(__name__)


class RemovalNetRun:
    """The two networks, their cuts, and the loss of a batch.

    :param attack: Holds the parameters.
    :param surrogate: The copy that is trained.
    :param data: The substitute set, with the victim's view.
    :ivar network: The surrogate's network.
    :raises LayerNotFoundError: no such layer.
    :raises LayerCutError: the network cannot be cut there.
    :raises InvalidInputError: a parameter does not fit the latent.
    """

    def __init__(self, attack: RemovalNetAttack, surrogate: PyTorchClassifier, data: SubstituteSet) -> None:
        self.attack = attack
        self.victim = data.victim
        # A surrogate of another origin may answer in another form than the victim.
        self.view = LogitsNetwork(surrogate, data.victim.kind if attack.surrogate is None else attack.output)
        self.network = self.view.network
        self.labels = data.victim_labels(attack.hflip)
        self.generator = torch_generator(attack.seed, "RemovalNet", device=data.victim.device)
        example = self.victim.preprocess(data.x[:8].to(self.victim.device))
        self.network.eval()
        self.layer = resolve_layer(self.network, attack.layer, example)
        logger.info("RemovalNet cuts at layer %s.", self.layer)
        single = attack.require_single_tensor
        self.cut = LayerCut(self.network, self.layer, example, single)
        # Only built where it is asked for: its tail would otherwise cost a trace for nothing.
        from_victim = "victim" in (attack.latent_source, attack.logit_source)
        self.victim_cut = LayerCut(self.victim.network, self.layer, example, single) if from_victim else self.cut
        self.trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._check_latent(example)
        self.steps = 0
        self.unmet = torch.zeros((), device=example.device)

    def _check_latent(self, example: Tensor) -> None:
        attack = self.attack
        with torch.no_grad():
            z, output = self.cut.forward(example)
        if attack.latent_source == "victim" and self.victim_cut.forward(example)[0].shape != z.shape:
            raise InvalidInputError(
                f"Layer {self.layer!r} has another shape in the victim than in `surrogate`; use "
                "latent_source='surrogate'."
            )
        if z.shape == output.shape and torch.equal(z, output):
            warnings.warn(
                f"Layer {self.layer!r} is the network's output: the latent level works on logits.", stacklevel=5
            )
        if attack.shuffle_skip_prefix and (z.ndim != 3 or attack.shuffle_dim != 1):
            raise InvalidInputError(
                f"`shuffle_skip_prefix` is for tokens (n, tokens, features) with shuffle_dim=1; the latent at "
                f"{self.layer!r} is {tuple(z.shape)}."
            )
        self.skip = int(attack.shuffle_skip_prefix)
        self.nb_channels = z.shape[attack.shuffle_dim] - self.skip
        self.shuffle_size = terms.shuffle_size(attack.shuffle_ratio, self.nb_channels)
        if attack.beta and attack.shuffle_ratio and self.shuffle_size <= 1:
            warnings.warn(
                f"shuffle_ratio={attack.shuffle_ratio} of {self.nb_channels} channels at {self.layer!r} is at most one "
                f"channel, so nothing is shuffled; raise it above {1 / max(self.nb_channels, 1):.3g}, or set it to 0 "
                "to say so.",
                stacklevel=5,
            )
        y = self.labels[0, : len(example)]
        tail = self.cut.tail_for(example)
        _, gradient = terms.latent_step(lambda v: self.view.logits(tail(v)), z, z, y, 0.0, 0.0)
        if attack.beta and not bool(gradient.any()):
            warnings.warn(
                f"The output's gradient with respect to layer {self.layer!r} is exactly 0: the latent target is noise "
                "alone. Choose another layer.",
                stacklevel=5,
            )

    # ------------------------------------------------------------------ one iteration
    def losses(self, batch: Batch) -> Losses:
        """Return the weighted terms of the upper loss for one batch; see :class:`.RemovalNetAttack`."""
        attack = self.attack
        y = self.labels[batch.flipped, batch.index]
        latent_target, kl_target = self._targets(batch.x, y)
        self.network.train()
        if attack.reference_double_pass:
            with torch.no_grad():
                tap(self.network, self.layer, batch.x)
        z, output = self.cut.forward(batch.x)
        logits = self.view.logits(output)
        found: Losses = {}
        if kl_target is not None:
            found["kl"] = attack.alpha * terms.temperature_kl(kl_target, logits, attack.temperature)
        if latent_target is not None:
            found["latent"] = attack.beta * F.mse_loss(z, latent_target)
        if attack.gamma:
            found["ce"] = attack.gamma * F.cross_entropy(logits, y)
        return found

    @torch.no_grad()
    def _targets(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return z' and q, each ``None`` where its weight is 0. Every network that is needed runs once."""
        attack = self.attack
        sources = {s for s, used in ((attack.latent_source, attack.beta), (attack.logit_source, attack.alpha)) if used}
        self.network.eval()
        cuts = {"surrogate": self.cut, "victim": self.victim_cut}
        passes = {source: cuts[source].forward(x) for source in sources}
        latent = target = None
        if attack.beta:
            latent = self._latent_target(cuts[attack.latent_source], passes[attack.latent_source][0], x, y)
        if attack.alpha:
            view = self.view if attack.logit_source == "surrogate" else self.victim
            target = self._kl_target(view.logits(passes[attack.logit_source][1]), y)
        return latent, target

    def _latent_target(self, cut: LayerCut, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        attack = self.attack
        tail = cut.tail_for(x)
        view = self.view if cut is self.cut else self.victim
        u = z + terms.latent_noise(z, self.generator)
        shuffling = self.shuffle_size > 1
        if shuffling:
            source, target = terms.draw_shuffles(
                attack.inner_steps + 1, len(z), self.nb_channels, self.shuffle_size, self.generator
            )
            u = terms.shuffle_features(u, source[0], target[0], attack.shuffle_dim, self.skip)
        for parameter in self.trainable:  # the inner loop needs gradients of u alone
            parameter.requires_grad_(False)
        try:
            for step in range(1, attack.inner_steps + 1):
                if shuffling:
                    u = terms.shuffle_features(u, source[step], target[step], attack.shuffle_dim, self.skip)
                u, _ = terms.latent_step(
                    lambda v: view.logits(tail(v)),
                    u,
                    z,
                    y,
                    attack.inner_lr,
                    attack.log_weight,
                    attack.distance,
                    attack.distance_scope,
                )
        finally:
            for parameter in self.trainable:
                parameter.requires_grad_(True)
        return u

    def _kl_target(self, logits: Tensor, y: Tensor) -> Tensor:
        attack = self.attack
        raw = logits if attack.ilbs_space == "logit" else torch.softmax(logits, 1)
        mixed, kept = terms.ilbs(raw, y, attack.grid) if attack.line_search == "grid" else terms.ilbs_exact(raw, y)
        self.unmet += 1 - kept.float().mean()
        self.steps += 1
        if attack.ilbs_space == "logit":
            return torch.softmax(mixed / attack.temperature, 1)
        return terms.kl_target(mixed, attack.temperature, attack.kl_target)

    # ------------------------------------------------------------------ afterwards
    def report(self, losses: dict[str, float]) -> dict[str, Any]:
        """Read the diagnostics from the device, once."""
        attack = self.attack
        return {
            "layer": self.layer,
            "cut": self.cut.method,
            "side_inputs": self.cut.nb_side_inputs,
            "max_iter": attack.max_iter,
            "learning_rate": attack.scaled_learning_rate(),
            "losses": losses,
            "ilbs_unmet_share": float(self.unmet) / self.steps if self.steps else None,
        }
