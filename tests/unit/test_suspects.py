"""Suspects of every kind, and bad ones, in front of every verifier: who is asked how, and what comes of it."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import ClassLabels, HighConfidence, ReverseSigmoid, Rounded
from art.estimators.classification import (
    BlackBoxClassifier,
    BlackBoxClassifierNeuralNetwork,
    HuggingFaceClassifierPyTorch,
    PyTorchClassifier,
    SklearnClassifier,
)
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.core.outputs import only_labels
from art_fingerprint.core.queries import Suspect
from art_fingerprint.exceptions import (
    AccessError,
    CalibrationError,
    IncompatibleSuspectError,
    InvalidInputError,
    MalformedAnswerError,
    NonFiniteOutputError,
)
from art_fingerprint.verifiers import (
    DeepJudgeVerifier,
    Fingerprint,
    IPGuardVerifier,
    ModelDiffVerifier,
    SACVerifier,
    Verdict,
    Verifier,
    ZestVerifier,
)
from tests.conformance.verifier_cases import (
    CASES,
    Case,
    X,
    Y,
    every_query_verifier,
    extracted,
    independent,
    label_metrics,
    soft_box,
    victim,
)
from tests.conftest import TinyCNN, wrap
from tests.states import black_box, label_box
from tests.victims import several_classes

Answer = Callable[[np.ndarray], Any]
ANY_DATA = [case for case in CASES if case.counts and case.verifier.extraction_data == "any"]
every_verifier_of_any_data = pytest.mark.parametrize(
    "case", ANY_DATA, ids=[case.verifier.__name__ for case in ANY_DATA]
)
LABEL_CASES = [case for case in CASES if label_metrics(case)]
label_verifier = pytest.mark.parametrize("case", LABEL_CASES, ids=[case.verifier.__name__ for case in LABEL_CASES])


@functools.cache
def _fingerprint(name: str) -> Fingerprint:
    verifier = extracted(next(case for case in CASES if case.verifier.__name__ == name))
    verifier.calibrate([independent(seed) for seed in (11, 12, 13)])
    assert verifier.fingerprint is not None
    return verifier.fingerprint


def ready(case: Case, **params: Any) -> Verifier:
    """Return a calibrated verifier of its own; extraction is done once for all tests."""
    verifier = case.verifier.from_fingerprint(copy.deepcopy(_fingerprint(case.verifier.__name__)))
    verifier.set_params(**params)
    return verifier


def asked(case: Case) -> list[str]:
    """Return the metrics that a query-only suspect can have."""
    return [m.name for m in case.verifier.metrics if m.access in ("labels", "scores")]


def score_metrics(case: Case) -> list[str]:
    return [m.name for m in case.verifier.metrics if m.access == "scores"]


def service(answer: Answer, nb_classes: int = 4, shape: tuple[int, ...] = (1, 8, 8), **options: Any) -> Any:
    return BlackBoxClassifierNeuralNetwork(answer, shape, nb_classes, **options)


def predicted(x: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return the labels of an independent model."""
    return independent(seed).predict(x).argmax(1)


def assert_same(verdict: Verdict, expected: Verdict, names: list[str]) -> None:
    """Compare values and decisions, and that everything else was skipped with a reason."""
    assert list(verdict.metrics) == names != []
    for name in names:
        assert verdict[name].value == pytest.approx(expected[name].value, abs=1e-4)
        assert verdict[name].derived == expected[name].derived
    assert all(verdict.skipped.values())


