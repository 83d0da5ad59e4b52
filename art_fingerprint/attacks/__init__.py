"""Removal attacks: derive a surrogate from a victim, to find out which verifier can be trusted."""

from art_fingerprint.attacks.adversarial_fine_tuning import AdversarialFineTuningAttack
from art_fingerprint.attacks.base import RemovalAttack
from art_fingerprint.attacks.composite import CompositeAttack
from art_fingerprint.attacks.distillation import DistillationAttack
from art_fingerprint.attacks.feature_permutation import FeaturePermutationAttack
from art_fingerprint.attacks.fine_pruning import FinePruningAttack
from art_fingerprint.attacks.fine_tuning import FineTuningAttack
from art_fingerprint.attacks.knockoff import KnockoffNetsAttack
from art_fingerprint.attacks.label_smoothing import LabelSmoothingAttack
from art_fingerprint.attacks.layer_fine_tuning import LayerFineTuningAttack
from art_fingerprint.attacks.logit_distillation import LogitDistillationAttack
from art_fingerprint.attacks.regularization import RegularizationAttack
from art_fingerprint.attacks.removalnet import RemovalNetAttack
from art_fingerprint.attacks.retraining import RetrainingAttack
from art_fingerprint.attacks.weight_noise import WeightNoiseAttack
from art_fingerprint.attacks.weight_pruning import WeightPruningAttack
from art_fingerprint.attacks.weight_quantization import WeightQuantizationAttack
from art_fingerprint.attacks.weight_shifting import WeightShiftingAttack

__all__ = [
    "AdversarialFineTuningAttack",
    "CompositeAttack",
    "DistillationAttack",
    "FeaturePermutationAttack",
    "FinePruningAttack",
    "FineTuningAttack",
    "KnockoffNetsAttack",
    "LabelSmoothingAttack",
    "LayerFineTuningAttack",
    "LogitDistillationAttack",
    "RegularizationAttack",
    "RemovalAttack",
    "RemovalNetAttack",
    "RetrainingAttack",
    "WeightNoiseAttack",
    "WeightPruningAttack",
    "WeightQuantizationAttack",
    "WeightShiftingAttack",
]
