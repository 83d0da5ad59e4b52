"""Fidelity: how much of the victim's usefulness a surrogate keeps (RemovalNet section 2.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from art_fingerprint.core.checks import check_images, check_labels
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.outputs import labels_of
from art_fingerprint.exceptions import FingerprintError, IncompatibleSuspectError, SuspectFailedError


def accuracy(classifier: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of correct predictions, in [0, 1]. Cost: n forward samples.

    :param classifier: Any ART classifier.
    :param x: Test images ``(n, *input_shape)`` float32.
    :param y: True labels, indices or one-hot.
    """
    images = check_images(x, tuple(classifier.input_shape))
    labels = check_labels(y, len(images), int(classifier.nb_classes))
    return float((predicted_labels(classifier, images) == labels).mean())


def accuracy_drop(victim_accuracy: float, suspect_accuracy: float) -> float:
    """Return the signed drop in points: 100 (Acc_victim - Acc_suspect)."""
    return 100 * (victim_accuracy - suspect_accuracy)


def agreement(victim: Any, suspect: Any, x: np.ndarray) -> float:
    """Return the share of samples on which two classifiers predict one label, in [0, 1]. Cost: n forwards of each."""
    images = check_images(x, tuple(victim.input_shape))
    return label_agreement(*(predicted_labels(classifier, images) for classifier in (victim, suspect)))


def label_agreement(labels: np.ndarray, others: np.ndarray) -> float:
    """Return the share of samples ``(n,)`` that have one label in both, in [0, 1]; -1 is no label."""
    return float(((labels == others) & (labels >= 0)).mean())


def predicted_labels(classifier: Any, images: np.ndarray) -> np.ndarray:
    """Return the predicted classes ``(n,)``, -1 where an answer is NaN or infinite. Cost: n forward samples.

    The classifier's train/eval mode is as before.
    """
    return labels_in(scores(classifier, images))


def labels_in(answers: np.ndarray) -> np.ndarray:
    """Return the classes of the greatest scores of ``(n, K)``, -1 for a row that is NaN or infinite: no label."""
    labels: np.ndarray = labels_of(torch.from_numpy(np.array(answers, dtype=np.float64))).numpy()
    return labels


def scores(classifier: Any, images: np.ndarray, **options: Any) -> np.ndarray:
    """Return what a classifier answers, ``(n, K)``; its train/eval mode is as before. Cost: n forward samples.

    :param classifier: Any ART classifier.
    :param images: Checked images ``(n, *input_shape)``.
    :param options: Of ``predict``.
    :raises SuspectFailedError: it raises an error of its own.
    :raises IncompatibleSuspectError: the answer is not one row of two or more numbers for each image.
    """
    with guarded(classifier, weights=False):  # ART switches the model to evaluation mode and leaves it there
        try:
            found = np.asarray(classifier.predict(images, **options))
        except FingerprintError:
            raise
        except Exception as error:  # whatever the user's model raises
            raise SuspectFailedError(
                f"The classifier failed on {len(images)} images: {type(error).__name__}: {error}"
            ) from error
    if found.ndim != 2 or len(found) != len(images) or found.shape[1] < 2 or found.dtype.kind not in "biuf":
        raise IncompatibleSuspectError(
            f"The classifier answered {len(images)} images with shape {found.shape} of {found.dtype}; scores of two or "
            "more classes for each are needed."
        )
    return found
