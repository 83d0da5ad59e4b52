"""Weight alignment: how much of a suspect's weights is the victim's, whatever the order and the scale of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.core.channel_groups import ChannelGroup, ChannelGroups, GroupedWeight, find_groups
from art_fingerprint.core.checks import check_number, check_suspect, shown
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.group_sets import Segment
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.precision import full_precision
from art_fingerprint.core.queries import NanPolicy, Suspect
from art_fingerprint.core.taps import near_names
from art_fingerprint.exceptions import (
    EmptyFingerprintError,
    IncompatibleArchitectureError,
    InvalidInputError,
    LayerNotFoundError,
    NonFiniteOutputError,
)
from art_fingerprint.verifiers.base import Access, Metric, Verifier
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.verifiers.weight_evidence import Agreement, agreement, mean_alignment, p_bound, p_threshold
from art_fingerprint.verifiers.weight_matching import match, matched_filters
from art_fingerprint.verifiers.weight_sketch import Layer, balanced, projection, read_filters

# Filters of fewer entries have too few that could be held out; a 3 x 3 filter of an RGB image has 27.
_FEWEST_ENTRIES = 32


@dataclass(frozen=True)
class LayerAlignment:
    """One layer of a suspect beside the victim's.

    :ivar layer: Name of the layer.
    :ivar filters: Number of filters.
    :ivar cosine: Mean cosine of matched filters; NaN if the suspect lacks the layer.
    :ivar alignment: The same beyond chance: 1 for a copy, about 0 for an independent model.
    :ivar counted: Whether it is part of WA. Layers that read the image or give the logits are not, see
        :class:`WeightAlignmentVerifier`, nor are depthwise ones.
    :ivar p_value: Bound of the chance of so high an alignment; NaN unless counted.
    :ivar reused: Whether the p-value is below the verifier's ``significance``; ``None`` unless counted.
    :ivar note: Why it was not compared, else empty.
    """

    layer: str
    filters: int
    cosine: float
    alignment: float
    counted: bool
    p_value: float
    reused: bool | None
    note: str = ""


class WeightAlignmentVerifier(Verifier):
    """Compare weights: the share of a suspect's filters that are still the victim's.

    - ``WA``: mean over the counted layers of ``(c - e) / (1 - e)``; c is the mean cosine of matched filters, e the mean
      over all pairs of filters. 1 for a copy, about 0 for an independent model.

    Filters are normalised so that no positive rescaling of a filter or of an input channel matters, take the sign of
    the BatchNorm behind them, and are matched by optimal assignment, one permutation for each group of channels that
    can only be permuted together (:func:`~art_fingerprint.core.channel_groups.find_groups`: residual streams,
    concatenations, blocks of grouped convolutions, heads and the channels inside them). The fingerprint holds
    projections of each filter on random orthonormal directions. Half of them match
    (:func:`~art_fingerprint.verifiers.weight_matching.match`); the cosines are taken on the other half, which the
    matching has not seen. An unrelated model's alignment is therefore zero on average, not the best of many.

    p-value without reference models: ``exp(-WA^2 / (2 (v + tolerance^2)))``. v is the variance of WA if the held-out
    parts of the victim's filters are handed out to the matched filters at random, exact for every pair of models
    (:func:`~art_fingerprint.verifiers.weight_evidence.agreement`); the normal tail of such a mean is its combinatorial
    limit, not a proof for few filters. ``tolerance`` allows for what independent training has in common. Without
    references a suspect is derived if p < ``significance``; :meth:`calibrate` replaces both by the references'.

    Counted are layers whose inputs and outputs can be permuted, with filters of 32 entries or more: first filters and
    class weights are alike in independent models as well. If there is no such layer, all with enough entries count.

    What it says is "weights in common", not "trained on the same data". Models with the same initial weights, by one
    seed or one public checkpoint, have that too (0.48 and 0.51 on digits): then only references from the same start
    tell. What it does not see: models trained from scratch on the victim's answers (KnockoffNets) share no weights.
    Signs and rotations that a network happens to allow are not searched: heads of attention can be rotated one by one,
    and the whole stream of a transformer after its LayerNorms were folded, without a change of any answer; the latter
    takes WA to 0. ReLU networks allow positive scales and orders only.

    Source: ours; matching after Ainsworth et al., "Git Re-Basin", ICLR 2023, section 3.2 (their objective takes raw
    weights). Suspects need the victim's layers by name and shape; what they lack is left out, with a warning.

    Cost of extraction: one forward sample. Scoring: no queries; per sweep, of which there are at most ten, two products
    of each weight with its sketch and an assignment for each group.
    """

    decides_alone: ClassVar[bool] = True
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("WA", "similarity", "layers"),)
    extras: ClassVar[tuple[str, ...]] = ("WA_p",)
    source_access: ClassVar[Access] = "layers"
    suspect_access: ClassVar[Access] = "layers"
    verifier_params: ClassVar[list[str]] = [
        *Verifier.verifier_params,
        "layers",
        "sketch_size",
        "tolerance",
        "significance",
    ]
    profiles: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "removalnet": {}, "removalnet-legacy": {}}

    def __init__(
        self,
        classifier: PyTorchClassifier | None,
        *,
        layers: Sequence[str] | None = None,
        sketch_size: int | None = 256,
        tolerance: float = 0.05,
        significance: float = 1e-6,
        metric_names: Sequence[str] | None = None,
        nan_policy: NanPolicy = "raise",
        batch_size: int = 128,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        """
        :param classifier: The victim; ``None`` only through :meth:`from_fingerprint`.
        :param layers: Names of the layers to fingerprint, or of modules that hold them; ``None`` for all convolutions
            and Linear layers. Layers that are left out do not help the matching either.
        :param sketch_size: Numbers kept of each filter, half for matching and half for the score, and never more than
            half of the filter's entries, so that the file does not give the weights away (filters of fewer than 32
            entries, those of the first layer, say, are kept whole). 256: with 128 a reordered MobileNetV2 whose filters
            have a cosine of 0.6 to the victim's was no longer matched. ``None``: all entries, the strongest matching.
        :param tolerance: Standard deviation of WA among models trained independently, beyond that of random pairing.
            0.05: five times the spread measured on digits, whose mean is 0.03; see docs/weight-alignment.md.
        :param significance: p-value below which a suspect is derived, where there are no reference models.
        :param metric_names: As in :class:`Verifier`.
        :param nan_policy: NaN or infinite weights of a suspect end the scoring (``"raise"``), or their filters count as
            zeros, which match nothing (``"mismatch"``).
        :param batch_size: Without effect: nothing is sent to a suspect.
        :param seed: Seed of the projections.
        :param verbose: Without effect.
        """
        super().__init__(
            classifier,
            metric_names=metric_names,
            nan_policy=nan_policy,
            batch_size=batch_size,
            seed=seed,
            verbose=verbose,
        )
        self.layers = tuple(layers) if isinstance(layers, list) else layers
        self.sketch_size = sketch_size
        self.tolerance = tolerance
        self.significance = significance
        self._check_params()

    # ------------------------------------------------------------------ hooks
    def _extraction_passes(self, nb_images: int) -> float:
        return 1.0

    def expected_queries(self) -> int:
        """Return 0: weights are read, and nothing is asked."""
        return 0

    def _extract(
        self, victim: LogitsNetwork, x: Tensor, y: Tensor | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        groups = find_groups(victim.network, victim.preprocess(x[:1].to(victim.device)))
        arrays: dict[str, np.ndarray] = {}
        layers = []
        for axes in _chosen(groups.weights, self.layers):
            filters = read_filters(victim.network, axes)
            if isinstance(filters, str):  # the pass used a tensor that is no attribute of its layer
                continue
            if not torch.isfinite(filters).all():
                raise InvalidInputError(f"The victim's {axes.name} holds NaN or infinite values: repair the model.")
            if not filters.any():
                warn_caller(f"The victim's {axes.name} is zero everywhere: it is left out.")
                continue
            size = filters.shape[2] * filters.shape[3]
            enough = size >= _FEWEST_ENTRIES and bool(axes.columns)
            kept = size if self.sketch_size is None or not enough else min(self.sketch_size, size // 2)
            matching = kept // 2 if enough else kept
            basis = projection(size, kept, self.seed, axes.name)
            arrays[axes.name] = (balanced(filters).flatten(2) @ basis).numpy()
            ends = any(groups.groups[segment.group].pinned for segment in (*axes.rows, *axes.columns))
            layers.append({**asdict(axes), "matching": matching, "enough": enough, "ends": ends})
        enough_in = [facts["name"] for facts in layers if facts["enough"]]
        counted = [facts["name"] for facts in layers if facts["enough"] and not facts["ends"]] or enough_in
        if not counted:
            raise EmptyFingerprintError(
                f"None of the chosen layers has filters of {_FEWEST_ENTRIES} entries or more; choose other `layers`."
            )
        facts = {"layers": layers, "groups": [asdict(group) for group in groups.groups], "counted": counted}
        return arrays, {**facts, "nb_layers": len(layers)}

    def _score(self, suspect: Suspect, fingerprint: Fingerprint) -> dict[str, float]:
        found, missing = self._compare(suspect.view.network, fingerprint)
        counted = [found[name] for name in fingerprint.facts["counted"] if name in found]
        if not counted:
            raise IncompatibleArchitectureError(
                "The suspect has none of the layers that count with the victim's name and shape: "
                + _listed([f"{name} ({why})" for name, why in missing.items()])
                + ". Its own are "
                + _listed([name for name, weight in suspect.view.network.named_parameters() if weight.ndim > 1])
                + ": rename them if they are the same layers."
            )
        if missing:
            warn_caller(
                f"{len(missing)} of {len(missing) + len(found)} layers were not compared: "
                + _listed([f"{name} ({why})" for name, why in missing.items()])
            )
        alignment, variance = mean_alignment(counted)
        p_value = p_bound(alignment, variance, self.tolerance)
        self._by_chance("WA", p_threshold(variance, self.tolerance, self.significance), p_value)
        return {"WA": min(alignment, 1.0), "WA_p": p_value}

    def layer_report(self, suspect: PyTorchClassifier) -> tuple[LayerAlignment, ...]:
        """Return what became of each of the victim's layers in a suspect, in order of execution.

        :param suspect: A PyTorch classifier. It is only read.
        :raises NotExtractedError: there is no fingerprint yet.
        :raises AccessError: the suspect does not show its weights.
        """
        fingerprint = self._require_fingerprint()
        check_suspect(self, suspect)
        view = Suspect(suspect, nan_policy=self.nan_policy).view
        with guarded(suspect, weights=False), full_precision(), torch.no_grad():
            found, missing = self._compare(view.network, fingerprint)
        rows = []
        for facts in fingerprint.facts["layers"]:
            name, filters = facts["name"], facts["shape"][0]
            label, counted = name.removesuffix(".weight"), name in fingerprint.facts["counted"]
            if name in missing:
                rows.append(LayerAlignment(label, filters, math.nan, math.nan, counted, math.nan, None, missing[name]))
                continue
            layer = found[name]
            p_value = p_bound(layer.alignment, layer.alignment_variance, self.tolerance) if counted else math.nan
            reused = p_value < self.significance if counted else None
            rows.append(LayerAlignment(label, filters, layer.cosine, layer.alignment, counted, p_value, reused))
        return tuple(rows)

    # ------------------------------------------------------------------ inside
    def _compare(self, network: nn.Module, fingerprint: Fingerprint) -> tuple[dict[str, Agreement], dict[str, str]]:
        """Return weight name to agreement, and to the reason for those that were not compared."""
        groups = ChannelGroups(tuple(ChannelGroup(**group) for group in fingerprint.facts["groups"]), ())
        layers: list[Layer] = []
        suspects: list[Tensor] = []
        held: list[slice] = []
        missing: dict[str, str] = {}
        for facts in fingerprint.facts["layers"]:
            filters = read_filters(network, _axes(facts))
            if isinstance(filters, str):
                missing[facts["name"]] = filters
                continue
            (sketch,) = fingerprint.tensors(facts["name"])
            size = filters.shape[2] * filters.shape[3]
            basis = projection(size, sketch.shape[2], self.seed, facts["name"])
            layers.append(Layer(_axes(facts), sketch, basis, facts["matching"]))
            suspects.append(balanced(self._finite(facts["name"], filters)))
            held.append(slice(facts["matching"] if facts["enough"] else 0, None))
        orders = match(layers, suspects, groups)
        return {
            layer.axes.name: agreement(
                layer.sketch[:, :, part].flatten(0, 1), matched_filters(layer, ours, orders, part)
            )
            for layer, ours, part in zip(layers, suspects, held, strict=True)
        }, missing

    def _finite(self, name: str, filters: Tensor) -> Tensor:
        bad = ~torch.isfinite(filters).flatten(2).all(2)
        if bad.any():
            if self.nan_policy == "raise":
                raise NonFiniteOutputError(f"{int(bad.sum())} filters of the suspect's {name} are NaN or infinite.")
            filters[bad] = 0
        return filters

    def _check_params(self) -> None:
        super()._check_params()
        names = self.layers
        if names is not None and not (isinstance(names, tuple) and names and all(isinstance(n, str) for n in names)):
            raise InvalidInputError(f"`layers` must be a list of layer names or None, got {shown(names)}.")
        if self.sketch_size is not None:
            check_number("sketch_size", self.sketch_size, 16, integer=True)
        check_number("tolerance", self.tolerance, 0)
        check_number("significance", self.significance, 0, 1, open_low=True, open_high=True)


def _chosen(weights: Sequence[GroupedWeight], layers: Sequence[str] | None) -> list[GroupedWeight]:
    """Return the weights of some layers, or of what is inside some modules."""
    if layers is None:
        return list(weights)
    chosen = []
    for layer in layers:
        inside = [axes for axes in weights if axes.name == layer or axes.name.startswith(f"{layer}.")]
        if not inside:
            names = [axes.name.removesuffix(".weight") for axes in weights]
            near = near_names(names, layer) or names[:8]
            raise LayerNotFoundError(
                f"The victim has no convolution or Linear layer {layer!r}, nor one inside it. Near names: "
                f"{', '.join(near)}."
            )
        chosen += inside
    return [axes for axes in weights if axes in chosen]


def _axes(facts: dict[str, Any]) -> GroupedWeight:
    rows, columns = (tuple(Segment(**segment) for segment in facts[axis]) for axis in ("rows", "columns"))
    return GroupedWeight(facts["name"], tuple(facts["shape"]), rows, columns, facts["groups"], facts["scale"])


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
