"""The HTML report of a folder: experiments below their preset, pictures, provenance, the paper beside ours."""

from __future__ import annotations

import hashlib
import html
import inspect
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from art_fingerprint import cli
from art_fingerprint.experiments.exhibits import by_experiment, exhibits, split_name
from art_fingerprint.reporting import measured, pictures, strips
from art_fingerprint.reporting.comparison import agreement, settings_beside
from art_fingerprint.reporting.figures import new_figure
from art_fingerprint.reporting.html import report
from art_fingerprint.reporting.measured import Provenance
from art_fingerprint.reporting.pictures import inline_png, inline_svg
from art_fingerprint.reporting.published import published_table
from art_fingerprint.reporting.published.differences import REASONS, REMOVAL_ROWS, SETTINGS, counterpart
from art_fingerprint.zoo.loading import attack_class, verifier_class
from art_fingerprint.zoo.presets import load_preset
from tests.unit.test_reporting import FAR, HOSTILE, NEAR, THRESHOLDS, Document, example, failed, make_rows

Row = dict[str, Any]


def png(width: int = 3, height: int = 2) -> bytes:
    """Return a white picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + b"\xff" * 3 * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def curve(name: str, labels: Iterable[str], attack: str = "RemovalNetAttack", preset: str = "digits") -> list[Row]:
    """Return rows of an experiment, two seeds a label, ever farther from the victim."""
    rows = [
        *make_rows("Victim", 1000, {**NEAR, "LOD": 0.0}, "victim", 0.97),
        *make_rows("Reference", 0, THRESHOLDS, "reference"),
        *make_rows("Negative", 0, FAR, "negative", 0.93),
    ]
    for place, label in enumerate(labels):
        for seed in (0, 1):
            values = {key: NEAR[key] + (FAR[key] - NEAR[key]) * place / 5 + 0.01 * seed for key in NEAR}
            cost = {"forward_equivalents": 1000.0 * (place + 1)}
            own = make_rows(label, seed, values, accuracy=0.96 - 0.01 * place)
            rows += [{**row, "attack": attack, "cost": cost, "attack_params": {"max_iter": 300}} for row in own]
    return [{**row, "preset": f"{preset} {name}"} for row in rows]


def fig4(preset: str = "digits") -> list[Row]:
    return curve(
        "fig4", [f"RemovalNet({kind})@{step}" for kind in ("train", "apart") for step in (0, 150, 300)], preset=preset
    )


def everything() -> list[Row]:
    """Return rows of a preset's own grid, and of each experiment that is drawn from rows."""
    rivals = curve("fig7", [f"KnockoffNets(train)@{step}" for step in (0, 1500, 3000)], "KnockoffNetsAttack")
    return [
        *example(),
        *fig4(),
        *curve("fig6", [f"RemovalNet({kind})@{share}" for kind in ("train", "apart") for share in (0.02, 0.2)]),
        *curve("fig7", ["RemovalNet(train)"]),
        *rivals,
        *curve("fig8", [f"{weight}@{value}" for weight in ("gamma", "alpha", "beta") for value in (0.0, 0.6)]),
        *curve("fig9", ["RemovalNet(train)"]),
    ]


