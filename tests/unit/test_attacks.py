"""RemovalNet, fine-tuning, pruning and distillation: what the conformance suite cannot know, and every option."""

from __future__ import annotations

import functools
import json
import logging
import math
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import (
    DistillationAttack,
    FineTuningAttack,
    RemovalNetAttack,
    WeightPruningAttack,
    removalnet_run,
)
from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.core.frozen_cut import FrozenCut
from art_fingerprint.exceptions import (
    InvalidInputError,
    LayerCutError,
    LayerNotFoundError,
)
from tests.conformance.attack_cases import equal, everything, parameters_equal, state
from tests.conftest import TinyCNN, wrap
from tests.victims import TinyTokens, several_classes, token_classifier

Attack = type[Any]  # a subclass of RemovalAttack; their constructors differ
Options = dict[str, Any]

QUICK: Options = {"max_iter": 4, "batch_size": 16}
CASES: list[tuple[Attack, Options]] = [
    (RemovalNetAttack, {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 2}),
    (FineTuningAttack, {}),
    (WeightPruningAttack, {}),
    (DistillationAttack, {}),
]
every_attack = pytest.mark.parametrize(("attack", "options"), CASES, ids=[a.__name__ for a, _ in CASES])
SUPERVISED = CASES[1:]
every_baseline = pytest.mark.parametrize(("attack", "options"), SUPERVISED, ids=[a.__name__ for a, _ in SUPERVISED])


def nearly_equal(a: PyTorchClassifier, b: PyTorchClassifier) -> bool:
    other = state(b)
    return all(torch.allclose(tensor, other[name], rtol=1e-5, atol=1e-6) for name, tensor in state(a).items())


