"""The fine-tuning family: worked examples, plain second versions of the trainings, and what must stay as it is."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import (
    AdversarialFineTuningAttack,
    FineTuningAttack,
    LabelSmoothingAttack,
    LayerFineTuningAttack,
    RegularizationAttack,
    WeightQuantizationAttack,
    WeightShiftingAttack,
)
from art_fingerprint.attacks.adversarial_fine_tuning import AdversarialBatches
from art_fingerprint.attacks.fine_tuning import last_linear_layers, reinitialise
from art_fingerprint.attacks.label_smoothing import smoothed
from art_fingerprint.attacks.regularization import EarlyStopping, held_back_loss
from art_fingerprint.attacks.substitute import SubstituteSet
from art_fingerprint.attacks.weight_quantization import quantised
from art_fingerprint.attacks.weight_shifting import shifted
from art_fingerprint.core.classifier import LogitsNetwork, Preprocessing
from art_fingerprint.core.layers import last_layer
from art_fingerprint.core.training import Batch, Batches, fit
from art_fingerprint.exceptions import LayerNotFoundError
from tests.conftest import TinyCNN, wrap
from tests.networks import weightless
from tests.victims import several_classes, token_classifier

QUICK: dict[str, Any] = {"max_iter": 4, "batch_size": 16}
Y = np.arange(1, 41) % 4  # not what the victim says


def changed(surrogate: PyTorchClassifier, victim: PyTorchClassifier) -> set[str]:
    """Return the names of weights and buffers that differ."""
    before = victim.model.state_dict()
    return {name for name, tensor in surrogate.model.state_dict().items() if not torch.equal(tensor, before[name])}


def recorded_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    batches: list[Batch] = []
    original = Batches._batch

    def keep(self: Batches, index: Tensor, flipped: Tensor) -> Batch:
        batches.append(original(self, index, flipped))
        return batches[-1]

    monkeypatch.setattr(Batches, "_batch", keep)
    return batches


def plain_training(
    start: nn.Module,
    batches: list[Batch],
    targets: Callable[[Batch], Tensor],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    decay: Callable[[int], float] | None = None,
) -> nn.Module:
    """Train a copy of a network as the attacks say they do, in a few lines."""
    network = copy.deepcopy(start).train()
    made = optimizer(list(network.parameters()))
    rate = made.param_groups[0]["lr"]
    for t, batch in enumerate(batches):
        made.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * t / len(batches)))
        if decay is not None:
            made.param_groups[0]["weight_decay"] = decay(t)
        wanted = targets(batch)
        rows = F.one_hot(wanted, 4).float() if wanted.ndim == 1 else wanted
        loss = -(rows * network(batch.x).log_softmax(1)).sum(1).mean()
        made.zero_grad()
        loss.backward()
        made.step()
    return network.eval()


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    for (name, a), b in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-6, rtol=1e-5), name


def sgd(rate: float, momentum: float, decay: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, rate, momentum, weight_decay=decay)


# ---------------------------------------------------------------------- FTLL, FTAL, RTLL, RTAL
@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("vgg19_bn", 32, "head.fc"),
        ("resnet50", 32, "fc"),
        ("densenet121", 32, "classifier"),
        ("inception_v3", 96, "fc"),
        ("vit_base_patch32_224", 224, "head"),
    ],
)
def test_last_layer_of_architectures(name: str, size: int, layer: str) -> None:
    options: dict[str, Any] = {"aux_logits": False} if name == "inception_v3" else {}
    with weightless(name):
        assert last_layer(timm.create_model(name, **options).eval(), torch.zeros(2, 3, size, size)) == layer


def test_last_layer_is_reached_last_not_registered_last() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classify = nn.Conv2d(5, 3, 1)
            self.body = nn.Conv2d(1, 5, 3)
            self.unused = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.classify(self.body(x)).mean((2, 3))

    network = Odd().train()
    assert last_layer(network, torch.zeros(2, 1, 8, 8)) == "classify"
    assert network.training
    assert not network.classify._forward_pre_hooks
    with pytest.raises(LayerNotFoundError, match="no Linear layer and no 1x1 convolution"):
        last_layer(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), torch.zeros(2, 1, 3, 3))


def test_fresh_weights_are_he_normal() -> None:
    linear, conv = nn.Linear(300, 400).requires_grad_(False), nn.Conv2d(40, 60, 3).requires_grad_(False)
    state = torch.get_rng_state()
    reinitialise([linear, conv], torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert float(linear.weight.std()) == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert float(conv.weight.std()) == pytest.approx(math.sqrt(2 / 360), rel=0.02)
    assert not linear.bias.any()
    assert not conv.bias.any()
    again = nn.Linear(300, 400)
    reinitialise([again], torch.Generator().manual_seed(0))
    assert torch.equal(again.weight, linear.weight)


HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("variant", ["FTLL", "FTAL", "RTLL", "RTAL"])
def test_what_each_variant_trains(images: np.ndarray, variant: str, optimizer: str) -> None:
    victim = several_classes(images)
    surrogate = LayerFineTuningAttack(victim, variant, optimizer=optimizer, **QUICK).generate(images, Y)
    found = changed(surrogate, victim)
    if variant.endswith("LL"):
        assert found == HEAD
    else:  # a bias before a normalisation has no gradient but rounding
        assert found >= {name for name in victim.model.state_dict() if not name.endswith(".0.bias")}
    info = surrogate.surrogate_info
    assert (info["last_layer"], info["trained_tensors"]) == ("head", 2 if variant.endswith("LL") else 14)
    still = LayerFineTuningAttack(victim, variant, optimizer=optimizer, learning_rate=0.0, **QUICK).generate(images, Y)
    parameters = {name for name, _ in victim.model.named_parameters()}
    assert changed(still, victim) & parameters == (HEAD if variant.startswith("RT") else set())
    fresh = still.model.head
    if variant.startswith("RT"):
        assert not fresh.bias.any()
        assert 0.2 < float(fresh.weight.detach().std()) < 0.7  # sqrt(2 / 12) = 0.41


def test_variants_of_one_seed_start_from_the_same_fresh_layer(images: np.ndarray) -> None:
    victim = several_classes(images)
    heads = [
        LayerFineTuningAttack(victim, variant, learning_rate=0.0, seed=seed, **QUICK).generate(images).model.head.weight
        for variant, seed in (("RTLL", 0), ("RTAL", 0), ("RTAL", 1))
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_adam_on_all_layers_equals_a_plain_second_version(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    victim = token_classifier(images)  # no gradient is zero up to rounding, which Adam would enlarge
    victim.model.block2[2].p = 0.0
    batches = recorded_batches(monkeypatch)
    found = LayerFineTuningAttack(victim, "FTAL", weight_decay=1e-2, **QUICK).generate(images, Y).model
    wanted = plain_training(
        victim.model,
        batches,
        lambda batch: torch.from_numpy(Y)[batch.index],
        lambda parameters: torch.optim.Adam(parameters, 1e-3, weight_decay=1e-2),
    )
    assert_same(found, wanted)


def test_epochs_are_passes_over_the_set(images: np.ndarray) -> None:
    victim = several_classes(images)
    for batch_size, epochs, steps in ((16, 2, 6), (40, 3, 3), (13, 1, 3), (39, 2, 2)):  # a remainder of 1 is dropped
        attack = LayerFineTuningAttack(victim, "FTLL", nb_epochs=epochs, batch_size=batch_size)
        assert attack.generate(images).surrogate_info["max_iter"] == steps
    assert LayerFineTuningAttack(victim, nb_epochs=9, **QUICK).generate(images).surrogate_info["max_iter"] == 4


@pytest.mark.parametrize("variant", ["FTAL", "RTAL"])
def test_zeros_stay_zero_under_adam(images: np.ndarray, variant: str) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        victim.model.block3[0].weight[::2] = 0
    weight = LayerFineTuningAttack(victim, variant, **QUICK).generate(images).model.block3[0].weight
    assert not weight[::2].any()
    assert weight[1::2].all()


# ---------------------------------------------------------------------- retraining of Linear layers
def test_last_linear_layers_are_counted() -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)), nn.Conv2d(1, 1, 1))
    layers = list(network[:5])
    for ratio, count in ((0.0, 0), (0.2, 1), (0.39, 1), (0.5, 2), (0.99, 4), (1.0, 5)):
        assert last_linear_layers(network, ratio) == layers[5 - count :]


def test_fresh_layers_are_trained_though_outside_the_share(images: np.ndarray) -> None:
    victim = wrap(nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 4)))
    share = FineTuningAttack(victim, 0.25, **QUICK).generate(images)
    assert changed(share, victim) == {"4.weight", "4.bias"}
    fresh = FineTuningAttack(victim, 0.25, retrain_ratio=0.5, **QUICK).generate(images)
    assert changed(fresh, victim) == {"3.weight", "3.bias", "4.weight", "4.bias"}
    assert fresh.surrogate_info["trained_tensors"] == 4
    still = FineTuningAttack(victim, 0.25, retrain_ratio=1.0, learning_rate=0.0, **QUICK).generate(images)
    assert len(changed(still, victim)) == 8
    assert float(still.model[1].weight.detach().std()) == pytest.approx(math.sqrt(2 / 64), rel=0.05)


# ---------------------------------------------------------------------- label smoothing
def test_smoothing_worked_example() -> None:
    rows = smoothed(F.one_hot(torch.tensor([2, 0]), 10).double(), 0.3)
    for row, label in zip(rows.tolist(), (2, 0), strict=True):
        assert row == pytest.approx([0.73 if k == label else 0.03 for k in range(10)])


def test_runners_up_are_removed() -> None:
    p = torch.tensor([[0.1, 0.5, 0.3, 0.06, 0.04], [0.4, 0.05, 0.05, 0.2, 0.3]], dtype=torch.float64)
    assert smoothed(p, 0.0, 1).tolist() == p.tolist()
    # ranks 2 and 3 go: 0.3 and 0.1, then 0.3 and 0.2; 0.6 and 0.5 are left
    wanted = [[0, 5 / 6, 0, 0.1, 1 / 15], [0.8, 0.1, 0.1, 0, 0]]
    torch.testing.assert_close(smoothed(p, 0.0, 3), torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(smoothed(p, 0.9, 3), 0.1 * torch.tensor(wanted, dtype=torch.float64) + 0.18)
    assert smoothed(p, 0.0, 5).tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("soft", [True, False])
def test_smoothing_equals_a_plain_second_version(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, soft: bool
) -> None:
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = LabelSmoothingAttack(victim, 0.4, top_k=2, use_victim_labels=soft, **QUICK)
    found = attack.generate(images, Y).model

    def targets(batch: Batch) -> Tensor:
        rows = F.one_hot(torch.from_numpy(Y)[batch.index], 4).float()
        if soft:
            with torch.no_grad():  # the batch is mirrored already: the victim sees what the surrogate sees
                rows = victim.model.eval()(batch.x).softmax(1)
            for row in rows:
                row[row.argsort(descending=True)[1]] = 0
                row /= row.sum()
        return 0.6 * rows + 0.1

    assert any(bool(batch.flipped.any()) for batch in batches)
    assert_same(found, plain_training(victim.model, batches, targets, sgd(1e-2, 0.9, 5e-4)))


# ---------------------------------------------------------------------- regularisation
@pytest.mark.parametrize(("strong", "nb_epochs", "first"), [(5, 50, 1), (2, 2, 4), (0, 3, 0), (4, 1, 6)])
def test_weight_decay_changes_at_its_step(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray, strong: int, nb_epochs: int, first: int
) -> None:
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = RegularizationAttack(
        victim, 0.5, strong_epochs=strong, nb_epochs=nb_epochs, patience=None, max_iter=8, batch_size=16
    )
    surrogate = attack.generate(images)

    def targets(batch: Batch) -> Tensor:
        with torch.no_grad():
            return victim.model.eval()(batch.x).softmax(1)

    wanted = plain_training(
        victim.model, batches, targets, sgd(1e-2, 0.9, 0.5), decay=lambda t: 0.5 if t < first else 5e-4
    )
    assert_same(surrogate.model, wanted)
    assert surrogate.surrogate_info["strong_steps"] == first


def test_early_stopping_waits_and_restores() -> None:
    weight = nn.Linear(1, 1, bias=False)
    losses = [3.0, 2.0, 2.0, 1.0, 1.5, 1.0, 0.9, 5.0]
    stopping = EarlyStopping(weight, lambda: losses[int(weight.weight.item())], patience=2)
    ended = []
    for step in range(len(losses)):
        with torch.no_grad():
            weight.weight.fill_(float(step))
        ended.append(stopping.read())
    assert ended == [False, False, False, False, False, True, False, False]
    stopping.restore()
    assert weight.weight.item() == 6.0
    assert stopping.lowest == 0.9
    untouched = EarlyStopping(weight, lambda: 0.0, patience=1)
    untouched.restore()
    assert weight.weight.item() == 6.0


def test_training_ends_early_and_gives_the_best_weights(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    """At a rate that destroys the network the first reading is the best, and patience is spent at the next two."""
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = RegularizationAttack(
        victim, strong_epochs=1, nb_epochs=50, patience=2, holdout_ratio=0.2, learning_rate=3.0, batch_size=16
    )
    info = attack.generate(images).surrogate_info
    readings = info["steps"] // 2 - 1  # an epoch of 32 samples has two steps, and the first is not read
    assert info["strong_steps"] == 2
    assert info["max_iter"] == 102
    assert 3 <= readings < 50
    used = torch.cat([batch.index for batch in batches]).unique().tolist()
    assert len(used) == 32  # what is held back is never trained on
    calm = RegularizationAttack(victim, strong_epochs=0, nb_epochs=3, patience=1, holdout_ratio=0.2, batch_size=16)
    surrogate = calm.generate(images)
    held = sorted(set(range(40)) - set(used))
    x = torch.from_numpy(images[held])
    with torch.no_grad():
        wanted = victim.model.eval()(x).softmax(1)
        loss = -(wanted * surrogate.model(x).log_softmax(1)).sum(1).mean()
    assert surrogate.surrogate_info["held_back_loss"] == pytest.approx(float(loss), rel=1e-5)


def test_held_back_loss_by_hand(images: np.ndarray) -> None:
    victim = several_classes(images)
    victim.model.train()
    x, y = torch.from_numpy(images), torch.from_numpy(Y)
    parts = [Batch(x[rows], rows, torch.zeros_like(rows)) for rows in (torch.arange(30), torch.arange(30, 40))]
    found = held_back_loss(victim, parts, lambda batch: y[batch.index])
    assert victim.model.training
    with torch.no_grad():
        assert found == pytest.approx(float(F.cross_entropy(victim.model.eval()(x), y)), rel=1e-5)


# ---------------------------------------------------------------------- adversarial fine-tuning
def substitute(victim: PyTorchClassifier, x: np.ndarray, batch_size: int = 16, hflip: bool = False) -> SubstituteSet:
    return SubstituteSet(torch.from_numpy(x), None, LogitsNetwork(victim), batch_size, hflip)


def test_examples_of_a_linear_network_are_known() -> None:
    """On f = (w x, -w x) the worst example within eps is x - eps sign(w) for class 0, x + eps sign(w) for class 1."""
    w = torch.tensor([1.0, -2.0, 0.5, -0.25])

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2, bias=False)
            with torch.no_grad():
                self.head.weight.copy_(torch.stack([w, -w]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    victim = wrap(Linear(), (1, 2, 2), 2)
    x = np.random.default_rng(0).random((12, 1, 2, 2), dtype=np.float32)
    data = substitute(victim, x)
    labels = data.victim_labels(False)[0]
    attack = AdversarialFineTuningAttack(victim, eps=(0.1, 0.3), eps_step=0.05, max_iter_attack=10)
    batches = AdversarialBatches(data, labels, attack._attacks(victim, data), victim.model, 5, seed=0)
    assert len(batches) == 2  # 12 samples and 2 times 5 examples
    stream = iter(batches)
    chosen = []
    for _epoch in range(3):
        parts = [next(stream) for _ in range(2)]
        rows, index = torch.cat([part.x for part in parts]), torch.cat([part.index for part in parts])
        assert len(rows) == 22
        found: dict[float, set[int]] = {0.0: set(), 0.1: set(), 0.3: set()}
        for row, i in zip(rows, index.tolist(), strict=True):
            clean = torch.from_numpy(x[i])
            sign = torch.sign(w).view(1, 2, 2) * (-1 if labels[i] == 0 else 1)
            radius = next(r for r in found if torch.allclose(row, (clean + r * sign).clamp(0, 1), atol=1e-6))
            found[radius].add(i)
        assert found[0.0] == set(range(12))
        assert found[0.1] == found[0.3]
        assert len(found[0.1]) == 5
        chosen.append(frozenset(found[0.1]))
    assert len(set(chosen)) > 1  # drawn anew in each epoch
    assert all(parameter.requires_grad and parameter.grad is None for parameter in victim.model.parameters())


@pytest.mark.parametrize(("clip", "scale"), [((0.0, 1.0), 1.0), ((0.0, 255.0), 255.0), ((-1.0, 1.0), 1.0)])
def test_examples_stay_in_the_ball_and_in_the_range(
    images: np.ndarray, clip: tuple[float, float], scale: float
) -> None:
    victim = several_classes(images, clip_values=clip, preprocessing=(0.2 * scale, 0.7 * scale))
    x = images * scale
    data = substitute(victim, x)
    attack = AdversarialFineTuningAttack(victim, eps=0.2 * scale, eps_step=0.06 * scale, max_iter_attack=5)
    (pgd,) = attack._attacks(victim, data)
    labels = data.victim_labels(False)[0].numpy()
    examples = pgd.generate(x, labels)
    assert np.abs(examples - x).max() == pytest.approx(0.2 * scale, rel=1e-4)
    assert examples.min() >= clip[0] - 1e-6
    assert examples.max() <= clip[1] * (1 + 1e-6)
    log_likelihood = [
        torch.from_numpy(victim.predict(z)).log_softmax(1)[range(40), labels].sum() for z in (x, examples)
    ]
    assert log_likelihood[1] < log_likelihood[0] - 1


def test_adversarial_training_equals_a_plain_second_version(
    monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    """Given the batches, with examples of the surrogate of each epoch, the training is the family's."""
    victim = several_classes(images)
    batches = recorded_batches(monkeypatch)
    attack = AdversarialFineTuningAttack(victim, 0.1, max_iter_attack=2, nb_adversarial=8, nb_epochs=2, batch_size=16)
    surrogate = attack.generate(images, Y)
    assert surrogate.surrogate_info["max_iter"] == len(batches) == 6  # 48 inputs in an epoch
    table = torch.from_numpy(victim.predict(images)).softmax(1)
    mirrored = torch.from_numpy(victim.predict(images[..., ::-1].copy())).softmax(1)

    def targets(batch: Batch) -> Tensor:  # the labels of the clean samples
        return torch.where(batch.flipped.bool()[:, None], mirrored[batch.index], table[batch.index])

    assert all(int(batch.index.max()) < 40 for batch in batches)
    assert_same(surrogate.model, plain_training(victim.model, batches, targets, sgd(1e-3, 0.9, 5e-4)))
    first = batches[:3]
    twice = torch.cat([batch.index for batch in first]).bincount(minlength=40)
    assert sorted(twice.tolist()) == [1] * 32 + [2] * 8


