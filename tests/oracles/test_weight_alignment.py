"""Weight alignment against closed forms, brute force over all permutations, and a slow second version of the method."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from art_fingerprint.attacks import FeaturePermutationAttack
from art_fingerprint.core.channel_groups import ChannelGroup, ChannelGroups, GroupedWeight, find_groups
from art_fingerprint.core.group_sets import Segment
from art_fingerprint.verifiers import WeightAlignmentVerifier
from art_fingerprint.verifiers.weight_evidence import Agreement, agreement, mean_alignment, p_bound, p_threshold
from art_fingerprint.verifiers.weight_matching import best_order, match, matched_filters
from art_fingerprint.verifiers.weight_sketch import Layer, as_filters, balanced, projection
from tests.conftest import wrap
from tests.networks import FAMILIES, SIDE, Family, random_network
from tests.permuting import shuffled
from tests.victims import several_classes

X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- normal form
def test_balanced_filters_have_norm_one_and_even_inputs() -> None:
    filters = balanced(draws(2, 6, 5, 3))
    energy = filters.square().sum(3)
    torch.testing.assert_close(energy.sum(2), torch.ones(2, 6))
    torch.testing.assert_close(energy.sum(1), torch.full((2, 5), 6 / 5), atol=1e-5, rtol=1e-5)


def test_balanced_filters_of_two_by_two_by_hand() -> None:
    """[[1, 2], [3, 4]]: D_r W D_c has equal rows and columns of squares p, 1 - p with p / (1 - p) = sqrt(16 / 36)."""
    found = balanced(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1))[0, :, :, 0].square()
    p = (2 / 3) / (1 + 2 / 3)
    torch.testing.assert_close(found, torch.tensor([[p, 1 - p], [1 - p, p]]), atol=1e-6, rtol=0)


def test_balanced_filters_do_not_depend_on_scales() -> None:
    filters = draws(1, 8, 6, 9)
    scaled = filters * torch.exp(3 * draws(1, 8, 1, 1, seed=1)) * torch.exp(3 * draws(1, 1, 6, 1, seed=2))
    torch.testing.assert_close(balanced(scaled), balanced(filters), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(balanced(-filters), balanced(filters))


def test_zero_filters_and_inputs_stay_zero() -> None:
    filters = draws(1, 4, 5, 2)
    filters[0, 1] = 0
    filters[0, :, 3] = 0
    found = balanced(filters)
    assert torch.isfinite(found).all()
    assert not found[0, 1].any()
    assert not found[0, :, 3].any()
    torch.testing.assert_close(found.square().sum((2, 3))[0, [0, 2, 3]], torch.ones(3))
    assert not balanced(torch.zeros(1, 3, 3, 1)).any()


def test_filters_of_each_kind_of_layer() -> None:
    weight = torch.arange(24.0)
    segment = Segment(0, 2)
    plain = GroupedWeight("w", (2, 3, 2, 2), (segment,), (Segment(1, 3),))
    flat = GroupedWeight("w", (2, 12), (segment,), (Segment(1, 3, 4),))
    grouped = GroupedWeight("w", (4, 3, 2), (Segment(0, 4),), (Segment(1, 3),), 2)
    deep = GroupedWeight("w", (4, 1, 6), (Segment(0, 2, 2),), ())
    assert as_filters(weight.reshape(2, 3, 2, 2), plain).shape == (1, 2, 3, 4)
    assert torch.equal(as_filters(weight.reshape(2, 12), flat)[0, 0, 1], torch.arange(4.0, 8.0))
    assert torch.equal(as_filters(weight.reshape(4, 3, 2), grouped)[1, 0], torch.arange(12.0, 18.0).reshape(3, 2))
    assert torch.equal(as_filters(weight.reshape(4, 1, 6), deep)[0, 1, 0], torch.arange(12.0, 24.0))


@pytest.mark.parametrize(("size", "count"), [(33, 16), (64, 64), (500, 128)])
def test_projections_are_orthonormal(size: int, count: int) -> None:
    basis = projection(size, count, 3, "layer").double()
    torch.testing.assert_close(basis.T @ basis, torch.eye(count, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(projection(size, count, 3, "layer"), projection(size, count, 3, "layer"))
    for seed, name in ((4, "layer"), (3, "other")):
        assert not torch.equal(projection(size, count, seed, name), projection(size, count, 3, "layer"))


def test_projected_cosines_estimate_cosines() -> None:
    one = torch.nn.functional.normalize(draws(200, 1000), dim=1)
    other = torch.nn.functional.normalize(
        0.6 * one + 0.8 * torch.nn.functional.normalize(draws(200, 1000, seed=1), dim=1)
    )
    basis = projection(1000, 64, 0, "layer")
    left, right = (torch.nn.functional.normalize(rows @ basis, dim=1) for rows in (one, other))
    error = (left * right).sum(1) - (one * other).sum(1)
    assert abs(float(error.mean())) < 4 * 0.64 / math.sqrt(200 * 64)
    assert 0.5 < float(error.std()) / (0.64 / math.sqrt(64)) < 1.5  # (1 - c^2) / sqrt(m), as for random directions


# ---------------------------------------------------------------------- assignment
@pytest.mark.parametrize("seed", range(5))
def test_best_order_by_brute_force(seed: int) -> None:
    gains = np.random.default_rng(seed).normal(size=(6, 6))
    every = [np.array(order) for order in itertools.permutations(range(6))]

    def total(order: np.ndarray) -> float:
        return float(gains[np.arange(6), order].sum())

    assert total(best_order(gains)) == pytest.approx(max(map(total, every)))
    for blocks, given in ((2, None), (3, None), (3, np.array([1, 2, 0]))):
        width = 6 // blocks
        allowed = [
            order
            for order in every
            if all(len(set(order[b * width : (b + 1) * width] // width)) == 1 for b in range(blocks))
            and (given is None or np.array_equal(order[::width] // width, given))
        ]
        found = best_order(gains, blocks, given)
        assert any(np.array_equal(found, order) for order in allowed)
        assert total(found) == pytest.approx(max(map(total, allowed)))


def two_layers(seed: int, inside: int = 4, hidden: int = 5, outside: int = 3) -> tuple[Tensor, Tensor]:
    return balanced(draws(1, hidden, inside, 1, seed=seed)), balanced(draws(1, outside, hidden, 1, seed=seed + 50))


CHAIN = ChannelGroups((ChannelGroup(4, pinned=True), ChannelGroup(5, family=1), ChannelGroup(3, True, family=2)), ())
AXES = (
    GroupedWeight("a", (5, 4), (Segment(1, 5),), (Segment(0, 4),)),
    GroupedWeight("b", (3, 5), (Segment(2, 3),), (Segment(1, 5),)),
)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("related", [True, False])
def test_a_hidden_layer_by_brute_force(seed: int, related: bool) -> None:
    """With all others pinned, one group's order is the best of all 120."""
    ours = two_layers(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    theirs = (ours[0][:, order], ours[1][:, :, order]) if related else two_layers(seed + 100)
    layers = [
        Layer(axes, filters.flatten(2), torch.eye(filters.shape[2]), filters.shape[2])
        for axes, filters in zip(AXES, ours, strict=True)
    ]

    def objective(order: tuple[int, ...]) -> float:
        columns = list(order)
        first = 4 * float((ours[0][0, :, :, 0] * theirs[0][0, columns, :, 0]).sum())
        return first + 5 * float((ours[1][0, :, :, 0] * theirs[1][0, :, columns, 0]).sum())

    found = match(layers, theirs, CHAIN)
    best = max(itertools.permutations(range(5)), key=objective)
    assert found[1].tolist() == list(best)
    if related:
        assert found[1].tolist() == torch.argsort(order).tolist()
        assert matched_filters(layers[0], theirs[0], found, slice(None)).numpy() == pytest.approx(
            ours[0][0, :, :, 0].numpy(), abs=1e-6
        )


# ---------------------------------------------------------------------- evidence
def test_agreement_by_hand() -> None:
    found = agreement(torch.eye(2), torch.eye(2))
    assert (found.cosine, found.chance, found.variance) == pytest.approx((1, 0.5, 0.25))
    assert (found.alignment, found.alignment_variance) == pytest.approx((1, 1))
    swapped = agreement(torch.eye(2), torch.eye(2).flip(0))
    assert (swapped.cosine, swapped.alignment) == pytest.approx((0, -1))
    assert Agreement(1.0, 1.0, 0.0).alignment == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_the_variance_is_that_of_all_permutations(seed: int) -> None:
    ours, theirs = draws(5, 3, seed=seed), draws(5, 3, seed=seed + 9)
    theirs[2] = 0
    cosines = np.zeros((5, 5))
    for i, j in itertools.product(range(5), range(5)):
        sizes = float(ours[i].norm() * theirs[j].norm())
        cosines[i, j] = float(ours[i] @ theirs[j]) / sizes if sizes else 0.0
    means = [np.mean([cosines[i, s] for i, s in enumerate(order)]) for order in itertools.permutations(range(5))]
    found = agreement(ours, theirs)
    assert found.cosine == pytest.approx(np.trace(cosines) / 5, abs=1e-6)
    assert found.chance == pytest.approx(np.mean(means), abs=1e-6)
    assert found.variance == pytest.approx(np.var(means), abs=1e-6)


def test_p_values_by_hand() -> None:
    layers = [Agreement(0.6, 0.2, 0.01), Agreement(0.9, 0.0, 0.04)]
    alignment, variance = mean_alignment(layers)
    assert alignment == pytest.approx((0.5 + 0.9) / 2)
    assert variance == pytest.approx((0.01 / 0.64 + 0.04) / 4)
    assert p_bound(0.2, 0.0075, 0.05) == pytest.approx(math.exp(-2))
    assert p_bound(0.0, 0.01, 0.05) == p_bound(-0.3, 0.01, 0.05) == 1.0
    assert p_bound(1.0, 0.0, 1e-9) > 0  # never rounded to nothing
    threshold = p_threshold(0.0075, 0.05, 1e-6)
    assert p_bound(threshold, 0.0075, 0.05) == pytest.approx(1e-6)


@pytest.mark.parametrize("alignment", [0.05, 0.1, 0.15])
def test_p_is_above_the_rate_at_which_random_pairs_go_so_far(alignment: float) -> None:
    """The bound holds with the variance of random pairing alone, tolerance 0."""
    generator = torch.Generator().manual_seed(0)
    found = [
        agreement(torch.randn(24, 12, generator=generator), torch.randn(24, 12, generator=generator))
        for _ in range(2000)
    ]
    beyond = np.mean([layer.alignment >= alignment for layer in found])
    assert beyond <= np.mean([p_bound(alignment, layer.alignment_variance, 0.0) for layer in found])


# ---------------------------------------------------------------------- the whole method
class Chain(nn.Module):
    """Linear layers and ReLUs on flat pixels."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        for layer in self.layers[:-1]:
            z = torch.relu(layer(z))
        return self.layers[-1](z)


def chain(seed: int, noise: float = 0.0) -> Any:
    torch.manual_seed(7)
    network = Chain(64, 10, 40, 8, 4)
    if seed != 7:
        for index, parameter in enumerate(network.parameters()):
            drawn = draws(*parameter.shape, seed=100 * seed + index) * parameter.detach().std()
            parameter.data = parameter.data + noise * drawn if noise else drawn
    return wrap(network)


def slow_alignment(
    victim: nn.Module, suspect: nn.Module, matching: dict[str, Tensor], held: dict[str, Tensor]
) -> float:
    """Second version for :class:`Chain`: whole matrices and loops, three starts, sweeps over all hidden layers."""
    ours, theirs = (
        [
            slow_balance(layer.weight.detach().numpy().astype(np.float64), columns=index > 0)  # an image is one channel
            for index, layer in enumerate(network.layers)
        ]
        for network in (victim, suspect)
    )
    names = [f"layers.{i}.weight" for i in range(len(ours))]
    known = []  # the victim's filters as far as the matching part shows them
    for name, weight in zip(names, ours, strict=True):
        basis = matching[name].numpy().astype(np.float64)
        known.append(weight @ basis @ basis.T)
    plain = [np.arange(weight.shape[1]) for weight in ours] + [np.arange(ours[-1].shape[0])]

    def gain(orders: list[np.ndarray], hidden: int, sides: str) -> np.ndarray:
        size = len(orders[hidden])
        gains = np.zeros((size, size))
        for c in range(size):
            for d in range(size):
                writer, reader = hidden - 1, hidden
                if "w" in sides:
                    row = theirs[writer][d][orders[writer]]
                    gains[c, d] += known[writer].shape[1] * float(known[writer][c] @ row)
                if "r" in sides:
                    column = theirs[reader][orders[reader + 1], d]
                    gains[c, d] += known[reader].shape[1] * float(known[reader][:, c] @ column)
        return gains

    def objective(orders: list[np.ndarray]) -> float:
        return sum(
            weight.shape[1] * float((seen * weight[orders[index + 1]][:, orders[index]]).sum())
            for index, (seen, weight) in enumerate(zip(known, theirs, strict=True))
        )

    noise = math.sqrt(sum(len(weight) * matching[name].shape[1] for name, weight in zip(names, ours, strict=True)))
    orders, inner = plain, range(1, len(ours))
    if objective(plain) <= 6 * noise:
        forward, backward = list(plain), list(plain)
        for hidden in inner:  # the filters of the last hidden layer are read by those of known classes
            forward[hidden] = best_order(gain(forward, hidden, "wr" if hidden == len(ours) - 1 else "w"))
        for hidden in reversed(inner):
            backward[hidden] = best_order(gain(backward, hidden, "wr" if hidden == 1 else "r"))
        orders = max(forward, backward, key=objective)
    for _ in range(10):
        for hidden in inner:
            orders[hidden] = best_order(gain(orders, hidden, "wr"))
    basis = held["layers.2.weight"].numpy().astype(np.float64)
    left, right = ours[2] @ basis, theirs[2][orders[3]][:, orders[2]] @ basis
    cosines = np.array([[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in right] for u in left])
    return float((np.trace(cosines) / len(cosines) - cosines.mean()) / (1 - cosines.mean()))


def slow_balance(weight: np.ndarray, columns: bool) -> np.ndarray:
    for _ in range(2000):
        if columns:
            weight = weight / np.linalg.norm(weight, axis=0) * math.sqrt(weight.shape[0] / weight.shape[1])
        weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    return weight


@pytest.mark.parametrize(("seed", "noise"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 0.0), (5, 0.0)])
def test_scores_of_a_slow_second_version(seed: int, noise: float) -> None:
    victim, suspect = chain(7), chain(seed, noise)
    verifier = WeightAlignmentVerifier(victim, sketch_size=None, seed=3)
    fingerprint = verifier.extract(X)
    # 64, 10, 40 and 8 entries: the second layer is too narrow to be counted, and matched by all of its entries
    assert fingerprint.facts["counted"] == ["layers.2.weight"]
    matching, held = {}, {}
    for facts in fingerprint.facts["layers"]:
        basis = projection(facts["shape"][1], fingerprint.arrays[facts["name"]].shape[2], 3, facts["name"])
        matching[facts["name"]] = basis[:, : facts["matching"]]
        held[facts["name"]] = basis[:, facts["matching"] :]

    def slow(network: nn.Module) -> float:
        return slow_alignment(victim.model, network, matching, held)

    assert verifier.score(suspect)["WA"] == pytest.approx(slow(suspect.model), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sketch_size", [16, 128, None])
def test_reordered_and_rescaled_copies_score_one(family: Family, sketch_size: int | None) -> None:
    network = random_network(family, 0)
    x = np.random.default_rng(1).random((2, 3, SIDE, SIDE), dtype=np.float32)
    verifier = WeightAlignmentVerifier(
        wrap(network, (3, SIDE, SIDE), network.head.out_features), sketch_size=sketch_size
    )
    verifier.extract(x)
    groups = find_groups(network, torch.from_numpy(x))
    for seed in range(3):
        copy = shuffled(network, groups, seed, rescale=True)
        assert verifier.score(wrap(copy, (3, SIDE, SIDE), copy.head.out_features))["WA"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["resnet10t", "densenet121", "mobilenetv2_050", "deit_tiny_patch16_224"])
def test_real_architectures(name: str) -> None:
    """A reordered and rescaled copy scores 1 with p < 1e-6, another initialisation none."""
    options: dict[str, Any] = {"num_classes": 5, **({"img_size": 32} if "deit" in name else {})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, other = (timm.create_model(name, **options).eval() for _ in range(2))
    x = np.random.default_rng(1).random((1, 3, 32, 32), dtype=np.float32)
    verifier = WeightAlignmentVerifier(wrap(network, (3, 32, 32), 5), sketch_size=64)
    verifier.extract(x)
    copy = verifier.score(wrap(shuffled(network, find_groups(network, torch.from_numpy(x)), 1, True), (3, 32, 32), 5))
    assert copy["WA"] == pytest.approx(1, abs=1e-5)
    assert copy["WA_p"] < 1e-6
    apart = verifier.score(wrap(other, (3, 32, 32), 5))
    assert abs(apart["WA"]) < 0.02
    assert apart["WA_p"] > 0.01


def test_unrelated_networks_score_none_on_average() -> None:
    """The held-out halves have no selection: zero, not the best of many, and p > 0.01 throughout."""
    verifier = WeightAlignmentVerifier(chain(7))
    verifier.extract(X)
    found = [verifier.score(chain(seed)) for seed in range(20, 60)]
    scores = np.array([scores["WA"] for scores in found])
    assert abs(scores.mean()) < 4 * scores.std() / math.sqrt(len(scores))
    assert min(scores["WA_p"] for scores in found) > 0.01


def test_the_attack_that_permutes_channels_changes_nothing() -> None:
    victim = several_classes(X)
    verifier = WeightAlignmentVerifier(victim)
    verifier.extract(X)
    surrogate = FeaturePermutationAttack(victim, seed=1).generate(X)
    assert not torch.equal(surrogate.model.block2[0].weight, victim.model.block2[0].weight)
    assert verifier.score(surrogate)["WA"] == pytest.approx(1, abs=1e-6)
