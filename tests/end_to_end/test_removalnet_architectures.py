"""One iteration of RemovalNet on the five victims of the paper at their input sizes, cut at every layer that is known.

Measured, with four samples instead of two: a peak of 4.3 GiB, mostly for six sets of the ViT's weights of 0.33 GiB.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import RemovalNetAttack
from art_fingerprint.core.digests import network_digest
from art_fingerprint.zoo.victims import victim_network
from tests.conftest import wrap

# For each network the layers, and how many at the end have no convolution with a BatchNorm of its own above them.
LAYERS = {
    "vgg19_bn": ("features.6 features.13 features.26 features.39 features.52", 1),
    "resnet50": ("conv1 bn1 act1 maxpool layer1 layer2 layer2.1 layer3 layer4 global_pool", 2),
    "densenet121": (
        "features.pool0 features.denseblock1 features.transition1 features.denseblock2 features.transition2 "
        "features.transition3 features.denseblock4 features.norm5 features",
        3,
    ),
    "inception_v3": ("Conv2d_1a_3x3 Pool2 Mixed_5d Mixed_6a Mixed_6e Mixed_7c global_pool", 2),
    "vit_base_patch32_224": ("patch_embed norm_pre blocks.2 blocks.5 blocks.8 blocks.11 blocks norm fc_norm", 9),
}
CASES = [
    (name, layer, number < len(layers.split()) - plain)
    for name, (layers, plain) in LAYERS.items()
    for number, layer in enumerate(layers.split())
]


@functools.lru_cache(maxsize=1)  # one network is alive at a time
def victim(name: str) -> tuple[PyTorchClassifier, str]:
    size = 224 if name.startswith("vit") else 32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = victim_network(name, 10)
        if not name.startswith("vit"):
            network(torch.rand(8, 3, size, size))  # BatchNorm statistics of something
    return wrap(network.eval(), (3, size, size), 10), network_digest(network)


@pytest.mark.slow
@pytest.mark.filterwarnings(  # random networks see one class, and some are quite sure of it
    "ignore:The substitute set is unbalanced", "ignore:The output's gradient with respect to layer .* is exactly 0"
)
@pytest.mark.parametrize(("name", "layer", "folds"), CASES)
def test_one_iteration(name: str, layer: str, folds: bool) -> None:
    classifier, digest = victim(name)
    x = np.random.default_rng(0).random((2, *classifier.input_shape), dtype=np.float32)
    surrogate = RemovalNetAttack(
        classifier, layer, shuffle_ratio=0.1, inner_steps=2, max_iter=1, batch_size=2, allow_degenerate=True
    ).generate(x)
    info = surrogate.surrogate_info
    assert (info["layer"], info["cut"], info["side_inputs"]) == (layer, "graph", 0)
    assert (info["batch_norm_folded"] > 0) == folds
    assert set(info["losses"]) == {"kl", "latent", "ce"}
    assert all(math.isfinite(value) for value in info["losses"].values())
    assert info["cost"]["peak_memory_bytes"] < 8 * 2**30
    own = dict(classifier.model.named_parameters())
    changed = {n for n, p in surrogate.model.named_parameters() if not torch.equal(p, own[n])}
    assert {n for n, p in own.items() if p.ndim > 1} <= changed
    assert all(bool(p.isfinite().all()) for p in surrogate.model.parameters())
    assert network_digest(classifier.model) == digest
