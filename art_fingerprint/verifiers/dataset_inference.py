"""Dataset Inference: are the suspect's margins larger on the victim's training images than on unseen ones?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_flag, check_images, check_labels, check_number
from art_fingerprint.core.classifier import LogitsNetwork, clip_bounds
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import numpy_generator, torch_generator
from art_fingerprint.exceptions import EmptyFingerprintError, IncompatibleSuspectError, InvalidInputError
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.dataset_inference_features import (
    confidence,
    descent_features,
    scales,
    standardise,
    train_regressor,
    walk_features,
)
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few
from art_fingerprint.verifiers.p_values import harmonic_mean, welch_p_value

MODES = ("blind-walk", "mingd")
_REPEATS, _DRAWN = 100, 10
_LEVEL = 0.01


# ---------------------------------------------------------------------- formulas
def mean_difference(train: np.ndarray, unseen: np.ndarray) -> float:
    """Return ``mean g(unseen) - mean g(train)``, in [-2, 2]."""
    return float(np.mean(unseen) - np.mean(train))


def repeated_p_value(
    train: np.ndarray, unseen: np.ndarray, generator: np.random.Generator, m: int = _DRAWN, repeats: int = _REPEATS
) -> float:
    """Return the harmonic mean of Welch's p-values over random samples of m values of each side, without replacement.

    The released code's summary; no p-value itself.

    :param train: g of training images.
    :param unseen: g of unseen images.
    :param generator: Source of the samples.
    :param m: Values of each side in one sample, fewer if there are.
    :param repeats: Samples.
    """
    size = min(m, len(train), len(unseen))
    found = [
        welch_p_value(generator.choice(unseen, size, replace=False), generator.choice(train, size, replace=False))
        for _ in range(repeats)
    ]
    return harmonic_mean(found)


def matched_pairs(y_train: np.ndarray, y_unseen: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return pairs of rows of two label arrays with equal labels, ``(n, 2)``, n at most ``count``, in random order.

    No row comes twice. Classes take turns, so that all have their share as far as both sides have images of them.

    :param y_train: Labels ``(a,)``.
    :param y_unseen: Labels ``(b,)``.
    :param count: Pairs wanted.
    :param generator: Source of the choice.
    """
    turns = []
    for label in np.intersect1d(y_train, y_unseen):
        sides = [generator.permutation(np.flatnonzero(y == label)) for y in (y_train, y_unseen)]
        turns += [(rank, generator.random(), a, b) for rank, (a, b) in enumerate(zip(*sides, strict=False))]
    chosen = sorted(turns)[:count]
    pairs = np.array([(a, b) for _, _, a, b in chosen], dtype=np.int64).reshape(-1, 2)
    return generator.permutation(pairs, axis=0)