def folder_of(path: Path, rows: Iterable[Row], plan: object = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if plan is not None:
        (path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    return path


def page_of(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert cli.main(["report", str(folder), *more]) == 0
    capsys.readouterr()
    return (folder / "report.html").read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r"<h[23] id=[^>]*>(.*?)</h[23]>", text)]


def whole_report(folder: Path) -> Path:
    """Write a folder with everything that a report can show, and its report; return the report's path."""
    folder_of(folder, everything(), {"victims": {"digits": {"dataset": "digits"}}})
    (folder / "fig9-digits.csv").write_text("model,overlap\nRemovalNet(train),0.2\n")
    (folder / "fig9-digits.md").write_text("| model |\n\n- LayerCAM at block2\\_x.\n")
    (folder / "fig9-digits.png").write_bytes(png(900, 300))
    assert cli.main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_report(tmp_path_factory.mktemp("report"))


# ---------------------------------------------------------------------- experiments below their preset
def test_experiments_stand_below_their_preset(whole: Path) -> None:
    text = whole.read_text(encoding="utf-8")
    document = Document(text)
    assert headings(text) == [
        "Verdicts, attack by attack",
        "Table I",
        "Verifier by verifier",
        "Every attack, metric by metric",
        "Every model, metric by metric",
        "The paper's numbers beside ours",
        "The paper's experiments",
        "Fig. 4: accuracy against distance to the victim over RemovalNet's iterations",
        "Fig. 6: RemovalNet with 2 to 20 % of the data",
        "Fig. 7: KnockoffNets against RemovalNet: accuracy over cost",
        "Fig. 8: ablation of RemovalNet's weights",
        "Fig. 9: LayerCAM maps of victim and surrogates",
        "How this was measured",
    ]
    assert document.count("h1") == 1
    assert document.count("svg") == 6 + 4
    assert document.count("img") == 1
    assert document.texts.count("LayerCAM at block2_x.") == 1
    for anchor in re.findall(r"<a href='#([^']+)'", text):
        assert text.count(f" id='{anchor}'") == 1
    identifiers = re.findall(r"""\sid=["']([^"']+)""", text)
    assert len(identifiers) == len(set(identifiers))
    assert len(text) < 1_000_000
    assert "##" not in (whole.parent / "table.md").read_text(
        encoding="utf-8"
    )  # one victim, not one for each experiment


def test_the_figures_show_the_rows(whole: Path) -> None:
    words = Document(whole.read_text(encoding="utf-8")).texts
    for text in ("iteration", "LOD (distance)", "MR (similarity)", "judged derived", "forward-equivalents", "gamma"):
        assert text in words, text


def test_models_count_once_whatever_the_kinds_of_negatives() -> None:
    rows = [*example(), *make_rows("Negative (other data)", 0, FAR, "negative")]
    known, more = (Document(report(given)).texts for given in (example(), rows))
    for words in ("verifiers", "verdicts on derived models say so"):
        before, after = (texts[texts.index(words) - 1] for texts in (known, more))
        assert before == after, words
    count = [
        int(texts[texts.index("verdicts on independent models accuse them") - 1].split()[-1]) for texts in (known, more)
    ]
    assert count[1] == count[0] + len({row["verifier"] for row in rows if row["suspect"] == "Negative (other data)"})


def test_experiments_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page_of(folder_of(tmp_path, fig4()), capsys)
    assert "These rows are of experiments alone" in text
    assert headings(text)[0] == "The paper's experiments"
    assert "art-fingerprint experiment fig4 --preset digits --seeds 2 --out DIR" in text
    assert not (tmp_path / "table.md").exists()


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = [{**row, "victim": "v2"} for row in curve("fig9", ["RemovalNet(train)"])]
    other[-4:] = [{**row, "status": "skipped", "reason": "other architecture"} for row in other[-4:]]
    folder = folder_of(tmp_path, [*example(), *other, *curve("fig6", ["RemovalNet(train)"])])
    texts = Document(page_of(folder, capsys)).texts
    assert any(text.startswith("The folder has no fig9-digits.csv. It is made from the models") for text in texts)
    assert "About another victim than the tables above: another version, recipe or seed." in texts
    assert any(text.startswith("4 of 20 cells have no result") for text in texts)
    assert any("The rows cannot be read: The rows have no surrogate with a step" in text for text in texts)
    (folder / "fig9-digits.csv").write_text("model,overlap\nx,0.2\n")
    (folder / "fig9-digits.png").write_bytes(b"GIF89a")
    assert "The picture is not shown: it is not a PNG file." in page_of(folder, capsys)


@pytest.mark.parametrize("content", ["", "a,b\nc\n", "\xff\xfe"])
def test_damaged_tables_are_not_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "fig9-digits.csv").write_bytes(content.encode("latin-1"))
    (found,) = exhibits(tmp_path, "digits", {"fig9": curve("fig9", ["RemovalNet(train)"])}, [])
    assert found.sheets == {}
    assert "fig9-digits.csv" in found.notes[0]


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "fig9-a").mkdir()
    inside = folder_of(tmp_path / "run", [])
    (inside / "fig9-a").mkdir()
    (found,) = exhibits(inside, "a/../../secret", {"fig9": fig4()}, [])
    assert found.image is None


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path, everything())
    (folder / "fig6-digits.png").write_bytes(png())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = page_of(folder, capsys)
    document = Document(text)
    assert document.count("svg") == 6
    assert document.count("img") == 1  # what the experiment drew before
    assert text.count("Figures need matplotlib, which is not installed") == 3
    assert "RemovalNet(apart)" in document.texts