# ---------------------------------------------------------------------- training
@every_attack
def test_rate_zero_changes_no_weight(attack: Attack, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    strength = {"ratio": 0.0} if attack is WeightPruningAttack else {}
    surrogate = attack(victim, **options, **strength, **QUICK, learning_rate=0.0).generate(images)
    assert parameters_equal(surrogate, victim)


@every_attack
def test_missing_labels_are_the_victims(attack: Attack, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    one = attack(victim, **options, **QUICK, hflip=False)
    missing = one.generate(images)
    assert equal(missing, one.generate(images, victim.predict(images).argmax(1)))
    told = one.generate(images, np.arange(1, 41) % 4)  # not what the victim says
    assert equal(missing, told) == (attack is RemovalNetAttack)  # it never looks at labels


@every_baseline
def test_victim_labels_although_labels_are_given(attack: Attack, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    told = attack(victim, **options, **QUICK, use_victim_labels=True).generate(images, np.arange(1, 41) % 4)
    assert equal(told, attack(victim, **options, **QUICK).generate(images))


@every_attack
@pytest.mark.parametrize("batch_size", [7, 13, 40])
def test_sizes_of_training_batches(attack: Attack, options: Options, images: np.ndarray, batch_size: int) -> None:
    seen: list[int] = []
    handles: list[Any] = []

    def count(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0:
            hook = surrogate.model.block1.register_forward_hook(
                lambda module, inputs, _out: seen.append(len(inputs[0])) if module.training else None
            )
            handles.append(hook)

    steps = 40 // batch_size + 2
    surrogate = attack(
        several_classes(images), **options, batch_size=batch_size, max_iter=steps, callback=count
    ).generate(images)
    for handle in handles:
        handle.remove()
    assert all(tensor.isfinite().all() for tensor in state(surrogate).values())
    assert len(seen) == steps
    remainder = 40 % batch_size
    assert set(seen) == ({batch_size, remainder} if remainder > 1 else {batch_size})  # a remainder of 1 is dropped


def test_summary_writer_of_art(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """ART's own writer keeps scalars of evasion attacks; losses go to the TensorBoard writer below it."""
    scalars: list[tuple[str, float, int]] = []

    class FakeTensorBoard:
        def __init__(self, logdir: str) -> None:
            self.add_scalar = lambda *row: scalars.append(row)

    module = types.ModuleType("tensorboardX")
    monkeypatch.setattr(module, "SummaryWriter", FakeTensorBoard, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    FineTuningAttack(several_classes(images), **QUICK, callback_interval=2, summary_writer="runs").generate(images)
    assert [(name, step) for name, _, step in scalars] == [
        (f"FineTuningAttack/{term}", step) for step in (2, 4) for term in ("ce", "l2")
    ]


@pytest.mark.parametrize(
    ("attack", "bad"),
    [
        (FineTuningAttack, {"ratio": 0.0}),
        (FineTuningAttack, {"ratio": 1.1}),
        (FineTuningAttack, {"unit": "layer"}),
        (FineTuningAttack, {"lr_jitter": -1.0}),
        (FineTuningAttack, {"linear_l2": -1.0}),
        (FineTuningAttack, {"use_victim_labels": None}),
        (WeightPruningAttack, {"ratio": -0.1}),
        (WeightPruningAttack, {"ratio": 1.0}),
        (WeightPruningAttack, {"rule": "mine"}),
        (WeightPruningAttack, {"modules": "conv"}),
        (WeightPruningAttack, {"modules": ()}),
        (WeightPruningAttack, {"modules": 3}),
        (WeightPruningAttack, {"modules": ("bn",)}),
        (DistillationAttack, {"layers": "block2"}),
        (DistillationAttack, {"layers": ()}),
        (DistillationAttack, {"layers": 2}),
        (DistillationAttack, {"feature_weight": -1.0}),
        (DistillationAttack, {"allow_degenerate": 1}),
        (RemovalNetAttack, {"layer": 1.5}),
        (RemovalNetAttack, {"layer": True}),
        (RemovalNetAttack, {"alpha": -0.1}),
        (RemovalNetAttack, {"alpha": 0, "beta": 0, "gamma": 0}),
        (RemovalNetAttack, {"temperature": 0.0}),
        (RemovalNetAttack, {"inner_steps": -1}),
        (RemovalNetAttack, {"inner_lr": math.inf}),
        (RemovalNetAttack, {"log_weight": -1}),
        (RemovalNetAttack, {"shuffle_ratio": 1.5}),
        (RemovalNetAttack, {"shuffle_ratio": -0.5}),
        (RemovalNetAttack, {"shuffle_dim": 2}),
        (RemovalNetAttack, {"shuffle_skip_prefix": None}),
        (RemovalNetAttack, {"distance": "kl"}),
        (RemovalNetAttack, {"distance_scope": "all"}),
        (RemovalNetAttack, {"latent_source": "teacher"}),
        (RemovalNetAttack, {"logit_source": "teacher"}),
        (RemovalNetAttack, {"ilbs_space": "log"}),
        (RemovalNetAttack, {"kl_target": "softmax"}),
        (RemovalNetAttack, {"line_search": "binary"}),
        (RemovalNetAttack, {"grid": ()}),
        (RemovalNetAttack, {"grid": 0.5}),
        (RemovalNetAttack, {"grid": (0.5, 0.4)}),
        (RemovalNetAttack, {"grid": (0.0, 0.4)}),
        (RemovalNetAttack, {"grid": (0.5, "x")}),
        (RemovalNetAttack, {"lr_horizon": 0.5}),
        (RemovalNetAttack, {"subset_ratio": 0.0}),
        (RemovalNetAttack, {"bn_recalibrate": -1}),
        (RemovalNetAttack, {"reference_double_pass": 2}),
        (RemovalNetAttack, {"surrogate": "model.pt"}),
        (RemovalNetAttack, {"output": "softmax"}),
        (RemovalNetAttack, {"require_single_tensor": 0}),
    ],
    ids=str,
)
def test_bad_parameters(attack: Attack, bad: Options, images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match=f"`{next(iter(bad))}`"):
        attack(several_classes(images), **bad)


# ---------------------------------------------------------------------- bad data and odd victims
@pytest.mark.parametrize(("attack", "options"), [CASES[0], CASES[3]], ids=["RemovalNet", "Distillation"])
def test_substitute_sets_of_one_class(attack: Attack, options: Options, images: np.ndarray) -> None:
    victim = several_classes(images)
    x = images[victim.predict(images).argmax(1) == 1]
    with pytest.raises(InvalidInputError, match="into class 1.*allow_degenerate"):
        attack(victim, **options, max_iter=2, batch_size=8).generate(x)
    with pytest.warns(UserWarning, match="sees 1 of 4 classes in it and puts 100% into one") as record:
        attack(victim, **options, max_iter=2, batch_size=len(x), allow_degenerate=True).generate(x)
    assert record[0].filename == __file__


# ---------------------------------------------------------------------- the baselines' own options
def test_share_that_selects_nothing(images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="`ratio`=0.01 of 14 parameter tensors selects none"):
        FineTuningAttack(several_classes(images), 0.01, **QUICK).generate(images)


def test_pruning_of_a_network_without_such_layers(images: np.ndarray) -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))
    with pytest.raises(InvalidInputError, match="no conv layer to prune"):
        WeightPruningAttack(wrap(network), modules=("conv",), **QUICK).generate(images)
    assert WeightPruningAttack(wrap(network), **QUICK).generate(images).surrogate_info["sparsity"] == 0.5


def test_reference_rule_that_empties_a_layer(images: np.ndarray) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        victim.model.block1[0].weight.mul_(1e-6)
    with pytest.raises(InvalidInputError, match="prunes every weight of block1.0.weight"):
        WeightPruningAttack(victim, 0.5, rule="reference", **QUICK).generate(images)
    surrogate = WeightPruningAttack(victim, 0.5, **QUICK).generate(images)
    assert int((surrogate.model.block1[0].weight != 0).sum()) == 1


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (("blok2",), LayerNotFoundError, "block2"),
        ((9,), LayerNotFoundError, "stages are 1 to 4"),
        (("unused",), InvalidInputError, "0 calls"),
        (("twice",), InvalidInputError, "2 calls"),
    ],
)
def test_layers_that_cannot_be_distilled(
    layers: tuple[str | int, ...], error: type[Exception], message: str, images: np.ndarray
) -> None:
    class Odd(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.unused = nn.ReLU(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.twice(self.twice(x)))

    network = Odd()
    network.load_state_dict(several_classes(images).model.state_dict())
    with pytest.raises(error, match=message):
        DistillationAttack(wrap(network.eval()), layers, **QUICK).generate(images)


def test_layers_by_number_and_weight_zero(images: np.ndarray) -> None:
    victim = several_classes(images)
    by_number = DistillationAttack(victim, (1, 3), **QUICK).generate(images)
    assert by_number.surrogate_info["layers"] == ["block1", "block3"]
    assert equal(by_number, DistillationAttack(victim, ("block1", "block3"), **QUICK).generate(images))
    none = DistillationAttack(victim, feature_weight=0.0, **QUICK).generate(images)
    tuned = FineTuningAttack(victim, 1.0, learning_rate=1e-3, momentum=0.8, **QUICK)
    assert none.surrogate_info["losses"]["features"] == 0.0
    assert none.surrogate_info["learning_rate"] == tuned.generate(images).surrogate_info["learning_rate"]


# ---------------------------------------------------------------------- RemovalNet: options
REMOVAL: Options = {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 2, **QUICK}


def test_every_default_works(images: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    victim = several_classes(images)
    with caplog.at_level(logging.INFO, "art_fingerprint"), warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        surrogate = RemovalNetAttack(victim, max_iter=3).generate(images)
    assert surrogate.surrogate_info["layer"] == "block3"  # the last one with a quarter of the input height
    assert "cuts at layer block3" in caplog.text
    messages = sorted(str(w.message) for w in record)
    assert len(messages) == 2
    assert "batch_size is reduced from 128 to 40" in messages[0]
    assert "at most one channel, so nothing is shuffled" in messages[1]
    assert {w.filename for w in record} == {__file__}


@pytest.mark.parametrize(
    ("n", "warned"), [(34, True), (33, False), (32, False), (37, False)]
)  # of 32: 2, 1 dropped, 0, 5
def test_a_last_batch_that_is_small_for_batch_norm_warns(images: np.ndarray, n: int, warned: bool) -> None:
    attack = FineTuningAttack(several_classes(images), batch_size=32, max_iter=2)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        attack.generate(images[:n])
    assert any("few for BatchNorm's statistics" in str(w.message) for w in record) is warned


@functools.cache
def default_weights(images: bytes) -> dict[str, Tensor]:
    x = np.frombuffer(images, np.float32).reshape(-1, 1, 8, 8).copy()
    return state(RemovalNetAttack(several_classes(x), **REMOVAL).generate(x))


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "block1"},
        {"layer": 3},
        {"alpha": 0.5},
        {"beta": 1.0},
        {"gamma": 1.0},
        {"temperature": 2.0},
        {"inner_steps": 3},
        {"inner_steps": 0},
        {"inner_lr": 0.1},
        {"log_weight": 1000.0},
        {"log_weight": 1000.0, "distance_scope": "sample"},
        {"log_weight": 1000.0, "distance": "cosine"},
        {"log_weight": 1000.0, "distance": "cosine", "distance_scope": "sample"},
        {"shuffle_ratio": 1.0},
        {"shuffle_ratio": 0.0},
        {"shuffle_dim": -1},
        {"latent_source": "victim"},
        {"logit_source": "victim"},
        {"latent_source": "victim", "logit_source": "victim"},
        {"ilbs_space": "logit"},
        {"kl_target": "log_prob"},
        {"kl_target": "prob", "temperature": 1.0},
        {"line_search": "exact"},
        {"grid": (0.2, 0.25, 0.3)},
        {"learning_rate": 1e-2},
        {"momentum": 0.5},
        {"weight_decay": 1e-2},
        {"lr_horizon": 3.0},
        {"max_iter": 5},
        {"batch_size": 20},
        {"hflip": False},
        {"subset_ratio": 0.1},
        {"subset_ratio": 0.95},
        {"bn_recalibrate": 2},
        {"keep_best": 0.2},
        {"autocast": "bf16"},
        {"reference_double_pass": True},
        {"seed": 1},
    ],
    ids=str,
)
def test_every_option_does_something(change: Options, images: np.ndarray) -> None:
    attack = RemovalNetAttack(several_classes(images), **{**REMOVAL, **change})
    surrogate = attack.generate(images)
    found, default = state(surrogate), default_weights(images.tobytes())
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert not all(torch.equal(found[name], default[name]) for name in found)
    params = surrogate.surrogate_info["params"]
    for name, value in change.items():
        assert params[name] == (list(value) if isinstance(value, tuple) else value)
    share = surrogate.surrogate_info["ilbs_unmet_share"]
    assert 0 <= share <= 1
    assert surrogate.surrogate_info["cut"] == "graph"


def test_text_and_code_readings_differ_only_later(images: np.ndarray) -> None:
    """At the first step surrogate and victim are the same network, so the sources make no difference yet."""
    victim = several_classes(images)
    one = {**REMOVAL, "max_iter": 1}
    code = RemovalNetAttack(victim, **one).generate(images)
    text = RemovalNetAttack(victim, **one, latent_source="victim", logit_source="victim").generate(images)
    assert nearly_equal(code, text)
    assert not nearly_equal(code, RemovalNetAttack(victim, **REMOVAL).generate(images))


@pytest.mark.parametrize("kind", ["double_softmax", "log_prob", "prob"])
def test_logit_space_ignores_kl_target(kind: Any, images: np.ndarray) -> None:
    victim = several_classes(images)
    wanted = RemovalNetAttack(victim, **REMOVAL, ilbs_space="logit").generate(images)
    assert equal(wanted, RemovalNetAttack(victim, **REMOVAL, ilbs_space="logit", kl_target=kind).generate(images))


@pytest.mark.parametrize(
    "change", [{}, {"shuffle_dim": -1}, {"shuffle_skip_prefix": True}, {"layer": "start"}, {"layer": None}], ids=str
)
def test_token_models(change: Options, images: np.ndarray) -> None:
    options = {**REMOVAL, "shuffle_ratio": 0.6, **change}
    surrogate = RemovalNetAttack(token_classifier(images), **options).generate(images)
    assert all(tensor.isfinite().all() for tensor in state(surrogate).values())
    plain = RemovalNetAttack(token_classifier(images), **{**REMOVAL, "shuffle_ratio": 0.6}).generate(images)
    assert equal(surrogate, plain) == (not change)
    assert RemovalNetAttack(token_classifier(images), **options, bn_recalibrate=2).generate(images)  # no BatchNorm


def test_class_token_stays_in_its_place(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Tensor, Tensor]] = []
    moved: list[bool] = []
    shuffle, draw = terms.shuffle_features, terms.draw_shuffles

    def watch(z: Tensor, source: Tensor, target: Tensor, dim: int, skip: int) -> Tensor:
        out = shuffle(z, source, target, dim, skip)
        moved.append(not torch.equal(out[:, 0], z[:, 0]))
        return out

    def keep(*arguments: Any) -> tuple[Tensor, Tensor]:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(terms, "shuffle_features", watch)
    monkeypatch.setattr(terms, "draw_shuffles", keep)
    options = {**REMOVAL, "shuffle_ratio": 1.0}
    RemovalNetAttack(token_classifier(images), **options, shuffle_skip_prefix=True).generate(images)
    assert not any(moved)
    assert max(int(source.max()) for source, _ in drawn) == 3  # four patches, counted from 0
    moved.clear()
    RemovalNetAttack(token_classifier(images), **options).generate(images)
    assert any(moved)


