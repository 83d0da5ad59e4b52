"""Plans as data: what a file may say, what is refused and how, and that a plan survives being written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint.benchmark.plan import Factory, Plan, architecture_name, plan_from
from art_fingerprint.benchmark.plan_files import load_plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo import presets
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.presets import AttackSetting, load_preset
from art_fingerprint.zoo.recipes import Recipe
from tests import photo_sets
from tests.tiny_preset import tiny

DIGITS = load_preset("digits")
OWN = {
    "dataset": "tests.bench_plugins:few_digits",
    "architecture": "tests.bench_plugins:narrow",
    "victim_recipe": {"learning_rate": 0.05, "max_iter": 60, "batch_size": 32},
    "attacks": {"FT": {"attack": "FineTuning", "params": {"max_iter": 2, "hflip": False}, "true_labels": True}},
    "verifiers": {"IPGuard": {"nb_probes": 12, "margin": 0.0, "learning_rate": 0.05, "max_iter": 60}},
    "nb_references": 2,
    "robustness": {"FGSM": {"eps": 0.1}},
    "threads": 1,
}


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)


def checked(data: Mapping[str, Any], folder: Path) -> Bench:
    return Bench(plan_from(data), folder, device_type="cpu", verbose=False)


# ---------------------------------------------------------------------- what a plan may say
def test_the_share_of_data_reaches_the_rates_that_depend_on_it() -> None:
    """RemovalNet's learning rate is lr (1 - r)."""
    (preset,) = plan_from({"victims": {"cifar10-vgg19": {"subset_ratio": 0.2}}}).presets
    assert preset.attacks["RemovalNet(train)"].params["subset_ratio"] == 0.2
    assert "subset_ratio" not in preset.attacks["RemovalNet(apart)"].params
    own = {"RemovalNet(train)": {"params": {"subset_ratio": 0.1}}}
    (kept,) = plan_from({"victims": {"cifar10-vgg19": {"subset_ratio": 0.2, "attacks": own}}}).presets
    assert kept.attacks["RemovalNet(train)"].params["subset_ratio"] == 0.1


def test_preset_by_name() -> None:
    plan = Plan.from_preset("digits")
    assert plan.seeds == (0, 1, 2)
    assert plan.presets[0].attacks == DIGITS.attacks
    named = plan_from({"victims": "digits"})
    assert (named.presets[0].verifiers, named.seeds) == (DIGITS.verifiers, (0, 1, 2))


@pytest.mark.parametrize(("given", "seeds"), [(1, (0,)), (4, (0, 1, 2, 3)), ([5], (5,)), ([3, 0], (3, 0))])
def test_seeds(given: object, seeds: tuple[int, ...]) -> None:
    assert plan_from({"victims": ["digits"], "seeds": given}).seeds == seeds
    assert Plan.from_preset("digits", given).seeds == seeds  # type: ignore[arg-type]


def test_several_victims_start_from_presets_and_differ_where_they_say_so() -> None:
    plan = plan_from(
        {
            "victims": {
                "digits": None,
                "other": {"preset": "digits", "victim_seed": 7, "victim_recipe": {"max_iter": 200}, "nb_negatives": 20},
            }
        }
    )
    one, two = plan.presets
    assert (one.name, two.name) == ("digits", "other")
    assert one.victim_recipe == DIGITS.victim_recipe
    assert two.victim_recipe == replace(DIGITS.victim_recipe, max_iter=200)
    assert (two.victim_seed, two.nb_negatives, two.attacks) == (7, 20, DIGITS.attacks)


