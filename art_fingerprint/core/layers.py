"""Which layers of a network are its stages, and which one to take when the user names none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from art_fingerprint.core.checks import shown
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.taps import get_layer, near_names
from art_fingerprint.exceptions import InvalidInputError, LayerNotFoundError

# Stage outputs in execution order, by family. The first family whose names all exist is taken.
_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ResNet", ("maxpool", "layer1", "layer2", "layer3", "layer4")),
    (
        "DenseNet",
        ("features.pool0", "features.transition1", "features.transition2", "features.transition3", "features.norm5"),
    ),
    ("Inception (timm)", ("Pool2", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7c")),
    ("Inception (torchvision)", ("maxpool2", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7c")),
)


@dataclass
class LayerTrace:
    """What one layer did in one forward pass."""

    calls: int = 0
    outputs: list[object] = field(default_factory=list)

    @property
    def single_tensor(self) -> Tensor | None:
        """The layer's output if it was called once and returned one tensor."""
        output = self.outputs[0] if self.calls == 1 else None
        return output if isinstance(output, Tensor) else None


@contextmanager
def recorded(network: nn.Module, layers: list[str]) -> Iterator[dict[str, LayerTrace]]:
    """Record calls and outputs of the named layers during a block.

    Tensors are copied, since the operation after a layer may work in place; gradients flow through the copies.
    """
    traces = {layer: LayerTrace() for layer in layers}

    def make_hook(trace: LayerTrace) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            trace.calls += 1
            trace.outputs.append(output.clone() if isinstance(output, Tensor) else output)

        return hook

    modules = {layer: get_layer(network, layer) for layer in layers}
    handles = [module.register_forward_hook(make_hook(traces[layer])) for layer, module in modules.items()]
    try:
        yield traces
    finally:
        for handle in handles:
            handle.remove()


