"""BatchNorm folded into the convolutions of a tail: same numbers, taken over when asked, nothing else touched."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.folding import FoldedConv
from art_fingerprint.core.frozen_cut import FrozenCut
from tests.conftest import TinyCNN
from tests.victims import TinyTokens


class Head(nn.Module):
    """A stem to cut behind, a body, and a classifier. All tests cut at ``stem``."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = body[0] if len(body) == 1 else nn.Sequential(*body)
        self.pool, self.top = nn.AdaptiveAvgPool2d(1), nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.pool(self.body(self.stem(x))).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))))


class PreActivation(Residual):
    """BatchNorm before the first convolution: only the second BatchNorm has a convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class ReadTwice(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.bn1(y) + y


class OneConvTwoNorms(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.bn2(self.conv1(2 * x))


class OneNormTwoConvs(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.bn1(self.conv2(x))


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


class Training(Residual):
    """Reads the mode: the inner steps are in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Counting(Residual):
    """Leaves attributes behind, on itself and on a part."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.shape
        self.bn1.last = self.conv1(x)
        return F.relu(self.bn1(self.conv1(x)) + torch.tensor(0.5))


def conv(channels: int = 4, **options: object) -> nn.Conv2d:
    return nn.Conv2d(4, channels, 3, **options)


def weight_norm_by_hook() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(conv())


def spectral_norm_by_hook() -> nn.Module:
    return nn.utils.spectral_norm(conv())


def build(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().to(dtype)
        network.train()(torch.rand(16, 1, 8, 8, dtype=dtype) - 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.uniform_(module.weight, -1, 2)
                nn.init.normal_(module.bias)
    return network.eval()


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)


def check(network: nn.Module, layer: str, folded: int) -> FrozenCut:
    """Values and gradients away from h(x) are those of the plain tail; weights, flags and attributes stay."""
    x = inputs(next(network.parameters()).dtype)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attributes = [(sorted(vars(module)), module.training) for module in network.modules()]
    cut = FrozenCut(network, layer, x)
    assert cut.method == "graph"
    assert cut.nb_folded == folded
    with torch.no_grad():
        z, _ = cut.forward(x)
    moved = z + 0.3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
    found = []
    for tail in (cut.tail_for(x), LayerCut(network, layer, x).tail_for(x)):
        leaf = moved.clone().requires_grad_(True)
        output = tail(leaf)
        weights = torch.linspace(-1, 2, output.shape[1], dtype=output.dtype)
        found.append((output, *torch.autograd.grad((output * weights).sum(), leaf)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert found[0][1].abs().max() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [(sorted(vars(module)), module.training) for module in network.modules()] == attributes
    return cut


@pytest.mark.parametrize(
    ("body", "folded"),
    [
        (lambda: [conv(), nn.BatchNorm2d(4), nn.ReLU()], 1),
        (lambda: [conv(bias=False), nn.BatchNorm2d(4, affine=False), nn.ReLU(inplace=True)], 1),
        (lambda: [conv(8, groups=2, stride=2, padding=2, padding_mode="reflect"), nn.BatchNorm2d(8)], 1),
        (lambda: [conv(), nn.BatchNorm2d(4), conv(6), nn.BatchNorm2d(6)], 2),
        (lambda: [conv(), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())], 1),
        (lambda: [conv(), BatchNormAct2d(4)], 1),
        (lambda: [conv(), BatchNormAct2d(4, act_layer=nn.GELU)], 1),
        (lambda: [nn.BatchNorm2d(4), nn.ReLU(), conv()], 0),
        (lambda: [conv(), nn.ReLU(), nn.BatchNorm2d(4)], 0),
        (lambda: [conv(), nn.BatchNorm2d(4, track_running_stats=False)], 0),
        (lambda: [conv(), nn.GroupNorm(2, 4)], 0),
        (lambda: [nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)], 0),
        (lambda: [conv(), OwnNorm(4)], 0),
        (lambda: [OwnConv(4, 4, 3), nn.BatchNorm2d(4)], 0),
        (lambda: [weight_norm_by_hook(), nn.BatchNorm2d(4)], 0),
        (lambda: [spectral_norm_by_hook(), nn.BatchNorm2d(4)], 0),
        (lambda: [nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(4)], 0),
        (lambda: [Residual()], 2),
        (lambda: [Residual(), Residual(), conv(), nn.BatchNorm2d(4)], 5),
        (lambda: [nn.Sequential(Residual(), nn.Sequential(Residual(), nn.ReLU()))], 4),
        (lambda: [PreActivation()], 1),
        (lambda: [ReadTwice()], 0),
        (lambda: [OneConvTwoNorms()], 2),
        (lambda: [OneNormTwoConvs()], 2),
        (lambda: [Training()], 2),
        (lambda: [Counting()], 1),
        (lambda: [Branching()], 0),
        (lambda: [Residual(), Branching()], 0),  # the body is one layer, and one of its blocks cannot be traced
    ],
)
def test_convolutions_with_a_batch_norm_of_their_own_are_folded(
    body: Callable[[], list[nn.Module]], folded: int
) -> None:
    check(build(lambda: Head(nn.Sequential(*body()), nn.Identity())), "stem", folded)


@pytest.mark.parametrize(
    ("layer", "folded"), [("block1", 2), ("block1.0", 2), ("block1.1", 2), ("block2.0", 1), ("block3", 0)]
)
def test_the_batch_norm_behind_the_cut_itself_stays(layer: str, folded: int) -> None:
    """Cut between a convolution and its BatchNorm (``block1.0``), that BatchNorm is the tail's first layer."""
    check(build(TinyCNN), layer, folded)


