"""The cut on the paper's five architectures, from timm and torchvision, with random weights (specification B and G16).

One network is alive at a time: each has a class of tests. By default every layer gets one value check, and two layers
of each architecture a gradient check; the gradients of the others are marked slow.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.frozen_cut import FrozenCut
from art_fingerprint.core.graph import split_graph
from art_fingerprint.core.layers import auto_layer, stages
from art_fingerprint.core.taps import tap
from art_fingerprint.exceptions import LayerCutError, LayerNotFoundError

NB_CLASSES = 5
_Test = TypeVar("_Test", bound=Callable[..., Any])


@dataclass(frozen=True)
class Architecture:
    """One network and what the specification says about its layers."""

    create: Callable[[], nn.Module]
    size: int
    first: str  # a layer of the head of every cut but those of `outside`
    stages: Mapping[str, tuple[int, ...]]  # B.1, with the shape of one sample's latent where it is known
    auto: str
    single: tuple[str, ...] = ()  # further layers of B.2 that need one tensor alone
    side: Mapping[str, int] = field(default_factory=dict)  # layers that need more, and how many more
    refused: tuple[str, ...] = ()
    gradients: tuple[str, ...] = ()  # checked by default
    folded: int = 0  # BatchNorm layers behind the layer `auto` that are folded

    @property
    def layers(self) -> list[str]:
        return [*self.stages, *self.single, *self.side]


def timm_model(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=NB_CLASSES, **options)


def torchvision_model(name: str, **options: object) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=NB_CLASSES, **options)


def small_stem(network: nn.Module, name: str) -> nn.Module:
    """Replace the stem by the reference's for 32 pixels: 3x3, stride 1, padding 1."""
    network.set_submodule(name, nn.Conv2d(3, 64, 3, padding=1, bias=False))
    return network


