"""Suspects that answer badly on purpose, beyond the checks that every verifier goes through as a judge of services."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from art_fingerprint import cli
from art_fingerprint.core.answers import AnswerLog, differing
from art_fingerprint.core.queries import Suspect
from art_fingerprint.exceptions import CalibrationError, FingerprintError, InvalidInputError, SuspectFailedError
from art_fingerprint.testing import HOSTILE, HostileSuspect, black_box
from art_fingerprint.verifiers import CommitteeVerifier, IPGuardVerifier, SACVerifier, WeightAlignmentVerifier
from tests.conformance.verifier_cases import CASES, Case, X, every_query_verifier, independent, victim
from tests.conftest import TinyCNN, wrap


def case_of(kind: type) -> Case:
    return next(case for case in CASES if case.verifier is kind)


# ---------------------------------------------------------------------- networks, which are asked directly
class Hostile(TinyCNN):
    """A network that answers badly."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.load_state_dict(independent(1).model.state_dict())
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(super().forward(x))


def refuse(_scores: Tensor) -> Tensor:
    raise ArithmeticError("not today")


NETWORKS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nan": (lambda scores: scores * torch.nan, "NaN or infinite"),
    "tuple": (lambda scores: (scores, scores), "returns tuple"),
    "three axes": (lambda scores: scores[:, :, None], "returns shape"),
    "one column": (lambda scores: scores[:, :1], "two-logit head"),
    "a class more": (lambda scores: torch.cat([scores, scores[:, :1]], 1), "by its nb_classes"),
    "an error": (refuse, "ArithmeticError while it answered probes: not today"),
    "one answer to all": (lambda scores: scores * 0 + torch.arange(4), "same answer"),
    "labels out of range": (lambda scores: scores.argmax(1) + 9, "class indices 0 to 3"),
}


@every_query_verifier
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:No pair moves")
def test_networks_are_undecided_with_the_reason(case: Case, name: str) -> None:
    answer, reason = NETWORKS[name]
    verdict = case.ready(batch_size=5).verify(wrap(Hostile(answer).eval()))
    assert verdict.derived is None
    assert re.search(reason, verdict.reason)
    assert verdict.queries >= 5
    assert {*verdict.metrics, *verdict.skipped} == {metric.name for metric in case.verifier.metrics}


def test_weights_that_are_no_numbers_are_undecided() -> None:
    suspect = independent(1)
    with torch.no_grad():
        suspect.model.block2[0].weight[0] = torch.nan
    for case in CASES:
        verdict = case.ready().verify(suspect)
        assert verdict.derived is None
        assert re.search("NaN|not finite", verdict.reason), case.label


# ---------------------------------------------------------------------- a committee, references, the command line
@pytest.mark.parametrize("hostile", HOSTILE, ids=[hostile.name for hostile in HOSTILE])
@pytest.mark.filterwarnings("ignore:The suspect's scores lie")
def test_committees_are_undecided_and_name_who_says_why(hostile: HostileSuspect) -> None:
    judges = [case_of(kind).ready(batch_size=5) for kind in (IPGuardVerifier, SACVerifier)]
    committee = CommitteeVerifier(judges, false_positive_rate=0.5)
    sent: list[int] = []
    bad = hostile.answer(independent(1).predict)
    suspect = black_box(independent(1), lambda x: (sent.append(len(x)), bad(x))[1])
    verdict = committee.verify(suspect, **hostile.options)
    assert verdict.derived is None
    assert re.search(hostile.reason, verdict.reason)
    assert set(verdict.left_out) == {"IPGuardVerifier", "SACVerifier"}
    assert verdict.queries == sum(sent) > 0


@pytest.mark.parametrize("name", ["nan", "three_axes", "an_error", "one_answer_to_all"])
@every_query_verifier
def test_they_are_no_references(case: Case, name: str) -> None:
    hostile = next(hostile for hostile in HOSTILE if hostile.name == name)
    verifier = case.ready(metric_names=case.metrics("labels", "scores"))
    before = verifier.fingerprint.calibration
    bad = black_box(independent(12), hostile.answer(independent(12).predict))
    with pytest.raises(CalibrationError, match="model 1 cannot be scored"):
        verifier.calibrate([independent(11), bad])
    assert verifier.fingerprint.calibration is before


FACTORIES = """
import torch
from tests.conformance.test_hostile_suspects import NETWORKS, Hostile

def _of(name):
    return lambda: Hostile(NETWORKS[name][0])

{names}
"""


def test_the_command_line_ends_in_one_status_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name.replace(" ", "_"): name for name in NETWORKS}
    lines = "\n".join(f"{short} = _of({name!r})" for short, name in names.items())
    (tmp_path / "hostile_networks.py").write_text(FACTORIES.format(names=lines))
    monkeypatch.chdir(tmp_path)
    path = case_of(IPGuardVerifier).ready().fingerprint.save(tmp_path / "victim.safetensors")
    for short, name in names.items():
        line = ["verify", "--fingerprint", str(path), "--model", f"hostile_networks:{short}", "--device", "cpu"]
        status = cli.main([*line, "--max-seconds", "60", "--repeats", "2", "--fail-if-derived"])
        out, err = capsys.readouterr()
        assert status in (0, 2), name
        assert "Traceback" not in out + err
        if status == 0:
            assert out.startswith("IPGuardVerifier: undecided: ")
            assert re.search(NETWORKS[name][1], out.replace("\n", " "))
        else:
            assert err.count("\n") == 1


