"""Thresholds belong to a fingerprint, references are counted once, and a verdict claims no more than they support."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.exceptions import CalibrationError, IncompatibleSuspectError
from art_fingerprint.verifiers import AKHVerifier, CommitteeVerifier, SACVerifier, ZestVerifier
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.verifiers.calibration import Calibration, threshold
from art_fingerprint.verifiers.fingerprint import Fingerprint
from tests.states import black_box, label_box
from tests.victims import several_classes

X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
X_OTHER = np.random.default_rng(2).random((40, 1, 8, 8), dtype=np.float32)
Y = np.arange(40) % 4
Y_WRONG = np.where(np.arange(40) % 3 == 0, (Y + 1 + np.arange(40) // 12) % 4, Y)
Make = Callable[..., Verifier]


def victim() -> PyTorchClassifier:
    return several_classes(X)


def independent(seed: int) -> PyTorchClassifier:
    return several_classes(X_OTHER, seed=seed)


REFERENCES = range(10, 19)


def sac(seed: int = 0, **options: Any) -> SACVerifier:
    verifier = SACVerifier(victim(), nb_probes=12, seed=seed, **options)
    verifier.extract(X, Y_WRONG)
    return verifier


def zest(**options: Any) -> ZestVerifier:
    verifier = ZestVerifier(victim(), nb_images=8, nb_masks=40, segmenter="grid", grid_cells=3, **options)
    verifier.extract(X)
    return verifier


def calibration_of(verifier: Verifier) -> Calibration:
    assert verifier.fingerprint is not None
    assert verifier.fingerprint.calibration is not None
    return verifier.fingerprint.calibration


def saved_and_loaded(verifier: Verifier, folder: Path) -> Verifier:
    assert verifier.fingerprint is not None
    path = verifier.fingerprint.save(folder / f"{type(verifier).__name__}.safetensors")
    return type(verifier).from_fingerprint(Fingerprint.load(path))


# ---------------------------------------------------------------------- order
def test_references_are_paired_by_digest_whatever_their_order(tmp_path: Path) -> None:
    def members(order: slice) -> list[Verifier]:
        models = [independent(seed) for seed in REFERENCES]
        first, second = sac(), AKHVerifier(victim(), nb_probes=12)
        second.extract(X, Y_WRONG)
        return [first.calibrate(models), second.calibrate(models[order])]

    found = []
    for order in (slice(None), slice(None, None, -1)):
        fresh = members(order)
        for each in (
            fresh,
            [saved_and_loaded(m, tmp_path) for m in fresh],
            [fresh[0], saved_and_loaded(fresh[1], tmp_path)],
        ):
            judge = CommitteeVerifier(each, method="fisher", null="references", false_positive_rate=0.2)
            found.append([judge.verify(independent(seed)).joint_p_value for seed in range(1, 7)])
    assert None not in found[0]
    assert len(set(found[0])) > 1
    assert all(values == found[0] for values in found)


def test_a_file_that_does_not_tell_the_order_gives_no_joint_p_value() -> None:
    models = [independent(seed) for seed in REFERENCES]
    other = AKHVerifier(victim(), nb_probes=12)
    other.extract(X, Y_WRONG)
    members = [sac().calibrate(models), other.calibrate(models)]
    for member in members:
        assert member.fingerprint is not None
        old = {name: value for name, value in calibration_of(member).to_dict().items() if name != "order"}
        member.fingerprint.calibration = Calibration.from_dict(old)
    judge = CommitteeVerifier(members, null="references", false_positive_rate=0.2)
    verdict = judge.verify(victim())
    assert (verdict.derived, verdict.joint_p_value) == (None, None)


def test_a_committee_is_calibrated_whole_or_not_at_all() -> None:
    judge = CommitteeVerifier([sac(), zest()], false_positive_rate=0.4)
    judge.calibrate([independent(seed) for seed in REFERENCES])
    before = {name: calibration_of(member) for name, member in judge.members.items()}
    with pytest.raises(IncompatibleSuspectError, match="label-only"):  # SAC can do with labels, ZEST cannot
        judge.calibrate([independent(30), label_box(independent(31))])
    assert {name: calibration_of(member) for name, member in judge.members.items()} == before


# ---------------------------------------------------------------------- once
def test_a_black_box_counts_once() -> None:
    box = black_box(independent(1))
    verifier = zest()
    with pytest.raises(CalibrationError, match="Reference model 2 is one before it"):
        verifier.calibrate([box, independent(2), box])
    with pytest.warns(UserWarning, match="Reference models 0 and 2 gave the same answers to all probes"):
        verifier.calibrate([box, independent(2), black_box(independent(1))])
    with pytest.warns(UserWarning, match="Reference models 0 and 1 gave the same answers"):
        verifier.calibrate([independent(1), black_box(independent(1)), independent(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verifier.calibrate([black_box(independent(seed)) for seed in (1, 2, 3)])


def test_models_that_queries_were_chosen_by_are_not_judged() -> None:
    negative, positive = independent(1), several_classes(X, seed=5)
    verifier = AKHVerifier(victim(), nb_probes=12, min_errors=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few queries
        verifier.extract(X, Y_WRONG, negatives=[negative])
        verifier.calibrate([independent(seed) for seed in REFERENCES])
    with pytest.raises(CalibrationError, match="models that the queries were chosen by"):
        verifier.verify(negative)
    assert verifier.verify(negative, allow_reference=True).derived is False
    other = SACVerifier(victim(), min_errors=1, fill=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few queries
        other.extract(X, Y_WRONG, positives=[positive])
    with pytest.raises(CalibrationError, match="models that the queries were chosen by"):
        other.verify(positive)


# ---------------------------------------------------------------------- whose
def test_thresholds_of_another_fingerprint_are_refused(tmp_path: Path) -> None:
    verifier, other = sac(), sac(seed=1)
    thresholds = calibration_of(verifier.calibrate([independent(seed) for seed in REFERENCES]))
    assert other.fingerprint is not None
    other.fingerprint.calibration = thresholds
    with pytest.raises(CalibrationError, match="scored by another fingerprint"):
        other.verify(independent(1))
    other.fingerprint.calibration = Calibration({}, dict(thresholds.thresholds))  # numbers that somebody stands for
    assert other.verify(independent(1)).derived is not None
    other.fingerprint.calibration = Calibration({}, {"MR": 0.5})
    with pytest.raises(CalibrationError, match="thresholds are of MR; this verifier has SAC"):
        other.verify(independent(1))
    assert saved_and_loaded(verifier, tmp_path).verify(victim()).derived is True


def test_a_metric_that_a_reference_lacks_is_told() -> None:
    verifier = sac()
    names = [metric.name for metric in verifier.metrics]
    with pytest.warns(UserWarning, match=r"SAC gets no threshold .*reference model 2 has no value of it \(label-only"):
        verifier.calibrate([independent(1), independent(2), label_box(independent(3))])
    verdict = verifier.verify(victim())
    assert set(names) == {"SAC", "SAC-labels"}
    assert verdict["SAC"].derived is None
    assert "(one metric, " in repr(verdict)


# ---------------------------------------------------------------------- what a verdict claims
def test_no_rate_is_stated_where_a_metric_decides_without_references() -> None:
    verifier = zest(metric_names=["ZEST-L2", "ZEST-cosine"])
    verifier.calibrate([independent(seed) for seed in REFERENCES])
    whole = verifier.verify(independent(1), vote="any")
    assert whole.false_positive_rate == pytest.approx(0.1)
    known = calibration_of(verifier)
    assert verifier.fingerprint is not None
    verifier.fingerprint.calibration = replace(
        known,
        references={"ZEST-L2": known.references["ZEST-L2"]},
        thresholds={**known.thresholds, "ZEST-cosine": 2.5},
        softened=None,
    )
    verdict = verifier.verify(independent(1), vote="any")
    assert verdict.derived is True
    assert (verdict.false_positive_rate, verdict.verdict_false_positive_rate) == (None, None)
    assert "expected to call" not in verdict.meaning


def test_a_verdict_does_not_deny_what_its_metrics_show() -> None:
    verifier = zest(metric_names=["ZEST-L2"])
    verifier.calibrate([independent(seed) for seed in REFERENCES], rule="t-pred", confidence=0.999999)
    scores = calibration_of(verifier).references["ZEST-L2"]
    suspects = [independent(seed) for seed in range(1, 40)]
    nearer = next(s for s in suspects if verifier.score(s)["ZEST-L2"] < min(scores))
    verdict = verifier.verify(nearer)
    assert verdict.derived is False
    assert "Closer to the victim than all references by ZEST-L2" in verdict.meaning
    assert "No closer" not in verdict.meaning
    assert "derived if <= " in repr(verdict)
    farther = verifier.verify(next(s for s in suspects if verifier.score(s)["ZEST-L2"] > min(scores)))
    assert "No closer to the victim than independent models" in farther.meaning


def test_undefined_values_are_null_in_json() -> None:
    verdict = zest().verify(victim())
    undefined = replace(verdict["ZEST-L2"], value=np.nan)
    verdict = replace(verdict, metrics={**verdict.metrics, "ZEST-L2": undefined})
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["metrics"]["ZEST-L2"]["value"] is None


def test_rates_just_below_one() -> None:
    assert threshold([0.0, 2.0, 1.0], "distance", "fpr", false_positive_rate=1 - 1e-10) == 2.0
    assert threshold([0.0, 2.0, 1.0], "similarity", "fpr", false_positive_rate=1 - 1e-10) == 0.0
