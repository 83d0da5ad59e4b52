"""Every attack says beforehand what it will cost: what it says against the account of the run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.attacks import CompositeAttack, RegularizationAttack, RemovalNetAttack
from art_fingerprint.attacks.base import RemovalAttack, SubstituteSet
from art_fingerprint.attacks.retraining import RetrainingAttack
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.training import Batch, Batches, Losses, fit, nb_batches, samples_in_steps
from art_fingerprint.exceptions import InvalidInputError
from tests.conformance.attack_cases import NEED_LABELS, Case, every_attack, everything, odd_victim, parameters
from tests.conftest import TinyCNN, wrap
from tests.victims import several_classes, token_classifier

Y = np.arange(1, 41) % 4
# Samples of the checks before the first step, which no expectation counts. An attack that is not named here has none.
CHECKS = {"DistillationAttack": 10, "FinePruningAttack": 3, "LayerFineTuningAttack": 2, "RemovalNetAttack": 80}
CHECKS["RemovalNetAttack-error_repair"] = CHECKS["RemovalNetAttack"]


def lengths(case: Case) -> list[dict[str, Any]]:
    """Return changes that make longer runs, as far as the attack has a length."""
    known = parameters(case.attack)
    epochs = [{"nb_epochs": 2, **({"max_iter": None} if "max_iter" in known else {})}] if "nb_epochs" in known else []
    return [*([{"max_iter": 11}] if "max_iter" in known else []), *epochs]


def measured(attack: Any, images: np.ndarray, labelled: bool = True) -> float:
    info = attack.generate(images, Y[: len(images)] if labelled else None).surrogate_info
    return float(info["cost"]["forward_equivalents"])


@every_attack
def test_expectation_is_the_account_but_for_checks(case: Case, images: np.ndarray) -> None:
    victim = several_classes(images)
    for changes in ({}, {"hflip": False, "batch_size": 13}, *lengths(case)):
        attack = case.make(victim, **changes)
        for labelled in (True, False)[: 1 + (case.name not in NEED_LABELS)]:
            gap = measured(attack, images, labelled) - attack.expected_passes(40, labelled)
            assert 0 <= gap <= CHECKS.get(case.name, 0), (changes, labelled)


@every_attack
def test_more_steps_cost_what_they_are_expected_to(case: Case, images: np.ndarray) -> None:
    short, victim = case.make(several_classes(images)), several_classes(images)
    for changes in lengths(case):
        long = case.make(victim, **changes)
        more = measured(long, images) - measured(short, images)
        assert long.expected_passes(40) - short.expected_passes(40) == pytest.approx(more, rel=1e-9)
        assert more > 0


@every_attack
def test_more_samples_never_cost_less(case: Case, images: np.ndarray) -> None:
    for changes in ({}, *lengths(case)):
        attack = case.make(several_classes(images), **changes)
        for labelled in (True, False):
            costs = [attack.expected_passes(n, labelled) for n in (16, 32, 64, 1024)]
            assert costs == sorted(costs)
            assert costs[0] > 0
            if changes.get("nb_epochs"):
                assert costs[-1] > 10 * costs[0]
        assert attack.expected_passes(64, False) >= attack.expected_passes(64)


@every_attack
def test_asking_changes_nothing(case: Case, images: np.ndarray) -> None:
    victim = odd_victim(images)
    before = everything(victim)
    attack = case.make(victim)
    assert attack.expected_passes(40) == attack.expected_passes(40)
    assert everything(victim) == before
    for bad in ((0,), (2.5,), (-3, True), (40, "yes")):
        with pytest.raises(InvalidInputError, match="nb_samples|labelled"):
            attack.expected_passes(*bad)


# ---------------------------------------------------------------------- an attack that says nothing of its own
class OwnAttack(RemovalAttack):
    """What somebody else may write: steps on labels, and not a word about costs."""

    attack_params = [*RemovalAttack.attack_params, "nb_epochs"]

    def __init__(self, classifier: PyTorchClassifier, nb_epochs: int, hflip: bool) -> None:
        super().__init__(
            classifier,
            batch_size=16,
            hflip=hflip,
            callback=None,
            callback_interval=100,
            seed=0,
            summary_writer=False,
            verbose=False,
        )
        self.nb_epochs = nb_epochs

    def _derive(self, surrogate: PyTorchClassifier, data: SubstituteSet) -> dict[str, Any]:
        view = LogitsNetwork(surrogate)
        batches = self._batches(data)

        def loss(batch: Batch) -> Losses:
            return {"ce": F.cross_entropy(view.logits(view.network(batch.x)), data.labels_of(batch))}

        optimizer = torch.optim.SGD(view.network.parameters(), 1e-3)
        return {"losses": fit(batches, loss, optimizer, self.nb_epochs * len(batches))}


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_an_attack_gets_its_expectation_for_nothing(hflip: bool, labelled: bool, images: np.ndarray) -> None:
    attack = OwnAttack(several_classes(images), 3, hflip)
    expected = 3 * 3 * 40 + (0 if labelled else 40 * (1 + hflip))
    assert attack.expected_passes(40, labelled) == measured(attack, images, labelled) == expected


# ---------------------------------------------------------------------- epochs
@pytest.mark.parametrize("n", [1, 2, 12, 13, 14, 25, 26, 27, 40])
@pytest.mark.parametrize("batch_size", [1, 2, 13, 50])
def test_samples_of_steps_are_those_of_the_batches(n: int, batch_size: int, images: np.ndarray) -> None:
    view = LogitsNetwork(several_classes(images))
    batches = Batches(torch.zeros(n, 1, 8, 8), view.preprocess, batch_size, torch.device("cpu"), 0)
    assert nb_batches(n, batch_size) == len(batches)
    seen = [0]
    for _, batch in zip(range(2 * len(batches) + 1), batches, strict=False):
        seen.append(seen[-1] + len(batch.x))
    assert [samples_in_steps(n, batch_size, steps) for steps in range(len(seen))] == seen


# ---------------------------------------------------------------------- RemovalNet, whose settings change its passes
class Branching(TinyCNN):
    """Cannot be traced: cuts work by hooks."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.detach().sum()) > -math.inf else -x)


