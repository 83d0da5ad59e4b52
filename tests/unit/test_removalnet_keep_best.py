"""RemovalNet's best iterate: what is held back, how it is judged, and that the returned model is what was judged."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import RemovalNetAttack
from art_fingerprint.attacks.removalnet_keep_best import BestIterate, Judgement, held_back_rows
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.training import Batches
from art_fingerprint.exceptions import InvalidInputError
from tests.conftest import TinyCNN, wrap
from tests.states import random_states, state_of
from tests.victims import several_classes, token_classifier

OPTIONS: dict[str, Any] = {
    "layer": "block2",
    "shuffle_ratio": 0.3,
    "inner_steps": 2,
    "max_iter": 10,
    "batch_size": 16,
    "callback_interval": 2,
    "learning_rate": 0.05,
}
HELD = 8  # of 40 images, with keep_best=0.2


# ---------------------------------------------------------------------- parts
@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(40, 0.2, 8), (40, 0.01, 1), (41, 0.5, 21), (10, 0.3, 3), (100, 0.07, 7)]
)
def test_a_random_part_is_held_back(n: int, fraction: float, held: int) -> None:
    trained, apart = held_back_rows(n, fraction, 0)
    assert (len(trained), len(apart)) == (n - held, held)
    assert sorted([*trained.tolist(), *apart.tolist()]) == list(range(n))
    assert trained.tolist() == sorted(trained.tolist())
    assert apart.tolist() == sorted(apart.tolist())
    assert torch.equal(held_back_rows(n, fraction, 0)[1], apart)
    if n == 40 and held == 8:
        assert not torch.equal(held_back_rows(n, fraction, 1)[1], apart)


def test_rank_puts_agreement_first_and_distance_second() -> None:
    near, far = Judgement(1, 0.9, 0.1, 0.1), Judgement(2, 0.8, 3.0, 0.5)
    assert near.distance == pytest.approx(0.2)
    assert Judgement(1, 0.9, None, 0.1).distance == 0.1
    assert near.rank(0.85) > far.rank(0.85)  # one agrees enough
    assert near.rank(0.75) < far.rank(0.75)  # both do: the farther
    assert near.rank(0.95) > far.rank(0.95)  # neither does: the more agreeing


class Line(nn.Module):
    """Latent a x, logits (latent, 0) on inputs of one number."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.cut.weight, a)

    def forward(self, x: Tensor) -> Tensor:
        z = self.cut(x).flatten(1)
        return torch.cat([z, torch.zeros_like(z)], 1)


def test_judgement_by_hand() -> None:
    """Victim z = 2 x, surrogate z = -1 x, samples x = 1 and -3 and 0: |3 x|^2 = 90 against |2 x|^2 = 40."""
    x = torch.tensor([1.0, -3.0, 0.0]).view(3, 1, 1, 1)
    views = [LogitsNetwork(wrap(Line(a), (1, 1, 1), 2, clip_values=(-3.0, 3.0)), outputs="logits") for a in (-1.0, 2.0)]
    best = BestIterate(views[0].network, *views, "cut", x, 2, 0.3, None, lambda: None)
    assert best.judge(1) is False
    (found,) = best.curve
    assert found.agreement == pytest.approx(1 / 3)
    assert found.latent_distance == pytest.approx((90 / 40) ** 0.5)
    p = [1 / (1 + np.exp(-np.array([a, -3 * a, 0.0]))) for a in (-1.0, 2.0)]
    assert found.output_distance == pytest.approx(np.abs(p[0] - p[1]).mean(), rel=1e-6)
    assert found.distance == pytest.approx(1.5 + np.abs(p[0] - p[1]).mean(), rel=1e-6)


def test_copies_are_at_distance_zero_and_zero_latents_are_no_division() -> None:
    x = torch.rand(3, 1, 1, 1)
    for a, latent in ((2.0, 0.0), (0.0, None)):
        view = LogitsNetwork(wrap(Line(a), (1, 1, 1), 2), outputs="logits")
        best = BestIterate(view.network, view, view, "cut", x, 2, 1.0, None, lambda: None)
        best.judge(0)
        assert best.curve == [Judgement(0, 1.0, latent, 0.0)]
        with pytest.raises(RuntimeError, match="No iterate"):  # the start is judged, never kept
            best.restore()


