"""The memory order of convolution weights: channels last while a network is trained, its own afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from art_fingerprint.core.guard import evaluating

logger = logging.getLogger(__name__)


@contextmanager
def weights_in(network: nn.Module, memory_format: torch.memory_format) -> Iterator[None]:
    """Keep four-dimensional weights in one memory order during a block; afterwards each is in its own again.

    Values and parameter objects stay the same.
    """
    changed = []
    for weight in network.parameters():
        if weight.ndim == 4 and not weight.is_contiguous(memory_format=memory_format):
            changed.append((weight, weight.stride()))
            weight.data = weight.data.contiguous(memory_format=memory_format)
    try:
        yield
    finally:
        for weight, stride in changed:
            own = torch.empty_strided(weight.shape, stride, dtype=weight.dtype, device=weight.device)
            weight.data = own.copy_(weight.data)


@contextmanager
def channels_last(network: nn.Module, example: Tensor) -> Iterator[None]:
    """Keep a network's convolution weights in channels-last order during a block, where the network bears it.

    Activations follow the weights. Convolutions, pooling and BatchNorm are then faster, on CPUs as on tensor cores.
    A network that reshapes activations with ``view`` refuses them, and stays as it is.

    :param example: Preprocessed inputs, at most eight are used: two forward passes to find that out, none where nothing
        would change.
    """
    with ExitStack() as stack:
        if _bears(network, example[:8]):
            stack.enter_context(weights_in(network, torch.channels_last))
        yield


def _bears(network: nn.Module, example: Tensor) -> bool:
    if all(weight.ndim != 4 for weight in network.parameters()):
        return False
    with evaluating(network), torch.no_grad():
        expected = network(example)
        try:
            with weights_in(network, torch.channels_last):
                same = equal_but_for_rounding(network(example), expected)
        except RuntimeError as error:
            logger.info("Weights stay in their order: %s", error)
            return False
    if not same:
        logger.info("Weights stay in their order: the output depends on it.")
    return same


def equal_but_for_rounding(output: Tensor, expected: Tensor) -> bool:
    """Tell whether two outputs differ by at most a thousandth of the largest value.

    Deep networks in float32 reach 1e-5 by a change of order alone; another computation differs by far more.
    """
    same_shape = output.shape == expected.shape
    return same_shape and float((output - expected).abs().max()) <= 1e-3 * float(expected.abs().max())
