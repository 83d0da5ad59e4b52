"""The suspect seen through queries: every kind of ART classifier, every form of answer, metered and limited."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import HighConfidence, ReverseSigmoid, Rounded
from art.defences.preprocessor import JpegCompression
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier, SklearnClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from art_fingerprint.core.outputs import same_space, to_probabilities
from art_fingerprint.core.queries import Suspect
from art_fingerprint.exceptions import (
    AccessError,
    FingerprintError,
    IncompatibleSuspectError,
    InvalidInputError,
    LayerNotFoundError,
    MalformedAnswerError,
    NonFiniteOutputError,
    QueryBudgetError,
    SuspectFailedError,
)
from tests.conftest import wrap

Make = Callable[..., PyTorchClassifier]


def black_box(
    answer: Callable[[np.ndarray], np.ndarray], input_shape: tuple[int, ...] = (1, 8, 8), **options: Any
) -> BlackBoxClassifierNeuralNetwork:
    return BlackBoxClassifierNeuralNetwork(answer, input_shape, 4, **options)


def check_all_forms(classifier: Any, x: Tensor, kind: str, **options: Any) -> None:
    """Compare logits, probabilities and labels with what ``predict`` says, for several batch sizes."""
    for batch_size in (1, 7, 100):
        suspect = Suspect(classifier, batch_size, **options)
        expected = torch.from_numpy(classifier.predict(native(classifier, x)).astype(np.float64))
        if kind == "logits":
            torch.testing.assert_close(suspect.logits(x).double(), expected, atol=1e-5, rtol=1e-5)
            expected = torch.softmax(expected, 1)
        torch.testing.assert_close(suspect.probabilities(x), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(suspect.labels(x), expected.argmax(1))
        assert suspect.kind == kind
        assert suspect.queries == (3 if kind == "logits" else 2) * len(x)
        assert suspect.labels(x).dtype == torch.int64
        assert suspect.probabilities(x).dtype == torch.float64


def native(classifier: Any, x: Tensor) -> np.ndarray:
    array = x.numpy()
    if len(classifier.input_shape) == 1:
        return array.reshape(len(array), -1)
    return array if classifier.channels_first else np.moveaxis(array, 1, -1)


# ---------------------------------------------------------------------- kinds of classifiers
def test_pytorch_classifiers(make_classifier: Make, images: np.ndarray) -> None:
    x = torch.from_numpy(images)
    check_all_forms(make_classifier(), x, "logits")
    check_all_forms(make_classifier(preprocessing=(np.array([0.4]), np.array([0.3]))), x, "logits")
    compression = JpegCompression(clip_values=(0.0, 1.0), quality=30, channels_first=True)
    compressed = make_classifier(preprocessing_defences=[compression])
    check_all_forms(compressed, x, "logits")
    assert not torch.equal(Suspect(compressed).logits(x), Suspect(make_classifier()).logits(x))
    soft = wrap(nn.Sequential(make_classifier().model, nn.Softmax(1)).eval())
    check_all_forms(soft, x, "probabilities")


def test_evaluation_mode_is_used(make_classifier: Make, images: np.ndarray) -> None:
    classifier = make_classifier()
    expected = Suspect(classifier).logits(torch.from_numpy(images))
    classifier.model.train()
    assert torch.equal(Suspect(classifier).logits(torch.from_numpy(images)), expected)


def test_evaluation_mode_is_set_once_and_kept(make_classifier: Make, images: np.ndarray) -> None:
    classifier, x = make_classifier(), torch.from_numpy(images)
    classifier.model.eval()
    next(m for m in classifier.model.modules() if isinstance(m, nn.BatchNorm2d)).train()
    suspect = Suspect(classifier, batch_size=4)
    calls: list[bool] = []
    switch = classifier.model.train
    classifier.model.train = lambda mode=True: (calls.append(mode), switch(mode))[1]
    suspect.logits(x)
    assert calls == [False]
    assert not any(module.training for module in classifier.model.modules())
    switch(True)
    suspect.logits(x)
    assert calls == [False, False]


class Scribbler(nn.Module):
    """Writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sub_(0.5).flatten(1))


