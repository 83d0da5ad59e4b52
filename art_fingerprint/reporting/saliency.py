"""LayerCAM saliency maps of a model at one layer, and how far two models' maps differ (RemovalNet, Fig. 9).

P.-T. Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE Transactions on
Image Processing 30, 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_images, check_labels, check_number, check_values
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.exceptions import InvalidInputError


def layercam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return M = ReLU(sum over channels c of ReLU(G_c) * A_c), ``(B, h, w)`` (LayerCAM, equations 5 and 6).

    :param activation: A, ``(B, C, h, w)``.
    :param gradient: G, of the class score with respect to A, ``(B, C, h, w)``.
    """
    return (gradient.clamp_min(0) * activation).sum(1).clamp_min(0)


def unit_range(maps: Tensor) -> Tensor:
    """Return maps ``(B, h, w)`` scaled to [0, 1], each by its own least and largest value; a constant one becomes 0."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1.0), torch.zeros_like(maps))


def folded_tokens(tokens: Tensor) -> Tensor:
    """Return tokens ``(B, N, D)`` as a map ``(B, D, s, s)``, s the largest with s^2 <= N; prefix tokens are dropped.

    :raises InvalidInputError: there are more than sixteen tokens beside the square: no prefix, another arrangement.
    """
    n = tokens.shape[1]
    side = math.isqrt(n)
    if not side or n - side * side > 16:
        raise InvalidInputError(f"The layer gives {n} tokens, which are no square of patches with a few before it.")
    return tokens[:, n - side * side :].transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side)


def saliency_maps(
    classifier: PyTorchClassifier,
    x: np.ndarray,
    layer: str | int | None = None,
    classes: np.ndarray | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Return the LayerCAM maps of images at one layer, ``(n, H, W)`` float32 in [0, 1].

    Each map is scaled to [0, 1] by its own extremes, then enlarged to the image's size (bilinear). The gradient is that
    of the class's logit with respect to the layer's output alone. The classifier is as before afterwards.

    Cost: 3 n forward samples, n backward through the part above the layer.

    :param classifier: The model.
    :param x: Images ``(n, C, H, W)`` float32.
    :param layer: Dotted name, stage number, or ``None`` for the choice of :func:`.auto_layer`. Its output is
        ``(B, C, h, w)``, or tokens ``(B, N, D)``.
    :param classes: Class of each map, ``(n,)``; ``None``: the model's own prediction.
    :param batch_size: Images in a batch.
    :raises InvalidInputError: bad images or classes, or a layer that gives no map.
    :raises LayerCutError: the network cannot be cut there.
    """
    images = torch.from_numpy(check_images(x, tuple(classifier.input_shape)))
    check_number("batch_size", batch_size, 1, integer=True)
    chosen = None
    if classes is not None:
        chosen = torch.from_numpy(check_labels(classes, len(images), classifier.nb_classes, "classes"))
    view = LogitsNetwork(classifier)
    maps = []
    with guarded(classifier, weights=False):
        view.network.eval().requires_grad_(False)
        example = view.preprocess(images[:2].to(view.device))
        with torch.no_grad():
            name = resolve_layer(view.network, layer, example)
        cut = LayerCut(view.network, name, example)
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            prepared = view.preprocess(images[start:stop].to(view.device))
            with torch.no_grad():
                z, output = cut.forward(prepared)
            wanted = view.logits(output).argmax(1) if chosen is None else chosen[start:stop].to(view.device)
            gradient = _gradient(cut, view, prepared, z, wanted)
            parts = [_as_map(part, name) for part in (z, gradient)]
            small = unit_range(layercam(*parts))
            size = tuple(images.shape[2:])
            maps.append(F.interpolate(small[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].cpu())
    return torch.cat(maps).numpy()


def _gradient(cut: LayerCut, view: LogitsNetwork, prepared: Tensor, z: Tensor, classes: Tensor) -> Tensor:
    """Return the gradient of each image's class logit with respect to its latent."""
    with torch.enable_grad():
        latent = z.detach().requires_grad_(True)
        logits = view.logits(cut.tail_for(prepared)(latent))
        return torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), latent)[0]


def _as_map(z: Tensor, layer: str) -> Tensor:
    if z.ndim == 4:
        return z
    if z.ndim == 3:
        return folded_tokens(z)
    raise InvalidInputError(f"Layer {layer!r} gives {tuple(z.shape)}; a feature map or tokens are needed for a map.")


@dataclass(frozen=True)
class MapDifference:
    """How far the maps of two models differ, over the same images.

    :ivar distance: Mean absolute difference of the maps, in [0, 1]: 0 is the same map.
    :ivar overlap: Intersection over union of the pixels of the highest ``share``, mean over images, in [0, 1]: 1 is the
        same region. Two random regions of a fifth of the pixels have 1/9.
    """

    distance: float
    overlap: float


def compare_maps(maps: np.ndarray, others: np.ndarray, share: float = 0.2) -> MapDifference:
    """Return how far two models' maps of the same images differ. Pixels of one value are taken in reading order.

    :param maps: ``(n, H, W)`` in [0, 1].
    :param others: Those of the other model.
    :param share: Share of the pixels, (0, 1], that makes a map's region.
    :raises InvalidInputError: other shapes, values that are not finite, or a bad share.
    """
    check_number("share", share, 0, 1, open_low=True)
    maps, others = check_values("maps", maps, 3), check_values("others", others, 3)
    if maps.shape != others.shape:
        raise InvalidInputError(f"Maps (n, H, W) of the same images are needed, got {maps.shape} and {others.shape}.")
    a, b = (highest(found, share) for found in (maps, others))
    union = (a | b).sum((1, 2))
    return MapDifference(
        distance=float(np.abs(maps - others).mean()),
        overlap=float(((a & b).sum((1, 2)) / union).mean()),
    )


def highest(maps: np.ndarray, share: float) -> np.ndarray:
    """Return which pixels are among the highest ``share`` of their map, rounded up: ``(n, H, W)`` bool."""
    flat = maps.reshape(len(maps), -1)
    count = math.ceil(share * flat.shape[1] - 1e-9)
    order = np.argsort(-flat, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen.reshape(maps.shape)
