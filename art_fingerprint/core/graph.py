"""Cut the traced graph of a network in two at a layer.

Only strict ancestors of the layer are opened while tracing; everything else stays one call, which follows train/eval
mode and works for architectures that cannot be traced whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from art_fingerprint.exceptions import LayerCutError


def split_graph(network: nn.Module, layer: str) -> tuple[fx.GraphModule, fx.GraphModule, int]:
    """Cut a network's coarse graph at a layer.

    :return: head ``x -> (z, *side)``, tail ``(z, *side) -> output``, number of side tensors. Parameters are shared.
    :raises LayerCutError: the layer is not called exactly once, or the output does not depend on it.
    """
    opened = [m for name, m in network.named_modules() if name == "" or layer.startswith(name + ".")]
    with attributes_kept(opened):
        graph = InputTracer(lambda name, _module: not layer.startswith(name + ".")).trace(network)
        head, tail, nb_side = _divide(graph, layer)
        return fx.GraphModule(network, head), fx.GraphModule(network, tail), nb_side


class InputTracer(fx.Tracer):
    """Traces a module of one input.

    :param is_leaf: Called with a submodule's dotted name and the submodule; what it says yes to stays one call.
    """

    proxy_buffer_attributes = True  # else arithmetic on buffers would be done once, while tracing

    def __init__(self, is_leaf: Callable[[str, nn.Module], bool]) -> None:
        super().__init__()
        self._is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(module_qualified_name, m)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: object = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        # The input alone is a proxy. Were optional arguments proxies too, the pass would take branches it never takes.
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]


@contextmanager
def attributes_kept(modules: list[nn.Module]) -> Iterator[None]:
    """Undo attribute changes: tracing runs user code on proxies and stores constants in the network."""
    before = [(module, dict(vars(module))) for module in modules]
    # user code may also write into containers, a list of activations, say
    contents = [
        (value, copy.copy(value))
        for _, attributes in before
        for value in attributes.values()
        if isinstance(value, list | dict | set)
    ]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
        for value, content in contents:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)


def _divide(graph: fx.Graph, layer: str) -> tuple[fx.Graph, fx.Graph, int]:
    nodes = list(graph.nodes)
    source = next(node for node in nodes if node.op == "placeholder")
    result = next(node for node in nodes if node.op == "output")
    calls = [node for node in nodes if node.op == "call_module" and node.target == layer]
    if len(calls) != 1:
        raise LayerCutError(f"Layer {layer!r} is called {len(calls)} times in the graph.")
    cut = calls[0]

    from_input = _descendants(source, nodes)
    after_cut = _descendants(cut, nodes)
    if result not in after_cut:
        raise LayerCutError(f"The network's output does not depend on layer {layer!r}.")
    # An in-place operation counts although nobody reads what it returns.
    silent = [node for node in nodes if node in from_input and not node.users and _may_write(node)]
    needed = _ancestors([result, *(node for node in silent if node in after_cut)], stop=cut)
    tail_nodes = [n for n in nodes if n in needed and n is not cut and (n in after_cut or n not in from_input)]
    beyond = (needed & after_cut) - {cut}
    side = [n for n in nodes if n in from_input and n not in after_cut and any(user in beyond for user in n.users)]
    head_needed = _ancestors([cut, *side, *(node for node in silent if node not in after_cut)], stop=None)

    head_graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in head_needed:
            copied[node] = head_graph.node_copy(node, lambda n: copied[n])
    head_graph.output(tuple(copied[n] for n in (cut, *side)))

    tail_graph = fx.Graph()
    moved = {node: tail_graph.placeholder(f"z{index}") for index, node in enumerate((cut, *side))}
    for node in tail_nodes:
        if node.op == "output":
            tail_graph.output(fx.map_arg(node.args[0], lambda n: moved[n]))
        else:
            moved[node] = tail_graph.node_copy(node, lambda n: moved[n])
    for part in (head_graph, tail_graph):
        part.lint()
    return head_graph, tail_graph, len(side)


def _may_write(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    written = bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
    return node.op == "call_module" or written or (name.endswith("_") and not name.endswith("__"))


def _descendants(start: fx.Node, nodes: list[fx.Node]) -> set[fx.Node]:
    found = {start}
    for node in nodes:  # nodes are in topological order
        if any(parent in found for parent in node.all_input_nodes):
            found.add(node)
    return found


def _ancestors(ends: list[fx.Node], stop: fx.Node | None) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            if node is not stop:
                waiting.extend(node.all_input_nodes)
    return found
