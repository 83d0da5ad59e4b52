"""What every verifier inherits: protection of both models, metering, calibration, the verdict, parameters and files."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError
from torch import Tensor, nn

from art_fingerprint.core.checks import check_number
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.copies import clone_classifier
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.queries import Suspect
from art_fingerprint.exceptions import (
    CalibrationError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NonFiniteOutputError,
    NotExtractedError,
    SuspectFailedError,
)
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.calibration import Calibration, Direction, Rule
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.references import warn_if_weak
from tests.conftest import wrap
from tests.states import black_box, mark, random_states, state_of

Make = Callable[..., PyTorchClassifier]


class GapVerifier(Verifier):
    """Agreement of labels, and two gaps between scores, one of which fails on request."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("AGREE", "similarity", "labels"),
        Metric("GAP", "distance", "scores"),
        Metric("PEAK", "distance", "scores"),
    )
    source_access: ClassVar[Access] = "scores"
    suspect_access: ClassVar[Access] = "scores"
    verifier_params: ClassVar[list[str]] = [*Verifier.verifier_params, "nb_probes", "weights"]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "small": {"nb_probes": 5}}

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_probes: int = 20,
        weights: tuple[float, ...] = (1.0, 1.0),
        **common: Any,
    ) -> None:
        super().__init__(classifier, **common)
        self.nb_probes = nb_probes
        self.weights = weights
        self.fail: Exception | None = None
        self.peak = True
        self._check_params()

    def _disturb(self, network: nn.Module) -> None:
        """Do everything a careless verifier could do to a model, short of changing its weights."""
        network.train()
        network.requires_grad_(False)
        next(network.children()).register_forward_hook(lambda *_: None)
        torch.rand(3), np.random.rand(3), random.random()  # noqa: B018, NPY002
        if self.fail is not None:
            raise self.fail

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        assert not victim.network.training
        assert not any(p.requires_grad for p in victim.network.parameters())
        probes = x[: self.nb_probes]
        scores = victim.predict(probes, self.batch_size)
        with torch.no_grad():
            next(victim.network.parameters()).add_(1)
        self._disturb(victim.network)
        labels = scores.argmax(1) if y is None else y[: self.nb_probes]
        return {"probes": probes.numpy(), "scores": scores.numpy(), "labels": labels.numpy()}, {"count": len(probes)}

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        scores = suspect.logits(fingerprint.tensors("probes")[0]).double()
        if isinstance(suspect.classifier, PyTorchClassifier):
            self._disturb(suspect.classifier.model)
        known = fingerprint.tensors("scores")[0].double()
        result = {
            "AGREE": float((scores.argmax(1) == known.argmax(1)).double().mean()),
            "GAP": float((scores - known).norm()),
            "FREE": 1.0,
        }
        if self.peak:
            result["PEAK"] = float((scores - known).abs().max())
        else:
            self._skip("PEAK", "no peak here")
        return result

    def _check_params(self) -> None:
        super()._check_params()
        check_number("nb_probes", self.nb_probes, 1, integer=True)
        for weight in self.weights:
            check_number("weights", weight, 0)


@pytest.fixture
def verifier(make_classifier: Make, images: np.ndarray) -> GapVerifier:
    """An extracted, uncalibrated verifier."""
    result = GapVerifier(make_classifier())
    result.extract(images)
    return result


@pytest.fixture
def references(make_classifier: Make) -> list[PyTorchClassifier]:
    """Three independent models."""
    return [make_classifier(seed) for seed in (2, 4, 5)]  # constant labels, none the victim's


# ---------------------------------------------------------------------- order of calls and who may come in
def test_nothing_works_before_extraction(make_classifier: Make) -> None:
    verifier = GapVerifier(make_classifier())
    assert verifier.fingerprint is None
    for call in (verifier.verify, verifier.score, lambda suspect: verifier.calibrate([suspect])):
        with pytest.raises(NotExtractedError, match="extract"):
            call(make_classifier(1))


