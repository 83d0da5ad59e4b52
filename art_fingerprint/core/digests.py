"""Content digests: the same numbers give the same name, whatever file or object holds them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn


def array_digest(*arrays: np.ndarray) -> str:
    """Return SHA-256 over dtype, shape and content of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def network_digest(network: nn.Module) -> str:
    """Return SHA-256 over names, shapes and values of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, torch.Tensor):  # else it is a module's extra state
            _update(digest, name, tensor, None)
    return digest.hexdigest()


def first_weights_digest(network: nn.Module) -> str:
    """Return SHA-256 over 64 values of the first parameter: networks that differ here differ, at next to no cost."""
    digest = hashlib.sha256()
    for name, parameter in network.named_parameters():
        _update(digest, name, parameter, 64)
        break
    return digest.hexdigest()


def _update(digest: Any, name: str, tensor: torch.Tensor, values: int | None) -> None:
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
    array = tensor.detach().flatten()[:values].cpu().contiguous()
    digest.update(array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")