# ---------------------------------------------------------------------- kinds of classifiers
class Scaled(TinyCNN):
    """A network with the processor inside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(processor(x))


class WithLogits(TinyCNN):
    """Answers as the models of `transformers` do."""

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x))


def processor(x: Tensor) -> Tensor:
    return (x - 0.4) / 0.3


def hugging_face(with_processor: bool) -> HuggingFaceClassifierPyTorch:
    network = WithLogits()
    network.load_state_dict(independent(1).model.state_dict())
    return HuggingFaceClassifierPyTorch(
        network.eval(),
        nn.CrossEntropyLoss(),
        (1, 8, 8),
        4,
        clip_values=(0.0, 1.0),
        processor=processor if with_processor else None,
        device_type="cpu",
    )


@every_query_verifier
@pytest.mark.parametrize("with_processor", [False, True])
def test_hugging_face_suspects(case: Case, with_processor: bool) -> None:
    """They show their layers, and the processor that ART keeps outside of the model is applied."""
    suspect = hugging_face(with_processor)
    network = Scaled() if with_processor else TinyCNN()
    network.load_state_dict(independent(1).model.state_dict())
    plain = wrap(network.eval())
    np.testing.assert_allclose(suspect.predict(X), plain.predict(X), atol=1e-5)
    verdict = ready(case).verify(suspect)
    assert_same(verdict, ready(case).verify(plain), [m.name for m in case.verifier.metrics])
    assert verdict.skipped == {}


@pytest.mark.filterwarnings("ignore:There are only 40")
def test_a_processor_is_not_lost_in_a_copy() -> None:
    with pytest.raises(InvalidInputError, match="processor"):
        FineTuningAttack(hugging_face(with_processor=True), max_iter=2).generate(X)


@every_query_verifier
def test_plain_black_boxes(case: Case) -> None:
    """Also the older class of ART, which does not say where its channels are."""
    suspect = BlackBoxClassifier(independent(1).predict, (1, 8, 8), 4, clip_values=(0.0, 1.0))
    assert_same(ready(case).verify(suspect), ready(case).verify(black_box(independent(1))), asked(case))


@every_query_verifier
def test_black_boxes_keep_their_preprocessing_and_postprocessing(case: Case) -> None:
    def answer(x: np.ndarray) -> np.ndarray:
        return independent(1).predict(np.float32(0.3) * x + np.float32(0.4))

    standardised = service(answer, preprocessing=(0.4, 0.3), postprocessing_defences=Rounded(decimals=2))
    known = service(lambda x: independent(1).predict(x).round(2))
    assert_same(ready(case).verify(standardised), ready(case).verify(known), asked(case))


@every_query_verifier
def test_logged_answers_can_be_judged(case: Case) -> None:
    """Answers that were written down are a suspect: a table of samples and answers."""
    log: list[tuple[np.ndarray, np.ndarray]] = []

    def answer(x: np.ndarray) -> np.ndarray:
        log.append((x, independent(1).predict(x)))
        return log[-1][1]

    expected = ready(case).verify(service(answer))
    table = tuple(np.concatenate(parts) for parts in zip(*log, strict=True))
    assert_same(ready(case, batch_size=9).verify(service(table)), expected, asked(case))  # type: ignore[arg-type]
    incomplete = ready(case).verify(service((table[0][:3], table[1][:3])))  # type: ignore[arg-type]
    assert incomplete.derived is None
    assert "No existing prediction" in incomplete.reason


def trained(x: np.ndarray, seed: int) -> PyTorchClassifier:
    """Return a classifier of images with any number of channels that knows its 40 samples."""
    torch.manual_seed(seed)
    network = TinyCNN(x.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(Y)).backward()
        optimizer.step()
    return wrap(network.eval(), x.shape[1:])


@pytest.mark.parametrize("channels", [1, 3])
@every_verifier_of_any_data
def test_channels_last_suspects(case: Case, channels: int) -> None:
    """A service whose images have their channels last gets them so, in front of every verifier."""
    x = np.random.default_rng(1).random((40, channels, 8, 8), dtype=np.float32)
    owned, other = trained(x, 0), trained(x, 1)
    verifier = case.verifier(owned, **{**case.options, "metric_names": asked(case)})
    verifier.extract(x)
    shapes: list[tuple[int, ...]] = []

    def answer(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape[1:])
        return other.predict(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    last = service(answer, shape=(8, 8, channels), channels_first=False)
    assert verifier.score(last) == pytest.approx(verifier.score(other), abs=1e-4)
    assert set(shapes) == {(8, 8, channels)}


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


@pytest.mark.filterwarnings("ignore:.*compared as probabilities", "ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", [RandomForestClassifier, MLPClassifier])
@every_query_verifier
def test_scikit_learn_suspects(case: Case, kind: type) -> None:
    """Flat probabilities of another framework are judged by thresholds from networks that give logits."""
    model = kind(random_state=0).fit(flat(X), Y)
    verifier = ready(case)
    verdict = verifier.verify(SklearnClassifier(model))
    known = ready(case).verify(service(lambda x: model.predict_proba(flat(x))))
    assert_same(verdict, known, asked(case))
    assert verdict.derived is not None
    assert all(verdict[name].threshold is not None for name in asked(case))
    assert verdict.queries == known.queries


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_flat_probes_run_over_channels_first() -> None:
    x = np.random.default_rng(1).random((12, 3, 8, 8), dtype=np.float32)
    model = MLPClassifier(max_iter=5).fit(flat(x), np.arange(12) % 4)
    torch.testing.assert_close(
        Suspect(SklearnClassifier(model)).probabilities(torch.from_numpy(x)),
        torch.from_numpy(model.predict_proba(flat(x))).double(),
        atol=1e-5,
        rtol=1e-4,
    )


def test_suspects_that_are_not_trained() -> None:
    with pytest.raises(InvalidInputError, match="input_shape=None"):
        ready(CASES[0]).verify(SklearnClassifier(DecisionTreeClassifier()))


@pytest.mark.filterwarnings("ignore:.*compared as probabilities", "ignore:The suspect's scores lie")
@pytest.mark.parametrize(
    "defence",
    [Rounded(decimals=1), HighConfidence(cutoff=0.3), ReverseSigmoid(beta=1.0, gamma=0.1)],
    ids=lambda d: type(d).__name__,
)
@every_query_verifier
def test_networks_with_postprocessing_are_asked_as_services(case: Case, defence: Any) -> None:
    soft = wrap(nn.Sequential(independent(1).model, nn.Softmax(1)).eval())
    defended = wrap(soft.model, postprocessing_defences=[defence])
    verdict = ready(case, metric_names=asked(case)).verify(defended, outputs="probabilities")
    known = service(lambda x: defence(soft.predict(x)))
    assert_same(verdict, ready(case).verify(known, outputs="probabilities"), asked(case))


def linear() -> tuple[PyTorchClassifier, np.ndarray, np.ndarray]:
    """Return a linear classifier with its weights ``(64, 4)`` and biases."""
    draws = np.random.default_rng(2)
    weights, biases = draws.normal(size=(64, 4)).astype(np.float32), draws.normal(size=4).astype(np.float32)
    layer = nn.Linear(64, 4)
    layer.load_state_dict({"weight": torch.from_numpy(weights.T.copy()), "bias": torch.from_numpy(biases)})
    return wrap(nn.Sequential(nn.Flatten(), layer)), weights, biases


@every_query_verifier
def test_tensorflow_suspects(case: Case) -> None:
    tensorflow = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from art.estimators.classification import TensorFlowV2Classifier

    plain, weights, biases = linear()

    def model(x: Any, training: bool = False) -> Any:
        return tensorflow.reshape(x, (-1, 64)) @ weights + biases

    suspect = TensorFlowV2Classifier(model, nb_classes=4, input_shape=(8, 8, 1), channels_first=False)
    assert_same(ready(case).verify(suspect), ready(case).verify(black_box(plain)), asked(case))


@every_query_verifier
def test_keras_suspects(case: Case) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from art.estimators.classification import KerasClassifier

    plain, weights, biases = linear()
    model = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
    model.layers[-1].set_weights([weights, biases])
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    suspect = KerasClassifier(model, use_logits=True)
    try:
        suspect.predict(np.zeros((1, 8, 8, 1), np.float32))
    except TypeError as error:
        pytest.skip(f"this ART does not fit this Keras: {error}")
    assert_same(ready(case).verify(suspect), ready(case).verify(black_box(plain)), asked(case))


# ---------------------------------------------------------------------- labels instead of scores
class Decided(nn.Module):
    """A network that answers class indices."""

    def forward(self, x: Tensor) -> Tensor:
        return independent(1).model(x).argmax(1)


class Predicting(BlackBoxClassifierNeuralNetwork):
    """A classifier whose ``predict`` is a function's answer as it is."""

    def predict(self, x: np.ndarray, **_: object) -> Any:
        return self._predict_fn(x)


