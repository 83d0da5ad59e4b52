"""Dataset Inference against numbers worked by hand, walks on a line, and descents on linear models."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import EmptyFingerprintError, IncompatibleSuspectError, InvalidInputError
from art_fingerprint.verifiers import DatasetInferenceVerifier
from art_fingerprint.verifiers.dataset_inference import matched_pairs, mean_difference, repeated_p_value
from art_fingerprint.verifiers.dataset_inference_features import (
    blind_walk,
    confidence,
    descend,
    descent_features,
    directions,
    norm_of,
    scales,
    standardise,
    step_of,
    train_regressor,
    walk_features,
)
from art_fingerprint.verifiers.p_values import harmonic_mean, welch_p_value
from tests.conftest import wrap
from tests.states import black_box


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_statistics_by_hand() -> None:
    train, unseen = np.array([-0.9, -0.7, -0.8, -1.0]), np.array([0.2, 0.4, 0.1, 0.3])
    assert mean_difference(train, unseen) == pytest.approx(1.1)
    assert welch_p_value(unseen, train) == pytest.approx(9.9126e-6, rel=1e-4)
    assert welch_p_value(np.array([0.1, 0.5, 0.3, -0.1]), np.array([0.0, 0.2, -0.2, 0.4])) == pytest.approx(
        0.301823, abs=1e-6
    )
    assert harmonic_mean([0.01, 0.1, 0.5]) == pytest.approx(0.0267857, abs=1e-7)
    # samples as large as the whole are the whole
    assert repeated_p_value(train, unseen, np.random.default_rng(0), m=4) == pytest.approx(welch_p_value(unseen, train))
    spread = repeated_p_value(np.arange(20.0), np.arange(20.0) + 3, np.random.default_rng(0))
    draws = np.random.default_rng(0)
    single = [
        welch_p_value(
            draws.choice(np.arange(20.0) + 3, 10, replace=False), draws.choice(np.arange(20.0), 10, replace=False)
        )
        for _ in range(100)
    ]
    assert spread == pytest.approx(100 / sum(1 / p for p in single))


# ---------------------------------------------------------------------- walks
def sign_labels(x: Tensor) -> Tensor:
    return (x.flatten(1)[:, 0] < 0).long()


def test_a_walk_on_a_line() -> None:
    stops, ended = blind_walk(
        sign_labels, torch.tensor([[0.35]]), torch.tensor([0]), torch.tensor([[-0.1]]), low=-1.0, high=1.0
    )
    assert (stops.tolist(), ended.tolist()) == ([4], [True])
    assert norm_of(torch.tensor([[0.35 - 4 * 0.1 - 0.35]]), "L2").item() == pytest.approx(0.4)


def test_walks_are_those_of_asking_one_by_one() -> None:
    x, noise = torch.rand(200, 3, generator=generator()), 0.1 * torch.randn(200, 3, generator=generator(1))
    labels = torch.randint(2, (200,), generator=generator(2))
    asked: list[int] = []

    def labels_of(points: Tensor) -> Tensor:
        asked.append(len(points))
        return (points.sum(1) > 1.5).long()

    stops, ended = blind_walk(labels_of, x, labels, noise, max_steps=20)
    expected = []
    for start, step, label in zip(x, noise, labels.tolist(), strict=True):
        walk = [int((start + k * step).clamp(0, 1).sum() > 1.5) for k in range(1, 21)]
        expected.append(next((k + 1 for k, found in enumerate(walk) if found != label), None))
    assert stops.tolist() == [20 if k is None else k for k in expected]
    assert ended.tolist() == [k is not None for k in expected]
    assert {1, None} < set(expected)
    assert asked == [
        200 * 8,
        sum(k is None or k > 8 for k in expected) * 8,
        sum(k is None or k > 16 for k in expected) * 4,
    ]


def test_noise_has_the_stated_laws() -> None:
    uniform, normal, laplace = directions((50, 50), 40, generator())
    assert 0.00499 < float(uniform.abs().max()) <= 0.005
    assert float(uniform.std()) == pytest.approx(0.005 / math.sqrt(3), rel=0.02)
    assert float(normal.std()) == pytest.approx(0.005, rel=0.02)
    assert float(laplace.abs().mean()) == pytest.approx(0.01, rel=0.02)
    assert float(laplace.std()) == pytest.approx(0.01 * math.sqrt(2), rel=0.02)
    assert float(laplace.median()) == pytest.approx(0, abs=2e-4)


def test_features_of_one_image_stand_in_one_row() -> None:
    x = torch.rand(3, 1, 2, 2, generator=generator())
    labels = torch.zeros(3, dtype=torch.long)
    found, unended = walk_features(
        lambda points: (points.mean((1, 2, 3)) > 0.52).long(),
        x,
        labels,
        seed=7,
        nb_draws=2,
        noise=2.0,
        max_steps=30,
        low=-1.0,
        high=3.0,
    )
    expected, never = torch.zeros(3, 6), 0
    for i in range(3):
        for kind, rays in enumerate(directions((1, 2, 2), 2, torch_generator(7, "rays", i)) * 8):
            for draw, ray in enumerate(rays):
                k = next((k for k in range(1, 31) if (x[i] + k * ray).clamp(-1, 3).mean() > 0.52), None)
                never += k is None
                moved = (x[i] + (30 if k is None else k) * ray).clamp(-1, 3) - x[i]
                length = (moved.abs().max(), moved.square().sum().sqrt(), moved.abs().sum())[kind]
                expected[i, 2 * kind + draw] = length
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-6)
    assert unended == pytest.approx(never / 18)
    assert 0 < never < 18


# ---------------------------------------------------------------------- descents
def test_steps_of_descent() -> None:
    gradient = torch.tensor([[3.0, -4.0, 0.0]])
    assert step_of(gradient, "Linf").tolist() == [[1, -1, 0]]
    assert step_of(gradient, "L2").tolist() == [[pytest.approx(0.6), pytest.approx(-0.8), 0]]
    wide = torch.arange(1.0, 201.0)[None] * torch.tensor([1.0, -1.0]).repeat(100)
    found = step_of(wide, "L1")[0]
    assert found[:100].abs().sum() == 0
    assert torch.equal(found[100:], wide[0, 100:].sign())


def test_descent_on_a_linear_model_ends_at_the_boundary() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    x = torch.tensor([[0.9, 0.5], [0.3, 0.8]])
    targets = torch.tensor([1, 1])
    # z_0 - z_1 = 0.4 falls by 2 * 0.001, sqrt(2) * 0.01 and 2 * 0.01 a step; the second image is there already
    for norm, per_step, length in (("Linf", 0.002, 0.001), ("L2", math.sqrt(2) * 0.01, 0.01), ("L1", 0.02, 0.02)):
        ways, reached = descend(
            lambda points: points @ weight.T, x, targets, norm, max_iter=500, low=0, high=1, batch_size=1
        )
        steps = ways[0].item() / length
        assert steps == pytest.approx(0.4 / per_step, abs=1.1)
        assert ways[1].item() == 0
        assert reached.tolist() == [True, True]
    ways, reached = descend(
        lambda p: p @ weight.T, x, torch.tensor([2, 2]), "L2", max_iter=20, low=0, high=1, batch_size=8
    )
    assert reached.tolist() == [False, False]
    assert ways.tolist() == [pytest.approx(0.2, abs=1e-5)] * 2
    rows, missed = descent_features(
        lambda points: points @ weight.T, x, x @ weight.T, nb_targets=2, max_iter=500, low=0, high=1, batch_size=3
    )
    assert rows.shape == (2, 6)
    assert rows[:, ::2].abs().sum() == 0  # the predicted class
    assert rows[0, 1].item() == pytest.approx(0.2, abs=0.0011)
    assert missed == 0


# ---------------------------------------------------------------------- the test
def test_standardising_uses_one_scale_for_each_norm() -> None:
    features = torch.tensor([[1.0, 3.0, 5.0, 5.0, 0.0, 2.0], [1.0, 3.0, 5.0, 5.0, 0.0, 2.0]], dtype=torch.float64)
    means, deviations = scales(features)
    assert means.tolist() == [2, 5, 1]
    assert deviations.tolist() == pytest.approx([math.sqrt(4 / 3), 0, math.sqrt(4 / 3)])
    found = standardise(features, means, deviations)
    assert found[0].tolist() == pytest.approx(
        [-math.sqrt(0.75), math.sqrt(0.75), 0, 0, -math.sqrt(0.75), math.sqrt(0.75)]
    )


def test_regressor_against_torch() -> None:
    features = torch.randn(40, 6, generator=generator(), dtype=torch.float64)
    unseen = torch.arange(40) % 2 == 0
    features[unseen] -= 1
    found = train_regressor(features, unseen, nb_epochs=30, generator=generator(5))
    start = train_regressor(features, unseen, nb_epochs=0, generator=generator(5))
    network = nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 1), nn.Tanh()).double()
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), start, strict=True):
            parameter.copy_(value.view_as(parameter))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        g = network(features)[:, 0]
        (-((2 * unseen.double() - 1) * g).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(confidence(features, found), network(features)[:, 0].detach(), rtol=0, atol=1e-10)
    assert max(weight.abs().max().item() for weight in start[:2]) <= 1 / math.sqrt(6)
    g = confidence(features, found)
    assert g[unseen].mean() > 0.5 > -0.5 > g[~unseen].mean()


def test_pairs_have_one_class_and_no_row_comes_twice() -> None:
    draws = np.random.default_rng(0)
    y_train, y_unseen = draws.permutation(np.arange(60) % 4), draws.permutation(np.arange(30) % 5 + 1)
    pairs = matched_pairs(y_train, y_unseen, 12, draws)
    assert pairs.shape == (12, 2)
    assert (y_train[pairs[:, 0]] == y_unseen[pairs[:, 1]]).all()
    assert all(len(set(side)) == 12 for side in pairs.T.tolist())
    assert set(Counter(y_train[pairs[:, 0]].tolist()).values()) == {4}  # classes 1, 2 and 3 take turns
    everything = matched_pairs(y_train, y_unseen, 1000, draws)
    assert Counter(y_train[everything[:, 0]].tolist()) == {1: 6, 2: 6, 3: 6}
    assert matched_pairs(np.zeros(5, int), np.ones(5, int), 3, draws).shape == (0, 2)


class Nearest(nn.Module):
    """Answers by the nearest of some images it has learned by heart: margins are large on those, and only on those."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        super().__init__()
        self.known = nn.Parameter(torch.from_numpy(x).flatten(1))
        self.register_buffer("classes", torch.from_numpy(y))

    def forward(self, x: Tensor) -> Tensor:
        closeness = -20 * torch.cdist(x.flatten(1), self.known).square()
        return torch.stack([closeness[:, self.classes == c].amax(1) for c in range(4)], 1)


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).random((60, 1, 4, 4), dtype=np.float32), np.arange(60) % 4