def test_wrong_estimators(verifier: GapVerifier, make_classifier: Make) -> None:
    for wrong in (black_box(make_classifier()), make_classifier().model, "victim", 3):
        with pytest.raises(EstimatorError):
            GapVerifier(wrong)  # type: ignore[arg-type]
    for wrong in (make_classifier().model, None, "suspect"):
        with pytest.raises(EstimatorError):
            verifier.verify(wrong)


def test_suspects_of_any_framework_are_asked_for(verifier: GapVerifier, make_classifier: Make) -> None:
    with pytest.raises(EstimatorError) as error:
        verifier.verify(make_classifier().model)
    assert "ClassifierMixin" in str(error.value)
    assert "PyTorchClassifier" not in str(error.value)


def test_data_outside_the_range_that_is_assumed_without_clip_values(make_classifier: Make, images: np.ndarray) -> None:
    with pytest.warns(UserWarning, match=r"clip_values \(0, 1\)"):
        GapVerifier(make_classifier(clip_values=None)).extract(2 * images)


def test_bad_data(make_classifier: Make, images: np.ndarray) -> None:
    verifier = GapVerifier(make_classifier())
    broken = images.copy()
    broken[3, 0, 0, 0] = np.nan
    for x in (images[:0], images[0], images[:, :, :4], (images * 255).astype(np.uint8), images.tolist(), broken):
        with pytest.raises(InvalidInputError, match="`x`"):
            verifier.extract(x)  # type: ignore[arg-type]
    for y in (np.zeros(3), np.full(len(images), 9), np.full(len(images), 0.5)):
        with pytest.raises(InvalidInputError, match="`y`"):
            verifier.extract(images, y)
    assert verifier.fingerprint is None


def test_labels_may_be_indices_or_one_hot(make_classifier: Make, images: np.ndarray) -> None:
    labels = np.arange(len(images)) % 4
    verifier = GapVerifier(make_classifier())
    digest = verifier.extract(images, labels).digest
    assert verifier.extract(images, np.eye(4)[labels]).digest == digest
    assert verifier.extract(images.astype(np.float64), labels[:, None]).digest == digest
    assert verifier.extract(images).digest != digest


def test_facts_of_the_fingerprint(verifier: GapVerifier, make_classifier: Make) -> None:
    assert verifier.fingerprint is not None
    facts = verifier.fingerprint.facts
    assert facts["input_shape"] == [1, 8, 8]
    assert facts["nb_classes"] == 4
    assert facts["clip_values"] == [0.0, 1.0]
    assert facts["outputs"] == "logits"
    assert facts["victim"] == network_digest(make_classifier().model)
    assert facts["count"] == 20
    assert verifier.fingerprint.params == verifier.params()


# ---------------------------------------------------------------------- models and random state come back
@pytest.mark.parametrize("fail", [None, RuntimeError("half-way"), KeyboardInterrupt()])
def test_victim_and_suspect_are_given_back_untouched(
    verifier: GapVerifier, make_classifier: Make, images: np.ndarray, fail: BaseException | None
) -> None:
    victim, suspect = make_classifier(), make_classifier(1)
    mark(victim)
    mark(suspect)
    fresh = GapVerifier(victim)
    fresh.fail = verifier.fail = fail  # type: ignore[assignment]
    for model, call in ((victim, lambda: fresh.extract(images)), (suspect, lambda: verifier.verify(suspect))):
        before = state_of(model)
        drawn = random_states()
        if fail is None:
            call()
        else:
            with pytest.raises(type(fail)):
                call()
        assert state_of(model) == before
        assert random_states() == drawn


def test_a_failed_extraction_keeps_the_old_fingerprint(verifier: GapVerifier, images: np.ndarray) -> None:
    before = verifier.fingerprint
    verifier.fail = RuntimeError("half-way")
    with pytest.raises(RuntimeError):
        verifier.extract(images)
    assert verifier.fingerprint is before


