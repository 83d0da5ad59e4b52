"""Stages of a network, the automatic choice of a layer, and names, numbers and ``None`` given by a user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.core.layers import auto_layer, recorded, resolve_layer, stages
from art_fingerprint.exceptions import InvalidInputError, LayerNotFoundError
from tests.conftest import TinyCNN


class SmallViT(nn.Module):
    """The module names of timm's vision transformer, ``depth`` blocks."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(16, 12)
        self.norm_pre = nn.Identity()
        self.blocks = nn.Sequential(
            *[nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=True) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 4, 16)
        return self.head(self.norm(self.blocks(self.norm_pre(self.patch_embed(tokens)))).mean(1))


class Tokens(nn.Module):
    """A token network of unknown family."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 12)
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.third = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(self.embed(x.reshape(len(x), 4, 16))))).mean(1))


class Patches(nn.Module):
    """A token network of unknown family, whose tokens come from a convolution."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 12, patch, patch)
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.third = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.third(self.second(self.first(tokens))).mean(1))


class Normalised(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Identity()
        self.model = network

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.scale(x) * 2 - 1)


class Alias(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = TinyCNN()
        self.stem = self.body.block1
        self.after = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.body(x))


class Described(nn.Module):
    """A timm model that is of no known family."""

    def __init__(self, info: Any) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"a": nn.Conv2d(1, 2, 3, stride=2), "b": nn.Conv2d(2, 2, 3)})
        self.fc = nn.Linear(2, 3)
        self.feature_info = info

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net["b"](self.net["a"](x)).mean((2, 3)))


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 9), nn.ReLU(), nn.Linear(9, 8), nn.Linear(8, 3)
    )


class SmallVGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before, after in ((1, 2), (2, 3)):
            parts += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*parts)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------- stages
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (TinyCNN, ["block1", "block2", "block3", "head"]),
        (mlp, ["1", "3", "5", "6"]),
        (SmallVGG, ["features.2", "features.5"]),
        (lambda: SmallViT(12), ["norm_pre", "blocks.2", "blocks.5", "blocks.8", "norm"]),
        (lambda: SmallViT(6), ["norm_pre", "blocks.0", "blocks.2", "blocks.3", "norm"]),
        (lambda: SmallViT(2), ["norm_pre", "blocks.0", "norm"]),
        (lambda: SmallViT(1), ["norm_pre", "norm"]),
        (Tokens, ["embed", "first", "second", "third", "head"]),
        (lambda: nn.Linear(3, 3), []),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), ["1"]),
        (lambda: Normalised(TinyCNN()), ["model.block1", "model.block2", "model.block3", "model.head"]),
        (
            lambda: nn.Sequential(nn.Identity(), Normalised(SmallViT(4))),
            [f"1.model.{name}" for name in ("norm_pre", "blocks.0", "blocks.1", "blocks.2", "norm")],
        ),
        (Alias, ["body", "after"]),
        (lambda: Described([{"module": "net.a"}, {"module": "net.b"}]), ["net.a", "net.b"]),
        (lambda: Described([{"module": "net.a"}, {"module": "gone"}]), ["net", "fc"]),
        (lambda: Described([{"name": "net.a"}]), ["net", "fc"]),
        (lambda: Described([]), ["net", "fc"]),
        (lambda: Described(3), ["net", "fc"]),
    ],
)
def test_stages(make: Callable[[], nn.Module], expected: list[str]) -> None:
    assert stages(make()) == expected


@pytest.mark.parametrize(
    "make",
    [TinyCNN, mlp, SmallVGG, SmallViT, Tokens, Alias, lambda: Normalised(TinyCNN()), lambda: Normalised(SmallVGG())],
)
def test_stages_are_layers_in_order_of_execution(make: Callable[[], nn.Module]) -> None:
    network = make().eval()
    names = stages(network)
    order: list[str] = []
    handles = [
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name)) for name in names
    ]
    network(X)
    for handle in handles:
        handle.remove()
    assert order == names