def test_split_names() -> None:
    assert split_name("digits fig4") == ("digits", "fig4")
    assert split_name("my own fig10") == ("my own", "fig10")
    for name in ("fig4", "digits", "digits fig44", " fig4"):
        assert split_name(name) == (name, "")
    own, inner = by_experiment({"d fig8": [{}], "d": [{}, {}], "d fig4": [{}], "e fig4": [{}]})
    assert list(own) == ["d"]
    assert {base: list(found) for base, found in inner.items()} == {"d": ["fig4", "fig8"], "e": ["fig4"]}


def test_hostile_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "suspect": row["suspect"].replace("RemovalNet", HOSTILE)} for row in fig4(preset=HOSTILE)]
    plan = {"victims": {HOSTILE: {"reason": HOSTILE}}}
    text = page_of(folder_of(tmp_path, [*rows, *({**row, "preset": HOSTILE} for row in example())], plan), capsys)
    document = Document(text)
    assert document.count("script") == 0
    assert "<script" not in text
    assert all(not name.startswith("on") for _, attributes in document.elements for name in attributes)


# ---------------------------------------------------------------------- pictures
def test_inline_svg() -> None:
    figure = new_figure(2, 1)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1 / 3])
    axes.set_title("1.23456 & <b> url(#x)")
    text = inline_svg(figure, "p1", 'a "figure"')
    Document(text)
    assert text.startswith("<svg viewBox='0 0 144 72' role='img' aria-label='a &quot;figure&quot;'")
    assert "1.23456 &amp; &lt;b&gt; url(#x)" in text
    assert not re.search(r"https?:|<metadata|<style|<image|@import", text)
    assert set(re.findall(r'\bid="([^"]*)"', text)) >= {
        *re.findall(r'href="#([^"]*)"', text),
        *re.findall(r"url\(#(p1[^)]*)\)", text),
    }
    assert all(name.startswith("p1-") for name in re.findall(r'\bid="([^"]*)"', text))
    assert inline_svg(figure, "p1", "") == inline_svg(figure, "p1", "")


def test_inline_png(monkeypatch: pytest.MonkeyPatch) -> None:
    text = inline_png(png(300, 20), "a 'map'")
    assert text.startswith("<img src='data:image/png;base64,iVBOR")
    assert "width='300' height='20' alt='a &#x27;map&#x27;'" in text
    with pytest.raises(ValueError, match="not a PNG"):
        inline_png(b"\xff\xd8", "")
    monkeypatch.setattr(pictures, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="MB"):
        inline_png(png(), "")


# ---------------------------------------------------------------------- strips
def test_every_metric_of_every_verifier_has_a_strip() -> None:
    rows = make_rows("FT(0.5)", 0, NEAR)
    rows[0]["metrics"]["NAD"] = {"value": 0.5, "threshold": None, "direction": "distance", "derived": None}
    rows[1]["metrics"] = {"ZEST-L2": {**rows[1]["metrics"]["ZEST-L2"], "space": "logits"}}
    second = make_rows("Negative", 0, FAR, "negative")
    second[1]["metrics"] = {"ZEST-L2": {**second[1]["metrics"]["ZEST-L2"], "space": "probabilities", "threshold": 0.1}}
    second[3]["metrics"]["MR"]["value"] = None
    found = strips.strips([*rows, *second])
    assert {name: [strip.heading for strip in own] for name, own in found.items()} == {
        "DeepJudgeVerifier": ["DJ-LOD", "DJ-LAD", "NAD"],
        "ZestVerifier": ["ZEST-L2 (logits)", "ZEST-L2 (probabilities)"],
        "ModelDiffVerifier": ["ModelDiff-DDV"],
        "IPGuardVerifier": ["IPGuard-MR"],
    }
    assert [strip.threshold for strip in found["ZestVerifier"]] == [20.0, 0.1]
    assert found["IPGuardVerifier"][0].points == (("FT(0.5)", "surrogate", 0, 1.0),)


def test_more_strips_than_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("art_fingerprint.reporting.html.MOST_STRIPS", 3)
    document = Document(report(example()))
    assert document.count("svg") == 3
    assert "Not drawn: ZEST-Cosine. Verifier by verifier has their numbers." in document.texts
    assert "Not drawn: IPGuard-MR. Verifier by verifier has their numbers." in document.texts


# ---------------------------------------------------------------------- how it was measured
def test_models_of_several_kinds_are_all_counted() -> None:
    kinds = {"Known": 2, "Reference (other data)": 3, "Reference": 3, "Negative": 2}
    rows = [
        row
        for label, count in kinds.items()
        for seed in range(count)
        for row in make_rows(label, seed, NEAR, "negative" if label == "Negative" else "reference")
    ]
    found = dict(measured.facts(rows, Provenance()).cells[1:])
    assert (found["Reference models"], found["Negatives"]) == (
        "8: 3 Reference, 3 Reference (other data), 2 Known",
        "2",
    )


