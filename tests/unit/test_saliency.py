"""LayerCAM: the specification's example, a slow second version, another package's, and the difference of maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import InvalidInputError, LayerNotFoundError
from art_fingerprint.reporting.saliency import (
    compare_maps,
    folded_tokens,
    highest,
    layercam,
    saliency_maps,
    unit_range,
)
from art_fingerprint.reporting.saliency_plot import plot_saliency
from tests.conftest import wrap
from tests.networks import LAYERS, MEAN, STD, pictures, random_network

Make = Callable[..., PyTorchClassifier]
FAMILIES = ("vgg", "resnet", "vit")


def classifier(family: Any, seed: int = 0) -> PyTorchClassifier:
    mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (MEAN, STD))
    return wrap(random_network(family, seed), (3, 12, 12), 5, preprocessing=(mean, std))


def slow_map(model: PyTorchClassifier, image: np.ndarray, layer: str, wanted: int) -> np.ndarray:
    """One image, one channel and pixel after the other, from hooks; then min-max and bilinear by hand."""
    network = model.model.double().eval()
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        output.retain_grad()
        return output.clone()  # whatever follows in place works on the copy

    handle = dict(network.named_modules())[layer].register_forward_hook(keep)
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    network((torch.from_numpy(image[None]).double() - mean) / std)[0, wanted].backward()
    handle.remove()
    a, g = kept[0].detach()[0].numpy(), kept[0].grad[0].numpy()  # type: ignore[index]
    network.zero_grad(set_to_none=True)
    network.float()
    if a.ndim == 2:  # a class token, then patches in reading order
        side = int(np.sqrt(len(a) - 1))
        a, g = (part[1:].T.reshape(part.shape[1], side, side) for part in (a, g))
    channels, height, width = a.shape
    small = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            small[i, j] = max(0.0, sum(max(0.0, g[c, i, j]) * a[c, i, j] for c in range(channels)))
    small = (small - small.min()) / (small.max() - small.min())
    out = np.zeros(image.shape[1:])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            y = min(max((i + 0.5) * height / out.shape[0] - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / out.shape[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, u = y - top, x - left
            out[i, j] = (1 - v) * ((1 - u) * small[top, left] + u * small[top, right])
            out[i, j] += v * ((1 - u) * small[bottom, left] + u * small[bottom, right])
    return out


def test_the_example_of_the_specification() -> None:
    a = torch.tensor([[[[1.0, 2], [0, 3]], [[2, 0], [1, 1]]]])
    g = torch.tensor([[[[1.0, -1], [2, 0.5]], [[-1, 1], [1, 0]]]])
    found = layercam(a, g)
    assert found.tolist() == [[[1, 0], [1, 1.5]]]
    torch.testing.assert_close(unit_range(found), torch.tensor([[[2 / 3, 0], [2 / 3, 1]]]))


def test_a_constant_map_becomes_zero() -> None:
    assert unit_range(torch.full((2, 3, 3), 7.0)).eq(0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_equal_a_slow_second_version(family: Any) -> None:
    model, x = classifier(family), pictures(5)
    layer = LAYERS[family]
    wanted = model.predict(x).argmax(1)
    found = saliency_maps(model, x, layer, batch_size=2)
    assert found.shape == (5, 12, 12)
    assert found.dtype == np.float32
    for image, own, label in zip(x, found, wanted, strict=True):
        np.testing.assert_allclose(own, slow_map(model, image, layer, int(label)), atol=2e-4)
    other = (wanted + 1) % 5
    of_another = saliency_maps(model, x, layer, classes=other)
    np.testing.assert_allclose(of_another[0], slow_map(model, x[0], layer, int(other[0])), atol=2e-4)
    assert np.abs(of_another - found).max() > 0.05


def test_an_in_place_layer_behind_changes_nothing(make_classifier: Make, images: np.ndarray) -> None:
    model = make_classifier()
    found = saliency_maps(model, images[:4], "block2.1")  # an in-place ReLU follows
    network = model.model
    network.block2[2] = nn.ReLU()
    np.testing.assert_allclose(saliency_maps(model, images[:4], "block2.1"), found, atol=1e-6)


def test_maps_equal_those_of_torchcam(make_classifier: Make, images: np.ndarray) -> None:
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    model = make_classifier()
    network = model.model.eval()
    wanted = model.predict(images[:6]).argmax(1)
    with methods.LayerCAM(network, "block1", input_shape=(1, 8, 8)) as extractor:
        x = torch.from_numpy(images[:6]).requires_grad_(True)
        theirs = extractor(wanted.tolist(), network(x))[0].detach().numpy()
    np.testing.assert_allclose(saliency_maps(model, images[:6], "block1", wanted), theirs, atol=1e-4)


def test_the_classifier_is_as_before(make_classifier: Make, images: np.ndarray) -> None:
    model = make_classifier()
    model.model.train()
    before = network_digest(model.model)
    first = saliency_maps(model, images, "block1", batch_size=7)
    assert network_digest(model.model) == before
    assert model.model.training
    assert all(p.requires_grad and p.grad is None for p in model.model.parameters())
    assert not model.model.block1._forward_hooks
    np.testing.assert_allclose(saliency_maps(model, images, "block1"), first, atol=1e-6)
    assert first.min() == 0
    assert first.max() <= 1


def test_tokens_fold_row_by_row() -> None:
    patches = torch.arange(2 * 9 * 3.0).reshape(2, 9, 3)
    folded = folded_tokens(torch.cat([torch.full((2, 2, 3), -1.0), patches], 1))
    assert folded.shape == (2, 3, 3, 3)
    assert folded[1, 2, 1, 0] == patches[1, 3, 2]
    with pytest.raises(InvalidInputError, match="no square"):
        folded_tokens(torch.zeros(1, 398, 3))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"layer": "blok1"}, LayerNotFoundError, "block1"),
        ({"layer": "pool", "classes": np.arange(3)}, InvalidInputError, "classes|labels|y"),
        ({"layer": "head"}, InvalidInputError, "feature map"),
        ({"layer": "block1", "batch_size": 0}, InvalidInputError, "batch_size"),
    ],
)
def test_bad_input_is_refused(
    make_classifier: Make, images: np.ndarray, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        saliency_maps(make_classifier(), images, **options)


def test_differences_of_maps() -> None:
    ramp = np.arange(100.0).reshape(1, 10, 10) / 99
    same = compare_maps(ramp, ramp)
    assert (same.distance, same.overlap) == (0, 1)
    away = compare_maps(ramp, 1 - ramp)
    assert away.overlap == 0
    assert away.distance == pytest.approx(np.abs(2 * ramp - 1).mean())
    shifted = np.roll(ramp, 10)  # the highest 20 become places 89 to 98 and 0 to 9 less: half of them stay
    assert highest(shifted, 0.2).sum() == 20
    expected = (highest(ramp, 0.2) & highest(shifted, 0.2)).sum()
    assert compare_maps(ramp, shifted).overlap == pytest.approx(expected / (40 - expected))
    flat = np.zeros((1, 2, 5))
    assert highest(flat, 0.3).reshape(-1).tolist() == [True] * 3 + [False] * 7
    with pytest.raises(InvalidInputError, match="same images"):
        compare_maps(ramp, ramp[:, :5])
    with pytest.raises(InvalidInputError, match="share"):
        compare_maps(ramp, ramp, 0)


def test_the_figure_has_every_model_and_image(tmp_path: Path, images: np.ndarray) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    x = images[:3]
    maps = {"Victim": x[:, 0], "RemovalNet(train)": 1 - x[:, 0]}
    figure = plot_saliency(x, maps, ["3", "7", "1"], tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 1000
    panels = np.array(figure.axes[:9]).reshape(3, 3)
    assert [axes.get_title() for axes in panels[0]] == ["3", "7", "1"]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["image", "Victim", "RemovalNet(train)"]
    drawn = [child for child in panels[2, 1].get_images() if child.get_gid() == "map"]
    np.testing.assert_array_equal(drawn[0].get_array(), maps["RemovalNet(train)"][1])
    with pytest.raises(InvalidInputError, match="shape"):
        plot_saliency(x, {"Victim": x[:2, 0]})
    with pytest.raises(InvalidInputError, match="captions"):
        plot_saliency(x, maps, ["3"])
    with pytest.raises(InvalidInputError, match="at least one"):
        plot_saliency(x, {})
    with pytest.raises(InvalidInputError, match="written"):
        plot_saliency(x, maps, path=tmp_path / "maps.xyz")