@pytest.mark.parametrize("mode", ["blind-walk", "mingd"])
def test_the_victims_data_are_found_and_a_model_of_other_data_is_not_accused(mode: str) -> None:
    (x, y), (x_unseen, y_unseen) = images(0), images(1)
    victim, other, both = (
        wrap(Nearest(*data), (1, 4, 4))
        for data in ((x, y), images(2), (np.concatenate([x, x_unseen]), np.concatenate([y, y_unseen])))
    )
    cheap: dict[str, Any] = {"nb_fit": 20, "nb_test": 20, "nb_draws": 3, "noise": 10.0, "max_iter": 40, "nb_targets": 3}
    verifier = DatasetInferenceVerifier(victim, mode=mode, **cheap)
    fingerprint = verifier.extract(x, y, x_unseen, y_unseen)
    assert fingerprint.facts["own_p"] < 1e-4
    found = verifier.score(victim)
    assert found["DI"] == fingerprint.facts["own_DI"]
    assert found["DI-p"] == fingerprint.facts["own_p"]
    assert found["DI"] > 0.8
    assert verifier.score(other)["DI-p"] > 0.01
    assert abs(verifier.score(both)["DI"]) < 0.5  # it knows the unseen images too
    verdict = verifier.verify(victim)
    assert 0 < verdict.queries <= fingerprint.facts["nb_queries"]
    if mode == "mingd":
        with pytest.raises(IncompatibleSuspectError, match="query-only"):
            verifier.verify(black_box(victim))