def test_convolutions_of_other_dimensions_are_folded() -> None:
    class Lines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.conv, self.bn, self.top = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.top(self.bn(self.conv(self.stem(x).flatten(2))).mean(2))

    check(build(Lines), "stem", 1)


def test_there_is_nothing_to_fold_in_tokens_or_behind_hooks() -> None:
    with torch.random.fork_rng():
        tokens = TinyTokens().double().eval()
    assert check(tokens, "block2", 0).parts is not None
    network, x = build(TinyCNN), inputs()
    cut = FrozenCut(network, "block1", x, method="hooks")
    assert (cut.nb_folded, cut.parts) == (0, None)
    with torch.no_grad():
        z, output = cut.forward(x)
        assert torch.equal(cut.tail_for(x)(z), output)


def test_side_inputs_go_with_folding() -> None:
    class Around(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv2(self.bn1(self.conv1(x)))) + x

    cut = check(build(lambda: Head(Around())), "body.bn1", 1)
    assert cut.nb_side_inputs == 1


def test_weights_are_taken_over_when_a_tail_is_asked_for() -> None:
    network, x = build(TinyCNN), inputs()
    cut = FrozenCut(network, "block1", x)
    with torch.no_grad():
        z, before = cut.forward(x)
        old = cut.tail_for(x)
        for module in (network.block2, network.block3):
            module[0].weight.mul_(1.3)
            module[1].weight.add_(0.2)
            module[1].running_mean.add_(0.1)
            module[1].running_var.mul_(1.7)
        torch.testing.assert_close(old(z), before)  # what it returned keeps its weights
        after = network(x)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(cut.tail_for(x)(z), after, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(old(z), after)  # ... until the next one is asked for


def test_memory_of_folded_weights_stays_in_place_and_order() -> None:
    network = build(lambda: Head(conv(), nn.BatchNorm2d(4))).to(memory_format=torch.channels_last)
    cut = FrozenCut(network, "stem", inputs())
    folded = next(module for module in cut.parts[1].modules() if isinstance(module, FoldedConv))  # type: ignore[index]
    place = folded.weight.data_ptr(), folded.bias.data_ptr()
    assert folded.weight.is_contiguous(memory_format=torch.channels_last)
    cut.tail_for(inputs())
    assert (folded.weight.data_ptr(), folded.bias.data_ptr()) == place
    assert not folded.weight.requires_grad
    assert not folded.state_dict().keys() & {"weight", "bias"}
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for parameter in cut.parts[1].parameters()} <= own  # type: ignore[index]


def test_a_fold_that_changes_the_output_is_undone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network, x = build(TinyCNN), inputs()
    monkeypatch.setattr(FoldedConv, "forward", lambda self, x: 1.1 * self.conv(x))
    with caplog.at_level(logging.INFO, "art_fingerprint"):
        cut = FrozenCut(network, "block1", x)
    assert cut.nb_folded == 0
    assert "Folding BatchNorm behind block1 changes the output" in caplog.text
    with torch.no_grad():
        z, output = cut.forward(x)
        torch.testing.assert_close(cut.tail_for(x)(z), output)


def test_folding_is_equal_to_one_part_in_a_hundred_thousand_in_float32() -> None:
    network, x = build(TinyCNN, torch.float32), inputs(torch.float32)
    cut = FrozenCut(network, "block1", x)
    with torch.no_grad():
        z, output = cut.forward(x)
        torch.testing.assert_close(cut.tail_for(x)(z), output, rtol=1e-5, atol=1e-5)
