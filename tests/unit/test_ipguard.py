"""IPGuard as a verifier: parameters, bad input, files, batch sizes, suspects of any kind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import Rounded
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from torch import nn

from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import EmptyFingerprintError, IncompatibleSuspectError, InvalidInputError
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.ipguard import IPGuardVerifier
from tests.conftest import wrap

EASY: dict[str, Any] = {"margin": 0.2, "learning_rate": 0.01, "max_iter": 100}


def mlp(seed: int, nb_classes: int = 4) -> nn.Sequential:
    """A random network that uses all its classes, as a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, nb_classes))
    first, last = network[1], network[3]
    with torch.no_grad():
        first.weight.mul_(4)  # type: ignore[operator]
        first.bias.copy_(-first.weight.sum(1) / 2)  # type: ignore[operator]
        last.weight.mul_(3)  # type: ignore[operator]
    return network


def make_classifier(seed: int, nb_classes: int = 4, **options: Any) -> PyTorchClassifier:
    return wrap(mlp(seed, nb_classes), nb_classes=nb_classes, **options)


def test_design_example(images: np.ndarray) -> None:
    victim = make_classifier(0)
    before = network_digest(network_of(victim))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier = IPGuardVerifier(victim, **EASY)
        fingerprint = verifier.extract(images)
        verifier.calibrate([make_classifier(seed) for seed in (1, 2, 3, 4, 5)])
        assert verifier.verify(victim)["MR"].value == 1
        verdict = verifier.verify(make_classifier(6))
    assert verdict.queries == 40
    assert 0 <= verdict["MR"].value < 1
    assert verdict["MR"].direction == "similarity"
    assert network_digest(network_of(victim)) == before
    assert set(fingerprint.arrays) == {"probes", "labels", "source", "target", "converged"}
    assert fingerprint.arrays["probes"].shape == (40, 1, 8, 8)
    assert fingerprint.arrays["probes"].dtype == np.float32
    assert fingerprint.arrays["probes"].min() >= 0
    assert fingerprint.arrays["probes"].max() <= 1
    assert (fingerprint.arrays["source"] != fingerprint.arrays["target"]).all()
    assert fingerprint.facts["nb_converged"] == fingerprint.arrays["converged"].sum()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_results_do_not_depend_on_the_batch_size(images: np.ndarray, batch_size: int) -> None:
    whole = IPGuardVerifier(make_classifier(0), **EASY)
    parts = IPGuardVerifier(make_classifier(0), batch_size=batch_size, **EASY)
    a, b = whole.extract(images).arrays, parts.extract(images).arrays
    for name in ("labels", "source", "target", "converged"):
        assert a[name].tolist() == b[name].tolist()
    np.testing.assert_allclose(a["probes"], b["probes"], atol=1e-4)
    assert whole.score(make_classifier(1)) == parts.score(make_classifier(1))


def test_seed_decides_points_and_random_targets(images: np.ndarray) -> None:
    def extract(seed: int) -> Fingerprint:
        return IPGuardVerifier(make_classifier(0), nb_probes=15, target="random", seed=seed, **EASY).extract(images)

    assert extract(3).digest == extract(3).digest
    assert extract(3).arrays["probes"].shape == (15, 1, 8, 8)
    assert not np.array_equal(extract(3).arrays["probes"], extract(4).arrays["probes"])


def test_file_round_trip_gives_the_same_verdict(images: np.ndarray, tmp_path: Path) -> None:
    verifier = IPGuardVerifier(make_classifier(0), **EASY)
    fingerprint = verifier.extract(images)
    verifier.calibrate([make_classifier(1), make_classifier(2)])
    loaded = IPGuardVerifier.from_fingerprint(Fingerprint.load(fingerprint.save(tmp_path / "f.safetensors")))
    assert loaded.verify(make_classifier(3)) == verifier.verify(make_classifier(3))


