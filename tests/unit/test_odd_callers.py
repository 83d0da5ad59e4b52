"""What the caller has set, and models that are written oddly: the same numbers as without it, or a clear error."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import (
    AutoAttack,
    BasicIterativeMethod,
    MomentumIterativeMethod,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.data_generators import DataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import FeaturePermutationAttack, FineTuningAttack, RemovalNetAttack
from art_fingerprint.core.adversarial import adversarial_examples, describe, evasion
from art_fingerprint.core.channel_groups import find_groups
from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.files import write_whole
from art_fingerprint.exceptions import InvalidInputError, TrainingDivergedError
from art_fingerprint.testing.models import tiny_classifier, tiny_images
from art_fingerprint.verifiers import IPGuardVerifier, ModelDiffVerifier, Verifier

X = tiny_images()
Y = np.arange(40) % 4
SHORT: dict[str, Any] = {"max_iter": 6, "batch_size": 20, "hflip": False}


def around(network: nn.Module, **options: Any) -> PyTorchClassifier:
    given: dict[str, Any] = {"input_shape": (1, 8, 8), "nb_classes": 4, "clip_values": (0.0, 1.0), "device_type": "cpu"}
    return PyTorchClassifier(model=network, loss=nn.CrossEntropyLoss(), **{**given, **options})


class Wrapped(nn.Module):
    """The tiny network with something of its own around it."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.inner = tiny_classifier().model
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.inner(x))


# ---------------------------------------------------------------------- the caller's settings
def results(victim: PyTorchClassifier, suspect: PyTorchClassifier) -> tuple[str, dict[str, float], str]:
    verifier = ModelDiffVerifier(victim, nb_pairs=12, radius=0.3, step=0.1, max_iter=4)
    fingerprint = verifier.extract(X)
    removal = RemovalNetAttack(victim, layer="block2", shuffle_ratio=0.2, allow_degenerate=True, **SHORT)
    return fingerprint.digest, verifier.score(suspect), network_digest(removal.generate(X).model)


def test_settings_of_the_caller_stay_outside() -> None:
    models = tiny_classifier(), tiny_classifier(seed=1)
    plain = results(*models)
    with torch.autocast("cpu", torch.bfloat16):
        assert results(*models) == plain
    with torch.inference_mode():
        assert results(*models) == plain
    with torch.device("meta"):
        assert results(*models) == plain
    torch.set_default_dtype(torch.float64)
    try:
        assert results(*models) == plain
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_networks_that_draw_in_evaluation_mode_draw_by_the_verifiers_seed() -> None:
    def noisy(y: Tensor) -> Tensor:
        return y + 0.3 * torch.randn_like(y)

    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        verifier = ModelDiffVerifier(around(Wrapped(noisy)), nb_pairs=12, radius=0.3, step=0.1, max_iter=4)
        found.append((verifier.extract(X).digest, verifier.score(around(Wrapped(noisy)))))
    assert found[0] == found[1]


# ---------------------------------------------------------------------- models
class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_lazy_models_are_refused_and_left_alone() -> None:
    verifier = ModelDiffVerifier(tiny_classifier(), nb_pairs=12, radius=0.3, step=0.1, max_iter=4)
    verifier.extract(X)
    victim = around(Lazy())
    for call in (
        lambda: FineTuningAttack(victim, **SHORT).generate(X, Y),
        lambda: ModelDiffVerifier(victim).extract(X),
        lambda: verifier.verify(victim),
        lambda: verifier.calibrate([victim]),
    ):
        with pytest.raises(InvalidInputError, match="lazy layers that were never run"):
            call()
    victim.predict(X[:1])
    assert verifier.verify(victim).derived is None


def test_buffers_that_evaluation_changes_come_back() -> None:
    class Counting(Wrapped):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Any:
            self.calls += len(x)
            return super().forward(x)

    victim, suspect = around(Counting()), around(Counting())
    verifier = ModelDiffVerifier(victim, nb_pairs=12, radius=0.3, step=0.1, max_iter=4)
    verifier.extract(X)
    verifier.verify(suspect)
    FineTuningAttack(victim, **SHORT).generate(X, Y)
    assert victim.model.calls == suspect.model.calls == 0


