"""Extraction against slow float64 versions, one probe at a time, on random small VGGs, ResNets and ViTs.

Only what follows a rule without chance, or with the chance taken out. Long runs of float32 and float64 drift apart, so
counts, flags and labels are compared first, and pixels with a tolerance. The generators alone, on smaller networks and
with all their options, are tested beside each verifier's other oracles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.verifiers import DeepJudgeVerifier, IPGuardVerifier, ModelDiffVerifier, ZestVerifier
from tests.networks import FAMILIES, LAYERS, MEAN, STD, Both, Family, both, pictures, random_network, victim_of
from tests.oracles import slow_metrics as slow
from tests.oracles.test_segmentation import slow_quickshift

THIN = 1e-5  # a float64 margin below this is not trusted to survive float32
every_family = pytest.mark.parametrize("family", FAMILIES)


# ---------------------------------------------------------------------- IPGuard
@pytest.mark.filterwarnings("ignore:Only .* points crossed the decision boundary:UserWarning")
@every_family
@pytest.mark.parametrize(
    ("seed", "options", "slow_options"),
    [
        (0, {"learning_rate": 0.01}, {"rate": 0.01, "low": 0.0, "high": 1.0}),
        (
            1,
            {"learning_rate": 0.05, "units": "standardised", "optimizer": "sign", "clip": False, "tol": 1e-3},
            {"rate": 0.05 * np.array(STD).reshape(3, 1, 1), "sign": True, "tol": 1e-3},
        ),
    ],
    ids=["adam", "legacy"],
)
def test_ipguard_points(family: Family, seed: int, options: dict[str, Any], slow_options: dict[str, Any]) -> None:
    victim, x = victim_of(family, seed), pictures(12, 5)
    verifier = IPGuardVerifier(
        victim.classifier, nb_probes=12, margin=0.1, max_iter=20, initial_points="first", batch_size=5, **options
    )
    fingerprint = verifier.extract(x)
    arrays = fingerprint.arrays
    found = [slow.boundary_point(victim.logits, image, margin=0.1, max_iter=20, **slow_options) for image in x]
    assert arrays["converged"].tolist() == [point.converged for point in found]
    assert 3 <= sum(arrays["converged"]) <= 12
    assert fingerprint.facts["nb_updates"] == sum(point.updates for point in found)
    assert arrays["source"].tolist() == [point.source for point in found]
    assert arrays["target"].tolist() == [point.target for point in found]
    assert arrays["labels"].tolist() == [slow.label(victim.model(point.image)) for point in found]
    gaps = np.abs(arrays["probes"] - np.stack([point.image for point in found]))
    assert np.quantile(gaps, 0.99) < 1e-5
    assert gaps.max() < 1e-3


# ---------------------------------------------------------------------- DeepJudge
def ranked(victim: Both, x: np.ndarray, y: list[int], count: int, on: str = "probabilities") -> list[int]:
    rows = slow.answers(victim.model, x)
    return slow.certain_order(rows if on == "logits" else slow.probabilities(rows), y, count)


@every_family
@pytest.mark.parametrize("on", ["probabilities", "logits"])
def test_deepjudge_seeds_are_the_most_certain_right_answers(family: Family, on: str) -> None:
    victim, x = victim_of(family, 1), pictures(60, 6)
    y = victim.mostly_right(x)
    still: dict[str, Any] = {"method": "fgsm", "radius": 1e-6, "keep": "all", "metric_names": ["RobD"]}
    arrays = DeepJudgeVerifier(victim.classifier, nb_seeds=25, gini_on=on, **still).extract(x, np.array(y)).arrays
    order = ranked(victim, x, y, 25, on)
    np.testing.assert_allclose(arrays["examples"], x[order], atol=2e-6)
    assert arrays["examples_true"].tolist() == [y[i] for i in order]
    if on == "logits":
        assert order != ranked(victim, x, y, 25)


def test_deepjudge_seeds_of_equal_certainty_come_in_the_order_of_the_data() -> None:
    network = random_network("resnet", 3)
    network.head.weight.data *= 500  # type: ignore[union-attr, operator]
    network.head.bias.data *= 500  # type: ignore[union-attr, operator]
    victim, x = both(network), pictures(60, 6)
    y = victim.mostly_right(x)
    order = ranked(victim, x, y, 40)
    certainties = [slow.certainty(row) for row in slow.probabilities(slow.answers(victim.model, x[order]))]
    assert certainties.count(1.0) > 20
    verifier = DeepJudgeVerifier(
        victim.classifier, nb_seeds=40, method="fgsm", radius=1e-6, keep="all", metric_names=["RobD"]
    )
    arrays = verifier.extract(x, np.array(y)).arrays
    np.testing.assert_allclose(arrays["examples"], x[order], atol=2e-6)


@every_family
def test_deepjudge_examples(family: Family) -> None:
    victim, x = victim_of(family, 0), pictures(60, 7)
    y = victim.mostly_right(x)
    verifier = DeepJudgeVerifier(
        victim.classifier, nb_seeds=30, radius=0.006, step=0.0019, max_iter_attack=5, random_start=False, batch_size=7,
        metric_names=["RobD"],
    )  # fmt: skip
    arrays = verifier.extract(x, np.array(y)).arrays
    expected, truth = [], []
    for index in ranked(victim, x, y, 30):
        label = torch.tensor([y[index]])
        example = slow.ascent(
            lambda image, label=label: F.cross_entropy(victim.logits(image), label),  # type: ignore[misc]
            x[index], x[index], radius=0.006, step=0.0019, max_iter=5, low=0, high=1,
        )  # fmt: skip
        if slow.label(victim.model(example)) != y[index]:
            expected.append(example)
            truth.append(y[index])
    assert 10 <= len(expected) < 30
    assert arrays["examples_true"].tolist() == truth
    gaps = np.abs(arrays["examples"] - np.stack(expected))
    assert np.mean(gaps > 1e-6) < 2e-3  # single steps may go the other way where the gradient is next to nothing
    assert gaps.max() <= 0.012 + 1e-6


def activations_of(victim: Both, family: Family) -> Callable[[Tensor], Tensor]:
    """Return the function from one image to the pooled activations of a layer, for gradients."""
    axes = 0 if family == "vit" else (1, 2)
    return lambda image: victim.outputs(LAYERS[family], image)[0].mean(axes)


@every_family
def test_deepjudge_neuron_tests(family: Family) -> None:
    victim, x = victim_of(family, 1), pictures(30, 8)
    y = victim.mostly_right(x)
    rate = 0.06 * np.array(STD).reshape(3, 1, 1)
    verifier = DeepJudgeVerifier(
        victim.classifier, nb_seeds=20, nb_seeds_whitebox=3, layer=LAYERS[family], multiplier=2.0, max_iter=10,
        learning_rate=0.06, units="standardised", metric_names=["LOD", "LAD", "NOD", "NAD"], batch_size=9,
    )  # fmt: skip
    fingerprint = verifier.extract(x, np.array(y))
    seeds = x[ranked(victim, x, y, 3)]
    peaks = slow.activations(victim.layer(LAYERS[family]), seeds).max(0)
    dead = [k for k, peak in enumerate(peaks) if peak <= 1e-6 * peaks.max()]
    assert fingerprint.facts["dead_neurons"] == dead

    arrays = fingerprint.arrays
    pairs = list(zip(arrays["tests_neuron"].tolist(), arrays["tests_seed"].tolist(), strict=True))
    assert pairs == sorted(pairs)
    found = dict(zip(pairs, arrays["tests"], strict=True))
    expected = {}
    for neuron in set(range(len(peaks))) - set(dead):
        for index, seed in enumerate(seeds):
            path = slow.neuron_path(activations_of(victim, family), seed, neuron, rate, 10)
            t = slow.first_beyond(path, 2.0 * peaks[neuron])
            if min(abs(value - 2.0 * peaks[neuron]) for _, value in path) < THIN:
                found.pop((neuron, index), None)
            elif t is not None:
                expected[neuron, index] = path[t][0]
    assert 8 <= len(expected) < 3 * len(peaks)
    assert set(found) == set(expected)
    gaps = np.stack([np.abs(found[pair] - expected[pair]) for pair in expected])
    assert np.quantile(gaps, 0.99) < 1e-5
    assert gaps.max() < 1e-3


# ---------------------------------------------------------------------- ModelDiff
@every_family
@pytest.mark.parametrize("seed", [0, 1])
def test_modeldiff_partners(family: Family, seed: int) -> None:
    victim, x = victim_of(family, seed), pictures(14, 9)
    verifier = ModelDiffVerifier(victim.classifier, nb_pairs=10, radius=0.2, step=0.06, max_iter=5, batch_size=3)
    arrays = verifier.extract(x).arrays
    order = torch.randperm(14, generator=torch_generator(0, "modeldiff", "seeds"))[:10].numpy()
    noise = torch.rand(10, 3, 12, 12, generator=torch_generator(0, "modeldiff", "start")).double().numpy()
    seeds = x[order]
    np.testing.assert_array_equal(arrays["seeds"], seeds)
    rows = slow.answers(victim.model, seeds)
    mean = sum(rows) / len(rows)
    mu, sigma = (np.array(values).reshape(-1, 1, 1) for values in (victim.mean, victim.std))
    standardised = (seeds - mu) / sigma
    low, high = (np.clip(bound * sigma + mu, 0, 1) for bound in (standardised.min(), standardised.max()))
    for i, found in enumerate(arrays["partners"]):
        objective = slow.away_from_mean(victim.logits, rows[i], mean, [1.0] + [0.1 / 4] * 4)
        start = seeds[i] + (2 * noise[i] - 1) * 0.2 * sigma
        gaps = np.abs(found - slow.ascent(objective, seeds[i], start, 0.2 * sigma, 0.06 * sigma, 5, low, high))
        assert np.mean(gaps > 1e-6) < 5e-3  # single steps may go the other way where the gradient is next to nothing
        assert gaps.max() <= 0.4 * sigma.max() + 1e-6


# ---------------------------------------------------------------------- ZEST
def zest_arrays(victim: Both, x: np.ndarray, **options: Any) -> Mapping[str, np.ndarray]:
    return ZestVerifier(victim.classifier, nb_images=10, nb_masks=40, **options).extract(x).arrays


def test_zest_segments_and_fill() -> None:
    x = pictures(10, 10)
    arrays = zest_arrays(victim_of("vit", 1), x, kernel_size=2.0)
    colours = 255 * x.astype(np.float64)
    assert arrays["segments"].tolist() == [slow_quickshift(image, 2.0, 200, 0.2) for image in colours]
    assert len({int(segments.max()) for segments in arrays["segments"]}) > 2
    np.testing.assert_array_equal(arrays["fill"].ravel(), np.array(MEAN, np.float32))
    np.testing.assert_array_equal(zest_arrays(victim_of("vit", 0), x)["fill"].ravel(), 0)
    cells = zest_arrays(victim_of("vit", 0), x, segmenter="grid", grid_cells=5)["segments"]
    assert cells.tolist() == [slow.grid(12, 12, 5).tolist()] * 10


def test_zest_segments_at_other_clip_values() -> None:
    """Colours are stretched to 0..255 whatever the range of the pixels."""
    x = pictures(10, 10)
    shifted = both(random_network("vit", 0), clip_values=(-1.0, 3.0))
    np.testing.assert_array_equal(
        zest_arrays(shifted, 4 * x - 1)["segments"], zest_arrays(victim_of("vit", 0), x)["segments"]
    )


def test_zest_masks_depend_on_seed_and_segments_alone() -> None:
    x = pictures(10, 10)
    one, other, third = (
        zest_arrays(victim_of(family, 0), x, segmenter="grid", seed=seed)["masks"]
        for family, seed in (("vgg", 0), ("vit", 0), ("vgg", 1))
    )
    np.testing.assert_array_equal(one, other)
    bits, others = np.unpackbits(one, axis=2)[:, :, :64], np.unpackbits(third, axis=2)[:, :, :64]
    assert (bits[:, 0] == 1).all()
    assert 0.47 < bits[:, 1:].mean() < 0.53
    assert 0.47 < (bits[:, 1:] == others[:, 1:]).mean() < 0.53  # another seed, another draw
    assert 0.47 < (bits[1:, 1:] == bits[:-1, 1:]).mean() < 0.53  # no two images share theirs