def confident(x: np.ndarray) -> np.ndarray:
    return np.where(np.eye(4)[predicted(x)] == 1, 0.91, 0.03)


LABELLED: dict[str, Callable[[], Any]] = {
    "indices": lambda: service(predicted),
    "column": lambda: service(lambda x: predicted(x)[:, None]),
    "whole floats": lambda: service(lambda x: predicted(x).astype(np.float64)),
    "list": lambda: service(lambda x: predicted(x).tolist()),
    "one-hot": lambda: label_box(independent(1)),
    "constant confidence": lambda: service(confident),
    "predict": lambda: Predicting(predicted, (1, 8, 8), 4),
    "network": lambda: wrap(Decided()),
    "defended network": lambda: wrap(independent(1).model, postprocessing_defences=ClassLabels()),
    "defended service": lambda: service(independent(1).predict, postprocessing_defences=ClassLabels()),
}


@pytest.mark.parametrize("kind", LABELLED)
@label_verifier
def test_labels_are_enough_for_metrics_that_need_labels(case: Case, kind: str) -> None:
    names = label_metrics(case)
    verifier = ready(case, batch_size=4, metric_names=asked(case))  # four indices have the shape of four scores
    expected, verdict = verifier.verify(independent(1)), verifier.verify(LABELLED[kind]())
    assert_same(verdict, expected, names)
    assert set(verdict.skipped) == set(asked(case)) - set(names)
    assert all(why.startswith("label-only suspect: this metric needs scores") for why in verdict.skipped.values())
    assert all(verdict[name] == expected[name] for name in names)
    verifier.set_params(batch_size=1)
    assert verifier.verify(LABELLED[kind](), outputs="labels") == verdict
    votes = [verdict[name].derived for name in names]
    assert verdict.derived is (2 * sum(map(bool, votes)) > len(votes))


