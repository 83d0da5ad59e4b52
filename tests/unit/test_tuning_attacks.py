"""Bad input of the fine-tuning and pruning families: refused in words that help, before anything is trained."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import Preprocessor
from torch import Tensor, nn

from art_fingerprint.attacks import (
    AdversarialFineTuningAttack,
    FinePruningAttack,
    FineTuningAttack,
    LabelSmoothingAttack,
    LayerFineTuningAttack,
    RegularizationAttack,
    WeightPruningAttack,
    WeightQuantizationAttack,
    WeightShiftingAttack,
)
from art_fingerprint.exceptions import InvalidInputError, LayerNotFoundError
from tests.conftest import TinyCNN, wrap
from tests.victims import several_classes, token_classifier

Attack = type[Any]  # a subclass of RemovalAttack; their constructors differ
QUICK: dict[str, Any] = {"max_iter": 2, "batch_size": 16}


@pytest.mark.parametrize(
    ("attack", "bad"),
    [
        (FineTuningAttack, {"ratio": 0.0}),
        (FineTuningAttack, {"ratio": -0.5}),
        (FineTuningAttack, {"ratio": 1.01}),
        (FineTuningAttack, {"retrain_ratio": -0.1}),
        (FineTuningAttack, {"retrain_ratio": 1.1}),
        (FineTuningAttack, {"max_iter": None}),
        (LayerFineTuningAttack, {"variant": "RTXX"}),
        (LayerFineTuningAttack, {"variant": "ftll"}),
        (LayerFineTuningAttack, {"optimizer": "rmsprop"}),
        (LayerFineTuningAttack, {"momentum": 0.9}),
        (LayerFineTuningAttack, {"nb_epochs": 0}),
        (LabelSmoothingAttack, {"epsilon": 1.0}),
        (LabelSmoothingAttack, {"epsilon": -0.1}),
        (LabelSmoothingAttack, {"top_k": 0}),
        (LabelSmoothingAttack, {"top_k": 5}),  # of four classes
        (RegularizationAttack, {"strong_decay": -1.0}),
        (RegularizationAttack, {"strong_epochs": 1.5}),
        (RegularizationAttack, {"patience": 0}),
        (RegularizationAttack, {"holdout_ratio": 0.0}),
        (RegularizationAttack, {"holdout_ratio": 1.0}),
        (AdversarialFineTuningAttack, {"eps": 0.0}),
        (AdversarialFineTuningAttack, {"eps": ()}),
        (AdversarialFineTuningAttack, {"eps": (0.1, -0.1)}),
        (AdversarialFineTuningAttack, {"eps": True}),
        (AdversarialFineTuningAttack, {"eps": math.inf}),
        (AdversarialFineTuningAttack, {"eps_step": 0.0}),
        (AdversarialFineTuningAttack, {"max_iter_attack": 0}),
        (AdversarialFineTuningAttack, {"nb_adversarial": 0}),
        (WeightPruningAttack, {"ratio": -0.1}),
        (WeightPruningAttack, {"ratio": 1.0}),
        (WeightPruningAttack, {"scope": "module"}),
        (WeightPruningAttack, {"ramp_stages": 0}),
        (WeightPruningAttack, {"ramp_stages": 1001}),  # more than steps
        (FinePruningAttack, {"ratio": 1.0}),
        (FinePruningAttack, {"ratio": -0.1}),
        (FinePruningAttack, {"layer": True}),
        (FinePruningAttack, {"layer": 1.5}),
        (WeightShiftingAttack, {"mean_weight": -0.1}),
        (WeightShiftingAttack, {"noise_weight": math.nan}),
        (WeightQuantizationAttack, {"bits": 0}),
        (WeightQuantizationAttack, {"bits": 17}),
        (WeightQuantizationAttack, {"bits": 4.5}),
        (WeightQuantizationAttack, {"requantise": 1}),
    ],
    ids=str,
)
def test_bad_parameters(attack: Attack, bad: dict[str, Any], images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=f"`{next(iter(bad))}`"):
        attack(several_classes(images), **bad)


def refused(attack: Any, x: np.ndarray, match: str, error: type[Exception] = InvalidInputError) -> None:
    """Check that a run is refused before its first step."""
    steps: list[int] = []
    attack.set_params(callback=lambda step, *_: steps.append(step))
    with pytest.raises(error, match=match):
        attack.generate(x)
    assert steps == []


# ---------------------------------------------------------------------- shares that select nothing, or everything
def test_shares_that_select_nothing(images: np.ndarray) -> None:
    victim = several_classes(images)  # 14 parameter tensors, 7 modules with parameters, one Linear layer
    refused(FineTuningAttack(victim, 0.07, **QUICK), images, "`ratio`=0.07 of 14 parameter tensors selects none.*0.072")
    refused(FineTuningAttack(victim, 0.1, unit="module", **QUICK), images, "of 7 parameter modules selects none")
    refused(
        FineTuningAttack(victim, retrain_ratio=0.5, **QUICK),
        images,
        "`retrain_ratio`=0.5 of 1 Linear layers selects none",
    )


def test_layers_that_would_be_emptied(images: np.ndarray) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        victim.model.block1[0].weight.fill_(0.1)  # all equal: none is above the threshold
    for scope in ("global", "layer"):
        attack = WeightPruningAttack(victim, 0.5, rule="reference", scope=scope, **QUICK)
        refused(attack, images, "prunes every weight of block1.0.weight; lower it, or use rule='exact'")
    network = WeightPruningAttack(victim, 0.99, scope="layer", **QUICK).generate(images).model
    assert [int((network.get_submodule(f"block{i}.0").weight != 0).sum()) for i in (1, 2, 3)] == [1, 7, 13]


def test_shared_weights_are_pruned_once(images: np.ndarray) -> None:
    class Shared(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            self.block4 = nn.Conv2d(12, 12, 3, padding=1)
            self.block4.weight = self.block3[0].weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.block4(self.block3(self.block2(self.block1(x))))).flatten(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = wrap(Shared().eval())
    surrogate = WeightPruningAttack(victim, 0.5, scope="layer", momentum=0.9, **QUICK).generate(images)
    network = surrogate.model
    assert network.block4.weight is network.block3[0].weight
    assert int((network.block4.weight == 0).sum()) == 12 * 12 * 9 // 2
    assert surrogate.surrogate_info["sparsity"] == 0.5


# ---------------------------------------------------------------------- last layers
def test_networks_without_a_last_layer(images: np.ndarray) -> None:
    class Cosine(nn.Module):
        """A classifier that is no Linear layer, behind one that is."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Linear(64, 12)
            self.classes = nn.Parameter(torch.randn(4, 12))

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x.flatten(1)) @ self.classes.T

    with torch.random.fork_rng():
        torch.manual_seed(0)
        cosine = wrap(Cosine())
    for variant in ("FTLL", "RTAL"):
        attack = LayerFineTuningAttack(cosine, variant, **QUICK)
        refused(attack, images, "'features' is the last .* has 12 outputs .* 4 classes.*Use FineTuningAttack")
    convolution = wrap(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()))
    refused(LayerFineTuningAttack(convolution, **QUICK), images, "reaches no Linear layer", LayerNotFoundError)