@pytest.mark.parametrize("change", [{"layer": "block2", "shuffle_dim": -1}, {"layer": "norm", "shuffle_dim": -1}])
def test_prefix_needs_tokens(change: Options, images: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="`shuffle_skip_prefix` is for tokens"):
        RemovalNetAttack(token_classifier(images), **{**REMOVAL, **change}, shuffle_skip_prefix=True).generate(images)
    with pytest.raises(InvalidInputError, match="`shuffle_skip_prefix` is for tokens"):
        RemovalNetAttack(several_classes(images), **REMOVAL, shuffle_skip_prefix=True).generate(images)


def test_starting_surrogate(images: np.ndarray) -> None:
    victim, other = several_classes(images), several_classes(images, seed=1)
    before = everything(other)
    still = RemovalNetAttack(victim, **REMOVAL, surrogate=other, learning_rate=0.0).generate(images)
    assert parameters_equal(still, other)
    surrogate = RemovalNetAttack(victim, **REMOVAL, surrogate=other, latent_source="victim").generate(images)
    assert everything(other) == before
    assert not parameters_equal(surrogate, other)
    json.dumps(surrogate.surrogate_info)
    with pytest.raises(InvalidInputError, match="`surrogate` has nb_classes=3"):
        RemovalNetAttack(victim, surrogate=several_classes(images, nb_classes=3))


