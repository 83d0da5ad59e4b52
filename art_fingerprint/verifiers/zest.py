"""ZEST (Jia et al., "A Zest of LIME", 2022): compare two models by what they find important in the same images.

Every reference image is cut into segments and masked many times at random; a model's answers to the masked images are
regressed on the masks. The weights of all images are the model's signature, and the distance of two signatures is the
metric. Only forward passes are needed, of the victim at extraction and of the suspect at verification.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_flag, check_number, shown
from art_fingerprint.core.classifier import LogitsNetwork, clip_bounds
from art_fingerprint.core.outputs import same_space
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.exceptions import (
    AccessError,
    EmptyFingerprintError,
    FingerprintFileError,
    IncompatibleSuspectError,
    InvalidInputError,
    NonFiniteOutputError,
)
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.segmentation import grid, quickshift
from art_fingerprint.verifiers.zest_probes import ProbePlan, draw_masks

Norm = Literal["L1", "L2", "Linf", "cosine"]
Align = Literal["greedy", "hungarian", "identity"]
NORMS: tuple[Norm, ...] = ("L1", "L2", "Linf", "cosine")

# "auto" takes the grid below this number of segments
FEW_SEGMENTS = 4
# Cosine distances below this are rounding of float32 answers. As ties they pair equal classes with one another even if
# a model's classes are multiples of each other, as those that it never predicts can be.
_SMALLEST_ANGLE = 1e-12
_ORDER = {"L1": 1.0, "L2": 2.0, "Linf": float("inf")}


# ---------------------------------------------------------------------- distances
def distance(u: Tensor, v: Tensor, norm: Norm) -> float:
    """Return the distance of two vectors of any shape, in float64.

    ``cosine = 1 - u.v / (|u| |v|)`` in [0, 2], below 1e-12 rounding and 0; a zero vector is at distance 1 of a non-zero
    one and 0 of a zero one.
    """
    u, v = u.double().flatten(), v.double().flatten()
    if norm != "cosine":
        return float(torch.linalg.vector_norm(u - v, ord=_ORDER[norm]))
    return float(class_distances(u[:, None], v[:, None], "cosine"))


def class_distances(u: Tensor, v: Tensor, norm: Norm) -> Tensor:
    """Return the distances between all columns of two signatures, ``(F, C)`` and ``(F, C')`` to ``(C, C')`` float64."""
    columns_u, columns_v = u.double().T.contiguous(), v.double().T.contiguous()
    if norm != "cosine":
        # the matmul mode gives about 1e-3 instead of 0 for equal columns
        return torch.cdist(columns_u, columns_v, p=_ORDER[norm], compute_mode="donot_use_mm_for_euclid_dist")
    length_u, length_v = (torch.linalg.vector_norm(c, dim=1, keepdim=True) for c in (columns_u, columns_v))
    zero_u, zero_v = length_u == 0, length_v == 0
    similarity = (columns_u / length_u.masked_fill(zero_u, 1)) @ (columns_v / length_v.masked_fill(zero_v, 1)).T
    distances = (1 - similarity).clamp(0, 2)
    return distances.masked_fill((distances < _SMALLEST_ANGLE) | (zero_u & zero_v.T), 0)


def assignment(costs: Tensor, align: Literal["greedy", "hungarian"] = "greedy") -> Tensor:
    """Return the column of each row, ``(rows,)`` int64.

    ``"greedy"``: repeatedly take the smallest entry, the first of equals in row-major order, and drop its row and
    column. An entry that is the smallest left in its row and in its column is taken sooner or later, so all such
    entries are taken at once; the result is the same. ``"hungarian"``: the least sum.

    :param costs: ``(rows, columns)`` with ``rows <= columns``.
    :param align: Method.
    """
    if align == "hungarian":
        return torch.as_tensor(linear_sum_assignment(costs.cpu())[1], device=costs.device)
    rank = torch.empty(costs.numel(), dtype=torch.int64, device=costs.device)
    rank[costs.flatten().argsort(stable=True)] = torch.arange(costs.numel(), device=costs.device)
    rank = rank.view(costs.shape)
    rows = torch.arange(len(costs), device=costs.device)
    match = torch.full_like(rows, -1)
    while bool((match < 0).any()):
        column = rank.argmin(1)
        taken = (rank.argmin(0)[column] == rows) & (match < 0)
        match = torch.where(taken, column, match)
        rank[taken] = rank.numel()
        rank[:, column[taken]] = rank.numel()
    return match


def check_same_classes(victim: int, suspect: int) -> None:
    """Raise :class:`IncompatibleSuspectError` unless both numbers of classes are the same."""
    if victim != suspect:
        raise IncompatibleSuspectError(
            f"The victim has {victim} classes, the suspect {suspect}: align='identity' needs the same classes; use "
            "align='greedy'."
        )


def aligned_distance(victim: Tensor, suspect: Tensor, norm: Norm, align: Align = "greedy") -> float:
    """Return the distance of two signatures after matching their classes.

    Each class of the signature with fewer columns (the victim's among equals) is paired with one of the other's, by the
    same distance as is reported; columns without partner are left out.

    :param victim: ``(F, C)`` float64.
    :param suspect: ``(F, C')`` float64.
    :param norm: Distance.
    :param align: ``"greedy"`` (ZEST), ``"hungarian"`` (least total cost, ours), ``"identity"`` (classes are the same).
    :raises IncompatibleSuspectError: ``"identity"`` with different class counts.
    """
    if align == "identity":
        check_same_classes(victim.shape[1], suspect.shape[1])
        return distance(victim, suspect, norm)
    few, many = (suspect, victim) if suspect.shape[1] < victim.shape[1] else (victim, suspect)
    return distance(few, many[:, assignment(class_distances(few, many, norm), align)], norm)


# ---------------------------------------------------------------------- verifier
class ZestVerifier(Verifier):
    """ZEST: distances between the local explanations of two models on the owner's reference images.

    For image ``i`` with ``F_i`` segments and masks ``X_i`` in ``{0,1}^(S x F_i)`` the masked images show ``x_i`` where
    the mask is 1 and ``fill`` elsewhere; ``W_i = X_i^+ Y_i`` are the least-squares weights of the answers ``Y_i``,
    without intercept or sample weights. The signature stacks ``W_i`` over images. Classes are aligned per metric; then
    ``L1``, ``L2``, ``Linf`` and ``cosine`` of the flattened signatures are reported. Low means derived. The paper
    recommends cosine; L-norms grow with the number of segments and classes and the scale of the logits, so they are
    comparable under one fingerprint only.

    Sources: the ZEST paper and its official code (``paper`` profile); the code of RemovalNet (``removalnet`` profiles).
    Deviations: masks are drawn once and kept in the fingerprint (RemovalNet draws them anew for each suspect);
    pseudo-inverses are taken in float64 of ``X_i`` itself (the codes invert ``X_i^T X_i`` in float32, wrong for
    ``F_i >= S``); equal masks of an image are run once and all-zero masks never, which leaves the weights as they are;
    zero vectors have a cosine distance. The victim is asked as a suspect is, with its postprocessing defences.

    A victim that gives logits and a suspect that gives probabilities are compared as probabilities, with a warning;
    references that give logits set thresholds for both. ``space="probabilities"`` puts all models into that space from
    the start.

    Cost: extraction ``U`` forward samples of the victim, scoring ``U`` queries, where ``U <= N * S`` is the number of
    distinct masks (fact ``nb_probes``). Memory: one masked batch and ``U`` answers.
    """

    metrics: ClassVar[tuple[Metric, ...]] = tuple(Metric(f"ZEST-{norm}", "distance", "scores") for norm in NORMS)
    source_access: ClassVar[Access] = "scores"
    suspect_access: ClassVar[Access] = "scores"
    verifier_params: ClassVar[list[str]] = [
        *Verifier.verifier_params,
        "nb_images",
        "nb_masks",
        "segmenter",
        "kernel_size",
        "max_dist",
        "ratio",
        "grid_cells",
        "segmentation_input",
        "fill",
        "align",
        "space",
        "shuffle",
    ]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "removalnet": {"nb_masks": 500, "shuffle": True},
        "removalnet-legacy": {"nb_masks": 500, "shuffle": True, "segmentation_input": "standardised-clamped"},
    }

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        nb_images: int = 128,
        nb_masks: int = 1000,
        segmenter: Literal["quickshift", "grid", "auto"] = "quickshift",
        kernel_size: float = 4.0,
        max_dist: float = 200.0,
        ratio: float = 0.2,
        grid_cells: int = 8,
        segmentation_input: Literal["pixels", "standardised-clamped"] = "pixels",
        fill: Any = None,
        align: Align = "greedy",
        space: Literal["auto", "probabilities"] = "auto",
        shuffle: bool = False,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; see :class:`Verifier`.
        :param nb_images: Reference images, from the victim's training data (official code: 128). Fewer are used if
            :meth:`extract` gets fewer.
        :param nb_masks: Masks of each image (official code: 1000; RemovalNet: 500).
        :param segmenter: ``"quickshift"`` (official); ``"grid"``, rectangles, for tiny images (ours); ``"auto"``,
            quickshift, but the grid for images with fewer than 4 segments (ours).
        :param kernel_size: Quickshift's kernel width in pixels, at least 1 (official: 4).
        :param max_dist: Quickshift's longest link (official: 200).
        :param ratio: Quickshift's weight of colour (official: 0.2).
        :param grid_cells: Grid cells along each side, at most the image's side (ours).
        :param segmentation_input: What is segmented: ``"pixels"``, the images on the scale 0..255, or
            ``"standardised-clamped"``, RemovalNet's defect: its way back from standardised colours runs over the first
            images instead of the channels, so the rest is segmented in standardised colours clamped to [0, 1].
        :param fill: Colour of masked segments in the classifier's input units: a number, one per channel, or an image
            ``(C, h, w)``. Default: the mean of the classifier's standardisation, 0 without one (official: 0 in
            standardised units).
        :param align: Class alignment, see :func:`aligned_distance` (official: greedy).
        :param space: ``"auto"`` compares answers as they come and falls back to probabilities for mixed ones;
            ``"probabilities"`` always compares probabilities (ours).
        :param shuffle: Draw the reference images at random instead of taking the first (RemovalNet).
        :param metric_names: See :class:`Verifier`.
        :param nan_policy: See :class:`Verifier`.
        :param batch_size: Masked images in one forward pass.
        :param seed: Seed of the masks and of ``shuffle``.
        :param verbose: Show a progress bar during extraction.
        """
        super().__init__(
            classifier,
            metric_names=metric_names,
            nan_policy=nan_policy,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.nb_images = nb_images
        self.nb_masks = nb_masks
        self.segmenter = segmenter
        self.kernel_size = kernel_size
        self.max_dist = max_dist
        self.ratio = ratio
        self.grid_cells = grid_cells
        self.segmentation_input = segmentation_input
        self.fill = fill
        self.align: Align = align
        self.space = space
        self.shuffle = shuffle
        self._plan: tuple[Fingerprint, ProbePlan] | None = None
        self._check_params()

    def _check_params(self) -> None:
        super()._check_params()
        check_number("nb_images", self.nb_images, 1, integer=True)
        check_number("nb_masks", self.nb_masks, 2, integer=True)
        check_choice("segmenter", self.segmenter, ("quickshift", "grid", "auto"))
        check_number("kernel_size", self.kernel_size, 1)
        check_number("max_dist", self.max_dist, 0, open_low=True)
        check_number("ratio", self.ratio, 0)
        check_number("grid_cells", self.grid_cells, 1, integer=True)
        check_choice("segmentation_input", self.segmentation_input, ("pixels", "standardised-clamped"))
        check_choice("align", self.align, ("greedy", "hungarian", "identity"))
        check_choice("space", self.space, ("auto", "probabilities"))
        check_flag("shuffle", self.shuffle)
        if isinstance(self.fill, np.ndarray | np.generic):
            self.fill = self.fill.tolist()
        if self.fill is not None:
            try:
                fill = np.asarray(self.fill)
            except ValueError:  # ragged
                fill = np.asarray(None)
            if fill.dtype.kind not in "iuf" or fill.ndim not in (0, 1, 3) or not np.isfinite(fill).all():
                raise InvalidInputError(
                    "`fill` must be None, a number, one number per channel, or an image (C, h, w), got "
                    f"{shown(self.fill)}."
                )

    # ------------------------------------------------------------------ hooks
    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if x.ndim != 4:
            raise InvalidInputError(
                f"ZEST segments images: inputs of shape (C, h, w) are needed, the victim's have {tuple(x.shape[1:])}."
            )
        order = torch.randperm(len(x), generator=torch_generator(self.seed, "zest-images"))
        images = (x[order] if self.shuffle else x)[: self.nb_images].contiguous()
        segments, facts = self._segment(victim, images)
        nb_segments = segments.flatten(1).amax(1) + 1
        masks = draw_masks(nb_segments, self.nb_masks, torch_generator(self.seed, "zest-masks"))
        arrays = {
            "images": images.numpy(),
            "segments": segments.numpy().astype(np.uint8 if int(nb_segments.max()) <= 256 else np.int32),
            "masks": np.packbits(masks.numpy(), axis=-1),
            "fill": self._fill_of(victim, tuple(images.shape[1:])).numpy(),
        }
        plan = ProbePlan.build(arrays, int(cast(PyTorchClassifier, self._estimator).nb_classes))
        client = self._as_suspect()
        try:
            answers = client.as_logits(plan.answers(client.raw, self.batch_size, client.device, verbose=self.verbose))
        except (AccessError, NonFiniteOutputError) as error:
            raise type(error)(f"The victim, asked as a suspect, failed on masked images: {error}") from error
        for space in ("logits", "probabilities"):
            signature = plan.signature(answers, probabilities=space == "probabilities")
            arrays[f"signature_{space}"] = signature.cpu().numpy()
        counts = {"requested_images": self.nb_images, "nb_images": len(images), "nb_probes": len(plan)}
        return arrays, {**facts, **counts, "outputs": client.kind}

    def _extraction_passes(self, nb_images: int) -> float:
        return float(min(nb_images, self.nb_images) * self.nb_masks)

    def expected_queries(self) -> int:
        facts = {} if self.fingerprint is None else self.fingerprint.facts
        return int(facts.get("nb_probes", self.nb_images * self.nb_masks))

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        if self.align == "identity":
            check_same_classes(fingerprint.facts["nb_classes"], suspect.nb_classes)
        if self._plan is None or self._plan[0] is not fingerprint:
            self._plan = (fingerprint, ProbePlan.build(fingerprint.arrays, fingerprint.facts["nb_classes"]))
        plan = self._plan[1]
        answers = suspect.as_logits(plan.answers(suspect.raw, suspect.batch_size, suspect.device))
        kind = fingerprint.facts["outputs"]
        probabilities = self.space == "probabilities" or not same_space(kind, suspect.kind) or kind == "probabilities"
        self._compared("probabilities" if probabilities else "logits", *(f"ZEST-{norm}" for norm in NORMS))
        signature = plan.signature(answers, probabilities=probabilities)
        stored = "signature_probabilities" if probabilities else "signature_logits"
        found = fingerprint.tensors(stored) if stored in fingerprint.arrays else ()
        if not found or found[0].ndim != 2 or len(found[0]) != len(signature):
            raise FingerprintFileError("The fingerprint lacks a signature of the victim that fits its segments.")
        victim = found[0].to(signature.device)
        return {
            f"ZEST-{norm}": aligned_distance(victim, signature, norm, self.align)
            for norm in NORMS
            if self.wants(f"ZEST-{norm}")
        }

    # ------------------------------------------------------------------ inside
    def _segment(self, victim: LogitsNetwork, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        n, _, height, width = images.shape
        cells = grid(n, height, width, self.grid_cells)
        replaced = torch.ones(n, dtype=torch.bool)
        segments = cells
        if self.segmenter != "grid":
            colours = self._colours(victim, images).to(victim.device)
            segments = quickshift(colours, kernel_size=self.kernel_size, max_dist=self.max_dist, ratio=self.ratio).cpu()
            too_few = segments.flatten(1).amax(1) + 1 < FEW_SEGMENTS
            replaced = too_few if self.segmenter == "auto" else torch.zeros_like(too_few)
            segments = torch.where(replaced[:, None, None], cells, segments)
        counts = segments.flatten(1).amax(1) + 1
        single = float((counts == 1).float().mean())
        if single == 1:
            raise EmptyFingerprintError(
                f"All {n} images have a single segment, so that masking them tells nothing: use segmenter='grid' with "
                "grid_cells of 2 or more."
            )
        if single > 0.2:
            warnings.warn(
                f"{single:.0%} of the images have a single segment and add no more than plain outputs: use "
                "segmenter='auto' or 'grid'.",
                stacklevel=4,
            )
        if n < 10:
            warnings.warn(f"The fingerprint has only {n} images; 128 are usual.", stacklevel=4)
        return segments, {
            "segments": {
                "min": int(counts.min()),
                "median": float(counts.double().quantile(0.5)),
                "max": int(counts.max()),
            },
            "single_segment_share": single,
            "grid_share": float(replaced.float().mean()),
        }

    def _colours(self, victim: LogitsNetwork, images: Tensor) -> Tensor:
        if self.segmentation_input == "pixels":
            low, high = clip_bounds(self._estimator)
            return (images.double() - low) / (high - low) * 255
        mean, std = (value.double() for value in victim.standardisation)
        colours = (images.double() - mean[:, None, None]) / std[:, None, None]
        back = min(len(colours), len(mean))  # the defect: image i gets channel i's statistics, the others none
        colours[:back] = colours[:back] * std[:back, None, None, None] + mean[:back, None, None, None]
        return colours.clamp(0, 1) * 255

    def _fill_of(self, victim: LogitsNetwork, shape: tuple[int, ...]) -> Tensor:
        if self.fill is None:
            return victim.standardisation[0][:, None, None].contiguous()
        fill = torch.from_numpy(np.asarray(self.fill, dtype=np.float32))
        if fill.ndim == 0 or fill.shape == shape[:1]:
            return fill.expand(shape[0])[:, None, None].contiguous()
        if fill.shape != shape:
            raise InvalidInputError(
                f"`fill` must be a number, {shape[0]} numbers, or an image {shape}, got an array of shape "
                f"{tuple(fill.shape)}."
            )
        return fill
