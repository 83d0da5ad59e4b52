"""Judge services of others with nothing but two fingerprint files: no victim, no references, no network to look into.

Run:  python examples/03_query_only_suspect.py [--quick]     (two minutes on two CPU cores; --quick: half a minute)
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier, SklearnClassifier
from sklearn.neural_network import MLPClassifier

from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.verifiers import Fingerprint, IPGuardVerifier, ZestVerifier
from art_fingerprint.zoo.datasets import load_digits
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import train_victim


def write_files(victim: PyTorchClassifier, references: list[PyTorchClassifier], data, folder: Path) -> None:
    """The owner's side: one fingerprint for services that answer scores, one for those that answer labels only."""
    zest = ZestVerifier(victim, nb_images=64, nb_masks=200, batch_size=512)
    ipguard = IPGuardVerifier(victim, nb_probes=50, margin=1.0, learning_rate=0.01, max_iter=300)
    for name, verifier in (("zest", zest), ("ipguard", ipguard)):
        verifier.extract(data.x_train, data.y_train)
        verifier.calibrate(references).fingerprint.save(folder / f"{name}.safetensors")


def judge(suspect, folder: Path, outputs: str) -> None:
    """The third party's side: read the file that fits what the service answers, send no more than 10000 images."""
    if outputs == "labels":
        verifier = IPGuardVerifier.from_fingerprint(Fingerprint.load(folder / "ipguard.safetensors"))
    else:
        verifier = ZestVerifier.from_fingerprint(Fingerprint.load(folder / "zest.safetensors"))
    print(verifier.verify(suspect, outputs=outputs, budget=10_000))


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter training")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    data, digits = load_digits(), load_preset("digits")
    recipe = replace(digits.victim_recipe, max_iter=80) if quick else digits.victim_recipe
    victim, *references = [train_victim(digits.architecture, data, recipe, seed) for seed in range(6)]
    folder = Path(tempfile.mkdtemp())
    write_files(victim, references, data, folder)

    # Two services. One runs a fine-tuned copy of the victim behind a function, and rounds what it answers.
    copy = FineTuningAttack(victim, max_iter=100, hflip=False).generate(data.x_train, data.y_train)

    def scores(x):
        return torch.softmax(torch.from_numpy(copy.predict(x)), 1).numpy().round(3)

    def labels(x):
        return copy.predict(x).argmax(1)

    # The other was never near it.
    network = MLPClassifier(solver="lbfgs", max_iter=500, random_state=0).fit(
        data.x_train.reshape(len(data.x_train), -1), data.y_train
    )

    print("\na copy that answers rounded probabilities")
    judge(BlackBoxClassifierNeuralNetwork(scores, data.input_shape, data.nb_classes), folder, "probabilities")
    print("\nthe same copy answers labels")
    judge(BlackBoxClassifierNeuralNetwork(labels, data.input_shape, data.nb_classes), folder, "labels")
    print("\nan independent network of scikit-learn's")
    judge(SklearnClassifier(network), folder, "probabilities")
    judge(SklearnClassifier(network), folder, "labels")


if __name__ == "__main__":
    main()
