"""DeepJudge as a verifier: families, skipped metrics, parameters, files, batch sizes, suspects of other kinds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from torch import nn

from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.layers import auto_layer
from art_fingerprint.exceptions import (
    EmptyFingerprintError,
    IncompatibleSuspectError,
    InvalidInputError,
    LayerNotFoundError,
)
from art_fingerprint.verifiers.deepjudge import BLACK_BOX, WHITE_BOX, DeepJudgeVerifier
from art_fingerprint.verifiers.fingerprint import Fingerprint
from tests.conftest import wrap
from tests.unit.test_layers import SmallViT

ALL = (*WHITE_BOX, *BLACK_BOX)
FRACTIONS = ("LAD_frac", "NAD_frac", "NNOD")
QUICK: dict[str, Any] = {"radius": 0.1, "nb_seeds_whitebox": 4, "neurons": 5, "multiplier": 1.5, "max_iter": 120}


def cnn(seed: int, width: int = 8, nb_classes: int = 4) -> nn.Sequential:
    """A random network that uses all its classes, as a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(32 * width, nb_classes)
        network = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Flatten(), head),
        )
        network(torch.rand(64, 1, 8, 8))
        with torch.no_grad():
            head.weight.mul_(8)
            head.bias.sub_(network.eval()(torch.rand(200, 1, 8, 8)).mean(0))
    return network


def make_classifier(seed: int, width: int = 8, nb_classes: int = 4, **options: Any) -> PyTorchClassifier:
    return wrap(cnn(seed, width, nb_classes), nb_classes=nb_classes, **options)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def verifier(x: np.ndarray) -> DeepJudgeVerifier:
    made = DeepJudgeVerifier(make_classifier(0), **QUICK)
    made.extract(x)
    return made


def test_design_example(x: np.ndarray) -> None:
    victim = make_classifier(0)
    before = network_digest(network_of(victim))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier = DeepJudgeVerifier(victim, **QUICK)
        fingerprint = verifier.extract(x)
        verifier.calibrate([make_classifier(seed) for seed in (1, 2, 3, 4, 5)])
        verdict = verifier.verify(make_classifier(6))
        own = verifier.verify(victim)
    assert tuple(verdict.metrics) == ALL
    assert all(result.value > 0 for result in verdict.metrics.values())
    assert all(result.value == 0 for result in own.metrics.values())
    assert own.derived is True
    assert verdict.queries == fingerprint.facts["nb_examples"] + fingerprint.facts["nb_tests"]
    assert network_digest(network_of(victim)) == before
    arrays, facts = fingerprint.arrays, fingerprint.facts
    assert facts["layer"] == "1"  # 4 x 4 is at least a quarter of 8; what follows has no height
    assert facts["nb_neurons"] == arrays["tests_activations"].shape[1] == 16
    assert arrays["tests"].shape[1:] == arrays["examples"].shape[1:] == (1, 8, 8)
    assert len(arrays["tests_neuron"]) == len(arrays["tests_seed"]) == len(arrays["tests"]) == facts["nb_tests"]
    assert (victim.predict(arrays["examples"]).argmax(1) != arrays["examples_true"]).all()
    assert arrays["examples"].min() >= 0
    assert arrays["examples"].max() <= 1


def test_scores_hold_the_extras_and_their_relations(verifier: DeepJudgeVerifier) -> None:
    scores = verifier.score(make_classifier(1))
    assert set(scores) == {*ALL, *DeepJudgeVerifier.extras}
    assert verifier.fingerprint is not None
    facts = verifier.fingerprint.facts
    assert scores["LAD"] == pytest.approx(scores["LAD_frac"] * facts["nb_neurons"])
    assert scores["NAD"] == pytest.approx(scores["NAD_frac"] * facts["nb_neurons_with_tests"])
    assert scores["RobD"] == scores["Rob"]  # successes only, so Rob(f) = 0
    assert verifier.verify(make_classifier(1)).metrics.keys() == set(ALL)


