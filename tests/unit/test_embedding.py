"""Models' answers in one embedding: what goes in, what comes out of one t-SNE, and the figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.digests import network_digest
from art_fingerprint.exceptions import InvalidInputError, LayerNotFoundError
from art_fingerprint.reporting.embedding import class_regions, embed, features, plot_embedding, probabilities, shift

Make = Callable[..., PyTorchClassifier]


def clouds(n: int = 30, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Three tight groups on the axes, and their labels."""
    labels = np.arange(n) % 3
    noise = np.random.default_rng(int(10 * offset)).normal(0, 0.01, (n, 3))
    return np.eye(3)[labels] + noise + offset, labels


def test_probabilities_and_features_of_a_model(make_classifier: Make, images: np.ndarray) -> None:
    model = make_classifier()
    model.model.train()
    before = network_digest(model.model)
    found, deep = probabilities(model, images, 7), features(model, images, "block2", 7)
    assert network_digest(model.model) == before
    assert model.model.training
    network = model.model.eval()
    with torch.no_grad():
        x = torch.from_numpy(images)
        latent = network.block2(network.block1(x))
        np.testing.assert_allclose(found, network(x).softmax(1), atol=1e-6)
        np.testing.assert_allclose(deep, latent.mean((2, 3)), atol=1e-6)
    assert features(model, images).shape[0] == 40
    with pytest.raises(LayerNotFoundError, match="block1"):
        features(model, images, "blok1")


def test_one_embedding_holds_all_models() -> None:
    (near, labels), (far, _) = clouds(), clouds(offset=2.0)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the caller's state is not to move
    found = embed({"Victim": near, "Copy": near + 1e-4, "Other": far}, seed=3)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert list(found) == ["Victim", "Copy", "Other"]
    assert all(points.shape == (30, 2) and np.isfinite(points).all() for points in found.values())
    again = embed({"Victim": near, "Copy": near + 1e-4, "Other": far}, seed=3)
    np.testing.assert_array_equal(found["Other"], again["Other"])
    assert shift(found["Victim"], found["Copy"]) < 0.2 * shift(found["Victim"], found["Other"])
    middles = [found["Victim"][labels == label].mean(0) for label in range(3)]
    inside = np.mean([np.linalg.norm(found["Victim"][labels == k] - middles[k], axis=1).mean() for k in range(3)])
    assert np.linalg.norm(middles[0] - middles[1]) > inside


def test_the_shift_is_a_share_of_the_spread() -> None:
    points = np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    moved = points + [1.0, 0]
    every = np.concatenate([points, moved])
    spread = np.sqrt(((every - every.mean(0)) ** 2).sum(1).mean())
    assert shift(points, moved) == pytest.approx(1 / spread)
    assert shift(10 * points, 10 * moved) == pytest.approx(1 / spread)
    assert shift(points, points) == 0
    with pytest.raises(InvalidInputError, match="same images"):
        shift(points, points[:2])


def test_regions_belong_to_the_nearest_class() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal((-5, 0), 0.5, (40, 2)), rng.normal((5, 0), 0.5, (40, 2))])
    labels = np.repeat([4, 7], 40)
    regions, centres = class_regions(points, labels, np.array([-7.0, -2]), np.array([7.0, 2]))
    assert regions.shape == (120, 120)
    assert (regions[:, :50] == 4).all()
    assert (regions[:, 70:] == 7).all()
    assert centres[4][0] < 0 < centres[7][0]


def test_bad_answers_are_refused() -> None:
    near, _ = clouds()
    with pytest.raises(InvalidInputError, match="one d"):
        embed({"a": near, "b": near[:, :2]})
    with pytest.raises(InvalidInputError, match="finite"):
        embed({"a": np.full((9, 2), np.nan)})
    with pytest.raises(InvalidInputError, match="four"):
        embed({"a": near[:3]})
    with pytest.raises(InvalidInputError, match="perplexity"):
        embed({"a": near}, perplexity=0)


def test_identical_answers_still_give_finite_points() -> None:
    found = embed({"a": np.ones((6, 3)), "b": np.ones((6, 3))})
    assert np.isfinite(found["b"]).all()


def test_the_figure_compares_each_model_with_the_reference(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    _, labels = clouds()
    rng = np.random.default_rng(1)
    points = {name: rng.normal(size=(30, 2)) for name in ("Victim", "step 0", "step 10")}
    figure = plot_embedding(points, labels, path=tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 1000
    first, second = figure.axes
    for axes, name in ((first, "step 0"), (second, "step 10")):
        assert axes.get_title().startswith(name)
        drawn = {child.get_gid(): child for child in axes.get_children() if child.get_gid() not in (None, "class")}
        np.testing.assert_array_equal(drawn["Victim"].get_offsets(), points["Victim"])
        np.testing.assert_array_equal(drawn[name].get_offsets(), points[name])
        assert {text.get_text() for text in axes.texts} == {"0", "1", "2"}
    assert first.get_xlim() == second.get_xlim()
    tints = [axes.images[0] for axes in (first, second)]
    assert tints[0].get_clim() == tints[1].get_clim()  # one class has one tint in all panels
    assert {int(place) for image in tints for place in np.unique(image.get_array())} <= {0, 1, 2}
    with pytest.raises(InvalidInputError, match="another model"):
        plot_embedding({"Victim": points["Victim"]}, labels)
    with pytest.raises(InvalidInputError, match="labels"):
        plot_embedding(points, labels[:5])
