"""Weights by name, as a layer computes with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def stored_weight(network: nn.Module, name: str) -> Tensor | None:
    """Return a copy of a weight on the host, float32, or ``None`` if the network has none of this name.

    It is read as the layer's attribute, not from the state dict: pruning masks are applied, parametrisations evaluated,
    tied weights found under each of their names.

    :param name: Dotted name, e.g. ``"layer1.0.conv1.weight"``.
    """
    path, _, attribute = name.rpartition(".")
    module = network
    for part in path.split(".") if path else ():
        found = getattr(module, part, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    weight = getattr(module, attribute, None)
    return weight.detach().to("cpu", torch.float32, copy=True) if isinstance(weight, Tensor) else None
