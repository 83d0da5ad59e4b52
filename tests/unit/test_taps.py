"""Reading one layer: the right values, nothing above it run, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from art_fingerprint.core.taps import get_layer, tap
from art_fingerprint.exceptions import LayerNotFoundError
from tests.conftest import TinyCNN


@pytest.fixture
def network() -> TinyCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = TinyCNN()
        made(torch.rand(32, 1, 8, 8))
    return made.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_values_of_nested_layers(network: TinyCNN, x: Tensor) -> None:
    block1, block2 = network.block1, network.block2
    for layer, expected in [
        ("block1.0", block1[0](x)),
        ("block1", block1(x)),
        ("block2.1", block2[1](block2[0](block1(x)))),  # an in-place ReLU follows: the copy must not be rectified
        ("block2.2", block2(block1(x))),
        ("pool", network.pool(network.block3(block2(block1(x))))),
        ("head", network(x)),
    ]:
        assert torch.equal(tap(network, layer, x), expected), layer
    assert tap(network, "block2.1", x).min() < 0


def test_layers_above_are_not_run(network: TinyCNN, x: Tensor) -> None:
    calls: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in network.named_modules()
    ]
    tap(network, "block2.0", x)
    for handle in handles:
        handle.remove()
    assert calls == ["block1.0", "block1.1", "block1.2", "block1", "block2.0"]


def test_forward_of_a_sequential_subclass_is_respected(x: Tensor) -> None:
    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            for module in reversed(self):
                x = module(x)
            return x

    network = Reversed(nn.Linear(64, 3), nn.Flatten())
    assert torch.equal(tap(network, "0", x), network[0](x.flatten(1)))


def test_gradients_flow_where_they_are_enabled(network: TinyCNN, x: Tensor) -> None:
    leaf = x.clone().requires_grad_(True)
    tap(network, "block2", leaf).sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.any())
    assert network.head.weight.grad is None
    with torch.no_grad():
        assert not tap(network, "block2", leaf).requires_grad


@pytest.mark.parametrize("train", [False, True])
def test_network_and_inputs_are_untouched(network: TinyCNN, x: Tensor, train: bool) -> None:
    network.train(train)
    network.block1.eval()
    flags = [module.training for module in network.modules()]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = x.clone()
    tap(network, "block1.1", x)
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(x, before)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("layer", "near"),
    [("", "block1"), ("blok2", "block2"), ("block1.7", "block1.0"), ("Pool", "pool"), ("zzz", "block1")],
)
@pytest.mark.parametrize("function", [get_layer, lambda network, layer: tap(network, layer, torch.rand(1, 1, 8, 8))])
def test_unknown_layers_get_near_names(
    network: TinyCNN, layer: str, near: str, function: Callable[[nn.Module, str], object]
) -> None:
    with pytest.raises(LayerNotFoundError, match=near) as error:
        function(network, layer)
    assert repr(layer) in str(error.value)


def test_layers_that_cannot_be_read_leave_no_hook(x: Tensor) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 5, batch_first=True)
            self.fc = nn.Linear(5, 3)
            self.unused = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x.squeeze(1))[0][:, -1])

    network = Odd()
    with pytest.raises(LayerNotFoundError, match="returns tuple"):
        tap(network, "rnn", x)
    with pytest.raises(LayerNotFoundError, match="not reached"):
        tap(network, "unused", x)
    with pytest.raises(RuntimeError):
        tap(network, "fc", x[:, :, :, :3])
    assert not any(module._forward_hooks for module in network.modules())
