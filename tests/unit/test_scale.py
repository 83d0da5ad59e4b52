"""Presets in miniature: what becomes small, what stays, and that nothing takes it for the real thing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import art_fingerprint.attacks as attacks
import art_fingerprint.verifiers as verifiers
from art_fingerprint.benchmark.plan import Factory, Plan, plan_from
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.cli import BAD_INPUT, OK, main
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.experiments import ratios
from art_fingerprint.reporting.tables import SMOKE
from art_fingerprint.zoo.image_sets import IMAGE_SETS
from art_fingerprint.zoo.paper_presets import inception_v3_smoke, vit_b32_smoke
from art_fingerprint.zoo.preset import AttackSetting, Preset
from art_fingerprint.zoo.presets import PRESETS, load_preset
from art_fingerprint.zoo.scale import ATTACK_LIMITS, SAMPLES, VERIFIER_LIMITS, at_scale
from tests.tiny_preset import tiny

ATTACKS = [getattr(attacks, name) for name in attacks.__all__ if name.endswith("Attack") and name != "RemovalAttack"]
VERIFIERS = [
    getattr(verifiers, name)
    for name in verifiers.__all__
    if name.endswith("Verifier") and name not in ("Verifier", "CommitteeVerifier")
]
# Whole numbers above 4 that make no work: how often a callback is called, a verifier's largest batch, bits of a weight,
# cells of a grid, and the size of a sketch, below which it sees nothing.
FREE = {"callback_interval", "batch_size", "bits", "grid_cells", "sketch_size"}


def of(kind: str, params: Mapping[str, Any] | None = None) -> Preset:
    """The tiny preset with one attack or verifier."""
    if kind.endswith("Attack"):
        return replace(tiny(), attacks={"row": AttackSetting(kind, dict(params or {}), "train", True)})
    return replace(tiny(), verifiers={kind: dict(params or {})})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_its_rows(name: str) -> None:
    full, small = load_preset(name), load_preset(name, "smoke")
    assert (full.scale, small.scale, small.name) == ("full", "smoke", f"{name}-smoke")
    assert load_preset(name, "full") == full
    assert list(small.attacks) == list(full.attacks)
    assert list(small.verifiers) == list(full.verifiers)
    for label, setting in full.attacks.items():
        mine = small.attacks[label]
        assert (mine.attack, mine.source, mine.true_labels) == (setting.attack, setting.source, setting.true_labels)
        assert {k: v for k, v in mine.params.items() if k in setting.params and k not in ATTACK_LIMITS} == {
            k: v for k, v in setting.params.items() if k not in ATTACK_LIMITS
        }
        assert (mine.params["max_iter"], mine.params["batch_size"]) == (2, 4)
    assert small.verifiers["IPGuardVerifier"]["nb_probes"] == 8
    assert (small.victim_recipe.max_iter, small.victim_recipe.batch_size, small.nb_references) == (2, 4, 2)
    assert small.victim_recipe.learning_rate == small.negative_recipe.learning_rate == 1e-4
    assert small.victim_recipe.weight_decay == full.victim_recipe.weight_decay
    assert small.dataset == full.dataset
    assert small.dataset_options["max_samples"] == SAMPLES
    assert small.robustness.keys() == full.robustness.keys()
    assert small.robustness["PGD"]["steps"] == small.robustness["DeepFool"]["steps"] == 2
    assert at_scale(small, "smoke") == small


def test_the_least_shares_of_data_are_a_batch() -> None:
    assert int(min(ratios.RATIOS) * SAMPLES["train"] + 1e-9) >= ATTACK_LIMITS["batch_size"]
    assert max(ratios.RATIOS) * SAMPLES["train"] <= SAMPLES["apart"]


@pytest.mark.parametrize("kind", ATTACKS, ids=lambda kind: kind.__name__)
def test_every_attack_becomes_small(kind: type[attacks.RemovalAttack]) -> None:
    params = at_scale(of(kind.__name__), "smoke").attacks["row"].params
    for name, value in defaults(kind, kind.attack_params).items():
        new = params.get(name, value)
        assert new is None or name in FREE - {"batch_size"} or new <= 16, name
    if "nb_epochs" in kind.attack_params and kind is not attacks.WeightNoiseAttack:  # which does not train by itself
        assert params["max_iter"] == 2


@pytest.mark.parametrize("kind", VERIFIERS, ids=lambda kind: kind.__name__)
def test_every_verifier_becomes_small(kind: type[verifiers.Verifier]) -> None:
    params = at_scale(of(kind.__name__), "smoke").verifiers[kind.__name__]
    for name, value in defaults(kind, kind.verifier_params).items():
        new = params.get(name, value)
        assert new is None or name in FREE or new <= 16, name


def defaults(kind: type, known: list[str]) -> dict[str, int | None]:
    """Whole numbers among a class's defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                found.setdefault(name, parameter.default)
    return {name: found[name] for name in known if type(found.get(name)) is int and found[name] > 0}


