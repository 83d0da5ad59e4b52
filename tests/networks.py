"""Random small networks of three families, for comparisons that must hold on more than one kind of layer.

Each has a few thousand parameters, takes ``(3, 12, 12)`` images, and is given by its seed alone: weights are
random, BatchNorm statistics are those of random images, and the last layer is scaled so that every class is predicted
about as often as any other. Nothing is trained.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import timm
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from tests.conftest import wrap


@contextlib.contextmanager
def weightless(name: str) -> Iterator[None]:
    """Make networks without memory for weights, where timm's architecture of this name can be made so.

    Its vision transformers read numbers off tensors while they are made, until some release after 1.0.15.
    """
    try:
        with torch.device("meta"):
            timm.create_model(name)
    except RuntimeError:
        yield
    else:
        with torch.device("meta"):
            yield


Family = Literal["vgg", "resnet", "vit"]
FAMILIES: tuple[Family, ...] = get_args(Family)
LAYERS: dict[Family, str] = {"vgg": "stage1", "resnet": "stage1", "vit": "blocks.0"}
SIDE = 12
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class _VGG(nn.Module):
    """Two stages of plain convolutions with BatchNorm and max pooling, then a classifier of two linear layers."""

    def __init__(self, nb_classes: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*self._layer(3, 10), *self._layer(10, 10), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(*self._layer(10, 16), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(144, 12), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(12, nb_classes)

    @staticmethod
    def _layer(inside: int, outside: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.classifier(self.stage2(self.stage1(x))))


class _Residual(nn.Module):
    """A basic block: two convolutions with BatchNorm and a shortcut, projected where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class _ResNet(nn.Module):
    """A stem, two residual stages, global average pooling, and one linear layer."""

    def __init__(self, nb_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.stage1 = _Residual(8, 8, 1)
        self.stage2 = _Residual(8, 14, 2)
        self.head = nn.Linear(14, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


class _Block(nn.Module):
    """A transformer block with LayerNorm before attention and before the perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, tokens, width))
        return x + self.mlp(self.norm2(x))


class _ViT(nn.Module):
    """Patches of 4 x 4, a class token, positions, two blocks, and a linear layer on the class token."""

    def __init__(self, nb_classes: int) -> None:
        super().__init__()
        width = 12
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(0.3 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.3 * torch.randn(1, 1 + (SIDE // 4) ** 2, width))
        self.blocks = nn.Sequential(_Block(width, 3), _Block(width, 3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, nb_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


_KINDS: dict[Family, type[nn.Module]] = {"vgg": _VGG, "resnet": _ResNet, "vit": _ViT}


def pictures(n: int, seed: int = 0) -> np.ndarray:
    """Return ``n`` images in [0, 1] of soft coloured patches with a little grain, ``(n, 3, 12, 12)`` float32."""
    draws = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(n, 3, 4, 4, generator=draws), size=SIDE, mode="bilinear")
    return (0.85 * coarse + 0.15 * torch.rand(n, 3, SIDE, SIDE, generator=draws)).numpy()


def random_network(family: Family, seed: int, nb_classes: int = 5) -> nn.Module:
    """Return a network in evaluation mode; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _KINDS[family](nb_classes)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(2)  # answers depend on the image, and not in a nearly linear way
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                nn.init.uniform_(module.weight, 0.6, 1.4)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # plain averages: one pass sets the statistics
        x = torch.from_numpy(pictures(200, seed + 1000))
        network.train()
        with torch.no_grad():
            network(x)
            network.eval()
            logits = network(x)
            head: nn.Linear = network.head  # type: ignore[assignment]
            head.weight.div_(logits.std(0)[:, None]).mul_(2)
            head.bias.sub_(logits.mean(0)).div_(logits.std(0)).mul_(2)
    return network


def perturbed(network: nn.Module, seed: int, scale: float = 0.02) -> nn.Module:
    """Return a copy whose weights and buffers carry noise of ``scale`` times their own spread."""
    draws = torch.Generator().manual_seed(seed)
    network = copy.deepcopy(network)
    with torch.no_grad():
        for values in network.state_dict().values():
            if values.is_floating_point() and values.numel() > 1:
                values.add_(scale * values.std() * torch.randn(values.shape, generator=draws))
    return network


class Changed(nn.Module):
    """A network whose answers are permuted, scaled, or turned into probabilities."""

    def __init__(self, network: nn.Module, order: Sequence[int] = (), scale: float = 1.0, soft: bool = False) -> None:
        super().__init__()
        self.network, self.head = network, network.head
        self.order, self.scale, self.soft = list(order), scale, soft

    def forward(self, x: Tensor) -> Tensor:
        logits = self.scale * self.network(x)
        logits = logits[:, self.order] if self.order else logits
        return logits.softmax(1) if self.soft else logits


@dataclass(frozen=True)
class Both:
    """A network as the package sees it, in ART's wrapper, and as slow float64 code does: as functions of one image."""

    classifier: PyTorchClassifier
    exact: nn.Module
    mean: Sequence[float]
    std: Sequence[float]

    def standardise(self, x: Tensor) -> Tensor:
        """Return ``(n, C, H, W)`` as the network takes it."""
        mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def logits(self, x: Tensor) -> Tensor:
        """Answer images ``(n, C, H, W)`` in float64, with a graph for gradients."""
        return self.exact(self.standardise(x))

    def outputs(self, layer: str, x: Tensor) -> Tensor:
        """Return what a layer gives for images, with a graph for gradients."""
        kept: list[Tensor] = []
        handle = self.exact.get_submodule(layer).register_forward_hook(lambda _module, _inputs, out: kept.append(out))
        self.logits(x)
        handle.remove()
        return kept[0]

    def model(self, image: np.ndarray) -> np.ndarray:
        """Answer one image ``(C, H, W)``."""
        with torch.no_grad():
            return self.logits(torch.from_numpy(image.astype(np.float64))[None])[0].numpy()

    def mostly_right(self, x: np.ndarray) -> list[int]:
        """Return labels of which every fifth is not what the network says."""
        said = [int(self.model(image).argmax()) for image in x]
        classes = len(self.model(x[0]))
        return [(y + 1) % classes if i % 5 == 0 else y for i, y in enumerate(said)]

    def layer(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function from one image to a layer's output."""

        def output(image: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return self.outputs(name, torch.from_numpy(image.astype(np.float64))[None])[0].numpy()

        return output


def both(network: nn.Module, standardised: bool = False, **options: object) -> Both:
    """Return a network that standardises its images first, or not, in both forms."""
    exact = copy.deepcopy(network).double().eval().requires_grad_(False)
    mean, std = (MEAN, STD) if standardised else ((0.0,), (1.0,))
    if standardised:
        options["preprocessing"] = (np.array(mean, np.float32), np.array(std, np.float32))
    head: nn.Linear = network.head  # type: ignore[assignment]
    return Both(wrap(network, (3, SIDE, SIDE), head.out_features, **options), exact, mean, std)


@functools.cache
def victim_of(family: Family, seed: int) -> Both:
    """Return a victim; those of odd seeds standardise their images."""
    return both(random_network(family, seed), standardised=seed % 2 == 1)


@functools.cache
def suspects_of(family: Family, seed: int) -> dict[str, Both]:
    """Return an independent network of the victim's architecture, and two copies of the victim with some noise."""
    original, standardised = random_network(family, seed), seed % 2 == 1
    return {
        "independent": both(random_network(family, seed + 100), standardised),
        "copy": both(perturbed(original, seed, 0.05), standardised),
        "near copy": both(perturbed(original, seed, 0.002), standardised),
    }


@functools.cache
def strangers_of(family: Family) -> dict[str, Both]:
    """Return networks of the other architectures, with fewer and with more classes than the victim."""
    few, many = (other for other in FAMILIES if other != family)
    return {"fewer classes": both(random_network(few, 200, 3)), "more classes": both(random_network(many, 201, 6))}
