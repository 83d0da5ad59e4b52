"""Attacks on digits by somebody who knows weight alignment: what stays found, and what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import CompositeAttack, FeaturePermutationAttack, RemovalNetAttack, WeightNoiseAttack
from art_fingerprint.verifiers import WeightAlignmentVerifier
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.datasets import Dataset, load_digits
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_victim

pytestmark = pytest.mark.slow

Setting = tuple[Dataset, PyTorchClassifier, WeightAlignmentVerifier]


@pytest.fixture(scope="module")
def digits() -> Setting:
    """Data, a victim of the preset, and its fingerprint."""
    data = load_digits()
    victim = train_victim(SmallCNN, data, replace(load_preset("digits").victim_recipe, max_iter=400), 1000, "cpu")
    verifier = WeightAlignmentVerifier(victim)
    verifier.extract(data.x_train[:1])
    return data, victim, verifier


def accuracy(classifier: PyTorchClassifier, data: Dataset) -> float:
    return float((classifier.predict(data.x_test).argmax(1) == data.y_test).mean())


def test_order_scale_and_noise_hide_nothing(digits: Setting) -> None:
    data, victim, verifier = digits
    moved = FeaturePermutationAttack(victim, rescale=100.0).generate(data.x_apart)
    assert (moved.predict(data.x_test).argmax(1) == victim.predict(data.x_test).argmax(1)).all()
    assert verifier.score(moved)["WA"] > 1 - 1e-5
    row: list[tuple[str, dict[str, Any]]] = [
        ("WeightNoiseAttack", {"strength": 0.5, "nb_epochs": 20}),
        ("FeaturePermutationAttack", {"rescale": 10.0}),
    ]
    noised = CompositeAttack(victim, row, hflip=False).generate(data.x_apart)
    assert accuracy(noised, data) > accuracy(victim, data) - 0.02
    assert verifier.score(noised)["WA"] > 0.8
    assert verifier.verify(noised).derived is True
    row[0] = ("WeightNoiseAttack", {"strength": 2.0, "nb_epochs": 60})
    strong = CompositeAttack(victim, row, hflip=False).generate(data.x_apart)
    whole = WeightAlignmentVerifier(victim, sketch_size=None)  # a sketch is too little to match these
    whole.extract(data.x_train[:1])
    assert accuracy(strong, data) > accuracy(victim, data) - 0.06
    assert whole.verify(strong).derived is True
    broken = WeightNoiseAttack(victim, 1.0).generate(data.x_apart)
    assert accuracy(broken, data) < 0.6  # what noise costs that training does not repair
    assert verifier.verify(broken).derived is True


def test_weight_repulsion_hides_the_weights_at_a_price(digits: Setting) -> None:
    data, victim, verifier = digits
    preset: dict[str, Any] = dict(load_preset("digits").attacks["RemovalNet(apart)"].params)
    scores, prices = [], []
    for weight in (0.0, 30.0):
        surrogate = RemovalNetAttack(victim, **{**preset, "weight_repulsion": weight}).generate(data.x_apart)
        verdict = verifier.verify(surrogate)
        scores.append(verdict["WA"].value)
        prices.append(accuracy(victim, data) - accuracy(surrogate, data))
        assert verdict.derived is (weight == 0)
    assert scores[0] > 0.9
    assert abs(scores[1]) < 0.15  # where independent models are
    assert prices[0] < 0.03
    assert prices[1] < 0.08
