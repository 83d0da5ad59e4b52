"""The batched engine against torch's own Adam run one row at a time, in float64, and against hand-computed steps."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.optimise import Objective, Optimised, optimise

N = 23


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double().requires_grad_(False)


@pytest.fixture(scope="module")
def start() -> Tensor:
    return torch.rand(N, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def make_objective(network: nn.Module, level: float = -0.6) -> Objective:
    """Minimise one output per row, chosen by the row number; stop below a level that some rows never reach."""

    def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        values = network(x).gather(1, (rows % 4)[:, None])[:, 0]
        return values, values < level

    return objective


def one_by_one(
    network: nn.Module, start: Tensor, lr: float, max_iter: int, level: float = -0.6, at_least_one: bool = False
) -> Optimised:
    points, converged, updates = [], [], []
    for row, x0 in enumerate(start):
        x = x0.clone().requires_grad_(True)
        adam = torch.optim.Adam([x], lr=lr)
        stopped = False
        for t in range(max_iter + 1):
            value = network(x[None])[0, row % 4]
            stopped = bool(value < level) and not (at_least_one and t == 0)
            if stopped or t == max_iter:
                break
            adam.zero_grad()
            value.backward()
            adam.step()
        points.append(x.detach())
        converged.append(stopped)
        updates.append(t)
    return Optimised(torch.stack(points), torch.tensor(converged), torch.tensor(updates))


def same(found: Optimised, expected: Optimised) -> None:
    assert found.converged.tolist() == expected.converged.tolist()
    assert found.updates.tolist() == expected.updates.tolist()
    torch.testing.assert_close(found.x, expected.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, N, 100])
def test_every_row_runs_as_if_alone_under_torchs_adam(network: nn.Module, start: Tensor, batch_size: int) -> None:
    expected = one_by_one(network, start, 0.05, 60)
    assert 3 < int(expected.converged.sum()) < N - 3
    assert len(set(expected.updates.tolist())) > 5
    found = optimise(make_objective(network), start, learning_rate=0.05, max_iter=60, batch_size=batch_size)
    same(found, expected)


def test_at_least_one_update(network: nn.Module, start: Tensor) -> None:
    objective = make_objective(network, 0.5)
    assert 0 in optimise(objective, start, learning_rate=0.05, max_iter=30).updates.tolist()
    found = optimise(objective, start, learning_rate=0.05, max_iter=30, at_least_one_update=True, batch_size=7)
    same(found, one_by_one(network, start, 0.05, 30, 0.5, at_least_one=True))
    assert int(found.updates.min()) == 1


def test_no_updates_tests_the_start_only(network: nn.Module, start: Tensor) -> None:
    found = optimise(make_objective(network, 0.1), start, learning_rate=0.05, max_iter=0)
    assert torch.equal(found.x, start)
    outputs = network(start).gather(1, (torch.arange(N) % 4)[:, None])[:, 0]
    assert torch.equal(found.converged, outputs < 0.1)
    assert found.updates.tolist() == [0] * N


def test_first_steps_by_hand() -> None:
    gradient = torch.tensor([0.2, -3.0, 0.0])  # specification 8.9

    def objective(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        return (x * gradient).sum(1), torch.zeros(len(x), dtype=torch.bool)

    kinds: tuple[Literal["adam", "sign"], ...] = ("adam", "sign")
    for optimizer in kinds:
        found = optimise(objective, torch.zeros(1, 3), learning_rate=0.01, max_iter=1, optimizer=optimizer)
        torch.testing.assert_close(found.x, torch.tensor([[-0.01, 0.01, 0.0]]), rtol=1e-6, atol=0)
    found = optimise(objective, torch.zeros(1, 3), learning_rate=0.01, max_iter=5, optimizer="sign", low=-0.03)
    torch.testing.assert_close(found.x, torch.tensor([[-0.03, 0.05, 0.0]]), rtol=1e-6, atol=0)


def test_bounds_and_rates_per_channel_hold_at_every_iterate() -> None:
    seen = []

    def objective(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x.detach().clone())
        return -x.flatten(1).sum(1), torch.zeros(len(x), dtype=torch.bool)

    rate = torch.tensor([0.1, 0.2]).view(2, 1, 1)
    found = optimise(objective, torch.full((3, 2, 2, 2), 0.5), learning_rate=rate, max_iter=4, low=0.0, high=1.0)
    torch.testing.assert_close(found.x[:, 0], torch.full((3, 2, 2), 0.9))
    torch.testing.assert_close(found.x[:, 1], torch.full((3, 2, 2), 1.0))
    assert all(bool((x <= 1).all()) for x in seen)


def test_rows_may_share_a_start(network: nn.Module, start: Tensor) -> None:
    index = torch.arange(N) % 5
    found = optimise(make_objective(network), start, index=index, learning_rate=0.05, max_iter=40, batch_size=4)
    same(found, optimise(make_objective(network), start[index], learning_rate=0.05, max_iter=40))


def test_finished_rows_are_not_evaluated_for_long_and_waiting_rows_take_their_place() -> None:
    evaluated = torch.zeros(40, dtype=torch.int64)

    def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        evaluated[rows] += 1
        return x[:, 0], x[:, 0] <= -0.995 * (rows % 3 + 1)  # rows need 1, 2 or 3 steps of length 1

    found = optimise(objective, torch.zeros(40, 1), learning_rate=1.0, max_iter=9, optimizer="sign", batch_size=8)
    assert found.updates.tolist() == [row % 3 + 1 for row in range(40)]
    assert bool(found.converged.all())
    assert torch.equal(evaluated, found.updates + 1)


def test_a_row_that_turns_nan_keeps_its_last_finite_iterate_and_is_not_converged() -> None:
    def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        hole = torch.where((rows == 1) & (x[:, 0] < -2.5), torch.nan, 0.0)
        return x[:, 0] + hole, x[:, 0] < -4.5

    found = optimise(objective, torch.zeros(3, 1), learning_rate=1.0, max_iter=20, optimizer="sign")
    assert found.x[:, 0].round(decimals=4).tolist() == [-5.0, -2.0, -5.0]
    assert found.converged.tolist() == [True, False, True]


def test_a_row_with_an_infinite_gradient_stays_where_it_is() -> None:
    def objective(x: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 0].sqrt(), torch.zeros(len(x), dtype=torch.bool)

    found = optimise(objective, torch.tensor([[0.0], [4.0]]), learning_rate=0.1, max_iter=3, optimizer="sign")
    torch.testing.assert_close(found.x, torch.tensor([[0.0], [3.7]]))
    assert found.updates.tolist() == [0, 3]


def test_best_keeps_the_lowest_objective_of_a_row_that_never_stops() -> None:
    def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return (x[:, 0] - 0.15).abs(), (rows == 0) & (x[:, 0] > 0.05)

    start, options = torch.zeros(2, 1), {"learning_rate": 0.1, "max_iter": 4}
    last = optimise(objective, start, optimizer="sign", **options)  # type: ignore[arg-type]
    best = optimise(objective, start + torch.tensor([[0.0], [-0.04]]), optimizer="sign", keep="best", **options)  # type: ignore[arg-type]
    assert last.x[0].item() == best.x[0].item() == pytest.approx(0.1)
    assert last.converged.tolist() == best.converged.tolist() == [True, False]
    assert best.x[1].item() == pytest.approx(0.16)  # the path is -0.04, 0.06, 0.16, 0.06, 0.16


def test_next_stores_the_iterate_after_the_one_that_was_tested() -> None:
    def objective(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 0], x[:, 0] < -0.5 - rows

    start = torch.zeros(3, 1)
    tested = optimise(objective, start, learning_rate=1.0, max_iter=3, optimizer="sign")
    assert tested.x[:, 0].round().tolist() == [-1, -2, -3]
    assert tested.converged.tolist() == [True, True, True]
    after = optimise(objective, start, learning_rate=1.0, max_iter=3, optimizer="sign", store="next")
    assert after.x[:, 0].round().tolist() == [-2, -3, -3]
    assert after.converged.tolist() == [True, True, False]
    assert after.updates.tolist() == [2, 3, 3]


def test_progress_counts_every_row_once(network: nn.Module, start: Tensor) -> None:
    counts: list[int] = []
    optimise(make_objective(network), start, learning_rate=0.05, max_iter=9, batch_size=5, progress=counts.append)
    assert sum(counts) == N


def test_no_rows_give_an_empty_result(network: nn.Module, start: Tensor) -> None:
    found = optimise(make_objective(network), start[:0], learning_rate=0.1, max_iter=3)
    assert found.x.shape == (0, 6)


def test_inputs_and_network_are_left_alone(network: nn.Module, start: Tensor) -> None:
    before = start.clone()
    with torch.no_grad():
        found = optimise(make_objective(network), start, learning_rate=0.05, max_iter=3)
    found.x.zero_()
    assert torch.equal(start, before)
    assert not found.x.requires_grad


def test_wrong_arguments_are_named(network: nn.Module, start: Tensor) -> None:
    objective = make_objective(network)
    for options in ({"max_iter": -1}, {"batch_size": 0}, {"optimizer": "sgd"}, {"keep": "all"}, {"store": "x"}):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            optimise(objective, start, **{"learning_rate": 0.1, "max_iter": 1, **options})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="stop flags"):
        optimise(lambda x, rows: (x, x > 0), start, learning_rate=0.1, max_iter=1)