@pytest.mark.parametrize("kind", LABELLED)
@every_query_verifier
def test_labels_never_pass_for_scores(case: Case, kind: str) -> None:
    names = score_metrics(case)
    if not names:
        return
    verifier = ready(case, metric_names=names, batch_size=16)
    with pytest.raises(IncompatibleSuspectError, match="label-only suspect: this metric needs scores") as raised:
        verifier.verify(LABELLED[kind]())
    assert all(name in str(raised.value) for name in names)
    with pytest.raises(IncompatibleSuspectError, match="label-only"):
        verifier.calibrate([independent(11), LABELLED[kind]()])


@every_query_verifier
def test_a_declared_label_service_is_not_asked_for_scores(case: Case) -> None:
    sent: list[int] = []
    suspect = service(lambda x: sent.append(len(x)) or independent(1).predict(x))
    verifier = ready(case, metric_names=asked(case))
    if not label_metrics(case):
        with pytest.raises(IncompatibleSuspectError, match="label-only"):
            verifier.verify(suspect, outputs="labels")
        assert sent == []
    else:
        assert set(verifier.verify(suspect, outputs="labels").metrics) == set(label_metrics(case))


def test_a_service_of_labels_is_not_asked_a_large_fingerprint() -> None:
    sent: list[int] = []
    suspect = service(lambda x: sent.append(len(x)) or np.eye(4)[predicted(x)])
    verifier = ZestVerifier(victim(), nb_images=12, nb_masks=300, segmenter="grid", grid_cells=4, batch_size=100)
    fingerprint = verifier.extract(X)
    assert fingerprint.facts["nb_probes"] > 3000
    with pytest.raises(IncompatibleSuspectError, match="label-only"):
        verifier.verify(suspect)
    assert sum(sent) == 1000


@pytest.mark.filterwarnings("ignore:.*compared as probabilities")
def test_hard_scores_are_scores_if_so_declared() -> None:
    case = next(case for case in CASES if case.verifier is DeepJudgeVerifier)
    tree = SklearnClassifier(DecisionTreeClassifier(random_state=0).fit(flat(X), Y))
    verifier = ready(case)
    assert set(verifier.verify(tree).metrics) == {"RobD"}
    assert set(verifier.verify(tree, outputs="probabilities").metrics) == {"RobD", "JSD"}


@pytest.mark.parametrize("kind", [DeepJudgeVerifier, ZestVerifier])
def test_a_victim_that_hides_its_scores_has_no_fingerprint_of_scores(kind: type[Verifier]) -> None:
    case = next(case for case in CASES if case.verifier is kind)
    hidden = wrap(victim().model, postprocessing_defences=ClassLabels())
    with pytest.raises(AccessError, match="The victim, asked as a suspect.*label-only"):
        kind(hidden, **case.options).extract(X, Y)


def test_the_joint_search_needs_scores() -> None:
    verifier = ModelDiffVerifier(victim(), generator="search", models="both", nb_pairs=10, search_iterations=5)
    for suspect in (label_box(independent(1)), service(predicted)):
        with pytest.raises(AccessError, match="label-only"):
            verifier.extract_joint(suspect, X)


