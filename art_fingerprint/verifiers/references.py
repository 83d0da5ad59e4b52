"""Reference models: what was measured on them, who they are, and the calibration that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import CalibrationError, FingerprintError, InvalidInputError
from art_fingerprint.verifiers.calibration import Calibration, Direction, Rule, threshold

# values of each tensor behind the short digest, which tells most models apart before all weights are read
_SHORT = 8


@dataclass(frozen=True)
class Measurement:
    """What one pass over a classifier gave.

    :ivar scores: Metrics, then extras.
    :ivar skipped: Metric name to the reason why it could not be computed.
    :ivar spaces: Metric name to what was compared, ``"logits"`` or ``"probabilities"``, where either is possible.
    :ivar queries: Samples sent.
    :ivar failure: What ended the pass early, if anything.
    """

    scores: dict[str, float]
    skipped: dict[str, str]
    spaces: dict[str, str]
    queries: int
    failure: FingerprintError | None


def reference_digests(models: Sequence[Any], victim: str) -> dict[str, str]:
    """Return full to short digest of the models that show a network.

    :param victim: The victim's digest.
    :raises CalibrationError: a model is the victim, or comes twice.
    """
    digests: dict[str, str] = {}
    for index, model in enumerate(models):
        full = _digest(model)
        if full is None:
            continue
        if full == victim:
            raise CalibrationError("A reference model is the victim itself; references must be trained independently.")
        if full in digests:
            raise CalibrationError(
                f"Reference model {index} has the weights of one before it; references must be trained independently "
                "of each other."
            )
        digests[full] = str(_digest(model, _SHORT))
    return digests


def is_reference(suspect: Any, calibration: Calibration) -> bool:
    """Tell whether a suspect is one of the reference models. Only PyTorch classifiers can be recognised."""
    return (
        bool(calibration.digests)
        and _digest(suspect, _SHORT) in calibration.digests.values()
        and _digest(suspect) in calibration.digests
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

    :param found: One measurement for each reference.
    :param directions: Metrics that are wanted, with their directions.
    :raises CalibrationError: a reference failed, none of the metrics was computed on all of them, or a metric compared
        logits on one and probabilities on another.
    """
    for index, measured in enumerate(found):
        if measured.failure is not None:
            raise CalibrationError(
                f"Reference model {index} cannot be scored: {measured.failure}"
            ) from measured.failure
    names = [name for name in directions if all(name in measured.scores for measured in found)]
    if not names:
        raise CalibrationError("The reference models share no metric with this verifier.")
    for name in names:
        if len({measured.spaces.get(name) for measured in found}) > 1:
            raise CalibrationError(
                f"{name} of reference models that answer logits cannot be compared with that of models that answer "
                "probabilities: use references of one kind, or set space='probabilities'."
            )
    scores = {name: tuple(measured.scores[name] for measured in found) for name in names}
    return Calibration(
        references=scores,
        thresholds={
            name: threshold(scores[name], directions[name], rule, alpha, confidence, false_positive_rate)
            for name in names
        },
        rule=rule,
        alpha=alpha,
        confidence=confidence,
        target_false_positive_rate=false_positive_rate,
        spaces={name: space for name, space in found[0].spaces.items() if name in names},
        digests=dict(digests),
    )


def _digest(model: Any, values: int | None = None) -> str | None:
    if not isinstance(model, PyTorchClassifier):
        return None
    try:
        return network_digest(network_of(model), values)
    except InvalidInputError:  # a scripted or quantised network, which only answers queries
        return None
