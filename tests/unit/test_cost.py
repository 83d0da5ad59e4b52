"""The cost account: against closed forms, and against probes inside the networks for every attack of the package."""

from __future__ import annotations

import types
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.core import cost
from art_fingerprint.core.cost import CostMeter, uncounted
from art_fingerprint.core.cut import LayerCut
from tests.conformance.attack_cases import Case, every_attack, parameters, state
from tests.conftest import TinyCNN, wrap
from tests.victims import several_classes, token_classifier

Counts = dict[str, Counter[str]]


class Probe(nn.Module):
    """Hands its input on and counts samples in both directions: as the victim's, or as those of any copy."""

    seen: Counts
    owner: int  # id of the victim's probe

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        role = "victim" if id(self) in Probe.owners else "surrogate"
        Probe.seen[role][f"{self.place} forward"] += len(x)
        return _Counted.apply(x, role, self.place)

    owners: set[int] = set()


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, role: str, place: str) -> Tensor:
        ctx.where = role, place
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        role, place = ctx.where
        Probe.seen[role][f"{place} backward"] += len(gradient)
        return gradient, None, None


class Probed(TinyCNN):
    """A TinyCNN with probes in front and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Probe("first"), Probe("last")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(self.first(x)))


def probed_victim(images: np.ndarray) -> PyTorchClassifier:
    network = Probed()
    network.load_state_dict(several_classes(images).model.state_dict())
    Probe.owners = {id(network.first), id(network.last)}
    Probe.seen = {"victim": Counter(), "surrogate": Counter()}
    return wrap(network.eval())


def counted(case: Case, images: np.ndarray, **changes: Any) -> tuple[dict[str, Any], Counts]:
    """Return the account of a run, and what the probes saw."""
    victim = probed_victim(images)
    surrogate = case.make(victim, **changes).generate(images, np.arange(1, 41) % 4)
    return surrogate.surrogate_info["cost"], {role: Counter(found) for role, found in Probe.seen.items()}


# ---------------------------------------------------------------------- every attack against the probes
@every_attack
def test_account_of_the_steps_is_what_probes_see(case: Case, images: np.ndarray) -> None:
    """Two runs of different lengths: what differs are the passes of the steps, to the sample."""
    if "attacks" in case.own:
        pytest.skip("the row has no length of its own")
    lengths = ("max_iter", 2, 5) if "max_iter" in parameters(case.attack) else ("nb_epochs", 1, 2)
    if lengths[0] not in parameters(case.attack):
        pytest.skip("takes no steps")
    (short, few), (long, many) = (counted(case, images, **{lengths[0]: length}) for length in lengths[1:])
    for role in ("surrogate", "victim"):
        a, b = short[role], long[role]
        more = {name: b[name] - a[name] for name in a if name not in ("tail_share", "forward_equivalents")}
        probes = {name: many[role][name] - few[role][name] for name in many[role]}
        assert more["forward"] == probes.get("first forward", 0)
        assert more["forward"] + more["tail_forward"] == probes.get("last forward", 0)
        backward = more["backward"] + more["input_backward"] + more["tail_backward"]
        assert backward == probes.get("last backward", 0)
        assert a["tail_share"] == b["tail_share"]
    assert long["surrogate"]["backward"] > short["surrogate"]["backward"]


@every_attack
def test_account_of_a_run_is_what_probes_see(case: Case, images: np.ndarray) -> None:
    """The whole run, but for the checks of models at the border and of the cut, a few samples each."""
    account, seen = counted(case, images)
    for role, samples in seen.items():
        table = account[role]
        unseen = samples["first forward"] - table["forward"]
        assert 0 <= unseen <= 32
        # a pass that stops at a layer counts as a whole one
        assert samples["last forward"] - table["forward"] - table["tail_forward"] <= 32
    assert seen["victim"]["first forward"] >= account["victim_queries"]


# ---------------------------------------------------------------------- RemovalNet against the formula
def removal(images: np.ndarray, steps: int, victim: PyTorchClassifier | None = None, **changes: Any) -> dict[str, Any]:
    options = {"layer": "block2", "shuffle_ratio": 0.3, "batch_size": 20, "hflip": False, "inner_steps": 3, **changes}
    victim = several_classes(images) if victim is None else victim
    cost: dict[str, Any] = RemovalNetAttack(victim, max_iter=steps, **options).generate(images).surrogate_info["cost"]
    return cost


@pytest.mark.parametrize("inner_steps", [0, 1, 7])
def test_an_iteration_costs_4h_and_4_plus_2j_t(inner_steps: int, images: np.ndarray) -> None:
    """Specification A.8, labels cached: 4h + (4 + 2J)t forward passes of every sample."""
    short, long = (removal(images, steps, inner_steps=inner_steps) for steps in (1, 4))
    t = long["surrogate"]["tail_share"]
    found = long["forward_equivalents"] - short["forward_equivalents"]
    assert found == pytest.approx(3 * 20 * (4 * (1 - t) + (4 + 2 * inner_steps) * t))


def test_share_of_the_tail_is_that_of_its_multiplications(images: np.ndarray) -> None:
    # 3x3 convolutions: 1 to 6 channels at 8x8, 6 to 12 and 12 to 12 at 4x4; 12 to 4 classes
    head = 9 * 6 * 64 + 9 * 6 * 12 * 16
    tail = 9 * 12 * 12 * 16 + 12 * 4
    assert removal(images, 1)["surrogate"]["tail_share"] == pytest.approx(tail / (head + tail))


@pytest.mark.parametrize(
    ("change", "surrogate", "victim"),
    [
        ({}, {"forward": 2, "backward": 1, "tail_forward": 3, "tail_backward": 3}, {}),
        ({"beta": 0}, {"forward": 2, "backward": 1}, {}),
        ({"alpha": 0, "gamma": 0}, {"forward": 2, "backward": 1, "tail_forward": 3, "tail_backward": 3}, {}),
        ({"alpha": 0, "beta": 0}, {"forward": 1, "backward": 1}, {}),
        (
            {"latent_source": "victim"},
            {"forward": 2, "backward": 1},
            {"forward": 1, "tail_forward": 3, "tail_backward": 3},
        ),
        ({"reference_double_pass": True}, {"forward": 3, "backward": 1, "tail_forward": 3, "tail_backward": 3}, {}),
    ],
    ids=str,
)
def test_passes_of_an_iteration(
    change: dict[str, Any], surrogate: dict[str, int], victim: dict[str, int], images: np.ndarray
) -> None:
    short, long = (removal(images, steps, **change) for steps in (1, 3))
    for role, wanted in (("surrogate", surrogate), ("victim", victim)):
        kinds = ("forward", "backward", "input_backward", "tail_forward", "tail_backward")
        assert {k: (long[role][k] - short[role][k]) / 40 for k in kinds} == {**dict.fromkeys(kinds, 0), **wanted}


def test_a_tail_that_needs_the_head_too_pays_for_it(images: np.ndarray) -> None:
    """With side inputs the head runs once more for each batch; a cut by hooks runs the network for each inner step."""
    victim = token_classifier(images)
    short, long = (removal(images, n, victim, layer="block1", shuffle_ratio=0.6) for n in (1, 3))
    assert (long["surrogate"]["forward"] - short["surrogate"]["forward"]) / 40 == 3


def test_a_stream_asks_the_victim_at_every_step(images: np.ndarray) -> None:
    """Labels on the fly cost one pass of the victim more (specification A.8): 5h + (5 + 2J)t."""

    def run(steps: int) -> dict[str, Any]:
        generator = NumpyDataGenerator(images, np.zeros(40, int), batch_size=20)
        attack = RemovalNetAttack(
            several_classes(images), "block2", shuffle_ratio=0.3, batch_size=20, hflip=False, max_iter=steps
        )
        cost: dict[str, Any] = attack.generate(generator).surrogate_info["cost"]
        return cost

    short, long = run(1), run(3)
    assert long["victim"]["forward"] - short["victim"]["forward"] == 40
    assert long["victim_queries"] - short["victim_queries"] == 40


# ---------------------------------------------------------------------- the meter itself
def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def test_kinds_of_passes() -> None:
    network = linear()
    x = torch.rand(5, 4)
    with CostMeter() as meter:
        meter.watch("surrogate", network)
        with torch.no_grad():
            network(x)
        network(x)  # no gradient is asked for
        network(x).sum().backward()
        network[0].requires_grad_(False)
        network(x[:3]).sum().backward()  # some weights are trained
        network.requires_grad_(False)
        torch.autograd.grad(network(u := x.clone().requires_grad_(True)).sum(), u)
    table = meter.account()["surrogate"]
    assert table == {
        "forward": 23,
        "backward": 8,
        "input_backward": 5,
        "tail_forward": 0,
        "tail_backward": 0,
        "tail_share": None,
        "forward_equivalents": 23 + 16 + 5,
    }
    network(x)
    assert meter.account()["surrogate"] == table  # nothing is counted afterwards
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_hooks_go_after_an_error() -> None:
    network = linear()
    meter = CostMeter()

    def fail() -> None:
        with meter:
            meter.watch("victim", network)
            network(torch.rand(2, 4))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert meter.account()["victim"]["forward"] == 2
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_a_cut_without_a_graph_counts_whole_passes() -> None:
    network = linear().eval()
    x = torch.rand(6, 4)
    cut = LayerCut(network, "0", x, method="hooks")
    with CostMeter() as meter:
        meter.watch("surrogate", network)
        meter.watch_cut("surrogate", cut, x)
        z = torch.rand(6, 3, requires_grad=True)
        torch.autograd.grad(cut.tail_for(x)(z).sum(), z)
    table = meter.account()["surrogate"]
    assert (table["forward"], table["backward"], table["tail_forward"]) == (6, 6, 0)
    assert table["tail_share"] is None


def test_share_of_a_network_without_multiplications_is_one() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Sigmoid())
    x = torch.rand(3, 2)
    with CostMeter() as meter:
        meter.watch_cut("surrogate", LayerCut(network, "0", x), x)
    assert meter.account()["surrogate"]["tail_share"] == 1.0


def test_callbacks_and_their_time_are_left_out(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(cost, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        surrogate.predict(images)
        clock[0] += 100.0

    def stepping(module: nn.Module, *_: object) -> None:
        clock[0] += module.training

    victim = several_classes(images)
    options: dict[str, Any] = {"max_iter": 2, "batch_size": 20, "callback_interval": 1}

    def start(step: int, surrogate: PyTorchClassifier, losses: object) -> None:
        if step == 0:
            surrogate.model.head.register_forward_hook(stepping)
        slow(step, surrogate, losses)

    info = FineTuningAttack(victim, callback=start, **options).generate(images).surrogate_info
    assert info["cost"]["surrogate"]["forward"] == 40
    assert info["seconds"] == info["cost"]["seconds"] == 2.0  # of 302: one for each training pass


def test_meters_nest_and_pause_together() -> None:
    network = linear()
    x = torch.rand(2, 4)
    with CostMeter() as outer, CostMeter() as inner:
        outer.watch("victim", network)
        inner.watch("surrogate", network)
        network(x)
        with uncounted():
            network(x)
            with uncounted():
                network(x)
            network(x)
        network(x)
    assert outer.account()["victim"]["forward"] == inner.account()["surrogate"]["forward"] == 4


def test_an_attack_in_a_callback_has_an_account_of_its_own(images: np.ndarray) -> None:
    victim = several_classes(images)
    quick: dict[str, Any] = {"max_iter": 2, "batch_size": 20, "hflip": False}
    inner: list[dict[str, Any]] = []

    def attack_again(step: int, _surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0:
            inner.append(FineTuningAttack(victim, **quick).generate(images).surrogate_info["cost"])

    plain = FineTuningAttack(victim, **quick).generate(images)
    outer = FineTuningAttack(victim, **quick, callback=attack_again).generate(images)
    for role in ("surrogate", "victim"):
        assert outer.surrogate_info["cost"][role] == inner[0][role] == plain.surrogate_info["cost"][role]
    assert all(torch.equal(a, b) for a, b in zip(state(outer).values(), state(plain).values(), strict=True))


def test_closed_forms_of_fine_tuning(images: np.ndarray) -> None:
    """Forty samples and their mirror images are labelled once; each step is one pass forward and backward."""
    attack = FineTuningAttack(several_classes(images), max_iter=6, batch_size=20)
    cost = attack.generate(images).surrogate_info["cost"]
    assert cost["victim"]["forward"] == cost["victim_queries"] == 80
    assert (cost["surrogate"]["forward"], cost["surrogate"]["backward"]) == (120, 120)
    assert cost["forward_equivalents"] == 80 + 3 * 120
    told = attack.generate(images, np.zeros(40, int)).surrogate_info["cost"]
    assert told["victim"]["forward"] == told["victim_queries"] == 0
