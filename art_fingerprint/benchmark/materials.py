"""What a plan is about: data sets, the attacker's part of them, suspects and parameters as data."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.benchmark.plan import architecture_name
from art_fingerprint.core.parameters import as_json
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.datasets import Dataset, load_dataset
from art_fingerprint.zoo.lazy_batches import labels_in_chunks
from art_fingerprint.zoo.lazy_images import LazyImages
from art_fingerprint.zoo.loading import load_object
from art_fingerprint.zoo.substitutes import select_substitute

_OWNERS_IMAGES = 5000


@dataclass(frozen=True)
class Suspect:
    """A model that is scored, as data.

    :ivar label: Row label.
    :ivar role: ``"victim"``, ``"reference"``, ``"negative"`` or ``"surrogate"``.
    :ivar seed: Its seed in the rows; of a reference its number.
    :ivar key: Digest of everything that makes it.
    """

    label: str
    role: str
    seed: int
    key: str


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON values; what makes a network is named."""
    return {name: architecture_name(value) if callable(value) else as_json(value) for name, value in params.items()}


@functools.lru_cache(maxsize=2)
def dataset(name: str, options: str = "{}") -> Dataset:
    """Return a data set by name, or what ``package.module:function`` returns; the last two are kept in memory.

    :param options: Keyword arguments as JSON.
    :raises InvalidInputError: there is none of this name, or the function returns something else.
    """
    load = load_object(name, "data set") if ":" in name else functools.partial(load_dataset, name)
    try:
        found = load(**json.loads(options))
    except TypeError as error:
        raise InvalidInputError(f"The data set {name!r} does not take {options}: {error}") from error
    if not isinstance(found, Dataset):
        raise InvalidInputError(f"The data set {name!r} is a {type(found).__name__}; a zoo.datasets.Dataset is needed.")
    return found


def owners_data(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return what fingerprints are extracted from: the training set, or 5000 of its images if they are on disk."""
    x, y = data.x_train, data.y_train
    # every stretch of a part is a fair sample of it
    return (x[:_OWNERS_IMAGES], y[:_OWNERS_IMAGES]) if isinstance(x, LazyImages) else (x, y)


def substitute_data(
    data: Dataset, victim: PyTorchClassifier, source: str, subset_ratio: float, seed: int
) -> tuple[np.ndarray | LazyImages, np.ndarray]:
    """Return the attacker's images and labels: ``"train"``, a stratified ``"subset"`` of it, or ``"apart"``."""
    if source == "train":
        return data.x_train, data.y_train
    if source == "apart":
        return data.x_apart, data.y_apart
    x = data.x_train
    chosen = select_substitute(labels_in_chunks(victim, x), subset_ratio, seed=seed)
    return x.take(chosen) if isinstance(x, LazyImages) else x[chosen], data.y_train[chosen]
