"""RemovalNet on unusual victims, layers and data; what all attacks share is in the conformance tests."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.postprocessor import Rounded
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_fingerprint.attacks import RemovalNetAttack
from art_fingerprint.attacks import removalnet_terms as terms
from art_fingerprint.core.training import Batch, Batches
from art_fingerprint.exceptions import InvalidInputError
from tests.conftest import TinyCNN, wrap
from tests.states import state_of
from tests.victims import several_classes, token_classifier

OPTIONS: dict[str, Any] = {"layer": "block2", "shuffle_ratio": 0.3, "inner_steps": 2, "max_iter": 4, "batch_size": 16}


def weights(classifier: PyTorchClassifier) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in classifier.model.state_dict().items()}


def close(a: PyTorchClassifier, b: PyTorchClassifier, tolerance: float = 0.0) -> bool:
    other = weights(b)
    return all(torch.allclose(t, other[n], rtol=tolerance, atol=tolerance) for n, t in weights(a).items())


def with_weights(kind: type[TinyCNN], images: np.ndarray, **options: object) -> PyTorchClassifier:
    network = kind()
    network.load_state_dict(several_classes(images).model.state_dict(), strict=False)
    return wrap(network.eval(), **options)


def fed(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Return a list that fills with every batch made from now on."""
    seen: list[Batch] = []
    make = Batches._batch

    def keep(*arguments: Any) -> Batch:
        seen.append(make(*arguments))
        return seen[-1]

    monkeypatch.setattr(Batches, "_batch", keep)
    return seen


# ---------------------------------------------------------------------- layers
class ZeroInitialised(TinyCNN):
    """A residual branch whose last BatchNorm starts at zero, as timm's ResNets do: nothing of it reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.last = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        z = self.block2(self.block1(x))
        return self.head(self.pool(self.block3(z + self.last(self.branch(z)))).flatten(1))


def test_layer_behind_which_a_zero_gradient_starts(images: np.ndarray) -> None:
    victim = with_weights(ZeroInitialised, images)
    with pytest.warns(UserWarning, match="layer 'branch' is exactly 0: the latent target is noise alone") as record:
        surrogate = RemovalNetAttack(victim, **{**OPTIONS, "layer": "branch"}).generate(images)
    assert record[0].filename == __file__
    assert surrogate.surrogate_info["side_inputs"] == 1
    assert all(bool(t.isfinite().all()) for t in weights(surrogate).values())
    assert not torch.equal(surrogate.model.branch.weight, victim.model.branch.weight)


def test_zero_distance_gives_no_nan(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of zero and no shuffle: z' starts at z itself."""
    monkeypatch.setattr(terms, "latent_noise", lambda z, _generator: torch.zeros_like(z))
    for change in ({}, {"distance": "cosine"}, {"distance_scope": "sample"}):
        options = {**OPTIONS, "shuffle_ratio": 0.0, "log_weight": 10.0, **change}
        surrogate = RemovalNetAttack(several_classes(images), **options).generate(images)
        assert all(bool(t.isfinite().all()) for t in weights(surrogate).values())


# ---------------------------------------------------------------------- BatchNorm
class Untracked(TinyCNN):
    def __init__(self) -> None:
        super().__init__()
        self.block2[1] = nn.BatchNorm2d(12, track_running_stats=False)


