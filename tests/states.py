"""What a call on a classifier must leave alone, in a form that compares; and services that show less than a network."""

from __future__ import annotations

import random

import numpy as np
import torch
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

from art_fingerprint.core.digests import network_digest


def state_of(classifier: PyTorchClassifier) -> tuple[object, ...]:
    """Return weights, flags, hooks and gradients of a classifier."""
    modules = list(classifier.model.modules())
    return (
        network_digest(classifier.model),
        [m.training for m in modules],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules],
        [p.requires_grad for p in classifier.model.parameters()],
        [None if p.grad is None else p.grad.tolist() for p in classifier.model.parameters()],
    )


def random_states() -> tuple[object, ...]:
    """Return the global random states of Python, NumPy and torch."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002


def mark(classifier: PyTorchClassifier) -> None:
    """Give a classifier around a ``TinyCNN`` an unusual state that must survive."""
    classifier.model.train()
    classifier.model.block2.eval()
    classifier.model.head.weight.requires_grad_(False)
    classifier.model.block1[0].weight.grad = torch.ones_like(classifier.model.block1[0].weight)
    classifier.model.block3.register_forward_hook(lambda *_: None)


def black_box(classifier: PyTorchClassifier) -> BlackBoxClassifierNeuralNetwork:
    """Return a classifier that answers what ``classifier`` does and shows nothing else."""
    return BlackBoxClassifierNeuralNetwork(
        classifier.predict, classifier.input_shape, classifier.nb_classes, clip_values=(0.0, 1.0)
    )


def label_box(classifier: PyTorchClassifier) -> BlackBoxClassifierNeuralNetwork:
    """Return a classifier that answers the labels of ``classifier`` as one-hot rows and shows nothing else."""

    def labels(x: np.ndarray) -> np.ndarray:
        return np.eye(classifier.nb_classes, dtype=np.float32)[classifier.predict(x).argmax(1)]

    return BlackBoxClassifierNeuralNetwork(labels, classifier.input_shape, classifier.nb_classes)
