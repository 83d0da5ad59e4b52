"""Signed-gradient ascent against closed forms of linear objectives and a slow float64 loop on a small network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.core.perturbation import linf_ascent
from art_fingerprint.exceptions import InvalidInputError

X = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
W = torch.tensor([1.0, -2.0])


def linear(x: Tensor) -> Tensor:
    return (x * W).sum(1)


def test_one_step_on_a_linear_objective_is_fgsm() -> None:
    found = linf_ascent(linear, X, radius=0.2, step=0.2, max_iter=1, low=0.0, high=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.3], [0.3, 0.7]]))


def test_projection_holds_the_ball_and_its_absence_lets_iterates_drift_to_the_domain() -> None:
    held = linf_ascent(linear, X, radius=0.2, step=0.15, max_iter=9, low=0.0, high=1.0)
    torch.testing.assert_close(held, torch.tensor([[0.7, 0.3], [0.3, 0.7]]))
    free = linf_ascent(linear, X, radius=0.2, step=0.15, max_iter=9, low=0.0, high=1.0, project=False)
    torch.testing.assert_close(free, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))


def test_radius_step_and_bounds_may_differ_per_channel() -> None:
    x = torch.full((2, 2, 3, 3), 0.5)
    per_channel = torch.tensor([0.1, 0.3]).view(2, 1, 1)
    found = linf_ascent(
        lambda z: z.flatten(1).sum(1),
        x,
        radius=per_channel,
        step=per_channel,
        max_iter=3,
        low=torch.zeros(2, 1, 1),
        high=torch.tensor([1.0, 0.7]).view(2, 1, 1),
    )
    torch.testing.assert_close(found[:, 0], torch.full((2, 3, 3), 0.6))
    torch.testing.assert_close(found[:, 1], torch.full((2, 3, 3), 0.7))


def test_a_coordinate_without_gradient_does_not_move() -> None:
    found = linf_ascent(lambda z: z[:, 0], X, radius=0.2, step=0.1, max_iter=1, low=0.0, high=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.5], [0.2, 0.9]]))


def test_agrees_with_one_row_at_a_time_in_float64() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.rand(6, 5, dtype=torch.float64)
    start = x + 0.05 * (2 * torch.rand(6, 5, dtype=torch.float64) - 1)
    found = linf_ascent(
        lambda z: network(z)[:, 0], x, radius=0.1, step=0.03, max_iter=7, low=0.0, high=1.0, start=start
    )
    for row, centre, first in zip(found, x, start, strict=True):
        point = first.clamp(0, 1)
        for _ in range(7):
            leaf = point.clone().requires_grad_(True)
            network(leaf[None])[0, 0].backward()
            assert leaf.grad is not None
            point = point + 0.03 * leaf.grad.sign()
            point = torch.min(torch.max(point, centre - 0.1), centre + 0.1).clamp(0, 1)
        torch.testing.assert_close(row, point)


def test_gradients_are_taken_for_the_input_only() -> None:
    network = nn.Linear(2, 1)
    with torch.no_grad():  # callers run under no_grad; the ascent must still see gradients
        linf_ascent(lambda z: network(z)[:, 0], X, radius=0.1, step=0.1, max_iter=2, low=0.0, high=1.0)
    assert all(p.grad is None for p in network.parameters())


def test_a_row_that_becomes_nan_returns_to_its_last_finite_iterate_and_others_go_on() -> None:
    def objective(z: Tensor) -> Tensor:
        return torch.sqrt(0.75 - z[:, 0]) * 0 + z[:, 0]  # NaN beyond 0.75

    found = linf_ascent(objective, X[:, :1], radius=1.0, step=0.1, max_iter=5, low=0.0, high=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.7], [0.6]]))


def test_no_step_returns_the_feasible_start_and_inputs_are_not_modified() -> None:
    x = X.clone()
    found = linf_ascent(linear, x, radius=0.1, step=0.1, max_iter=0, low=0.0, high=1.0, start=x + 0.5)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.6], [0.2, 1.0]]))
    found.zero_()
    assert torch.equal(x, X)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(InvalidInputError, match="one value per row"):
        linf_ascent(lambda z: z, X, radius=0.1, step=0.1, max_iter=1, low=0.0, high=1.0)
    with pytest.raises(InvalidInputError, match="start"):
        linf_ascent(linear, X, radius=0.1, step=0.1, max_iter=1, low=0.0, high=1.0, start=X[:1])
    with pytest.raises(InvalidInputError, match="max_iter"):
        linf_ascent(linear, X, radius=0.1, step=0.1, max_iter=-1, low=0.0, high=1.0)