def test_facts_and_costs() -> None:
    rows = [
        {**row, "data": "d1", "finished_seconds": 1764000000.0 + 60 * place, "fingerprint": "f1", "cost": None}
        for place, row in enumerate(make_rows("FT(0.5)", 0, NEAR) + make_rows("FT(0.5)", 4, NEAR))
    ]
    rows[0]["status"] = "skipped"
    for row in rows[:4]:
        row["cost"] = {"forward_equivalents": 5000.0}
    plan = {
        "victims": {
            "digits": {
                "architecture": "a:b",
                "calibration": {"rule": "fpr"},
                "attacks": {"FT(0.5)": {"source": "subset", "true_labels": False, "ratio": 0.1}},
                "reason": "why not",
            }
        }
    }
    found = dict(measured.facts(rows, Provenance(plan, {"rows.jsonl": "8 lines"})).cells[1:])
    assert found["Data, SHA-256"] == "d1"
    assert found["Measured"] == "2025-11-24 16:00 to 2025-11-24 16:07 UTC"
    assert found["Seeds of the attacks"] == "0, 4"
    assert found["Cells"] == "7 ok, 1 skipped, 0 failed"
    assert found["Thresholds"] == "rule='fpr'"
    assert (found["Architecture"], found["rows.jsonl"], found["Why these settings"]) == ("a:b", "8 lines", "why not")
    bare = dict(measured.facts(make_rows("FT(0.5)", 0, NEAR), Provenance()).cells[1:])
    assert bare["Data, SHA-256"].startswith("not recorded")
    assert bare["Measured"] == "not recorded in these rows"
    assert bare["Thresholds"] == "the folder has no plan of these rows"
    line = measured.attacks(rows, Provenance(plan)).cells[1]
    assert line[1:7] == ["FineTuningAttack", "subset of the training set, 10 %", "the victim's", "2", "5,000", "1.0"]
    assert measured.verifiers(rows).cells[-1] == ["IPGuardVerifier", "f1", "nb_probes=100"]


def test_commands() -> None:
    rows = make_rows("FT(0.5)", 0, NEAR) + make_rows("FT(0.5)", 1, NEAR)
    plan = Provenance({"victims": {"digits": {"dataset": "digits"}}})
    again = "art-fingerprint report DIR"
    assert measured.commands("digits", rows, {}, plan) == ["art-fingerprint bench --plan plan.json --out DIR", again]
    assert measured.commands("digits", rows, {"fig4": rows[4:]}, Provenance()) == [
        "art-fingerprint bench --preset digits --seeds 2 --out DIR",
        "art-fingerprint experiment fig4 --preset digits --out DIR  # with seeds: [1], from Python or a plan",
        again,
    ]
    assert measured.commands("mine; rm -r", rows, {"fig4": rows}, Provenance()) == [again]
    three = [*rows, *make_rows("FT(0.5)", 7, NEAR)]
    assert "--seeds 0,1,7 " in measured.commands("digits", three, {}, Provenance())[0]


def test_rows_plan_and_failures_are_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*example(), *failed(make_rows("WP(0.5)", 0, NEAR), "RuntimeError: out of memory")]
    plan = {"seeds": [0], "victims": {"digits": {"dataset": "digits"}, "other": {"dataset": "secret"}}}
    folder = folder_of(tmp_path, rows, plan)
    assert cli.main(["report", str(folder)]) == 3
    capsys.readouterr()
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest() in text
    assert "failed: WP(0.5) (seed 0), IPGuardVerifier: RuntimeError: out of memory" in text
    assert html.escape('"digits": {') in text
    assert "secret" not in text
    for content in ("[]", "{", '{"victims": []}', '{"victims": {"digits": 3}}'):
        (folder / "plan.json").write_text(content)
        assert cli.main(["report", str(folder)]) == 3


# ---------------------------------------------------------------------- the paper beside ours
def test_counterparts() -> None:
    for name, dataset, same in (
        ("digits", "CIFAR10", False),
        ("fashion-mnist", "CIFAR10", False),
        ("cifar10", "CIFAR10", True),
        ("ham10000", "Skin Lesion", True),
        ("isic2018", "Skin Lesion", True),
        ("celeba-31", "CelebA+31", True),
    ):
        found = counterpart(name)
        assert found is not None
        assert (found.table.dataset, found.same) == (dataset, same)
    assert counterpart("letters") is None


