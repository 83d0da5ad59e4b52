"""What must hold for every verifier on every kind of network: extremes, invariances, symmetry, and repeatability."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from art_fingerprint.verifiers import (
    DeepJudgeVerifier,
    Fingerprint,
    IPGuardVerifier,
    ModelDiffVerifier,
    Verifier,
    ZestVerifier,
)
from tests.networks import (
    FAMILIES,
    LAYERS,
    Both,
    Changed,
    Family,
    both,
    perturbed,
    pictures,
    random_network,
    suspects_of,
    victim_of,
)
from tests.oracles import slow_metrics as slow

Options = dict[str, Any]
KINDS: dict[type[Verifier], Options] = {
    DeepJudgeVerifier: {
        "nb_seeds": 30, "radius": 0.01, "max_iter_attack": 3, "nb_seeds_whitebox": 3, "multiplier": 1.2,
        "learning_rate": 0.05, "max_iter": 6,
    },
    IPGuardVerifier: {"nb_probes": 20, "margin": 0.05, "learning_rate": 0.04, "max_iter": 10},
    ModelDiffVerifier: {"nb_pairs": 12, "radius": 0.3, "step": 0.1, "max_iter": 5},
    ZestVerifier: {"nb_images": 10, "nb_masks": 9, "kernel_size": 2.0},
}  # fmt: skip
BATCH_SIZES = (1, 7, 128)
X = pictures(40, 77)

every_verifier = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
every_family = pytest.mark.parametrize("family", FAMILIES)


def make(kind: type[Verifier], family: Family, victim: Both, **options: Any) -> Verifier:
    layer = {"layer": LAYERS[family]} if kind is DeepJudgeVerifier else {}
    return kind(victim.classifier, **{**KINDS[kind], **layer, **options})


@functools.cache
def _fingerprint(kind: type[Verifier], family: Family, batch_size: int) -> Fingerprint:
    return make(kind, family, victim_of(family, 0), batch_size=batch_size).extract(X)


def ready(kind: type[Verifier], family: Family, extraction: int = 128, scoring: int = 128) -> Verifier:
    """Return a verifier with the victim's fingerprint; extraction is run once for all tests."""
    verifier = kind.from_fingerprint(_fingerprint(kind, family, extraction))
    verifier.set_params(batch_size=scoring)
    return verifier


# ---------------------------------------------------------------------- extremes, batches, order
@every_verifier
@every_family
def test_the_victim_is_at_the_extreme_for_any_batch_size(kind: type[Verifier], family: Family) -> None:
    """Other batch sizes than the extraction's round otherwise: then 1e-6 of what an independent model scores."""
    far = ready(kind, family).score(suspects_of(family, 0)["independent"].classifier)
    twin = both(random_network(family, 0))
    for scoring in BATCH_SIZES:
        verifier = ready(kind, family, scoring=scoring)
        scores = verifier.score(victim_of(family, 0).classifier)
        assert verifier.score(twin.classifier) == scores
        for metric in kind.metrics:
            unit = max(1.0, far[metric.name]) if scoring != 128 else 1.0
            extreme = 1.0 if metric.direction == "similarity" else 0.0
            assert scores[metric.name] == pytest.approx(extreme, abs=1e-6 * unit), (metric.name, scoring)
            assert far[metric.name] != pytest.approx(extreme, abs=1e-2), metric.name


@every_verifier
@every_family
def test_results_do_not_depend_on_the_batch_size(kind: type[Verifier], family: Family) -> None:
    model = suspects_of(family, 0)["copy"].classifier
    expected = ready(kind, family).score(model)
    for extraction, scoring in ((1, 7), (7, 128), (128, 1)):
        found = ready(kind, family, extraction, scoring).score(model)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9), (extraction, scoring)


@every_verifier
@every_family
def test_the_order_of_suspects_does_not_matter(kind: type[Verifier], family: Family) -> None:
    models = [victim_of(family, 0), *suspects_of(family, 0).values()]
    verifier = ready(kind, family)
    forward = [verifier.score(model.classifier) for model in models]
    backward = [verifier.score(model.classifier) for model in reversed(models)]
    alone = [ready(kind, family).score(model.classifier) for model in models]
    assert forward == backward[::-1] == alone
    assert all(one != other for one, other in itertools.pairwise(forward))


# ---------------------------------------------------------------------- invariances
ORDER = (3, 0, 4, 2, 1)
UNCHANGED: dict[str, dict[type[Verifier], list[str]]] = {
    "permuted classes": {
        DeepJudgeVerifier: ["LOD", "LAD", "NOD", "NAD"],
        ModelDiffVerifier: ["DDV", "DDM"],
        ZestVerifier: ["ZEST-L1", "ZEST-L2", "ZEST-Linf", "ZEST-cosine"],
    },
    "logits times 3": {
        DeepJudgeVerifier: ["LOD", "LAD", "NOD", "NAD", "Rob", "RobD", "MR_adv"],
        IPGuardVerifier: ["MR"],
        ModelDiffVerifier: ["DDV", "DDM"],
        ZestVerifier: ["ZEST-cosine"],
    },
    "probabilities": {
        DeepJudgeVerifier: ["LOD", "LAD", "NOD", "NAD", "Rob", "RobD", "MR_adv", "JSD"],
        IPGuardVerifier: ["MR"],
        ModelDiffVerifier: [],
        ZestVerifier: [],
    },
}


