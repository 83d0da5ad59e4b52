"""Channel chains and what rests on them, against slow second versions and by running the networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from art_fingerprint.attacks import FeaturePermutationAttack
from art_fingerprint.core.chains import ChannelChain, ChannelSlice, chain_from, find_chains, permute_chain
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import InvalidInputError, LayerNotFoundError
from tests.conftest import TinyCNN, wrap
from tests.networks import FAMILIES, SIDE, Family, pictures, random_network, weightless
from tests.victims import TinyTokens, several_classes


class Net(nn.Module):
    """Modules by name, and a forward pass over them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.5)
            for name, buffer in self.named_buffers():
                if name.endswith("running_mean"):
                    nn.init.normal_(buffer)
                elif name.endswith("running_var"):
                    nn.init.uniform_(buffer, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inside: int, outside: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=size // 2, **options)


X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sources(network: nn.Module, x: Tensor = X) -> list[str]:
    return [chain.source.removesuffix(".weight") for chain in find_chains(network.double().eval(), x)]


def assert_preserved(network: nn.Module, x: Tensor, seed: int = 0) -> list[ChannelChain]:
    """Permute every chain at random and check in float64 that outputs stay and weights do not."""
    network = network.double().eval()
    before, digest = network(x).detach(), network_digest(network)
    chains = find_chains(network, x)
    generator = torch.Generator().manual_seed(seed)
    for chain in chains:
        permute_chain(network, chain, torch.randperm(chain.channels, generator=generator))
    if chains:
        assert network_digest(network) != digest
    torch.testing.assert_close(network(x), before, atol=1e-9, rtol=1e-9)
    return chains


# ---------------------------------------------------------------------- permutations, worked by hand
def test_permutation_by_loops() -> None:
    """P W1, P b1, all vectors of the normalisation, and W2 P^T, entry by entry."""
    network = Net(lambda m, x: m.b(F.relu(m.norm(m.a(x)))), a=conv(4, 3), norm=nn.BatchNorm2d(3), b=conv(3, 2))
    old = copy.deepcopy(network).double()
    (chain,) = find_chains(network.double().eval(), X)
    permute_chain(network, chain, torch.tensor([2, 0, 1]))
    for new, source in enumerate([2, 0, 1]):
        assert torch.equal(network.a.weight[new], old.a.weight[source])
        assert torch.equal(network.a.bias[new], old.a.bias[source])
        for vector in ("weight", "bias", "running_mean", "running_var"):
            assert getattr(network.norm, vector)[new] == getattr(old.norm, vector)[source]
        for unit in range(2):
            assert torch.equal(network.b.weight[unit, new], old.b.weight[unit, source])
    assert torch.equal(network.b.bias, old.b.bias)


def test_a_chain_says_where_the_channels_are() -> None:
    network = Net(lambda m, x: m.b(F.relu(m.norm(m.a(x)))), a=conv(4, 3), norm=nn.BatchNorm2d(3), b=conv(3, 2))
    (chain,) = find_chains(network.double().eval(), X)
    assert chain.source == "a.weight"
    assert chain.channels == 3
    assert chain.written == (ChannelSlice("a.weight", "weight", 0), ChannelSlice("a.bias", "bias", 0))
    assert {(part.name, part.role, part.axis) for part in chain.carried} == {
        (f"norm.{role}", role, 0) for role in ("weight", "bias", "running_mean", "running_var")
    }
    assert chain.read == (ChannelSlice("b.weight", "weight", 1),)
    assert chain.operations == ("batch_norm", "relu")
    assert ChannelSlice("w", "weight", 1, 3).entries(torch.tensor([2, 0])).tolist() == [6, 7, 8, 0, 1, 2]


def test_flattened_maps_move_in_blocks() -> None:
    network = Net(lambda m, x: m.b(torch.flatten(m.a(x), 1)), a=conv(4, 2, bias=False), b=nn.Linear(2 * 36, 3))
    old = copy.deepcopy(network).double()
    (chain,) = assert_preserved(network, X, seed=1)  # of two channels this seed makes a swap
    assert chain.read == (ChannelSlice("b.weight", "weight", 1, 36),)
    assert torch.equal(network.b.weight, torch.cat([old.b.weight[:, 36:], old.b.weight[:, :36]], 1))


# ---------------------------------------------------------------------- what is followed
def depthwise(channels: int) -> nn.Conv2d:
    return conv(channels, channels, groups=channels)


FOLLOWED: dict[str, tuple[Net, list[str]]] = {
    "in place": (Net(lambda m, x: m.b(m.act(m.a(x))), a=conv(4, 5), act=nn.ReLU(inplace=True), b=conv(5, 2)), ["a"]),
    "functional in place": (Net(lambda m, x: m.b(m.a(x).relu_()), a=conv(4, 5), b=conv(5, 2)), ["a"]),
    "depthwise": (
        Net(lambda m, x: m.b(F.relu(m.d(m.a(x)))), a=conv(4, 5), d=depthwise(5), b=conv(5, 2, 1)),
        ["a"],
    ),
    "prelu": (Net(lambda m, x: m.b(m.p(m.a(x))), a=conv(4, 5), p=nn.PReLU(5), b=conv(5, 2)), ["a"]),
    "one prelu": (Net(lambda m, x: m.b(m.p(m.a(x))), a=conv(4, 5), p=nn.PReLU(), b=conv(5, 2)), ["a"]),
    "sigmoid": (Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv(4, 5), b=conv(5, 2)), ["a"]),
    "pooling": (
        Net(
            lambda m, x: m.b(F.adaptive_avg_pool2d(F.max_pool2d(m.a(x), 2), 1).squeeze(-1).squeeze(-1)),
            a=conv(4, 5),
            b=nn.Linear(5, 2),
        ),
        ["a"],
    ),
    "mean": (Net(lambda m, x: m.b(m.a(x).mean((2, 3))), a=conv(4, 5), b=nn.Linear(5, 2)), ["a"]),
    "mean and view": (
        Net(lambda m, x: m.b(m.a(x).mean((2, 3), keepdim=True).view(x.shape[0], -1)), a=conv(4, 5), b=nn.Linear(5, 2)),
        ["a"],
    ),
    "padding": (Net(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1))), a=conv(4, 5), b=nn.Conv2d(5, 2, 3)), ["a"]),
    "norm behind a flattened map": (
        Net(
            lambda m, x: m.c(F.relu(m.b(m.n(m.a(x).flatten(1))))),
            a=conv(4, 2),
            n=nn.BatchNorm1d(72),
            b=nn.Linear(72, 4),
            c=nn.Linear(4, 2),
        ),
        ["a", "b"],
    ),
    "layer norm": (
        Net(
            lambda m, x: m.b(F.gelu(m.n(m.a(x.flatten(2))))[:, 0]),
            a=nn.Linear(36, 7),
            n=nn.LayerNorm(7),
            b=nn.Linear(7, 2),
        ),
        ["a"],
    ),
    "two readers": (
        Net(lambda m, x: m.b(z := F.relu(m.a(x))) + m.c(z), a=conv(4, 5), b=conv(5, 2), c=conv(5, 2, 1)),
        ["a"],
    ),
    "functional weights": (
        Net(lambda m, x: F.conv2d(F.conv2d(x, m.a.weight), weight=m.b.weight), a=conv(4, 5), b=conv(5, 2)),
        ["a"],
    ),
    "shapes are asked for": (
        Net(lambda m, x: m.b(z if len(z := m.a(x)) == 1 and z.shape[1] > 2 else z * 1), a=conv(4, 5), b=conv(5, 2)),
        ["a"],
    ),
    "one dimension": (
        Net(lambda m, x: m.b(F.relu(m.a(x.flatten(2)))), a=nn.Conv1d(4, 5, 3), b=nn.Conv1d(5, 2, 3)),
        ["a"],
    ),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_chains_that_are_followed(name: str) -> None:
    network, wanted = FOLLOWED[name]
    assert sources(copy.deepcopy(network)) == wanted
    assert_preserved(copy.deepcopy(network), X)


