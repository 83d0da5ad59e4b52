"""Adversarial robustness as a fingerprint: RobD for FGSM, PGD and DeepFool.

H. Yao et al., "RemovalNet: DNN Fingerprint Removal Attacks", IEEE TDSC 2023 (section 5.1, Table IV), after J. Chen et
al., "Copy, Right? A Testing Framework for Copyright Protection of Deep Learning Models" (DeepJudge), IEEE S&P 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.adversarial import DEFAULTS, EPS_SPACES, Evasion, adversarial_examples
from art_fingerprint.core.checks import check_choice, check_flag, check_number
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.outputs import OutputKind, labels_of
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import EmptyFingerprintError, FingerprintError, InvalidInputError
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.deepjudge_metrics import robustness
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few

ATTACKS = ("FGSM", "PGD", "DeepFool")
MODES = ("transfer", "white-box")


class RobustnessVerifier(Verifier):
    """Tell derived models by their adversarial robustness: ``RobD-FGSM``, ``RobD-PGD``, ``RobD-DeepFool``.

    ``RobD = |Rob(g) - Rob(f)|`` between victim f and suspect g, a distance in [0, 1], with Rob(h) the share of
    adversarial examples to which h gives the true label. Examples are kept whether or not they fool the victim, as the
    values printed in the paper ask (victim 0.694 under FGSM).

    - ``mode="transfer"`` (default): the victim's examples are the fingerprint, made once and sent to every suspect, of
      which labels are enough. A copy falls for them as the victim does; an independent model stands firmer.
    - ``mode="white-box"``: every model is attacked with its own examples, as in the paper's Table IV; the fingerprint
      is the images and the victim's Rob. Needs a ``PyTorchClassifier``. The paper's own numbers show what it is worth:
      RobD to the surrogate was 0.141 under FGSM, to an independent model 0.095.

    DeepFool's last iterates lie on the boundary itself where ``clip_values`` swallow part of each step; labels there
    depend on rounding.

    Cost of extraction, n images: n forward samples to choose them; for FGSM n, for PGD ``n steps`` forward and backward
    samples, for DeepFool see :func:`.deepfool`. Scoring: n queries for each metric, and the attack once more on the
    suspect in white-box mode, which the query meter does not count.
    """

    metrics: ClassVar[tuple[Metric, ...]] = tuple(Metric(f"RobD-{name}", "distance", "labels") for name in ATTACKS)
    extras: ClassVar[tuple[str, ...]] = tuple(f"Rob-{name}" for name in ATTACKS)
    source_access: ClassVar[Access] = "gradients"
    suspect_access: ClassVar[Access] = "labels"
    verifier_params: ClassVar[list[str]] = [
        *Verifier.verifier_params,
        "mode",
        "nb_seeds",
        "eps",
        "eps_space",
        "alpha",
        "steps",
        "random_start",
        "deepfool_steps",
        "overshoot",
        "allow_label_mismatch",
    ]
    _removalnet: ClassVar[dict[str, Any]] = {"mode": "white-box", "eps_space": "normalised"}
    # The script behind Table IV is not public, so no defect of it is known.
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "removalnet": _removalnet,
        "removalnet-legacy": _removalnet,
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        mode: str = "transfer",
        nb_seeds: int = 500,
        eps: float = DEFAULTS["PGD"]["eps"],
        eps_space: str = "pixel",
        alpha: float = DEFAULTS["PGD"]["alpha"],
        steps: int = DEFAULTS["PGD"]["steps"],
        random_start: bool = True,
        deepfool_steps: int = DEFAULTS["DeepFool"]["steps"],
        overshoot: float = DEFAULTS["DeepFool"]["overshoot"],
        allow_label_mismatch: bool = False,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param mode: ``"transfer"`` or ``"white-box"``.
        :param nb_seeds: Images that are perturbed: drawn from those given that the victim classifies as labelled; fewer
            if there are fewer.
        :param eps: Linf radius of FGSM and PGD, a share of the input range (authors' utilities 5/255).
        :param eps_space: Of ``eps`` and ``alpha``: ``"pixel"``, or ``"normalised"`` as in the authors' loaders; see
            :class:`.Evasion`.
        :param alpha: Step of PGD (2/255).
        :param steps: Steps of PGD (10).
        :param random_start: Start PGD at a random point of the ball.
        :param deepfool_steps: Steps of DeepFool (40).
        :param overshoot: Of DeepFool (0.02).
        :param allow_label_mismatch: Accept suspects with another number of classes.
        :param metric_names: As in :class:`Verifier`; examples are made only for the metrics asked for.
        :param nan_policy: As in :class:`Verifier`.
        :param batch_size: As in :class:`Verifier`; on CUDA, PGD's random starts depend on it.
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
        self.nb_seeds = nb_seeds
        self.eps = eps
        self.eps_space = eps_space
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.deepfool_steps = deepfool_steps
        self.overshoot = overshoot
        self.allow_label_mismatch = allow_label_mismatch
        self._check_params()

    def attack(self, name: str) -> Evasion:
        """Return the evasion attack behind a metric, ``"FGSM"``, ``"PGD"`` or ``"DeepFool"``."""
        if name == "DeepFool":
            return Evasion(name, {"steps": self.deepfool_steps, "overshoot": self.overshoot})
        params: dict[str, Any] = {"eps": self.eps}
        if name == "PGD":
            params |= {"alpha": self.alpha, "steps": self.steps, "random_start": self.random_start}
        return Evasion(name, params, eps_space=self.eps_space)

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        predicted = victim.predict(x, self.batch_size).argmax(1)
        labels = predicted if y is None else y
        right = (predicted == labels).nonzero()[:, 0]
        if len(right) == 0:
            raise EmptyFingerprintError(
                f"The victim classifies none of the {len(x)} images as labelled, so there is nothing to attack: check "
                "`y`."
            )
        order = torch.randperm(len(right), generator=torch_generator(self.seed, "robustness", "seeds"))
        rows = right[order[: self.nb_seeds]].sort().values
        warn_if_few(len(rows), "images", stacklevel=4)
        seeds, true = x[rows], labels[rows]
        arrays = {"true": true.numpy()}
        if self.mode == "white-box":
            arrays["seeds"] = seeds.numpy()
        for name in self._wanted():
            examples = self._examples(self.estimator, name, seeds.numpy(), true.numpy(), victim.kind)
            # Through the suspect's own path, so that the victim as a suspect gives the same answers.
            arrays[f"labels_{name}"] = Suspect(self.estimator, self.batch_size).labels(examples).numpy()
            if self.mode == "transfer":
                arrays[f"examples_{name}"] = examples.numpy()
        facts: dict[str, Any] = {f"nb_{name}": len(rows) for name in self._wanted()}
        return arrays, {**facts, "attacks": {name: self.attack(name).describe() for name in self._wanted()}}

    def _extraction_passes(self, nb_images: int) -> float | None:
        if self.estimator is None:
            return None
        steps, nb_classes = self.deepfool_steps, int(self.estimator.nb_classes)
        each = {"FGSM": 2, "PGD": 2 * self.steps, "DeepFool": 3 * (steps + 1) + nb_classes * steps}
        answered = sum(each[name] + 1.0 for name in self._wanted())
        return nb_images + min(self.nb_seeds, nb_images) * answered

    def expected_queries(self) -> int:
        if self.fingerprint is None:
            return self.nb_seeds * len(self._wanted())
        return sum(int(self.fingerprint.facts.get(f"nb_{name}", 0)) for name in self._wanted())

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        nb_classes = int(fingerprint.facts["nb_classes"])
        wanted = self._wanted()
        if suspect.nb_classes != nb_classes and not self.allow_label_mismatch:
            for name in wanted:
                self._skip(
                    f"RobD-{name}",
                    f"the suspect has {suspect.nb_classes} classes, the victim {nb_classes}; set "
                    "allow_label_mismatch=True if class numbers mean the same in both",
                )
            return {}
        (true,) = fingerprint.tensors("true")
        scores: dict[str, float] = {}
        for name in wanted:
            if f"labels_{name}" not in fingerprint.arrays:
                self._skip(f"RobD-{name}", "the fingerprint was extracted without it: extract again")
                continue
            (labels,) = fingerprint.tensors(f"labels_{name}")
            if self.mode == "transfer":
                (examples,) = fingerprint.tensors(f"examples_{name}")
            else:
                try:
                    examples = self._own_examples(suspect, fingerprint, name, true)
                except FingerprintError as error:
                    self._skip(f"RobD-{name}", str(error))
                    continue
            answers = suspect.rows(examples)
            rob = robustness(labels_of(answers), true)
            scores |= {f"RobD-{name}": abs(rob - robustness(labels, true)), f"Rob-{name}": rob}
            self._keep(scores)
            suspect.check_finite(answers)  # a distance is not decided by answers that are none
        return scores

    def _own_examples(self, suspect: Suspect, fingerprint: Fingerprint, name: str, true: Tensor) -> Tensor:
        suspect.view  # noqa: B018 - refuses suspects that show no gradients
        (seeds,) = fingerprint.tensors("seeds")
        if not suspect.classifier.channels_first:
            raise InvalidInputError("white-box mode needs a suspect whose images have their channels first")
        kind: OutputKind = "auto" if suspect.kind == "labels" else suspect.kind
        return self._examples(suspect.classifier, name, seeds.numpy(), true.numpy(), kind)

    def _examples(
        self, classifier: PyTorchClassifier | None, name: str, x: np.ndarray, y: np.ndarray, kind: OutputKind
    ) -> Tensor:
        found = adversarial_examples(
            classifier,  # type: ignore[arg-type] # there is a victim while a fingerprint is extracted
            self.attack(name),
            x,
            y,
            outputs=kind,
            batch_size=self.batch_size,
            seed=self.seed,
            verbose=self.verbose,
        )
        return torch.from_numpy(found)

    def _wanted(self) -> list[str]:
        return [name for name in ATTACKS if self.wants(f"RobD-{name}")]

    def _check_params(self) -> None:
        super()._check_params()
        check_choice("mode", self.mode, MODES)
        check_number("nb_seeds", self.nb_seeds, 1, integer=True)
        check_number("eps", self.eps, 0, open_low=True)
        check_choice("eps_space", self.eps_space, EPS_SPACES)
        check_number("alpha", self.alpha, 0, open_low=True)
        check_number("steps", self.steps, 1, integer=True)
        check_flag("random_start", self.random_start)
        check_number("deepfool_steps", self.deepfool_steps, 1, integer=True)
        check_number("overshoot", self.overshoot, 0)
        check_flag("allow_label_mismatch", self.allow_label_mismatch)