def test_what_is_given_is_limited_and_what_is_smaller_stays() -> None:
    params = at_scale(of("RemovalNetAttack", {"max_iter": 1, "inner_steps": 30, "keep_best": None}), "smoke")
    assert params.attacks["row"].params == {
        **{"allow_degenerate": True, "batch_size": 4, "inner_steps": 2, "keep_best": None, "max_iter": 1},
        "learning_rate": 1e-4,
    }
    judge = at_scale(of("DeepJudgeVerifier", {"neurons": 32, "max_iter": 1}), "smoke").verifiers["DeepJudgeVerifier"]
    assert (judge["neurons"], judge["max_iter"], judge["max_tests_per_neuron"]) == (8, 1, 2)
    assert judge["multiplier"] == VERIFIER_LIMITS["multiplier"]
    row = (("WeightNoiseAttack", {"nb_epochs": 3}), ("FineTuningAttack", {}))
    first, second = at_scale(of("CompositeAttack", {"attacks": row}), "smoke").attacks["row"].params["attacks"]
    assert first == ("WeightNoiseAttack", {"batch_size": 4, "learning_rate": 1e-4, "max_iter": 2, "nb_epochs": 1})
    assert second[1]["max_iter"] == 2
    assert "max_iter" not in at_scale(of("WeightNoiseAttack"), "smoke").attacks["row"].params
    checkpoint = replace(tiny().attacks["FT(0.5)"], params={"max_iter": 100}, step=50)
    assert at_scale(replace(tiny(), attacks={"FT": checkpoint}), "smoke").attacks["FT"].step == 2


@pytest.mark.parametrize(
    ("calibration", "references"),
    [({}, 2), ({"rule": "t-mean"}, 2), ({"rule": "fpr"}, 20), ({"rule": "fpr", "false_positive_rate": 0.25}, 4)],
)
def test_as_few_references_as_the_rule_takes(calibration: dict[str, Any], references: int) -> None:
    preset = replace(tiny(), calibration=calibration, nb_references=30)
    assert at_scale(preset, "smoke").nb_references == references


@pytest.mark.parametrize(
    ("name", "made", "size"),
    [("imagenet-vit_b32", vit_b32_smoke, 64), ("gtsrb-inceptionv3", inception_v3_smoke, 75)],
)
def test_networks_that_take_minutes_are_replaced(name: str, made: Callable[[], Any], size: int) -> None:
    full = load_preset(name)
    named = replace(full, architecture=Factory(f"{full.architecture.__module__}:{full.architecture.__name__}"))
    for preset in (full, named):
        small = at_scale(preset, "smoke")
        assert small.architecture is made
        assert small.independent_architecture is None  # else ImageNet's would ask for published weights
        assert small.dataset_options["size"] == size
    with torch.random.fork_rng(), torch.no_grad():
        nb_classes = {"imagenet": 1000, "gtsrb": 43}[full.dataset]
        assert made().eval()(torch.zeros(1, 3, size, size)).shape == (1, nb_classes)
    others = set(PRESETS) - {"imagenet-vit_b32", "gtsrb-inceptionv3"}
    for other in others:
        assert load_preset(other, "smoke").architecture is load_preset(other).architecture


def test_limits_on_data_are_kept_and_own_data_sets_are_left_alone() -> None:
    for given, train in ((50, 50), ({"train": 30}, 30), ({"test": 5000}, 200)):
        preset = replace(tiny(), dataset_options={"max_samples": given})
        assert at_scale(preset, "smoke").dataset_options["max_samples"]["train"] == train
    own = replace(tiny(), dataset="my.module:load", dataset_options={"folder": "x"})
    assert at_scale(own, "smoke").dataset_options == {"folder": "x"}


def test_unknown_scales() -> None:
    for call in (lambda: load_preset("digits", "small"), lambda: at_scale(tiny(), "tiny")):
        with pytest.raises(InvalidInputError, match="`scale` must be one of"):
            call()
    with pytest.raises(InvalidInputError, match=r"victim 'digits': `scale` must be one of .* got 'small'"):
        plan_from({"victims": {"digits": {"scale": "small"}}})