def test_the_callers_arrays_are_only_read(make_classifier: Make, images: np.ndarray) -> None:
    before = images.copy()
    images.flags.writeable = False
    verifier = GapVerifier(make_classifier())
    fingerprint = verifier.extract(images)
    assert np.array_equal(images, before)
    probes = fingerprint.arrays["probes"].copy()
    verifier.score(make_classifier(1))
    assert np.array_equal(fingerprint.arrays["probes"], probes)


def test_the_fingerprint_shares_no_memory_with_the_callers_data(make_classifier: Make, images: np.ndarray) -> None:
    fingerprint = GapVerifier(make_classifier()).extract(images)
    digest = fingerprint.digest
    images[:] = 0
    assert fingerprint.digest == digest


# ---------------------------------------------------------------------- scores, queries, verdict
def test_queries_are_metered(verifier: GapVerifier, make_classifier: Make) -> None:
    for batch_size in (1, 7, 20, 128):
        verifier.set_params(batch_size=batch_size)
        assert verifier.verify(make_classifier(1)).queries == 20
        assert verifier.verify(black_box(make_classifier(1))).queries == 20


def test_scores_hold_the_metrics_asked_for(verifier: GapVerifier, make_classifier: Make, images: np.ndarray) -> None:
    assert list(verifier.score(make_classifier(1))) == ["AGREE", "GAP", "PEAK"]
    assert verifier.score(make_classifier()) == {"AGREE": 1.0, "GAP": 0.0, "PEAK": 0.0}
    chosen = GapVerifier(make_classifier(), metric_names=["GAP"])
    chosen.extract(images)
    assert list(chosen.score(make_classifier(1))) == ["GAP"]
    assert chosen.wants("GAP", "AGREE")
    assert not chosen.wants("AGREE")


def test_uncalibrated_means_undecided(verifier: GapVerifier, make_classifier: Make) -> None:
    for suspect in (make_classifier(), make_classifier(1)):
        verdict = verifier.verify(suspect)
        assert verdict.derived is None
        assert verdict.reason == "not calibrated"
        assert verdict.nb_references == 0
        for result in verdict.metrics.values():
            assert (result.threshold, result.derived, result.p_value) == (None, None, None)


def test_calibrated_verdicts(verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier]) -> None:
    assert verifier.calibrate(references) is verifier
    scores = [verifier.score(model) for model in references]
    copy = verifier.verify(make_classifier())
    assert copy.derived is True
    assert copy["GAP"].threshold == min(score["GAP"] for score in scores)
    assert copy["AGREE"].threshold == max(score["AGREE"] for score in scores)
    assert copy["GAP"].p_value == pytest.approx(1 / 4)
    assert copy.nb_references == 3
    for model in references:
        assert verifier.verify(model, allow_reference=True).derived is False
    assert verifier.verify(black_box(make_classifier())).derived is True


def test_skipped_metrics_are_named_and_do_not_vote(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier], images: np.ndarray
) -> None:
    verifier.calibrate(references)
    verifier.peak = False
    verdict = verifier.verify(make_classifier())
    assert dict(verdict.skipped) == {"PEAK": "no peak here"}
    assert list(verdict.metrics) == ["AGREE", "GAP"]
    assert verdict.derived is True
    with pytest.raises(KeyError, match="no peak here"):
        verdict["PEAK"]
    verifier.peak = True
    assert verifier.verify(make_classifier()).skipped == {}
    only = GapVerifier(make_classifier(), metric_names=["PEAK"])
    only.extract(images)
    only.peak = False
    with pytest.raises(IncompatibleSuspectError, match="no peak here"):
        only.verify(make_classifier())


