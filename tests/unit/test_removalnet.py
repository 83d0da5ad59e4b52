"""An iteration of RemovalNet: counted passes, precision, compiled tails, memory order, tokens."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import timm
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from art_fingerprint.attacks import RemovalNetAttack, removalnet_run
from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.core.folding import FoldedConv
from art_fingerprint.core.frozen_cut import FrozenCut
from tests.conftest import TinyCNN, wrap
from tests.states import random_states, state_of
from tests.victims import several_classes, token_classifier

OPTIONS: dict[str, Any] = {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 5, "max_iter": 3, "batch_size": 20}


def tensors(classifier: PyTorchClassifier) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in classifier.model.state_dict().values()]


def close(a: PyTorchClassifier, b: PyTorchClassifier, tolerance: float) -> bool:
    return all(
        torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance)
        for x, y in zip(tensors(a), tensors(b), strict=True)
    )


# ---------------------------------------------------------------------- counted passes
class Counts:
    """Counts, by hooks on one layer of the head and one of the tail, what passes through them from step 0 on."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, step: int, surrogate: PyTorchClassifier, _losses: Mapping[str, float]) -> None:
        if step == 0:
            for part, layer in (("head", "block1.0"), ("tail", "head")):
                surrogate.model.get_submodule(layer).register_forward_hook(self._listener(part))

    def _listener(self, part: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def listen(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.seen[f"{part} forward {'train' if module.training else 'eval'}"] += 1
            if output.requires_grad:
                weights = any(parameter.requires_grad for parameter in module.parameters())
                kind = f"{part} backward {'full' if weights else 'to z'}"
                output.register_hook(lambda _gradient: self.seen.update([kind]))

        return listen


class Convolutions(TorchDispatchMode):
    """Counts convolutions run forward, and backward by whether the weight's gradient was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.seen["forward"] += 1
        if func is torch.ops.aten.convolution_backward.default:
            wanted = list(args[-1])
            self.seen["to the input alone" if wanted == [True, False, False] else f"with weights {wanted[1]}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("inner_steps", [0, 1, 5])
def test_one_iteration_costs_what_the_specification_says(inner_steps: int, images: np.ndarray) -> None:
    """4 h + (4 + 2 J) t, a backward pass to z counting once and a full one twice (A.8, last row)."""
    counts = Counts()
    options = {**OPTIONS, "max_iter": 1, "inner_steps": inner_steps, "callback_interval": 10}
    surrogate = RemovalNetAttack(several_classes(images), **options, callback=counts).generate(images)
    wanted = {
        "head forward eval": 1,
        "head forward train": 1,
        "head backward full": 1,
        "tail forward eval": 1 + inner_steps,
        "tail forward train": 1,
        "tail backward to z": inner_steps,
        "tail backward full": 1,
    }
    assert dict(counts.seen) == {name: count for name, count in wanted.items() if count}
    price = {"forward eval": 1, "forward train": 1, "backward to z": 1, "backward full": 2}
    cost = Counter({part: 0 for part in ("head", "tail")})
    for name, count in counts.seen.items():
        part, kind = name.split(" ", 1)
        cost[part] += price[kind] * count
    assert cost == {"head": 4, "tail": 4 + 2 * inner_steps}
    account = surrogate.surrogate_info["cost"]["surrogate"]
    assert (account["tail_forward"], account["tail_backward"]) == (20 * inner_steps + 1 + 8, 20 * inner_steps + 8)


def test_inner_steps_compute_no_gradient_of_weights(images: np.ndarray) -> None:
    """TinyCNN has two convolutions in the head and one in the tail."""
    found = []
    for max_iter in (1, 2):
        with Convolutions() as convolutions:
            RemovalNetAttack(several_classes(images), **{**OPTIONS, "max_iter": max_iter}).generate(images)
        found.append(convolutions.seen)
    one = found[1] - found[0]
    assert dict(one) == {
        "forward": 3 + 5 + 3,
        "to the input alone": 5,
        "with weights True": 3,
    }


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shuffle_ratio": 0.0},
        {"line_search": "exact"},
        {"latent_source": "victim"},
        {"weight_repulsion": 1.0, "error_repair": 1.0},
    ],
)
def test_nothing_is_read_from_the_device_within_an_iteration(change: dict[str, Any], images: np.ndarray) -> None:
    class Reads(TorchDispatchMode):
        seen: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                self.seen[str(func)] += 1
            return func(*args, **(kwargs or {}))

    found = []
    for max_iter in (2, 6):
        Reads.seen = Counter()
        with Reads():
            options = {**OPTIONS, **change, "max_iter": max_iter, "callback_interval": 100}
            RemovalNetAttack(several_classes(images), **options).generate(images, np.arange(40) % 3)
        found.append(Reads.seen)
    assert found[0] == found[1]


# ---------------------------------------------------------------------- precision
def test_bfloat16_passes_and_float32_targets(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[torch.dtype]] = {"tail": set(), "u": set(), "logits": set(), "target": set(), "train": set()}
    step, folded, mse = terms.latent_step, FoldedConv.forward, torch.nn.functional.mse_loss

    def watched_step(tail: Callable[[Tensor], Tensor], u: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        def logits(z: Tensor) -> Tensor:
            seen["logits"].add(tail(z).dtype)
            return tail(z)

        out = step(logits, u, *rest)
        seen["u"].add(out[0].dtype)
        return out

    def watched_conv(self: FoldedConv, x: Tensor) -> Tensor:
        out = folded(self, x)
        seen["tail"].add(out.dtype)
        return out

    def watched_mse(z: Tensor, target: Tensor) -> Tensor:
        seen["target"] |= {z.dtype, target.dtype}
        return mse(z, target)

    def start(at: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if at == 0:
            surrogate.model.block3[0].register_forward_hook(lambda _m, _i, out: seen["train"].add(out.dtype))

    victim = several_classes(images)
    before, randomness = state_of(victim), random_states()
    plain = RemovalNetAttack(victim, **OPTIONS).generate(images)
    monkeypatch.setattr(terms, "latent_step", watched_step)
    monkeypatch.setattr(FoldedConv, "forward", watched_conv)
    monkeypatch.setattr(removalnet_run.F, "mse_loss", watched_mse)
    low = RemovalNetAttack(victim, **OPTIONS, autocast="bf16", callback=start).generate(images)
    assert seen["tail"] == {torch.float32, torch.bfloat16}  # float32 where the cut checks itself
    assert seen["train"] == {torch.bfloat16}
    assert seen["u"] == seen["logits"] == seen["target"] == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in tensors(low))
    assert (state_of(victim), random_states()) == (before, randomness)
    losses = [s.surrogate_info["losses"] for s in (plain, low)]
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=0.05), name
    assert not close(plain, low, 1e-6)
    assert close(plain, low, 0.05)


# ---------------------------------------------------------------------- compiled tails
def test_a_tail_that_cannot_be_compiled_runs_as_it_is(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = several_classes(images)
    plain = RemovalNetAttack(victim, **OPTIONS).generate(images)

    def no_compiler(*_: Any, **__: Any) -> Any:
        raise OSError("no compiler\nof any kind")

    class Failing(nn.Module):
        def __init__(self, module: nn.Module, dynamic: bool) -> None:
            super().__init__()

        def forward(self, *_: Tensor) -> Tensor:
            raise RuntimeError("cannot lower this")

    for broken, message in ((no_compiler, r"\(OSError: no compiler\)"), (Failing, "RuntimeError: cannot lower this")):
        monkeypatch.setattr(torch, "compile", broken)
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            found = RemovalNetAttack(victim, **OPTIONS, compile=True).generate(images)
        assert len(record) == 1
        with pytest.warns(UserWarning, match=f"torch.compile failed, the tail runs as it is .*{message}"):
            warnings.warn_explicit(record[0].message, UserWarning, __file__, 1)
        assert record[0].filename == __file__
        assert found.surrogate_info["compiled"] is False
        assert close(found, plain, 0.0)


def test_a_tail_behind_hooks_is_not_compiled(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removalnet_run, "FrozenCut", lambda *a: FrozenCut(*a, method="hooks"))
    with pytest.warns(UserWarning, match="works by hooks, which cannot be compiled") as record:
        found = RemovalNetAttack(several_classes(images), **OPTIONS, compile=True).generate(images)
    assert len(record) == 1
    assert found.surrogate_info["compiled"] is False


def test_the_compiled_tail_runs_for_whole_batches_alone(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: Counter[int] = Counter()

    class Compiled(nn.Module):
        def __init__(self, module: nn.Module, dynamic: bool) -> None:
            super().__init__()
            assert not dynamic
            self.module = module

        def forward(self, z: Tensor) -> Tensor:
            sizes[len(z)] += 1
            return self.module(z)

    victim = several_classes(images)
    for change, whole in (({}, 16), ({"keep_best": 0.5, "min_agreement": 0.0}, 20)):
        options = {**OPTIONS, "batch_size": 16 if whole == 16 else 30, "max_iter": 3, **change}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = RemovalNetAttack(victim, **options).generate(images)
            monkeypatch.setattr(torch, "compile", Compiled)
            found = RemovalNetAttack(victim, **options, compile=True).generate(images)
            monkeypatch.undo()
        assert found.surrogate_info["compiled"] is True
        steps = 2 if whole == 16 else 3  # of three batches, 16, 16 and 8, or 20 each
        assert dict(sizes) == {whole: 1 + 5 * steps}
        assert close(found, plain, 0.0)
        tails = [s.surrogate_info["cost"]["surrogate"]["tail_forward"] for s in (plain, found)]
        assert tails[1] - tails[0] == whole  # the trial
        sizes.clear()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.parametrize("change", [{}, {"autocast": "bf16"}, {"layer": "block2.0"}], ids=str)
def test_compiled_tails_give_the_same_surrogate(change: dict[str, Any], images: np.ndarray) -> None:
    victim = several_classes(images)
    before = state_of(victim)
    options = {**OPTIONS, "batch_size": 16, **change}
    plain = RemovalNetAttack(victim, **options).generate(images)
    found = RemovalNetAttack(victim, **options, compile=True).generate(images)
    assert found.surrogate_info["compiled"] is True
    assert close(found, plain, 0.02 if "autocast" in change else 1e-4)
    assert state_of(victim) == before
    tokens = {**OPTIONS, "layer": "block1", "shuffle_ratio": 0.6, "batch_size": 16}  # with a side input
    wanted = RemovalNetAttack(token_classifier(images), **tokens).generate(images)
    found = RemovalNetAttack(token_classifier(images), **tokens, compile=True).generate(images)
    assert found.surrogate_info["compiled"] is True
    assert close(found, wanted, 1e-4)


# ---------------------------------------------------------------------- memory order
@pytest.mark.filterwarnings("ignore:The substitute set is unbalanced")
def test_weights_come_back_in_their_own_order_also_for_callbacks(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    colour = np.random.default_rng(1).random((40, 3, 8, 8), dtype=np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        victim = wrap(TinyCNN(channels=3), (3, 8, 8))
        victim.model.train()(torch.from_numpy(colour))
        victim.model.eval()
    orders: list[bool] = []
    inside: list[bool] = []
    losses = removalnet_run.RemovalNetRun.losses

    def watched(self: Any, batch: Any) -> Any:
        inside.append(any(p.ndim == 4 and not p.is_contiguous() for p in self.network.parameters()))
        return losses(self, batch)

    def look(_step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        orders.append(all(p.is_contiguous() for p in surrogate.model.parameters()))

    monkeypatch.setattr(removalnet_run.RemovalNetRun, "losses", watched)
    attack = RemovalNetAttack(victim, **OPTIONS, callback=look, callback_interval=1, allow_degenerate=True)
    surrogate = attack.generate(colour)
    assert orders == [True] * 4
    assert inside == [True] * 3
    assert all(tensor.is_contiguous() for tensor in tensors(surrogate))
    assert all(parameter.is_contiguous() for parameter in victim.model.parameters())


class Viewing(TinyCNN):
    """Reshapes with ``view``, which channels-last activations do not allow."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.block3(self.block2(self.block1(x)))
        return self.head(y.view(len(y), -1).view(len(y), 12, -1).mean(2))


def test_networks_that_need_their_order_are_attacked_in_it(images: np.ndarray) -> None:
    network = Viewing()
    network.load_state_dict(several_classes(images).model.state_dict())
    found = RemovalNetAttack(wrap(network.eval()), **OPTIONS).generate(images)
    plain = RemovalNetAttack(several_classes(images), **OPTIONS).generate(images)
    assert close(found, plain, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch")
@pytest.mark.parametrize(
    ("change", "tolerance"),
    [({}, 1e-3), ({"autocast": "bf16"}, 0.05), ({"compile": True}, 1e-3), ({"keep_best": 0.2, "patience": 2}, 1e-3)],
    ids=str,
)
def test_options_on_a_gpu(change: dict[str, Any], tolerance: float, images: np.ndarray) -> None:
    options = {**OPTIONS, "bn_recalibrate": 2, "min_agreement": 0.0, **change}
    victim = several_classes(images, device_type="gpu")
    first, again = (RemovalNetAttack(victim, **options).generate(images) for _ in range(2))
    assert first.surrogate_info["compiled"] is ("compile" in change)
    assert all(tensor.is_contiguous() and tensor.device.type == "cuda" for tensor in tensors(first))
    assert close(first, again, tolerance)


# ---------------------------------------------------------------------- tokens as timm makes them
def vision_transformer(**options: Any) -> PyTorchClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.models.VisionTransformer(
            img_size=8, patch_size=4, in_chans=1, num_classes=4, embed_dim=16, depth=2, num_heads=2, **options
        )
        nn.init.normal_(network.head.weight)
    return wrap(network.eval())


@pytest.mark.filterwarnings("ignore:The substitute set is unbalanced")
@pytest.mark.parametrize(
    ("options", "prefix"),
    [({}, 1), ({"reg_tokens": 2}, 3), ({"class_token": False, "global_pool": "avg"}, 0)],
    ids=["class token", "registers", "no class token"],
)
def test_prefix_tokens_of_timm_stay_in_their_places(
    options: dict[str, Any], prefix: int, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Tensor] = []
    shuffle = terms.shuffle_features

    def watch(z: Tensor, *rest: Any) -> Tensor:
        out = shuffle(z, *rest)
        moved.append((out != z).flatten(2).any(2).any(0) if rest[2] == 1 else (out != z).any(0).any(0))
        return out

    monkeypatch.setattr(terms, "shuffle_features", watch)
    victim = vision_transformer(**options)
    tokens = prefix + 4  # 2 x 2 patches
    attack = RemovalNetAttack(victim, **{**OPTIONS, "layer": "blocks.0", "shuffle_ratio": 1.0})
    for change, axis, still in (
        ({"shuffle_skip_prefix": True}, tokens, prefix),
        ({"shuffle_skip_prefix": False}, tokens, 0),
        ({"shuffle_dim": -1}, 16, 0),
    ):
        moved.clear()
        attack.set_params(allow_degenerate=True, **change)
        info = attack.generate(images).surrogate_info
        json.dumps(info)
        assert info["cut"] == "graph"
        assert len(moved) == 3 * 6  # J + 1 in each iteration
        reached = torch.stack(moved).any(0)
        assert reached.tolist() == [False] * still + [True] * (axis - still)
    moved.clear()
    wrapped = wrap(nn.Sequential(nn.BatchNorm2d(1, affine=False), victim.model).eval())
    options = {**attack.params(), "layer": "1.blocks.0", "shuffle_dim": 1, "shuffle_skip_prefix": True}
    RemovalNetAttack(wrapped, **options).generate(images)
    assert torch.stack(moved).any(0).tolist() == [False] * prefix + [True] * (tokens - prefix)
