"""What a plan is about: data sets, the attacker's part of them, suspects and parameters as data."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.benchmark.plan import architecture_name
from art_fingerprint.core.parameters import as_json
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.evaluation.robustness import robustness
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.zoo.datasets import Dataset, load_dataset
from art_fingerprint.zoo.lazy_batches import labels_in_chunks
from art_fingerprint.zoo.lazy_images import LazyImages
from art_fingerprint.zoo.loading import load_object
from art_fingerprint.zoo.preset import Preset
from art_fingerprint.zoo.substitutes import select_substitute

logger = logging.getLogger(__name__)

_OWNERS_IMAGES = 5000


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


def owners_data(data: Dataset, kind: type[Verifier], preset: Preset) -> tuple[np.ndarray, ...]:
    """Return what a verifier extracts from, as arguments of its ``extract``.

    Training images and labels; test images for a verifier that looks for the victim's errors; both for one that holds
    them against each other. Of images on disk 5000.
    """
    held_out = (data.x_test, data.y_test)
    if kind.extraction_data == "held-out":
        return noisy(*held_out, seed=preset.victim_seed, **preset.held_out_noise) if preset.held_out_noise else held_out
    x, y = data.x_train, data.y_train
    if isinstance(x, LazyImages):  # every stretch of a part is a fair sample of it
        x, y = x[:_OWNERS_IMAGES], y[:_OWNERS_IMAGES]
    return (x, y, *held_out) if kind.extraction_data == "training" else (x, y)


def nb_owners_images(data: Dataset, kind: type[Verifier], preset: Preset) -> int:
    """Return the number of images that :func:`owners_data` gives first, without making them."""
    if kind.extraction_data == "held-out":
        return len(data.x_test) * (1 + (preset.held_out_noise or {}).get("copies", 0))
    return min(len(data.x_train), _OWNERS_IMAGES) if isinstance(data.x_train, LazyImages) else len(data.x_train)


def noisy(x: np.ndarray, y: np.ndarray, copies: int, std: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labelled images and, behind them, copies of all with Gaussian noise, clipped to [0, 1]."""
    draws = numpy_generator(seed, "held-out noise")
    images = np.asarray(x[:], dtype=np.float32)
    made = [np.clip(images + std * draws.standard_normal(images.shape, dtype=np.float32), 0, 1) for _ in range(copies)]
    return np.concatenate([images, *made]), np.tile(y, copies + 1)


def substitute_data(
    data: Dataset,
    victim: PyTorchClassifier,
    source: str,
    subset_ratio: float,
    seed: int,
    ratio: float | None = None,
) -> tuple[np.ndarray | LazyImages, np.ndarray]:
    """Return the attacker's images and labels: ``"train"``, a stratified ``"subset"`` of it, or ``"apart"``.

    :param ratio: See :class:`.AttackSetting`.
    """
    x, y = (data.x_apart, data.y_apart) if source == "apart" else (data.x_train, data.y_train)
    share = share_of_source(source, subset_ratio, ratio)
    if share is None:
        return x, y
    chosen = select_substitute(labels_in_chunks(victim, x), share, seed=seed)
    return x.take(chosen) if isinstance(x, LazyImages) else x[chosen], y[chosen]


def share_of_source(source: str, subset_ratio: float, ratio: float | None) -> float | None:
    """Return which share of a source the attacker holds, ``None`` for all of it."""
    return subset_ratio if source == "subset" and ratio is None else ratio


def robustness_of(model: PyTorchClassifier, data: Dataset, preset: Preset) -> dict[str, Any]:
    """Attack a model with its own examples. An attack that fails is missed in the rows, and ends nothing."""
    x, y = data.x_test[: preset.nb_robustness], data.y_test[: preset.nb_robustness]
    found = {}
    for name, params in preset.robustness.items():
        try:
            found[name] = robustness(model, x, y, name, **params).to_dict()
        except InvalidInputError as error:
            logger.warning("%s failed on a model of %s: %s", name, preset.name, error)
    return found