# ---------------------------------------------------------------------- through the attack
class Watched:
    """The surrogate's state at every judged step, and every batch that training and recalibration saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}
        self.rows: list[Tensor] = []
        batch = Batches._batch

        def keep(*arguments: Any) -> Any:
            found = batch(*arguments)
            self.rows.append(found.index)
            return found

        monkeypatch.setattr(Batches, "_batch", keep)

    def __call__(self, step: int, surrogate: PyTorchClassifier, _losses: Mapping[str, float]) -> None:
        self.states[step] = copy.deepcopy(surrogate.model.state_dict())


def held(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images)[held_back_rows(len(images), 0.2, 0)[1]]


@torch.no_grad()
def measured(network: nn.Module, victim: nn.Module, x: Tensor) -> tuple[float, float, float]:
    """Agreement, latent and output distance, written down with loops."""
    network, victim = copy.deepcopy(network).eval(), copy.deepcopy(victim).eval()
    agreeing, outputs, moved, size = 0, 0.0, 0.0, 0.0
    for sample in x:
        z, wanted_z = (m.block2(m.block1(sample[None])) for m in (network, victim))
        p, wanted = (m(sample[None]).softmax(1)[0] for m in (network, victim))
        agreeing += int(p.argmax() == wanted.argmax())
        outputs += float(sum(abs(a - b) for a, b in zip(p, wanted, strict=True))) / 2
        moved += float((z - wanted_z).square().sum())
        size += float(wanted_z.square().sum())
    return agreeing / len(x), (moved / size) ** 0.5, outputs / len(x)


def loaded(state: dict[str, Tensor]) -> nn.Module:
    network = TinyCNN()
    network.load_state_dict(state)
    return network.eval()


def agreements(images: np.ndarray, rate: float) -> list[float]:
    """Agreements of the iterates that are judged, low ones first: what they are depends on the processor's rounding."""
    options = {**OPTIONS, "learning_rate": rate, "keep_best": 0.2, "min_agreement": 0.0}
    curve = RemovalNetAttack(several_classes(images), **options).generate(images).surrogate_info["keep_best"]["curve"]
    return sorted(point["agreement"] for point in curve[1:])


