"""DeepJudge's test inputs: certain seeds, adversarial examples near them, and inputs that push single neurons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from art.attacks.evasion import CarliniL2Method
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.perturbation import linf_ascent
from art_fingerprint.verifiers.optimise import optimise

_DEAD_SHARE = 1e-6


def certainty(outputs: Tensor) -> Tensor:
    """Return ``G = sum_c p_c^2`` per row, ``(n,)`` float64; of probabilities 1 minus the Gini impurity, in [1/C, 1]."""
    return outputs.double().square().sum(1)


def most_certain(outputs: Tensor, labels: Tensor, predicted: Tensor, nb_seeds: int) -> Tensor:
    """Return the indices of the correctly classified samples with the highest :func:`certainty`, highest first.

    Many confident answers saturate at 1; ties break by index.

    :param outputs: Probabilities ``(n, C)`` (RemovalNet ranks by logits).
    :param labels: True labels ``(n,)``.
    :param predicted: The victim's labels ``(n,)``.
    :param nb_seeds: Most indices to return.
    """
    right = (labels == predicted).nonzero()[:, 0]
    order = torch.argsort(certainty(outputs[right]), descending=True, stable=True)
    return right[order[:nb_seeds]]


def adversarial_examples(
    logits_of: Callable[[Tensor], Tensor],
    seeds: Tensor,
    labels: Tensor,
    *,
    radius: Tensor,
    step: Tensor,
    max_iter: int,
    noise: Tensor | None,
    low: Tensor,
    high: Tensor,
    project: bool,
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """Return untargeted Linf-adversarial examples: ascent of the cross-entropy on the true label.

    PGD, and FGSM with ``max_iter=1`` and ``step=radius``. A random start lies at ``seed + radius * noise``.

    :param logits_of: The victim, ``(n, ...) -> (n, C)`` on ``device``.
    :param seeds: ``(n, ...)`` on the host.
    :param labels: ``(n,)`` on the host.
    :param radius: Linf radius in input units, broadcastable to ``seeds``.
    :param step: Step, as ``radius``.
    :param max_iter: Number of steps.
    :param noise: Numbers in [-1, 1] of the shape of ``seeds`` for a random start, or ``None`` to start at the seeds.
    :param low: Lower bound of the inputs, as ``radius``.
    :param high: Upper bound of the inputs.
    :param project: Keep examples in the ball around the seeds.
    :param batch_size: Samples in one pass.
    :param device: Where the victim computes.
    :return: ``(n, ...)`` on the host. Cost: ``n * max_iter`` forward and backward samples.
    """
    starts = seeds if noise is None else seeds + radius * noise
    parts = []
    for rows in torch.arange(len(seeds)).split(batch_size):
        y = labels[rows].to(device)

        def objective(x: Tensor, y: Tensor = y) -> Tensor:
            return F.cross_entropy(logits_of(x), y, reduction="none")

        found = linf_ascent(
            objective,
            seeds[rows].to(device),
            radius=radius,
            step=step,
            max_iter=max_iter,
            low=low,
            high=high,
            start=starts[rows].to(device),
            project=project,
        )
        parts.append(found.cpu())
    return torch.cat(parts)


def carlini_examples(
    victim: LogitsNetwork,
    seeds: Tensor,
    labels: Tensor,
    *,
    confidence: float,
    initial_const: float,
    max_iter: int,
    clip_values: tuple[float, float],
    batch_size: int,
    verbose: bool,
) -> Tensor:
    """Return untargeted Carlini-Wagner L2 examples by ART's ``CarliniL2Method``, the seed itself where it fails.

    Learning rate 0.001 and three binary search steps as in both public codes.

    :param victim: The victim.
    :param seeds: ``(n, ...)`` on the host.
    :param labels: ``(n,)`` on the host.
    :param confidence: Margin by which another logit must win.
    :param initial_const: First trade-off constant.
    :param max_iter: Iterations in each binary search step.
    :param clip_values: Range of the inputs.
    :param batch_size: Samples in one pass.
    :param verbose: Show ART's progress bar.
    :return: ``(n, ...)`` on the host.
    """
    nb_classes = int(victim.predict(seeds[:1]).shape[1])
    with torch.cuda.device(victim.device if victim.device.type == "cuda" else -1):
        # The view puts preprocessing into the graph and gives logits whatever the model returns: the attack needs both.
        classifier = PyTorchClassifier(
            model=victim,
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=tuple(seeds.shape[1:]),
            nb_classes=nb_classes,
            clip_values=clip_values,
            preprocessing=None,
            device_type="cpu" if victim.device.type == "cpu" else "gpu",
        )
    attack = CarliniL2Method(
        classifier,
        confidence=confidence,
        learning_rate=0.001,
        binary_search_steps=3,
        max_iter=max_iter,
        initial_const=initial_const,
        batch_size=batch_size,
        verbose=verbose,
    )
    return torch.from_numpy(attack.generate(seeds.numpy(), labels.numpy()))


@dataclass(frozen=True)
class NeuronTests:
    """Inputs that push neurons beyond their targets, by neuron and then by seed, on the host.

    :ivar x: Tests ``(T, ...)``.
    :ivar neuron: Neuron of each test, ``(T,)`` int64.
    :ivar seed: Seed of each test, ``(T,)`` int64.
    :ivar nb_tasks: Pairs (seed, neuron) that were tried.
    :ivar nb_updates: Updates over all tasks.
    """

    x: Tensor
    neuron: Tensor
    seed: Tensor
    nb_tasks: int
    nb_updates: int


def live_neurons(maxima: Tensor) -> Tensor:
    """Tell which neurons have a target that means something, ``(K,) -> (K,)`` bool.

    A neuron is dead, or never positive, if its maximum is at most 1e-6 of the layer's largest: a multiple of such a
    maximum is no demand, or a wrong one.
    """
    return (maxima > 0) & (maxima > _DEAD_SHARE * maxima.max())


def neuron_tests(
    activations_of: Callable[[Tensor], Tensor],
    seeds: Tensor,
    neurons: Tensor,
    targets: Tensor,
    *,
    learning_rate: Tensor,
    max_iter: int,
    max_tests_per_neuron: int | None,
    low: float | None,
    high: float | None,
    keep_best: bool,
    stored_iterate: str,
    batch_size: int,
    device: torch.device,
    progress: Callable[[int], None] | None = None,
) -> NeuronTests:
    """Maximise ``a_i(x)`` from each seed for each neuron until ``a_i(x) > k_i``; drop the pairs that never get there.

    Adam, at least one update. All pairs run in one batch (:func:`~art_fingerprint.verifiers.optimise.optimise`):
    eval-mode networks do not mix rows, so each pair runs as if alone.

    :param activations_of: Pooled activations of the victim, ``(n, ...) -> (n, K)`` on ``device``, differentiable.
    :param seeds: Starting points ``(m, ...)`` on the host.
    :param neurons: Neuron indices ``(k,)`` int64.
    :param targets: ``k_i`` of these neurons, ``(k,)``.
    :param learning_rate: Step of Adam in input units, broadcastable to ``seeds``.
    :param max_iter: Most updates of a pair.
    :param max_tests_per_neuron: Keep the first so many successful seeds of a neuron and try hardly more seeds than that
        takes; ``None`` tries all.
    :param low: Lower clip bound, or ``None``.
    :param high: Upper clip bound, or ``None``.
    :param keep_best: Give a neuron without success its best attempt from the first seed (RemovalNet).
    :param stored_iterate: ``"tested"`` stores the iterate that passed, ``"next"`` the one after it (RemovalNet).
    :param batch_size: Pairs in one pass.
    :param device: Where the victim computes.
    :param progress: Called with the number of finished pairs.

    Cost with ``T_b`` updates of pair b: ``sum_b (T_b + 1)`` forward and about ``sum_b T_b`` backward samples, up to the
    layer only.
    """
    nb_seeds, nb_neurons = len(seeds), len(neurons)
    wanted = nb_seeds if max_tests_per_neuron is None else min(max_tests_per_neuron, nb_seeds)
    successes = torch.zeros(nb_neurons, dtype=torch.int64)
    tried = torch.zeros(nb_neurons, dtype=torch.int64)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    spare: list[tuple[Tensor, Tensor, Tensor]] = []
    nb_tasks = nb_updates = 0
    # Rounds: each neuron tries as many further seeds, in their order, as it still needs tests (once, if it needs all).
    # Stubborn neurons try four times as many in each round, so that small rounds do not follow one another for long.
    boldness = 1
    while True:
        count = torch.minimum((wanted - successes).clamp_min(0) * boldness, nb_seeds - tried)
        if not count.any():
            break
        boldness *= 4
        entry = torch.repeat_interleave(torch.arange(nb_neurons), count)
        place = torch.arange(len(entry)) - torch.repeat_interleave(count.cumsum(0) - count, count)
        seed = tried[entry] + place
        column, limit = neurons[entry].to(device), targets[entry].to(device)

        def objective(x: Tensor, rows: Tensor, column: Tensor = column, limit: Tensor = limit) -> tuple[Tensor, Tensor]:
            value = activations_of(x).gather(1, column[rows][:, None])[:, 0]
            return -value, value > limit[rows]

        found = optimise(
            objective,
            seeds,
            index=seed,
            learning_rate=learning_rate,
            max_iter=max_iter,
            low=low,
            high=high,
            at_least_one_update=True,
            keep="best" if keep_best else "last",
            store="next" if stored_iterate == "next" else "stop",
            batch_size=batch_size,
            device=device,
            progress=progress,
        )
        hit = found.converged
        kept.append((entry[hit], seed[hit], found.x[hit]))
        if keep_best:
            first = (seed == 0) & ~hit
            spare.append((entry[first], seed[first], found.x[first]))
        successes += torch.bincount(entry[hit], minlength=nb_neurons)
        tried += count
        nb_tasks += len(entry)
        nb_updates += int(found.updates.sum())
    for entry, seed, x in spare:
        empty = successes[entry] == 0
        kept.append((entry[empty], seed[empty], x[empty]))
    entries, seed_index, tests = (torch.cat(parts) for parts in zip(*kept, strict=True))
    order = torch.argsort(entries * nb_seeds + seed_index)
    order = order[first_per_neuron(entries[order], wanted)]
    return NeuronTests(tests[order], neurons[entries[order]], seed_index[order], nb_tasks, nb_updates)


def first_per_neuron(neuron: Tensor, count: int) -> Tensor:
    """Return the indices of the first ``count`` tests of every neuron, in order, for a sorted ``neuron`` ``(T,)``."""
    _, counts = neuron.unique_consecutive(return_counts=True)
    place = torch.arange(len(neuron)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return (place < count).nonzero()[:, 0]
