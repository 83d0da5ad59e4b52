"""Robust accuracy and its distance, and the verifier made of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.postprocessor import ReverseSigmoid
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint.core.adversarial import Evasion, adversarial_examples
from art_fingerprint.evaluation.fidelity import accuracy, agreement, predicted_labels
from art_fingerprint.evaluation.robustness import (
    robust_accuracy,
    robustness,
    robustness_distance,
    robustness_table,
)
from art_fingerprint.exceptions import EmptyFingerprintError, IncompatibleSuspectError, InvalidInputError
from art_fingerprint.verifiers import RobustnessVerifier
from tests.conftest import wrap
from tests.states import black_box
from tests.victims import several_classes

X = np.random.default_rng(5).random((32, 1, 8, 8), dtype=np.float32)
Y = np.arange(32) % 4
SMALL: dict[str, Any] = {"nb_seeds": 32, "eps": 0.05, "alpha": 0.02, "steps": 4, "deepfool_steps": 5}


def line(offset: float) -> PyTorchClassifier:
    """A classifier on one number x in [0, 1]: class 1 if x > 0.5 + offset."""
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [10.0]]))
        layer.bias.copy_(torch.tensor([0.0, -10 * (0.5 + offset)]))
    return wrap(nn.Sequential(nn.Flatten(), layer), (1, 1, 1), 2)


POINTS = np.array([0.1, 0.38, 0.45, 0.49, 0.51, 0.58, 0.7, 0.9], np.float32).reshape(-1, 1, 1, 1)
SIDES = (POINTS.reshape(-1) > 0.5).astype(int)


@pytest.mark.parametrize("attack", ["FGSM", "PGD"])
@pytest.mark.parametrize(("eps", "survivors"), [(0.005, 8), (0.02, 6), (0.06, 5), (0.1, 4), (0.25, 2)])
def test_closed_form(attack: str, eps: float, survivors: int) -> None:
    # a point survives if it is farther than eps from 0.5
    params = {"steps": 1, "alpha": eps, "random_start": False} if attack == "PGD" else {}
    found = robustness(line(0.0), POINTS, SIDES, attack, eps=eps, **params)
    assert found.accuracy == survivors / 8
    assert found.clean_accuracy == 1
    assert found.max_linf == pytest.approx(eps, rel=1e-3)
    assert found.median_l2 == pytest.approx(eps, rel=1e-3)
    assert (found.nb_samples, found.undecided) == (8, 0)
    assert robust_accuracy(line(0.0), POINTS, SIDES, attack, eps=eps, **params) == survivors / 8


def test_deepfool_goes_to_the_boundary_and_beyond() -> None:
    found = robustness(line(0.0), POINTS, SIDES, "DeepFool", overshoot=0.5)
    assert found.accuracy == 0
    assert found.median_l2 == pytest.approx(1.5 * np.median(np.abs(POINTS - 0.5)), rel=1e-4)


def test_samples_on_the_boundary_are_counted_as_undecided() -> None:
    # at 0.125 and 0.875, which have exact steps
    exact, sides = POINTS[:2] * 0 + np.array([0.125, 0.875], np.float32).reshape(2, 1, 1, 1), np.array([0, 1])
    assert robustness(line(0.0), exact, sides, "DeepFool", overshoot=0.0, steps=1).undecided == 1


def test_answers_that_are_no_numbers_are_no_labels() -> None:
    """Else a broken model would have the accuracy of one that always says class 0."""
    broken = wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), 2)
    nn.init.constant_(broken.model[1].weight, float("nan"))
    x, y = np.zeros((3, 1, 2, 2), dtype=np.float32), np.zeros(3, dtype=np.int64)
    assert accuracy(broken, x, y) == agreement(broken, broken, x) == 0
    assert predicted_labels(broken, x).tolist() == [-1, -1, -1]
    found = robustness(broken, x, y, "FGSM", source=wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), 2))
    assert (found.accuracy, found.clean_accuracy, found.undecided) == (0, 0, 1)


def test_distance_white_box_and_by_transfer() -> None:
    victim, shifted = line(0.0), line(0.1)
    # eps 0.06: the victim keeps 5 of 8. The other is right on all but 0.51 and 0.58; under its own examples
    # it keeps those off [0.54, 0.66]: 0.1, 0.38, 0.45, 0.49, 0.7, 0.9.
    assert robustness_distance(victim, shifted, POINTS, SIDES, "FGSM", eps=0.06) == pytest.approx(1 / 8)
    # the victim's examples: 0.16 0.44 0.51 0.55 | 0.45 0.52 0.64 0.84, of which the other gets 0, 1 and 2 .. 4 right
    assert robustness_distance(victim, shifted, POINTS, SIDES, "FGSM", eps=0.06, transfer=True) == pytest.approx(1 / 8)
    assert robustness_distance(victim, victim, POINTS, SIDES, "PGD") == 0


def test_transfer_to_a_query_only_suspect() -> None:
    victim, other = several_classes(X), several_classes(X, seed=2)
    plain = robust_accuracy(other, X, Y, "FGSM", source=victim, eps=0.1)
    assert robust_accuracy(black_box(other), X, Y, "FGSM", source=victim, eps=0.1) == plain
    examples = adversarial_examples(victim, Evasion("FGSM", {"eps": 0.1}), X, Y)
    assert plain == (other.predict(examples).argmax(1) == Y).mean()


def test_postprocessing_counts_and_is_not_attacked() -> None:
    plain = several_classes(X)
    defended = several_classes(X, postprocessing_defences=ReverseSigmoid())
    examples = adversarial_examples(plain, "FGSM", X, Y)
    assert np.array_equal(adversarial_examples(defended, "FGSM", X, Y), examples)
    expected = (defended.predict(examples).argmax(1) == Y).mean()
    assert robust_accuracy(defended, X, Y, "FGSM") == expected


def test_the_record_names_everything() -> None:
    found = robustness(several_classes(X), X, Y, "PGD", eps=0.1, steps=2, seed=4).to_dict()
    json.dumps(found, allow_nan=False)
    facts = found["attack"]
    assert facts["attack"] == "PGD"
    assert facts["torchattacks"] == "3.5.1"
    assert facts["params"] == {"eps": 0.1, "alpha": 2 / 255, "steps": 2, "random_start": True}
    art = robustness(several_classes(X), X, Y, FastGradientMethod(several_classes(X), eps=0.1)).to_dict()
    json.dumps(art, allow_nan=False)
    assert art["attack"]["attack"] == "FastGradientMethod"
    assert art["attack"]["params"]["eps"] == 0.1


def test_table_four_has_a_row_for_each_attack() -> None:
    models = {"victim": several_classes(X), "negative": several_classes(X, seed=1)}
    table = robustness_table(models, X, Y, ("FGSM", Evasion("PGD", {"eps": 0.1}), "DeepFool"))
    assert list(table) == ["FGSM", "PGD", "DeepFool"]
    assert table["PGD"]["negative"] == robustness(models["negative"], X, Y, "PGD", eps=0.1)
    for attacks in ((), ("FGSM", "FGSM")):
        with pytest.raises(InvalidInputError, match="different attacks"):
            robustness_table(models, X, Y, attacks)


def test_parameters_go_with_a_name_only() -> None:
    with pytest.raises(InvalidInputError, match="with the name of an attack only"):
        robustness(several_classes(X), X, Y, Evasion("FGSM"), eps=0.1)


# ---------------------------------------------------------------------- the verifier
@pytest.mark.parametrize("mode", ["transfer", "white-box"])
def test_the_verifier_measures_what_the_functions_measure(mode: str) -> None:
    victim, other = several_classes(X), several_classes(X, seed=3)
    verifier = RobustnessVerifier(victim, mode=mode, **SMALL)
    fingerprint = verifier.extract(X, Y)
    right = victim.predict(X).argmax(1) == Y
    assert ("seeds" in fingerprint.arrays) is (mode == "white-box")
    scores = verifier.score(other)
    for name in ("FGSM", "PGD", "DeepFool"):
        options: dict[str, Any] = {"attack": verifier.attack(name), "seed": verifier.seed}
        source = victim if mode == "transfer" else None
        assert scores[f"Rob-{name}"] == pytest.approx(
            robust_accuracy(other, X[right], Y[right], source=source, **options)
        )
        expected = robustness_distance(victim, other, X[right], Y[right], transfer=mode == "transfer", **options)
        assert scores[f"RobD-{name}"] == pytest.approx(expected)


def test_white_box_mode_says_what_it_needs() -> None:
    verifier = RobustnessVerifier(several_classes(X), mode="white-box", **SMALL)
    verifier.extract(X, Y)
    with pytest.raises(IncompatibleSuspectError, match="PyTorchClassifier"):
        verifier.verify(black_box(several_classes(X, seed=1)))


def test_only_the_metrics_asked_for_cost_examples() -> None:
    verifier = RobustnessVerifier(several_classes(X), metric_names=("RobD-FGSM",), **SMALL)
    fingerprint = verifier.extract(X, Y)
    assert {"examples_FGSM", "labels_FGSM", "true"} == set(fingerprint.arrays)
    assert set(verifier.score(several_classes(X, seed=1))) == {"RobD-FGSM", "Rob-FGSM"}
    verifier.set_params(metric_names=("RobD-FGSM", "RobD-PGD"))
    assert "extract again" in verifier.verify(several_classes(X, seed=1)).skipped["RobD-PGD"]


def test_a_suspect_with_other_classes() -> None:
    verifier = RobustnessVerifier(several_classes(X), **SMALL)
    verifier.extract(X, Y)
    suspect = several_classes(X, nb_classes=6)
    with pytest.raises(IncompatibleSuspectError, match="allow_label_mismatch"):
        verifier.verify(suspect)
    verifier.set_params(allow_label_mismatch=True)
    assert set(verifier.verify(suspect).metrics) == {"RobD-FGSM", "RobD-PGD", "RobD-DeepFool"}


def test_only_images_that_the_victim_gets_right_are_attacked() -> None:
    verifier = RobustnessVerifier(several_classes(X), **{**SMALL, "nb_seeds": 5})
    wrong = Y.copy()
    wrong[:20] = (wrong[:20] + 1) % 4
    fingerprint = verifier.extract(X, wrong)
    assert fingerprint.facts["nb_FGSM"] == 5
    victim_right = several_classes(X).predict(X).argmax(1) == wrong
    assert set(fingerprint.arrays["true"]) <= set(wrong[victim_right])
    with pytest.raises(EmptyFingerprintError, match="check `y`"):
        verifier.extract(X, (several_classes(X).predict(X).argmax(1) + 1) % 4)