# ---------------------------------------------------------------------- weight shifting
def test_shifting_worked_example() -> None:
    weight = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    assert shifted(weight, 1.5, 0.0, torch.zeros(2, 1, 1, 1)).flatten().tolist() == [-2.0, 0.0]
    noise = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    assert shifted(weight, 0.0, 0.5, noise).flatten().tolist() == [0.5, 4.0]  # std 1 over both entries


def test_shifting_equals_loops(images: np.ndarray) -> None:
    victim = several_classes(images)
    still = {"learning_rate": 0.0, **QUICK}
    moved = WeightShiftingAttack(victim, 2.5, 0.0, **still).generate(images)
    noisy = WeightShiftingAttack(victim, 0.0, 1.0, **still).generate(images)
    convolutions = ["block1.0.weight", "block2.0.weight", "block3.0.weight"]
    for name, parameter in victim.model.named_parameters():
        found, shaken = moved.model.get_parameter(name), noisy.model.get_parameter(name)
        if name not in convolutions:
            assert torch.equal(found, parameter)
            assert torch.equal(shaken, parameter)
            continue
        filters = list(parameter.detach())
        mean = sum(filters) / len(filters)
        for row, before in zip(found, filters, strict=True):
            torch.testing.assert_close(row, before - 2.5 * mean)
        noise = (parameter - shaken).detach() / parameter.detach().std(correction=0)
        assert float(noise.mean()) == pytest.approx(0, abs=5 / math.sqrt(noise.numel()))
        assert float(noise.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * noise.numel()))
    assert moved.surrogate_info["shifted_weights"] == 3


