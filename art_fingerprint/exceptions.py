"""Errors of the package. Every one is a :class:`FingerprintError`; the subclass says what the caller can do."""

from __future__ import annotations


class FingerprintError(Exception):
    """Base of all errors raised on purpose by this package."""


class InvalidInputError(FingerprintError, ValueError):
    """An argument is wrong. The message names it, says what was expected and what was given."""


class LayerNotFoundError(InvalidInputError):
    """No layer has this name. The message lists the nearest names."""


class LayerCutError(InvalidInputError):
    """The network cannot be cut at this layer. The message says why and names layers that work."""


class NotExtractedError(FingerprintError):
    """The verifier holds no fingerprint yet: call ``extract`` or ``from_fingerprint`` first."""


class EmptyFingerprintError(FingerprintError):
    """Extraction found no usable probe. The message names the parameter to change."""


class FingerprintFileError(FingerprintError):
    """A fingerprint file is damaged, foreign or too new. Nothing in it was executed."""


class IncompatibleSuspectError(FingerprintError):
    """The suspect cannot be compared with this fingerprint. The message says what differs.

    :ivar queries: Samples that it was sent before that was known.
    """

    queries = 0


class IncompatibleArchitectureError(IncompatibleSuspectError):
    """A white-box metric needs a layer that the suspect does not have in the same shape."""


class MalformedAnswerError(IncompatibleSuspectError):
    """A suspect's answer is not what classifiers answer: one row of scores, or one label, for each sample."""


class AccessError(FingerprintError):
    """The metric needs more access to the suspect (scores, layers, gradients) than it gives."""


class QueryBudgetError(FingerprintError):
    """The next batch of queries would exceed the budget, or the time for them is over. It was not sent."""


class NonFiniteOutputError(FingerprintError):
    """A model answered NaN or infinity."""


class SuspectFailedError(FingerprintError):
    """A classifier raised an error of its own while it answered probes. That error is the cause of this one."""


class CalibrationError(FingerprintError):
    """The reference models cannot calibrate this verifier: too few, wrong ones, or the suspect itself."""


class TrainingDivergedError(FingerprintError, RuntimeError):
    """A loss became NaN or infinite. The victim is untouched; the message carries the step and the loss terms."""


class DatasetError(FingerprintError):
    """The files of a data set are missing, damaged or of another set. The message says which, and what to put where."""


class StoreError(FingerprintError):
    """A run's folder cannot be written to. What was finished before is kept; the same command goes on from there."""


class MissingDependencyError(FingerprintError, ImportError):
    """An optional package is not installed. The message says how to install it."""
