"""Pages of the docs, their code blocks, and what a page takes for granted when its blocks run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.zoo import presets
from art_fingerprint.zoo.dataset import Dataset
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.recipes import train_victim
from tests import photo_sets
from tests.tiny_preset import small, tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
Scope = dict[str, Any]
Given = Callable[[Path, pytest.MonkeyPatch], Scope]


def name_of(page: Path) -> str:
    """Return a page's path inside the project."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """Return a page's fenced blocks in any of some languages; an empty name is a fence without one."""
    found = re.findall(r"^```([\w{}-]*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


# ---------------------------------------------------------------------- what pages take for granted
@cache
def digits() -> Dataset:
    return load_digits()


@cache
def model(seed: int) -> PyTorchClassifier:
    """Return a narrow network that has seen digits for a second: it errs on some of them."""
    return train_victim(small, digits(), tiny().victim_recipe, seed, "cpu")


def models(folder: Path, patch: pytest.MonkeyPatch) -> Scope:
    """A victim, a suspect made from it, independent models, and images."""
    data = digits()
    suspect = FineTuningAttack(model(0), max_iter=2, hflip=False).generate(data.x_train, data.y_train)
    references = [model(seed) for seed in range(1, 6)]
    return {"victim": model(0), "suspect": suspect, "references": references, "x": data.x_apart[:40], "np": np} | {
        "y": data.y_apart[:40],
        "x_test": data.x_test[:60],
        "y_test": data.y_test[:60],
    }


def short_removal(folder: Path, patch: pytest.MonkeyPatch) -> Scope:
    """The same, with RemovalNet's default of 1000 steps cut to two."""
    patch.setitem(RemovalNetAttack.__init__.__kwdefaults__, "max_iter", 2)
    return models(folder, patch)


def errors(folder: Path, patch: pytest.MonkeyPatch) -> Scope:
    """A verifier of errors, and independent models that are known."""
    from art_fingerprint.verifiers import AKHVerifier

    known = [model(seed) for seed in range(1, 4)]
    return models(folder, patch) | {"AKHVerifier": AKHVerifier, "known_independent_models": known}


def signs(folder: Path, patch: pytest.MonkeyPatch) -> Scope:
    """The files of a data set in the user's home."""
    patch.setenv("HOME", str(folder))
    photo_sets.make_gtsrb(folder / "data")
    return {}


def tiny_digits(folder: Path, patch: pytest.MonkeyPatch) -> Scope:
    """A preset that is done in seconds under the name of one that takes minutes."""
    patch.setattr(presets, "load_preset", lambda name: tiny())
    return {}


def plan(folder: Path, patch: pytest.MonkeyPatch) -> Scope:
    """A plan of three cells."""
    own = {
        "dataset": "tests.bench_plugins:few_digits",
        "architecture": "tests.bench_plugins:narrow",
        "victim_recipe": {"learning_rate": 0.05, "max_iter": 60, "batch_size": 32},
        "attacks": {"FT": {"attack": "FineTuning", "params": {"max_iter": 2, "hflip": False}, "true_labels": True}},
        "verifiers": {"IPGuard": {"nb_probes": 12, "margin": 0.0, "learning_rate": 0.05, "max_iter": 60}},
        "nb_references": 2,
        "threads": 1,
    }
    (folder / "plan.yaml").write_text(json.dumps({"victims": {"own": own}, "seeds": 1}), encoding="utf-8")
    return {}


class VisionModel(nn.Module):
    """Answers as the models of `transformers` do, which are no dependency of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(pixel_values.flatten(1)))


def vision_model(folder: Path, patch: pytest.MonkeyPatch) -> Scope:
    """A model of another library."""
    return {"vision_model": VisionModel()}


GIVEN: dict[str, Given] = {
    "docs/adaptive-attacks.md": short_removal,
    "docs/bench.md": plan,
    "docs/data.md": signs,
    "docs/experiments.md": tiny_digits,
    "docs/howto/own-classifier.md": vision_model,
    "docs/in-use.md": models,
    "docs/query-verifiers.md": errors,
    "docs/robustness.md": models,
    "docs/weight-alignment.md": models,
}
