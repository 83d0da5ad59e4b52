"""The package's scores against the slow float64 versions of ``slow_metrics``, on random small VGGs, ResNets and ViTs.

The probes come from the fingerprint; everything else, the victim's part too, is computed anew from the networks cast to
float64. In the package networks answer in float32, so distances agree within a relative 1e-4, and labels and binarised
activations exactly, except where a float64 margin is too thin for float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from art_fingerprint.verifiers import DeepJudgeVerifier, IPGuardVerifier, ModelDiffVerifier, ZestVerifier
from tests.networks import (
    FAMILIES,
    LAYERS,
    Both,
    Changed,
    Family,
    both,
    pictures,
    random_network,
    strangers_of,
    suspects_of,
    victim_of,
)
from tests.oracles import slow_metrics as slow

SEEDS = (0, 1)
THIN = 1e-5  # a float64 margin below this is not trusted to survive float32
NORMS = ("L1", "L2", "Linf", "cosine")
every_victim = pytest.mark.parametrize(("family", "seed"), [(family, seed) for family in FAMILIES for seed in SEEDS])


def exactly(value: float, doubtful: float = 0.0) -> Any:
    """Compare a mean of counts: equal, but for the share of samples that are too near a threshold."""
    return pytest.approx(value, rel=1e-12, abs=doubtful + 1e-12)


# ---------------------------------------------------------------------- the slow versions themselves
def test_deepjudge_numbers_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.5, 0.5, 0.0]])
    assert [slow.certainty(row) for row in p] == pytest.approx([0.54, 0.34, 0.5])
    assert slow.certain_order(p, [0, 0, 0], 3) == [0, 2, 1]
    f, g = np.eye(3)[[1, 1, 0, 2]], np.eye(3)[[0, 1, 2, 2]]
    truth = [0, 1, 2, 1]
    assert [slow.robustness(rows, truth) for rows in (f, g)] == [0.25, 0.75]
    kept = [0, 2, 3]
    assert slow.robustness(g[kept], [0, 2, 1]) == pytest.approx(2 / 3)
    assert slow.matching_rate(f[kept], g[kept]) == pytest.approx(1 / 3)
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[1.0, 0.0], [0.9, 0.1]])
    assert slow.jensen_shannon(p, q) == pytest.approx(0.107881, abs=1e-6)
    assert slow.jensen_shannon(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])) == pytest.approx(math.log(2))
    features = np.array([[[1.0, 3.0]], [[5.0, 7.0]]])
    assert slow.pooled(features).tolist() == [2, 6]
    assert slow.pooled(features, "last-axis").tolist() == [3, 5]
    a, b, nu = np.array([[1.0, 2, 3], [0, 4, 0]]), np.array([[1.0, 2, 0], [3, 0, 0]]), [2, 1]
    assert slow.layer_output_distance(a, b) == 4
    assert slow.layer_output_distance(a, b, 1) == 5
    assert slow.layer_activation_distance(a, b) == 2
    assert slow.neuron_output_distance(a, b, nu) == 3.5
    assert slow.neuron_activation_distance(a, b, nu) == 1


LOSSES = [([2, 0.5, 1], 1, 2.5), ([1, 2.5, 1.4], 1, 0.4), ([1, 2.5, 0.4], 1, 0), ([1, 0], 0.5, 1.5)]


def test_other_numbers_by_hand() -> None:
    f, g = np.array([[2.0, 0], [1, 1]]), np.array([[0, 2, 1], [3, 0, 1.5]])
    swapped = [slow.signature_distance(f, f[:, ::-1], norm, "identity") for norm in NORMS]
    assert swapped == pytest.approx([4, 2.828427, 2, 0.666667], abs=1e-6)
    assert [slow.signature_distance(f, f[:, ::-1], norm) for norm in NORMS] == pytest.approx([0] * 4, abs=1e-12)
    for pair in ((f, g), (g, f)):
        found = [slow.signature_distance(*pair, norm) for norm in NORMS]
        assert found == pytest.approx([2.5, 1.5, 1.0, 0.207406], abs=1e-6)
    costs = np.array([[1.0, 2], [3, 100]])
    assert slow.greedy(costs) == [0, 1]
    assert slow.cheapest(costs) == [1, 0]
    f, g = np.array([[3.0, 0], [0, 2], [0, 5], [4, 3]]), np.array([[1.0, 0], [1, 1], [1, 1], [1, 0]])
    assert slow.decision_distances(f[:2], f[2:]) == pytest.approx([1, 0.4])
    assert slow.decision_distances(g[:2], g[2:]) == pytest.approx([0.292893] * 2, abs=1e-6)
    assert slow.decision_similarity(f, g) == pytest.approx(0.919145, abs=1e-6)
    for logits, margin, expected in (
        ([2, 0.5, 1], 1, 2.5),
        ([1, 2.5, 1.4], 1, 0.4),
        ([1, 2.5, 0.4], 1, 0),
        ([1, 0], 0.5, 1.5),
    ):
        assert float(slow.boundary_loss(torch.tensor(logits), 0, 1, margin)) == pytest.approx(expected)
    labels, others = np.eye(5)[[1, 4, 2, 0]], np.eye(5)[[1, 3, 2, 2]]
    assert slow.matching_rate(labels, others) == 0.5
    step = slow.Adam(0.01).step(np.array([0.2, -3, 0]))
    np.testing.assert_allclose(step, [0.01, -0.01, 0], rtol=1e-6)


# ---------------------------------------------------------------------- DeepJudge
def deepjudge(victim: Both, family: Family, **options: Any) -> DeepJudgeVerifier:
    arguments: dict[str, Any] = {
        "nb_seeds": 30, "radius": 0.008, "max_iter_attack": 4, "keep": "all", "layer": LAYERS[family],
        "nb_seeds_whitebox": 4, "multiplier": 1.1, "learning_rate": 0.02, "max_iter": 30,
    }  # fmt: skip
    return DeepJudgeVerifier(victim.classifier, **{**arguments, **options})


@every_victim
def test_deepjudge_white_box_metrics(family: Family, seed: int) -> None:
    victim = victim_of(family, seed)
    verifier = deepjudge(victim, family, metric_names=["LOD", "LAD", "NOD", "NAD"])
    fingerprint = verifier.extract(pictures(20, seed))
    tests, neurons = fingerprint.arrays["tests"], fingerprint.arrays["tests_neuron"].tolist()
    driven = len(set(neurons))
    assert driven >= 3
    a = slow.activations(victim.layer(LAYERS[family]), tests)
    np.testing.assert_allclose(fingerprint.arrays["tests_activations"], a, rtol=2e-5, atol=2e-6)
    for suspect in suspects_of(family, seed).values():
        scores = verifier.score(suspect.classifier)
        b = slow.activations(suspect.layer(LAYERS[family]), tests)
        assert scores["LOD"] == pytest.approx(slow.layer_output_distance(a, b), rel=1e-4)
        assert scores["NOD"] == pytest.approx(slow.neuron_output_distance(a, b, neurons), rel=1e-4)
        expected = slow.normalised_neuron_output_distance(a, b, neurons)
        assert scores["NNOD"] == pytest.approx(expected, rel=1e-4)
        doubtful = (slow.nearly_half(a, THIN) + slow.nearly_half(b, THIN)) / len(tests)
        lad, nad = slow.layer_activation_distance(a, b), slow.neuron_activation_distance(a, b, neurons)
        assert scores["LAD"] == exactly(lad, doubtful)
        assert scores["LAD_frac"] == exactly(lad / a.shape[1], doubtful)
        assert scores["NAD_frac"] == exactly(nad, doubtful)
        assert scores["NAD"] == exactly(nad * driven, doubtful * driven)


@every_victim
def test_deepjudge_black_box_metrics(family: Family, seed: int) -> None:
    victim = victim_of(family, seed)
    x = pictures(50, seed)
    verifier = deepjudge(victim, family, metric_names=["RobD", "JSD"])
    arrays = verifier.extract(x, np.array(victim.mostly_right(x))).arrays
    examples, truth = arrays["examples"], arrays["examples_true"].tolist()
    f = slow.answers(victim.model, examples)
    np.testing.assert_allclose(arrays["examples_logits"], f, rtol=2e-5, atol=2e-5)
    own = slow.robustness(f, truth)
    assert 0 < own < 1
    for suspect in suspects_of(family, seed).values():
        scores = verifier.score(suspect.classifier)
        g = slow.answers(suspect.model, examples)
        doubtful = (slow.thin(f, THIN) + slow.thin(g, THIN)) / len(examples)
        rob = slow.robustness(g, truth)
        assert scores["Rob"] == exactly(rob, doubtful)
        assert scores["RobD"] == exactly(abs(rob - own), doubtful)
        assert scores["MR_adv"] == exactly(slow.matching_rate(f, g), doubtful)
        expected = slow.jensen_shannon(slow.probabilities(f), slow.probabilities(g))
        assert scores["JSD"] == pytest.approx(expected, rel=1e-4, abs=1e-8)


# ---------------------------------------------------------------------- ZEST
@pytest.mark.parametrize(("segmenter", "seed", "align"), [("quickshift", 0, "greedy"), ("grid", 1, "hungarian")])
@pytest.mark.parametrize("family", FAMILIES)
def test_zest_metrics(family: Family, seed: int, segmenter: Any, align: str) -> None:
    victim = victim_of(family, seed)
    verifier = ZestVerifier(victim.classifier, nb_images=10, nb_masks=8, segmenter=segmenter, grid_cells=3)
    fingerprint = verifier.extract(pictures(10, seed))
    images, segments, masks, fill = slow.zest_probes(fingerprint.arrays)
    assert all((mask[0] == 1).all() for mask in masks)
    u = slow.signature(victim.model, images, segments, masks, fill)
    np.testing.assert_allclose(fingerprint.arrays["signature_logits"], u, rtol=1e-4, atol=2e-5)
    for suspect in {**suspects_of(family, seed), **strangers_of(family)}.values():
        v = slow.signature(suspect.model, images, segments, masks, fill)
        for rule in ("greedy", align):
            verifier.set_params(align=rule)
            scores = verifier.score(suspect.classifier)
            for norm in NORMS:
                if rule == "hungarian" and norm == "Linf":
                    continue  # (a - c) + (b - d) = (a - d) + (b - c): the least total can have two assignments
                expected = slow.signature_distance(u, v, norm, rule)
                assert scores[f"ZEST-{norm}"] == pytest.approx(expected, rel=1e-4), (norm, rule)


# ---------------------------------------------------------------------- ModelDiff
@every_victim
def test_modeldiff_metrics(family: Family, seed: int) -> None:
    victim = victim_of(family, seed)
    verifier = ModelDiffVerifier(victim.classifier, nb_pairs=12, radius=0.3, step=0.1, max_iter=5)
    arrays = verifier.extract(pictures(15, seed)).arrays
    inputs = np.concatenate([arrays["seeds"], arrays["partners"]])
    f = slow.answers(victim.model, inputs)
    for suspect in {**suspects_of(family, seed), **strangers_of(family)}.values():
        scores = verifier.score(suspect.classifier)
        g = slow.answers(suspect.model, inputs)
        assert scores["DDV"] == pytest.approx(slow.decision_similarity(f, g), rel=1e-5)
        assert scores["DDM"] == pytest.approx(slow.matrix_distance(f, g), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_modeldiff_metric_of_the_joint_search(family: Family) -> None:
    victim, suspect = victim_of(family, 0), suspects_of(family, 0)["independent"]
    verifier = ModelDiffVerifier(
        victim.classifier, nb_pairs=12, generator="search", models="both", search_iterations=60, search_step=1.0
    )
    arrays = verifier.extract_joint(suspect.classifier, pictures(24)).arrays
    inputs = np.concatenate([arrays["seeds"], arrays["partners"]])
    f, g = (slow.answers(one.model, inputs) for one in (victim, suspect))
    assert verifier.score(suspect.classifier)["DDV"] == pytest.approx(slow.decision_similarity(f, g), rel=1e-5)


# ---------------------------------------------------------------------- IPGuard
@pytest.mark.filterwarnings("ignore:Only .* points crossed the decision boundary:UserWarning")
@every_victim
def test_ipguard_metric(family: Family, seed: int) -> None:
    victim = victim_of(family, seed)
    verifier = IPGuardVerifier(victim.classifier, nb_probes=30, margin=0.1, learning_rate=0.02, max_iter=12)
    arrays = verifier.extract(pictures(50, seed)).arrays
    f = slow.answers(victim.model, arrays["probes"])
    assert sum(found != slow.label(row) for found, row in zip(arrays["labels"], f, strict=True)) <= slow.thin(f, THIN)
    for suspect in suspects_of(family, seed).values():
        g = slow.answers(suspect.model, arrays["probes"])
        doubtful = (slow.thin(f, THIN) + slow.thin(g, THIN)) / len(f)
        assert verifier.score(suspect.classifier)["MR"] == exactly(slow.matching_rate(f, g), doubtful)


# ---------------------------------------------------------------------- models that answer probabilities
@pytest.mark.parametrize(("soft_victim", "soft_suspect"), [(False, True), (True, False), (True, True)])
@pytest.mark.filterwarnings("ignore:.*both are compared as probabilities:UserWarning")
@pytest.mark.filterwarnings("ignore:.*returns probabilities:UserWarning")
def test_models_that_answer_probabilities(soft_victim: bool, soft_suspect: bool) -> None:
    """One model of probabilities puts scores of both into that space."""
    victim = both(Changed(random_network("vgg", 0), soft=soft_victim))
    suspect = both(Changed(random_network("vgg", 100), soft=soft_suspect))

    def soft(one: Both, is_soft: bool) -> slow.Model:
        return one.model if is_soft else lambda image: slow.softmax(one.model(image))

    f, g = soft(victim, soft_victim), soft(suspect, soft_suspect)
    x = pictures(20, 4)
    zest = ZestVerifier(victim.classifier, nb_images=10, nb_masks=8, segmenter="grid", grid_cells=2)
    probes = slow.zest_probes(zest.extract(x).arrays)
    scores = zest.score(suspect.classifier)
    u, v = (slow.signature(model, *probes) for model in (f, g))
    for norm in NORMS:
        assert scores[f"ZEST-{norm}"] == pytest.approx(slow.signature_distance(u, v, norm), rel=1e-4), norm
    modeldiff = ModelDiffVerifier(victim.classifier, nb_pairs=15, radius=0.3, step=0.1, max_iter=5)
    arrays = modeldiff.extract(x).arrays
    answers = [slow.answers(model, np.concatenate([arrays["seeds"], arrays["partners"]])) for model in (f, g)]
    scores = modeldiff.score(suspect.classifier)
    assert scores["DDV"] == pytest.approx(slow.decision_similarity(*answers), rel=1e-5)
    assert scores["DDM"] == pytest.approx(slow.matrix_distance(*answers), rel=1e-4)
    judge = deepjudge(victim, "vgg", metric_names=["JSD"])
    examples = judge.extract(x).arrays["examples"]
    expected = slow.jensen_shannon(*(slow.answers(model, examples) for model in (f, g)))
    assert judge.score(suspect.classifier)["JSD"] == pytest.approx(expected, rel=1e-4)