def test_a_kind_is_told_from_all_answers() -> None:
    """A forest that is sure of one sample, or of all of a batch, answers scores all the same."""
    x = torch.zeros(6, 1, 8, 8)
    x[:, 0, 0, 0] = torch.arange(6)
    sure = [[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0.5, 0.5, 0, 0], [0, 1.0, 0, 0]]
    suspect = service(lambda x: np.array(sure)[x[:, 0, 0, 0].astype(int)])
    for batch_size in (1, 2, 4, 6):
        asked = Suspect(suspect, batch_size)
        torch.testing.assert_close(asked.probabilities(x), torch.tensor(sure, dtype=torch.float64))
        assert asked.kind == "probabilities"
        with pytest.raises(AccessError):
            Suspect(suspect, batch_size).logits(x[:4])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, 1, 0], [1, 0, 0]], True),
        ([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]], True),
        ([[0.1, 0.8, 0.1], [0.7, 0.15, 0.15]], False),
        ([[0.1, 0.8, 0.1], [0.8, 0.1, 0.2]], False),
        ([[5, -5, -5]], True),
        ([[1, 1, 0]], False),
        ([[2, 2, 2], [2, 2, 2]], False),
        ([[0, 1], [1, 0]], True),
        ([[0.3, 0.7], [0.7, 0.3]], False),
        ([[math.nan, 1, 0], [1, 0, 0]], False),
    ],
)
def test_what_shows_no_more_than_labels(rows: list[list[float]], expected: bool) -> None:
    assert only_labels(torch.tensor(rows, dtype=torch.float32)) is expected


@pytest.mark.parametrize(
    ("answer", "outputs", "message"),
    [
        (lambda x: np.full(len(x), 7), "auto", "7.*0 to 3"),
        (lambda x: np.full(len(x), -1), "auto", "0 to 3"),
        (lambda x: np.full(len(x), 0.5), "auto", "scores must be those of all classes"),
        (lambda x: np.full((len(x), 1), 0.5), "auto", "scores must be those of all classes"),
        (lambda x: np.zeros(len(x), int), "probabilities", "labels"),
        (lambda x: np.zeros(len(x), int), "logits", "labels"),
        (lambda x: np.zeros((len(x), 5)), "auto", "by its nb_classes"),
        (lambda x: np.zeros(len(x) + 1, int), "auto", "shape"),
    ],
)
def test_answers_that_are_neither(answer: Answer, outputs: Any, message: str) -> None:
    for case in LABEL_CASES:
        verifier = ready(case, metric_names=asked(case), batch_size=5)
        with pytest.raises(MalformedAnswerError, match=message):
            verifier.score(service(answer), outputs=outputs)
        verdict = verifier.verify(service(answer), outputs=outputs)
        assert (verdict.derived, verdict.complete, verdict.queries) == (None, False, 5)
        assert re.search(message, verdict.reason)
        assert set(verdict.skipped) == set(asked(case))


def test_class_names_are_no_indices() -> None:
    verdict = ready(LABEL_CASES[-1]).verify(service(lambda x: np.array(["cat"] * len(x))))
    assert (verdict.derived, verdict.complete) == (None, False)
    assert "could not convert string" in verdict.reason


def test_a_support_vector_machine_behind_a_function() -> None:
    model = SVC().fit(flat(X), Y)
    suspect = service(lambda x: model.predict(flat(x)))
    fingerprint = _fingerprint("IPGuardVerifier")
    expected = (model.predict(flat(fingerprint.arrays["probes"])) == fingerprint.arrays["labels"]).mean()
    case = next(case for case in CASES if case.verifier is IPGuardVerifier)
    assert ready(case).score(suspect) == {"MR": pytest.approx(expected)}


# ---------------------------------------------------------------------- declared outputs
@pytest.mark.filterwarnings("ignore:.*compared as probabilities")
@every_query_verifier
def test_doubtful_scores_give_a_warning_and_a_declaration_settles_it(case: Case) -> None:
    """Probabilities of an interface that rounds do not sum to 1."""
    names = score_metrics(case)
    if not names:
        return

    def rounded(x: np.ndarray) -> np.ndarray:
        return torch.softmax(torch.from_numpy(independent(1).predict(x)), 1).numpy().round(2)

    verifier = ready(case, metric_names=names)
    with pytest.warns(UserWarning, match="outputs='probabilities'"):
        verifier.score(service(rounded))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*scores lie in")
        told = verifier.score(service(rounded), outputs="probabilities")
    exact = verifier.score(soft_box(independent(1)))
    for name in names:
        assert told[name] == pytest.approx(exact[name], rel=0.2, abs=0.02)


@every_query_verifier
def test_declared_logits_are_logits(case: Case) -> None:
    """Probabilities that are declared logits are compared as logits, whatever they look like."""
    verifier = ready(case, metric_names=asked(case))
    soft, shifted = (
        service(lambda x, by=by: torch.softmax(torch.from_numpy(independent(1).predict(x)), 1).numpy() - np.float32(by))
        for by in (0, 1)
    )
    for name, value in verifier.score(soft, outputs="logits").items():
        if name in verifier.extras or name.startswith(("ZEST", "DDV", "SAC")):
            continue  # these depend on where the logits lie
        assert value == pytest.approx(verifier.score(shifted)[name], abs=1e-5)
    verdict = verifier.verify(soft, outputs="logits")
    assert all(result.space in ("", "logits") for result in verdict.metrics.values())


