"""IPGuard against hand-computed numbers, linear models solved on paper, and a slow float64 loop over single points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.ipguard import IPGuardVerifier, aruc, boundary_loss, choose_targets, matching_rate
from tests.conftest import wrap


def loss_of(logits: list[float], margin: float) -> float:
    return boundary_loss(torch.tensor([logits]), torch.tensor([0]), torch.tensor([1]), margin).item()


def test_loss_by_hand() -> None:
    assert loss_of([2.0, 0.5, 1.0], 1.0) == pytest.approx(2.5)
    assert loss_of([1.0, 2.5, 1.4], 1.0) == pytest.approx(0.4)
    assert loss_of([1.0, 2.5, 0.4], 1.0) == 0
    assert loss_of([1.0, 0.0], 0.5) == pytest.approx(1.5)


def test_loss_against_a_loop_and_its_gradient_against_finite_differences() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 6, dtype=torch.float64, generator=draws) * 3
    source = torch.randint(6, (50,), generator=draws)
    target = (source + 1 + torch.randint(5, (50,), generator=draws)) % 6
    found = boundary_loss(logits, source, target, 1.5)
    for row, i, j, value in zip(logits.tolist(), source.tolist(), target.tolist(), found.tolist(), strict=True):
        runner_up = max(z for t, z in enumerate(row) if t not in (i, j))
        assert value == pytest.approx(max(0, row[i] - row[j] + 1.5) + max(0, runner_up - row[i]), abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: boundary_loss(z, source, target, 1.5), logits.requires_grad_(True))


def test_loss_depends_on_differences_of_logits_only() -> None:
    logits = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    source, target = choose_targets(logits, "least-likely", torch.Generator())
    torch.testing.assert_close(
        boundary_loss(logits.log_softmax(1), source, target, 2.0), boundary_loss(logits, source, target, 2.0)
    )


def test_matching_rate_and_aruc_by_hand() -> None:
    assert matching_rate(torch.tensor([1, 4, 2, 0]), torch.tensor([1, 3, 2, 2])) == 0.5
    assert aruc([0.9, 0.8], [0.1, 0.4]) == pytest.approx(0.6)
    assert aruc([1.0, 1.0], [0.0]) == 1
    assert aruc([0.2], [0.9]) == 0
    for bad in ([], [1.2], [math.nan]):
        with pytest.raises(InvalidInputError, match="negatives"):
            aruc([0.5], bad)


def test_aruc_against_a_fine_grid() -> None:
    draws = np.random.default_rng(0)
    pos, neg = draws.random(7), draws.random(9)
    taus = (np.arange(200_000) + 0.5) / 200_000
    robust = (pos[:, None] >= taus).mean(0)
    unique = (neg[:, None] < taus).mean(0)
    assert aruc(pos, neg) == pytest.approx(np.minimum(robust, unique).mean(), abs=1e-4)


def test_targets() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, -1.0], [1.0, 1.0, 1.0]])
    source, target = choose_targets(logits, "least-likely", torch.Generator())
    assert source.tolist() == [0, 1, 0]
    assert target.tolist() == [1, 2, 1]  # constant outputs: any other class
    source, target = choose_targets(logits.repeat(400, 1), "random", torch.Generator().manual_seed(0))
    assert bool((source != target).all())
    shares = torch.bincount(target[source == 1], minlength=3) / 400
    assert shares[1] == 0
    assert shares[0] == pytest.approx(0.5, abs=0.1)


class Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def test_number_of_sign_steps_on_a_linear_model_of_two_classes() -> None:
    # Every step lowers z_i - z_j by lr * |w_i - w_j|_1, so T is the first integer that brings the loss to 0.
    draws = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(2, 16, generator=draws), torch.zeros(2)
    victim = wrap(Linear(weight, bias), (1, 4, 4), 2)
    x = torch.rand(20, 1, 4, 4, generator=draws)
    verifier = IPGuardVerifier(
        victim, margin=0.37, learning_rate=0.01, optimizer="sign", clip=False, initial_points="first"
    )
    fingerprint = verifier.extract(x.numpy())
    difference = (weight[0] - weight[1]).double()
    gaps = (x.flatten(1).double() @ difference).abs() + 0.37
    steps = torch.ceil(gaps / (0.01 * difference.abs().sum()))
    assert fingerprint.facts["nb_updates"] == int(steps.sum())
    sign = torch.where(x.flatten(1).double() @ difference > 0, 1.0, -1.0)[:, None]
    expected = x.flatten(1) - 0.01 * steps[:, None] * sign * difference.sign()
    torch.testing.assert_close(fingerprint.tensors("probes")[0].flatten(1).double(), expected, rtol=0, atol=1e-5)


def small_network() -> nn.Module:
    """A random network that uses all its classes, as a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first, last = nn.Linear(16, 24), nn.Linear(24, 5)
    with torch.no_grad():
        first.weight.mul_(4)
        first.bias.copy_(-first.weight.sum(1) / 2)
        last.weight.mul_(3)
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), last)


def test_against_one_point_at_a_time_in_float64() -> None:
    network = small_network()
    x = torch.rand(15, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    verifier = IPGuardVerifier(
        wrap(network, (1, 4, 4), 5), margin=0.3, learning_rate=0.01, max_iter=25, initial_points="first", batch_size=4
    )
    fingerprint = verifier.extract(x.numpy())
    arrays = fingerprint.arrays
    reference = small_network().double()
    labels, converged, probes = [], [], []
    for x0 in x.double():
        logits = reference(x0[None])[0]
        i, j = int(logits.argmax()), int(logits.argmin())
        point = x0.clone().requires_grad_(True)
        adam = torch.optim.Adam([point], lr=0.01)
        loss = torch.tensor(math.inf)
        for t in range(26):
            logits = reference(point[None])[0]
            others = torch.stack([logits[c] for c in range(5) if c not in (i, j)])
            loss = torch.relu(logits[i] - logits[j] + 0.3) + torch.relu(others.max() - logits[i])
            if loss.item() <= 0 or t == 25:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                point.clamp_(0, 1)
        labels.append(int(logits.argmax()))
        converged.append(loss.item() <= 0)
        probes.append(point.detach())
    assert 3 <= sum(converged) <= 14
    assert arrays["converged"].tolist() == converged
    assert arrays["labels"].tolist() == labels
    torch.testing.assert_close(fingerprint.tensors("probes")[0].double(), torch.stack(probes), rtol=0, atol=1e-4)


def test_converged_points_lie_across_the_boundary_with_the_source_as_runner_up() -> None:
    network = small_network()
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    verifier = IPGuardVerifier(wrap(network, (1, 4, 4), 5), margin=0.2, learning_rate=0.01, target="random", clip=False)
    fingerprint = verifier.extract(x.numpy())
    arrays = fingerprint.arrays
    kept = arrays["converged"]
    assert kept.sum() > 20
    logits = network(fingerprint.tensors("probes")[0]).detach().numpy()[kept]
    rows, i, j = np.arange(kept.sum()), arrays["source"][kept], arrays["target"][kept]
    assert (logits[rows, j] >= logits[rows, i] + 0.2 - 1e-5).all()
    others = logits.copy()
    others[rows, i] = others[rows, j] = -np.inf
    assert (logits[rows, i] >= others.max(1) - 1e-5).all()
    assert (arrays["labels"][kept] == j).all()
