"""Weight alignment: what it refuses, what it leaves out, what it reports, and verdicts without reference models."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn.utils import prune

from art_fingerprint.attacks import WeightQuantizationAttack
from art_fingerprint.exceptions import (
    AccessError,
    EmptyFingerprintError,
    IncompatibleArchitectureError,
    IncompatibleSuspectError,
    InvalidInputError,
    LayerNotFoundError,
    NonFiniteOutputError,
    NotExtractedError,
)
from art_fingerprint.verifiers import Fingerprint, WeightAlignmentVerifier
from tests.conftest import TinyCNN, wrap
from tests.states import black_box, random_states, state_of
from tests.victims import several_classes, token_classifier

X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)


def network(seed: int = 0, width: int = 12) -> TinyCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyCNN(width=width).eval()


def extracted(victim: nn.Module | None = None, **options: Any) -> WeightAlignmentVerifier:
    verifier = WeightAlignmentVerifier(wrap(victim or network()), **options)
    verifier.extract(X)
    return verifier


def score(suspect: nn.Module, **options: Any) -> float:
    return extracted(**options).score(wrap(suspect))["WA"]


# ---------------------------------------------------------------------- verdicts without references
def test_a_verdict_needs_no_reference_models(tmp_path: Path) -> None:
    verifier = extracted()
    assert verifier.fingerprint is not None
    third_party = WeightAlignmentVerifier.from_fingerprint(Fingerprint.load(verifier.fingerprint.save(tmp_path / "a")))
    for judge in (verifier, third_party):
        own, other = judge.verify(wrap(network())), judge.verify(wrap(network(1)))
        assert own.derived is True
        assert own["WA"].p_value is not None
        assert own["WA"].p_value < 1e-6
        assert own["WA"].value > own["WA"].threshold > 0  # type: ignore[operator]
        assert (other.derived, other.nb_references, other.queries) == (False, 0, 0)
        assert other["WA"].p_value is not None
        assert other["WA"].p_value > 0.01
        assert "No reference models" in own.meaning
        assert "p = " in repr(own)
    strict = extracted(tolerance=0.5)
    assert strict.verify(wrap(network())).derived is False  # nothing could be above so much


def test_reference_models_replace_that_rule() -> None:
    verifier = extracted()
    verifier.calibrate([wrap(network(seed)) for seed in range(1, 5)])
    verdict = verifier.verify(wrap(network(9)))
    assert verdict.nb_references == 4
    assert verdict["WA"].p_value in [k / 5 for k in range(1, 6)]
    assert verdict["WA"].threshold == max(verdict.references["WA"])
    assert verifier.verify(wrap(network())).derived is True


# ---------------------------------------------------------------------- reports
def test_the_report_names_the_layers_that_were_reused() -> None:
    suspect = network(1)
    suspect.block2 = network().block2
    suspect.block1 = network().block1
    rows = {row.layer: row for row in extracted().layer_report(wrap(suspect))}
    assert list(rows) == ["block1.0", "block2.0", "block3.0", "head"]
    assert [row.filters for row in rows.values()] == [12, 24, 24, 4]
    assert [row.counted for row in rows.values()] == [False, True, True, False]
    assert [row.reused for row in rows.values()] == [None, True, False, None]
    assert rows["block2.0"].alignment == pytest.approx(1, abs=1e-6)
    assert abs(rows["block3.0"].alignment) < 0.2
    assert rows["block2.0"].p_value < 1e-6 < 0.01 < rows["block3.0"].p_value
    assert math.isnan(rows["head"].p_value)
    verifier = extracted()
    whole = [row.alignment for row in verifier.layer_report(wrap(suspect)) if row.counted]
    assert verifier.score(wrap(suspect))["WA"] == pytest.approx(np.mean(whole))


def test_the_report_leaves_the_suspect_alone() -> None:
    suspect = several_classes(X, seed=3)
    suspect.model.train()
    verifier = extracted(several_classes(X).model)
    before, drawn = state_of(suspect), random_states()
    verifier.layer_report(suspect)
    assert state_of(suspect) == before
    assert random_states() == drawn
    with pytest.raises(NotExtractedError):
        WeightAlignmentVerifier(wrap(network())).layer_report(suspect)
    with pytest.raises(AccessError, match="PyTorchClassifier"):
        extracted().layer_report(black_box(wrap(network())))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- suspects of all kinds
def test_the_victim_itself() -> None:
    victim = wrap(network())
    verifier = WeightAlignmentVerifier(victim)
    verifier.extract(X)
    assert verifier.score(victim)["WA"] == pytest.approx(1, abs=1e-9)
    assert verifier.verify(victim).derived is True


def test_too_few_filters_acquit_nobody() -> None:
    """With four filters a layer, chance alone gives more than an alignment of 1 often enough."""
    inner = [layer for width in (1, 4, 4) for layer in (nn.Conv2d(width, 4, 3), nn.ReLU())]
    few = wrap(nn.Sequential(*inner, nn.Flatten(), nn.Linear(16, 4)))
    verifier = WeightAlignmentVerifier(few)
    verifier.extract(X)
    verdict = verifier.verify(few)
    assert verdict["WA"].threshold > 1 == pytest.approx(verdict["WA"].value)  # type: ignore[operator]
    assert (verdict.derived, verdict.blind) == (False, ("WA",))
    assert "Not even the victim would be judged derived by WA" in repr(verdict)
    assert extracted().verify(wrap(network())).blind == ()


def test_half_precision_and_quantised_weights() -> None:
    assert score(network().half()) == pytest.approx(1, abs=1e-5)
    assert score(network().double()) == pytest.approx(1, abs=1e-9)
    assert score(network().bfloat16()) > 0.999
    victim = several_classes(X)
    verifier = WeightAlignmentVerifier(victim)
    verifier.extract(X)
    with pytest.warns(UserWarning, match="only 40 samples"):
        rounded = WeightQuantizationAttack(victim, bits=8).generate(X)
    assert verifier.score(rounded)["WA"] > 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its next version
        quantised = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear})
    with pytest.raises(IncompatibleSuspectError, match="quantised"):
        verifier.score(wrap(quantised))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_victim_that_takes_no_float32_images_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInputError, match="fails on two samples"):
        extracted(network().to(dtype))


@pytest.mark.parametrize("permanent", [True, False])
def test_pruned_suspects(permanent: bool) -> None:
    scores = []
    for share in (0.3, 0.6, 0.9):
        suspect = network()
        for layer in (suspect.block1[0], suspect.block2[0], suspect.block3[0], suspect.head):
            prune.l1_unstructured(layer, "weight", share)
            if permanent:
                prune.remove(layer, "weight")
        scores.append(score(suspect))
    assert 1 > scores[0] > scores[1] > scores[2] > 0.3
    assert score(suspect) == scores[-1]


def test_pruned_channels() -> None:
    """Filters that are gone match nothing; the others still do."""
    suspect = network()
    with torch.no_grad():
        suspect.block2[0].weight[::3] = 0
        suspect.block3[0].weight[:, ::3] = 0
    assert 0.5 < score(suspect) < 0.9


def test_zero_suspects_score_nothing() -> None:
    suspect = network()
    with torch.no_grad():
        suspect.block2[0].weight.zero_()
        suspect.block3[0].weight.zero_()
    verifier = extracted()
    assert verifier.score(wrap(suspect)) == {"WA": 0.0, "WA_p": 1.0}
    assert verifier.verify(wrap(suspect)).derived is False


def test_weights_that_are_not_finite() -> None:
    suspect = network()
    with torch.no_grad():
        suspect.block2[0].weight[1, 0, 0, 0] = math.nan
        suspect.block2[0].weight[2, 0, 0, 0] = math.inf
    verifier = extracted()
    with pytest.raises(NonFiniteOutputError, match=r"2 filters of the suspect's block2.0.weight"):
        verifier.score(wrap(suspect))
    verdict = verifier.verify(wrap(suspect))
    assert verdict.derived is None
    assert "NaN" in verdict.reason
    assert 0.9 < score(suspect, nan_policy="mismatch") < 0.99
    with pytest.raises(InvalidInputError, match="victim's block2.0.weight"):
        extracted(suspect)


def test_negative_factors_of_batch_norm_are_part_of_the_filter() -> None:
    suspect = network()
    with torch.no_grad():
        for block in (suspect.block1, suspect.block2, suspect.block3):
            block[0].weight[::2] *= -1
            block[1].weight[::2] *= -1
    assert score(suspect) == pytest.approx(1, abs=1e-9)
    with torch.no_grad():
        suspect.block2[1].weight.abs_()
    assert score(suspect) < 0.9


class Tied(nn.Module):
    """One convolution, used twice."""

    def __init__(self, seed: int, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Conv2d(1, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 12, 3, padding=1)
        self.c = nn.Conv2d(12, 12, 3, padding=1)
        if tied:
            self.c.weight = self.b.weight
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


def test_tied_weights() -> None:
    with torch.random.fork_rng():
        victim, other = Tied(0), Tied(1)
        untied = Tied(0, tied=False)
        untied.c.load_state_dict(victim.c.state_dict())
    verifier = extracted(victim)
    assert verifier.fingerprint is not None
    assert verifier.fingerprint.facts["counted"] == ["b.weight"]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = copy.deepcopy(victim)
    with torch.no_grad():
        moved.a.weight.copy_(victim.a.weight[order])
        moved.b.weight.copy_(victim.b.weight[order][:, order])
        moved.head.weight.copy_(victim.head.weight[:, order])
    for suspect in (victim, untied, moved):
        assert verifier.score(wrap(suspect))["WA"] == pytest.approx(1, abs=1e-6)
    assert abs(verifier.score(wrap(other))["WA"]) < 0.25


# ---------------------------------------------------------------------- other architectures
def test_layers_that_are_missing_or_of_another_shape_are_left_out() -> None:
    suspect = network()
    suspect.block3 = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
    suspect.head = nn.Linear(32, 4)
    verifier = extracted()
    with pytest.warns(UserWarning, match=r"2 of 4 layers .*block3.0.weight \(\(32, 24, 3, 3\) instead of \(24, 24, 3"):
        verdict = verifier.verify(wrap(suspect))
    assert verdict["WA"].value == pytest.approx(1, abs=1e-6)
    assert verdict.derived is True
    notes = [row.note for row in verifier.layer_report(wrap(suspect))]
    assert notes == ["", "", "(32, 24, 3, 3) instead of (24, 24, 3, 3)", "(4, 32) instead of (4, 24)"]
    assert math.isnan(verifier.layer_report(wrap(suspect))[2].alignment)


def test_other_architectures_are_refused_by_name() -> None:
    verifier = extracted()
    for suspect in (network(width=10), token_classifier(X).model):
        with pytest.raises(IncompatibleArchitectureError, match=r"block2.0.weight \(\(.*\) instead of \(24, 12, 3, 3"):
            verifier.verify(wrap(suspect))


def test_renamed_layers_are_refused_with_the_names_of_both() -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    with pytest.raises(
        IncompatibleArchitectureError, match=r"block2.0.weight \(missing\).*body.block1.0.weight.*rename"
    ):
        extracted().score(wrap(Renamed()))
    assert score(nn.DataParallel(network())) == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------------- extraction
def test_chosen_layers() -> None:
    verifier = extracted(layers=["block3", "block2.0"])
    assert verifier.fingerprint is not None
    assert list(verifier.fingerprint.arrays) == ["block2.0.weight", "block3.0.weight"]
    assert verifier.score(wrap(network()))["WA"] == pytest.approx(1, abs=1e-6)
    with pytest.raises(LayerNotFoundError, match="'block9'.*block1.0"):
        extracted(layers=["block9"])
    with pytest.raises(EmptyFingerprintError, match="layers"):
        extracted(layers=["block1"])
    for wrong in ([], "block1", [1], {"block1": 1}):
        with pytest.raises(InvalidInputError, match="layers"):
            WeightAlignmentVerifier(None, layers=wrong)  # type: ignore[arg-type]


def test_networks_without_inner_layers_count_their_ends() -> None:
    class Two(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.a = nn.Linear(64, 40)
            self.b = nn.Linear(40, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x.flatten(1))))

    with torch.random.fork_rng():
        victim, other = Two(0), Two(1)
    verifier = extracted(victim)
    assert verifier.fingerprint is not None
    assert verifier.fingerprint.facts["counted"] == ["a.weight", "b.weight"]
    assert verifier.score(wrap(victim))["WA"] == pytest.approx(1, abs=1e-6)
    assert abs(verifier.score(wrap(other))["WA"]) < 0.3


def test_a_layer_of_zeros_is_left_out() -> None:
    victim = network()
    with torch.no_grad():
        victim.block3[0].weight.zero_()
    with pytest.warns(UserWarning, match="block3.0.weight is zero everywhere"):
        verifier = extracted(victim)
    assert verifier.fingerprint is not None
    assert verifier.fingerprint.facts["counted"] == ["block2.0.weight"]
    assert verifier.score(wrap(victim))["WA"] == pytest.approx(1, abs=1e-6)


def test_the_fingerprint_does_not_hold_the_weights() -> None:
    """At most half of the numbers of a counted layer, and no filter in them."""
    fingerprint = extracted().fingerprint
    assert fingerprint is not None
    for facts in fingerprint.facts["layers"]:
        size = math.prod(facts["shape"][1:])
        kept = fingerprint.arrays[facts["name"]].shape[2]
        assert kept == (min(256, size // 2) if size >= 32 else size)
    assert extracted(sketch_size=16).fingerprint.arrays["block3.0.weight"].shape == (1, 24, 16)  # type: ignore[union-attr]
    assert extracted(sketch_size=None).fingerprint.arrays["block3.0.weight"].shape == (1, 24, 216)  # type: ignore[union-attr]


def test_no_warning_on_a_plain_suspect() -> None:
    verifier = extracted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier.verify(wrap(network(1)))


def test_scores_do_not_depend_on_the_data() -> None:
    one, other = (WeightAlignmentVerifier(wrap(network())) for _ in range(2))
    one.extract(X[:1])
    other.extract(X[1:])
    suspect: PyTorchClassifier = wrap(network(1))
    assert one.score(suspect) == other.score(suspect)