@every_query_verifier
def test_declarations_reach_the_references(case: Case) -> None:
    models = [soft_box(independent(seed)) for seed in (11, 12)]
    verifier = ready(case, metric_names=asked(case))
    verifier.calibrate(models, outputs="logits")
    verdict = verifier.verify(soft_box(independent(11)), outputs="logits")
    for name, result in verdict.metrics.items():
        assert result.value == pytest.approx(verdict.references[name][0], abs=1e-6)
        assert result.space in ("", "logits")


@every_query_verifier
def test_unknown_declarations(case: Case) -> None:
    verifier = ready(case)
    for call in (verifier.verify, verifier.score):
        with pytest.raises(InvalidInputError, match="outputs"):
            call(independent(1), outputs="scores")  # type: ignore[operator]
    with pytest.raises(InvalidInputError, match="outputs"):
        verifier.calibrate([independent(11)], outputs="scores")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- answers that are no numbers
def holed(value: float, every: int = 5) -> Any:
    """Return an independent model's service that answers one probe in five with a value that is none."""

    def answer(x: np.ndarray) -> np.ndarray:
        scores = independent(1).predict(x)
        scores[np.abs(x).sum((1, 2, 3)) % 1 < 1 / every] = value
        return scores

    return service(answer)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_query_verifier
def test_answers_that_are_not_finite_raise_by_default(case: Case, value: float) -> None:
    verifier = ready(case, metric_names=asked(case))
    with pytest.raises(NonFiniteOutputError, match="probes with NaN or infinite"):
        verifier.score(holed(value))
    verdict = verifier.verify(holed(value))
    assert (verdict.derived, verdict.complete) == (None, False)
    assert "NaN or infinite" in verdict.reason


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:.*counted as mismatches")
@every_query_verifier
def test_mismatches_leave_other_metrics_undefined_and_the_verdict_open(case: Case, value: float) -> None:
    whole, verifier = ready(case), ready(case, nan_policy="mismatch", metric_names=asked(case), batch_size=7)
    scores, verdict = verifier.score(holed(value)), verifier.verify(holed(value))
    assert verdict.complete
    assert list(verdict.metrics) == asked(case)
    for name in score_metrics(case):
        assert math.isnan(scores[name])
        assert (verdict[name].derived, verdict[name].p_value) == (None, None)
        assert "undefined" in verdict[name].reason
    if score_metrics(case):
        assert verdict.derived is None
        assert "with NaN or infinity" in verdict.reason
        assert verdict.reason in repr(verdict)
        with pytest.raises(CalibrationError, match="model 1 cannot be scored.*NaN or infinity"):
            verifier.calibrate([independent(11), holed(value)])
    assert json.loads(json.dumps(verdict.to_dict()))["complete"] is True
    # a suspect without such answers is none the worse
    assert_same(verifier.verify(independent(1)), whole.verify(independent(1)), asked(case))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_matching_rates_count_them_as_mismatches(value: float) -> None:
    case = next(case for case in CASES if case.verifier is IPGuardVerifier)
    verifier = ready(case, nan_policy="mismatch")
    probes, labels = (_fingerprint("IPGuardVerifier").arrays[name] for name in ("probes", "labels"))
    answers = holed(value).predict(probes)
    finite = np.isfinite(answers).all(1)
    assert 0 < (~finite).sum() < len(probes)
    with pytest.warns(UserWarning, match=f"answered {(~finite).sum()} of {len(probes)} probes.*mismatches"):
        score = verifier.score(holed(value))
    assert score["MR"] == pytest.approx((finite & (answers.argmax(1) == labels)).mean())
    with pytest.warns(UserWarning, match="mismatches"):
        verdict = verifier.verify(holed(value))
    assert verdict.derived is verdict["MR"].derived is (score["MR"] > verdict["MR"].threshold)
    # labels of class indices can be missing too
    with pytest.warns(UserWarning, match="mismatches"):
        missing = verifier.score(service(lambda x: np.where(np.arange(len(x)) == 0, np.nan, predicted(x))))
    expected = predicted(probes) == labels
    assert missing["MR"] == pytest.approx(expected[1:].sum() / len(labels))


