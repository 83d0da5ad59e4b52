"""The ModelDiff verifier: bounds, reproducibility, spaces, the joint search, bad input, and its file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor import JpegCompression
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from art.exceptions import EstimatorError
from torch import nn

from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import (
    EmptyFingerprintError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NonFiniteOutputError,
    NotExtractedError,
)
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.modeldiff import ModelDiffVerifier
from tests.conftest import TinyCNN, wrap

Make = Callable[..., PyTorchClassifier]
SEARCH: dict[str, Any] = {"generator": "search", "search_iterations": 60, "nb_pairs": 12}
SHORT: dict[str, Any] = {"max_iter": 10}
JOINT: dict[str, Any] = {**SEARCH, "models": "both"}


class Softmaxed(nn.Module):
    """A network that answers probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.network(x), 1)


class Changed(nn.Module):
    """A network whose logits are scaled and permuted."""

    def __init__(self, network: nn.Module, scale: float = 1.0, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.network, self.scale, self.order = network, scale, list(order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.network(x)[:, self.order]


def black_box(classifier: PyTorchClassifier) -> BlackBoxClassifierNeuralNetwork:
    return BlackBoxClassifierNeuralNetwork(
        classifier.predict, classifier.input_shape, classifier.nb_classes, clip_values=(0.0, 1.0)
    )


# ---------------------------------------------------------------------- extraction
@pytest.mark.parametrize(
    "options", [SHORT, {**SHORT, "objective": "cosine"}, {"generator": "natural", "nb_pairs": 12}, SEARCH]
)
def test_self_verification_for_any_batch_size(
    make_classifier: Make, images: np.ndarray, options: dict[str, Any]
) -> None:
    for batch_size in (1, 7, 100):
        verifier = ModelDiffVerifier(make_classifier(), batch_size=batch_size, **options)
        fingerprint = verifier.extract(images)
        verdict = verifier.verify(make_classifier())
        assert verdict["DDV"].value == pytest.approx(1, abs=1e-6)
        assert verdict.queries == 2 * len(fingerprint.arrays["seeds"])
        assert verdict.derived is None


@pytest.mark.parametrize("options", [SHORT, {**SHORT, "objective": "untargeted-ce"}, SEARCH, {"generator": "natural"}])
def test_results_do_not_depend_on_batch_size(
    make_classifier: Make, images: np.ndarray, options: dict[str, Any]
) -> None:
    suspect = make_classifier(1)
    scores, probes = [], []
    for batch_size in (1, 7, 100):
        verifier = ModelDiffVerifier(make_classifier(), batch_size=batch_size, **options)
        probes.append(verifier.extract(images).arrays["partners"])
        scores.append(verifier.score(suspect)["DDV"])
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    for other in probes[1:]:
        # the sign of a gradient of the order of rounding may differ, so a few entries may
        assert (np.abs(other - probes[0]) > 1e-5).mean() < 0.01


def test_partners_stay_in_the_ball_and_the_range_of_the_batch(make_classifier: Make, images: np.ndarray) -> None:
    x = 0.2 + 0.5 * images
    arrays = ModelDiffVerifier(make_classifier(), radius=0.1, step=0.05).extract(x).arrays
    moved = np.abs(arrays["partners"] - arrays["seeds"])
    assert 0.09 < moved.max() <= 0.1 + 1e-6
    assert arrays["partners"].min() >= x.min()
    assert arrays["partners"].max() <= x.max()


@pytest.mark.parametrize(("clip", "inside"), [("batch", True), ("classifier", True), ("none", False)])
def test_clipping(make_classifier: Make, images: np.ndarray, clip: str, inside: bool) -> None:
    classifier = make_classifier(preprocessing=(np.array([0.5]), np.array([0.25])))
    partners = ModelDiffVerifier(classifier, clip=clip, radius=0.5).extract(images).arrays["partners"]
    assert bool(partners.min() >= 0 and partners.max() <= 1) is inside


def test_standardised_radius_is_a_multiple_of_the_classifiers_deviation(
    make_classifier: Make, images: np.ndarray
) -> None:
    classifier = make_classifier(preprocessing=(np.array([0.5]), np.array([0.25])))
    for units, radius in (("standardised", 0.025), ("input", 0.1)):
        arrays = ModelDiffVerifier(classifier, units=units, radius=0.1, clip="none").extract(images).arrays
        assert np.abs(arrays["partners"] - arrays["seeds"]).max() == pytest.approx(radius, rel=1e-4)


def test_the_ascent_raises_the_distances(make_classifier: Make, images: np.ndarray) -> None:
    def victims(options: dict[str, Any]) -> np.ndarray:
        arrays = ModelDiffVerifier(make_classifier(), **options).extract(images).arrays
        a, b = arrays["seed_outputs"], arrays["partner_outputs"]
        return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    options: dict[str, Any] = {"radius": 0.2, "step": 0.05, "objective": "cosine"}
    assert (victims({**options, "max_iter": 30}) > victims({**options, "max_iter": 0})).all()


def test_search_moves_few_entries_by_the_step(make_classifier: Make, images: np.ndarray) -> None:
    fingerprint = ModelDiffVerifier(make_classifier(), **SEARCH).extract(images)
    probes = np.concatenate([fingerprint.arrays["seeds"], fingerprint.arrays["partners"]])
    # every probe is one of the images but for its mutated entries
    moved = np.stack([np.abs(probe - images).reshape(len(images), -1) for probe in probes])
    nearest = (moved > 1e-6).sum(2).min(1)
    assert fingerprint.facts["search_accepted"] >= nearest.sum() - 1e-9 > 0
    assert fingerprint.facts["joint"] is None
    clipped = ModelDiffVerifier(make_classifier(), **SEARCH, search_clip=True).extract(images).arrays
    assert min(a.min() for n, a in clipped.items() if "outputs" not in n) >= 0


def test_departure_at_the_seeds_leaves_up_to_25_inputs_unchanged(make_classifier: Make, images: np.ndarray) -> None:
    legacy = ModelDiffVerifier(make_classifier(), **SEARCH, search_departure="seeds").extract(images)
    natural = ModelDiffVerifier(make_classifier(), generator="natural", nb_pairs=12).extract(images)
    assert legacy.facts["search_accepted"] == 0
    np.testing.assert_array_equal(legacy.arrays["partners"], natural.arrays["partners"])


def test_natural_pairs_are_distinct_images(make_classifier: Make, images: np.ndarray) -> None:
    arrays = ModelDiffVerifier(make_classifier(), generator="natural", nb_pairs=100).extract(images[:39]).arrays
    probes = np.concatenate([arrays["seeds"], arrays["partners"]])
    assert len(probes) == 38
    assert len({probe.tobytes() for probe in probes} & {image.tobytes() for image in images[:39]}) == 38


def test_the_seed_decides_and_the_global_state_does_not(make_classifier: Make, images: np.ndarray) -> None:
    digests = []
    for seed, state in ((0, 0), (0, 1), (1, 0)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        digests.append(ModelDiffVerifier(make_classifier(), seed=seed).extract(images).digest)
        assert torch.equal(before, torch.get_rng_state())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("options", [{}, SEARCH])
def test_the_victim_is_given_back_untouched(make_classifier: Make, images: np.ndarray, options: dict[str, Any]) -> None:
    victim = make_classifier()
    victim.model.train()
    before = network_digest(victim.model)
    ModelDiffVerifier(victim, **options).extract(images)
    assert network_digest(victim.model) == before
    assert all(module.training for module in victim.model.modules())
    assert all(p.requires_grad and p.grad is None for p in victim.model.parameters())


@pytest.mark.parametrize("options", [SHORT, SEARCH])
def test_progress_is_shown_on_request(
    make_classifier: Make, images: np.ndarray, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    quiet = ModelDiffVerifier(make_classifier(), **options).extract(images)
    assert capsys.readouterr() == ("", "")
    loud = ModelDiffVerifier(make_classifier(), **options, verbose=True).extract(images)
    assert "100%" in capsys.readouterr().err
    np.testing.assert_array_equal(loud.arrays["partners"], quiet.arrays["partners"])


def test_counts_and_small_pools(make_classifier: Make, images: np.ndarray) -> None:
    assert ModelDiffVerifier(make_classifier(), nb_pairs=20).extract(images).facts["nb_pairs"] == 20
    all_of_them = ModelDiffVerifier(make_classifier()).extract(images)
    assert (all_of_them.facts["nb_requested"], all_of_them.facts["nb_pairs"]) == (100, 40)
    with pytest.warns(UserWarning, match="only 3 pairs"):
        ModelDiffVerifier(make_classifier()).extract(images[:3])
    for generator, few in (("pgd", 1), ("natural", 3), ("search", 3)):
        with pytest.raises(EmptyFingerprintError, match="two pairs"):
            ModelDiffVerifier(make_classifier(), generator=generator).extract(images[:few])


def test_a_fingerprint_without_movement_is_undecided(make_classifier: Make, images: np.ndarray) -> None:
    verifier = ModelDiffVerifier(make_classifier(), radius=0, max_iter=3)
    with pytest.warns(UserWarning, match="raise `radius`"):
        verifier.extract(images)
    with pytest.warns(UserWarning, match="DDV is undefined"):
        verdict = verifier.verify(make_classifier(1))
    assert math.isnan(verdict["DDV"].value)
    assert verdict.derived is None
    assert "undefined" in verdict.reason


def test_a_suspect_that_never_moves_is_undecided_even_when_calibrated(
    make_classifier: Make, images: np.ndarray
) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(len(x), 1)

    verifier = ModelDiffVerifier(make_classifier())
    verifier.extract(images)
    verifier.calibrate([make_classifier(seed) for seed in (1, 2)])
    with pytest.warns(UserWarning, match="DDV is undefined"):
        verdict = verifier.verify(wrap(Constant()))
    assert verdict.derived is None
    assert verifier.verify(make_classifier()).derived is True


def test_preprocessing_without_gradient_only_stops_pgd(make_classifier: Make, images: np.ndarray) -> None:
    victim = make_classifier(preprocessing_defences=[JpegCompression(clip_values=(0.0, 1.0), channels_first=True)])
    with pytest.raises(InvalidInputError, match="no torch gradient"):
        ModelDiffVerifier(victim).extract(images)
    for options in ({**SEARCH, "search_clip": True}, {"generator": "natural"}):
        verifier = ModelDiffVerifier(victim, **options)
        verifier.extract(images)
        assert verifier.score(victim)["DDV"] == pytest.approx(1, abs=1e-6)


def test_a_victim_that_answers_nan_is_refused(images: np.ndarray) -> None:
    class Holes(TinyCNN):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs = super().forward(x)
            return torch.where(x.flatten(1).sum(1, keepdim=True) > 33, torch.nan, outputs)

    with pytest.raises(NonFiniteOutputError, match="seeds"):
        ModelDiffVerifier(wrap(Holes().eval())).extract(images)


# ---------------------------------------------------------------------- suspects
def test_invariances_of_real_suspects(make_classifier: Make, images: np.ndarray) -> None:
    verifier = ModelDiffVerifier(make_classifier())
    verifier.extract(images)
    network = make_classifier(1).model
    value = verifier.score(make_classifier(1))["DDV"]
    assert value < 0.99
    assert verifier.score(wrap(Changed(network, 3.0)))["DDV"] == pytest.approx(value, abs=1e-6)
    assert verifier.score(wrap(Changed(network, order=(2, 0, 3, 1))))["DDV"] == pytest.approx(value, abs=1e-6)


def test_suspects_of_another_architecture_and_class_count(make_classifier: Make, images: np.ndarray) -> None:
    verifier = ModelDiffVerifier(make_classifier())
    verifier.extract(images)
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    assert 0 <= verifier.score(wrap(linear, nb_classes=7))["DDV"] <= 1
    assert verifier.score(black_box(make_classifier()))["DDV"] == pytest.approx(1, abs=1e-6)
    assert 0 <= verifier.score(black_box(make_classifier(1)))["DDV"] <= 1


def test_logits_against_probabilities_are_compared_as_probabilities(make_classifier: Make, images: np.ndarray) -> None:
    victim, suspect = make_classifier(), make_classifier(1)
    soft = wrap(Softmaxed(suspect.model).eval())
    verifier = ModelDiffVerifier(victim)
    fingerprint = verifier.extract(images)
    assert fingerprint.facts["outputs"] == "logits"
    with pytest.warns(UserWarning, match="compared as probabilities"):
        mixed = verifier.score(soft)["DDV"]
    forced = ModelDiffVerifier(victim, space="probabilities")
    forced.extract(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert forced.score(soft)["DDV"] == pytest.approx(mixed, abs=1e-3)
        assert forced.score(suspect)["DDV"] == pytest.approx(mixed, abs=1e-3)
        assert verifier.score(suspect)["DDV"] != pytest.approx(mixed, abs=1e-2)


def test_probabilities_against_probabilities_use_them_as_they_are(make_classifier: Make, images: np.ndarray) -> None:
    victim = wrap(Softmaxed(make_classifier().model).eval())
    verifier = ModelDiffVerifier(victim, generator="natural")
    fingerprint = verifier.extract(images)
    assert fingerprint.facts["outputs"] == "probabilities"
    suspect = wrap(Softmaxed(make_classifier(1).model).eval())
    value = verifier.score(suspect)["DDV"]
    vectors = []
    for model in (victim, suspect):
        a, b = (model.predict(fingerprint.arrays[name]).astype(np.float64) for name in ("seeds", "partners"))
        vectors.append(1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    f, g = vectors
    assert value == pytest.approx(f @ g / np.linalg.norm(f) / np.linalg.norm(g), abs=1e-5)


def test_bad_suspects(make_classifier: Make, images: np.ndarray) -> None:
    verifier = ModelDiffVerifier(make_classifier())
    with pytest.raises(NotExtractedError):
        verifier.score(make_classifier())
    verifier.extract(images)
    with pytest.raises(IncompatibleSuspectError, match="shape"):
        verifier.score(make_classifier(channels=3))

    class OneScore(BlackBoxClassifierNeuralNetwork):
        def predict(self, x: np.ndarray, **_: object) -> np.ndarray:
            return x.reshape(len(x), -1)[:, :1]

    with pytest.raises(IncompatibleSuspectError, match="two or more"):
        verifier.score(OneScore(lambda x: x, (1, 8, 8), 2))
    holes = BlackBoxClassifierNeuralNetwork(lambda x: np.full((len(x), 4), np.nan), (1, 8, 8), 4)
    with pytest.raises(NonFiniteOutputError):
        verifier.score(holes)


def test_ddm_comes_with_the_score_but_does_not_vote(make_classifier: Make, images: np.ndarray) -> None:
    verifier = ModelDiffVerifier(make_classifier())
    verifier.extract(images)
    assert verifier.score(make_classifier())["DDM"] == pytest.approx(0, abs=1e-12)
    scores = verifier.score(make_classifier(1))
    assert list(scores) == ["DDV", "DDM"]
    assert 0 < scores["DDM"] <= 0.5
    verifier.calibrate([make_classifier(2), make_classifier(3)])
    assert list(verifier.verify(make_classifier(1)).metrics) == ["DDV"]


# ---------------------------------------------------------------------- joint search
def test_joint_search_names_its_suspect_and_counts_its_queries(make_classifier: Make, images: np.ndarray) -> None:
    suspect = make_classifier(1)
    suspect.model.train()
    verifier = ModelDiffVerifier(make_classifier(), **JOINT)
    fingerprint = verifier.extract_joint(suspect, images)
    assert fingerprint is verifier.fingerprint
    assert fingerprint.facts["joint"] == network_digest(suspect.model)
    assert fingerprint.facts["joint_queries"] == 24 + 2 * 60
    assert all(module.training for module in suspect.model.modules())
    other = verifier.extract_joint(make_classifier(2), images)
    assert other.facts["joint"] != fingerprint.facts["joint"]
    assert not np.array_equal(other.arrays["partners"], fingerprint.arrays["partners"])
    assert verifier.score(make_classifier())["DDV"] == pytest.approx(1, abs=1e-6)


def test_joint_search_with_a_query_only_suspect(make_classifier: Make, images: np.ndarray) -> None:
    verifier = ModelDiffVerifier(make_classifier(), **JOINT)
    open_one = verifier.extract_joint(make_classifier(1), images)
    closed = verifier.extract_joint(black_box(make_classifier(1)), images)
    assert closed.facts["joint"] not in (None, open_one.facts["joint"])
    assert closed.facts["joint_queries"] == open_one.facts["joint_queries"]
    np.testing.assert_array_equal(closed.arrays["partners"], open_one.arrays["partners"])


def test_joint_search_goes_through_its_own_verb(make_classifier: Make, images: np.ndarray) -> None:
    verifier = ModelDiffVerifier(make_classifier(), **JOINT)
    with pytest.raises(InvalidInputError, match="extract_joint"):
        verifier.extract(images)
    with pytest.raises(EstimatorError):
        verifier.extract_joint(nn.Linear(2, 2), images)
    with pytest.raises(IncompatibleSuspectError):
        verifier.extract_joint(make_classifier(channels=3), images)
    with pytest.raises(InvalidInputError, match="generator"):
        ModelDiffVerifier(make_classifier()).extract_joint(make_classifier(1), images)
    fingerprint = verifier.extract_joint(make_classifier(1), images)
    with pytest.raises(InvalidInputError, match="extract_joint"):
        verifier.extract(images)  # the suspect of the last call is forgotten
    with pytest.raises(NotExtractedError):
        ModelDiffVerifier.from_fingerprint(fingerprint).extract_joint(make_classifier(1), images)


# ---------------------------------------------------------------------- parameters and file
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nb_pairs", 1),
        ("nb_pairs", 2.5),
        ("generator", "PGD"),
        ("space", "logits"),
        ("units", "pixels"),
        ("radius", -0.1),
        ("radius", math.nan),
        ("step", 0),
        ("max_iter", -1),
        ("objective", "cross-entropy"),
        ("class_weights", "none"),
        ("clip", None),
        ("models", "suspect"),
        ("search_step", 0),
        ("search_iterations", -1),
        ("search_departure", "none"),
        ("search_clip", 1),
        ("batch_size", 0),
        ("seed", -1),
        ("metric_names", ("LOD",)),
    ],
)
def test_bad_parameters(make_classifier: Make, name: str, value: object) -> None:
    with pytest.raises(InvalidInputError, match=name):
        ModelDiffVerifier(make_classifier(), **{name: value})  # type: ignore[arg-type]
    verifier = ModelDiffVerifier(make_classifier())
    before = verifier.params()
    with pytest.raises(InvalidInputError, match=name):
        verifier.set_params(**{name: value})
    assert verifier.params() == before


@pytest.mark.parametrize("profile", list(ModelDiffVerifier.profiles))
def test_profiles(make_classifier: Make, images: np.ndarray, profile: str) -> None:
    verifier = ModelDiffVerifier.from_profile(make_classifier(), profile, search_iterations=20)
    if verifier.models == "both":
        verifier.extract_joint(make_classifier(1), images)
    else:
        verifier.extract(images)
    assert verifier.score(make_classifier())["DDV"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"space": "probabilities"}, SEARCH])
def test_file_round_trip_gives_the_identical_verdict(
    make_classifier: Make, images: np.ndarray, tmp_path: Path, options: dict[str, Any]
) -> None:
    verifier = ModelDiffVerifier(make_classifier(), **options)
    verifier.extract(images)
    verifier.calibrate([make_classifier(seed) for seed in (2, 3, 4)])
    assert verifier.fingerprint is not None
    path = verifier.fingerprint.save(tmp_path / "victim.modeldiff.safetensors")
    third_party = ModelDiffVerifier.from_fingerprint(Fingerprint.load(path))
    for suspect in (make_classifier(), make_classifier(1)):
        assert third_party.verify(suspect) == verifier.verify(suspect)
    assert verifier.verify(make_classifier()).derived is True


def test_a_foreign_fingerprint_is_refused(make_classifier: Make, images: np.ndarray) -> None:
    fingerprint = ModelDiffVerifier(make_classifier()).extract(images)
    fingerprint.verifier = "IPGuardVerifier"
    with pytest.raises(FingerprintFileError, match="IPGuardVerifier"):
        ModelDiffVerifier.from_fingerprint(fingerprint)
