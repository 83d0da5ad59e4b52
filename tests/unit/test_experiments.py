"""Every experiment on a preset of seconds: its plan, its tables from rows, its figure; and the arithmetic by hand."""

from __future__ import annotations

import csv
import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_fingerprint import verifiers
from art_fingerprint.attacks.removalnet import RemovalNetAttack
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.cli import BAD_INPUT, OK, main
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.experiments import ablation, catalogue, insides, learning, ratios, stealing
from art_fingerprint.experiments.catalogue import EXPERIMENTS, experiment, run_experiment
from art_fingerprint.experiments.experiment import (
    Model,
    base_label,
    checkpoints,
    failures,
    models_of,
    removal_rows,
    scaled,
)
from art_fingerprint.reporting.figures import colour_of, marker_of
from art_fingerprint.zoo import presets
from art_fingerprint.zoo.preset import AttackSetting, Preset
from art_fingerprint.zoo.presets import load_preset
from tests.tiny_preset import tiny

SEEDS = (0, 1)


def short() -> Preset:
    """The tiny preset with ten steps of RemovalNet, and a second row of it on a subset."""
    base = tiny()
    setting = base.attacks["RemovalNet(apart)"]
    setting = replace(setting, params={**setting.params, "max_iter": 10, "learning_rate": 2e-2, "batch_size": 20})
    rows = {"RemovalNet(train)": replace(setting, source="subset"), "RemovalNet(apart)": setting}
    return replace(base, attacks={"FT(0.5)": base.attacks["FT(0.5)"], **rows})


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all experiments, which share victim, references and negatives."""
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer points, checkpoints and images than the paper's."""
    monkeypatch.setattr(ratios, "RATIOS", (0.04, 0.2))
    monkeypatch.setattr(stealing, "NB_CHECKPOINTS", 4)
    monkeypatch.setattr(ablation, "MULTIPLES", (0.0, 1.0))
    monkeypatch.setattr(learning, "NB_CHECKPOINTS", 3)
    monkeypatch.setattr(insides, "PER_CLASS", 4)


def run(name: str, folder: Path, preset: Preset | None = None) -> list[dict[str, str]]:
    """Run an experiment and return its main table; the figure, where there is one, must have been written."""
    paths, whole = run_experiment(name, preset or short(), folder, SEEDS, device_type="cpu", verbose=False)
    assert whole
    stem = f"{name}-tiny"
    assert {path.name for path in paths} >= {f"{stem}.md", f"{stem}.csv"}
    pictures = [path for path in paths if path.suffix == ".png"]
    if pictures:
        assert pictures[0].read_bytes().startswith(b"\x89PNG")
    return table(folder / f"{stem}.csv")


ATTACK: dict[str, Any] = {"attack": "A", "attack_params": {}}


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(folder) if row["preset"] == f"tiny {name}"]


# ---------------------------------------------------------------------- the experiments
def test_fig4_follows_the_iterations(folder: Path) -> None:
    found = run("fig4", folder)
    assert (folder / "fig4-tiny.png").exists()
    own = [line for line in found if line["model"] == "RemovalNet(train)"]
    assert [line["at"] for line in own] == ["0", "5", "10"]
    victim = next(line for line in found if line["model"] == "Victim")
    assert own[0]["accuracy %"] == f"{victim['accuracy %']}±0.00"
    assert own[0]["ZEST-L2"] == "0.00±0.00"
    assert float(own[-1]["ZEST-L2"].partition("±")[0]) > 0
    rows = [r for r in rows_of(folder, "fig4") if r["suspect"] == "RemovalNet(train)@10"]
    accuracies = {r["seed"]: 100 * r["accuracy"] for r in rows}
    assert own[-1]["accuracy %"].startswith(f"{np.mean(list(accuracies.values())):.2f}±")
    assert any(line["model"] == "Negative" and line["at"] == "-" for line in found)