def levels(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk from a network into what it wraps (to normalise its input, say), with the prefix of that one's layer names.

    A network wraps another one if that is its only child with parameters.
    """
    prefix = ""
    while True:
        yield prefix, network
        children = _children(network)
        if len(children) != 1:
            return
        ((name, network),) = children.items()
        prefix += f"{name}."


def stages(network: nn.Module) -> list[str]:
    """Return the names of the network's stage outputs, in order of execution.

    Known are the VGG, ResNet, DenseNet, Inception and ViT families of timm and torchvision;
    for other timm models their ``feature_info``, and for any other network its direct children that have parameters. A
    network that only wraps another one (see :func:`levels`) has the stages of the other one.
    """
    for prefix, inner in levels(network):
        known = _known_stages(inner)
        if known:
            return [prefix + name for name in known]
    return [prefix + name for name in _children(inner)] or ([prefix[:-1]] if prefix else [])


def _known_stages(network: nn.Module) -> list[str]:
    modules = dict(network.named_modules())
    features = modules.get("features")
    if isinstance(features, nn.Sequential):
        pools = [f"features.{name}" for name, m in features.named_children() if isinstance(m, nn.MaxPool2d)]
        if len(pools) >= 2 and len(pools) == sum(isinstance(m, nn.MaxPool2d) for m in modules.values()):
            return pools  # VGG
    for _, names in _FAMILIES:
        if all(name in modules for name in names):
            return list(names)
    for blocks, first, last in (("blocks", "norm_pre", "norm"), ("encoder.layers", "encoder.dropout", "encoder.ln")):
        if blocks in modules and first in modules and last in modules:  # ViT of timm, of torchvision
            inner = [name for name, _ in modules[blocks].named_children()]
            quarters = [f"{blocks}.{inner[len(inner) * k // 4 - 1]}" for k in (1, 2, 3) if len(inner) * k // 4 > 0]
            return list(dict.fromkeys([first, *quarters, last]))
    info = getattr(network, "feature_info", None)
    try:
        named = [str(entry["module"]) for entry in info] if info is not None else []
    except (TypeError, KeyError):
        named = []
    return named if all(name in modules for name in named) else []


def _children(network: nn.Module) -> dict[str, nn.Module]:
    """Return the direct children that have parameters, by name."""
    known = dict(network.named_modules())  # a child may be there under another name only: a module has one, the first
    return {n: m for n, m in network.named_children() if n in known and any(True for _ in m.parameters())}


@torch.no_grad()
def last_layer(network: nn.Module, example: Tensor) -> str:
    """Return the name of the Linear layer or 1x1 convolution that a forward pass reaches last: the classifier's.

    Cost: one forward pass of ``example``.

    :raises LayerNotFoundError: the pass reaches none.
    """
    reached: list[str] = []

    def make_hook(name: str) -> Callable[[nn.Module, object], None]:
        return lambda _module, _inputs: reached.append(name)

    found = {name: module for name, module in network.named_modules() if _is_dense(module)}
    handles = [module.register_forward_pre_hook(make_hook(name)) for name, module in found.items()]
    try:
        with evaluating(network):
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    if not reached:
        raise LayerNotFoundError("The network's forward pass reaches no Linear layer and no 1x1 convolution.")
    return reached[-1]


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {1}
    )


@torch.no_grad()
def auto_layer(network: nn.Module, example: Tensor) -> str:
    """Choose a layer: the last stage whose output keeps at least a quarter of the input height.

    Where most stages give token sequences (the first may give the map that tokens are made of) there is no height: the
    middle token stage is taken. Of networks on vectors it is the middle stage below the classifier. Cost: one forward
    pass of ``example``.

    :param network: The network, in evaluation mode.
    :param example: Preprocessed inputs ``(B, C, H, W)``.
    :raises LayerNotFoundError: no stage returns a single feature map or token sequence; name a layer then.
    """
    names = stages(network)
    with recorded(network, names) as traces:
        network(example)
    outputs = {name: trace.single_tensor for name, trace in traces.items()}
    maps = {name: z for name, z in outputs.items() if z is not None and z.ndim == 4}
    tokens = [name for name, z in outputs.items() if z is not None and z.ndim == 3]
    if example.ndim == 4 and maps and len(maps) >= len(tokens):
        wide = [name for name, z in maps.items() if 4 * z.shape[2] >= example.shape[2]]
        return (wide or list(maps)[:1])[-1]
    vectors = [name for name, z in outputs.items() if z is not None and z.ndim == 2]
    chosen = tokens or vectors[:-1]
    if not chosen:
        raise LayerNotFoundError(
            "No layer can be chosen automatically for this network; pass `layer`, one of: "
            + ", ".join(name for name, _ in list(network.named_modules())[1:21])
        )
    return chosen[(len(chosen) - 1) // 2]


def resolve_layer(network: nn.Module, layer: str | int | None, example: Tensor) -> str:
    """Return a dotted layer name for a name, a stage number (1 = first stage) or ``None`` (see :func:`auto_layer`).

    :raises InvalidInputError: ``layer`` is something else.
    :raises LayerNotFoundError: unknown name (near names are listed) or number out of range (stages are listed).
    """
    if layer is None:
        return auto_layer(network, example)
    if isinstance(layer, np.integer):
        layer = int(layer)
    if isinstance(layer, bool) or not isinstance(layer, int | str):
        raise InvalidInputError(f"`layer` must be a layer name, a stage number or None, got {shown(layer)}.")
    if isinstance(layer, int):
        names = stages(network)
        if not 1 <= layer <= len(names):
            raise LayerNotFoundError(
                f"`layer`={shown(layer)}, but the network's stages are 1 to {len(names)}: {_listed(names)}."
            )
        return names[layer - 1]
    known = dict(network.named_modules())
    if layer == "" or layer not in known:
        near = near_names(known, layer)
        hint = f"Near names: {', '.join(near)}. " if near else ""
        raise LayerNotFoundError(
            f"The network has no layer {shown(layer)}. {hint}Its stages are {_listed(stages(network))}."
        )
    return layer


def _listed(names: list[str]) -> str:
    return ", ".join(f"{index} = {name}" for index, name in enumerate(names, 1)) or "none"
