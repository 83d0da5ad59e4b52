"""FBI: mutual information between the answers of two models to natural images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_flag, check_number
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.outputs import labels_of
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.base import Access, Metric
from art_fingerprint.verifiers.error_sampler import draw
from art_fingerprint.verifiers.error_verifier import ErrorVerifier
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few
from art_fingerprint.verifiers.ipguard import matching_rate

SYMBOLS = ("ranks", "labels")
IMAGES = ("mixed", "random", "entropy")
_UNCERTAIN_SHARE = 0.2


# ---------------------------------------------------------------------- formulas
def rank_symbols(outputs: Tensor, truth: Tensor, k: int) -> Tensor:
    """Return the place of the true class in the list of the k best, 0 to k - 1, or k if it is not there; ``(n,)``.

    k = 1 is right (0) or wrong (1). Ties go to the smaller class number; a row that is not finite is absent.

    :param outputs: Scores ``(n, K)``; one-hot rows will do for k = 1.
    :param truth: True classes ``(n,)``; one the model does not have is absent.
    :param k: Length of the list.
    """
    order = outputs.argsort(dim=1, descending=True, stable=True)[:, :k]
    hits = (order == truth[:, None]) & torch.isfinite(outputs).all(1)[:, None]
    return torch.where(hits.any(1), hits.long().argmax(1), k)


def entropy(symbols: Tensor) -> float:
    """Return the plug-in entropy of symbols ``(n,)`` in bits."""
    counts = torch.unique(symbols, return_counts=True)[1].double()
    return float(_entropy(counts / counts.sum()))


def mutual_information(u: Tensor, v: Tensor) -> float:
    """Return the plug-in mutual information ``sum p(a, b) log2(p(a, b) / (p(a) p(b)))`` of two symbol sequences, bits.

    :param u: Symbols ``(n,)`` int64.
    :param v: Symbols ``(n,)`` int64.
    """
    (_, a), (names, b) = (torch.unique(side, return_inverse=True) for side in (u, v))
    joint = torch.bincount(a * len(names) + b).double() / len(u)
    return entropy(u) + entropy(v) - float(_entropy(joint))


def information_distance(u: Tensor, v: Tensor, correct_bias: bool = False) -> float:
    """Return ``D = 1 - I(U; V) / min(H(U), H(V))``, clipped to [0, 1]; 1 if either entropy is 0.

    The plug-in information is too large by about ``(m_u - 1)(m_v - 1) / (2 n ln 2)`` bits, m the number of symbols
    seen: 0.29 bits for ten classes and 200 images.

    :param u: Symbols ``(n,)`` int64.
    :param v: Symbols ``(n,)`` int64.
    :param correct_bias: Subtract that. A sequence is then no longer at distance 0 to itself.
    """
    least = min(entropy(u), entropy(v))
    if least <= 0:
        return 1.0
    shared = mutual_information(u, v)
    if correct_bias:
        shared -= (len(torch.unique(u)) - 1) * (len(torch.unique(v)) - 1) / (2 * len(u) * math.log(2))
    return min(1.0, max(0.0, 1 - shared / least))


def label_entropy(labels: Tensor) -> Tensor:
    """Return the entropy in bits of the labels that several models give each image, ``(m, n) -> (n,)`` float64."""
    shares = torch.nn.functional.one_hot(labels.clamp_min(0)).double().mean(0)
    return -torch.special.xlogy(shares, shares).sum(1) / math.log(2)


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum() / math.log(2)


# ---------------------------------------------------------------------- verifier
class FBIVerifier(ErrorVerifier):
    """Fingerprinting with benign inputs (Maho et al., TIFS 2023): what the suspect's answers tell about the victim's.

    Metric ``FBI``: :func:`information_distance` between the symbols of victim and suspect on natural images, a distance
    in [0, 1]. A symbol is the place of the true class among the ``top_k`` best (``symbols="ranks"``; 1: right or wrong)
    or the label (``"labels"``, QuRD), whose distance no renaming of classes changes and which any number of classes
    may have. Access: labels; scores for ranks with ``top_k`` above 1.

    What always errs where the victim does not would be as near as a copy: the extra ``FBI-match``, the share of equal
    labels, tells them apart.

    Data: labelled images the victim was not trained on, as for :class:`AKHVerifier`, for ``images="mixed"`` with
    ``min_errors`` errors of the victim. ``symbols="labels"`` with ``images="random"`` needs neither labels nor errors.

    Decision rule of the method: ``calibrate(references, rule="fpr")``. Deviations: the victim itself is the delegate of
    its family; the search for a known model among many (``identify``) is not there.

    Cost of extraction: one forward sample for each image, of every negative too. Scoring: n queries.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("FBI", "distance", "labels"),)
    extras: ClassVar[tuple[str, ...]] = ("FBI-match",)
    suspect_access: ClassVar[Access] = "labels"
    verifier_params: ClassVar[list[str]] = [
        *ErrorVerifier.verifier_params,
        "symbols",
        "top_k",
        "images",
        "correct_bias",
        "allow_label_mismatch",
    ]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        **ErrorVerifier.profiles,
        "qurd": {"symbols": "labels", "images": "random"},
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_probes: int = 200,
        min_errors: int = 10,
        symbols: str = "ranks",
        top_k: int = 1,
        images: str = "mixed",
        correct_bias: bool = False,
        allow_label_mismatch: bool = False,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param nb_probes: Images N, 2 or more (paper 20 to 500, 200 here); fewer if the data are.
        :param min_errors: Fewest errors of the victim for ``images="mixed"`` (ours).
        :param symbols: ``"ranks"`` of the true class (official code) or ``"labels"`` (QuRD).
        :param top_k: Length of the list that ranks are read from (1, 3 or 5 in the official code).
        :param images: ``"mixed"``: as many errors as successes of the victim, as far as there are; ``"random"``; or
            ``"entropy"``: at random among the fifth on whose label the victim and the ``negatives`` of
            :meth:`extract` agree least (official code).
        :param correct_bias: See :func:`information_distance`.
        :param allow_label_mismatch: Compare ranks with a suspect of another number of classes.
        :param metric_names: As in :class:`Verifier`.
        :param nan_policy: As in :class:`Verifier`; an answer that is none is a symbol of its own, or an absent rank.
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
        self.symbols = symbols
        self.top_k = top_k
        self.images = images
        self.correct_bias = correct_bias
        self.allow_label_mismatch = allow_label_mismatch
        self._check_params()

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        truth = self._need_labels(y) if self.symbols == "ranks" or self.images == "mixed" else None
        if self.images == "entropy" and not self._pool:
            raise InvalidInputError(
                'images="entropy" chooses by the answers of known models: call extract(x, y, negatives=[...]).'
            )
        if self.symbols == "ranks" and self.top_k >= self._nb_classes:
            raise InvalidInputError(f"`top_k`={self.top_k} must be less than the victim's {self._nb_classes} classes.")
        predicted = self._as_suspect().labels(x)
        rows = self._choose(predicted, truth)
        probes = x[rows]
        arrays = {"probes": probes, "rows": rows, "labels": predicted[rows]}
        if self.symbols == "ranks" and truth is not None:
            arrays["truth"] = truth[rows]
            client = self._as_suspect()
            answers = client.logits(probes) if self.top_k > 1 else client.rows(probes)
            arrays["symbols"] = rank_symbols(answers, truth[rows], self.top_k)
        else:
            arrays["symbols"] = predicted[rows]
        self._check_variety(arrays["symbols"])
        warn_if_few(len(rows), "images", stacklevel=5)
        own = arrays["symbols"]
        return {name: array.numpy() for name, array in arrays.items()}, {
            "nb_requested": self.nb_probes,
            "own_FBI": information_distance(own, own, self.correct_bias),
            "nb_probes": len(rows),
            "nb_errors": None if truth is None else int((predicted != truth).sum()),
            "entropy": entropy(arrays["symbols"]),
        }

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        ranked = self.symbols == "ranks"
        if ranked:
            self._check_label_space(suspect, fingerprint, self.allow_label_mismatch)
        probes, labels_f, symbols_f = fingerprint.tensors("probes", "labels", "symbols")
        answers = suspect.rows(probes)
        labels_g = suspect.as_labels(answers)
        symbols_g = labels_g
        if ranked:
            (truth,) = fingerprint.tensors("truth")
            scores = suspect.as_logits(answers) if self.top_k > 1 else answers
            symbols_g = rank_symbols(scores, truth, self.top_k)
        return {
            "FBI": information_distance(symbols_f, symbols_g, self.correct_bias),
            "FBI-match": matching_rate(labels_f, labels_g),
        }

    # ------------------------------------------------------------------ inside
    @property
    def _nb_classes(self) -> int:
        return int(self._estimator.nb_classes)  # type: ignore[union-attr] # there is a victim during extraction

    def _choose(self, predicted: Tensor, truth: Tensor | None) -> Tensor:
        """Return the rows of the images that are asked, in ascending order."""
        draws = torch_generator(self.seed, "fbi")
        everything = torch.arange(len(predicted))
        if self.images == "random":
            return draw(everything, self.nb_probes, draws)
        if self.images == "entropy":
            labels = torch.stack([predicted, *(labels_of(probabilities) for probabilities in self._pool)])
            order = label_entropy(labels).argsort(descending=True, stable=True)
            return draw(order[: max(2, math.ceil(_UNCERTAIN_SHARE * len(order)))], self.nb_probes, draws)
        assert truth is not None  # "mixed" has asked for it
        wrong = predicted != truth
        self._check_errors(wrong.nonzero()[:, 0], len(predicted), ', or use images="random"')
        errors = draw(everything[wrong], self.nb_probes // 2, draws)
        successes = draw(everything[~wrong], self.nb_probes - len(errors), draws)
        return torch.cat([errors, successes]).sort().values

    def _check_params(self) -> None:
        super()._check_params()
        check_choice("symbols", self.symbols, SYMBOLS)
        check_number("top_k", self.top_k, 1, integer=True)
        check_choice("images", self.images, IMAGES)
        check_flag("correct_bias", self.correct_bias)
        check_flag("allow_label_mismatch", self.allow_label_mismatch)