# ---------------------------------------------------------------------- regularisation
@pytest.mark.parametrize(("n", "ratio", "held"), [(40, 0.96, 38), (10, 0.9, 9), (3, 0.7, 2)])
def test_too_little_is_left_for_training(images: np.ndarray, n: int, ratio: float, held: int) -> None:
    attack = RegularizationAttack(several_classes(images), holdout_ratio=ratio, max_iter=2, batch_size=2)
    if n - held < 2:
        refused(attack, images[:n], f"holds {held} of {n} samples back, which leaves too few")
    else:
        attack.generate(images[:n])
    tokens = RegularizationAttack(token_classifier(images), holdout_ratio=ratio, max_iter=2, batch_size=1)
    tokens.generate(images[:n])  # one sample is enough without BatchNorm


def test_nothing_to_hold_back(images: np.ndarray) -> None:
    victim = several_classes(images)
    attack = RegularizationAttack(victim, holdout_ratio=0.02, **QUICK)
    with pytest.warns(UserWarning, match=r"`holdout_ratio`=0.02 of 40 samples holds none back") as record:
        surrogate = attack.generate(images)
    assert [w.filename for w in record] == [__file__]
    without = RegularizationAttack(victim, patience=None, **QUICK).generate(images)
    for a, b in zip(surrogate.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "held_back_loss" not in surrogate.surrogate_info


# ---------------------------------------------------------------------- adversarial fine-tuning
def test_defences_that_change_the_shape(images: np.ndarray) -> None:
    class Half(Preprocessor):
        """Takes every second row and column of larger images."""

        def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
            return x[..., ::2, ::2], y

    victim = wrap(several_classes(images).model, (1, 16, 16), preprocessing_defences=Half())
    large = images.repeat(2, axis=2).repeat(2, axis=3)
    attack = AdversarialFineTuningAttack(victim, **QUICK)
    refused(attack, large, r"inputs of shape \(1, 16, 16\) into \(1, 8, 8\); gradients cannot pass it")
    WeightShiftingAttack(victim, **QUICK).generate(large)


@pytest.mark.parametrize(
    ("eps", "kept"), [((0.01, 0.1), [0.01, 0.1]), ([0.05], [0.05]), (np.array([0.01, 0.02]), [0.01, 0.02]), (1, 1)]
)
def test_radii(eps: Any, kept: Any, images: np.ndarray) -> None:
    attack = AdversarialFineTuningAttack(several_classes(images), eps, max_iter_attack=1, nb_adversarial=4, **QUICK)
    assert attack.generate(images).surrogate_info["params"]["eps"] == kept


def test_steps_longer_than_the_radius(images: np.ndarray) -> None:
    """ART refuses them; here the step is cut to the radius."""
    short = {"max_iter_attack": 1, "nb_adversarial": 8, **QUICK}
    victim = several_classes(images)
    found = [AdversarialFineTuningAttack(victim, 0.01, eps_step=s, **short).generate(images).model for s in (0.01, 0.5)]
    for a, b in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------- fine-pruning
@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        ("blok2", LayerNotFoundError, "block2"),
        (9, LayerNotFoundError, "stages are 1 to 4"),
        ("head", InvalidInputError, "`layer` 'head' cannot be fine-pruned"),
        ("block1.0", InvalidInputError, "not through a normalisation"),
    ],
)
def test_layers_that_cannot_be_pruned(images: np.ndarray, layer: str | int, error: type[Exception], match: str) -> None:
    refused(FinePruningAttack(several_classes(images), layer=layer, **QUICK), images, match, error)


