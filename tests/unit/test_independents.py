"""Independent models of other data and architectures, known models, and harder images, in a bench."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_fingerprint.benchmark import estimate, independents
from art_fingerprint.benchmark.materials import nb_owners_images, noisy, owners_data
from art_fingerprint.benchmark.plan import Plan, plan_from
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.benchmark.suspects import Suspect
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.experiments.catalogue import bench_of
from art_fingerprint.verifiers import (
    AKHVerifier,
    DatasetInferenceVerifier,
    FBIVerifier,
    IPGuardVerifier,
    WeightAlignmentVerifier,
)
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.zoo import presets
from art_fingerprint.zoo.dataset import halves
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.loading import verifier_class
from art_fingerprint.zoo.preset import NEGATIVES
from art_fingerprint.zoo.presets import AttackSetting, Preset
from art_fingerprint.zoo.scale import at_scale
from tests.tiny_preset import tiny

Row = dict[str, Any]
LABELS = {
    **{"Victim": 1, "Reference": 2, "Reference (other data)": 2, "Known": 2, "Negative": 2},
    **{"Negative (other data)": 2, "Negative (other architecture)": 1, "FT(0.5)": 2},
}


def all_kinds() -> Preset:
    """The tiny preset with models of every kind."""
    preset = tiny()
    return replace(
        preset,
        attacks={"FT(0.5)": preset.attacks["FT(0.5)"]},
        verifiers={
            "IPGuardVerifier": preset.verifiers["IPGuardVerifier"],
            "WeightAlignmentVerifier": {"layers": ["block2", "block3"]},
            "AKHVerifier": {"nb_probes": 20, "min_errors": 1, "min_right": 0.0},
            "DatasetInferenceVerifier": {"nb_fit": 20, "nb_test": 10, "nb_draws": 1, "max_steps": 3, "nb_epochs": 10},
        },
        negatives={"same-data": 2, "other-data": 2, "other-architecture": 1},
        other_architecture="tests.bench_plugins:narrower",
        nb_other_data_references=2,
        nb_known=2,
        held_out_noise={"copies": 1, "std": 0.3},
        robustness={},
    )


def workbench(preset: Preset, folder: Path) -> Workbench:
    return Workbench(preset, folder, (0, 1), "cpu")


def bench(preset: Preset, folder: Path) -> Bench:
    return Bench(Plan.from_preset(preset, 2), folder, device_type="cpu", verbose=False)


def test_dataset_inference_needs_references_of_other_data(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="DatasetInferenceVerifier: it asks whether .*nb_other_data_references"):
        bench(replace(all_kinds(), nb_other_data_references=0), tmp_path).run()


def test_extraction_is_estimated_by_what_is_extracted_from(tmp_path: Path) -> None:
    preset = all_kinds()
    made = workbench(preset, tmp_path)
    for name in preset.verifiers:
        kind = verifier_class(name)
        assert nb_owners_images(made.data, kind, preset) == len(owners_data(made.data, kind, preset)[0])
    images = 2 * len(made.data.x_test)
    judge = made.judge("AKHVerifier")
    expected = judge.expected_extraction_passes(images)
    assert expected is not None
    passes = {line.what: line.passes for line in estimate.lines(made, (), ())}["fingerprint AKHVerifier"]
    assert passes == expected + preset.nb_known * images + preset.nb_references * 20


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    bench(all_kinds(), folder).run()
    return folder


# ---------------------------------------------------------------------- data
def test_halves_share_no_image_and_have_the_classes_of_the_whole() -> None:
    data = load_digits()
    first, second = halves(data)
    images = [{row.tobytes() for row in part.x_train} for part in (first, second)]
    assert len(first.y_train) == len(second.y_train) == 500
    assert len(images[0]) == len(images[1]) == 500
    assert images[0].isdisjoint(images[1])
    assert images[0] | images[1] == {row.tobytes() for row in data.x_train}
    counts = [np.bincount(part.y_train, minlength=10) for part in (first, second)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    for part in (first, second):
        lookup = {row.tobytes(): label for row, label in zip(data.x_train, data.y_train, strict=True)}
        assert [lookup[row.tobytes()] for row in part.x_train] == part.y_train.tolist()
        assert part.x_test is data.x_test
        assert part.x_apart is data.x_apart
    assert [part.digest for part in halves(data)] == [first.digest, second.digest]
    assert len({data.digest, first.digest, second.digest}) == 3
    with pytest.raises(InvalidInputError, match="1 training images of 'digits' cannot be halved"):
        halves(replace(data, x_train=data.x_train[:1], y_train=data.y_train[:1]))


def test_noisy_copies_stand_behind_the_images() -> None:
    data = load_digits()
    x, y = noisy(data.x_test, data.y_test, 3, 0.2, 5)
    assert x.shape == (4 * 360, 1, 8, 8)
    assert x.dtype == np.float32
    assert (y == np.tile(data.y_test, 4)).all()
    assert (x[:360] == data.x_test).all()
    assert (x.min(), x.max()) == (0, 1)
    inner = (data.x_test > 0.4) & (data.x_test < 0.6)
    noise = np.concatenate([(x[k * 360 : (k + 1) * 360] - data.x_test)[inner] for k in (1, 2, 3)])
    assert noise.std() == pytest.approx(0.2, rel=0.05)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert (noisy(data.x_test, data.y_test, 3, 0.2, 5)[0] == x).all()
    assert not (noisy(data.x_test, data.y_test, 3, 0.2, 6)[0][360:] == x[360:]).all()


def test_only_verifiers_of_errors_get_noisy_images() -> None:
    data, preset = load_digits(), all_kinds()
    assert len(owners_data(data, AKHVerifier, preset)[0]) == 720
    assert len(owners_data(data, AKHVerifier, replace(preset, held_out_noise={}))[0]) == 360
    assert owners_data(data, IPGuardVerifier, preset)[0] is data.x_train
    assert owners_data(data, DatasetInferenceVerifier, preset)[2] is data.x_test


# ---------------------------------------------------------------------- what there is
def test_models_of_every_kind_are_listed_and_differ(tmp_path: Path) -> None:
    made = workbench(all_kinds(), tmp_path)
    assert Counter(suspect.label for suspect in made.suspects) == LABELS
    assert len({suspect.key for suspect in made.suspects}) == sum(LABELS.values())
    roles = {suspect.label: suspect.role for suspect in made.suspects}
    assert {label for label, role in roles.items() if role == "negative"} == {
        *("Negative", "Negative (other data)", "Negative (other architecture)")
    }
    assert {label for label, role in roles.items() if role == "reference"} == {
        *("Reference", "Reference (other data)", "Known")
    }


def test_plans_without_kinds_are_as_before(tmp_path: Path) -> None:
    """The digests of rows and models that earlier versions wrote."""
    plain, counted = workbench(tiny(), tmp_path), workbench(replace(tiny(), negatives={"same-data": 2}), tmp_path)
    assert [s.key for s in plain.suspects] == [s.key for s in counted.suspects]
    assert [plain.cell(s, "ZestVerifier") for s in plain.suspects] == [
        counted.cell(s, "ZestVerifier") for s in counted.suspects
    ]
    assert len(plain.data.x_train) == 1000
    assert len([s for s in workbench(replace(tiny(), negatives={}), tmp_path).suspects if s.role == "negative"]) == 0


def test_each_setting_changes_what_hangs_on_it(tmp_path: Path) -> None:
    base = workbench(all_kinds(), tmp_path)
    keys = {(s.label, s.seed): s.key for s in base.suspects}
    prints = {name: base.fingerprint_key(name) for name in base.preset.verifiers}

    def changed(**options: Any) -> tuple[set[str], set[str]]:
        other = workbench(replace(all_kinds(), **options), tmp_path)
        models = {s.label for s in other.suspects if (s.label, s.seed) in keys and keys[s.label, s.seed] != s.key}
        return models, {name for name in prints if other.fingerprint_key(name) != prints[name]}

    assert changed(other_architecture="tests.bench_plugins:narrow") == ({"Negative (other architecture)"}, set())
    assert changed(held_out_noise={"copies": 1, "std": 0.2}) == (set(), {"AKHVerifier"})
    assert changed(nb_known=3) == (set(), {"AKHVerifier"})
    assert changed(nb_other_data_references=3) == (set(), {"DatasetInferenceVerifier"})
    assert changed(negatives={"same-data": 1, "other-data": 5}) == (set(), set())
    assert changed(negatives={}, nb_other_data_references=0)[1] == set(prints)  # nothing is halved: another victim


def test_a_model_that_cannot_be_made_concerns_those_who_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = independents.Independents.train

    def without_known(self: independents.Independents, suspect: Suspect) -> Any:
        if suspect.label == "Known":
            raise RuntimeError("out of memory")
        return train(self, suspect)

    monkeypatch.setattr(independents.Independents, "train", without_known)
    bench(all_kinds(), tmp_path).run()
    found = {(row["suspect"], row["verifier"]): row for row in read_rows(tmp_path) if row["suspect"] != "Known"}
    assert {verifier for (_, verifier), row in found.items() if row["status"] == "failed"} == {"AKHVerifier"}
    assert "Known 0 could not be made: RuntimeError: out of memory" in found["Victim", "AKHVerifier"]["reason"]


def test_counted_kinds_run_in_miniature_and_in_experiments(tmp_path: Path) -> None:
    """The victim stays what it is: the half that is trained on does not depend on whether negatives are wanted."""
    lesser = at_scale(all_kinds(), "smoke")
    assert (lesser.negatives, lesser.nb_negatives, lesser.nb_known) == (dict.fromkeys(NEGATIVES, 1), None, 1)
    assert lesser.halved
    bench(lesser, tmp_path / "smoke")
    row = AttackSetting("RemovalNetAttack", {"layer": "block2", "max_iter": 10, "hflip": False}, "apart", False)
    alone = {"negatives": {"other-data": 3}, "nb_other_data_references": 0}
    for changes in ({}, alone, {"negatives": {"same-data": 4}, "nb_other_data_references": 0}):
        preset = replace(all_kinds(), attacks={"RemovalNet": row}, **changes)
        wanted = workbench(preset, tmp_path).victim_key
        for name in ("table3", "fig7", "fig10"):
            made = next(iter(bench_of(name, preset, tmp_path, (0,), device_type="cpu").benches.values()))
            assert made.victim_key == wanted
            assert sum(suspect.role == "negative" for suspect in made.suspects) <= 1


def test_who_is_given_what(tmp_path: Path) -> None:
    given, none = workbench(all_kinds(), tmp_path).independents, workbench(tiny(), tmp_path).independents
    assert given.references_of(DatasetInferenceVerifier) == "Reference (other data)"
    assert none.references_of(DatasetInferenceVerifier) == "Reference"
    for kind in (IPGuardVerifier, AKHVerifier, WeightAlignmentVerifier):
        assert given.references_of(kind) == "Reference"
    assert (given.known_of(AKHVerifier), given.known_of(FBIVerifier), given.known_of(IPGuardVerifier)) == (
        *("Known", "Known", None),
    )
    assert none.known_of(AKHVerifier) is None


def test_halves_reach_victim_attacks_and_models_of_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = workbench(all_kinds(), tmp_path)
    own, other = halves(load_digits())
    assert made.data.digest == own.digest
    seen: dict[str, str] = {}
    for name in ("train_victim", "train_negative"):
        monkeypatch.setattr(
            independents, name, lambda make, data, recipe, seed, device: seen.setdefault("", data.digest)
        )
    for suspect in made.independents.suspects():
        seen.clear()
        made.independents.train(suspect)
        assert seen[""] == (other if "other data" in suspect.label else own).digest, suspect.label


# ---------------------------------------------------------------------- a run
def test_every_kind_is_judged(finished: Path) -> None:
    rows = read_rows(finished)
    assert Counter(row["suspect"] for row in rows) == {label: 4 * count for label, count in LABELS.items()}
    status = {(row["suspect"], row["verifier"]): row["status"] for row in rows}
    foreign = ("Negative (other architecture)", "WeightAlignmentVerifier")
    assert status.pop(foreign) == "skipped"
    assert set(status.values()) == {"ok"}
    (reason,) = {row["reason"] for row in rows if (row["suspect"], row["verifier"]) == foreign}
    assert reason.startswith("IncompatibleArchitectureError")
    digests = {row["model"] for row in rows}
    assert len(digests) == sum(LABELS.values())


def test_models_are_what_their_labels_say(finished: Path) -> None:
    made = workbench(all_kinds(), finished)
    models = {(s.label, s.seed): network_of(made.model(s)) for s in made.suspects}
    widths = {label: network.block1[0].out_channels for (label, _), network in models.items()}
    assert widths.pop("Negative (other architecture)") == 3
    assert set(widths.values()) == {4}
    assert len({network_digest(network) for network in models.values()}) == len(models)


def test_fingerprints_know_their_references_and_known_models(finished: Path) -> None:
    made = workbench(all_kinds(), finished)
    found = {name: made.verifier(name).fingerprint for name in made.preset.verifiers}
    digests = {
        label: {network_digest(network_of(made.model(s))) for s in made.suspects if s.label == label}
        for label in ("Reference", "Reference (other data)", "Known")
    }
    for name, fingerprint in found.items():
        assert fingerprint is not None
        assert fingerprint.calibration is not None
        label = "Reference (other data)" if name == "DatasetInferenceVerifier" else "Reference"
        assert set(fingerprint.calibration.digests) == digests[label], name
    akh = found["AKHVerifier"]
    assert akh is not None
    assert set(akh.facts["negatives"]) == digests["Known"]


def test_a_second_run_does_nothing_and_more_models_only_themselves(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "rows.jsonl").read_bytes()
    work: Counter[str] = Counter()
    verify = Verifier.verify
    monkeypatch.setattr(Verifier, "verify", lambda *a, **k: (work.update(["verify"]), verify(*a, **k))[1])
    bench(all_kinds(), finished).run()
    assert work == {}
    assert (finished / "rows.jsonl").read_bytes() == before
    more = replace(all_kinds(), negatives={"same-data": 2, "other-data": 3, "other-architecture": 1})
    lines = bench(more, finished).outline()
    assert {line.what: line.cells - line.done for line in lines if line.cells != line.done} == {
        "Negative (other data)": 4
    }


def test_plans_say_it_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", all_kinds)
    entry = {"negatives": {"other-data": 1}, "held_out_noise": {"copies": 2, "std": 0.1}, "nb_known": 0}
    plan = plan_from({"victims": {"tiny": entry}, "seeds": 1})
    (preset,) = plan.presets
    assert (preset.negatives, preset.nb_known, preset.halved) == ({"other-data": 1}, 0, True)
    again = plan_from(plan.to_dict())
    assert again.to_dict() == plan.to_dict()
    assert Bench(again, tmp_path, device_type="cpu", verbose=False).benches["tiny"].victim_key


def test_passes_of_every_kind_are_estimated(tmp_path: Path) -> None:
    lines = {line.what: line for line in bench(all_kinds(), tmp_path / "new").outline()}
    assert {what: line.seeds for what, line in lines.items() if not what.startswith("fingerprint")} == LABELS
    one, two = (lines[f"Negative{kind}"].passes for kind in ("", " (other data)"))
    assert one == two
    assert one == pytest.approx(2 * (lines["Negative (other architecture)"].passes or 0))
