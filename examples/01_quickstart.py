"""Extract a fingerprint, attack the victim in an ART workflow, and see who is recognised.

Run:  python examples/01_quickstart.py [--quick]     (under a minute on two CPU cores; --quick: 20 seconds)
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.evaluation.fidelity import accuracy
from art_fingerprint.verifiers import Fingerprint, ZestVerifier
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.datasets import load_digits


def train(data, seed: int, nb_epochs: int) -> PyTorchClassifier:
    """Train a classifier with ART alone, the way any ART user does."""
    torch.manual_seed(seed)
    network = SmallCNN()
    classifier = PyTorchClassifier(
        network,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(network.parameters(), lr=5e-3),
        input_shape=data.input_shape,
        nb_classes=data.nb_classes,
        clip_values=(0.0, 1.0),
    )
    classifier.fit(data.x_train, data.y_train, batch_size=64, nb_epochs=nb_epochs, drop_last=True)
    return classifier


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer epochs and iterations, too few for RemovalNet")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    data = load_digits()
    epochs = 6 if quick else 15
    victim = train(data, seed=0, nb_epochs=epochs)

    # The owner's side: extract once, calibrate on independently trained models, keep a file.
    verifier = ZestVerifier(victim, nb_images=64, nb_masks=200, segmenter="auto", batch_size=512)
    fingerprint = verifier.extract(data.x_train, data.y_train)
    verifier.calibrate([train(data, seed, epochs) for seed in range(1, 6)])
    path = fingerprint.save(Path(tempfile.mkdtemp()) / "victim.zest.safetensors")

    # The red team's side: a fine-tuned copy, and RemovalNet on images that the victim has never seen.
    steps = 30 if quick else 300
    copy = FineTuningAttack(victim, ratio=0.8, max_iter=steps, hflip=False).generate(data.x_train, data.y_train)
    removal = RemovalNetAttack(victim, max_iter=steps, shuffle_ratio=0.1, batch_size=64, hflip=False, verbose=True)
    surrogate = removal.generate(data.x_apart)

    # A third party has the file and no victim.
    judge = ZestVerifier.from_fingerprint(Fingerprint.load(path))
    independent = train(data, seed=99, nb_epochs=epochs)
    for name, suspect in (("fine-tuned", copy), ("RemovalNet", surrogate), ("independent", independent)):
        print(f"\n{name}, accuracy {accuracy(suspect, data.x_test, data.y_test):.1%}")
        print(judge.verify(suspect))
    if quick:
        print("\n--quick: models are trained so little that verdicts on them mean nothing.")


if __name__ == "__main__":
    main()
