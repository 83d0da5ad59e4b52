"""Verifiers: extract a victim's fingerprint once, then score suspects with a calibrated verdict."""

from art_fingerprint.verifiers.akh import AKHVerifier
from art_fingerprint.verifiers.base import Metric, Verifier
from art_fingerprint.verifiers.calibration import Calibration
from art_fingerprint.verifiers.committee import CommitteeVerifier
from art_fingerprint.verifiers.committee_verdict import CommitteeVerdict
from art_fingerprint.verifiers.dataset_inference import DatasetInferenceVerifier
from art_fingerprint.verifiers.deepjudge import DeepJudgeVerifier
from art_fingerprint.verifiers.fbi import FBIVerifier
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.ipguard import IPGuardVerifier
from art_fingerprint.verifiers.modeldiff import ModelDiffVerifier
from art_fingerprint.verifiers.robustness import RobustnessVerifier
from art_fingerprint.verifiers.sac import SACVerifier
from art_fingerprint.verifiers.verdict import MetricResult, Verdict
from art_fingerprint.verifiers.weight_alignment import LayerAlignment, WeightAlignmentVerifier
from art_fingerprint.verifiers.zest import ZestVerifier

__all__ = [
    "AKHVerifier",
    "Calibration",
    "CommitteeVerdict",
    "CommitteeVerifier",
    "DatasetInferenceVerifier",
    "DeepJudgeVerifier",
    "FBIVerifier",
    "Fingerprint",
    "IPGuardVerifier",
    "LayerAlignment",
    "Metric",
    "MetricResult",
    "ModelDiffVerifier",
    "RobustnessVerifier",
    "SACVerifier",
    "Verdict",
    "Verifier",
    "WeightAlignmentVerifier",
    "ZestVerifier",
]
