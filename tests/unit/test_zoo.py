"""The zoo: splits, substitute sets, the small network, training recipes, presets."""

from __future__ import annotations

import gzip
import hashlib
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.datasets.mnist import read_image_file

import art_fingerprint.attacks as attacks
import art_fingerprint.verifiers as verifiers
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.digests import array_digest, network_digest
from art_fingerprint.core.layers import auto_layer
from art_fingerprint.core.layers import stages as stage_names
from art_fingerprint.core.training import Batches, random_shift
from art_fingerprint.exceptions import DatasetError, InvalidInputError
from art_fingerprint.zoo import datasets, recipes
from art_fingerprint.zoo.architectures import SmallCNN, SmallVGG
from art_fingerprint.zoo.datasets import Dataset, load_dataset, load_digits, split_by_class
from art_fingerprint.zoo.idx import IdxFile
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import Recipe, train_negative, train_victim
from art_fingerprint.zoo.substitutes import oversample, select_substitute
from tests.real_data import NEEDS_FASHION_MNIST


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits()


def small() -> SmallCNN:
    return SmallCNN(width=4)


# ---------------------------------------------------------------------- data sets
def test_digits_have_the_stated_sizes_and_range(digits: Dataset) -> None:
    assert [len(x) for x in (digits.x_train, digits.x_apart, digits.x_test)] == [1000, 437, 360]
    assert digits.input_shape == (1, 8, 8)
    assert digits.nb_classes == 10
    assert not digits.hflip
    for x, y in ((digits.x_train, digits.y_train), (digits.x_apart, digits.y_apart), (digits.x_test, digits.y_test)):
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert y.shape == (len(x),)
        assert x.min() == 0
        assert x.max() == 1


def test_digits_parts_are_disjoint(digits: Dataset) -> None:
    parts = [{array_digest(image) for image in x} for x in (digits.x_train, digits.x_apart, digits.x_test)]
    assert [len(part) for part in parts] == [1000, 437, 360]  # no image occurs twice in this data set
    assert len(parts[0] | parts[1] | parts[2]) == 1797


def test_digits_parts_have_the_class_shares_of_the_whole(digits: Dataset) -> None:
    counts = np.stack([np.bincount(y) for y in (digits.y_train, digits.y_apart, digits.y_test)])
    expected = counts.sum(0) * counts.sum(1)[:, None] / counts.sum()
    assert np.abs(counts - expected).max() < 2


def test_digits_never_change(digits: Dataset) -> None:
    assert load_dataset("digits").digest == digits.digest
    # Every published number of the preset rests on this split.
    assert digits.digest == "aa576805022df1d77cf425aac489ec0b366cd60f045e5c311af14d149d5fd0d6"