def test_the_nearest_is_labelled_as_another_data_set() -> None:
    words = " ".join(Document(report(example())).texts)
    assert "those of CIFAR10 (VGG19, 38.96M parameters), each below ours of the same label: another data set" in words
    assert "another network than digits. Compare the order of the lines" in words
    own = " ".join(Document(report([{**row, "dataset": "cifar10"} for row in example()])).texts)
    assert "another network" not in own
    assert "88.21±0.31" in own
    other = report([{**row, "dataset": "letters"} for row in example()])
    assert "The paper's numbers beside ours" not in other
    assert "The paper's numbers beside ours" not in html.unescape(report(example(), published={}))


def test_agreement_by_hand() -> None:
    rows = [*make_rows("FT(0.5)", 0, {**NEAR, "LOD": 9.0}), *make_rows("RemovalNet(train)", 0, {**FAR, "MR": 0.4})]
    rows += make_rows("RemovalNet(train)", 1, {**FAR, "MR": 0.6}) + make_rows("My attack", 0, FAR)
    found = agreement(rows, published_table("CIFAR10"))
    assert (found.same, found.total) == (12, 14)  # six metrics and the majority, of two rows
    assert [line[:4] for line in found.sheet.cells[1:]] == [
        ["FT(0.5)", "DJ-LOD", "derived (0.01±0.02)", "not derived (0 of 1 derived)"],
        ["RemovalNet(train)", "IPGuard-MR", "not derived (0.061±0.043)", "derived (2 of 2 derived)"],
    ]
    assert [line[4] for line in found.sheet.cells[1:]] == ["not known", "not known"]
    for row in rows:
        if row["verifier"] == "IPGuardVerifier":
            row["verifier_params"] = {"margin": 2.0}
    assert agreement(rows, published_table("CIFAR10")).sheet.cells[2][4].startswith("IPGuard at k = 2")


def test_settings_that_differ() -> None:
    rows = [
        {**row, "attack": "RemovalNetAttack", "attack_params": {"max_iter": steps, "hflip": False, "gamma": 0.6}}
        for label, steps in (("RemovalNet(train)", 300), ("RemovalNet(apart)", 300), ("RemovalNet, longer", 5))
        for row in make_rows(label, 0, FAR)
    ]
    sheet = settings_beside(rows, published_table("CIFAR10"))
    assert sheet is not None
    found = {line[0]: line[1:] for line in sheet.cells[1:]}
    assert found["iterations"] == ["1000", "300", "enough on 8x8 images"]
    assert found["horizontal flips"] == ["yes", "no", "a mirrored digit is another sign"]
    assert "γ, weight of the victim's labels" not in found
    for row in rows[:4]:
        row["attack_params"] = {**row["attack_params"], "max_iter": 20}
    sheet = settings_beside(rows, published_table("CIFAR10"))
    assert sheet is not None
    assert sheet.cells[1] == ["iterations", "1000", "20, 300", "-"]  # the reason is for 300 alone


def test_explanations_are_of_the_presets_as_they_are() -> None:
    """Values that a reason names are those of the preset, and parameters exist."""
    presets = {"digits": load_preset("digits"), "fashionmnist": load_preset("fashion-mnist")}
    presets["gtsrb"] = load_preset("gtsrb-inceptionv3")
    for setting in SETTINGS:
        kind = attack_class(setting.of) if setting.of.endswith("Attack") else verifier_class(setting.of)
        assert setting.name in inspect.signature(kind).parameters
        for dataset, (value, why) in setting.why.items():
            preset = presets[dataset]
            if setting.of == "RemovalNetAttack":
                known = [s.params.get(setting.name) for s in preset.attacks.values() if s.attack == setting.of]
            else:
                known = [preset.verifiers[setting.of].get(setting.name)]
            assert set(known) == {value}, (setting.name, dataset)
            assert why
    for dataset, reasons in REASONS.items():
        for reason in reasons:
            for (owner, name), value in reason.needs.items():
                preset = presets[dataset]
                known = [s.params.get(name) for s in preset.attacks.values() if s.attack == owner]
                known += [params.get(name) for kind, params in preset.verifiers.items() if kind == owner]
                assert set(known) == {value}
    for dataset, labels in REMOVAL_ROWS.items():
        assert {row.label for row in published_table(dataset).rows} >= set(labels)