def test_robustness_counts_them_and_decides_nothing() -> None:
    case = next(case for case in CASES if case.verifier is DeepJudgeVerifier)
    verifier = ready(case, nan_policy="mismatch", metric_names=["RobD"])
    examples, true = (_fingerprint("DeepJudgeVerifier").arrays[name] for name in ("examples", "examples_true"))
    answers = holed(math.nan).predict(examples)
    finite = np.isfinite(answers).all(1)
    assert not finite.all()
    expected = (finite & (answers.argmax(1) == true)).mean()
    assert verifier.score(holed(math.nan))["Rob"] == pytest.approx(expected)
    verdict = verifier.verify(holed(math.nan))
    assert verdict["RobD"].value == pytest.approx(expected)  # the victim's is 0
    assert verdict.derived is None
    assert f"{(~finite).sum()} of {len(finite)} probes" in verdict.reason


def test_layers_that_are_not_finite() -> None:
    case = next(case for case in CASES if case.verifier is DeepJudgeVerifier)
    suspect = independent(1)
    with torch.no_grad():
        suspect.model.block2[0].weight[0] = math.nan
    white = ["LOD", "LAD", "NOD", "NAD"]
    with pytest.raises(NonFiniteOutputError, match="layer"):
        ready(case, metric_names=white).score(suspect)
    verdict = ready(case, metric_names=white, nan_policy="mismatch").verify(suspect)
    assert [math.isnan(result.value) for result in verdict.metrics.values()] == [True] * 4
    assert verdict.derived is None
    assert "layer 'block2' is NaN" in verdict.reason


# ---------------------------------------------------------------------- other numbers of classes, small problems
@every_query_verifier
def test_other_numbers_of_classes(case: Case) -> None:
    """Score vectors and layers can be compared; labels need a shared label space; JSD needs the same classes."""
    shared = "allow_label_mismatch" in case.verifier.verifier_params
    for nb_classes in (2, 6):
        suspect = several_classes(X, seed=1, nb_classes=nb_classes)
        verifier = ready(case)
        if shared and not set(label_metrics(case)) < {m.name for m in case.verifier.metrics}:
            with pytest.raises(IncompatibleSuspectError, match="allow_label_mismatch"):
                verifier.verify(suspect)
        else:
            verdict = verifier.verify(suspect)
            # SAC-labels asks which answers are alike, whatever they are called
            refused = set() if case.verifier is SACVerifier else {*label_metrics(case), "JSD"}
            assert set(verdict.metrics) == {m.name for m in case.verifier.metrics} - refused
            assert all(str(nb_classes) in why for why in verdict.skipped.values())
            assert all(math.isfinite(result.value) for result in verdict.metrics.values())
        if shared:
            verifier.set_params(allow_label_mismatch=True)
            assert set(verifier.verify(suspect).skipped) <= {"JSD"}


def test_metrics_that_no_other_number_of_classes_allows() -> None:
    suspect = several_classes(X, seed=1, nb_classes=6)
    case = next(case for case in CASES if case.verifier is DeepJudgeVerifier)
    with pytest.raises(IncompatibleSuspectError, match="JSD: the suspect has 6 classes"):
        ready(case, metric_names=["JSD"]).verify(suspect)
    case = next(case for case in CASES if case.verifier is ZestVerifier)
    sent: list[int] = []
    suspect.model.block1.register_forward_pre_hook(lambda _, inputs: sent.append(len(inputs[0])))
    with pytest.raises(IncompatibleSuspectError, match="greedy"):
        ready(case, align="identity").verify(suspect)
    assert sent == []


@pytest.mark.filterwarnings("ignore:.*neurons; LAD and NAD say little")
@every_verifier_of_any_data
def test_two_classes(case: Case) -> None:
    verifier = case.verifier(several_classes(X, nb_classes=2), **case.options)
    verifier.extract(X, np.arange(40) % 2)
    verifier.calibrate([several_classes(X, seed=seed, nb_classes=2) for seed in (11, 12)])
    copy_, other = (several_classes(X, seed=seed, nb_classes=2) for seed in (0, 1))
    assert verifier.verify(copy_).derived is True
    verdict = verifier.verify(service(other.predict, 2))
    assert_same(verdict, verifier.verify(other), asked(case))
    for box in (service(lambda x: other.predict(x).argmax(1), 2), service(lambda x: other.predict(x)[:, 0] < 0, 2)):
        if label_metrics(case):
            assert set(verifier.verify(box).metrics) == set(label_metrics(case))


