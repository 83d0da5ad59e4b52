"""Checks at the border: arrays and parameters are refused here, with a message that says what to do."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from art.estimators.classification.classifier import ClassifierMixin
from art.exceptions import EstimatorError

from art_fingerprint.core.notices import warn_caller
from art_fingerprint.exceptions import InvalidInputError

# Of what is nested or shared again and again the whole text might fill the memory.
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 4
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = _BRIEF.maxfrozenset = _BRIEF.maxarray = 10
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 300
_LARGEST_INTEGER = 2**63 - 1
# No list of names, models, weights or seeds is as long as this.
_MOST_ITEMS = 1_000_000


def check_images(x: object, input_shape: tuple[int, ...], clip_values: object = None, name: str = "x") -> np.ndarray:
    """Return ``x`` as a contiguous, writable float32 array ``(n, *input_shape)``, copied only if need be, or raise.

    float64 is cast. Integer images are refused because nothing says how they are to be scaled. Values outside
    ``clip_values`` give a warning.

    :raises InvalidInputError: not an array, empty, wrong shape, integer, NaN or infinite.
    """
    if not isinstance(x, np.ndarray):
        raise InvalidInputError(
            f"`{name}` must be a NumPy array of shape (n, {', '.join(map(str, input_shape))}), got {type(x).__name__}."
        )
    if x.ndim != len(input_shape) + 1 or tuple(x.shape[1:]) != tuple(input_shape):
        raise InvalidInputError(
            f"`{name}` must have shape (n, {', '.join(map(str, input_shape))}), the classifier's input_shape after the "
            f"sample axis, got {x.shape}."
        )
    if len(x) == 0:
        raise InvalidInputError(f"`{name}` is empty; at least one sample is needed.")
    if not np.issubdtype(x.dtype, np.floating):
        raise InvalidInputError(
            f"`{name}` has dtype {x.dtype}; float32 images in the classifier's clip_values are needed. Scale integer "
            "images first, e.g. (x / 255).astype(np.float32)."
        )
    try:
        x = np.require(x, np.float32, ["C", "W"])  # torch warns of read-only arrays
        bad = int((~np.isfinite(x)).sum())
    except MemoryError as error:
        raise InvalidInputError(
            f"`{name}` of shape {x.shape} does not fit in memory; pass fewer samples, or a DataGenerator where one is "
            "taken."
        ) from error
    if bad:
        raise InvalidInputError(f"`{name}` has {bad} NaN or infinite values; remove or repair those samples.")
    if clip_values is not None:
        low, high = (np.asarray(v, dtype=np.float64) for v in clip_values)  # type: ignore[attr-defined]
        if x.min() < low.min() - 1e-4 or x.max() > high.max() + 1e-4:
            warn_caller(
                f"`{name}` ranges over [{x.min():.4g}, {x.max():.4g}], outside the classifier's clip_values "
                f"({low.min():.4g}, {high.max():.4g}); it is used as it is. Set them to the inputs' range."
            )
    return x


def check_labels(y: object, n: int, nb_classes: int, name: str = "y") -> np.ndarray:
    """Return labels as ``(n,)`` int64 indices; index labels, ``(n, 1)`` columns and one-hot rows are accepted.

    :raises InvalidInputError: no array, wrong length, soft or fractional labels, or an index outside
        ``0..nb_classes-1``.
    """
    try:
        labels = np.asarray(y)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a device
        raise InvalidInputError(f"`{name}` must be an array of class indices or one-hot rows: {error}") from error
    if labels.shape[:1] != (n,):
        raise InvalidInputError(f"`{name}` must have one label for each of the {n} samples, got shape {labels.shape}.")
    if labels.ndim == 2 and labels.shape[1] == nb_classes and nb_classes > 1:
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()):
            raise InvalidInputError(f"`{name}` has two axes but its rows are not one-hot; pass class indices.")
        labels = labels.argmax(1)
    elif labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidInputError(f"`{name}` must have shape ({n},) or ({n}, {nb_classes}), got {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.integer):
        if not np.issubdtype(labels.dtype, np.floating):
            raise InvalidInputError(f"`{name}` must hold class indices, got dtype {labels.dtype}.")
        if not (np.isfinite(labels) & (labels == np.floor(labels))).all():
            raise InvalidInputError(f"`{name}` must hold class indices, got fractions, NaN or infinite values.")
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= nb_classes:
        raise InvalidInputError(
            f"`{name}` holds labels from {labels.min()} to {labels.max()}; 0 to {nb_classes - 1} are possible."
        )
    return labels


def check_values(name: str, values: object, ndim: int = 1) -> np.ndarray:
    """Return finite numbers as a float64 array of so many axes and one element or more, or raise."""
    try:
        found = np.asarray(values)
        if found.dtype.kind == "O" and all(isinstance(value, int | float) for value in found.flat):
            found = found.astype(np.float64)  # integers beyond 64 bits
    except (TypeError, ValueError, OverflowError, RuntimeError):  # ragged lists, tensors on a device
        found = np.array(None)
    if found.dtype.kind not in "biuf" or found.ndim != ndim or not found.size or not np.isfinite(found).all():
        axes = "a list of" if ndim == 1 else f"an array with {ndim} axes of"
        raise InvalidInputError(f"`{name}` must be {axes} one or more finite numbers, got {shown(values)}.")
    return found.astype(np.float64)


def check_groups(name: str, values: object, n: int | None = None) -> np.ndarray:
    """Return what tells groups of samples apart, whole numbers or texts, as an array ``(n,)``, or raise."""
    try:
        found = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        found = np.array(None)
    texts = found.dtype.kind == "O" and all(isinstance(value, str) for value in found.flat)
    if not (texts or found.dtype.kind in "biuUS") or found.ndim != 1 or len(found) != (len(found) if n is None else n):
        size = "each sample" if n is None else f"each of the {n} samples"
        raise InvalidInputError(
            f"`{name}` must hold one class index or name for {size}, got shape {found.shape} of {found.dtype}."
        )
    return found


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that is no float
        return False


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    integer: bool = False,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """Raise unless ``value`` is a finite number (an integer if asked) between the bounds; bools are not numbers.

    Integers have 64 bits, also where ``high`` is infinite: torch and NumPy count with no others.
    """
    if integer and isinstance(value, int) and value > _LARGEST_INTEGER:
        high = min(high, _LARGEST_INTEGER)
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    kind = "an integer" if integer else "a number"
    left, right = ("(" if open_low else "["), (")" if open_high else "]")
    wanted = f"{kind} in {left}{low:g}, {high:g}{right}"
    ok = isinstance(value, kinds) and not isinstance(value, bool)
    if ok:
        # integers are compared as they are: large ones are no floats
        number: Any = value.item() if isinstance(value, np.generic) else value
        ok = integer or _is_finite(number)
        ok = ok and (number > low if open_low else number >= low) and (number < high if open_high else number <= high)
    if not ok:
        raise InvalidInputError(f"`{name}` must be {wanted}, got {shown(value)}.")


def shown(value: object) -> str:
    """Return a value as an error message shows it: shortened, and never an error of its own."""
    try:
        text = _BRIEF.repr(value)
    except Exception:  # a number of thousands of digits, or an object whose repr fails
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 300 else f"{text[:300]}..."


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise InvalidInputError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {shown(value)}.")


def check_sequence(name: str, value: object) -> tuple[Any, ...]:
    """Return the items of ``value`` as a tuple.

    Raise for a string, a mapping, a set, whose order differs from run to run, and for what is no sequence or has no
    end.
    """
    items = None
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | set | frozenset):
        try:
            items = tuple(itertools.islice(iter(value), _MOST_ITEMS + 1))
        except TypeError:  # arrays and tensors without an axis
            items = None
    if items is None:
        raise InvalidInputError(f"`{name}` must be a sequence, got {shown(value)}.")
    if len(items) > _MOST_ITEMS:
        raise InvalidInputError(f"`{name}` has more than {_MOST_ITEMS:,} items.")
    return tuple(item.item() if isinstance(item, np.generic) else item for item in items)


def check_flag(name: str, value: object) -> None:
    """Raise unless ``value`` is a bool."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidInputError(f"`{name}` must be True or False, got {shown(value)}.")


def check_seed(seed: object, name: str = "seed") -> None:
    """Raise unless ``seed`` is a non-negative integer."""
    check_number(name, seed, 0, 2**63 - 1, integer=True)


def is_classifier(value: object) -> bool:
    """Tell whether ``value`` is an ART classifier of any framework."""
    return isinstance(value, ClassifierMixin)


def check_suspect(owner: object, value: object) -> None:
    """Raise ART's ``EstimatorError`` in the name of ``owner`` unless ``value`` is a classifier of any framework."""
    if not is_classifier(value):
        raise EstimatorError(type(owner), (ClassifierMixin,), value)
