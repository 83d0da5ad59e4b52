"""IPGuard: points just across the victim's decision boundary, and how often a suspect labels them alike."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from tqdm.auto import tqdm

from art_fingerprint.core.checks import check_choice, check_flag, check_number
from art_fingerprint.core.classifier import LogitsNetwork, clip_bounds
from art_fingerprint.core.perturbation import UNITS, unit_length
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import EmptyFingerprintError, IncompatibleSuspectError, InvalidInputError
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few
from art_fingerprint.verifiers.optimise import OPTIMIZERS, optimise

logger = logging.getLogger(__name__)

INITIAL_POINTS = ("random", "first", "noise")
TARGETS = ("least-likely", "random")


# ---------------------------------------------------------------------- formulas
def boundary_loss(logits: Tensor, source: Tensor, target: Tensor, margin: float) -> Tensor:
    """Return ``F = ReLU(z_i - z_j + k) + ReLU(max_{t not in {i, j}} z_t - z_i)`` per row.

    0 if and only if ``z_j >= z_i + k`` and i is still the runner-up: the point lies just across the i|j boundary and
    its label is j. The runner-up t is that of the current logits. With two classes the second term is 0. Only
    differences of logits matter, so log-probabilities serve as well.

    :param logits: ``(n, C)``, C of 2 or more.
    :param source: Class i at the start, ``(n,)``.
    :param target: Class j, ``(n,)``, different from i.
    :param margin: k, 0 or more.
    :return: ``(n,)``, differentiable in the logits.
    """
    i, j = source[:, None], target[:, None]
    z_i, z_j = logits.gather(1, i)[:, 0], logits.gather(1, j)[:, 0]
    loss = torch.relu(z_i - z_j + margin)
    if logits.shape[1] == 2:
        return loss
    others = logits.scatter(1, torch.cat([i, j], 1), -torch.inf).max(1).values
    return loss + torch.relu(others - z_i)


def choose_targets(logits: Tensor, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return source and target classes of starting points.

    Source: the predicted class. Target: the ``"least-likely"`` class (both public codes), or a ``"random"`` one,
    uniform over the others. Constant outputs, whose least likely class is the predicted one, take the next class.

    :param logits: ``(n, C)`` on the host.
    :param kind: One of :data:`TARGETS`.
    :param generator: Source of the random targets.
    :return: ``(n,)`` and ``(n,)`` int64.
    """
    n, nb_classes = logits.shape
    source = logits.argmax(1)
    next_class = (source + 1) % nb_classes
    if kind == "random":
        return source, (next_class + torch.randint(nb_classes - 1, (n,), generator=generator)) % nb_classes
    target = logits.argmin(1)
    return source, torch.where(target == source, next_class, target)


def matching_rate(labels_f: Tensor, labels_g: Tensor) -> float:
    """Return ``MR = (1/n) sum_j 1[g(x_j) = f(x_j)]``, in [0, 1]; labels are compared as integers."""
    return float((labels_f == labels_g).double().mean())


def aruc(positives: Sequence[float] | np.ndarray, negatives: Sequence[float] | np.ndarray) -> float:
    """Return the area under the robustness-uniqueness curves, ``integral_0^1 min(R(tau), U(tau)) dtau``.

    R is the share of derived models with ``MR >= tau``, U the share of independent models with ``MR < tau``. 1 is
    perfect. It scores a verifier over a population without a threshold. Exact: both curves are steps.

    :param positives: Matching rates of derived models, in [0, 1].
    :param negatives: Matching rates of independent models, in [0, 1].
    :raises InvalidInputError: an empty side, or a value outside [0, 1].
    """
    pos, neg = (np.asarray(values, dtype=np.float64).ravel() for values in (positives, negatives))
    for name, values in (("positives", pos), ("negatives", neg)):
        if values.size == 0 or not ((values >= 0) & (values <= 1)).all():
            raise InvalidInputError(f"`{name}` must hold one or more matching rates in [0, 1], got {values.tolist()}.")
    edges = np.unique(np.concatenate([[0.0, 1.0], pos, neg]))
    middles = (edges[1:] + edges[:-1]) / 2
    robust = (pos[:, None] >= middles).mean(0)
    unique = (neg[:, None] < middles).mean(0)
    return float((np.minimum(robust, unique) * np.diff(edges)).sum())


