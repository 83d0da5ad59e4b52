"""What a call must leave alone, in forms that compare: a model, its flags and hooks, random states, settings."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

State = dict[str, Any]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def weights(classifier: PyTorchClassifier) -> dict[str, Tensor]:
    """Return a copy of all weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in classifier.model.state_dict().items()}


def weight_state(classifier: PyTorchClassifier) -> State:
    """Return the bytes of all weights and buffers, and where they are stored."""
    found = classifier.model.state_dict()
    return {
        "weights": {name: tensor.detach().cpu().numpy().tobytes() for name, tensor in found.items()},
        "storage": [tensor.data_ptr() for tensor in found.values()],
    }


def module_state(classifier: PyTorchClassifier) -> State:
    """Return train/eval flags, ``requires_grad``, gradients, hooks, and the names of all attributes of modules."""
    modules = list(classifier.model.modules())
    parameters = list(classifier.model.parameters())
    return {
        "train/eval flags": [module.training for module in modules],
        "requires_grad": [p.requires_grad for p in parameters],
        "gradients": [None if p.grad is None else p.grad.cpu().numpy().tobytes() for p in parameters],
        "hooks": [tuple(getattr(module, name).items()) for module in modules for name in _HOOKS],
        "attributes": [sorted(vars(module)) for module in modules],
    }


def random_state() -> State:
    """Return the global random states of Python, NumPy and torch."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - it is the global one that must not move
    return {
        "Python's random state": random.getstate(),
        "NumPy's random state": (numpy_state[1].tobytes(), *numpy_state[2:]),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
    }


def torch_settings() -> State:
    """Return torch's global settings that change numbers or how they are computed."""
    backends = torch.backends
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "matmul precision": torch.get_float32_matmul_precision(),
        "TF32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "cuDNN": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "MKL-DNN": backends.mkldnn.enabled,
    }


def everything(classifier: PyTorchClassifier) -> State:
    """Return all of a model and of the caller that a call on it has to leave alone."""
    return {**weight_state(classifier), **module_state(classifier), **random_state(), **torch_settings()}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs between two states."""
    return [name for name in before if before[name] != after[name]]


def equal(one: PyTorchClassifier, other: PyTorchClassifier) -> bool:
    """Tell whether two classifiers have the same weights and buffers, bit for bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def parameters_equal(one: PyTorchClassifier, other: PyTorchClassifier) -> bool:
    """Tell whether two classifiers have the same parameters, bit for bit; buffers may differ."""
    first, second = list(one.model.parameters()), list(other.model.parameters())
    return len(first) == len(second) and all(
        p.shape == q.shape and torch.equal(p, q) for p, q in zip(first, second, strict=True)
    )


def marked(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Give a classifier an unusual state, which has to survive, and return it.

    Mixed train/eval flags, a gradient, a frozen parameter, and hooks of its own that do nothing.
    """
    modules = list(classifier.model.modules())
    parameters = list(classifier.model.parameters())
    classifier.model.train()
    modules[len(modules) // 2].eval()
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    modules[1 % len(modules)].register_forward_hook(lambda *_: None)
    modules[-1].register_forward_pre_hook(lambda *_: None)
    return classifier


def first_layer(classifier: PyTorchClassifier) -> nn.Module:
    """Return the first module that has parameters of its own, where samples are counted."""
    for module in classifier.model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            return module
    raise ValueError("The network has no parameters.")


def disturb_random_state(seed: int) -> None:
    """Seed all global generators, as a caller might."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
