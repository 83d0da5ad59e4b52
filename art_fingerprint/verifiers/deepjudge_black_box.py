"""DeepJudge's black-box family: adversarial examples of the victim, and what a suspect answers to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from art_fingerprint.core.classifier import LogitsNetwork, clip_bounds
from art_fingerprint.core.outputs import labels_of, to_probabilities
from art_fingerprint.core.perturbation import per_channel, unit_length
from art_fingerprint.core.queries import Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import AccessError, EmptyFingerprintError
from art_fingerprint.verifiers.deepjudge_generation import adversarial_examples, carlini_examples
from art_fingerprint.verifiers.deepjudge_metrics import jensen_shannon, robustness
from art_fingerprint.verifiers.fingerprint import Fingerprint, warn_if_few

if TYPE_CHECKING:
    from art_fingerprint.verifiers.deepjudge import DeepJudgeVerifier

METRICS = ("RobD", "JSD")
NB_QUERIES = "nb_examples"  # the fact that says how many samples a suspect is sent


def extract(
    verifier: DeepJudgeVerifier, victim: LogitsNetwork, seeds: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return arrays and facts of the fingerprint: adversarial examples and the victim's answers.

    :param verifier: Holds the parameters.
    :param victim: As in ``Verifier._extract``.
    :param seeds: Images that the victim classifies as labelled, ``(n, ...)`` on the host.
    :param labels: Their labels ``(n,)`` on the host.
    :raises EmptyFingerprintError: no example fools the victim, and only such examples are kept.
    """
    if verifier.method == "cw":
        examples = carlini_examples(
            victim,
            seeds,
            labels,
            confidence=verifier.cw_confidence,
            initial_const=verifier.cw_initial_const,
            max_iter=verifier.cw_max_iter,
            clip_values=clip_bounds(verifier.estimator),
            batch_size=verifier.batch_size,
            verbose=verifier.verbose,
        )
    else:
        examples = _ascend(verifier, victim, seeds, labels)
    # Through the suspect's own path, so that the victim as a suspect gives the same answers to the last bit.
    try:
        answers = Suspect(verifier.estimator, verifier.batch_size).logits(examples)
    except AccessError as error:
        raise AccessError(f"The victim, asked as a suspect, failed on adversarial examples: {error}") from error
    fooled = answers.argmax(1) != labels
    kept = fooled if verifier.keep == "success" else torch.ones_like(fooled)
    if not kept.any():
        knob = "`cw_max_iter`" if verifier.method == "cw" else "`radius`"
        raise EmptyFingerprintError(
            f"None of the {len(seeds)} adversarial examples fools the victim: raise {knob}, or set keep='all'."
        )
    warn_if_few(int(kept.sum()), "adversarial examples", stacklevel=5)
    return {
        "examples": examples[kept],
        "examples_true": labels[kept],
        "examples_logits": answers[kept],
    }, {"nb_examples": int(kept.sum()), "nb_fooled": int(fooled.sum())}


def _ascend(verifier: DeepJudgeVerifier, victim: LogitsNetwork, seeds: Tensor, labels: Tensor) -> Tensor:
    unit = unit_length(victim, verifier.units, seeds.ndim)
    radius = verifier.radius * unit
    iterations = 1 if verifier.method == "fgsm" else verifier.max_iter_attack
    step = 2.5 * radius / max(iterations, 1) if verifier.step is None else verifier.step * unit
    low, high = (torch.tensor(bound) for bound in clip_bounds(verifier.estimator))
    if verifier.attack_clip == "standardised-unit":
        mean, std = (per_channel(value, seeds.ndim) for value in victim.standardisation)
        low, high = mean - std, mean + std
    noisy = verifier.method == "pgd" if verifier.random_start is None else verifier.random_start
    draws = torch_generator(verifier.seed, "deepjudge", "start")
    noise = 2 * torch.rand(seeds.shape, generator=draws) - 1 if noisy else None
    return adversarial_examples(
        victim,
        seeds,
        labels,
        radius=radius,
        step=radius if verifier.method == "fgsm" else step,
        max_iter=iterations,
        noise=noise,
        low=low,
        high=high,
        project=verifier.project,
        batch_size=verifier.batch_size,
        device=victim.device,
    )


def extraction_passes(verifier: DeepJudgeVerifier, nb_images: int) -> int:
    """Return the passes of :func:`extract` by gradients, from so many images."""
    iterations = 1 if verifier.method == "fgsm" else verifier.max_iter_attack
    return min(verifier.nb_seeds, nb_images) * (2 * iterations + 1)


def most_queries(verifier: DeepJudgeVerifier) -> int:
    """Return the most samples that a suspect is sent."""
    return verifier.nb_seeds


def score(
    verifier: DeepJudgeVerifier, suspect: Suspect, fingerprint: Fingerprint
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the family's metrics with ``Rob`` and ``MR_adv``, and why a metric cannot be had from this suspect."""
    examples, true, logits_f = fingerprint.tensors("examples", "examples_true", "examples_logits")
    skipped: dict[str, str] = {}
    if suspect.nb_classes != logits_f.shape[1]:
        why = f"the suspect has {suspect.nb_classes} classes, the victim {logits_f.shape[1]}"
        skipped["JSD"] = why
        if not verifier.allow_label_mismatch:
            skipped["RobD"] = why + "; set allow_label_mismatch=True if class numbers mean the same in both"
        if not (verifier.allow_label_mismatch and verifier.wants("RobD")):
            return {}, skipped
    answers = suspect.rows(examples)
    labels_f, labels_g = logits_f.argmax(1), labels_of(answers)
    reference = labels_f if verifier.rob_reference == "victim" else true
    rob_f, rob_g = robustness(labels_f, reference), robustness(labels_g, reference)
    scores = {"RobD": abs(rob_g - rob_f), "Rob": rob_g, "MR_adv": robustness(labels_g, labels_f)}
    verifier._keep(scores)
    suspect.check_finite(answers)  # a distance is not decided by answers that are none
    if "JSD" in skipped or not verifier.wants("JSD"):
        return scores, skipped
    try:
        logits_g = suspect.as_logits(answers)
    except AccessError as error:
        return scores, {"JSD": str(error)}
    return {**scores, "JSD": jensen_shannon(to_probabilities(logits_f), to_probabilities(logits_g))}, skipped
