"""The five victim networks of the RemovalNet paper (Table III), from timm, with stems for small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from art_fingerprint.core.checks import check_choice, check_flag, check_number
from art_fingerprint.exceptions import InvalidInputError

_PATCH = 32
_LARGE = 75  # what timm's Inception needs


def victim_network(
    name: str, nb_classes: int, input_size: int | None = None, channels: int = 3, pretrained: bool = False
) -> nn.Module:
    """Return a network of the paper's Table III, on the CPU, in training mode.

    Below 75 pixels a small-input variant is made, as the authors' code does for 32: ``resnet50`` and ``densenet121``
    begin with a 3x3 convolution of stride 1; ``inception_v3`` has one 3x3 convolution of stride 1 to 192 channels in
    front of ``Mixed_5b``; ``vgg19_bn`` has global average pooling and two hidden layers of 4096 units with dropout.
    From 75 on, and for ``vit_base_patch32_224`` always, it is timm's own network. Weights come from torch's global
    generator. Layer numbers 1 to 5 of ``RemovalNetAttack(layer=...)`` are the stages that the code numbers so; its ViT
    has only the last of them.

    Parameters in millions, at 32 pixels with 10 classes: VGG19 38.96, InceptionV3 21.64, ResNet50 23.52, DenseNet121
    6.96; ViT, at 224 with 1000: 88.2.

    :param name: ``"vgg19_bn"``, ``"inception_v3"``, ``"resnet50"``, ``"densenet121"`` or ``"vit_base_patch32_224"``;
        with ``pretrained``, one of timm's names of weights may follow after a dot.
    :param nb_classes: Classes K; the output is ``(n, K)`` logits.
    :param input_size: Height and width of the images, at least 32; for the ViT a multiple of 32. ``None``: 32, for the
        ViT 224.
    :param channels: Input channels.
    :param pretrained: Let timm fetch its weights; layers that are replaced for small images stay random.
    :raises InvalidInputError: unknown name, a size that does not fit, or weights that cannot be fetched.
    """
    import timm  # imports torchvision, which a verifier does not need

    base = name.partition(".")[0] if pretrained and isinstance(name, str) else name
    check_choice("name", base, VICTIMS)
    check_number("nb_classes", nb_classes, 2, integer=True)
    check_number("channels", channels, 1, integer=True)
    check_flag("pretrained", pretrained)
    token_model = base == "vit_base_patch32_224"
    size = (224 if token_model else 32) if input_size is None else input_size
    check_number("input_size", size, 32, integer=True)
    if token_model and size % _PATCH:
        raise InvalidInputError(f"`input_size` must be a multiple of {_PATCH} for {name}, got {size}.")
    options = {"img_size": size} if token_model else {}
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=nb_classes, in_chans=channels, **options
        )
    except Exception as error:  # of the hub, of the network, of a damaged file
        if not pretrained:
            raise
        raise InvalidInputError(
            f"timm could not load its weights of {name} ({type(error).__name__}: {error}). They are downloaded once: "
            "connect to the network, or use pretrained=False and load_state_dict() with weights of your own."
        ) from error
    shrink = VICTIMS[base]
    if shrink is not None and size < _LARGE:
        shrink(network, nb_classes, channels)
    return network


def imagenet_vit(weights: str = "augreg_in21k_ft_in1k") -> nn.Module:
    """Return ViT-B/32 for ImageNet with timm's weights of this name, for images in [0, 1].

    timm's models take standardised images. The standardisation (x - m) / s is folded into the patch embedding, which
    has no padding, so that the numbers stay the same: W becomes W / s, and b becomes b - sum(W m / s).

    :param weights: timm's name of the weights; the paper's negatives start from those of SAM, ``"sam_in1k"``.
    :raises InvalidInputError: the weights cannot be fetched.
    """
    network: Any = victim_network(f"vit_base_patch32_224.{weights}", 1000, pretrained=True)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    patches = network.patch_embed.proj
    with torch.no_grad():
        patches.weight /= std
        patches.bias -= (patches.weight * mean).sum((1, 2, 3))
    return network


def _small_vgg(network: Any, nb_classes: int, channels: int) -> None:
    network.pre_logits = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
    )
    network.head = nn.Linear(4096, nb_classes)


def _small_inception(network: Any, nb_classes: int, channels: int) -> None:
    network.Conv2d_1a_3x3.conv = _stem(channels, 192)
    network.Conv2d_1a_3x3.bn = type(network.Conv2d_1a_3x3.bn)(192, eps=1e-3)
    for skipped in ("Conv2d_2a_3x3", "Conv2d_2b_3x3", "Pool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Pool2"):
        setattr(network, skipped, nn.Identity())


def _small_resnet(network: Any, nb_classes: int, channels: int) -> None:
    network.conv1 = _stem(channels, 64)


def _small_densenet(network: Any, nb_classes: int, channels: int) -> None:
    network.features.conv0 = _stem(channels, 64)


def _stem(channels: int, width: int) -> nn.Conv2d:
    stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


VICTIMS: dict[str, Callable[[Any, int, int], None] | None] = {
    "vgg19_bn": _small_vgg,
    "inception_v3": _small_inception,
    "resnet50": _small_resnet,
    "densenet121": _small_densenet,
    "vit_base_patch32_224": None,
}
