"""ModelDiff against the specification's numbers, closed forms, and slow re-implementations of the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.modeldiff import ModelDiffVerifier
from art_fingerprint.verifiers.modeldiff_metrics import (
    ddm_distance,
    ddv_similarity,
    decision_distance_matrix,
    decision_distances,
    population_minmax,
)
from art_fingerprint.verifiers.modeldiff_probes import (
    OBJECTIVES,
    away_from_mean,
    make_class_weights,
    pgd_partners,
    search_probes,
)
from tests.conftest import wrap
from tests.oracles import slow_metrics as slow


# ---------------------------------------------------------------------- DDV and DDM
def test_specification_example() -> None:
    victim = decision_distances(torch.tensor([[3.0, 0], [0, 2]]), torch.tensor([[0.0, 5], [4, 3]]))
    suspect = decision_distances(torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[1.0, 1], [1, 0]]))
    assert victim.tolist() == pytest.approx([1.0, 0.4], abs=1e-12)
    assert suspect.tolist() == pytest.approx([0.292893, 0.292893], abs=1e-6)
    assert ddv_similarity(victim, suspect) == pytest.approx(0.919145, abs=1e-6)


def test_zero_rows() -> None:
    a = torch.tensor([[0.0, 0], [0, 0], [1, 2], [1, 2]])
    b = torch.tensor([[0.0, 0], [1, 2], [0, 0], [-1, -2]])
    assert decision_distances(a, b).tolist() == pytest.approx([0, 1, 1, 2])


@pytest.mark.parametrize("angle", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_small_angles_keep_their_digits(angle: float, scale: float) -> None:
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64) * scale
    b = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64) * scale
    assert float(decision_distances(a, b)) == pytest.approx(2 * math.sin(angle / 2) ** 2, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_similarity_against_loops_and_its_invariances(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    f, g = (torch.randn(12, classes, generator=draws, dtype=torch.float64) for classes in (4, 7))

    def similarity(f: Tensor, g: Tensor) -> float:
        return ddv_similarity(decision_distances(f[:6], f[6:]), decision_distances(g[:6], g[6:]))

    value = similarity(f, g)
    assert value == pytest.approx(slow.decision_similarity(f.numpy(), g.numpy()), abs=1e-12)
    assert similarity(g, f) == pytest.approx(value, abs=1e-12)
    assert similarity(f, f) == pytest.approx(1, abs=1e-12)
    assert similarity(f, g[:, torch.randperm(7, generator=draws)]) == pytest.approx(value, abs=1e-12)
    assert similarity(f, 3 * g) == pytest.approx(value, abs=1e-12)
    positive = torch.rand(12, 1, generator=draws, dtype=torch.float64) + 0.1
    assert similarity(f * positive, g) == pytest.approx(value, abs=1e-12)


def test_similarity_of_a_zero_vector_is_undefined() -> None:
    assert math.isnan(ddv_similarity(torch.zeros(3), torch.ones(3)))
    assert math.isnan(ddv_similarity(torch.ones(3), torch.full((3,), 1e-13)))


def test_distance_matrix_example() -> None:
    f = torch.tensor([[0.0, 0], [1, 0], [0, 0]])
    g = torch.tensor([[0.0, 0], [0, 0], [1, 0]])
    matrix = decision_distance_matrix(f)
    assert matrix.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    # the two matrices share one of their two unit distances: cosine 1/2
    assert ddm_distance(matrix, decision_distance_matrix(g)) == pytest.approx(0.25, abs=1e-12)
    assert ddm_distance(matrix, 3 * matrix) == pytest.approx(0, abs=1e-12)
    assert math.isnan(ddm_distance(matrix, torch.zeros(3, 3)))


def test_distance_matrix_has_an_exact_zero_diagonal() -> None:
    outputs = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    assert decision_distance_matrix(outputs).diagonal().eq(0).all()


def test_population_minmax() -> None:
    assert population_minmax([1.0, 3.0, 2.0]).tolist() == [0, 1, 0.5]
    assert population_minmax([1.0, 3.0, 2.0], invert=True).tolist() == [1, 0, 0.5]
    scaled = population_minmax(np.array([[1.0, math.nan], [5.0, 2.0]]))
    np.testing.assert_array_equal(scaled, [[0, math.nan], [1, 0.25]])
    undefined: list[list[float]] = [[], [2.0, 2.0], [math.nan, 1.0]]
    for values in undefined:
        with pytest.raises(InvalidInputError, match="two different finite"):
            population_minmax(values)


# ---------------------------------------------------------------------- pgd
def test_class_weights() -> None:
    assert make_class_weights(5, "first-class").tolist() == pytest.approx([1, 0.025, 0.025, 0.025, 0.025])
    assert make_class_weights(4, "uniform").tolist() == [0.25] * 4


def test_objective_by_hand() -> None:
    # y = 1000 (mean - o) = (-1000, 2000); 1 * (3 + 1000)^2 + 0.5 * (1 - 2000)^2
    value = away_from_mean(
        torch.tensor([[3.0, 1]], dtype=torch.float64),
        torch.tensor([[2.0, 0]], dtype=torch.float64),
        torch.tensor([1.0, 2], dtype=torch.float64),
        torch.tensor([1.0, 0.5], dtype=torch.float64),
    )
    assert value.tolist() == [1003**2 + 0.5 * 1999**2]


def test_linear_model_moves_along_the_first_class() -> None:
    # f(x) = W x. To first order D ascends sum_c w_c (o_c - mean_c) f_c, so x' = x + radius * sign(W^T w (o - mean)).
    draws = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 6, generator=draws, dtype=torch.float64)
    seeds = torch.rand(8, 6, generator=draws, dtype=torch.float64)
    outputs = seeds @ matrix.T
    weights = make_class_weights(3, "first-class").double()
    partners = pgd_partners(
        lambda x: x @ matrix.T,
        seeds,
        outputs,
        starts=seeds,
        objective="away-from-mean",
        weights=weights,
        radius=torch.tensor(0.05),
        step=torch.tensor(0.01),
        max_iter=20,
        low=torch.tensor(-math.inf),
        high=torch.tensor(math.inf),
        batch_size=3,
    )
    expected = seeds + 0.05 * ((weights * (outputs - outputs.mean(0))) @ matrix).sign()
    torch.testing.assert_close(partners, expected, atol=1e-8, rtol=0)


class SmallNet(nn.Module):
    """Smooth network with fixed random weights for flat or image inputs."""

    def __init__(self, seed: int, inputs: int, nb_classes: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(inputs, 9)
        self.second = nn.Linear(9, nb_classes)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draws) * 0.6

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x.flatten(1))))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["first-class", "uniform"])
def test_extraction_and_score_against_a_slow_float64_run(objective: str, kind: str) -> None:
    victim = wrap(SmallNet(0, 7, 3), (7,), 3)
    x = np.random.default_rng(1).random((12, 7), dtype=np.float32)
    verifier = ModelDiffVerifier(
        victim,
        nb_pairs=12,
        objective=objective,
        class_weights=kind,
        radius=0.2,
        step=0.03,
        max_iter=15,
        batch_size=5,
    )
    fingerprint = verifier.extract(x)
    order = torch.randperm(12, generator=torch_generator(0, "modeldiff", "seeds"))
    noise = torch.rand(12, 7, generator=torch_generator(0, "modeldiff", "start"))
    seeds = torch.from_numpy(x)[order].double()
    weights = [1, 0.05, 0.05] if kind == "first-class" else [1 / 3] * 3
    network, stranger = SmallNet(0, 7, 3).double(), SmallNet(1, 7, 5).double()
    with torch.no_grad():
        outputs = network(seeds)
    starts = seeds + (2 * noise.double() - 1) * 0.2

    def objective_of(output: Tensor) -> slow.Network:
        if objective == "away-from-mean":
            return slow.away_from_mean(network, output.numpy(), outputs.mean(0).numpy(), weights)
        if objective == "cosine":
            return lambda point: 1 - F.cosine_similarity(network(point)[0], output, dim=0)
        return lambda point: F.cross_entropy(network(point), output.argmax()[None])

    rows = zip(outputs, seeds.numpy(), starts.numpy(), strict=True)
    partners = torch.from_numpy(
        np.stack([slow.ascent(objective_of(o), *one, 0.2, 0.03, 15, x.min(), x.max()) for o, *one in rows])
    )
    np.testing.assert_allclose(fingerprint.arrays["seeds"], seeds.numpy(), atol=0)
    np.testing.assert_allclose(fingerprint.arrays["partners"], partners.numpy(), atol=1e-5)
    with torch.no_grad():
        f, g = (h(torch.cat([seeds, partners])).numpy() for h in (network, stranger))
    scores = verifier.score(wrap(SmallNet(1, 7, 5), (7,), 5))
    assert scores["DDV"] == pytest.approx(slow.decision_similarity(f, g), abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*outside the classifier's clip_values:UserWarning")
def test_standardised_units_are_those_of_a_network_without_preprocessing() -> None:
    mean, std = np.array([0.2, 0.5, 0.7], dtype=np.float32), np.array([0.1, 0.25, 0.5], dtype=np.float32)
    x = np.random.default_rng(0).random((10, 3, 2, 2), dtype=np.float32)
    column = (3, 1, 1)
    standardised = (x - mean.reshape(column)) / std.reshape(column)
    arguments: dict[str, Any] = {"nb_pairs": 10, "radius": 0.3, "step": 0.05, "max_iter": 10}
    raw = ModelDiffVerifier(
        wrap(SmallNet(0, 12, 3), (3, 2, 2), 3, preprocessing=(mean, std), clip_values=None), **arguments
    ).extract(x)
    plain = ModelDiffVerifier(wrap(SmallNet(0, 12, 3), (3, 2, 2), 3, clip_values=None), **arguments).extract(
        standardised
    )
    back = (raw.arrays["partners"] - mean.reshape(column)) / std.reshape(column)
    np.testing.assert_allclose(back, plain.arrays["partners"], atol=1e-5)


# ---------------------------------------------------------------------- search
Model = Callable[[Tensor], Tensor]


def _slow_search(
    x: Tensor, models: list[Model], step: Tensor, rows: list[int], positions: list[int], departure: str
) -> tuple[Tensor, list[bool]]:
    """The plain loop of section 3.1: every candidate recomputes all outputs and all distances of all models."""
    start = [model(x).numpy() for model in models]

    def score(points: Tensor) -> float:
        product = 1.0
        for model, first in zip(models, start, strict=True):
            now = model(points).numpy()
            if departure == "seeds":
                single = torch.from_numpy(first).float()
                dep = float(torch.cdist(single, single).diagonal().mean())
            else:
                dep = float(np.mean([np.linalg.norm(a - b) for a, b in zip(now, first, strict=True)]))
            product *= dep * float(np.mean([[np.linalg.norm(a - b) for b in now] for a in now]))
        return product

    points, best, accepted = x.clone(), 0.0, []
    for row, position in zip(rows, positions, strict=True):
        trials = []
        for sign in (1.0, -1.0):
            trial = points.clone()
            trial[row].view(-1)[position] += sign * float(step.reshape(-1)[position])
            trials.append((score(trial), trial))
        value, trial = max(trials, key=lambda pair: pair[0])
        accepted.append(value > best)
        if value > best:
            best, points = value, trial
    return points, accepted


@pytest.mark.parametrize("nb_models", [1, 2])
@pytest.mark.parametrize(("departure", "nb_inputs"), [("mutated", 6), ("mutated", 11), ("seeds", 6), ("seeds", 30)])
def test_incremental_search_follows_the_plain_loop(nb_models: int, departure: str, nb_inputs: int) -> None:
    draws = torch.Generator().manual_seed(nb_inputs)
    x = torch.rand(nb_inputs, 1, 2, 3, generator=draws, dtype=torch.float64)
    networks = [SmallNet(seed, 6, 3 + seed).double() for seed in range(nb_models)]
    asked = [0] * nb_models

    def ask(index: int) -> Model:
        def answer(points: Tensor) -> Tensor:
            asked[index] += len(points)
            with torch.no_grad():
                return networks[index](points)

        return answer

    nb_iterations = 40
    rows = torch.randint(nb_inputs, (nb_iterations,), generator=draws)
    positions = torch.randint(6, (nb_iterations,), generator=draws)
    step = torch.linspace(1, 4, 6, dtype=torch.float64).view(1, 2, 3)
    models = [ask(index) for index in range(nb_models)]
    before = x.clone()
    points, accepted = search_probes(
        x, models, step=step, rows=rows, positions=positions, constant_departure=departure == "seeds"
    )
    assert asked == [nb_inputs + 2 * nb_iterations] * nb_models
    assert torch.equal(x, before)
    expected, flags = _slow_search(x, models, step, rows.tolist(), positions.tolist(), departure)
    assert accepted.tolist() == flags
    torch.testing.assert_close(points, expected, atol=1e-12, rtol=0)
    if departure == "mutated":
        assert 0 < sum(flags) < nb_iterations


def test_departure_at_the_seeds_accepts_nothing_for_few_inputs() -> None:
    x = torch.rand(25, 6, generator=torch.Generator().manual_seed(0))
    network = SmallNet(0, 6, 4).double()
    points, accepted = search_probes(
        x.double(),
        [lambda points: network(points).detach()],
        step=torch.full((6,), 0.2),
        rows=torch.arange(25),
        positions=torch.arange(25) % 6,
        constant_departure=True,
    )
    assert not accepted.any()
    assert torch.equal(points, x.double())


def test_search_ignores_candidates_with_undefined_outputs() -> None:
    def model(points: Tensor) -> Tensor:
        outputs = points.clone()
        outputs[points[:, 0] > 1.05] = math.nan
        return outputs

    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    points, accepted = search_probes(
        x, [model], step=torch.tensor([0.1, 0.1]), rows=torch.tensor([0]), positions=torch.tensor([0])
    )
    assert accepted.tolist() == [True]
    assert points[0].tolist() == pytest.approx([0.9, 0.0])


def test_search_respects_bounds() -> None:
    x = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = torch.Generator().manual_seed(1)
    points, accepted = search_probes(
        x,
        [lambda points: points],
        step=torch.full((4,), 0.5),
        rows=torch.randint(5, (60,), generator=draws),
        positions=torch.randint(4, (60,), generator=draws),
        low=0.0,
        high=1.0,
    )
    assert accepted.any()
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
