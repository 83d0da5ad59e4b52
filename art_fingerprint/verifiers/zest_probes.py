"""The model-independent part of ZEST: random masks, each distinct masked image once, the regression on the masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from art_fingerprint.core.outputs import to_probabilities
from art_fingerprint.exceptions import FingerprintFileError

# Numbers in one block of the regression (64 MiB of float64)
_BLOCK = 1 << 23


def draw_masks(nb_segments: Tensor, nb_masks: int, generator: torch.Generator) -> Tensor:
    """Return all masks, ``(N, nb_masks, max F_i)`` uint8: fair coins, first row ones, 0 beyond ``F_i``."""
    width = int(nb_segments.max())
    masks = torch.randint(2, (len(nb_segments), nb_masks, width), generator=generator, dtype=torch.uint8)
    masks[:, 0] = 1
    return masks * (torch.arange(width) < nb_segments[:, None])[:, None].to(torch.uint8)


def distinct_masks(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image index, packed row and multiplicity of every distinct mask of every image, sorted by image.

    All-zero masks are left out: their row of the regression's design matrix is zero, so that no answer to the fully
    masked image, one and the same for all images, changes the weights.

    :param packed: ``(N, S, bytes)`` uint8, masks packed by :func:`numpy.packbits` along the last axis.
    """
    n, nb_masks, size = packed.shape
    owner = np.arange(n, dtype=">u4").repeat(nb_masks).view(np.uint8).reshape(-1, 4)
    keys = np.concatenate([owner, packed.reshape(-1, size)], axis=1)
    keys = np.ascontiguousarray(keys[keys[:, 4:].any(1)])
    unique, counts = np.unique(keys.view(f"V{size + 4}").ravel(), return_counts=True)
    rows = unique.view(np.uint8).reshape(-1, size + 4)
    return rows[:, :4].copy().view(">u4").ravel().astype(np.int64), rows[:, 4:].copy(), counts


def masked_images(images: Tensor, segments: Tensor, fill: Tensor, owner: Tensor, masks: Tensor) -> Tensor:
    """Return masked copies of images, ``(b, C, h, w)``: segments whose mask entry is false show ``fill``.

    :param images: ``(N, C, h, w)``.
    :param segments: ``(N, h * w)`` int64.
    :param fill: ``(C, 1, 1)`` or ``(C, h, w)``.
    :param owner: ``(b,)`` image of each mask.
    :param masks: ``(b, F)`` bool.
    """
    keep = masks.to(images.dtype).gather(1, segments.index_select(0, owner)).view(len(owner), 1, *images.shape[2:])
    # lerp returns its ends exactly at 0 and 1, and on the CPU it is ten times as fast as where
    return torch.lerp(fill, images.index_select(0, owner), keep)


def regression_matrices(masks: Tensor, counts: Tensor, rtol: float) -> Tensor:
    """Return ``P`` with ``P @ Y = X^+ Y`` for designs ``X`` whose distinct rows are ``masks``, ``(n, F, U)`` float64.

    Repeated rows of ``X`` get equal answers, so ``X^+ Y = (D X_u)^+ D Y_u`` with ``D = diag(sqrt(counts))``: the same
    singular values and the same solution, of least norm where ``X`` has not full column rank.

    :param masks: ``(n, U, F)``, zero rows and columns as padding.
    :param counts: ``(n, U)`` multiplicities, 0 for padding.
    :param rtol: Relative cut-off of singular values.
    """
    root = counts.double().sqrt()
    return torch.linalg.pinv(masks * root[..., None], rtol=rtol) * root[:, None]


