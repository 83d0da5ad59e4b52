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


def network_digest(network: nn.Module, values: int | None = None) -> str:
    """Return SHA-256 over names, shapes and values of a network's weights and buffers.

    :param network: The network.
    :param values: Only the first so many values of each tensor: networks with different short digests differ, and it
        costs next to nothing. ``None``: all.
    """
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # a module's extra state
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        array = tensor.detach().flatten()[:values].cpu().contiguous()
        digest.update(array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()
