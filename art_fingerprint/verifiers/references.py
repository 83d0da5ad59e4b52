"""Reference models: who they are, and the calibration that follows from what was measured on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint.core.checks import is_classifier
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import first_weights_digest, network_digest
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.exceptions import CalibrationError, InvalidInputError
from art_fingerprint.verifiers.calibration import Calibration, Direction, Rule, blind_metrics, threshold
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.measurement import Measurement


def reference_digests(models: Sequence[Any], victim: str) -> list[tuple[str, str]]:
    """Return full and short digest of each model, empty for those that show no network.

    :param victim: The victim's digest.
    :raises CalibrationError: a model is the victim, or comes twice.
    """
    digests: list[tuple[str, str]] = []
    for index, model in enumerate(models):
        if is_classifier(model) and any(model is other for other in models[:index]):
            raise CalibrationError(f"Reference model {index} is one before it; references count once each.")
        full = model_digest(model) or ""
        if full == victim:
            raise CalibrationError("A reference model is the victim itself; references must be trained independently.")
        if full and any(full == other for other, _ in digests):
            raise CalibrationError(
                f"Reference model {index} has the weights of one before it; references must be trained independently "
                "of each other."
            )
        digests.append((full, model_digest(model, first_weights_digest) or ""))
    return digests


def by_digest(digests: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return full to short digest of the models that show a network."""
    return {full: short for full, short in digests if full}


def check_unknown(suspect: Any, fingerprint: Fingerprint, whose: str = "") -> None:
    """Raise if a suspect has set the thresholds, or has helped to choose the queries. Only PyTorch classifiers can be
    recognised.

    :param whose: Of which verifier, for the message.
    :raises CalibrationError: it has.
    """
    thresholds = {} if fingerprint.calibration is None else fingerprint.calibration.digests
    choosers = {**fingerprint.facts.get("negatives", {}), **fingerprint.facts.get("positives", {})}
    known = {**thresholds, **choosers}
    # the short digest tells most models apart before all weights are read
    if not known or model_digest(suspect, first_weights_digest) not in known.values():
        return
    full = model_digest(suspect)
    if full in thresholds:
        raise CalibrationError(
            f"The suspect is one of the reference models{whose} that set the thresholds: leave it out of the "
            "references, or pass allow_reference=True."
        )
    if full in choosers:
        raise CalibrationError(
            f"The suspect is one of the models that the queries{whose} were chosen by (`negatives`, `positives`), so "
            "that its score says nothing: leave it out of them, or pass allow_reference=True."
        )


def check_calibration(fingerprint: Fingerprint, names: Sequence[str]) -> None:
    """Raise if the thresholds of a fingerprint are not its own.

    :param names: Metrics that its verifier knows.
    :raises CalibrationError: the references were scored by another fingerprint, or no threshold is of its metrics.
    """
    calibration = fingerprint.calibration
    if calibration is None or not calibration.thresholds:
        return
    if calibration.fingerprint not in ("", fingerprint.digest):
        raise CalibrationError(
            "The thresholds are of reference models that were scored by another fingerprint, with other probes or of "
            "another victim: calibrate this one, or keep nothing of them but numbers ({METRIC: threshold})."
        )
    if set(names).isdisjoint(calibration.thresholds):
        raise CalibrationError(
            f"The thresholds are of {', '.join(calibration.thresholds)}; this verifier has {', '.join(names)}."
        )


