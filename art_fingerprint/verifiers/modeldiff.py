"""ModelDiff: compare how two models' outputs move between paired inputs (decision distance vectors)."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from tqdm.auto import tqdm

from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_suspect
from art_fingerprint.core.classifier import LogitsNetwork, clip_bounds
from art_fingerprint.core.digests import array_digest
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.outputs import OutputKind, nonfinite_rows, same_space
from art_fingerprint.core.perturbation import UNITS, unit_length
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import (
    AccessError,
    EmptyFingerprintError,
    InvalidInputError,
    NonFiniteOutputError,
    NotExtractedError,
)
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few
from art_fingerprint.verifiers.modeldiff_metrics import (
    ZERO_DISTANCE,
    both_distances,
    ddm_distance,
    ddv_similarity,
    decision_distances,
    in_space,
)
from art_fingerprint.verifiers.modeldiff_probes import (
    CLASS_WEIGHTS,
    OBJECTIVES,
    make_class_weights,
    pgd_partners,
    search_probes,
)
from art_fingerprint.verifiers.references import model_digest

logger = logging.getLogger(__name__)

GENERATORS = ("pgd", "search", "natural")


class ModelDiffVerifier(Verifier):
    """ModelDiff (Li et al., ISSTA 2021): pairs of inputs, and how far each model's output moves within a pair.

    Metric ``DDV``: ``cos(DDV_f, DDV_g)`` with ``DDV_h[i] = 1 - cos(o_h(x_i), o_h(x'_i))``, a similarity in [0, 1].
    Access: scores. The suspect may have another architecture and another number of classes. ``DDM`` (see
    :func:`~art_fingerprint.verifiers.modeldiff_metrics.ddm_distance`) comes with it at no further query.

    Generators of the pairs:

    - ``"pgd"`` (official evaluation notebook): random seeds, partners by Linf-PGD on the victim, see
      :func:`~art_fingerprint.verifiers.modeldiff_probes.away_from_mean`. Needs the victim's gradients.
    - ``"search"`` (official Python module): black-box search over single input entries, see
      :func:`~art_fingerprint.verifiers.modeldiff_probes.search_probes`. Needs scores only. ``models="both"`` is the
      published form, whose probes depend on the suspect: call :meth:`extract_joint`.
    - ``"natural"``: pairs of unchanged images.

    Outputs are compared as the models give them: logits with logits, probabilities with probabilities. If one model
    gives logits and the other probabilities, both are compared as probabilities, with a warning; references that give
    logits set thresholds for both.

    Deviations from the official code: seeds are images as given, without training augmentation; partners are also kept
    inside the classifier's ``clip_values``, because a real service refuses other inputs; the ascent runs on log
    probabilities if the victim gives probabilities, whose own gradients vanish; DDV, not the module's default DDM. With
    two classes logits are nearly antipodal and DDV measures label flips: prefer ``space="probabilities"``.

    Cost of extraction: ``pgd`` ``3 n + n max_iter`` forward and ``n max_iter`` backward samples; ``search``
    ``4 n + 2 search_iterations`` forward samples of the victim, and ``2 n + 2 search_iterations`` queries to the
    suspect in the joint form; ``natural`` ``2 n`` forward samples. Scoring: ``2 n`` queries.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (Metric("DDV", "similarity", "scores"),)
    extras: ClassVar[tuple[str, ...]] = ("DDM",)
    source_access: ClassVar[Access] = "gradients"
    suspect_access: ClassVar[Access] = "scores"
    verifier_params: ClassVar[list[str]] = [
        *Verifier.verifier_params,
        "nb_pairs",
        "generator",
        "space",
        "units",
        "radius",
        "step",
        "max_iter",
        "objective",
        "class_weights",
        "clip",
        "models",
        "search_step",
        "search_iterations",
        "search_departure",
        "search_clip",
    ]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "removalnet": {"nb_pairs": 50, "generator": "search"},
        "removalnet-legacy": {"nb_pairs": 50, "generator": "search", "models": "both", "search_departure": "seeds"},
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_pairs: int = 100,
        generator: str = "pgd",
        space: str = "auto",
        units: str = "standardised",
        radius: float = 0.06,
        step: float = 0.01,
        max_iter: int = 50,
        objective: str = "away-from-mean",
        class_weights: str = "first-class",
        clip: str = "batch",
        models: str = "victim",
        search_step: float = 0.2,
        search_iterations: int = 1000,
        search_departure: str = "mutated",
        search_clip: bool = False,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param nb_pairs: Number of pairs n, 2 or more (notebook 100, module 300, RemovalNet 50); fewer if the data are.
        :param generator: ``"pgd"``, ``"search"`` or ``"natural"``.
        :param space: ``"auto"``: as the models answer; ``"probabilities"``: always compare probabilities (ours).
        :param units: Of ``radius``, ``step`` and ``search_step``: ``"standardised"`` (all official codes; multiplied by
            the standard deviation of the classifier's standardisation, per channel) or ``"input"`` (raw pixels).
        :param radius: Linf radius of ``pgd``, 0 or more (notebook).
        :param step: Step of ``pgd`` (notebook).
        :param max_iter: Steps of ``pgd`` (notebook).
        :param objective: What ``pgd`` maximises: ``"away-from-mean"`` (notebook), ``"cosine"``
            (``1 - cos(f(x'), o_i)``, ours) or ``"untargeted-ce"`` (cross-entropy on the predicted label, QuRD).
        :param class_weights: Of ``"away-from-mean"``: ``"first-class"`` (notebook) or ``"uniform"``.
        :param clip: Range of ``pgd`` partners: ``"batch"``, smallest to largest value of the seeds (notebook),
            ``"classifier"`` or ``"none"``; the first two respect ``clip_values``.
        :param models: ``"victim"``, or ``"both"`` for the joint ``search`` of :meth:`extract_joint`.
        :param search_step: Size of one mutation (module 0.2).
        :param search_iterations: Number of mutations tried (module 1000).
        :param search_departure: ``"mutated"``, or RemovalNet's ``"seeds"``, which evaluates the departure at unmutated
            inputs (a defect: the factor is a rounding residue, 0 for up to 25 inputs).
        :param search_clip: Keep mutations inside ``clip_values`` (no official code does).
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
        self.nb_pairs = nb_pairs
        self.generator = generator
        self.space = space
        self.units = units
        self.radius = radius
        self.step = step
        self.max_iter = max_iter
        self.objective = objective
        self.class_weights = class_weights
        self.clip = clip
        self.models = models
        self.search_step = search_step
        self.search_iterations = search_iterations
        self.search_departure = search_departure
        self.search_clip = search_clip
        self._partner: Suspect | None = None
        self._victim: tuple[Fingerprint, str, Tensor, Tensor] | None = None  # what was last computed of its answers
        self._check_params()

    def extract_joint(self, suspect: Any, x: np.ndarray, y: np.ndarray | None = None) -> Fingerprint:
        """Extract with the published joint search (``generator="search", models="both"``), which queries the suspect.

        The fingerprint then depends on this suspect and says so: ``facts["joint"]`` is a digest of its weights (of its
        answers to the seeds, if it is query-only) and ``facts["joint_queries"]`` what the search cost. Other models can
        be scored with it, as calibration does; the official code searches anew for every pair of models.

        :param suspect: Any ART classifier with scores. Only read.
        :param x: Owner's data; the official module gives training images of both models.
        :param y: Not used.
        :raises InvalidInputError: the parameters do not ask for the joint search.
        """
        if not self._joint:
            raise InvalidInputError('extract_joint() needs generator="search" and models="both"; use extract() else.')
        if self._estimator is None:
            raise NotExtractedError("This verifier was made from a fingerprint and has no victim to extract from.")
        check_suspect(self, suspect)
        partner = Suspect(suspect, self.batch_size)
        partner.check_shape(tuple(self._estimator.input_shape))
        self._partner = partner
        try:
            with guarded(suspect, weights=False):
                return self.extract(x, y)
        finally:
            self._partner = None

    # ------------------------------------------------------------------ hooks
    def _needs_gradients(self) -> bool:
        return self.generator == "pgd"

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if self._joint and self._partner is None:
            raise InvalidInputError(
                'models="both" queries the suspect during extraction: call extract_joint(suspect, x).'
            )
        per_pair = 1 if self.generator == "pgd" else 2
        n = min(self.nb_pairs, len(x) // per_pair)
        if n < 2:
            raise EmptyFingerprintError(
                f"`x` has {len(x)} images; {2 * per_pair} or more are needed for two pairs, and {10 * per_pair} for a "
                "useful fingerprint (the cosine of one number is always 1)."
            )
        warn_if_few(n, "pairs", stacklevel=4)
        order = torch.randperm(len(x), generator=torch_generator(self.seed, "modeldiff", "seeds"))[: n * per_pair]
        pool = x[order]
        facts: dict[str, Any] = {"nb_requested": self.nb_pairs, "nb_pairs": n, "joint": None}
        if self.generator == "search":
            pool = self._search(victim, pool, facts)
        seeds = pool[:n]
        partners = pool[n:]
        if self.generator == "pgd":
            partners = self._ascend(victim, seeds, _finite(victim.predict(seeds, self.batch_size), "seeds"))
        client = self._as_suspect()
        try:
            seed_outputs, partner_outputs = client.logits(torch.cat([seeds, partners])).split(n)
        except (AccessError, NonFiniteOutputError) as error:
            raise type(error)(f"The victim, asked as a suspect, failed on seeds or partners: {error}") from error
        facts["outputs"] = client.kind
        space = "probabilities" if self.space == "probabilities" else client.kind
        ddv = decision_distances(in_space(seed_outputs, space), in_space(partner_outputs, space))
        if float(ddv.max()) <= ZERO_DISTANCE:
            warnings.warn(
                "No pair moves the victim's output, so DDV is undefined: raise `radius` or `max_iter`.",
                stacklevel=3,
            )
        arrays = {
            "seeds": seeds,
            "partners": partners,
            "seed_outputs": seed_outputs,
            "partner_outputs": partner_outputs,
        }
        return {name: array.contiguous().numpy() for name, array in arrays.items()}, facts

    def _extraction_passes(self, nb_images: int) -> float:
        n = min(self.nb_pairs, nb_images if self.generator == "pgd" else nb_images // 2)
        more = {"pgd": n * (1 + 2 * self.max_iter), "search": 2 * n + 2 * self.search_iterations}
        return 2.0 * n + more.get(self.generator, 0)

    def expected_queries(self) -> int:
        facts = {} if self.fingerprint is None else self.fingerprint.facts
        return 2 * int(facts.get("nb_pairs", self.nb_pairs))

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        probes = torch.cat(fingerprint.tensors("seeds", "partners"))
        outputs = suspect.logits(probes)
        space: OutputKind = fingerprint.facts["outputs"]
        if self.space == "probabilities" or not same_space(space, suspect.kind):
            space = "probabilities"
        self._compared(space, "DDV")
        ddv_f, matrix_f = self._victims_distances(fingerprint, space)
        ddv_g, matrix_g = both_distances(in_space(outputs, space))
        similarity = ddv_similarity(ddv_f, ddv_g)
        if math.isnan(similarity):
            warn_caller("No pair moves the output of the victim or of the suspect: DDV is undefined.")
        return {"DDV": similarity, "DDM": ddm_distance(matrix_f, matrix_g)}

    def _victims_distances(self, fingerprint: Fingerprint, space: str) -> tuple[Tensor, Tensor]:
        if self._victim is None or self._victim[:2] != (fingerprint, space):
            outputs = torch.cat(fingerprint.tensors("seed_outputs", "partner_outputs"))
            self._victim = (fingerprint, space, *both_distances(in_space(outputs, space)))
        return self._victim[2:]

    # ------------------------------------------------------------------ generators
    @property
    def _joint(self) -> bool:
        return self.generator == "search" and self.models == "both"

    def _bounds(self, victim: LogitsNetwork, seeds: Tensor) -> tuple[Tensor, Tensor]:
        low, high = torch.tensor(-math.inf), torch.tensor(math.inf)
        if self.clip != "none" and self._estimator.clip_values is not None:  # type: ignore[union-attr]
            low, high = (torch.tensor(bound) for bound in clip_bounds(self._estimator))  # type: ignore[arg-type]
        if self.clip == "batch":
            unit = unit_length(victim, self.units, seeds.ndim)
            offset = victim.standardisation[0].view(unit.shape) if self.units == "standardised" else torch.zeros(())
            scaled = (seeds - offset) / unit
            low = torch.maximum(low, scaled.min() * unit + offset)
            high = torch.minimum(high, scaled.max() * unit + offset)
        return low, high

    def _ascend(self, victim: LogitsNetwork, seeds: Tensor, outputs: Tensor) -> Tensor:
        sigma = unit_length(victim, self.units, seeds.ndim)
        low, high = self._bounds(victim, seeds)
        noise = torch.rand(seeds.shape, generator=torch_generator(self.seed, "modeldiff", "start"))
        with tqdm(total=len(seeds), desc="ModelDiff", disable=not self.verbose) as bar:
            return pgd_partners(
                victim,
                seeds,
                outputs,
                starts=seeds + (2 * noise - 1) * self.radius * sigma,
                objective=self.objective,
                weights=make_class_weights(outputs.shape[1], self.class_weights),
                radius=self.radius * sigma,
                step=self.step * sigma,
                max_iter=self.max_iter,
                low=low,
                high=high,
                batch_size=self.batch_size,
                device=victim.device,
                progress=bar.update,
            )

    def _search(self, victim: LogitsNetwork, pool: Tensor, facts: dict[str, Any]) -> Tensor:
        draws = torch_generator(self.seed, "modeldiff", "search")
        rows = torch.randint(len(pool), (self.search_iterations,), generator=draws)
        positions = torch.randint(pool[0].numel(), (self.search_iterations,), generator=draws)

        def ask_victim(x: Tensor) -> Tensor:
            logits = victim.predict(x, self.batch_size)
            return in_space(logits, victim.kind)

        models = [ask_victim]
        partner = self._partner
        if partner is not None:
            facts["joint"] = model_digest(partner.classifier)

            def ask_suspect(x: Tensor) -> Tensor:
                logits = partner.logits(x)
                facts["joint"] = facts["joint"] or array_digest(logits.numpy())
                return in_space(logits, partner.kind)

            models.append(ask_suspect)
        low, high = clip_bounds(self._estimator) if self.search_clip else (-math.inf, math.inf)  # type: ignore[arg-type]
        with tqdm(total=self.search_iterations, desc="ModelDiff", disable=not self.verbose) as bar:
            mutated, accepted = search_probes(
                pool,
                models,
                step=(self.search_step * unit_length(victim, self.units, pool.ndim)).expand(pool.shape[1:]),
                rows=rows,
                positions=positions,
                constant_departure=self.search_departure == "seeds",
                low=low,
                high=high,
                progress=bar.update,
            )
        facts["search_accepted"] = int(accepted.sum())
        if partner is not None:
            facts["joint_queries"] = partner.queries
        logger.info("Search accepted %d of %d mutations", facts["search_accepted"], self.search_iterations)
        return mutated

    def _check_params(self) -> None:
        super()._check_params()
        check_number("nb_pairs", self.nb_pairs, 2, integer=True)
        check_choice("generator", self.generator, GENERATORS)
        check_choice("space", self.space, ("auto", "probabilities"))
        check_choice("units", self.units, UNITS)
        check_number("radius", self.radius, 0)
        check_number("step", self.step, 0, open_low=True)
        check_number("max_iter", self.max_iter, 0, integer=True)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        check_choice("clip", self.clip, ("batch", "classifier", "none"))
        check_choice("models", self.models, ("victim", "both"))
        check_number("search_step", self.search_step, 0, open_low=True)
        check_number("search_iterations", self.search_iterations, 0, integer=True)
        check_choice("search_departure", self.search_departure, ("mutated", "seeds"))
        check_flag("search_clip", self.search_clip)


def _finite(outputs: Tensor, what: str) -> Tensor:
    bad = nonfinite_rows(outputs)
    if bad:
        raise NonFiniteOutputError(f"The victim answers {bad} of {len(outputs)} {what} with NaN or infinite scores.")
    return outputs
