"""The command line on models in files: attack, extract, verify, doctor, as a user without Python runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from art_fingerprint import cli, cli_models
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers import CommitteeVerifier, Fingerprint, ModelDiffVerifier, ZestVerifier
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.loading import classifier_of, load_network, load_weights, save_weights

MODEL = ["--model", "networks_of_the_test:small", "--device", "cpu"]
SMALL_ZEST = ["--set", "nb_images=24", "--set", "nb_masks=60", "--set", "segmenter=grid", "--set", "grid_cells=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a module with a factory, and weights of seven models: the victim, five references, one independent."""
    folder = tmp_path_factory.mktemp("files")
    data = load_digits()
    x, y = torch.from_numpy(data.x_train[:400]), torch.from_numpy(data.y_train[:400])
    np.savez(folder / "D.npz", x=x.numpy(), y=y.numpy())
    (folder / "networks_of_the_test.py").write_text(
        "from art_fingerprint.zoo.architectures import SmallCNN\n\n\ndef small():\n    return SmallCNN(width=6)\n\n\n"
        "def broken():\n    raise KeyError('no such thing')\n\n\ndef number():\n    return 3\n"
    )
    with torch.random.fork_rng():
        for seed in range(7):
            torch.manual_seed(seed)
            network = SmallCNN(width=6)
            optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
            for _ in range(8):
                for rows in torch.randperm(len(x)).split(50):
                    optimizer.zero_grad()
                    F.cross_entropy(network(x[rows]), y[rows]).backward()
                    optimizer.step()
            save_weights(classifier_of(network, (1, 8, 8), device_type="cpu"), folder / f"w{seed}.safetensors", {})
        torch.save(network.state_dict(), folder / "w6.pt")
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def extracted(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        references = [f"w{seed}.safetensors" for seed in range(1, 6)]
        files = [
            "--weights",
            "w0.safetensors",
            "--data",
            "D.npz",
            "--out",
            "v.safetensors",
            "--references",
            *references,
        ]
        verb = ["extract", "--verifier", "Zest", *MODEL, *files, *SMALL_ZEST, "--thresholds", "T.json", "--quiet"]
        assert cli.main(verb) == 0
    return folder / "v.safetensors"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--thresholds", "T2.json"], "need --references"),
        (["--rule", "fpr"], "need --references"),
        (["--references", "w1.safetensors", "--rule", "nonsense"], "Unknown threshold rule 'nonsense'"),
        (["--references", "w1.safetensors", "--rule", "t-mean"], "needs at least two reference models"),
    ],
)
def test_thresholds_that_cannot_be_had_are_refused_before_anything_is_extracted(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--weights", "w0.safetensors", "--data", "D.npz", "--out", "none.safetensors"]
    assert cli.main(["extract", "--verifier", "Zest", *MODEL, *files, *SMALL_ZEST, *options]) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (folder / "none.safetensors").exists()
    assert not (folder / "T2.json").exists()


def verify(weights: str, *more: str) -> int:
    return cli.main(["verify", "--fingerprint", "v.safetensors", *MODEL, "--weights", weights, *more])


def test_attack_then_verify(extracted: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--weights", "w0.safetensors", "--data", "D.npz", "--out", "ft.safetensors", "--quiet"]
    attack = ["attack", "--attack", "FineTuningAttack", *MODEL, *files, "--set", "max_iter=20", "--set", "hflip=false"]
    before = (folder / "w0.safetensors").read_bytes()
    assert cli.main(attack) == 0
    assert (folder / "w0.safetensors").read_bytes() == before
    tensors = [load_network("networks_of_the_test:small") for _ in range(2)]
    for network, name in zip(tensors, ("w0.safetensors", "ft.safetensors"), strict=True):
        load_weights(network, Path(name))
    assert not torch.equal(*(network.head.weight for network in tensors))
    capsys.readouterr()
    assert verify("ft.safetensors") == 0
    assert capsys.readouterr().out.startswith("ZestVerifier: DERIVED")
    assert verify("ft.safetensors", "--fail-if-derived") == 1
    capsys.readouterr()
    assert verify("w6.pt", "--fail-if-derived", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["derived"] is False
    assert found["nb_references"] == 5
    assert cli.main(attack) == 0
    again = load_network("networks_of_the_test:small")
    load_weights(again, Path("ft.safetensors"))
    for name, tensor in again.state_dict().items():  # one seed, one result
        assert torch.equal(tensor, tensors[1].state_dict()[name]), name


def test_a_committee_in_a_file(extracted: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = [f"w{seed}.safetensors" for seed in range(1, 6)]
    files = ["--weights", "w0.safetensors", "--data", "D.npz", "--out", "m.safetensors", "--references", *references]
    assert cli.main(["extract", "--verifier", "ModelDiff", *MODEL, *files, "--set", "nb_pairs=20", "--quiet"]) == 0
    zest, modeldiff = (Fingerprint.load(folder / f"{name}.safetensors") for name in ("v", "m"))
    members = [ZestVerifier.from_fingerprint(zest), ModelDiffVerifier.from_fingerprint(modeldiff)]
    CommitteeVerifier(members, false_positive_rate=0.5).fingerprint.save(folder / "c.safetensors")
    for weights, status in (("w0.safetensors", 1), ("w6.safetensors", 0)):
        capsys.readouterr()
        call = ["verify", "--fingerprint", "c.safetensors", *MODEL, "--weights", weights, "--fail-if-derived", "--json"]
        assert cli.main(call) == status
        assert json.loads(capsys.readouterr().out)["derived"] is bool(status)
    assert cli.main(["extract", "--verifier", "Committee", *MODEL, *files]) == 2
    assert "name its members" in capsys.readouterr().err


def test_thresholds_from_a_file(extracted: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("w6.safetensors", "--json") == 0
    own = json.loads(capsys.readouterr().out)
    assert verify("w6.safetensors", "--json", "--thresholds", "T.json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == own["metrics"]
    value = own["metrics"]["ZEST-L2"]["value"]
    for tau, derived in ((value + 1, 1), (value - 1, 0)):
        (folder / "H.json").write_text(json.dumps({"ZEST-L2": tau}))
        assert verify("w6.safetensors", "--thresholds", "H.json", "--fail-if-derived", "--json") == derived
        found = json.loads(capsys.readouterr().out)["metrics"]["ZEST-L2"]
        assert (found["threshold"], found["p_value"]) == (tau, None)


def test_a_budget_ends_undecided(extracted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("w0.safetensors", "--budget", "100", "--fail-if-derived") == 0
    found = capsys.readouterr().out
    assert "undecided" in found
    assert "(no metric, 0 queries" in found
    assert "False positives" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "networks_of_the_test:smal"], "AttributeError"),
        (["--model", "networks_of_the_test:broken"], "KeyError: 'no such thing'"),
        (["--model", "networks_of_the_test:number"], "is a int; an nn.Module is needed"),
        (["--model", "no_such_module_here:f"], "ModuleNotFoundError"),
        (["--model", "nonsense"], "package.module:function or timm:NAME"),
        (["--model", "timm:no_such_model"], "cannot be made"),
        (["--weights", "nowhere.safetensors"], "no weights file"),
        (["--weights", "D.npz"], "cannot be read|something else than plain tensors"),
        (["--weights", "T.json"], "cannot be read|something else than plain tensors"),
        (["--thresholds", "nowhere.json"], "no thresholds file"),
        (["--thresholds", "D.npz"], "holds no thresholds"),
        (["--fingerprint", "w0.safetensors"], "is no fingerprint: it holds weights"),
        (["--clip", "0", "255", "--mean", "1", "2", "--std", "1", "2"], "2 values for 1 channels"),
        (["--clip", "1", "0"], "--clip needs two finite numbers, the smaller one first"),
        (["--clip", "nan", "nan"], "--clip needs two finite numbers"),
        (["--mean", "0.1"], "--mean and --std go together"),
        (["--mean", "0.1", "--std", "0"], "--std needs numbers above 0"),
        (["--nb-classes", "-3"], "--nb-classes"),
    ],
)
def test_bad_input_is_one_line(
    extracted: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert verify("w0.safetensors", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("art-fingerprint: ")
    assert re.search(message, captured.err), captured.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--attack", "RemovelNet"], "Near names: RemovalNetAttack"),
        (["--attack", "RemovalAttack"], "no attack"),
        (["--set", "max_itr=3"], "Near names: max_iter"),
        (["--set", "max_iter=-3"], "`max_iter`"),
        (["--data", "nowhere.npz"], "no data file"),
        (["--data", "T.json"], "no .npz file"),
        (["--data", "empty.npz"], "no array 'x'; it has z"),
        (["--data", "flat.npz"], "images \\(n, C, H, W\\)"),
        (["--out", "nowhere/x.safetensors"], "no folder nowhere"),
        (["--out", "."], "is a folder, a pipe or a device"),
        (["--out", "/dev/null"], "is a folder, a pipe or a device"),
        (["--out", "w0.safetensors"], "is read and would be overwritten"),
        (["--out", "./D.npz"], "is read and would be overwritten"),
        (["--set", "seed=3"], "is --seed"),
        (["--weights", "other.safetensors"], "do not fit the model: 1 missing .*1 unknown.*1 of another shape"),
    ],
)
def test_bad_attacks_write_nothing(
    extracted: Path, folder: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    np.savez(folder / "empty.npz", z=np.zeros(3))
    np.savez(folder / "flat.npz", x=np.zeros((3, 4), np.float32))
    state = load_file(folder / "w0.safetensors")
    state["extra"] = state.pop("head.bias")
    state["head.weight"] = torch.zeros(3)
    save_file(state, folder / "other.safetensors")
    files = ["--weights", "w0.safetensors", "--data", "D.npz", "--out", "x.safetensors", "--quiet"]
    assert cli.main(["attack", "--attack", "FineTuning", *MODEL, *files, *changes]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert not (folder / "x.safetensors").exists()


def test_one_file_for_two_things_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--weights", "w0.safetensors", "--data", "D.npz", "--out", "q.st", "--references", "w1.safetensors"]
    call = ["extract", "--verifier", "Zest", *MODEL, *files, *SMALL_ZEST, "--thresholds", "q.st"]
    assert cli.main(call) == 2
    assert "q.st would be written twice" in capsys.readouterr().err


def test_models_without_weights_are_refused_if_they_are_random(
    extracted: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", "--fingerprint", "v.safetensors", *MODEL]) == 2
    assert "makes a model with random weights" in capsys.readouterr().err
    (folder / "networks_with_weights.py").write_text(
        "from pathlib import Path\n\nfrom art_fingerprint.zoo.architectures import SmallCNN\n"
        "from art_fingerprint.zoo.loading import load_weights\n\n\n"
        "def own():\n    network = SmallCNN(width=6)\n    load_weights(network, Path('w0.safetensors'))\n"
        "    return network\n"
    )
    call = ["verify", "--fingerprint", "v.safetensors", "--model", "networks_with_weights:own", "--device", "cpu"]
    assert cli.main(call) == 0
    assert capsys.readouterr().out.startswith("ZestVerifier: DERIVED")


def test_unknown_metrics_of_thresholds_are_refused(
    extracted: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "U.json").write_text(json.dumps({"ZEST-L1": 800, "ZEST-Cosine": 0.1}))
    assert verify("w6.safetensors", "--thresholds", "U.json") == 2
    assert "ZEST-cosine" in capsys.readouterr().err


def test_weights_of_any_name_are_read(folder: Path) -> None:
    (folder / "w0.st").write_bytes((folder / "w0.safetensors").read_bytes())
    network = load_network("networks_of_the_test:small")
    load_weights(network, Path("w0.st"))
    assert torch.equal(network.head.weight, load_file(folder / "w0.safetensors")["head.weight"])


def test_a_verifier_that_decides_alone_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--weights", "w0.safetensors", "--data", "D.npz", "--quiet"]
    for name, told in (("WeightAlignment", False), ("ModelDiff", True)):
        small = ["--set", "nb_pairs=12"] if told else []
        call = ["extract", "--verifier", name, *MODEL, *files, "--out", f"{name}.safetensors", *small]
        assert cli.main(call) == 0
        assert ("verdicts will be undecided" in capsys.readouterr().out) is told


def test_a_setting_without_a_value_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["attack", "--attack", "A", "--model", "m:f", "--data", "d", "--out", "o", "--set", "max_iter"])
    assert "NAME=VALUE" in capsys.readouterr().err


def test_weights_with_code_inside_are_not_run(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(folder / "was_run"),)

    torch.save({"head.weight": Evil()}, folder / "evil.pt")
    with pytest.raises(InvalidInputError, match="plain tensors|cannot be read"):
        load_weights(SmallCNN(width=6), folder / "evil.pt")
    torch.save([1, 2], folder / "list.pt")
    with pytest.raises(InvalidInputError, match="no state dict"):
        load_weights(SmallCNN(width=6), folder / "list.pt")


def test_timm_by_name_and_standardisation() -> None:
    network = load_network("timm:resnet10t", nb_classes=7, channels=1)
    classifier = classifier_of(network, (1, 32, 32), (0.0, 255.0), mean=[100.0], std=[50.0], device_type="cpu")
    assert classifier.nb_classes == 7
    x = np.full((1, 1, 32, 32), 200.0, np.float32)
    with torch.no_grad():
        assert np.allclose(classifier.predict(x), network(torch.full((1, 1, 32, 32), 2.0)).numpy(), atol=1e-4)
    with pytest.raises(InvalidInputError, match="fails on two images"):
        classifier_of(network, (3, 32, 32), device_type="cpu")


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "a copy is recognised" in out
    assert "torchattacks      3.5.1" in out
    assert out.endswith("All is well.\n")

    def fails() -> bool:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(cli_models, "_tiny_run", fails)
    assert cli.main(["doctor"]) == 3
    assert "FAILED: RuntimeError: no kernel image" in capsys.readouterr().out