def test_probes_survive_networks_that_write_to_their_inputs(images: np.ndarray) -> None:
    def scribble(array: np.ndarray) -> np.ndarray:
        array -= 0.5
        return array.reshape(len(array), -1)[:, :4]

    x = torch.from_numpy(images.copy())
    network = wrap(Scribbler().eval(), preprocessing=None)
    for classifier in (network, black_box(scribble), black_box(scribble, (64,)), black_box(scribble, (8, 8, 1))):
        first, second = (Suspect(classifier, batch_size=7).logits(x) for _ in range(2))
        assert torch.equal(first, second)
    Suspect(network).activations(x, "layer")
    assert torch.equal(x, torch.from_numpy(images))


def test_black_boxes(make_classifier: Make, images: np.ndarray) -> None:
    classifier = make_classifier()
    check_all_forms(black_box(classifier.predict), torch.from_numpy(images), "logits")

    def probabilities(x: np.ndarray) -> np.ndarray:
        return torch.softmax(torch.from_numpy(classifier.predict(x)), 1).numpy()

    check_all_forms(black_box(probabilities), torch.from_numpy(images), "probabilities")


def test_label_only_services(images: np.ndarray) -> None:
    suspect = Suspect(black_box(lambda x: np.eye(4)[(x.sum((1, 2, 3)) > 32).astype(int)]))
    x = torch.from_numpy(images)
    expected = (x.sum((1, 2, 3)) > 32).long()
    assert 0 < expected.sum() < len(x)
    assert torch.equal(suspect.labels(x), expected)
    with pytest.raises(AccessError, match="label-only suspect"):
        suspect.logits(x)
    assert suspect.kind == "labels"