@pytest.mark.parametrize("part", ["x_train", "y_train", "x_apart", "y_apart", "x_test", "y_test"])
def test_digest_covers_every_part(digits: Dataset, part: str) -> None:
    changed = getattr(digits, part).copy()
    changed[3] = 1 - changed[3]
    assert replace(digits, **{part: changed}).digest != digits.digest


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in the format of Fashion-MNIST, taken for the published ones, in a folder named by the variable."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    table = {}
    for part, n in (("train", 200), ("t10k", 40)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)),
            ("labels-idx1", (np.arange(n) % 10).astype(np.uint8)),
        ):
            name = f"{part}-{kind}-ubyte"
            header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
            table[name] = IdxFile(array.shape, hashlib.sha256(array.tobytes()).hexdigest())
    monkeypatch.setattr(datasets, "FASHION_MNIST_FILES", table)
    monkeypatch.setattr(datasets, "FASHION_MNIST_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("ART_FINGERPRINT_DATA", str(tmp_path))
    return folder


def unpack(folder: Path) -> None:
    for path in folder.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def test_fashion_mnist_parts(published: Path) -> None:
    data = load_dataset("fashion-mnist")
    assert [len(x) for x in (data.x_train, data.x_apart, data.x_test)] == [170, 30, 40]
    assert data.input_shape == (1, 28, 28)
    assert data.nb_classes == 10
    assert data.hflip
    assert np.bincount(data.y_train).tolist() == [17] * 10
    assert np.bincount(data.y_apart).tolist() == [3] * 10
    assert data.x_train.dtype == np.float32
    assert data.y_train.dtype == np.int64
    # Every published image is in exactly one part, with its label, scaled to [0, 1].
    content = gzip.decompress((published / "train-images-idx3-ubyte.gz").read_bytes())
    raw = np.frombuffer(content, np.uint8, offset=16).reshape(200, 784)
    labelled = {(image.tobytes(), index % 10) for index, image in enumerate(raw)}
    pairs = [*zip(data.x_train, data.y_train, strict=True), *zip(data.x_apart, data.y_apart, strict=True)]
    found = {(np.rint(image * 255).astype(np.uint8).tobytes(), int(label)) for image, label in pairs}
    assert len(pairs) == len(found) == 200
    assert found == labelled
    assert data.x_train.max() <= 1


@pytest.mark.parametrize("layout", ["packed", "unpacked", "torchvision", "debian"])
def test_fashion_mnist_is_found(published: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = load_dataset("fashion-mnist").digest
    if layout == "unpacked":
        unpack(published)
    if layout == "torchvision":
        unpack(published)
        (published.parent / "FashionMNIST").mkdir()
        published.rename(published.parent / "FashionMNIST" / "raw")
    if layout == "debian":
        published.rename(published.parent / "debian")
        monkeypatch.delenv("ART_FINGERPRINT_DATA")
    assert load_dataset("fashion-mnist").digest == digest


def test_torchvision_reads_the_same_images(published: Path) -> None:
    unpack(published)
    theirs = read_image_file(str(published / "t10k-images-idx3-ubyte"))
    ours = torch.from_numpy(load_dataset("fashion-mnist").x_test)
    assert torch.equal(theirs[:, None] / 255, ours)


def test_missing_fashion_mnist_says_what_to_put_where(published: Path) -> None:
    (published / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetError) as caught:
        load_dataset("fashion-mnist")
    message = str(caught.value)
    assert f"{published} has no t10k-labels-idx1-ubyte;" in message
    assert f"{published.parent / 'debian'} does not exist" in message
    assert "dataset-fashion-mnist" in message
    assert "ART_FINGERPRINT_DATA=<folder>" in message
    assert "\n" not in message


def damaged(path: Path, damage: str) -> None:
    packed = path.read_bytes()
    content = gzip.decompress(packed)
    flipped = bytes([*content[:-1], content[-1] ^ 1])
    path.write_bytes(
        {
            "cut": packed[: len(packed) // 2],
            "cut before packing": gzip.compress(content[:-5]),
            "cut in the header": gzip.compress(content[:10]),
            "too long": gzip.compress(content + b"\0"),
            "not packed": content,
            "bad bits": packed[:40] + b"\xff" * 20 + packed[60:],
            "empty": b"",
            "web page": gzip.compress(b"<html>not found</html>"),
            "other type": gzip.compress(content[:2] + b"\x0d" + content[3:]),
            "other shape": gzip.compress(content[:3] + bytes([1, 0, 0, 0, 5]) + b"12345"),
            "other data": gzip.compress(flipped),
        }[damage]
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut", "cannot be read"),
        ("cut before packing", "cannot be read .* are not those of an array of"),
        ("cut in the header", "cannot be read .* the promised axes"),
        ("too long", "are not those of an array of"),
        ("not packed", "cannot be read"),
        ("bad bits", "cannot be read"),
        ("empty", "cannot be read"),
        ("web page", "two zero bytes"),
        ("other type", "type 13, expected 8"),
        ("other shape", r"an array of \(5,\), expected \(200, 28, 28\)"),
        ("other data", "another data set, or a changed file"),
    ],
)
def test_damaged_fashion_mnist_is_refused(published: Path, damage: str, reason: str) -> None:
    path = published / "train-images-idx3-ubyte.gz"
    damaged(path, damage)
    with pytest.raises(DatasetError, match=f"{re.escape(str(path))} .*{reason}.*dataset-fashion-mnist"):
        load_dataset("fashion-mnist")


@NEEDS_FASHION_MNIST
def test_fashion_mnist_never_changes() -> None:
    data = load_dataset("fashion-mnist")
    assert [len(x) for x in (data.x_train, data.x_apart, data.x_test)] == [51000, 9000, 10000]
    assert np.bincount(data.y_apart).tolist() == [900] * 10
    # Every published number of the preset rests on this split.
    assert data.digest == "a4417dbf09f7736c4becba09ae1e812ea4969b0f17c286c5e952d552c3f27f20"


def test_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"no data set 'mnist'; known are bcn20000, .*digits, fashion-mnist"):
        load_dataset("mnist")


@pytest.mark.parametrize("sizes", [(60, 30, 10), (10, 10), (1, 0, 99), (100,)])
def test_split_is_disjoint_and_stratified(sizes: tuple[int, ...]) -> None:
    y = np.repeat([0, 1, 2], [50, 30, 20])
    parts = split_by_class(y, sizes, 3, "test")
    assert [len(part) for part in parts] == list(sizes)
    together = np.concatenate(parts)
    assert len(set(together.tolist())) == len(together)
    for part, size in zip(parts, sizes, strict=True):
        assert (np.diff(part) > 0).all()
        assert np.abs(np.bincount(y[part], minlength=3) - size * np.array([0.5, 0.3, 0.2])).max() < 2


def test_split_depends_on_seed_and_purpose_alone() -> None:
    y = np.arange(100) % 4

    def split(seed: int, *purpose: str) -> bytes:
        return split_by_class(y, (50,), seed, *purpose)[0].tobytes()

    assert split(0, "a") == split(0, "a")
    assert len({split(0, "a"), split(1, "a"), split(0, "b")}) == 3


def test_split_refuses_more_than_there_is() -> None:
    with pytest.raises(InvalidInputError, match="but there are 5"):
        split_by_class(np.zeros(5, int), (3, 3), 0)


# ---------------------------------------------------------------------- substitute sets
UNEVEN = np.repeat([0, 1, 2, 3], [60, 25, 10, 5])


def test_stratified_selection_goes_round_the_classes() -> None:
    chosen = select_substitute(UNEVEN, 0.3, seed=4)
    assert len(chosen) == len(set(chosen.tolist())) == 30
    # Five rounds over four classes, five over the three that are left.
    for start in range(0, 20, 4):
        assert sorted(UNEVEN[chosen[start : start + 4]]) == [0, 1, 2, 3]
    counts = np.bincount(UNEVEN[chosen]).tolist()
    assert counts[3] == 5
    assert sorted(counts[:3]) == [8, 8, 9]


@pytest.mark.parametrize("ratio", [0.01, 0.07, 0.29, 0.5, 0.58, 1.0])
@pytest.mark.parametrize("selection", ["stratified", "random"])
def test_selection_has_the_asked_size(ratio: float, selection: str) -> None:
    chosen = select_substitute(UNEVEN, ratio, selection)
    assert len(chosen) == round(100 * ratio)
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen.min() >= 0
    assert chosen.max() < 100


def test_selection_rounds_down() -> None:
    assert len(select_substitute(np.arange(7) % 2, 0.5)) == 3
    assert len(select_substitute(np.arange(1797) % 10, 0.02)) == 35


def test_random_selection_keeps_the_shares_of_the_pool() -> None:
    counts = np.zeros(4)
    for seed in range(200):
        counts += np.bincount(UNEVEN[select_substitute(UNEVEN, 0.2, "random", seed=seed)], minlength=4)
    assert np.abs(counts / counts.sum() - [0.6, 0.25, 0.1, 0.05]).max() < 0.02


@pytest.mark.parametrize("selection", ["stratified", "random"])
def test_selection_follows_the_seed(selection: str) -> None:
    first, again, other = (select_substitute(UNEVEN, 0.2, selection, seed=seed) for seed in (5, 5, 6))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_over_sampling_fills_every_class() -> None:  # G14
    labels = np.repeat([0, 1, 2], [5, 2, 1])
    chosen = select_substitute(labels, 1.0, rebalance="ros")
    assert len(chosen) == 15
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 5]
    assert set(chosen.tolist()) == set(range(8))
    assert sorted(chosen[:8].tolist()) == list(range(8))


