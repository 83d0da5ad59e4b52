"""AKH, SAC and FBI against numbers worked by hand, the specification's oracles, and slow loops."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers import AKHVerifier, FBIVerifier, SACVerifier
from art_fingerprint.verifiers.akh import clear_probability, hamming_distance, soft_agreement
from art_fingerprint.verifiers.error_sampler import (
    corner_cutmix,
    cutmix,
    error_queries,
    mixtures,
    more_like,
    paste,
)
from art_fingerprint.verifiers.fbi import (
    entropy,
    information_distance,
    label_entropy,
    mutual_information,
    rank_symbols,
)
from art_fingerprint.verifiers.sac import correlation_distance, correlation_matrix, label_outputs, midway_threshold
from tests.conftest import wrap


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- AKH
def test_akh_by_hand() -> None:
    labels_f, labels_s = torch.tensor([3, 5, 2, 7, 1]), torch.tensor([3, 5, 2, 0, 1])
    assert hamming_distance(labels_f, labels_s) == pytest.approx(0.2)
    assert clear_probability(0.9, 0.12, 0.5) == pytest.approx(0.6)
    assert clear_probability(0.9, 0.0, 0.5) == 0  # the victim itself is always flagged
    found = soft_agreement(torch.tensor([0.6, 0.1]), torch.tensor([0.1, 0.1]), torch.tensor([0.05, 0.05]))
    assert found == pytest.approx(5.0)
    # deviations below 0.01 count as 0.01
    assert soft_agreement(torch.tensor([0.2]), torch.tensor([0.1]), torch.tensor([0.001])) == pytest.approx(10.0)


class Table(nn.Module):
    """A network that reads its class / 10 from a pixel, one for each model, and how sure it is from the last one."""

    def __init__(self, pixel: int, nb_classes: int = 4) -> None:
        super().__init__()
        self.pixel, self.nb_classes = pixel, nb_classes
        self.unused = nn.Parameter(torch.full((1,), float(pixel)))

    def forward(self, x: Tensor) -> Tensor:
        wanted = (x.flatten(1)[:, self.pixel] * 10).round().long().clamp(0, self.nb_classes - 1)
        return (nn.functional.one_hot(wanted, self.nb_classes).float() - 0.3) * (1 + x.flatten(1)[:, -1:])


def answers_as_images(*labels: list[int]) -> np.ndarray:
    """Return images ``(n, 1, 4, 4)`` on which model i answers ``labels[i]``."""
    x = np.zeros((len(labels[0]), 1, 4, 4), dtype=np.float32)
    for pixel, row in enumerate(labels):
        x.reshape(len(x), -1)[:, pixel] = np.array(row) / 10
    x[:, 0, -1, -1] = np.arange(len(x)) / len(x)
    return x


def table(pixel: int, nb_classes: int = 4) -> Any:
    return wrap(Table(pixel, nb_classes), (1, 4, 4), nb_classes)


def test_akh_asks_exactly_the_errors_and_counts_repeated_ones() -> None:
    truth = [0, 1, 2, 3] * 5
    victim = [0, 1, 2, 2, 1, 1, 2, 2, 0, 3, 2, 3, 0, 0, 2, 3, 0, 1, 2, 3]
    suspect = [0, 1, 2, 2, 1, 1, 2, 3, 0, 3, 2, 3, 0, 1, 0, 3, 0, 1, 2, 3]
    wrong = [i for i in range(20) if victim[i] != truth[i]]
    expected = sum(suspect[i] == victim[i] for i in wrong) / len(wrong)
    x = answers_as_images(victim, suspect)
    verifier = AKHVerifier(table(0), fill="none", min_errors=2, q0=0.4)
    with pytest.warns(UserWarning, match=f"only {len(wrong)} queries"):
        fingerprint = verifier.extract(x, np.array(truth))
    assert fingerprint.arrays["rows"].tolist() == wrong
    assert fingerprint.arrays["labels"].tolist() == [victim[i] for i in wrong]
    assert fingerprint.facts["accuracy"] == pytest.approx(1 - len(wrong) / 20)
    scores = verifier.score(table(1))
    k, n = round(expected * len(wrong)), len(wrong)
    assert scores["AKH"] == pytest.approx(expected)
    assert scores["AKH-p"] == pytest.approx(
        sum(math.comb(n, i) * 0.4**i * 0.6 ** (n - i) for i in range(k, n + 1)), abs=1e-12
    )


def test_akh_keeps_errors_that_negatives_get_right_and_measures_in_their_deviations() -> None:
    truth = [0, 1, 2, 3] * 4
    victim = [1, 2, 3, 0] * 3 + [0, 1, 2, 3]
    first = truth[:8] + [1, 1, 1, 1] + truth[12:]  # wrong on 8, 10 and 11
    second = truth[:10] + [1, 1] + truth[12:]  # wrong on 10 and 11
    x = answers_as_images(victim, first, second, victim)
    verifier = AKHVerifier(table(0), fill="none", min_right=0.5, min_errors=2)
    fingerprint = verifier.extract(x, np.array(truth), negatives=[table(1), table(2)])
    kept = fingerprint.arrays["rows"].tolist()
    assert kept == list(range(10))  # half of the negatives is enough for row 8
    expected = []
    for row in kept:
        high, low = math.exp(0.7 * (1 + row / 16)), math.exp(-0.3 * (1 + row / 16))
        sure, unsure = high / (high + 3 * low), low / (high + 3 * low)
        known = [sure if model[row] == victim[row] else unsure for model in (first, second)]
        mean, deviation = sum(known) / 2, abs(known[0] - known[1]) / math.sqrt(2)
        expected.append((sure - mean) / max(deviation, 0.01))
    scores = verifier.score(table(3))  # repeats every mistake
    assert scores["AKH"] == 1
    assert scores["AKH-soft"] == pytest.approx(np.mean(expected), rel=1e-5)


# ---------------------------------------------------------------------- made images
def test_paste_cuts_boxes_off_at_the_border() -> None:
    x, other = torch.zeros(2, 1, 4, 5), torch.ones(2, 1, 4, 5)
    found = paste(x, other, torch.tensor([-1, 2]), torch.tensor([3, 0]), torch.tensor([2, 1]), torch.tensor([9, 2]))
    expected = torch.zeros(2, 1, 4, 5)
    expected[0, 0, 0, 3:] = 1
    expected[1, 0, 2, :2] = 1
    assert torch.equal(found, expected)


def test_cutmix_boxes_have_a_uniform_share() -> None:
    x, other = torch.zeros(4000, 1, 40, 40), torch.ones(4000, 1, 40, 40)
    shares = cutmix(x, other, generator()).mean((1, 2, 3))
    # a centred box would have mean share 1/2; boxes are cut off at the border, so it is less, and more than a quarter
    assert 0.25 < float(shares.mean()) < 0.5
    whole = shares[shares > 0]
    assert float(whole.max()) > 0.8
    assert float(whole.min()) < 0.01


def test_corner_squares_have_a_side_of_a_fifth_and_their_centre_in_a_corner() -> None:
    x, other = torch.zeros(500, 1, 32, 32), torch.ones(500, 1, 32, 32)
    boxes = corner_cutmix(x, other, generator())[:, 0]
    for box in boxes:
        rows, columns = box.any(1).nonzero()[:, 0], box.any(0).nonzero()[:, 0]
        for inside in (rows, columns):
            assert 1 <= len(inside) <= 6
            assert int(inside.max()) < 32 / 6 + 3 or int(inside.min()) >= 32 - 32 / 6 - 4
    assert {int(box.sum()) for box in boxes} >= {36, 9}
    corners = Counter((bool(box[:16].any()), bool(box[:, :16].any())) for box in boxes)
    assert min(corners.values()) > 80


def test_more_images_are_mirrored_first_then_mixed_of_different_ones() -> None:
    x = torch.rand(3, 1, 4, 4, generator=generator())
    made = more_like(x, 10, generator())
    mirrored = [*x.flip(3), *x.flip(2)]
    assert len(made) == 10
    assert all(any(torch.equal(image, other) for other in mirrored) for image in made[:6])
    for image in made[6:]:
        assert any(bool(((image == a) | (image == b)).all()) for a in x for b in x if not torch.equal(a, b))
    assert len(more_like(x[:1], 10, generator())) == 2  # one image has no pairs
    assert len(more_like(torch.rand(3, 16), 10, generator())) == 0  # samples without rows and columns
    pairs = mixtures(torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 4, 4), 50, generator(), lambda a, b, _: a - b)
    assert bool((pairs.abs() == 1).all())


def test_error_queries_mark_what_was_made() -> None:
    x = torch.rand(30, 1, 4, 4, generator=generator())
    errors = torch.tensor([3, 7, 11])
    queries = error_queries(x, errors, 8, generator(), fill=True)
    assert queries.rows.tolist() == [3, 7, 11, *[-1] * 5]
    assert queries.synthetic == 5
    assert torch.equal(queries.x[:3], x[errors])
    few = error_queries(x, torch.arange(30), 8, generator(), fill=True)
    assert (len(few.x), few.synthetic) == (8, 0)
    assert torch.equal(few.x, x[few.rows])
    assert len(error_queries(x, errors, 8, generator(), fill=False).x) == 3


# ---------------------------------------------------------------------- SAC
O_F = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
O_S = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def test_sac_by_hand() -> None:
    cosines = [correlation_matrix(o, "cosine") for o in (O_F, O_S)]
    distances = [correlation_matrix(o) for o in (O_F, O_S)]
    assert correlation_distance(*cosines) == pytest.approx(0.536492, abs=1e-6)
    assert correlation_distance(*distances) == pytest.approx(0.268246, abs=1e-6)
    assert correlation_distance(*cosines, "rms") == pytest.approx(0.666667, abs=1e-6)
    gaussian = correlation_matrix(O_F, "gaussian")
    assert gaussian[0, 1].item() == pytest.approx(math.exp(-2))
    assert gaussian[0, 2].item() == pytest.approx(math.exp(-((1 - 0.5**0.5) ** 2 + 0.5)))
    assert midway_threshold([0.4, 0.6], [0.1]) == pytest.approx(0.3)
    with pytest.raises(InvalidInputError, match="negatives"):
        midway_threshold([], [0.1])


def test_sac_of_labels_by_hand() -> None:
    matrix = correlation_matrix(label_outputs(torch.tensor([3, 3, 7, -1]), 10))
    assert matrix[0, 1].item() == pytest.approx(0, abs=1e-11)
    assert matrix[0, 2].item() == pytest.approx(0.088048, abs=1e-6)
    assert 0 < matrix[0, 3].item() < 0.088048  # an answer that is none resembles all labels alike
    assert torch.isfinite(correlation_matrix(torch.zeros(3, 4))).all()


def test_sac_against_a_loop() -> None:
    outputs = torch.randn(12, 5, generator=generator(), dtype=torch.float64)
    others = torch.randn(12, 3, generator=generator(1), dtype=torch.float64)  # another number of classes
    total = 0.0
    for i in range(12):
        for j in range(12):
            pair = []
            for o in (outputs.tolist(), others.tolist()):
                dot = sum(a * b for a, b in zip(o[i], o[j], strict=True))
                pair.append((1 - dot / math.hypot(*o[i]) / math.hypot(*o[j])) / 2)
            total += abs(pair[0] - pair[1]) / 144
    assert correlation_distance(correlation_matrix(outputs), correlation_matrix(others)) == pytest.approx(
        total, abs=1e-12
    )


def test_sac_does_not_ask_what_classes_are_called() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 4, 30).tolist()
    x = answers_as_images(labels, [(label + 1) % 4 for label in labels])
    verifier = SACVerifier(table(0), nb_probes=20)
    verifier.extract(x, (np.array(labels) + 2) % 4)
    assert verifier.score(table(1)) == pytest.approx({"SAC": 0, "SAC-labels": 0}, abs=1e-9)
    scores = verifier.score(table(1, nb_classes=6))
    assert scores["SAC-labels"] == pytest.approx(0, abs=0.03)  # softer rows, the same pattern


# ---------------------------------------------------------------------- FBI
@pytest.mark.parametrize(
    ("v", "information", "distance"),
    [([1, 1, 0, 0], 1.0, 0.0), ([0, 1, 0, 1], 0.0, 1.0), ([0, 0, 0, 1], 0.311278, 0.616311), ([2, 2, 2, 2], 0.0, 1.0)],
)
def test_fbi_by_hand(v: list[int], information: float, distance: float) -> None:
    u = torch.tensor([0, 0, 1, 1])
    assert mutual_information(u, torch.tensor(v)) == pytest.approx(information, abs=1e-6)
    assert information_distance(u, torch.tensor(v)) == pytest.approx(distance, abs=1e-6)


def test_information_against_counting() -> None:
    draws = np.random.default_rng(3)
    u, v = draws.integers(0, 5, 200), draws.integers(-1, 3, 200)
    v = np.where(draws.random(200) < 0.5, u % 3, v)
    joint, a, b = Counter(zip(u.tolist(), v.tolist(), strict=True)), Counter(u.tolist()), Counter(v.tolist())
    expected = sum(c / 200 * math.log2(c * 200 / (a[i] * b[j])) for (i, j), c in joint.items())
    h = [-sum(c / 200 * math.log2(c / 200) for c in counts.values()) for counts in (a, b)]
    s, t = torch.from_numpy(u), torch.from_numpy(v)
    assert entropy(s) == pytest.approx(h[0], abs=1e-12)
    assert mutual_information(s, t) == pytest.approx(expected, abs=1e-12)
    assert information_distance(s, t) == pytest.approx(1 - expected / min(h), abs=1e-12)
    bias = 4 * (len(b) - 1) / (400 * math.log(2))
    assert information_distance(s, t, correct_bias=True) == pytest.approx(1 - (expected - bias) / min(h), abs=1e-12)
    # 0.29 bits for ten classes and 200 images
    assert 81 / (400 * math.log(2)) == pytest.approx(0.29, abs=0.003)


def test_ranks() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [torch.nan, 2.0, 3.0]])
    truth = torch.tensor([0, 0, 1, 2])
    assert rank_symbols(scores, truth, 1).tolist() == [0, 1, 1, 1]
    assert rank_symbols(scores, truth, 2).tolist() == [0, 2, 1, 2]
    assert rank_symbols(scores, torch.tensor([5, 2, 2, 2]), 2).tolist() == [2, 1, 2, 2]  # class 5 is not there


def test_fbi_of_labels_does_not_ask_what_classes_are_called() -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 4, 60)
    x = answers_as_images(labels.tolist(), ((labels + 1) % 4).tolist())
    verifier = FBIVerifier(table(0), nb_probes=40, symbols="labels", images="random")
    verifier.extract(x)
    scores = verifier.score(table(1))
    assert scores["FBI"] == pytest.approx(0, abs=1e-12)
    assert scores["FBI-match"] == 0
    assert verifier.score(table(1, nb_classes=7))["FBI"] == pytest.approx(0, abs=1e-12)


def test_fbi_mixes_errors_and_successes() -> None:
    draws = np.random.default_rng(1)
    truth = draws.integers(0, 4, 100)
    victim = np.where(np.arange(100) < 30, (truth + 1) % 4, truth)
    verifier = FBIVerifier(table(0), nb_probes=40)
    fingerprint = verifier.extract(answers_as_images(victim.tolist()), truth)
    rows = fingerprint.arrays["rows"]
    assert int((rows < 30).sum()) == 20
    assert fingerprint.arrays["symbols"].tolist() == (rows < 30).astype(int).tolist()
    assert fingerprint.facts["entropy"] == pytest.approx(1)


def test_fbi_asks_where_known_models_disagree() -> None:
    draws = np.random.default_rng(1)
    truth = np.arange(100) % 4
    victim = np.where(draws.random(100) < 0.2, (truth + 1) % 4, truth)
    other = np.where(np.arange(100) < 20, (victim + 1) % 4, victim)
    verifier = FBIVerifier(table(0), images="entropy", symbols="labels")
    fingerprint = verifier.extract(answers_as_images(victim.tolist(), other.tolist()), truth, negatives=[table(1)])
    assert fingerprint.arrays["rows"].tolist() == list(range(20))
    shares = label_entropy(torch.tensor([[0, 1, 2], [0, 2, 2], [0, 1, 3], [0, 3, 3]]))
    assert shares.tolist() == pytest.approx([0, 1.5, 1], abs=1e-12)
