"""The formulas of RemovalNet: feature shuffle, latent target, logit target (ILBS) and the terms of the upper loss.

Source: Yao et al., "RemovalNet: DNN Fingerprint Removal Attacks", IEEE TDSC 2023, sections 3.2 and 3.3, Algorithms 1
and 2, and the authors' code where the text is silent. Tensors and an explicit generator in, tensors out; no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["l2", "cosine"]
Scope = Literal["batch", "sample"]
KLTarget = Literal["double_softmax", "log_prob", "prob"]
#: What the parameters of :class:`.RemovalNetAttack` that name an option may be.
CHOICES: Mapping[str, Sequence[object]] = {
    "shuffle_dim": (1, -1),
    "distance": ("l2", "cosine"),
    "distance_scope": ("batch", "sample"),
    "latent_source": ("surrogate", "victim"),
    "logit_source": ("surrogate", "victim"),
    "ilbs_space": ("prob", "logit"),
    "kl_target": ("double_softmax", "log_prob", "prob"),
    "line_search": ("grid", "exact"),
    "output": ("auto", "logits", "probabilities"),
    "autocast": ("float32", "bf16"),
}


def shuffle_size(ratio: float, nb_channels: int) -> int:
    """Return m = ceil(ratio * C), free of floating-point surprises (0.07 of 100 is 7, not 8)."""
    return min(nb_channels, math.ceil(ratio * nb_channels - 1e-9))


def draw_shuffles(
    nb_shuffles: int, batch: int, nb_channels: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw channel shuffles: for each sample the first ``size`` entries R of a uniform permutation, and S = sort(R).

    :return: (R, S), ``(nb_shuffles, batch, size)`` int64 each, on the generator's device.
    """
    noise = torch.rand(nb_shuffles, batch, nb_channels, generator=generator, device=generator.device)
    source = noise.topk(size, 2, largest=False).indices  # the start of argsort, without sorting the rest
    return source, source.sort(2).values


def shuffle_features(z: Tensor, source: Tensor, target: Tensor, dim: int = 1, skip: int = 0) -> Tensor:
    """Return z with ``z[i, target[i]] = z[i, source[i]]`` along one axis, sample by sample, all else unchanged.

    :param z: Latent ``(B, C, ...)``. Positions inside a channel are never mixed.
    :param source: Channels R that are moved, ``(B, m)``.
    :param target: Places S they go to, ``(B, m)``.
    :param dim: Axis of the channels (1: channels of a map, tokens of a sequence; -1: embedding features).
    :param skip: Leading channels that the indices do not count (class and other prefix tokens).
    """
    out = z.clone(memory_format=torch.preserve_format)
    moved = out.movedim(dim, 1)
    rows = torch.arange(len(z), device=z.device)[:, None]
    moved[rows, target + skip] = moved[rows, source + skip]
    return out


def latent_noise(z: Tensor, generator: torch.Generator) -> Tensor:
    """Return tan(U), U uniform on [0, 1): one-sided noise with mean -ln cos 1 = 0.616 and mean square tan 1 - 1 =
    0.557.
    """
    noise = torch.rand(z.shape, generator=generator, device=z.device, dtype=z.dtype).tan_()
    return torch.empty_like(z).copy_(noise)  # in z's memory order, which everything made from it will have


def log_distance(u: Tensor, z: Tensor, distance: Distance = "l2", scope: Scope = "batch") -> Tensor:
    """Return log d(u, z): ``l2`` Euclidean, ``cosine`` mean of 1 - cos per sample (plus 1e-12).

    ``scope="batch"`` takes one norm over the whole batch tensor, as the authors' code does; ``"sample"`` averages the
    logarithms of the samples' own distances, which does not couple samples. A distance of zero gives a finite value and
    a zero gradient.
    """
    if distance == "cosine":
        # 1 - cos as half a squared difference: never negative, and exactly 0 with a zero gradient for equal tensors.
        gap = 0.5 * (F.normalize(u.flatten(1)) - F.normalize(z.flatten(1))).square().sum(1)
        return (gap.mean() + 1e-12).log() if scope == "batch" else (gap + 1e-12).log().mean()
    if scope == "batch":
        return torch.linalg.vector_norm(u - z).clamp_min(1e-12).log()
    return torch.linalg.vector_norm((u - z).flatten(1), dim=1).clamp_min(1e-12).log().mean()


