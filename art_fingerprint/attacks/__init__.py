"""Removal attacks: derive a surrogate from a victim, to find out which verifier can be trusted."""

from art_fingerprint.attacks.base import RemovalAttack
from art_fingerprint.attacks.distillation import DistillationAttack
from art_fingerprint.attacks.fine_tuning import FineTuningAttack
from art_fingerprint.attacks.removalnet import RemovalNetAttack
from art_fingerprint.attacks.weight_pruning import WeightPruningAttack

__all__ = [
    "DistillationAttack",
    "FineTuningAttack",
    "RemovalAttack",
    "RemovalNetAttack",
    "WeightPruningAttack",
]
