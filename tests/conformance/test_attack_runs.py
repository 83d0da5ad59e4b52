"""What all attacks of the package have in common beyond the checks of `art_fingerprint.testing`, on tiny victims."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.defences.preprocessor import FeatureSqueezing
from art.estimators.classification import PyTorchClassifier
from art.summary_writer import SummaryWriter
from torch import Tensor, nn

from art_fingerprint.exceptions import InvalidInputError, TrainingDivergedError
from tests.conformance.attack_cases import (
    DRAWS,
    NEED_CONVOLUTIONS,
    OWN_INPUTS,
    OWN_STEPS,
    Case,
    close,
    equal,
    every_attack,
    everything,
    parameters,
    parameters_equal,
    state,
)
from tests.conftest import TinyCNN, wrap
from tests.victims import TinyTokens, several_classes, token_classifier

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

Y = np.arange(1, 41) % 4  # not what the victim says


# ---------------------------------------------------------------------- the surrogate
@every_attack
def test_surrogate_keeps_preprocessing_and_defences(case: Case, images: np.ndarray) -> None:
    victim = several_classes(images, preprocessing=(0.4, 0.3), preprocessing_defences=FeatureSqueezing((0.0, 1.0)))
    surrogate = case.make(victim).generate(images, Y)
    assert type(surrogate.model) is TinyCNN
    assert surrogate.preprocessing.mean == victim.preprocessing.mean
    assert surrogate.preprocessing is not victim.preprocessing
    assert [type(d) for d in surrogate.preprocessing_defences] == [FeatureSqueezing]


@every_attack
def test_surrogate_info(case: Case, images: np.ndarray) -> None:
    victim = several_classes(images)
    numbers: dict[str, Any] = {"batch_size": np.int32(16), "hflip": np.True_, "seed": np.int64(2)}
    if "learning_rate" in parameters(case.attack):
        numbers["learning_rate"] = np.float32(1e-3)
    surrogate = case.make(victim, **numbers, callback=lambda *_: None).generate(images, Y)
    assert np.isfinite(surrogate.predict(images)).all()
    info = json.loads(json.dumps(surrogate.surrogate_info, allow_nan=False))
    assert info["attack"] == case.attack.__name__
    left_out = set(case.attack.attack_params) - set(info["params"])
    assert left_out <= {"callback", "surrogate"}
    assert info["params"]["batch_size"] == 16
    assert info["params"]["hflip"] is True
    assert info["samples"] == 40
    assert info["seconds"] > 0
    assert all(math.isfinite(value) for value in info.get("losses", {}).values())
    cost = info["cost"]
    assert cost["samples"] == 40
    assert cost["victim_queries"] == info["victim_queries"] >= 0
    assert cost["seconds"] == info["seconds"]
    assert cost["peak_memory_of"] == "process"
    assert cost["peak_memory_bytes"] > 0
    total = 0.0
    for role in ("surrogate", "victim"):
        table = cost[role]
        whole = table["forward"] + 2 * table["backward"] + table["input_backward"]
        tail = (table["tail_share"] or 0) * (table["tail_forward"] + table["tail_backward"])
        assert table["forward_equivalents"] == pytest.approx(whole + tail)
        total += table["forward_equivalents"]
    assert cost["forward_equivalents"] == pytest.approx(total)
    assert cost["victim"]["forward"] >= info["victim_queries"]
    assert (cost["surrogate"]["backward"] > 0) or not case.trains


# ---------------------------------------------------------------------- data
@every_attack
@pytest.mark.parametrize("batch_size", [7, 13])
def test_odd_batch_sizes_and_a_remainder_of_one(case: Case, images: np.ndarray, batch_size: int) -> None:
    seen: list[int] = []
    handles: list[Any] = []

    def listen(step: int, surrogate: PyTorchClassifier, _losses: object) -> None:
        if step == 0 and not handles:
            hook = surrogate.model.block1.register_forward_hook(
                lambda module, inputs, _out: seen.append(len(inputs[0])) if module.training else None
            )
            handles.append(hook)

    long = {"max_iter": 40 // batch_size + 2} if "max_iter" in case.options else {}
    surrogate = case.make(several_classes(images), batch_size=batch_size, callback=listen, **long).generate(images, Y)
    for handle in handles:
        handle.remove()
    assert all(tensor.isfinite().all() for tensor in state(surrogate).values())
    assert 1 not in seen


@every_attack
def test_fewer_samples_than_a_batch(case: Case, images: np.ndarray) -> None:
    victim = several_classes(images)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        case.make(victim, batch_size=100).generate(images, Y)
    found = [w for w in record if "only 40 samples; batch_size is reduced from 100 to 40" in str(w.message)]
    assert bool(found) == (case.trains and case.name not in DRAWS)
    assert all(w.filename == __file__ for w in found)  # the warning points at the caller


@every_attack
def test_data_generators(case: Case, images: np.ndarray) -> None:
    """A generator is read or refused in plain words; what is read gives the surrogate of one seed."""
    victim = several_classes(images)
    before = everything(victim)

    def run() -> PyTorchClassifier:
        return case.make(victim).generate(NumpyDataGenerator(images, Y, batch_size=16, shuffle=True))

    if case.reads_streams:
        first = run()
        assert first.surrogate_info["samples"] == 40
        assert not parameters_equal(first, victim)
        assert equal(first, run())
    else:
        with pytest.raises(InvalidInputError, match="needs the whole substitute set at once: pass `x` as an array"):
            run()
    assert everything(victim) == before


@every_attack
def test_float64_is_float32_and_values_out_of_range_warn(case: Case, images: np.ndarray) -> None:
    one = case.make(several_classes(images))
    assert equal(one.generate(images.astype(np.float64), Y), one.generate(images, Y))
    with pytest.warns(UserWarning, match="outside the classifier's clip_values") as record:
        one.generate(images * 1.5, Y)
    assert record[0].filename == __file__


@every_attack
def test_batches_of_one(case: Case, images: np.ndarray) -> None:
    victim = several_classes(images)
    if case.trains:
        with pytest.raises(InvalidInputError, match="BatchNorm.*batch_size=1"):
            case.make(victim, batch_size=1).generate(images, Y)
    if case.trains and case.name not in DRAWS:
        with pytest.raises(InvalidInputError, match=r"BatchNorm.*1 sample\(s\)"):
            case.make(victim, **case.lenient).generate(images[:1], Y[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = case.make(token_classifier(images), batch_size=1, **case.lenient, **case.fresh(TinyTokens))
        surrogate = tokens.generate(images[:4], Y[:4])
        tokens.set_params(batch_size=16)
        tokens.generate(images[:1], Y[:1])
    assert all(tensor.isfinite().all() for tensor in state(surrogate).values())


# ---------------------------------------------------------------------- watching
@every_attack
def test_callback(case: Case, images: np.ndarray) -> None:
    victim = several_classes(images)
    steps: list[int] = []
    names: list[set[str]] = []

    def watch(step: int, surrogate: PyTorchClassifier, losses: Mapping[str, float]) -> None:
        assert isinstance(surrogate, PyTorchClassifier)
        assert not any(module.training for module in surrogate.model.modules())
        assert all(math.isfinite(value) for value in losses.values())
        surrogate.predict(images)
        surrogate.model.train()
        random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002, B018
        steps.append(step)
        names.append(set(losses))

    watched = case.make(victim, callback=watch, callback_interval=3).generate(images, Y)
    assert steps[0] == 0
    assert len(steps) > 1
    assert steps == sorted(set(steps))
    assert names[0] == set()
    info = watched.surrogate_info
    assert names[-1] == set(info.get("losses", {}))
    if case.name not in OWN_STEPS:
        assert [step for step in steps if step % 3] in ([], steps[-1:])  # at intervals, and at the end
        assert steps[-1] == info.get("max_iter", 1)
    plain = case.make(victim, callback_interval=3).generate(images, Y)
    assert equal(watched, plain)  # watching changes nothing, and costs nothing
    for role in ("surrogate", "victim"):
        assert info["cost"][role] == plain.surrogate_info["cost"][role]


@every_attack
def test_summary_writer(case: Case, images: np.ndarray) -> None:
    class Writer(SummaryWriter):
        def __init__(self) -> None:
            self.rows: list[tuple[int, dict[str, float]]] = []

        def update(self, batch_id: int, global_step: int, **kwargs: Any) -> None:  # type: ignore[override]
            self.rows.append((global_step, kwargs))

    writer = Writer()
    victim = several_classes(images)
    info = case.make(victim, callback_interval=2, summary_writer=writer).generate(images, Y).surrogate_info
    assert writer.rows[0][0] == 0
    assert set(writer.rows[-1][1]) == set(info.get("losses", {}))
    with pytest.raises(ValueError, match="summary_writer"):
        case.make(victim, summary_writer=None)


@every_attack
def test_verbose_prints_to_stderr_only(case: Case, images: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    victim = several_classes(images)
    case.make(victim).generate(images, Y)
    assert capfd.readouterr() == ("", "")
    case.make(victim, verbose=True).generate(images, Y)
    out, err = capfd.readouterr()
    assert out == ""
    assert bool(err) or not case.trains


# ---------------------------------------------------------------------- victims of all sorts
@every_attack
def test_heads_and_outputs_that_do_not_fit(case: Case, images: np.ndarray) -> None:
    class Tuple(TinyCNN):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    for network, classes, message in (
        (TinyCNN(nb_classes=1), 2, "two-logit head"),
        (TinyCNN(nb_classes=3), 4, "nb_classes=4, but its model returns 3 scores"),
        (Tuple(), 4, "returns tuple.*wrap it"),
    ):
        victim = wrap(network, nb_classes=classes)
        with pytest.raises(InvalidInputError, match=message):
            case.make(victim).generate(images, Y % classes)


@every_attack
def test_model_that_returns_probabilities(case: Case, images: np.ndarray) -> None:
    class Softmaxed(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    logits = several_classes(images)
    network = Softmaxed()
    network.load_state_dict(logits.model.state_dict())
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        found = case.make(wrap(network.eval())).generate(images, Y)
    assert any("returns probabilities" in str(w.message) for w in record) or not case.trains

    def probabilities(classifier: PyTorchClassifier) -> np.ndarray:
        return torch.from_numpy(classifier.predict(images)).softmax(1).numpy()

    # log(softmax(s)) is s but for rounding, which an optimiser that divides by small gradients makes visible
    gap = np.abs(found.predict(images) - probabilities(case.make(logits).generate(images, Y))).max()
    assert gap < 0.1 * np.abs(found.predict(images) - probabilities(logits)).max() + 1e-5


@every_attack
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripted_networks_are_refused(case: Case, images: np.ndarray) -> None:
    scripted = wrap(torch.jit.trace(TinyCNN().eval(), torch.zeros(2, 1, 8, 8)))
    with pytest.raises(InvalidInputError, match="TorchScript"):
        case.make(scripted).generate(images, Y)


@every_attack
def test_data_parallel_and_mixed_precision(case: Case, images: np.ndarray) -> None:
    plain = case.make(several_classes(images)).generate(images, Y)
    wrapped = case.make(wrap(nn.DataParallel(several_classes(images).model))).generate(images, Y)
    assert type(wrapped.model) is TinyCNN
    assert equal(wrapped, plain)
    victim = several_classes(images)
    victim._use_amp = True
    with pytest.warns(UserWarning, match="use_amp is ignored") as record:
        assert equal(plain, case.make(victim).generate(images, Y))
    assert record[0].filename == __file__


@every_attack
def test_flips_need_images(case: Case, images: np.ndarray) -> None:
    flat = images.reshape(40, 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        network[4].bias -= network(torch.from_numpy(flat)).mean(0)
    victim = wrap(network, (64,))
    free = {"layer": None} if "layer" in case.own else {}
    with pytest.raises(InvalidInputError, match="hflip=False"):
        case.make(victim, **free, hflip=True).generate(flat, Y)
    if case.name in NEED_CONVOLUTIONS:
        with pytest.raises(InvalidInputError, match="network has no"):
            case.make(victim, hflip=False).generate(flat, Y)
    else:
        assert not parameters_equal(case.make(victim, **free, hflip=False).generate(flat, Y), victim)
    last = wrap(TinyCNN(), channels_first=False)
    with pytest.raises(InvalidInputError, match="channels_first=False"):
        case.make(last, hflip=True).generate(images, Y)


@every_attack
def test_preprocessing_is_the_same_path_for_all(case: Case, images: np.ndarray) -> None:
    class Scaled(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x - 0.25) / 0.5)

    outside = several_classes((images - 0.25) / 0.5, preprocessing=(0.25, 0.5))
    network = Scaled()
    network.load_state_dict(outside.model.state_dict())
    wanted = case.make(wrap(network.eval())).generate(images, Y)
    assert close(case.make(outside).generate(images, Y), wanted, 1e-5)


@every_attack
@pytest.mark.parametrize("hflip", [False, True])
def test_numpy_preprocessing_defence(case: Case, images: np.ndarray, hflip: bool) -> None:
    if case.name in OWN_INPUTS:
        pytest.skip("is not a function of the preprocessed data")
    squeezed = np.rint(images * 7).astype(np.float32) / 7
    defended = several_classes(squeezed, preprocessing_defences=FeatureSqueezing((0.0, 1.0), bit_depth=3))
    found = case.make(defended, hflip=hflip).generate(images, Y)
    assert close(found, case.make(several_classes(squeezed), hflip=hflip).generate(squeezed, Y), 1e-5)


@every_attack
def test_divergence_is_reported_with_its_step(case: Case, images: np.ndarray) -> None:
    if "learning_rate" not in parameters(case.attack):
        pytest.skip("has no learning rate")
    victim = several_classes(images)
    before = everything(victim)
    long = {"max_iter": 20} if "max_iter" in parameters(case.attack) else {"nb_epochs": 10}
    with pytest.raises(TrainingDivergedError, match=r"NaN or infinite (at step \d+ of|after) \d+.*Lower the learning"):
        case.make(victim, learning_rate=1e30, **long).generate(images, Y)
    assert everything(victim) == before


# ---------------------------------------------------------------------- on a GPU
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch")
@every_attack
def test_surrogates_stay_on_the_victims_device(case: Case, images: np.ndarray) -> None:
    """A victim on the GPU gives a surrogate on the GPU, twice the same; one on the CPU stays there on a CUDA host."""
    for device_type, expected in (("gpu", "cuda"), ("cpu", "cpu")):
        victim = several_classes(images, device_type=device_type)
        first = case.make(victim).generate(images, Y)
        again = case.make(victim).generate(images, Y)
        assert first.device.type == expected
        assert all(parameter.device.type == expected for parameter in first.model.parameters())
        np.testing.assert_allclose(first.predict(images), again.predict(images), atol=1e-4)
        cost = first.surrogate_info["cost"]
        assert cost["peak_memory_of"] == ("device" if expected == "cuda" else "process")
        assert cost["peak_memory_bytes"] > 0
