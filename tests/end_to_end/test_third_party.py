"""An owner writes fingerprint files; someone else, in another process, reads them and judges services of others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from art_fingerprint.verifiers import DeepJudgeVerifier, Fingerprint, IPGuardVerifier, ModelDiffVerifier, ZestVerifier
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_victim

# What the third party runs: no victim, no references, only files and services.
STRANGER = """
import json, sys
import numpy as np
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, SklearnClassifier
from sklearn.ensemble import RandomForestClassifier
from art_fingerprint import verifiers
from art_fingerprint.verifiers import Fingerprint
from art_fingerprint.zoo.datasets import load_digits

torch.set_num_threads(1)
data = load_digits()
flat = data.x_train.reshape(len(data.x_train), -1)
forest = RandomForestClassifier(random_state=0).fit(flat, data.y_train)

def labels(x):
    assert x.shape[1:] == (8, 8, 1)
    return forest.predict(x.reshape(len(x), -1))

services = {
    "scores": (SklearnClassifier(forest), "probabilities"),
    "labels": (BlackBoxClassifierNeuralNetwork(labels, (8, 8, 1), 10, channels_first=False), "auto"),
}
for path in sys.argv[1:]:
    fingerprint = Fingerprint.load(path)
    judge = getattr(verifiers, fingerprint.verifier).from_fingerprint(fingerprint)
    assert judge.estimator is None
    for name, (service, outputs) in services.items():
        try:
            verdict = judge.verify(service, outputs=outputs, budget=20_000).to_dict()
        except verifiers.base.FingerprintError as error:
            verdict = {"verifier": fingerprint.verifier, "refused": str(error)}
        print(json.dumps({"service": name, **verdict}))
"""


@pytest.mark.filterwarnings("ignore:Only .* points crossed")
def test_a_stranger_reads_what_the_owner_would(tmp_path: Path) -> None:
    """Verdicts from files alone carry values, rates and words; services that answer too little are refused or skipped.

    They are those that the owner's own verifiers give.
    """
    data, digits = load_digits(), load_preset("digits")
    recipe = replace(digits.victim_recipe, max_iter=60)
    victim, *references = [train_victim(digits.architecture, data, recipe, seed, "cpu") for seed in range(4)]
    owners = [
        ZestVerifier(victim, nb_images=20, nb_masks=60, segmenter="grid", grid_cells=4),
        ModelDiffVerifier(victim, nb_pairs=30, max_iter=5),
        DeepJudgeVerifier(victim, metric_names=["RobD", "JSD"], nb_seeds=60, radius=0.3),
        IPGuardVerifier(victim, nb_probes=30, margin=0.5, learning_rate=0.02, max_iter=60),
    ]
    paths = []
    for owner in owners:
        fingerprint = owner.extract(data.x_train, data.y_train)
        owner.calibrate(references)
        paths.append(fingerprint.save(tmp_path / f"{fingerprint.verifier}.safetensors"))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, paths)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = {(line["verifier"], line["service"]): line for line in map(json.loads, done.stdout.splitlines())}
    assert len(told) == 8
    for path, owner in zip(paths, owners, strict=True):
        name = type(owner).__name__
        check_complete(
            told[name, "scores"],
            Fingerprint.load(path),
            [metric.name for metric in owner.metrics if owner.wants(metric.name)],
        )
    assert all("label-only" in told[name, "labels"]["refused"] for name in ("ZestVerifier", "ModelDiffVerifier"))
    assert set(told["DeepJudgeVerifier", "labels"]["skipped"]) == {"JSD"}
    for name, metric in (("DeepJudgeVerifier", "RobD"), ("IPGuardVerifier", "MR")):
        scores, labels = (told[name, service] for service in ("scores", "labels"))
        assert labels["metrics"][metric] == scores["metrics"][metric]  # the forest's labels are those of its scores
        assert labels["derived"] is labels["metrics"][metric]["derived"]
        check_complete(labels, Fingerprint.load(tmp_path / f"{name}.safetensors"), [metric])


def check_complete(verdict: dict[str, Any], fingerprint: Fingerprint, names: list[str]) -> None:
    """Everything that somebody who was not there needs is in the verdict."""
    calibration = fingerprint.calibration
    assert calibration is not None
    assert verdict["fingerprint_digest"] == fingerprint.digest
    assert verdict["complete"] is True
    assert verdict["derived"] in (True, False)
    assert 0 < verdict["queries"] <= 20_000
    assert verdict["nb_references"] == 3
    assert verdict["false_positive_rate"] == 1 / 4
    assert 1 / 4 <= verdict["verdict_false_positive_rate"] <= 1
    assert "like the 3 references, one metric is expected to call at most 25.0% derived" in verdict["meaning"]
    assert set(names) <= set(verdict["metrics"])
    for name, result in verdict["metrics"].items():
        known = calibration.within(name, result["space"])
        assert known is not None
        assert result["threshold"] == known.thresholds[name]
        assert verdict["references"][name] == list(known.references[name])
        nearer = np.less if result["direction"] == "distance" else np.greater
        assert result["derived"] is bool(nearer(result["value"], result["threshold"]))
        assert result["p_value"] in (1 / 4, 2 / 4, 3 / 4, 1)