def branching(images: np.ndarray) -> PyTorchClassifier:
    network = Branching()
    network.load_state_dict(several_classes(images).model.state_dict())
    return wrap(network.eval())


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": None},
        {"inner_steps": 0},
        {"beta": 0},
        {"alpha": 0, "beta": 0},
        {"alpha": 0, "gamma": 0},
        {"latent_source": "victim"},
        {"latent_source": "victim", "logit_source": "victim"},
        {"reference_double_pass": True},
        {"keep_best": 0.25, "min_agreement": 0.0},
        {"keep_best": 0.25, "min_agreement": 0.0, "bn_recalibrate": 2},
        {"bn_recalibrate": 2},
        {"weight_repulsion": 1.0, "error_repair": 1.0},
        {"alpha": 0, "gamma": 0, "weight_repulsion": 1.0},
        {"alpha": 0, "gamma": 0, "error_repair": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [several_classes, token_classifier, branching], ids=["graph", "side inputs", "hooks"])
@pytest.mark.filterwarnings("ignore:.*shuffle_ratio")
def test_settings_of_removalnet(make: Any, changes: dict[str, Any], images: np.ndarray) -> None:
    victim = make(images)
    options = {"layer": "block1", "shuffle_ratio": 0.6, "batch_size": 20, "inner_steps": 3, "callback_interval": 2}
    short, long = (RemovalNetAttack(victim, max_iter=n, **{**options, **changes}) for n in (2, 5))
    more = measured(long, images) - measured(short, images)
    assert long.expected_passes(40) - short.expected_passes(40) == pytest.approx(more, rel=1e-9)
    assert 0 <= measured(short, images) - short.expected_passes(40) <= 160


def test_a_surrogate_of_another_architecture_has_the_cost_of_its_own_cut(images: np.ndarray) -> None:
    wide = wrap(TinyCNN(width=12).eval())
    attack = RemovalNetAttack(several_classes(images), "block2", surrogate=wide, shuffle_ratio=0.6, batch_size=20)
    attack.set_params(max_iter=40)
    assert measured(attack, images) == pytest.approx(attack.expected_passes(40), rel=0.02)


# ---------------------------------------------------------------------- other settings
def test_training_that_ends_early_is_counted_to_its_end(images: np.ndarray) -> None:
    attack = RegularizationAttack(
        several_classes(images), learning_rate=0.0, strong_epochs=1, nb_epochs=9, patience=2, batch_size=18
    )
    # 4 of 40 samples are held back; after one strong epoch the first reading is the lowest, and two more end it
    assert measured(attack, images) == 80 + 4 * 3 * 36 + 3 * 4
    assert attack.expected_passes(40) == 80 + 10 * 3 * 36 + 9 * 4


def test_altered_copies_are_asked_about_one_by_one(images: np.ndarray) -> None:
    attack = RetrainingAttack(several_classes(images), label_queries=3, max_iter=2, batch_size=20)
    assert measured(attack, images) == attack.expected_passes(40) == 3 * 40 + 3 * 40


def test_a_row_asks_for_labels_once(images: np.ndarray) -> None:
    tuned = ("FineTuningAttack", {"ratio": 1.0, "max_iter": 2})
    row = CompositeAttack(several_classes(images), (tuned, ("LabelSmoothingAttack", {"max_iter": 3})), batch_size=20)
    assert row.expected_passes(40) == measured(row, images) == 80 + 3 * 100


def test_data_that_leaves_nothing_to_train_on_is_refused(images: np.ndarray) -> None:
    attack = RemovalNetAttack(several_classes(images), keep_best=0.5)
    with pytest.raises(InvalidInputError, match="`nb_samples`=1 leaves RemovalNetAttack no sample"):
        attack.expected_passes(1)
