"""The template of all removal attacks: one public verb, ``generate``, and one hook that makes a surrogate."""

from __future__ import annotations

import abc
import logging
import warnings
from collections.abc import Callable, Mapping, Sized
from typing import Any

import numpy as np
import torch
from art.attacks.attack import Attack
from art.data_generators import DataGenerator
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter, SummaryWriterDefault
from torch import Tensor, nn

from art_fingerprint.attacks.substitute import StreamedSet
from art_fingerprint.attacks.substitute import SubstituteSet as SubstituteSet  # where attacks look for it
from art_fingerprint.core.checks import check_flag, check_images, check_labels, check_number, check_seed, shown
from art_fingerprint.core.classifier import check_classifier, has_batch_norm, network_of
from art_fingerprint.core.copies import check_copy, clone_classifier, clone_network
from art_fingerprint.core.cost import CostMeter, uncounted
from art_fingerprint.core.guard import evaluating, guarded
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.parameters import as_json, as_python, changed_together
from art_fingerprint.core.precision import plain_torch
from art_fingerprint.core.seeding import derive_seed, forked_random_state
from art_fingerprint.core.streams import DataStream
from art_fingerprint.core.training import EpochBatches, check_batches, nb_batches, samples_in_steps
from art_fingerprint.exceptions import InvalidInputError, TrainingDivergedError

logger = logging.getLogger(__name__)
_SUSPICIOUS = 1e6  # a weight, or a statistic of BatchNorm

SurrogateCallback = Callable[[int, PyTorchClassifier, Mapping[str, float]], None]