def without_zeros(network: nn.Module) -> nn.Module:
    """Replace zero weights (torchvision's ViT head), which would leave all gradients zero."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


VGG = {
    "features.6": (64, 16, 16),
    "features.13": (128, 8, 8),
    "features.26": (256, 4, 4),
    "features.39": (512, 2, 2),
    "features.52": (512, 1, 1),
}
RESNET = {
    "maxpool": (64, 16, 16),
    "layer1": (256, 16, 16),
    "layer2": (512, 8, 8),
    "layer3": (1024, 4, 4),
    "layer4": (2048, 2, 2),
}
DENSENET = {
    "features.pool0": (64, 16, 16),
    "features.transition1": (128, 8, 8),
    "features.transition2": (256, 4, 4),
    "features.transition3": (512, 2, 2),
    "features.norm5": (1024, 2, 2),
}
DENSENET_SINGLE = ("features.denseblock1", "features.denseblock2", "features.denseblock4", "features")
DENSENET_SIDE = {"features.denseblock2.denselayer3": 3}
INCEPTION = {
    "Mixed_5d": (288, 7, 7),
    "Mixed_6a": (768, 3, 3),
    "Mixed_6e": (768, 3, 3),
    "Mixed_7c": (2048, 1, 1),
}
TOKENS = (5, 768)  # 2 x 2 patches of 32 pixels and the class token

ARCHITECTURES = {
    "timm vgg19_bn": Architecture(
        lambda: timm_model("vgg19_bn", mlp_ratio=1 / 16),  # 111 million weights fewer in the same modules
        32,
        "features.0",
        VGG,
        "features.13",
        single=("features", "pre_logits"),
        gradients=("features.13", "features.52"),
        folded=12,
    ),
    "timm resnet50": Architecture(
        lambda: small_stem(timm_model("resnet50", zero_init_last=False), "conv1"),
        32,
        "conv1",
        RESNET,
        "layer2",
        single=("conv1", "bn1", "act1", "layer2.1", "global_pool"),
        side={"layer2.1.conv2": 1},
        gradients=("layer2", "layer2.1.conv2"),
        folded=29,
    ),
    "timm densenet121": Architecture(
        lambda: small_stem(timm_model("densenet121"), "features.conv0"),
        32,
        "features.conv0",
        DENSENET,
        "features.transition1",
        single=DENSENET_SINGLE,
        side=DENSENET_SIDE,
        gradients=("features.transition1", "features.denseblock2.denselayer3"),
        folded=52,
    ),
    "timm inception_v3": Architecture(
        lambda: timm_model("inception_v3"),
        75,
        "Conv2d_1a_3x3.conv",
        {"Pool2": (192, 7, 7), **INCEPTION},
        "Pool2",
        single=("Conv2d_1a_3x3", "global_pool"),
        side={"Mixed_5d.branch1x1": 3},
        gradients=("Mixed_5d", "Mixed_5d.branch1x1"),
        folded=89,
    ),
    "timm vit_base_patch32_224": Architecture(
        lambda: timm_model("vit_base_patch32_224", img_size=64),
        64,
        "patch_embed.proj",
        dict.fromkeys(("norm_pre", "blocks.2", "blocks.5", "blocks.8", "norm"), TOKENS),
        "blocks.5",
        single=("patch_embed", "blocks.11", "blocks", "fc_norm"),
        side={"blocks.5.attn": 1, "blocks.5.mlp": 1, "blocks.5.norm1": 1},
        gradients=("blocks.5", "blocks.5.attn"),
    ),
    "torchvision vgg19_bn": Architecture(
        lambda: torchvision_model("vgg19_bn"),
        32,
        "features.0",
        VGG,
        "features.13",
        single=("classifier.0",),  # an in-place ReLU follows
        gradients=("features.13", "classifier.0"),
        folded=12,
    ),
    "torchvision resnet50": Architecture(
        lambda: small_stem(torchvision_model("resnet50"), "conv1"),
        32,
        "conv1",
        RESNET,
        "layer2",
        single=("conv1", "bn1", "layer2.1", "avgpool"),
        side={"layer2.1.conv2": 1},
        refused=("layer1.0.relu",),
        gradients=("layer2", "layer2.1.conv2"),
        folded=29,
    ),
    "torchvision densenet121": Architecture(
        lambda: small_stem(torchvision_model("densenet121"), "features.conv0"),
        32,
        "features.conv0",
        DENSENET,
        "features.transition1",
        single=DENSENET_SINGLE,
        side=DENSENET_SIDE,
        gradients=("features.norm5", "features.denseblock2.denselayer3"),
        folded=52,
    ),
    "torchvision inception_v3": Architecture(
        lambda: torchvision_model("inception_v3", aux_logits=False, init_weights=False),
        75,
        "Conv2d_1a_3x3.conv",
        {"maxpool2": (192, 7, 7), **INCEPTION},
        "maxpool2",
        single=("Conv2d_1a_3x3", "avgpool"),
        side={"Mixed_5d.branch1x1": 3},
        gradients=("Mixed_5d", "Mixed_5d.branch1x1"),
        folded=89,
    ),
    "torchvision vit_b_32": Architecture(
        lambda: without_zeros(torchvision_model("vit_b_32", image_size=64)),
        64,
        "conv_proj",
        dict.fromkeys(
            ("encoder.dropout", *(f"encoder.layers.encoder_layer_{k}" for k in (2, 5, 8)), "encoder.ln"), TOKENS
        ),
        "encoder.layers.encoder_layer_5",
        single=("encoder.layers.encoder_layer_11", "encoder.layers", "encoder"),
        side={"conv_proj": 2, "encoder.layers.encoder_layer_5.mlp": 1},
        gradients=("encoder.layers.encoder_layer_5", "conv_proj"),
    ),
}


@dataclass
class Loaded:
    network: nn.Module
    x: Tensor
    output: Tensor


@pytest.fixture(scope="class")
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """Random network in evaluation mode, BatchNorm statistics measured so that latents keep a sensible scale."""
    kind: Architecture = request.cls.kind
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind.create()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        if norms:
            momentum = [module.momentum for module in norms]
            for module in norms:
                module.momentum = None
            network.train()(torch.rand(4, 3, kind.size, kind.size, generator=generator))
            for module, value in zip(norms, momentum, strict=True):
                module.momentum = value
    network.eval()
    x = torch.rand(2, 3, kind.size, kind.size, generator=generator)
    with torch.no_grad():
        output = network(x)
    assert bool(torch.isfinite(output).all())
    assert not torch.equal(output[0], output[1])
    yield Loaded(network, x, output)
    del network
    gc.collect()


def for_layers(pick: Callable[[Architecture], list[str]]) -> Callable[[_Test], _Test]:
    """Run a test once for each of these layers of its class's architecture."""

    def mark(test: _Test) -> _Test:
        test.pick = pick  # type: ignore[attr-defined]
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layer" in metafunc.fixturenames:
        metafunc.parametrize("layer", metafunc.function.pick(metafunc.cls.kind))  # type: ignore[union-attr]


