"""Checkpoints of an attack and shares of data, as rows of a plan."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks.base import RemovalAttack
from art_fingerprint.benchmark.materials import plain, substitute_data
from art_fingerprint.benchmark.plan import Plan, plan_from
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import Store, cell_key, read_rows
from art_fingerprint.benchmark.suspects import derive_checkpoints
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.core.cost import cost_so_far
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.presets import AttackSetting, Preset
from tests.tiny_preset import tiny

Row = dict[str, Any]


def checkpointed(**params: Any) -> Preset:
    """The tiny preset with RemovalNet for six steps, whole and at steps 0, 4 and 6."""
    base = tiny()
    setting = base.attacks["RemovalNet(apart)"]
    whole = replace(setting, params={**setting.params, "max_iter": 6, **params})
    steps = {f"R@{step}": replace(whole, step=step) for step in (0, 4, 6)}
    return replace(base, attacks={"R": whole, **steps}, robustness={}, nb_negatives=0)


def digests(bench: Workbench) -> dict[str, str]:
    return {s.label: network_digest(bench.model(s).model) for s in bench.suspects if s.role == "surrogate"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def rows(folder: Path) -> tuple[list[Row], Counter[str]]:
    """Rows of a run, and how often an attack was run for them."""
    count: Counter[str] = Counter()
    original = RemovalAttack.generate

    def counted(self: RemovalAttack, *arguments: Any, **options: Any) -> PyTorchClassifier:
        count["generate"] += 1
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemovalAttack, "generate", counted)
        plan = Plan((checkpointed(bn_recalibrate=3),), (0,))
        Bench(plan, folder, device_type="cpu", verbose=False).run()
    return read_rows(folder), count


def test_one_run_makes_all_checkpoints(rows: tuple[list[Row], Counter[str]], folder: Path) -> None:
    found, count = rows
    assert count["generate"] == 2  # the whole attack, and one run for its three checkpoints
    assert all(row["status"] == "ok" for row in found)
    bench = Workbench(checkpointed(bn_recalibrate=3), folder, (0,), "cpu")
    weights = digests(bench)
    assert weights["R@6"] == weights["R"]
    assert len(set(weights.values())) == 3
    start = bench.model(next(s for s in bench.suspects if s.label == "R@0"))
    assert network_digest(start.model) == network_digest(bench.victim.model)


def test_a_checkpoint_is_what_the_attack_had_at_that_step(tmp_path: Path) -> None:
    preset = checkpointed()
    bench = Workbench(preset, tmp_path, (0,), "cpu")
    suspect = next(s for s in bench.suspects if s.label == "R@4")
    seen: dict[int, str] = {}

    def look(step: int, surrogate: PyTorchClassifier, _losses: Mapping[str, float]) -> None:
        seen[step] = network_digest(surrogate.model)

    attack = bench.attack(preset.attacks["R"], bench.victim, 0)
    attack.set_params(callback=look, callback_interval=1)
    x, _ = substitute_data(bench.data, bench.victim, "apart", preset.subset_ratio, 0)
    attack.generate(x)
    assert network_digest(bench.model(suspect).model) == seen[4]


def test_costs_grow_to_those_of_the_whole_run(rows: tuple[list[Row], Counter[str]]) -> None:
    passes = {row["suspect"]: row["cost"]["forward_equivalents"] for row in rows[0] if row["role"] == "surrogate"}
    seconds = {row["suspect"]: row["attack_seconds"] for row in rows[0] if row["role"] == "surrogate"}
    assert 0 < passes["R@0"] < passes["R@4"] < passes["R@6"] == passes["R"]
    assert 0 < seconds["R@0"] < seconds["R@4"] < seconds["R@6"]
    assert cost_so_far() is None


def test_only_one_is_in_a_block_of_one_name(tmp_path: Path) -> None:
    store, inside, most = Store(tmp_path), Counter[str](), Counter[str]()

    def work(name: str) -> None:
        with store.alone(name):
            inside[name] += 1
            most[name] = max(most[name], inside[name])
            time.sleep(0.02)
            inside[name] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, ["a", "a", "b", "a"]))
    assert most == {"a": 1, "b": 1}


def test_a_step_that_is_never_reached_is_said(tmp_path: Path) -> None:
    preset = checkpointed()
    bench = Workbench(preset, tmp_path, (0,), "cpu")
    attack = bench.attack(preset.attacks["R"], bench.victim, 0)
    x = bench.data.x_apart
    with pytest.raises(InvalidInputError, match=r"never gets to step 9: it ends after 6"):
        derive_checkpoints(attack, x, None, {9: "key"}, lambda *_: None)


def test_shares_of_data() -> None:
    bench = Workbench(tiny(), "unused", (0,), "cpu")
    data, victim = bench.data, bench.untrained
    pools = {"subset": data.x_train, "apart": data.x_apart}
    parts = {}
    for source, pool in pools.items():
        x, y = substitute_data(data, victim, source, 0.1, 3, 0.2)
        assert len(x) == len(y) == int(0.2 * len(pool))
        parts[source] = x
    for source, x in parts.items():
        assert {image.tobytes() for image in np.asarray(x)} <= {image.tobytes() for image in pools[source]}
    assert len(substitute_data(data, victim, "subset", 0.1, 3)[0]) == int(0.1 * len(data.x_train))
    assert len(substitute_data(data, victim, "apart", 0.1, 3)[0]) == len(data.x_apart)
    assert len(substitute_data(data, victim, "apart", 0.1, 3, 1.0)[0]) == len(data.x_apart)
    with pytest.raises(InvalidInputError, match="selects none"):
        substitute_data(data, victim, "apart", 0.1, 3, 0.001)


def test_a_share_that_once_was_one_of_another_set_has_another_key() -> None:
    """Rows of earlier versions took ``ratio`` of data held apart for a share of the training set."""
    preset = checkpointed()
    setting = replace(preset.attacks["R@4"], source="apart", step=None)
    for ratio in (None, 0.2):
        bench = Workbench(replace(preset, attacks={"R": replace(setting, ratio=ratio)}), "unused", (0,), "cpu")
        described = {name: value for name, value in vars(bench.preset.attacks["R"]).items() if value is not None}
        former = {"setting": {**described, "params": plain(setting.params)}}
        key = cell_key(victim=bench.victim_key, seed=0, **former)
        assert (key == bench.suspects[-1].key) is (ratio is None)


def test_plans_carry_steps_and_ratios() -> None:
    preset = checkpointed()
    setting = replace(preset.attacks["R@4"], ratio=0.2)
    described = Plan((replace(tiny(), name="digits", attacks={"R@4": setting}),), (0,)).to_dict()
    entry = described["victims"]["digits"]["attacks"]
    assert plan_from({"victims": {"digits": {"attacks": entry}}}).presets[0].attacks["R@4"] == setting


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": 7}, "beyond the last of `max_iter`=6"),
        ({"step": -1}, "step"),
        ({"step": 2.5}, "step"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": 0.5, "source": "train"}, "whole training set"),
        ({"step": 3, "params": {"keep_best": 0.2, "max_iter": 6}}, "keep_best"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    setting = AttackSetting("RemovalNetAttack", {"layer": "block2", "max_iter": 6, "hflip": False}, "apart", False)
    preset = replace(tiny(), attacks={"R": replace(setting, **changes)})
    with pytest.raises(InvalidInputError, match=says):
        Bench(Plan((preset,), (0,)), tmp_path, device_type="cpu", verbose=False)


def test_steps_and_ratios_are_part_of_the_key() -> None:
    bench = Workbench(tiny(), "unused", (0,), "cpu")
    setting = tiny().attacks["FT(0.5)"]
    keys = {bench._surrogate_key(s, 0) for s in (setting, replace(setting, ratio=0.5), replace(setting, step=1))}
    assert len(keys) == 3
    assert bench.checkpoints(setting, 0) == {}