LEFT_OUT: dict[str, Net] = {
    "sum": Net(lambda m, x: m.b(F.relu(m.a(x)) + x), a=conv(4, 4), b=conv(4, 2)),
    "concatenation": Net(lambda m, x: m.b(torch.cat([m.a(x), x], 1)), a=conv(4, 5), b=conv(9, 2)),
    "output": Net(lambda m, x: m.a(x), a=conv(4, 5)),
    "output besides a reader": Net(lambda m, x: [m.b(z := m.a(x)), z][0] * z.mean(), a=conv(4, 5), b=conv(5, 5)),
    "grouped reader": Net(lambda m, x: m.b(m.a(x)), a=conv(4, 6), b=conv(6, 4, groups=2)),
    "grouped writer": Net(lambda m, x: m.b(m.a(x)), a=conv(4, 6, groups=2), b=conv(6, 4)),
    "depth multiplier": Net(lambda m, x: m.b(m.d(m.a(x))), a=conv(4, 5), d=conv(5, 10, groups=5), b=conv(10, 2)),
    "module called twice": Net(lambda m, x: m.a(F.relu(m.a(x))), a=conv(4, 4)),
    "group norm": Net(lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 6), n=nn.GroupNorm(2, 6), b=conv(6, 2)),
    "softmax": Net(lambda m, x: m.b(m.a(x).softmax(1)), a=conv(4, 5), b=conv(5, 2)),
    "channels are split": Net(lambda m, x: m.b(m.a(x)[:, :3]), a=conv(4, 5), b=conv(3, 2)),
    "channels are averaged": Net(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=conv(4, 5), b=conv(1, 2)),
    "transposed convolution": Net(lambda m, x: m.b(m.a(x)), a=conv(4, 5), b=nn.ConvTranspose2d(5, 2, 3)),
    "computed weight": Net(lambda m, x: F.conv2d(m.a(x), m.b.weight * 2), a=conv(4, 5), b=conv(5, 2)),
    "weight read elsewhere": Net(lambda m, x: m.b(m.a(x)) + m.a.weight.sum(), a=conv(4, 5), b=conv(5, 2)),
    "values are read": Net(lambda m, x: m.b(z := m.a(x)) * z.tolist()[0][0][0][0], a=conv(4, 5), b=conv(5, 2)),
    "view read elsewhere": Net(
        lambda m, x: m.b(z := m.a(x)) + z.flatten(1)[:, :2, None, None], a=conv(4, 5), b=conv(5, 2)
    ),
    "one channel": Net(lambda m, x: m.b(m.a(x)), a=conv(4, 1), b=conv(1, 2)),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_chains_that_are_left_out(name: str) -> None:
    assert sources(copy.deepcopy(LEFT_OUT[name])) == []
    assert_preserved(copy.deepcopy(LEFT_OUT[name]), X)


