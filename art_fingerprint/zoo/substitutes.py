"""Substitute sets: which samples a removal attack works on (RemovalNet section 3.1)."""

from __future__ import annotations

import numpy as np

from art_fingerprint.core.checks import check_choice, check_number, check_seed
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.exceptions import InvalidInputError


def select_substitute(
    y_victim: np.ndarray,
    ratio: float,
    selection: str = "stratified",
    rebalance: str | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Return the indices of a substitute set.

    The paper asks for diverse classes and a distribution like the training set's; its code draws uniformly.

    :param y_victim: The *victim's* labels of the pool, ``(n,)``: true labels may be unknown or of another task.
    :param ratio: Share of the pool, (0, 1]; int(ratio * n) samples.
    :param selection: ``"stratified"`` (ours): round robin over the victim's classes; ``"random"`` (code): uniform
        without replacement.
    :param rebalance: ``None``, or ``"ros"``: afterwards repeat samples of small classes at random up to the largest
        class (what the authors' code does under the name ROSE).
    :param seed: Seed.
    :raises InvalidInputError: the share selects nothing, or a bad argument.
    """
    check_number("ratio", ratio, 0, 1, open_low=True)
    check_choice("selection", selection, ("stratified", "random"))
    check_choice("rebalance", rebalance, (None, "ros"))
    check_seed(seed)
    labels = np.asarray(y_victim)
    if labels.ndim != 1:
        raise InvalidInputError(f"`y_victim` must hold class indices of shape (n,), got shape {labels.shape}.")
    count = int(ratio * len(labels) + 1e-9)
    if count == 0:
        raise InvalidInputError(f"`ratio`={ratio} of {len(labels)} samples selects none.")
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
