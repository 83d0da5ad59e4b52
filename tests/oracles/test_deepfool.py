"""Batched DeepFool: closed form on linear networks, and torchattacks' own loop on random ones."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from art_fingerprint.core.deepfool import deepfool, shortest_move
from art_fingerprint.exceptions import InvalidInputError
from tests.conftest import TinyCNN


def linear(weight: list[list[float]], bias: list[float]) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(weight[0]), len(weight)))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor(weight))
        network[1].bias.copy_(torch.tensor(bias))
    return network


def tiny(seed: int, nb_classes: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    network = TinyCNN(nb_classes=nb_classes).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
    return network.requires_grad_(False)


def decided(network: nn.Module, x: Tensor) -> Tensor:
    """Return which samples lie off the boundary by more than rounding."""
    top = network(x).topk(2).values
    return (top[:, 0] - top[:, 1]) > 1e-4


@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.5])
def test_a_linear_network_takes_one_step_onto_the_nearest_hyperplane(overshoot: float) -> None:
    # f = (x, y, 0): from (0.6, 0.5) the boundary x = y is 0.1/sqrt(2) away, x = 0 is 0.6
    network = linear([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [0.0, 0.0, 0.0])
    x = torch.tensor([[0.6, 0.5]])
    moved = deepfool(network, x, torch.tensor([0]), max_iter=1, overshoot=overshoot)
    expected = x + (1 + overshoot) * torch.tensor([[-0.05, 0.05]])
    assert torch.allclose(moved, expected, atol=1e-6)


def test_shortest_move_by_hand() -> None:
    gaps = torch.tensor([[2.0, 3.0], [1.0, 1.0], [1.0, 5.0]])
    normals = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]])
    # distances 2 and 1; none; only the second class
    assert shortest_move(gaps, normals).tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("reach", [2.0, float("inf")])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_equals_torchattacks(seed: int, steps: int, reach: float) -> None:
    network = tiny(seed)
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    y = network(x).argmax(1)
    y[::7] = (y[::7] + 1) % 6  # misclassified at first
    expected = torchattacks.DeepFool(network, steps=steps)(x, y)
    found = deepfool(network, x, y, max_iter=steps, reach=reach)
    assert torch.equal(found[::7], x[::7])
    assert (found - expected).abs().max() < 1e-5
    sure = decided(network, expected)
    assert torch.equal(network(found).argmax(1)[sure], network(expected).argmax(1)[sure])
    norms = [(z - x).flatten(1).norm(dim=1).median() for z in (found, expected)]
    assert torch.isclose(*norms, rtol=1e-3)


def test_it_fools_the_network_and_does_not_depend_on_the_batch() -> None:
    # Random linear networks, with room on both sides: the step is exact, and 2 % beyond it lies another class.
    draws = torch.Generator().manual_seed(9)
    network = linear(torch.randn(5, 12, generator=draws).tolist(), [0.0] * 5)
    x = 0.45 + 0.1 * torch.rand(30, 12, generator=draws)
    y = network(x).argmax(1)
    found = deepfool(network, x, y, low=-9.0, high=9.0)
    assert (network(found).argmax(1) != y).all()
    single = torch.cat([deepfool(network, x[i : i + 1], y[i : i + 1], low=-9.0, high=9.0) for i in range(30)])
    assert (single - found).abs().max() < 1e-6


def test_candidates_bound_the_passes() -> None:
    network = tiny(3)
    x = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = network(x).argmax(1)
    all_of_them = deepfool(network, x, y, max_iter=1, reach=float("inf"))
    assert torch.equal(deepfool(network, x, y, max_iter=1, nb_candidates=5), all_of_them)
    second = network(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    fewer = deepfool(network, x, y, max_iter=1, nb_candidates=1)
    for i in range(10):
        point = x[i : i + 1].clone().requires_grad_(True)
        logits = network(point)[0]
        (w,) = torch.autograd.grad(logits[second[i]] - logits[y[i]], point)
        gap = (logits[y[i]] - logits[second[i]]).detach()
        assert torch.allclose(fewer[i], (x[i] + 1.02 * gap * w[0] / w.norm() ** 2).clamp(0, 1), atol=1e-6)


def test_hopeless_samples_stay_where_they_are() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = torch.stack([x.flatten(1).sum(1) * 0 + 1, x.flatten(1).sum(1) * 0], 1)
            return torch.where((x.flatten(1)[:, :1] > 0.9), torch.nan, scores)  # no gradient, or no answer

    x = torch.tensor([[[[0.2]]], [[[0.95]]]])
    assert torch.equal(deepfool(Odd(), x, torch.tensor([0, 0])), x)


def test_the_argument_is_not_changed_and_bounds_hold() -> None:
    network = tiny(1)
    x = torch.rand(10, 1, 8, 8).round()  # all on the bounds
    kept = x.clone()
    found = deepfool(network, x, network(x).argmax(1), low=0.0, high=1.0)
    assert torch.equal(x, kept)
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(
    "wrong", [{"max_iter": 0}, {"overshoot": -0.1}, {"nb_candidates": 0}, {"reach": 0.5}, {"reach": float("nan")}]
)
def test_bad_numbers(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        deepfool(tiny(0), torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), **wrong)  # type: ignore[arg-type]


def test_a_network_without_class_scores_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="two or more classes"):
        deepfool(nn.Flatten(0), torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
