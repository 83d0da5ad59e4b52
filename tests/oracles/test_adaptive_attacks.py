"""Weight noise, weight repulsion and error repair: known answers and slow second versions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.data_generators import NumpyDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import CompositeAttack, RemovalNetAttack, WeightNoiseAttack, removalnet_adaptive
from art_fingerprint.attacks.removalnet_adaptive import filter_similarity, repair_loss, unit_filters
from art_fingerprint.attacks.weight_noise import noisy
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import InvalidInputError
from tests.conftest import TinyCNN, wrap
from tests.states import random_states, state_of
from tests.victims import several_classes

OPTIONS: dict[str, Any] = {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 2, "max_iter": 8, "batch_size": 16}


def digest(classifier: PyTorchClassifier) -> str:
    return network_digest(classifier.model)


# ---------------------------------------------------------------------- weight noise
def test_noise_by_hand() -> None:
    """std of (1, 3) is 1, of (0, 4) is 2, of all four sqrt(2.5); an exact zero stays."""
    weight, noise = torch.tensor([[1.0, 3.0], [0.0, 4.0]]), torch.tensor([[1.0, -1.0], [5.0, 2.0]])
    assert noisy(weight, 0.5, noise, "filter").tolist() == [[1.5, 2.5], [0.0, 6.0]]
    half = 0.5 * math.sqrt(2.5)
    torch.testing.assert_close(noisy(weight, 0.5, noise), torch.tensor([[1 + half, 3 - half], [0.0, 4 + 2 * half]]))
    assert torch.equal(noisy(weight, 0.0, noise), weight)


@pytest.mark.parametrize("scope", ["tensor", "filter"])
@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_noise_has_the_size_that_it_says(scope: str, strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, 3, 3, generator=generator) * torch.logspace(-2, 1, 64)[:, None, None, None]
    moved = noisy(weight, strength, torch.randn(weight.shape, generator=generator), scope) - weight
    spread = weight.std(dim=(1, 2, 3)) if scope == "filter" else weight.std().expand(64)
    torch.testing.assert_close(moved.std(dim=(1, 2, 3)) / spread, torch.full((64,), strength), rtol=0.15, atol=0)
    if scope == "filter":
        cosine = F.cosine_similarity((weight + moved).flatten(1), weight.flatten(1)).mean()
        assert float(cosine) == pytest.approx(1 / math.sqrt(1 + strength**2), abs=0.01)


def test_zero_strength_is_the_victim(images: np.ndarray) -> None:
    victim = several_classes(images)
    surrogate = WeightNoiseAttack(victim, 0.0).generate(images)
    assert digest(surrogate) == digest(victim)
    info = surrogate.surrogate_info
    assert (info["victim_queries"], info["cost"]["forward_equivalents"], info["max_iter"]) == (0, 0, 0)
    assert WeightNoiseAttack(victim).expected_passes(40, False) == 0


def test_only_convolutions_and_linear_layers_are_noised(images: np.ndarray) -> None:
    victim = several_classes(images)
    seen: list[int] = []
    attack = WeightNoiseAttack(victim, 0.5, scope="filter", callback=lambda step, *_: seen.append(step))
    surrogate = attack.generate(images[:1])  # one sample will do
    assert seen == [0]
    assert surrogate.surrogate_info["noised_weights"] == 4
    for (name, a), b in zip(surrogate.model.state_dict().items(), victim.model.state_dict().values(), strict=True):
        assert torch.equal(a, b) == (b.ndim < 2), name
    assert digest(surrogate) == digest(WeightNoiseAttack(victim, 0.5, scope="filter").generate(images))
    assert digest(surrogate) != digest(WeightNoiseAttack(victim, 0.5, scope="filter", seed=1).generate(images))


def test_training_repairs_what_noise_breaks(images: np.ndarray) -> None:
    victim = several_classes(images)
    wanted = victim.predict(images).argmax(1)
    options: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 20, "hflip": False}
    noised = WeightNoiseAttack(victim, 1.5).generate(images)
    tuned = WeightNoiseAttack(victim, 1.5, nb_epochs=20, **options).generate(images)
    agreement = [(s.predict(images).argmax(1) == wanted).mean() for s in (noised, tuned)]
    assert agreement[0] < 0.7
    assert agreement[1] > 0.9
    info = tuned.surrogate_info
    assert info["cost"]["forward_equivalents"] == WeightNoiseAttack(
        victim, 1.5, nb_epochs=20, **options
    ).expected_passes(40)


def test_noise_after_pruning_keeps_the_zeros(images: np.ndarray) -> None:
    row = [("WeightPruningAttack", {"ratio": 0.5, "max_iter": 1}), ("WeightNoiseAttack", {"strength": 0.3})]
    weight = CompositeAttack(several_classes(images), row, batch_size=20).generate(images).model.block3[0].weight
    assert 0.2 < float((weight == 0).double().mean()) < 0.8


def test_noise_is_refused_where_it_makes_no_sense(images: np.ndarray) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * self.factor

    with pytest.raises(InvalidInputError, match="no convolution and no Linear layer"):
        WeightNoiseAttack(wrap(Scale())).generate(images)
    for bad in ({"strength": -0.1}, {"strength": math.inf}, {"scope": "layer"}, {"nb_epochs": -1}):
        with pytest.raises(InvalidInputError, match=f"`{next(iter(bad))}` must be"):
            WeightNoiseAttack(several_classes(images), **bad)


# ---------------------------------------------------------------------- the terms
def test_similarity_by_hand() -> None:
    """Cosines 1, 0.6 and -1 -> 1, 0.6, 0 (mean 8/15); a weight of one filter with cosine 0.8; sizes do not matter."""
    first = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, -5.0]])
    second = torch.tensor([[[[0.8]], [[0.6]]]])
    victims = [torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]])]
    assert float(filter_similarity([first, second], victims)) == pytest.approx((8 / 15 + 0.8) / 2)
    assert float(filter_similarity([first * 7, second * 0.1], victims)) == pytest.approx((8 / 15 + 0.8) / 2)
    torch.testing.assert_close(unit_filters(torch.tensor([[3.0, 4.0], [0.0, 0.0]])), torch.tensor([[0.6, 0.8], [0, 0]]))


def test_gradient_of_the_similarity_is_the_sine_over_the_norm() -> None:
    """(cos w/|w| - v) / |w| up to sign, 0 for a copy and behind the right angle; finite for filters of zeros."""
    for angle, wanted in ((0.0, 0.0), (0.5, math.sin(0.5) / 3), (1.5, math.sin(1.5) / 3), (2.0, 0.0)):
        w = (3 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(filter_similarity([w], [torch.tensor([[1.0, 0.0]]).double()]), w)
        assert float(gradient.norm()) == pytest.approx(wanted, abs=1e-7)
        assert abs(float((gradient * w.detach()).sum())) < 1e-9  # sizes are left alone
    zero = torch.zeros(1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(filter_similarity([zero], [torch.tensor([[1.0, 0.0]])]), zero)
    assert torch.isfinite(gradient).all()


def test_repair_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    victim, true = torch.randint(4, (2, 7), generator=generator)
    wanted = sum(
        math.log(sum(math.exp(v) for v in row)) - row[t]
        for row, v, t in zip(logits.tolist(), victim.tolist(), true.tolist(), strict=True)
        if v != t
    )
    assert 0 < int((victim != true).sum()) < 7
    assert float(repair_loss(logits, victim, true)) == pytest.approx(wanted / 7)
    assert float(repair_loss(logits, true, true)) == 0.0


# ---------------------------------------------------------------------- within RemovalNet
def test_off_is_off_to_the_bit(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight of 0 and no victim without errors changes anything; nothing is computed for a weight of 0."""
    victim = several_classes(images)
    said = victim.predict(images).argmax(1)
    with pytest.warns(UserWarning, match="`error_repair`: the victim gets all 40 samples right"):
        right = RemovalNetAttack(victim, **OPTIONS, hflip=False, error_repair=3.0).generate(images, said)
    assert right.surrogate_info["victim_errors"] == 0

    def never(*_: Any) -> Any:
        raise AssertionError("not to be called")

    for name in ("filter_similarity", "repair_loss", "unit_filters"):
        monkeypatch.setattr(removalnet_adaptive, name, never)
    plain = RemovalNetAttack(victim, **OPTIONS, hflip=False).generate(images)
    assert digest(plain) == digest(right)
    zeros = RemovalNetAttack(victim, **OPTIONS, hflip=False, weight_repulsion=0.0, error_repair=0.0)
    labelled = zeros.generate(images, np.arange(40) % 3)
    assert digest(labelled) == digest(plain)
    assert set(labelled.surrogate_info["losses"]) == {"kl", "latent", "ce"}
    assert not {"filter_similarity", "victim_errors"} & set(labelled.surrogate_info)


