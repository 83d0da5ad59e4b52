"""ModelDiff's probes: partners by ascent on the victim, or a black-box search that spreads the models' outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from art_fingerprint.core.perturbation import linf_ascent

OBJECTIVES = ("away-from-mean", "cosine", "untargeted-ce")
CLASS_WEIGHTS = ("first-class", "uniform")
_TARGET_SCALE = 1000.0

Model = Callable[[Tensor], Tensor]
Progress = Callable[[int], object]


def _silent(_done: int) -> None:
    pass


def make_class_weights(nb_classes: int, kind: str) -> Tensor:
    """Return the weights of the classes in :func:`away_from_mean`, ``(nb_classes,)`` float32.

    ``"first-class"``: 1 for class 0 and ``0.1 / (C - 1)`` for the others (official notebook); ``"uniform"``: ``1 / C``.
    """
    if kind == "uniform":
        return torch.full((nb_classes,), 1 / nb_classes)
    weights = torch.full((nb_classes,), 0.1 / (nb_classes - 1))
    weights[0] = 1
    return weights


def away_from_mean(outputs: Tensor, seed_outputs: Tensor, mean_output: Tensor, weights: Tensor) -> Tensor:
    """Return ``D_i = sum_c w_c (f(x')_c - y_ic)^2`` with ``y_i = 1000 (mean - o_i)``, to be maximised.

    The official notebook declares the loss -D and a targeted attack, which minimises it. As ``|y| >> |f|`` this is, to
    first order, ascent of ``sum_c w_c (o_ic - mean_c) f(x')_c``: outputs leave the batch mean, mostly along class 0.

    :param outputs: ``f(x')``, ``(n, C)``.
    :param seed_outputs: ``o``, ``(n, C)``.
    :param mean_output: Mean of ``o`` over all seeds, ``(C,)``.
    :param weights: :func:`make_class_weights`, ``(C,)``.
    :return: ``(n,)``.
    """
    targets = _TARGET_SCALE * (mean_output - seed_outputs)
    return (weights * (outputs - targets).square()).sum(1)


def pgd_partners(
    logits: Model,
    seeds: Tensor,
    outputs: Tensor,
    *,
    starts: Tensor,
    objective: str,
    weights: Tensor,
    radius: Tensor,
    step: Tensor,
    max_iter: int,
    low: Tensor,
    high: Tensor,
    batch_size: int,
    device: torch.device | str = "cpu",
    progress: Progress = _silent,
) -> Tensor:
    """Return one partner per seed, by Linf-PGD on an objective of the victim's logits.

    :param logits: Inputs to logits, differentiable, row by row.
    :param seeds: ``(n, ...)`` on the host.
    :param outputs: The victim's logits on the seeds, ``(n, C)``.
    :param starts: First iterates, shape of ``seeds``.
    :param objective: ``"away-from-mean"`` (:func:`away_from_mean`), ``"cosine"``: ``1 - cos(f(x'), o_i)``, or
        ``"untargeted-ce"``: cross-entropy against the predicted label.
    :param weights: Class weights of the first objective, ``(C,)``.
    :param radius: See :func:`~art_fingerprint.core.perturbation.linf_ascent`, as the next four.
    :param step: Length of a step.
    :param max_iter: Number of steps.
    :param low: Lower bound.
    :param high: Upper bound.
    :param batch_size: Seeds in one pass; the result does not depend on it.
    :param device: Where ``logits`` runs.
    :param progress: Called with the number of seeds done, batch by batch.
    :return: ``(n, ...)`` on the host.

    Cost: ``n max_iter`` forward and as many input-only backward samples.
    """
    mean_output, weights = outputs.mean(0).to(device), weights.to(device)

    def objective_of(reference: Tensor) -> Model:
        if objective == "cosine":
            return lambda x: 1 - F.cosine_similarity(logits(x), reference)
        if objective == "untargeted-ce":
            return lambda x: F.cross_entropy(logits(x), reference.argmax(1), reduction="none")
        return lambda x: away_from_mean(logits(x), reference, mean_output, weights)

    batches = zip(*(tensor.to(device).split(batch_size) for tensor in (seeds, starts, outputs)), strict=True)
    partners = []
    for x, start, reference in batches:
        found = linf_ascent(
            objective_of(reference), x, radius=radius, step=step, max_iter=max_iter, low=low, high=high, start=start
        )
        partners.append(found.cpu())
        progress(len(x))
    return torch.cat(partners)


class Spread:
    """Departure and diversity of one model's outputs, kept up to date while single outputs are replaced.

    ``dep = mean_i |h(x_i) - h(x_i^0)|_2`` and ``div = mean_{i,j} |h(x_i) - h(x_j)|_2`` over all N^2 ordered pairs. A
    proposal costs ``O(N K)``, an update as much, instead of ``O(N^2 K)`` anew.

    :param outputs: Outputs at the start, ``(N, K)`` float64.
    :param constant_departure: RemovalNet's defect M1: the departure is taken between the initial outputs and
        themselves, by a ``cdist`` in float32 whose diagonal is exactly 0 for up to 25 inputs and a rounding residue of
        its matrix-product form for more.
    """

    def __init__(self, outputs: Tensor, constant_departure: bool = False) -> None:
        self.start = outputs
        self.outputs = outputs.clone()
        self.departures = torch.zeros(len(outputs), dtype=torch.float64)
        self.row_sums = torch.cdist(outputs, outputs, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
        self.constant: float | None = None
        if constant_departure:
            single = outputs.float()
            self.constant = float(torch.cdist(single, single).diagonal().mean())

    def propose(self, row: int, candidates: Tensor) -> Tensor:
        """Return ``dep * div`` if ``outputs[row]`` became each of ``candidates``, ``(k, K) -> (k,)``."""
        n = len(self.outputs)
        to_others = (self.outputs - candidates[:, None]).norm(dim=2)
        to_others[:, row] = 0
        total = self.row_sums.sum() + 2 * (to_others.sum(1) - self.row_sums[row])
        if self.constant is not None:
            return self.constant * total / n**2
        departed = self.departures.sum() - self.departures[row] + (candidates - self.start[row]).norm(dim=1)
        return departed / n * total / n**2

    def accept(self, row: int, output: Tensor) -> None:
        """Replace ``outputs[row]``."""
        before = (self.outputs - self.outputs[row]).norm(dim=1)
        after = (self.outputs - output).norm(dim=1)
        after[row] = 0
        self.row_sums += after - before
        self.row_sums[row] = after.sum()
        self.outputs[row] = output
        self.departures[row] = (output - self.start[row]).norm()


def search_probes(
    x: Tensor,
    models: Sequence[Model],
    *,
    step: Tensor,
    rows: Tensor,
    positions: Tensor,
    constant_departure: bool = False,
    low: float = -math.inf,
    high: float = math.inf,
    progress: Progress = _silent,
) -> tuple[Tensor, Tensor]:
    """Hill-climb ``score = prod_h dep_h * div_h`` over single input entries.

    Iteration t tries ``+step`` and ``-step`` at entry ``positions[t]`` of input ``rows[t]`` and keeps the better one if
    it strictly improves the score, which starts at 0. Source: ModelDiff's official module, with both models;
    RemovalNet's port with ``constant_departure``. The trajectory is that of the plain loop; runs of iterations on
    different inputs share one forward pass, because their candidates do not depend on each other.

    :param x: Inputs, ``(N, ...)``; not modified.
    :param models: Each maps ``(k, ...)`` inputs to ``(k, K)`` float64 outputs on the host.
    :param step: Size of a mutation at every entry, shape of one input.
    :param rows: Input of every iteration, ``(T,)``.
    :param positions: Entry of every iteration, index into the flat input, ``(T,)``.
    :param constant_departure: See :class:`Spread`.
    :param low: Lower bound of mutated entries.
    :param high: Upper bound of mutated entries.
    :param progress: Called with the number of iterations done, run by run.
    :return: The mutated inputs and, per iteration, whether its mutation was kept, ``(T,)`` bool.

    Cost: ``N + 2 T`` forward samples per model.
    """
    points = x.clone(memory_format=torch.contiguous_format)
    flat = points.view(len(points), -1)
    sizes = step.reshape(-1)
    spreads = [Spread(model(points), constant_departure) for model in models]
    accepted = torch.zeros(len(rows), dtype=torch.bool)
    best = 0.0
    for block in _distinct_runs(rows.tolist()):
        moved = positions[block]
        candidates = flat[rows[block]].unsqueeze(1).repeat(1, 2, 1)
        signs = torch.tensor([1.0, -1.0])
        entry = moved.view(-1, 1, 1).expand(-1, 2, 1)
        values = candidates.gather(2, entry) + (sizes[moved][:, None] * signs).unsqueeze(2)
        candidates.scatter_(2, entry, values.clamp(low, high))
        inputs = candidates.view(-1, *x.shape[1:])
        answers = [model(inputs).view(len(moved), 2, -1) for model in models]
        for i, t in enumerate(range(block.start, block.stop)):
            row = int(rows[t])
            scores = torch.ones(2, dtype=torch.float64)
            for spread, answer in zip(spreads, answers, strict=True):
                scores = scores * spread.propose(row, answer[i])
            scores = torch.where(torch.isfinite(scores), scores, -1.0)
            choice = int(scores.argmax())
            if float(scores[choice]) > best:
                best = float(scores[choice])
                accepted[t] = True
                flat[row] = candidates[i, choice]
                for spread, answer in zip(spreads, answers, strict=True):
                    spread.accept(row, answer[i, choice])
        progress(len(moved))
    return points, accepted


def _distinct_runs(rows: Sequence[int]) -> Iterator[slice]:
    """Cut the iterations into the longest runs in which no input occurs twice."""
    start, seen = 0, set[int]()
    for t, row in enumerate(rows):
        if row in seen:
            yield slice(start, t)
            start, seen = t, set()
        seen.add(row)
    if rows:
        yield slice(start, len(rows))