@every_verifier
@every_family
@pytest.mark.parametrize(
    ("name", "options"),
    [("permuted classes", {"order": ORDER}), ("logits times 3", {"scale": 3.0}), ("probabilities", {"soft": True})],
    ids=["permuted", "scaled", "soft"],
)
@pytest.mark.filterwarnings("ignore:.*both are compared as probabilities:UserWarning")
def test_invariances(kind: type[Verifier], family: Family, name: str, options: Options) -> None:
    original = perturbed(random_network(family, 0), 0, 0.05)
    suspect = both(Changed(original, **options))
    verifier = ready(kind, family)
    if kind is DeepJudgeVerifier:
        verifier.set_params(suspect_layer=f"network.{LAYERS[family]}")
    before, after = verifier.score(suspects_of(family, 0)["copy"].classifier), verifier.score(suspect.classifier)
    same = UNCHANGED[name].get(kind, [])
    for metric in before:
        if metric in same:
            assert after[metric] == pytest.approx(before[metric], rel=1e-5, abs=1e-7), metric
        elif metric in ("ZEST-L1", "ZEST-L2", "ZEST-Linf", "JSD", "MR", "MR_adv"):
            assert after[metric] != pytest.approx(before[metric], rel=1e-2), metric


class Affine(nn.Module):
    """A layer's output times 2 plus 1."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x) + 1


@every_family
def test_affine_layers_keep_the_activation_metrics(family: Family) -> None:
    network = copy.deepcopy(suspects_of(family, 0)["copy"].classifier.model)
    parent, _, name = LAYERS[family].rpartition(".")
    setattr(network.get_submodule(parent), name, Affine(network.get_submodule(LAYERS[family])))
    verifier = ready(DeepJudgeVerifier, family)
    verifier.set_params(metric_names=["LOD", "LAD", "NOD", "NAD"])
    before = verifier.score(suspects_of(family, 0)["copy"].classifier)
    after = verifier.score(both(network).classifier)
    for metric in ("LAD", "NAD", "LAD_frac", "NAD_frac"):
        assert after[metric] == before[metric]
    for metric in ("LOD", "NOD"):
        assert after[metric] > 1.5 * before[metric]


# ---------------------------------------------------------------------- symmetry
@every_verifier
@every_family
def test_victim_and_suspect_can_change_places_on_fixed_probes(kind: type[Verifier], family: Family) -> None:
    """The suspect becomes the victim of a fingerprint with the same probes and its own answers to them."""
    victim, suspect = victim_of(family, 0), suspects_of(family, 0)["copy"]
    fingerprint = _fingerprint(kind, family, 128)
    arrays = dict(fingerprint.arrays)
    answer = suspect.classifier.predict
    if kind is DeepJudgeVerifier:
        layer = suspect.layer(LAYERS[family])
        arrays["examples_logits"] = answer(arrays["examples"])
        arrays["tests_activations"] = slow.activations(layer, arrays["tests"]).astype(np.float32)
    elif kind is IPGuardVerifier:
        arrays["labels"] = answer(arrays["probes"]).argmax(1)
    elif kind is ModelDiffVerifier:
        arrays["seed_outputs"], arrays["partner_outputs"] = answer(arrays["seeds"]), answer(arrays["partners"])
    else:
        own = make(kind, family, suspect).extract(X).arrays
        assert all(np.array_equal(own[name], arrays[name]) for name in ("images", "segments", "masks", "fill"))
        arrays = dict(own)
    other = Fingerprint(fingerprint.verifier, fingerprint.params, fingerprint.facts, arrays)
    swapped = kind.from_fingerprint(other)
    there, back = ready(kind, family).score(suspect.classifier), swapped.score(victim.classifier)
    for name in ("JSD", "LOD", "LAD", "NOD", "NAD", "MR_adv", "MR", "DDV", "DDM"):
        if name in there:
            assert back[name] == pytest.approx(there[name], rel=1e-5, abs=1e-9), name
    for name in there:
        if name.startswith("ZEST"):  # the pairs of classes are found in another order, which matters to ties alone
            assert back[name] == pytest.approx(there[name], rel=1e-5, abs=1e-9), name


# ---------------------------------------------------------------------- repeatability
DIGESTS = """
import torch
torch.set_num_threads(1)
from tests.oracles.test_verifier_properties import X, FAMILIES, KINDS, make, victim_of
for kind, family in zip(KINDS, FAMILIES * 2):
    print(family, kind.__name__, make(kind, family, victim_of(family, 0)).extract(X).digest)
"""


def test_another_process_extracts_the_same_fingerprints_bit_for_bit() -> None:
    expected = [
        f"{family} {kind.__name__} {_fingerprint(kind, family, 128).digest}"
        for kind, family in zip(KINDS, FAMILIES * 2, strict=False)
    ]
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIGESTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert found.stdout.split("\n")[:-1] == expected


@every_verifier
def test_other_seeds_give_other_fingerprints(kind: type[Verifier]) -> None:
    digests = {make(kind, "vgg", victim_of("vgg", 0), seed=seed).extract(X).digest for seed in (0, 1, 2)}
    assert len(digests) == 3
    assert _fingerprint(kind, "vgg", 128).digest in digests
