"""The verifier's template: extract once, score many, calibrate, verify. A verifier adds two hooks and its formulas."""

from __future__ import annotations

import abc
import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import art
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError

from art_fingerprint._version import __version__
from art_fingerprint.core.checks import (
    check_choice,
    check_flag,
    check_images,
    check_labels,
    check_number,
    check_seed,
    check_sequence,
    is_classifier,
)
from art_fingerprint.core.classifier import LogitsNetwork, check_classifier, clip_bounds, guarded, network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.parameters import as_json, changed_together
from art_fingerprint.core.queries import Suspect
from art_fingerprint.exceptions import (
    CalibrationError,
    FingerprintError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NotExtractedError,
)
from art_fingerprint.verifiers.calibration import Calibration, Direction, Rule, empirical_p_value, is_derived, threshold
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.verdict import MetricResult, Verdict, Vote, combine

logger = logging.getLogger(__name__)

Access = Literal["labels", "scores", "layers", "gradients"]
Self = TypeVar("Self", bound="Verifier")


@dataclass(frozen=True)
class Metric:
    """A metric of a verifier: its name, what a low or high value means, and the access to the suspect it needs."""

    name: str
    direction: Direction
    access: Access


class Verifier(abc.ABC):
    """Base of all verifiers, on the owner's side what ``Attack`` is on the red team's.

    A subclass states its facts (:attr:`metrics`, :attr:`source_access`, :attr:`suspect_access`,
    :attr:`verifier_params`) and writes two hooks, :meth:`_extract` and :meth:`_score`. This class checks, protects
    both models, meters queries, calibrates and decides.

    :cvar extras: Names of further values that :meth:`score` returns beside the metrics, where they come for free
        (another normalisation of a metric, say). They are never calibrated and never vote.
    :ivar fingerprint: The fingerprint, once :meth:`extract` has run or a file was given to :meth:`from_fingerprint`.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    extras: ClassVar[tuple[str, ...]] = ()
    source_access: ClassVar[Access]
    suspect_access: ClassVar[Access]
    verifier_params: ClassVar[list[str]] = ["metric_names", "batch_size", "seed", "verbose"]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}}
    _estimator_requirements: ClassVar[tuple[type, ...]] = (PyTorchClassifier,)

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        metric_names: Sequence[str] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim. ``None`` only through :meth:`from_fingerprint`: such a verifier scores suspects
            but cannot extract.
        :param metric_names: Metrics to compute and let vote; default all of :attr:`metrics`.
        :param batch_size: Samples in one forward pass; results do not depend on it.
        :param seed: Seed of all random draws.
        :param verbose: Show a progress bar during extraction.
        """
        if classifier is not None and not all(isinstance(classifier, need) for need in self._estimator_requirements):
            raise EstimatorError(type(self), self._estimator_requirements, classifier)
        self._estimator = classifier
        self.metric_names = None if metric_names is None else check_sequence("metric_names", metric_names)
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
        :param x: Owner's data on the host, ``(n, *input_shape)`` float32.
        :param y: Labels ``(n,)`` int64 on the host, or ``None``.
        :return: Arrays and JSON facts of the fingerprint.
        """

    @abc.abstractmethod
    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        """Return the metrics asked for (see :meth:`wants`), and any others that come for free.

        A metric that this suspect cannot have is reported by :meth:`_skip`.
        """

    def _needs_gradients(self) -> bool:
        """Tell whether extraction with the present parameters differentiates the victim."""
        return self.source_access == "gradients"

    # ------------------------------------------------------------------ public verbs
    def extract(self, x: np.ndarray, y: np.ndarray | None = None) -> Fingerprint:
        """Extract the victim's fingerprint, keep it as :attr:`fingerprint` and return it.

        The victim is given back bit-identical. The result depends on the victim, the data, the parameters and the seed.

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
        images = check_images(x, tuple(victim.input_shape), victim.clip_values)
        labels = None if y is None else torch.from_numpy(check_labels(y, len(images), victim.nb_classes))
        view = check_classifier(victim)
        if self._needs_gradients() and not view.preprocess.differentiable:
            raise InvalidInputError(
                "The victim's preprocessing defences have no torch gradient, which this verifier's extraction needs: "
                "use their PyTorch versions, or move them into the model."
            )
        with guarded(victim):
            view.network.eval().requires_grad_(False)
            arrays, facts = self._extract(view, torch.from_numpy(images), labels)
        low, high = clip_bounds(victim)
        self.fingerprint = Fingerprint(
            verifier=type(self).__name__,
            params=self.params(),
            facts={
                "input_shape": list(victim.input_shape),
                "nb_classes": victim.nb_classes,
                "clip_values": [low, high],
                "outputs": view.kind,
                "victim": network_digest(network_of(victim)),
                "versions": {
                    "art_fingerprint": __version__,
                    "art": art.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
                **facts,
            },
            arrays={name: np.array(array) for name, array in arrays.items()},  # may be views of the caller's data
        )
        logger.info("Extracted %r", self.fingerprint)
        return self.fingerprint

    def score(self, suspect: Any) -> dict[str, float]:
        """Return the metrics between the victim and ``suspect``, unrounded. The suspect is only read.

        The class's :attr:`extras` are returned with them, as far as they come with the metrics that were asked for.
        """
        return self._measure(suspect)[0]

    def calibrate(
        self: Self,
        references: Sequence[Any],
        rule: Rule = "extreme",
        alpha: float = 1.0,
        confidence: float = 0.99,
    ) -> Self:
        """Set thresholds from independently trained reference models; they are kept in the fingerprint.

        :param references: ART classifiers that were *not* derived from the victim, five or more.
        :param rule: ``"extreme"`` (RemovalNet 4.1.4), ``"t-mean"`` (DeepJudge), ``"t-pred"``, ``"scaled-mean"``.
        :param alpha: Relaxation factor of the last three.
        :param confidence: One-sided confidence of the t rules.
        :raises CalibrationError: no references, or one of them is the victim itself.
        """
        fingerprint = self._require_fingerprint()
        check_number("alpha", alpha, 0, 1, open_low=True)
        check_number("confidence", confidence, 0.5, 1, open_high=True)
        models = list(references)
        if not models:
            raise CalibrationError("`references` is empty; five or more independently trained models are advised.")
        for model in models:
            if (
                isinstance(model, PyTorchClassifier)
                and network_digest(network_of(model)) == fingerprint.facts["victim"]
            ):
                raise CalibrationError(
                    "A reference model is the victim itself; references must be trained independently."
                )
        scores = [self.score(model) for model in models]
        names = [m.name for m in self.metrics if self.wants(m.name) and all(m.name in s for s in scores)]
        if not names:
            raise CalibrationError("The reference models share no metric with this verifier.")
        columns = {name: tuple(float(s[name]) for s in scores) for name in names}
        directions = {m.name: m.direction for m in self.metrics}
        fingerprint.calibration = Calibration(
            references=columns,
            thresholds={n: threshold(columns[n], directions[n], rule, alpha, confidence) for n in names},
            rule=rule,
            alpha=alpha,
            confidence=confidence,
        )
        return self

    def verify(self, suspect: Any, vote: Vote = "majority") -> Verdict:
        """Score a suspect and decide. Uncalibrated verifiers give values and ``derived=None``, never a guess.

        :param suspect: Any ART classifier that gives the access the metrics need.
        :param vote: How metrics combine: ``"majority"`` (more than half), ``"any"``, ``"all"``.
        """
        fingerprint = self._require_fingerprint()
        scores, skipped, queries = self._measure(suspect)
        calibration = fingerprint.calibration
        results = {m.name: self._judge(m, scores[m.name], calibration) for m in self.metrics if m.name in scores}
        derived = combine((result.derived for result in results.values()), vote)
        reason = ""
        if derived is None:
            undefined = [name for name, result in results.items() if not math.isfinite(result.value)]
            reason = f"{', '.join(undefined)} undefined on this suspect" if undefined else "not calibrated"
        return Verdict(
            verifier=type(self).__name__,
            metrics=results,
            derived=derived,
            vote=vote,
            queries=queries,
            nb_references=0 if calibration is None else calibration.nb_references,
            seed=int(fingerprint.params["seed"]),
            fingerprint_digest=fingerprint.digest,
            skipped=skipped,
            reason=reason,
        )

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
        unknown = set(fingerprint.params) - set(cls.verifier_params)
        if unknown:
            raise FingerprintFileError(f"The fingerprint has unknown parameters: {', '.join(sorted(unknown))}.")
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

    def _skip(self, name: str, why: str) -> None:
        self._skipped[name] = why

    def _measure(self, classifier: Any) -> tuple[dict[str, float], dict[str, str], int]:
        fingerprint = self._require_fingerprint()
        if not is_classifier(classifier):
            raise EstimatorError(type(self), self._estimator_requirements, classifier)
        suspect = Suspect(classifier, self.batch_size)
        suspect.check_shape(tuple(fingerprint.facts["input_shape"]))
        self._skipped: dict[str, str] = {}
        with guarded(classifier, weights=False), torch.no_grad():
            scores = self._score(suspect, fingerprint)
        wanted = {m.name: float(scores[m.name]) for m in self.metrics if self.wants(m.name) and m.name in scores}
        skipped = {name: why for name, why in self._skipped.items() if self.wants(name)}
        if not wanted:
            raise IncompatibleSuspectError(
                f"No metric of {type(self).__name__} can be computed on this suspect: "
                + "; ".join(f"{name}: {why}" for name, why in skipped.items())
            )
        beside = {name: float(scores[name]) for name in self.extras if name in scores}
        return {**wanted, **beside}, skipped, suspect.queries

    @staticmethod
    def _judge(metric: Metric, value: float, calibration: Calibration | None) -> MetricResult:
        if calibration is None or metric.name not in calibration.thresholds:
            return MetricResult(value, metric.direction)
        tau = calibration.thresholds[metric.name]
        if not math.isfinite(value):
            return MetricResult(value, metric.direction, tau)
        return MetricResult(
            value,
            metric.direction,
            tau,
            is_derived(value, tau, metric.direction, calibration.rule),
            empirical_p_value(value, calibration.references[metric.name], metric.direction),
        )