def test_undefined_values_are_undecided(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier.calibrate(references)
    monkeypatch.setattr(verifier, "_score", lambda *_: {"GAP": math.nan, "AGREE": math.nan})
    verdict = verifier.verify(make_classifier())
    assert verdict.derived is None
    assert "GAP" in verdict.reason
    assert verdict["GAP"].derived is None
    with pytest.raises(CalibrationError, match="finite"):
        verifier.calibrate(references)


def test_shapes_must_fit(verifier: GapVerifier, make_classifier: Make) -> None:
    with pytest.raises(IncompatibleSuspectError, match="shape"):
        verifier.verify(make_classifier(channels=3))


def test_votes(verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier]) -> None:
    verifier.calibrate(references)
    for vote in ("majority", "any", "all"):
        verdict = verifier.verify(make_classifier(), vote=vote)  # type: ignore[arg-type]
        assert (verdict.derived, verdict.vote) == (True, vote)
    with pytest.raises(InvalidInputError, match="vote"):
        verifier.verify(make_classifier(), vote="most")  # type: ignore[arg-type]


def test_verdicts_are_immutable_readable_and_json(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier]
) -> None:
    verifier.peak = False
    assert "undecided: not calibrated" in repr(verifier.verify(make_classifier(1)))
    verifier.calibrate(references)
    verdict = verifier.verify(make_classifier())
    with pytest.raises(FrozenInstanceError):
        verdict.derived = False  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        verdict["GAP"].value = 3  # type: ignore[misc]
    text = repr(verdict)
    assert "DERIVED" in text
    assert "20 queries" in text
    assert "skipped" in text
    assert "one metric is expected to call at most 25.0% derived" in " ".join(text.split())
    assert "not derived" in repr(verifier.verify(references[0], allow_reference=True))
    data = json.loads(json.dumps(verdict.to_dict()))
    assert data["metrics"]["GAP"]["value"] == 0.0
    assert data["skipped"] == {"PEAK": "no peak here"}
    assert data["derived"] is True
    assert data["complete"] is True
    assert data["false_positive_rate"] == 0.25
    assert data["references"]["GAP"] == [verifier.score(model)["GAP"] for model in references]


def test_verdicts_carry_the_references(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier]
) -> None:
    verdict = verifier.verify(make_classifier(1))
    assert verdict.references == {}
    assert verdict.false_positive_rate is None
    verifier.calibrate(references)
    verdict = verifier.verify(make_classifier(1))
    assert list(verdict.references) == ["AGREE", "GAP", "PEAK"]
    assert verdict.references["PEAK"] == tuple(verifier.score(model)["PEAK"] for model in references)
    assert verdict.false_positive_rate == 1 / 4
    verifier.calibrate(references, rule="scaled-mean")
    assert verifier.verify(make_classifier(1)).false_positive_rate is None


# ---------------------------------------------------------------------- suspects that fail, budgets that end
class Failing(nn.Module):
    """Answers some batches, then raises an error, or NaN."""

    def __init__(self, network: nn.Module, batches: int, error: BaseException | None) -> None:
        super().__init__()
        self.network = network
        self.batches = batches
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        self.batches -= 1
        if self.batches >= 0:
            return self.network(x)
        if self.error is not None:
            raise self.error
        return torch.full((len(x), 4), torch.nan)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no such service"), SuspectFailedError, "ValueError while it answered probes: no such service"),
        (RuntimeError(), SuspectFailedError, "RuntimeError"),
        (None, NonFiniteOutputError, "6 of 6 probes with NaN"),
    ],
)
def test_failing_suspects_are_undecided(
    verifier: GapVerifier,
    make_classifier: Make,
    references: list[PyTorchClassifier],
    calibrated: bool,
    error: Exception | None,
    kind: type[Exception],
    message: str,
) -> None:
    if calibrated:
        verifier.calibrate(references)
    verifier.set_params(batch_size=6)
    network = make_classifier().model
    for make in (wrap, lambda model: black_box(wrap(model))):
        verdict = verifier.verify(make(Failing(network, 2, error)))
        assert verdict.derived is None
        assert not verdict.complete
        assert message in verdict.reason
        assert f"undecided: {verdict.reason}" in repr(verdict)
        assert verdict.queries == 18
        assert dict(verdict.metrics) == {}
        assert set(verdict.skipped) == {"AGREE", "GAP", "PEAK"}
        with pytest.raises(kind, match=message) as raised:
            verifier.score(make(Failing(network, 2, error)))
        if error is not None:
            assert raised.value.__cause__ is error
        json.dumps(verdict.to_dict(), allow_nan=False)


