"""The ``removalnet-legacy`` profiles: every defect of RemovalNet's code is one switch, tested by itself.

``SWITCHES`` names for each defect its parameter, the values it changes and those it leaves alone; the tests below it
recompute what changes by slow code.

Differences that have no switch: D2, columns beyond the 32nd mixed with rows (layers wider than that; its tests push
what no metric reads); D3's limit to the first 100 batches (``extract`` takes those images); D7, counts or fractions
(both are returned); D8, softmax of softmax, and D9, C&W that gives NaN (never wanted); Z3, masks drawn anew for each
suspect (extract with another seed); M3, a column normalised over the models of a table (``population_minmax``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from art_fingerprint.verifiers import (
    DeepJudgeVerifier,
    Fingerprint,
    IPGuardVerifier,
    ModelDiffVerifier,
    Verifier,
    ZestVerifier,
)
from tests.networks import MEAN, STD, Both, pictures, suspects_of, victim_of
from tests.oracles import slow_metrics as slow
from tests.oracles.test_segmentation import slow_quickshift

Options = dict[str, Any]
WHITE = ("LOD", "LAD", "NOD", "NAD", "LAD_frac", "NAD_frac", "NNOD")
BLACK = ("Rob", "RobD", "MR_adv", "JSD")
X = pictures(40, 31)
pytestmark = [
    pytest.mark.filterwarnings("ignore:The fingerprint has only .* white-box tests:UserWarning"),
    pytest.mark.filterwarnings("ignore:Layer 'stage1' has 6 neurons:UserWarning"),
    pytest.mark.filterwarnings("ignore:Only .* points crossed the decision boundary:UserWarning"),
]
SIGMA = np.array(STD).reshape(3, 1, 1)
MU = np.array(MEAN).reshape(3, 1, 1)

# Sound mathematics, small; both settings of a switch differ from it in nothing else.
BASE: dict[type[Verifier], Options] = {
    DeepJudgeVerifier: {
        "layer": "stage1", "units": "standardised", "nb_seeds": 25, "radius": 0.03, "step": 0.01, "max_iter_attack": 4,
        "keep": "all", "random_start": False, "nb_seeds_whitebox": 4, "multiplier": 2.0, "learning_rate": 0.06,
        "max_iter": 6,
    },
    IPGuardVerifier: {
        "nb_probes": 25, "margin": 0.1, "learning_rate": 0.02, "units": "standardised", "max_iter": 20, "clip": False,
        "initial_points": "first",
    },
    ModelDiffVerifier: {"nb_pairs": 12, "generator": "search", "search_iterations": 60, "search_step": 1.0},
    ZestVerifier: {"nb_images": 12, "nb_masks": 20, "kernel_size": 2.0},
}  # fmt: skip


@dataclass(frozen=True)
class Switch:
    """A defect, the parameter that has it, the scores of one suspect that it changes and those that it must not."""

    defect: str
    verifier: type[Verifier]
    options: Options
    changes: tuple[str, ...]
    keeps: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.defect}-{'-'.join(self.options)}"


SWITCHES = [
    # image columns instead of channels
    Switch("D1", DeepJudgeVerifier, {"pooling": "last-axis"}, ("LOD", "LAD", "NOD", "NAD"), BLACK),
    # seeds ranked by squared logits
    Switch("D3", DeepJudgeVerifier, {"gini_on": "logits"}, ("LOD", "NOD", "JSD")),
    # agreement with the victim under the name of Rob
    Switch("D4", DeepJudgeVerifier, {"rob_reference": "victim"}, ("Rob", "RobD"), (*WHITE, "MR_adv", "JSD")),
    # examples inside [-1, 1] after standardisation
    Switch("D5", DeepJudgeVerifier, {"attack_clip": "standardised-unit"}, ("JSD",), WHITE),
    # target m * max + 0.2
    Switch("D6", DeepJudgeVerifier, {"margin": 0.2}, ("LOD", "NOD"), BLACK),
    # the iterate after the one that passed
    Switch("D6", DeepJudgeVerifier, {"stored_iterate": "next"}, ("LOD", "NOD"), BLACK),
    # a neuron without success keeps its best attempt
    Switch("D6", DeepJudgeVerifier, {"keep_best": True, "multiplier": 3.0}, ("LOD", "NOD"), BLACK),
    # as many tests for every neuron as for the poorest (section 1.3)
    Switch("counts", DeepJudgeVerifier, {"equalise_counts": True}, ("LOD", "LAD", "NOD", "NAD"), BLACK),
    # segments of clamped standardised colours
    Switch(
        "Z2",
        ZestVerifier,
        {"segmentation_input": "standardised-clamped"},
        ("ZEST-L1", "ZEST-L2", "ZEST-Linf", "ZEST-cosine"),
    ),
    # a search that looks at the seeds, so that nothing is ever accepted
    Switch("M1", ModelDiffVerifier, {"search_departure": "seeds"}, ("DDV", "DDM")),
    # probes that depend on the suspect
    Switch("M2", ModelDiffVerifier, {"models": "both"}, ("DDV", "DDM")),
    # Adam rebuilt at every step: signed gradients
    Switch("I2", IPGuardVerifier, {"optimizer": "sign"}, ("MR",)),
]


@functools.cache
def suspect() -> Both:
    return suspects_of("vgg", 1)["copy"]


def extract(kind: type[Verifier], **options: Any) -> Verifier:
    verifier = kind(victim_of("vgg", 1).classifier, **{**BASE[kind], **options})
    if options.get("models") == "both":
        verifier.extract_joint(suspect().classifier, X)  # type: ignore[attr-defined]
    else:
        verifier.extract(X, truth() if kind is DeepJudgeVerifier else None)
    return verifier


@functools.cache
def truth() -> np.ndarray:
    return np.array(victim_of("vgg", 1).mostly_right(X))


@functools.cache
def sound(kind: type[Verifier]) -> Fingerprint:
    fingerprint = extract(kind).fingerprint
    assert fingerprint is not None
    return fingerprint


def defective(**options: Any) -> Fingerprint:
    fingerprint = extract(DeepJudgeVerifier, **options).fingerprint
    assert fingerprint is not None
    return fingerprint


def test_the_table_has_every_switch_of_the_profiles_and_no_other() -> None:
    for kind in BASE:
        plain, legacy = kind.profiles["removalnet"], kind.profiles["removalnet-legacy"]
        own: Options = {}
        for switch in SWITCHES:
            if switch.verifier is kind:
                own |= {name: value for name, value in switch.options.items() if name != "multiplier"}
        assert {name: value for name, value in legacy.items() if plain.get(name) != value} == own
        assert set(plain) <= set(legacy)


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_a_switch_changes_its_numbers_and_no_others(switch: Switch) -> None:
    base = {name: value for name, value in switch.options.items() if name == "multiplier"}
    plain = switch.verifier.from_fingerprint(sound(switch.verifier)) if not base else extract(switch.verifier, **base)
    before, after = (v.score(suspect().classifier) for v in (plain, extract(switch.verifier, **switch.options)))
    for name in switch.changes:
        assert after[name] != before[name], name
    for name in switch.keeps:
        assert after[name] == before[name], name


# ---------------------------------------------------------------------- DeepJudge
@functools.cache
def order(on: Callable[[np.ndarray], np.ndarray] = slow.probabilities) -> list[int]:
    rows = slow.answers(victim_of("vgg", 1).model, X)
    return slow.certain_order(on(rows), truth().tolist(), 25)


def activations(image: Tensor) -> Tensor:
    return victim_of("vgg", 1).outputs("stage1", image)[0].mean((1, 2))


@functools.cache
def paths() -> dict[tuple[int, int], list[tuple[np.ndarray, float]]]:
    """Every iterate of every pair of a neuron and a seed."""
    seeds = X[order()[:4]]
    return {
        (neuron, index): slow.neuron_path(activations, seed, neuron, 0.06 * SIGMA, 6)
        for neuron in range(10)
        for index, seed in enumerate(seeds)
    }


@functools.cache
def peaks() -> np.ndarray:
    return slow.activations(victim_of("vgg", 1).layer("stage1"), X[order()[:4]]).max(0)


def pairs_of(fingerprint: Fingerprint) -> dict[tuple[int, int], np.ndarray]:
    arrays = fingerprint.arrays
    pairs = zip(arrays["tests_neuron"].tolist(), arrays["tests_seed"].tolist(), strict=True)
    return dict(zip(pairs, arrays["tests"], strict=True))


def assert_tests(fingerprint: Fingerprint, expected: dict[tuple[int, int], np.ndarray]) -> None:
    found = pairs_of(fingerprint)
    assert set(found) == set(expected)
    for pair, test in expected.items():
        np.testing.assert_allclose(found[pair], test, atol=1e-4)


def successes(multiplier: float, margin: float = 0.0, later: int = 0) -> dict[tuple[int, int], np.ndarray]:
    """Return for every pair that reaches its target the iterate that did, or a later one."""
    found = {}
    for (neuron, index), path in paths().items():
        t = slow.first_beyond(path, multiplier * peaks()[neuron] + margin)
        if t is not None and t + later < len(path):
            found[neuron, index] = path[t + later][0]
    return found


def test_tests_without_any_defect() -> None:
    assert_tests(sound(DeepJudgeVerifier), successes(2.0))
    assert 10 < len(successes(2.0)) < 40


def test_d1_columns() -> None:
    fingerprint = defective(pooling="last-axis")
    tests = fingerprint.arrays["tests"]
    stranger = suspects_of("vgg", 1)["independent"]
    a, b = (slow.activations(one.layer("stage1"), tests, "last-axis") for one in (victim_of("vgg", 1), stranger))
    assert a.shape[1] == 6  # the width of the feature map, which has ten channels
    np.testing.assert_allclose(fingerprint.arrays["tests_activations"], a, rtol=2e-5, atol=2e-6)
    scores = DeepJudgeVerifier.from_fingerprint(fingerprint).score(stranger.classifier)
    assert scores["LOD"] == pytest.approx(slow.layer_output_distance(a, b), rel=1e-4)
    assert scores["LAD"] == pytest.approx(slow.layer_activation_distance(a, b), rel=1e-9)
    assert 0 < scores["LAD"] <= 6


def test_d3_certainty_of_logits() -> None:
    assert order(lambda logits: logits) != order()
    for on, name in ((slow.probabilities, "probabilities"), (lambda logits: logits, "logits")):
        examples = defective(gini_on=name, radius=1e-6, method="fgsm").arrays["examples"]
        np.testing.assert_allclose(examples, X[order(on)], atol=2e-6)


def test_d4_rob_is_agreement_with_the_victim() -> None:
    scores = DeepJudgeVerifier.from_fingerprint(defective(rob_reference="victim")).score(suspect().classifier)
    arrays = sound(DeepJudgeVerifier).arrays
    f, g = (slow.answers(one.model, arrays["examples"]) for one in (victim_of("vgg", 1), suspect()))
    agreement = slow.matching_rate(f, g)
    assert scores["Rob"] == scores["MR_adv"] == pytest.approx(agreement)
    assert scores["RobD"] == pytest.approx(1 - agreement)


def test_d5_examples_are_clamped_in_standardised_units() -> None:
    examples = defective(attack_clip="standardised-unit").arrays["examples"]
    expected = []
    for index in order():
        label = torch.tensor([int(truth()[index])])

        def loss(image: Tensor, label: Tensor = label) -> Tensor:
            return F.cross_entropy(victim_of("vgg", 1).logits(image), label)

        bounds = {"low": MU - SIGMA, "high": MU + SIGMA}
        expected.append(slow.ascent(loss, X[index], X[index], 0.03 * SIGMA, 0.01 * SIGMA, 4, **bounds))
    gaps = np.abs(examples - np.stack(expected))
    assert np.mean(gaps > 1e-6) < 2e-3
    assert gaps.max() < 0.07 * max(STD)
    assert np.abs((examples - MU) / SIGMA).max() <= 1 + 1e-5
    assert np.abs((sound(DeepJudgeVerifier).arrays["examples"] - MU) / SIGMA).max() > 1.3


def test_d6_margin() -> None:
    expected = successes(2.0, margin=0.2)
    assert_tests(defective(margin=0.2), expected)
    assert set(expected) < set(successes(2.0))


def test_d6_next_iterate() -> None:
    expected = successes(2.0, later=1)
    assert_tests(defective(stored_iterate="next"), expected)
    assert set(expected) < set(successes(2.0))  # a pair that passes at its last update has no next one


def test_d6_best_attempt() -> None:
    expected = successes(3.0)
    missing = set(range(10)) - {neuron for neuron, _ in expected}
    assert 1 <= len(missing) < 10
    for neuron in missing:
        expected[neuron, 0] = max(paths()[neuron, 0], key=lambda step: step[1])[0]
    assert_tests(defective(keep_best=True, multiplier=3.0), expected)


def test_equalised_counts() -> None:
    by_neuron: dict[int, list[int]] = {}
    for neuron, index in sorted(successes(2.0)):
        by_neuron.setdefault(neuron, []).append(index)
    fewest = min(map(len, by_neuron.values()))
    assert fewest < max(map(len, by_neuron.values()))
    kept = {(neuron, index) for neuron, indices in by_neuron.items() for index in indices[:fewest]}
    assert set(pairs_of(defective(equalise_counts=True))) == kept


# ---------------------------------------------------------------------- ZEST
def test_z2_segments_of_clamped_standardised_colours() -> None:
    verifier = extract(ZestVerifier, segmentation_input="standardised-clamped")
    assert verifier.fingerprint is not None
    arrays = verifier.fingerprint.arrays
    colours = [(image - MU) / SIGMA for image in arrays["images"].astype(np.float64)]
    for channel in range(3):  # meant to run over channels, runs over images
        colours[channel] = colours[channel] * STD[channel] + MEAN[channel]
    expected = [slow_quickshift(255 * np.clip(image, 0, 1), 2.0, 200, 0.2) for image in colours]
    assert arrays["segments"].tolist() == expected
    assert arrays["segments"].max((1, 2)).tolist() != sound(ZestVerifier).arrays["segments"].max((1, 2)).tolist()


# ---------------------------------------------------------------------- ModelDiff
def test_m1_probes_stay_natural_images() -> None:
    verifier = extract(ModelDiffVerifier, search_departure="seeds")
    assert verifier.fingerprint is not None
    inputs = np.concatenate([verifier.fingerprint.arrays[name] for name in ("seeds", "partners")])
    assert len(inputs) == 24  # up to 25 inputs the departure is exactly zero
    assert all(any(np.array_equal(one, image) for image in X) for one in inputs)
    arrays = sound(ModelDiffVerifier).arrays
    inputs = np.concatenate([arrays["seeds"], arrays["partners"]])
    assert not all(any(np.array_equal(one, image) for image in X) for one in inputs)


def test_m2_probes_depend_on_the_suspect() -> None:
    digests = set()
    for model in (suspect(), suspects_of("vgg", 1)["independent"]):
        verifier = ModelDiffVerifier(victim_of("vgg", 1).classifier, **BASE[ModelDiffVerifier], models="both")
        digests.add(verifier.extract_joint(model.classifier, X).arrays["partners"].tobytes())
    assert len(digests) == 2


# ---------------------------------------------------------------------- IPGuard
def test_i2_first_step_is_the_sign_of_the_gradient() -> None:
    """The slow descent is compared in full in ``test_slow_extraction``; here the step by hand."""
    verifier = extract(IPGuardVerifier, optimizer="sign", max_iter=1, margin=50.0, nb_probes=10)
    assert verifier.fingerprint is not None
    moves = (verifier.fingerprint.arrays["probes"] - X[:10]) / SIGMA
    np.testing.assert_allclose(np.abs(moves), 0.02, rtol=1e-3)