# ---------------------------------------------------------------------- verifier
class DatasetInferenceVerifier(Verifier):
    """Dataset Inference (Maini et al., ICLR 2021): a test of whether the suspect has seen the victim's training data.

    A model keeps larger margins on images it was trained on. :func:`.walk_features` measures them by random walks to
    another label (``mode="blind-walk"``, labels), :func:`.descent_features` by descent to the likeliest classes
    (``"mingd"``, gradients of the suspect). A small network g, trained on the victim's own features, tells training
    images from unseen ones. Metric ``DI``: mean g on unseen minus mean g on training images, both held out from that
    training; a similarity in [-2, 2], 0 for a model that knows neither.

    **It detects use of the data, not of the weights**: a model that was trained independently on the same images is
    expected to be called derived, so references and negatives must come from *other* data. The unseen images must be
    unseen by the suspect, too, else the test is void.

    Data: ``extract(x_train, y_train, x_unseen, y_unseen)``, images of the victim's private training set and of the same
    distribution outside it, ``nb_fit + nb_test`` of each, in pairs of one class. The fingerprint file holds the test
    images, ``nb_test`` of them private.

    Extraction warns if the victim itself would not be found out.

    Decision rule of the method: the extra ``DI-p``, one-sided Welch test over all test images, below 0.01 says that the
    data were used; above, nothing, and never "innocent". It needs no reference models. ``DI-p10`` is the released
    code's harmonic mean over samples of ten, a summary; ``DI-unended`` the share of walks or descents without an end.

    Deviations: features of one image stay in one row (the released notebook mixes 30 images in each, so its p-values
    are not comparable); rays are the same for all models; MinGD's L1 step moves each of the 100 largest gradient
    entries by 0.01 (our reading).

    Cost of scoring: blind walk at most ``2 nb_test * 3 nb_draws * max_steps`` queries, fewer where labels change early;
    MinGD at most ``2 nb_test (1 + 3 nb_targets (max_iter + 1))`` queries, with as many backward samples. Extraction:
    ``(nb_fit + nb_test) / nb_test`` times as many.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("DI", "similarity", "labels"),)
    extras: ClassVar[tuple[str, ...]] = ("DI-p", "DI-p10", "DI-unended")
    source_access: ClassVar[Access] = "labels"
    extraction_data: ClassVar[Literal["any", "held-out", "training"]] = "training"
    suspect_access: ClassVar[Access] = "labels"
    verifier_params: ClassVar[list[str]] = [
        *Verifier.verifier_params,
        "mode",
        "nb_fit",
        "nb_test",
        "nb_draws",
        "noise",
        "max_steps",
        "nb_targets",
        "max_iter",
        "nb_epochs",
        "allow_label_mismatch",
    ]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        # RemovalNet does not have this verifier.
        "removalnet": {},
        "removalnet-legacy": {},
        "official": {"nb_test": 500},
        "svhn": {"noise": 2.0, "max_steps": 100},
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        mode: str = "blind-walk",
        nb_fit: int = 500,
        nb_test: int = 100,
        nb_draws: int = 10,
        noise: float = 1.0,
        max_steps: int = 50,
        nb_targets: int = 10,
        max_iter: int = 500,
        nb_epochs: int = 1000,
        allow_label_mismatch: bool = False,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param mode: ``"blind-walk"`` or ``"mingd"``.
        :param nb_fit: Images of each side that g is trained on, 2 or more (released code 500); fewer if the data are.
        :param nb_test: Images of each side that suspects are asked about, 2 or more (released code 500).
        :param nb_draws: Walks for each image and norm (10).
        :param noise: Factor of the walks' noise (1; for SVHN 2).
        :param max_steps: Longest walk (50; for SVHN 100).
        :param nb_targets: Classes that MinGD descends to, those of the highest logits (10).
        :param max_iter: Steps of one descent (500).
        :param nb_epochs: Steps of g's training (1000).
        :param allow_label_mismatch: Accept suspects with another number of classes.
        :param metric_names: As in :class:`Verifier`.
        :param nan_policy: As in :class:`Verifier`; a walk ends at an answer that is none.
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
        self.mode = mode
        self.nb_fit = nb_fit
        self.nb_test = nb_test
        self.nb_draws = nb_draws
        self.noise = noise
        self.max_steps = max_steps
        self.nb_targets = nb_targets
        self.max_iter = max_iter
        self.nb_epochs = nb_epochs
        self.allow_label_mismatch = allow_label_mismatch
        self._unseen: tuple[Tensor, np.ndarray] | None = None
        self._check_params()

    def extract(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        x_unseen: np.ndarray | None = None,
        y_unseen: np.ndarray | None = None,
    ) -> Fingerprint:
        """Extract the victim's fingerprint, as :meth:`Verifier.extract` does.

        :param x: Images of the victim's private training set, ``(n, *input_shape)`` float32 in ``clip_values``.
        :param y: Their true labels, indices or one-hot.
        :param x_unseen: Images of the same distribution that neither victim nor suspects were trained on.
        :param y_unseen: Their true labels.
        :raises NotExtractedError: the verifier was made from a file and has no victim.
        :raises InvalidInputError: bad data or parameters; a part of the data is missing; the two parts share images.
        :raises EmptyFingerprintError: there are fewer than four pairs of images of one class.
        """
        victim = self._estimator
        if victim is not None:
            if y is None or x_unseen is None or y_unseen is None:
                raise InvalidInputError(
                    "DatasetInferenceVerifier compares training images with unseen ones and walks away from true "
                    "labels: call extract(x_train, y_train, x_unseen, y_unseen)."
                )
            images = check_images(x_unseen, tuple(victim.input_shape), clip_bounds(victim), "x_unseen")
            labels = check_labels(y_unseen, len(images), victim.nb_classes, "y_unseen")
            self._unseen = torch.from_numpy(images), labels
        try:
            return super().extract(x, y)
        finally:
            self._unseen = None

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        assert self._unseen is not None  # extract() has seen to it
        assert y is not None
        x_unseen, y_unseen = self._unseen
        pairs = matched_pairs(
            y.numpy(), y_unseen, self.nb_fit + self.nb_test, numpy_generator(self.seed, "dataset-inference", "pairs")
        )
        nb_fit = min(self.nb_fit, round(len(pairs) * self.nb_fit / (self.nb_fit + self.nb_test)))
        nb_test = min(self.nb_test, len(pairs) - nb_fit)
        if min(nb_fit, nb_test) < 2:
            raise EmptyFingerprintError(
                f"Of {len(x)} training and {len(x_unseen)} unseen images {len(pairs)} pairs of one class can be made, "
                f"of which {nb_fit} would train g and {nb_test} test suspects; two and two are needed, hundreds "
                "advised: pass more images of the same classes."
            )
        warn_if_few(nb_test, "pairs of test images", stacklevel=5)
        train, unseen, labels = x[pairs[:, 0]], x_unseen[pairs[:, 1]], y[pairs[:, 0]]
        if not {hash(row.tobytes()) for row in x.numpy()}.isdisjoint(hash(row.tobytes()) for row in unseen.numpy()):
            raise InvalidInputError("`x_unseen` holds images of `x`: leave out what the victim was trained on.")
        low, high = (float(bound) for bound in clip_bounds(self._estimator))  # type: ignore[arg-type]
        facts: dict[str, Any] = {
            "nb_fit": nb_fit,
            "nb_test": nb_test,
            "ray_seed": self.seed,
            "range": [low, high],
        }
        client = self._as_suspect()

        def both(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
            part = slice(start, stop)
            count = stop - start
            return (
                torch.cat([train[part], unseen[part]]),
                labels[part].repeat(2),
                torch.arange(2 * count) >= count,
            )

        fit_x, fit_y, fit_unseen = both(0, nb_fit)
        test_x, test_y, test_unseen = both(nb_fit, nb_fit + nb_test)
        features, _ = self._features(client, fit_x, fit_y, facts)
        means, deviations = scales(features[~fit_unseen])
        weights = train_regressor(
            standardise(features, means, deviations),
            fit_unseen,
            nb_epochs=self.nb_epochs,
            generator=torch_generator(self.seed, "dataset-inference", "regressor"),
        )
        own, _ = self._features(client, test_x, test_y, facts)
        g = confidence(standardise(own, means, deviations), weights).numpy()
        own_p = welch_p_value(g[nb_test:], g[:nb_test])
        if own_p > _LEVEL:
            warn_caller(
                f"The victim's own margins hardly tell its training images from unseen ones (p = {own_p:.2g}): pass "
                "more images, or change `noise` or `max_steps` so that some walks end early and others late."
            )
        arrays = {
            "probes": test_x,
            "labels": test_y,
            "unseen": test_unseen,
            "means": means,
            "deviations": deviations,
            **dict(zip(("w1", "b1", "w2", "b2"), weights, strict=True)),
        }
        return {name: array.numpy() for name, array in arrays.items()}, {
            **facts,
            "own_DI": mean_difference(g[:nb_test], g[nb_test:]),
            "own_p": own_p,
            "nb_queries": self._most_queries(2 * nb_test),
            "nb_extraction_queries": client.queries,
        }

    def _extraction_passes(self, nb_images: int) -> float | None:
        n = 2 * min(nb_images, self.nb_fit + self.nb_test)
        most = self._most_queries(n)
        # a descent's samples go backward as well, but for the first pass, which finds the targets
        return None if most is None else float(most if self.mode == "blind-walk" else 2 * most - n)

    def expected_queries(self) -> int | None:
        """Return the samples that a suspect is sent at most: walks and descents end where its labels change."""
        if self.fingerprint is not None:
            return int(self.fingerprint.facts["nb_queries"])
        return self._most_queries(2 * self.nb_test)

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        nb_classes = int(fingerprint.facts["nb_classes"])
        if suspect.nb_classes != nb_classes and not self.allow_label_mismatch:
            raise IncompatibleSuspectError(
                f"The suspect has {suspect.nb_classes} classes, the victim {nb_classes}: walks end where the label is "
                "not the true one. If class numbers mean the same in both, set allow_label_mismatch=True."
            )
        probes, labels, unseen, means, deviations, *weights = fingerprint.tensors(
            "probes", "labels", "unseen", "means", "deviations", "w1", "b1", "w2", "b2"
        )
        features, unended = self._features(suspect, probes, labels, fingerprint.facts)
        if features.shape[1] != weights[0].shape[1]:
            raise IncompatibleSuspectError(
                f"The suspect's {suspect.nb_classes} classes give {features.shape[1]} distances for each image, the "
                f"victim's {weights[0].shape[1]}."
            )
        g = confidence(standardise(features, means, deviations), tuple(weights)).numpy()  # type: ignore[arg-type]
        mask = unseen.numpy()
        draws = numpy_generator(int(fingerprint.facts["ray_seed"]), "dataset-inference", "repeats")
        return {
            "DI": mean_difference(g[~mask], g[mask]),
            "DI-p": welch_p_value(g[mask], g[~mask]),
            "DI-p10": repeated_p_value(g[~mask], g[mask], draws),
            "DI-unended": unended,
        }

    # ------------------------------------------------------------------ inside
    def _features(self, client: Suspect, x: Tensor, labels: Tensor, facts: dict[str, Any]) -> tuple[Tensor, float]:
        low, high = facts["range"]
        if self.mode == "blind-walk":
            return walk_features(
                client.labels,
                x,
                labels,
                seed=int(facts["ray_seed"]),
                nb_draws=self.nb_draws,
                noise=self.noise,
                max_steps=self.max_steps,
                low=low,
                high=high,
            )
        client.view  # noqa: B018 - refuses suspects that show no gradients
        return descent_features(
            client.differentiable,
            x,
            client.logits(x),
            nb_targets=self.nb_targets,
            max_iter=self.max_iter,
            low=low,
            high=high,
            batch_size=self.batch_size,
        )

    def _most_queries(self, n: int) -> int | None:
        if self.mode == "blind-walk":
            return n * 3 * self.nb_draws * self.max_steps
        if self._estimator is None:  # whose classes are the targets
            return None
        targets = min(self.nb_targets, int(self._estimator.nb_classes))
        return n * (1 + 3 * targets * (self.max_iter + 1))

    def _needs_gradients(self) -> bool:
        return self.mode == "mingd"

    def _check_params(self) -> None:
        super()._check_params()
        check_choice("mode", self.mode, MODES)
        for name in ("nb_fit", "nb_test"):
            check_number(name, getattr(self, name), 2, integer=True)
        for name in ("nb_draws", "max_steps", "nb_targets", "max_iter", "nb_epochs"):
            check_number(name, getattr(self, name), 1, integer=True)
        check_number("noise", self.noise, 0, open_low=True)
        check_flag("allow_label_mismatch", self.allow_label_mismatch)