def calibration_of(
    found: Sequence[Measurement],
    directions: Mapping[str, Direction],
    rule: Rule,
    alpha: float,
    confidence: float,
    false_positive_rate: float,
    digests: Sequence[tuple[str, str]],
    fingerprint: str,
) -> Calibration:
    """Return the calibration that follows from the references' scores.

    Metrics that were compared as logits on all references get thresholds in both spaces. If some references answer
    probabilities, all of them are compared as probabilities.

    :param found: One measurement for each reference, softened.
    :param directions: Metrics that are wanted, with their directions.
    :param digests: Of the references, by :func:`reference_digests`.
    :param fingerprint: Digest of what they were scored by.
    :raises CalibrationError: a reference failed, or none of the metrics was computed on all of them.
    """
    for index, measured in enumerate(found):
        if measured.trouble:
            raise CalibrationError(
                f"Reference model {index} cannot be scored: {measured.trouble}"
            ) from measured.failure
    names = [name for name in directions if all(name in measured.scores for measured in found)]
    if not names:
        raise CalibrationError("The reference models share no metric with this verifier.")
    _warn_if_dropped(found, [name for name in directions if name not in names])
    _warn_if_alike(found, digests)

    def calibration(
        scores: dict[str, tuple[float, ...]], spaces: dict[str, str], softened: Calibration | None = None
    ) -> Calibration:
        return Calibration(
            references=scores,
            thresholds={
                name: threshold(values, directions[name], rule, alpha, confidence, false_positive_rate)
                for name, values in scores.items()
            },
            rule=rule,
            alpha=float(alpha),
            confidence=float(confidence),
            target_false_positive_rate=float(false_positive_rate),
            spaces=spaces,
            softened=softened,
            digests=by_digest(digests),
            order=tuple(full for full, _ in digests),
            fingerprint=fingerprint,
        )

    own, soft, spaces = {}, {}, {}
    for name in names:
        kinds = {measured.spaces.get(name, "") for measured in found}
        own[name] = tuple(measured.scores[name] for measured in found)
        as_probabilities = tuple(measured.as_probabilities(name) for measured in found)
        if len(kinds) > 1:
            own[name] = as_probabilities
        elif kinds == {"logits"} and np.isfinite(as_probabilities).all():
            soft[name] = as_probabilities
        if kinds != {""}:
            spaces[name] = "logits" if kinds == {"logits"} else "probabilities"
    softened = calibration(soft, dict.fromkeys(soft, "probabilities")) if soft else None
    return calibration(own, spaces, softened)


def _warn_if_dropped(found: Sequence[Measurement], names: Sequence[str]) -> None:
    for name in names:
        without = [index for index, measured in enumerate(found) if name not in measured.scores]
        why = found[without[0]].skipped.get(name, "not computed")
        warn_caller(
            f"{name} gets no threshold and will decide nothing: reference model {without[0]} has no value of it ({why})"
            f"{'' if len(without) == 1 else f', and {len(without) - 1} more have none'}. Leave such references out, or "
            "the metric (`metric_names`)."
        )


def _warn_if_alike(found: Sequence[Measurement], digests: Sequence[tuple[str, str]]) -> None:
    first: dict[str, int] = {}
    for index, (measured, (full, _)) in enumerate(zip(found, digests, strict=True)):
        twin = first.setdefault(measured.answers, index) if measured.answers else index
        if twin != index and not (full and digests[twin][0]):
            warn_caller(
                f"Reference models {twin} and {index} gave the same answers to all probes: if they are one model, it "
                "counts twice, and the stated rates are too small."
            )


def model_digest(model: Any, digest_of: Callable[[nn.Module], str] = network_digest) -> str | None:
    """Return the digest of a model's network, ``None`` if it shows none."""
    if not isinstance(model, PyTorchClassifier):
        return None
    try:
        return digest_of(network_of(model))
    except InvalidInputError:  # a scripted or quantised network, which only answers queries
        return None


def warn_if_weak(calibration: Calibration, directions: Mapping[str, Direction], facts: Mapping[str, Any]) -> None:
    """Warn of a single reference, and of metrics by whose thresholds not even the victim would be judged derived.

    :param calibration: Thresholds.
    :param directions: Metric to direction.
    :param facts: The fingerprint's, see :func:`.blind_metrics`.
    """
    if calibration.nb_references == 1:
        warn_caller("A single reference model says little about others; five or more are advised.")
    blind = blind_metrics(calibration.thresholds, directions, facts, calibration.rule)
    if blind:
        listed = ", ".join(f"{name} (threshold {calibration.thresholds[name]:.3g})" for name in blind)
        warn_caller(
            f"By these thresholds not even the victim would be judged derived: {listed}. Such a metric "
            "acquits nobody: use more or other data or settings, leave it out (`metric_names`), or see whether a "
            "reference model was derived from the victim."
        )