def test_over_sampling_repeats_only_what_was_selected() -> None:
    plain = select_substitute(UNEVEN, 0.4, "random", seed=1)
    filled = select_substitute(UNEVEN, 0.4, "random", rebalance="ros", seed=1)
    assert filled[: len(plain)].tolist() == plain.tolist()
    assert set(filled.tolist()) == set(plain.tolist())
    counts = np.bincount(UNEVEN[filled])
    assert set(counts[counts > 0].tolist()) == {np.bincount(UNEVEN[plain]).max()}


def test_over_sampling_of_equal_classes_adds_nothing() -> None:
    extra = oversample(np.arange(12) % 3, 0)
    assert extra.shape == (0,)
    assert extra.dtype == np.int64


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, math.nan, "0.5", True])
def test_bad_ratio_is_refused(ratio: Any) -> None:
    with pytest.raises(InvalidInputError, match="`ratio`"):
        select_substitute(UNEVEN, ratio)


def test_ratio_that_selects_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"`ratio`=0.009 of 100 samples selects none"):
        select_substitute(UNEVEN, 0.009)
    with pytest.raises(InvalidInputError, match="of 0 samples selects none"):
        select_substitute(np.array([], int), 1.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("selection", {"selection": "first"}),
        ("rebalance", {"rebalance": "smote"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": None}),
    ],
)
def test_bad_option_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=f"`{name}`"):
        select_substitute(UNEVEN, 0.5, **options)


