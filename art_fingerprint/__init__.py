"""DNN fingerprint verifiers and fingerprint removal attacks for the Adversarial Robustness Toolbox.

``import art_fingerprint`` is light: classes are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from art_fingerprint._version import __version__

_EXPORTS = {
    "AKHVerifier": "verifiers",
    "AdversarialFineTuningAttack": "attacks",
    "CommitteeVerifier": "verifiers",
    "CompositeAttack": "attacks",
    "DatasetInferenceVerifier": "verifiers",
    "DeepJudgeVerifier": "verifiers",
    "DistillationAttack": "attacks",
    "FBIVerifier": "verifiers",
    "FeaturePermutationAttack": "attacks",
    "FinePruningAttack": "attacks",
    "FineTuningAttack": "attacks",
    "Fingerprint": "verifiers",
    "IPGuardVerifier": "verifiers",
    "KnockoffNetsAttack": "attacks",
    "LabelSmoothingAttack": "attacks",
    "LayerFineTuningAttack": "attacks",
    "LogitDistillationAttack": "attacks",
    "ModelDiffVerifier": "verifiers",
    "RegularizationAttack": "attacks",
    "RemovalAttack": "attacks",
    "RemovalNetAttack": "attacks",
    "RetrainingAttack": "attacks",
    "RobustnessVerifier": "verifiers",
    "SACVerifier": "verifiers",
    "Verdict": "verifiers",
    "Verifier": "verifiers",
    "WeightAlignmentVerifier": "verifiers",
    "WeightNoiseAttack": "attacks",
    "WeightPruningAttack": "attacks",
    "WeightQuantizationAttack": "attacks",
    "WeightShiftingAttack": "attacks",
    "ZestVerifier": "verifiers",
}

__all__ = ["__version__", *sorted(_EXPORTS)]  # noqa: PLE0604 - names of lazily loaded classes


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"art_fingerprint.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'art_fingerprint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
