"""Read one layer's output, stopping the forward pass there. Hooks never outlive the call."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from art_fingerprint.core.checks import shown
from art_fingerprint.exceptions import LayerNotFoundError


class _LayerReached(Exception):  # noqa: N818 - control flow, never an error
    pass


def get_layer(network: nn.Module, layer: str) -> nn.Module:
    """Return the submodule with this dotted name.

    :raises LayerNotFoundError: with the nearest names.
    """
    names = []
    for name, module in network.named_modules():
        if name and name == layer:
            return module
        names.append(name)
    near = near_names(names, layer) or names[1:9]
    raise LayerNotFoundError(f"The network has no layer {shown(layer)}. Near names: {', '.join(near)}.")


def near_names(known: Iterable[str], layer: str) -> list[str]:
    """Return up to five layer names that look like ``layer``, most alike first."""
    return difflib.get_close_matches(layer, [name for name in known if name], n=5, cutoff=0.4)


def tap(network: nn.Module, layer: str, prepared: Tensor) -> Tensor:
    """Return the output of ``layer`` for already preprocessed inputs; layers above it are not run.

    Gradients flow if they are enabled. No in-place operation that follows the layer has run when this returns.

    :raises LayerNotFoundError: if the layer does not exist, is not reached, or does not return one tensor.
    """
    with tapped(network, layer) as run:
        return run(prepared)


@contextmanager
def tapped(network: nn.Module, layer: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Give :func:`tap` for many batches: a function of prepared inputs, valid inside the block.

    Inside the block every forward pass of the network ends at the layer.
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

    def run(prepared: Tensor) -> Tensor:
        try:
            network(prepared)
        except _LayerReached:
            return found.pop()
        raise LayerNotFoundError(f"Layer {layer!r} is not reached by the network's forward pass.")

    handle = module.register_forward_hook(keep)
    try:
        yield run
    finally:
        handle.remove()
