"""What AKH, SAC and FBI share: labelled images that the victim was not trained on, and independent models that help to
choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_images, check_number, check_sequence, check_suspect
from art_fingerprint.core.classifier import clip_bounds, network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.outputs import AnswerKind, to_probabilities
from art_fingerprint.core.precision import full_precision
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.exceptions import (
    AccessError,
    CalibrationError,
    EmptyFingerprintError,
    IncompatibleSuspectError,
    InvalidInputError,
)
from art_fingerprint.verifiers.base import Access, Verifier
from art_fingerprint.verifiers.calibration import Rule
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.references import by_digest, reference_digests

Self = TypeVar("Self", bound="ErrorVerifier")


class ErrorVerifier(Verifier):
    """Base of verifiers that ask natural images, chosen by whether the victim errs on them.

    ``x`` and ``y`` of :meth:`extract` must be labelled images that the victim was *not* trained on, its test images for
    instance: on its training images it errs on mislabelled ones if at all, and there every model errs alike. They must
    not be among the images that a suspect was made from, either.
    """

    source_access: ClassVar[Access] = "labels"
    extraction_data: ClassVar[Literal["any", "held-out"]] = "held-out"
    verifier_params: ClassVar[list[str]] = [*Verifier.verifier_params, "nb_probes", "min_errors"]
    # RemovalNet has none of these verifiers.
    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "removalnet": {}, "removalnet-legacy": {}}

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_probes: int,
        min_errors: int,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            classifier,
            metric_names=metric_names,
            nan_policy=nan_policy,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.nb_probes = nb_probes
        self.min_errors = min_errors
        # while a fingerprint is extracted: probabilities on x of the models that help to choose, by argument of extract
        self._asked: dict[str, list[Tensor]] = {}

    def extract(self, x: np.ndarray, y: np.ndarray | None = None, negatives: Sequence[Any] = ()) -> Fingerprint:
        """Extract the victim's fingerprint, as :meth:`Verifier.extract` does.

        :param x: Labelled images the victim was not trained on, ``(n, *input_shape)`` float32 in ``clip_values``.
        :param y: True labels, indices or one-hot.
        :param negatives: ART classifiers that were not derived from the victim, to choose queries by; see the class.
            Each answers ``x`` once. They cannot calibrate this fingerprint, whose queries were chosen in their favour.
        :raises NotExtractedError: the verifier was made from a file and has no victim.
        :raises InvalidInputError: bad data or parameters, or no labels where they are needed.
        :raises EmptyFingerprintError: the victim errs too rarely on these images, or has one answer to all queries.
        :raises CalibrationError: a negative is the victim, or comes twice.
        :raises IncompatibleSuspectError: a negative has other inputs or classes.
        """
        return self._extract_by(x, y, negatives=negatives)

    def calibrate(
        self: Self,
        references: Sequence[Any],
        rule: Rule = "extreme",
        alpha: float = 1.0,
        confidence: float = 0.99,
        false_positive_rate: float = 0.05,
        outputs: AnswerKind = "auto",
    ) -> Self:
        """Set thresholds, as :meth:`Verifier.calibrate` does.

        :param references: As there, and none of the ``negatives`` that queries were chosen by.
        :param rule: As there.
        :param alpha: As there.
        :param confidence: As there.
        :param false_positive_rate: As there.
        :param outputs: As there.
        :raises CalibrationError: as there, or a reference model has helped to choose the queries.
        """
        facts = self._require_fingerprint().facts
        models = check_sequence("references", references)
        chosen_by = {**facts["negatives"], **facts.get("positives", {})}
        own = by_digest(reference_digests(models, facts["victim"])) if chosen_by else {}
        if not own.keys().isdisjoint(chosen_by):
            raise CalibrationError(
                "A reference model is one of the `negatives` that the queries were chosen by, which makes it look more "
                "independent than others are, or one of the `positives`, which are derived: use others."
            )
        return super().calibrate(models, rule, alpha, confidence, false_positive_rate, outputs)

    def _extraction_passes(self, nb_images: int) -> float:
        return float(nb_images + self.nb_probes)  # each image, then each query once more

    def expected_queries(self) -> int:
        """Return the samples that one suspect is sent: at most before extraction, exactly after it."""
        return self.nb_probes if self.fingerprint is None else int(self.fingerprint.facts["nb_probes"])

    # ------------------------------------------------------------------ inside
    def _extract_by(self, x: np.ndarray, y: np.ndarray | None, **choosers: Sequence[Any]) -> Fingerprint:
        """Extract with models that help to choose queries.

        :param choosers: Argument of :meth:`extract` to its models. None may be in two of them.
        """
        given = {name: check_sequence(name, models) for name, models in choosers.items()}
        victim = self._estimator
        digests: dict[str, dict[str, str]] = {name: {} for name in given}
        try:
            if victim is not None and any(given.values()):
                own = network_digest(network_of(victim))
                for name, models in given.items():
                    for model in models:
                        check_suspect(self, model)
                    try:
                        digests[name] = by_digest(reference_digests(models, own))
                    except CalibrationError as error:
                        raise CalibrationError(f"`{name}`: {error}") from error
                if len({full for found in digests.values() for full in found}) < sum(map(len, digests.values())):
                    names = " and the ".join(f"`{name}`" for name in given)
                    raise CalibrationError(f"A model is among the {names}: it is derived, or it is not.")
                for name, models in given.items():
                    self._asked[name] = [self._answers(name, model, x, victim) for model in models]
            fingerprint = super().extract(x, y)
        finally:
            self._asked = {}
        for name, models in given.items():
            fingerprint.facts |= {f"nb_{name}": len(models), name: digests[name]}
        return fingerprint

    @property
    def _pool(self) -> list[Tensor]:
        """Probabilities of the negatives on x, while a fingerprint is extracted."""
        return self._asked.get("negatives", [])

    def _answers(self, name: str, model: Any, x: np.ndarray, victim: PyTorchClassifier) -> Tensor:
        """Return a chooser's probabilities of all images, ``(n, K)`` float64; one-hot rows if it answers labels."""
        images = check_images(x, tuple(victim.input_shape), clip_bounds(victim))
        client = Suspect(model, self.batch_size)
        client.check_shape(tuple(victim.input_shape))
        if client.nb_classes != victim.nb_classes:
            raise IncompatibleSuspectError(
                f"A {name[:-1]} has {client.nb_classes} classes, the victim {victim.nb_classes}."
            )
        with guarded(model, weights=False), full_precision():
            answers = client.rows(torch.from_numpy(images))
        try:
            return to_probabilities(client.as_logits(answers))
        except AccessError:
            return answers.double()

    def _need_labels(self, y: Tensor | None) -> Tensor:
        if y is None:
            raise InvalidInputError(
                f"{type(self).__name__} looks for images on which the victim is wrong, so it needs their true labels: "
                "call extract(x, y)."
            )
        return y

    @property
    def _errors_needed(self) -> int:
        return min(self.min_errors, self.nb_probes)

    def _check_errors(self, errors: Tensor, n: int, instead: str = "") -> None:
        """Raise unless the victim errs on enough of the ``n`` images given."""
        if len(errors) < self._errors_needed:
            raise EmptyFingerprintError(
                f"The victim errs on {len(errors)} of the {n} images{self._fitting()}; {self._errors_needed} are "
                "needed. Pass more labelled images that it was not trained on, harder ones too (noisy, shifted, of "
                f"another source), or lower `min_errors`{instead}."
            )

    def _fitting(self) -> str:
        """Return which of the victim's errors count, as a part of a sentence."""
        return " that the negatives get right" if self._pool else ""

    def _check_variety(self, answers: Tensor) -> None:
        """Raise if the victim answers all queries alike, as any constant model would."""
        if bool((answers == answers[0]).all()):
            raise EmptyFingerprintError(
                f"The victim gives all {len(answers)} queries one answer, which says nothing about its copies: pass "
                "images of more classes, and more of them."
            )

    def _check_label_space(self, suspect: Suspect, fingerprint: Fingerprint, allow_mismatch: bool) -> None:
        nb_classes = int(fingerprint.facts["nb_classes"])
        if suspect.nb_classes != nb_classes and not allow_mismatch:
            raise IncompatibleSuspectError(
                f"The suspect has {suspect.nb_classes} classes, the victim {nb_classes}: labels can only be compared "
                "in one label space. If class numbers mean the same in both, set allow_label_mismatch=True."
            )

    def _check_params(self) -> None:
        super()._check_params()
        check_number("nb_probes", self.nb_probes, 2, integer=True)
        check_number("min_errors", self.min_errors, 1, integer=True)