def test_a_second_run_repeats_nothing_and_models_are_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run("fig4", folder)
    size = len(read_rows(folder))
    monkeypatch.setattr(Workbench, "_make", None)  # any model that is made now fails
    assert run("fig4", folder) == first
    assert len(read_rows(folder)) == size
    other, whole = run_experiment("table3", short(), folder, SEEDS, device_type="cpu", verbose=False)
    assert whole
    assert "4,782" in other[0].read_text(encoding="utf-8")


def test_fig6_takes_shares_of_each_source(folder: Path) -> None:
    found = run("fig6", folder)
    assert [line["at"] for line in found if line["model"] == "RemovalNet(apart)"] == ["0.04", "0.2"]
    plan = ratios.plan(short(), SEEDS)
    for setting in plan.presets[0].attacks.values():
        assert setting.params["subset_ratio"] == setting.ratio
    samples = {r["suspect"]: r["cost"]["samples"] for r in rows_of(folder, "fig6") if r["cost"]}
    assert samples["RemovalNet(train)@0.2"] == 200 == 5 * samples["RemovalNet(train)@0.04"]
    assert samples["RemovalNet(apart)@0.2"] == 87  # of 437
    assert samples["RemovalNet(apart)@0.04"] == 17


def test_fig7_compares_costs(folder: Path) -> None:
    found = run("fig7", folder)
    assert [line["data"] for line in found] == ["RemovalNet(train)", "RemovalNet(apart)"]
    curve = table(folder / "fig7-tiny-curves.csv")
    assert [line["iterations"] for line in curve[:5]] == ["0.00", "25.00", "50.00", "75.00", "100"]
    rows = rows_of(folder, "fig7")
    passes = [r["cost"]["forward_equivalents"] for r in rows if r["suspect"] == "RemovalNet(train)"]
    assert found[0]["RemovalNet forward-equivalents"] == f"{np.mean(passes):,.0f}"
    assert {r["attack"] for r in rows if "@" in r["suspect"]} == {"KnockoffNetsAttack"}


def test_fig7_gives_both_the_same_conditions() -> None:
    """At smoke scale a victim may see one class in all images; neither attack is refused for that."""
    settings = stealing.plan(load_preset("celeba20-densenet121", "smoke"), SEEDS).presets[0].attacks
    for name in ("batch_size", "hflip", "allow_degenerate"):
        assert len({setting.params.get(name) for setting in settings.values()}) == 1, name
    assert all(setting.params["allow_degenerate"] for setting in settings.values())


def test_fig8_sweeps_each_weight(folder: Path) -> None:
    found = run("fig8", folder)
    swept = [(line["model"], line["at"]) for line in found if line["at"] != "-"]
    assert swept == [(w, v) for w, top in (("gamma", "0.6"), ("alpha", "0.2"), ("beta", "2.0")) for v in ("0.0", top)]
    settings = ablation.plan(short(), SEEDS).presets[0].attacks
    assert settings["alpha@0.2"].params["gamma"] == 0.8
    assert settings["gamma@0.6"].params == settings["beta@2.0"].params
    assert {setting.source for setting in settings.values()} == {"subset"}


@pytest.mark.parametrize(
    ("name", "rate"),
    [("digits", 0.03), ("fashion-mnist", 0.012), ("cifar10-vgg19", 0.03), ("gtsrb-inceptionv3", 0.03), ("tiny", 0.06)],
)
def test_fig8_takes_the_rate_of_the_paper_or_one_that_the_network_can_bear(name: str, rate: float) -> None:
    preset = short() if name == "tiny" else load_preset(name)
    settings = ablation.plan(preset, SEEDS).presets[0].attacks
    assert {setting.params["learning_rate"] for setting in settings.values()} == {rate}


def test_fig8_knows_the_rate_of_a_row_that_names_none() -> None:
    preset = short()
    row = preset.attacks["RemovalNet(train)"]
    bare = replace(row, params={k: v for k, v in row.params.items() if k != "learning_rate"})
    settings = ablation.plan(replace(preset, attacks={"R": bare}), SEEDS).presets[0].attacks
    default = inspect.signature(RemovalNetAttack).parameters["learning_rate"].default
    assert {setting.params["learning_rate"] for setting in settings.values()} == {round(3 * default, 9)}


