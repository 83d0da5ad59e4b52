"""AKH, SAC, FBI and a committee on digits: copies are caught, independent models are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import FineTuningAttack, WeightPruningAttack
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.verifiers import (
    AKHVerifier,
    CommitteeVerifier,
    FBIVerifier,
    Fingerprint,
    SACVerifier,
    Verifier,
)
from art_fingerprint.zoo.datasets import Dataset, load_dataset
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_negative, train_victim

NB_REFERENCES = 12
NB_NEGATIVES = 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def models(data: Dataset) -> dict[str, list[PyTorchClassifier]]:
    """Models of the digits preset, with fewer training steps."""
    preset = load_preset("digits")
    recipe, other = (replace(r, max_iter=300) for r in (preset.victim_recipe, preset.negative_recipe))

    def trained(seed: int) -> PyTorchClassifier:
        return train_victim(preset.architecture, data, recipe, seed, "cpu")

    victim = trained(1000)
    x, y = data.x_train, data.y_train
    return {
        "victim": [victim],
        "references": [trained(seed) for seed in range(NB_REFERENCES)],
        "negatives": [train_negative(preset.architecture, data, other, seed, "cpu") for seed in range(NB_NEGATIVES)],
        "copies": [
            FineTuningAttack(victim, ratio=0.5, max_iter=100, hflip=False, seed=0).generate(x, y),
            WeightPruningAttack(victim, ratio=0.5, max_iter=100, hflip=False, seed=0).generate(x, y),
        ],
    }


@pytest.fixture(scope="module")
def noisy(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Test images with noise: on those without it the victim hardly errs."""
    draws = numpy_generator(0, "noisy")
    x = [data.x_test + 0.2 * draws.standard_normal(data.x_test.shape, dtype=np.float32) for _ in range(5)]
    return np.concatenate(x).clip(0, 1), np.tile(data.y_test, 5)


VERIFIERS: list[tuple[type[Verifier], dict[str, Any]]] = [
    (AKHVerifier, {"fill": "none"}),
    (SACVerifier, {}),
    (SACVerifier, {"samples": "cutmix"}),
    (FBIVerifier, {}),
    (FBIVerifier, {"symbols": "labels"}),
]


@pytest.mark.parametrize(("kind", "options"), VERIFIERS)
def test_copies_are_caught_and_independent_models_are_not(
    kind: type[Verifier], options: dict[str, Any], models: Any, noisy: Any, tmp_path: Path
) -> None:
    verifier = kind(models["victim"][0], **options)
    fingerprint = verifier.extract(*noisy)
    verifier.calibrate(models["references"])
    judge = kind.from_fingerprint(Fingerprint.load(fingerprint.save(tmp_path / "a")))
    for model in (models["victim"][0], *models["copies"]):
        assert judge.verify(model).derived is True
    verdicts = [judge.verify(model) for model in models["negatives"]]
    assert all(verdict.derived is False for verdict in verdicts), [verdict.metrics for verdict in verdicts]


def test_known_negatives_push_independent_models_down(models: Any, noisy: Any) -> None:
    plain, chosen = (AKHVerifier(models["victim"][0], fill="none", min_errors=5) for _ in range(2))
    plain.extract(*noisy)
    chosen.extract(*noisy, negatives=models["references"][:6])
    for model in models["negatives"]:
        assert chosen.score(model)["AKH"] < plain.score(model)["AKH"] - 0.1
    worst = max(chosen.score(model)["AKH-soft"] for model in (*models["negatives"], *models["references"][6:]))
    assert all(chosen.score(model)["AKH-soft"] > worst + 2 for model in models["copies"])


@pytest.mark.parametrize("options", [{"method": "fisher"}, {"null": "references"}], ids=["fisher", "references"])
def test_a_committee_catches_copies_and_accuses_nobody_else(
    options: Any, models: Any, noisy: Any, tmp_path: Path
) -> None:
    members = [kind(models["victim"][0], **settings) for kind, settings in VERIFIERS]
    for member in members:
        member.extract(*noisy)
    committee = CommitteeVerifier(members, false_positive_rate=0.08, **options).calibrate(models["references"])
    path = committee.fingerprint.save(tmp_path / "committee")
    judge = CommitteeVerifier.from_fingerprint(Fingerprint.load(path))
    for model in models["copies"]:
        verdict = judge.verify(model)
        assert verdict.derived is True
        assert verdict.false_positive_rate is not None
        assert verdict.false_positive_rate <= 0.08
    assert [judge.verify(model).derived for model in models["negatives"]] == [False] * NB_NEGATIVES
