"""Every preset's pipeline from end to end at smoke scale, by the command line, on tiny files in the published formats.

Data set to table: files are found and read, victim, references and negative trained, every attack run, every verifier
extracted, calibrated and asked. Experiments run in the same folder, with the same models.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from art_fingerprint.attacks import removalnet_cost
from art_fingerprint.benchmark import materials
from art_fingerprint.benchmark.store import KEYS, read_rows
from art_fingerprint.cli import BAD_INPUT, OK, main
from art_fingerprint.experiments.catalogue import EXPERIMENTS
from art_fingerprint.reporting.tables import COLUMNS, SMOKE
from art_fingerprint.zoo.presets import PRESETS, load_preset
from tests import photo_sets

slow = pytest.mark.slow
Run = Callable[..., str]

# Folders with enough images for a batch of 2 % of the training set.
FILES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "cifar10": lambda root, patch: (photo_sets.make_cifar10(root, patch, 40), photo_sets.make_cinic10(root, 5)),
    "gtsrb": lambda root, patch: photo_sets.make_gtsrb(root, 4),
    "ham10000": lambda root, patch: (photo_sets.make_ham10000(root, 24), photo_sets.make_bcn20000(root, 4)),
    "celeba-20": lambda root, patch: (photo_sets.make_celeba(root, 240), photo_sets.make_lfw(root)),
    "celeba-31": lambda root, patch: (photo_sets.make_celeba(root, 240), photo_sets.make_vggface2(root)),
    "imagenet": lambda root, patch: photo_sets.make_imagenet(root, 1),
    "fashion-mnist": lambda root, patch: photo_sets.make_fashion_mnist(root, patch, 1600),
}


@pytest.fixture
def run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a verb on the preset that the test names; what it printed is returned. Models are deleted in the end."""
    preset = load_preset(request.param, "smoke")
    FILES[preset.dataset](tmp_path / "data", monkeypatch)
    monkeypatch.setenv("ART_FINGERPRINT_DATA", str(tmp_path / "data"))
    materials.dataset.cache_clear()  # by name, whatever the folder

    def runs(*verb: str) -> str:
        arguments = ["--preset", request.param, "--scale", "smoke", "--out", str(tmp_path / "out")]
        status = main([*verb, *arguments, "--device", "cpu", "--quiet"])
        found = capsys.readouterr()
        assert status == OK, found
        assert found.err == ""
        return found.out

    yield runs
    materials.dataset.cache_clear()
    shutil.rmtree(tmp_path / "out" / "models", ignore_errors=True)


def check(name: str, folder: Path, printed: str) -> None:
    """Check that a run of a preset has every row, each with its numbers, and that the table shows them."""
    preset = load_preset(name, "smoke")
    rows = read_rows(folder)
    suspects = [("Victim", preset.victim_seed), ("Reference", 0), ("Reference", 1), ("Negative", 0)]
    suspects += [(label, 0) for label in preset.attacks]
    assert [(row["suspect"], row["seed"]) for row in rows] == [s for s in suspects for _ in preset.verifiers]
    for row in rows:
        assert set(KEYS) <= set(row)
        assert (row["status"], row["scale"], row["preset"]) == ("ok", "smoke", f"{name}-smoke"), row["reason"]
        assert row["metrics"].keys() == set(metrics_of(preset.verifiers[row["verifier"]], row["verifier"]))
        for result in row["metrics"].values():
            assert math.isfinite(result["value"])
            assert math.isfinite(result["threshold"])
        assert isinstance(row["derived"], bool)
        assert 0 <= row["accuracy"] <= 1
        assert row["queries"] > 0
        assert row["robustness"].keys() == preset.robustness.keys()
        assert (row["cost"] is not None) is (row["role"] == "surrogate")
    victim = [row for row in rows if row["role"] == "victim"]
    assert all(row["agreement"] == 1 and row["accuracy_drop"] == 0 for row in victim)
    # Its own fingerprint has distance 0 of it, but for rounding, and no surrogate is the victim.
    values = {name: r["value"] for row in victim for name, r in row["metrics"].items() if r["direction"] == "distance"}
    assert values == pytest.approx(dict.fromkeys(values, 0.0), abs=1e-4)
    lines = printed.splitlines()
    assert lines[0].startswith(f"{preset.dataset} (smoke, no results) (Acc: ")
    table = printed[: printed.index("\nVerifiers")]
    assert [line.split()[0] for line in lines[2 : 3 + len(preset.attacks)]] == [*preset.attacks, "Negative"]
    assert SMOKE in table
    for metric, heading, _ in COLUMNS:
        assert (heading in lines[0]) is any(metric in row["metrics"] for row in rows)
    assert (folder / "report.html").exists()


def metrics_of(params: Any, verifier: str) -> tuple[str, ...]:
    names = {"ModelDiffVerifier": ("DDV",), "IPGuardVerifier": ("MR",)}
    if "metric_names" in params or verifier in names:
        return tuple(params.get("metric_names", names.get(verifier)))
    from art_fingerprint.zoo.loading import verifier_class

    return tuple(metric.name for metric in verifier_class(verifier).metrics)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("run", ["fashion-mnist"], indirect=True)
