"""The layer cut on small networks: right numbers, what is refused, and that the network is left as it was."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from art_fingerprint.core.cut import LayerCut, Method
from art_fingerprint.core.graph import split_graph
from art_fingerprint.core.taps import tap
from art_fingerprint.exceptions import FingerprintError, LayerCutError, LayerNotFoundError
from tests.conftest import TinyCNN

METHODS: tuple[Method, ...] = ("graph", "hooks")
CNN_LAYERS = ("block1", "block1.0", "block1.1", "block2", "block2.1", "block3", "block3.2", "pool", "head")


class Base(nn.Module):
    """conv -> mid -> fc; subclasses say how the three are put together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.mid = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def top(self, z: Tensor) -> Tensor:
        return self.fc(self.mid(z).tanh().mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.conv(x))


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + x)


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block1 = ResidualBlock(4)
        self.block2 = ResidualBlock(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block2(self.block1(self.stem(x))).mean((2, 3)))


class DenseNet(nn.Module):
    """Each layer sees the outputs of all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 2, 3, padding=1)
        self.layers = nn.ModuleList([nn.Conv2d(2 * (k + 1), 2, 3, padding=1) for k in range(3)])
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.conv0(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)).tanh())
        return self.fc(torch.cat(found, 1).mean((2, 3)))


class ReusedReLU(Base):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.mid(self.relu(self.relu(self.conv(x))))).mean((2, 3)))


class ReusedBlock(Base):
    """The layer itself is called once per call of its parent, and the parent is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.block(self.block(self.conv(x))))


class Unused(Base):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(4, 4, 1)


class Ignored(Base):
    """``extra`` runs, but the output does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        self.extra(z)
        return self.top(z)


class Detached(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.conv(x).detach())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(8, 5, batch_first=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x.squeeze(1))
        return self.fc(output[:, -1])


class Rounding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


class IntegerLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.choose = Rounding()
        self.table = nn.Embedding(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(self.choose(self.conv(x))).mean((1, 2))


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


class Mixing(Base):
    """A layer whose output has no sample axis."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = BatchMean()

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        return self.top(z - self.mean(z))


class TupleOutput(Base):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z = self.conv(x)
        return self.top(z), z


class Branching(Base):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        if x.mean() > 0.5:
            z = 2 * z
        return self.top(z)


class BranchingLeaf(Base):
    """The same inside a module that need not be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Branching()
        self.after = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.conv(x)[:, :1]))


class InputShape(Base):
    """The tail reads sizes of the input."""

    def forward(self, x: Tensor) -> Tensor:
        nb, _, height, width = x.shape
        return self.fc(self.mid(self.conv(x)).reshape(nb, -1, height * width).mean(2))


class LatentShape(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = self.mid(self.conv(x))
        return self.fc(z.view(z.size(0), z.shape[1], -1).mean(-1))


class ShapeBranch(Base):
    """A branch on a traced size is impossible: hooks."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.mid(self.conv(x))
        return self.fc(z.mean((2, 3)) if z.shape[2] > 1 else z.flatten(1))


class IntegerShape(Base):
    """``int`` of a traced size is impossible: hooks."""

    def forward(self, x: Tensor) -> Tensor:
        nb = int(x.shape[0])
        return self.fc(self.mid(self.conv(x)).reshape(nb, 4, -1).mean(2))


class Optional(Base):
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        flip: bool = False,
        sizes: tuple[int, ...] = (1, 2),
        act: Callable[[Tensor], Tensor] = torch.tanh,
        *,
        scale: float = 2.0,
    ) -> Tensor:
        z = self.conv(x)
        if mask is not None:
            z = z * mask
        if flip:
            z = z.flip(3)
        return scale * self.top(act(z) * sizes[1])


class AnyArguments(Base):
    def forward(self, *inputs: Tensor, **options: Any) -> Tensor:
        return self.top(self.conv(inputs[0]))


