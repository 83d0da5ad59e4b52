"""A committee of verifiers: what it combines, whom it leaves out, which rate it states, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from art.exceptions import EstimatorError

from art_fingerprint.exceptions import (
    CalibrationError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NotExtractedError,
)
from art_fingerprint.testing.suspects import black_box
from art_fingerprint.verifiers import (
    AKHVerifier,
    CommitteeVerifier,
    FBIVerifier,
    Fingerprint,
    ModelDiffVerifier,
    SACVerifier,
    Verifier,
    WeightAlignmentVerifier,
)
from art_fingerprint.verifiers.calibration import empirical_p_value
from art_fingerprint.verifiers.committee_rates import member_p_value
from art_fingerprint.verifiers.p_values import combine_p_values, votes_p_value
from tests.states import label_box
from tests.victims import several_classes

X = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
X_OTHER = np.random.default_rng(2).random((40, 1, 8, 8), dtype=np.float32)
Y = np.arange(40) % 4
Y_WRONG = np.where(np.arange(40) % 3 == 0, (Y + 1 + np.arange(40) // 12) % 4, Y)


def victim() -> PyTorchClassifier:
    return several_classes(X)


def independent(seed: int) -> PyTorchClassifier:
    return several_classes(X_OTHER, seed=seed)


REFERENCES = range(10, 19)


@pytest.fixture(scope="module")
def prints() -> list[Fingerprint]:
    members: list[Verifier] = [
        AKHVerifier(victim(), nb_probes=12),
        SACVerifier(victim(), nb_probes=12),
        ModelDiffVerifier(victim(), nb_pairs=12, radius=0.3, step=0.1, max_iter=4),
    ]
    found = []
    for member in members:
        member.extract(X, Y_WRONG)
        member.calibrate([independent(seed) for seed in REFERENCES])
        assert member.fingerprint is not None
        found.append(member.fingerprint)
    return found


KINDS = {kind.__name__: kind for kind in (AKHVerifier, SACVerifier, ModelDiffVerifier, FBIVerifier)}


def committee(prints: list[Fingerprint], **options: Any) -> CommitteeVerifier:
    copies = [Fingerprint(p.verifier, p.params, p.facts, p.arrays, p.calibration) for p in prints]
    return CommitteeVerifier([KINDS[p.verifier].from_fingerprint(p) for p in copies], **options)


@pytest.mark.parametrize("method", ["fisher", "cauchy", "holm"])
def test_the_verdict_is_the_combination_of_the_members_p_values(prints: list[Fingerprint], method: Any) -> None:
    judge = committee(prints, method=method, false_positive_rate=0.4)
    for suspect, derived in ((victim(), True), (independent(1), False)):
        verdict = judge.verify(suspect)
        singles = [member.verify(suspect) for member in judge.members.values()]
        expected = [
            votes_p_value([r.p_value for r in v.metrics.values() if r.p_value], 1 + (len(v.metrics) > 1))
            for v in singles
        ]
        assert list(verdict.p_values.values()) == expected
        assert [member_p_value(v, "majority") for v in singles] == expected
        assert verdict.p_value == combine_p_values(expected, method)
        assert verdict.derived is derived
        assert verdict.queries == sum(v.queries for v in singles)
        assert verdict.left_out == {}
        assert verdict["SACVerifier"] == singles[1]
        assert verdict.nb_references == 9
        assert verdict.to_dict()["p_values"] == dict(verdict.p_values)
        assert verdict.meaning.split()[0] in repr(verdict)
        assert set(verdict.adjusted) == (set(verdict.p_values) if method == "holm" else set())
    with pytest.raises(KeyError, match="no member 'x'"):
        verdict["x"]


def test_the_stated_rate_is_what_the_grid_of_p_values_allows(prints: list[Fingerprint]) -> None:
    # p-values of 9 references are tenths. Holm's t is 0.3 / 3: one of ten values for a member of one metric and
    # for SAC, whose two metrics must agree (k / m = 1)
    verdict = committee(prints, false_positive_rate=0.3).verify(independent(1))
    assert verdict.false_positive_rate == verdict.worst_case_rate == pytest.approx(0.3)
    verdict = committee(prints, false_positive_rate=0.35).verify(independent(1))
    assert verdict.false_positive_rate == pytest.approx(0.3)  # 0.35 / 3 reaches no more
    verdict = committee(prints, method="fisher", false_positive_rate=0.3).verify(independent(1))
    assert verdict.false_positive_rate == 0.3
    assert verdict.worst_case_rate is not None
    assert verdict.worst_case_rate > 0.3
    assert "if the members' p-values are independent" in verdict.meaning


def test_too_few_references_are_refused_with_the_number_needed(prints: list[Fingerprint]) -> None:
    sent: list[int] = []
    suspect = independent(1)
    suspect.model.block1.register_forward_pre_hook(lambda _, inputs: sent.append(len(inputs[0])))
    with pytest.raises(CalibrationError, match=r"never below 0\.3.*with 59 references or more"):
        committee(prints).verify(suspect)
    assert sent == []
    with pytest.raises(CalibrationError, match="with 19 references or more"):
        committee(prints, method="cauchy").verify(suspect)
    assert committee(prints, method="fisher").verify(suspect).derived is False


def test_rank_among_the_references(prints: list[Fingerprint]) -> None:
    judge = committee(prints, null="references", false_positive_rate=0.1)
    verdict = judge.verify(victim())
    assert verdict.derived is True
    assert verdict.p_value == verdict.joint_p_value == pytest.approx(0.1)
    assert verdict.false_positive_rate == pytest.approx(0.1)
    assert "whatever the members have in common" in verdict.meaning
    # slowly: every model in turn is the suspect, all others its references
    models = [*[independent(seed) for seed in REFERENCES], independent(1)]
    combined = []
    tables = {name: [member.score(model) for model in models] for name, member in judge.members.items()}
    for index in range(10):
        values = []
        for name, member in judge.members.items():
            rows = tables[name]
            ranks = [
                empirical_p_value(
                    rows[index][m.name], [row[m.name] for i, row in enumerate(rows) if i != index], m.direction
                )
                for m in member.metrics
            ]
            values.append(max(ranks))  # a majority of two is both
        combined.append(combine_p_values(values, "holm"))
    expected = sum(value <= combined[-1] for value in combined) / 10
    assert judge.verify(models[-1]).joint_p_value == pytest.approx(expected)
    with pytest.raises(CalibrationError, match="with 19 references or more"):
        committee(prints, null="references").verify(victim())


def test_rank_among_references_needs_the_same_ones(prints: list[Fingerprint]) -> None:
    judge = committee(prints, null="references", false_positive_rate=0.2)
    judge.members["AKHVerifier"].calibrate([independent(seed) for seed in range(30, 39)])
    verdict = judge.verify(victim())
    assert (verdict.derived, verdict.joint_p_value) == (None, None)
    assert "same PyTorch references" in verdict.reason
    other = committee(prints, false_positive_rate=0.4)
    other.members["AKHVerifier"].calibrate([independent(seed) for seed in range(30, 39)])
    assert other.verify(victim()).derived is True  # formulas do without


def test_members_that_cannot_decide_are_left_out_and_named(prints: list[Fingerprint]) -> None:
    judge = committee(prints, method="fisher", false_positive_rate=0.3)
    verdict = judge.verify(label_box(victim()))
    assert list(verdict.p_values) == ["AKHVerifier", "SACVerifier"]  # SAC has a metric for labels
    assert "label-only suspect" in verdict.left_out["ModelDiffVerifier"]
    assert verdict.derived is True
    assert "left out" in repr(verdict)
    calls = iter(range(99))

    def answers(x: np.ndarray) -> np.ndarray:
        return victim().predict(x) * (np.nan if next(calls) == 0 else 1)

    service = BlackBoxClassifierNeuralNetwork(answers, (1, 8, 8), 4)
    verdict = judge.verify(service)
    assert list(verdict.left_out) == ["AKHVerifier"]
    assert "NaN" in verdict.left_out["AKHVerifier"]
    assert verdict.queries == 12 + 12 + 24
    verdict = judge.verify(victim(), budget=24)
    assert list(verdict.left_out) == ["ModelDiffVerifier"]
    assert "budget of 24" in verdict.left_out["ModelDiffVerifier"]
    assert verdict.queries == 24
    # what is left cannot convict at this rate: undecided, not innocent
    strict = committee(prints, method="fisher", false_positive_rate=0.05)
    verdict = strict.verify(victim(), budget=12)
    assert list(verdict.p_values) == ["AKHVerifier"]
    assert verdict.derived is None
    assert "never below 0.1" in verdict.reason
    assert verdict.false_positive_rate is None
    with pytest.raises(IncompatibleSuspectError, match="AKHVerifier: .*shape"):
        judge.verify(BlackBoxClassifierNeuralNetwork(answers, (1, 9, 9), 4))


def test_an_uncalibrated_member_is_left_out(prints: list[Fingerprint]) -> None:
    judge = committee(prints, method="fisher", false_positive_rate=0.3)
    fingerprint = judge.members["AKHVerifier"].fingerprint
    assert fingerprint is not None
    fingerprint.calibration = None
    verdict = judge.verify(victim())
    assert verdict.left_out == {"AKHVerifier": "not calibrated"}
    for member in judge.members.values():
        assert member.fingerprint is not None
        member.fingerprint.calibration = None
    with pytest.raises(CalibrationError, match="No member is calibrated"):
        judge.verify(victim())
    judge.calibrate([independent(seed) for seed in REFERENCES])
    assert judge.verify(victim()).derived is True


@pytest.mark.parametrize("method", ["fisher", "cauchy", "holm"])
def test_a_p_value_without_references_is_left_out(prints: list[Fingerprint], method: Any) -> None:
    by_weights = WeightAlignmentVerifier(victim())
    by_weights.extract(X)
    assert by_weights.verify(victim()).derived is True
    akh = committee(prints).members["AKHVerifier"]
    judge = CommitteeVerifier([akh, by_weights], method=method, false_positive_rate=0.4)
    verdict = judge.verify(victim())
    assert verdict.left_out == {"WeightAlignmentVerifier": "not calibrated with reference models"}
    assert list(verdict.p_values) == ["AKHVerifier"]
    assert verdict.derived is True


def test_queries_of_members_that_need_more_than_labels_count(prints: list[Fingerprint]) -> None:
    """Such a member finds out only from the answers, which have been paid for."""
    rows = np.eye(4, dtype=np.float32)
    sent: list[int] = []

    def answer(x: np.ndarray) -> np.ndarray:
        sent.append(len(x))
        return rows[victim().predict(x).argmax(1)]

    judge = committee([prints[2], prints[0]], false_positive_rate=0.4)
    verdict = judge.verify(black_box(victim(), answer))
    assert list(verdict.left_out) == ["ModelDiffVerifier"]
    assert verdict.queries == sum(sent) > judge.members["AKHVerifier"].expected_queries()  # type: ignore[operator]
    sent.clear()
    alone = judge.members["ModelDiffVerifier"].expected_queries()
    assert alone is not None
    short = judge.verify(black_box(victim(), answer), budget=alone + 3)
    assert short.queries == sum(sent) <= alone + 3
    with pytest.raises(IncompatibleSuspectError) as error:
        judge.members["ModelDiffVerifier"].verify(black_box(victim(), answer))
    assert error.value.queries == alone


def test_numpy_rates_give_plain_verdicts(prints: list[Fingerprint]) -> None:
    assert committee(prints, false_positive_rate=np.float32(0.4)).verify(victim()).derived is True


def test_one_file_holds_all_members(prints: list[Fingerprint], tmp_path: Path) -> None:
    judge = committee(prints, method="fisher", null="formula", false_positive_rate=0.3, vote="any")
    path = judge.fingerprint.save(tmp_path / "committee.safetensors")
    loaded = CommitteeVerifier.from_fingerprint(Fingerprint.load(path))
    assert repr(loaded) == repr(judge)
    for suspect in (victim(), black_box(independent(1))):
        assert loaded.verify(suspect) == judge.verify(suspect)
    for name, member in judge.members.items():
        assert member.fingerprint is not None
        assert loaded.members[name].fingerprint is not None
        assert loaded.members[name].fingerprint.digest == member.fingerprint.digest  # type: ignore[union-attr]
    with pytest.raises(FingerprintFileError, match="is for AKHVerifier"):
        CommitteeVerifier.from_fingerprint(prints[0])
    with pytest.raises(FingerprintFileError, match="is for CommitteeVerifier"):
        AKHVerifier.from_fingerprint(Fingerprint.load(path))
    kept = judge.fingerprint
    kept.calibration = prints[0].calibration
    with pytest.raises(FingerprintFileError, match="no thresholds of its own"):
        CommitteeVerifier.from_fingerprint(kept)
    for change in ({"verifier": "Fingerprint"}, {"verifier": "os"}, {"digest": "0"}, {"params": {"seed": -1}}, {}):
        kept = judge.fingerprint
        first = kept.facts["members"][0]
        kept.facts["members"][0] = {**first, **change} if change else None
        with pytest.raises(FingerprintFileError, match=r"Member 0|damaged"):
            CommitteeVerifier.from_fingerprint(kept)


def test_references_are_no_suspects(prints: list[Fingerprint]) -> None:
    judge = committee(prints, method="fisher", false_positive_rate=0.3)
    with pytest.raises(CalibrationError, match="reference models of AKHVerifier"):
        judge.verify(independent(11))
    assert judge.verify(independent(11), allow_reference=True).derived is False


def test_bad_committees(prints: list[Fingerprint]) -> None:
    one, other = AKHVerifier(victim()), SACVerifier(victim())
    for members in ([], [one], [one, victim()], "AKH", one):
        with pytest.raises(InvalidInputError, match="members"):
            CommitteeVerifier(members)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="one verifier twice"):
        CommitteeVerifier([one, one])
    for name, value in (("method", "mean"), ("null", "x"), ("false_positive_rate", 0), ("vote", "one")):
        with pytest.raises(InvalidInputError, match=name):
            CommitteeVerifier([one, other], **{name: value})
    judge = CommitteeVerifier([one, other, AKHVerifier(victim(), seed=1)])
    assert list(judge.members) == ["AKHVerifier", "SACVerifier", "AKHVerifier-2"]
    for call in (lambda: judge.verify(victim()), lambda: judge.calibrate([independent(1)]), lambda: judge.fingerprint):
        with pytest.raises(NotExtractedError, match="AKHVerifier has no fingerprint"):
            call()
    ready = committee(prints, false_positive_rate=0.3)
    with pytest.raises(EstimatorError):
        ready.verify(victim().model)
    fingerprint = ready.members["AKHVerifier"].fingerprint
    assert fingerprint is not None
    fingerprint.facts = {**fingerprint.facts, "victim": "another"}
    with pytest.raises(InvalidInputError, match="different victims"):
        ready.verify(victim())


def test_a_verdict_does_not_change(prints: list[Fingerprint]) -> None:
    verdict = committee(prints, false_positive_rate=0.3).verify(independent(1))
    assert replace(verdict) == verdict
    with pytest.raises(AttributeError):
        verdict.derived = True  # type: ignore[misc]
