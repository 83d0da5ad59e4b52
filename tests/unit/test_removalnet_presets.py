"""RemovalNet's presets against the table of the specification (A.7), typed in anew."""

from __future__ import annotations

import numpy as np
import pytest

from art_fingerprint.attacks import RemovalNetAttack
from art_fingerprint.attacks.removalnet_presets import PRESETS
from art_fingerprint.exceptions import InvalidInputError
from tests.victims import several_classes

COLUMNS = ("alpha", "beta", "gamma", "temperature", "learning_rate", "shuffle_ratio", "inner_steps", "max_iter")
TABLE = {
    "cifar10": (0.2, 2.0, 0.6, 20, 8e-3, 0.02, 20, 1000),
    "celeba": (0.2, 2.0, 0.8, 20, 1e-2, 0.1, 30, 1000),
    "celeba31-vggface2": (0.2, 2.0, 0.8, 20, 6e-3, 0.1, 30, 1000),
    "celeba20-lfw": (0.2, 2.0, 0.8, 20, 3e-3, 0.1, 30, 1000),
    "skin-lesion": (0.2, 2.0, 0.8, 20, 1e-2, 0.1, 30, 1000),
    "skin-lesion-bcn20000": (0.22, 2.0, 0.8, 20, 6e-3, 0.1, 30, 1000),
    "gtsrb": (0.2, 2.0, 0.8, 10, 1e-2, 0.1, 30, 1000),
    "tsrd": (0.2, 1.0, 0.8, 10, 1e-3, 0.1, 30, 1000),
    "imagenet": (0.4, 4.0, 0.8, 20, 1e-2, 0.2, 30, 2000),
}


@pytest.mark.parametrize("name", TABLE)
def test_rows_are_those_of_the_table(name: str, images: np.ndarray) -> None:
    attack = RemovalNetAttack.from_preset(several_classes(images), name)
    assert type(attack) is RemovalNetAttack
    assert tuple(getattr(attack, column) for column in COLUMNS) == TABLE[name]
    assert attack.layer == 2
    assert (attack.momentum, attack.weight_decay, attack.lr_horizon) == (0.9, 1e-4, 1.5)
    assert (attack.inner_lr, attack.log_weight, attack.batch_size, attack.distance) == (0.01, 0.1, 128, "l2")
    assert attack.scaled_learning_rate() == TABLE[name][4]


def test_the_defaults_are_the_cifar10_row_but_for_the_layer(images: np.ndarray) -> None:
    victim = several_classes(images)
    default, preset = RemovalNetAttack(victim).params(), RemovalNetAttack.from_preset(victim, "cifar10").params()
    assert {name for name in default if default[name] != preset[name]} == {"layer"}


def test_keywords_win_over_the_row(images: np.ndarray) -> None:
    attack = RemovalNetAttack.from_preset(several_classes(images), "gtsrb", layer="block2", subset_ratio=0.1, seed=3)
    assert (attack.layer, attack.temperature, attack.seed) == ("block2", 10, 3)
    assert attack.scaled_learning_rate() == pytest.approx(9e-3)
    assert PRESETS["gtsrb"]["layer"] == 2


@pytest.mark.parametrize(("name", "near"), [("cifar", "cifar10"), ("skin", "skin-lesion"), ("CelebA", "celeba")])
def test_unknown_names_get_near_ones(name: str, near: str, images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=rf"no preset '{name}'. Near names: .*{near}"):
        RemovalNetAttack.from_preset(several_classes(images), name)


@pytest.mark.parametrize("name", ["zzzz", None, 3, ["cifar10"]])
def test_nonsense_gets_the_list(name: object, images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="Presets: cifar10, celeba, .*imagenet"):
        RemovalNetAttack.from_preset(several_classes(images), name)  # type: ignore[arg-type]


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["cifar10"]["alpha"] = 1.0  # type: ignore[index]
    with pytest.raises(TypeError):
        PRESETS["mine"] = {}  # type: ignore[index]


def test_a_preset_runs(images: np.ndarray) -> None:
    victim = several_classes(images)
    attack = RemovalNetAttack.from_preset(victim, "gtsrb", shuffle_ratio=0.2, max_iter=2, inner_steps=2, batch_size=20)
    info = attack.generate(images).surrogate_info
    assert info["layer"] == "block2"
    assert info["params"]["temperature"] == 10