def test_plans() -> None:
    plan = plan_from({"seeds": 1, "victims": {"digits": {"scale": "smoke"}, "mine": {"preset": "digits"}}})
    assert [(preset.name, preset.scale) for preset in plan.presets] == [("digits-smoke", "smoke"), ("mine", "full")]
    again = plan_from(plan.to_dict())
    assert again.to_dict() == plan.to_dict()
    both = plan.at_scale("smoke")
    assert [preset.name for preset in both.presets] == ["digits-smoke", "mine-smoke"]
    changed = plan_from({"victims": {"a": {"preset": "digits", "scale": "smoke", "attacks": ["FT(0.5)"]}}})
    assert list(changed.presets[0].attacks) == ["FT(0.5)"]


# ---------------------------------------------------------------------- a run
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits at smoke scale, by the command line."""
    folder: Path = tmp_path_factory.mktemp("smoke")
    arguments = ["bench", "--preset", "digits", "--scale", "smoke", "--out", str(folder), "--device", "cpu", "--quiet"]
    assert main(arguments) == OK
    return folder


def test_rows_say_their_scale(folder: Path) -> None:
    preset = load_preset("digits", "smoke")
    rows = read_rows(folder)
    assert len(rows) == len(preset.verifiers) * (1 + 2 + 1 + len(preset.attacks))  # one seed by default
    assert {(row["status"], row["scale"], row["preset"]) for row in rows} == {("ok", "smoke", "digits-smoke")}
    full = Workbench(replace(tiny(), name="full"), folder, (0,), "cpu")
    assert {row["scale"] for row in full.failed_rows(full.suspects[0], ["ZestVerifier"], "for this test")} == {"full"}


def test_tables_and_reports_say_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder), "--published", "CIFAR10"]) == OK
    printed = capsys.readouterr().out
    assert printed.startswith("digits (smoke, no results) (Acc: ")
    assert printed.count(SMOKE) == 4  # table, verifiers, robustness, beside the paper's numbers
    for name in ("table", "verifiers", "verdicts", "robustness", "tradeoff", "published"):
        assert SMOKE.split(":")[0] in (folder / f"{name}.md").read_text(), name
    for form in ("csv", "tex"):
        assert "digits (smoke, no results)" in (folder / f"table.{form}").read_text()
        for name in ("verifiers", "verdicts", "attacks", "published"):
            assert "(smoke, no results)" in (folder / f"{name}.{form}").read_text().split("\n\n")[0], name
    page = (folder / "report.html").read_text()
    assert SMOKE in page
    assert "<title>art_fingerprint: digits (smoke, no results)</title>" in page


def test_experiments_say_it_and_share_models_with_the_bench(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set((folder / "models").iterdir())
    arguments = ["--preset", "digits", "--scale", "smoke", "--out", str(folder), "--device", "cpu", "--quiet"]
    for name in ("table1", "table4", "fig9"):
        assert main(["experiment", name, *arguments]) == OK
        assert capsys.readouterr().out.count("SMOKE SCALE") == 1
        assert (folder / f"{name}-digits-smoke.csv").exists()
    assert set((folder / "models").iterdir()) == before
    assert (folder / "fig9-digits-smoke.png").exists()


@pytest.mark.filterwarnings("ignore:Only 0 of", "ignore:A single reference")
def test_a_plan_of_small_and_full_victims_warns(tmp_path: Path) -> None:
    """Warnings are left out of pure smoke runs only."""
    plan = Plan.from_preset(replace(tiny(), attacks={}, nb_references=1, nb_negatives=0), 1).at_scale("smoke")
    Bench(plan, tmp_path / "a", device_type="cpu", verbose=False).run()
    assert {row["status"] for row in read_rows(tmp_path / "a")} == {"ok"}
    mixed = Plan((*plan.presets, replace(plan.presets[0], name="full", scale="full", victim_seed=1)), (0,))
    with pytest.warns(UserWarning, match="has only"):
        Bench(mixed, tmp_path / "b", device_type="cpu", verbose=False).run()


@pytest.mark.parametrize("verb", [["bench"], ["experiment", "fig4"]])
def test_missing_data_is_one_message(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ART_FINGERPRINT_DATA", raising=False)
    # another test's data set is kept under the same name
    monkeypatch.setattr("art_fingerprint.benchmark.workbench.dataset", _uncached)
    arguments = [*verb, "--preset", "celeba20-densenet121", "--scale", "smoke", "--out", str(tmp_path / "out")]
    assert main(arguments) == BAD_INPUT
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert "no folder is given" in found.err
    assert "the environment variable ART_FINGERPRINT_DATA" in found.err
    assert IMAGE_SETS["celeba-20"].place.advice in found.err
    monkeypatch.setenv("ART_FINGERPRINT_DATA", str(tmp_path))
    assert main(arguments) == BAD_INPUT
    assert f"{tmp_path / 'celeba'} does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _uncached(name: str, options: str = "{}") -> Any:
    from art_fingerprint.benchmark.materials import dataset

    return dataset.__wrapped__(name, options)
