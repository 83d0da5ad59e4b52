"""Data sets that do not fit in memory: an endless source of checked samples over an ART ``DataGenerator``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from art.data_generators import DataGenerator
from torch import Tensor

from art_fingerprint.core.checks import check_images, check_labels, check_number
from art_fingerprint.core.classifier import Preprocessing
from art_fingerprint.core.seeding import torch_generator
from art_fingerprint.core.training import Batch
from art_fingerprint.exceptions import InvalidInputError

_NAME = "x of the DataGenerator"


class DataStream:
    """Samples of an ART ``DataGenerator`` in its own order, cut into batches of any size. Every sample is used once.

    Only the generator's latest batches are held. Each is checked as an array is: a bad one raises when it is read. The
    generator goes on where it stopped; the same samples again need a new one.

    :param generator: Gives ``(x, y)`` without end: x ``(m, *input_shape)`` float arrays, y indices ``(m,)``, one-hot
        rows, or ``None``.
    :param input_shape: Shape of one sample.
    :param nb_classes: Number of classes.
    :param clip_values: The first batch is compared with them.
    :ivar size: Number of different samples, if the generator says so.
    :raises InvalidInputError: the first batch is bad.
    """

    def __init__(
        self, generator: DataGenerator, input_shape: tuple[int, ...], nb_classes: int, clip_values: object = None
    ) -> None:
        self.size: int | None = generator.size
        if self.size is not None:
            check_number("size of the DataGenerator", self.size, 1, integer=True)
        self._generator = generator
        self._input_shape = input_shape
        self._nb_classes = nb_classes
        self._drawn = 0
        self._x, self._y = self._read(clip_values)

    @property
    def labelled(self) -> bool:
        """Whether labels come with the samples."""
        return self._y is not None

    def peek(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Return the next n samples ``(n, *input_shape)`` and their labels ``(n,)``; they will be returned again.

        :raises InvalidInputError: the generator fails, ends, or gives a bad batch.
        """
        xs, ys, found = [self._x], [self._y], len(self._x)
        while found < n:
            x, y = self._read(None)
            xs.append(x)
            ys.append(y)
            found += len(x)
        if len(xs) > 1:
            self._x = torch.cat(xs)
            self._y = None if self._y is None else torch.cat([y for y in ys if y is not None])
        return self._x[:n], None if self._y is None else self._y[:n]

    def take(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Return the next n samples and their labels, like :meth:`peek`, and move on."""
        x, y = self.peek(n)
        self._x = self._x[n:]
        self._y = None if self._y is None else self._y[n:]
        return x, y

    def _read(self, clip_values: object) -> tuple[Tensor, Tensor | None]:
        try:
            batch = self._generator.get_batch()
        except StopIteration as error:
            raise InvalidInputError(
                f"The DataGenerator ended after {self._drawn} samples, but get_batch() must go on without end: start "
                "over where the data ends."
            ) from error
        except Exception as error:  # whatever the user's loader raises
            raise InvalidInputError(
                f"The DataGenerator failed after {self._drawn} samples: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise InvalidInputError(
                f"The DataGenerator must give batches (x, y), y may be None; got {_described(batch)}."
            )
        # a copy: generators may fill one buffer again and again
        x = torch.from_numpy(check_images(batch[0], self._input_shape, clip_values, _NAME)).clone()
        y = batch[1]
        if self._drawn and (y is not None) != self.labelled:
            raise InvalidInputError(
                f"The DataGenerator gave batches with labels and without (after {self._drawn} samples); all or none "
                "must have them."
            )
        labels = None if y is None else check_labels(y, len(x), self._nb_classes, "y of the DataGenerator")
        self._drawn += len(x)
        return x, None if labels is None else torch.from_numpy(labels)


def _described(batch: object) -> str:
    kind = type(batch).__name__
    return f"a {kind} of {len(batch)}" if isinstance(batch, tuple | list) else kind


class StreamBatches:
    """Endless mini-batches of a stream, in the form of :class:`.Batches`: ``index`` is empty, ``y`` the labels given.

    The order is the generator's; flips have a seed of their own and come before preprocessing, which runs per batch.

    :param stream: Where samples come from. Several of these objects share it, and each sample goes to one of them.
    :param preprocess: The classifier's preprocessing.
    :param batch_size: Samples in a batch.
    :param device: Where batches are needed.
    :param seed: Seed of the flips.
    :param hflip: Mirror each sample left to right with probability 1/2.
    """

    def __init__(
        self,
        stream: DataStream,
        preprocess: Preprocessing,
        batch_size: int,
        device: torch.device,
        seed: int,
        hflip: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.device = device
        self._stream = stream
        self._preprocess = preprocess
        self._hflip = hflip
        self._generator = torch_generator(seed, "batches")

    def __len__(self) -> int:
        """Return the number of batches in which every sample comes once.

        :raises InvalidInputError: the generator does not say its size.
        """
        if self._stream.size is None:
            raise InvalidInputError(
                "The DataGenerator does not say its size, so that epochs cannot be counted: give it one, or set "
                "`max_iter`."
            )
        return math.ceil(self._stream.size / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            x, y = self._stream.take(self.batch_size)
            x = self._moved(x)
            flipped = torch.zeros(len(x), dtype=torch.long)
            if self._hflip:
                flipped = torch.randint(2, (len(x),), generator=self._generator)
            flipped = flipped.to(self.device, non_blocking=True)
            if self._hflip:
                x = torch.where(flipped.bool().view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
            yield Batch(self._preprocess(x), flipped[:0], flipped, None if y is None else self._moved(y))

    def _moved(self, tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if self.device.type == "cuda" else tensor
        return pinned.to(self.device, non_blocking=True)
