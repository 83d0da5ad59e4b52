"""The state of one RemovalNet run: what ``generate`` sets up once, and what one iteration computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.attacks.base import SubstituteSet
from art_fingerprint.attacks.removalnet_adaptive import AdaptiveTerms
from art_fingerprint.core.checks import shown
from art_fingerprint.core.classifier import LogitsNetwork, Preprocessing, check_output, clip_bounds
from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.frozen_cut import FrozenCut
from art_fingerprint.core.layers import levels, resolve_layer
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.outputs import OutputKind, detect_kind, to_logits
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.core.taps import tap
from art_fingerprint.core.training import Batch, Losses
from art_fingerprint.exceptions import InvalidInputError

if TYPE_CHECKING:
    from art_fingerprint.attacks.removalnet import RemovalNetAttack

logger = logging.getLogger(__name__)


def check_start(surrogate: object, victim: PyTorchClassifier) -> None:
    """Refuse what a run cannot start from instead of the victim."""
    if not isinstance(surrogate, PyTorchClassifier):
        raise InvalidInputError(f"`surrogate` must be a PyTorchClassifier or None, got {shown(surrogate)}.")
    for fact in ("input_shape", "nb_classes"):
        if getattr(surrogate, fact) != getattr(victim, fact):
            raise InvalidInputError(
                f"`surrogate` has {fact}={getattr(surrogate, fact)}, the victim {getattr(victim, fact)}; they must be "
                "equal."
            )
    low, high = clip_bounds(victim)
    x = low + (high - low) * torch.rand(2, *victim.input_shape, generator=torch.Generator().manual_seed(0))
    own, other = (Preprocessing(model)(x.to(victim.device)) for model in (victim, surrogate))
    if own.shape != other.shape or not torch.allclose(own, other, rtol=1e-4, atol=1e-5):
        raise InvalidInputError(
            "`surrogate` prepares its inputs in another way than the victim, whose preprocessing every surrogate gets: "
            "put its own into its network."
        )


class RemovalNetRun:
    """The two networks, their cuts, and the loss of a batch.

    :param attack: Holds the parameters.
    :param surrogate: The copy that is trained.
    :param data: The substitute set, with the victim's view.
    :param batch_size: Samples in a whole batch.
    :ivar network: The surrogate's network.
    :raises LayerNotFoundError: no such layer.
    :raises LayerCutError: the network cannot be cut there.
    :raises InvalidInputError: a parameter does not fit the latent.
    """

    def __init__(
        self, attack: RemovalNetAttack, surrogate: PyTorchClassifier, data: SubstituteSet, batch_size: int
    ) -> None:
        self.attack = attack
        self.victim = data.victim
        self.cost = data.cost
        # A surrogate of another origin may answer in another form than the victim.
        self.view = LogitsNetwork(surrogate, data.victim.kind if attack.surrogate is None else attack.output)
        self.network = self.view.network
        #: Some networks answer probabilities in evaluation mode alone: told from the first batch that is trained on.
        self.kind_in_training: OutputKind = "logits" if self.view.kind == "logits" else "auto"
        self.generator = torch_generator(attack.seed, "RemovalNet", device=data.victim.device)
        sample = data.example(8)
        example = sample.x
        self.network.eval()
        self.layer = resolve_layer(self.network, attack.layer, example)
        logger.info("RemovalNet cuts at layer %s.", self.layer)
        single = attack.require_single_tensor
        self.cut = FrozenCut(self.network, self.layer, example, single)
        # Only built where it is asked for: its tail would otherwise cost a trace for nothing.
        from_victim = "victim" in (attack.latent_source, attack.logit_source)
        self.victim_cut = FrozenCut(self.victim.network, self.layer, example, single) if from_victim else self.cut
        data.cost.watch_cut("surrogate", self.cut, example)
        if from_victim:
            data.cost.watch_cut("victim", self.victim_cut, example)
        self.trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.labels_of = data.victim_labels_of
        self.adaptive = AdaptiveTerms(attack, self.network, data)
        self._check_latent(example, self.labels_of(sample))
        self.compiled = attack.compile and bool(attack.beta) and self._compile(data.example(batch_size).x)
        self.steps = 0
        self.unmet = torch.zeros((), device=example.device)

    def _check_latent(self, example: Tensor, y: Tensor) -> None:
        attack = self.attack
        with torch.no_grad():
            z, output = self.cut.forward(example)
        if attack.latent_source == "victim" and self.victim_cut.forward(example)[0].shape != z.shape:
            raise InvalidInputError(
                f"Layer {self.layer!r} has another shape in the victim than in `surrogate`; use "
                "latent_source='surrogate'."
            )
        if z.shape == output.shape and torch.equal(z, output):
            warn_caller(f"Layer {self.layer!r} is the network's output: the latent level works on logits.")
        if attack.shuffle_skip_prefix and (z.ndim != 3 or attack.shuffle_dim != 1):
            raise InvalidInputError(
                f"`shuffle_skip_prefix` is for tokens (n, tokens, features) with shuffle_dim=1; the latent at "
                f"{self.layer!r} is {tuple(z.shape)}."
            )
        # timm's token models say how many there are: register tokens beside the class token, or none of both.
        told = (getattr(inner, "num_prefix_tokens", None) for _, inner in levels(self.network))
        self.skip = int(next((n for n in told if n is not None), 1)) if attack.shuffle_skip_prefix else 0
        self.nb_channels = z.shape[attack.shuffle_dim] - self.skip
        self.shuffle_size = terms.shuffle_size(attack.shuffle_ratio, self.nb_channels)
        if attack.beta and attack.shuffle_ratio and self.shuffle_size <= 1:
            warn_caller(
                f"shuffle_ratio={attack.shuffle_ratio} of {self.nb_channels} channels at {self.layer!r} is at most one "
                f"channel, so nothing is shuffled; raise it above {1 / max(self.nb_channels, 1):.3g}, or set it to 0 "
                "to say so."
            )
        _, gradient = terms.latent_step(self._tail_for(self.cut, example), z, z, y, 0.0, 0.0)
        if attack.beta and not bool(gradient.any()):
            warn_caller(
                f"The output's gradient with respect to layer {self.layer!r} is exactly 0: the latent target is noise "
                "alone. Choose another layer."
            )

    # ------------------------------------------------------------------ passes
    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.victim.device.type, torch.bfloat16, enabled=self.attack.autocast == "bf16")

    def _pass(self, cut: LayerCut, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent and output of one pass, in float32 whatever the pass is run in."""
        with self._autocast():
            z, output = cut.forward(x)
        return z.float(), check_output(output).float()

    def _forward(self, cut: LayerCut, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent and logits of one pass in evaluation mode."""
        z, output = self._pass(cut, x)
        return z, self._view_of(cut).logits(output)

    def _forward_in_training(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent and logits of the surrogate's pass in training mode."""
        z, output = self._pass(self.cut, x)
        if self.kind_in_training == "auto":
            self.kind_in_training = detect_kind(output.detach())
        return z, to_logits(output) if self.kind_in_training == "probabilities" else output

    def _tail_for(self, cut: LayerCut, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the tail for these inputs, z' to logits."""
        view = self._view_of(cut)
        dtype = next((p.dtype for p in cut.network.parameters() if p.is_floating_point()), torch.float32)
        with self._autocast():
            tail = cut.tail_for(x)

        def logits(z: Tensor) -> Tensor:
            with self._autocast():
                output = tail(z.to(dtype))
            return view.logits(output.float())

        return logits

    def _view_of(self, cut: LayerCut) -> LogitsNetwork:
        return self.view if cut is self.cut else self.victim

    def _compile(self, x: Tensor) -> bool:
        """Compile the tail of the inner loop for such a batch."""
        cut = self.cut if self.attack.latent_source == "surrogate" else self.victim_cut
        with self._gradients_of_z_alone(), self._autocast():
            return cut.compile_tail(x)

    @contextmanager
    def _gradients_of_z_alone(self) -> Iterator[None]:
        """Leave the weights out of what autograd records: the inner loop needs gradients of z' alone."""
        for parameter in self.trainable:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self.trainable:
                parameter.requires_grad_(True)

    # ------------------------------------------------------------------ one iteration
    def losses(self, batch: Batch) -> Losses:
        """Return the weighted terms of the upper loss for one batch; see :class:`.RemovalNetAttack`."""
        attack = self.attack
        y = self.labels_of(batch)
        latent_target, kl_target = self._targets(batch.x, y)
        self.network.train()
        if attack.reference_double_pass:
            with torch.no_grad(), self._autocast():
                tap(self.network, self.layer, batch.x)
        z, logits = self._forward_in_training(batch.x)
        found: Losses = {}
        if kl_target is not None:
            found["kl"] = attack.alpha * terms.temperature_kl(kl_target, logits, attack.temperature)
        if latent_target is not None:
            found["latent"] = attack.beta * F.mse_loss(z, latent_target)
        if attack.gamma:
            found["ce"] = attack.gamma * F.cross_entropy(logits, y)
        found |= self.adaptive.losses(logits, y, batch)
        if set(found) <= {"latent", "repulsion"}:  # the gradient starts at the latent, where the account cannot see it
            self.cost.add("surrogate", "backward", len(z))
        return found

    @torch.no_grad()
    def _targets(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return z' and q, each ``None`` where its weight is 0. Every network that is needed runs once."""
        attack = self.attack
        sources = {s for s, used in ((attack.latent_source, attack.beta), (attack.logit_source, attack.alpha)) if used}
        self.network.eval()
        cuts = {"surrogate": self.cut, "victim": self.victim_cut}
        passes = {source: self._forward(cuts[source], x) for source in sources}
        latent = target = None
        if attack.beta:
            latent = self._latent_target(cuts[attack.latent_source], passes[attack.latent_source][0], x, y)
        if attack.alpha:
            target = self._kl_target(passes[attack.logit_source][1], y)
        return latent, target

    def _latent_target(self, cut: LayerCut, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        attack = self.attack
        logits = self._tail_for(cut, x)
        u = z + terms.latent_noise(z, self.generator)
        shuffling = self.shuffle_size > 1
        if shuffling:
            source, target = terms.draw_shuffles(
                attack.inner_steps + 1, len(z), self.nb_channels, self.shuffle_size, self.generator
            )
            u = terms.shuffle_features(u, source[0], target[0], attack.shuffle_dim, self.skip)
        with self._gradients_of_z_alone():
            for step in range(1, attack.inner_steps + 1):
                if shuffling:
                    u = terms.shuffle_features(u, source[step], target[step], attack.shuffle_dim, self.skip)
                u, _ = terms.latent_step(
                    logits, u, z, y, attack.inner_lr, attack.log_weight, attack.distance, attack.distance_scope
                )
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
            "batch_norm_folded": self.cut.nb_folded,
            "compiled": self.compiled,
            "max_iter": attack.max_iter,
            "learning_rate": attack.scaled_learning_rate(),
            "losses": losses,
            "ilbs_unmet_share": float(self.unmet) / self.steps if self.steps else None,
            **self.adaptive.report(),
        }