@every_query_verifier
def test_another_shape_is_refused_before_a_query(case: Case) -> None:
    sent: list[int] = []
    for shape, options in (((1, 8, 9), {}), ((3, 8, 8), {}), ((8, 8, 3), {"channels_first": False}), ((63,), {})):
        suspect = service(lambda x: sent.append(len(x)) or np.zeros((len(x), 4)), shape=shape, **options)
        for call in (ready(case).verify, ready(case).score, lambda model: ready(case).calibrate([model])):
            with pytest.raises(IncompatibleSuspectError, match="never resized"):
                call(suspect)
    assert sent == []


@every_query_verifier
def test_budgets_and_errors_of_foreign_suspects(case: Case) -> None:
    """A budget that ends half-way, or a service that fails, leaves an undecided verdict and an honest count."""
    whole = ready(case).verify(service(independent(1).predict)).queries
    for box in (service, Predicting):
        shape: tuple[int, ...] = (1, 8, 8)
        sent: list[int] = []

        def answer(x: np.ndarray, sent: list[int] = sent) -> np.ndarray:
            sent.append(len(x))
            if sum(sent) > 2 * whole - 3:
                raise ConnectionError("503")
            return independent(1).predict(x)

        suspect = service(answer) if box is service else Predicting(answer, shape, 4)
        verdict = ready(case, batch_size=7).verify(suspect, budget=whole - 1)
        assert verdict.queries == sum(sent) <= whole - 1
        assert (verdict.derived, verdict.complete) == (None, False)
        assert "budget" in verdict.reason
        sent[:] = [whole]
        verdict = ready(case, batch_size=7).verify(suspect)
        assert verdict.queries == sum(sent) - whole
        assert verdict.derived is None
        assert "ConnectionError while it answered probes: 503" in verdict.reason


# ---------------------------------------------------------------------- what the verdict says
def test_the_verdict_says_its_rates_in_words() -> None:
    case = next(case for case in CASES if case.verifier is ZestVerifier)
    verifier = ready(case)
    for vote, bound in (("majority", 4 / 3 / 4), ("any", 1.0), ("all", 1 / 4)):
        verdict = verifier.verify(independent(1), vote=vote)  # type: ignore[arg-type]
        assert verdict.false_positive_rate == 1 / 4
        assert verdict.verdict_false_positive_rate == pytest.approx(bound)
        words = " ".join(repr(verdict).split())
        assert verdict.meaning in words
        assert "independently, like the 3 references, one metric is expected to call at most 25.0% derived" in words
        assert (f"this vote at most {bound:.1%}" in words) is (vote != "all")
        assert "never below 0.25" in words
        data = verdict.to_dict()
        assert data["meaning"] == verdict.meaning
        assert data["verdict_false_positive_rate"] == verdict.verdict_false_positive_rate
    assert verifier.verify(independent(1)).meaning.startswith("No closer to the victim than independent models")
    assert "No closer" not in verifier.verify(victim()).meaning


def test_rates_of_one_metric_one_reference_and_none() -> None:
    case = next(case for case in CASES if case.verifier is IPGuardVerifier)
    verifier = ready(case)
    verdict = verifier.verify(victim())
    assert verdict.verdict_false_positive_rate == verdict.false_positive_rate == 1 / 4
    assert "this vote" not in verdict.meaning
    verifier.calibrate([independent(11), independent(12)], rule="t-mean")
    verdict = verifier.verify(victim())
    assert verdict.verdict_false_positive_rate is None
    assert "False positives" not in verdict.meaning
    assert "never below 0.333" in verdict.meaning
    with pytest.warns(UserWarning, match="single reference"):
        verifier.calibrate([independent(11)])
    assert "like the one reference," in verifier.verify(victim()).meaning
    assert verifier.fingerprint is not None
    verifier.fingerprint.calibration = None
    assert verifier.verify(victim()).meaning.startswith("Without reference models")


def test_the_rate_of_a_vote_is_a_bound() -> None:
    """Over many draws of references and models, a vote flags no more independent models than it says."""
    draws = np.random.default_rng(0).normal(size=(20_000, 6, 4)) + np.random.default_rng(1).normal(size=(20_000, 6, 1))
    flags = draws[:, 0] < draws[:, 1:].min(1)  # four correlated distances of one model and five references
    assert flags.mean() == pytest.approx(1 / 6, abs=0.01)
    for vote, needed in (("majority", 3), ("any", 1), ("all", 4)):
        rate = (flags.sum(1) >= needed).mean()
        bound = min(1.0, 4 / needed / 6)
        assert rate <= bound, vote