def test_points_that_do_not_converge_are_kept_with_the_victims_label_and_a_warning(images: np.ndarray) -> None:
    victim = make_classifier(0)
    verifier = IPGuardVerifier(victim, margin=50.0, max_iter=2)
    with pytest.warns(UserWarning, match="Only 0 of 40 points crossed"):
        fingerprint = verifier.extract(images)
    assert verifier.score(victim) == {"MR": 1.0}
    assert not fingerprint.arrays["converged"].any()
    expected = victim.predict(fingerprint.arrays["probes"]).argmax(1)
    assert fingerprint.arrays["labels"].tolist() == expected.tolist()
    with pytest.raises(EmptyFingerprintError, match="margin"):
        IPGuardVerifier(victim, margin=50.0, max_iter=2, keep="converged").extract(images)


def test_keep_converged_drops_the_rest(images: np.ndarray) -> None:
    options = {**EASY, "max_iter": 11}
    both = [IPGuardVerifier(make_classifier(0), keep=keep, **options) for keep in ("all", "converged")]
    everything, some = (verifier.extract(images).arrays for verifier in both)
    kept = everything["converged"]
    assert 10 <= kept.sum() < 40
    assert np.array_equal(everything["probes"][kept], some["probes"])
    assert some["converged"].all()


def test_points_of_one_class_warn() -> None:
    """Nobody who sees labels alone could tell a copy from a service that always answers the same."""
    victim = make_classifier(0)
    images = np.random.default_rng(5).random((400, 1, 8, 8), dtype=np.float32)
    least = victim.predict(images).argmin(1)
    rare = np.bincount(least, minlength=4).argmax()
    with pytest.warns(UserWarning, match=rf"all 12 points into class {rare}, .*target=\"random\""):
        found = IPGuardVerifier(victim, **{**EASY, "max_iter": 300}).extract(images[least == rare][:12])
    assert set(found.arrays["labels"].tolist()) == {rare}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        IPGuardVerifier(victim, target="random", **EASY).extract(images[least == rare][:40])
    assert not [w for w in told if "points into class" in str(w.message)]


def test_few_points_warn(images: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="only 3 points"):
        IPGuardVerifier(make_classifier(0), **EASY).extract(images[:3])


def test_initial_points(images: np.ndarray) -> None:
    options = {**EASY, "max_iter": 0, "margin": 0.0, "tol": 100.0}  # every start counts as converged
    first = IPGuardVerifier(make_classifier(0), nb_probes=12, initial_points="first", **options).extract(images)
    assert np.array_equal(first.arrays["probes"], images[:12])
    random = IPGuardVerifier(make_classifier(0), nb_probes=12, **options).extract(images)
    assert all(any(np.array_equal(probe, image) for image in images) for probe in random.arrays["probes"])
    noise = IPGuardVerifier(
        make_classifier(0, clip_values=(-2.0, 3.0)), nb_probes=60, initial_points="noise", **options
    )
    probes = noise.extract(images).arrays["probes"]
    assert probes.shape == (60, 1, 8, 8)
    assert probes.min() < -1.9
    assert probes.max() > 2.9


def test_profiles_and_units(images: np.ndarray) -> None:
    plain = IPGuardVerifier.from_profile(make_classifier(0), "removalnet", margin=0.02, max_iter=3)
    scaled = make_classifier(0, preprocessing=(0.0, 0.5))
    legacy = IPGuardVerifier.from_profile(scaled, "removalnet-legacy", margin=30.0, max_iter=3)
    assert plain.nb_probes == legacy.nb_probes == 500
    assert (plain.optimizer, legacy.optimizer) == ("adam", "sign")
    with pytest.warns(UserWarning, match="crossed"):
        probes = legacy.extract(images).arrays["probes"]
    moved = np.abs(probes - images).max()
    assert moved == pytest.approx(3 * 0.01 * 0.5, rel=1e-3)  # three steps of lr in units of the standard deviation
    assert IPGuardVerifier.from_profile(make_classifier(0), "paper").params() == IPGuardVerifier(None).params()