def test_attacks_and_verifiers_for_all_victims_or_inside_one() -> None:
    own = {"verifiers": ["ZestVerifier"], "attacks": ["FT(0.5)"]}
    plan = plan_from(
        {
            "victims": {"digits": {}, "b": {"preset": "digits", **own}},
            "attacks": {"FT(0.8)": {}, "FT(0.5)": {"params": {"max_iter": 9}}},
            "verifiers": {"IPGuard": {"nb_probes": 7}},
        }
    )
    one, two = plan.presets
    assert list(one.attacks) == ["FT(0.8)", "FT(0.5)"]
    assert one.attacks["FT(0.8)"] == DIGITS.attacks["FT(0.8)"]
    assert one.attacks["FT(0.5)"].params == {**DIGITS.attacks["FT(0.5)"].params, "max_iter": 9}
    assert one.verifiers == {"IPGuardVerifier": {**DIGITS.verifiers["IPGuardVerifier"], "nb_probes": 7}}
    assert (list(two.attacks), list(two.verifiers)) == (["FT(0.5)"], ["ZestVerifier"])


def test_another_class_under_a_known_label_starts_from_its_own_defaults() -> None:
    spec = {"FT(0.5)": {"attack": "WeightPruningAttack", "params": {"ratio": 0.6}}}
    (preset,) = plan_from({"victims": "digits", "attacks": spec}).presets
    assert preset.attacks["FT(0.5)"] == AttackSetting("WeightPruningAttack", {"ratio": 0.6}, "train", True)


def test_new_attacks_and_verifiers(tmp_path: Path) -> None:
    spec = {
        "Knock": {"attack": "KnockoffNetsAttack", "source": "apart"},
        "own": {"attack": "tests.bench_plugins:OwnAttack"},
    }
    bench = checked(
        {"victims": "tiny", "attacks": spec, "verifiers": ["ModelDiff", "tests.bench_plugins:OwnVerifier"]}, tmp_path
    )
    (preset,) = bench.plan.presets
    assert preset.attacks["Knock"] == AttackSetting("KnockoffNetsAttack", {}, "apart", False)
    assert preset.verifiers == {"ModelDiffVerifier": {}, "tests.bench_plugins:OwnVerifier": {}}


def test_profiles_of_verifiers() -> None:
    (preset,) = plan_from(
        {"victims": "digits", "verifiers": {"Zest": {"profile": "removalnet", "nb_images": 5}}}
    ).presets
    params = preset.verifiers["ZestVerifier"]
    assert params["nb_images"] == 5
    assert "segmenter" not in params or params["segmenter"] != DIGITS.verifiers["ZestVerifier"]["segmenter"]


def test_victim_without_a_preset_runs(tmp_path: Path) -> None:
    bench = checked({"victims": {"mine": OWN}, "seeds": 1}, tmp_path)
    assert bench.plan.presets[0].negative_recipe == Recipe(0.05, 60, 32, linear_l2=0.0)
    bench.run()
    rows = read_rows(tmp_path)
    assert [(row["suspect"], row["status"]) for row in rows] == [
        *[("Victim", "ok"), ("Reference", "ok"), ("Reference", "ok"), ("Negative", "ok"), ("FT", "ok")]
    ]
    assert {(row["preset"], row["dataset"], row["attack"]) for row in rows if row["attack"]} == {
        ("mine", "tests.bench_plugins:few_digits", "FineTuningAttack")
    }


def stealing(judge: Mapping[str, Any]) -> dict[str, Any]:
    """A victim whose only attack trains a network of another architecture, judged by one verifier."""
    params = {"max_iter": 2, "hflip": False, "surrogate_factory": "tests.bench_plugins:narrower"}
    return {**OWN, "attacks": {"steal": {"attack": "KnockoffNets", "params": params}}, "verifiers": judge}


def test_network_of_another_architecture_is_kept_and_read_again(tmp_path: Path) -> None:
    plan = {"victims": {"mine": stealing(OWN["verifiers"])}, "seeds": 1}
    checked(plan, tmp_path).run()
    (row,) = [row for row in read_rows(tmp_path) if row["suspect"] == "steal"]
    assert row["status"] == "ok"
    assert row["attack_params"]["surrogate_factory"] == "tests.bench_plugins:narrower"
    work = checked(plan, tmp_path).benches["mine"]
    path = work.store.models / f"{row['model']}.safetensors"
    before = path.stat().st_mtime_ns
    assert work.model(work.suspects[-1]).model.block1[0].out_channels == 3
    assert path.stat().st_mtime_ns == before


