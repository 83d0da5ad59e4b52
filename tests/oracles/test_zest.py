"""ZEST against numbers worked by hand, a linear model whose weights are known, and a slow version that loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.verifiers.zest import (
    NORMS,
    Norm,
    ZestVerifier,
    aligned_distance,
    assignment,
    class_distances,
    distance,
)
from art_fingerprint.verifiers.zest_probes import ProbePlan, distinct_masks, draw_masks, regression_matrices
from tests.conftest import TinyCNN, wrap
from tests.oracles import slow_metrics as slow

Maker = Callable[..., PyTorchClassifier]
SMALL: dict[str, Any] = {"nb_images": 12, "nb_masks": 40, "kernel_size": 2.0}


def tensor(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------------- the slow version
def model_of(classifier: PyTorchClassifier) -> slow.Model:
    return lambda image: classifier.predict(image.astype(np.float32)[None])[0]


@pytest.mark.parametrize(
    ("options", "suspect_classes"),
    [
        ({}, 4),
        ({"segmenter": "grid", "grid_cells": 3}, 6),
        ({"segmenter": "grid", "nb_masks": 30}, 4),  # 64 segments, 30 masks
        ({"fill": 0.25, "nb_masks": 8}, 3),
    ],
)
def test_equals_the_slow_version(
    make_classifier: Maker, images: np.ndarray, options: dict[str, Any], suspect_classes: int
) -> None:
    victim, suspect = make_classifier(0), make_classifier(1, nb_classes=suspect_classes)
    verifier = ZestVerifier(victim, **{**SMALL, "nb_images": 5, "kernel_size": 4.0, **options})
    with pytest.warns(UserWarning, match="only 5 images"):
        arrays = verifier.extract(images).arrays
    probes = slow.zest_probes(arrays)
    expected = slow.signature(model_of(victim), *probes)
    np.testing.assert_allclose(arrays["signature_logits"], expected, atol=1e-5)
    other = slow.signature(model_of(suspect), *probes)
    scores = verifier.score(suspect)
    for norm in NORMS:
        assert scores[f"ZEST-{norm}"] == pytest.approx(slow.signature_distance(expected, other, norm), rel=1e-4)


def test_linear_model_gives_the_sums_over_segments() -> None:
    # o(x) = A x with fill 0 is linear in the mask: the weights are known exactly
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(2 * 6 * 5, 3, bias=False)
    linear.weight.data = torch.randn(3, 60, generator=generator)
    victim = wrap(nn.Sequential(nn.Flatten(), linear), (2, 6, 5), 3)
    x = torch.rand(12, 2, 6, 5, generator=generator)
    verifier = ZestVerifier(victim, segmenter="grid", grid_cells=3, nb_masks=50)
    arrays = verifier.extract(x.numpy()).arrays
    terms = x[:, None] * linear.weight.view(3, 2, 6, 5)  # (image, class, channel, row, column)
    expected = [
        terms[i, :, :, torch.from_numpy(arrays["segments"][i] == f)].sum((1, 2)).tolist()
        for i in range(12)
        for f in range(9)
    ]
    np.testing.assert_allclose(arrays["signature_logits"], expected, atol=1e-5)


# ---------------------------------------------------------------------- regression
def test_regression_worked_by_hand() -> None:
    masks, answers = tensor([[1, 1], [1, 0], [0, 1], [0, 0]]), tensor([[3, 1], [2, 0], [1, 1], [0, 0]])
    matrix = regression_matrices(masks[None], torch.ones(1, 4), 1e-12)[0]
    np.testing.assert_allclose(matrix, np.array([[1, 2, -1, 0], [1, -1, 2, 0]]) / 3, atol=1e-12)
    np.testing.assert_allclose(matrix @ answers, [[2, 0], [1, 1]], atol=1e-12)


def test_regression_with_one_segment_is_the_plain_output() -> None:
    # X = (1, 1, 0, 0)^T, Y = (4, 4, 1, 1)^T: one distinct mask that counts twice, and the empty one
    weights = regression_matrices(tensor([[[1], [0]]]), tensor([[2, 2]]), 1e-12)[0] @ tensor([[4], [1]])
    assert weights.item() == pytest.approx(4)


@pytest.mark.parametrize(("features", "nb_masks"), [(1, 5), (3, 40), (9, 9), (30, 20), (12, 300)])
def test_distinct_masks_give_the_pseudo_inverse_of_all(features: int, nb_masks: int) -> None:
    generator = torch.Generator().manual_seed(features)
    masks = draw_masks(torch.tensor([features, 2]), nb_masks, generator)
    owner, rows, counts = distinct_masks(np.packbits(masks.numpy(), axis=-1))
    assert counts.sum() == masks.any(2).sum()
    assert (np.diff(owner) >= 0).all()
    mine = owner == 0
    distinct = np.unpackbits(rows[mine], axis=1)[:, :features]
    assert len(np.unique(distinct, axis=0)) == len(distinct)
    assert distinct.any(1).all()
    matrix = regression_matrices(torch.from_numpy(distinct)[None], torch.from_numpy(counts[mine])[None], 1e-12)[0]
    full = masks[0, :, :features].double().numpy()
    answers = np.random.default_rng(0).random((len(distinct), 3))
    lookup = {row.tobytes(): answer for row, answer in zip(distinct, answers, strict=True)}
    everything = np.stack([lookup.get(row.astype(np.uint8).tobytes(), np.full(3, 7.0)) for row in full])
    np.testing.assert_allclose(matrix.numpy() @ answers, np.linalg.pinv(full) @ everything, atol=1e-9)


def test_expected_number_of_distinct_masks() -> None:
    counts = []
    for features in (1, 5, 8, 10, 12):
        masks = draw_masks(torch.full((60,), features), 1000, torch.Generator().manual_seed(0))
        counts.append(len(distinct_masks(np.packbits(masks.numpy(), axis=-1))[0]) / 60 + 1)  # and the empty mask
    np.testing.assert_allclose(counts, [2, 32, 251, 639, 887], rtol=0.01)


def test_masks_are_fair_coins_with_a_full_first_row() -> None:
    masks = draw_masks(torch.tensor([3, 10]), 2000, torch_generator(0, "x"))
    assert masks.shape == (2, 2000, 10)
    assert masks[1, 0].tolist() == [1] * 10
    assert masks[0, :, 3:].sum() == 0
    np.testing.assert_allclose(masks[1].double().mean(0), 0.5, atol=0.05)


# ---------------------------------------------------------------------- alignment and distances
VICTIM = [[2, 0], [1, 1]]


def test_alignment_undoes_swapped_columns() -> None:
    victim, suspect = tensor(VICTIM), tensor([[0, 2], [1, 1]])
    plain = {"L1": 4, "L2": 2.828427, "Linf": 2, "cosine": 0.666667}
    for norm in NORMS:
        assert aligned_distance(victim, suspect, norm) == pytest.approx(0, abs=1e-12)
        assert aligned_distance(victim, suspect, norm, "hungarian") == pytest.approx(0, abs=1e-12)
        assert aligned_distance(victim, suspect, norm, "identity") == pytest.approx(plain[norm], abs=1e-6)


def test_three_class_suspect() -> None:
    victim, suspect = tensor(VICTIM), tensor([[0, 2, 1], [3, 0, 1.5]])
    expected = {"L1": 2.5, "L2": 1.5, "Linf": 1.0, "cosine": 0.207406}
    for norm in NORMS:
        pairs = [1, 0] if norm == "cosine" else [1, 2]
        assert assignment(class_distances(victim, suspect, norm)).tolist() == pairs
        assert aligned_distance(victim, suspect, norm) == pytest.approx(expected[norm], abs=1e-6)
        assert aligned_distance(suspect, victim, norm) == pytest.approx(expected[norm], abs=1e-6)


def test_greedy_is_not_optimal() -> None:
    costs = tensor([[1, 2], [3, 100]])
    assert assignment(costs, "greedy").tolist() == [0, 1]
    assert assignment(costs, "hungarian").tolist() == [1, 0]
    # points on a line, victim 0 and 4, suspect 1 and -2: the nearest pair leaves the farthest one
    victim, suspect = tensor([[0, 4]]), tensor([[1, -2]])
    assert aligned_distance(victim, suspect, "L1") == 1 + 6
    assert aligned_distance(victim, suspect, "L1", "hungarian") == 2 + 3


@pytest.mark.parametrize("seed", range(20))
def test_greedy_equals_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 9))
    shape = (rows, rows + int(rng.integers(0, 4)))
    costs = rng.integers(0, 6, shape).astype(np.float64) if seed % 2 else rng.random(shape)  # with ties, without
    assert assignment(torch.from_numpy(costs)).tolist() == slow.greedy(costs)


def test_cosine_of_zero_vectors() -> None:
    zero, one = tensor([0, 0]), tensor([1, 2])
    assert distance(zero, zero, "cosine") == 0
    assert distance(zero, one, "cosine") == 1
    assert distance(one, -one, "cosine") == pytest.approx(2)
    victim, suspect = tensor([[0, 1], [0, 1]]), tensor([[1, 0], [1, 0]])
    np.testing.assert_allclose(class_distances(victim, suspect, "cosine"), [[1, 0], [0, 1]], atol=1e-12)
    assert assignment(class_distances(victim, suspect, "cosine")).tolist() == [1, 0]
    assert aligned_distance(victim, suspect, "cosine") == pytest.approx(0, abs=1e-12)


def test_classes_that_are_multiples_of_each_other_are_paired_with_themselves() -> None:
    draws = torch.Generator().manual_seed(0)
    victim = torch.randn(200, 3, dtype=torch.float64, generator=draws)
    victim[:, 1] = 1e-20 * victim[:, 2]
    assert aligned_distance(victim, victim, "cosine") == 0
    rounded = victim * (1 + 1e-7 * torch.randn(victim.shape, dtype=torch.float64, generator=draws))
    assert aligned_distance(victim, rounded, "cosine") < 1e-12


def test_equal_columns_are_at_distance_zero() -> None:
    columns = torch.randn(500, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    for norm in ("L1", "L2", "Linf"):
        assert class_distances(columns, columns, norm).diagonal().abs().max() == 0


# ---------------------------------------------------------------------- properties
def relabelled(classifier: PyTorchClassifier, change: Callable[[Tensor], Tensor]) -> PyTorchClassifier:
    """Return a copy of a tiny classifier whose logits are changed by ``change``."""
    network = TinyCNN(1, 4)
    network.load_state_dict(classifier.model.state_dict())
    with torch.no_grad():
        network.head.weight.copy_(change(network.head.weight))
        network.head.bias.copy_(change(network.head.bias[:, None])[:, 0])
    return wrap(network.eval())


@pytest.fixture
def extracted(make_classifier: Maker, images: np.ndarray) -> ZestVerifier:
    """A verifier of the first tiny classifier with its fingerprint."""
    verifier = ZestVerifier(make_classifier(0), **SMALL)
    verifier.extract(images)
    return verifier


@pytest.mark.parametrize("batch_size", [1, 7, 128, 100_000])
def test_victim_against_itself(extracted: ZestVerifier, make_classifier: Maker, batch_size: int) -> None:
    extracted.set_params(batch_size=batch_size)
    size = np.abs(extracted.fingerprint.arrays["signature_logits"]).sum()  # type: ignore[union-attr]
    for name, value in extracted.score(make_classifier(0)).items():
        assert value == pytest.approx(0, abs=1e-12 if name == "ZEST-cosine" else 1e-6 * size)


def test_permuted_classes_change_nothing(extracted: ZestVerifier, make_classifier: Maker) -> None:
    suspect = make_classifier(1)
    permuted = relabelled(suspect, lambda t: t[[2, 0, 3, 1]])
    expected, scores = extracted.score(suspect), extracted.score(permuted)
    assert scores == pytest.approx(expected, rel=1e-4)
    extracted.set_params(align="identity")
    assert extracted.score(permuted)["ZEST-L2"] != pytest.approx(extracted.score(suspect)["ZEST-L2"], rel=1e-3)
    extracted.set_params(align="greedy")
    twin = relabelled(make_classifier(0), lambda t: t[[2, 0, 3, 1]])
    assert extracted.score(twin)["ZEST-L2"] == pytest.approx(0, abs=1e-3)


def test_scaled_logits_change_norms_but_not_cosine(extracted: ZestVerifier, make_classifier: Maker) -> None:
    suspect = make_classifier(1)
    expected, scores = extracted.score(suspect), extracted.score(relabelled(suspect, lambda t: 3 * t))
    assert scores["ZEST-cosine"] == pytest.approx(expected["ZEST-cosine"], rel=1e-5)
    assert scores["ZEST-L2"] != pytest.approx(expected["ZEST-L2"], rel=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_victim_and_suspect_can_change_places(make_classifier: Maker, images: np.ndarray, norm: Norm) -> None:
    scores = []
    for victim, suspect in ((0, 1), (1, 0)):
        verifier = ZestVerifier(make_classifier(victim), metric_names=[f"ZEST-{norm}"], **SMALL)
        verifier.extract(images)
        scores.append(verifier.score(make_classifier(suspect))[f"ZEST-{norm}"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_probability_signature_is_the_regression_of_the_softmax(
    extracted: ZestVerifier, make_classifier: Maker
) -> None:
    assert extracted.fingerprint is not None
    arrays, victim = extracted.fingerprint.arrays, model_of(make_classifier(0))
    expected = slow.signature(lambda image: slow.softmax(victim(image)), *slow.zest_probes(arrays))
    np.testing.assert_allclose(arrays["signature_probabilities"], expected, atol=1e-6)


def test_blocks_do_not_change_the_signature(extracted: ZestVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert extracted.fingerprint is not None
    arrays = extracted.fingerprint.arrays
    whole, pieces = (ProbePlan.build(arrays, 4) for _ in range(2))
    assert len(whole.blocks) == 1
    monkeypatch.setattr("art_fingerprint.verifiers.zest_probes._BLOCK", 1)
    assert len(pieces.blocks) == 12
    answers = torch.randn(len(whole), 4, generator=torch.Generator().manual_seed(0))
    expected, signature = (plan.signature(answers, probabilities=False) for plan in (whole, pieces))
    np.testing.assert_allclose(signature, expected, atol=1e-9)
