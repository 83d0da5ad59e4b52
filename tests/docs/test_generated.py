"""Tables that are made from the code are as the code is, and what they say of the classes is what the classes do."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import art_fingerprint
from art_fingerprint import attacks, verifiers
from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.verifiers.calibration import Calibration
from art_fingerprint.verifiers.verdict import MetricResult, Verdict
from tests.docs.pages import ROOT, digits, model

DOCS = ROOT / "docs"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generated = load("generated")
ATTACKS = generated.concrete(attacks, "Attack")
VERIFIERS = generated.concrete(verifiers, "Verifier")


@pytest.mark.parametrize("name", list(generated.PARTS))
def test_parts_are_up_to_date(name: str) -> None:
    """`python docs/_ext/generated.py` would change nothing."""
    page, make = generated.PARTS[name]
    text = (DOCS / page).read_text(encoding="utf-8")
    assert generated.updated(text, name, make()) == text, "run `python docs/_ext/generated.py`"


def test_sources_are_those_of_classes() -> None:
    """What only a person can know is known of every class, and of none that is gone."""
    assert set(generated.VERIFIERS) == set(VERIFIERS)
    assert set(generated.ATTACKS) == set(ATTACKS)
    assert set(generated.ROWS) <= set(ATTACKS)


def column(rows: list[list[str]], name: str) -> dict[str, str]:
    place = rows[0].index(name)
    return {row[0].strip("`"): row[place] for row in rows[1:]}


# ---------------------------------------------------------------------- what the matrix says of attacks
LABELS = column(generated.attack_needs(), "labels")
STARTS = column(generated.attack_needs(), "starts from")


def filters(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return all convolutions' weights in one vector."""
    return torch.cat([weight.detach().flatten() for weight in parameters if weight.ndim == 4])


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.filterwarnings("ignore")  # few images, few channels
def test_attacks_use_labels_and_weights_as_the_matrix_says(name: str) -> None:
    """Other labels give another surrogate if, and only if, y is used; it begins near the victim's filters, or far."""
    data = digits()
    x, y = data.x_apart[:40], data.y_apart[:40]
    start: dict[str, Any] = {}

    def keep(step: int, surrogate: Any, losses: Any) -> None:
        start.setdefault("weights", [tensor.clone() for tensor in surrogate.model.parameters()])

    def derive(labels: np.ndarray) -> list[torch.Tensor]:
        known = ATTACKS[name].attack_params
        short = {"max_iter": 3} if "max_iter" in known else {}
        own = {"attacks": [("FineTuningAttack", {"max_iter": 2})]} if name == "CompositeAttack" else {}
        attack = ATTACKS[name](model(0), batch_size=20, callback=keep, **short, **own)
        return list(attack.generate(x, labels).model.parameters())

    first, second = derive(y), derive((y + 1) % 10)
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert same is (LABELS[name] != "y, if given")
    victims, begun = filters(model(0).model.parameters()), filters(start["weights"])
    assert (float(torch.cosine_similarity(victims, begun, dim=0)) > 0.5) is (STARTS[name] == "the victim")


# ---------------------------------------------------------------------- what the matrix says of verifiers
def extracted(name: str) -> Any:
    data = digits()
    few: dict[str, Any] = {
        "AKHVerifier": {"nb_probes": 8, "min_errors": 1},
        "DatasetInferenceVerifier": {"nb_fit": 20, "nb_test": 10, "nb_draws": 1, "max_steps": 8, "nb_epochs": 100},
        "DeepJudgeVerifier": {"nb_seeds": 30, "radius": 0.3, "nb_seeds_whitebox": 2, "max_iter": 20, "multiplier": 1.0},
        "FBIVerifier": {"nb_probes": 20, "min_errors": 1},
        "IPGuardVerifier": {"nb_probes": 10, "margin": 0.0, "learning_rate": 0.05, "max_iter": 50},
        "ModelDiffVerifier": {"nb_pairs": 10},
        "RobustnessVerifier": {"nb_seeds": 10},
        "SACVerifier": {"nb_probes": 8, "min_errors": 1},
        "ZestVerifier": {"nb_images": 5, "nb_masks": 20},
    }
    verifier = VERIFIERS[name](model(0), **few.get(name, {}))
    if name == "DatasetInferenceVerifier":
        verifier.extract(data.x_train[:60], data.y_train[:60], data.x_apart[:60], data.y_apart[:60])
    else:
        verifier.extract(data.x_test, data.y_test)
    return verifier