def test_layers_that_another_architecture_lacks_are_skipped_and_not_tried_again(tmp_path: Path) -> None:
    judge = {"DeepJudge": {"layer": "block2", "metric_names": ["LOD"], "multiplier": 0.5, "max_iter": 100}}
    plan = {"victims": {"mine": stealing(judge)}, "seeds": 1}
    checked(plan, tmp_path).run()
    rows = read_rows(tmp_path)
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["skipped"]
    assert (rows[-1]["derived"], rows[-1]["metrics"]) == (None, {})
    assert "'block2' has 6 neurons" in rows[-1]["reason"]
    assert rows[-1]["accuracy"] > 0
    checked(plan, tmp_path).run()
    assert read_rows(tmp_path) == rows


# ---------------------------------------------------------------------- files
YAML = """
seeds: [0, 3]
victims:
  small:
    preset: digits
    victim_recipe: &fast {learning_rate: 5e-2, max_iter: 100}
    negative_recipe: *fast
attacks:
  FT(0.5):
  slow:
    attack: FineTuningAttack
    params: {ratio: 0.5, learning_rate: 1e-3}
    source: subset
verifiers: [ZestVerifier]
"""
TOML = """
seeds = [0, 3]
verifiers = ["ZestVerifier"]
[victims.small]
preset = "digits"
victim_recipe = {learning_rate = 5e-2, max_iter = 100}
negative_recipe = {learning_rate = 5e-2, max_iter = 100}
[attacks."FT(0.5)"]
[attacks.slow]
attack = "FineTuningAttack"
params = {ratio = 0.5, learning_rate = 1e-3}
source = "subset"
"""


def test_yaml_toml_and_json_say_the_same(tmp_path: Path) -> None:
    plans = []
    for name, text in (("a.yaml", YAML), ("a.toml", TOML)):
        (tmp_path / name).write_text(text)
        plans.append(load_plan(tmp_path / name).to_dict())
    (tmp_path / "a.json").write_text(json.dumps(plans[0]))
    plans.append(load_plan(tmp_path / "a.json").to_dict())
    assert plans[0] == plans[1] == plans[2]
    small = plans[0]["victims"]["small"]
    assert (plans[0]["seeds"], small["victim_recipe"]["learning_rate"]) == ([0, 3], 0.05)
    assert small["attacks"]["slow"]["params"] == {"ratio": 0.5, "learning_rate": 0.001}


def test_a_run_keeps_its_plan_and_that_plan_repeats_it(tmp_path: Path) -> None:
    checked({"victims": {"mine": OWN}, "seeds": 1}, tmp_path).run()
    rows = (tmp_path / "rows.jsonl").read_bytes()
    again = load_plan(tmp_path / "plan.json")
    Bench(again, tmp_path, device_type="cpu", verbose=False).run()
    assert (tmp_path / "rows.jsonl").read_bytes() == rows


def test_names_of_what_makes_a_network() -> None:
    assert architecture_name(SmallCNN) == "art_fingerprint.zoo.architectures:SmallCNN"
    assert architecture_name(Factory("timm:resnet10t")) == "timm:resnet10t"


def test_independent_models_may_start_from_another_network(tmp_path: Path) -> None:
    own = {"independent_architecture": "tests.bench_plugins:narrow"}
    one, two = (checked({"victims": {"tiny": change}}, tmp_path).benches["tiny"] for change in ({}, own))
    assert one.victim_key == two.victim_key
    for role, alike in (("victim", True), ("reference", False), ("negative", False), ("surrogate", True)):
        pairs = [(a, b) for a, b in zip(one.suspects, two.suspects, strict=True) if a.role == role]
        assert all((a.key == b.key) is alike for a, b in pairs), role