def test_scores_in_place_of_labels_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"`y_victim` .* got shape \(8, 4\)"):
        select_substitute(np.eye(4)[np.arange(8) % 4], 0.5)


# ---------------------------------------------------------------------- the small network
@pytest.mark.parametrize(("channels", "nb_classes", "size"), [(1, 10, 8), (3, 4, 8), (3, 2, 13), (1, 7, 28)])
def test_small_cnn_shapes(channels: int, nb_classes: int, size: int) -> None:
    network = SmallCNN(channels, nb_classes, width=4)
    x = torch.rand(3, channels, size, size)
    one = network.block1(x)
    two = network.block2(one)
    half = (size + 1) // 2
    assert one.shape == (3, 4, size, size)
    assert two.shape == (3, 8, half, half)
    assert network.block3[:-1](two).shape == (3, 16, (half + 1) // 2, (half + 1) // 2)
    assert network.block3(two).shape == (3, 16, 1, 1)
    assert network(x).shape == (3, nb_classes)


def test_small_cnn_is_cut_at_its_second_block() -> None:
    assert auto_layer(SmallCNN(), torch.rand(2, 1, 8, 8)) == "block2"


@pytest.mark.parametrize(("channels", "nb_classes", "size"), [(1, 10, 28), (3, 4, 32), (1, 2, 16)])
def test_small_vgg_shapes(channels: int, nb_classes: int, size: int) -> None:
    network = SmallVGG(channels, nb_classes, width=4)
    z = torch.rand(3, channels, size, size)
    for name, width in (("block1", 4), ("block2", 8), ("block3", 16)):
        z = getattr(network, name)(z)
        size //= 2
        assert z.shape == (3, width, size, size)
    assert network.block4(z).shape == (3, 32, 1, 1)
    assert network.head(network.block4(z).flatten(1)).shape == (3, nb_classes)


def test_small_vgg_has_four_stages_and_six_convolutions() -> None:
    network = SmallVGG()
    assert stage_names(network) == ["block1", "block2", "block3", "block4", "head"]
    assert auto_layer(network, torch.rand(2, 1, 28, 28)) == "block2"
    depths = [sum(isinstance(m, nn.Conv2d) for m in stage.modules()) for stage in network.children()]
    assert depths == [1, 1, 2, 2, 0]
    assert network(torch.rand(5, 1, 28, 28)).shape == (5, 10)


# ---------------------------------------------------------------------- shifts
@pytest.mark.parametrize(("max_shift", "shape"), [(1, (20, 1, 8, 8)), (2, (9, 3, 5, 7)), (3, (4, 2, 3, 3))])
def test_shift_equals_a_loop(max_shift: int, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    shifted = random_shift(x, max_shift, torch.Generator().manual_seed(1))
    dy, dx = torch.randint(2 * max_shift + 1, (2, len(x), 1), generator=torch.Generator().manual_seed(1)) - max_shift
    n, channels, height, width = shape
    for i in range(n):
        for row in range(height):
            for column in range(width):
                y, z = row + int(dy[i]), column + int(dx[i])
                inside = 0 <= y < height and 0 <= z < width
                wanted = x[i, :, y, z] if inside else torch.zeros(channels)
                assert torch.equal(shifted[i, :, row, column], wanted)


def test_all_shifts_occur_equally_often() -> None:
    x = torch.zeros(4500, 1, 5, 5)
    x[:, 0, 2, 2] = 1
    frequency = random_shift(x, 1, torch.Generator().manual_seed(0)).mean((0, 1))
    assert (frequency[1:4, 1:4] - 1 / 9).abs().max() < 0.02
    assert frequency.sum() == pytest.approx(1)


def test_no_shift_leaves_images_alone() -> None:
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(random_shift(x, 0, torch.Generator()), x)


# ---------------------------------------------------------------------- recipes
SHORT = Recipe(learning_rate=0.05, max_iter=3, batch_size=16, max_shift=1)
TRAINERS = pytest.mark.parametrize("train", [train_victim, train_negative])
Train = Callable[..., Any]


@TRAINERS
def test_a_seed_gives_one_model(digits: Dataset, train: Train) -> None:
    def digest(seed: int, network_seed: int) -> str:
        torch.manual_seed(network_seed)
        return network_digest(network_of(train(small, digits, SHORT, seed, "cpu")))

    with torch.random.fork_rng():
        assert digest(0, 1) == digest(0, 2)
        assert digest(0, 1) != digest(1, 1)


@TRAINERS
def test_the_callers_random_state_is_untouched(digits: Dataset, train: Train) -> None:
    def state() -> tuple[object, ...]:
        keys: Any = np.random.get_state()[1]  # type: ignore[index] # noqa: NPY002 - the global state is what is tested
        return random.getstate(), keys.tobytes(), torch.get_rng_state().numpy().tobytes()

    before = state()
    train(small, digits, SHORT, 0, "cpu")
    assert state() == before


@TRAINERS
def test_trained_models_come_back_ready(digits: Dataset, train: Train) -> None:
    model = train(small, digits, SHORT, 0, "cpu")
    network: Any = network_of(model)
    assert not any(module.training for module in network.modules())
    assert model.input_shape == (1, 8, 8)
    assert model.nb_classes == 10
    assert tuple(model.clip_values) == (0, 1)
    assert network.block1[1].num_batches_tracked > 0


@TRAINERS
def test_training_learns(digits: Dataset, train: Train) -> None:
    recipe = Recipe(learning_rate=0.05, max_iter=60, batch_size=32)
    model = train(small, digits, recipe, 0, "cpu")
    assert (model.predict(digits.x_test).argmax(1) == digits.y_test).mean() > 0.5


@dataclass
class Stage:
    steps: int
    rate: float
    momentum: float
    weight_decay: float
    scheduler: Any
    optimizer: Any
    terms: tuple[str, ...]
    batches: Batches


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """Record what is asked of the training loop, and train nothing."""
    found: list[Stage] = []

    def spy(batches: Any, losses: Any, optimizer: Any, steps: int, scheduler: Any, **_options: Any) -> None:
        group = optimizer.param_groups[0]
        terms = losses(next(iter(batches)))
        found.append(
            Stage(
                steps,
                group["lr"],
                group["momentum"],
                group["weight_decay"],
                scheduler,
                optimizer,
                tuple(terms),
                batches,
            )
        )

    monkeypatch.setattr(recipes, "fit", spy)
    return found


@pytest.mark.parametrize("iterations", [800, 1001])
def test_negatives_follow_the_authors_recipe(digits: Dataset, stages: list[Stage], iterations: int) -> None:
    recipe = Recipe(learning_rate=0.1, max_iter=iterations, batch_size=8, momentum=0.9, weight_decay=1e-3)
    totals, shares, factors = set(), set(), set()
    for seed in range(40):
        stages.clear()
        train_negative(small, digits, recipe, seed, "cpu")
        assert len(stages) == 3
        assert len({id(stage.optimizer) for stage in stages}) == 3
        steps = [stage.steps for stage in stages]
        total = sum(steps)
        assert total in [iterations * k // 100 for k in range(90, 100)]
        borders = [(math.ceil(a / 100 * total), math.ceil((1 - a / 100) * total)) for a in range(20, 40)]
        assert (steps[0], steps[0] + steps[1]) in borders
        for stage, divisor in zip(stages, (1, 10, 100), strict=True):
            factor = stage.rate * divisor / 0.1
            assert 0.8 <= factor < 1.0
            factors.add(round(factor, 9))
            assert (stage.momentum, stage.weight_decay) == (0.9, 1e-3)
            assert stage.scheduler is None
            assert stage.batches is stages[0].batches
        totals.add(total)
        shares.add(steps[0] / total)
    assert len(totals) == 10  # all values of k occur
    assert len(shares) > 15
    assert len(factors) == 120  # every stage draws its own factor


def test_other_stage_divisors(digits: Dataset, stages: list[Stage]) -> None:
    recipe = Recipe(learning_rate=0.1, max_iter=100, stage_divisors=(1, 5, 50))
    train_negative(small, digits, recipe, 0, "cpu")
    assert [0.8 <= stage.rate * d / 0.1 < 1 for stage, d in zip(stages, (1, 5, 50), strict=True)] == [True] * 3


def test_victims_have_one_cosine_stage(digits: Dataset, stages: list[Stage]) -> None:
    train_victim(small, digits, Recipe(0.05, 120, momentum=0.8, weight_decay=5e-3), 0, "cpu")
    (stage,) = stages
    assert (stage.steps, stage.rate, stage.momentum, stage.weight_decay) == (120, 0.05, 0.8, 5e-3)
    assert isinstance(stage.scheduler, torch.optim.lr_scheduler.CosineAnnealingLR)
    assert stage.scheduler.T_max == 120
    assert stage.scheduler.eta_min == 0
    assert stage.terms == ("ce", "l2")


def test_loss_is_cross_entropy_and_linear_l2(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dict[str, torch.Tensor], Any]] = []

    def spy(batches: Any, losses: Any, *_arguments: Any, **_options: Any) -> None:
        batch = next(iter(batches))
        seen.append((losses(batch), batch))

    monkeypatch.setattr(recipes, "fit", spy)
    model = train_victim(small, digits, replace(SHORT, linear_l2=0.03), 0, "cpu")
    ((terms, batch),) = seen
    network: Any = network_of(model)
    head = network.head.requires_grad_(False)
    assert terms["l2"].item() == pytest.approx(0.03 * 0.5 * (head.weight.square().sum() + head.bias.square().sum()))
    with torch.no_grad():
        log_p = network.train()(batch.x).log_softmax(1)
    labels = torch.from_numpy(digits.y_train)[batch.index]
    assert terms["ce"].item() == pytest.approx(-log_p[torch.arange(16), labels].mean().item(), rel=1e-5)


def test_shifts_and_flips_reach_the_batches(digits: Dataset, stages: list[Stage]) -> None:
    ramp = np.broadcast_to(np.linspace(0.1, 1, 8, dtype=np.float32), digits.x_train.shape).copy()
    flipping = replace(digits, x_train=ramp, hflip=True)
    train_victim(small, flipping, replace(SHORT, batch_size=200), 0, "cpu")
    batch = next(iter(stages[0].batches))
    inside = batch.x[:, 0, 1:-1, 1:-1]
    rising = (inside.diff(dim=2) > 0).all((1, 2))
    falling = (inside.diff(dim=2) < 0).all((1, 2))
    assert torch.equal(falling, batch.flipped.bool())
    assert torch.equal(rising, ~falling)
    assert 60 < int(falling.sum()) < 140
    assert ((batch.x == 0).any(3) | (batch.x == 0).any(2)).any(2).any()  # zeros came in


# ---------------------------------------------------------------------- presets
# those of the paper's data sets: test_paper_presets.py
OWN = ("digits", "fashion-mnist")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=NEEDS_FASHION_MNIST if name == "fashion-mnist" else ()) for name in OWN]
)
def test_presets_are_sound(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert preset.reason
    assert preset.nb_references >= 5
    data = load_dataset(preset.dataset)
    network = preset.architecture()
    assert isinstance(network, nn.Module)
    model = recipes.wrap(network, data, "cpu")
    assert model.predict(data.x_test[:3]).shape == (3, data.nb_classes)
    for setting in preset.attacks.values():
        attack = getattr(attacks, setting.attack)(model, seed=0, **setting.params)
        assert attack.hflip is data.hflip
        assert setting.source in ("train", "subset", "apart")
    for verifier, params in preset.verifiers.items():
        getattr(verifiers, verifier)(model, **params)
        assert "seed" not in params


@pytest.mark.parametrize("name", OWN)
def test_attackers_without_true_labels_are_the_removal_attacks(name: str) -> None:
    for label, setting in load_preset(name).attacks.items():
        assert setting.true_labels is (setting.source == "train"), label
        assert (setting.attack == "RemovalNetAttack") is (setting.source != "train")


def test_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match=r"no preset 'digit'; known are .*digits"):
        load_preset("digit")
