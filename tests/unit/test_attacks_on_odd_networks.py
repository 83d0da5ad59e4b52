"""Attacks on networks that are written in another way than most: the result is that of the plain form, or an error."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import ClassLabels, ReverseSigmoid
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import (
    CompositeAttack,
    DistillationAttack,
    FineTuningAttack,
    KnockoffNetsAttack,
    LayerFineTuningAttack,
    LogitDistillationAttack,
    RemovalNetAttack,
    RetrainingAttack,
    WeightNoiseAttack,
    WeightPruningAttack,
    WeightQuantizationAttack,
    WeightShiftingAttack,
)
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.testing.models import tiny_classifier, tiny_images, wrapped

X = tiny_images()
Y = np.arange(40) % 4
SHORT: dict[str, Any] = {"max_iter": 30, "batch_size": 20, "hflip": False}


def network() -> nn.Module:
    return tiny_classifier().model


def weights(classifier: PyTorchClassifier) -> list[Tensor]:
    return [tensor for tensor in classifier.model.state_dict().values() if tensor.is_floating_point()]


# ---------------------------------------------------------------------- weights that are computed
@pytest.mark.parametrize(
    "attack",
    [
        lambda victim: WeightNoiseAttack(victim, 1.0),
        lambda victim: WeightPruningAttack(victim, 0.8, **SHORT),
        lambda victim: WeightShiftingAttack(victim, nb_epochs=1),
        lambda victim: FineTuningAttack(victim, 0.5, retrain_ratio=1.0, **SHORT),
        lambda victim: LayerFineTuningAttack(victim, "RTLL", nb_epochs=1, batch_size=20, hflip=False),
        lambda victim: RemovalNetAttack(victim, layer="block2", weight_repulsion=1.0, allow_degenerate=True, **SHORT),
    ],
)
@pytest.mark.parametrize(
    "norm", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm]
)
def test_weights_that_would_not_keep_what_is_written_are_refused(
    attack: Callable[[PyTorchClassifier], Any], norm: Callable[[nn.Module], nn.Module]
) -> None:
    made = network()
    for layer in (made.block1[0], made.block2[0], made.block3[0], made.head):
        norm(layer)
    with pytest.raises(InvalidInputError, match="computed from other tensors"):
        attack(wrapped(made.eval())).generate(X, Y)
    FineTuningAttack(wrapped(made.eval()), 0.5, **SHORT).generate(X, Y)  # writes to nothing but parameters


# ---------------------------------------------------------------------- networks that write to their input
class Standardised(nn.Module):
    def __init__(self, inner: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = inner, in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.sub_(0.1).mul_(0.9) if self.in_place else (x - 0.1) * 0.9)


@pytest.mark.parametrize(
    "attack",
    [
        lambda victim: RemovalNetAttack(victim, layer="inner.block2", inner_steps=5, **SHORT),
        lambda victim: DistillationAttack(victim, layers=["inner.block2", "inner.block3"], **SHORT),
        lambda victim: KnockoffNetsAttack(victim, "adaptive", draws=4, **SHORT),
    ],
)
def test_networks_may_write_to_their_input(attack: Callable[[PyTorchClassifier], Any]) -> None:
    found = [attack(wrapped(Standardised(network(), in_place).eval())).generate(X, Y) for in_place in (False, True)]
    for plain, other in zip(*map(weights, found), strict=True):
        assert torch.allclose(plain, other, atol=1e-3)


# ---------------------------------------------------------------------- probabilities in evaluation mode alone
class Soft(nn.Module):
    def __init__(self, inner: nn.Module, in_training: bool) -> None:
        super().__init__()
        self.inner, self.in_training = inner, in_training

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return z if self.training and not self.in_training else z.softmax(1)


@pytest.mark.parametrize("in_training", [True, False])
def test_a_softmax_that_training_leaves_out_makes_no_difference(in_training: bool) -> None:
    options: dict[str, Any] = {**SHORT, "max_iter": 100, "inner_steps": 5}
    plain = RemovalNetAttack(wrapped(network().eval()), layer="block2", **options).generate(X)
    victim = wrapped(Soft(network(), in_training).eval())
    with pytest.warns(UserWarning, match="returns probabilities"):
        soft = RemovalNetAttack(victim, layer="inner.block2", **options).generate(X)
    assert (plain.predict(X).argmax(1) == soft.predict(X).argmax(1)).mean() > 0.9
    assert (soft.predict(X).argmax(1) == Y).mean() > 0.8


def test_what_a_thief_answers_is_its_own() -> None:
    """A victim that answers probabilities says nothing about the network that was trained on them before."""
    thief = {"surrogate_factory": lambda: tiny_classifier(seed=1).model, "nb_epochs": 20}
    tuned = {"eps": 0.2, "eps_step": 0.2, "max_iter_attack": 1, "nb_epochs": 2, "learning_rate": 0.05}
    row = [("RetrainingAttack", thief), ("AdversarialFineTuningAttack", tuned)]
    found = []
    for victim in (wrapped(network().eval()), wrapped(Soft(network(), True).eval())):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # probabilities
            found.append(CompositeAttack(victim, row, batch_size=20, hflip=False).generate(X))
    for plain, other in zip(*map(weights, found), strict=True):
        assert torch.allclose(plain, other, atol=1e-4)


# ---------------------------------------------------------------------- a start of another kind
def test_a_start_that_prepares_its_inputs_otherwise_is_refused() -> None:
    victim = tiny_classifier()
    other = wrapped(copy.deepcopy(victim.model), preprocessing=(0.5, 0.1))
    with pytest.raises(InvalidInputError, match="prepares its inputs in another way"):
        RemovalNetAttack(victim, layer="block2", surrogate=other, **SHORT).generate(X)
    alike = wrapped(copy.deepcopy(victim.model), preprocessing=(0.0, 1.0))
    RemovalNetAttack(victim, layer="block2", surrogate=alike, **SHORT).generate(X)


# ---------------------------------------------------------------------- what clients see
class Backwards(PyTorchClassifier):  # type: ignore[misc]
    def predict(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return super().predict(*args, **kwargs)[:, ::-1].copy()


@pytest.mark.parametrize(
    "attack",
    [
        lambda victim: KnockoffNetsAttack(victim, **{**SHORT, "max_iter": 150}),
        lambda victim: KnockoffNetsAttack(victim, use_probability=True, **{**SHORT, "max_iter": 150}),
        lambda victim: KnockoffNetsAttack(victim, "adaptive", draws=4, **{**SHORT, "max_iter": 150}),
        lambda victim: RetrainingAttack(victim, nb_epochs=80, batch_size=20, hflip=False),
        lambda victim: LogitDistillationAttack(victim, **{**SHORT, "max_iter": 150}),
    ],
)
def test_thieves_learn_what_clients_see(attack: Callable[[PyTorchClassifier], Any]) -> None:
    victim = tiny_classifier()
    victim.__class__ = Backwards
    thief = attack(victim).generate(X, Y)
    assert thief.surrogate_info["victim_queries"] <= 2 * len(X)
    learned = PyTorchClassifier.predict(thief, X).argmax(1)
    assert (learned == 3 - Y).mean() > 0.8


@pytest.mark.parametrize("defence", [ReverseSigmoid(), ClassLabels()])
def test_thieves_of_defended_victims(defence: Any) -> None:
    soft = wrapped(nn.Sequential(network(), nn.Softmax(1)).eval(), postprocessing_defences=[defence])
    for options in ({}, {"use_probability": True}):
        thief = KnockoffNetsAttack(
            soft, surrogate_factory=network, learning_rate=0.0, max_iter=1, hflip=False, batch_size=20, **options
        )
        assert np.isfinite(list(thief.generate(X).surrogate_info["losses"].values())).all()


# ---------------------------------------------------------------------- other layers
def test_the_last_layer_alone_is_tuned_beside_instance_norm() -> None:
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten(), nn.Linear(144, 4)
    )
    victim = wrapped(made.eval())
    found = LayerFineTuningAttack(victim, "FTLL", nb_epochs=2, batch_size=20, hflip=False).generate(X, Y)
    before, after = victim.model.state_dict(), found.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"3.weight", "3.bias"}


def test_transposed_convolutions_are_no_filters() -> None:
    made = nn.Sequential(nn.ConvTranspose2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(256, 4))
    victim = wrapped(made.eval())
    found = WeightShiftingAttack(victim, nb_epochs=1, learning_rate=0.0, batch_size=20, hflip=False).generate(X, Y)
    assert torch.equal(found.model[0].weight, made[0].weight)
    assert not torch.equal(found.model[2].weight, made[2].weight)


@pytest.mark.parametrize("nb_layers", [3, 49, 161])
def test_the_advised_share_is_accepted(nb_layers: int) -> None:
    from art_fingerprint.attacks.fine_tuning import last_parameters

    made = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(nb_layers)])
    with pytest.raises(InvalidInputError, match="use at least") as error:
        last_parameters(made, 1e-4)
    assert len(last_parameters(made, float(str(error.value).rstrip(".").split()[-1]))) == 1


# ---------------------------------------------------------------------- around an attack
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_get_the_same_surrogate(mode: Callable[[], Any]) -> None:
    for attack in (
        FineTuningAttack(tiny_classifier(), **SHORT),
        RemovalNetAttack(tiny_classifier(), layer="block2", **SHORT),
    ):
        wanted = weights(attack.generate(X, Y))
        with mode():
            found = attack.generate(X, Y)
        assert all(torch.equal(a, b) for a, b in zip(wanted, weights(found), strict=True))
        assert not any(parameter.is_inference() for parameter in found.model.parameters())


@pytest.mark.parametrize(
    ("first", "queries"),
    [
        (("Retraining", {"label_queries": 3, "nb_epochs": 1, "surrogate_factory": network}), 3),
        (("KnockoffNets", {"nb_stolen": 24, "max_iter": 3, "surrogate_factory": network}), 1),
    ],
)
def test_rows_foresee_questions_of_their_own(first: Any, queries: int) -> None:
    victim = tiny_classifier()
    kind, options = first
    made = {"Retraining": RetrainingAttack, "KnockoffNets": KnockoffNetsAttack}[kind](victim, batch_size=20, **options)
    row = CompositeAttack(victim, [made, WeightQuantizationAttack(victim, batch_size=20)])
    found = row.generate(X).surrogate_info
    assert found["victim_queries"] == row._expected_queries(len(X), False)


# ---------------------------------------------------------------------- copies that a callback keeps
@pytest.mark.parametrize("kept", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_made_in_a_callback_count_nothing(kept: Callable[[nn.Module], nn.Module]) -> None:
    copies: list[nn.Module] = []

    def keep(step: int, surrogate: PyTorchClassifier, _losses: Any) -> None:
        copies.append(kept(surrogate.model))

    attack = RemovalNetAttack(tiny_classifier(), layer="block2", callback=keep, **{**SHORT, "max_iter": 2})
    surrogate = attack.generate(X)
    before = copy.deepcopy(surrogate.surrogate_info)
    assert torch.equal(copies[-1].eval()(torch.from_numpy(X)), surrogate.model(torch.from_numpy(X)))
    assert surrogate.surrogate_info == before
    pickle.dumps(copies[-1])