def test_starting_surrogate_of_another_architecture(images: np.ndarray) -> None:
    victim = several_classes(images)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = wrap(TinyCNN(width=5))
    surrogate = RemovalNetAttack(victim, **REMOVAL, surrogate=other).generate(images)
    assert surrogate.model.block1[0].out_channels == 5
    with pytest.raises(InvalidInputError, match="another shape in the victim"):
        RemovalNetAttack(victim, **REMOVAL, surrogate=other, latent_source="victim").generate(images)
    attack = RemovalNetAttack(victim, **{**REMOVAL, "layer": "block3"}, surrogate=token_classifier(images))
    with pytest.raises(LayerNotFoundError, match="no layer 'block3'"):
        attack.generate(images)


def test_starting_surrogate_with_another_output(images: np.ndarray) -> None:
    class Softmaxed(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    victim = several_classes(images)
    network = Softmaxed()
    network.load_state_dict(victim.model.state_dict())
    plain = RemovalNetAttack(victim, **REMOVAL).generate(images)
    with pytest.warns(UserWarning, match="returns probabilities"):
        found = RemovalNetAttack(victim, **REMOVAL, surrogate=wrap(network.eval())).generate(images)
    for a, b in zip(state(found).values(), state(plain).values(), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-3, rtol=1e-3)


def test_graph_and_hook_cuts_give_the_same_surrogate(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[Callable[[np.ndarray], PyTorchClassifier], Options]] = [
        (several_classes, REMOVAL),
        (several_classes, {**REMOVAL, "latent_source": "victim", "layer": "block1.2"}),
        (token_classifier, {**REMOVAL, "layer": "block1", "shuffle_ratio": 0.6}),  # with a side input
    ]
    graph = [RemovalNetAttack(make(images), **options).generate(images) for make, options in cases]
    assert [s.surrogate_info["cut"] for s in graph] == ["graph"] * 3
    assert [s.surrogate_info["side_inputs"] for s in graph] == [0, 0, 1]
    monkeypatch.setattr(removalnet_run, "FrozenCut", functools.partial(FrozenCut, method="hooks"))
    hooks = [RemovalNetAttack(make(images), **options).generate(images) for make, options in cases]
    assert [s.surrogate_info["cut"] for s in hooks] == ["hooks"] * 3
    assert all(nearly_equal(a, b) for a, b in zip(graph, hooks, strict=True))  # BatchNorm is folded in the graphs alone


# ---------------------------------------------------------------------- RemovalNet: passes
def passes(victim: PyTorchClassifier, images: np.ndarray, **change: Any) -> tuple[Counter[str], Counter[str]]:
    """Run three iterations; count calls of first and last layer, of surrogate and victim, after the start."""
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())

    def listen(counter: Counter[str], network: nn.Module) -> None:
        for part in ("block1", "head"):
            network.get_submodule(part).register_forward_hook(
                lambda module, *_, part=part: counter.update([f"{part} {'train' if module.training else 'eval'}"])
            )

    def start(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0:
            listen(counts[0], surrogate.model)
            listen(counts[1], victim.model)

    options = {**REMOVAL, "max_iter": 3, "inner_steps": 5, **change}
    RemovalNetAttack(victim, **options, callback=start).generate(images)
    return counts


@pytest.mark.parametrize(
    ("change", "surrogate", "victim"),
    [
        ({}, (3, 18, 3), (0, 0)),
        ({"beta": 0}, (3, 3, 3), (0, 0)),
        ({"alpha": 0}, (3, 18, 3), (0, 0)),
        ({"gamma": 0}, (3, 18, 3), (0, 0)),
        ({"alpha": 0, "beta": 0}, (0, 0, 3), (0, 0)),
        ({"latent_source": "victim"}, (3, 3, 3), (3, 18)),
        ({"logit_source": "victim"}, (3, 18, 3), (3, 3)),
        ({"latent_source": "victim", "logit_source": "victim"}, (0, 0, 3), (3, 18)),
        ({"latent_source": "victim", "beta": 0}, (3, 3, 3), (0, 0)),
        ({"inner_steps": 0}, (3, 3, 3), (0, 0)),
        ({"reference_double_pass": True}, (3, 18, 3), (0, 0)),
    ],
    ids=str,
)
def test_passes_of_an_iteration(
    change: Options, surrogate: tuple[int, int, int], victim: tuple[int, int], images: np.ndarray
) -> None:
    mine, theirs = passes(several_classes(images), images, **change)
    heads = 2 if change.get("reference_double_pass") else 1
    wanted = {
        "block1 eval": surrogate[0],
        "head eval": surrogate[1],
        "block1 train": heads * surrogate[2],
        "head train": surrogate[2],
    }
    assert dict(mine) == {name: count for name, count in wanted.items() if count}
    assert dict(theirs) == {n: c for n, c in {"block1 eval": victim[0], "head eval": victim[1]}.items() if c}


def test_weight_zero_leaves_the_term_out(images: np.ndarray) -> None:
    victim = several_classes(images)
    for weight, term in (("alpha", "kl"), ("beta", "latent"), ("gamma", "ce")):
        info = RemovalNetAttack(victim, **{**REMOVAL, weight: 0}).generate(images).surrogate_info
        assert set(info["losses"]) == {"kl", "latent", "ce"} - {term}
        assert (info["ilbs_unmet_share"] is None) == (weight == "alpha")


def test_victim_is_asked_once_for_each_sample_and_mirror_image(images: np.ndarray) -> None:
    victim = several_classes(images)
    sizes: list[int] = []
    victim.model.head.register_forward_hook(lambda _m, inputs, _out: sizes.append(len(inputs[0])))
    for hflip, rows in ((True, 80), (False, 40)):
        sizes.clear()
        options = {**REMOVAL, "max_iter": 12, "hflip": hflip}
        info = RemovalNetAttack(victim, **options).generate(images).surrogate_info
        assert info["victim_queries"] == rows
        # and two grey images to see what the model answers, and two random ones, twice, to hold the copy against it
        assert sum(sizes) == rows + 2 + 4


def test_recalibration_moves_statistics_only(images: np.ndarray) -> None:
    victim = several_classes(images)
    plain = RemovalNetAttack(victim, **REMOVAL).generate(images)
    again = RemovalNetAttack(victim, **REMOVAL, bn_recalibrate=3).generate(images)
    assert parameters_equal(plain, again)
    assert not equal(plain, again)
    assert [m.momentum for m in again.model.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1] * 3


# ---------------------------------------------------------------------- RemovalNet: layers
class Special(TinyCNN):
    """TinyCNN with layers of all unsuitable sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.unused, self.numbers = nn.Identity(), nn.Identity(), Numbers()
        self.pair, self.aside = Pair(), nn.Conv2d(1, 4, 8)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(self.twice(self.twice(x)))[0]
        self.numbers(x)
        return super().forward(x) + self.gate * self.aside(x).flatten(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


def special(images: np.ndarray) -> PyTorchClassifier:
    network = Special()
    network.load_state_dict(several_classes(images).model.state_dict(), strict=False)
    return wrap(network.eval())


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("blok2", LayerNotFoundError, "block2"),
        ("", LayerNotFoundError, "no layer"),
        (0, LayerNotFoundError, "stages are 1 to"),
        (6, LayerNotFoundError, "stages are 1 to"),
        ("twice", LayerCutError, "called 2 times"),
        ("unused", LayerCutError, "not used"),
        ("pair", LayerCutError, "returns tuple"),
        ("numbers", LayerCutError, "int64"),
    ],
)
def test_layers_that_cannot_be_cut(layer: str | int, error: type[Exception], message: str, images: np.ndarray) -> None:
    victim = special(images)
    before = everything(victim)
    with pytest.raises(error, match=message):
        RemovalNetAttack(victim, **{**REMOVAL, "layer": layer}).generate(images)
    assert everything(victim) == before


def test_layer_that_the_output_ignores(images: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="gradient with respect to layer 'aside' is exactly 0") as record:
        RemovalNetAttack(special(images), **{**REMOVAL, "layer": "aside", "shuffle_ratio": 0.6}).generate(images)
    assert record[0].filename == __file__


def test_cut_at_the_classifier(images: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="'head' is the network's output") as record:
        surrogate = RemovalNetAttack(
            several_classes(images), **{**REMOVAL, "layer": "head", "shuffle_ratio": 0.6}
        ).generate(images)
    assert record[0].filename == __file__
    assert all(tensor.isfinite().all() for tensor in state(surrogate).values())


@pytest.mark.parametrize(("ratio", "warns"), [(0.08, True), (0.083334, False), (0.0, False)])
def test_shuffle_of_at_most_one_channel(ratio: float, warns: bool, images: np.ndarray) -> None:
    attack = RemovalNetAttack(several_classes(images), **{**REMOVAL, "shuffle_ratio": ratio})  # of twelve channels
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        surrogate = attack.generate(images)
    assert len(record) == warns
    if warns:
        assert "at most one channel" in str(record[0].message)
        none = RemovalNetAttack(several_classes(images), **{**REMOVAL, "shuffle_ratio": 0.0}).generate(images)
        assert equal(surrogate, none)


def test_layer_inside_a_branch(images: np.ndarray) -> None:
    options = {**REMOVAL, "layer": "block1", "shuffle_ratio": 0.6}
    surrogate = RemovalNetAttack(token_classifier(images), **options).generate(images)
    assert surrogate.surrogate_info["side_inputs"] == 1
    with pytest.raises(LayerCutError, match="needs 1 further tensor"):
        RemovalNetAttack(token_classifier(images), **options, require_single_tensor=True).generate(images)


def test_dropout_is_active_in_the_training_pass_only(images: np.ndarray) -> None:
    victim = token_classifier(images)
    modes: list[bool] = []

    def start(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0:
            surrogate.model.block2[2].register_forward_hook(lambda module, *_: modes.append(module.training))

    options = {**REMOVAL, "layer": "mix", "shuffle_ratio": 0.6, "max_iter": 1}
    assert isinstance(victim.model, TinyTokens)
    RemovalNetAttack(victim, **options, callback=start).generate(images)
    assert modes == [False] * 3 + [True]  # one pass, two inner steps, the training pass
