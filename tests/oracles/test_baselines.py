"""Fine-tuning, pruning, distillation and the training loop: worked examples, counts, plain second versions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from art_fingerprint.attacks import DistillationAttack, FineTuningAttack, RemovalNetAttack, WeightPruningAttack
from art_fingerprint.attacks.distillation import distillation_layers
from art_fingerprint.attacks.fine_tuning import last_parameters
from art_fingerprint.attacks.supervised import Masks, prunable_weights
from art_fingerprint.attacks.weight_pruning import magnitude_masks
from art_fingerprint.core.classifier import Preprocessing
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.core.training import Batch, Batches, fit, linear_l2, recalibrate_batch_norm
from art_fingerprint.exceptions import InvalidInputError, TrainingDivergedError
from tests.conftest import TinyCNN, wrap
from tests.networks import weightless
from tests.victims import several_classes

# ---------------------------------------------------------------------- G8, magnitude pruning
WEIGHTS = {"W1": torch.tensor([[0.1, -0.5], [0.3, 0.05]]), "W2": torch.tensor([[-0.2, 0.4]])}


def left(masks: dict[str, Tensor], weights: dict[str, Tensor]) -> list[list[float]]:
    return [[round(v, 6) for v in weights[name][mask].tolist()] for name, mask in masks.items()]


def test_exact_rule_table() -> None:
    assert left(magnitude_masks(WEIGHTS, 0.5), WEIGHTS) == [[-0.5, 0.3], [0.4]]
    assert left(magnitude_masks(WEIGHTS, 0.8), WEIGHTS) == [[-0.5], [0.4]]
    assert left(magnitude_masks(WEIGHTS, 0.0), WEIGHTS) == [[0.1, -0.5, 0.3, 0.05], [-0.2, 0.4]]


def test_reference_rule_table() -> None:
    assert left(magnitude_masks(WEIGHTS, 0.5, "reference"), WEIGHTS) == [[-0.5], [0.4]]
    with pytest.raises(InvalidInputError, match="prunes every weight of W2"):
        magnitude_masks(WEIGHTS, 0.8, "reference")


def test_ties_go_by_position_and_no_tensor_is_emptied() -> None:
    equal = {"a": torch.full((2, 2), 0.5), "b": -torch.full((2,), 0.5)}
    masks = magnitude_masks(equal, 0.5)
    assert masks["a"].flatten().tolist() == [False, False, False, True]
    assert masks["b"].tolist() == [True, True]
    small = {"big": torch.tensor([3.0, -4.0, 5.0]), "small": torch.tensor([0.1, -0.3, 0.2])}
    masks = magnitude_masks(small, 0.5)
    assert masks["small"].tolist() == [False, True, False]
    assert masks["big"].all()


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_masks_equal_sorted_magnitudes(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(50):
        shapes = [(6, 4, 3, 3), (8, 6, 1, 1), (10, 8)]
        weights = {str(i): torch.randn(s, generator=generator, dtype=torch.float64) for i, s in enumerate(shapes)}
        ratio = trial / 64
        magnitudes = sorted(abs(v) for w in weights.values() for v in w.flatten().tolist())
        n = len(magnitudes)
        masks = magnitude_masks(weights, ratio, rule)
        threshold = magnitudes[int(ratio * n)]
        for name, mask in masks.items():
            above = weights[name].abs() > threshold if rule == "reference" else weights[name].abs() >= threshold
            assert torch.equal(mask, above), (trial, name)
        gone = n - sum(int(mask.sum()) for mask in masks.values())
        assert gone == (int(ratio * n) + 1 if rule == "reference" else math.floor(ratio * n))


def test_counts_free_of_rounding() -> None:
    weights = {"w": torch.arange(1.0, 101.0)}
    for percent in range(100):
        assert int((~magnitude_masks(weights, percent / 100)["w"]).sum()) == percent


def test_kinds_of_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.conv = nn.Conv1d(3, 3, 1)
            self.norm = nn.BatchNorm1d(3)

    network = Tied()
    assert list(prunable_weights(network, ("conv", "linear"))) == ["a.weight", "conv.weight"]
    assert list(prunable_weights(network, ("conv",))) == ["conv.weight"]


@pytest.mark.parametrize(
    ("name", "linear"),
    [("vgg19_bn", False), ("resnet50", False), ("densenet121", False), ("vit_base_patch32_224", True)],
)
def test_what_is_pruned_by_default(name: str, linear: bool, images: np.ndarray) -> None:
    with weightless(name):
        network = timm.create_model(name)
    weights = WeightPruningAttack(several_classes(images))._weights(network)
    kinds = {type(network.get_submodule(key.removesuffix(".weight"))) for key in weights}
    assert (nn.Linear in kinds) == linear
    assert any(issubclass(kind, nn.Conv2d) for kind in kinds)


@pytest.mark.parametrize("rule", ["exact", "reference"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_pruned_weights_stay_zero_at_every_step(images: np.ndarray, rule: str, momentum: float) -> None:
    victim = several_classes(images)
    masks = magnitude_masks(prunable_weights(victim.model, ("conv",)), 0.8, rule)
    seen: list[int] = []

    def check(step: int, surrogate: Any, _losses: object) -> None:
        seen.append(step)
        for name, mask in masks.items():
            weight = surrogate.model.get_parameter(name)
            assert not weight[~mask].any()
            assert weight[mask].all()

    attack = WeightPruningAttack(
        victim, 0.8, rule=rule, momentum=momentum, max_iter=5, batch_size=16, callback=check, callback_interval=1
    )
    info = attack.generate(images).surrogate_info
    assert seen == [0, 1, 2, 3, 4, 5]
    assert info["sparsity"] == pytest.approx(
        1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    )


# ---------------------------------------------------------------------- G9, fine-tuning counts
@pytest.mark.parametrize(
    ("name", "n", "half", "most"),
    [
        ("vgg19_bn", 70, (35, "features.28.bias"), (56, "features.11.weight")),
        ("resnet50", 161, (80, "layer3.0.downsample.0.weight"), (128, "layer2.0.conv1.weight")),
        (
            "densenet121",
            364,
            (182, "features.denseblock3.denselayer11.conv2.weight"),
            (291, "features.denseblock2.denselayer6.norm1.bias"),
        ),
        ("vit_base_patch32_224", 152, (76, "blocks.6.norm1.weight"), (121, "blocks.2.attn.qkv.bias")),
    ],
)
def test_where_fine_tuning_starts(name: str, n: int, half: tuple[int, str], most: tuple[int, str]) -> None:
    with weightless(name):
        network = timm.create_model(name)
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    assert len(names) == n
    for ratio, (count, first) in ((0.5, half), (0.8, most)):
        found = last_parameters(network, ratio)
        assert (len(found), names[id(found[0])]) == (count, first)
        assert [names[id(p)] for p in found] == list(names.values())[-count:]
    assert len(last_parameters(network, 1.0)) == n


def test_module_unit_keeps_modules_whole() -> None:
    network = TinyCNN()  # seven modules with parameters
    found = {id(parameter) for parameter in last_parameters(network, 0.5, "module")}
    modules = [network.block2[1], network.block3[0], network.block3[1], network.head]
    assert found == {id(parameter) for module in modules[1:] for parameter in module.parameters()}
    with pytest.raises(InvalidInputError, match="selects none"):
        last_parameters(network, 0.1, "module")


def test_tied_parameters_are_trained_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    assert len(last_parameters(network, 1.0, "module")) == len(last_parameters(network, 1.0)) == 3


# ---------------------------------------------------------------------- the recipe, against a plain second version
def recorded_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    batches: list[Batch] = []
    original = Batches._batch

    def keep(self: Batches, index: Tensor, flipped: Tensor) -> Batch:
        batches.append(original(self, index, flipped))
        return batches[-1]

    monkeypatch.setattr(Batches, "_batch", keep)
    return batches


def plain_training(
    victim: TinyCNN,
    batches: list[Batch],
    y: Tensor,
    rate: float,
    momentum: float,
    trained: Callable[[TinyCNN], list[nn.Parameter]],
    distilled: tuple[str, ...] = (),
) -> TinyCNN:
    network, teacher = TinyCNN(), TinyCNN()
    network.load_state_dict(victim.state_dict())
    teacher.load_state_dict(victim.state_dict())
    optimizer = torch.optim.SGD(trained(network), rate, momentum, weight_decay=1e-4)

    def run(model: TinyCNN, x: Tensor) -> dict[str, Tensor]:
        out = {"block1": model.block1(x)}
        out["block2"] = model.block2(out["block1"])
        out["block3"] = model.block3(out["block2"])
        out["logits"] = model.head(model.pool(out["block3"]).flatten(1))
        return out

    for t, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * t / len(batches)))
        found = run(network.train(), batch.x)
        loss = F.cross_entropy(found["logits"], y[batch.index])
        loss = loss + 1e-2 * 0.5 * (network.head.weight.square().sum() + network.head.bias.square().sum())
        if distilled:
            wanted = run(teacher.eval(), batch.x)
            loss = loss + 0.1 * sum((found[s] - wanted[s].detach()).square().mean() for s in distilled)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def rate_factor(seed: int) -> float:
    return 1 + float(numpy_generator(seed, "learning rate").random())


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    for (name, a), b in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-6, rtol=1e-5), name


def test_fine_tuning_equals_a_plain_second_version(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    victim, y = several_classes(images), np.arange(40) % 4
    batches = recorded_batches(monkeypatch)
    found = FineTuningAttack(victim, 0.5, max_iter=5, batch_size=16, seed=3).generate(images, y).model
    assert len(batches) == 5
    wanted = plain_training(
        victim.model, batches, torch.from_numpy(y), 1e-2 * rate_factor(3), 0.0, lambda m: list(m.parameters())[-7:]
    )
    assert_same(found, wanted)
    before = dict(victim.model.named_parameters())
    names = list(before)
    same = [bool(torch.equal(before[name], parameter)) for name, parameter in found.named_parameters()]
    assert same[: len(names) - 7] == [True] * (len(names) - 7)
    assert not same[-1]
    moved = [not torch.equal(a, b) for a, b in zip(found.buffers(), victim.model.buffers(), strict=True)]
    assert all(moved)  # BatchNorm statistics of frozen layers move too


def test_distillation_equals_a_plain_second_version(monkeypatch: pytest.MonkeyPatch, images: np.ndarray) -> None:
    victim, y = several_classes(images), np.arange(40) % 4
    batches = recorded_batches(monkeypatch)
    surrogate = DistillationAttack(victim, max_iter=5, batch_size=16, seed=3).generate(images, y)
    assert surrogate.surrogate_info["layers"] == ["block2", "block3"]
    wanted = plain_training(
        victim.model,
        batches,
        torch.from_numpy(y),
        1e-3 * rate_factor(3),
        0.8,
        lambda m: list(m.parameters()),
        ("block2", "block3"),
    )
    assert_same(surrogate.model, wanted)


def test_zeros_stay_zero_in_fine_tuning(images: np.ndarray) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        victim.model.block3[0].weight[::2] = 0
        victim.model.head.weight[0, :3] = 0
    tuned = FineTuningAttack(victim, 1.0, momentum=0.9, max_iter=4, batch_size=16).generate(images).model
    weight = tuned.get_parameter("block3.0.weight")
    assert not weight[::2].any()
    assert weight[1::2].all()
    assert not tuned.head.weight[0, :3].any()
    assert not torch.equal(tuned.head.weight, victim.model.head.weight)


def test_masks_leave_other_layers_alone() -> None:
    conv, norm, linear = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2)
    network = nn.Sequential(conv, norm, linear)
    with torch.no_grad():
        norm.bias.zero_()
        linear.weight[0, 0] = 0
    masks = Masks.of_zeros(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    masks.apply()
    assert linear.weight.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert norm.bias.all()
    assert conv.weight.all()


def test_linear_l2_counts_weights_and_biases() -> None:
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        linear.bias.fill_(3.0)
    assert linear_l2(nn.Sequential(nn.Conv2d(1, 1, 1), linear)).item() == 7.0
    assert linear_l2(nn.Conv2d(1, 1, 1)).item() == 0.0
    normed = nn.utils.parametrizations.weight_norm(linear)  # computed from a norm and a direction, [sqrt 5] and [1, 2]
    assert linear_l2(normed).item() == pytest.approx(7.0)
    linear_l2(normed).backward()
    norm = normed.parametrizations.weight.original0
    assert norm.grad.item() == pytest.approx(norm.item()) == pytest.approx(5**0.5)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("vgg19_bn", 32, ["features.39", "features.52"]),
        ("resnet50", 32, ["layer3", "layer4"]),
        ("densenet121", 32, ["features.denseblock3", "features.denseblock4"]),
        ("inception_v3", 96, ["Mixed_6e", "Mixed_7c"]),
        ("vit_base_patch32_224", 224, ["blocks"]),
    ],
)
def test_distilled_layers(name: str, size: int, layers: list[str]) -> None:
    options: dict[str, Any] = {"aux_logits": False} if name == "inception_v3" else {}
    with weightless(name):
        network = timm.create_model(name, **options).eval()
        assert distillation_layers(network, torch.zeros(2, 3, size, size)) == layers
        wrapped = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3, affine=False), network)).eval()
        assert distillation_layers(wrapped, torch.zeros(2, 3, size, size)) == [f"0.1.{layer}" for layer in layers]


def test_the_classifier_is_no_distilled_stage() -> None:
    assert distillation_layers(TinyCNN().eval(), torch.zeros(2, 1, 8, 8)) == ["block2", "block3"]
    with pytest.raises(InvalidInputError, match="pass `layers`"):
        distillation_layers(nn.Linear(3, 2), torch.zeros(2, 3))


# ---------------------------------------------------------------------- G12, BatchNorm passes
class Normed(nn.Module):
    """BatchNorm on the input, which is the head, and BatchNorm on constant features, which is in the tail."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(1)
        self.shift = nn.Identity()
        self.second = nn.BatchNorm2d(1)
        self.head = nn.Linear(64, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1e-3], [0.0]]).expand(2, 64))
            self.head.bias.copy_(torch.tensor([10.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.shift(self.first(x)) + 1).flatten(1))


@pytest.mark.parametrize(("double_pass", "first"), [(False, 0.1), (True, 0.19)])
def test_batch_norm_passes_of_an_iteration(double_pass: bool, first: float) -> None:
    x = np.random.default_rng(0).random((32, 1, 8, 8), dtype=np.float32)
    x += 1 - x.mean()  # the batch mean is 1
    victim = wrap(Normed(), nb_classes=2, clip_values=(-2.0, 4.0))
    attack = RemovalNetAttack(
        victim,
        "first",
        shuffle_ratio=0.0,
        learning_rate=0.0,
        max_iter=1,
        batch_size=32,
        reference_double_pass=double_pass,
        allow_degenerate=True,
    )
    with pytest.warns(UserWarning, match="into one"):
        network = attack.generate(x).model
    assert float(network.first.running_mean) == pytest.approx(first, abs=1e-6)
    assert float(network.second.running_mean) == pytest.approx(0.1, abs=1e-6)  # the tail runs once in either case
    assert int(network.second.num_batches_tracked) == 1


def test_recalibration_averages_the_batches() -> None:
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = Normed().train()
    network.add_module("untracked", nn.BatchNorm2d(1, track_running_stats=False))
    with torch.no_grad():
        network(x * 50)  # statistics far off
    network.first.momentum = 0.3
    preprocess = Preprocessing(wrap(network, nb_classes=2))
    batches = Batches(x, preprocess, 10, torch.device("cpu"), seed=0)
    parts = [batch.x for batch, _ in zip(batches, range(3), strict=False)]
    again = Batches(x, preprocess, 10, torch.device("cpu"), seed=0)
    recalibrate_batch_norm(network, again, 3)
    mean = torch.stack([part.mean() for part in parts]).mean()
    variance = torch.stack([part.var() for part in parts]).mean()
    torch.testing.assert_close(network.get_buffer("first.running_mean")[0], mean)
    torch.testing.assert_close(network.get_buffer("first.running_var")[0], variance)
    assert network.first.momentum == 0.3
    assert not any(module.training for module in network.modules())
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_recalibration_without_batch_norm_does_nothing() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).train()
    network.register_forward_hook(lambda *_: pytest.fail("nothing should run"))
    preprocess = Preprocessing(wrap(nn.Linear(1, 2), (1,), 2))
    recalibrate_batch_norm(network, Batches(torch.rand(4, 1, 2, 2), preprocess, 2, torch.device("cpu"), 0), 3)