@pytest.mark.parametrize(("rate", "rank"), [(0.05, None), (0.05, -1), (0.1, 2)])
def test_the_farthest_iterate_that_agrees_is_returned(
    rate: float, rank: int | None, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    min_agreement = 0.0 if rank is None else agreements(images, rate)[rank]
    victim, watched = several_classes(images), Watched(monkeypatch)
    before, randomness = state_of(victim), random_states()
    options = {**OPTIONS, "learning_rate": rate, "keep_best": 0.2, "min_agreement": min_agreement}
    attack = RemovalNetAttack(victim, **options, callback=watched)
    surrogate = attack.generate(images)
    assert (state_of(victim), random_states()) == (before, randomness)
    report = surrogate.surrogate_info["keep_best"]
    json.dumps(report)
    assert [point["step"] for point in report["curve"]] == [0, 2, 4, 6, 8, 10] == list(watched.states)
    found = {}
    for point in report["curve"]:
        wanted = measured(loaded(watched.states[point["step"]]), victim.model, held(images))
        assert (point["agreement"], point["latent_distance"], point["output_distance"]) == pytest.approx(
            wanted, rel=1e-3, abs=1e-5
        )
        found[point["step"]] = (wanted[0], wanted[1] + wanted[2])
    start = found.pop(0)
    assert start == (1.0, 0.0)
    enough = {step: distance for step, (agreement, distance) in found.items() if agreement >= min_agreement}
    assert enough
    best = max(enough, key=lambda step: enough[step])
    assert report["step"] == best
    assert report["distance"] == pytest.approx(enough[best], rel=1e-3)
    assert (report["held_back"], report["steps"], report["enough_agreement"]) == (HELD, 10, True)
    for name, tensor in surrogate.model.state_dict().items():
        assert torch.equal(tensor, watched.states[best][name]), name
    rows = torch.cat(watched.rows)
    assert not set(rows.tolist()) & set(held_back_rows(40, 0.2, 0)[1].tolist())
    assert len(set(rows.tolist())) == 40 - HELD


def test_limits_choose_different_iterates(images: np.ndarray) -> None:
    victim, options = several_classes(images), {**OPTIONS, "learning_rate": 0.1, "keep_best": 0.2}
    most = agreements(images, 0.1)[-1]
    loose, strict = (
        RemovalNetAttack(victim, **options, min_agreement=limit).generate(images).surrogate_info["keep_best"]
        for limit in (0.0, most)
    )
    assert loose["curve"] == strict["curve"]
    assert loose["distance"] > strict["distance"]
    assert loose["agreement"] < most == strict["agreement"]
    assert strict["step"] < loose["step"]


def test_recalibration_comes_before_the_judgement_and_leaves_training_alone(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, plain, watched = several_classes(images), Watched(monkeypatch), Watched(monkeypatch)
    options = {**OPTIONS, "keep_best": 0.2, "min_agreement": 0.5}
    RemovalNetAttack(victim, **options, callback=plain).generate(images)
    watched.rows.clear()
    surrogate = RemovalNetAttack(victim, **options, bn_recalibrate=2, callback=watched).generate(images)
    for step, state in plain.states.items():  # weights and statistics of training, at every step
        assert all(torch.equal(tensor, watched.states[step][name]) for name, tensor in state.items())
    report = surrogate.surrogate_info["keep_best"]
    kept = watched.states[report["step"]]
    for name, tensor in surrogate.model.state_dict().items():
        assert torch.equal(tensor, kept[name]) == ("running" not in name and "num_batches" not in name), name
    # The returned model, not some other state of it, is what the numbers are about.
    agreement, latent, outputs = measured(surrogate.model, victim.model, held(images))
    assert (report["agreement"], report["distance"]) == pytest.approx((agreement, latent + outputs), rel=1e-3)
    start = report["curve"][0]
    assert start["output_distance"] > 0  # a copy of the victim with statistics of two batches is no copy any more
    assert not set(torch.cat(watched.rows).tolist()) & set(held_back_rows(40, 0.2, 0)[1].tolist())
    assert [m.momentum for m in surrogate.model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1] * 3


def test_without_any_iterate_that_agrees_the_most_agreeing_one_is_returned(images: np.ndarray) -> None:
    victim = several_classes(images)
    attack = RemovalNetAttack(victim, **{**OPTIONS, "learning_rate": 0.3}, keep_best=0.2, min_agreement=1.0)
    with pytest.warns(UserWarning, match=r"No iterate agrees with the victim on 100.0% of the 8 samples") as record:
        surrogate = attack.generate(images)
    assert record[0].filename == __file__
    report = surrogate.surrogate_info["keep_best"]
    agreements = {point["step"]: point["agreement"] for point in report["curve"] if point["step"]}
    assert report["agreement"] == max(agreements.values()) == agreements[report["step"]] < 1.0
    assert not report["enough_agreement"]
    assert measured(surrogate.model, victim.model, held(images))[0] == report["agreement"]
    assert any(
        not torch.equal(a, b) for a, b in zip(surrogate.model.parameters(), victim.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(("patience", "steps"), [(1, 4), (3, 8), (None, 10)])
def test_patience_ends_training(patience: int | None, steps: int, images: np.ndarray) -> None:
    """Without BatchNorm and with rate 0 nothing changes, so the first judgement is never beaten."""
    attack = RemovalNetAttack(
        token_classifier(images), **{**OPTIONS, "learning_rate": 0.0}, keep_best=0.2, patience=patience
    )
    seen: list[int] = []
    attack.set_params(callback=lambda step, *_: seen.append(step))
    report = attack.generate(images).surrogate_info["keep_best"]
    assert (report["step"], report["steps"]) == (2, steps)
    assert seen == list(range(0, steps + 1, 2)) == [point["step"] for point in report["curve"]]


def test_judgements_are_in_the_account(images: np.ndarray) -> None:
    victim = several_classes(images)
    found = {}
    for share in (None, 0.2):
        info = RemovalNetAttack(victim, **OPTIONS, keep_best=share, min_agreement=0.0).generate(images).surrogate_info
        found[share] = info["cost"]
        assert info["victim_queries"] == 80  # held-back samples are asked about once, like all
    judged = 6 * HELD
    assert found[0.2]["victim"]["forward"] == found[None]["victim"]["forward"] + judged
    # batches of 16 out of 32 instead of 16, 16 and 8 out of 40: ten steps see 160 and 136 samples, twice each
    assert found[0.2]["surrogate"]["forward"] - found[None]["surrogate"]["forward"] == judged + 2 * (160 - 136)


def test_a_surrogate_of_another_shape_is_judged_by_its_outputs(images: np.ndarray) -> None:
    victim = several_classes(images)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        starts = [wrap(TinyCNN(width=5)), token_classifier(images)]
    for start, layer in zip(starts, ("block2", "mix"), strict=True):
        options = {**OPTIONS, "layer": layer, "shuffle_ratio": 0.6, "min_agreement": 0.0}
        info = RemovalNetAttack(victim, **options, keep_best=0.2, surrogate=start).generate(images).surrogate_info
        for point in info["keep_best"]["curve"]:
            assert point["latent_distance"] is None
            assert point["distance"] == point["output_distance"] > 0


def test_sets_that_cannot_be_split_are_refused(images: np.ndarray) -> None:
    victim = several_classes(images)
    with pytest.raises(InvalidInputError, match="keep_best=0.5 holds back 2 of 3 samples"):
        RemovalNetAttack(victim, **{**OPTIONS, "batch_size": 2}, keep_best=0.5).generate(images[:3])
    generator = NumpyDataGenerator(images, np.zeros(40), batch_size=10)
    with pytest.raises(InvalidInputError, match="`keep_best` needs the whole substitute set at once"):
        RemovalNetAttack(victim, **OPTIONS, keep_best=0.2).generate(generator)
    with pytest.warns(UserWarning, match="only 32 samples; batch_size is reduced from 40 to 32"):
        RemovalNetAttack(victim, **{**OPTIONS, "batch_size": 40}, keep_best=0.2, min_agreement=0.0).generate(images)
    with pytest.raises(InvalidInputError, match="`patience` counts the judgements of `keep_best`"):
        RemovalNetAttack(victim, patience=3)