# ---------------------------------------------------------------------- weight quantisation
def test_quantisation_worked_example() -> None:
    found = quantised(torch.tensor([-1.0, 0.0, 0.25, 0.5, 1.0], dtype=torch.float64), 2)
    assert found.tolist() == pytest.approx([-1.0, 0.0, 0.0, 2 / 3, 1.0])


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantisation_equals_loops(bits: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(7, 6, 3, 3, generator=generator, dtype=dtype)
    found = quantised(weight, bits)
    low, high, bins = float(weight.min()), float(weight.max()), 2**bits - 1
    width = (high - low) / bins
    for value, new in zip(weight.flatten().tolist(), found.flatten().tolist(), strict=True):
        if value in (low, high):
            assert new == value
        else:
            cell = min(int((value - low) / width), bins - 1)
            assert new == pytest.approx(low + (cell + 0.5) * width, abs=1e-6)
    assert found.unique().numel() <= 2 ** (bits + 1) - 1
    assert float((found - weight).abs().max()) <= width / 2 * (1 + 1e-6)
    assert torch.equal(quantised(found, bits), found)  # what is quantised stays
    assert torch.equal(quantised(weight.flip(0), bits), found.flip(0))


def test_values_on_levels_stay() -> None:
    levels = torch.linspace(-0.7, 1.3, 2**5)
    assert torch.equal(quantised(levels, 5), levels)
    for constant in (torch.full((3, 2), 0.3), torch.zeros(4), torch.tensor([0.1])):
        assert torch.equal(quantised(constant, 5), constant)


@pytest.mark.parametrize("requantise", [True, False])
def test_quantised_surrogate(images: np.ndarray, requantise: bool) -> None:
    victim = several_classes(images)
    still = WeightQuantizationAttack(victim, 3, learning_rate=0.0, **QUICK).generate(images)
    for name, parameter in victim.model.named_parameters():
        assert torch.equal(still.model.get_parameter(name), quantised(parameter.detach(), 3)), name
    surrogate = WeightQuantizationAttack(victim, 3, requantise=requantise, **QUICK).generate(images)
    counts = [parameter.unique().numel() for parameter in surrogate.model.parameters()]
    if requantise:
        assert max(counts) == surrogate.surrogate_info["most_values_in_a_tensor"] <= 15
        assert not torch.equal(surrogate.model.head.weight, still.model.head.weight)
    else:
        assert surrogate.model.block3[0].weight.unique().numel() > 1000  # of 1296: fine-tuning left the levels


# ---------------------------------------------------------------------- what the family shares
@pytest.mark.parametrize(
    "attack",
    [LabelSmoothingAttack, AdversarialFineTuningAttack, RegularizationAttack],
    ids=lambda kind: kind.__name__,
)
def test_zeros_stay_zero_with_momentum(images: np.ndarray, attack: Any) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        victim.model.block3[0].weight[::2] = 0
    weight = attack(victim, **QUICK).generate(images).model.block3[0].weight
    assert not weight[::2].any()
    assert weight[1::2].all()


def test_probabilities_or_labels(images: np.ndarray) -> None:
    victim = several_classes(images)

    def head(y: np.ndarray | None, **options: Any) -> Tensor:
        return LabelSmoothingAttack(victim, 0.0, **options, **QUICK).generate(images, y).model.head.weight

    soft, hard = head(None), head(None, use_victim_labels=False)
    assert torch.equal(head(Y), soft)  # the victim's answers, though labels are given
    assert torch.equal(head(victim.predict(images).argmax(1)), soft)
    assert not torch.equal(hard, soft)
    assert not torch.equal(head(Y, use_victim_labels=False), hard)


def test_the_victim_is_asked_once(images: np.ndarray) -> None:
    for attack in (LabelSmoothingAttack, RegularizationAttack, AdversarialFineTuningAttack, WeightShiftingAttack):
        for hflip, queries in ((False, 40), (True, 80)):
            surrogate = attack(several_classes(images), hflip=hflip, **QUICK).generate(images)
            assert surrogate.surrogate_info["victim_queries"] == queries, attack.__name__


# ---------------------------------------------------------------------- batches and the loop
def test_batches_count_themselves_and_say_where_samples_are_from() -> None:
    x = torch.arange(11.0).view(11, 1, 1, 1)
    preprocess = Preprocessing(wrap(nn.Linear(1, 2), (1,), 2))
    origin = torch.arange(11) * 10
    for size, count in ((5, 2), (4, 3), (11, 1), (20, 1), (1, 11), (3, 4)):
        batches = Batches(x, preprocess, size, torch.device("cpu"), seed=0, origin=origin)
        assert len(batches) == count
        stream = iter(batches)
        rows = [next(stream) for _ in range(count)]
        seen = torch.cat([batch.index for batch in rows])
        assert torch.equal(seen, torch.cat([batch.x.flatten() for batch in rows]).long() * 10)
        assert seen.unique().numel() == len(seen) >= 10


def test_a_step_may_end_the_training() -> None:
    weight = nn.Parameter(torch.ones(()))
    batches = Batches(torch.rand(4, 1, 2, 2), Preprocessing(wrap(nn.Linear(1, 2), (1,), 2)), 2, torch.device("cpu"), 0)
    steps: list[int] = []
    calls: list[int] = []

    def after() -> bool:
        steps.append(len(steps) + 1)
        return len(steps) == 5

    means = fit(
        batches,
        lambda _batch: {"a": weight * len(steps)},
        torch.optim.SGD([weight], 0.0),
        20,
        after_step=after,
        callback=lambda at, _losses: calls.append(at),
        callback_interval=2,
    )
    assert steps == [1, 2, 3, 4, 5]
    assert calls == [0, 2, 4, 5]
    assert means == {"a": 4.0}


def test_copies_of_small_networks_load(images: np.ndarray) -> None:
    victim = several_classes(images)
    for attack in (LayerFineTuningAttack, WeightShiftingAttack, WeightQuantizationAttack, AdversarialFineTuningAttack):
        surrogate = attack(victim, **QUICK).generate(images)
        fresh = TinyCNN()
        fresh.load_state_dict(surrogate.model.state_dict())
        np.testing.assert_array_equal(wrap(fresh.eval()).predict(images), surrogate.predict(images))