def test_images_on_disk_are_streamed(tmp_path: Path) -> None:
    """Training images that are decoded on demand: the victim is the same, the attacks read a stream."""
    photo_sets.make_cinic10(tmp_path, 7)
    steps = {"max_iter": 3, "batch_size": 16}
    found = {}
    for lazy in (False, True):
        victim = {
            **{"dataset": "cinic10", "dataset_options": {"root": str(tmp_path), "size": 8, "lazy": lazy}},
            **{"architecture": "tests.bench_plugins:colour", "victim_recipe": {**OWN["victim_recipe"], "max_iter": 20}},  # type: ignore[dict-item]
            **{"verifiers": {"ModelDiff": {"nb_pairs": 10}}, "nb_references": 2, "robustness": {}, "threads": 1},
            "attacks": {
                "FT": {"attack": "FineTuning", "params": steps, "true_labels": True},
                "steal": {"attack": "KnockoffNets", "params": steps, "source": "subset"},
            },
        }
        folder = tmp_path / f"run-{lazy}"
        checked({"victims": {"photos": {**victim, "subset_ratio": 0.5}}, "seeds": 1}, folder).run()
        found[lazy] = rows = read_rows(folder)
        assert [(row["status"], row["reason"]) for row in rows] == [("ok", "")] * 6
    for held, read in zip(found[False], found[True], strict=True):
        if held["role"] == "surrogate":  # batches are drawn in another order
            assert (held["attack_params"], held["seed"]) == (read["attack_params"], read["seed"])
            trained = [row["cost"]["surrogate"]["backward"] for row in (held, read)]
            assert trained == {"FT": [48, 48], "steal": [16 + 16 + 3, 48]}[held["suspect"]]
        else:
            assert held["accuracy"] == read["accuracy"]
            assert held["metrics"] == read["metrics"]


def test_timm_is_told_classes_and_channels(tmp_path: Path) -> None:
    victim = {**OWN, "architecture": "timm:test_resnet", "attacks": {}}
    work = checked({"victims": {"t": victim}}, tmp_path).benches["t"]
    assert work.untrained.predict(work.data.x_test[:2]).shape == (2, 10)