def test_interrupts_and_our_own_errors_are_not_the_suspects_failure(
    verifier: GapVerifier, make_classifier: Make
) -> None:
    with pytest.raises(KeyboardInterrupt):
        verifier.verify(wrap(Failing(make_classifier().model, 0, KeyboardInterrupt())))
    verifier.fail = ZeroDivisionError("a defect of the verifier")
    with pytest.raises(ZeroDivisionError):
        verifier.verify(make_classifier())


@pytest.mark.parametrize(("budget", "queries"), [(1, 0), (5, 0), (6, 6), (17, 12), (19, 18), (20, 20), (99, 20)])
def test_budgets(verifier: GapVerifier, make_classifier: Make, budget: int, queries: int) -> None:
    verifier.set_params(batch_size=6)
    for suspect in (make_classifier(1), black_box(make_classifier(1))):
        verdict = verifier.verify(suspect, budget=budget)
        assert verdict.queries == queries
        assert verdict.complete is (queries == 20)
        if verdict.complete:
            assert verdict == verifier.verify(suspect)
        else:
            assert verdict.derived is None
            assert f"budget of {budget}" in verdict.reason
            assert dict(verdict.metrics) == {}


def test_metrics_that_were_complete_are_kept(
    verifier: GapVerifier,
    make_classifier: Make,
    references: list[PyTorchClassifier],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verifier.calibrate(references)
    original = verifier._score

    def in_two_parts(suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        scores = original(suspect, fingerprint)
        verifier._keep({"GAP": scores.pop("GAP")})
        suspect.logits(fingerprint.tensors("probes")[0])
        return scores

    monkeypatch.setattr(verifier, "_score", in_two_parts)
    whole = verifier.verify(make_classifier())
    assert whole.derived is True
    verdict = verifier.verify(make_classifier(), budget=30)
    assert dict(verdict.metrics) == {"GAP": whole["GAP"]}
    assert verdict["GAP"].derived is True
    assert verdict.derived is None
    assert (verdict.queries, set(verdict.skipped)) == (20, {"AGREE", "PEAK"})
    with pytest.raises(KeyError, match="scoring ended before it"):
        verdict["PEAK"]


def test_bad_options_of_verify(verifier: GapVerifier, make_classifier: Make) -> None:
    for options in ({"budget": 0}, {"budget": 2.5}, {"budget": True}, {"allow_reference": 1}):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            verifier.verify(make_classifier(), **options)  # type: ignore[arg-type]


def test_scoring_and_extraction_run_in_full_precision(
    verifier: GapVerifier, make_classifier: Make, images: np.ndarray
) -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_classifier(1).model
            self.seen: set[bool] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add(torch.backends.cudnn.allow_tf32)
            return self.network(x)

    assert torch.backends.cudnn.allow_tf32
    network = Watched()
    verifier.verify(wrap(network))
    verifier.verify(black_box(wrap(network)))
    assert network.seen == {False}
    network.seen.clear()
    GapVerifier(wrap(network)).extract(images)
    assert False in network.seen
    assert torch.backends.cudnn.allow_tf32


# ---------------------------------------------------------------------- calibration
def test_references_that_cannot_calibrate(verifier: GapVerifier, make_classifier: Make) -> None:
    with pytest.raises(CalibrationError, match="at least one reference"):
        verifier.calibrate([])
    for victim in (make_classifier(), clone_classifier(make_classifier())):
        with pytest.raises(CalibrationError, match="victim itself"):
            verifier.calibrate([make_classifier(1), victim])
    with pytest.raises(CalibrationError, match="two reference"):
        verifier.calibrate([make_classifier(1)], rule="t-mean")
    with pytest.raises(CalibrationError, match="rule"):
        verifier.calibrate([make_classifier(1)], rule="median")  # type: ignore[arg-type]
    for options in ({"alpha": 0}, {"alpha": 1.5}, {"confidence": 1}, {"confidence": 0.1}):
        with pytest.raises(InvalidInputError):
            verifier.calibrate([make_classifier(1)], **options)  # type: ignore[arg-type]
    assert verifier.fingerprint is not None
    assert verifier.fingerprint.calibration is None


def test_references_that_are_the_suspect_are_refused(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier], tmp_path: Path
) -> None:
    verifier.calibrate(references)
    assert verifier.fingerprint is not None
    loaded = GapVerifier.from_fingerprint(Fingerprint.load(verifier.fingerprint.save(tmp_path / "a")))
    for judge in (verifier, loaded):
        for suspect in (references[1], clone_classifier(references[2])):
            with pytest.raises(CalibrationError, match="allow_reference"):
                judge.verify(suspect)
            assert judge.verify(suspect, allow_reference=True).derived is False
            judge.score(suspect)
        near = clone_classifier(references[0])
        with torch.no_grad():
            near.model.head.weight[-1, -1] += 1
        assert judge.verify(near).derived is False  # same short digest, other weights
        assert judge.verify(black_box(references[0])).derived is False  # shows no weights


def test_references_that_fail_or_come_twice(verifier: GapVerifier, make_classifier: Make) -> None:
    good, network = make_classifier(2), make_classifier(1).model
    for error, message in ((ValueError("gone"), "model 1 cannot be scored.*gone"), (None, "model 1 .*NaN")):
        with pytest.raises(CalibrationError, match=message):
            verifier.calibrate([good, wrap(Failing(network, 0, error))])
    with pytest.raises(CalibrationError, match="model 2 has the weights"):
        verifier.calibrate([good, make_classifier(3), clone_classifier(good)])
    with pytest.raises(InvalidInputError, match="references"):
        verifier.calibrate(good)  # type: ignore[arg-type]
    assert verifier.fingerprint is not None
    assert verifier.fingerprint.calibration is None


def test_one_reference_gives_a_warning(verifier: GapVerifier, make_classifier: Make) -> None:
    with pytest.warns(UserWarning, match="single reference"):
        verifier.calibrate([make_classifier(2)])
    assert verifier.verify(make_classifier()).derived is True


@pytest.mark.parametrize(
    ("threshold", "direction", "rule", "own", "warned"),
    [
        (0.0, "distance", "extreme", None, "GAP (threshold 0)"),
        (0.0, "distance", "t-mean", None, None),  # a bound that is included
        (0.1, "distance", "extreme", None, None),
        (1.0, "similarity", "fpr", None, "GAP (threshold 1)"),
        (1.5, "similarity", "extreme", None, "GAP (threshold 1.5)"),
        (-0.3, "distance", "t-mean", None, "GAP (threshold -0.3)"),
        (0.222, "similarity", "extreme", 0.147, "GAP (threshold 0.222)"),
        (0.222, "similarity", "extreme", 0.3, None),
        (0.222, "similarity", "extreme", "damaged", None),
    ],
)
def test_thresholds_that_the_victim_itself_would_not_reach(
    threshold: float, direction: Direction, rule: Rule, own: object, warned: str | None
) -> None:
    calibration = Calibration({"GAP": (0.5, 0.6)}, {"GAP": threshold}, rule)
    facts = {} if own is None else {"own_GAP": own}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_if_weak(calibration, {"GAP": direction}, facts)
    assert [f"derived: {warned}. Such a" in str(w.message) for w in found] == ([True] if warned else [])


def test_a_useless_threshold_is_told_when_it_is_set(verifier: GapVerifier, make_classifier: Make) -> None:
    assert verifier.fingerprint is not None
    verifier.fingerprint.facts["own_GAP"] = 1e6
    with pytest.warns(UserWarning, match=r"not even the victim would be judged derived: .*GAP \(threshold"):
        verifier.calibrate([make_classifier(2), make_classifier(3)])
    verdict = verifier.verify(make_classifier(4))
    assert "GAP" in verdict.blind
    assert verdict.to_dict()["blind"] == list(verdict.blind)
    assert verdict.derived is False  # no more accusations than before, but said to be worth nothing
    assert "acquits nobody" in " ".join(repr(verdict).split())


def test_false_positive_rates_reach_the_verdict(verifier: GapVerifier, make_classifier: Make) -> None:
    models = [make_classifier(seed) for seed in range(2, 7)]
    sent: list[int] = []
    for model in models:
        model.model.block1.register_forward_pre_hook(lambda _, inputs: sent.append(len(inputs[0])))
    with pytest.raises(CalibrationError, match="at least 20 reference models, got 5"):
        verifier.calibrate(models, rule="fpr")
    assert sent == []  # refused before anything is asked
    for bad in (-0.1, 1, math.nan, "0.1"):
        with pytest.raises(InvalidInputError, match="false_positive_rate"):
            verifier.calibrate(models, rule="fpr", false_positive_rate=bad)  # type: ignore[arg-type]
    verifier.calibrate(models, rule="fpr", false_positive_rate=0.4)
    gaps = sorted(verifier.score(model)["GAP"] for model in models)
    verdicts = [verifier.verify(model, allow_reference=True) for model in models]
    assert verdicts[0]["GAP"].threshold == gaps[2]
    assert sum(verdict["GAP"].derived is True for verdict in verdicts) == 2
    assert verdicts[0].false_positive_rate == pytest.approx(3 / 6)
    verifier.calibrate(models, rule="fpr", false_positive_rate=0)
    assert verifier.verify(models[0], allow_reference=True)["GAP"].threshold == gaps[0]


def test_calibration_rules_reach_the_verdict(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier]
) -> None:
    verifier.calibrate(references, rule="scaled-mean", alpha=2 / 3)
    gaps = [verifier.score(model)["GAP"] for model in references]
    assert verifier.verify(make_classifier())["GAP"].threshold == pytest.approx(np.mean(gaps) * 2 / 3)


