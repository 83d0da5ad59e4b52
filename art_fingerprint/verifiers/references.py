"""Reference models: who they are, and the calibration that follows from what was measured on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import first_weights_digest, network_digest
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.exceptions import CalibrationError, InvalidInputError
from art_fingerprint.verifiers.calibration import Calibration, Direction, Rule, blind_metrics, threshold
from art_fingerprint.verifiers.measurement import Measurement


def reference_digests(models: Sequence[Any], victim: str) -> dict[str, str]:
    """Return full to short digest of the models that show a network.

    :param victim: The victim's digest.
    :raises CalibrationError: a model is the victim, or comes twice.
    """
    digests: dict[str, str] = {}
    for index, model in enumerate(models):
        full = model_digest(model)
        if full is None:
            continue
        if full == victim:
            raise CalibrationError("A reference model is the victim itself; references must be trained independently.")
        if full in digests:
            raise CalibrationError(
                f"Reference model {index} has the weights of one before it; references must be trained independently "
                "of each other."
            )
        digests[full] = str(model_digest(model, first_weights_digest))
    return digests


def is_reference(suspect: Any, calibration: Calibration) -> bool:
    """Tell whether a suspect is one of the reference models. Only PyTorch classifiers can be recognised."""
    return (
        bool(calibration.digests)
        # tells most models apart before all weights are read
        and model_digest(suspect, first_weights_digest) in calibration.digests.values()
        and model_digest(suspect) in calibration.digests
    )


def calibration_of(
    found: Sequence[Measurement],
    directions: Mapping[str, Direction],
    rule: Rule,
    alpha: float,
    confidence: float,
    false_positive_rate: float,
    digests: Mapping[str, str],
) -> Calibration:
    """Return the calibration that follows from the references' scores.

    Metrics that were compared as logits on all references get thresholds in both spaces. If some references answer
    probabilities, all of them are compared as probabilities.

    :param found: One measurement for each reference, softened.
    :param directions: Metrics that are wanted, with their directions.
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

    def calibration(
        scores: dict[str, tuple[float, ...]],
        spaces: dict[str, str],
        known: dict[str, str],
        softened: Calibration | None = None,
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
            digests=known,
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
    softened = calibration(soft, dict.fromkeys(soft, "probabilities"), {}) if soft else None
    return calibration(own, spaces, dict(digests), softened)


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
