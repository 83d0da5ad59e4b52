"""Suspects that answer anything but what they were asked for: any array, any value."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import BlackBoxClassifierNeuralNetwork
from hypothesis import strategies as st

from art_fingerprint.evaluation.fidelity import accuracy, agreement
from art_fingerprint.evaluation.robustness import robustness
from art_fingerprint.verifiers import Verifier
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import Refused, outcome_is_allowed
from tests.fuzz.strategies import arrays, values
from tests.fuzz.test_files import KINDS, sound
from tests.victims import several_classes

QUERY_VERIFIERS = [name for name, kind in KINDS.items() if name not in ("WeightAlignmentVerifier", "CommitteeVerifier")]
X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
Y = np.arange(40) % 4


@functools.cache
def judge(name: str) -> Verifier:
    return KINDS[name].from_fingerprint(sound(name))


def suspect(answer: Any) -> BlackBoxClassifierNeuralNetwork:
    """Answers whatever ``answer`` makes of the number of samples."""
    return BlackBoxClassifierNeuralNetwork(lambda x: answer(len(x)), (1, 8, 8), 4, clip_values=(0.0, 1.0))


def of_good(change: Any) -> Any:
    """Change the answer of an honest suspect, which depends on the number of samples alone."""
    return lambda n: change(np.random.default_rng(n).random((n, 4)).astype(np.float32))


CHANGES = [
    lambda a: a,
    lambda a: a.argmax(1),
    lambda a: a.argmax(1)[:, None],
    lambda a: np.eye(4, dtype=np.float32)[a.argmax(1)],
    lambda a: a[:-1],
    lambda a: a[:, :3],
    lambda a: a[None],
    lambda a: a.T,
    lambda a: np.where(a > 0.9, np.nan, a),
    lambda a: np.where(a > 0.9, np.inf, a),
    lambda a: a * 1e38 * 10,
    lambda a: a * 0,
    lambda a: -a,
    lambda a: a.astype(object),
    lambda a: a.astype(complex),
    lambda a: a.astype(str),
    lambda a: a.astype(bool),
    lambda a: a.astype("M8[s]"),
    lambda a: a.tolist(),
    lambda a: list(map(str, a)),
    lambda a: [[1.0], [1.0, 2.0]],
    lambda a: (a, a),
    lambda a: {"logits": a},
    lambda a: np.broadcast_to(np.float32(0), (len(a), 10**6)),
    lambda a: np.empty((0, 4)),
]
answers = st.one_of(
    st.sampled_from(CHANGES).map(of_good),
    values.map(lambda value: lambda n: value),
    arrays(np.zeros((20, 4), np.float32), huge=False).map(lambda array: lambda n: array),
)


@pytest.mark.parametrize("name", QUERY_VERIFIERS)
@generated(4, 60, answer=answers, outputs=st.sampled_from(["auto", "auto", "logits", "probabilities", "labels"]))
def test_verify(name: str, answer: Any, outputs: Any) -> None:
    found = outcome_is_allowed(lambda: judge(name).verify(suspect(answer), outputs=outputs))
    if not isinstance(found, Refused):
        assert found.derived in (True, False, None)
        assert found.complete or found.reason
        json.dumps(found.to_dict())
        repr(found)


@generated(5, 100, answer=answers)
def test_measures(answer: Any) -> None:
    model = suspect(answer)
    for measure in (
        lambda: accuracy(model, X, Y),
        lambda: agreement(several_classes(X), model, X),
        lambda: robustness(model, X, Y, "FGSM", source=several_classes(X)).accuracy,
    ):
        found = outcome_is_allowed(measure)
        assert isinstance(found, Refused) or 0 <= found <= 1