# ---------------------------------------------------------------------- batches and the loop
def test_batches_cover_every_epoch_once_and_flip_before_preprocessing() -> None:
    n, x = 11, torch.rand(11, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocessing(wrap(nn.Linear(1, 2), (1, 2, 3), 2, preprocessing=(0.25, 0.5)))
    stream = iter(Batches(x, preprocess, 5, torch.device("cpu"), seed=1, hflip=True))
    orders, flips = [], []
    for _epoch in range(20):
        parts = [next(stream) for _ in range(2)]  # 5, 5, and a remainder of one, which is dropped
        assert [len(part.x) for part in parts] == [5, 5]
        index = torch.cat([part.index for part in parts])
        assert len(set(index.tolist())) == 10
        assert set(index.tolist()) <= set(range(n))
        orders.append(tuple(index.tolist()))
        for part in parts:
            flips += part.flipped.tolist()
            for row, i, flipped in zip(part.x, part.index, part.flipped, strict=True):
                wanted = x[i].flip(-1) if flipped else x[i]
                torch.testing.assert_close(row, (wanted - 0.25) / 0.5)
    assert len(set(orders)) == 20
    assert 70 < sum(flips) < 130
    plain = next(iter(Batches(x, preprocess, 20, torch.device("cpu"), seed=1)))
    assert len(plain.x) == n
    assert not plain.flipped.any()


def small_fit(rates: dict[int, float], interval: int, max_iter: int = 10) -> tuple[list[Any], dict[str, float]]:
    """Run the loop on one weight with the loss ``w * factor(step)``; the factor is 1 but where ``rates`` says else."""
    weight = nn.Parameter(torch.ones(()))
    calls: list[Any] = []
    batches = Batches(torch.rand(4, 1, 2, 2), Preprocessing(wrap(nn.Linear(1, 2), (1,), 2)), 2, torch.device("cpu"), 0)
    step = 0

    def loss(_batch: Batch) -> dict[str, Tensor]:
        nonlocal step
        step += 1
        return {"a": weight * rates.get(step, 1.0), "b": 0 * weight + step}

    means = fit(
        batches,
        loss,
        torch.optim.SGD([weight], 0.1),
        max_iter,
        callback=lambda at, losses: calls.append((at, dict(losses))),
        callback_interval=interval,
    )
    return calls, means


def test_loop_reads_means_of_each_interval() -> None:
    calls, means = small_fit({}, 4)
    assert [at for at, _ in calls] == [0, 4, 8, 10]
    assert calls[0][1] == {}
    assert [losses["b"] for _, losses in calls[1:]] == [2.5, 6.5, 9.5]
    assert [losses["a"] for _, losses in calls[1:]] == pytest.approx([0.85, 0.45, 0.15])
    assert means == calls[-1][1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("interval", [1, 4, 100])
def test_loop_names_the_step_that_diverged(value: float, interval: int) -> None:
    with pytest.raises(TrainingDivergedError, match=r"at step 6 of 10: \{'a': (nan|inf), 'b': 6\.0\}"):
        small_fit({6: value}, interval)
