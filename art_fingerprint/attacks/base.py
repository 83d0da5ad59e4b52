"""The template of all removal attacks: one public verb, ``generate``, and one hook that makes a surrogate."""

from __future__ import annotations

import abc
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from art.attacks.attack import Attack
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter, SummaryWriterDefault
from torch import Tensor, nn

from art_fingerprint.core.checks import check_flag, check_images, check_labels, check_number, check_seed
from art_fingerprint.core.classifier import (
    LogitsNetwork,
    check_classifier,
    clone_classifier,
    clone_network,
    evaluating,
    guarded,
    network_of,
)
from art_fingerprint.core.parameters import as_json, changed_together
from art_fingerprint.core.seeding import derive_seed, forked_random_state
from art_fingerprint.core.training import Batches, check_batches
from art_fingerprint.exceptions import InvalidInputError

logger = logging.getLogger(__name__)

SurrogateCallback = Callable[[int, PyTorchClassifier, Mapping[str, float]], None]


@dataclass
class SubstituteSet:
    """The attacker's data and what the victim says about it.

    :ivar x: Raw inputs on the host, ``(n, *input_shape)`` float32.
    :ivar y: Labels given by the caller ``(n,)``, or ``None``.
    """

    x: Tensor
    y: Tensor | None
    victim: LogitsNetwork
    batch_size: int
    queries: int = 0
    _rows: list[Tensor] = field(default_factory=list)

    def victim_labels(self, hflip: bool) -> Tensor:
        """Return the victim's labels ``(1, n)``, or ``(2, n)`` with those of the mirrored samples, on its device.

        Computed once and kept. Cost: one forward sample for each entry.
        """
        for mirrored in range(len(self._rows), 1 + hflip):
            x = self.x.flip(-1) if mirrored else self.x
            self._rows.append(self.victim.predict(x, self.batch_size).argmax(1).to(self.victim.device))
            self.queries += len(x)
        return torch.stack(self._rows[: 1 + hflip])

    def labels(self, hflip: bool) -> Tensor:
        """Return the caller's labels where given, else the victim's, in the form of :meth:`victim_labels`."""
        if self.y is None:
            return self.victim_labels(hflip)
        return self.y.to(self.victim.device).expand(1 + hflip, -1)

    def check_classes(self, nb_classes: int, allow_degenerate: bool) -> None:
        """Refuse a set that the victim puts into one class; warn when it is close to that."""
        counts = torch.bincount(self.victim_labels(False)[0].cpu(), minlength=nb_classes)
        present, share = int((counts > 0).sum()), float(counts.max()) / len(self.x)
        if present == 1 and not allow_degenerate:
            raise InvalidInputError(
                f"The victim puts all {len(self.x)} substitute samples into class {int(counts.argmax())}; samples of "
                "several classes are needed (allow_degenerate=True lifts this check)."
            )
        if present < min(nb_classes, 3) or share > 0.9:
            warnings.warn(
                f"The substitute set is unbalanced: the victim sees {present} of {nb_classes} classes in it and puts "
                f"{share:.0%} into one; expect a loss of accuracy.",
                stacklevel=4,
            )


