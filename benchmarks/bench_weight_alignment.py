"""Scoring a suspect by weight alignment: sketches and groups that changed, against whole weights in every sweep.

Both match the same groups of the same balanced filters, with an optimal assignment for each group and at most ten
sweeps. The straightforward version is weight matching as published (Git Re-Basin, section 3.2): products of whole
weights, every group in every sweep. Run as ``python benchmarks/bench_weight_alignment.py``; ``--model resnet18`` for a
quick look, ``--whole 0`` to leave the straightforward version out.
"""

from __future__ import annotations

import argparse
import copy
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from art.estimators.classification import PyTorchClassifier
from digits_cnn import elapsed
from scipy.optimize import linear_sum_assignment
from torch import nn

from art_fingerprint.attacks import FeaturePermutationAttack
from art_fingerprint.core.channel_groups import ChannelGroups, find_groups
from art_fingerprint.verifiers.weight_alignment import WeightAlignmentVerifier
from art_fingerprint.verifiers.weight_sketch import balanced, read_filters


def whole_weights(victim: nn.Module, suspect: nn.Module, groups: ChannelGroups, sweeps: int = 10) -> float:
    """Straightforward weight matching of networks without grouped convolutions: returns the mean cosine."""
    pairs = []
    for axes in groups.weights:
        both = [balanced(read_filters(network, axes))[0] for network in (victim, suspect)]
        pairs.append((axes, *both))
    orders = {index: torch.arange(group.size) for index, group in enumerate(groups.groups)}

    def joined(segments: tuple) -> torch.Tensor:
        starts = np.cumsum([0, *(segment.channels for segment in segments)])
        return torch.cat([orders[s.group] + int(start) for s, start in zip(segments, starts, strict=False)])

    for _ in range(sweeps):
        changed = False
        for index, group in enumerate(groups.groups):
            if group.pinned:
                continue
            gains = torch.zeros(group.size, group.size)
            for axes, ours, theirs in pairs:
                start = 0
                for segment in axes.rows:
                    rows = slice(start, start + segment.channels)
                    if segment.group == index:
                        moved = theirs[rows][:, joined(axes.columns)] if axes.columns else theirs[rows]
                        gains += ours[rows].flatten(1) @ moved.flatten(1).T
                    start += segment.channels
                start = 0
                for segment in axes.columns:
                    columns = slice(start, start + segment.channels)
                    if segment.group == index:
                        left = ours[:, columns].transpose(0, 1).flatten(1)
                        gains += left @ theirs[joined(axes.rows)][:, columns].transpose(0, 1).flatten(1).T
                    start += segment.channels
            order = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
            changed |= not torch.equal(order, orders[index])
            orders[index] = order
        if not changed:
            break
    cosines = []
    for axes, ours, theirs in pairs:
        moved = theirs[joined(axes.rows)]
        moved = moved[:, joined(axes.columns)] if axes.columns else moved
        cosines.append(float(nn.functional.cosine_similarity(ours.flatten(1), moved.flatten(1)).mean()))
    return float(np.mean(cosines))


def wrap(network: nn.Module, side: int) -> PyTorchClassifier:
    return PyTorchClassifier(
        network.eval(), nn.CrossEntropyLoss(), (3, side, side), 1000, clip_values=(0.0, 1.0), device_type="cpu"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    victim, other = (timm.create_model(arguments.model, zero_init_last=False) for _ in range(2))
    x = np.random.default_rng(0).random((1, 3, arguments.side, arguments.side), dtype=np.float32)
    changed = copy.deepcopy(victim)
    with torch.no_grad():
        for weight in changed.parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn_like(weight) * weight.std())  # cosine 0.71
    suspects = {
        "permuted, cosine 0.71": FeaturePermutationAttack(wrap(changed, arguments.side)).generate(x),
        "independent": wrap(other, arguments.side),
    }
    verifier = WeightAlignmentVerifier(wrap(victim, arguments.side))
    begin = time.perf_counter(), time.process_time()
    fingerprint = verifier.extract(x)
    extraction = elapsed(begin)
    with tempfile.TemporaryDirectory() as folder:
        size = fingerprint.save(Path(folder) / "f").stat().st_size
    weights = sum(weight.numel() * 4 for weight in victim.parameters())
    print(f"{arguments.model}, {arguments.threads} threads")
    print(f"  extraction             {extraction[0]:8.2f} s   {extraction[1]:8.2f} s CPU")
    print(f"  fingerprint            {size / 1e6:8.1f} MB  of {weights / 1e6:.1f} MB of weights")
    for name, suspect in suspects.items():
        begin = time.perf_counter(), time.process_time()
        scores = verifier.score(suspect)
        ours = elapsed(begin)
        print(f"  {name}: WA {scores['WA']:.4f}, p {scores['WA_p']:.2g}")
        print(f"    sketches             {ours[0]:8.2f} s   {ours[1]:8.2f} s CPU")
        print(f"    peak memory so far   {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB")
        if arguments.whole:
            groups = find_groups(victim, torch.from_numpy(x))
            begin = time.perf_counter(), time.process_time()
            cosine = whole_weights(victim, suspect.model, groups)
            whole = elapsed(begin)
            print(f"    whole weights        {whole[0]:8.2f} s   {whole[1]:8.2f} s CPU   mean cosine {cosine:.4f}")
            print(f"    ratio                {whole[0] / ours[0]:8.1f} x   {whole[1] / ours[1]:8.1f} x")


if __name__ == "__main__":
    main()
