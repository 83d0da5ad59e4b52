"""Derived generators and the fork of the global random state."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from art_fingerprint.core.seeding import derive_seed, forked_random_state, numpy_generator, torch_generator

PINNED = 7958856190608717080


def draw() -> tuple[float, float, float]:
    """Draw once from each global generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_derived_seeds_depend_on_all_parts_and_are_pinned() -> None:
    assert derive_seed(0, "noise") == derive_seed(0, "noise")
    seeds = [
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "noise"),
        derive_seed(0, "masks"),
        derive_seed(0, "noise", 1),
        derive_seed(0, "noise", 2),
        derive_seed(0, "noise1"),
        derive_seed(0, "noise", "masks"),
        derive_seed(0, "masks", "noise"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "noise", 1) == derive_seed(0, "noise", "1")
    assert derive_seed(np.int64(7), "a") == derive_seed(7, "a")  # type: ignore[arg-type]
    # fingerprints made by one version must be made again by the next
    assert derive_seed(0, "noise") == PINNED


def test_generators_are_independent_of_each_other_and_of_the_global_state() -> None:
    torch.manual_seed(0)
    first = torch.rand(5, generator=torch_generator(3, "noise"))
    torch.manual_seed(1)
    assert torch.equal(torch.rand(5, generator=torch_generator(3, "noise")), first)
    assert not torch.equal(torch.rand(5, generator=torch_generator(3, "masks")), first)
    assert not torch.equal(torch.rand(5, generator=torch_generator(4, "noise")), first)
    assert np.array_equal(numpy_generator(3, "noise").random(5), numpy_generator(3, "noise").random(5))
    assert not np.array_equal(numpy_generator(3, "noise").random(5), numpy_generator(3, "masks").random(5))


def test_generators_leave_the_global_state_alone() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = draw()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    torch.rand(5, generator=torch_generator(3, "noise"))
    numpy_generator(3, "noise").random(5)
    assert draw() == expected


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_fork_gives_the_callers_state_back(seed: int | None, error: type[BaseException] | None) -> None:
    def run(block: Callable[[], None]) -> tuple[float, float, float]:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        block()
        return draw()

    def forked() -> None:
        with forked_random_state(seed, "test"):
            draw()
            if error is not None:
                raise error

    def block() -> None:
        if error is None:
            forked()
        else:
            with pytest.raises(error):
                forked()

    assert run(block) == run(lambda: None)


def test_a_seeded_block_does_not_depend_on_the_callers_state() -> None:
    draws = []
    for state in (0, 1):
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        with forked_random_state(5, "test"):
            draws.append(draw())
    assert draws[0] == draws[1]
    with forked_random_state(5, "other"):
        assert draw() != draws[0]
    with forked_random_state(6, "test"):
        assert draw() != draws[0]


def test_an_unseeded_block_starts_from_the_callers_state() -> None:
    torch.manual_seed(0)
    with forked_random_state():
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), inside)


def test_forks_may_be_nested() -> None:
    with forked_random_state(5):
        first = draw()
        with forked_random_state(6):
            draw()
        second = draw()
    with forked_random_state(5):
        assert (draw(), draw()) == (first, second)