@dataclass(eq=False)
class ProbePlan:
    """The model-independent part of a fingerprint, ready for use: distinct masked images and the regression.

    :ivar images: ``(N, C, h, w)`` float32.
    :ivar segments: ``(N, h * w)`` int64.
    :ivar fill: ``(C, 1, 1)`` or ``(C, h, w)`` float32.
    :ivar owner: ``(U,)`` image of each distinct mask, ascending.
    :ivar masks: ``(U, max F_i)`` bool.
    :ivar counts: ``(U,)`` how often each was drawn.
    :ivar nb_masks: Masks drawn for each image.
    :ivar nb_classes: Usual number of classes; decides the size of blocks only.
    """

    images: Tensor
    segments: Tensor
    fill: Tensor
    owner: Tensor
    masks: Tensor
    counts: Tensor
    nb_masks: int
    nb_classes: int

    @classmethod
    def build(cls, arrays: Mapping[str, np.ndarray], nb_classes: int) -> ProbePlan:
        """Find the distinct masks of a fingerprint. Cost: no queries.

        :param arrays: Arrays of a ZEST fingerprint.
        :param nb_classes: Usual number of classes.
        :raises FingerprintFileError: arrays are missing or do not fit together.
        """
        _check_arrays(arrays)
        segments = torch.from_numpy(arrays["segments"].astype(np.int64)).flatten(1)
        owner, rows, counts = distinct_masks(arrays["masks"])
        masks = np.unpackbits(rows, axis=1, count=int(segments.max()) + 1).astype(bool)
        return cls(
            images=torch.tensor(arrays["images"]),
            segments=segments,
            fill=torch.tensor(arrays["fill"]),
            owner=torch.from_numpy(owner),
            masks=torch.from_numpy(masks),
            counts=torch.from_numpy(counts),
            nb_masks=arrays["masks"].shape[1],
            nb_classes=nb_classes,
        )

    def __len__(self) -> int:
        return len(self.owner)

    def batches(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """Yield all distinct masked images, ``batch_size`` at a time, on a device."""
        images, segments, fill = (tensor.to(device) for tensor in (self.images, self.segments, self.fill))
        for owner, masks in zip(self.owner.split(batch_size), self.masks.split(batch_size), strict=True):
            yield masked_images(images, segments, fill, owner.to(device), masks.to(device))

    def answers(
        self, ask: Callable[[Tensor], Tensor], batch_size: int, device: torch.device, *, verbose: bool = False
    ) -> Tensor:
        """Return a model's answers to all distinct masked images, ``(U, K)`` float32 on the device."""
        batches = tqdm(
            self.batches(batch_size, device),
            "ZEST",
            math.ceil(len(self) / batch_size),
            disable=not verbose,
            leave=False,
        )
        return torch.cat([ask(batch).float() for batch in batches])

    @cached_property
    def blocks(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The regression of consecutive images, computed once; cost: ``N`` small decompositions.

        Positions ``(n, u)`` of their answers, matrices ``(n, F, u)``, and which of the ``(n, F)`` weights exist.
        """
        nb_segments = self.segments.amax(1) + 1
        per_image = torch.bincount(self.owner, minlength=len(self.images))
        start = per_image.cumsum(0) - per_image
        size = max(1, _BLOCK // (int(per_image.max()) * max(self.masks.shape[1], self.nb_classes)))
        blocks = []
        for first in range(0, len(self.images), size):
            part = slice(first, first + size)
            inner, features = (torch.arange(int(number[part].max())) for number in (per_image, nb_segments))
            position = (start[part, None] + inner).clamp_max(len(self) - 1)
            counts = self.counts[position] * (inner < per_image[part, None])
            cut_off = float(np.finfo(np.float64).eps) * max(self.nb_masks, len(features))
            matrices = regression_matrices(self.masks[position][..., : len(features)], counts, cut_off)
            blocks.append((position, matrices, features < nb_segments[part, None]))
        return blocks

    def signature(self, answers: Tensor, *, probabilities: bool) -> Tensor:
        """Return the regression weights of all images, ``(sum F_i, K)`` float64 on the answers' device.

        :param answers: ``(U, K)`` logits.
        :param probabilities: Regress class probabilities instead of logits.
        """
        parts = []
        for position, matrices, exists in self.blocks:
            flat = answers[position.flatten().to(answers.device)]
            flat = to_probabilities(flat) if probabilities else flat.double()
            weights = matrices.to(answers.device) @ flat.view(*position.shape, -1)
            parts.append(weights[exists.to(answers.device)])
        return torch.cat(parts)


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    wanted = {"images": (4, "f"), "segments": (3, "iu"), "masks": (3, "u"), "fill": (3, "f")}
    wrong = [
        name
        for name, (ndim, kinds) in wanted.items()
        if name not in arrays or arrays[name].ndim != ndim or arrays[name].dtype.kind not in kinds
    ]
    if not wrong:
        images, segments, masks = (arrays[name] for name in ("images", "segments", "masks"))
        n, channels, height, width = images.shape
        if not (segments.shape == (n, height, width) and len(masks) == n > 0 and segments.size and masks.size):
            wrong = ["segments", "masks"]
        elif segments.min() < 0 or segments.max() >= 8 * masks.shape[2] or not masks.any((1, 2)).all():
            wrong = ["masks"]
        elif arrays["fill"].shape not in ((channels, 1, 1), (channels, height, width)):
            wrong = ["fill"]
    if wrong:
        raise FingerprintFileError(f"The fingerprint's arrays are not those of ZEST: look at {', '.join(wrong)}.")