def test_scikit_learn_classifiers_have_flat_inputs(images: np.ndarray) -> None:
    model = LogisticRegression().fit(images.reshape(40, -1), np.arange(40) % 4)
    classifier = SklearnClassifier(model, clip_values=(0.0, 1.0))
    suspect = Suspect(classifier)
    assert suspect.input_shape == (64,)
    suspect.check_shape((1, 8, 8))
    with pytest.raises(IncompatibleSuspectError):
        suspect.check_shape((3, 8, 8))
    check_all_forms(classifier, torch.from_numpy(images), "probabilities")


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_services(make_classifier: Make, channels: int) -> None:
    x = torch.rand(9, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = make_classifier(channels=channels)
    last = black_box(
        lambda x: classifier.predict(np.ascontiguousarray(np.moveaxis(x, -1, 1))),
        (8, 8, channels),
        channels_first=False,
    )
    suspect = Suspect(last)
    assert suspect.input_shape == (channels, 8, 8)
    suspect.check_shape((channels, 8, 8))
    torch.testing.assert_close(suspect.logits(x), Suspect(classifier).logits(x), atol=1e-5, rtol=1e-5)
    check_all_forms(last, x, "logits")


class ChannelsLast(nn.Module):
    """A network whose images have their channels last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.movedim(-1, 1))


def test_channels_last_networks(make_classifier: Make) -> None:
    x = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = make_classifier(channels=3)
    last = wrap(ChannelsLast(classifier.model).eval(), (8, 8, 3), channels_first=False)
    suspect, known = Suspect(last), Suspect(classifier)
    assert suspect.input_shape == (3, 8, 8)
    torch.testing.assert_close(suspect.logits(x), known.logits(x))
    torch.testing.assert_close(suspect.activations(x, "network.block2"), known.activations(x, "block2"))
    check_all_forms(last, x, "logits")


def test_flat_networks(images: np.ndarray) -> None:
    torch.manual_seed(0)
    classifier = wrap(nn.Linear(64, 4), (64,))
    suspect = Suspect(classifier)
    suspect.check_shape((1, 8, 8))
    check_all_forms(classifier, torch.from_numpy(images), "logits")


# ---------------------------------------------------------------------- what a client sees
@pytest.mark.parametrize(
    "defence",
    [Rounded(decimals=1), HighConfidence(cutoff=0.3), ReverseSigmoid(beta=1.0, gamma=0.1)],
    ids=lambda d: type(d).__name__,
)
def test_postprocessing_defences_are_seen(make_classifier: Make, images: np.ndarray, defence: Any) -> None:
    network = nn.Sequential(make_classifier().model, nn.Softmax(1)).eval()
    defended = wrap(network, postprocessing_defences=[defence])
    x = torch.from_numpy(images)
    suspect = Suspect(defended, outputs="probabilities")
    raw = torch.cat([suspect.raw(part) for part in x.split(16)])
    expected = torch.from_numpy(defended.predict(images))
    torch.testing.assert_close(raw, expected)
    assert not torch.allclose(raw, torch.from_numpy(wrap(network).predict(images)))
    assert torch.equal(suspect.labels(x), expected.argmax(1))


def test_probabilities_are_detected_on_real_answers() -> None:
    x = torch.zeros(3, 1, 8, 8)
    cases: list[tuple[list[float], str]] = [
        ([0.1, 0.2, 0.3, 0.4], "probabilities"),
        ([0.1, 0.2, 0.3, 0.4005], "probabilities"),
        ([0.1, 0.2, 0.3, 1.5], "logits"),
        ([-0.1, 0.2, 0.4, 0.5], "logits"),
        ([0.0, 0.0, 1.0, 0.0], "labels"),
    ]
    for row, kind in cases:
        suspect = Suspect(constant(row))
        if kind == "labels":
            with pytest.raises(AccessError):
                suspect.logits(x)
        else:
            suspect.logits(x)
        assert suspect.kind == kind
        told = Suspect(constant(row), outputs="logits")
        torch.testing.assert_close(told.probabilities(x)[0], to_probabilities(torch.tensor([row]))[0])


def constant(row: list[float]) -> BlackBoxClassifierNeuralNetwork:
    return black_box(lambda x: np.tile(np.array(row, dtype=np.float32), (len(x), 1)))


def test_zero_probabilities_become_finite_logits() -> None:
    suspect = Suspect(constant([0, 0, 1, 0]), outputs="probabilities")
    logits = suspect.logits(torch.zeros(2, 1, 8, 8))
    assert torch.isfinite(logits).all()
    assert logits[0].tolist() == pytest.approx([np.log(1e-30), np.log(1e-30), 0, np.log(1e-30)], rel=1e-5)
    torch.testing.assert_close(
        suspect.probabilities(torch.zeros(1, 1, 8, 8)), torch.tensor([[0.0, 0, 1, 0]], dtype=torch.float64)
    )


def test_same_space() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_space("logits", "logits")
        assert same_space("probabilities", "probabilities")
    with pytest.warns(UserWarning, match="compared as probabilities") as caught:
        assert not same_space("logits", "probabilities")
    assert [warning.filename for warning in caught] == [__file__]  # not a module of the package


# ---------------------------------------------------------------------- bad answers
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_not_finite(make_classifier: Make, images: np.ndarray, value: float) -> None:
    class Holes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            outputs = x.flatten(1)[:, :4].clone()
            outputs[:2, 1] = value
            return outputs

    def holes(x: np.ndarray) -> np.ndarray:
        return Holes()(torch.from_numpy(x)).numpy()

    x = torch.from_numpy(images)
    for classifier in (wrap(Holes()), black_box(holes)):
        for ask in ("labels", "logits", "probabilities"):
            with pytest.raises(NonFiniteOutputError, match="2 of 40"):
                getattr(Suspect(classifier), ask)(x)


class Pair(nn.Module):
    """A network that answers a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1)[:, :4], x


class Odd(BlackBoxClassifierNeuralNetwork):
    """A service that answers in the wrong shape."""

    shape: tuple[int, ...] = ()

    def predict(self, x: np.ndarray, **_: object) -> np.ndarray:
        return np.zeros(self.shape, np.float32)


@pytest.mark.parametrize("shape", [(39,), (39, 1), (40, 4, 1), (40, 3), (39, 4), (0, 4), ()])
def test_answers_of_the_wrong_shape(images: np.ndarray, shape: tuple[int, ...]) -> None:
    service = Odd(lambda x: x, (1, 8, 8), 4)
    service.shape = shape
    with pytest.raises(IncompatibleSuspectError, match="shape"):
        Suspect(service).labels(torch.from_numpy(images))


@pytest.mark.parametrize("network", [nn.Flatten(0), nn.Identity(), Pair()])
def test_networks_of_the_wrong_shape(images: np.ndarray, network: nn.Module) -> None:
    with pytest.raises(FingerprintError):
        Suspect(wrap(network)).labels(torch.from_numpy(images))


def test_other_input_shapes_are_refused(make_classifier: Make) -> None:
    for shape in ((3, 8, 8), (1, 8, 9), (64,)):
        with pytest.raises(IncompatibleSuspectError, match="never resized"):
            Suspect(make_classifier()).check_shape(shape)