@pytest.mark.parametrize(("names", "absent"), [(WHITE_BOX, "examples"), (("JSD",), "tests"), (("NOD",), "examples")])
def test_only_the_families_asked_for_are_made(x: np.ndarray, names: tuple[str, ...], absent: str) -> None:
    verifier = DeepJudgeVerifier(make_classifier(0), metric_names=names, **QUICK)
    fingerprint = verifier.extract(x)
    assert not any(name.startswith(absent) for name in fingerprint.arrays)
    verdict = verifier.verify(make_classifier(1))
    assert tuple(verdict.metrics) == names
    verifier.set_params(metric_names=ALL)
    later = verifier.verify(make_classifier(1))
    assert set(later.skipped) == set(WHITE_BOX if absent == "tests" else BLACK_BOX)
    assert all("extract again" in why for why in later.skipped.values())


@pytest.mark.parametrize("batch_size", [1, 7])
def test_results_do_not_depend_on_the_batch_size(x: np.ndarray, verifier: DeepJudgeVerifier, batch_size: int) -> None:
    parts = DeepJudgeVerifier(make_classifier(0), batch_size=batch_size, **QUICK)
    b = parts.extract(x).arrays
    assert verifier.fingerprint is not None
    a = verifier.fingerprint.arrays
    for name in ("tests_neuron", "tests_seed", "examples_true"):
        assert a[name].tolist() == b[name].tolist()
    for name in ("tests", "examples", "tests_activations", "examples_logits"):
        np.testing.assert_allclose(a[name], b[name], atol=1e-3)
    assert parts.score(make_classifier(1)) == pytest.approx(verifier.score(make_classifier(1)), abs=1e-3)


def test_seed_decides_the_random_starts(x: np.ndarray) -> None:
    def extract(seed: int, **options: object) -> Fingerprint:
        settings = {**QUICK, "metric_names": BLACK_BOX, "keep": "all", **options}
        return DeepJudgeVerifier(make_classifier(0), seed=seed, **settings).extract(x)

    assert extract(1).digest == extract(1).digest
    assert not np.array_equal(extract(1).arrays["examples"], extract(2).arrays["examples"])
    first, second = (extract(seed, method="fgsm").arrays["examples"] for seed in (1, 2))
    assert np.array_equal(first, second)  # FGSM starts at the seeds


def test_file_round_trip_gives_the_same_verdict(verifier: DeepJudgeVerifier, tmp_path: Path) -> None:
    assert verifier.fingerprint is not None
    path = verifier.fingerprint.save(tmp_path / "f.safetensors")
    loaded = DeepJudgeVerifier.from_fingerprint(Fingerprint.load(path))
    assert loaded.params() == verifier.params()
    assert loaded.verify(make_classifier(3)) == verifier.verify(make_classifier(3))


def test_another_architecture_keeps_the_black_box_metrics(verifier: DeepJudgeVerifier) -> None:
    wider = verifier.verify(make_classifier(1, width=12))
    assert set(wider.skipped) == set(WHITE_BOX)
    assert "24 neurons" in wider.skipped["LOD"]
    assert tuple(wider.metrics) == BLACK_BOX
    renamed = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    assert "no layer" in verifier.verify(nested(renamed)).skipped["LAD"]
    white = DeepJudgeVerifier.from_fingerprint(verifier.fingerprint)  # type: ignore[arg-type]
    white.set_params(metric_names=WHITE_BOX)
    with pytest.raises(IncompatibleSuspectError, match="LOD"):
        white.score(make_classifier(1, width=12))


