"""Channel groups of hand-made networks, and of real architectures by running them with all channels reordered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from art_fingerprint.core.channel_groups import ChannelGroups, GroupedWeight, find_groups
from tests.permuting import plain, shuffled

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Modules by name, and a forward pass over them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
        plain(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inside: int, outside: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, padding=size // 2, **options)


def weight(found: ChannelGroups, layer: str) -> GroupedWeight:
    return next(axes for axes in found.weights if axes.name == f"{layer}.weight")


def groups_of(found: ChannelGroups, layer: str) -> tuple[list[int], list[int]]:
    """Return the groups on the rows and on the columns of a layer."""
    axes = weight(found, layer)
    return [segment.group for segment in axes.rows], [segment.group for segment in axes.columns]


def assert_same_function(network: nn.Module, x: Tensor, seed: int = 0) -> ChannelGroups:
    """Reorder every group at random and check in float64 that outputs stay and weights do not."""
    found = find_groups(network, x)
    twin = shuffled(network, found, seed)
    before = network(x).detach()
    assert float(before.abs().max()) > 0
    torch.testing.assert_close(twin(x), before, atol=1e-9, rtol=1e-7)
    moved = [
        not torch.equal(ours, theirs) for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True)
    ]
    assert sum(moved) >= len(found.weights) - 1
    return found


# ---------------------------------------------------------------------- worked by hand
def test_chain_of_convolutions_and_a_classifier_on_the_flat_map() -> None:
    network = Net(
        lambda m, x: m.head(torch.flatten(F.max_pool2d(F.relu(m.norm(m.a(x))), 2), 1)),
        a=conv(4, 5),
        norm=nn.BatchNorm2d(5),
        head=nn.Linear(45, 3),
    )
    found = assert_same_function(network, X)
    assert [(g.size, g.pinned) for g in found.groups] == [(4, True), (5, False), (3, True)]
    head = weight(found, "head")
    assert [(s.group, s.channels, s.block) for s in head.columns] == [(1, 5, 9)]
    assert weight(found, "a").scale == "norm.weight"
    assert head.scale == ""


def test_a_residual_stream_is_one_group() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        z = m.stem(x)
        z = z + m.b(F.relu(m.a(z)))
        z += m.d(F.relu(m.c(z)))
        return m.head(z.mean((2, 3)))

    network = Net(run, stem=conv(4, 6), a=conv(6, 3), b=conv(3, 6), c=conv(6, 5), d=conv(5, 6), head=nn.Linear(6, 2))
    found = assert_same_function(network, X)
    stream = groups_of(found, "stem")[0]
    assert [groups_of(found, layer)[0] for layer in ("b", "d")] == [stream, stream]
    assert [groups_of(found, layer)[1] for layer in ("a", "c", "head")] == [stream] * 3
    assert sorted(g.size for g in found.groups) == [2, 3, 4, 5, 6]


def test_a_concatenation_is_a_list_of_groups() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        one, two = m.a(x), m.b(x)
        return m.head(F.relu(m.c(torch.cat([F.relu(one), two], 1))).amax((2, 3)))

    network = Net(run, a=conv(4, 3), b=conv(4, 5), c=conv(8, 6), head=nn.Linear(6, 2))
    found = assert_same_function(network, X)
    assert groups_of(found, "c")[1] == [*groups_of(found, "a")[0], *groups_of(found, "b")[0]]


def test_grouped_convolutions_tie_blocks_and_depthwise_ones_pass() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        z = F.relu(m.wide(F.relu(m.deep(F.relu(m.a(x))))))
        return m.head(F.relu(m.b(z)).mean((2, 3)))

    network = Net(
        run, a=conv(4, 6), deep=conv(6, 6, groups=6), wide=conv(6, 9, groups=3), b=conv(9, 5), head=nn.Linear(5, 2)
    )
    found = assert_same_function(network, X)
    inside, outside = (found.groups[groups_of(found, layer)[0][0]] for layer in ("a", "wide"))
    assert (inside.blocks, outside.blocks) == (3, 3)
    assert inside.family == outside.family
    assert groups_of(found, "deep") == (groups_of(found, "a")[0], [])
    assert weight(found, "wide").groups == 3
    assert [(s.channels, s.block) for s in weight(found, "wide").columns] == [(2, 1)]


def test_a_depthwise_multiplier_makes_runs_of_channels() -> None:
    network = Net(
        lambda m, x: m.head(F.relu(m.b(F.relu(m.deep(F.relu(m.a(x)))))).mean((2, 3))),
        a=conv(4, 3),
        deep=conv(3, 6, groups=3),
        b=conv(6, 5),
        head=nn.Linear(5, 2),
    )
    found = assert_same_function(network, X)
    assert [(s.channels, s.block) for s in weight(found, "b").columns] == [(3, 2)]


@pytest.mark.parametrize("form", ["fused", "products", "chunks", "module"])
def test_attention_heads(form: str) -> None:
    heads, width = 2, 6

    def attend(m: Any, z: Tensor) -> Tensor:
        if form == "module":
            return m.attention(z, z, z, need_weights=False)[0]
        count, tokens, _ = z.shape
        if form == "chunks":
            parts = [p.view(count, tokens, heads, -1).transpose(1, 2) for p in m.qkv(z).chunk(3, -1)]
        else:
            parts = list(m.qkv(z).reshape(count, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0))
        q, k, v = parts
        if form == "products":
            mixed = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return m.proj(mixed.transpose(1, 2).reshape(count, tokens, width))

    def run(m: Any, x: Tensor) -> Tensor:
        z = m.embed(x).flatten(2).transpose(1, 2)
        z = z + attend(m, m.norm(z))
        z = z + m.out(F.gelu(m.up(z)))
        return m.head(z.mean(1))

    own: dict[str, nn.Module] = {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
    if form == "module":
        own = {"attention": nn.MultiheadAttention(width, heads, batch_first=True)}
    rest = {"norm": nn.LayerNorm(width), "up": nn.Linear(width, 8), "out": nn.Linear(8, width)}
    network = Net(run, embed=nn.Conv2d(4, width, 2, stride=2), **own, **rest, head=nn.Linear(width, 3))
    found = assert_same_function(network, X)
    name = "attention.in_proj_weight" if form == "module" else "qkv.weight"
    rows = next(axes for axes in found.weights if axes.name == name).rows
    query, key, value = (segment.group for segment in rows)
    assert query == key != value
    assert [found.groups[g].blocks for g in (query, value)] == [heads, heads]
    assert found.groups[query].family == found.groups[value].family
    proj = next(axes for axes in found.weights if axes.name in ("proj.weight", "attention.out_proj.weight"))
    assert [segment.group for segment in proj.columns] == [value]
    assert [segment.group for segment in proj.rows] == groups_of(found, "embed")[0]


def test_a_weight_that_is_used_twice_ties_both_uses() -> None:
    network = Net(
        lambda m, x: m.head(F.relu(m.same(F.relu(m.same(F.relu(m.a(x)))))).mean((2, 3))),
        a=conv(4, 5),
        same=conv(5, 5),
        head=nn.Linear(5, 2),
    )
    found = assert_same_function(network, X)
    assert groups_of(found, "same") == (groups_of(found, "a")[0],) * 2


def test_behind_an_unknown_operation_the_order_begins_anew() -> None:
    network = Net(lambda m, x: m.head(torch.cumsum(m.a(x), 1).mean((2, 3))), a=conv(4, 5), head=nn.Linear(5, 2))
    found = find_groups(network, X)
    assert groups_of(found, "head")[1] != groups_of(found, "a")[0]
    assert not found.groups[groups_of(found, "head")[1][0]].pinned


def test_a_sum_of_differently_cut_axes_ties_nothing() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head((torch.cat([m.a(x), m.b(x)], 1) + m.c(x)).mean((2, 3)))

    network = Net(run, a=conv(4, 3), b=conv(4, 5), c=conv(4, 8), head=nn.Linear(8, 2))
    found = find_groups(network, X)
    alone = {*groups_of(found, "a")[0], *groups_of(found, "b")[0], *groups_of(found, "c")[0]}
    assert len(alone) == 3
    assert not alone & set(groups_of(found, "head")[1])


def test_computed_weights_are_left_out() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    network = Net(
        lambda m, x: m.head(F.relu(m.hidden(x.mean((2, 3)) @ torch.ones(4, 6).double()))), head=nn.Linear(5, 2)
    )
    network.add_module("hidden", layer.double())
    assert [axes.name for axes in find_groups(network, X).weights] == ["head.weight"]


# ---------------------------------------------------------------------- real architectures
ARCHITECTURES = ["resnet18", "densenet121", "mobilenetv2_050", "resnext26ts", "deit_tiny_patch16_224", "regnety_002"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_real_architectures_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    options = {"img_size": 32} if "deit" in name else {}
    network = plain(timm.create_model(name, num_classes=5, **options))
    found = assert_same_function(network, torch.randn(1, 3, 32, 32, dtype=torch.float64))
    free = {segment.group for axes in found.weights for segment in axes.columns}
    written = {segment.group for axes in found.weights for segment in axes.rows}
    assert [found.groups[g].size for g in free - written] == [3]  # nothing but the image is unknown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "inception_v3", "convnext_atto", "efficientnet_b0", "vit_b_32"])
def test_more_real_architectures_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    if name == "vit_b_32":
        network = torchvision.models.VisionTransformer(64, 32, 2, 3, 96, 128, num_classes=5)
        nn.init.normal_(network.heads.head.weight)
    else:
        network = timm.create_model(name, num_classes=5)
    side = 96 if name == "inception_v3" else 64
    assert_same_function(plain(network), torch.randn(1, 3, side, side, dtype=torch.float64))
