"""DeepJudge white-box extraction: all pairs (seed, neuron) in one batch against one pair at a time.

Both run the published procedure (target 3 times the largest activation, Adam 0.01, at most 1000 updates, no clipping)
on the same pairs and only up to the layer. One at a time, as in the official code, every update is followed by a
forward pass of its own that tests the target. Run as ``python benchmarks/bench_deepjudge.py``; ``--seeds 2`` for a
quick look.
"""

from __future__ import annotations

import argparse
import time

import torch
from art.estimators.classification import PyTorchClassifier
from digits_cnn import digits, elapsed, trained_classifier

from art_fingerprint.verifiers.deepjudge import WHITE_BOX, DeepJudgeVerifier


def one_at_a_time(
    classifier: PyTorchClassifier, seeds: torch.Tensor, depth: int, nb_neurons: int
) -> tuple[list[tuple[int, int]], int]:
    """Straightforward DeepJudge: returns the successful pairs (neuron, seed) and the number of updates."""
    head = classifier.model[:depth].eval().requires_grad_(False)
    targets = 3 * head(seeds).mean((2, 3)).amax(0)
    successes, nb_updates = [], 0
    for neuron in range(nb_neurons):
        for index, seed in enumerate(seeds):
            x = seed[None].clone().requires_grad_(True)
            adam = torch.optim.Adam([x], lr=0.01)
            for _ in range(1000):
                adam.zero_grad()
                (-head(x)[0, neuron].mean()).backward()
                adam.step()
                nb_updates += 1
                with torch.no_grad():
                    activation = head(x)[0, neuron].mean()
                if activation > targets[neuron]:
                    successes.append((neuron, index))
                    break
    return successes, nb_updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--layer", type=int, default=0, choices=(0, 1), help="block 0 (8 x 8) or 1 (4 x 4)")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batched-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    classifier = trained_classifier(width=arguments.width)
    x, y = digits()
    verifier = DeepJudgeVerifier(
        classifier,
        metric_names=WHITE_BOX,
        layer=str(arguments.layer),
        nb_seeds_whitebox=arguments.seeds,
        batch_size=arguments.batch_size,
    )

    begin = time.perf_counter(), time.process_time()
    fingerprint = verifier.extract(x[:1200], y[:1200])
    batched = elapsed(begin)
    facts = fingerprint.facts
    print(f"{facts['nb_pairs']} pairs, {facts['nb_neurons']} neurons, {arguments.threads} thread(s)")
    made = f"{facts['nb_updates']} updates, {facts['nb_tests']} tests"
    print(f"  batched          {batched[0]:8.2f} s   {batched[1]:8.2f} s CPU   {made}")
    if arguments.batched_only:
        return
    # The same seeds: the most certain right answers.
    probabilities = torch.softmax(torch.from_numpy(classifier.predict(x[:1200])).double(), 1)
    right = (probabilities.argmax(1) == torch.from_numpy(y[:1200])).nonzero()[:, 0]
    order = probabilities[right].square().sum(1).argsort(descending=True, stable=True)
    seeds = torch.from_numpy(x)[right[order[: arguments.seeds]]]
    begin = time.perf_counter(), time.process_time()
    successes, nb_updates = one_at_a_time(classifier, seeds, arguments.layer + 1, facts["nb_neurons"])
    single = elapsed(begin)
    pairs = zip(fingerprint.arrays["tests_neuron"].tolist(), fingerprint.arrays["tests_seed"].tolist(), strict=True)
    print(
        f"  one at a time    {single[0]:8.2f} s   {single[1]:8.2f} s CPU   {nb_updates} updates, {len(successes)} tests"
    )
    print(f"  same pairs succeed: {successes == list(pairs)}")
    print(f"  ratio            {single[0] / batched[0]:8.1f} x   {single[1] / batched[1]:8.1f} x")


if __name__ == "__main__":
    main()