class Holder(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def nested(classifier: PyTorchClassifier) -> PyTorchClassifier:
    return wrap(Holder(network_of(classifier)))


def test_the_suspects_layer_may_have_another_name(verifier: DeepJudgeVerifier) -> None:
    assert verifier.fingerprint is not None
    suspect = make_classifier(1)
    expected = verifier.score(suspect)
    renamed = DeepJudgeVerifier.from_fingerprint(verifier.fingerprint)
    renamed.set_params(suspect_layer="inner.1")
    assert renamed.score(nested(suspect)) == expected


def test_query_only_suspects_get_the_black_box_metrics(verifier: DeepJudgeVerifier) -> None:
    other = make_classifier(1)
    expected = verifier.score(other)
    box = BlackBoxClassifierNeuralNetwork(other.predict, (1, 8, 8), 4, clip_values=(0, 1))
    verdict = verifier.verify(box)
    assert {name: result.value for name, result in verdict.metrics.items()} == {n: expected[n] for n in BLACK_BOX}
    assert "PyTorchClassifier" in verdict.skipped["NOD"]


def test_probabilities_score_like_logits(verifier: DeepJudgeVerifier) -> None:
    other = network_of(make_classifier(1))
    expected = verifier.score(wrap(other))
    scores = verifier.score(wrap(nn.Sequential(*other.children(), nn.Softmax(1))))
    assert scores == pytest.approx(expected, abs=1e-6)


def test_another_number_of_classes(x: np.ndarray, verifier: DeepJudgeVerifier) -> None:
    suspect = make_classifier(1, nb_classes=6)
    verdict = verifier.verify(suspect)
    assert tuple(verdict.metrics) == WHITE_BOX
    assert "6 classes" in verdict.skipped["JSD"]
    assert "allow_label_mismatch" in verdict.skipped["RobD"]
    tolerant = DeepJudgeVerifier.from_fingerprint(verifier.fingerprint)  # type: ignore[arg-type]
    tolerant.set_params(allow_label_mismatch=True)
    assert set(tolerant.verify(suspect).skipped) == {"JSD"}


def test_scaled_logits_change_jsd_only(verifier: DeepJudgeVerifier) -> None:
    class Scaled(Holder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * self.inner(x)

    plain, scaled = (verifier.score(wrap(kind(cnn(1)))) for kind in (Holder, Scaled))
    assert scaled["RobD"] == plain["RobD"]
    assert scaled["JSD"] != plain["JSD"]


def test_keep_all_and_the_victims_labels_as_reference(x: np.ndarray) -> None:
    y = make_classifier(0).predict(x).argmax(1)
    settings = {**QUICK, "metric_names": BLACK_BOX, "radius": 0.01, "keep": "all"}
    verifier = DeepJudgeVerifier(make_classifier(0), **settings)
    fingerprint = verifier.extract(x, y)
    assert fingerprint.facts["nb_examples"] == 40 > fingerprint.facts["nb_fooled"] > 0
    own = verifier.score(make_classifier(0))
    assert own["RobD"] == 0
    assert own["Rob"] == pytest.approx(1 - fingerprint.facts["nb_fooled"] / 40)
    legacy = DeepJudgeVerifier(make_classifier(0), rob_reference="victim", **settings)
    legacy.extract(x, y)
    scores = legacy.score(make_classifier(1))
    assert scores["Rob"] == scores["MR_adv"]
    assert scores["RobD"] == pytest.approx(1 - scores["MR_adv"])


def test_only_right_answers_are_seeds_and_no_seed_is_an_error(x: np.ndarray) -> None:
    y = make_classifier(0).predict(x).argmax(1)
    y[:15] = (y[:15] + 1) % 4
    settings = {**QUICK, "metric_names": BLACK_BOX}
    assert DeepJudgeVerifier(make_classifier(0), **settings).extract(x, y).facts["nb_seeds"] == 25
    with pytest.raises(EmptyFingerprintError, match="`y`"):
        DeepJudgeVerifier(make_classifier(0), **settings).extract(x[:15], y[:15])


def test_empty_families_name_their_parameters(x: np.ndarray) -> None:
    with pytest.raises(EmptyFingerprintError, match="radius"):
        DeepJudgeVerifier(make_classifier(0), **{**QUICK, "radius": 1e-6}).extract(x)
    impossible = {**QUICK, "multiplier": 1e4, "metric_names": WHITE_BOX, "max_iter": 3}
    with pytest.raises(EmptyFingerprintError, match="multiplier"):
        DeepJudgeVerifier(make_classifier(0), **impossible).extract(x)


def test_methods(x: np.ndarray) -> None:
    settings = {**QUICK, "metric_names": BLACK_BOX, "keep": "all"}
    seeds = DeepJudgeVerifier(make_classifier(0), **{**settings, "method": "fgsm", "radius": 1e-9}).extract(x)
    origin = seeds.arrays["examples"]
    variants: dict[str, dict[str, Any]] = {
        "pgd": {},
        "fgsm": {"method": "fgsm"},
        "drifting": {"project": False, "step": 0.05},
        "cw": {"method": "cw", "cw_max_iter": 5, "cw_confidence": 0.0},
    }
    far = {}
    for name, options in variants.items():
        examples = DeepJudgeVerifier(make_classifier(0), **{**settings, **options}).extract(x).arrays["examples"]
        far[name] = float(np.abs(examples - origin).max())
        assert examples.min() >= 0
        assert examples.max() <= 1
    assert far["pgd"] == pytest.approx(0.1, abs=1e-6)
    assert far["fgsm"] == pytest.approx(0.1, abs=1e-6)
    assert far["drifting"] > 0.3
    assert far["cw"] > 0


def test_preprocessing_units_and_the_legacy_clip(x: np.ndarray) -> None:
    settings = {**QUICK, "metric_names": BLACK_BOX, "keep": "all", "method": "fgsm"}
    options: dict[str, Any] = {"preprocessing": (0.5, 0.25)}
    plain = DeepJudgeVerifier(make_classifier(0, **options), **{**settings, "radius": 1e-9}).extract(x)
    scaled = DeepJudgeVerifier(make_classifier(0, **options), units="standardised", **settings).extract(x)
    assert np.abs(scaled.arrays["examples"] - plain.arrays["examples"]).max() == pytest.approx(0.025, abs=1e-6)
    cut = DeepJudgeVerifier(make_classifier(0, **options), attack_clip="standardised-unit", **settings).extract(x)
    assert cut.arrays["examples"].min() == pytest.approx(0.25)
    assert cut.arrays["examples"].max() == pytest.approx(0.75)


def test_profiles(x: np.ndarray) -> None:
    assert DeepJudgeVerifier.from_profile(None, "paper").params() == DeepJudgeVerifier(None).params()
    small = {"nb_seeds_whitebox": 3, "max_iter": 15, "max_iter_attack": 5}
    for profile in ("removalnet", "removalnet-legacy"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few tests, few columns
            verifier = DeepJudgeVerifier.from_profile(make_classifier(0), profile, **small)
            fingerprint = verifier.extract(x)
        own = verifier.score(make_classifier(0))
        assert {own[name] for name in ALL} == {0.0}
        assert fingerprint.facts["nb_neurons"] == (4 if profile == "removalnet-legacy" else 16)
    counts = np.unique(fingerprint.arrays["tests_neuron"], return_counts=True)[1]
    assert len(set(counts.tolist())) == 1


def test_layers_neurons_and_reference(x: np.ndarray) -> None:
    settings = {**QUICK, "metric_names": WHITE_BOX}

    def facts(**options: object) -> dict[str, Any]:
        return DeepJudgeVerifier(make_classifier(0), **{**settings, **options}).extract(x).facts

    assert facts(layer="0")["nb_neurons"] == 8
    assert facts(layer=1)["layer"] == "0"
    with pytest.raises(LayerNotFoundError, match="stages"):
        facts(layer="nowhere")
    chosen = DeepJudgeVerifier(make_classifier(0), **{**settings, "neurons": [2, 5, 2], "max_tests_per_neuron": 2})
    with pytest.warns(UserWarning, match="white-box tests"):
        fingerprint = chosen.extract(x)
    assert set(fingerprint.arrays["tests_neuron"].tolist()) <= {2, 5}
    assert fingerprint.facts["nb_tests"] <= 4
    with pytest.raises(InvalidInputError, match="neuron 16"):
        facts(neurons=[16])
    by_seeds = DeepJudgeVerifier(make_classifier(0), **settings).extract(x)
    by_data = DeepJudgeVerifier(make_classifier(0), **{**settings, "reference": "data"}).extract(x)
    assert by_data.facts["nb_updates"] > by_seeds.facts["nb_updates"]  # larger maxima are further away


def test_few_neurons_and_dead_ones(x: np.ndarray) -> None:
    network = cnn(0, width=3)
    with torch.no_grad():
        network[1][0].bias[2] = -100  # type: ignore[index,operator]
    settings = {**QUICK, "metric_names": WHITE_BOX, "neurons": None}
    with pytest.warns(UserWarning, match="6 neurons"):
        fingerprint = DeepJudgeVerifier(wrap(network), **settings).extract(x)
    assert 2 in fingerprint.facts["dead_neurons"]
    assert 2 not in fingerprint.arrays["tests_neuron"]


class TokenModel(nn.Module):
    """Sixteen tokens of two by two pixels, three equal blocks, mean over tokens."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.mean(1))


def test_token_models(x: np.ndarray) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = TokenModel().eval()
    settings = {**QUICK, "metric_names": WHITE_BOX, "neurons": None, "layer": "blocks.1"}
    verifier = DeepJudgeVerifier(wrap(network), **settings)
    assert verifier.extract(x).facts["nb_neurons"] == 10
    assert verifier.score(wrap(network)) == pytest.approx(dict.fromkeys((*WHITE_BOX, *FRACTIONS), 0.0), abs=1e-6)


def test_the_automatic_layer_of_a_token_model_is_the_middle_stage(x: np.ndarray) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = SmallViT().eval()
    settings = {**QUICK, "metric_names": WHITE_BOX, "multiplier": 1.2}
    facts = DeepJudgeVerifier(wrap(network, nb_classes=3), **settings).extract(x).facts
    assert facts["layer"] == auto_layer(network, torch.from_numpy(x[:2])) == "blocks.2"
    by_number = DeepJudgeVerifier(wrap(network, nb_classes=3), **{**settings, "layer": 5}).extract(x).facts
    assert by_number["layer"] == "norm"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("units", "pixels"),
        ("nb_seeds", 0),
        ("gini_on", "labels"),
        ("method", "deepfool"),
        ("radius", 0.0),
        ("step", -1.0),
        ("max_iter_attack", 0),
        ("random_start", "yes"),
        ("project", None),
        ("attack_clip", "none"),
        ("cw_confidence", -1.0),
        ("cw_initial_const", 0.0),
        ("cw_max_iter", 0),
        ("keep", "some"),
        ("rob_reference", "labels"),
        ("allow_label_mismatch", 1),
        ("layer", 0),
        ("layer", None),
        ("suspect_layer", 3),
        ("pooling", "max"),
        ("nb_seeds_whitebox", 0),
        ("neurons", ()),
        ("neurons", (1, -1)),
        ("neurons", 0),
        ("max_tests_per_neuron", 0),
        ("reference", "training"),
        ("multiplier", 0.0),
        ("margin", -0.1),
        ("learning_rate", 0.0),
        ("max_iter", 0),
        ("clip", "yes"),
        ("keep_best", 1),
        ("stored_iterate", "last"),
        ("equalise_counts", "no"),
        ("lod_order", 0.5),
        ("metric_names", ("DDV",)),
    ],
)
def test_bad_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        DeepJudgeVerifier(None, **{name: value})  # type: ignore[arg-type]