# ---------------------------------------------------------------------- refusals
BAD_PLANS: list[tuple[Any, str]] = [
    (None, "the plan must be a mapping, got None"),
    ([], r"the plan must be a mapping, got \[\]"),
    ({}, "`victims` must name one or more victims, presets are digits"),
    ({"victims": []}, "`victims` must name one or more victims"),
    ({"victims": 3}, "`victims` must name one or more victims"),
    ({"victims": "digits", "verifers": []}, "no key of the plan 'verifers'. Near names: verifiers"),
    ({"victims": "digit"}, "no preset 'digit'. Near names: digits"),
    ({"victims": [3]}, "a victim's name must be a name, got 3"),
    (
        {"victims": {"a": {"preset": "digits", "victim_sed": 3}}},
        "no key of victim 'a' 'victim_sed'. Near names: victim_seed",
    ),
    (
        {"victims": {"a": {"dataset": "digits"}}},
        "victim 'a' has no `preset`, and lacks architecture, victim_recipe, verifiers",
    ),
    ({"victims": {"a": [1]}}, "victim 'a' must be a mapping"),
    ({"victims": {"digits": {"victim_recipe": {"lr": 1}}}}, "no key of `victim_recipe` of victim 'digits' 'lr'"),
    ({"victims": {"digits": {"victim_recipe": {"max_iter": 1.5}}}}, "`max_iter` must be an integer"),
    ({"victims": {"digits": {"victim_recipe": {"learning_rate": "fast"}}}}, "`learning_rate` must be a number"),
    ({"victims": {"digits": {"victim_recipe": {"stage_divisors": [1, 2]}}}}, "three positive numbers"),
    ({"victims": {"digits": {"architecture": 3}}}, "`architecture` of victim 'digits' must be a name, got 3"),
    ({"victims": {"digits": {"dataset": 3}}}, "`dataset` of victim 'digits' must be a name, got 3"),
    ({"victims": {"digits": {"dataset_options": 3}}}, "`dataset_options` of victim 'digits' must be a mapping"),
    ({"victims": "digits", "verifiers": ["Committee"]}, "A committee has no fingerprint of its own to extract"),
    ({"victims": "digits", "seeds": 0}, "`seeds` must be an integer in .1, 100000., got 0"),
    ({"victims": "digits", "seeds": []}, "`seeds` must be a number, or different seeds"),
    ({"victims": "digits", "seeds": [1, 1]}, "`seeds` must be a number, or different seeds"),
    ({"victims": "digits", "seeds": [-1]}, "`seed` must be an integer"),
    ({"victims": "digits", "seeds": "3"}, "`seeds` must be a sequence"),
    ({"victims": "digits", "seeds": True}, "`seeds`"),
    ({"victims": "digits", "attacks": ["FT"]}, r"no attack row 'FT'; it has FT\(0.5\)"),
    ({"victims": "digits", "attacks": {"FT": {}}}, "no attack row of victim 'digits' 'FT'. Near names: FT"),
    ({"victims": "digits", "attacks": {"FT": {"params": {}}}}, "has no `attack`, the name of its class"),
    (
        {"victims": "digits", "attacks": {"FT": {"attack": 3}}},
        "`attack` of attack 'FT' of victim 'digits' must be a name",
    ),
    ({"victims": "digits", "attacks": {"FT(0.5)": {"param": {}}}}, "no key of attack .* 'param'. Near names: params"),
    ({"victims": "digits", "attacks": {"FT(0.5)": {"params": [1]}}}, "`params` of attack .* must be a mapping"),
    ({"victims": "digits", "attacks": {"FT(0.5)": {"source": "test"}}}, "`source` of attack .* must be one of"),
    (
        {"victims": "digits", "attacks": {"FT(0.5)": {"true_labels": 1}}},
        "`true_labels` of attack .* must be true or false",
    ),
    ({"victims": "digits", "verifiers": ["IPGard"]}, "no verifier 'IPGard'. Near names: IPGuardVerifier"),
    ({"victims": "digits", "verifiers": []}, "Victim 'digits' has no verifiers"),
    ({"victims": "digits", "verifiers": "ZestVerifier"}, "`verifiers` must be a sequence"),
    ({"victims": "digits", "verifiers": {"Zest": 3}}, "ZestVerifier of victim 'digits' must be a mapping"),
    ({"victims": "digits", "verifiers": ["Zest", "ZestVerifier"]}, "has ZestVerifier twice"),
    (
        {"victims": "digits", "verifiers": {"Zest": {"profile": "fast"}}},
        "`profile` of ZestVerifier .* must be one of paper",
    ),
    ({"victims": "digits", "verifiers": ["nowhere:Class"]}, "The verifier 'nowhere:Class' cannot be found"),
    ({"victims": "digits", "verifiers": ["tests.bench_plugins:OwnAttack"]}, "is no subclass of Verifier"),
]


