"""The plans behind docs/results: whatever the package exports has a row in them, and they can run as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from art_fingerprint import attacks, verifiers
from art_fingerprint.benchmark.plan_files import load_plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.zoo.loading import attack_class
from art_fingerprint.zoo.preset import NEGATIVES, Preset

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PLANS = ("arms-race-digits", "arms-race-fashion-mnist")


def victim(name: str) -> Preset:
    (found,) = load_plan(RESULTS / f"{name}.yaml").presets
    return found


@pytest.mark.parametrize("name", PLANS)
def test_every_attack_has_a_row_and_every_verifier_a_column(name: str) -> None:
    found = victim(name)
    rows = {attack_class(setting.attack).__name__ for setting in found.attacks.values()}
    assert rows == {known for known in attacks.__all__ if known != "RemovalAttack"}
    # a committee has no fingerprint of its own
    kinds = {known for known in verifiers.__all__ if known.endswith("Verifier")} - {"Verifier", "CommitteeVerifier"}
    assert set(found.verifiers) == kinds


@pytest.mark.parametrize("name", PLANS)
def test_every_kind_of_independent_models_is_there(name: str) -> None:
    found = victim(name)
    assert set(found.negatives or {}) == set(NEGATIVES)
    assert min((found.negatives or {}).values()) > 0
    assert found.halved
    assert found.nb_other_data_references > 0
    assert found.nb_known > 0


@pytest.mark.parametrize("name", PLANS)
def test_removalnet_cuts_at_every_block_with_both_kinds_of_data(name: str) -> None:
    found = victim(name)
    settings = [setting for setting in found.attacks.values() if setting.attack in ("RemovalNet", "RemovalNetAttack")]
    blocks = [child for child, _ in found.architecture().named_children() if child.startswith("block")]
    assert {setting.params["layer"] for setting in settings} == set(blocks)
    assert {(s.params["layer"], s.source) for s in settings} == {(b, s) for b in blocks for s in ("subset", "apart")}
    assert {setting.step for setting in settings} == {None, 200, 1000, 2000}


def test_the_plan_for_digits_can_run(tmp_path: Path) -> None:
    plan = load_plan(RESULTS / "arms-race-digits.yaml")
    bench = Bench(plan, tmp_path / "new", device_type="cpu", verbose=False)
    suspects = bench.benches["digits"].suspects
    assert len({suspect.key for suspect in suspects}) == len(suspects) == 1 + 50 + 50 + 49 * 5
