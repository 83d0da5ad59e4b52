"""Content digests: the same numbers give the same name, whatever file or object holds them."""

from __future__ import annotations

import hashlib

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
        if not isinstance(tensor, torch.Tensor):  # a module's extra state
            continue
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{array.dtype}:{tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()
