"""SAC: how a model's answers to images correlate with each other, which no relabelling of classes changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_sequence
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.outputs import labels_of, same_space, to_logits, to_probabilities
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import AccessError, EmptyFingerprintError, InvalidInputError
from art_fingerprint.verifiers.base import Access, Metric
from art_fingerprint.verifiers.error_sampler import Queries, corner_cutmix, error_queries, mixtures
from art_fingerprint.verifiers.error_verifier import ErrorVerifier
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few

SAMPLES = ("errors", "cutmix")
CORRELATIONS = ("cosine-distance", "cosine", "gaussian")
DIFFERENCES = ("mean", "rms")
_ZERO = 1e-12
_HIGH, _LOW = 1.0, 0.01


# ---------------------------------------------------------------------- formulas
def correlation_matrix(outputs: Tensor, kind: str = "cosine-distance") -> Tensor:
    """Return how the answers to n images resemble each other, ``(n, n)`` float64.

    ``"cosine-distance"``: ``C_ij = (1 - cos(o_i, o_j)) / 2`` (released code); ``"cosine"``: the cosine (QuRD);
    ``"gaussian"``: ``exp(-||o_i - o_j||^2)`` of answers of unit length (an option of the released code).

    :param outputs: Answers ``(n, K)``, any scores; 1e-12 is added to their lengths.
    :param kind: One of :data:`CORRELATIONS`.
    """
    rows = outputs.double()
    unit = rows / (rows.norm(dim=1, keepdim=True) + _ZERO)
    cosine = unit @ unit.T
    if kind == "cosine":
        return cosine
    if kind == "cosine-distance":
        return (1 - cosine) / 2
    lengths = unit.square().sum(1)
    return torch.exp(-(lengths[:, None] + lengths[None, :] - 2 * cosine))


def correlation_distance(matrix_f: Tensor, matrix_g: Tensor, difference: str = "mean") -> float:
    """Return ``(1/n^2) sum |C^F - C^G|`` (``"mean"``, released code), or its root mean square (``"rms"``, QuRD)."""
    gap = matrix_f - matrix_g
    return float(gap.abs().mean()) if difference == "mean" else float(gap.square().mean().sqrt())


def label_outputs(labels: Tensor, nb_classes: int) -> Tensor:
    """Return labels as soft answers: 1 for the label and 0.01 for the others, through a softmax; ``(n, K)`` float64.

    A label of -1, which is none, has 0.01 everywhere.
    """
    rows = torch.full((len(labels), nb_classes), _LOW, dtype=torch.float64)
    known = labels >= 0
    rows[known, labels[known]] = _HIGH
    return F.softmax(rows, dim=1)


def midway_threshold(negatives: Sequence[float], positives: Sequence[float]) -> float:
    """Return the paper's threshold: halfway between the mean distances of independent and of derived models.

    :param negatives: Distances of independent models.
    :param positives: Distances of models that are known to be derived.
    """
    if len(negatives) == 0 or len(positives) == 0:
        raise InvalidInputError("`negatives` and `positives` need one distance or more each.")
    return float((np.mean(negatives) + np.mean(positives)) / 2)


# ---------------------------------------------------------------------- verifier
class SACVerifier(ErrorVerifier):
    """Sample correlation (Guan et al., NeurIPS 2022): compare how a model's answers to images resemble each other.

    Metrics: ``SAC``, :func:`correlation_distance` between victim and suspect of :func:`correlation_matrix`, a distance,
    in [0, 1] with the released code's ``"cosine-distance"``; ``SAC-labels``, the same of :func:`label_outputs`. The
    first needs scores, the second labels. Neither asks what a class is called, or how many there are: the suspect may
    have another number of classes.

    ``SAC`` compares logits, or log-probabilities of both where the suspect answers probabilities.

    Data: for ``samples="errors"`` as for :class:`AKHVerifier`, labelled images the victim was not trained on; for
    ``"cutmix"`` any images, without labels.

    Decision rules of the method: :func:`midway_threshold`, which is put into a calibration by ``dataclasses.replace(
    verifier.fingerprint.calibration, thresholds={"SAC": ...}, softened=None)``, which leaves suspects that answer
    probabilities where the references answered logits undecided; else ``calibrate(references, rule="fpr")``.

    SAC-w, which chooses among the victim's errors, is ``samples="errors"`` with ``negatives`` and ``positives`` of
    :meth:`extract`: images that copies of the victim get wrong, too, and that independent models answer otherwise. How
    many of them must do so the paper leaves open: ``min_shared`` and ``min_differ``.

    Cost of extraction: one forward sample for each image (with ``"cutmix"`` for each query), of every negative and
    positive, too. Scoring: n queries.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("SAC", "distance", "scores"),
        Metric("SAC-labels", "distance", "labels"),
    )
    suspect_access: ClassVar[Access] = "scores"
    verifier_params: ClassVar[list[str]] = [
        *ErrorVerifier.verifier_params,
        "samples",
        "fill",
        "min_differ",
        "min_shared",
        "correlation",
        "difference",
        "space",
    ]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        **ErrorVerifier.profiles,
        "sac-m": {"samples": "cutmix"},
        "qurd": {"correlation": "cosine", "difference": "rms"},
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_probes: int = 100,
        min_errors: int = 10,
        samples: str = "errors",
        fill: bool = True,
        min_differ: float = 0.85,
        min_shared: float = 0.85,
        correlation: str = "cosine-distance",
        difference: str = "mean",
        space: str = "auto",
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param nb_probes: Images n, 2 or more (paper 50 and 100).
        :param min_errors: Fewest natural errors to go on with (ours); not for ``samples="cutmix"``.
        :param samples: ``"errors"`` of the victim (SAC-source), or ``"cutmix"`` of random pairs in a corner (SAC-m).
        :param fill: Add mirror images and CutMix of the errors where they are fewer than ``nb_probes``.
        :param min_differ: Share of the ``negatives`` that must answer an error otherwise than the victim (ours).
        :param min_shared: Share of the ``positives`` that must get an error of the victim wrong, too (ours).
        :param correlation: ``"cosine-distance"``, ``"cosine"`` or ``"gaussian"``: see :func:`correlation_matrix`.
        :param difference: ``"mean"`` or ``"rms"``: see :func:`correlation_distance`.
        :param space: ``"auto"``: logits, or log-probabilities where the suspect answers probabilities;
            ``"probabilities"``: always log-probabilities.
        :param metric_names: As in :class:`Verifier`.
        :param nan_policy: As in :class:`Verifier`; in ``SAC-labels`` an answer that is none resembles no label.
        :param batch_size: As in :class:`Verifier`.
        :param seed: As in :class:`Verifier`.
        :param verbose: As in :class:`Verifier`.
        """
        super().__init__(
            classifier,
            nb_probes=nb_probes,
            min_errors=min_errors,
            metric_names=metric_names,
            nan_policy=nan_policy,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.samples = samples
        self.fill = fill
        self.min_differ = min_differ
        self.min_shared = min_shared
        self.correlation = correlation
        self.difference = difference
        self.space = space
        self._check_params()

    def extract(
        self, x: np.ndarray, y: np.ndarray | None = None, negatives: Sequence[Any] = (), positives: Sequence[Any] = ()
    ) -> Fingerprint:
        """Extract the victim's fingerprint, as :meth:`ErrorVerifier.extract` does.

        :param x: As there; for ``samples="cutmix"`` any images.
        :param y: As there; not for ``samples="cutmix"``.
        :param negatives: As there.
        :param positives: ART classifiers that were derived from the victim, by attacks of yours, to choose errors that
            copies keep (SAC-w). Each answers ``x`` once. They cannot calibrate this fingerprint.
        :raises InvalidInputError: as there, or positives without ``samples="errors"``.
        :raises CalibrationError: as there, or a positive is the victim, a negative, or comes twice.
        """
        models = check_sequence("positives", positives)
        if models and self.samples != "errors":
            raise InvalidInputError(
                f'`positives` choose among errors: they need samples="errors", not {self.samples!r}.'
            )
        return self._extract_by(x, y, negatives=negatives, positives=models)

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        draws = torch_generator(self.seed, "errors")
        if self.samples == "errors":
            errors = self._errors(x, self._need_labels(y))
            self._check_errors(errors, len(x), ', or use samples="cutmix"')
            queries = error_queries(x, errors, self.nb_probes, draws, self.fill)
            nb_errors: int | None = len(errors)
        else:
            if x.ndim != 4 or len(x) < 2:
                raise EmptyFingerprintError(
                    f'samples="cutmix" needs two images (C, H, W) or more, got {len(x)} of shape {tuple(x.shape[1:])}.'
                )
            made = mixtures(x, self.nb_probes, draws, corner_cutmix)
            queries = Queries(made, torch.full((len(made),), -1))
            nb_errors = None
        client = self._as_suspect()
        answers = client.rows(queries.x)
        self._check_variety(labels_of(answers))
        try:
            logits = client.as_logits(answers)
        except AccessError as error:
            raise AccessError(
                f"The victim, asked as a suspect, shows labels only, and SAC compares scores: {error}"
            ) from error
        warn_if_few(len(logits), "queries", stacklevel=5)
        arrays = {"probes": queries.x, "logits": logits, "rows": queries.rows}
        return {name: array.numpy() for name, array in arrays.items()}, {
            "nb_requested": self.nb_probes,
            "nb_probes": len(logits),
            "nb_errors": nb_errors,
            "nb_synthetic": queries.synthetic,
            "outputs": client.kind,
        }

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        probes, logits_f = fingerprint.tensors("probes", "logits")
        answers = suspect.rows(probes)
        scores = {
            "SAC-labels": self._distance(
                label_outputs(logits_f.argmax(1), logits_f.shape[1]),
                label_outputs(suspect.as_labels(answers), suspect.nb_classes),
            )
        }
        if not self.wants("SAC"):
            return scores
        self._keep(scores)
        logits_g = suspect.as_logits(answers)
        space: str = fingerprint.facts["outputs"]
        if self.space == "probabilities" or not same_space(space, suspect.kind):
            space = "probabilities"
        self._compared(space, "SAC")
        if space == "probabilities":
            logits_f, logits_g = (to_logits(to_probabilities(logits)) for logits in (logits_f, logits_g))
        return {**scores, "SAC": self._distance(logits_f, logits_g)}

    def _distance(self, outputs_f: Tensor, outputs_g: Tensor) -> float:
        matrix_f, matrix_g = (correlation_matrix(outputs, self.correlation) for outputs in (outputs_f, outputs_g))
        return correlation_distance(matrix_f, matrix_g, self.difference)

    def _errors(self, x: Tensor, truth: Tensor) -> Tensor:
        predicted = self._as_suspect().labels(x)
        wrong = predicted != truth
        if self._pool:
            differ = torch.stack([labels_of(probabilities) != predicted for probabilities in self._pool])
            wrong &= differ.double().mean(0) >= self.min_differ
        if self._copies:
            shared = torch.stack([labels_of(probabilities) != truth for probabilities in self._copies])
            wrong &= shared.double().mean(0) >= self.min_shared
        return wrong.nonzero()[:, 0]

    @property
    def _copies(self) -> list[Tensor]:
        """Probabilities of the positives on x, while a fingerprint is extracted."""
        return self._asked.get("positives", [])

    def _fitting(self) -> str:
        negatives = " that the negatives answer otherwise" if self._pool else ""
        positives = " that the positives get wrong, too" if self._copies else ""
        return f"{negatives}{' and' if negatives and positives else ''}{positives}"

    def _check_params(self) -> None:
        super()._check_params()
        check_choice("samples", self.samples, SAMPLES)
        check_flag("fill", self.fill)
        check_number("min_differ", self.min_differ, 0, 1)
        check_number("min_shared", self.min_shared, 0, 1)
        check_choice("correlation", self.correlation, CORRELATIONS)
        check_choice("difference", self.difference, DIFFERENCES)
        check_choice("space", self.space, ("auto", "probabilities"))