def test_bad_data() -> None:
    (x, y), (x_unseen, y_unseen) = images(0), images(1)
    verifier = DatasetInferenceVerifier(wrap(Nearest(x, y), (1, 4, 4)), nb_fit=4, nb_test=4, nb_draws=1, max_steps=2)
    for arguments in ((x,), (x, y), (x, None, x_unseen, y_unseen), (x, y, x_unseen)):
        with pytest.raises(InvalidInputError, match="x_unseen, y_unseen"):
            verifier.extract(*arguments)
    with pytest.raises(InvalidInputError, match="holds images of `x`"), pytest.warns(UserWarning, match="only 4 pairs"):
        verifier.extract(x, y, x, y)
    with pytest.raises(InvalidInputError, match="`y_unseen` must have one label"):
        verifier.extract(x, y, x_unseen, y_unseen[:3])
    with pytest.raises(EmptyFingerprintError, match="0 pairs of one class"):
        verifier.extract(x, np.zeros(60, int), x_unseen, np.ones(60, int))
    with pytest.raises(EmptyFingerprintError, match="3 pairs"):
        verifier.extract(x[:3], y[:3], x_unseen, y_unseen)


def test_a_victim_that_is_not_found_out_itself_is_reported() -> None:
    (x, y), (x_unseen, y_unseen) = images(0), images(1)
    stranger = wrap(Nearest(*images(5)), (1, 4, 4))
    verifier = DatasetInferenceVerifier(stranger, nb_fit=20, nb_test=20, nb_draws=2, noise=10.0, seed=1)
    with pytest.warns(UserWarning, match="hardly tell its training images"):
        verifier.extract(x, y, x_unseen, y_unseen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DatasetInferenceVerifier(wrap(Nearest(x, y), (1, 4, 4)), nb_fit=20, nb_test=20, nb_draws=2, noise=10.0).extract(
            x, y, x_unseen, y_unseen
        )