def gradient(tail: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_(True)
    output = tail(leaf)
    return torch.autograd.grad((output * torch.linspace(-1, 2, output.shape[1])).sum(), leaf)[0]


def latent(loaded: Loaded, layer: str) -> Tensor:
    with torch.no_grad():
        return tap(loaded.network, layer, loaded.x)


def check_gradient(loaded: Loaded, layer: str) -> None:
    """Away from h(x), values and gradients of the graph's tail are those of the hooks."""
    graph = LayerCut(loaded.network, layer, loaded.x, method="graph").tail_for(loaded.x)
    hooks = LayerCut(loaded.network, layer, loaded.x, method="hooks").tail_for(loaded.x)
    z = latent(loaded, layer)
    moved = z + 0.1 * z.std() * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = hooks(moved)
        assert not torch.equal(expected, loaded.output)
        torch.testing.assert_close(graph(moved), expected)
    slope = gradient(hooks, moved)
    scale = float(slope.abs().max())
    assert scale > 0
    torch.testing.assert_close(gradient(graph, moved) / scale, slope / scale, rtol=0, atol=1e-5)


class Checks:
    kind: ClassVar[Architecture]

    def test_stages_are_those_of_the_specification(self, loaded: Loaded) -> None:
        assert stages(loaded.network) == list(self.kind.stages)
        assert {layer: tuple(latent(loaded, layer).shape[1:]) for layer in self.kind.stages} == self.kind.stages
        assert auto_layer(loaded.network, loaded.x) == self.kind.auto

    @for_layers(lambda kind: kind.layers)
    def test_graph_reproduces_the_network(self, loaded: Loaded, layer: str) -> None:
        network, x = loaded.network, loaded.x
        head, tail, nb_side = split_graph(network, layer)
        assert nb_side == self.kind.side.get(layer, 0)
        calls: list[int] = []
        handle = network.get_submodule(self.kind.first).register_forward_hook(lambda *_: calls.append(1))
        with torch.no_grad():
            z, *side = head(x)
            assert len(calls) == 1
            torch.testing.assert_close(tail(z.clone(), *side), loaded.output)
        handle.remove()
        assert len(calls) == 1  # the tail never runs the head
        own = {id(parameter) for parameter in network.parameters()}
        assert {id(parameter) for part in (head, tail) for parameter in part.parameters()} <= own

    @for_layers(lambda kind: list(kind.gradients))
    def test_graph_and_hooks_have_equal_gradients(self, loaded: Loaded, layer: str) -> None:
        check_gradient(loaded, layer)

    def test_folded_tail_is_the_plain_one(self, loaded: Loaded) -> None:
        """Every BatchNorm behind a convolution is folded, also inside the blocks. In float64: no ReLU changes sides."""
        network, layer, x = copy.deepcopy(loaded.network).double(), self.kind.auto, loaded.x.double()
        folded, plain = FrozenCut(network, layer, x), LayerCut(network, layer, x)
        assert folded.nb_folded == self.kind.folded
        z = latent(loaded, layer).double()
        moved = z + 0.1 * z.std() * torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(folded.tail_for(x)(moved), plain.tail_for(x)(moved), rtol=1e-8, atol=1e-10)
        slopes = [gradient(cut.tail_for(x), moved) for cut in (folded, plain)]
        scale = float(slopes[1].abs().max())
        torch.testing.assert_close(slopes[0] / scale, slopes[1] / scale, rtol=0, atol=1e-8)

    @pytest.mark.slow
    @for_layers(lambda kind: sorted({*kind.layers} - {*kind.gradients}))
    def test_graph_and_hooks_have_equal_gradients_at_every_layer(self, loaded: Loaded, layer: str) -> None:
        check_gradient(loaded, layer)

    def test_refused_layers(self, loaded: Loaded) -> None:
        for layer in self.kind.side:
            with pytest.raises(LayerCutError, match="further tensor"):
                LayerCut(loaded.network, layer, loaded.x, require_single_tensor=True)
        for layer in self.kind.refused:
            with pytest.raises(LayerCutError, match="called 3 times"):
                LayerCut(loaded.network, layer, loaded.x)
        with pytest.raises(LayerNotFoundError):
            LayerCut(loaded.network, self.kind.auto + "x", loaded.x)

    @pytest.mark.slow
    @for_layers(lambda kind: [*list(kind.stages)[1:4:2], *list(kind.side)[:1]])
    def test_training_pass_is_the_plain_one(self, loaded: Loaded, layer: str) -> None:
        network, x = loaded.network, loaded.x.repeat(2, 1, 1, 1)
        cut = LayerCut(network, layer, x)
        start = {name: buffer.clone() for name, buffer in network.named_buffers()}
        found = []
        try:
            network.train()
            for run in (lambda: cut.forward(x)[1], lambda: network(x)):
                with torch.random.fork_rng(), torch.no_grad():
                    torch.manual_seed(0)
                    found.append((run(), {name: buffer.clone() for name, buffer in network.named_buffers()}))
                for name, buffer in network.named_buffers():
                    buffer.copy_(start[name])
        finally:
            network.eval()
        (output, moved), (expected, expected_moved) = found
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        assert all(torch.equal(moved[name], buffer) for name, buffer in expected_moved.items())
        changed = any(not torch.equal(moved[name], buffer) for name, buffer in start.items())
        assert changed == any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class TestTimmVGG(Checks):
    kind = ARCHITECTURES["timm vgg19_bn"]


class TestTimmResNet(Checks):
    kind = ARCHITECTURES["timm resnet50"]


class TestTimmDenseNet(Checks):
    kind = ARCHITECTURES["timm densenet121"]


class TestTimmInception(Checks):
    kind = ARCHITECTURES["timm inception_v3"]


class TestTimmViT(Checks):
    kind = ARCHITECTURES["timm vit_base_patch32_224"]


class TestTorchvisionVGG(Checks):
    kind = ARCHITECTURES["torchvision vgg19_bn"]


class TestTorchvisionResNet(Checks):
    kind = ARCHITECTURES["torchvision resnet50"]


class TestTorchvisionDenseNet(Checks):
    kind = ARCHITECTURES["torchvision densenet121"]


class TestTorchvisionInception(Checks):
    kind = ARCHITECTURES["torchvision inception_v3"]


class TestTorchvisionViT(Checks):
    kind = ARCHITECTURES["torchvision vit_b_32"]


@pytest.mark.slow
def test_full_size_vgg() -> None:
    network = timm_model("vgg19_bn").eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        output = network(x)
        for layer in VGG:
            head, tail, nb_side = split_graph(network, layer)
            assert nb_side == 0
            torch.testing.assert_close(tail(*head(x)), output)


@pytest.mark.slow
def test_full_size_vit() -> None:
    network = timm_model("vit_base_patch32_224").eval()
    x = torch.rand(1, 3, 224, 224)
    z, output = LayerCut(network, "norm", x, require_single_tensor=True, method="graph").forward(x)
    assert z.shape == (1, 50, 768)
    assert output.shape == (1, NB_CLASSES)


@pytest.mark.slow
def test_stages_of_vgg_without_batch_norm() -> None:
    assert stages(torchvision_model("vgg19")) == [f"features.{k}" for k in (4, 9, 18, 27, 36)]
