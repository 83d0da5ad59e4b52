"""The same code on a CUDA device: `python -m pytest -m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import DistillationAttack, FineTuningAttack, RemovalNetAttack, WeightPruningAttack
from art_fingerprint.verifiers import DeepJudgeVerifier, IPGuardVerifier, ModelDiffVerifier, Verifier, ZestVerifier
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
    ("attack", "options"),
    [
        (RemovalNetAttack, {"max_iter": 5, "shuffle_ratio": 0.3}),
        (FineTuningAttack, {"max_iter": 5}),
        (WeightPruningAttack, {"max_iter": 5}),
        (DistillationAttack, {"max_iter": 5}),
    ],
)
def test_surrogates_stay_on_the_victims_device(attack: type, options: dict[str, object]) -> None:
    """A victim on the GPU gives a surrogate on the GPU, twice the same; one on the CPU stays there on a CUDA host."""
    for device_type, expected in (("gpu", "cuda"), ("cpu", "cpu")):
        victim, x = on(device_type)
        first = attack(victim, hflip=False, **options).generate(x)
        again = attack(victim, hflip=False, **options).generate(x)
        assert first.device.type == expected
        assert all(parameter.device.type == expected for parameter in first.model.parameters())
        np.testing.assert_allclose(first.predict(x), again.predict(x), atol=1e-4)


@pytest.mark.parametrize(
    ("verifier", "options"),
    [
        (DeepJudgeVerifier, {"nb_seeds_whitebox": 2, "metric_names": ("LOD", "LAD"), "layer": "block2"}),
        (ZestVerifier, {"nb_images": 4, "nb_masks": 50, "segmenter": "grid", "grid_cells": 2}),
        (ModelDiffVerifier, {"nb_pairs": 10}),
        (IPGuardVerifier, {"nb_probes": 10, "margin": 0.5, "learning_rate": 0.01}),
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
