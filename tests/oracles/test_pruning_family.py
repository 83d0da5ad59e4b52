"""Pruning by layer and in stages, and fine-pruning: worked examples, exact sparsities, and masks as hooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from art_fingerprint.attacks import FinePruningAttack, LayerFineTuningAttack, WeightPruningAttack
from art_fingerprint.attacks.fine_pruning import last_prunable_stage, mean_activity, silence, silent_channels
from art_fingerprint.attacks.supervised import prunable_weights
from art_fingerprint.attacks.weight_pruning import magnitude_masks, ramp
from art_fingerprint.core.chains import chain_from
from art_fingerprint.core.training import Batch
from tests.conftest import TinyCNN, wrap
from tests.networks import FAMILIES, SIDE, Family, pictures, random_network, weightless
from tests.victims import TinyTokens, several_classes

QUICK: dict[str, Any] = {"max_iter": 4, "batch_size": 16}
WEIGHTS = {"W1": torch.tensor([[0.1, -0.5], [0.3, 0.05]]), "W2": torch.tensor([[-0.2, 0.4]])}


# ---------------------------------------------------------------------- by layer
def test_each_layer_loses_its_smallest() -> None:
    def left(ratio: float) -> list[list[float]]:
        masks = magnitude_masks(WEIGHTS, ratio, scope="layer")
        return [[round(v, 6) for v in WEIGHTS[name][mask].tolist()] for name, mask in masks.items()]

    assert left(0.5) == [[-0.5, 0.3], [0.4]]
    assert left(0.25) == [[0.1, -0.5, 0.3], [-0.2, 0.4]]  # one of four, none of two
    assert left(0.8) == [[-0.5], [0.4]]
    assert left(0.0) == [[0.1, -0.5, 0.3, 0.05], [-0.2, 0.4]]


def test_scope_matters_where_layers_differ_in_scale() -> None:
    weights = {"small": torch.tensor([0.1, 0.2, 0.3, 0.4]), "large": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    by_layer = magnitude_masks(weights, 0.5, scope="layer")
    assert [mask.tolist() for mask in by_layer.values()] == [[False, False, True, True]] * 2
    everywhere = magnitude_masks(weights, 0.5)
    assert everywhere["small"].tolist() == [False, False, False, True]  # its largest is kept
    assert everywhere["large"].all()


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_sparsity_of_every_layer(images: np.ndarray, rule: str) -> None:
    victim = several_classes(images)
    attack = WeightPruningAttack(victim, 0.6, scope="layer", rule=rule, momentum=0.9, **QUICK)
    network = attack.generate(images).model
    for weight in prunable_weights(network, ("conv",)).values():
        n = weight.numel()
        assert int((weight == 0).sum()) == (math.floor(0.6 * n) if rule == "exact" else int(0.6 * n) + 1)


# ---------------------------------------------------------------------- in stages
def test_ramp_is_cubic() -> None:
    assert ramp(0.8, 1) == [0.8]
    assert ramp(0.8, 2) == pytest.approx([0.7, 0.8])
    assert ramp(0.4, 4) == pytest.approx([0.4 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)])
    assert ramp(0.6, 10) == sorted(ramp(0.6, 10))
    assert ramp(0.6, 10)[-1] == 0.6


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_stages_have_exact_sparsities_and_only_add_zeros(images: np.ndarray, scope: str) -> None:
    victim = several_classes(images)
    zeros: list[dict[str, Tensor]] = []

    def look(_step: int, surrogate: Any, _losses: Mapping[str, float]) -> None:
        weights = prunable_weights(surrogate.model, ("conv",))
        zeros.append({name: weight.detach() == 0 for name, weight in weights.items()})

    surrogate = WeightPruningAttack(
        victim,
        0.6,
        scope=scope,
        ramp_stages=4,
        momentum=0.9,
        max_iter=10,
        batch_size=16,
        callback=look,
        callback_interval=1,
    ).generate(images)
    # Stages begin at steps 0, 2, 5 and 7 of 10; what the callback sees after such a step is pruned already.
    stage_of = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    sizes = [weight.numel() for weight in prunable_weights(victim.model, ("conv",)).values()]
    for step, found in enumerate(zeros):
        sparsity = ramp(0.6, 4)[stage_of[step]]
        counts = [int(mask.sum()) for mask in found.values()]
        if scope == "layer":
            assert counts == [math.floor(sparsity * n + 1e-9) for n in sizes], step
        else:
            assert sum(counts) == math.floor(sparsity * sum(sizes) + 1e-9), step
        if step:
            assert all(bool(found[name][mask].all()) for name, mask in zeros[step - 1].items())
    assert surrogate.surrogate_info["sparsity"] == sum(int(mask.sum()) for mask in zeros[-1].values()) / sum(sizes)


def test_one_stage_is_pruning_at_once(images: np.ndarray) -> None:
    victim = several_classes(images)
    at_once = WeightPruningAttack(victim, 0.5, **QUICK).generate(images)
    again = WeightPruningAttack(victim, 0.5, ramp_stages=1, scope="global", **QUICK).generate(images)
    staged = WeightPruningAttack(victim, 0.5, ramp_stages=2, **QUICK).generate(images)
    for a, b in zip(at_once.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(at_once.model.head.weight, staged.model.head.weight)


def test_adam_leaves_zeros_alone(images: np.ndarray) -> None:
    pruned = WeightPruningAttack(several_classes(images), 0.8, **QUICK).generate(images)
    before = {name: weight.detach() == 0 for name, weight in prunable_weights(pruned.model, ("conv",)).items()}
    tuned = LayerFineTuningAttack(pruned, "RTAL", **QUICK).generate(images)
    for name, weight in prunable_weights(tuned.model, ("conv",)).items():
        assert torch.equal(weight == 0, before[name])
        assert not torch.equal(weight, pruned.model.get_parameter(name))


# ---------------------------------------------------------------------- fine-pruning
def batches_of(x: Tensor, size: int) -> list[Batch]:
    return [Batch(part, torch.arange(len(part)), torch.zeros(len(part))) for part in x.split(size)]


@pytest.mark.parametrize(("layer", "axis"), [("stage1", 1), ("stage2", 1), ("classifier", 1)])
def test_activity_is_the_mean_over_samples_and_positions(layer: str, axis: int) -> None:
    network = random_network("vgg", 0)
    x = torch.from_numpy(pictures(10))
    found = mean_activity(network, layer, axis, batches_of(x, 4))
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    with torch.no_grad():
        network(x)
    handle.remove()
    z = kept[0].double()
    wanted = [z[:, c].abs().sum().item() / z[:, c].numel() for c in range(z.shape[1])]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_activity_of_token_features() -> None:
    network = random_network("vit", 0)
    x = torch.from_numpy(pictures(4))
    kept: list[Tensor] = []
    handle = network.get_submodule("norm").register_forward_hook(lambda _module, _inputs, out: kept.append(out))
    with torch.no_grad():
        network(x)
    handle.remove()
    found = mean_activity(network, "norm", 2, batches_of(x, 3))
    torch.testing.assert_close(found, kept[0].abs().mean((0, 1)).double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "layer"),
    [("vgg", "stage1"), ("vgg", "stage2"), ("vgg", "classifier"), ("resnet", "stage2"), ("vit", "norm")],
)
def test_silencing_is_a_mask_on_the_layers_output(family: Family, layer: str) -> None:
    network = random_network(family, 0).double()
    x = torch.from_numpy(pictures(5)).double()
    found = chain_from(network, layer, x)
    assert found is not None
    chain, axis = found
    silenced = torch.tensor([0, 2, chain.channels - 1])

    def mask(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.index_fill(axis, silenced, 0.0)

    handle = network.get_submodule(layer).register_forward_hook(mask)
    masked = network(x).detach()
    handle.remove()
    assert not torch.allclose(network(x), masked)
    assert not silent_channels(network, chain).any()
    silence(network, chain, silenced)
    torch.testing.assert_close(network(x), masked, atol=1e-10, rtol=1e-10)
    assert silent_channels(network, chain).nonzero().flatten().tolist() == silenced.tolist()


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("vgg19_bn", 32, "features.52"),
        ("resnet50", 32, "layer4"),
        ("densenet121", 32, "features.norm5"),
        ("inception_v3", 96, "Mixed_7c"),
        ("vit_base_patch32_224", 224, "norm"),
    ],
)
def test_default_layer_of_architectures(name: str, size: int, layer: str) -> None:
    options: dict[str, Any] = {"aux_logits": False} if name == "inception_v3" else {}
    with weightless(name):
        network = timm.create_model(name, **options).eval()
        assert last_prunable_stage(network, torch.zeros(2, 3, size, size)) == layer


def test_default_layer_of_small_networks() -> None:
    assert last_prunable_stage(TinyCNN(), torch.zeros(2, 1, 8, 8)) == "block3"
    assert last_prunable_stage(TinyTokens(), torch.zeros(2, 1, 8, 8)) == "norm"
    assert last_prunable_stage(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(2, 3)) == "0"
    assert last_prunable_stage(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3)) is None


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_least_active_go_and_stay_away(images: np.ndarray, momentum: float) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        activity = victim.model.block3(victim.model.block2(victim.model.block1(torch.from_numpy(images)))).mean(
            (0, 2, 3)
        )
    least = activity.argsort(stable=True)[:7]
    seen: list[list[int]] = []

    def look(_step: int, surrogate: Any, _losses: object) -> None:
        seen.append((surrogate.model.head.weight == 0).all(0).nonzero().flatten().tolist())

    attack = FinePruningAttack(
        victim, 0.6, momentum=momentum, max_iter=6, batch_size=20, hflip=False, callback=look, callback_interval=1
    )
    surrogate = attack.generate(images)
    assert seen == [sorted(least.tolist())] * 7  # floor(0.6 * 12), before and after each step
    info = surrogate.surrogate_info
    assert (info["layer"], info["silent_channels"], info["sparsity"]) == ("block3", 7, 7 / 12)
    rest = [c for c in range(12) if c not in least.tolist()]
    assert (surrogate.model.head.weight[:, rest] != victim.model.head.weight[:, rest]).all()
    fresh = TinyCNN()
    fresh.load_state_dict(surrogate.model.state_dict())
    np.testing.assert_array_equal(wrap(fresh.eval()).predict(images), surrogate.predict(images))


def test_all_readers_of_a_layer_are_silenced(images: np.ndarray) -> None:
    class TwoReaders(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.block3(self.block2(self.block1(x)))
            return self.head(self.pool(z).flatten(1)) + self.other(z.mean((2, 3)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = wrap(TwoReaders().eval())
    network = FinePruningAttack(victim, 0.5, layer="block3", **QUICK).generate(images).model
    silent = [(layer.weight == 0).all(0) for layer in (network.head, network.other)]
    assert int(silent[0].sum()) == 6
    assert torch.equal(silent[0], silent[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_pruned_and_tuned(family: Family) -> None:
    x = pictures(40)
    victim = wrap(random_network(family, 0), (3, SIDE, SIDE), 5)
    surrogate = FinePruningAttack(victim, 0.5, max_iter=3, batch_size=20).generate(x)
    info = surrogate.surrogate_info
    channels = {"vgg": 12, "resnet": 14, "vit": 12}[family]
    assert info["silent_channels"] == channels // 2
    assert info["layer"] == {"vgg": "classifier", "resnet": "stage2", "vit": "norm"}[family]
    fresh = random_network(family, 3)
    fresh.load_state_dict(surrogate.model.state_dict())