# ---------------------------------------------------------------------- verifier
class IPGuardVerifier(Verifier):
    """IPGuard (Cao, Jia and Gong, AsiaCCS 2021): fingerprint points near the victim's decision boundary.

    Each point starts at an image of predicted class i and descends :func:`boundary_loss` towards a target class j until
    the loss is at most ``tol``. Metric ``MR``: share of points on which suspect and victim give one label, a similarity
    in [0, 1]. Access: labels. The suspect may have any architecture, but must have the victim's label space. The paper
    has no official code; parameters follow it where known, else the re-implementations in DeepJudge's repository and in
    RemovalNet's.

    Deviations: points are kept inside ``clip_values`` (no code clips, yet a real service takes images only); the
    runner-up is found anew at every iterate (DeepJudge's stop test uses that from before the update); one persistent
    Adam per point (RemovalNet rebuilds it at every step: ``optimizer="sign"``). Points that do not converge are kept,
    as in both codes, because their labels are the victim's own; ``keep="converged"`` drops them.

    With a margin of 0.01 (profile ``removalnet``) logits differ by little more than rounding noise: score such a
    fingerprint in full float32, without TF32.

    Cost of extraction with ``T_b`` updates of point b: ``2 n + sum_b (T_b + 1)`` forward and about ``sum_b T_b``
    backward samples. Scoring: n queries.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("MR", "similarity", "labels"),)
    source_access: ClassVar[Access] = "gradients"
    suspect_access: ClassVar[Access] = "labels"
    verifier_params: ClassVar[list[str]] = [
        *Verifier.verifier_params,
        "nb_probes",
        "margin",
        "tol",
        "max_iter",
        "learning_rate",
        "optimizer",
        "units",
        "target",
        "initial_points",
        "clip",
        "keep",
        "allow_label_mismatch",
    ]
    _removalnet: ClassVar[dict[str, Any]] = {
        "nb_probes": 500,
        "margin": 0.01,
        "tol": 1e-5,
        "learning_rate": 0.01,
        "units": "standardised",
        "initial_points": "first",
        "clip": False,
    }
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "removalnet": _removalnet,
        "removalnet-legacy": {**_removalnet, "optimizer": "sign"},
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_probes: int = 100,
        margin: float = 10.0,
        tol: float = 0.0,
        max_iter: int = 1000,
        learning_rate: float = 0.001,
        optimizer: str = "adam",
        units: str = "input",
        target: str = "least-likely",
        initial_points: str = "random",
        clip: bool = True,
        keep: str = "all",
        allow_label_mismatch: bool = False,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param nb_probes: Number of points n (paper 100, RemovalNet's scripts 500); fewer if the data are.
        :param margin: The paper's k, 0 or more, in logits (paper 10, RemovalNet 0.01). Larger: points that survive more
            changes of the model, and that more independent models share.
        :param tol: A point stops at a loss of at most this (paper 0, RemovalNet 1e-5).
        :param max_iter: Most updates of a point (all sources 1000).
        :param learning_rate: Step size in ``units`` (paper 0.001, RemovalNet 0.01).
        :param optimizer: ``"adam"``, or ``"sign"`` for RemovalNet's Adam that is rebuilt before every step.
        :param units: Of the learning rate: ``"input"``, or ``"standardised"`` (RemovalNet), multiplied by the standard
            deviation of the classifier's standardisation per channel.
        :param target: ``"least-likely"`` class at the start (both codes) or a ``"random"`` other one.
        :param initial_points: ``"random"`` images of the data (seeded choice), the ``"first"`` ones, or uniform
            ``"noise"`` in ``clip_values`` (paper: training images or noise).
        :param clip: Keep points inside ``clip_values`` (ours; no code does).
        :param keep: ``"all"`` points (both codes) or only the ``"converged"`` ones.
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
            metric_names=metric_names,
            nan_policy=nan_policy,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.nb_probes = nb_probes
        self.margin = margin
        self.tol = tol
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.units = units
        self.target = target
        self.initial_points = initial_points
        self.clip = clip
        self.keep = keep
        self.allow_label_mismatch = allow_label_mismatch
        self._check_params()

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        start = self._start(x)
        n = len(start)
        source, target = choose_targets(
            victim.predict(start, self.batch_size), self.target, torch_generator(self.seed, "ipguard", "targets")
        )
        sources, targets = source.to(victim.device), target.to(victim.device)

        def objective(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            loss = boundary_loss(victim(points), sources[rows], targets[rows], self.margin)
            return loss, loss <= self.tol

        low, high = clip_bounds(self._estimator) if self.clip else (None, None)  # type: ignore[arg-type]
        with tqdm(total=n, desc="IPGuard", disable=not self.verbose) as bar:
            found = optimise(
                objective,
                start,
                learning_rate=self.learning_rate * unit_length(victim, self.units, start.ndim),
                max_iter=self.max_iter,
                optimizer=self.optimizer,  # type: ignore[arg-type]
                low=low,
                high=high,
                batch_size=self.batch_size,
                device=victim.device,
                progress=bar.update,
            )
        nb_converged = int(found.converged.sum())
        kept = found.converged if self.keep == "converged" else torch.ones(n, dtype=torch.bool)
        knobs = "lower `margin`, raise `max_iter` or `learning_rate`, or set clip=False"
        if not kept.any():
            raise EmptyFingerprintError(f"None of the {n} points crossed the decision boundary: {knobs}.")
        if 2 * nb_converged < n:
            warnings.warn(
                f"Only {nb_converged} of {n} points crossed the decision boundary by margin={self.margin:g}: {knobs}.",
                stacklevel=3,
            )
        warn_if_few(int(kept.sum()), "points", stacklevel=4)
        probes = found.x[kept]
        labels = self._as_suspect().labels(probes)
        if len(labels.unique()) == 1:
            warnings.warn(
                f"The victim puts all {len(labels)} points into class {int(labels[0])}, so a suspect that shows labels "
                "alone cannot be told from one that always answers this: give images of more classes, or set "
                'target="random".',
                stacklevel=3,
            )
        arrays = {
            "probes": probes,
            "labels": labels,
            "source": source[kept],
            "target": target[kept],
            "converged": found.converged[kept],
        }
        facts = {
            "nb_requested": self.nb_probes,
            "nb_probes": len(probes),
            "nb_started": n,
            "nb_converged": nb_converged,
            "nb_updates": int(found.updates.sum()),
        }
        return {name: array.numpy() for name, array in arrays.items()}, facts

    def _extraction_passes(self, nb_images: int) -> float:
        n = self.nb_probes if self.initial_points == "noise" else min(self.nb_probes, nb_images)
        return n * (3.0 + 2 * self.max_iter)

    def expected_queries(self) -> int:
        facts = {} if self.fingerprint is None else self.fingerprint.facts
        return int(facts.get("nb_probes", self.nb_probes))

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        nb_classes = int(fingerprint.facts["nb_classes"])
        if suspect.nb_classes != nb_classes and not self.allow_label_mismatch:
            raise IncompatibleSuspectError(
                f"The suspect has {suspect.nb_classes} classes, the victim {nb_classes}: labels can only be compared "
                "in one label space. If class numbers mean the same in both, set allow_label_mismatch=True."
            )
        probes, labels = fingerprint.tensors("probes", "labels")
        return {"MR": matching_rate(labels, suspect.labels(probes))}

    def _start(self, x: Tensor) -> Tensor:
        draws = torch_generator(self.seed, "ipguard", "start")
        if self.initial_points == "noise":
            low, high = clip_bounds(self._estimator)  # type: ignore[arg-type]
            return low + (high - low) * torch.rand((self.nb_probes, *x.shape[1:]), generator=draws)
        if len(x) < self.nb_probes:
            logger.info("IPGuard: %d images given, so %d points instead of %d.", len(x), len(x), self.nb_probes)
        if self.initial_points == "first":
            return x[: self.nb_probes]
        return x[torch.randperm(len(x), generator=draws)[: self.nb_probes]]

    def _check_params(self) -> None:
        super()._check_params()
        check_number("nb_probes", self.nb_probes, 1, integer=True)
        check_number("margin", self.margin, 0)
        check_number("tol", self.tol, 0)
        check_number("max_iter", self.max_iter, 0, integer=True)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("units", self.units, UNITS)
        check_choice("target", self.target, TARGETS)
        check_choice("initial_points", self.initial_points, INITIAL_POINTS)
        check_flag("clip", self.clip)
        check_choice("keep", self.keep, ("all", "converged"))
        check_flag("allow_label_mismatch", self.allow_label_mismatch)