class RemovalAttack(Attack):
    """Base of all attacks that derive a surrogate from a victim.

    ``generate`` checks the input, copies the victim, seeds, calls the hook :meth:`_derive` and packages the result. The
    victim comes back bit-identical, also after an error, and shares no storage with the surrogate. The surrogate's
    ``surrogate_info`` says how it was made: ``attack``, ``params``, ``samples``, ``victim_queries``, ``seconds``,
    ``cost`` (passes of both networks, time and memory, see :class:`.CostMeter`; without the callback's), and what the
    attack reports.

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
    #: Whether the attack reads its data through batches alone, so that it also works on an ART ``DataGenerator``.
    reads_streams = False
    #: Whether the victim answers as its clients see it, through postprocessing defences; else its network is read.
    asks_as_client = False

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

    def _check_flips(self) -> None:
        """Refuse to mirror what is no image."""
        victim = self.estimator
        if self.hflip and (len(victim.input_shape) != 3 or not victim.channels_first):
            raise InvalidInputError(
                "hflip=True mirrors the last axis of images (channels, height, width), but the classifier has "
                f"input_shape={tuple(victim.input_shape)} and channels_first={victim.channels_first}. Set hflip=False."
            )

    def _check_stream(self, y: object) -> None:
        """Refuse a ``DataGenerator`` that this attack cannot read."""
        if not self.reads_streams:
            raise InvalidInputError(
                f"{type(self).__name__} needs the whole substitute set at once: pass `x` as an array, not as a "
                "DataGenerator."
            )
        if y is not None:
            raise InvalidInputError("`y` must be None with a DataGenerator, which gives labels itself.")

    def _check_labels(self, y: object, n: int) -> np.ndarray:
        """Return the caller's labels as ``(n,)`` indices, or refuse them."""
        return check_labels(y, n, self.estimator.nb_classes)

    def _check_data(self, data: SubstituteSet, network: nn.Module) -> None:
        """Refuse data that this attack cannot work with. Called before anything is trained.

        :param network: What is going to be trained, as it starts.
        """
        check_batches(data.size or self.batch_size, self.batch_size, network)

    # ------------------------------------------------------------------ public verb
    def generate(self, x: np.ndarray | DataGenerator, y: np.ndarray | None = None, **kwargs: Any) -> PyTorchClassifier:
        """Derive a surrogate from the victim.

        :param x: Substitute set, ``(n, *input_shape)`` float32 in ``clip_values``; or, where ``reads_streams`` says so,
            an ART ``DataGenerator`` of such batches ``(x, y)``, y may be ``None``. Its samples are cut into batches of
            ``batch_size`` in its order and never kept, so the victim is asked about each of them when it is used; the
            classes are checked on the first batch.
        :param y: Labels, ``(n,)`` indices or ``(n, nb_classes)`` one-hot. ``None``: the victim's predictions. With a
            ``DataGenerator``: its labels, or the victim's predictions if it has none.
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
        shape = tuple(victim.input_shape)
        if isinstance(x, DataGenerator):
            self._check_stream(y)
        else:
            images = torch.from_numpy(check_images(x, shape, victim.clip_values))
            labels = None if y is None else torch.from_numpy(self._check_labels(y, len(images)))
        self._check_flips()
        if victim.use_amp:
            warnings.warn("The classifier's use_amp is ignored: attacks train in float32.", stacklevel=2)
        view = check_classifier(victim)
        meter = CostMeter(view.device)
        with (
            plain_torch(),  # whatever the caller is in
            torch.enable_grad(),
            guarded(victim),
            forked_random_state(self.seed, type(self).__name__),
            meter,
        ):
            view.network.eval().requires_grad_(False)
            meter.watch("victim", view.network)
            if isinstance(x, DataGenerator):
                stream = DataStream(x, shape, victim.nb_classes, victim.clip_values)
                data: SubstituteSet = StreamedSet(stream, view, self.batch_size, self.hflip, meter)
            else:
                data = SubstituteSet(images, labels, view, self.batch_size, self.hflip, meter)
            if self.asks_as_client:
                data.ask_as_client(victim)
            start = self._start()
            network = clone_network(network_of(start)).to(view.device)
            with uncounted():
                check_copy(start, network)
            self._check_data(data, network)
            example = data.example(8).x
            meter.watch("surrogate", network)
            surrogate = clone_classifier(victim, network)
            for parameter in network.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            report = self._derive(surrogate, data)
            network.eval()
            for parameter in network.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
                parameter.grad = None
            with uncounted(), torch.no_grad():
                self._check_sound(surrogate, view.network, example)
        surrogate.surrogate_info = {
            "attack": type(self).__name__,
            "params": self.params(),
            "samples": data.size,
            "victim_queries": data.queries,
            "seconds": meter.seconds,
            "cost": {"samples": data.size, "victim_queries": data.queries, **meter.account()},
            **report,
        }
        return surrogate

    @staticmethod
    def _check_sound(surrogate: PyTorchClassifier, victim: nn.Module, x: Tensor) -> None:
        """Raise if the last step ruined a surrogate, whose losses were read before it.

        Cost: none where all its numbers are below :data:`_SUSPICIOUS`, else one pass through both networks.
        """
        network = network_of(surrogate)
        numbers = (tensor for tensor in network.state_dict().values() if tensor.is_floating_point())
        if all(bool((tensor.abs() < _SUSPICIOUS).all()) for tensor in numbers):
            return
        if torch.isfinite(network(x.clone())).all() or not torch.isfinite(victim(x.clone())).all():
            return
        if len(x) > 1 and has_batch_norm(network):
            with guarded(surrogate):
                network.train()
                output = network(x.clone())
            if isinstance(output, Tensor) and torch.isfinite(output).all():
                warn_caller(
                    "The surrogate answers NaN or infinity in evaluation mode alone: BatchNorm's statistics have not "
                    "followed its weights. Train longer, or estimate them anew (`bn_recalibrate`)."
                )
                return
        raise TrainingDivergedError(
            "The surrogate answers NaN or infinity after its last step. Lower the learning rate. The victim is "
            "unchanged."
        )

    # ------------------------------------------------------------------ cost beforehand
    def expected_passes(self, nb_samples: int, labelled: bool = True) -> float:
        """Return what ``surrogate_info["cost"]["forward_equivalents"]`` will be after :meth:`generate`, without a run.

        In forward passes of one sample, through both networks: (1) victim queries for labels, (2) three for each sample
        trained on, (3) what an attack adds. Training that may end early is counted to its end. Left out are the checks
        before the first step, up to some hundred samples. Cost: none, unless an attack says otherwise.

        :param nb_samples: Samples in the substitute set, an array; a stream asks the victim anew about every batch.
        :param labelled: Whether y is given.
        :raises InvalidInputError: a bad argument or parameter, or no sample is left to train on.
        """
        check_number("nb_samples", nb_samples, 1, integer=True)
        check_flag("labelled", labelled)
        self._check_params()
        return float(self._expected_queries(nb_samples, labelled) + self._expected_work(nb_samples))

    def _own_queries(self, n: int) -> int:
        """Return how many of :meth:`_expected_queries` are about other samples than those of the substitute set."""
        return 0

    def _expected_queries(self, n: int, labelled: bool) -> int:
        """Return the victim queries. Default: for labels that training needs and nobody gives, once for each sample."""
        told = labelled and not getattr(self, "use_victim_labels", False)
        return 0 if told or not self._nb_steps(range(1)) else n * (1 + self.hflip)

    def _expected_work(self, n: int) -> float:
        """Return all passes but those of the queries. Default: those of the training steps."""
        pool = self._nb_pooled(n)
        if pool < 1:
            raise InvalidInputError(f"`nb_samples`={n} leaves {type(self).__name__} no sample to train on.")
        steps = self._nb_steps(range(nb_batches(pool, self.batch_size)))
        return self._passes_of_a_sample() * samples_in_steps(pool, self.batch_size, steps)

    def _nb_pooled(self, n: int) -> int:
        """Return the samples in an epoch, of n."""
        return n

    def _nb_steps(self, epoch: Sized) -> int:
        """Return the training steps: ``max_iter``, or else ``nb_epochs`` epochs; 0 in an attack that has neither.

        :param epoch: Its length is that of an epoch in batches, which a stream may not know.
        """
        steps: int | None = getattr(self, "max_iter", None)
        nb_epochs: int | None = getattr(self, "nb_epochs", None)
        return steps or (nb_epochs * len(epoch) if nb_epochs else 0)

    def _passes_of_a_sample(self) -> float:
        """Return the passes for each sample of a training batch. Default: one forward, one backward (counts double)."""
        return 3.0

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
        as_python(self, self.attack_params)
        check_number("batch_size", self.batch_size, 1, integer=True)
        check_flag("hflip", self.hflip)
        if self.callback is not None and not callable(self.callback):
            raise InvalidInputError(f"`callback` must be callable or None, got {shown(self.callback)}.")
        check_number("callback_interval", self.callback_interval, 1, integer=True)
        check_seed(self.seed)
        check_flag("verbose", self.verbose)

    # ------------------------------------------------------------------ tools for subclasses
    def _batches(self, data: SubstituteSet, *purpose: str) -> EpochBatches:
        return data.batches(derive_seed(self.seed, type(self).__name__, *purpose))

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
                with evaluating(network), forked_random_state(), uncounted():
                    self.callback(step, surrogate, dict(losses))

        return watch
