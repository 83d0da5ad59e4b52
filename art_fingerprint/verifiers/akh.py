"""AKH, the Anna Karenina heuristic: a derived model repeats its victim's mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_flag, check_number
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.outputs import labels_of, to_probabilities
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import AccessError, EmptyFingerprintError, NonFiniteOutputError
from art_fingerprint.verifiers.base import Access, Metric
from art_fingerprint.verifiers.error_sampler import Queries, cutmix, error_queries, mixtures
from art_fingerprint.verifiers.error_verifier import ErrorVerifier
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few
from art_fingerprint.verifiers.ipguard import matching_rate
from art_fingerprint.verifiers.p_values import binomial_p_value

FILLS = ("errors", "low-margin", "none")
_SMALLEST_DEVIATION = 0.01


# ---------------------------------------------------------------------- formulas
def hamming_distance(labels_f: Tensor, labels_g: Tensor) -> float:
    """Return the share of queries on which two models differ, in [0, 1]: ``1 - MR``."""
    return 1 - matching_rate(labels_f, labels_g)


def clear_probability(accuracy: float, disagreement: float, share_wrong: float) -> float:
    """Return the chance that one error of the victim, drawn at random, clears a suspect.

    ``P(they differ | F wrong) = P(F wrong | they differ) P(they differ) / (1 - a)`` (Bayes). 0 for F itself, so it is
    always flagged.

    :param accuracy: a, accuracy of the victim F, below 1.
    :param disagreement: Share of images on which suspect and victim differ.
    :param share_wrong: Share of those on which F is wrong.
    """
    check_number("accuracy", accuracy, 0, 1, open_high=True)
    check_number("disagreement", disagreement, 0, 1)
    check_number("share_wrong", share_wrong, 0, 1)
    return share_wrong * disagreement / (1 - accuracy)


def soft_agreement(probabilities: Tensor, mean: Tensor, deviation: Tensor) -> float:
    """Return the mean over queries of ``(p_S - mean_N) / max(std_N, 0.01)``.

    :param probabilities: The suspect's probability of the victim's wrong class, ``(n,)``.
    :param mean: Mean of the same over independent models, ``(n,)``.
    :param deviation: Standard deviation over them, ``(n,)``.
    """
    return float(((probabilities - mean) / deviation.clamp_min(_SMALLEST_DEVIATION)).double().mean())


# ---------------------------------------------------------------------- verifier
class AKHVerifier(ErrorVerifier):
    """Anna Karenina heuristic (Godinot et al., AAAI 2025, QuRD): queries are natural images that the victim gets wrong.

    Metric ``AKH``: share of the victim's errors that the suspect repeats, label for label (1 - Hamming distance), a
    similarity in [0, 1]. Access: labels, for extraction too. Independent models share many mistakes: the level of the
    references, not 1/K, is what a suspect must exceed.

    Data: labelled images that the victim was not trained on, enough of them for ``nb_probes`` errors: at 91 % accuracy
    1100 images, at 99.7 % 33 000. Where there are few, make them harder (noise, shifts) or fill up, see ``fill``.

    Decision rules of the method: ``calibrate(references, rule="fpr")``; or a binomial p-value, the extra ``AKH-p``,
    with ``q0`` the highest match rate of independent models.

    With ``negatives`` in :meth:`extract` only errors are kept that the share
    ``min_right`` of them get right, and suspects that answer scores also get the extra ``AKH-soft``,
    :func:`soft_agreement`. It is a number of standard deviations of independent models, and has no threshold.

    Deviations: errors are counted before anything is made of them, and fewer than ``min_errors`` are refused.

    Cost of extraction: one forward sample for each image, of every negative too. Scoring: n queries.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("AKH", "similarity", "labels"),)
    extras: ClassVar[tuple[str, ...]] = ("AKH-p", "AKH-soft")
    suspect_access: ClassVar[Access] = "labels"
    verifier_params: ClassVar[list[str]] = [
        *ErrorVerifier.verifier_params,
        "fill",
        "min_right",
        "q0",
        "allow_label_mismatch",
    ]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {**ErrorVerifier.profiles, "qurd": {"nb_probes": 10}}

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_probes: int = 100,
        min_errors: int = 10,
        fill: str = "errors",
        min_right: float = 0.85,
        q0: float | None = None,
        allow_label_mismatch: bool = False,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param nb_probes: Queries N, 2 or more (100; QuRD's command line 10).
        :param min_errors: Fewest natural errors to go on with, 1 or more (ours).
        :param fill: What to do where errors are fewer than ``nb_probes``: ``"errors"``: add mirror images and CutMix of
            them (QuRD), with the victim's own label on those; ``"low-margin"``: as that, and mix the images of the
            smallest margin where there are fewer than ``min_errors``; ``"none"``: ask fewer queries.
        :param min_right: Share of the ``negatives`` that must get an error of the victim right (contest reports 0.85).
        :param q0: Match rate of independent models on one query, for ``AKH-p``; ``None``: no such extra.
        :param allow_label_mismatch: Accept suspects with another number of classes; labels the victim does not have
            never match.
        :param metric_names: As in :class:`Verifier`.
        :param nan_policy: As in :class:`Verifier`.
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
        self.fill = fill
        self.min_right = min_right
        self.q0 = q0
        self.allow_label_mismatch = allow_label_mismatch
        self._check_params()

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        truth = self._need_labels(y)
        queries, facts = self._queries(victim, x, truth)
        labels = self._as_suspect().labels(queries.x)
        self._check_variety(labels)
        warn_if_few(len(labels), "queries", stacklevel=5)
        arrays = {"probes": queries.x, "labels": labels, "rows": queries.rows}
        if self._pool and (queries.rows >= 0).any():
            arrays |= self._soft_statistics(queries.rows, labels)
        return {name: array.numpy() for name, array in arrays.items()}, facts

    def _extraction_passes(self, nb_images: int) -> float:
        return super()._extraction_passes(nb_images) + (nb_images if self.fill == "low-margin" else 0)

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        self._check_label_space(suspect, fingerprint, self.allow_label_mismatch)
        probes, labels = fingerprint.tensors("probes", "labels")
        answers = suspect.rows(probes)
        found = suspect.as_labels(answers)
        scores = {"AKH": matching_rate(labels, found)}
        if self.q0 is not None:
            scores["AKH-p"] = binomial_p_value(int((labels == found).sum()), len(labels), self.q0)
        if "soft_mean" in fingerprint.arrays and suspect.nb_classes == int(fingerprint.facts["nb_classes"]):
            rows, mean, deviation = fingerprint.tensors("rows", "soft_mean", "soft_deviation")
            natural = rows >= 0
            try:
                probabilities = to_probabilities(suspect.as_logits(answers))[natural]
            except (AccessError, NonFiniteOutputError):  # labels, or answers that are none
                return scores
            wrong = labels[natural]
            own = probabilities[torch.arange(len(wrong)), wrong]
            scores["AKH-soft"] = soft_agreement(own, mean, deviation)
        return scores

    # ------------------------------------------------------------------ inside
    def _queries(self, victim: LogitsNetwork, x: Tensor, truth: Tensor) -> tuple[Queries, dict[str, Any]]:
        """Return the queries, with what the fingerprint says of them."""
        draws = torch_generator(self.seed, "errors")
        predicted = self._as_suspect().labels(x)
        wrong = predicted != truth
        if self._pool:
            right = torch.stack([labels_of(probabilities) == truth for probabilities in self._pool]).double().mean(0)
            wrong &= right >= self.min_right
        errors = wrong.nonzero()[:, 0]
        if self.fill == "low-margin" and len(errors) < self._errors_needed:
            queries = self._low_margin(victim, x, errors, draws)
        else:
            self._check_errors(errors, len(x), ', or set fill="low-margin"')
            queries = error_queries(x, errors, self.nb_probes, draws, self.fill != "none")
        return queries, {
            "nb_requested": self.nb_probes,
            "nb_probes": len(queries.x),
            "nb_errors": len(errors),
            "nb_synthetic": queries.synthetic,
            "accuracy": float((predicted == truth).double().mean()),
        }

    def _low_margin(self, victim: LogitsNetwork, x: Tensor, errors: Tensor, draws: torch.Generator) -> Queries:
        if x.ndim != 4 or len(x) < 2:
            raise EmptyFingerprintError(
                f"The victim errs on {len(errors)} of {len(x)} samples of shape {tuple(x.shape[1:])}, and only two "
                "images (C, H, W) or more can be mixed: pass more labelled samples."
            )
        best = victim.predict(x, self.batch_size).topk(2, dim=1).values
        order = (best[:, 0] - best[:, 1]).argsort(stable=True)
        uncertain = x[order[: max(2, self.nb_probes)]]
        made = mixtures(uncertain, self.nb_probes - len(errors), draws, cutmix)
        return Queries(torch.cat([x[errors], made]), torch.cat([errors, torch.full((len(made),), -1)]))

    def _soft_statistics(self, rows: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return mean and standard deviation over the negatives of their probability of the victim's wrong class."""
        natural = rows[rows >= 0]
        wrong = labels[rows >= 0]
        stacked = torch.stack([probabilities[natural, wrong] for probabilities in self._pool])
        deviation = stacked.std(0) if len(stacked) > 1 else torch.zeros_like(stacked[0])
        return {"soft_mean": stacked.mean(0), "soft_deviation": deviation}

    def _check_params(self) -> None:
        super()._check_params()
        check_choice("fill", self.fill, FILLS)
        check_number("min_right", self.min_right, 0, 1)
        if self.q0 is not None:
            check_number("q0", self.q0, 0, 1)
        check_flag("allow_label_mismatch", self.allow_label_mismatch)
