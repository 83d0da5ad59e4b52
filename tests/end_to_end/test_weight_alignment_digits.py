"""Weight alignment's claim on digits: what is left of the victim's weights is found, permuted or not, without
reference models; independent models are not suspected, nor is one that was trained on the victim's answers alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import (
    CompositeAttack,
    FeaturePermutationAttack,
    FineTuningAttack,
    KnockoffNetsAttack,
    RemovalAttack,
    RemovalNetAttack,
    WeightPruningAttack,
)
from art_fingerprint.core.channel_groups import find_groups
from art_fingerprint.core.classifier import network_of
from art_fingerprint.verifiers import WeightAlignmentVerifier
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.datasets import Dataset, load_digits
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_negative, train_victim, wrap
from tests.permuting import shuffled

pytestmark = pytest.mark.slow


@dataclass
class Setting:
    data: Dataset
    victim: PyTorchClassifier
    verifier: WeightAlignmentVerifier


@pytest.fixture(scope="module")
def digits() -> Setting:
    """A victim of the preset, and its fingerprint."""
    preset, data = load_preset("digits"), load_digits()
    victim = train_victim(SmallCNN, data, replace(preset.victim_recipe, max_iter=400), 1000, "cpu")
    verifier = WeightAlignmentVerifier(victim)
    verifier.extract(data.x_train[:1])
    return Setting(data, victim, verifier)


ATTACKS: dict[str, tuple[type[RemovalAttack], dict[str, object], float]] = {
    "fine-tuning": (FineTuningAttack, {"ratio": 0.8, "max_iter": 100}, 0.95),
    "pruning": (WeightPruningAttack, {"ratio": 0.9, "max_iter": 100}, 0.5),
    "RemovalNet": (
        RemovalNetAttack,
        {"layer": "block2", "max_iter": 200, "learning_rate": 1e-2, "batch_size": 64, "shuffle_ratio": 0.1},
        0.7,
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_derived_models_are_found(name: str, digits: Setting) -> None:
    kind, params, least = ATTACKS[name]
    attack = kind(digits.victim, hflip=False, seed=0, **params)  # type: ignore[arg-type]
    surrogate = attack.generate(digits.data.x_apart, digits.data.y_apart)
    network = network_of(surrogate)
    groups = find_groups(network, torch.from_numpy(digits.data.x_apart[:1]))
    moved = wrap(shuffled(network, groups, 1, rescale=True).eval(), digits.data, "cpu")
    for suspect in (surrogate, moved):
        verdict = digits.verifier.verify(suspect)
        assert verdict["WA"].value > least
        assert verdict.derived is True
        assert verdict["WA"].p_value is not None
        assert verdict["WA"].p_value < 1e-6
    assert digits.verifier.score(moved)["WA"] == pytest.approx(digits.verifier.score(surrogate)["WA"], abs=1e-3)


def test_the_permutation_attack_after_another_hides_nothing(digits: Setting) -> None:
    chain = CompositeAttack(
        digits.victim, [("FineTuningAttack", {"max_iter": 50, "hflip": False}), ("FeaturePermutationAttack", {})]
    )
    assert digits.verifier.verify(chain.generate(digits.data.x_apart, digits.data.y_apart)).derived is True
    assert digits.verifier.score(FeaturePermutationAttack(digits.victim).generate(digits.data.x_apart))["WA"] > 1 - 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_independent_models_are_not_suspected(seed: int, digits: Setting) -> None:
    recipe = replace(load_preset("digits").negative_recipe, max_iter=200)
    verdict = digits.verifier.verify(train_negative(SmallCNN, digits.data, recipe, seed, "cpu"))
    assert verdict.derived is False
    assert verdict["WA"].p_value is not None
    assert verdict["WA"].p_value > 0.01


def test_a_model_trained_on_the_answers_shares_no_weights(digits: Setting) -> None:
    attack = KnockoffNetsAttack(digits.victim, max_iter=300, learning_rate=0.05, lr_jitter=1.0, hflip=False)
    stolen = attack.generate(digits.data.x_apart)
    assert (stolen.predict(digits.data.x_test).argmax(1) == digits.data.y_test).mean() > 0.9
    verdict = digits.verifier.verify(stolen)
    assert abs(verdict["WA"].value) < 0.15
    assert verdict.derived is False