# ---------------------------------------------------------------------- limits that find them out
@every_query_verifier
def test_repeats_are_queries_and_change_no_honest_verdict(case: Case) -> None:
    verifier = case.ready(batch_size=5)
    for suspect in (independent(1), black_box(independent(1)), victim()):
        plain, checked = verifier.verify(suspect), verifier.verify(suspect, repeats=7)
        assert checked.queries == plain.queries + 7
        assert dict(checked.metrics) == dict(plain.metrics)
        assert (checked.derived, checked.reason) == (plain.derived, plain.reason)
        assert verifier.verify(suspect, max_seconds=600) == plain
    short = verifier.verify(independent(1), repeats=7, budget=plain.queries + 3)
    assert "budget" in short.reason
    assert dict(short.metrics) == dict(verifier.verify(independent(1)).metrics)  # they were complete


def test_no_more_is_repeated_than_was_asked() -> None:
    verifier = case_of(IPGuardVerifier).ready()
    assert verifier.verify(independent(1), repeats=1000).queries == 2 * verifier.verify(independent(1)).queries
    assert case_of(WeightAlignmentVerifier).ready().verify(independent(1), repeats=3).queries == 0


def test_a_service_that_changes_sides_is_found_out_and_its_scores_are_kept() -> None:
    verifier = case_of(SACVerifier).ready(batch_size=4)
    models = iter([independent(1)] * 3 + [victim()] * 99)  # ten probes in three calls, then the repeats
    verdict = verifier.verify(black_box(independent(1), lambda x: next(models).predict(x)), repeats=4)
    assert verdict.derived is None
    assert re.search(r"answered [1-4] of 4 repeated probes in another way", verdict.reason)
    expected = verifier.verify(black_box(independent(1)))
    assert dict(verdict.metrics) == dict(expected.metrics)
    assert json.loads(json.dumps(verdict.to_dict()))["complete"] is True


def test_the_time_begins_with_the_first_query(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("art_fingerprint.core.queries.time.monotonic", lambda: now[0])
    suspect = Suspect(black_box(independent(1)), 5, max_seconds=10)
    now[0] = 100.0
    suspect.labels(torch.from_numpy(X[:5]))
    now[0] = 110.0
    suspect.labels(torch.from_numpy(X[:5]))
    now[0] = 110.5
    with pytest.raises(FingerprintError, match="10 s are over; 10 queries were sent"):
        suspect.labels(torch.from_numpy(X[:5]))


@pytest.mark.parametrize(
    "options", [{"max_seconds": 0}, {"max_seconds": "1"}, {"repeats": -1}, {"repeats": 1.5}, {"repeats": True}], ids=str
)
def test_bad_limits(options: dict[str, Any]) -> None:
    judges = [case_of(kind).ready() for kind in (IPGuardVerifier, SACVerifier)]
    for verifier in (judges[0], CommitteeVerifier(judges, false_positive_rate=0.5)):
        with pytest.raises(InvalidInputError, match=next(iter(options))):
            verifier.verify(independent(1), **options)


def test_errors_of_ours_that_a_service_raises_are_its_own() -> None:
    def answer(_x: np.ndarray) -> np.ndarray:
        raise InvalidInputError("`x` is empty")

    with pytest.raises(SuspectFailedError, match="InvalidInputError"):
        Suspect(black_box(independent(1), answer)).labels(torch.from_numpy(X))


# ---------------------------------------------------------------------- what the answers themselves say
def test_half_precision_and_class_indices() -> None:
    verifier = case_of(IPGuardVerifier).ready()
    wanted = verifier.verify(independent(1))
    for answer in (
        lambda x: independent(1).predict(x).astype(np.float16),
        lambda x: independent(1).predict(x).argmax(1),
        lambda x: independent(1).predict(x).argmax(1).astype(np.uint8)[:, None],
    ):
        assert dict(verifier.verify(black_box(independent(1), answer)).metrics) == dict(wanted.metrics)


@pytest.mark.parametrize(
    ("rows", "constant"),
    [
        ([[1.0, 2.0]] * 10, True),
        ([[1.0, 2.0]] * 9, False),
        ([[1.0, 0.0]] * 10, True),
        ([[1.0, 2.0]] * 9 + [[1.0, 2.00001]], True),
        ([[1.0, 2.0]] * 9 + [[1.0, 2.001]], False),
        ([[1.0, 2.0]] * 9 + [[2.0, 1.0]], False),
        ([[1.0, np.nan]] * 10, False),
        ([[0.0, 0.0]] * 10, True),
    ],
)
@pytest.mark.parametrize("batch", [1, 4, 10])
def test_constant_answers(rows: list[list[float]], constant: bool, batch: int) -> None:
    log, answers = AnswerLog(), torch.tensor(rows)
    for part in answers.split(batch):
        log.note(torch.zeros(len(part), 1), part)
    assert bool(log.constant) is constant
    assert not constant or "all 10 probes" in log.constant


def test_repeated_rows_differ_by_more_than_rounding() -> None:
    first = torch.tensor([[10.0, -4.0], [1.0, 0.0], [torch.nan, 0.0], [0.3, 0.7]])
    again = torch.tensor([[10.005, -4.0], [1.0, 0.1], [0.0, 0.0], [0.3, torch.nan]])
    assert differing(first, again) == 2  # the second by its score, the last by what is none; the third never was one
    log = AnswerLog(3)
    for part in (first[:2], first[2:]):
        log.note(part * 2, part)
    assert [len(x) for x in log.asked] == [2, 1]
    assert torch.equal(log.answered[0], first[:2])