@pytest.mark.parametrize(("data", "message"), BAD_PLANS, ids=[str(number) for number in range(len(BAD_PLANS))])
def test_bad_plans_are_refused(data: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plan_from(data)


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    (
        {"attacks": {"FT(0.5)": {"params": {"max_iters": 3}}}},
        "FineTuningAttack has no parameter 'max_iters'. Near names: max_iter",
    ),
    (
        {"attacks": {"FT(0.5)": {"params": {"ratio": 2}}}},
        r"victim 'tiny', attack 'FT\(0.5\)': `ratio` must be a number",
    ),
    ({"attacks": {"FT(0.5)": {"params": {"seed": 3}}}}, "`seed` is the bench's own"),
    ({"attacks": {"RemovalNet(apart)": {"params": {"layer": "blok2"}}}}, "no layer 'blok2'. Near names: block2"),
    ({"attacks": {"RemovalNet(apart)": {"params": {"layer": 9}}}}, "`layer`=9, but the network's stages are 1 to"),
    ({"attacks": {"a": {"attack": "Removalnet"}}}, "no attack 'Removalnet'. Near names: RemovalNetAttack"),
    ({"attacks": {"a": {"attack": "KnockoffNets", "params": {"surrogate_factory": "x:y"}}}}, "'x:y' cannot be made"),
    ({"attacks": {"Negative": {"attack": "FineTuning"}}}, "victim 'tiny' has an attack 'Negative'"),
    ({"verifiers": {"Zest": {"nb_image": 3}}}, "ZestVerifier has no parameter 'nb_image'. Near names: nb_images"),
    ({"verifiers": {"Zest": {"nb_images": 0}}}, "victim 'tiny', ZestVerifier: `nb_images` must be an integer"),
    ({"verifiers": {"DeepJudge": {"layer": "nowhere"}}}, "victim 'tiny', DeepJudgeVerifier: .*no layer 'nowhere'"),
    ({"robustness": {"Nothing": {}}}, "victim 'tiny', robustness under 'Nothing'"),
    ({"robustness": {"PGD": {"epsilon": 3}}}, "victim 'tiny', robustness under 'PGD'"),
    ({"robustness": [1]}, "`robustness` must be a mapping"),
    ({"calibration": {"rules": "fpr"}}, "`calibration` has rules; it may have rule"),
    ({"calibration": {"rule": "fpr", "false_positive_rate": 0.05}}, "needs at least 20 reference models, got 2"),
    ({"calibration": {"rule": "lucky"}}, "Unknown threshold rule 'lucky'"),
    ({"nb_references": 0}, "`nb_references` must be an integer"),
    ({"nb_negatives": -1}, "`nb_negatives` must be an integer"),
    ({"negatives": [3]}, r"victim 'tiny': `negatives` must be a mapping, got \[3\]"),
    ({"negatives": {"other_data": 3}}, "victim 'tiny': .*kind of `negatives`.*same-data.*other_data"),
    ({"negatives": {"other-data": -1}}, "other-data of `negatives`.* must be an integer"),
    ({"negatives": {"same-data": 1}, "nb_negatives": 1}, "both count the negatives"),
    ({"negatives": {"other-architecture": 1}}, "need `other_architecture`, which makes their network"),
    (
        {"negatives": {"other-architecture": 1}, "other_architecture": "tests.bench_plugins:colour"},
        r"`other_architecture` does not take images of \(1, 8, 8\)",
    ),
    (
        {"negatives": {"other-architecture": 1}, "other_architecture": "tests.bench_plugins:three_classes"},
        r"`other_architecture` answers two images with \(2, 3\); \(2, 10\) logits are needed",
    ),
    ({"nb_other_data_references": -1}, "`nb_other_data_references` must be an integer"),
    (
        {"nb_references": 20, "nb_other_data_references": 3, "calibration": {"rule": "fpr"}},
        "needs at least 20 reference models, got 3",
    ),
    ({"nb_known": "all"}, "`nb_known` must be an integer"),
    ({"held_out_noise": {"copies": 3}}, "`held_out_noise` needs `copies` and `std`, and has copies"),
    ({"held_out_noise": {"copies": 0, "std": 0.1}}, "copies of `held_out_noise`"),
    ({"held_out_noise": {"copies": 1, "std": 0}}, "std of `held_out_noise`"),
    ({"held_out_noise": 3}, "`held_out_noise` must be a mapping"),
    ({"attacks": {"Negative (other data)": {"attack": "FineTuning"}}}, "rows of this name are those of other models"),
    ({"threads": 0}, "`threads` must be an integer"),
    ({"subset_ratio": 0}, "`subset_ratio` must be a number"),
    ({"victim_seed": "a"}, "`victim_seed` must be an integer"),
    ({"dataset": "mnist"}, "There is no data set 'mnist'"),
    ({"dataset_options": {"siz": 3}}, "The data set 'digits' does not take .*siz"),
    ({"independent_architecture": "tests.bench_plugins:nothing"}, "cannot be made"),
    ({"dataset": "tests.bench_plugins:narrow"}, "a zoo.datasets.Dataset is needed"),
    ({"architecture": "tests.bench_plugins:nothing"}, "cannot be made"),
    ({"architecture": "tests.bench_plugins:few_digits"}, "is a Dataset; an nn.Module is needed"),
    ({"architecture": "timm:no_such_net"}, "cannot be made"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SETTINGS, ids=[str(number) for number in range(len(BAD_SETTINGS))])
def test_settings_that_cannot_run_are_refused_before_anything_is_made(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        checked({"victims": {"tiny": change}}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "victims: {", "cannot be read"),
        ("a.yaml", "victims: digits\nseeds: 1\nseeds: 2", "the key 'seeds' comes twice"),
        ("a.yaml", "victims: !!python/object/apply:os.system ['true']", "cannot be read"),
        ("a.yaml", "[" * 5000, "cannot be read"),
        ("a.toml", "victims = ", "cannot be read"),
        ("a.toml", "victims = 'digits'\nvictims = 'digits'", "cannot be read"),
        ("a.json", "{]", "cannot be read"),
        ("a.yaml", "victims: digits\nseed: 3", "The plan .*a.yaml is wrong: There is no key of the plan 'seed'"),
        ("a.yaml", "", "must be a mapping, got None"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        load_plan(tmp_path / name)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="There is no plan file"):
        load_plan(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00rubbish")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_plan(tmp_path / "b.yaml")


def test_two_victims_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="different names"):
        Plan((DIGITS, DIGITS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "cluster"}, "`executor` must be one of 'serial', 'process', 'ray'"),
        ({"workers": 0, "executor": "process"}, "`workers` must be an integer"),
        ({"workers": 2}, "`workers`=2 needs executor='process' or 'ray'"),
        ({"ray_address": "auto"}, "`ray_address` needs executor='ray'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Bench(Plan.from_preset(tiny()), tmp_path, device_type="cpu", **options)


def test_what_cannot_be_sent_to_a_worker_is_refused(tmp_path: Path) -> None:
    preset = replace(tiny(), architecture=lambda: SmallCNN(width=4))
    Bench(Plan.from_preset(preset), tmp_path, device_type="cpu")
    with pytest.raises(InvalidInputError, match="Victim 'tiny' cannot be sent to a worker.*not a lambda"):
        Bench(Plan.from_preset(preset), tmp_path, "process", device_type="cpu")


# ---------------------------------------------------------------------- outline
def test_outline_counts_cells_and_passes(tmp_path: Path) -> None:
    bench = Bench(Plan.from_preset(tiny(), 2), tmp_path / "new", device_type="cpu", verbose=False)
    lines = {line.what: line for line in bench.outline()}
    assert not (tmp_path / "new").exists()
    assert {what: line.cells for what, line in lines.items()} == {
        **{"fingerprint IPGuardVerifier": 0, "fingerprint ZestVerifier": 0},
        **{"Victim": 2, "Reference": 4, "Negative": 4, "FT(0.5)": 4, "RemovalNet(apart)": 4},
    }
    judged = 360 + 20 + 240  # test images, IPGuard's probes, ZEST's masks at most
    victim, fine_tuned = lines["Victim"].passes, lines["FT(0.5)"].passes
    assert victim is not None
    assert fine_tuned is not None
    evasion = victim - 3 * 60 * 32 - judged
    assert evasion > 0
    assert fine_tuned == pytest.approx(2 * (3 * 2 * 100 + judged + evasion))


def test_outline_knows_what_is_done(tmp_path: Path) -> None:
    plan = Plan.from_preset(tiny(), 1, attacks=["FT(0.5)"])
    Bench(plan, tmp_path, device_type="cpu", verbose=False).run()
    lines = Bench(plan, tmp_path, device_type="cpu", verbose=False).outline()
    assert sum(line.cells for line in lines) == sum(line.done for line in lines) == 10
    assert not any(line.passes for line in lines)
    more = Bench(Plan.from_preset(tiny(), 2, attacks=["FT(0.5)"]), tmp_path, device_type="cpu", verbose=False).outline()
    assert {line.what: line.cells - line.done for line in more if line.cells != line.done} == {
        "Negative": 2,
        "FT(0.5)": 2,
    }
