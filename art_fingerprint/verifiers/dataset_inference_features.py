"""Dataset Inference: how far a model's answer is from changing, by random walks or by descent; and what tells apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from art_fingerprint.core.seeding import torch_generator

NORMS = ("Linf", "L2", "L1")
#: Of one unit of noise, for images in [0, 1]: half-width of the uniform, standard deviation of the normal, scale of the
#: Laplace distribution.
NOISE = {"Linf": 0.005, "L2": 0.005, "L1": 0.01}
#: Length of one step of descent, for images in [0, 1].
STEPS = {"Linf": 0.001, "L2": 0.01, "L1": 0.01}
L1_COORDINATES = 100
_BLOCK = 8
_CHUNK = 2**24  # numbers in the points that are walked through at a time


def norm_of(displacement: Tensor, norm: str) -> Tensor:
    """Return one norm of each row of ``(n, ...)`` in float64, ``(n,)``."""
    flat = displacement.flatten(1).double()
    if norm == "Linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "L2" else flat.abs().sum(1)


def directions(shape: tuple[int, ...], nb_draws: int, generator: torch.Generator) -> Tensor:
    """Return the noise that one image is moved by, ``(3, nb_draws, *shape)``: uniform, normal, Laplace.

    :param shape: Of the image.
    :param nb_draws: Draws for each norm.
    :param generator: Source of the noise.
    """
    size = (nb_draws, *shape)
    uniform = (2 * torch.rand(size, generator=generator) - 1) * NOISE["Linf"]
    normal = torch.randn(size, generator=generator) * NOISE["L2"]
    # by the inverse of its distribution; the end of the interval, where the logarithm is infinite, is left out
    centred = (torch.rand(size, generator=generator, dtype=torch.float64) - 0.5).clamp(-0.5 + 1e-12, 0.5 - 1e-12)
    laplace = -NOISE["L1"] * centred.sign() * torch.log1p(-2 * centred.abs())
    return torch.stack([uniform, normal, laplace.float()])


def blind_walk(
    labels_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    noise: Tensor,
    *,
    max_steps: int = 50,
    low: float = 0.0,
    high: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Walk along ``clip(x + k noise)``, k = 1, 2, ..., until the label is not ``labels``; return k and whether it came.

    Multiples are asked for in blocks of eight, with the result of asking one by one. A walk without an end stops at
    ``max_steps``.

    :param labels_of: The model: points ``(m, ...)`` to labels ``(m,)``.
    :param x: Start of each walk ``(n, ...)``.
    :param labels: True labels ``(n,)``.
    :param noise: One step of each walk, as ``x``.
    :param max_steps: Longest walk.
    :param low: Lower end of the input range.
    :param high: Upper end.
    :return: Steps ``(n,)`` int64 and flags ``(n,)``.
    """
    stops = torch.full((len(x),), max_steps)
    ended = torch.zeros(len(x), dtype=torch.bool)
    walking = torch.arange(len(x))
    for first in range(1, max_steps + 1, _BLOCK):
        if not len(walking):
            break
        steps = torch.arange(first, min(first + _BLOCK, max_steps + 1))
        multiples = steps.view(1, -1, *[1] * (x.ndim - 1))
        points = (x[walking][:, None] + multiples * noise[walking][:, None]).clamp(low, high)
        crossed = labels_of(points.flatten(0, 1)).view(len(walking), len(steps)) != labels[walking][:, None]
        hit = crossed.any(1)
        stops[walking[hit]] = steps[crossed.long().argmax(1)[hit]]
        ended[walking[hit]] = True
        walking = walking[~hit]
    return stops, ended