def test_copies_that_answer_otherwise_are_refused() -> None:
    hooked = tiny_classifier()
    hooked.model.register_forward_hook(lambda _module, _inputs, output: -output)
    patched = around(Wrapped())
    original = patched.model.forward
    patched.model.forward = lambda x: -original(x)
    for victim in (hooked, patched):
        with pytest.raises(InvalidInputError, match="copy of the model answers otherwise"):
            FineTuningAttack(victim, **SHORT).generate(X, Y)
        with pytest.raises(InvalidInputError, match="copy of the model answers otherwise"):
            FeaturePermutationAttack(victim).generate(X)
    listened = tiny_classifier()
    listened.model.register_forward_hook(lambda *_: None)
    FineTuningAttack(listened, **SHORT).generate(X, Y)  # a hook that only looks


def test_weights_that_a_hook_computes_are_refused() -> None:
    class Equalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 4)
            weight = self.layer.weight
            del self.layer._parameters["weight"]
            self.layer.weight_orig = nn.Parameter(weight.data)
            self.layer.weight = weight.data * 0.5
            self.layer.register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", layer.weight_orig * 0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1))  # type: ignore[no-any-return]

    with pytest.raises(InvalidInputError, match="computes its 'weight' in a forward pre-hook"):
        FineTuningAttack(around(Equalised()), **SHORT).generate(X, Y)


def test_models_that_cannot_be_copied() -> None:
    locked = around(Wrapped())
    locked.model.lock = threading.Lock()
    with pytest.raises(InvalidInputError, match="cannot be copied .*lock"):
        FineTuningAttack(locked, **SHORT).generate(X, Y)

    class Remembering(Wrapped):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Any:
            self.seen.append(super().forward(x))
            return self.seen[-1]

    remembering = around(Remembering())
    remembering.model(torch.from_numpy(X[:2]))
    FineTuningAttack(remembering, **SHORT).generate(X, Y)


def test_errors_of_the_model_itself() -> None:
    def refuses(_y: Tensor) -> Tensor:
        raise AssertionError("sizes of 16 only")

    for call in (
        lambda: FineTuningAttack(around(Wrapped(refuses)), **SHORT).generate(X, Y),
        lambda: ModelDiffVerifier(around(Wrapped(refuses))).extract(X),
    ):
        with pytest.raises(InvalidInputError, match="AssertionError: sizes of 16 only"):
            call()


def test_outputs_of_training_mode_alone() -> None:
    class Auxiliary(Wrapped):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return (y, y) if self.training else y

    with pytest.raises(InvalidInputError, match="returns tuple"):
        RemovalNetAttack(around(Auxiliary()), layer="inner.block2", **SHORT).generate(X)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_numbers(dtype: torch.dtype) -> None:
    class Cast(Wrapped):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.to(dtype))

    attack = RemovalNetAttack(around(Cast().to(dtype)), layer="inner.block2", allow_degenerate=True, **SHORT)
    surrogate = attack.generate(X)
    assert torch.isfinite(surrogate.model(torch.from_numpy(X[:4]))).all()


@pytest.mark.parametrize("kind", [IPGuardVerifier, ModelDiffVerifier])
def test_victims_without_a_gradient(kind: type[Verifier]) -> None:
    victim = around(Wrapped(lambda y: y.detach()))
    with pytest.raises(InvalidInputError, match="no gradient in its inputs"):
        kind(victim).extract(X)


def test_clip_values() -> None:
    endless = around(Wrapped(), clip_values=(-np.inf, np.inf))
    with pytest.raises(InvalidInputError, match="clip_values must be finite"):
        IPGuardVerifier(endless).extract(X)
    high = np.full((1, 8, 8), 1.0, np.float32)
    high[:, :4] = 2.0
    uneven = around(Wrapped(), clip_values=(np.zeros((1, 8, 8), np.float32), high))
    with pytest.warns(UserWarning, match="clip_values differ from one input value to the next"):
        FineTuningAttack(uneven, **SHORT).generate(X, Y)


