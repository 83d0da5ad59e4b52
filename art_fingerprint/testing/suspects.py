"""Suspects that show less than a network, and hostile ones: what a service may answer, and what has to come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

Answer = Callable[[np.ndarray], Any]


def black_box(classifier: PyTorchClassifier, answer: Answer | None = None) -> BlackBoxClassifierNeuralNetwork:
    """Return a classifier that answers what ``classifier`` does, or ``answer``, and shows nothing else."""
    return BlackBoxClassifierNeuralNetwork(
        answer or classifier.predict,
        classifier.input_shape,
        classifier.nb_classes,
        channels_first=classifier.channels_first,
        clip_values=classifier.clip_values,
    )


def label_box(classifier: PyTorchClassifier) -> BlackBoxClassifierNeuralNetwork:
    """Return a classifier that answers the labels of ``classifier`` as one-hot rows, and shows nothing else."""
    rows = np.eye(classifier.nb_classes, dtype=np.float32)
    return black_box(classifier, lambda x: rows[classifier.predict(x).argmax(1)])


@dataclass(frozen=True)
class HostileSuspect:
    """A service that answers badly on purpose.

    :ivar name: What it does.
    :ivar answer: From the ``predict`` of an honest model to that of this service.
    :ivar reason: What the verdict's reason has to say.
    :ivar options: Arguments of ``verify`` without which it cannot be found out.
    :ivar labels: Whether it answers labels instead of scores.
    """

    name: str
    answer: Callable[[Answer], Answer]
    reason: str
    options: dict[str, Any] = field(default_factory=dict)
    labels: bool = False


def _raising(error: BaseException) -> Callable[[Answer], Answer]:
    def make(_honest: Answer) -> Answer:
        def answer(_x: np.ndarray) -> Any:
            raise error

        return answer

    return make


def _slow(honest: Answer) -> Answer:
    def answer(x: np.ndarray) -> Any:
        time.sleep(0.03)
        return honest(x)

    return answer


def _at_random(honest: Answer) -> Answer:
    generator = np.random.default_rng(0)

    def answer(x: np.ndarray) -> Any:
        return generator.random(np.shape(honest(x)))

    return answer


def _one_value(honest: Answer, value: float) -> np.ndarray:
    scores = np.array(honest)
    scores[len(scores) // 2, 0] = value
    return scores


#: Suspects about which nothing can be said: the verdict is undecided, says why, and counts the queries.
HOSTILE: tuple[HostileSuspect, ...] = (
    HostileSuspect("nan", lambda honest: lambda x: _one_value(honest(x), np.nan), "NaN or infinite"),
    HostileSuspect("infinity", lambda honest: lambda x: _one_value(honest(x), np.inf), "NaN or infinite"),
    HostileSuspect("one_row_more", lambda honest: lambda x: np.concatenate([honest(x), honest(x[:1])]), "shape"),
    HostileSuspect("one_class_less", lambda honest: lambda x: honest(x)[:, 1:], "shape"),
    HostileSuspect("one_axis", lambda honest: lambda x: honest(x).reshape(-1), "shape"),
    HostileSuspect("three_axes", lambda honest: lambda x: honest(x)[:, :, None], "shape"),
    HostileSuspect("a_number", lambda honest: lambda x: 0.5, "shape"),
    HostileSuspect("nothing", lambda honest: lambda x: None, "shape"),
    HostileSuspect("words", lambda honest: lambda x: np.array(["cat"] * len(x)), "could not convert"),
    HostileSuspect("objects", lambda honest: lambda x: np.array([object()] * len(x)), "TypeError"),
    HostileSuspect("complex_numbers", lambda honest: lambda x: honest(x) * 1j, "complex"),
    HostileSuspect("ragged_rows", lambda honest: lambda x: [[0.0], *[[0.0, 1.0]] * (len(x) - 1)], "ValueError|shape"),
    HostileSuspect("an_error", _raising(ConnectionError("503")), "ConnectionError while it answered probes: 503"),
    HostileSuspect("no_memory", _raising(MemoryError()), "MemoryError"),
    HostileSuspect("one_answer_to_all", lambda honest: lambda x: honest(np.zeros_like(x)), "same answer"),
    HostileSuspect("one_label_to_all", lambda honest: lambda x: np.zeros(len(x), int), "same answer", labels=True),
    HostileSuspect("too_slow", _slow, "are over", {"max_seconds": 0.01}),
    HostileSuspect("answers_at_random", _at_random, "repeated probes", {"repeats": 4}),
)


def _scribbling(honest: Answer) -> Answer:
    def answer(x: np.ndarray) -> Any:
        found = np.array(honest(x))
        x[...] = np.nan
        return found

    return answer


def _read_only(honest: Answer) -> Answer:
    def answer(x: np.ndarray) -> Any:
        found = np.array(honest(x))
        found.flags.writeable = False
        return found

    return answer


def _changing_later(honest: Answer) -> Answer:
    given: list[np.ndarray] = []

    def answer(x: np.ndarray) -> Any:
        for former in given:
            former[...] = np.nan
        given.append(np.array(honest(x)))
        return given[-1]

    return answer


#: Odd suspects that are scored like the honest model behind them.
ODD: dict[str, Callable[[Answer], Answer]] = {
    "writes_to_its_input": _scribbling,
    "answers_read_only": _read_only,
    "changes_old_answers": _changing_later,
    "answers_lists": lambda honest: lambda x: np.asarray(honest(x)).tolist(),
    "answers_float64": lambda honest: lambda x: np.asarray(honest(x), dtype=np.float64),
}
