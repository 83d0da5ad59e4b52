"""Split a network f at a layer into head h and tail g, f = g(h(x)), both sharing f's parameters.

The tail is cut out of the traced graph (:func:`~art_fingerprint.core.graph.split_graph`), so that running it never runs
the head. Networks that cannot be traced fall back to a hook that replaces the layer's output; this gives the same
numbers and pays one head pass more for each tail pass.

The tail is for evaluation mode: a ``self.training`` read by an opened ancestor is frozen when the graph is traced.
Latent and output of a training pass come from :meth:`LayerCut.forward`, which is the untouched network with one hook.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from art_fingerprint.core.graph import split_graph
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.layers import recorded, stages
from art_fingerprint.core.taps import get_layer
from art_fingerprint.exceptions import LayerCutError

logger = logging.getLogger(__name__)

Method = Literal["auto", "graph", "hooks"]


class LayerCut:
    """A network cut at one layer.

    :param network: The network. Its parameters are shared, its mode is followed. Cut after moving it to its device.
    :param layer: Dotted name of the layer whose output is the latent z.
    :param example: Preprocessed inputs, at most eight are used to check the cut (two or three forward passes).
    :param require_single_tensor: Refuse cuts whose tail also needs other tensors of the head. Without a graph this is
        found out by running the tail on another input.
    :param method: ``"graph"``, ``"hooks"``, or ``"auto"``: graph, and hooks where that is impossible.
    :ivar method: What is used, ``"graph"`` or ``"hooks"``.
    :ivar nb_side_inputs: Number of further values of the head that the tail needs (a skip connection around the layer,
        a size read from the input); they are held constant while the tail is run. Not counted for hooks.
    :raises LayerNotFoundError: no such layer.
    :raises LayerCutError: the layer is unused, called more than once, holds the whole network, or does not return one
        float tensor ``(B, ...)``; or the network does not return one tensor.
    """

    _head: nn.Module
    _tail: nn.Module

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        example: Tensor,
        require_single_tensor: bool = False,
        method: Method = "auto",
    ) -> None:
        self.network = network
        self.layer = layer
        self.method: Literal["graph", "hooks"] = "hooks"
        self.nb_side_inputs = 0
        self._record_head = False
        self._module = get_layer(network, layer)
        example = example[:8]
        with evaluating(network):
            z, output = self._check(example)
            if method != "hooks":
                self._split(example, output, strict=method == "graph")
            if require_single_tensor and not self._is_single_tensor(example, z, output):
                raise LayerCutError(
                    f"Cutting at {layer!r} needs {self.nb_side_inputs or 'a'} further tensor(s) around the layer; cut "
                    f"somewhere else.{self._hint()}"
                )
        if self.nb_side_inputs:
            logger.info("Cut at %s: %d side input(s) are held constant.", layer, self.nb_side_inputs)

    def forward(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """Run the whole network once and return ``(z, output)``; gradients flow through both. Works in every mode."""
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            # The next operation may work in place; a copy keeps z what the layer returned.
            kept.append(output.clone())

        handle = self._module.register_forward_hook(keep)
        try:
            output = self.network(prepared)
        finally:
            handle.remove()
        return kept[0], output

    @property
    def parts(self) -> tuple[nn.Module, nn.Module] | None:
        """The head ``x -> (z, *side)`` and the tail ``(z, *side) -> output``; ``None`` with hooks."""
        return (self._head, self._tail) if self.method == "graph" else None

    def tail_for(self, prepared: Tensor) -> Callable[[Tensor], Tensor]:
        """Return g for these inputs: ``z' -> output``, differentiable in ``z'``. Evaluation mode only.

        :param prepared: Preprocessed inputs that z belongs to. Only used where the tail needs more than z.
        """
        if self.method == "hooks":
            return lambda z: self._replaced(prepared, z)
        if not self.nb_side_inputs:
            return lambda z: self._tail(z.clone())
        with torch.no_grad():
            _, *side = self._head(prepared)
        return lambda z: self._tail(z.clone(), *map(copied, side))

    # ------------------------------------------------------------------ checks
    def _hint(self) -> str:
        names = [name for name in stages(self.network) if name != self.layer]
        return f" Stages of this network: {', '.join(names)}." if names else ""

    def _check(self, example: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), recorded(self.network, [self.layer]) as traces:
            answer = self.network(example)
        trace = traces[self.layer]
        if trace.calls == 0:
            raise LayerCutError(f"Layer {self.layer!r} is not used by the forward pass.{self._hint()}")
        if trace.calls > 1:
            raise LayerCutError(
                f"Layer {self.layer!r} is called {trace.calls} times in one forward pass, so its output is not one "
                f"latent.{self._hint()}"
            )
        z = trace.outputs[0]
        if not isinstance(z, Tensor):
            raise LayerCutError(f"Layer {self.layer!r} returns {type(z).__name__}, not one tensor.{self._hint()}")
        if not z.is_floating_point() or z.ndim < 2 or z.shape[0] != len(example):
            raise LayerCutError(
                f"Layer {self.layer!r} returns {z.dtype} of shape {tuple(z.shape)} for {len(example)} samples; a float "
                f"tensor (samples, ...) is needed.{self._hint()}"
            )
        if not isinstance(answer, Tensor):
            raise LayerCutError(
                f"The network returns {type(answer).__name__}, not one tensor; wrap it in a module that returns the "
                "logits alone."
            )
        with torch.no_grad():
            z, output = self.forward(example)
        if z.shape == output.shape and torch.equal(z, output) and self._holds_all():
            raise LayerCutError(f"Layer {self.layer!r} is the whole network: nothing is left above it.{self._hint()}")
        with torch.enable_grad():
            latent = z.detach().clone().requires_grad_(True)
            reached = self._replaced(example, latent)
            if not reached.requires_grad:
                # A no_grad block of the network around the layer ends by restoring the mode that it found.
                self._record_head = True
                reached = self._replaced(example, latent)
            total = reached.sum()
        gradient = torch.autograd.grad(total, latent, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None:
            raise LayerCutError(f"The network's output does not depend on layer {self.layer!r}.{self._hint()}")
        return z, output

    def _holds_all(self) -> bool:
        inside = {id(parameter) for parameter in self._module.parameters()}
        container = any(True for _ in self._module.children())
        return container and all(id(parameter) in inside for parameter in self.network.parameters())

    def _is_single_tensor(self, example: Tensor, z: Tensor, output: Tensor) -> bool:
        if self.method == "graph":
            return not self.nb_side_inputs
        with torch.no_grad():
            return _agree(self._replaced(1.0 - example, z), output)

    # ------------------------------------------------------------------ graph cut
    def _split(self, example: Tensor, output: Tensor, strict: bool) -> None:
        try:
            head, tail, nb_side = split_graph(self.network, self.layer)
            with torch.no_grad():
                parts = head(example)
                again = tail(*map(copied, parts))
        except Exception as error:  # whatever user code does under a tracer; the fallback needs no tracing
            if strict:
                raise LayerCutError(f"The network cannot be traced around {self.layer!r}: {error}") from error
            logger.info("No graph cut at %s (%s: %s); using hooks.", self.layer, type(error).__name__, error)
            return
        if not _agree(again, output):
            message = f"The graph cut at {self.layer!r} does not reproduce the network"
            if strict:
                raise LayerCutError(message + ".")
            warnings.warn(message + "; hooks are used, which are slower and exact.", stacklevel=4)
            return
        self._head, self._tail = head, tail
        self.nb_side_inputs = nb_side
        self.method = "graph"

    # ------------------------------------------------------------------ hook fallback
    def _replaced(self, prepared: Tensor, z: Tensor) -> Tensor:
        with_gradient = torch.is_grad_enabled()

        def replace(_module: nn.Module, _inputs: object, _output: object) -> Tensor:
            torch.set_grad_enabled(with_gradient)
            return z.clone()

        handle = self._module.register_forward_hook(replace)
        try:
            # Gradients come back on inside the hook: only the tail is recorded.
            with torch.set_grad_enabled(with_gradient and self._record_head):
                return self.network(prepared)
        finally:
            handle.remove()
            torch.set_grad_enabled(with_gradient)


def copied(part: object) -> object:
    """Return a copy of what the head hands over, which may also be a size."""
    return part.clone() if isinstance(part, Tensor) else part


def _agree(output: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().clamp_min(1.0)
    return output.shape == expected.shape and bool(((output - expected).abs() <= 1e-5 * scale).all())
