"""The five victim networks of Table III: sizes, stages, cuts, and what is refused. Weights are random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.layers import recorded, resolve_layer, stages
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.victims import VICTIMS, victim_network

timm = pytest.importorskip("timm")

# Table III in millions of parameters (ImageNet's 1000 classes for the ViT, else 10), and the table of specification
# B.1: stages and their shapes at 32 pixels (ViT 224)
FACTS: dict[str, tuple[float, dict[str, tuple[int, ...]]]] = {
    "vgg19_bn": (
        38.96,
        {
            "features.6": (64, 16, 16),
            "features.13": (128, 8, 8),
            "features.26": (256, 4, 4),
            "features.39": (512, 2, 2),
            "features.52": (512, 1, 1),
        },
    ),
    "inception_v3": (
        21.64,
        {
            "Pool2": (192, 32, 32),
            "Mixed_5d": (288, 32, 32),
            "Mixed_6a": (768, 15, 15),
            "Mixed_6e": (768, 15, 15),
            "Mixed_7c": (2048, 7, 7),
        },
    ),
    "resnet50": (
        23.52,
        {
            "maxpool": (64, 16, 16),
            "layer1": (256, 16, 16),
            "layer2": (512, 8, 8),
            "layer3": (1024, 4, 4),
            "layer4": (2048, 2, 2),
        },
    ),
    "densenet121": (
        6.96,
        {
            "features.pool0": (64, 16, 16),
            "features.transition1": (128, 8, 8),
            "features.transition2": (256, 4, 4),
            "features.transition3": (512, 2, 2),
            "features.norm5": (1024, 2, 2),
        },
    ),
    "vit_base_patch32_224": (
        88.2,
        dict.fromkeys(("norm_pre", "blocks.2", "blocks.5", "blocks.8", "norm"), (50, 768)),
    ),
}
DIGITS = {"vit_base_patch32_224": 1}  # as the paper prints them


def made(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return victim_network(name, **{"nb_classes": 10, **options}).eval()


def test_every_victim_is_tested() -> None:
    assert set(FACTS) == set(VICTIMS)


@pytest.mark.parametrize("name", FACTS)
def test_table_3_and_the_numbered_layers(name: str) -> None:
    millions, layers = FACTS[name]
    token_model = name.startswith("vit")
    network = made(name, nb_classes=1000 if token_model else 10)
    size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert round(size, DIGITS.get(name, 2)) == millions
    assert stages(network) == list(layers)
    x = torch.rand(2, 3, *(224, 224) if token_model else (32, 32))
    assert [resolve_layer(network, number, x) for number in range(1, 6)] == list(layers)
    with torch.no_grad(), recorded(network, list(layers)) as traces:
        output = network(x)
    assert output.shape == (2, 1000 if token_model else 10)
    assert bool(output.isfinite().all())
    shapes = {layer: tuple(z.shape[1:]) for layer, t in traces.items() if (z := t.single_tensor) is not None}
    assert shapes == layers


@pytest.mark.parametrize("name", ["vgg19_bn", "inception_v3"])
def test_small_variants_are_cut_in_the_graph(name: str) -> None:
    """Their stems or heads are ours; timm's own parts are cut in the tests of the cut."""
    network = made(name)
    x = torch.rand(2, 3, 32, 32)
    cut = LayerCut(network, next(iter(FACTS[name][1])), x, require_single_tensor=True)
    assert cut.method == "graph"
    with torch.no_grad():
        z, output = cut.forward(x)
        assert torch.equal(cut.tail_for(x)(z), output)


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_channels_and_sizes(name: str) -> None:
    stem = {"resnet50": "conv1", "densenet121": "features.conv0"}[name]
    small, large = made(name, channels=1, input_size=74), made(name, channels=1, input_size=75)
    assert small.get_submodule(stem).stride == (1, 1)
    assert large.get_submodule(stem).stride == (2, 2)
    for network, size in ((small, 74), (large, 75)):
        assert network(torch.rand(2, 1, size, size)).shape == (2, 10)


def test_vit_of_another_size() -> None:
    assert made("vit_base_patch32_224", input_size=64)(torch.rand(2, 3, 64, 64)).shape == (2, 10)


def test_training_mode_and_one_seed_one_network() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        again = victim_network("densenet121", 10)
    assert again.training
    first = made("densenet121")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg11"}, "`name` must be one of 'vgg19_bn'"),
        ({"nb_classes": 1}, "`nb_classes`"),
        ({"input_size": 28}, "`input_size` must be an integer in .32"),
        ({"input_size": 224.0}, "`input_size`"),
        ({"name": "vit_base_patch32_224", "input_size": 100}, "multiple of 32"),
        ({"channels": 0}, "`channels`"),
        ({"pretrained": 1}, "`pretrained`"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        victim_network(**{"name": "resnet50", "nb_classes": 10, **options})


def test_pretrained_weights_are_left_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def offline(name: str, **options: Any) -> nn.Module:
        asked.append(options)
        raise OSError("cannot connect")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InvalidInputError, match=r"weights of resnet50 \(OSError: cannot connect\).*pretrained=False"):
        victim_network("resnet50", 10, pretrained=True)
    assert asked == [{"pretrained": True, "num_classes": 10, "in_chans": 3}]
    with pytest.raises(OSError, match="^cannot connect$"):  # no matter of weights
        victim_network("resnet50", 10)
