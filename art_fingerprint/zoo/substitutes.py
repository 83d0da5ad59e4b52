"""Substitute sets: which samples a removal attack works on (RemovalNet section 3.1), and whose else they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from art_fingerprint.core.checks import (
    check_choice,
    check_groups,
    check_images,
    check_number,
    check_seed,
    check_sequence,
    shown,
)
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.exceptions import InvalidInputError

# Shares of the substitute set in the paper's study of limited data.
RATIOS = tuple(percent / 100 for percent in range(2, 21, 2))
_DECIMALS = 4
_CHUNK = 1024


def select_substitute(
    y_victim: np.ndarray,
    ratio: float,
    selection: str = "stratified",
    rebalance: str | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the indices of a substitute set.

    The paper asks for diverse classes and a distribution like the training set's; its code draws uniformly. With one
    seed, the set of a smaller share is the beginning of that of a larger one.

    :param y_victim: The *victim's* labels of the pool, ``(n,)``: true labels may be unknown or of another task.
    :param ratio: Share of the pool, (0, 1]; int(ratio * n) samples.
    :param selection: ``"stratified"`` (ours): round robin over the victim's classes; ``"random"`` (code): uniform
        without replacement.
    :param rebalance: ``None``, or ``"ros"``: afterwards repeat samples of small classes at random up to the largest
        class (what the authors' code does under the name ROSE). Only ever rebalance after splitting off a test set. For
        ``"rose"``, which makes new samples, see :func:`rebalance_samples`.
    :param seed: Seed.
    :raises InvalidInputError: the share selects nothing, or a bad argument.
    """
    check_number("ratio", ratio, 0, 1, open_low=True)
    check_choice("selection", selection, ("stratified", "random"))
    if rebalance == "rose":
        raise InvalidInputError(
            "`rebalance`='rose' makes new samples, which have no index: select without it, then call "
            "rebalance_samples(x[chosen], y[chosen], 'rose')."
        )
    check_choice("rebalance", rebalance, (None, "ros"))
    check_seed(seed)
    labels = check_groups("y_victim", y_victim)
    count = nb_selected(len(labels), ratio)
    generator = numpy_generator(seed, "substitute", selection)
    order = generator.permutation(len(labels))
    if selection == "stratified":
        # Rank within the class first: all first members, then all second members, and so on.
        rank = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            rank[members] = np.arange(len(members))
        order = order[np.argsort(rank[order], kind="stable")]
    chosen = order[:count]
    if rebalance == "ros":
        chosen = np.concatenate([chosen, oversample(labels[chosen], seed, chosen)])
    return chosen


def nb_selected(n: int, ratio: float) -> int:
    """Return how many samples a share of n is.

    :raises InvalidInputError: none.
    """
    count = int(ratio * n + 1e-9)
    if count == 0:
        raise InvalidInputError(f"`ratio`={ratio} of {n} samples selects none.")
    return count


def oversample(labels: np.ndarray, seed: int, indices: np.ndarray | None = None) -> np.ndarray:
    """Return repeated members of every class that is smaller than the largest, so that all classes become equal.

    :param labels: Labels ``(n,)``.
    :param seed: Seed.
    :param indices: What stands for each sample; default its position.
    """
    indices = np.arange(len(labels)) if indices is None else indices
    generator = numpy_generator(seed, "oversample")
    classes, counts = np.unique(labels, return_counts=True)
    extra = [
        generator.choice(indices[labels == label], counts.max() - count)
        for label, count in zip(classes, counts, strict=True)
    ]
    return np.concatenate(extra).astype(np.int64)