def test_layers_by_number(images: np.ndarray) -> None:
    surrogate = FinePruningAttack(several_classes(images), 0.34, layer=1, **QUICK).generate(images)
    assert surrogate.surrogate_info["layer"] == "block1"
    assert int((surrogate.model.block2[0].weight == 0).flatten(2).all(2).all(0).sum()) == 2


def test_networks_without_a_layer_to_prune(images: np.ndarray) -> None:
    attack = FinePruningAttack(wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), **QUICK)
    refused(attack, images, "No stage of the network can be fine-pruned")
    refused(FinePruningAttack(token_classifier(images), layer="block1", **QUICK), images, "not through .* a sum")


def test_fewer_channels_than_classes(images: np.ndarray) -> None:
    victim = several_classes(images)
    with pytest.warns(UserWarning, match="`ratio`=0.96 leaves 1 of 12 channels at 'block3' for 4 classes") as record:
        surrogate = FinePruningAttack(victim, **QUICK).generate(images)
    assert record[0].filename == __file__
    assert surrogate.surrogate_info["silent_channels"] == 11
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FinePruningAttack(victim, 0.67, **QUICK).generate(images)  # leaves four


# ---------------------------------------------------------------------- shifting
def test_shifting_needs_convolutions(images: np.ndarray) -> None:
    victim = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    refused(WeightShiftingAttack(victim, **QUICK), images, "has no convolution whose filters could be shifted")
