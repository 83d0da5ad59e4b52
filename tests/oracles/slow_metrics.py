"""Every metric of the four verifiers once more: plain loops over samples, neurons and masks, in float64.

Written from the published definitions, to be read beside them; nothing here imports the package, and nothing here is
meant to be fast. A *model* is a function from one image ``(C, H, W)`` to its answer ``(classes,)``, a *layer* one from
an image to that layer's output without the batch axis. A *network* is what torch differentiates, the one thing left to
it: from a batch of one image. Rows are answers to one image each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Model = Callable[[Array], Array]
Network = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------------- answers
def answers(model: Model, images: Iterable[Array]) -> Array:
    """Ask one image after the other."""
    return np.stack([model(image) for image in images])


def softmax(logits: Array) -> Array:
    powers = [math.exp(z - max(logits)) for z in logits]
    return np.array([power / sum(powers) for power in powers])


def probabilities(logits: Array) -> Array:
    return np.stack([softmax(row) for row in logits])


def label(answer: Array) -> int:
    """Return the first of the largest entries."""
    best = 0
    for c in range(len(answer)):
        if answer[c] > answer[best]:
            best = c
    return best


def thin(rows: Array, margin: float) -> int:
    """Return how many rows have their two largest entries so near each other that rounding may change the label."""
    ordered = [sorted(row) for row in rows]
    return sum(row[-1] - row[-2] < margin for row in ordered)


# ---------------------------------------------------------------------- DeepJudge, black-box
def certainty(scores: Array) -> float:
    return float(sum(p * p for p in scores))


def certain_order(scores: Array, labels: Sequence[int], count: int) -> list[int]:
    """Return the indices of the ``count`` most certain right answers; of equals the first."""
    right = [i for i, y in enumerate(labels) if label(scores[i]) == y]
    return sorted(right, key=lambda i: -certainty(scores[i]))[:count]


def robustness(rows: Array, labels: Sequence[int]) -> float:
    return sum(label(row) == y for row, y in zip(rows, labels, strict=True)) / len(rows)


def divergence(p: Array, twice: Array) -> float:
    """Return ``KL(p | m)`` for ``m = twice / 2``, without halving numbers that are all but zero."""
    return sum(a * math.log(2 * a / b) for a, b in zip(p, twice, strict=True) if a > 0)


def jensen_shannon(victim: Array, suspect: Array) -> float:
    """Mean over rows of probabilities."""
    total = 0.0
    for p, q in zip(victim, suspect, strict=True):
        p, q = p / p.sum(), q / q.sum()
        total += (divergence(p, p + q) + divergence(q, p + q)) / 2
    return total / len(victim)


# ---------------------------------------------------------------------- DeepJudge, white-box
def pooled(output: Array, pooling: str = "channel") -> Array:
    """Return one value per channel of ``(K, H, W)``, per feature of ``(T, D)``; or one per image column."""
    if pooling == "last-axis":
        return np.array([output[..., k].mean() for k in range(output.shape[-1])])
    if output.ndim == 3:
        return np.array([channel.mean() for channel in output])
    if output.ndim == 2:
        return np.array([output[:, k].mean() for k in range(output.shape[1])])
    return output


def activations(layer: Model, tests: Array, pooling: str = "channel") -> Array:
    return np.stack([pooled(layer(test), pooling) for test in tests])


def relative(u: Array) -> list[float]:
    """Return activations between the smallest (0) and the largest (1) of the layer."""
    return [(a - min(u)) / (max(u) - min(u) + 1e-6) for a in u]


def active(u: Array) -> list[int]:
    return [int(a > 0.5) for a in relative(u)]


def nearly_half(rows: Array, within: float) -> int:
    """Return how many activations are so near the threshold that rounding may binarise them either way."""
    return sum(abs(a - 0.5) < within for u in rows for a in relative(u))


def layer_output_distance(a: Array, b: Array, order: float = 2) -> float:
    lengths = [sum(abs(s - t) ** order for s, t in zip(u, v, strict=True)) ** (1 / order) for u, v in pairs(a, b)]
    return sum(lengths) / len(a)


def layer_activation_distance(a: Array, b: Array) -> float:
    return sum(sum(s != t for s, t in zip(active(u), active(v), strict=True)) for u, v in pairs(a, b)) / len(a)


def neuron_output_distance(a: Array, b: Array, neurons: Sequence[int]) -> float:
    return sum(abs(u[k] - v[k]) for (u, v), k in zip(pairs(a, b), neurons, strict=True)) / len(a)


def normalised_neuron_output_distance(a: Array, b: Array, neurons: Sequence[int]) -> float:
    """Divide by the neuron's largest activation in the victim; a neuron that is never positive counts as 0."""
    peaks = {k: max(u[k] for u in a) for k in neurons}
    gaps = [abs(u[k] - v[k]) / peaks[k] for (u, v), k in zip(pairs(a, b), neurons, strict=True) if peaks[k] > 0]
    return sum(gaps) / len(a)


