"""A preset that runs in a second: a network of width 4, a few optimiser steps, small fingerprints."""

from __future__ import annotations

from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.presets import AttackSetting, Preset
from art_fingerprint.zoo.recipes import Recipe


def small(width: int = 4) -> SmallCNN:
    """Return a narrow network."""
    return SmallCNN(width=width)


def tiny() -> Preset:
    """Return the preset ``tiny``."""
    return Preset(
        name="tiny",
        dataset="digits",
        architecture=small,
        victim_recipe=Recipe(learning_rate=5e-2, max_iter=60, batch_size=32),
        negative_recipe=Recipe(learning_rate=5e-2, max_iter=30, batch_size=32),
        subset_ratio=0.1,
        attacks={
            "FT(0.5)": AttackSetting("FineTuningAttack", {"ratio": 0.5, "max_iter": 2, "hflip": False}, "train", True),
            "RemovalNet(apart)": AttackSetting(
                "RemovalNetAttack",
                {"layer": "block2", "max_iter": 2, "inner_steps": 2, "shuffle_ratio": 0.3, "hflip": False},
                "apart",
                False,
            ),
        },
        verifiers={
            "IPGuardVerifier": {"nb_probes": 20, "margin": 0.0, "learning_rate": 0.05, "max_iter": 60},
            "ZestVerifier": {"nb_images": 10, "nb_masks": 24, "metric_names": ("ZEST-L2", "ZEST-cosine")},
        },
        nb_references=2,
        threads=1,
        reason="For tests.",
    )
