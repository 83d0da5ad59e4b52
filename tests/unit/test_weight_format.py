"""Convolution weights in channels-last order for a while: values, objects and the order come back."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.core.weight_format import channels_last, equal_but_for_rounding, weights_in
from tests.conftest import TinyCNN

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(kind: type[nn.Module] = TinyCNN, **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).train()


def is_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


class Viewing(nn.Module):
    """Reshapes with ``view``, which refuses channels-last activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.top = nn.Conv2d(3, 4, 3), nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.conv(x).view(len(x), -1))


class Peeking(Viewing):
    """Its output depends on the order in memory."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.top(torch.as_strided(y, (len(x), 144), (144, 1)))


def test_weights_change_order_and_nothing_else() -> None:
    model = network(channels=3)
    before = [(id(p), p.stride(), p.detach().clone()) for p in model.parameters()]
    with weights_in(model, torch.channels_last):
        assert all(is_last(p) for p in model.parameters() if p.ndim == 4)
        assert model.block1[0].weight.stride() != before[0][1]
        with weights_in(model, torch.contiguous_format):  # for a moment
            assert all(p.is_contiguous() for p in model.parameters())
        assert is_last(model.block1[0].weight)
        assert all(torch.equal(p, value) for p, (_, _, value) in zip(model.parameters(), before, strict=True))
        with torch.no_grad():
            model.block1[0].weight.add_(1)
    for parameter, (name, stride, _) in zip(model.parameters(), before, strict=True):
        assert (id(parameter), parameter.stride()) == (name, stride)
    torch.testing.assert_close(model.block1[0].weight, before[0][2] + 1)  # what was trained meanwhile stays


def test_an_order_of_its_own_comes_back_also_after_an_error() -> None:
    model = network(channels=3).to(memory_format=torch.channels_last)

    def fail() -> None:
        assert model.block1[0].weight.is_contiguous()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), weights_in(model, torch.contiguous_format):
        fail()
    assert is_last(model.block1[0].weight)
    assert not model.block1[0].weight.is_contiguous()


def test_training_in_channels_last_is_training() -> None:
    found = []
    for format in (torch.channels_last, torch.contiguous_format):
        model = network(channels=3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        with weights_in(model, format):
            for _ in range(3):
                optimizer.zero_grad()
                model(X).square().sum().backward()
                optimizer.step()
        found.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_activations_follow_the_weights() -> None:
    model = network(channels=3)
    flags = [module.training for module in model.modules()]
    statistics = model.block1[1].running_mean.clone()
    with channels_last(model, X):
        assert [module.training for module in model.modules()] == flags
        assert is_last(model.block1[0].weight)
        z = model.block2(model.block1(X))
        assert is_last(z)
        assert not z.is_contiguous()
        assert torch.equal(model.block1[1].running_mean != statistics, torch.ones(6, dtype=torch.bool))
    assert model.block1[0].weight.is_contiguous()


@pytest.mark.parametrize(("kind", "reason"), [(Viewing, "view size"), (Peeking, "the output depends on it")])
def test_networks_that_do_not_bear_it_stay_as_they_are(
    kind: type[nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = network(kind)
    expected = model(X)
    with caplog.at_level(logging.INFO, "art_fingerprint"), channels_last(model, X):
        assert model.conv.weight.is_contiguous()
        assert torch.equal(model(X), expected)
    assert reason in caplog.text


def test_networks_without_convolutions_are_not_even_run() -> None:
    calls: list[int] = []
    model = nn.Linear(3, 2)
    model.register_forward_hook(lambda *_: calls.append(1))
    with channels_last(model, torch.rand(2, 3)):
        model(torch.rand(2, 3))
    assert len(calls) == 1


def test_what_counts_as_rounding() -> None:
    a = torch.tensor([[100.0, 0.0]])
    assert equal_but_for_rounding(a + 0.09, a)
    assert not equal_but_for_rounding(a + 0.11, a)
    assert not equal_but_for_rounding(a[:, :1], a)
    assert not equal_but_for_rounding(a * float("nan"), a)