class FunctionalDropout(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = F.dropout(self.conv(x), 0.5, self.training)
        return F.dropout(self.top(z), 0.5, training=self.training)


class ModuleDropout(nn.Module):
    """Dropout on both sides of the cut and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.mid = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mid(self.drop(self.bn(self.conv(x)))).mean((2, 3)))


class RootTensors(Base):
    """Parameters and buffers of the root on both sides of the cut."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(4, 1, 1))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("offset", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.conv(x - 0.5) + self.shift) / self.temperature + self.offset


class FrozenBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.backbone(x)
        return self.fc(z.tanh().mean((2, 3)))


class Talkative(Base):
    """Keeps values on itself and uses constants made in the forward pass."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.features = self.conv((x - torch.tensor([0.5])) / torch.full((1,), 0.25))
        return self.top(self.features)


class WholeWrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Base()

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - 0.5) / 0.25)


def build(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Return a seeded network in evaluation mode with BatchNorm statistics away from their start values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind()
        if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            network(torch.rand(32, 1, 8, 8))
    return network.eval()


def inputs(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def noise_like(z: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=z.dtype)


def nb_hooks(network: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in network.modules() for kind in kinds)


def snapshot(network: nn.Module) -> dict[str, object]:
    """Everything about a network that a cut must leave alone."""
    return {
        "hooks": nb_hooks(network),
        "training": [module.training for module in network.modules()],
        "attributes": [sorted(vars(module)) for module in network.modules()],
        "tensors": {name: (id(t), t.tolist()) for name, t in network.state_dict(keep_vars=True).items()},
        "requires_grad": [parameter.requires_grad for parameter in network.parameters()],
        "grad": [parameter.grad is None for parameter in network.parameters()],
    }


def gradient(tail: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.detach().clone().requires_grad_(True)
    output = tail(leaf)
    weights = torch.linspace(-1, 2, output.shape[1])  # not constant: softmax-like networks would have no gradient
    return torch.autograd.grad((output * weights).sum(), leaf)[0]


def check_exact(network: nn.Module, cut: LayerCut, x: Tensor) -> None:
    """g(h(x)) is f(x), and away from h(x) the tail agrees with the hooks in value and gradient."""
    with torch.no_grad():
        z, output = cut.forward(x)
        torch.testing.assert_close(output, network(x), rtol=0, atol=0)
        torch.testing.assert_close(z, tap(network, cut.layer, x), rtol=0, atol=0)
        torch.testing.assert_close(cut.tail_for(x)(z), output)
    other = LayerCut(network, cut.layer, x, method="hooks").tail_for(x)
    moved = z + 0.3 * noise_like(z)
    torch.testing.assert_close(cut.tail_for(x)(moved), other(moved))
    slope = gradient(other, moved)
    assert slope.abs().max() > 0
    torch.testing.assert_close(gradient(cut.tail_for(x), moved), slope)


# ---------------------------------------------------------------------- right numbers
@pytest.mark.parametrize("layer", CNN_LAYERS)
@pytest.mark.parametrize("method", METHODS)
def test_cnn_is_cut_at_every_layer(layer: str, method: Method) -> None:
    network = build(TinyCNN)
    cut = LayerCut(network, layer, inputs(), method=method)
    assert cut.method == method
    assert cut.nb_side_inputs == 0
    check_exact(network, cut, inputs(5, seed=2))


@pytest.mark.parametrize("method", METHODS)
def test_latent_and_tail_are_those_written_out_by_hand(method: Method) -> None:
    network = build(TinyCNN)
    assert isinstance(network, TinyCNN)
    x = inputs()
    cut = LayerCut(network, "block2", x, method=method)

    def written_out(z: Tensor) -> Tensor:
        return network.head(network.pool(network.block3(z)).flatten(1))

    z, output = cut.forward(x)
    torch.testing.assert_close(z, network.block2(network.block1(x)), rtol=0, atol=0)
    torch.testing.assert_close(output, written_out(z), rtol=0, atol=0)
    moved = z.detach() + noise_like(z)
    torch.testing.assert_close(cut.tail_for(x)(moved), written_out(moved), rtol=0, atol=0)
    torch.testing.assert_close(gradient(cut.tail_for(x), moved), gradient(written_out, moved), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "layer"), [(Base, "conv"), (ResidualNet, "block1.conv1"), (DenseNet, "layers.1"), (ResidualNet, "stem")]
)
def test_gradient_of_the_tail_agrees_with_finite_differences(
    kind: Callable[[], nn.Module], layer: str, method: Method
) -> None:
    network = build(kind).double()
    x = inputs(2)[:, :, :4, :4].double()
    cut = LayerCut(network, layer, x, method=method)
    with torch.no_grad():
        z, _ = cut.forward(x)
    assert torch.autograd.gradcheck(cut.tail_for(x), (z + 0.1 * noise_like(z)).requires_grad_(True))


@pytest.mark.parametrize("kind", [LatentShape, Optional, AnyArguments, FunctionalDropout, RootTensors, BranchingLeaf])
def test_unusual_roots_are_cut_in_the_graph(kind: Callable[[], nn.Module], recwarn: pytest.WarningsRecorder) -> None:
    network = build(kind)
    cut = LayerCut(network, "conv", inputs(), method="graph")
    assert cut.nb_side_inputs == 0
    check_exact(network, cut, inputs(5, seed=2))
    assert not list(recwarn)


def test_root_sequential_is_cut_by_number() -> None:
    network = build(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(108, 4)))
    for layer in ("0", "1", "2", "3"):
        cut = LayerCut(network, layer, inputs(), method="graph")
        check_exact(network, cut, inputs(5, seed=2))


def test_layer_names_that_start_alike_are_told_apart() -> None:
    network = nn.Sequential(*[nn.Linear(8, 8) for _ in range(12)])
    x = torch.rand(3, 8)
    z, _ = LayerCut(network, "1", x, method="graph").forward(x)
    torch.testing.assert_close(z, network[1](network[0](x)))
    check_exact(network, LayerCut(network, "10", x, method="graph"), x)


@pytest.mark.parametrize("method", METHODS)
def test_cut_at_the_classifier_gives_logits(method: Method) -> None:
    network = build(TinyCNN)
    cut = LayerCut(network, "head", inputs(), method=method)
    z, output = cut.forward(inputs())
    assert torch.equal(z, output)
    torch.testing.assert_close(cut.tail_for(inputs())(z + 1), z + 1, rtol=0, atol=0)


def test_classifier_of_one_layer_may_be_cut() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    check_exact(network, LayerCut(network, "1", inputs(), method="graph"), inputs())


@pytest.mark.parametrize("method", METHODS)
def test_other_batch_sizes_than_the_example(method: Method) -> None:
    for kind, layer in ((TinyCNN, "block2"), (ResidualNet, "block1.conv1"), (InputShape, "conv")):
        network = build(kind)
        cut = LayerCut(network, layer, inputs(30), method=method)
        for count in (1, 3, 11):
            check_exact(network, cut, inputs(count, seed=count))


def test_a_network_that_is_a_graph_module_is_cut() -> None:
    network = fx.symbolic_trace(build(TinyCNN))
    check_exact(network, LayerCut(network, "block1.1", inputs(), method="graph"), inputs())


# ---------------------------------------------------------------------- side inputs
@pytest.mark.parametrize(
    ("kind", "layer", "count"),
    [
        (ResidualNet, "stem", 0),
        (ResidualNet, "block1", 0),
        (ResidualNet, "block1.conv1", 1),
        (ResidualNet, "block1.bn1", 1),
        (ResidualNet, "block2.conv2", 1),
        (DenseNet, "conv0", 0),
        (DenseNet, "layers.0", 1),
        (DenseNet, "layers.1", 2),
        (DenseNet, "layers.2", 3),
        (InputShape, "conv", 2),
    ],
)
def test_side_inputs(kind: Callable[[], nn.Module], layer: str, count: int, caplog: pytest.LogCaptureFixture) -> None:
    network = build(kind)
    x = inputs()
    with caplog.at_level(logging.INFO, logger="art_fingerprint"):
        cut = LayerCut(network, layer, x, method="graph")
    assert cut.nb_side_inputs == count
    assert ("side input" in caplog.text) == bool(count)
    check_exact(network, cut, x)
    for method in METHODS:
        # Sizes of the input are side inputs of a graph; by running the network they cannot be told from constants.
        if count and not (kind is InputShape and method == "hooks"):
            with pytest.raises(LayerCutError, match="further tensor"):
                LayerCut(network, layer, x, require_single_tensor=True, method=method)
        else:
            LayerCut(network, layer, x, require_single_tensor=True, method=method)


def test_single_tensor_is_also_required_where_hooks_are_the_only_way() -> None:
    network = build(IntegerShape)
    assert LayerCut(network, "conv", inputs(), require_single_tensor=True).method == "hooks"

    class Skip(IntegerShape):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.mean((1, 2, 3))[:, None]

    with pytest.raises(LayerCutError, match="further tensor"):
        LayerCut(build(Skip), "conv", inputs(), require_single_tensor=True)


@pytest.mark.parametrize("method", METHODS)
def test_side_inputs_belong_to_the_inputs_of_the_tail_and_stay_constant(method: Method) -> None:
    network = build(ResidualNet)
    assert isinstance(network, ResidualNet)
    x = inputs(4, seed=5)
    cut = LayerCut(network, "block1.conv2", inputs(), method=method)
    tail = cut.tail_for(x)
    skip = network.stem(x).detach()

    def written_out(z: Tensor) -> Tensor:
        return network.fc(network.block2(F.relu(z + skip)).mean((2, 3)))

    z = noise_like(skip)
    for _ in range(3):  # a tail that kept what an in-place operation left would drift
        torch.testing.assert_close(tail(z), written_out(z), rtol=0, atol=0)
    torch.testing.assert_close(gradient(tail, z), gradient(written_out, z), rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_side_input_that_is_written_in_place_does_not_drift(method: Method) -> None:
    class Accumulating(Base):
        def forward(self, x: Tensor) -> Tensor:
            total = self.conv(x)
            total = total.add_(self.mid(total.tanh()))
            return self.fc(total.mean((2, 3)))

    network = build(Accumulating)
    x = inputs()
    cut = LayerCut(network, "mid", x, method=method)
    z, output = cut.forward(x)
    tail = cut.tail_for(x)
    for _ in range(3):
        torch.testing.assert_close(tail(z), output)


# ---------------------------------------------------------------------- in-place operations
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kind", "layer"), [(TinyCNN, "block2.1"), (ResidualNet, "block1.bn1")])
def test_in_place_operation_after_the_cut_changes_neither_latent_nor_argument(
    kind: Callable[[], nn.Module], layer: str, method: Method
) -> None:
    network = build(kind)
    x = inputs()
    cut = LayerCut(network, layer, x, method=method)
    z, _ = cut.forward(x)
    assert z.min() < 0
    torch.testing.assert_close(z, tap(network, layer, x), rtol=0, atol=0)
    leaf = z.detach().clone().requires_grad_(True)
    before = leaf.detach().clone()
    cut.tail_for(x)(leaf).sum().backward()
    assert torch.equal(leaf, before)
    assert leaf.grad is not None


def _relu(z: Tensor) -> None:
    z.relu_()


def _functional_relu(z: Tensor) -> None:
    F.relu(z, inplace=True)


def _torch_relu(z: Tensor) -> None:
    torch.relu_(z)


def _clamp(z: Tensor) -> None:
    z.clamp_(-3.0, 3.0)  # does nothing to the examples, so comparing outputs cannot show that it is missing


@pytest.mark.parametrize("write", [_relu, _functional_relu, _torch_relu, _clamp])
@pytest.mark.parametrize("where", ["before", "after"])
def test_in_place_operation_whose_result_is_not_used_is_kept(write: Callable[[Tensor], None], where: str) -> None:
    class InPlace(Base):
        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            write(z)
            return self.top(z)

    network = build(InPlace)
    assert isinstance(network, InPlace)
    layer = "conv" if where == "after" else "mid"
    cut = LayerCut(network, layer, inputs(), method="graph")
    check_exact(network, cut, inputs())
    if where == "after":
        z = 50 * noise_like(cut.forward(inputs())[0])
        written = z.clone()
        write(written)
        torch.testing.assert_close(cut.tail_for(inputs())(z), network.top(written))


def test_in_place_module_whose_result_is_not_used_is_kept() -> None:
    class InPlace(Base):
        def __init__(self) -> None:
            super().__init__()
            self.relu6 = nn.ReLU6(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(x)
            self.relu6(z)
            return self.top(z)

    network = build(InPlace)
    assert isinstance(network, InPlace)
    x = inputs()
    cut = LayerCut(network, "conv", x, method="graph")
    z = 50 * noise_like(cut.forward(x)[0])
    torch.testing.assert_close(cut.tail_for(x)(z), network.top(F.relu6(z)))


# ---------------------------------------------------------------------- the fallback
@pytest.mark.parametrize("level", [0.2, 0.8])
def test_control_flow_on_data_falls_back_to_hooks(level: float, caplog: pytest.LogCaptureFixture) -> None:
    network = build(Branching)
    assert isinstance(network, Branching)
    x = inputs() * 0.1 + level
    with caplog.at_level(logging.INFO, logger="art_fingerprint"):
        cut = LayerCut(network, "conv", x)
    assert cut.method == "hooks"
    assert "using hooks" in caplog.text
    factor = 2.0 if level > 0.5 else 1.0
    z, output = cut.forward(x)
    torch.testing.assert_close(output, network(x), rtol=0, atol=0)
    moved = z.detach() + noise_like(z)
    torch.testing.assert_close(cut.tail_for(x)(moved), network.top(factor * moved), rtol=0, atol=0)
    torch.testing.assert_close(
        gradient(cut.tail_for(x), moved), gradient(lambda v: network.top(factor * v), moved), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", [Branching, IntegerShape, ShapeBranch])
def test_graph_alone_is_refused_where_tracing_is_impossible(kind: Callable[[], nn.Module]) -> None:
    network = build(kind).train()
    before = snapshot(network)
    with pytest.raises(LayerCutError, match="cannot be traced around 'conv'"):
        LayerCut(network, "conv", inputs(), method="graph")
    assert snapshot(network) == before
    cut = LayerCut(network, "conv", inputs())
    assert cut.method == "hooks"
    check_exact(network.eval(), cut, inputs())


def test_graph_that_does_not_reproduce_the_network_is_not_used() -> None:
    network = build(Base)
    handle = network.register_forward_hook(lambda _module, _inputs, output: 2 * output)  # roots' hooks are not traced
    with pytest.warns(UserWarning, match="does not reproduce"):
        cut = LayerCut(network, "conv", inputs())
    assert cut.method == "hooks"
    check_exact(network, cut, inputs())
    with pytest.raises(LayerCutError, match="does not reproduce"):
        LayerCut(network, "conv", inputs(), method="graph")
    handle.remove()
    assert LayerCut(network, "conv", inputs()).method == "graph"


@pytest.mark.parametrize("layer", ["backbone", "backbone.0"])
def test_network_with_its_own_no_grad_block_is_cut(layer: str) -> None:
    network = build(FrozenBackbone)
    x = inputs()
    cut = LayerCut(network, layer, x, method="graph")
    check_exact(network, cut, x)


@pytest.mark.parametrize("method", METHODS)
def test_grad_mode_is_followed_and_kept(method: Method) -> None:
    network = build(TinyCNN)
    x = inputs()
    with torch.no_grad():
        cut = LayerCut(network, "block2", x, method=method)
        assert not torch.is_grad_enabled()
        z, _ = cut.forward(x)
        assert not cut.tail_for(x)(z.requires_grad_(True)).requires_grad
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert cut.tail_for(x)(z).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "layer", "above"),
    [(TinyCNN, "block2", ("block3", "head")), (ResidualNet, "block1.conv2", ("block2", "fc"))],
)
def test_tail_records_no_gradient_in_the_head(
    kind: Callable[[], nn.Module], layer: str, above: tuple[str, ...], method: Method
) -> None:
    network = build(kind)
    cut = LayerCut(network, layer, inputs(), method=method)
    z, _ = cut.forward(inputs())
    cut.tail_for(inputs())(z.detach()).sum().backward()
    got = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in network.named_parameters() if name.startswith(above)}


# ---------------------------------------------------------------------- refused
@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        (ReusedReLU, "relu", "called 3 times"),
        (ReusedBlock, "block", "called 2 times"),
        (ReusedBlock, "block.0", "called 2 times"),
        (Unused, "extra", "not used by the forward pass"),
        (DenseNet, "layers", "not used by the forward pass"),
        (Ignored, "extra", "does not depend on layer 'extra'"),
        (Detached, "conv", "does not depend on layer 'conv'"),
        (Recurrent, "rnn", "returns tuple, not one tensor"),
        (IntegerLayer, "choose", "torch.int64"),
        (IntegerLayer, "conv", "does not depend"),
        (Mixing, "mean", r"shape \(1, 4, 8, 8\) for 4 samples"),
        (TupleOutput, "conv", "network returns tuple.*wrap"),
        (WholeWrapped, "model", "whole network"),
    ],
)
def test_refused_layers(kind: Callable[[], nn.Module], layer: str, message: str, method: Method) -> None:
    network = build(kind).train()
    before = snapshot(network)
    with pytest.raises(LayerCutError, match=message) as error:
        LayerCut(network, layer, inputs(), method=method)
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, FingerprintError)
    assert layer in str(error.value) or kind is TupleOutput
    assert snapshot(network) == before


def test_refusal_lists_stages() -> None:
    with pytest.raises(LayerCutError, match="Stages of this network: conv, mid, fc"):
        LayerCut(build(ReusedReLU), "relu", inputs())


@pytest.mark.parametrize(
    ("layer", "near"), [("", "block1"), ("blok2", "block2"), ("block2.9", "block2"), ("Head", "head"), ("ü", "block1")]
)
def test_unknown_layers_get_near_names(layer: str, near: str) -> None:
    with pytest.raises(LayerNotFoundError, match=near) as error:
        LayerCut(build(TinyCNN), layer, inputs())
    assert repr(layer) in str(error.value)


# ---------------------------------------------------------------------- sharing and cost
@pytest.mark.parametrize(("kind", "layer"), [(TinyCNN, "block1.1"), (ResidualNet, "block1.bn1"), (RootTensors, "conv")])
def test_both_parts_share_the_parameters_and_buffers(kind: Callable[[], nn.Module], layer: str) -> None:
    network = build(kind)
    head, tail, _ = split_graph(network, layer)
    own = {id(parameter) for parameter in network.parameters()}
    in_head = {id(parameter) for parameter in head.parameters()}
    in_tail = {id(parameter) for parameter in tail.parameters()}
    assert in_head | in_tail == own
    assert not in_head & in_tail
    storages = {buffer.data_ptr() for buffer in network.buffers()}
    parts = [*head.named_buffers(), *tail.named_buffers()]
    assert all(buffer.data_ptr() in storages for name, buffer in parts if "_tensor_constant" not in name)


@pytest.mark.parametrize("kind", [TinyCNN, RootTensors])
def test_tail_follows_an_optimiser_step_and_load_state_dict(kind: Callable[[], nn.Module]) -> None:
    network = build(kind)
    layer = "block2" if kind is TinyCNN else "conv"
    x = inputs()
    cut = LayerCut(network, layer, x, method="graph")
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    first = cut.tail_for(x)(cut.forward(x)[0]).detach()
    network(x).square().sum().backward()
    optimiser.step()
    second = cut.tail_for(x)(cut.forward(x)[0]).detach()
    assert not torch.allclose(first, second)
    check_exact(network, cut, x)
    other = build(kind, seed=9)
    network.load_state_dict(other.state_dict())
    torch.testing.assert_close(cut.tail_for(x)(cut.forward(x)[0]), other(x), rtol=0, atol=0)


def test_a_deep_copy_is_cut_independently() -> None:
    network = build(TinyCNN)
    LayerCut(network, "block2", inputs())
    twin = copy.deepcopy(network)
    cut = LayerCut(twin, "block2", inputs())
    with torch.no_grad():
        network.get_parameter("head.weight").zero_()
    check_exact(twin, cut, inputs())


@pytest.mark.parametrize(("kind", "layer", "first"), [(TinyCNN, "block2", "block1.0"), (ResidualNet, "block1", "stem")])
def test_tail_never_runs_the_head(kind: Callable[[], nn.Module], layer: str, first: str) -> None:
    network = build(kind)
    x = inputs()
    cut = LayerCut(network, layer, x, method="graph")
    z, _ = cut.forward(x)
    calls: list[int] = []
    handle = network.get_submodule(first).register_forward_hook(lambda *_: calls.append(1))
    tail = cut.tail_for(x)
    for _ in range(3):
        gradient(tail, z)
    assert not calls
    cut.forward(x)
    handle.remove()
    assert len(calls) == 1


def test_side_inputs_cost_one_head_pass_for_each_batch() -> None:
    network = build(ResidualNet)
    x = inputs()
    cut = LayerCut(network, "block2.conv1", x, method="graph")
    z, _ = cut.forward(x)
    calls: list[int] = []
    handle = network.get_submodule("stem").register_forward_hook(lambda *_: calls.append(1))
    tail = cut.tail_for(x)
    assert len(calls) == 1
    for _ in range(3):
        gradient(tail, z)
    handle.remove()
    assert len(calls) == 1


# ---------------------------------------------------------------------- the network is left as it was
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "layer"),
    [(TinyCNN, "block2.0"), (ResidualNet, "block1.conv1"), (ModuleDropout, "bn"), (RootTensors, "conv")],
)
def test_network_inputs_and_rng_are_untouched(kind: Callable[[], nn.Module], layer: str, method: Method) -> None:
    network = build(kind).train()
    next(network.children()).eval()
    next(network.parameters()).requires_grad_(False)
    before, x, state = snapshot(network), inputs(), torch.get_rng_state()
    cut = LayerCut(network, layer, x, method=method)
    assert snapshot(network) == before
    assert torch.equal(x, inputs())
    assert torch.equal(torch.get_rng_state(), state)
    network.eval()
    before = snapshot(network)
    z, _ = cut.forward(x)
    gradient(cut.tail_for(x), z)
    assert snapshot(network) == before


def test_tracing_leaves_no_attributes_on_the_network() -> None:
    network = build(Talkative)
    assert isinstance(network, Talkative)
    network(inputs())
    names = sorted(vars(network))
    cut = LayerCut(network, "conv", inputs(), method="graph")
    assert sorted(vars(network)) == names
    assert type(network.features) is Tensor
    assert type(network.calls) is int
    copy.deepcopy({name: value for name, value in vars(network).items() if name != "features"})
    check_exact(network, cut, inputs())


def test_tracing_leaves_no_attributes_on_opened_modules() -> None:
    network = build(lambda: nn.Sequential(nn.Identity(), nn.Sequential(Talkative(), nn.Tanh()), nn.Linear(3, 3)))
    inner = network.get_submodule("1.0")
    network(inputs())
    names = sorted(vars(inner))
    cut = LayerCut(network, "1.0.conv", inputs(), method="graph")
    assert sorted(vars(inner)) == names
    assert type(inner.features) is Tensor
    check_exact(network, cut, inputs())


@pytest.mark.parametrize("method", METHODS)
def test_at_most_eight_examples_are_run(method: Method) -> None:
    network = build(TinyCNN)
    sizes: list[int] = []
    handle = network.get_submodule("block1.0").register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    LayerCut(network, "block2", inputs(20), method=method)
    handle.remove()
    assert set(sizes) == {8}
    assert len(sizes) <= 4


class Fragile(Base):
    broken = False

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        if self.broken:
            raise ZeroDivisionError
        return self.top(z)


def test_hooks_and_flags_are_kept_after_an_exception() -> None:
    network = build(Fragile).train()
    assert isinstance(network, Fragile)
    network.mid.eval()
    x = inputs()
    cut = LayerCut(network, "conv", x, method="hooks")
    graph = LayerCut(network, "conv", x, method="graph")
    z, _ = cut.forward(x)
    before = snapshot(network)
    with pytest.raises(RuntimeError):
        cut.tail_for(x)(z[:, :2])
    with pytest.raises(RuntimeError):
        graph.tail_for(x)(z[:, :2])
    assert snapshot(network) == before
    network.broken = True
    before = snapshot(network)
    with pytest.raises(ZeroDivisionError):
        cut.forward(x)
    with pytest.raises(ZeroDivisionError):
        cut.tail_for(x)(z)
    with pytest.raises(ZeroDivisionError):
        LayerCut(network, "conv", x)
    assert snapshot(network) == before
    assert torch.is_grad_enabled()


# ---------------------------------------------------------------------- training passes
@pytest.mark.parametrize("kind", [ModuleDropout, FunctionalDropout, TinyCNN])
def test_forward_in_train_mode_is_one_plain_training_pass(kind: Callable[[], nn.Module]) -> None:
    network = build(kind)
    twin = copy.deepcopy(network).train()
    layer = {ModuleDropout: "bn", FunctionalDropout: "conv", TinyCNN: "block2"}[kind]  # type: ignore[index]
    cut = LayerCut(network, layer, inputs())
    network.train()
    for step in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(step)
            z, output = cut.forward(inputs(6, seed=step))
            torch.manual_seed(step)
            expected = twin(inputs(6, seed=step))
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        (output.square().sum() + z.square().sum()).backward()
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(network.get_buffer(name), buffer, rtol=0, atol=0)
    assert all(module.training for module in network.modules())


def test_each_training_pass_moves_batch_norm_once() -> None:
    network = build(TinyCNN)
    cut = LayerCut(network, "block2", inputs())
    counter = network.get_buffer("block1.1.num_batches_tracked")
    start = int(counter)
    cut.tail_for(inputs())(cut.forward(inputs())[0])
    assert int(counter) == start
    network.train()
    cut.forward(inputs())
    assert int(counter) == start + 1


def test_latent_of_a_training_pass_carries_gradients_to_the_head_alone() -> None:
    network = build(TinyCNN)
    cut = LayerCut(network, "block2.1", inputs())
    network.train()
    z, _ = cut.forward(inputs())
    z.square().sum().backward()
    got = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in network.named_parameters() if name.startswith(("block1", "block2"))}
