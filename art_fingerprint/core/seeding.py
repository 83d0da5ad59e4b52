"""Derived random generators, and a scope in which the caller's global random state is kept.

One seed stands behind every run. Each purpose (shuffling, noise, masks, ...) gets its own generator, derived from that
seed and the purpose's name, so that adding a draw in one place does not move the draws of another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on ``seed`` and every part of ``purpose`` and on nothing else."""
    text = "\x1f".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator on ``device`` for one purpose."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a NumPy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))


@contextmanager
def forked_random_state(seed: int | None = None, *purpose: str | int) -> Iterator[None]:
    """Run a block on its own global random state; Python's, NumPy's and torch's come back afterwards, errors included.

    Needed around everything that draws from a global generator: dropout, weight initialisation, third-party attacks.

    :param seed: Seed of the block's state. ``None`` keeps the current state as the starting point.
    :param purpose: Names mixed into the seed, as in :func:`derive_seed`.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - this is the state of the caller that we protect
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                value = derive_seed(seed, *purpose)
                random.seed(value)
                np.random.seed(value % 2**32)  # noqa: NPY002
                torch.manual_seed(value)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