def test_recalibration_skips_layers_without_statistics(images: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    victim = with_weights(Untracked, images)
    plain = weights(RemovalNetAttack(victim, **OPTIONS).generate(images))
    again = weights(RemovalNetAttack(victim, **OPTIONS, bn_recalibrate=2).generate(images))
    changed = {name.rpartition(".")[0] for name in plain if not torch.equal(plain[name], again[name])}
    assert changed == {"block1.1", "block3.1"}
    tokens = {**OPTIONS, "layer": "mix", "shuffle_ratio": 0.6}
    with caplog.at_level(logging.INFO, "art_fingerprint"):
        found = RemovalNetAttack(token_classifier(images), **tokens, bn_recalibrate=2).generate(images)
    assert "nothing to recalibrate" in caplog.text
    assert close(found, RemovalNetAttack(token_classifier(images), **tokens).generate(images))


@pytest.mark.parametrize("batches", [1, 3])
def test_recalibrated_statistics_are_averages_over_batches(
    batches: int, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer's are those of its convolution's outputs, averaged batch by batch (A.6)."""
    seen = fed(monkeypatch)
    attack = RemovalNetAttack(several_classes(images), **OPTIONS, hflip=False, bn_recalibrate=batches)
    network = attack.generate(images).model
    assert len(seen) == 4 + batches
    with torch.no_grad():
        outputs = [network.block1[0](batch.x) for batch in seen[-batches:]]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variance = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)  # unbiased, as BatchNorm keeps it
    torch.testing.assert_close(network.block1[1].running_mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.block1[1].running_var, variance, rtol=1e-4, atol=1e-6)
    assert int(network.block1[1].num_batches_tracked) == batches


# ---------------------------------------------------------------------- what the networks are fed
def test_inputs_are_never_altered(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of a training batch is a sample or its mirror image, also outside ``clip_values``."""
    wide = images * 3 - 1
    seen = fed(monkeypatch)
    before = wide.copy()
    with pytest.warns(UserWarning, match="outside the classifier's clip_values"):
        RemovalNetAttack(several_classes(images), **OPTIONS).generate(wide)
    assert np.array_equal(wide, before)
    known = {x.tobytes() for x in (*wide, *wide[..., ::-1].copy())}
    rows = [row.numpy().tobytes() for batch in seen for row in batch.x]
    assert len(rows) == 16 + 16 + 8 + 16
    assert set(rows) <= known


def test_flips_come_before_a_mean_per_pixel(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    mean = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    victim = several_classes((images - mean) / 0.5, preprocessing=(mean, np.full_like(mean, 0.5)))
    seen = fed(monkeypatch)
    RemovalNetAttack(victim, **OPTIONS).generate(images)
    for batch in seen:
        for row, number, mirrored in zip(batch.x, batch.index.tolist(), batch.flipped.tolist(), strict=True):
            raw = images[number][..., ::-1] if mirrored else images[number]
            np.testing.assert_allclose(row.numpy(), (raw - mean) / 0.5, rtol=1e-5, atol=1e-6)
    assert {int(flip) for batch in seen for flip in batch.flipped} == {0, 1}


def test_postprocessing_defences_are_not_seen(images: np.ndarray) -> None:
    """The attack is white-box: it reads the network's logits."""
    defended = several_classes(images, postprocessing_defences=Rounded(decimals=1))
    surrogate = RemovalNetAttack(defended, **OPTIONS).generate(images)
    assert close(surrogate, RemovalNetAttack(several_classes(images), **OPTIONS).generate(images))
    assert [type(d) for d in surrogate.postprocessing_defences] == [Rounded]


# ---------------------------------------------------------------------- victims
def test_compiled_victims_are_unwrapped(images: np.ndarray) -> None:
    plain = several_classes(images)
    compiled = several_classes(images)
    wrapped = wrap(torch.compile(compiled.model))  # never run, so nothing is compiled
    surrogate = RemovalNetAttack(wrapped, **OPTIONS).generate(images)
    assert type(surrogate.model) is TinyCNN
    assert close(surrogate, RemovalNetAttack(plain, **OPTIONS).generate(images))


def test_quantised_victims_are_refused(images: np.ndarray) -> None:
    class Quantised(TinyCNN):
        def __init__(self) -> None:
            super().__init__()
            part = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.modules.linear"})
            self.head = part(12, 4)

    with pytest.raises(InvalidInputError, match="has quantised layers; pass the float model"):
        RemovalNetAttack(with_weights(Quantised, images), **OPTIONS).generate(images)


def test_frozen_victims_in_training_mode_are_trained_as_copies(images: np.ndarray) -> None:
    odd = several_classes(images)
    odd.model.train().requires_grad_(False)
    before = state_of(odd)
    surrogate = RemovalNetAttack(odd, **OPTIONS).generate(images)
    assert state_of(odd) == before
    assert all(parameter.requires_grad for parameter in surrogate.model.parameters())
    assert not any(module.training for module in surrogate.model.modules())
    assert close(surrogate, RemovalNetAttack(several_classes(images), **OPTIONS).generate(images))


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
def test_the_attack_has_an_optimiser_of_its_own(optimizer: Any, images: np.ndarray) -> None:
    victim = several_classes(images)
    if optimizer is not None:
        victim._optimizer = optimizer(victim.model.parameters(), lr=100.0)
    surrogate = RemovalNetAttack(victim, **OPTIONS).generate(images)
    assert (surrogate.optimizer is None) == (optimizer is None)
    assert close(surrogate, RemovalNetAttack(several_classes(images), **OPTIONS).generate(images))


def test_one_attack_can_be_run_again(images: np.ndarray) -> None:
    attack = RemovalNetAttack(several_classes(images), **OPTIONS, keep_best=0.2, min_agreement=0.0)
    first, other, again = attack.generate(images), attack.generate(images[::-1].copy()), attack.generate(images)
    assert close(first, again)
    assert not close(first, other)
    assert first.surrogate_info["keep_best"] == again.surrogate_info["keep_best"]