def neuron_activation_distance(a: Array, b: Array, neurons: Sequence[int]) -> float:
    return sum(active(u)[k] != active(v)[k] for (u, v), k in zip(pairs(a, b), neurons, strict=True)) / len(a)


def pairs(a: Array, b: Array) -> list[tuple[Array, Array]]:
    return list(zip(a, b, strict=True))


# ---------------------------------------------------------------------- ZEST
def grid(height: int, width: int, cells: int) -> Array:
    """Return the fields of a chessboard, ``cells`` or as many as there are pixels along each side, by rows."""
    g = min(cells, height, width)
    return np.array([[(r * g // height) * g + c * g // width for c in range(width)] for r in range(height)])


def masked(image: Array, segments: Array, mask: Array, fill: Array) -> Array:
    """Show the segments whose mask is 1, the fill elsewhere."""
    shown = image.astype(np.float64).copy()
    for r in range(segments.shape[0]):
        for c in range(segments.shape[1]):
            if mask[segments[r, c]] == 0:
                shown[:, r, c] = fill[:, r, c]
    return shown


def surrogate_weights(model: Model, image: Array, segments: Array, masks: Array, fill: Array) -> Array:
    """Return the unweighted least squares without intercept of the answers on the masks, ``(F, classes)``."""
    rows = answers(model, [masked(image, segments, mask, fill) for mask in masks])
    return np.stack([np.linalg.lstsq(masks.astype(np.float64), y, rcond=None)[0] for y in rows.T], axis=1)


def signature(model: Model, images: Array, segments: Array, masks: Sequence[Array], fill: Array) -> Array:
    fill = np.broadcast_to(fill, images.shape[1:]).astype(np.float64)
    parts = [surrogate_weights(model, *one, fill) for one in zip(images, segments, masks, strict=True)]
    return np.concatenate(parts)


def zest_probes(arrays: Mapping[str, Array]) -> tuple[Array, Array, list[Array], Array]:
    """Return images, segments, masks and fill of a fingerprint, whose masks are packed in bits."""
    counts = [int(segments.max()) + 1 for segments in arrays["segments"]]
    masks = [np.unpackbits(bits, axis=1)[:, :count] for bits, count in zip(arrays["masks"], counts, strict=True)]
    return arrays["images"], arrays["segments"], masks, arrays["fill"]


def vector_distance(u: Array, v: Array, norm: str) -> float:
    gaps = [abs(a - b) for a, b in zip(u, v, strict=True)]
    if norm == "L1":
        return math.fsum(gaps)
    if norm == "L2":
        return math.sqrt(math.fsum(g * g for g in gaps))
    if norm == "Linf":
        return max(gaps)
    return 1 - cosine(u, v)


def signature_distance(victim: Array, suspect: Array, norm: str, align: str = "greedy") -> float:
    few, many = (suspect, victim) if suspect.shape[1] < victim.shape[1] else (victim, suspect)
    costs = np.array([[vector_distance(a, b, norm) for b in many.T] for a in few.T])
    partner = {"greedy": greedy, "hungarian": cheapest, "identity": lambda c: list(range(len(c)))}[align](costs)
    return vector_distance(few.flatten(), many[:, partner].flatten(), norm)


def greedy(costs: Array) -> list[int]:
    """Pair the smallest entry's row and column, strike both out, and so on."""
    partner: dict[int, int] = {}
    while len(partner) < len(costs):
        free = [
            (costs[j, k], j, k)
            for j, k in itertools.product(range(costs.shape[0]), range(costs.shape[1]))
            if j not in partner and k not in partner.values()
        ]
        _, j, k = min(free)
        partner[j] = k
    return [partner[j] for j in range(len(costs))]


def cheapest(costs: Array) -> list[int]:
    """Return the assignment of least total cost among all."""
    every = itertools.permutations(range(costs.shape[1]), costs.shape[0])
    return list(min(every, key=lambda order: sum(costs[j, k] for j, k in enumerate(order))))


# ---------------------------------------------------------------------- ModelDiff
def cosine(u: Array, v: Array) -> float:
    """Two zero vectors are alike, a zero vector and another are not."""
    lengths = math.sqrt(math.fsum(a * a for a in u)), math.sqrt(math.fsum(b * b for b in v))
    if not all(lengths):
        return float(not any(lengths))
    return math.fsum(a * b for a, b in zip(u, v, strict=True)) / (lengths[0] * lengths[1])


def decision_distances(seeds: Array, partners: Array) -> Array:
    """Return the decision distance vector of a model's answers on seeds and partners."""
    return np.array([1 - cosine(u, v) for u, v in zip(seeds, partners, strict=True)])


def decision_similarity(victim: Array, suspect: Array) -> float:
    """Compare two models by their answers on all seeds and then on all partners."""
    half = len(victim) // 2
    return cosine(*(decision_distances(rows[:half], rows[half:]) for rows in (victim, suspect)))


def matrix_distance(victim: Array, suspect: Array) -> float:
    """Compare the Euclidean distances among a model's answers on all inputs."""
    f, g = (np.array([vector_distance(u, v, "L2") for u in rows for v in rows]) for rows in (victim, suspect))
    return 1 - (1 + cosine(f, g)) / 2


# ---------------------------------------------------------------------- IPGuard
def matching_rate(victim: Array, suspect: Array) -> float:
    return sum(label(u) == label(v) for u, v in zip(victim, suspect, strict=True)) / len(victim)


# ---------------------------------------------------------------------- extraction
class Adam:
    """Adam of one input, written out."""

    def __init__(self, rate: float | Array) -> None:
        self.rate, self.count = rate, 0
        self.first = self.second = np.zeros(())

    def step(self, gradient: Array) -> Array:
        """Return what is to be subtracted."""
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return self.rate * first / (np.sqrt(second) + 1e-8)


def gradient_of(value: Callable[[Tensor], Tensor], image: Array) -> tuple[float, Array]:
    """Return a value at one image and its gradient."""
    leaf = torch.from_numpy(np.asarray(image, dtype=np.float64)).requires_grad_(True)
    found = value(leaf[None])
    (slope,) = torch.autograd.grad(found, leaf)
    return float(found.detach()), slope.numpy()


def boundary_loss(logits: Tensor, source: int, target: int, margin: float) -> Tensor:
    others = [z for c, z in enumerate(logits) if c not in (source, target)]
    second = torch.relu(max(others) - logits[source]) if others else torch.zeros(())
    return torch.relu(logits[source] - logits[target] + margin) + second


@dataclass(frozen=True)
class Point:
    """Where a descent ended."""

    image: Array
    converged: bool
    updates: int
    source: int
    target: int


def boundary_point(
    network: Network,
    start: Array,
    margin: float,
    rate: float | Array,
    max_iter: int,
    tol: float = 0.0,
    sign: bool = False,
    low: float = -math.inf,
    high: float = math.inf,
) -> Point:
    """IPGuard's descent of one image."""
    point = start.astype(np.float64)
    with torch.no_grad():
        logits = network(torch.from_numpy(point)[None])[0]
    source, target = int(logits.argmax()), int(logits.argmin())
    adam = Adam(rate)
    for updates in range(max_iter + 1):
        loss, slope = gradient_of(lambda x: boundary_loss(network(x)[0], source, target, margin), point)
        if loss <= tol or updates == max_iter:
            break
        step = rate * slope / (np.abs(slope) + 1e-8) if sign else adam.step(slope)
        point = np.clip(point - step, low, high)
    return Point(point, loss <= tol, updates, source, target)


def neuron_path(
    layer: Callable[[Tensor], Tensor], seed: Array, neuron: int, rate: float | Array, max_iter: int
) -> list[tuple[Array, float]]:
    """DeepJudge's ascent of one neuron from one seed: every iterate and its activation, the seed first.

    :param layer: From one image ``(1, C, H, W)`` to the pooled activations ``(K,)``.
    """
    point, adam, path = seed.astype(np.float64), Adam(rate), []
    for _ in range(max_iter + 1):
        loss, slope = gradient_of(lambda x: -layer(x)[neuron], point)
        path.append((point, -loss))
        point = point - adam.step(slope)
    return path


def first_beyond(path: list[tuple[Array, float]], target: float) -> int | None:
    """Return the number of updates, one or more, after which the activation is first beyond the target."""
    return next((t for t, (_, value) in enumerate(path) if t > 0 and value > target), None)


def ascent(
    objective: Callable[[Tensor], Tensor],
    seed: Array,
    start: Array,
    radius: float | Array,
    step: float | Array,
    max_iter: int,
    low: float | Array,
    high: float | Array,
) -> Array:
    """Projected gradient ascent of one image with steps of constant size, in the ball and in the range."""
    point = np.clip(np.clip(start, seed - radius, seed + radius), low, high).astype(np.float64)
    for _ in range(max_iter):
        _, slope = gradient_of(objective, point)
        point = np.clip(np.clip(point + step * np.sign(slope), seed - radius, seed + radius), low, high)
    return point


def away_from_mean(network: Network, output: Array, mean: Array, weights: Sequence[float]) -> Network:
    """Return ModelDiff's objective ``sum_c w_c (f(x)_c - 1000 (mean_c - o_c))^2`` for one seed."""

    def objective(x: Tensor) -> Tensor:
        gaps = [z - 1000 * float(m - o) for z, m, o in zip(network(x)[0], mean, output, strict=True)]
        return torch.stack([w * gap**2 for w, gap in zip(weights, gaps, strict=True)]).sum()

    return objective