@pytest.mark.parametrize("name", ["table1", "table4", "fig4"])
def test_tables_do_not_depend_on_the_order_in_which_workers_end(name: str, folder: Path) -> None:
    run(name, folder)
    before = (folder / f"{name}-tiny.md").read_text(encoding="utf-8")
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    newest = {(r["preset"], r["suspect"], r["seed"], r["verifier"]): json.dumps(r) for r in map(json.loads, lines)}
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in reversed(newest.values())), encoding="utf-8")
    run(name, folder)
    assert (folder / f"{name}-tiny.md").read_text(encoding="utf-8") == before


def test_fig9_compares_maps(folder: Path) -> None:
    found = {line["model"]: line for line in run("fig9", folder)}
    assert list(found) == ["FT(0.5)", "RemovalNet(train)", "RemovalNet(apart)", "Negative"]
    distance = {name: float(line["mean |CAM difference|"].partition("±")[0]) for name, line in found.items()}
    assert 0 < distance["FT(0.5)"] < distance["RemovalNet(train)"] < 1
    assert "at block2" in (folder / "fig9-tiny.md").read_text(encoding="utf-8")


def test_fig10_embeds_checkpoints(folder: Path) -> None:
    found = run("fig10", folder, replace(short(), attacks={"R": short().attacks["RemovalNet(apart)"]}))
    assert [line["model"] for line in found] == ["R@0", "R@1", "R@5", "R@10"]
    distance = [float(line["mean L1 distance of probabilities"].partition("±")[0]) for line in found]
    assert distance[0] == 0
    assert distance[-1] > distance[1] > 0


def test_tables(folder: Path) -> None:
    first = run("table1", folder)
    assert [next(iter(line.values())) for line in first][-2:] == ["Negative", "threshold"]
    fourth = run("table4", folder)
    assert [line["attack"] for line in fourth] == ["FGSM", "PGD", "DeepFool"]


def test_rows_of_other_settings_are_left_out(folder: Path) -> None:
    """A run with one seed reads one seed, though the folder has rows of two."""
    run("fig9", folder)
    run_experiment("fig9", short(), folder, (1,), device_type="cpu", verbose=False)
    assert {line["seeds"] for line in table(folder / "fig9-tiny.csv")} == {"1"}


# ---------------------------------------------------------------------- by hand
def model(label: str, accuracy: float, step_cost: float = 1.0, seed: int = 0, **metrics: float) -> Model:
    return Model(label, "surrogate", seed, accuracy, metrics, passes=100 * step_cost, seconds=step_cost)


def test_scaling_turns_similarities_round() -> None:
    models = [model("a", 90, LOD=2.0, MR=1.0), model("b", 80, LOD=6.0, MR=0.0), model("c", 70, LOD=3.0), model("d", 1)]
    assert scaled(models, "LOD", "distance") == {("a", 0): 0, ("b", 0): 1, ("c", 0): 0.25}
    assert scaled(models, "MR", "similarity") == {("a", 0): 0, ("b", 0): 1}
    assert scaled(models, "MR", None) == {("a", 0): 1, ("b", 0): 0}
    assert scaled(models, "DDV", "distance") == {}
    assert scaled(models[:1], "LOD", "distance") == {("a", 0): 0}
    assert scaled(models[:1], "MR", "similarity") == {("a", 0): 0}  # as near to the victim as any


def contest(knock: list[float]) -> stealing.Contest:
    setting = AttackSetting("RemovalNetAttack", {"max_iter": 10}, "apart", False)
    steps = checkpoints("KnockoffNets(x)", replace(setting, attack="KnockoffNetsAttack"), (0, 50, 100))
    models = [model("RemovalNet(x)", 80, 2, 0), model("RemovalNet(x)", 82, 4, 1)]
    for (label, found), accuracy in zip(steps.items(), knock, strict=True):
        assert found.step is not None
        models += [model(label, accuracy, found.step / 5, seed) for seed in (0, 1)]
    (only,) = stealing.contests(models, {"RemovalNet(x)": 10}, {name: found.step or 0 for name, found in steps.items()})
    return only


