"""Verifiers on a CUDA device: `python -m pytest -m gpu`. Attacks: the conformance suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.verifiers import (
    DeepJudgeVerifier,
    IPGuardVerifier,
    ModelDiffVerifier,
    RobustnessVerifier,
    Verifier,
    ZestVerifier,
)
from tests.victims import several_classes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch"),
]


def on(device_type: str) -> tuple[PyTorchClassifier, np.ndarray]:
    """Return one trained victim on the CPU or on the GPU, and its data."""
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    return several_classes(x, device_type=device_type), x


@pytest.mark.parametrize(
    ("verifier", "options"),
    [
        (DeepJudgeVerifier, {"nb_seeds_whitebox": 2, "metric_names": ("LOD", "LAD"), "layer": "block2"}),
        (ZestVerifier, {"nb_images": 4, "nb_masks": 50, "segmenter": "grid", "grid_cells": 2}),
        (ModelDiffVerifier, {"nb_pairs": 10}),
        (IPGuardVerifier, {"nb_probes": 10, "margin": 0.5, "learning_rate": 0.01}),
        # not DeepFool, whose examples lie on the boundary
        (RobustnessVerifier, {"metric_names": ("RobD-FGSM", "RobD-PGD"), "random_start": False}),
    ],
)
def test_fingerprints_of_a_gpu_victim_score_suspects_on_both_devices(
    verifier: type[Verifier], options: dict[str, object]
) -> None:
    """One model on two devices has one score, and the victim itself the extreme one."""
    victim, x = on("gpu")
    twin, _ = on("cpu")
    judge = verifier(victim, **options)  # type: ignore[arg-type]
    judge.extract(x)
    here, there = judge.score(victim), judge.score(twin)
    for metric in judge.metrics:
        if metric.name in here:
            assert here[metric.name] == pytest.approx(there[metric.name], abs=1e-2)
