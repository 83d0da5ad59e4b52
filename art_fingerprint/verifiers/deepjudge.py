"""DeepJudge: six distances on adversarial examples (black-box) and on inputs that push single neurons (white-box)."""

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
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.core.outputs import to_probabilities
from art_fingerprint.core.queries import Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.core.taps import tap
from art_fingerprint.exceptions import (
    AccessError,
    EmptyFingerprintError,
    IncompatibleArchitectureError,
    InvalidInputError,
    LayerNotFoundError,
    NonFiniteOutputError,
)
from art_fingerprint.verifiers import deepjudge_metrics as formulas
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.deepjudge_generation import (
    adversarial_examples,
    carlini_examples,
    first_per_neuron,
    live_neurons,
    most_certain,
    neuron_tests,
)
from art_fingerprint.verifiers.deepjudge_metrics import POOLINGS, pool_activations
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.perturbation import UNITS, unit_length

logger = logging.getLogger(__name__)

METHODS = ("pgd", "fgsm", "cw")
WHITE_BOX = ("LOD", "LAD", "NOD", "NAD")
BLACK_BOX = ("RobD", "JSD")
_LARGEST_REFERENCE = 20_000

Parts = tuple[dict[str, Tensor], dict[str, Any]]


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
        :param batch_size: As in :class:`Verifier`.
        :param seed: As in :class:`Verifier`.
        :param verbose: As in :class:`Verifier`.
        """
        super().__init__(classifier, metric_names=metric_names, batch_size=batch_size, seed=seed, verbose=verbose)
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
        self.neurons = neurons if neurons is None or isinstance(neurons, int | np.integer) else tuple(neurons)
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

    # ------------------------------------------------------------------ extraction
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
        arrays: dict[str, Tensor] = {}
        facts: dict[str, Any] = {"nb_seeds": len(rows)}
        parts = []
        if self.wants(*BLACK_BOX):
            parts.append(self._extract_black_box(victim, seeds, labels[rows]))
        if self.wants(*WHITE_BOX):
            parts.append(self._extract_white_box(victim, seeds, x))
        for more_arrays, more_facts in parts:
            arrays.update(more_arrays)
            facts.update(more_facts)
        return {name: array.numpy() for name, array in arrays.items()}, facts

    def _extract_black_box(self, victim: LogitsNetwork, seeds: Tensor, labels: Tensor) -> Parts:
        if self.method == "cw":
            examples = carlini_examples(
                victim,
                seeds,
                labels,
                confidence=self.cw_confidence,
                initial_const=self.cw_initial_const,
                max_iter=self.cw_max_iter,
                clip_values=clip_bounds(self._estimator),  # type: ignore[arg-type]
                batch_size=self.batch_size,
                verbose=self.verbose,
            )
        else:
            examples = self._ascend(victim, seeds, labels)
        # Through the suspect's own path, so that the victim as a suspect gives the same answers to the last bit.
        answers = Suspect(self._estimator, self.batch_size).logits(examples)
        fooled = answers.argmax(1) != labels
        kept = fooled if self.keep == "success" else torch.ones_like(fooled)
        if not kept.any():
            knob = "`cw_max_iter`" if self.method == "cw" else "`radius`"
            raise EmptyFingerprintError(
                f"None of the {len(seeds)} adversarial examples fools the victim: raise {knob}, or set keep='all'."
            )
        _warn_if_few(int(kept.sum()), "adversarial examples")
        return {
            "examples": examples[kept],
            "examples_true": labels[kept],
            "examples_logits": answers[kept],
        }, {"nb_examples": int(kept.sum()), "nb_fooled": int(fooled.sum())}

    def _ascend(self, victim: LogitsNetwork, seeds: Tensor, labels: Tensor) -> Tensor:
        unit = unit_length(victim, self.units, seeds.ndim)
        radius = self.radius * unit
        iterations = 1 if self.method == "fgsm" else self.max_iter_attack
        step = 2.5 * radius / max(iterations, 1) if self.step is None else self.step * unit
        low, high = (torch.tensor(bound) for bound in clip_bounds(self._estimator))  # type: ignore[arg-type]
        if self.attack_clip == "standardised-unit":
            mean, std = (value.view(-1, *([1] * (seeds.ndim - 2))) for value in victim.standardisation)
            low, high = mean - std, mean + std
        noisy = self.method == "pgd" if self.random_start is None else self.random_start
        draws = torch_generator(self.seed, "deepjudge", "start")
        noise = 2 * torch.rand(seeds.shape, generator=draws) - 1 if noisy else None
        return adversarial_examples(
            victim,
            seeds,
            labels,
            radius=radius,
            step=radius if self.method == "fgsm" else step,
            max_iter=iterations,
            noise=noise,
            low=low,
            high=high,
            project=self.project,
            batch_size=self.batch_size,
            device=victim.device,
        )

    def _extract_white_box(self, victim: LogitsNetwork, seeds: Tensor, data: Tensor) -> Parts:
        network, device = victim.network, victim.device
        seeds = seeds[: self.nb_seeds_whitebox]
        example = victim.preprocess(seeds[:2].to(device))
        layer = resolve_layer(network, None if self.layer == "auto" else self.layer, example)

        def activations_of(x: Tensor) -> Tensor:
            return pool_activations(tap(network, layer, victim.preprocess(x)), self.pooling)

        pool = data[:_LARGEST_REFERENCE] if self.reference == "data" else seeds
        with torch.no_grad():
            parts = [activations_of(part.to(device)).amax(0) for part in pool.split(self.batch_size)]
        maxima = torch.stack(parts).amax(0).cpu()
        nb_neurons = len(maxima)
        if nb_neurons < 8:
            warnings.warn(
                f"Layer {layer!r} has {nb_neurons} neurons; LAD and NAD say little with fewer than 8 (nothing with 1).",
                stacklevel=4,
            )
        live = live_neurons(maxima)
        chosen = self._chosen_neurons(nb_neurons, layer)
        neurons = chosen[live[chosen]]
        knobs = "lower `multiplier`, raise `max_iter` or `learning_rate`, or take another `layer`"
        if len(neurons) == 0:
            raise EmptyFingerprintError(
                f"None of the {len(chosen)} neurons of layer {layer!r} is ever positive on the reference images: take "
                "another `layer`."
            )
        low, high = clip_bounds(self._estimator) if self.clip else (None, None)  # type: ignore[arg-type]
        with tqdm(desc="DeepJudge neurons", disable=not self.verbose) as bar:
            found = neuron_tests(
                activations_of,
                seeds,
                neurons,
                self.multiplier * maxima[neurons] + self.margin,
                learning_rate=self.learning_rate * unit_length(victim, self.units, seeds.ndim),
                max_iter=self.max_iter,
                max_tests_per_neuron=self.max_tests_per_neuron,
                low=low,
                high=high,
                keep_best=self.keep_best,
                stored_iterate=self.stored_iterate,
                batch_size=self.batch_size,
                device=device,
                progress=bar.update,
            )
        if len(found.x) == 0:
            raise EmptyFingerprintError(f"No input drives a neuron of layer {layer!r} to its target: {knobs}.")
        rows = torch.arange(len(found.x))
        counts = found.neuron.unique(return_counts=True)[1]
        if self.equalise_counts:
            rows = first_per_neuron(found.neuron, int(counts.min()))
        tests, neuron = found.x[rows], found.neuron[rows]
        _warn_if_few(len(tests), "white-box tests")
        answers = Suspect(self._estimator, self.batch_size).activations(tests, layer, self._pool)
        return {
            "tests": tests,
            "tests_neuron": neuron,
            "tests_seed": found.seed[rows],
            "tests_activations": answers.float(),
        }, {
            "layer": layer,
            "nb_neurons": nb_neurons,
            "dead_neurons": chosen[~live[chosen]].tolist(),
            "nb_tests": len(tests),
            "nb_pairs": found.nb_tasks,
            "nb_updates": found.nb_updates,
            "nb_neurons_with_tests": len(neuron.unique()),
        }

    def _chosen_neurons(self, nb_neurons: int, layer: str) -> Tensor:
        if self.neurons is None:
            return torch.arange(nb_neurons)
        if not isinstance(self.neurons, tuple):
            return torch.arange(min(self.neurons, nb_neurons))
        chosen = torch.tensor(self.neurons)
        if int(chosen.max()) >= nb_neurons:
            raise InvalidInputError(
                f"`neurons` names neuron {int(chosen.max())}, but layer {layer!r} has neurons 0 to {nb_neurons - 1}."
            )
        return chosen.unique()

    def _pool(self, z: Tensor) -> Tensor:
        return pool_activations(z, self.pooling)

    # ------------------------------------------------------------------ scoring
    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        scores: dict[str, float] = {}
        for names, array, measure in (
            (BLACK_BOX, "examples", self._score_black_box),
            (WHITE_BOX, "tests", self._score_white_box),
        ):
            if not self.wants(*names):
                continue
            if array in fingerprint.arrays:
                scores.update(measure(suspect, fingerprint))
            else:
                for name in names:
                    self._skip(name, "the fingerprint was extracted without it: extract again with these metric_names")
        return scores

    def _score_black_box(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        examples, true, logits_f = _tensors(fingerprint, "examples", "examples_true", "examples_logits")
        if suspect.nb_classes != logits_f.shape[1]:
            why = f"the suspect has {suspect.nb_classes} classes, the victim {logits_f.shape[1]}"
            self._skip("JSD", why)
            if not self.allow_label_mismatch:
                self._skip("RobD", why + "; set allow_label_mismatch=True if class numbers mean the same in both")
            if not (self.allow_label_mismatch and self.wants("RobD")):
                return {}
        logits_g = suspect.logits(examples)
        labels_f, labels_g = logits_f.argmax(1), logits_g.argmax(1)
        reference = labels_f if self.rob_reference == "victim" else true
        rob_f, rob_g = formulas.robustness(labels_f, reference), formulas.robustness(labels_g, reference)
        scores = {"RobD": abs(rob_g - rob_f), "Rob": rob_g, "MR_adv": formulas.robustness(labels_g, labels_f)}
        if logits_g.shape == logits_f.shape:
            scores["JSD"] = formulas.jensen_shannon(to_probabilities(logits_f), to_probabilities(logits_g))
        return scores

    def _score_white_box(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        tests, nu, a = _tensors(fingerprint, "tests", "tests_neuron", "tests_activations")
        layer = self.suspect_layer or fingerprint.facts["layer"]
        width = a.shape[1]

        def pooled(z: Tensor) -> Tensor:
            values = self._pool(z)
            if values.shape[1] != width:
                raise IncompatibleArchitectureError(
                    f"the suspect's layer {layer!r} has {values.shape[1]} neurons, the victim's "
                    f"{fingerprint.facts['layer']!r} has {width}"
                )
            return values

        try:
            b = suspect.activations(tests, layer, pooled).float()
        except (LayerNotFoundError, AccessError, IncompatibleArchitectureError) as error:
            for name in WHITE_BOX:
                self._skip(name, str(error))
            return {}
        bad = int((~torch.isfinite(b)).any(1).sum())
        if bad:
            raise NonFiniteOutputError(f"The suspect's layer {layer!r} is NaN or infinite on {bad} of {len(b)} tests.")
        lad, nad = formulas.layer_activation_distance(a, b), formulas.neuron_activation_distance(a, b, nu)
        return {
            "LOD": formulas.layer_output_distance(a, b, self.lod_order),
            "LAD": lad,
            "NOD": formulas.neuron_output_distance(a, b, nu),
            "NAD": nad * len(nu.unique()),
            "LAD_frac": lad / width,
            "NAD_frac": nad,
            "NNOD": formulas.normalised_neuron_output_distance(a, b, nu),
        }

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
            raise InvalidInputError(f"`suspect_layer` must be a layer name or None, got {self.suspect_layer!r}.")
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


def _tensors(fingerprint: Fingerprint, *names: str) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(fingerprint.arrays[name]) for name in names)


def _warn_if_few(count: int, what: str) -> None:
    if count < 10:
        warnings.warn(f"The fingerprint has only {count} {what}; ten or more are advised.", stacklevel=5)