def test_the_saving_is_that_at_the_first_equal_checkpoint() -> None:
    found = contest([10, 81, 90])
    assert found.accuracy == (80, 82)
    assert found.caught_up == 50
    assert found.cost == (10, 300, 3)
    assert found.curve_cost[50] == (50, 1000, 10)
    assert [found.saving(unit) for unit in range(3)] == pytest.approx([0.8, 0.7, 0.7])
    assert "80%" in stealing.cells([found])[1]


def test_seeds_that_one_side_lacks_are_left_out() -> None:
    models = [model("RemovalNet(x)", 95, seed=0), model("RemovalNet(x)", 50, seed=1)]
    models += [model(f"KnockoffNets(x)@{step}", accuracy, seed=0) for step, accuracy in ((0, 10), (50, 80))]
    (found,) = stealing.contests(models, {"RemovalNet(x)": 10}, {"KnockoffNets(x)@0": 0, "KnockoffNets(x)@50": 50})
    assert found.accuracy == (95,)
    assert found.caught_up is None


def test_a_rival_that_never_catches_up_gives_a_bound() -> None:
    found = contest([10, 50, 80.9])
    assert found.caught_up is None
    assert found.saving(0) == pytest.approx(0.9)
    line = stealing.cells([found])[1]
    assert "never" in line
    assert "> 90%" in line


@pytest.mark.parametrize("missing", ["KnockoffNets", "RemovalNet"])
def test_without_both_nothing_is_compared(missing: str) -> None:
    """A transformer without fresh weights, a RemovalNet that diverged: neither "never" nor a saving."""
    models = [model("RemovalNet(x)", 80, 2), model("KnockoffNets(x)@0", 10, 0), model("KnockoffNets(x)@50", 70, 2)]
    left = [each for each in models if not each.label.startswith(missing)]
    (found,) = stealing.contests(left, {"RemovalNet(x)": 10}, {"KnockoffNets(x)@0": 0, "KnockoffNets(x)@50": 50})
    assert found.caught_up is None
    assert [found.saving(unit) for unit in range(3)] == [None] * 3
    line = dict(zip(*stealing.cells([found]), strict=True))
    assert line["caught up at iteration"] == "-"
    assert {line[name] for name in line if name.startswith("saving")} == {"-"}
    assert line[{"RemovalNet": "RemovalNet accuracy %"}.get(missing, "KnockoffNets at its end %")] == "-"
    assert line["KnockoffNets iterations"] == {"RemovalNet": "50.00"}.get(missing, "-")


KNOWN = {"LOD": "distance", "MR": "similarity"}


def curves(*rows: str) -> tuple[list[Model], dict[str, float]]:
    """Return a victim and models at two places of some rows, the first of which has none."""
    places = {f"{row}@{place}": place for row in rows for place in (0.1, 0.2)}
    left = {label: place for label, place in places.items() if not label.startswith(rows[0])}
    made = [model(label, 90 - place, seed=seed, LOD=place, MR=1.0) for label, place in left.items() for seed in (0, 1)]
    return made, places


