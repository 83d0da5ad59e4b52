"""ART data generators as substitute sets: what is read of them, in what batches, and what is refused."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.defences.preprocessor import FeatureSqueezing
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from art_fingerprint.attacks import (
    DistillationAttack,
    FineTuningAttack,
    LayerFineTuningAttack,
    RemovalNetAttack,
    WeightPruningAttack,
)
from art_fingerprint.attacks.substitute import StreamedSet, SubstituteSet
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.cost import CostMeter
from art_fingerprint.core.streams import DataStream, StreamBatches
from art_fingerprint.core.training import Batch
from art_fingerprint.exceptions import InvalidInputError, NonFiniteOutputError
from tests.conformance.attack_cases import close, equal, everything, state
from tests.victims import several_classes

Options = dict[str, Any]
Y = np.arange(1, 41) % 4  # not what the victim says
QUICK: Options = {"max_iter": 4, "batch_size": 16}


class Listed(DataGenerator):
    """Gives the batches of a list, over and over, or until they end."""

    def __init__(self, batches: list[Any], size: int | None = None, endless: bool = True) -> None:
        super().__init__(size, 1)
        self._batches = batches
        self._endless = endless
        self.given = 0

    def get_batch(self) -> Any:
        if self.given >= len(self._batches) and not self._endless:
            raise StopIteration
        batch = self._batches[self.given % len(self._batches)]
        self.given += 1
        if isinstance(batch, Exception):
            raise batch
        return batch


def chunks(x: np.ndarray, y: np.ndarray | None, *sizes: int) -> list[Any]:
    borders = np.cumsum((0, *sizes))
    return [(x[a:b], None if y is None else y[a:b]) for a, b in zip(borders, borders[1:], strict=False)]


def numbered(*sizes: int) -> list[Any]:
    """Batches of samples that are their own number."""
    n = sum(sizes)
    return chunks(np.arange(n, dtype=np.float32)[:, None], np.arange(n) % 4, *sizes)


def stream(generator: DataGenerator) -> DataStream:
    return DataStream(generator, (1,), 4)


# ---------------------------------------------------------------------- the stream
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5,), (2, 7, 1), (30, 30)])
@pytest.mark.parametrize("n", [1, 4, 9])
def test_batches_are_cut_anew_and_every_sample_comes_once(sizes: tuple[int, ...], n: int) -> None:
    source = stream(Listed(numbered(*sizes)))
    taken = [source.take(n) for _ in range(7)]
    total = sum(sizes)
    wanted = np.arange(7 * n) % total
    assert [len(x) for x, _ in taken] == [n] * 7
    assert torch.cat([x for x, _ in taken])[:, 0].tolist() == wanted.tolist()
    assert torch.cat([y for _, y in taken if y is not None]).tolist() == (wanted % 4).tolist()


def test_peeking_takes_nothing() -> None:
    source = stream(Listed(numbered(3, 3)))
    for n in (2, 5, 1):
        assert source.peek(n)[0][:, 0].tolist() == [0, 1, 2, 3, 4][:n]
    assert source.take(2)[0][:, 0].tolist() == [0, 1]
    assert source.peek(2)[0][:, 0].tolist() == [2, 3]


def test_no_more_is_read_than_is_needed() -> None:
    generator = Listed(numbered(5, 5, 5, 5))
    source = stream(generator)
    assert generator.given == 1
    for batches in (1, 2, 3, 4):
        source.take(4)
        assert generator.given == batches


def test_generators_may_fill_one_array_again_and_again() -> None:
    class Reused(DataGenerator):
        def __init__(self) -> None:
            super().__init__(None, 2)
            self._x = np.zeros((2, 1), np.float32)

        def get_batch(self) -> tuple[np.ndarray, None]:
            self._x += 1
            return self._x, None

    assert stream(Reused()).take(6)[0][:, 0].tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("form", [lambda y: np.eye(4)[y], lambda y: y[:, None], lambda y: y.astype(np.float64)])
def test_forms_of_labels(form: Callable[[np.ndarray], np.ndarray]) -> None:
    batches = [(x, form(y)) for x, y in numbered(4, 4)]
    _, y = stream(Listed(batches)).take(6)
    assert y is not None
    assert y.tolist() == [0, 1, 2, 3, 0, 1]


GOOD = numbered(4)[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((np.zeros((0, 1), np.float32), np.zeros(0, int)), "`x of the DataGenerator` is empty"),
        ((np.zeros((4, 2), np.float32), GOOD[1]), r"must have shape \(n, 1\).* got \(4, 2\)"),
        ((np.zeros(4, np.float32), GOOD[1]), r"must have shape \(n, 1\)"),
        ((np.full((4, 1), np.nan, np.float32), GOOD[1]), "4 NaN or infinite"),
        ((np.zeros((4, 1), np.uint8), GOOD[1]), "x / 255"),
        ((torch.zeros(4, 1), GOOD[1]), "NumPy array"),
        ((GOOD[0], np.arange(3)), "one label for each of the 4 samples"),
        ((GOOD[0], np.arange(1, 5)), "labels from 1 to 4"),
        (GOOD[0], r"batches \(x, y\), y may be None; got ndarray"),
        ((GOOD[0],), "got a tuple of 1"),
        (None, "got NoneType"),
        (OSError("no such file"), "failed after .* samples: OSError: no such file"),
    ],
    ids=str,
)
def test_bad_batches(bad: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        stream(Listed([bad]))
    later = stream(Listed([GOOD, bad]))
    assert len(later.take(4)[0]) == 4
    with pytest.raises(InvalidInputError, match=message):
        later.take(1)


def test_generators_that_end() -> None:
    with pytest.raises(InvalidInputError, match="ended after 0 samples"):
        stream(Listed([], endless=False))
    short = stream(Listed(numbered(4, 4), endless=False))
    short.take(5)
    with pytest.raises(InvalidInputError, match="ended after 8 samples, but get_batch.* without end"):
        short.take(5)
    empty = PyTorchDataGenerator(DataLoader(TensorDataset(torch.zeros(0, 1), torch.zeros(0))), 1, 1)
    with pytest.raises(InvalidInputError, match="ended after 0 samples"):
        stream(empty)


@pytest.mark.parametrize("first", [0, 1])
def test_labels_are_given_always_or_never(first: int) -> None:
    batches = [GOOD, (GOOD[0], None)]
    source = stream(Listed([batches[first], batches[1 - first]]))
    assert source.labelled == (first == 0)
    with pytest.raises(InvalidInputError, match="with labels and without"):
        source.take(5)


# ---------------------------------------------------------------------- batches of the stream
def view_of(victim: PyTorchClassifier) -> LogitsNetwork:
    view = LogitsNetwork(victim, "logits")
    view.network.eval()
    return view


def drawn(batches: Any, n: int) -> list[Batch]:
    return [batch for _, batch in zip(range(n), batches, strict=False)]


def test_flips_have_a_seed_and_come_before_preprocessing(images: np.ndarray) -> None:
    columns = np.linspace(0, 1, 8, dtype=np.float32)
    victim = several_classes(images, preprocessing=(columns, columns + 1))
    preprocess = LogitsNetwork(victim).preprocess  # not the same for a mirror image

    def made(seed: int) -> list[Batch]:
        source = DataStream(NumpyDataGenerator(images, Y, 10), (1, 8, 8), 4)
        return drawn(StreamBatches(source, preprocess, 20, torch.device("cpu"), seed, hflip=True), 4)

    batches = made(1)
    for k, batch in enumerate(batches):
        raw = torch.from_numpy(images[(20 * k) % 40 :][:20])
        wanted = torch.where(batch.flipped.bool()[:, None, None, None], raw.flip(-1), raw)
        assert torch.equal(batch.x, preprocess(wanted))
        assert 0 < batch.flipped.sum() < 20
        assert batch.index.numel() == 0
    flips = [batch.flipped.tolist() for batch in batches]
    assert flips == [batch.flipped.tolist() for batch in made(1)]
    assert flips != [batch.flipped.tolist() for batch in made(2)]


def sets(victim: PyTorchClassifier, images: np.ndarray, y: np.ndarray | None, hflip: bool) -> tuple[Any, Any]:
    """The same data whole and as a stream."""
    labels = None if y is None else torch.from_numpy(y)
    whole = SubstituteSet(torch.from_numpy(images), labels, view_of(victim), 16, hflip)
    source = DataStream(Listed(chunks(images, y, 13, 27), size=40), (1, 8, 8), 4)
    return whole, StreamedSet(source, view_of(victim), 16, hflip, CostMeter())


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_victims_answers_are_those_of_the_tables(labelled: bool, hflip: bool, images: np.ndarray) -> None:
    victim = several_classes(images)
    whole, streamed = sets(victim, images, Y if labelled else None, hflip)
    for k, batch in enumerate(drawn(streamed.batches(3), 4)):
        twin = Batch(batch.x, torch.arange(16 * k, 16 * k + 16) % 40, batch.flipped)
        assert torch.allclose(streamed.victim_logits_of(batch), whole.victim_logits_of(twin), atol=1e-5)
        assert torch.equal(streamed.victim_labels_of(batch), whole.victim_labels_of(twin))
        assert torch.equal(streamed.labels_of(batch), whole.labels_of(twin))
        rows = whole.labels(hflip)[twin.flipped, twin.index]
        assert torch.equal(whole.labels_of(twin), rows)
    assert whole.queries == (80 if hflip else 40)
    assert streamed.queries == 4 * 16 * (2 if labelled else 3)


def test_examples_are_the_first_samples(images: np.ndarray) -> None:
    whole, streamed = sets(several_classes(images), images, Y, True)
    for n in (2, 16):
        a, b = whole.example(n), streamed.example(n)
        assert torch.equal(a.x, b.x)
        assert torch.equal(whole.labels_of(a), streamed.labels_of(b))
        assert not a.flipped.any()
        assert len(b.flipped) == n


def test_what_a_stream_cannot_give_is_refused(images: np.ndarray) -> None:
    _, streamed = sets(several_classes(images), images, Y, False)
    for ask in (
        lambda: streamed.x,
        lambda: streamed.y,
        lambda: streamed.labels(False),
        lambda: streamed.victim_labels(False),
        lambda: streamed.victim_probabilities(False),
    ):
        with pytest.raises(InvalidInputError, match="pass `x` .*no DataGenerator"):
            ask()
    with pytest.raises(InvalidInputError, match="`keep` needs the whole .* leave `keep` at its default"):
        streamed.needs_array("keep")


def test_epochs_need_a_size(images: np.ndarray) -> None:
    for size, batches in ((40, 3), (48, 3), (49, 4)):
        source = DataStream(Listed(chunks(images, Y, 40), size=size), (1, 8, 8), 4)
        assert len(StreamedSet(source, view_of(several_classes(images)), 16, False, CostMeter()).batches(0)) == batches
    source = DataStream(Listed(chunks(images, Y, 40)), (1, 8, 8), 4)
    endless = StreamedSet(source, view_of(several_classes(images)), 16, False, CostMeter())
    with pytest.raises(InvalidInputError, match="does not say its size.*`max_iter`"):
        len(endless.batches(0))


# ---------------------------------------------------------------------- attacks
@pytest.mark.parametrize("labels", [None, Y], ids=["victim's labels", "labels"])
@pytest.mark.parametrize(
    "attack",
    [
        functools.partial(FineTuningAttack, ratio=1.0),
        WeightPruningAttack,
        DistillationAttack,
        functools.partial(LayerFineTuningAttack, optimizer="sgd"),
    ],
    ids=["FineTuning", "WeightPruning", "Distillation", "LayerFineTuning"],
)
@pytest.mark.parametrize("defended", [False, True])
def test_whole_batches_give_what_the_array_gives(
    attack: Callable[..., Any], labels: np.ndarray | None, defended: bool, images: np.ndarray
) -> None:
    """With all samples in every batch their order does not count, and stream and array must agree."""
    options: Options = {"preprocessing_defences": FeatureSqueezing((0.0, 1.0), bit_depth=3)} if defended else {}
    squeezed = np.rint(images * 7).astype(np.float32) / 7
    victim = several_classes(squeezed if defended else images, **options)
    one = attack(victim, max_iter=4, batch_size=40, hflip=False)
    streamed = one.generate(Listed(chunks(images, labels, 11, 29), size=40))
    assert close(streamed, one.generate(images, labels), 1e-5)


@pytest.mark.parametrize("kind", ["loader", "numpy", "endless"])
def test_generators_of_every_kind(kind: str, images: np.ndarray) -> None:
    victim = several_classes(images)
    makers: dict[str, Callable[[], DataGenerator]] = {
        "loader": lambda: PyTorchDataGenerator(
            DataLoader(TensorDataset(torch.from_numpy(images), torch.from_numpy(Y)), 7, shuffle=True), 40, 7
        ),
        "numpy": lambda: NumpyDataGenerator(images, Y, 7, shuffle=True),
        "endless": lambda: Listed(chunks(images, Y, 7, 33)),
    }
    before = everything(victim)
    one = RemovalNetAttack(victim, "block2", shuffle_ratio=0.3, inner_steps=2, **QUICK)
    with torch.random.fork_rng():
        generator = makers[kind]()
        first = one.generate(generator)
    assert everything(victim) == before
    assert first.surrogate_info["samples"] == (None if kind == "endless" else 40)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert equal(first, one.generate(makers[kind]()))  # shuffled by the attack's seed
    assert not equal(
        first, RemovalNetAttack(victim, "block2", shuffle_ratio=0.3, **QUICK, seed=1).generate(makers[kind]())
    )


def test_a_set_that_does_not_fit_is_never_held(images: np.ndarray) -> None:
    """A billion samples: only the batches of the steps are drawn."""

    class Huge(DataGenerator):
        def __init__(self) -> None:
            super().__init__(10**9, 32)
            self.given = 0
            self.rng = np.random.default_rng(0)

        def get_batch(self) -> tuple[np.ndarray, None]:
            self.given += 32
            return self.rng.random((32, 1, 8, 8), dtype=np.float32), None

    generator = Huge()
    surrogate = FineTuningAttack(several_classes(images), **QUICK).generate(generator)
    assert generator.given == 64
    assert surrogate.surrogate_info["samples"] == 10**9
    assert surrogate.surrogate_info["victim_queries"] == 64
    generator.given = 0
    attack = RemovalNetAttack(several_classes(images), "block2", shuffle_ratio=0.3, inner_steps=1, **QUICK)
    info = attack.generate(generator).surrogate_info
    assert generator.given == 64
    assert info["victim_queries"] == 16 + 8 + 64  # check of the classes, check of the latent, four batches


def test_labels_of_the_generator_or_the_victims(images: np.ndarray) -> None:
    victim = several_classes(images)
    told = FineTuningAttack(victim, **QUICK, hflip=False)
    asked = FineTuningAttack(victim, **QUICK, hflip=False, use_victim_labels=True)
    says = victim.predict(images).argmax(1)
    mine = told.generate(Listed(chunks(images, Y, 40)))
    assert mine.surrogate_info["victim_queries"] == 0
    theirs = told.generate(Listed(chunks(images, None, 40)))
    assert theirs.surrogate_info["victim_queries"] == 64
    assert equal(theirs, told.generate(Listed(chunks(images, says, 40))))
    assert equal(theirs, asked.generate(Listed(chunks(images, Y, 40))))
    assert not equal(theirs, mine)
    with pytest.raises(InvalidInputError, match="`y` must be None with a DataGenerator"):
        told.generate(Listed(chunks(images, Y, 40)), Y)


def test_a_victim_that_answers_nan(images: np.ndarray) -> None:
    victim = several_classes(images)
    with torch.no_grad():
        victim.model.head.bias[0] = torch.nan
    for attack in (FineTuningAttack, RemovalNetAttack):
        with pytest.raises(NonFiniteOutputError, match="answered 16 of 16 samples with NaN"):
            attack(victim, **QUICK).generate(Listed(chunks(images, None, 40)))


def test_statistics_are_recalibrated_on_the_stream(images: np.ndarray) -> None:
    victim = several_classes(images)
    attack = functools.partial(RemovalNetAttack, victim, "block2", shuffle_ratio=0.3, inner_steps=1, **QUICK)
    plain = attack().generate(Listed(chunks(images, Y, 40)))
    again = attack(bn_recalibrate=3).generate(Listed(chunks(images, Y, 40)))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), again.model.parameters(), strict=True))
    assert not equal(plain, again)


def test_epochs_over_a_generator(images: np.ndarray) -> None:
    attack = LayerFineTuningAttack(several_classes(images), nb_epochs=2, batch_size=16)
    assert attack.generate(Listed(chunks(images, Y, 40), size=40)).surrogate_info["max_iter"] == 6
    with pytest.raises(InvalidInputError, match="does not say its size"):
        attack.generate(Listed(chunks(images, Y, 40)))


def test_a_generator_of_one_class(images: np.ndarray) -> None:
    victim = several_classes(images)
    one = images[victim.predict(images).argmax(1) == 1]
    sorted_by_class = images[victim.predict(images).argmax(1).argsort()]
    attack = functools.partial(RemovalNetAttack, victim, "block2", shuffle_ratio=0.3, inner_steps=1, max_iter=2)
    with pytest.raises(InvalidInputError, match=r"all 8 first samples of the DataGenerator \(does it shuffle.*class 0"):
        attack(batch_size=8).generate(Listed(chunks(sorted_by_class, None, 40)))
    with pytest.warns(UserWarning, match="sees 1 of 4 classes in it and puts 100% into one") as record:
        attack(batch_size=8, allow_degenerate=True).generate(Listed(chunks(one, None, len(one))))
    assert record[0].filename == __file__


def test_fewer_samples_than_a_batch(images: np.ndarray) -> None:
    victim = several_classes(images)
    with pytest.warns(UserWarning, match="only 40 samples; batch_size is reduced from 64 to 40") as record:
        surrogate = FineTuningAttack(victim, batch_size=64, max_iter=3).generate(Listed(chunks(images, Y, 40), size=40))
    assert record[0].filename == __file__
    assert surrogate.surrogate_info["cost"]["surrogate"]["forward"] == 120
    with pytest.raises(InvalidInputError, match=r"BatchNorm.*1 sample\(s\)"):
        FineTuningAttack(victim, max_iter=3).generate(Listed(chunks(images, Y, 1), size=1))


def test_values_outside_clip_values_warn_once(images: np.ndarray) -> None:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        FineTuningAttack(several_classes(images), **QUICK).generate(Listed(chunks(images * 2, Y, 20, 20)))
    assert [("outside the classifier's clip_values" in str(w.message)) for w in record] == [True]
    assert record[0].filename == __file__


@pytest.mark.parametrize("after", [0, 1])
def test_a_generator_that_fails_leaves_the_victim_alone(after: int, images: np.ndarray) -> None:
    victim = several_classes(images)
    victim.model.train()
    before = everything(victim)
    steps: list[int] = []
    good = chunks(images, Y, 40)
    generator = Listed([*good * after, OSError("disk")])
    with pytest.raises(InvalidInputError, match=f"failed after {40 * after} samples: OSError: disk"):
        FineTuningAttack(victim, **QUICK, callback=lambda step, *_: steps.append(step)).generate(generator)
    assert steps == [0] * after  # nothing is trained on a generator that fails at once
    assert everything(victim) == before


def test_workers_of_a_loader(images: np.ndarray) -> None:
    """Batches that other processes read; the order is the loader's."""

    class Lazy(torch.utils.data.IterableDataset[tuple[Tensor, int]]):
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            return zip(torch.from_numpy(images), Y.tolist(), strict=True)

    attack = FineTuningAttack(several_classes(images), **QUICK)
    with torch.random.fork_rng():
        loader = PyTorchDataGenerator(DataLoader(Lazy(), 16, num_workers=1), 40, 16)
        found = attack.generate(loader)
    assert close(found, attack.generate(Listed(chunks(images, Y, 16, 16, 8))), 0.0)
    assert all(tensor.isfinite().all() for tensor in state(found).values())