@pytest.mark.parametrize("name", [name for name in VERIFIERS if name != "CommitteeVerifier"])
@pytest.mark.filterwarnings("ignore")  # few, hard probes
def test_verifiers_decide_without_references_where_the_matrix_says_so(name: str) -> None:
    verifier = extracted(name)
    data = digits()
    suspect = FineTuningAttack(model(0), max_iter=2, hflip=False).generate(data.x_train, data.y_train)
    verdict = verifier.verify(suspect)
    alone = column(generated.verifier_rows(), "references")[name] == "no"
    assert (verdict.derived is not None) is alone
    assert (verdict.queries == 0) is (verifier.expected_queries() == 0)


# ---------------------------------------------------------------------- other pages
def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_table_of_false_positives() -> None:
    """The numbers of docs/concepts/verdict.md are those that calibrations and verdicts state."""
    text = (DOCS / "concepts" / "verdict.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", text, re.MULTILINE)
    assert len(rows) == 6
    for nb_references, *stated in rows:
        scores = tuple(float(i) for i in range(int(nb_references)))
        rate = Calibration({"m": scores}, {"m": 0.0}).false_positive_rate
        for count, percent in zip((1, 2, 4, 6), stated, strict=True):
            results = {str(i): MetricResult(0.0, "distance", 1.0, True, 0.1) for i in range(count)}
            verdict = Verdict("V", results, True, "majority", 0, len(scores), 0, "", {}, false_positive_rate=rate)
            assert verdict.verdict_false_positive_rate == pytest.approx(float(percent) / 100, abs=6e-4)


def test_switches_of_the_reproduction_notes_are_parameters() -> None:
    """Every parameter that the page names in a table's last column is one of the class that the section is about."""
    text = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    sections = {
        "RemovalNet": attacks.RemovalNetAttack.attack_params,
        "DeepJudge": verifiers.DeepJudgeVerifier.verifier_params,
        "ZEST": verifiers.ZestVerifier.verifier_params,
        "ModelDiff": verifiers.ModelDiffVerifier.verifier_params,
        "IPGuard": verifiers.IPGuardVerifier.verifier_params,
    }
    for title, known in sections.items():
        section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        last = [line.rstrip("| ").rsplit("|", 1)[1] for line in section.splitlines() if line.startswith("| ")]
        named = re.findall(r"`(\w+)(?:=[^`]*)?`", " ".join(last))
        assert named
        assert set(named) <= set(known), title


# ---------------------------------------------------------------------- API pages
# Modules whose names only the package itself uses.
INSIDE = {
    "benchmark": "independents materials on_ray processes rows suspects validation workbench",
    "core": "answers chains channel_labels files folding frozen_cut graph group_sets notices outputs parameters "
    "rescaling stored_weights streams versions weight_format",
    "experiments": "ablation exhibits insides learning ratios stealing tables",
    "reporting": "measured page pictures strips",
    "attacks": "removalnet removalnet_checks removalnet_cost removalnet_run",
    "testing": "attack_parameters attack_runs nonsense signatures state verifier_extraction verifier_parameters "
    "verifier_verdicts",
    "verifiers": "base committee_verdict deepjudge fingerprint modeldiff weight_alignment",
    "zoo": "cifar faces idx imagenet listing skin_lesions traffic_signs",
}


def test_every_module_has_a_place_on_an_api_page() -> None:
    """A module is documented, or named above."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    documented = set(re.findall(r"automodule:: ([\w.]+)", pages))
    inside = {f"art_fingerprint.{package}.{name}" for package, names in INSIDE.items() for name in names.split()}
    found = {
        module.name
        for module in pkgutil.walk_packages(art_fingerprint.__path__, "art_fingerprint.")
        if module.name.count(".") == 2 or module.name == "art_fingerprint.exceptions"
    }
    assert documented - {f"art_fingerprint.{name}" for name in ("attacks", "verifiers", "testing")} <= found
    assert found - documented - inside == set()


@pytest.mark.slow
def test_pages_are_built_without_a_warning_and_hold_every_export(tmp_path: Any) -> None:
    """As `sphinx-build -W` does it; every exported class has an entry in the index of objects."""
    pytest.importorskip("sphinx", reason="the dependency group `docs` is not installed")
    built = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(built)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    from sphinx.util.inventory import InventoryFile

    with open(built / "objects.inv", "rb") as file:
        entries = InventoryFile.load(file, "", lambda base, name: name)
    names = {name for kind, items in entries.items() if kind.startswith("py:") for name in items}
    for package in (attacks, verifiers):
        assert {f"{package.__name__}.{name}" for name in package.__all__} <= names
    assert {name.rsplit(".", 1)[-1] for name in names} >= set(art_fingerprint.__all__) - {"__version__"}