def test_only_classifiers_and_good_arguments(make_classifier: Make) -> None:
    for wrong in (make_classifier().model, None, lambda x: x):
        with pytest.raises(InvalidInputError, match="ART classifier"):
            Suspect(wrong)
    for options in ({"batch_size": 0}, {"batch_size": 2.5}, {"outputs": "scores"}):
        with pytest.raises(InvalidInputError):
            Suspect(make_classifier(), **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- budget and layers
def test_the_budget_is_never_exceeded(images: np.ndarray) -> None:
    sent: list[int] = []

    def answer(x: np.ndarray) -> np.ndarray:
        sent.append(len(x))
        return x.reshape(len(x), -1)[:, :4]

    suspect = Suspect(black_box(answer), batch_size=8, budget=30)
    x = torch.from_numpy(images)
    suspect.labels(x[:16])
    assert suspect.queries == 16
    with pytest.raises(QueryBudgetError, match="30"):
        suspect.labels(x)
    assert suspect.queries == sum(sent) == 24
    suspect.labels(x[:6])
    assert suspect.queries == sum(sent) == 30
    with pytest.raises(QueryBudgetError):
        suspect.labels(x[:1])


def test_layers(make_classifier: Make, images: np.ndarray) -> None:
    classifier = make_classifier(preprocessing=(np.array([0.4]), np.array([0.3])))
    x = torch.from_numpy(images)
    with torch.no_grad():
        expected = classifier.model.block1((x - 0.4) / 0.3)
    for batch_size in (1, 7, 100):
        suspect = Suspect(classifier, batch_size)
        torch.testing.assert_close(suspect.activations(x, "block1"), expected, atol=1e-5, rtol=1e-5)
        assert suspect.queries == 40
    assert all(len(module._forward_hooks) == 0 for module in classifier.model.modules())
    with pytest.raises(LayerNotFoundError, match="block1"):
        Suspect(classifier).activations(x, "block9")


def test_layers_of_a_service_are_hidden(make_classifier: Make, images: np.ndarray) -> None:
    suspect = Suspect(black_box(make_classifier().predict))
    with pytest.raises(AccessError, match="PyTorchClassifier"):
        suspect.activations(torch.from_numpy(images), "block1")
    assert suspect.queries == 0


def test_layers_of_a_defended_classifier_are_those_of_its_network(make_classifier: Make, images: np.ndarray) -> None:
    defended = make_classifier(postprocessing_defences=[Rounded(decimals=1)])
    x = torch.from_numpy(images)
    plain = Suspect(make_classifier()).activations(x, "block1")
    assert torch.equal(Suspect(defended).activations(x, "block1"), plain)


# ---------------------------------------------------------------------- errors of the suspect's own
def test_errors_of_the_suspect_become_ours(make_classifier: Make, images: np.ndarray) -> None:
    def refuse(x: np.ndarray) -> np.ndarray:
        raise ConnectionError("429 Too Many Requests")

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    x = torch.from_numpy(images)
    for classifier, cause in ((black_box(refuse), ConnectionError), (wrap(Broken()), RuntimeError)):
        suspect = Suspect(classifier, 7)
        with pytest.raises(SuspectFailedError, match=cause.__name__) as raised:
            suspect.logits(x)
        assert isinstance(raised.value.__cause__, cause)
        assert suspect.queries == 7
    suspect = Suspect(wrap(Broken()), 7)
    with pytest.raises(SuspectFailedError, match="mat1"):
        suspect.activations(x, "layer")
    assert suspect.queries == 7
    for answer in (lambda x: "text", lambda x: [[1.0], [2.0, 3.0]]):
        with pytest.raises(FingerprintError):
            Suspect(black_box(answer)).logits(x)  # type: ignore[arg-type]


def test_our_own_errors_and_interrupts_pass(make_classifier: Make, images: np.ndarray) -> None:
    def interrupt(x: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    x = torch.from_numpy(images)
    with pytest.raises(KeyboardInterrupt):
        Suspect(black_box(interrupt)).logits(x)
    with pytest.raises(MalformedAnswerError, match="nb_classes >= 2"):
        Suspect(wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)))).logits(x)
    with pytest.raises(LayerNotFoundError):
        Suspect(make_classifier()).activations(x, "nowhere")
    with pytest.raises(ZeroDivisionError):
        Suspect(make_classifier()).activations(x, "block1", lambda z: 1 / 0)  # type: ignore[arg-type, return-value]
