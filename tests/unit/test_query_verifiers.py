"""AKH, SAC and FBI as verifiers: too few errors, missing labels, known negatives, other class numbers, bad suspects."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.exceptions import (
    CalibrationError,
    EmptyFingerprintError,
    IncompatibleSuspectError,
    InvalidInputError,
    NonFiniteOutputError,
    NotExtractedError,
)
from art_fingerprint.testing.suspects import black_box
from art_fingerprint.verifiers import AKHVerifier, FBIVerifier, Fingerprint, SACVerifier
from tests.conftest import TinyCNN, wrap
from tests.states import label_box
from tests.victims import several_classes

X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
X_OTHER = np.random.default_rng(2).random((40, 1, 8, 8), dtype=np.float32)
Y = np.arange(40) % 4
Y_WRONG = np.where(np.arange(40) % 3 == 0, (Y + 1 + np.arange(40) // 12) % 4, Y)  # twelve errors of the victim
KINDS: list[Any] = [AKHVerifier, SACVerifier, FBIVerifier]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def victim() -> PyTorchClassifier:
    return several_classes(X)


def independent(seed: int) -> PyTorchClassifier:
    return several_classes(X_OTHER, seed=seed)


def constant() -> PyTorchClassifier:
    """A model that answers class 2, more or less sure of it."""
    network = TinyCNN()
    nn.init.zeros_(network.head.weight)
    nn.init.constant_(network.head.bias, 0.0)
    network.head.bias.data[2] = 5.0
    return wrap(network.eval())


# ---------------------------------------------------------------------- what extraction needs
@every_kind
def test_labels_are_needed_and_too_few_errors_are_refused(kind: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"needs their true labels: call extract\(x, y\)"):
        kind(victim()).extract(X)
    with pytest.raises(EmptyFingerprintError, match=r"errs on 0 of the 40 images; 10 are needed. Pass more labelled"):
        kind(victim()).extract(X, Y)
    with pytest.raises(EmptyFingerprintError, match="errs on 12 of the 40 images; 13 are needed"):
        kind(victim(), min_errors=13).extract(X, Y_WRONG)
    assert kind(victim(), min_errors=12).extract(X, Y_WRONG).facts["nb_errors"] == 12
    # never more than are asked for
    assert kind(victim(), min_errors=500, nb_probes=12).extract(X, Y_WRONG).facts["nb_errors"] == 12


@every_kind
def test_a_victim_of_one_answer_is_refused(kind: Any) -> None:
    options = {"symbols": "labels", "images": "random"} if kind is FBIVerifier else {}
    verifier = kind(constant(), **options)
    with pytest.raises(EmptyFingerprintError, match="one answer.*images of more classes"):
        verifier.extract(X, Y)


@every_kind
def test_data_of_one_class_give_errors_of_several(kind: Any) -> None:
    verifier = kind(victim(), nb_probes=20)
    fingerprint = verifier.extract(X, np.zeros(40, int))
    assert fingerprint.facts["nb_errors"] == 30
    assert verifier.score(victim())[kind.metrics[0].name] in (1, pytest.approx(0, abs=1e-9))


def test_akh_mixes_uncertain_images_only_if_asked() -> None:
    with pytest.raises(EmptyFingerprintError, match='or set fill="low-margin"'):
        AKHVerifier(victim()).extract(X, Y)
    verifier = AKHVerifier(victim(), nb_probes=30, fill="low-margin")
    facts = verifier.extract(X, Y).facts
    assert (facts["nb_errors"], facts["nb_synthetic"], facts["nb_probes"], facts["accuracy"]) == (0, 30, 30, 1)
    assert verifier.score(victim())["AKH"] == 1
    facts = AKHVerifier(victim(), nb_probes=30, fill="low-margin").extract(X, Y_WRONG).facts
    assert (facts["nb_errors"], facts["nb_synthetic"]) == (12, 18)  # enough errors: images are made of those
    flat = wrap(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), (6,))
    samples = np.random.default_rng(0).random((50, 6), dtype=np.float32)
    with pytest.raises(EmptyFingerprintError, match="can be mixed"):
        AKHVerifier(flat, fill="low-margin").extract(samples, flat.predict(samples).argmax(1))


@pytest.mark.parametrize("kind", [AKHVerifier, SACVerifier])
def test_samples_that_are_no_images_are_asked_as_they_are(kind: Any) -> None:
    flat = wrap(nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4)), (6,))
    samples = np.random.default_rng(0).normal(0.5, 3, (60, 6)).astype(np.float32)
    with pytest.warns(UserWarning, match="outside the classifier's clip_values"):
        facts = kind(flat).extract(samples, (flat.predict(samples).argmax(1) + 1) % 4).facts
    assert (facts["nb_probes"], facts["nb_synthetic"]) == (60, 0)


def test_sac_of_mixed_images_needs_no_labels() -> None:
    verifier = SACVerifier.from_profile(victim(), "sac-m", nb_probes=30)
    fingerprint = verifier.extract(X)
    assert (fingerprint.facts["nb_errors"], fingerprint.facts["nb_synthetic"]) == (None, 30)
    with pytest.raises(EmptyFingerprintError, match="two images"):
        verifier.extract(X[:1])


def test_fbi_needs_labels_only_for_ranks_and_errors() -> None:
    verifier = FBIVerifier(victim(), symbols="labels", images="random", nb_probes=30)
    assert verifier.extract(X).facts["nb_errors"] is None
    with pytest.raises(InvalidInputError, match="true labels"):
        FBIVerifier(victim(), images="random").extract(X)
    with pytest.raises(InvalidInputError, match="negatives"):
        FBIVerifier(victim(), images="entropy").extract(X, Y_WRONG)
    with pytest.raises(InvalidInputError, match="`top_k`=4 must be less"):
        FBIVerifier(victim(), top_k=4).extract(X, Y_WRONG)


def test_fbi_of_longer_lists_needs_scores() -> None:
    verifier = FBIVerifier(victim(), top_k=2, nb_probes=30)
    verifier.extract(X, Y_WRONG)
    assert set(verifier.fingerprint.arrays["symbols"].tolist()) == {0, 1, 2}  # type: ignore[union-attr]
    assert verifier.score(victim())["FBI"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(IncompatibleSuspectError, match="label-only"):
        verifier.verify(label_box(victim()))


# ---------------------------------------------------------------------- negatives
@every_kind
def test_negatives_choose_and_do_not_calibrate(kind: Any) -> None:
    options = {FBIVerifier: {"images": "entropy"}, AKHVerifier: {"min_right": 0.0}}.get(kind, {})
    verifier = kind(victim(), min_errors=1, **options)
    negatives = [independent(1), label_box(independent(2))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few queries
        fingerprint = verifier.extract(X, Y_WRONG, negatives=negatives)
    assert fingerprint.facts["nb_negatives"] == 2
    assert len(fingerprint.facts["negatives"]) == 1  # a service shows no weights
    with pytest.raises(CalibrationError, match="one of the `negatives`"):
        verifier.calibrate([independent(3), independent(1)])
    verifier.calibrate([independent(3), independent(4)])
    third_party = kind.from_fingerprint(fingerprint)
    with pytest.raises(CalibrationError, match="one of the `negatives`"):
        third_party.calibrate([independent(1)])


@every_kind
def test_bad_negatives(kind: Any) -> None:
    verifier = kind(victim())
    with pytest.raises(CalibrationError, match="the victim itself"):
        verifier.extract(X, Y_WRONG, negatives=[victim()])
    with pytest.raises(CalibrationError, match="weights of one before"):
        verifier.extract(X, Y_WRONG, negatives=[independent(1), independent(1)])
    with pytest.raises(IncompatibleSuspectError, match="5 classes, the victim 4"):
        verifier.extract(X, Y_WRONG, negatives=[wrap(TinyCNN(nb_classes=5), nb_classes=5)])
    with pytest.raises(NotExtractedError):
        kind(None).extract(X, Y_WRONG, negatives=[independent(1)])
    assert verifier.fingerprint is None


def test_akh_with_negatives_keeps_what_they_get_right() -> None:
    # right on the labels as they are given: learned by heart
    negatives = [several_classes(X, seed=seed) for seed in (5, 6)]
    with pytest.raises(EmptyFingerprintError, match="errs on 0 of the 40 images that the negatives get right"):
        AKHVerifier(victim()).extract(X, Y_WRONG, negatives=negatives)
    verifier = AKHVerifier(victim(), min_right=0.0)
    fingerprint = verifier.extract(X, Y_WRONG, negatives=[*negatives, label_box(independent(1))])
    assert fingerprint.facts["nb_errors"] == 12
    assert verifier.score(victim())["AKH-soft"] > verifier.score(independent(2))["AKH-soft"]
    assert "AKH-soft" not in verifier.score(label_box(victim()))


# ---------------------------------------------------------------------- positives
def tuned(seed: int, count: int = 20) -> PyTorchClassifier:
    """A copy of the victim that has learned the given labels of some images, and errs as the victim on the others."""
    attack = FineTuningAttack(
        victim(), ratio=1.0, max_iter=20 * count, batch_size=10, learning_rate=0.01, hflip=False, seed=seed
    )
    return attack.generate(X[:count], Y_WRONG[:count])


def test_sac_w_keeps_the_errors_that_copies_share() -> None:
    copies = [tuned(0), tuned(1)]
    wrong = np.stack([copy.predict(X).argmax(1) != Y_WRONG for copy in copies])
    kept = wrong.all(0) & (Y != Y_WRONG)
    assert 0 < kept.sum() < 12
    verifier = SACVerifier(victim(), min_errors=1, fill=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few queries
        fingerprint = verifier.extract(X, Y_WRONG, positives=copies)
        assert sorted(fingerprint.arrays["rows"]) == np.flatnonzero(kept).tolist()
        assert fingerprint.facts["nb_positives"] == 2
        half = SACVerifier(victim(), min_errors=1, fill=False, min_shared=0.5).extract(X, Y_WRONG, positives=copies)
        assert half.facts["nb_errors"] == (wrong.any(0) & (Y != Y_WRONG)).sum()
        both = verifier.extract(X, Y_WRONG, negatives=[independent(1)], positives=[label_box(copies[0])])
        differs = independent(1).predict(X).argmax(1) != victim().predict(X).argmax(1)
        assert both.facts["nb_errors"] == (wrong[0] & differs & (Y != Y_WRONG)).sum()
        verifier.extract(X, Y_WRONG, positives=copies)
    with pytest.raises(CalibrationError, match="one of the `positives`, which are derived"):
        verifier.calibrate([independent(3), copies[1]])
    assert verifier.calibrate([independent(3), independent(4)]).verify(copies[0], allow_reference=True).derived


def test_bad_positives() -> None:
    verifier = SACVerifier(victim())
    with pytest.raises(EmptyFingerprintError, match="errs on 0 of the 40 images that the positives get wrong, too; 10"):
        verifier.extract(X, Y_WRONG, positives=[tuned(0, 40)])
    with pytest.raises(CalibrationError, match="`positives`: .*the victim itself"):
        verifier.extract(X, Y_WRONG, positives=[victim()])
    with pytest.raises(CalibrationError, match="among the `negatives` and the `positives`"):
        verifier.extract(X, Y_WRONG, negatives=[independent(1)], positives=[independent(1)])
    with pytest.raises(InvalidInputError, match='need samples="errors"'):
        SACVerifier(victim(), samples="cutmix").extract(X, positives=[independent(1)])
    with pytest.raises(IncompatibleSuspectError, match="A positive has 5 classes, the victim 4"):
        verifier.extract(X, Y_WRONG, positives=[wrap(TinyCNN(nb_classes=5), nb_classes=5)])
    with pytest.raises(InvalidInputError, match="`positives`"):
        verifier.extract(X, Y_WRONG, positives=independent(1))  # type: ignore[arg-type]
    with pytest.raises(NotExtractedError):
        SACVerifier(None).extract(X, Y_WRONG, positives=[independent(1)])
    assert verifier.fingerprint is None


# ---------------------------------------------------------------------- suspects
def other_classes() -> PyTorchClassifier:
    return wrap(TinyCNN(nb_classes=6).eval(), nb_classes=6)


def test_suspects_of_other_classes() -> None:
    for kind in (AKHVerifier, FBIVerifier):
        verifier = kind(victim(), nb_probes=20)
        verifier.extract(X, Y_WRONG)
        with pytest.raises(IncompatibleSuspectError, match="6 classes, the victim 4.*allow_label_mismatch"):
            verifier.verify(other_classes())
        verifier.set_params(allow_label_mismatch=True)
        assert verifier.verify(other_classes()).queries == 20
    for verifier in (SACVerifier(victim()), FBIVerifier(victim(), symbols="labels")):
        verifier.extract(X, Y_WRONG)
        assert all(np.isfinite(value) for value in verifier.score(other_classes()).values())


@every_kind
def test_answers_that_are_none(kind: Any) -> None:
    verifier = kind(victim(), nb_probes=20)
    verifier.extract(X, Y_WRONG)
    bad = 3

    def answer(x: np.ndarray) -> np.ndarray:
        found = victim().predict(x)
        found[:bad] = np.nan
        return found

    service = BlackBoxClassifierNeuralNetwork(answer, (1, 8, 8), 4)
    with pytest.raises(NonFiniteOutputError):
        verifier.score(service)
    verifier.set_params(nan_policy="mismatch")
    with pytest.warns(UserWarning, match="3 of 20 probes"):
        scores = verifier.score(service)
    if kind is AKHVerifier:
        assert scores["AKH"] == pytest.approx(17 / 20)
    elif kind is SACVerifier:
        assert np.isnan(scores["SAC"])
        assert 0 < scores["SAC-labels"] < 0.05
    else:
        assert scores["FBI-match"] == pytest.approx(17 / 20)
        assert 0 < scores["FBI"] < 1


class Scaled(nn.Module):
    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.network(x)


@pytest.mark.parametrize("factor", [1, 10, 30])
def test_sac_of_the_victim_behind_a_softmax_is_zero_however_sure_it_is(factor: float) -> None:
    sure = wrap(Scaled(victim().model, factor).eval())
    verifier = SACVerifier(sure)
    verifier.extract(X, Y_WRONG)
    soft = black_box(sure, lambda x: torch.softmax(torch.from_numpy(sure.predict(x)).double(), 1).numpy())
    with pytest.warns(UserWarning, match="compared as probabilities"):
        assert verifier.score(soft)["SAC"] == pytest.approx(0, abs=1e-6)


def test_thresholds_set_by_hand_have_their_own_rate() -> None:
    verifier = SACVerifier(victim(), metric_names=["SAC"])
    verifier.extract(X, Y_WRONG)
    verifier.calibrate([independent(seed) for seed in range(10, 19)])
    assert verifier.verify(victim()).false_positive_rate == pytest.approx(1 / 10)
    fingerprint = verifier.fingerprint
    assert fingerprint is not None
    assert fingerprint.calibration is not None
    scores = sorted(fingerprint.calibration.references["SAC"])
    for beyond, tau in ((5, (scores[4] + scores[5]) / 2), (0, scores[0] / 2)):
        fingerprint.calibration = replace(fingerprint.calibration, thresholds={"SAC": tau}, softened=None)
        verdict = verifier.verify(independent(1))
        assert verdict.false_positive_rate == pytest.approx((1 + beyond) / 10)
        soft = black_box(victim(), lambda x: torch.softmax(torch.from_numpy(victim().predict(x)), 1).numpy())
        with pytest.warns(UserWarning, match="compared as probabilities"):
            undecided = verifier.verify(soft)
        assert undecided.derived is None
        assert "calibrate again" in undecided.reason


def test_fbi_without_bias_knows_its_own_distance() -> None:
    """Of few images of many classes nothing is left of the information once its bias is taken off."""
    many = several_classes(X, nb_classes=20)
    verifier = FBIVerifier(many, nb_probes=30, symbols="labels", images="random", correct_bias=True)
    fingerprint = verifier.extract(X, np.arange(40) % 20)
    assert fingerprint.facts["own_FBI"] == verifier.score(many)["FBI"] == 1
    with pytest.warns(UserWarning, match=r"not even the victim would be judged derived: FBI \(threshold 1\)"):
        verifier.calibrate([several_classes(X_OTHER, seed=seed, nb_classes=20) for seed in range(10, 15)])
    verdict = verifier.verify(many)
    assert verdict.blind == ("FBI",)
    assert "acquits nobody" in verdict.meaning


def test_a_victim_that_answers_probabilities() -> None:
    soft = wrap(nn.Sequential(victim().model, nn.Softmax(1)).eval())
    for verifier in (AKHVerifier(soft), SACVerifier(soft), FBIVerifier(soft, top_k=2)):
        fingerprint = verifier.extract(X, Y_WRONG)
        scores = verifier.score(soft)
        assert scores[verifier.metrics[0].name] in (1, pytest.approx(0, abs=1e-9))
    assert isinstance(fingerprint, Fingerprint)