def log_distance_gradient(u: Tensor, z: Tensor, distance: Distance = "l2", scope: Scope = "batch") -> Tensor:
    """Return the gradient of :func:`log_distance` with respect to u, of u's shape.

    For ``l2`` in closed form, (u - z) / d^2 (over B for ``"sample"``): autograd takes several times as long, which
    shows in the attack's iterations.
    """
    if distance == "cosine":
        leaf = u.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(log_distance(leaf, z, distance, scope), leaf)[0]
    gap = u - z
    if scope == "batch":
        return gap / torch.linalg.vector_norm(gap).clamp_min(1e-12).square()
    norms = torch.linalg.vector_norm(gap.flatten(1), dim=1).clamp_min(1e-12)
    return gap / (len(gap) * norms.square()).view(-1, *[1] * (gap.ndim - 1))


def latent_step(
    tail: Callable[[Tensor], Tensor],
    u: Tensor,
    z: Tensor,
    y: Tensor,
    step_size: float,
    log_weight: float,
    distance: Distance = "l2",
    scope: Scope = "batch",
) -> tuple[Tensor, Tensor]:
    """Take one signed step on CE(g(u), y) - mu log d(u, z) (paper section 3.2, Algorithm 1).

    No projection, no clipping, no momentum.

    :return: The new u, and the gradient. Cost: one tail forward, one tail backward to u.
    """
    u = u.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(F.cross_entropy(tail(u), y), u)
    u = u.detach()
    if log_weight:
        gradient = torch.sub(gradient, log_distance_gradient(u, z, distance, scope), alpha=log_weight)
    return u - step_size * gradient.sign(), gradient


def farthest_partners(p: Tensor) -> Tensor:
    """Return for each row of ``(B, K)`` the index of the row at the greatest Euclidean distance."""
    return torch.cdist(p, p, compute_mode="donot_use_mm_for_euclid_dist").argmax(1)


def ilbs(p: Tensor, y: Tensor, grid: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Iterative least-like boundary strategy: p'_i = w p_i + (1-w) p_j(i), the smallest w on the grid that keeps class
    y.

    j(i) is the row at the greatest distance. Where no w keeps the class, p_i stays as it is.

    :param p: Probabilities or logits ``(B, K)``.
    :param y: Class to keep ``(B,)``.
    :param grid: Weights of the sample itself, ascending.
    :return: p' ``(B, K)`` and whether the class was kept ``(B,)``.
    """
    partner = p[farthest_partners(p)]
    w = torch.tensor(list(grid), dtype=p.dtype, device=p.device)[:, None, None]
    candidates = w * p + (1 - w) * partner
    keeps = candidates.argmax(2) == y
    first = keeps.to(torch.uint8).argmax(0)
    kept = keeps.any(0)
    chosen = candidates[first, torch.arange(len(p), device=p.device)]
    return torch.where(kept[:, None], chosen, p), kept


def smallest_weight(p: Tensor, partner: Tensor, y: Tensor) -> Tensor:
    """Return the bound below which interpolation leaves class y, ``(B,)``: w is admissible iff it is greater.

    With a_k = p[y] - p[k] and b_k = partner[k] - partner[y]: max(0, max over b_k > 0 of b_k / (a_k + b_k)). Valid where
    argmax p = y.
    """
    a = p.gather(1, y[:, None]) - p
    b = partner - partner.gather(1, y[:, None])
    ratio = torch.where(b > 0, b / (a + b).clamp_min(1e-30), torch.zeros_like(b))
    return ratio.amax(1).clamp_min(0)


def ilbs_exact(
    p: Tensor, y: Tensor, margin: float = 0.01, low: float = 0.3, high: float = 0.99
) -> tuple[Tensor, Tensor]:
    """Like :func:`ilbs` with the closed form of the bound instead of a grid: w = clip(w_min + margin, low, high)."""
    partner = p[farthest_partners(p)]
    w = (smallest_weight(p, partner, y) + margin).clamp(low, high)[:, None]
    candidate = w * p + (1 - w) * partner
    kept = candidate.argmax(1) == y
    return torch.where(kept[:, None], candidate, p), kept


def kl_target(p: Tensor, temperature: float, kind: KLTarget = "double_softmax") -> Tensor:
    """Return the target distribution q of the KL term.

    ``double_softmax``: softmax(p'/T), what the authors' code does: at T = 10 to 20 almost uniform, so it pulls logits
    together. ``log_prob``: softmax(log p'/T), the usual temperature. ``prob``: p' itself.
    """
    if kind == "double_softmax":
        return torch.softmax(p / temperature, 1)
    if kind == "log_prob":
        return torch.softmax(p.clamp_min(1e-30).log() / temperature, 1)
    return p


def temperature_kl(q: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(q || softmax(s/T)), averaged over the batch."""
    log_p = F.log_softmax(logits / temperature, 1)
    return temperature**2 * F.kl_div(log_p, q, reduction="batchmean")
