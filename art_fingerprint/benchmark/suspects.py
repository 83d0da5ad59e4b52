"""What a model of a plan is, as data, and how surrogates are derived: once, or with checkpoints on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import RemovalAttack
from art_fingerprint.core.classifier import LogitsNetwork, network_of
from art_fingerprint.core.copies import clone_classifier
from art_fingerprint.core.cost import cost_so_far
from art_fingerprint.core.seeding import derive_seed
from art_fingerprint.core.training import Batches, recalibrate_batch_norm
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.lazy_batches import ImageStream, training_images
from art_fingerprint.zoo.lazy_images import LazyImages

Images = np.ndarray | LazyImages
Keep = Callable[[str, PyTorchClassifier, dict[str, Any]], None]


@dataclass(frozen=True)
class Suspect:
    """A model that is scored, as data.

    :ivar label: Row label.
    :ivar role: ``"victim"``, ``"reference"``, ``"negative"`` or ``"surrogate"``.
    :ivar seed: Its seed in the rows; of a reference its number.
    :ivar key: Digest of everything that makes it.
    """

    label: str
    role: str
    seed: int
    key: str


def reason_of(error: Exception) -> str:
    """Return what a row says of an error."""
    return f"{type(error).__name__}: {error}"


def derive(attack: RemovalAttack, x: Images, labels: np.ndarray | None) -> PyTorchClassifier:
    """Return what an attack makes of its data; images on disk are streamed."""
    if isinstance(x, LazyImages):
        return attack.generate(ImageStream(x, labels, attack.batch_size, attack.seed))
    return attack.generate(x, labels)


def derive_checkpoints(
    attack: RemovalAttack, x: Images, labels: np.ndarray | None, steps: Mapping[int, str], keep: Keep
) -> None:
    """Run an attack once, to its end, and hand over the surrogate as it is after certain steps.

    Each checkpoint is what the attack would return, had it ended there with the same learning rates: an attack's
    ``bn_recalibrate`` is applied to a copy. Step 0 is what the attack starts from, untouched; the surrogate of the last
    step is the one that ``generate`` returns.

    :param attack: The attack; its ``callback`` and ``callback_interval`` are set.
    :param x: The attacker's images.
    :param labels: Their labels, or ``None``.
    :param steps: Step, from 0, to the key of its checkpoint.
    :param keep: Takes key, surrogate, and notes like ``surrogate_info``, whose ``cost`` and ``seconds`` are those up
        to the step, without checkpoints.
    :raises InvalidInputError: the attack never gets to one of the steps.
    """
    left = set(steps)
    seen: list[int] = []

    def at(step: int, surrogate: PyTorchClassifier, _losses: Mapping[str, float]) -> None:
        cost = cost_so_far()
        seen.append(step)
        if step not in left or step == last:
            return
        twin = clone_classifier(surrogate)
        network_of(twin).requires_grad_(True)
        if step:
            _recalibrate(twin, attack, x)
        keep(steps[step], twin, _notes(attack, step, cost))
        left.discard(step)

    last = getattr(attack, "max_iter", None)
    attack.set_params(callback=at, callback_interval=math.gcd(*left) or 1)
    surrogate = derive(attack, x, labels)
    final = max(seen, default=0)
    if final in left:
        keep(steps[final], surrogate, {**surrogate.surrogate_info, "step": final})
        left.discard(final)
    if left:
        raise InvalidInputError(
            f"{type(attack).__name__} never gets to step {', '.join(map(str, sorted(left)))}: it ends after {final}."
        )


def _recalibrate(twin: PyTorchClassifier, attack: RemovalAttack, x: Images) -> None:
    """Do to a checkpoint's BatchNorm statistics what the attack does at its end."""
    nb_batches = getattr(attack, "bn_recalibrate", 0)
    if nb_batches:
        view = LogitsNetwork(twin, "logits")
        seed = derive_seed(attack.seed, type(attack).__name__, "recalibration")
        batches = Batches(training_images(x), view.preprocess, attack.batch_size, view.device, seed, attack.hflip)
        with torch.no_grad():
            recalibrate_batch_norm(view.network, batches, nb_batches)


def _notes(attack: RemovalAttack, step: int, cost: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "attack": type(attack).__name__,
        "params": attack.params(),
        "step": step,
        "seconds": None if cost is None else cost["seconds"],
        "cost": None if cost is None else dict(cost),
    }