def test_fashion_mnist_and_figures(run: Run, tmp_path: Path) -> None:
    """The cheapest preset of files; Fig. 6, whose shares begin at 2 % of the attacker's data; checkpoints of Fig. 4."""
    folder = tmp_path / "out"
    check("fashion-mnist", folder, run("bench"))
    assert "SMOKE SCALE" in run("experiment", "fig6")
    lines = [line for line in table(folder / "fig6-fashion-mnist-smoke.csv") if line["model"].startswith("RemovalNet")]
    assert len(lines) == 2 * 10
    assert (folder / "fig6-fashion-mnist-smoke.png").exists()
    run("experiment", "fig4")
    curve = [line for line in table(folder / "fig4-fashion-mnist-smoke.csv") if "train" in line["model"]]
    assert [line["at"] for line in curve] == ["0", "1", "2"]
    assert curve[0]["ZEST-L2"] == "0.00"


@slow
@pytest.mark.parametrize(
    ("run", "name"),
    [(name, name) for name in ("cifar10-vgg19", "gtsrb-inceptionv3", "celeba20-densenet121", "imagenet-vit_b32")],
    indirect=["run"],
)
def test_presets_of_the_paper(run: Run, name: str, tmp_path: Path) -> None:
    check(name, tmp_path / "out", run("bench"))


@slow
@pytest.mark.parametrize("run", ["celeba31-densenet121"], indirect=True)
def test_two_attacks_of_the_other_attribute(run: Run, tmp_path: Path) -> None:
    """CelebA's two presets differ in attribute, substitute set and rates only: the rows that hang on these."""
    run("bench", "--attacks", "FT(0.5),RemovalNet(apart)")
    rows = read_rows(tmp_path / "out")
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["suspect"] for row in rows} == {"Victim", "Reference", "Negative", "FT(0.5)", "RemovalNet(apart)"}


@slow
@pytest.mark.parametrize("run", ["skin-lesion-resnet50"], indirect=True)
def test_skin_lesions_and_tables(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    check("skin-lesion-resnet50", folder, run("bench"))
    models = len(list((folder / "models").iterdir()))
    for name in ("table1", "table4", "fig9"):
        assert "SMOKE SCALE" in run("experiment", name)
    assert len(list((folder / "models").iterdir())) == models  # those of the bench
    assert [line["attack"] for line in table(folder / "table4-skin-lesion-resnet50-smoke.csv")] == [
        *("FGSM", "PGD", "DeepFool")
    ]
    maps = table(folder / "fig9-skin-lesion-resnet50-smoke.csv")
    assert [line["model"] for line in maps] == ["FT(0.5)", "RemovalNet(train)", "RemovalNet(apart)", "Negative"]


@slow
@pytest.mark.parametrize(("run", "name"), [(name, name) for name in PRESETS if name != "digits"], indirect=["run"])
def test_every_experiment_can_be_planned_for_every_preset(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attack and verifier of each plan is made around the preset's network, and there is data for all of them."""
    monkeypatch.setattr(removalnet_cost, "measured_tail", lambda attack: (1.0, False))  # it takes most of the time
    for experiment in EXPERIMENTS:
        printed = run("experiment", experiment, "--dry-run")
        assert "Nothing was run." in printed
        assert "will fail" not in printed, (name, experiment)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "celeba" / "list_attr_celeba.txt").write_bytes(b""), "list_attr_celeba.txt, line 2"),
        (
            lambda root: (root / "celeba" / "img_align_celeba" / "000005.jpg").write_bytes(b"\xff\xd8"),
            "img_align_celeba/000005.jpg cannot be read as an image",
        ),
        (lambda root: shutil.rmtree(root / "lfw-py"), "LFW: "),
        (
            lambda root: Image.new("I;16", (44, 54)).save(root / "celeba" / "img_align_celeba" / "000005.jpg", "PNG"),
            "img_align_celeba/000005.jpg cannot be read as an image (ValueError: its mode is I",
        ),
        (
            lambda root: [shutil.rmtree(path) for path in sorted((root / "lfw-py" / "lfw_funneled").glob("*/"))],
            "lfw_funneled has no folders, one for each person",
        ),
    ],
    ids=["empty label file", "truncated image", "no substitute set", "deep image", "empty folder"],
)
def test_bad_files_are_one_message_of_the_command_line(
    damage: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """More kinds of damage, file by file: tests/unit/test_data_damage.py."""
    root = tmp_path / "data"
    photo_sets.make_celeba(root, 20)
    photo_sets.make_lfw(root)
    damage(root)
    monkeypatch.setenv("ART_FINGERPRINT_DATA", str(root))
    materials.dataset.cache_clear()
    out = tmp_path / "out"
    assert main(["bench", "--preset", "celeba20-densenet121", "--scale", "smoke", "--out", str(out)]) == BAD_INPUT
    found = capsys.readouterr()
    assert found.err.count("\n") == 1
    assert message in found.err
    assert not out.exists()