def walk_features(
    labels_of: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    seed: int,
    nb_draws: int,
    noise: float,
    max_steps: int,
    low: float,
    high: float,
) -> tuple[Tensor, float]:
    """Return the lengths of the blind walks from each image, ``(n, 3 nb_draws)`` float64, and the share without an end.

    A row holds the walks of one image: those measured in Linf, then L2, then L1. Image i walks the same rays for every
    model, drawn from ``seed`` and i.

    :param labels_of: The model: points ``(m, ...)`` to labels ``(m,)``.
    :param x: Images ``(n, ...)`` on the host.
    :param labels: True labels ``(n,)``.
    :param seed: Of the rays.
    :param nb_draws: Rays for each norm.
    :param noise: Factor of the noise (2 for SVHN).
    :param max_steps: Longest walk.
    :param low: Lower end of the input range, whose width scales the noise.
    :param high: Upper end.
    """
    nb_rays = len(NORMS) * nb_draws
    images = max(1, _CHUNK // (nb_rays * _BLOCK * x[0].numel()))
    features, ended = [], []
    for start in range(0, len(x), images):
        rows = range(start, min(start + images, len(x)))
        rays = torch.stack(
            [directions(tuple(x.shape[1:]), nb_draws, torch_generator(seed, "rays", i)).flatten(0, 1) for i in rows]
        )
        rays = rays.flatten(0, 1) * (noise * (high - low))
        origin = x[start : start + images].repeat_interleave(nb_rays, 0)
        true = labels[start : start + images].repeat_interleave(nb_rays)
        stops, flags = blind_walk(labels_of, origin, true, rays, max_steps=max_steps, low=low, high=high)
        moved = (origin + stops.view(-1, *[1] * (x.ndim - 1)) * rays).clamp(low, high) - origin
        by_norm = moved.view(len(rows), len(NORMS), nb_draws, *x.shape[1:])
        lengths = [norm_of(by_norm[:, i].flatten(0, 1), norm).view(-1, nb_draws) for i, norm in enumerate(NORMS)]
        features.append(torch.cat(lengths, 1))
        ended.append(flags)
    return torch.cat(features), float((~torch.cat(ended)).double().mean())


def step_of(gradient: Tensor, norm: str) -> Tensor:
    """Return the direction of each row: signs (Linf), unit length (L2), or signs of the 100 largest entries (L1)."""
    if norm == "Linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    if norm == "L2":
        return (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).view_as(gradient)
    top = flat.abs().topk(min(L1_COORDINATES, flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign()).view_as(gradient)


def descend(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    targets: Tensor,
    norm: str,
    *,
    max_iter: int,
    low: float,
    high: float,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Descend ``max_k z_k - z_t`` from each image until the label is the target t; return the way's norm and success.

    :param logits_of: The model: points that require a gradient, on the host, to logits.
    :param x: Start of each descent ``(n, ...)``.
    :param targets: Class t of each, ``(n,)``.
    :param norm: One of :data:`NORMS`, of the step and of the way.
    :param max_iter: Most steps.
    :param low: Lower end of the input range, whose width scales the steps.
    :param high: Upper end.
    :param batch_size: Samples in one pass.
    :return: Norms ``(n,)`` float64 of the displacement at the end, and flags ``(n,)``.
    """
    current, reached = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    going = torch.arange(len(x))
    for step in range(max_iter + 1):
        still = []
        for rows in going.split(batch_size):
            with torch.enable_grad():
                points = current[rows].requires_grad_(True)
                logits = logits_of(points)
                wanted = targets[rows].to(logits.device)
                gap = logits.amax(1) - logits.gather(1, wanted[:, None])[:, 0]
                there = (logits.argmax(1) == wanted).cpu()
                (gradient,) = torch.autograd.grad(gap.sum(), points)
            reached[rows[there]] = True
            moved = (points.detach() - STEPS[norm] * (high - low) * step_of(gradient, norm)).clamp(low, high)
            if step < max_iter:
                current[rows[~there]] = moved[~there]
            still.append(rows[~there])
        going = torch.cat(still) if still else going
        if not len(going):
            break
    return norm_of(current - x, norm), reached


def descent_features(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    logits: Tensor,
    *,
    nb_targets: int,
    max_iter: int,
    low: float,
    high: float,
    batch_size: int,
) -> tuple[Tensor, float]:
    """Return the distances to each image's likeliest classes, ``(n, 3 t)`` float64, and the share not reached.

    t is ``nb_targets``, or the number of classes if that is less. A row holds the distances of one image in Linf,
    sorted, then in L2, then in L1; that to the predicted class is 0.

    :param logits_of: As in :func:`descend`.
    :param x: Images ``(n, ...)`` on the host.
    :param logits: The model's logits of them ``(n, K)``.
    :param nb_targets: Classes, those of the highest logits.
    :param max_iter: As in :func:`descend`.
    :param low: As in :func:`descend`.
    :param high: As in :func:`descend`.
    :param batch_size: As in :func:`descend`.
    """
    targets = logits.argsort(dim=1, descending=True, stable=True)[:, :nb_targets]
    t = targets.shape[1]
    origin = x.repeat_interleave(t, 0)
    features, missed = [], []
    for norm in NORMS:
        ways, reached = descend(
            logits_of,
            origin,
            targets.flatten(),
            norm,
            max_iter=max_iter,
            low=low,
            high=high,
            batch_size=batch_size,
        )
        features.append(ways.view(len(x), t).sort(dim=1).values)
        missed.append(~reached)
    return torch.cat(features, 1), float(torch.cat(missed).double().mean())


def standardise(features: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """Return ``(f - mean) / std`` with one mean and deviation for each norm, thirds of the columns.

    :param features: ``(n, 3 m)``.
    :param means: ``(3,)``.
    :param deviations: ``(3,)``; 0 counts as 1.
    """
    width = features.shape[1] // len(NORMS)
    scale = torch.where(deviations > 0, deviations, 1.0)
    return (features - means.repeat_interleave(width)) / scale.repeat_interleave(width)


def scales(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each third of the columns, ``(3,)`` and ``(3,)``."""
    thirds = [part.flatten() for part in features.chunk(len(NORMS), dim=1)]
    return torch.stack([part.mean() for part in thirds]), torch.stack([part.std() for part in thirds])


# ---------------------------------------------------------------------- regressor
Regressor = tuple[Tensor, Tensor, Tensor, Tensor]


def train_regressor(
    features: Tensor, unseen: Tensor, *, nb_epochs: int, generator: torch.Generator, width: int = 100, rate: float = 0.1
) -> Regressor:
    """Return weights of ``g = tanh(w2 ReLU(w1 f + b1) + b2)`` that minimise ``-mean((2 unseen - 1) g)``.

    Full-batch gradient descent, from torch's usual start of linear layers.

    :param features: Standardised features ``(n, d)`` float64.
    :param unseen: Whether the victim was not trained on the image, ``(n,)`` bool.
    :param nb_epochs: Steps.
    :param generator: Source of the first weights.
    :param width: Hidden units.
    :param rate: Step size.
    """

    def uniform(*shape: int, fan_in: int) -> Tensor:
        draws = torch.rand(shape, generator=generator, dtype=torch.float64)
        return ((2 * draws - 1) / math.sqrt(fan_in)).requires_grad_(True)

    d = features.shape[1]
    weights = (
        uniform(width, d, fan_in=d),
        uniform(width, fan_in=d),
        uniform(width, fan_in=width),
        uniform(1, fan_in=width),
    )
    sign = torch.where(unseen, 1.0, -1.0).double()
    with torch.enable_grad():
        for _ in range(nb_epochs):
            loss = -(sign * confidence(features, weights)).mean()
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight -= rate * gradient
    return tuple(weight.detach() for weight in weights)  # type: ignore[return-value]


def confidence(features: Tensor, weights: Regressor) -> Tensor:
    """Return g of each row, ``(n,)`` in (-1, 1): high for images the model was not trained on."""
    w1, b1, w2, b2 = weights
    return torch.tanh(torch.relu(features @ w1.T + b1) @ w2 + b2)