def test_buffers_in_arithmetic_are_read_at_each_pass() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(144, 4)
            self.register_buffer("ema", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x) / torch.sqrt(self.ema + 1e-5)[:, None, None]
            return self.second(z.flatten(1))  # type: ignore[no-any-return]

    network = Normed().eval()
    x = torch.from_numpy(X[:6])
    cut = LayerCut(network, "first", x)
    with torch.no_grad():
        network.ema.mul_(9.0)
        z, output = cut.forward(x)
        assert torch.allclose(cut.tail_for(x)(z), output, atol=1e-6)


def test_layers_that_see_no_input_have_free_channels() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Linear(3, 64), nn.Linear(64, 4)
            self.register_buffer("places", torch.rand(1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1) + self.table(self.places))  # type: ignore[no-any-return]

    find_groups(Positions(), torch.from_numpy(X[:2]))


# ---------------------------------------------------------------------- ART's own attacks, seeds, files
@pytest.mark.parametrize("kind", [ProjectedGradientDescent, BasicIterativeMethod, MomentumIterativeMethod])
def test_arts_iterative_attacks_are_described_and_made_anew(kind: Any) -> None:
    attack = kind(tiny_classifier(), eps=0.02, eps_step=0.01, max_iter=2, verbose=False)
    assert describe(attack)["params"]["eps"] == 0.02
    examples = adversarial_examples(tiny_classifier(seed=1), attack, X[:6], Y[:6])
    assert 0 < np.abs(examples - X[:6]).max() <= 0.02 + 1e-6


def test_arts_attacks_that_hold_others() -> None:
    first = tiny_classifier()
    square = SquareAttack(first, eps=0.02, max_iter=2, nb_restarts=1, verbose=False)
    assert describe(square)["attack"] == "SquareAttack"
    auto = AutoAttack(first, eps=0.02, eps_step=0.01, attacks=[square])
    assert describe(auto)["attack"] == "AutoAttack"
    with pytest.raises(InvalidInputError, match="pass a function that makes it"):
        adversarial_examples(tiny_classifier(seed=1), auto, X[:4], Y[:4])


def test_attacks_with_a_seed_of_their_own_follow_ours() -> None:
    attack = evasion("Square", eps=0.1, n_queries=20)

    def examples(seed: int) -> np.ndarray:
        return adversarial_examples(tiny_classifier(), attack, X[:6], Y[:6], seed=seed)

    assert (examples(0) == examples(0)).all()
    assert (examples(0) != examples(1)).any()
    fixed = evasion("Square", eps=0.1, n_queries=20, seed=5)
    first, second = (adversarial_examples(tiny_classifier(), fixed, X[:6], Y[:6], seed=seed) for seed in (0, 1))
    assert (first == second).all()


def test_weights_that_the_last_step_ruins() -> None:
    with pytest.raises(TrainingDivergedError, match="last step"):
        FineTuningAttack(tiny_classifier(), max_iter=1, learning_rate=1e38, batch_size=20, hflip=False).generate(X, Y)


def test_sizes_of_generators() -> None:
    class Endless(DataGenerator):
        def get_batch(self) -> tuple[np.ndarray, np.ndarray]:
            return X[:20], Y[:20]

    for size in (0, -1, 3.5, "a"):
        generator = Endless(size=40, batch_size=20)
        generator._size = size  # as a class with a property of its own has it
        with pytest.raises(InvalidInputError, match="size of the DataGenerator"):
            FineTuningAttack(tiny_classifier(), **SHORT).generate(generator)


def test_permissions_and_links_of_files(tmp_path: Path) -> None:
    path, link = tmp_path / "secret", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o600)
    link.symlink_to(path)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OSError, match="where a file is to be written"):
        write_whole(tmp_path, b"")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "secret"]


def test_statistics_that_have_not_followed_are_told() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 4)
            self.norm.running_mean.fill_(float("inf"))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x.flatten(1)))  # type: ignore[no-any-return]

    surrogate, x = around(Normed().eval()), torch.from_numpy(X[:8])
    victim = tiny_classifier().model.eval()
    with torch.no_grad(), pytest.warns(UserWarning, match="NaN or infinity in evaluation mode alone"):
        FineTuningAttack._check_sound(surrogate, victim, x)
    assert not surrogate.model.training
    with torch.no_grad(), pytest.raises(TrainingDivergedError):
        FineTuningAttack._check_sound(surrogate, victim, x[:1])