def test_tied_weights_are_left_out() -> None:
    network = Net(
        lambda m, x: m.d(m.c(m.b(m.a(x).relu()).relu()).relu()), a=conv(4, 4), b=conv(4, 4), c=conv(4, 4), d=conv(4, 2)
    )
    assert sources(copy.deepcopy(network)) == ["a", "b", "c"]
    network.c.weight = network.a.weight
    assert sources(network) == []  # each chain touches a weight that is read twice
    assert_preserved(network, X)


# ---------------------------------------------------------------------- architectures
@pytest.mark.parametrize(
    ("name", "size", "count", "layers"),
    [
        ("vgg19_bn", 32, 18, ["features.0", "pre_logits.fc2"]),
        ("resnet50", 32, 33, ["conv1", "layer4.2.conv2"]),
        ("densenet121", 64, 58, ["features.denseblock1.denselayer1.conv1"]),
        ("inception_v3", 96, 50, ["Conv2d_1a_3x3.conv", "Mixed_7c.branch3x3_1.conv"]),
        ("vit_base_patch32_224", 224, 12, ["blocks.0.mlp.fc1", "blocks.11.mlp.fc1"]),
        ("mobilenetv2_100", 64, 20, ["conv_head"]),
    ],
)
def test_chains_of_architectures(name: str, size: int, count: int, layers: list[str]) -> None:
    options: dict[str, Any] = {"aux_logits": False} if name == "inception_v3" else {}
    with weightless(name):
        network = timm.create_model(name, **options).eval()
        found = [chain.source.removesuffix(".weight") for chain in find_chains(network, torch.zeros(2, 3, size, size))]
    assert len(found) == len(set(found)) == count
    assert set(layers) <= set(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_answer_the_same(family: Family) -> None:
    x = torch.from_numpy(pictures(6)).double()
    chains = assert_preserved(random_network(family, 0), x)
    assert len(chains) == {"vgg": 4, "resnet": 2, "vit": 2}[family]


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {}), ("densenet121", {}), ("vit_tiny_patch16_224", {"img_size": 32})]
)
def test_timm_networks_answer_the_same(name: str, options: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(name, **options)
        x = torch.randn(2, 3, 32, 32).double()
    assert assert_preserved(network, x)


# ---------------------------------------------------------------------- chains that begin at a layer
@pytest.mark.parametrize(
    ("layer", "axis", "read", "keeps"),
    [
        ("block1", 1, [("block2.0.weight", 1)], True),
        ("block1.1", 1, [("block2.0.weight", 1)], True),
        ("block1.0", 1, [("block2.0.weight", 1)], False),  # through the normalisation
        ("block3", 1, [("head.weight", 1)], True),
        ("pool", 1, [("head.weight", 1)], True),
    ],
)
def test_chain_from_a_layer(layer: str, axis: int, read: list[tuple[str, int]], keeps: bool) -> None:
    found = chain_from(TinyCNN(), layer, torch.rand(2, 1, 8, 8))
    assert found is not None
    chain, where = found
    assert where == axis
    assert [(part.name, part.block) for part in chain.read] == read
    assert chain.keeps_zero == keeps
    assert chain.written == ()
    assert chain.source == layer


def test_chain_from_tokens_and_where_there_is_none() -> None:
    found = chain_from(TinyTokens(), "norm", torch.rand(2, 1, 8, 8))
    assert found is not None
    assert (found[0].channels, found[1]) == (8, 2)
    assert found[0].operations == ("__getitem__",)
    assert chain_from(TinyTokens(), "block1", torch.rand(2, 1, 8, 8)) is None  # into a sum
    assert chain_from(TinyCNN(), "head", torch.rand(2, 1, 8, 8)) is None  # out of the network
    with pytest.raises(LayerNotFoundError, match="block2"):
        chain_from(TinyCNN(), "blok2", torch.rand(2, 1, 8, 8))


def test_finding_chains_leaves_the_network_alone() -> None:
    network = TinyCNN().train()
    network.block2.eval()
    network.head.weight.requires_grad_(False)
    digest, flags = network_digest(network), [module.training for module in network.modules()]
    state = torch.get_rng_state()
    find_chains(network, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    chain_from(network, "block1", torch.zeros(2, 1, 8, 8))
    assert network_digest(network) == digest
    assert [module.training for module in network.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in network.modules())
    assert [p.requires_grad for p in network.parameters()] == [True] * 12 + [False, True]


# ---------------------------------------------------------------------- the attack
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_stay_and_weights_do_not(family: Family) -> None:
    x = pictures(300)
    victim = wrap(random_network(family, 0), (3, SIDE, SIDE), 5)
    surrogate = FeaturePermutationAttack(victim, seed=3).generate(x[:20])
    before, after = victim.predict(x), surrogate.predict(x)
    assert (before.argmax(1) == after.argmax(1)).all()
    np.testing.assert_allclose(after, before, atol=1e-4)
    info = surrogate.surrogate_info
    assert info["permuted_layers"] == len(info["layers"]) == {"vgg": 4, "resnet": 2, "vit": 2}[family]
    assert 0 <= info["largest_output_gap"] < 1e-4
    assert info["victim_queries"] == 0
    fresh = random_network(family, 1)
    fresh.load_state_dict(surrogate.model.state_dict())
    np.testing.assert_array_equal(wrap(fresh, (3, SIDE, SIDE), 5).predict(x), after)
    for (name, a), b in zip(surrogate.model.state_dict().items(), victim.model.state_dict().values(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name  # the same numbers, elsewhere
    moved = [
        not torch.equal(a, b) for a, b in zip(surrogate.model.parameters(), victim.model.parameters(), strict=True)
    ]
    assert sum(moved) >= 2 * info["permuted_layers"] - 1


def test_a_look_inside_sees_other_neurons(images: np.ndarray) -> None:
    victim = several_classes(images)
    surrogate = FeaturePermutationAttack(victim).generate(images)
    x = torch.from_numpy(images)
    with torch.no_grad():
        mine, yours = surrogate.model.block1(x).mean((0, 2, 3)), victim.model.block1(x).mean((0, 2, 3))
    assert not torch.allclose(mine, yours)
    torch.testing.assert_close(mine.sort().values, yours.sort().values)


def test_one_sample_is_enough_and_nothing_else_matters(images: np.ndarray) -> None:
    victim = several_classes(images)
    attack = FeaturePermutationAttack(victim, seed=2)
    digests = {network_digest(attack.generate(x).model) for x in (images[:1], images, images[::-1].copy())}
    assert len(digests) == 1
    assert digests != {network_digest(FeaturePermutationAttack(victim, seed=3).generate(images).model)}


def test_networks_that_cannot_be_permuted(images: np.ndarray) -> None:
    victim = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(InvalidInputError, match="No layer of this network can be permuted"):
        FeaturePermutationAttack(victim).generate(images)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_code_that_cannot_be_seen_is_noticed(images: np.ndarray) -> None:
    """Scripted functions call no torch function that could be watched; the check of the result finds them."""
    plus_first = torch.jit.trace(lambda z: z + z[:, :1], torch.rand(2, 3, 8, 8))

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = conv(1, 5), conv(5, 3), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x)
            return (
                self.head(self.b(z).mean((2, 3))) + plus_first(z).mean((1, 2, 3))[:, None] + plus_first(z)[:, 1, :4, 0]
            )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = wrap(Hidden().eval())
    with pytest.raises(InvalidInputError, match="moves this network's outputs by up to"):
        FeaturePermutationAttack(victim).generate(images)
