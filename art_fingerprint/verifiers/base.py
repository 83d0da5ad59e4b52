"""The verifier's template: extract once, score many, calibrate, verify. A verifier adds two hooks and its formulas."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError

from art_fingerprint.core.checks import (
    check_choice,
    check_flag,
    check_images,
    check_labels,
    check_number,
    check_seed,
    check_sequence,
    check_suspect,
)
from art_fingerprint.core.classifier import LogitsNetwork, check_classifier, check_gradient, clip_bounds, network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.outputs import AnswerKind
from art_fingerprint.core.parameters import as_json, as_python, changed_together
from art_fingerprint.core.precision import full_precision
from art_fingerprint.core.queries import NAN_POLICIES, NanPolicy, Suspect
from art_fingerprint.core.versions import versions
from art_fingerprint.exceptions import (
    FingerprintError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NotExtractedError,
)
from art_fingerprint.verifiers.calibration import Rule, check_rule
from art_fingerprint.verifiers.fingerprint import Fingerprint, check_facts, content_trusted
from art_fingerprint.verifiers.measurement import Access as Access
from art_fingerprint.verifiers.measurement import Chance, Measurement, Notes, measure, measure_in_both_spaces
from art_fingerprint.verifiers.measurement import Metric as Metric
from art_fingerprint.verifiers.references import (
    calibration_of,
    check_calibration,
    check_unknown,
    reference_digests,
    warn_if_weak,
)
from art_fingerprint.verifiers.verdict import VOTES, Verdict, Vote, conclude

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="Verifier")


class Verifier(abc.ABC):
    """Base of all verifiers, on the owner's side what ``Attack`` is on the red team's.

    A subclass states its facts (:attr:`metrics`, :attr:`source_access`, :attr:`suspect_access`,
    :attr:`verifier_params`) and writes two hooks, :meth:`_extract` and :meth:`_score`. This class checks, protects
    both models, meters queries, calibrates and decides.

    :cvar extraction_data: What :meth:`extract` should be given: ``"any"`` images, labelled ``"held-out"`` ones that the
        victim was not trained on, or images of its ``"training"`` set, and more (see the class).
    :cvar decides_alone: Whether it has a p-value without reference models.
    :cvar extras: Names of further values that :meth:`score` returns beside the metrics, where they come for free
        (another normalisation of a metric, say). They are never calibrated and never vote.
    :ivar fingerprint: The fingerprint, once :meth:`extract` has run or a file was given to :meth:`from_fingerprint`.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    extras: ClassVar[tuple[str, ...]] = ()
    source_access: ClassVar[Access]
    suspect_access: ClassVar[Access]
    extraction_data: ClassVar[Literal["any", "held-out", "training"]] = "any"
    decides_alone: ClassVar[bool] = False
    verifier_params: ClassVar[list[str]] = ["metric_names", "nan_policy", "batch_size", "seed", "verbose"]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}
    _estimator_requirements: ClassVar[tuple[type, ...]] = (PyTorchClassifier,)

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim. ``None`` only through :meth:`from_fingerprint`: such a verifier scores suspects
            but cannot extract.
        :param metric_names: Metrics to compute and let vote; default all of :attr:`metrics`.
        :param nan_policy: What a suspect's answer that is NaN or infinite does. ``"raise"``: it ends the scoring.
            ``"mismatch"``: it matches no label, which MR counts; RobD counts it too, but is not decided by it; other
            metrics are NaN. See :meth:`score` and :meth:`verify`.
        :param batch_size: Samples in one forward pass; results do not depend on it.
        :param seed: Seed of all random draws.
        :param verbose: Show a progress bar during extraction.
        """
        if classifier is not None and not all(isinstance(classifier, need) for need in self._estimator_requirements):
            raise EstimatorError(type(self), self._estimator_requirements, classifier)
        self._estimator = classifier
        self.metric_names = None if metric_names is None else check_sequence("metric_names", metric_names)
        self.nan_policy: NanPolicy = nan_policy
        self.batch_size = batch_size
        self.seed = seed
        self.verbose = verbose
        self.fingerprint: Fingerprint | None = None

    # ------------------------------------------------------------------ hooks
    @abc.abstractmethod
    def _extract(
        self, victim: LogitsNetwork, x: torch.Tensor, y: torch.Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Make probes and cache the victim's answers.

        :param victim: White-box view of the victim, in evaluation mode with frozen parameters, protected by the caller.
            What a client of the victim would see says :meth:`_as_suspect`.
        :param x: Owner's data on the host, ``(n, *input_shape)`` float32.
        :param y: Labels ``(n,)`` int64 on the host, or ``None``.
        :return: Arrays and JSON facts of the fingerprint; ``own_NAME``: the victim's score, where it is not 0 or 1.
        """

    @abc.abstractmethod
    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        """Return the metrics asked for (see :meth:`wants`), and any others that come for free.

        A metric that this suspect cannot have is reported by :meth:`_skip`; whether logits or probabilities were
        compared, if either is possible, by :meth:`_compared`; what is known of a score without reference models by
        :meth:`_by_chance`. Metrics that are complete before more queries are sent can be handed over by :meth:`_keep`,
        lest they are lost if the suspect fails or the query budget ends.
        """

    def _needs_gradients(self) -> bool:
        """Tell whether extraction with the present parameters differentiates the victim."""
        return self.source_access == "gradients"

    def _extraction_passes(self, nb_images: int) -> float | None:
        """Return what :meth:`expected_extraction_passes` says."""
        return None

    # ------------------------------------------------------------------ public verbs
    def extract(self, x: np.ndarray, y: np.ndarray | None = None) -> Fingerprint:
        """Extract the victim's fingerprint, keep it as :attr:`fingerprint` and return it.

        The victim is given back bit-identical. The result depends on the victim, the data, the parameters and the seed.
        Like scoring, it runs in full float32, without TF32.

        :param x: Owner's data, ``(n, *input_shape)`` float32 in ``clip_values``.
        :param y: Labels, indices or one-hot; ``None`` uses the victim's predictions where labels are needed.
        :raises NotExtractedError: the verifier was made from a file and has no victim.
        :raises InvalidInputError: bad data or parameters.
        :raises EmptyFingerprintError: no usable probe was found.
        """
        victim = self._estimator
        if victim is None:
            raise NotExtractedError("This verifier was made from a fingerprint and has no victim to extract from.")
        self._check_params()
        if len(victim.input_shape) == 3 and not victim.channels_first:
            raise InvalidInputError(
                "The victim's images have their channels last; probes have them first. Wrap its network in an "
                "nn.Module that moves the axis, and use input_shape=(C, H, W) with channels_first=True."
            )
        images = check_images(x, tuple(victim.input_shape), clip_bounds(victim))
        labels = None if y is None else check_labels(y, len(images), victim.nb_classes)
        view = check_classifier(victim)
        with guarded(victim, seed=self.seed, purpose=type(self).__name__), full_precision(), torch.enable_grad():
            view.network.eval().requires_grad_(False)
            if self._needs_gradients():
                check_gradient(view, torch.from_numpy(images))
            known = None if labels is None else torch.from_numpy(labels)
            arrays, facts = self._extract(view, torch.from_numpy(images), known)
        common = {
            "input_shape": victim.input_shape,
            "nb_classes": victim.nb_classes,
            "clip_values": clip_bounds(victim),
            "outputs": view.kind,
            "victim": network_digest(network_of(victim)),
            "versions": versions(),
        }
        self.fingerprint = Fingerprint(type(self).__name__, self.params(), as_json({**common, **facts}), arrays)
        logger.info("Extracted %r", self.fingerprint)
        return self.fingerprint

    def score(self, suspect: Any, outputs: AnswerKind = "auto") -> dict[str, float]:
        """Return the metrics between the victim and ``suspect``, unrounded. The suspect is only read.

        The class's :attr:`extras` are returned with them, as far as they come with the metrics that were asked for.

        :param suspect: As in :meth:`verify`.
        :param outputs: As in :meth:`verify`.
        :raises IncompatibleSuspectError: as in :meth:`verify`.
        :raises MalformedAnswerError: it answered in a wrong shape, or with what are no numbers.
        :raises SuspectFailedError: the suspect raised an error of its own.
        :raises NonFiniteOutputError: it answered NaN or infinity, unless ``nan_policy="mismatch"``.
        """
        found = self._measure(suspect, outputs)
        if found.failure is not None:
            raise found.failure
        if not found.scores:
            raise IncompatibleSuspectError(found.trouble)
        return found.scores

    def calibrate(
        self: Self,
        references: Sequence[Any],
        rule: Rule = "extreme",
        alpha: float = 1.0,
        confidence: float = 0.99,
        false_positive_rate: float = 0.05,
        outputs: AnswerKind = "auto",
    ) -> Self:
        """Set thresholds from independently trained reference models; they are kept in the fingerprint.

        Warns of metrics by whose thresholds not even the victim would be judged derived.

        :param references: ART classifiers that were *not* derived from the victim, five or more.
        :param rule: ``"extreme"`` (RemovalNet 4.1.4), ``"fpr"`` (ours), ``"t-mean"`` (DeepJudge), ``"t-pred"``,
            ``"scaled-mean"``; see :func:`~art_fingerprint.verifiers.calibration.threshold`.
        :param alpha: Relaxation factor of the last three.
        :param confidence: One-sided confidence of the t rules.
        :param false_positive_rate: Share of the references that ``"fpr"`` may flag, for each metric; it needs
            ``1 / false_positive_rate`` references or more.
        :param outputs: What the references answer, as in :meth:`verify`. From logits there are thresholds for suspects
            that answer logits and for those that answer probabilities; no query is sent twice.
        :raises CalibrationError: no references or too few, one of them is the victim itself, comes twice, or fails.
        :raises IncompatibleSuspectError: one has inputs of another shape, or gives the access for none of the metrics.
        """
        fingerprint = self._require_fingerprint()
        models = check_sequence("references", references)
        check_rule(rule, len(models), false_positive_rate, alpha, confidence)
        digests = reference_digests(models, fingerprint.facts["victim"])
        found = [self._measure(model, outputs, record=True) for model in models]
        directions = {m.name: m.direction for m in self.metrics if self.wants(m.name)}
        fingerprint.calibration = calibration_of(
            found, directions, rule, alpha, confidence, false_positive_rate, digests, fingerprint.digest
        )
        warn_if_weak(fingerprint.calibration, directions, fingerprint.facts)
        return self

    def verify(
        self,
        suspect: Any,
        vote: Vote = "majority",
        budget: int | None = None,
        allow_reference: bool = False,
        outputs: AnswerKind = "auto",
        max_seconds: float | None = None,
        repeats: int = 0,
    ) -> Verdict:
        """Score a suspect and decide. Uncalibrated verifiers give values and ``derived=None``, never a guess, unless
        the verifier has a threshold without reference models (its class says so).

        A suspect that raises an error, answers NaN or in a wrong shape, or costs more than the budget gives an
        undecided verdict with the reason, the queries that were sent, and the metrics that were complete by then. One
        that gives the same answer to all probes, or another answer to a repeated one, gives all metrics and decides
        nothing. Metrics that need more access than it gives are skipped.

        :param suspect: Any ART classifier. Class indices or one-hot rows will do for metrics that need labels.
        :param vote: How metrics combine: ``"majority"`` (more than half), ``"any"``, ``"all"``.
        :param budget: Most samples that may be sent to the suspect; ``None`` for no limit.
        :param allow_reference: Judge a suspect although it is one of the reference models, whose p-value then counts
            the model itself, or one of those that queries were chosen by.
        :param outputs: What the suspect answers: ``"logits"``, ``"probabilities"``, ``"labels"``, or ``"auto"``, told
            from its answers: see :class:`~art_fingerprint.core.queries.Suspect`. Say it if you know it.
        :param max_seconds: Time from the first query after which nothing more is sent; ``None`` for no limit. It is
            read before each batch (see ``batch_size``); what never returns is left by Ctrl-C, which loses nothing.
        :param repeats: Probes that are sent a second time at the end, to find out a suspect that answers at random.
            They are queries like all others.
        :raises CalibrationError: the suspect is one of the reference models that set the thresholds, or of those that
            queries were chosen by; or the thresholds are of another fingerprint.
        :raises IncompatibleSuspectError: its inputs have another shape, or it gives the access for none of the metrics.
        """
        fingerprint = self._require_fingerprint()
        check_choice("vote", vote, VOTES)
        check_flag("allow_reference", allow_reference)
        calibration = fingerprint.calibration
        check_calibration(fingerprint, [m.name for m in self.metrics])
        if not allow_reference:
            check_unknown(suspect, fingerprint)
        soft = calibration is not None and "probabilities" in calibration.spaces.values()
        found = self._measure(suspect, outputs, soft, budget=budget, max_seconds=max_seconds, repeats=repeats)
        directions = {m.name: m.direction for m in self.metrics}
        return conclude(found, directions, calibration, vote, fingerprint)

    def expected_extraction_passes(self, nb_images: int) -> float | None:
        """Return what :meth:`extract` costs on so many images, in forward passes of one sample through the victim.

        A gradient of the input counts as one, a pass that ends at a layer as a whole one. Where points may stop early
        an upper bound, but for a few per cent. Checks of a few samples are left out. ``None``: not known.
        """
        check_number("nb_images", nb_images, 1, integer=True)
        return self._extraction_passes(nb_images)

    def expected_queries(self) -> int | None:
        """Return the samples that a suspect is sent: at most; after extraction exactly, if answers do not matter."""
        return None

    @classmethod
    def from_profile(cls: type[Self], classifier: PyTorchClassifier | None, profile: str, **overrides: Any) -> Self:
        """Return a verifier with a named bundle of parameters (see :attr:`profiles`); keyword arguments win over it."""
        check_choice("profile", profile, tuple(cls.profiles))
        return cls(classifier, **{**cls.profiles[profile], **overrides})

    @classmethod
    def from_fingerprint(cls: type[Self], fingerprint: Fingerprint) -> Self:
        """Return a verifier that scores suspects with an existing fingerprint; no victim is needed.

        :raises FingerprintFileError: the fingerprint belongs to another verifier or to other parameters.
        """
        if fingerprint.verifier != cls.__name__:
            raise FingerprintFileError(f"This fingerprint is for {fingerprint.verifier}, not for {cls.__name__}.")
        check_facts(fingerprint, cls.verifier_params)
        try:
            verifier = cls(None, **fingerprint.params)
        except (FingerprintError, TypeError, ValueError) as error:
            raise FingerprintFileError(f"The fingerprint's parameters are invalid: {error}") from error
        verifier.fingerprint = fingerprint
        return verifier

    # ------------------------------------------------------------------ parameters, as in ART
    @property
    def estimator(self) -> PyTorchClassifier | None:
        """The victim."""
        return self._estimator

    def params(self) -> dict[str, Any]:
        """Return all parameters as JSON values."""
        return {name: as_json(getattr(self, name)) for name in self.verifier_params}

    def set_params(self, **kwargs: Any) -> None:
        """Change parameters; after an error all of them are as before. The fingerprint must be extracted anew.

        :raises InvalidInputError: unknown name or bad value.
        """
        with changed_together(self, self.verifier_params, kwargs):
            for name, value in kwargs.items():
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
            self._check_params()

    def _check_params(self) -> None:
        as_python(self, self.verifier_params)
        check_choice("nan_policy", self.nan_policy, NAN_POLICIES)
        check_number("batch_size", self.batch_size, 1, integer=True)
        check_seed(self.seed)
        check_flag("verbose", self.verbose)
        if self.metric_names is not None:
            self.metric_names = check_sequence("metric_names", self.metric_names)
            if not self.metric_names:
                raise InvalidInputError("`metric_names` is empty; pass None for all metrics.")
            for name in self.metric_names:
                check_choice("metric_names", name, [m.name for m in self.metrics])

    def wants(self, *names: str) -> bool:
        """Tell whether any of these metrics was asked for."""
        return self.metric_names is None or any(name in self.metric_names for name in names)

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.verifier_params)
        return f"{type(self).__name__}({inner})"

    # ------------------------------------------------------------------ inside
    def _require_fingerprint(self) -> Fingerprint:
        if self.fingerprint is None:
            raise NotExtractedError(f"{type(self).__name__} has no fingerprint yet: call extract(x, y) first.")
        return self.fingerprint

    def _as_suspect(self) -> Suspect:
        # The suspect's own path, so that the victim as a suspect gives the same answers to the last bit.
        return Suspect(self._estimator, self.batch_size)

    def _skip(self, name: str, why: str) -> None:
        self._notes.skipped[name] = why

    def _keep(self, scores: Mapping[str, float]) -> None:
        self._notes.kept.update(scores)

    def _compared(self, space: str, *names: str) -> None:
        self._notes.spaces.update(dict.fromkeys(names, space))

    def _by_chance(self, name: str, threshold: float, p_value: float) -> None:
        self._notes.chances[name] = Chance(threshold, p_value)

    def _measure(self, classifier: Any, outputs: AnswerKind, record: bool = False, **limits: Any) -> Measurement:
        fingerprint = self._require_fingerprint()
        check_suspect(self, classifier)
        suspect = Suspect(classifier, self.batch_size, outputs, nan_policy=self.nan_policy, record=record, **limits)
        suspect.check_shape(tuple(fingerprint.facts["input_shape"]))

        score = content_trusted(self._score, self._estimator is not None)

        def run(client: Suspect) -> Measurement:
            self._notes = Notes()
            names = [m.name for m in self.metrics if self.wants(m.name)]
            return measure(lambda c: score(c, fingerprint), client, self._notes, names, self.extras)

        guard = guarded(classifier, weights=False, seed=self.seed, purpose=type(self).__name__)
        with guard, full_precision(), torch.no_grad():
            return measure_in_both_spaces(run, suspect) if record else run(suspect)
