"""Verifiers: extract a victim's fingerprint once, then score suspects with a calibrated verdict."""

from art_fingerprint.verifiers.base import Metric, Verifier
from art_fingerprint.verifiers.calibration import Calibration
from art_fingerprint.verifiers.deepjudge import DeepJudgeVerifier
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.ipguard import IPGuardVerifier
from art_fingerprint.verifiers.modeldiff import ModelDiffVerifier
from art_fingerprint.verifiers.robustness import RobustnessVerifier
from art_fingerprint.verifiers.verdict import MetricResult, Verdict
from art_fingerprint.verifiers.weight_alignment import LayerAlignment, WeightAlignmentVerifier
from art_fingerprint.verifiers.zest import ZestVerifier

__all__ = [
    "Calibration",
    "DeepJudgeVerifier",
    "Fingerprint",
    "IPGuardVerifier",
    "LayerAlignment",
    "Metric",
    "MetricResult",
    "ModelDiffVerifier",
    "RobustnessVerifier",
    "Verdict",
    "Verifier",
    "WeightAlignmentVerifier",
    "ZestVerifier",
]