# ---------------------------------------------------------------------- parameters
def test_parameters_and_repr(make_classifier: Make) -> None:
    verifier = GapVerifier(make_classifier(), nb_probes=7, metric_names=["GAP", "AGREE"], seed=5)
    assert verifier.params() == {
        "metric_names": ["GAP", "AGREE"],
        "nan_policy": "raise",
        "batch_size": 128,
        "seed": 5,
        "verbose": False,
        "nb_probes": 7,
        "weights": [1.0, 1.0],
    }
    assert repr(verifier).startswith("GapVerifier(")
    for name in GapVerifier.verifier_params:
        assert f"{name}={getattr(verifier, name)!r}" in repr(verifier)


def test_set_params_rolls_back(make_classifier: Make) -> None:
    verifier = GapVerifier(make_classifier())
    verifier.set_params(nb_probes=9, seed=2)
    assert (verifier.nb_probes, verifier.seed) == (9, 2)
    before = verifier.params()
    bad: list[dict[str, Any]] = [
        {"seed": 3, "nb_probes": 0},
        {"batch_size": 4, "weights": [1.0, -1.0]},
        {"batch_size": True},
        {"verbose": 1},
        {"seed": 1.5},
        {"metric_names": []},
        {"metric_names": ["LOD"]},
        {"unknown": 1},
        {"fingerprint": None},
    ]
    for change in bad:
        with pytest.raises(InvalidInputError):
            verifier.set_params(**change)
        assert verifier.params() == before