# ---------------------------------------------------------------------- automatic choice
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (TinyCNN, "block3"),  # 8, 4 and 4 of 8 pixels: all keep a quarter
        (SmallVGG, "features.5"),  # 4 and 2 of 8 pixels
        (SmallViT, "blocks.2"),  # the middle one of five
        (lambda: SmallViT(1), "norm_pre"),
        (Tokens, "first"),  # the middle one of four; the head's output is no token sequence
        (lambda: Patches(2), "second"),  # the map of 4 of 8 pixels only makes the tokens
        (lambda: Patches(4), "second"),
        (mlp, "3"),  # the middle one of three; the last is the classifier
        (lambda: Normalised(TinyCNN()), "model.block3"),
        (Alias, "body"),
    ],
)
def test_auto_layer(make: Callable[[], nn.Module], expected: str) -> None:
    network = make().eval()
    hooks = [len(module._forward_hooks) for module in network.modules()]
    assert auto_layer(network, X) == expected
    assert resolve_layer(network, None, X) == expected
    assert [len(module._forward_hooks) for module in network.modules()] == hooks


@pytest.mark.parametrize(("height", "expected"), [(8, "2"), (32, "1")])
def test_auto_layer_goes_by_the_height_that_is_left(height: int, expected: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, stride=2),  # a half
        nn.Conv2d(2, 2, 3, padding=1, stride=2),  # a quarter
        nn.Conv2d(2, 2, 3, padding=1) if height == 8 else nn.Conv2d(2, 2, 3, padding=1, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    assert auto_layer(network, torch.rand(2, 1, height, height)) == expected


def test_auto_layer_takes_the_first_map_where_all_are_small() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=8), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
    )
    assert auto_layer(network, torch.rand(2, 1, 32, 32)) == "0"


def test_auto_layer_passes_over_layers_that_cannot_be_cut() -> None:
    class Reuse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.twice = nn.Conv2d(2, 2, 3, padding=1)
            self.unused = nn.Conv2d(2, 2, 3, padding=1)
            self.pair = nn.MultiheadAttention(2, 1)
            self.head = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.twice(self.twice(self.conv(x))).flatten(2).transpose(1, 2)
            return self.head(self.pair(z, z, z)[0].mean(1))

    assert auto_layer(Reuse().eval(), X) == "conv"


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), lambda: nn.Flatten()])
def test_auto_layer_asks_for_a_name_where_there_is_nothing_to_choose(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(LayerNotFoundError, match="pass `layer`"):
        auto_layer(make(), X)


# ---------------------------------------------------------------------- what users give
def test_resolve_names_and_numbers() -> None:
    network = TinyCNN().eval()
    assert resolve_layer(network, "block2.1", X) == "block2.1"
    assert [resolve_layer(network, k, X) for k in (1, 2, 3, 4)] == ["block1", "block2", "block3", "head"]
    assert resolve_layer(network, np.int64(2), X) == "block2"  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, 5, -1])
def test_stage_numbers_out_of_range_list_the_stages(number: int) -> None:
    with pytest.raises(LayerNotFoundError, match="1 to 4: 1 = block1, 2 = block2, 3 = block3, 4 = head") as error:
        resolve_layer(TinyCNN(), number, X)
    assert f"`layer`={number}" in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(("name", "near"), [("blok1", "block1"), ("layer2", "1 = block1"), ("", "4 = head")])
def test_unknown_names_list_near_names_and_stages(name: str, near: str) -> None:
    with pytest.raises(LayerNotFoundError, match=near) as error:
        resolve_layer(TinyCNN(), name, X)
    assert "3 = block3" in str(error.value)


@pytest.mark.parametrize("layer", [True, 1.0, ["block1"], nn.ReLU()])
def test_other_types_are_refused(layer: Any) -> None:
    with pytest.raises(InvalidInputError, match="layer name, a stage number or None"):
        resolve_layer(TinyCNN(), layer, X)


# ---------------------------------------------------------------------- recording
def test_recorded_counts_calls_and_copies_outputs() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    with recorded(network, ["0", "1"]) as traces:
        network(x)
        network(x)
    network(x)
    assert [trace.calls for trace in traces.values()] == [2, 2]
    assert torch.equal(traces["0"].outputs[0], network[0](x))  # type: ignore[arg-type]
    assert traces["0"].single_tensor is None


def test_recorded_removes_its_hooks_after_errors() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(LayerNotFoundError), recorded(network, ["0", "nothing"]):
        pass
    with pytest.raises(RuntimeError), recorded(network, ["0", "1"]):
        network(torch.rand(2, 5))
    assert not any(module._forward_hooks for module in network.modules())
