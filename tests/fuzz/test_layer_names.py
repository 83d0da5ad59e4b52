"""Layer names that exist, nearly exist, or could never exist, wherever a layer is named."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from art_fingerprint.attacks import DistillationAttack, FinePruningAttack, RemovalNetAttack
from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.layers import recorded, resolve_layer
from art_fingerprint.core.stored_weights import stored_weight
from art_fingerprint.core.taps import get_layer, tap
from art_fingerprint.reporting.saliency import saliency_maps
from art_fingerprint.verifiers import DeepJudgeVerifier, WeightAlignmentVerifier
from tests.fuzz.generated import generated
from tests.fuzz.outcomes import Refused, outcome_is_allowed
from tests.fuzz.strategies import names, values
from tests.fuzz.test_arrays import X, Y, victim
from tests.states import state_of

INSIDE = [name for name, _ in victim().model.named_modules() if name]
layers = names(INSIDE)
EXAMPLE = torch.from_numpy(X[:2])


def network() -> torch.nn.Module:
    return victim().model


@functools.cache
def state() -> tuple[object, ...]:
    return state_of(victim())


def named(name: Any) -> list[str]:
    """What a message may say about a name: itself, or that a layer is meant."""
    return ["layer", "Layer", str(name)[:50]]


@generated(20, 400, name=layers)
def test_getting(name: str) -> None:
    found = outcome_is_allowed(lambda: get_layer(network(), name), *named(name))
    assert isinstance(found, Refused) == (name not in INSIDE)
    shown = outcome_is_allowed(lambda: tap(network(), name, EXAMPLE), *named(name))
    assert isinstance(shown, Refused | torch.Tensor)
    outcome_is_allowed(lambda: recorded(network(), [name]).__enter__(), *named(name))
    for hooked in network().modules():
        hooked._forward_hooks.clear()


@generated(20, 400, name=layers | values)
def test_resolving(name: Any) -> None:
    found = outcome_is_allowed(lambda: resolve_layer(network(), name, EXAMPLE), "layer")
    assert isinstance(found, Refused) or found in INSIDE


@generated(10, 300, name=layers, method=st.sampled_from(["auto", "graph", "hooks"]))
def test_cutting(name: str, method: Any) -> None:
    found = outcome_is_allowed(lambda: LayerCut(network(), name, EXAMPLE, method=method), *named(name))
    if not isinstance(found, Refused):
        z, output = found.forward(EXAMPLE)
        torch.testing.assert_close(found.tail_for(EXAMPLE)(z), output)
    assert state_of(victim()) == state()


@generated(20, 300, name=st.one_of(layers, layers.map(lambda name: f"{name}.weight")))
def test_stored_weights(name: str) -> None:
    found = stored_weight(network(), name)
    assert found is None or isinstance(found, torch.Tensor)


USERS = {
    "RemovalNet": lambda layer: RemovalNetAttack(
        victim(), layer=layer, max_iter=1, inner_steps=1, batch_size=12, shuffle_ratio=0.3
    ).generate(X, Y),
    "FinePruning": lambda layer: FinePruningAttack(victim(), layer=layer, ratio=0.3, max_iter=1).generate(X, Y),
    "Distillation": lambda layer: DistillationAttack(victim(), layers=[layer], max_iter=1).generate(X, Y),
    "DeepJudge": lambda layer: DeepJudgeVerifier(
        victim(), layer=layer, nb_seeds=8, nb_seeds_whitebox=2, max_iter=3, metric_names=["LOD"]
    ).extract(X, Y),
    "DeepJudge's suspect": lambda layer: DeepJudgeVerifier(victim(), suspect_layer=layer),
    "WeightAlignment": lambda layer: WeightAlignmentVerifier(victim(), layers=[layer]).extract(X),
    "saliency": lambda layer: saliency_maps(victim(), X, layer),
}


@pytest.mark.parametrize("user", USERS)
@generated(3, 60, name=layers | values)
def test_users(user: str, name: Any) -> None:
    before = state()
    found = outcome_is_allowed(lambda: USERS[user](name), "layer", "Layer", "channels", "probe", "neuron")
    assert found is not None
    assert state_of(victim()) == before