def test_numpy_scalars_are_parameters_too(make_classifier: Make, images: np.ndarray, tmp_path: Path) -> None:
    verifier = GapVerifier(
        make_classifier(),
        seed=np.int64(3),
        weights=(np.float32(0.5), 1.0),  # type: ignore[arg-type]
        nb_probes=np.int32(9),  # type: ignore[arg-type]
        verbose=np.False_,
    )
    fingerprint = verifier.extract(images)
    plain = GapVerifier(make_classifier(), seed=3, weights=(0.5, 1.0), nb_probes=9).extract(images)
    assert fingerprint.digest == plain.digest
    fingerprint.save(tmp_path / "a")


def test_profiles(make_classifier: Make) -> None:
    assert GapVerifier.from_profile(make_classifier(), "small").nb_probes == 5
    assert GapVerifier.from_profile(make_classifier(), "small", nb_probes=6).nb_probes == 6
    with pytest.raises(InvalidInputError, match="profile"):
        GapVerifier.from_profile(make_classifier(), "large")


# ---------------------------------------------------------------------- files
def test_a_third_party_gets_the_identical_verdict(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier], tmp_path: Path
) -> None:
    verifier.calibrate(references, rule="t-mean", alpha=0.9)
    assert verifier.fingerprint is not None
    path = verifier.fingerprint.save(tmp_path / "victim.safetensors")
    third_party = GapVerifier.from_fingerprint(Fingerprint.load(path))
    assert third_party.estimator is None
    assert third_party.params() == verifier.params()
    for suspect in (make_classifier(), make_classifier(1), black_box(references[0])):
        assert third_party.verify(suspect) == verifier.verify(suspect)


