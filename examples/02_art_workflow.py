"""Two red-team attacks on one ART classifier: ART's evasion of its answers, and removal of its fingerprint.

Run:  python examples/02_art_workflow.py [--quick]     (two minutes on two CPU cores; --quick: 20 seconds)

ART's PGD changes images until the victim is wrong; RemovalNet changes the model until a verifier no longer knows it.
Both take the same `PyTorchClassifier`, and what they return goes on through ART. The column "PGD on victim" is why such
images make fingerprints: what fools the victim fools its copies, and independent models less often.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.verifiers import IPGuardVerifier
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_victim


def accuracy(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """Share of right answers, as in ART's own examples."""
    return float((classifier.predict(x).argmax(axis=1) == y).mean())


def evade(classifier: PyTorchClassifier, x: np.ndarray) -> np.ndarray:
    """ART's PGD on any classifier, the victim's or ours."""
    return ProjectedGradientDescent(classifier, eps=0.15, eps_step=0.03, max_iter=10, verbose=False).generate(x)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, too short for RemovalNet")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    data, digits = load_digits(), load_preset("digits")
    recipe = replace(digits.victim_recipe, max_iter=100) if quick else digits.victim_recipe
    # With 19 references, one independent model in twenty is expected to be accused.
    victim, *references = [train_victim(digits.architecture, data, recipe, seed) for seed in range(6 if quick else 20)]
    independent = train_victim(digits.architecture, data, recipe, seed=99)

    verifier = IPGuardVerifier(victim, nb_probes=50, margin=2.0, learning_rate=1e-2, max_iter=200 if quick else 1000)
    verifier.extract(data.x_train, data.y_train)
    verifier.calibrate(references)

    steps = 30 if quick else 300
    tuning = FineTuningAttack(victim, ratio=0.8, max_iter=steps, hflip=False)
    removal = RemovalNetAttack(
        victim, layer="block1", max_iter=steps, inner_steps=10, shuffle_ratio=0.1, batch_size=64, hflip=False
    )
    suspects = {
        "victim": victim,
        "fine-tuned copy": tuning.generate(data.x_train, data.y_train),
        "RemovalNet": removal.generate(data.x_apart),  # images the victim has never seen
        "independent": independent,
    }

    adversarial = evade(victim, data.x_test)
    print(" " * 16 + "".join(f"{head:>14}" for head in ("accuracy", "under PGD", "PGD on victim")) + "   verdict")
    for name, suspect in suspects.items():
        sets = (data.x_test, evade(suspect, data.x_test), adversarial)
        shares = "".join(f"{accuracy(suspect, x, data.y_test):14.1%}" for x in sets)
        verdict = verifier.verify(suspect)
        print(f"{name:16}{shares}   {'derived' if verdict.derived else 'not derived'} (MR {verdict['MR'].value:.2f})")
    if quick:
        print("\n--quick: models are trained so little that verdicts on them mean nothing.")


if __name__ == "__main__":
    main()
