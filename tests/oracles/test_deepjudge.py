"""DeepJudge's formulas by hand and against loops, its generators against one pair at a time in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.deepjudge_generation import (
    NeuronTests,
    adversarial_examples,
    certainty,
    first_per_neuron,
    live_neurons,
    most_certain,
    neuron_tests,
)
from art_fingerprint.verifiers.deepjudge_metrics import (
    binarise,
    jensen_shannon,
    layer_activation_distance,
    layer_output_distance,
    neuron_activation_distance,
    neuron_output_distance,
    normalised_neuron_output_distance,
    pool_activations,
    robustness,
)
from tests.oracles import slow_metrics as slow

CPU = torch.device("cpu")
A = torch.tensor([[1.0, 2.0, 3.0], [0.0, 4.0, 0.0]])
B = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
NU = torch.tensor([2, 1])


# ---------------------------------------------------------------------- numbers by hand
def test_certainty_and_order() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(certainty(p), torch.tensor([0.54, 0.34, 0.5], dtype=torch.float64), rtol=1e-6, atol=0)
    labels = torch.zeros(3, dtype=torch.int64)
    assert most_certain(p, labels, labels, 9).tolist() == [0, 2, 1]
    assert most_certain(p, labels, torch.tensor([0, 1, 0]), 9).tolist() == [0, 2]  # wrong answers are no seeds
    assert most_certain(torch.ones(5, 1), torch.zeros(5), torch.zeros(5), 3).tolist() == [0, 1, 2]  # ties by index


def test_robustness() -> None:
    y, f, g = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 1, 0, 2]), torch.tensor([0, 1, 2, 2])
    assert robustness(f, y) == 0.25
    assert robustness(g, y) == 0.75
    fooled = f != y
    assert robustness(f[fooled], y[fooled]) == 0
    assert robustness(g[fooled], y[fooled]) == pytest.approx(2 / 3)
    assert robustness(g[fooled], f[fooled]) == pytest.approx(1 / 3)


def test_jensen_shannon() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0.0], [0.9, 0.1]], dtype=torch.float64)
    assert jensen_shannon(p[:1], q[:1]) == pytest.approx(0.215762, abs=1e-6)
    assert jensen_shannon(p, q) == pytest.approx(0.107881, abs=1e-6)
    assert jensen_shannon(q, p) == pytest.approx(jensen_shannon(p, q), abs=1e-15)
    assert jensen_shannon(torch.eye(2), torch.eye(2).flip(1)) == pytest.approx(math.log(2))
    assert jensen_shannon(3 * p, q) == pytest.approx(jensen_shannon(p, q))  # rows are normalised
    assert jensen_shannon(q, q) == 0


def test_pooling() -> None:
    z = torch.tensor([[[[1.0, 3.0]], [[5.0, 7.0]]]])
    assert pool_activations(z).tolist() == [[2, 6]]
    assert pool_activations(z, "last-axis").tolist() == [[3, 5]]
    assert pool_activations(torch.tensor([[[1.0, 3.0], [5.0, 7.0]]])).tolist() == [[3, 5]]  # tokens
    assert pool_activations(A).tolist() == A.tolist()
    with pytest.raises(InvalidInputError, match="pooled"):
        pool_activations(torch.ones(3))


def test_white_box_metrics() -> None:
    assert binarise(A).int().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert binarise(B).int().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert layer_output_distance(A, B) == 4
    assert layer_output_distance(A, B, 1) == 5
    assert layer_activation_distance(A, B) == 2
    assert neuron_output_distance(A, B, NU) == 3.5
    assert neuron_activation_distance(A, B, NU) == 1
    assert normalised_neuron_output_distance(A, B, NU) == 1  # (3/3 + 4/4) / 2


def test_constant_rows_and_single_neurons_binarise_to_zero() -> None:
    assert not binarise(torch.full((2, 5), 3.0)).any()
    assert not binarise(torch.tensor([[7.0], [-1.0]])).any()


# ---------------------------------------------------------------------- loops
def test_white_box_metrics_against_loops() -> None:
    draws = np.random.default_rng(0)
    a, b = draws.normal(size=(2, 30, 7))
    nu = draws.integers(7, size=30)
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    index = torch.from_numpy(nu)
    assert layer_output_distance(*tensors) == pytest.approx(slow.layer_output_distance(a, b), rel=1e-12)
    assert layer_activation_distance(*tensors) == pytest.approx(slow.layer_activation_distance(a, b), rel=1e-12)
    assert neuron_output_distance(*tensors, index) == pytest.approx(slow.neuron_output_distance(a, b, nu), rel=1e-12)
    expected = slow.neuron_activation_distance(a, b, nu)
    assert neuron_activation_distance(*tensors, index) == pytest.approx(expected, rel=1e-12)


def test_jensen_shannon_against_a_loop() -> None:
    draws = np.random.default_rng(1)
    p, q = draws.dirichlet(np.full(5, 0.3), size=(2, 20))
    p[0] = [1, 0, 0, 0, 0]
    p[1], q[1] = [1, 5e-324, 0, 0, 0], [1, 0, 5e-324, 0, 0]  # half of which is 0
    expected = slow.jensen_shannon(p, q)
    assert jensen_shannon(torch.from_numpy(p), torch.from_numpy(q)) == pytest.approx(expected, rel=1e-12)


def test_affine_layers_keep_the_activation_metrics_and_change_the_output_metrics() -> None:
    draws = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 40, 9, generator=draws)
    nu = torch.randint(9, (40,), generator=draws)
    other = 2 * b + 1
    assert layer_activation_distance(a, other) == layer_activation_distance(a, b)
    assert neuron_activation_distance(a, other, nu) == neuron_activation_distance(a, b, nu)
    assert layer_output_distance(a, other) != layer_output_distance(a, b)
    assert neuron_output_distance(a, other, nu) != neuron_output_distance(a, b, nu)
    for metric in (layer_output_distance, layer_activation_distance):
        assert metric(a, b) == metric(b, a)
    for of_neurons in (neuron_output_distance, neuron_activation_distance):
        assert of_neurons(a, b, nu) == of_neurons(b, a, nu)


# ---------------------------------------------------------------------- generators
def test_fgsm_on_a_linear_model_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]])
    seeds = torch.tensor([[0.5, 0.5, 0.5], [0.05, 0.98, 0.5]])
    found = adversarial_examples(
        lambda x: x @ weight.T,
        seeds,
        torch.tensor([0, 1]),
        radius=torch.tensor(0.1),
        step=torch.tensor(0.1),
        max_iter=1,
        noise=None,
        low=torch.tensor(0.0),
        high=torch.tensor(1.0),
        project=True,
        batch_size=1,
        device=CPU,
    )
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.6, 0.5], [0.15, 0.88, 0.5]]))


@pytest.fixture(scope="module")
def layer() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return (
            nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5), nn.Softplus()).double().requires_grad_(False)
        )


@pytest.fixture(scope="module")
def seeds() -> Tensor:
    return torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


NEURONS = torch.tensor([0, 2, 3, 4])


def run(layer: nn.Module, seeds: Tensor, multiplier: float = 1.4, **options: object) -> NeuronTests:
    arguments: dict[str, object] = {
        "learning_rate": torch.tensor(0.02, dtype=torch.float64),
        "max_iter": 60,
        "max_tests_per_neuron": None,
        "low": None,
        "high": None,
        "keep_best": False,
        "stored_iterate": "tested",
        "batch_size": 5,
        "device": CPU,
        **options,
    }
    targets = multiplier * layer(seeds).amax(0)[NEURONS]
    return neuron_tests(layer, seeds, NEURONS, targets, **arguments)  # type: ignore[arg-type]


def one_pair(layer: nn.Module, seed: Tensor, neuron: int, target: float) -> tuple[Tensor, bool]:
    """The published procedure: update, then test, at most 60 times."""
    x = seed.clone().requires_grad_(True)
    adam = torch.optim.Adam([x], lr=0.02)
    for _ in range(60):
        adam.zero_grad()
        (-layer(x[None])[0, neuron]).backward()
        adam.step()
        if layer(x[None])[0, neuron].item() > target:
            return x.detach(), True
    return x.detach(), False


def test_neuron_tests_against_one_pair_at_a_time(layer: nn.Module, seeds: Tensor) -> None:
    targets = 1.4 * layer(seeds).amax(0)
    expected = []
    for neuron in NEURONS.tolist():
        for index, seed in enumerate(seeds):
            x, success = one_pair(layer, seed, neuron, float(targets[neuron]))
            if success:
                expected.append((neuron, index, x))
    found = run(layer, seeds)
    assert 4 <= len(expected) < 24
    assert found.neuron.tolist() == [neuron for neuron, _, _ in expected]
    assert found.seed.tolist() == [index for _, index, _ in expected]
    torch.testing.assert_close(found.x, torch.stack([x for _, _, x in expected]), rtol=1e-7, atol=1e-8)
    assert found.nb_tasks == 24
    values = layer(found.x).gather(1, found.neuron[:, None])[:, 0]
    assert bool((values > targets[found.neuron]).all())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_bounded_number_of_tests_is_the_first_so_many(layer: nn.Module, seeds: Tensor, count: int) -> None:
    everything = run(layer, seeds)
    some = run(layer, seeds, max_tests_per_neuron=count, batch_size=100)
    kept = first_per_neuron(everything.neuron, count)
    assert some.neuron.tolist() == everything.neuron[kept].tolist()
    assert some.seed.tolist() == everything.seed[kept].tolist()
    torch.testing.assert_close(some.x, everything.x[kept], rtol=1e-9, atol=1e-9)
    assert some.nb_tasks <= everything.nb_tasks


def test_at_least_one_update_happens(layer: nn.Module, seeds: Tensor) -> None:
    found = run(layer, seeds, multiplier=0.1)  # every seed is beyond its target already
    assert len(found.x) == 24
    assert found.nb_updates == 24
    assert bool((found.x != seeds[found.seed]).any(1).all())


def test_removalnets_variants(layer: nn.Module, seeds: Tensor) -> None:
    targets = 1.4 * layer(seeds).amax(0)
    tested, after = run(layer, seeds), run(layer, seeds, stored_iterate="next")
    # One more update behind the test: only pairs that passed at the very last iterate are lost.
    pairs = set(zip(tested.neuron.tolist(), tested.seed.tolist(), strict=True))
    assert set(zip(after.neuron.tolist(), after.seed.tolist(), strict=True)) <= pairs
    first = (after.neuron == after.neuron[0]) & (after.seed == after.seed[0])
    twin = (tested.neuron == after.neuron[0]) & (tested.seed == after.seed[0])
    assert float((after.x[first] - tested.x[twin]).abs().max()) == pytest.approx(0.02, rel=0.5)
    full = run(layer, seeds, multiplier=50.0, keep_best=True)
    assert full.neuron.tolist() == NEURONS.tolist()  # no success anywhere: one attempt of each neuron
    assert full.seed.tolist() == [0, 0, 0, 0]
    assert len(run(layer, seeds, multiplier=50.0).x) == 0
    assert bool((targets > 0).all())


def test_clipping_holds(layer: nn.Module, seeds: Tensor) -> None:
    found = run(layer, seeds, multiplier=1.01, low=0.0, high=1.0)
    assert len(found.x) > 0
    assert float(found.x.min()) >= 0
    assert float(found.x.max()) <= 1


def test_dead_neurons() -> None:
    assert live_neurons(torch.tensor([1.0, 0.0, -2.0, 1e-7, 1e-5])).tolist() == [True, False, False, False, True]
    assert not live_neurons(torch.tensor([-1.0, -3.0])).any()
    assert not live_neurons(torch.zeros(3)).any()


def test_first_per_neuron() -> None:
    assert first_per_neuron(torch.tensor([0, 0, 0, 4, 7, 7]), 2).tolist() == [0, 1, 3, 4, 5]