def test_a_step_is_the_sum_of_all_gradients(images: np.ndarray) -> None:
    """One SGD step with and without the terms: the difference is their gradient, computed a second time here."""
    start = several_classes(images, seed=1)  # not the victim, where the repulsion's gradient is zero
    victim, labels = several_classes(images), np.arange(40) % 3
    options = {**OPTIONS, "max_iter": 1, "batch_size": 40, "momentum": 0.0, "surrogate": start, "hflip": False}
    options |= {"learning_rate": 0.1}
    plain = RemovalNetAttack(victim, **options).generate(images, labels)
    found = RemovalNetAttack(victim, **options, weight_repulsion=2.0, error_repair=3.0).generate(images, labels)
    network = TinyCNN()
    network.load_state_dict(start.model.state_dict())
    said = torch.from_numpy(victim.predict(images).argmax(1))
    true = torch.from_numpy(labels)
    logits = network.train()(torch.from_numpy(images))
    loss = 3.0 * F.cross_entropy(logits[said != true], true[said != true], reduction="sum") / 40
    layers = [name for name, p in network.named_parameters() if p.ndim > 1]
    for name in layers:
        mine, yours = network.get_parameter(name), victim.model.get_parameter(name)
        cosines = torch.stack(
            [F.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(mine, yours, strict=True)]
        )
        loss = loss + 2.0 * cosines.clamp_min(0).mean() / len(layers)
    loss.backward()
    for (name, a), b in zip(found.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a - b, -0.1 * network.get_parameter(name).grad, atol=2e-6, rtol=1e-4, msg=name)