def rebalance_samples(
    x: np.ndarray,
    y: np.ndarray,
    method: str = "ros",
    *,
    bandwidth: float = 0.05,
    clip_values: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples and as many more as make every class as large as the largest, with their labels.

    ``"ros"``: the further samples are repeats of samples of their class. ``"rose"`` (smoothed bootstrap after Menardi
    and Torelli, named by the RemovalNet paper): repeats with Gaussian noise of standard deviation h_j =
    ``bandwidth`` (4 / ((d + 2) n_c))^(1 / (d + 4)) sigma_j in dimension j, sigma_j the standard deviation in the class,
    n_c its size, d the number of dimensions; clipped to ``clip_values``. The class of one sample gets plain repeats.

    Deviation: ROSE draws a whole new set; here the samples themselves stay.

    :param x: Images ``(n, ...)`` float32.
    :param y: Labels ``(n,)``, those of the victim.
    :param method: ``"ros"`` or ``"rose"``.
    :param bandwidth: Factor of h. 1 is Silverman's rule, which drowns images in noise: d is large (default ours).
    :param clip_values: Range of x.
    :param seed: Seed.
    :raises InvalidInputError: a bad argument.
    """
    check_choice("method", method, ("ros", "rose"))
    check_number("bandwidth", bandwidth, 0)
    bounds = check_sequence("clip_values", clip_values)
    for bound in bounds:
        check_number("clip_values", bound, -1e38, 1e38)  # float32
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise InvalidInputError(f"`clip_values` must be (low, high) with low < high, got {shown(clip_values)}.")
    check_seed(seed)
    x = check_images(x, x.shape[1:] if isinstance(x, np.ndarray) else ())
    y = check_groups("y", y, len(x))
    extra = oversample(y, seed)
    added, labels = x[extra], y[extra]
    if method == "rose":
        noise = numpy_generator(seed, "smoothed bootstrap").standard_normal(added.shape, dtype=np.float32)
        for label in np.unique(labels):
            noise[labels == label] *= kernel_widths(x[y == label], bandwidth)
        added = np.clip(added + noise, *bounds)
    return np.concatenate([x, added]), np.concatenate([y, labels])


def kernel_widths(x: np.ndarray, bandwidth: float = 1.0) -> np.ndarray:
    """Return h_j = ``bandwidth`` (4 / ((d + 2) n))^(1 / (d + 4)) sigma_j of the samples of one class, ``x.shape[1:]``.

    sigma_j is the standard deviation with n - 1 in the denominator, 0 for a single sample.
    """
    n, d = len(x), x[0].size
    deviation = x.std(0, ddof=1) if n > 1 else np.zeros_like(x[0])
    return bandwidth * (4 / ((d + 2) * n)) ** (1 / (d + 4)) * deviation


def overlap(x_a: np.ndarray, x_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which samples of each of two sets are also in the other, as ascending indices.

    Samples are the same if all their pixels agree to four decimals: a hash of each is compared, in float32, so that
    the last bit of another scaling makes no difference. Copies that were cropped, resized or compressed are not found.

    :param x_a: Images ``(n, ...)``, of any number type.
    :param x_b: Images ``(m, ...)`` of the same shape and in the same range.
    :raises InvalidInputError: no arrays of numbers, or the shapes of samples differ.
    """
    x_a, x_b = _numbers("x_a", x_a), _numbers("x_b", x_b)
    if x_a.shape[1:] != x_b.shape[1:]:
        raise InvalidInputError(
            f"Sets can only be compared if their samples have one shape, got {x_a.shape[1:]} and {x_b.shape[1:]}."
        )
    a, b = _hashes(x_a), _hashes(x_b)
    return np.flatnonzero(np.isin(a, b)), np.flatnonzero(np.isin(b, a))


def check_disjoint(x: np.ndarray, others: Mapping[str, np.ndarray]) -> None:
    """Raise unless a substitute set shares no sample with any other set (see :func:`overlap`).

    :param x: The substitute set ``(n, ...)``.
    :param others: Name to images, the victim's training and test sets for instance.
    :raises InvalidInputError: with the number of shared samples and their indices in ``x`` for each set that has some.
    """
    found = {name: overlap(x, images) for name, images in others.items()}
    shared = [
        f"{len(mine)} of its {len(x)} samples ({_listed(mine)}) are {len(theirs)} of the {len(others[name])} in "
        f"{name!r} ({_listed(theirs)})"
        for name, (mine, theirs) in found.items()
        if len(mine)
    ]
    if shared:
        raise InvalidInputError(
            f"The substitute set is not held apart: {'; '.join(shared)}. Remove them, or say that the attacker holds a "
            "share of the training set."
        )


def _numbers(name: str, x: object) -> np.ndarray:
    try:
        found = np.asarray(x)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors on a device
        found = np.array(None)
    if found.ndim == 0 or found.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"`{name}` must be an array of numbers (n, ...), got shape {found.shape} of {found.dtype}."
        )
    return found


def _hashes(x: np.ndarray) -> np.ndarray:
    found = []
    for start in range(0, len(x), _CHUNK):  # images on disk are decoded slice by slice
        # adding zero makes -0.0 and 0.0 one
        rounded = np.round(np.ascontiguousarray(x[start : start + _CHUNK], dtype=np.float32), _DECIMALS) + 0.0
        found += [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rounded]
    return np.array(found, dtype="U32")


def _listed(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:10]))
    return f"indices {shown}, ..." if len(indices) > 10 else f"indices {shown}"