def test_a_third_party_can_calibrate_but_not_extract(
    verifier: GapVerifier, make_classifier: Make, references: list[PyTorchClassifier], images: np.ndarray
) -> None:
    assert verifier.fingerprint is not None
    third_party = GapVerifier.from_fingerprint(verifier.fingerprint)
    assert third_party.calibrate(references).verify(make_classifier()).derived is True
    with pytest.raises(CalibrationError, match="victim itself"):
        third_party.calibrate([make_classifier()])
    with pytest.raises(NotExtractedError, match="no victim"):
        third_party.extract(images)


def test_fingerprints_of_others_are_refused(verifier: GapVerifier) -> None:
    fingerprint = verifier.fingerprint
    assert fingerprint is not None
    changes: list[dict[str, Any]] = [
        {"verifier": "OtherVerifier"},
        {"params": {**fingerprint.params, "colour": "red"}},
        {"params": {**fingerprint.params, "nb_probes": -1}},
        {"params": {**fingerprint.params, "nb_probes": "many"}},
        {"params": {**fingerprint.params, "weights": 3}},
        {"params": {**fingerprint.params, "metric_names": 3}},
    ]
    for change in changes:
        parts = {"verifier": "GapVerifier", "params": fingerprint.params, "facts": fingerprint.facts, **change}
        with pytest.raises(FingerprintFileError):
            GapVerifier.from_fingerprint(Fingerprint(**parts, arrays=fingerprint.arrays))


# ---------------------------------------------------------------------- victims
def test_victims_that_do_not_fit_together(images: np.ndarray) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1)[:, :4], x

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    for classifier in (wrap(Pair()), wrap(network, nb_classes=5)):
        with pytest.raises(InvalidInputError):
            GapVerifier(classifier).extract(images)


def test_channels_last_victims_are_refused_with_advice(make_classifier: Make, images: np.ndarray) -> None:
    victim = wrap(make_classifier().model, (8, 8, 1), channels_first=False)
    with pytest.raises(InvalidInputError, match="channels last"):
        GapVerifier(victim).extract(np.moveaxis(images, 1, -1))
