"""Choose among the iterates of a RemovalNet run: the farthest from the victim that still agrees with it, measured on
samples held back from training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.layers import recorded
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.seeding import torch_generator


def held_back_rows(n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split n samples at random into those to train on and ceil(fraction n) held back, both in ascending order."""
    order = torch.randperm(n, generator=torch_generator(seed, "keep_best"))
    nb_held = math.ceil(fraction * n - 1e-9)  # 0.07 of 100 is 7.000000000000001 in floating point
    return order[nb_held:].sort().values, order[:nb_held].sort().values


@dataclass(frozen=True)
class Judgement:
    """What the held-back samples say about one iterate.

    :ivar step: SGD steps taken.
    :ivar agreement: Share of samples to which surrogate and victim give the same class.
    :ivar latent_distance: ||h(x) - h_v(x)|| / ||h_v(x)|| at the cut layer, over all samples; ``None`` where the two
        networks have no such layer of one shape.
    :ivar output_distance: Mean over samples of half the L1 distance between their class probabilities, in [0, 1].
    """

    step: int
    agreement: float
    latent_distance: float | None
    output_distance: float

    @property
    def distance(self) -> float:
        """The distance gained: the sum of both. Each is what one level of the attack pulls at, and 0 for a copy."""
        return (self.latent_distance or 0.0) + self.output_distance

    def rank(self, min_agreement: float) -> tuple[bool, float]:
        """Return what the best iterate has most of: enough agreement, then distance; without it, agreement."""
        enough = self.agreement >= min_agreement
        return enough, self.distance if enough else self.agreement


class BestIterate:
    """Judges the surrogate from time to time and keeps the best state. The start (step 0) is judged, never kept.

    Cost of a judgement: one forward pass of each network over the held-back samples. Memory: one copy of the
    surrogate's weights and buffers.

    :param network: The surrogate's network.
    :param view: Turns its outputs into logits.
    :param victim: The victim's view.
    :param layer: Layer of the latent distance.
    :param x: Held-back raw samples on the host.
    :param batch_size: Samples in a pass.
    :param min_agreement: Agreement asked for.
    :param patience: Judgements without a better iterate after which training ends; ``None``: never.
    :param recalibrate: Applied before a judgement and undone after it, so that what is judged is what would be returned
        and training goes on as if nothing had happened.
    """

    def __init__(
        self,
        network: nn.Module,
        view: LogitsNetwork,
        victim: LogitsNetwork,
        layer: str,
        x: Tensor,
        batch_size: int,
        min_agreement: float,
        patience: int | None,
        recalibrate: Callable[[], None],
    ) -> None:
        self._network = network
        self._view = view
        self._victim = victim
        self._layer = layer
        self._x = x
        self._batch_size = batch_size
        self._min_agreement = min_agreement
        self._patience = patience
        self._recalibrate = recalibrate
        self._kept: list[Tensor] = []
        self._best: Judgement | None = None
        self._unimproved = 0
        self.curve: list[Judgement] = []

    def judge(self, step: int) -> bool:
        """Judge the surrogate as it is, keep it if it is the best so far, and say whether patience is exhausted."""
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        self._recalibrate()
        found = self._measure(step)
        self.curve.append(found)
        if step and (self._best is None or found.rank(self._min_agreement) > self._best.rank(self._min_agreement)):
            self._best = found
            self._kept = [tensor.detach().clone() for tensor in self._state()]
            self._unimproved = 0
        elif step:
            self._unimproved += 1
        for buffer, value in buffers:
            buffer.copy_(value)
        return self._patience is not None and self._unimproved >= self._patience

    def restore(self) -> None:
        """Give the surrogate its best state, recalibrated; warn if it does not agree enough with the victim."""
        best = self._kept_judgement()
        with torch.no_grad():
            for tensor, value in zip(self._state(), self._kept, strict=True):
                tensor.copy_(value)
        if best.agreement < self._min_agreement:
            warn_caller(
                f"No iterate agrees with the victim on {self._min_agreement:.1%} of the {len(self._x)} samples held "
                f"back; the one of step {best.step} agrees most, on {best.agreement:.1%}, and is returned. Lower "
                "`learning_rate`, `beta` or `min_agreement`, or raise `gamma`."
            )

    def report(self) -> dict[str, Any]:
        """Return which iterate was kept and the whole curve, as JSON values."""
        best = self._kept_judgement()
        return {
            "step": best.step,
            "steps": self.curve[-1].step,
            "agreement": best.agreement,
            "distance": best.distance,
            "enough_agreement": best.agreement >= self._min_agreement,
            "held_back": len(self._x),
            "curve": [{**asdict(judgement), "distance": judgement.distance} for judgement in self.curve],
        }

    def _kept_judgement(self) -> Judgement:
        if self._best is None:
            raise RuntimeError("No iterate has been judged.")
        return self._best

    def _state(self) -> list[Tensor]:
        return [*self._network.parameters(), *self._network.buffers()]

    @torch.no_grad()
    def _measure(self, step: int) -> Judgement:
        sums = torch.zeros(4, dtype=torch.float64, device=self._victim.device)
        comparable = True
        with evaluating(self._network), evaluating(self._victim.network):
            for part in self._x.split(self._batch_size):
                x = self._victim.preprocess(part.to(self._victim.device))
                z, logits = self._pass(self._view, x)
                wanted_z, wanted = self._pass(self._victim, x)
                comparable = comparable and z is not None and wanted_z is not None and z.shape == wanted_z.shape
                if z is not None and wanted_z is not None and comparable:
                    sums[0] += (z - wanted_z).double().square().sum()
                    sums[1] += wanted_z.double().square().sum()
                sums[2] += 0.5 * (logits.softmax(1) - wanted.softmax(1)).abs().sum()
                sums[3] += (logits.argmax(1) == wanted.argmax(1)).sum()
        moved, size, outputs, agreeing = sums.tolist()
        latent = (moved / size) ** 0.5 if comparable and size else None
        return Judgement(step, agreeing / len(self._x), latent, outputs / len(self._x))

    def _pass(self, view: LogitsNetwork, x: Tensor) -> tuple[Tensor | None, Tensor]:
        if self._layer not in dict(view.network.named_modules()):
            return None, view.logits(view.network(x))
        with recorded(view.network, [self._layer]) as traces:
            output = view.network(x)
        return traces[self._layer].single_tensor, view.logits(output)