def test_suspect_may_be_a_black_box_that_gives_labels_only(images: np.ndarray) -> None:
    verifier = IPGuardVerifier(make_classifier(0), **EASY)
    verifier.extract(images)
    other = make_classifier(1)
    expected = verifier.score(other)
    box = BlackBoxClassifierNeuralNetwork(other.predict, (1, 8, 8), 4, clip_values=(0, 1))
    assert verifier.score(box) == expected
    labels_only = BlackBoxClassifierNeuralNetwork(
        lambda x: np.eye(4, dtype=np.float32)[other.predict(x).argmax(1)], (1, 8, 8), 4, clip_values=(0, 1)
    )
    assert verifier.score(labels_only) == expected


def test_a_victim_that_rounds_its_answers_still_matches_itself(images: np.ndarray) -> None:
    victim = make_classifier(0, postprocessing_defences=Rounded(decimals=1))
    verifier = IPGuardVerifier(victim, **EASY)
    verifier.extract(images)
    assert verifier.score(victim) == {"MR": 1.0}


class Changed(nn.Module):
    """The victim's network with its logits scaled and its classes permuted."""

    def __init__(self, network: nn.Module, scale: float = 1.0, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.network, self.scale, self.order = network, scale, list(order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.network(x)[:, self.order]


def test_scaled_logits_match_and_permuted_classes_do_not(images: np.ndarray) -> None:
    verifier = IPGuardVerifier(make_classifier(0), **EASY)
    verifier.extract(images)
    other = network_of(make_classifier(1))
    assert verifier.score(wrap(Changed(other, 3.0))) == verifier.score(wrap(other))
    twin = network_of(make_classifier(0))
    assert verifier.score(wrap(Changed(twin, order=(1, 2, 3, 0)))) == {"MR": 0.0}


def test_another_label_space_needs_consent(images: np.ndarray) -> None:
    verifier = IPGuardVerifier(make_classifier(0), **EASY)
    fingerprint = verifier.extract(images)
    wider = make_classifier(1, 6)
    with pytest.raises(IncompatibleSuspectError, match="allow_label_mismatch"):
        verifier.score(wider)
    tolerant = IPGuardVerifier(make_classifier(0), allow_label_mismatch=True, **EASY)
    tolerant.extract(images)
    expected = np.mean(wider.predict(fingerprint.arrays["probes"]).argmax(1) == fingerprint.arrays["labels"])
    assert tolerant.score(wider) == {"MR": pytest.approx(float(expected))}


def test_a_victim_of_two_classes_and_one_of_probabilities(images: np.ndarray) -> None:
    two = IPGuardVerifier(make_classifier(0, 2), **EASY).extract(images)
    assert two.facts["nb_converged"] == 40
    assert (two.arrays["labels"] == 1 - two.arrays["source"]).all()
    victim = wrap(nn.Sequential(mlp(0), nn.Softmax(1)))
    verifier = IPGuardVerifier(victim, **EASY)
    with pytest.warns(UserWarning, match="returns probabilities"):
        fingerprint = verifier.extract(images)
    assert fingerprint.facts["outputs"] == "probabilities"
    assert fingerprint.facts["nb_converged"] > 20
    assert verifier.score(victim) == {"MR": 1.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nb_probes", 0),
        ("margin", -1.0),
        ("tol", -1e-9),
        ("max_iter", 1.5),
        ("learning_rate", 0.0),
        ("optimizer", "adamw"),
        ("units", "pixels"),
        ("target", "second"),
        ("initial_points", "all"),
        ("clip", 1),
        ("keep", "some"),
        ("allow_label_mismatch", "yes"),
        ("seed", -1),
    ],
)
def test_bad_parameters_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        IPGuardVerifier(make_classifier(0), **{name: value})  # type: ignore[arg-type]
    verifier = IPGuardVerifier(make_classifier(0))
    before = verifier.params()
    with pytest.raises(InvalidInputError, match=name):
        verifier.set_params(**{name: value})
    assert verifier.params() == before
