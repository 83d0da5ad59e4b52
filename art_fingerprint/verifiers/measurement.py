"""One pass over a classifier: what a scoring hook reports on its way, and what is left of it if it ends early."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from art_fingerprint.core.queries import Suspect
from art_fingerprint.exceptions import (
    AccessError,
    FingerprintError,
    IncompatibleSuspectError,
    MalformedAnswerError,
    NonFiniteOutputError,
    QueryBudgetError,
    SuspectFailedError,
)
from art_fingerprint.verifiers.calibration import Direction

Access = Literal["labels", "scores", "layers", "gradients"]


@dataclass(frozen=True)
class Metric:
    """A metric of a verifier: its name, what a low or high value means, and the access to the suspect it needs."""

    name: str
    direction: Direction
    access: Access


@dataclass(frozen=True)
class Chance:
    """What a verifier knows of a score without reference models: the threshold, and the chance of one so extreme."""

    threshold: float
    p_value: float


@dataclass
class Notes:
    """What a scoring hook has reported so far, in the fields of a :class:`Measurement`."""

    kept: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    spaces: dict[str, str] = field(default_factory=dict)
    chances: dict[str, Chance] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """What one pass over a classifier gave.

    :ivar scores: Metrics, then extras.
    :ivar skipped: Metric name to the reason why it could not be computed.
    :ivar spaces: Metric name to what was compared, ``"logits"`` or ``"probabilities"``, where either is possible.
    :ivar queries: Samples sent.
    :ivar failure: What ended the pass early, if anything.
    :ivar undefined: Why no verdict follows although the pass went on: answers that are all alike, that differ when they
        are repeated, or that are NaN under ``nan_policy="mismatch"``; else empty.
    :ivar softened: Scores of the metrics that were compared as logits, had the classifier answered probabilities; empty
        unless asked for.
    :ivar chances: What the verifier knows of a metric's score without reference models, if anything.
    :ivar answers: Digest of all answers, empty unless they were recorded.
    """

    scores: dict[str, float]
    skipped: dict[str, str]
    spaces: dict[str, str]
    queries: int
    failure: FingerprintError | None = None
    undefined: str = ""
    softened: Mapping[str, float] = field(default_factory=dict)
    chances: Mapping[str, Chance] = field(default_factory=dict)
    answers: str = ""

    @property
    def trouble(self) -> str:
        """Why no verdict follows from this, or empty."""
        return str(self.failure or self.undefined)

    def as_probabilities(self, name: str) -> float:
        """Return the score of a metric had the classifier answered probabilities; NaN if that was not measured."""
        return self.softened.get(name, math.nan) if self.spaces.get(name) == "logits" else self.scores[name]


def measure(
    score: Callable[[Suspect], Mapping[str, float]],
    suspect: Suspect,
    notes: Notes,
    names: Sequence[str],
    extras: Iterable[str] = (),
) -> Measurement:
    """Run a scoring hook on a suspect.

    A suspect that fails, answers in no known form, or costs more than the budget, ends the pass; what the hook had
    reported is kept. Answers that are not finite do the same, or leave the rest of the metrics NaN if they are
    mismatches. Metrics that need scores are skipped if the suspect answers labels.

    :param score: The hook.
    :param suspect: The classifier, metered.
    :param notes: Where the hook reports.
    :param names: Metrics that are wanted.
    :param extras: Further values that are wanted if they come for free.
    :raises IncompatibleSuspectError: none of the metrics can be computed on this suspect.
    """
    failure: FingerprintError | None = None
    undefined = ""
    try:
        try:
            notes.kept.update(score(suspect))
        except AccessError as error:
            notes.skipped.update({name: str(error) for name in names if name not in notes.kept})
        undefined = suspect.doubts()
    except NonFiniteOutputError as error:
        if suspect.nan_policy == "mismatch":
            undefined = str(error)
            missing = [name for name in names if name not in {**notes.kept, **notes.skipped}]
            notes.kept.update(dict.fromkeys(missing, math.nan))
        else:
            failure = error
    except (MalformedAnswerError, QueryBudgetError, SuspectFailedError) as error:
        failure = error
    except IncompatibleSuspectError as error:
        error.queries = suspect.queries
        raise
    skipped = {name: why for name, why in notes.skipped.items() if name in names}
    if failure is not None:
        missing = [name for name in names if name not in {**notes.kept, **skipped}]
        skipped |= dict.fromkeys(missing, "scoring ended before it")
    elif not undefined and not any(name in notes.kept for name in names):
        none = IncompatibleSuspectError("No metric can be computed on this suspect: " + in_groups(skipped))
        none.queries = suspect.queries
        raise none
    scores = {name: float(notes.kept[name]) for name in (*names, *extras) if name in notes.kept}
    return Measurement(scores, skipped, notes.spaces, suspect.queries, failure, undefined, chances=notes.chances)


def measure_in_both_spaces(run: Callable[[Suspect], Measurement], suspect: Suspect) -> Measurement:
    """Measure a suspect, and once more by the same answers as probabilities what was compared as logits.

    :param run: One pass over a classifier.
    :param suspect: The classifier, which records its answers.
    """
    found = replace(run(suspect), answers=suspect.recorded_digest())
    if found.trouble or "logits" not in found.spaces.values():
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first pass has given them
        softened = run(suspect.softened()).scores
    names = [name for name, space in found.spaces.items() if space == "logits" and name in softened]
    return replace(found, softened={name: softened[name] for name in names})


def in_groups(reasons: Mapping[str, str]) -> str:
    """Return the reasons of several metrics as one sentence, equal ones once."""
    whys = dict.fromkeys(reasons.values())
    return "; ".join(f"{', '.join(name for name, of in reasons.items() if of == why)}: {why}" for why in whys)