class RemovalAttack(Attack):
    """Base of all attacks that derive a surrogate from a victim.

    ``generate`` checks the input, copies the victim, seeds, calls the hook :meth:`_derive` and packages the result. The
    victim comes back bit-identical, also after an error, and shares no storage with the surrogate. The surrogate's
    ``surrogate_info`` says how it was made: attack, parameters, seconds, victim queries, and what the attack reports.

    :ivar batch_size: Samples in a training batch.
    :ivar hflip: Random horizontal flips during training.
    :ivar callback: ``callback(step, surrogate, losses)``, called at step 0, every ``callback_interval`` steps and at
        the end, with the surrogate in evaluation mode.
    :ivar callback_interval: Steps between two calls and between two readings of the losses.
    :ivar seed: Seed of everything random; the same seed gives the same surrogate on one device.
    :ivar verbose: Show a progress bar.
    """

    attack_params: list[str] = [
        *Attack.attack_params,
        "batch_size",
        "hflip",
        "callback",
        "callback_interval",
        "seed",
        "verbose",
    ]
    _estimator_requirements = (PyTorchClassifier,)

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        batch_size: int,
        hflip: bool,
        callback: SurrogateCallback | None,
        callback_interval: int,
        seed: int,
        summary_writer: str | bool | SummaryWriter,
        verbose: bool,
    ) -> None:
        super().__init__(estimator=classifier, summary_writer=summary_writer)
        self.batch_size = batch_size
        self.hflip = hflip
        self.callback = callback
        self.callback_interval = callback_interval
        self.seed = seed
        self.verbose = verbose

    # ------------------------------------------------------------------ hook
    @abc.abstractmethod
    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        """Turn ``surrogate``, a copy of the victim with all float parameters trainable, into the result, in place.

        Runs on a forked, seeded global random state. ``data.victim`` is the victim's white-box view, frozen and in
        evaluation mode.

        :return: What the attack reports about the run, JSON values.
        """

    def _start(self) -> PyTorchClassifier:
        """Return the classifier whose weights the surrogate starts from."""
        return self.estimator

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        """Refuse data that this attack cannot work with. Called before anything is trained."""
        check_batches(len(data.x), self.batch_size, network)

    # ------------------------------------------------------------------ public verb
    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> PyTorchClassifier:
        """Derive a surrogate from the victim.

        :param x: Substitute set, ``(n, *input_shape)`` float32 in ``clip_values``.
        :param y: Labels, ``(n,)`` indices or ``(n, nb_classes)`` one-hot. ``None``: the victim's predictions.
        :param kwargs: None are known; everything belongs into the constructor.
        :return: A new classifier, in evaluation mode, with the victim's metadata.
        :raises InvalidInputError: bad data or parameters; nothing was trained.
        :raises TrainingDivergedError: a loss became NaN or infinite.
        """
        if kwargs:
            raise InvalidInputError(
                f"generate() takes x and y only, got {', '.join(kwargs)}; parameters belong into the constructor."
            )
        self._check_params()
        victim = self.estimator
        images = check_images(x, tuple(victim.input_shape), victim.clip_values)
        if self.hflip and (len(victim.input_shape) != 3 or not victim.channels_first):
            raise InvalidInputError(
                "hflip=True mirrors the last axis of images (channels, height, width), but the classifier has "
                f"input_shape={tuple(victim.input_shape)} and channels_first={victim.channels_first}. Set hflip=False."
            )
        labels = None if y is None else torch.from_numpy(check_labels(y, len(images), victim.nb_classes))
        if victim.use_amp:
            warnings.warn("The classifier's use_amp is ignored: attacks train in float32.", stacklevel=2)
        view = check_classifier(victim)
        started = time.perf_counter()
        with guarded(victim), forked_random_state(self.seed, type(self).__name__):
            view.network.eval().requires_grad_(False)
            data = SubstituteSet(torch.from_numpy(images), labels, view, self.batch_size)
            self._check_data(data, view.network)
            network = clone_network(network_of(self._start())).to(view.device)
            surrogate = clone_classifier(victim, network)
            for parameter in network.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            report = self._derive(surrogate, data)
            network.eval()
            for parameter in network.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
                parameter.grad = None
        surrogate.surrogate_info = {
            "attack": type(self).__name__,
            "params": self.params(),
            "samples": len(images),
            "victim_queries": data.queries,
            "seconds": time.perf_counter() - started,
            **report,
        }
        return surrogate

    # ------------------------------------------------------------------ parameters
    def params(self) -> dict[str, Any]:
        """Return the parameters as JSON values; callables are left out."""
        values = {name: getattr(self, name) for name in self.attack_params}
        return {name: as_json(value) for name, value in values.items() if not callable(value)}

    def set_params(self, **kwargs: Any) -> None:
        """Change parameters as in ART; after an error all of them are as before.

        :raises InvalidInputError: unknown name or bad value.
        """
        with changed_together(self, self.attack_params, kwargs):
            super().set_params(**kwargs)

    def _check_params(self) -> None:
        super()._check_params()
        for name in self.attack_params:  # NumPy scalars are neither JSON nor accepted everywhere in torch
            value = getattr(self, name)
            if isinstance(value, np.generic):
                setattr(self, name, value.item())
        check_number("batch_size", self.batch_size, 1, integer=True)
        check_flag("hflip", self.hflip)
        if self.callback is not None and not callable(self.callback):
            raise InvalidInputError(f"`callback` must be callable or None, got {self.callback!r}.")
        check_number("callback_interval", self.callback_interval, 1, integer=True)
        check_seed(self.seed)
        check_flag("verbose", self.verbose)

    # ------------------------------------------------------------------ tools for subclasses
    def _batches(self, data: SubstituteSet, *purpose: str) -> Batches:
        seed = derive_seed(self.seed, type(self).__name__, *purpose)
        return Batches(data.x, data.victim.preprocess, self.batch_size, data.victim.device, seed, self.hflip)

    def _watch(self, surrogate: PyTorchClassifier) -> Callable[[int, Mapping[str, float]], None]:
        """Return the training loop's callback: summary writer, then the user's, with the surrogate in eval mode."""
        network = network_of(surrogate)

        def watch(step: int, losses: Mapping[str, float]) -> None:
            if isinstance(self.summary_writer, SummaryWriterDefault):
                for name, value in losses.items():
                    self.summary_writer.summary_writer.add_scalar(f"{type(self).__name__}/{name}", value, step)
            elif self.summary_writer is not None:
                self.summary_writer.update(batch_id=0, global_step=step, **losses)
            if self.callback is not None:
                with evaluating(network), forked_random_state():
                    self.callback(step, surrogate, dict(losses))

        return watch
