"""Attacks in a row: what each of them starts from, who labels the data, whose settings count, and bad rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import nn

from art_fingerprint.attacks import (
    CompositeAttack,
    DistillationAttack,
    FineTuningAttack,
    KnockoffNetsAttack,
    LogitDistillationAttack,
    RemovalNetAttack,
    RetrainingAttack,
    WeightPruningAttack,
)
from art_fingerprint.attacks.base import SubstituteSet
from art_fingerprint.attacks.stealing import StealingAttack
from art_fingerprint.core.seeding import derive_seed
from art_fingerprint.exceptions import InvalidInputError, TrainingDivergedError
from tests.conformance.attack_cases import Case, every_attack
from tests.states import mark, random_states, state_of
from tests.victims import TinyTokens, several_classes, token_classifier

Options = dict[str, Any]
QUICK: Options = {"max_iter": 4, "batch_size": 16}
SHORT: Options = {"max_iter": 4}
Y = np.arange(1, 41) % 4  # not what the victim says
REMOVAL: Options = {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 2, "max_iter": 4}
ROW = (("WeightPruningAttack", {"ratio": 0.6, **SHORT}), ("FineTuningAttack", {"ratio": 1.0, **SHORT}))


def equal(a: PyTorchClassifier, b: PyTorchClassifier) -> bool:
    other = b.model.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.model.state_dict().items())


# ---------------------------------------------------------------------- what a row does
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (FineTuningAttack, SHORT),
        (WeightPruningAttack, {"ratio": 0.7, **SHORT}),
        (DistillationAttack, SHORT),
        (DistillationAttack, {"init": "random", **SHORT}),
        (RemovalNetAttack, REMOVAL),
        (KnockoffNetsAttack, {"sampling_strategy": "adaptive", "draws": 4, **SHORT}),
        (LogitDistillationAttack, SHORT),
        (RetrainingAttack, {"surrogate_factory": TinyTokens, **SHORT}),
    ],
    ids=lambda value: getattr(value, "__name__", "") if isinstance(value, type) else "",
)
def test_row_of_one_is_that_attack(kind: Any, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    row = CompositeAttack(victim, [(kind.__name__, options)], batch_size=16, seed=5).generate(images, Y)
    alone = kind(victim, **options, batch_size=16, seed=5).generate(images, Y)
    assert type(row.model) is type(alone.model)
    assert equal(row, alone)
    assert row.surrogate_info["victim_queries"] == alone.surrogate_info["victim_queries"]
    assert row.surrogate_info["cost"]["forward_equivalents"] == alone.surrogate_info["cost"]["forward_equivalents"]
    (info,) = row.surrogate_info["steps"]
    assert info["attack"] == kind.__name__
    assert info["losses"] == alone.surrogate_info["losses"] == row.surrogate_info["losses"]


@every_attack
def test_every_attack_can_come_second(case: Case, images: np.ndarray) -> None:
    """It works on what the first one left, or says that it would throw it away."""
    victim = several_classes(images)
    second = (case.attack.__name__, {"seed": 3, **case.options})
    rows = [[("FineTuningAttack", {"learning_rate": rate, **SHORT}), second] for rate in (0.01, 0.05)]
    if isinstance(case.make(victim), StealingAttack):
        with pytest.raises(InvalidInputError, match="in place 2 starts from weights of its own"):
            CompositeAttack(victim, rows[0], batch_size=16).generate(images, Y)
        return
    found = [CompositeAttack(victim, row, batch_size=16).generate(images, Y) for row in rows]
    assert not equal(*found)
    assert not equal(found[0], FineTuningAttack(victim, learning_rate=0.01, **QUICK).generate(images, Y))
    json.dumps(found[0].surrogate_info)


def test_each_attack_starts_where_the_one_before_ended(images: np.ndarray) -> None:
    victim = several_classes(images)
    row = CompositeAttack(
        victim, [("FineTuningAttack", SHORT), ("RemovalNetAttack", REMOVAL)], batch_size=16, seed=5
    ).generate(images)
    first = FineTuningAttack(victim, **QUICK, seed=5).generate(images)
    second = RemovalNetAttack(
        victim, **REMOVAL, batch_size=16, surrogate=first, seed=derive_seed(5, "step", 1)
    ).generate(images)
    assert equal(row, second)
    assert not equal(row, first)


def test_victim_labels_the_data_of_all_attacks_once(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = several_classes(images)
    asked: list[int] = []
    ask = SubstituteSet.ask
    monkeypatch.setattr(SubstituteSet, "ask", lambda self, x: (asked.append(len(x)), ask(self, x))[1])
    row = [("RetrainingAttack", SHORT), *ROW, ("RemovalNetAttack", REMOVAL)]
    info = CompositeAttack(victim, row, batch_size=16).generate(images).surrogate_info
    assert asked == [40, 40]
    assert info["victim_queries"] == 80
    assert info["cost"]["victim"]["forward"] == 80


def test_labels_probabilities_and_mirror_images_are_one_question(images: np.ndarray) -> None:
    row = [("DistillationAttack", {"hflip": False, **SHORT}), ("WeightShiftingAttack", {"hflip": True, **SHORT})]
    attack = CompositeAttack(several_classes(images), row, batch_size=16)
    cost = attack.generate(images).surrogate_info["cost"]
    assert cost["victim_queries"] == 80
    passes = cost["forward_equivalents"]
    assert passes == pytest.approx(attack.expected_passes(len(images), labelled=False), abs=10)


def test_queries_of_all_attacks_are_added(images: np.ndarray) -> None:
    row = [("RetrainingAttack", {"label_queries": 2, **SHORT}), ("FineTuningAttack", {"hflip": False, **SHORT})]
    info = CompositeAttack(several_classes(images), row, batch_size=16).generate(images).surrogate_info
    assert info["victim_queries"] == 80 + 40


def test_pruned_weights_stay_zero_and_frozen_ones_thaw(images: np.ndarray) -> None:
    victim = several_classes(images)
    pruned = CompositeAttack(victim, ROW, batch_size=16).generate(images, Y)
    share = float((pruned.model.block3[0].weight == 0).float().mean())
    assert share > 0.3
    frozen = CompositeAttack(
        victim, [("FineTuningAttack", {"ratio": 0.2, **SHORT}), ("FineTuningAttack", {"ratio": 1.0, **SHORT})]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer samples than a batch
        tuned = frozen.generate(images, Y)
    assert not torch.equal(tuned.model.block1[0].weight, victim.model.block1[0].weight)
    assert all(p.requires_grad and p.grad is None for p in tuned.model.parameters())


def test_order_matters(images: np.ndarray) -> None:
    victim = several_classes(images)
    one = CompositeAttack(victim, ROW, batch_size=16).generate(images, Y)
    assert not equal(one, CompositeAttack(victim, ROW[::-1], batch_size=16).generate(images, Y))
    assert equal(one, CompositeAttack(victim, list(ROW), batch_size=16).generate(images, Y))


def test_rows_can_hold_rows(images: np.ndarray) -> None:
    victim = several_classes(images)
    inner = ("CompositeAttack", {"attacks": ROW})
    nested = CompositeAttack(victim, [inner], batch_size=16, seed=2).generate(images, Y)
    assert equal(nested, CompositeAttack(victim, ROW, batch_size=16, seed=2).generate(images, Y))
    info = json.loads(json.dumps(nested.surrogate_info))
    assert [step["attack"] for step in info["steps"][0]["steps"]] == ["WeightPruningAttack", "FineTuningAttack"]


def test_default_row_works(images: np.ndarray) -> None:
    attack = CompositeAttack(several_classes(images))
    steps = [(type(step).__name__, step.ratio, step.max_iter) for step in attack._steps()]  # type: ignore[attr-defined]
    assert steps == [("WeightPruningAttack", 0.5, 1000), ("FineTuningAttack", 1.0, 1000)]


# ---------------------------------------------------------------------- settings
def test_pairs_take_what_they_do_not_say(images: np.ndarray) -> None:
    victim = several_classes(images)
    attack = CompositeAttack(
        victim,
        [("FineTuningAttack", {}), ("FineTuningAttack", {"batch_size": 8, "hflip": True, "seed": 77})],
        batch_size=12,
        hflip=False,
        callback_interval=3,
        seed=9,
        verbose=True,
    )
    first, second = attack._steps()
    assert (first.batch_size, first.hflip, first.callback_interval, first.seed) == (12, False, 3, 9)
    assert first.verbose
    assert (second.batch_size, second.hflip, second.callback_interval, second.seed) == (8, True, 3, 77)
    other = CompositeAttack(victim, [("FineTuningAttack", {})] * 3, seed=9)
    assert len({step.seed for step in other._steps()}) == 3


def test_attack_objects_keep_their_settings(images: np.ndarray) -> None:
    victim = several_classes(images)
    objects = [
        WeightPruningAttack(victim, 0.6, **QUICK, seed=4),
        RemovalNetAttack(victim, **REMOVAL, batch_size=20, hflip=False, seed=6),
    ]
    before = [step.params() for step in objects]
    row = CompositeAttack(victim, objects, batch_size=3, seed=1).generate(images)
    pruned = objects[0].generate(images)
    alone = RemovalNetAttack(victim, **REMOVAL, batch_size=20, hflip=False, seed=6, surrogate=pruned).generate(images)
    assert equal(row, alone)
    assert [step.params() for step in objects] == before
    assert row.surrogate_info["params"]["attacks"] == [
        {"attack": type(step).__name__, "params": params} for step, params in zip(objects, before, strict=True)
    ]


def test_batches_are_those_of_each_attack(images: np.ndarray) -> None:
    sizes: list[int] = []

    def listen(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0:
            surrogate.model.block1.register_forward_hook(
                lambda module, inputs, _out: sizes.append(len(inputs[0])) if module.training else None
            )

    row = [("FineTuningAttack", {"max_iter": 2}), ("FineTuningAttack", {"max_iter": 3, "batch_size": 10})]
    CompositeAttack(several_classes(images), row, batch_size=20, callback=listen).generate(images, Y)
    assert sizes == [20, 20, 10, 10, 10]


def test_callback_counts_on(images: np.ndarray) -> None:
    victim = several_classes(images)
    steps: list[int] = []
    own: list[int] = []
    last: list[Mapping[str, float]] = []

    def watch(step: int, surrogate: PyTorchClassifier, losses: Mapping[str, float]) -> None:
        assert not any(module.training for module in surrogate.model.modules())
        steps.append(step)
        last.append(losses)

    row = [
        ("FineTuningAttack", SHORT),
        ("WeightPruningAttack", {"max_iter": 5}),
        ("FineTuningAttack", {"max_iter": 3, "callback": lambda step, *_: own.append(step)}),
        ("DistillationAttack", {"max_iter": 1}),
    ]
    watched = CompositeAttack(victim, row, batch_size=16, callback=watch, callback_interval=2).generate(images, Y)
    assert steps == [0, 2, 4, 6, 8, 9, 10]
    assert own == [0, 2, 3]
    assert dict(last[-1]) == watched.surrogate_info["losses"]
    assert equal(watched, CompositeAttack(victim, row, batch_size=16).generate(images, Y))


def test_summary_writer_serves_all_attacks(images: np.ndarray) -> None:
    class Writer(SummaryWriter):
        def __init__(self) -> None:
            self.rows: list[int] = []

        def update(self, batch_id: int, global_step: int, **_kwargs: Any) -> None:  # type: ignore[override]
            self.rows.append(global_step)

    writer = Writer()
    CompositeAttack(several_classes(images), ROW, batch_size=16, summary_writer=writer).generate(images, Y)
    assert writer.rows == [0, 4, 0, 4]


def test_report_is_json(images: np.ndarray) -> None:
    attack = CompositeAttack(several_classes(images), ROW, batch_size=16, callback=lambda *_: None)
    info = json.loads(json.dumps(attack.generate(images, Y).surrogate_info, allow_nan=False))
    assert [step["attack"] for step in info["steps"]] == ["WeightPruningAttack", "FineTuningAttack"]
    assert [step["params"]["ratio"] for step in info["steps"]] == [0.6, 1.0]
    assert 0 < info["steps"][0]["sparsity"] < 1
    assert sum(step["seconds"] for step in info["steps"]) <= info["seconds"]
    assert "attacks=" in repr(attack)


def test_changed_rows(images: np.ndarray) -> None:
    attack = CompositeAttack(several_classes(images), ROW)
    attack.set_params(attacks=ROW[:1])
    assert len(attack._steps()) == 1
    with pytest.raises(InvalidInputError, match="there is no attack"):
        attack.set_params(seed=3, attacks=[("Nothing", {})])
    assert (attack.seed, attack.attacks) == (0, ROW[:1])


# ---------------------------------------------------------------------- rows that make no sense
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((), "`attacks` is empty"),
        ("FineTuningAttack", "`attacks` must be a sequence"),
        (("FineTuningAttack",), "attack objects or pairs .* got 'FineTuningAttack'"),
        ([("FineTuningAttack",)], "attack objects or pairs"),
        ([("FineTuningAttack", None)], "attack objects or pairs"),
        ([(FineTuningAttack, {})], "attack objects or pairs"),
        ([None], "attack objects or pairs .* got None"),
        ([("FineTuning", {})], "no attack 'FineTuning'; known are .*FineTuningAttack"),
        ([("SupervisedAttack", {})], "no attack 'SupervisedAttack'"),
        ([("FineTuningAttack", {"share": 0.5})], "FineTuningAttack has no parameter share; it has .*ratio"),
        ([("FineTuningAttack", {3: 0.5})], "FineTuningAttack has no parameter 3"),
        ([("FineTuningAttack", {"ratio": 2.0})], "`ratio` must be a number in"),
        ([("CompositeAttack", {"attacks": [("FineTuningAttack", {"ratio": 2.0})]})], "`ratio` must be a number in"),
    ],
    ids=str,
)
def test_bad_rows(row: Any, message: str, images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CompositeAttack(several_classes(images), row)


def test_attack_of_another_victim(images: np.ndarray) -> None:
    victim, other = several_classes(images), several_classes(images, seed=1)
    with pytest.raises(InvalidInputError, match="FineTuningAttack is made for another classifier"):
        CompositeAttack(victim, [FineTuningAttack(victim), FineTuningAttack(other)])


@pytest.mark.parametrize(
    "late",
    [
        ("RetrainingAttack", SHORT),
        ("KnockoffNetsAttack", SHORT),
        ("DistillationAttack", {"init": "random", **SHORT}),
        ("DistillationAttack", {"surrogate_factory": TinyTokens, **SHORT}),
    ],
    ids=str,
)
def test_fresh_weights_come_first_or_not_at_all(late: tuple[str, Options], images: np.ndarray) -> None:
    steps: list[int] = []
    victim = several_classes(images)
    attack = CompositeAttack(victim, [ROW[0], late], batch_size=16, callback=lambda step, *_: steps.append(step))
    with pytest.raises(InvalidInputError, match=f"the {late[0]} in place 2 starts from weights of its own"):
        attack.generate(images)
    assert steps == []
    first = CompositeAttack(victim, [late, ROW[1]], batch_size=16).generate(images)
    assert not equal(first, victim) if type(first.model) is type(victim.model) else type(first.model) is TinyTokens
    start = RemovalNetAttack(victim, **REMOVAL, surrogate=several_classes(images, seed=1))
    with pytest.raises(InvalidInputError, match="RemovalNetAttack in place 2"):
        CompositeAttack(victim, [FineTuningAttack(victim, **QUICK), start]).generate(images)


def test_later_attacks_must_fit_the_first_one_s_network(images: np.ndarray) -> None:
    """The check comes before the training, on the network that will be there."""
    row = [("RetrainingAttack", {"surrogate_factory": TinyTokens, **SHORT}), ("WeightPruningAttack", {"ratio": 0.5})]
    steps: list[int] = []
    attack = CompositeAttack(
        several_classes(images), row, batch_size=1, callback=lambda step, *_: steps.append(step), callback_interval=500
    )
    attack.set_params(attacks=[row[0], ("WeightPruningAttack", {**row[1][1], **SHORT})])
    assert attack.generate(images).surrogate_info["victim_queries"] == 80  # no BatchNorm in the thief: batches of one
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    attack.set_params(
        attacks=[
            ("RetrainingAttack", {"surrogate_factory": lambda: linear, **SHORT}),
            ("WeightPruningAttack", {"modules": ("conv",), **SHORT}),
        ]
    )
    steps.clear()
    with pytest.raises(InvalidInputError, match="no conv layer to prune"):
        attack.generate(images)
    assert steps == []


def test_bad_data_is_refused_for_every_attack_first(images: np.ndarray) -> None:
    victim = several_classes(images)
    x = images[victim.predict(images).argmax(1) == 1]
    row = [("FineTuningAttack", {"max_iter": 2}), ("DistillationAttack", {"max_iter": 2})]
    steps: list[int] = []
    attack = CompositeAttack(victim, row, batch_size=4, callback=lambda step, *_: steps.append(step))
    with pytest.raises(InvalidInputError, match="into class 1"):
        attack.generate(x)
    assert steps == []
    lenient = CompositeAttack(
        victim, [row[0], ("DistillationAttack", {"max_iter": 2, "allow_degenerate": True})], batch_size=4
    )
    with pytest.warns(UserWarning, match="puts 100% into one") as record:
        lenient.generate(x)
    assert record[0].filename == __file__
    with pytest.raises(InvalidInputError, match="labels from 0 to 4"):
        attack.generate(images, np.arange(40) % 5)
    flat = CompositeAttack(
        several_classes(images), [("FineTuningAttack", {"hflip": False}), ("FineTuningAttack", {})], hflip=False
    )
    flat.set_params(attacks=[*flat.attacks[:1], ("FineTuningAttack", {"hflip": True})])
    flat.estimator._channels_first = False
    with pytest.raises(InvalidInputError, match="channels_first=False"):
        flat.generate(images)


def test_victim_is_left_alone_when_a_later_attack_fails(images: np.ndarray) -> None:
    victim = several_classes(images)
    mark(victim)
    before = state_of(victim), random_states()
    row = [("FineTuningAttack", SHORT), ("FineTuningAttack", {"max_iter": 20, "learning_rate": 1e30})]
    with pytest.raises(TrainingDivergedError):
        CompositeAttack(victim, row, batch_size=16).generate(images, Y)
    assert (state_of(victim), random_states()) == before


def test_generators_need_a_row_that_reads_them(images: np.ndarray) -> None:
    victim = token_classifier(images)

    def run(row: Any) -> PyTorchClassifier:
        generator = NumpyDataGenerator(images, Y, batch_size=8, shuffle=False)
        return CompositeAttack(victim, row, batch_size=8).generate(generator)

    surrogate = run(ROW)
    assert surrogate.surrogate_info["samples"] == 40
    with pytest.raises(InvalidInputError, match="`nb_stolen` needs the whole substitute set"):
        run([("KnockoffNetsAttack", {"nb_stolen": 8, "surrogate_factory": TinyTokens, **SHORT}), ROW[1]])
