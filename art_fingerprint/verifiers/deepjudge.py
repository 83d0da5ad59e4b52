"""DeepJudge: six distances on adversarial examples (black-box) and on inputs that push single neurons (white-box)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_sequence, shown
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.outputs import to_probabilities
from art_fingerprint.core.perturbation import UNITS
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.exceptions import EmptyFingerprintError, InvalidInputError
from art_fingerprint.verifiers import deepjudge_black_box as black_box
from art_fingerprint.verifiers import deepjudge_white_box as white_box
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.deepjudge_generation import most_certain
from art_fingerprint.verifiers.deepjudge_metrics import POOLINGS
from art_fingerprint.verifiers.fingerprint import Fingerprint

METHODS = ("pgd", "fgsm", "cw")
BLACK_BOX = black_box.METRICS
WHITE_BOX = white_box.METRICS
FAMILIES = {black_box: BLACK_BOX, white_box: WHITE_BOX}


class DeepJudgeVerifier(Verifier):
    """DeepJudge (Chen et al., IEEE S&P 2022): six distances between victim and suspect, in two families of test inputs.

    Black-box, on untargeted adversarial examples of the victim made from its most certain right answers:

    - ``RobD = |Rob(g) - Rob(f)|``, Rob = accuracy on the examples. Access: labels. Same label space.
    - ``JSD``: mean Jensen-Shannon divergence of the answers. Access: scores. Same number of classes.

    White-box, at one layer, on inputs that drive single neurons beyond ``multiplier`` times their largest activation:

    - ``LOD``, ``NOD``: mean distance of the pooled activations, of the whole layer (norm) or of the driven neuron.
    - ``LAD``, ``NAD``: how many activations differ after binarising; counts, as in both public codes: NAD is the mean
      over tests times the number of neurons that have tests. Access: the layer with the same number K of neurons.

    :func:`~art_fingerprint.verifiers.deepjudge_metrics.pool_activations` and its neighbours give the exact formulas.
    A suspect without the layer or with another K still gets the black-box metrics; the verdict lists what was skipped.
    Beside the metrics :meth:`score` returns ``Rob`` (the suspect's), ``MR_adv`` (agreement with the victim's labels),
    ``LAD_frac = LAD / K``, ``NAD_frac`` (the mean over tests) and ``NNOD``
    (:func:`~art_fingerprint.verifiers.deepjudge_metrics.normalised_neuron_output_distance`).

    Sources: the paper; the official Keras code [DJ]; RemovalNet's port [RN]. Deviations of the defaults from [DJ]: PGD
    is projected on the ball, of radius 0.03; RobD is a difference, which with ``keep="success"`` is [DJ]'s plain Rob(g)
    because Rob(f) is then 0; neurons that are dead on the reference are skipped and listed.

    Profile ``removalnet-legacy`` has the defects of [RN], each by a parameter of its own. Two have none: ranking the
    first 100 batches only (give :meth:`extract` those images), and tests that mix columns with rows at layers of more
    than 32 columns (they push what no metric reads).

    Cost of extraction for n seeds: one forward sample for each image given; ``n max_iter_attack`` forward and backward
    samples; for each of ``nb_seeds_whitebox * K`` pairs (seed, neuron) up to ``max_iter`` forward and backward samples
    that end at the layer. Scoring: n' queries for the black-box part and T forward samples up to the layer for the
    white-box part, with n' examples and T tests in the fingerprint.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("LOD", "distance", "layers"),
        Metric("LAD", "distance", "layers"),
        Metric("NOD", "distance", "layers"),
        Metric("NAD", "distance", "layers"),
        Metric("RobD", "distance", "labels"),
        Metric("JSD", "distance", "scores"),
    )
    extras: ClassVar[tuple[str, ...]] = ("Rob", "MR_adv", "LAD_frac", "NAD_frac", "NNOD")
    source_access: ClassVar[Access] = "gradients"
    suspect_access: ClassVar[Access] = "layers"
    verifier_params: ClassVar[list[str]] = [
        *Verifier.verifier_params,
        "units",
        "nb_seeds",
        "gini_on",
        "method",
        "radius",
        "step",
        "max_iter_attack",
        "random_start",
        "project",
        "attack_clip",
        "cw_confidence",
        "cw_initial_const",
        "cw_max_iter",
        "keep",
        "rob_reference",
        "allow_label_mismatch",
        "layer",
        "suspect_layer",
        "pooling",
        "nb_seeds_whitebox",
        "neurons",
        "max_tests_per_neuron",
        "reference",
        "multiplier",
        "margin",
        "learning_rate",
        "max_iter",
        "clip",
        "keep_best",
        "stored_iterate",
        "equalise_counts",
        "lod_order",
    ]
    _removalnet: ClassVar[dict[str, Any]] = {
        "units": "standardised",
        "radius": 0.1,
        "step": 10 / 255,
        "max_iter_attack": 40,
        "cw_confidence": 0.0,
        "cw_initial_const": 1e-4,
        "nb_seeds_whitebox": 1000,
        "neurons": 32,
        "learning_rate": 0.1,
    }
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "removalnet": _removalnet,
        "removalnet-legacy": {
            **_removalnet,
            "gini_on": "logits",
            "attack_clip": "standardised-unit",
            "rob_reference": "victim",
            "pooling": "last-axis",
            "margin": 0.2,
            "keep_best": True,
            "stored_iterate": "next",
            "equalise_counts": True,
        },
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        units: str = "input",
        nb_seeds: int = 1000,
        gini_on: str = "probabilities",
        method: str = "pgd",
        radius: float = 0.03,
        step: float | None = None,
        max_iter_attack: int = 10,
        random_start: bool | None = None,
        project: bool = True,
        attack_clip: str = "classifier",
        cw_confidence: float = 5.0,
        cw_initial_const: float = 0.01,
        cw_max_iter: int = 1000,
        keep: str = "success",
        rob_reference: str = "true",
        allow_label_mismatch: bool = False,
        layer: str | int = "auto",
        suspect_layer: str | None = None,
        pooling: str = "channel",
        nb_seeds_whitebox: int = 100,
        neurons: int | Sequence[int] | None = None,
        max_tests_per_neuron: int | None = None,
        reference: str = "seeds",
        multiplier: float = 3.0,
        margin: float = 0.0,
        learning_rate: float = 0.01,
        max_iter: int = 1000,
        clip: bool = False,
        keep_best: bool = False,
        stored_iterate: str = "tested",
        equalise_counts: bool = False,
        lod_order: float = 2.0,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param units: Of ``radius``, ``step`` and ``learning_rate``: ``"input"`` ([DJ]) or ``"standardised"`` ([RN]),
            multiplied by the standard deviation of the classifier's standardisation per channel.
        :param nb_seeds: Seeds, the most certain of the right answers (both codes 1000); fewer if there are fewer.
        :param gini_on: Certainty of ``"probabilities"``, or of ``"logits"`` (a defect of [RN]).
        :param method: Of the adversarial examples: ``"pgd"`` (both codes), ``"fgsm"``, or ``"cw"`` (ART's Carlini-L2).
        :param radius: Linf radius of PGD and FGSM (ours 0.03, [RN] 0.1).
        :param step: Step of PGD; ``None`` for ``2.5 * radius / max_iter_attack`` (ours; [DJ] 0.03, [RN] 10/255).
        :param max_iter_attack: Steps of PGD ([DJ] 10, [RN] 40).
        :param random_start: Start at a random point of the ball; ``None``: with PGD yes, with FGSM no ([DJ] yes).
        :param project: Keep PGD and FGSM in the ball; [DJ] does not.
        :param attack_clip: Range of PGD and FGSM: ``"classifier"``, its ``clip_values``, or ``"standardised-unit"``,
            [-1, 1] after standardisation (a defect of [RN], which cuts into the valid range).
        :param cw_confidence: Confidence of C&W ([DJ] 5, [RN] 0).
        :param cw_initial_const: First trade-off constant of C&W ([DJ] 0.01, [RN] 1e-4).
        :param cw_max_iter: Iterations of C&W in each of its three binary search steps (both codes 1000).
        :param keep: ``"success"``: only examples that fool the victim (both codes); ``"all"``: what the Rob values
            printed in the RemovalNet paper need.
        :param rob_reference: Rob is agreement with the ``"true"`` labels, or the ``"victim"``'s (a defect of [RN]).
        :param allow_label_mismatch: Compute RobD for suspects with another number of classes.
        :param layer: Dotted name of the layer, its stage number (1 = first), or ``"auto"``: the last stage whose output
            keeps a quarter of the input height, the middle one for tokens. The name is recorded in the fingerprint.
        :param suspect_layer: Name of the layer in suspects; ``None`` for the same name.
        :param pooling: ``"channel"``, or ``"last-axis"`` (a defect of [RN]: image columns instead of channels; with
            it use ``layer=2`` for a VGG19).
        :param nb_seeds_whitebox: How many of the seeds are pushed for every neuron ([DJ] 100, [RN] 1000).
        :param neurons: Neurons to push: ``None`` all, a number for the first so many ([RN] 32), or a list of indices.
        :param max_tests_per_neuron: Most tests of a neuron, from its first successful seeds; ``None`` for no limit. A
            neuron without success still tries all seeds: ``nb_seeds_whitebox`` is what bounds the cost.
        :param reference: Images that give the neurons' largest activations: ``"seeds"`` (the white-box ones; [RN], and
            [DJ] without a training set) or ``"data"``, the first 20000 images given ([DJ] with one).
        :param multiplier: Target of a neuron in multiples of its largest activation, above 0 (both codes 3).
        :param margin: Added to the target ([RN] 0.2).
        :param learning_rate: Step of Adam ([DJ] 0.01, [RN] 0.1).
        :param max_iter: Most updates of a pair (both codes 1000).
        :param clip: Keep tests inside ``clip_values``. No code does: the clipped problem is often infeasible.
        :param keep_best: Give a neuron without success its best attempt from the first seed ([RN]).
        :param stored_iterate: ``"tested"``: the iterate that passed; ``"next"``: the one after it ([RN]).
        :param equalise_counts: Cut every neuron to the smallest number of tests ([RN]).
        :param lod_order: The norm's p of LOD, 1 or more.
        :param metric_names: As in :class:`Verifier`. Inputs are made only for the families asked for.
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
        self.units = units
        self.nb_seeds = nb_seeds
        self.gini_on = gini_on
        self.method = method
        self.radius = radius
        self.step = step
        self.max_iter_attack = max_iter_attack
        self.random_start = random_start
        self.project = project
        self.attack_clip = attack_clip
        self.cw_confidence = cw_confidence
        self.cw_initial_const = cw_initial_const
        self.cw_max_iter = cw_max_iter
        self.keep = keep
        self.rob_reference = rob_reference
        self.allow_label_mismatch = allow_label_mismatch
        self.layer = layer
        self.suspect_layer = suspect_layer
        self.pooling = pooling
        self.nb_seeds_whitebox = nb_seeds_whitebox
        whole = neurons is None or isinstance(neurons, int | np.integer)
        self.neurons: int | tuple[int, ...] | None = neurons if whole else check_sequence("neurons", neurons)  # type: ignore[assignment]
        self.max_tests_per_neuron = max_tests_per_neuron
        self.reference = reference
        self.multiplier = multiplier
        self.margin = margin
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.clip = clip
        self.keep_best = keep_best
        self.stored_iterate = stored_iterate
        self.equalise_counts = equalise_counts
        self.lod_order = lod_order
        self._check_params()

    # ------------------------------------------------------------------ hooks
    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        logits = victim.predict(x, self.batch_size)
        predicted = logits.argmax(1)
        labels = predicted if y is None else y
        scores = logits if self.gini_on == "logits" else to_probabilities(logits)
        rows = most_certain(scores, labels, predicted, self.nb_seeds)
        if len(rows) == 0:
            raise EmptyFingerprintError(
                f"The victim classifies none of the {len(x)} images as labelled, so there are no seeds: check `y`."
            )
        seeds = x[rows]
        parts = []
        if self.wants(*BLACK_BOX):
            parts.append(black_box.extract(self, victim, seeds, labels[rows]))
        if self.wants(*WHITE_BOX):
            parts.append(white_box.extract(self, victim, seeds, x))
        arrays: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {"nb_seeds": len(rows)}
        for more_arrays, more_facts in parts:
            arrays.update({name: array.numpy() for name, array in more_arrays.items()})
            facts.update(more_facts)
        return arrays, facts

    def _extraction_passes(self, nb_images: int) -> float | None:
        asked = [family for family, names in FAMILIES.items() if self.wants(*names)]
        if black_box in asked and self.method == "cw":  # ART searches as long as it likes
            return None
        if white_box in asked and self.estimator is None:  # whose layer says how many neurons there are
            return None
        return nb_images + float(sum(family.extraction_passes(self, nb_images) for family in asked))

    def expected_queries(self) -> int | None:
        asked = [family for family, names in FAMILIES.items() if self.wants(*names)]
        if self.fingerprint is not None:
            return sum(int(self.fingerprint.facts.get(family.NB_QUERIES, 0)) for family in asked)
        if white_box in asked and self.estimator is None:
            return None
        return sum(family.most_queries(self) for family in asked)

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        scores: dict[str, float] = {}
        for names, array, measure in (
            (BLACK_BOX, "examples", black_box.score),
            (WHITE_BOX, "tests", white_box.score),
        ):
            if not self.wants(*names):
                continue
            if array in fingerprint.arrays:
                found, skipped = measure(self, suspect, fingerprint)
                scores.update(found)
                self._keep(found)
            else:
                why = "the fingerprint was extracted without it: extract again with these metric_names"
                skipped = dict.fromkeys(names, why)
            for name, why in skipped.items():
                self._skip(name, why)
        return scores

    def _check_params(self) -> None:
        super()._check_params()
        check_choice("units", self.units, UNITS)
        check_number("nb_seeds", self.nb_seeds, 1, integer=True)
        check_choice("gini_on", self.gini_on, ("probabilities", "logits"))
        check_choice("method", self.method, METHODS)
        check_number("radius", self.radius, 0, open_low=True)
        if self.step is not None:
            check_number("step", self.step, 0, open_low=True)
        check_number("max_iter_attack", self.max_iter_attack, 1, integer=True)
        if self.random_start is not None:
            check_flag("random_start", self.random_start)
        check_flag("project", self.project)
        check_choice("attack_clip", self.attack_clip, ("classifier", "standardised-unit"))
        check_number("cw_confidence", self.cw_confidence, 0)
        check_number("cw_initial_const", self.cw_initial_const, 0, open_low=True)
        check_number("cw_max_iter", self.cw_max_iter, 1, integer=True)
        check_choice("keep", self.keep, ("success", "all"))
        check_choice("rob_reference", self.rob_reference, ("true", "victim"))
        check_flag("allow_label_mismatch", self.allow_label_mismatch)
        if not isinstance(self.layer, str):
            check_number("layer", self.layer, 1, integer=True)
        if self.suspect_layer is not None and not isinstance(self.suspect_layer, str):
            raise InvalidInputError(f"`suspect_layer` must be a layer name or None, got {shown(self.suspect_layer)}.")
        check_choice("pooling", self.pooling, POOLINGS)
        check_number("nb_seeds_whitebox", self.nb_seeds_whitebox, 1, integer=True)
        if isinstance(self.neurons, tuple):
            if not self.neurons:
                raise InvalidInputError("`neurons` is empty; pass None for all neurons.")
            for neuron in self.neurons:
                check_number("neurons", neuron, 0, integer=True)
        elif self.neurons is not None:
            check_number("neurons", self.neurons, 1, integer=True)
        if self.max_tests_per_neuron is not None:
            check_number("max_tests_per_neuron", self.max_tests_per_neuron, 1, integer=True)
        check_choice("reference", self.reference, ("seeds", "data"))
        check_number("multiplier", self.multiplier, 0, open_low=True)
        check_number("margin", self.margin, 0)
        check_number("learning_rate", self.learning_rate, 0, open_low=True)
        check_number("max_iter", self.max_iter, 1, integer=True)
        check_flag("clip", self.clip)
        check_flag("keep_best", self.keep_best)
        check_choice("stored_iterate", self.stored_iterate, ("tested", "next"))
        check_flag("equalise_counts", self.equalise_counts)
        check_number("lod_order", self.lod_order, 1)
