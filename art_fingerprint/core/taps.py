"""Read one layer's output, stopping the forward pass there. Hooks never outlive the call."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import Tensor, nn

from art_fingerprint.exceptions import LayerNotFoundError


class _LayerReached(Exception):  # noqa: N818 - control flow, never an error
    pass


def get_layer(network: nn.Module, layer: str) -> nn.Module:
    """Return the submodule with this dotted name.

    :raises LayerNotFoundError: with the nearest names.
    """
    modules = dict(network.named_modules())
    if not isinstance(layer, str) or layer not in modules or layer == "":
        near = near_names(modules, str(layer)) or [name for name in modules if name][:8]
        raise LayerNotFoundError(f"The network has no layer {layer!r}. Near names: {', '.join(near)}.")
    return modules[layer]


def near_names(known: Iterable[str], layer: str) -> list[str]:
    """Return up to five layer names that look like ``layer``, most alike first."""
    return difflib.get_close_matches(layer, [name for name in known if name], n=5, cutoff=0.4)


def tap(network: nn.Module, layer: str, prepared: Tensor) -> Tensor:
    """Return the output of ``layer`` for already preprocessed inputs; layers above it are not run.

    Gradients flow if they are enabled. No in-place operation that follows the layer has run when this returns.

    :raises LayerNotFoundError: if the layer does not exist, is not reached, or does not return one tensor.
    """
    module = get_layer(network, layer)
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise LayerNotFoundError(
                f"Layer {layer!r} returns {type(output).__name__}; a layer with one tensor is needed."
            )
        found.append(output)
        raise _LayerReached

    handle = module.register_forward_hook(keep)
    try:
        network(prepared)
    except _LayerReached:
        return found[0]
    finally:
        handle.remove()
    raise LayerNotFoundError(f"Layer {layer!r} is not reached by the network's forward pass.")