def names_in(figure: Any) -> set[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    legends += [legend for part in figure.subfigs for legend in part.legends]
    return {text.get_text() for legend in legends if legend is not None for text in legend.get_texts()}


def test_the_legend_is_there_though_the_first_curve_failed() -> None:
    models, places = curves("R(a)", "R(b)")
    assert set(KNOWN) <= names_in(ratios.draw(models, KNOWN, places))
    assert set(KNOWN) <= names_in(learning.draw(models, KNOWN, places, {}))
    models, places = curves("gamma", "alpha", "beta")
    assert set(KNOWN) <= names_in(ablation.draw(models, KNOWN, places))


def test_a_curve_is_drawn_through_models_that_have_the_metric() -> None:
    models = [model("R@1", 90, seed=0, LOD=1.0), model("R@1", 50, seed=1), model("R@2", 80, LOD=2.0)]
    figure = learning.draw(models, KNOWN, {"R@1": 1.0, "R@2": 2.0}, {})
    panel = next(axes for axes in figure.axes if "LOD" in axes.get_xlabel())
    (path,) = (line for line in panel.lines if line.get_gid() == "R")
    assert path.get_xydata().tolist() == [[1, 90], [2, 80]]
    assert "Negative" not in names_in(figure)


def test_metrics_that_find_no_room_are_named() -> None:
    known = {f"M{k}": "distance" for k in range(14)}
    models = [model("R@1", 90, **{name: 1.0 for name in known})]
    text = learning.draw(models, known, {"R@1": 1.0}, {}).get_supxlabel()
    assert text.endswith("Not drawn: M12, M13.")


def test_bars_are_not_told_apart_by_colour_alone() -> None:
    models, places = curves("gamma", "alpha", "beta")
    models = [replace(each, metrics={**each.metrics, "LAD": 1.0}) for each in models]
    figure = ablation.draw(models, {**KNOWN, "LAD": "distance"}, places)
    found = [{bar.get_gid(): bar.get_hatch() or None for bar in axes.patches} for axes in figure.axes]
    assert {None, "////"} in [set(hatches.values()) for hatches in found]


def test_table4_needs_evasion_attacks() -> None:
    with pytest.raises(InvalidInputError, match="Table IV needs evasion attacks"):
        catalogue.EXPERIMENTS["table4"].plan(replace(short(), robustness={}), SEEDS)


def test_every_metric_has_a_look_of_its_own() -> None:
    kinds = [getattr(verifiers, name) for name in verifiers.__all__ if name.endswith("Verifier")]
    names = {metric.name for kind in kinds for metric in getattr(kind, "metrics", ())}
    names |= {"ZEST-L1", "ZEST-L2", "ZEST-cosine", "ZEST-Linf", "RobD-FGSM", "RobD-PGD", "RobD-DeepFool"}
    assert len({(colour_of(name), marker_of(name)) for name in names}) == len(names)


def test_places_of_a_curve_are_in_order_whatever_finished_first() -> None:
    labels = ["Victim", "R(a)@0.08", "R(a)@0.06", "R(b)@0.1", "R(a)@0.1", "R(b)@0.02", "FT(0.5)"]
    models = [model(label, 90, LOD=1.0) for label in labels]
    cells = learning.metric_cells(models, {"LOD": "distance"}, {n: float(n[5:]) for n in labels if "@" in n})
    assert [line[:2] for line in cells[1:]] == [
        ["Victim", "-"],
        *(["R(a)", "0.06"], ["R(a)", "0.08"], ["R(a)", "0.1"]),
        *(["R(b)", "0.02"], ["R(b)", "0.1"]),
        ["FT(0.5)", "-"],
    ]


def test_models_hold_all_rows_of_a_suspect() -> None:
    base = {"preset": "p", "victim": "v", "role": "surrogate", "seed": 0, "attack_seconds": 2.0, "cost": None}
    base |= ATTACK
    results = [("A", "LOD", 1.0), ("B", "MR", None)]
    rows = [
        {**base, "suspect": "x@3", "verifier": v, "accuracy": 0.5, "status": "ok", "metrics": {m: {"value": value}}}
        for v, m, value in results
    ]
    rows.append({**base, "suspect": "gone", "verifier": "A", "accuracy": None, "status": "failed", "metrics": {}})
    assert models_of(rows) == [Model("x@3", "surrogate", 0, 50.0, {"LOD": 1.0}, None, 2.0)]
    assert base_label("RemovalNet(a@b)@30") == "RemovalNet(a@b)"
    assert base_label("FT(0.5)") == "FT(0.5)"


def test_seeds_without_a_result_are_named() -> None:
    row: dict[str, Any] = {"preset": "p", "victim": "v", "suspect": "beta@4.0", "status": "ok", "reason": ""} | ATTACK
    rows = [
        {**row, "seed": seed, "verifier": verifier, **changes}
        for seed, verifier, changes in (
            (0, "A", {"status": "failed", "reason": "diverged\nat 3"}),
            (0, "B", {"status": "failed", "reason": "diverged\nat 3"}),
            (1, "A", {"status": "skipped", "reason": "other architecture"}),
            (1, "B", {"status": "failed", "reason": "it was lost"}),
            (2, "A", {"status": "failed", "reason": "tried again since"}),
            (2, "A", {}),
            (2, "B", {}),
        )
    ]
    assert failures(rows) == (
        "beta@4.0: no result for 1 of 3 seeds; numbers are of the others. Seed 0: diverged at 3",
        "beta@4.0: no result of B for 1 of 3 seeds; numbers are of the others. Seed 1: it was lost",
    )


def test_places_of_a_curve_that_fail_alike_share_a_sentence() -> None:
    row: dict[str, Any] = {"preset": "p", "victim": "v", "verifier": "A", "seed": 0, "status": "failed"} | ATTACK
    rows = [{**row, "suspect": f"K(x)@{step}", "reason": "no fresh weights"} for step in (0, 5, 10, 15)]
    rows += [{**row, "suspect": f"K(y)@{step}", "reason": "no fresh weights"} for step in (0, 5)]
    rows += [{**row, "suspect": "K(y)@10", "reason": "another"}, {**row, "suspect": "alone", "reason": "another"}]
    assert failures(rows) == (
        "K(x)@0 to @15 (4 rows): no result. Seed 0: no fresh weights",
        "K(y)@0, @5: no result. Seed 0: no fresh weights",
        "K(y)@10: no result. Seed 0: another",
        "alone: no result. Seed 0: another",
    )
    assert failures([rows[2], rows[0], rows[3], rows[1]])[0].startswith("K(x)@0 to @15 (4 rows)")


def test_some_of_each_class() -> None:
    labels = np.array([0, 1, 0, 0, 2, 1, 0])
    found = insides.some_of_each(labels, 2)
    assert sorted(labels[found].tolist()) == [0, 0, 1, 1, 2]
    assert (np.diff(found) > 0).all()


def test_a_colour_belongs_to_a_name() -> None:
    assert colour_of("RemovalNet(train)") != colour_of("RemovalNet(apart)")
    assert colour_of("Some attack") == colour_of("Some attack")
    metrics = ("LOD", "LAD", "ZEST-L2", "ZEST-cosine", "DDV", "MR")
    assert len({colour_of(name) for name in metrics}) == len({marker_of(name) for name in metrics}) == 6


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_has_every_plan(name: str) -> None:
    preset = load_preset(name)
    for known in EXPERIMENTS.values():
        plan = known.plan(preset, SEEDS)
        assert plan.seeds == SEEDS
        assert plan.presets[0].verifiers
    assert all("keep_best" not in setting.params for setting in removal_rows(preset).values())


def test_presets_without_removalnet_are_refused() -> None:
    bare = replace(short(), attacks={"FT(0.5)": short().attacks["FT(0.5)"]})
    for name in ("table4", "fig4", "fig6", "fig7", "fig8", "fig9", "fig10"):
        with pytest.raises(InvalidInputError, match="RemovalNetAttack"):
            EXPERIMENTS[name].plan(bare, SEEDS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="fig4"):
        experiment("fig44")


# ---------------------------------------------------------------------- command line
def test_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", short)
    arguments = ["experiment", "fig9", "--preset", "tiny", "--out", str(folder), "--seeds", "2", "--device", "cpu"]
    assert main([*arguments, "--quiet"]) == OK
    printed = capsys.readouterr().out
    assert "RemovalNet(train)" in printed
    assert str(folder / "fig9-tiny.png") in printed
    assert main(["list", "experiments"]) == OK
    assert set(EXPERIMENTS) == {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert main(["experiment", "fig99", "--out", str(folder)]) == BAD_INPUT
    assert "There is no experiment" in capsys.readouterr().err


def test_tables_are_written_without_matplotlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    paths, _ = run_experiment("fig9", short(), folder, SEEDS, device_type="cpu", verbose=False)
    assert {path.suffix for path in paths} == {".md", ".csv"}


def test_the_catalogue_has_what_the_paper_has() -> None:
    assert list(catalogue.EXPERIMENTS) == [f"table{n}" for n in range(1, 5)] + [f"fig{n}" for n in range(4, 11)]
