"""Training and attacks on images that stay on disk: the same numbers as on the array of them."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from art_fingerprint.attacks import FineTuningAttack, RemovalNetAttack
from art_fingerprint.core.classifier import LogitsNetwork, network_of
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.training import Batches
from art_fingerprint.exceptions import DatasetError, InvalidInputError
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.dataset import Dataset
from art_fingerprint.zoo.datasets import load_dataset
from art_fingerprint.zoo.lazy_batches import ImageStream, Prefetched, labels_in_chunks, training_images
from art_fingerprint.zoo.lazy_images import LazyImages
from art_fingerprint.zoo.recipes import Recipe, train_negative, train_victim, wrap
from tests import photo_sets

RECIPE = Recipe(learning_rate=0.05, max_iter=9, batch_size=16, max_shift=1)


def small() -> SmallCNN:
    return SmallCNN(channels=3, nb_classes=10, width=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    photo_sets.make_cinic10(folder, 7)
    return folder


@pytest.fixture(scope="module")
def held(root: Path) -> Dataset:
    return load_dataset("cinic10", root=root, size=8, lazy=False)


@pytest.fixture
def lazy(root: Path) -> Dataset:
    return load_dataset("cinic10", root=root, size=8, lazy=True)


def batches(data: Dataset, seed: int = 0, **options: Any) -> Batches:
    view = LogitsNetwork(wrap(small(), data, "cpu"), "logits")
    return Batches(training_images(data.x_train), view.preprocess, 16, view.device, seed, **options)


@pytest.mark.parametrize("train", [train_victim, train_negative])
def test_training_gives_the_same_weights(held: Dataset, lazy: Dataset, train: Any) -> None:
    first, second = (network_of(train(small, data, RECIPE, 3, "cpu")) for data in (held, lazy))
    assert network_digest(first) == network_digest(second)


def test_training_never_decodes_more_than_a_few_batches(lazy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decode = LazyImages._decode

    def spy(self: LazyImages, items: Any) -> np.ndarray:
        sizes.append(len(items))
        return decode(self, items)

    monkeypatch.setattr(LazyImages, "_decode", spy)
    train_victim(small, lazy, RECIPE, 0, "cpu")
    assert max(sizes) == 16
    assert 9 <= len(sizes) <= 9 + 4


@pytest.mark.parametrize("steps", [1, 4, 5, 13])
def test_prefetched_batches_are_the_batches(held: Dataset, lazy: Dataset, steps: int) -> None:
    """In two iterations one after the other; an epoch has five batches."""
    options: dict[str, Any] = {"hflip": True, "max_shift": 1}
    plain, ahead = batches(held, **options), Prefetched(batches(lazy, **options))
    assert len(plain) == len(ahead) == 5
    for _ in range(2):
        theirs = list(itertools.islice(plain, steps))
        for mine, other in zip(itertools.islice(ahead, steps), theirs, strict=True):
            assert torch.equal(mine.x, other.x)
            assert torch.equal(mine.index, other.index)
            assert torch.equal(mine.flipped, other.flipped)


def test_threads_end_with_the_iteration(lazy: Dataset) -> None:
    source = iter(Prefetched(batches(lazy)))
    next(source)
    assert "prefetch" in [thread.name for thread in threading.enumerate()]
    del source
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]


def test_a_damaged_image_ends_the_training_and_is_named(tmp_path: Path) -> None:
    folder = photo_sets.make_cinic10(tmp_path, 7)
    data = load_dataset("cinic10", root=tmp_path, size=8, lazy=True)
    path = next((folder / "train" / "dog").glob("n0*"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DatasetError, match=rf"{path.name} cannot be read as an image"):
        train_victim(small, data, RECIPE, 0, "cpu")


# ---------------------------------------------------------------------- streams
@pytest.mark.parametrize("batch_size", [10, 16, 70, 500])
def test_a_stream_gives_every_image_once_in_each_epoch(lazy: Dataset, batch_size: int) -> None:
    stream = ImageStream(lazy.x_train, lazy.y_train, batch_size, seed=1)
    assert stream.size == 70
    known = {image.tobytes(): label for image, label in zip(lazy.x_train, lazy.y_train, strict=True)}
    orders = []
    for _ in range(2):
        seen: list[bytes] = []
        while len(seen) < 70:
            x, y = stream.get_batch()
            assert len(x) <= batch_size
            assert [known[image.tobytes()] for image in x] == y.tolist()
            seen += [image.tobytes() for image in x]
        assert len(seen) == len(set(seen)) == 70
        orders.append(seen)
    assert orders[0] != orders[1]


def test_a_stream_is_drawn_by_its_seed(held: Dataset) -> None:
    def first(seed: int) -> bytes:
        return ImageStream(held.x_train, None, 16, seed).get_batch()[0].tobytes()

    assert first(1) == first(1) != first(2)
    assert ImageStream(held.x_train).get_batch()[1] is None


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}])
def test_bad_streams(held: Dataset, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ImageStream(held.x_train, **options)


@pytest.mark.filterwarnings("ignore:The substitute set is unbalanced")
def test_attacks_work_on_a_stream(held: Dataset, lazy: Dataset) -> None:
    victim = train_victim(small, held, RECIPE, 0, "cpu")
    attacks = [
        FineTuningAttack(victim, max_iter=3, batch_size=16),
        RemovalNetAttack(
            victim,
            layer="block2",
            max_iter=2,
            batch_size=16,
            shuffle_ratio=0.3,
            bn_recalibrate=2,
            allow_degenerate=True,
        ),
    ]
    for attack in attacks:
        digests = [
            network_digest(network_of(attack.generate(ImageStream(data.x_train, data.y_train, seed=2))))
            for data in (held, lazy)
        ]
        assert digests[0] == digests[1] != network_digest(network_of(victim))


@pytest.mark.parametrize("chunk", [1, 16, 1000])
def test_labels_are_predicted_in_chunks(held: Dataset, lazy: Dataset, chunk: int) -> None:
    victim = wrap(small(), held, "cpu")
    wanted = victim.predict(held.x_train).argmax(1)
    assert labels_in_chunks(victim, lazy.x_train, chunk).tolist() == wanted.tolist()
    assert labels_in_chunks(victim, held.x_train[:0]).tolist() == []
