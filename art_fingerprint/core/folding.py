"""Fold BatchNorm in evaluation mode into the convolution before it, in a graph that is run many times in between two
changes of its weights.
"""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import Tensor, fx, nn

from art_fingerprint.core.graph import InputTracer, attributes_kept

logger = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class FoldedConv(nn.Module):
    """A convolution and the BatchNorm behind it in evaluation mode, as one convolution.

    With s = gamma / sqrt(variance + eps): weight W s, bias (b - mean) s + beta. They are those of the last
    :meth:`refresh`, constants to autograd, and stay in the same memory.

    :param conv: The convolution.
    :param norm: The BatchNorm, with running statistics.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.register_buffer("weight", torch.empty_like(conv.weight, requires_grad=False), persistent=False)
        self.register_buffer("bias", conv.weight.new_empty(conv.out_channels), persistent=False)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights and statistics as they are now."""
        conv, norm = self.conv, self.norm
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = (variance + norm.eps).rsqrt()
        if norm.affine:
            scale *= norm.weight
        torch.mul(conv.weight, scale.view(-1, *[1] * (conv.weight.ndim - 1)), out=self.weight)
        torch.mul(-mean if conv.bias is None else conv.bias - mean, scale, out=self.bias)
        if norm.affine:
            self.bias += norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.conv._conv_forward(x, self.weight, self.bias)


def fold_batch_norm(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[FoldedConv]]:
    """Return a copy of a graph with convolution and BatchNorm folded wherever the one alone reads the other.

    Modules that the graph calls as a whole and that hold BatchNorm are opened if they can be traced. All else is
    shared with ``graph``, which stays as it is. For evaluation mode only: what reads ``self.training`` in an opened
    module is frozen.
    """
    found = fx.GraphModule(graph, _copy(graph.graph))
    folded = _fold_pairs(found)
    for node in found.graph.nodes:
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            opened = _opened(found.get_submodule(node.target))
            pairs = [] if opened is None else _fold_pairs(opened)
            if opened is not None and pairs:
                node.target = f"opened_{node.name}"
                found.add_submodule(node.target, opened)
                folded += pairs
    found.graph.lint()
    found.recompile()
    return found, folded


def _copy(graph: fx.Graph) -> fx.Graph:
    twin = fx.Graph()
    output = twin.graph_copy(graph, {})
    twin.output(output)
    return twin


def _opened(module: nn.Module) -> fx.GraphModule | None:
    """Return the module's graph; ``None`` if it has no BatchNorm inside, cannot be traced, or holds hooks, which
    tracing would run once and for all.
    """
    inner = list(module.modules())
    if len(inner) == 1 or not any(_rest(part) is not None for part in inner) or any(map(_has_hooks, inner)):
        return None
    try:
        with attributes_kept(inner):
            return fx.GraphModule(module, InputTracer(lambda _name, part: _is_leaf(part)).trace(module))
    except Exception as error:  # whatever user code does under a tracer
        logger.info("%s is not opened for folding (%s: %s).", type(module).__name__, type(error).__name__, error)
        return None


def _is_leaf(module: nn.Module) -> bool:
    builtin = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return builtin or _rest(module) is not None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _rest(module: nn.Module) -> list[nn.Module] | None:
    """Return what a BatchNorm layer does after normalising; ``None`` for other modules and unknown kinds of it."""
    if not isinstance(module, _NORMS) or module.running_mean is None or _has_hooks(module):
        return None
    if type(module) in _NORMS:
        return []
    if (type(module).__module__.split(".")[0], type(module).__name__) == ("timm", "BatchNormAct2d"):
        return [module.drop, module.act]  # type: ignore[list-item]
    return None


def _fold_pairs(graph: fx.GraphModule) -> list[FoldedConv]:
    folded: list[FoldedConv] = []
    for node in list(graph.graph.nodes):
        norm = graph.get_submodule(node.target) if node.op == "call_module" else None
        rest = None if norm is None else _rest(norm)
        if rest is None or len(node.all_input_nodes) != 1:
            continue
        source = node.all_input_nodes[0]
        conv = graph.get_submodule(source.target) if source.op == "call_module" else None
        if type(conv) not in _CONVOLUTIONS or _has_hooks(cast(nn.Module, conv)) or len(source.users) != 1:
            continue
        folded.append(FoldedConv(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)))
        name = f"folded_{node.name}"
        graph.add_submodule(name, nn.Sequential(folded[-1], *rest))
        with graph.graph.inserting_before(source):
            joint = graph.graph.call_module(name, source.args, source.kwargs)
        node.replace_all_uses_with(joint)
        graph.graph.erase_node(node)
        graph.graph.erase_node(source)
    graph.recompile()
    return folded
