"""Positive rescaling of channels: by hand, entry by entry, and by running the networks in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from art_fingerprint.attacks import CompositeAttack, FeaturePermutationAttack
from art_fingerprint.core.chains import find_chains
from art_fingerprint.core.rescaling import can_rescale, log_uniform, rescale_chain
from art_fingerprint.exceptions import InvalidInputError
from tests.conftest import wrap
from tests.networks import FAMILIES, SIDE, Family, pictures, random_network
from tests.oracles.test_function_preserving import Net, X, conv, depthwise
from tests.victims import several_classes, token_classifier


def rescaled(network: nn.Module, x: Tensor = X, most: float = 100.0) -> list[str]:
    """Rescale every chain that can be, check in float64 that outputs stay, and return where chains begin."""
    network = network.double().eval()
    before, state = network(x).detach(), copy.deepcopy(network.state_dict())
    generator = torch.Generator().manual_seed(0)
    found = [chain for chain in find_chains(network, x) if can_rescale(network, chain)]
    for chain in found:
        rescale_chain(network, chain, log_uniform(chain.channels, most, generator))
        assert not torch.equal(network.state_dict()[chain.source], state[chain.source])
    torch.testing.assert_close(network(x), before, atol=1e-10, rtol=1e-10)
    return [chain.source.removesuffix(".weight") for chain in found]


# ---------------------------------------------------------------------- by hand
def test_two_layers_by_hand() -> None:
    """W1 = (1, -2), b1 = (0.5, 1), W2 = (3, 4), b2 = 7; factors 2 and 1/4."""
    network = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [-2.0]]))
        network[0].bias.copy_(torch.tensor([0.5, 1.0]))
        network[2].weight.copy_(torch.tensor([[3.0, 4.0]]))
        network[2].bias.fill_(7.0)
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    (chain,) = find_chains(network, x)
    rescale_chain(network, chain, torch.tensor([2.0, 0.25], dtype=torch.float64))
    assert network[0].weight.tolist() == [[2.0], [-0.5]]
    assert network[0].bias.tolist() == [1.0, 0.25]
    assert network[2].weight.tolist() == [[1.5, 16.0]]
    assert network[2].bias.tolist() == [7.0]
    assert network(x).tolist() == [[3 * 1.5 + 7], [4 * 3.0 + 7]]


def test_batch_norm_by_loops() -> None:
    """Entry by entry, and the statistics are those that the rescaled layer has on data."""
    network = Net(lambda m, x: m.b(F.relu(m.norm(m.a(x)))), a=conv(4, 3), norm=nn.BatchNorm2d(3, eps=0.3), b=conv(3, 2))
    old, network = copy.deepcopy(network).double(), network.double().eval()
    (chain,) = find_chains(network, X)
    factors = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    rescale_chain(network, chain, factors)
    for c, s in enumerate(factors.tolist()):
        variance = float(old.norm.running_var[c])
        ratio = math.sqrt((s * s * variance + 0.3) / (variance + 0.3))
        wanted = {
            "norm.weight": old.norm.weight[c] * ratio,
            "norm.bias": old.norm.bias[c] * s,
            "norm.running_mean": old.norm.running_mean[c] * s,
            "norm.running_var": torch.tensor(variance * s * s, dtype=torch.float64),
            "a.weight": old.a.weight[c] * s,
            "a.bias": old.a.bias[c] * s,
        }
        for name, value in wanted.items():
            torch.testing.assert_close(network.state_dict()[name][c], value, msg=name)
        torch.testing.assert_close(network.b.weight[:, c], old.b.weight[:, c] / s)
    assert torch.equal(network.b.bias, old.b.bias)
    torch.testing.assert_close(network.a(X).mean((0, 2, 3)), old.a(X).mean((0, 2, 3)) * factors)


def test_factors_are_log_uniform() -> None:
    drawn = log_uniform(20_000, 10.0, torch.Generator().manual_seed(0)).log10()
    assert -1 <= drawn.min() < -0.99
    assert 0.99 < drawn.max() <= 1
    assert abs(drawn.mean()) < 0.02
    assert drawn.var() == pytest.approx(1 / 3, abs=0.01)  # of a uniform number on [-1, 1]
    assert torch.equal(log_uniform(3, 1.0, torch.Generator()), torch.ones(3, dtype=torch.float64))


# ---------------------------------------------------------------------- what lets factors through
SCALED: dict[str, Net] = {
    "relu in place": Net(lambda m, x: m.b(m.a(x).relu_()), a=conv(4, 5), b=conv(5, 2)),
    "leaky relu": Net(lambda m, x: m.b(F.leaky_relu(m.a(x), 0.2)), a=conv(4, 5), b=conv(5, 2)),
    "prelu": Net(lambda m, x: m.b(m.p(m.a(x))), a=conv(4, 5), p=nn.PReLU(5), b=conv(5, 2)),
    "one prelu, depthwise": Net(
        lambda m, x: m.b(m.d(m.p(m.a(x)))), a=conv(4, 5), p=nn.PReLU(), d=depthwise(5), b=conv(5, 2)
    ),
    "depthwise without bias, norms": Net(
        lambda m, x: m.b(F.relu(m.n2(m.d(F.relu(m.n1(m.a(x))))))),
        a=conv(4, 5, bias=False),
        n1=nn.BatchNorm2d(5),
        d=conv(5, 5, groups=5, bias=False),
        n2=nn.BatchNorm2d(5),
        b=conv(5, 2, 1),
    ),
    "prelu and norm": Net(
        lambda m, x: m.b(m.n(m.p(m.a(x)))), a=conv(4, 5), p=nn.PReLU(5), n=nn.BatchNorm2d(5), b=conv(5, 2)
    ),
    "pooling and flattened": Net(
        lambda m, x: m.b(F.avg_pool2d(F.max_pool2d(m.a(x), 2), 1).flatten(1)), a=conv(4, 5), b=nn.Linear(45, 2)
    ),
    "norm behind a flattened map": Net(
        lambda m, x: m.b(m.n(m.a(x).flatten(1))), a=conv(4, 2), n=nn.BatchNorm1d(72), b=nn.Linear(72, 4)
    ),
    "two ways": Net(
        lambda m, x: m.b(F.relu(m.n(z := m.a(x)))) + m.c(F.relu(z)),
        a=conv(4, 5),
        n=nn.BatchNorm2d(5),
        b=conv(5, 2),
        c=conv(5, 2),
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_outputs_stay(name: str) -> None:
    assert rescaled(copy.deepcopy(SCALED[name])) == ["a"]


NOT_SCALED: dict[str, Net] = {
    "gelu": Net(lambda m, x: m.b(F.gelu(m.a(x))), a=conv(4, 5), b=conv(5, 2)),
    "sigmoid": Net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=conv(4, 5), b=conv(5, 2)),
    "relu6": Net(lambda m, x: m.b(F.relu6(m.a(x))), a=conv(4, 5), b=conv(5, 2)),
    "padding": Net(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=1.0)), a=conv(4, 5), b=conv(5, 2)),
    "layer norm": Net(
        lambda m, x: m.b(m.n(m.a(x.flatten(2)))).mean(1), a=nn.Linear(36, 7), n=nn.LayerNorm(7), b=nn.Linear(7, 2)
    ),
    "norm without factors": Net(
        lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 5), n=nn.BatchNorm2d(5, affine=False), b=conv(5, 2)
    ),
    "norm without statistics": Net(
        lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 5), n=nn.BatchNorm2d(5, track_running_stats=False), b=conv(5, 2)
    ),
    "norm without factors, then depthwise": Net(
        lambda m, x: m.b(m.d(m.n(m.a(x)))),
        a=conv(4, 5),
        n=nn.BatchNorm2d(5, affine=False),
        d=depthwise(5),
        b=conv(5, 2),
    ),
}


@pytest.mark.parametrize("name", NOT_SCALED)
def test_what_does_not_scale_is_left_out(name: str) -> None:
    network = copy.deepcopy(NOT_SCALED[name]).double().eval()
    (chain,) = find_chains(network, X)
    assert not can_rescale(network, chain)
    with pytest.raises(ValueError, match=r"a\.weight cannot be rescaled"):
        rescale_chain(network, chain, torch.full((chain.channels,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_answer_the_same(family: Family) -> None:
    x = torch.from_numpy(pictures(6)).double()
    assert len(rescaled(random_network(family, 0), x)) == {"vgg": 4, "resnet": 2, "vit": 0}[family]


# ---------------------------------------------------------------------- the attack
@pytest.mark.parametrize("family", ["vgg", "resnet"])
def test_labels_stay_and_norms_do_not(family: Family) -> None:
    x = pictures(300)
    victim = wrap(random_network(family, 0), (3, SIDE, SIDE), 5)
    plain = FeaturePermutationAttack(victim, seed=3).generate(x[:20])
    surrogate = FeaturePermutationAttack(victim, rescale=1000.0, seed=3).generate(x[:20])
    before, after = victim.predict(x), surrogate.predict(x)
    assert (before.argmax(1) == after.argmax(1)).all()
    np.testing.assert_allclose(after, before, atol=1e-4)
    info = surrogate.surrogate_info
    assert info["rescaled_layers"] == info["layers"]
    assert "rescaled_layers" not in plain.surrogate_info
    weights, others = (dict(s.model.named_parameters()) for s in (surrogate, plain))
    for layer in info["rescaled_layers"]:  # the same filters in the same order, inputs aside, of other sizes
        norms, old = (w[f"{layer}.weight"].detach().flatten(1).norm(dim=1) for w in (weights, others))
        ratio = (norms / old).log10()
        assert ratio.max() - ratio.min() > 1
    inputs = next(iter(weights))
    cosine = F.cosine_similarity(weights[inputs].flatten(1), others[inputs].flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_seeds_and_bounds(images: np.ndarray) -> None:
    victim = several_classes(images)
    weights = [
        FeaturePermutationAttack(victim, rescale=5.0, seed=s).generate(images).model.head.weight for s in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    for bad in (0.5, 0.0, 1e5, True, "2"):
        with pytest.raises(InvalidInputError, match="`rescale` must be"):
            FeaturePermutationAttack(victim, rescale=bad)  # type: ignore[arg-type]


def test_a_network_that_lets_no_factor_through_is_permuted_alone(images: np.ndarray) -> None:
    victim = token_classifier(images)
    with pytest.warns(UserWarning, match="no layer can be rescaled: .* computes .*gelu"):
        surrogate = FeaturePermutationAttack(victim, rescale=5.0).generate(images)
    assert surrogate.surrogate_info["rescaled_layers"] == []
    plain = FeaturePermutationAttack(victim).generate(images)
    for a, b in zip(surrogate.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_goes_on_from_rescaled_channels(images: np.ndarray) -> None:
    victim = several_classes(images)
    row: list[tuple[str, dict[str, Any]]] = [
        ("FeaturePermutationAttack", {"rescale": 3.0}),
        ("FineTuningAttack", {"ratio": 1.0, "max_iter": 3, "learning_rate": 1e-4}),
    ]
    surrogate = CompositeAttack(victim, row, batch_size=20).generate(images)
    assert len(surrogate.surrogate_info["steps"][0]["rescaled_layers"]) == 3
    assert (surrogate.predict(images).argmax(1) == victim.predict(images).argmax(1)).mean() > 0.9
