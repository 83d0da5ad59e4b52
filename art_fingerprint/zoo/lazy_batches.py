"""Training and attacks on images that do not fit in memory."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from art.data_generators import DataGenerator
from torch import Tensor

from art_fingerprint.core.checks import check_number, check_seed
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.core.training import Batch, Batches
from art_fingerprint.evaluation.fidelity import predicted_labels
from art_fingerprint.zoo.lazy_images import LazyImages

_AHEAD = 2


def training_images(x: np.ndarray | LazyImages) -> Tensor:
    """Return what :class:`.Batches` takes as data: the tensor of an array, or a stand-in that decodes each batch."""
    return cast(Tensor, _TensorOf(x)) if isinstance(x, LazyImages) else torch.from_numpy(x)


class _TensorOf:
    """The few abilities of a host tensor that batches need; it stays on the host whatever is asked."""

    def __init__(self, images: LazyImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self._images[index.cpu().numpy()])

    def numel(self) -> int:
        return int(np.prod(self._images.shape))

    def element_size(self) -> int:
        return self._images.dtype.itemsize

    def to(self, _device: object) -> _TensorOf:
        return self

    def pin_memory(self) -> _TensorOf:
        return self


class Prefetched:
    """The batches of another object, made in a thread while the last one is worked on. Same batches, same order.

    What was made ahead and not taken leaves no trace: the next iteration starts as if it had not been made.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        generator = self._batches._generator
        state = generator.get_state()
        ready: queue.Queue[tuple[Batch, Tensor] | Exception] = queue.Queue(_AHEAD)
        stopped = threading.Event()

        def put(item: tuple[Batch, Tensor] | Exception) -> None:
            while not stopped.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    break

        def work() -> None:
            try:
                for batch in self._batches:
                    put((batch, generator.get_state()))
                    if stopped.is_set():
                        break
            except Exception as error:  # for the reader of the batches
                put(error)

        thread = threading.Thread(target=work, name="prefetch", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                batch, state = item
                yield batch
        finally:
            stopped.set()
            thread.join()
            generator.set_state(state)


class ImageStream(DataGenerator):
    """An ART ``DataGenerator`` over a data set, for ``attack.generate()`` on images that do not fit in memory.

    Each epoch has every image once, in an order of its own. Memory: one batch.

    :param images: Images ``(n, C, H, W)``, :class:`.LazyImages` or an array.
    :param labels: Class indices ``(n,)``; ``None``: the attack asks the victim.
    :param batch_size: Images in a batch; the last of an epoch may be smaller.
    :param seed: Seed of the order.
    """

    def __init__(
        self, images: np.ndarray | LazyImages, labels: np.ndarray | None = None, batch_size: int = 128, seed: int = 0
    ) -> None:
        check_number("batch_size", batch_size, 1, integer=True)
        check_seed(seed)
        super().__init__(size=len(images), batch_size=min(batch_size, len(images)))
        self._images, self._labels = images, labels
        self._draw = numpy_generator(seed, "image stream")
        self._order = np.arange(0)

    def get_batch(self) -> tuple[Any, ...]:
        """Return the next ``(x, y)``; y may be ``None``."""
        if not len(self._order):
            self._order = self._draw.permutation(len(self._images))
        index, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return self._images[index], None if self._labels is None else self._labels[index]


def labels_in_chunks(classifier: Any, images: np.ndarray | LazyImages, chunk: int = 2048) -> np.ndarray:
    """Return a classifier's labels ``(n,)``, decoding ``chunk`` images at a time. Cost: n forward samples."""
    parts = [predicted_labels(classifier, images[start : start + chunk]) for start in range(0, len(images), chunk)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