def test_filters_turn_away_and_labels_stay(images: np.ndarray) -> None:
    victim = several_classes(images)
    options = {**OPTIONS, "max_iter": 150, "learning_rate": 0.05, "hflip": False, "bn_recalibrate": 3, "beta": 0.1}
    said = victim.predict(images).argmax(1)
    similar = {}
    for weight in (1e-9, 20.0):
        before, randomness = state_of(victim), random_states()
        surrogate = RemovalNetAttack(victim, **options, weight_repulsion=weight).generate(images)
        assert (state_of(victim), random_states()) == (before, randomness)
        found = surrogate.surrogate_info["filter_similarity"]
        assert list(found) == ["block1.0", "block2.0", "block3.0", "head"]
        for layer, value in found.items():
            mine, yours = (c.model.get_submodule(layer).weight.flatten(1) for c in (surrogate, victim))
            assert value == pytest.approx(F.cosine_similarity(mine, yours).clamp_min(0).mean().item(), abs=1e-5)
        similar[weight] = found["block2.0"]
        assert (surrogate.predict(images).argmax(1) == said).mean() > 0.8
    assert similar[1e-9] > 0.9
    assert similar[20.0] < 0.3


def test_errors_are_repaired(images: np.ndarray) -> None:
    """A quarter of the labels is not what the victim says: with the term the surrogate learns them, without it not."""
    victim = several_classes(images)
    said = victim.predict(images).argmax(1)
    true = np.where(np.arange(40) % 4 == 0, (said + 1) % 4, said)
    wrong = said != true
    options = {**OPTIONS, "max_iter": 150, "learning_rate": 0.05, "hflip": False, "bn_recalibrate": 3, "beta": 0.1}
    shares = []
    for weight in (0.0, 10.0):
        surrogate = RemovalNetAttack(victim, **options, error_repair=weight).generate(images, true)
        shares.append((surrogate.predict(images).argmax(1) == true)[wrong].mean())
    assert surrogate.surrogate_info["victim_errors"] == int(wrong.sum()) == 10
    assert shares[0] < 0.3
    assert shares[1] > 0.8


def test_held_back_samples_keep_their_labels(images: np.ndarray) -> None:
    victim = several_classes(images)
    options: dict[str, Any] = {**OPTIONS, "keep_best": 0.25, "min_agreement": 0.0, "weight_repulsion": 1.0}
    info = RemovalNetAttack(victim, **options, error_repair=1.0).generate(images, np.arange(40) % 3).surrogate_info
    assert {"repair", "repulsion"} <= set(info["losses"])
    assert info["keep_best"]["held_back"] == 10


def test_bad_input_is_refused(images: np.ndarray) -> None:
    victim = several_classes(images)
    attack = RemovalNetAttack(victim, **OPTIONS, error_repair=2.0)
    with pytest.raises(InvalidInputError, match=r"`error_repair`=2.0 needs the true labels .* pass `y`"):
        attack.generate(images)
    row = CompositeAttack(victim, [("FineTuningAttack", {"max_iter": 1}), attack], batch_size=20)
    with pytest.raises(InvalidInputError, match="`error_repair`"):
        row.generate(images)
    with pytest.raises(InvalidInputError, match="`error_repair` needs the whole substitute set at once"):
        attack.generate(NumpyDataGenerator(images, np.arange(40) % 4, batch_size=16))
    for name in ("weight_repulsion", "error_repair"):
        for bad in (-1.0, math.nan, "1", True):
            with pytest.raises(InvalidInputError, match=f"`{name}` must be a number"):
                RemovalNetAttack(victim, **{name: bad})
    with pytest.raises(InvalidInputError, match="alpha.*are all 0"):
        RemovalNetAttack(victim, alpha=0, beta=0, gamma=0, weight_repulsion=1.0)

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block2, self.end = nn.Conv2d(1, 5, 3), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.block2(x).mean((2, 3)))

    with pytest.raises(InvalidInputError, match="`weight_repulsion` needs .* names and shapes of the victim's"):
        RemovalNetAttack(victim, **OPTIONS, surrogate=wrap(Other()), weight_repulsion=1.0).generate(images)


def test_a_wider_surrogate_is_pushed_where_shapes_agree(images: np.ndarray) -> None:
    wide = TinyCNN(width=6)
    wide.head = nn.Sequential(nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 4))
    options = {**OPTIONS, "surrogate": wrap(wide.eval()), "weight_repulsion": 1.0}
    info = RemovalNetAttack(several_classes(images), **options).generate(images).surrogate_info
    assert list(info["filter_similarity"]) == ["block1.0", "block2.0", "block3.0"]
