"""What must be as it was when a block ends: the state of a network, and the caller's random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn.parameter import is_lazy

from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.exceptions import InvalidInputError

HOOK_DICTS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a block; every module's own train/eval flag comes back."""
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def check_initialised(network: nn.Module) -> None:
    """Raise if a network has lazy layers that were never run: their first pass makes their weights, once and for all.

    :raises InvalidInputError: it has.
    """
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise InvalidInputError(
            "The classifier's model has lazy layers that were never run, so it has no weights yet: call its predict() "
            "on one sample first."
        )


@contextmanager
def guarded(
    *classifiers: object, weights: bool = True, seed: int | None = None, purpose: str = "guarded"
) -> Iterator[None]:
    """Give every classifier back exactly as it was when the block ends, also after an exception.

    Restored: weights and buffers, per-module train/eval flags, ``requires_grad``, ``.grad``, hooks, and the caller's
    random state. Classifiers without a torch model are left alone.

    :param classifiers: ART classifiers.
    :param weights: ``False`` skips the copy of weights, for blocks that only run forward passes in evaluation mode.
    :param seed: Seed of the block's random state, for networks that draw in evaluation mode; ``None``: the caller's.
    :param purpose: Mixed into the seed.
    :raises InvalidInputError: a network has lazy layers without weights.
    """
    networks = [c.model for c in classifiers if isinstance(c, PyTorchClassifier)]
    snapshots = [_Snapshot(network, weights) for network in networks]
    with forked_random_state(seed, purpose):
        try:
            yield
        finally:
            for snapshot in snapshots:
                snapshot.restore()


class _Snapshot:
    def __init__(self, network: nn.Module, weights: bool) -> None:
        check_initialised(network)
        # Dicts that are to be as they are now: parameters and buffers by name, and hooks; nearly all hook dicts are
        # empty, and this runs for every suspect that is scored.
        self.modules = [(module, module.training) for module in network.modules()]
        dicts = [
            getattr(module, name) for module, _ in self.modules for name in ("_parameters", "_buffers", *HOOK_DICTS)
        ]
        # those of TorchScript modules are no dicts and cannot be changed from Python
        self.dicts = [(current, current.copy() if current else {}) for current in dicts if isinstance(current, dict)]
        self.parameters = [
            (parameter, parameter.requires_grad, parameter.grad)
            for module, _ in self.modules
            for parameter in module._parameters.values()
            if parameter is not None
        ]
        state = [*(network.parameters() if weights else ()), *network.buffers()]
        self.state = [(tensor, tensor.detach().clone()) for tensor in state]
        self.grads = [(p.grad, p.grad.clone()) for p in network.parameters() if weights and p.grad is not None]

    @torch.no_grad()
    def restore(self) -> None:
        for module, training in self.modules:
            if module.training is not training:
                module.training = training
        for current, saved in self.dicts:
            if current or saved:
                current.clear()
                current.update(saved)
        for tensor, saved_value in [*self.state, *self.grads]:
            if not torch.equal(tensor, saved_value):
                tensor.copy_(saved_value)
        for parameter, requires_grad, grad in self.parameters:
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
