"""IPGuard extraction: one batch with per-point stopping against one point at a time.

Both run the same algorithm (margin 10, Adam 0.001, at most 1000 updates, clip to [0, 1]) on the same starts and stop at
the same iterates. Run as ``python benchmarks/bench_ipguard.py``; ``--probes 20`` for a quick look.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from digits_cnn import digits, elapsed, trained_classifier

from art_fingerprint.verifiers.ipguard import IPGuardVerifier


def one_at_a_time(
    classifier: PyTorchClassifier, x: np.ndarray, margin: float, max_iter: int, learning_rate: float
) -> tuple[list[int], list[int]]:
    """Straightforward IPGuard: returns labels and numbers of updates."""
    network = classifier.model.eval().requires_grad_(False)
    labels, updates = [], []
    for image in torch.from_numpy(x):
        point = image[None].clone()
        logits = network(point)[0]
        i, j = int(logits.argmax()), int(logits.argmin())
        others = torch.tensor([c for c in range(len(logits)) if c not in (i, j)])
        point.requires_grad_(True)
        adam = torch.optim.Adam([point], lr=learning_rate)
        for t in range(max_iter + 1):
            logits = network(point)[0]
            loss = torch.relu(logits[i] - logits[j] + margin) + torch.relu(logits[others].max() - logits[i])
            if loss.item() <= 0 or t == max_iter:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                point.clamp_(0, 1)
        labels.append(int(logits.argmax()))
        updates.append(t)
    return labels, updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--margin", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    classifier = trained_classifier()
    x = digits()[0][: arguments.probes]
    verifier = IPGuardVerifier(classifier, nb_probes=arguments.probes, margin=arguments.margin, initial_points="first")

    begin = time.perf_counter(), time.process_time()
    fingerprint = verifier.extract(x)
    batched = elapsed(begin)
    begin = time.perf_counter(), time.process_time()
    labels, updates = one_at_a_time(classifier, x, arguments.margin, verifier.max_iter, verifier.learning_rate)
    single = elapsed(begin)

    facts = fingerprint.facts
    same = float(np.mean(fingerprint.arrays["labels"] == np.array(labels)))
    print(f"{arguments.probes} points, {arguments.threads} thread(s), margin {arguments.margin:g}")
    print(f"  {facts['nb_converged']} converged, labels agree on {same:.0%}")
    print(f"  batched          {batched[0]:8.2f} s   {batched[1]:8.2f} s CPU   {facts['nb_updates']} updates")
    print(f"  one at a time    {single[0]:8.2f} s   {single[1]:8.2f} s CPU   {sum(updates)} updates")
    print(f"  ratio            {single[0] / batched[0]:8.1f} x   {single[1] / batched[1]:8.1f} x")


if __name__ == "__main__":
    main()
