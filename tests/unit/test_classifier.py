"""Access to a PyTorchClassifier: true copies, protection of the original, the white-box view, and what is refused."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from art import config
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import JpegCompression
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from art_fingerprint.core.classifier import (
    LogitsNetwork,
    Preprocessing,
    check_classifier,
    clip_bounds,
    has_batch_norm,
    network_of,
)
from art_fingerprint.core.copies import clone_classifier, clone_network
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.guard import guarded
from art_fingerprint.exceptions import InvalidInputError
from tests.conftest import TinyCNN, wrap

Make = Callable[..., PyTorchClassifier]


def storages(network: nn.Module) -> set[int]:
    """Addresses of every tensor reachable from a network's modules, hidden attributes and hooks' closures included."""
    found = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        found += [value for value in vars(module).values() if isinstance(value, Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in found}


def outputs(network: nn.Module, images: np.ndarray) -> Tensor:
    with torch.no_grad():
        return network.eval()(torch.from_numpy(images))


# ---------------------------------------------------------------------- copies
def test_a_copy_computes_the_same_and_shares_nothing(make_classifier: Make, images: np.ndarray) -> None:
    classifier = make_classifier()
    twin = clone_classifier(classifier)
    assert twin is not classifier
    assert network_digest(twin.model) == network_digest(classifier.model)
    assert not storages(twin.model) & storages(classifier.model)
    np.testing.assert_array_equal(twin.predict(images), classifier.predict(images))
    before = network_digest(classifier.model)
    with torch.no_grad():
        for tensor in [*twin.model.parameters(), *twin.model.buffers()]:
            tensor.zero_()
    assert network_digest(classifier.model) == before


def test_a_copy_keeps_the_metadata(make_classifier: Make) -> None:
    rounded = Rounded(decimals=2)
    compression = JpegCompression(clip_values=(0.0, 1.0), channels_first=True)
    network = make_classifier(channels=3).model
    classifier = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        (3, 8, 8),
        4,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.8, nesterov=True),
        clip_values=(-1.0, 2.0),
        preprocessing=(np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])),
        preprocessing_defences=[compression],
        postprocessing_defences=[rounded],
        device_type="cpu",
    )
    twin = clone_classifier(classifier)
    for name in ("input_shape", "nb_classes", "channels_first", "device"):
        assert getattr(twin, name) == getattr(classifier, name)
    np.testing.assert_array_equal(twin.clip_values, classifier.clip_values)
    assert isinstance(twin.loss, nn.CrossEntropyLoss)
    assert twin.loss.label_smoothing == 0.1
    np.testing.assert_array_equal(twin.preprocessing.mean, classifier.preprocessing.mean)
    np.testing.assert_array_equal(twin.preprocessing.std, classifier.preprocessing.std)
    assert [type(d) for d in twin.preprocessing_defences] == [JpegCompression]
    assert [type(d) for d in twin.postprocessing_defences] == [Rounded]
    assert twin.loss is not classifier.loss
    assert twin.preprocessing is not classifier.preprocessing
    assert twin.preprocessing_defences[0] is not compression
    x = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(twin.predict(x), classifier.predict(x))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.3, "momentum": 0.8, "weight_decay": 1e-4}),
        (torch.optim.Adam, {"lr": 0.02, "betas": (0.8, 0.9), "amsgrad": True}),
        (torch.optim.AdamW, {"lr": 0.02}),
        (torch.optim.RMSprop, {"lr": 0.02, "alpha": 0.7}),
    ],
)
def test_a_copy_has_its_own_optimiser_of_the_same_kind(
    make_classifier: Make, kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    network = make_classifier().model
    optimizer = kind(network.parameters(), **options)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    network(torch.rand(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    twin = clone_classifier(wrap(network, optimizer=optimizer))
    assert type(twin.optimizer) is kind
    assert [id(p) for group in twin.optimizer.param_groups for p in group["params"]] == [
        id(p) for p in twin.model.parameters()
    ]
    for name, value in options.items():
        assert twin.optimizer.param_groups[0][name] == value
    assert not twin.optimizer.state
    before, own = network_digest(network), network_digest(twin.model)
    twin.model(torch.rand(4, 1, 8, 8)).sum().backward()
    twin.optimizer.step()
    assert network_digest(twin.model) != own
    assert network_digest(network) == before


def test_optimisers_that_cannot_be_rebuilt(make_classifier: Make) -> None:
    class Odd(torch.optim.SGD):
        def __init__(self, params: Any, secret: int) -> None:
            super().__init__(params, lr=0.1 * secret)

    network = make_classifier().model
    assert clone_classifier(wrap(network, optimizer=Odd(network.parameters(), 3))).optimizer is None
    assert clone_classifier(wrap(network)).optimizer is None
    other = TinyCNN()
    own = torch.optim.SGD(other.parameters(), lr=0.1)
    twin = clone_classifier(wrap(network), other, own)
    assert twin.model is other
    assert twin.optimizer is own


def test_a_copy_writes_nothing(make_classifier: Make) -> None:
    def files() -> list[Path]:
        return sorted(Path(config.ART_DATA_PATH).rglob("*"))

    before = files()
    clone_classifier(make_classifier())
    with guarded(make_classifier()):
        pass
    assert files() == before
    assert not os.path.samefile(config.ART_DATA_PATH, Path.home())


def test_a_copy_has_no_hooks_no_gradients_and_no_patched_forward(make_classifier: Make, images: np.ndarray) -> None:
    network = make_classifier().model
    expected = outputs(network, images)
    calls: list[str] = []
    network.register_forward_hook(lambda *_: calls.append("root"))
    network.block1[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    network.block2.register_full_backward_hook(lambda *_: calls.append("backward"))
    network.pool.register_forward_hook(lambda *_, **__: calls.append("keywords"), with_kwargs=True)
    original = network.head.forward

    def patched(x: Tensor) -> Tensor:
        calls.append("patched")
        return original(x)

    network.head.forward = patched
    network(torch.from_numpy(images)).sum().backward()
    assert {"root", "before", "backward", "keywords", "patched"} <= set(calls)
    calls.clear()
    twin = clone_network(network)
    assert all(p.grad is None for p in twin.parameters())
    torch.testing.assert_close(outputs(twin, images), expected)
    twin(torch.from_numpy(images)).sum().backward()
    assert calls == []
    assert network.head.weight.grad is not None
    network.eval()(torch.from_numpy(images))
    assert {"root", "before", "keywords", "patched"} == set(calls)


def test_a_copy_keeps_a_method_put_on_the_instance_bound_to_itself(images: np.ndarray) -> None:
    network = TinyCNN()
    network.head.forward = MethodType(lambda self, x: 3 * nn.Linear.forward(self, x), network.head)
    expected = outputs(network, images)
    twin = clone_network(network)
    torch.testing.assert_close(outputs(twin, images), expected)
    with torch.no_grad():
        twin.head.weight.zero_()
        twin.head.bias.zero_()
    assert not outputs(twin, images).any()
    torch.testing.assert_close(outputs(network, images), expected)


def test_a_buffer_may_be_a_result_of_autograd(images: np.ndarray) -> None:
    network = TinyCNN()
    network.register_buffer("norm", network.head.weight.norm())
    twin: Any = clone_network(network)
    assert torch.equal(twin.norm, network.norm)
    assert not twin.norm.requires_grad


def test_pruning_becomes_permanent_in_the_copy(make_classifier: Make, images: np.ndarray) -> None:
    network = make_classifier().model
    prune.l1_unstructured(network.block1[0], "weight", 0.5)
    prune.random_unstructured(network.head, "bias", 0.5)
    prune.random_unstructured(network.head, "weight", 0.3)
    network(torch.from_numpy(images))  # leaves results of autograd in the pruned attributes
    expected = outputs(network, images)
    twin: Any = clone_network(network)
    assert {name for name, _ in twin.named_parameters()} == {name for name, _ in TinyCNN().named_parameters()}
    assert not any("mask" in name for name, _ in twin.named_buffers())
    assert not storages(twin) & storages(network)
    torch.testing.assert_close(outputs(twin, images), expected)
    assert float((twin.block1[0].weight == 0).float().mean()) == 0.5
    assert prune.is_pruned(network)
    twin.train()(torch.from_numpy(images)).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "apply",
    [nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm],
    ids=["weight_norm", "spectral_norm", "parametrised_weight_norm", "parametrised_spectral_norm"],
)
def test_reparametrised_modules_are_copied_and_train_alone(
    make_classifier: Make, images: np.ndarray, apply: Callable[[nn.Module], nn.Module]
) -> None:
    network = make_classifier().model
    apply(network.block1[0])
    apply(network.head)
    network.train()(torch.from_numpy(images))
    expected = outputs(network, images)
    classifier = wrap(network)
    twin = clone_classifier(classifier).model
    torch.testing.assert_close(outputs(twin, images), expected)
    assert [n for n, _ in twin.named_parameters()] == [n for n, _ in network.named_parameters()]
    twin(torch.from_numpy(images)).square().sum().backward()
    with torch.no_grad():
        for parameter in twin.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert not torch.allclose(outputs(twin, images), expected)
    torch.testing.assert_close(outputs(network, images), expected)


def test_tied_weights_stay_tied(images: np.ndarray) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
            self.second.weight = self.first.weight
            self.head = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x.flatten(1))))

    twin = clone_network(Tied())
    assert isinstance(twin, Tied)
    assert twin.first.weight is twin.second.weight


def test_networks_that_keep_results_are_copied(images: np.ndarray) -> None:
    class Keeper(TinyCNN):
        last: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.block1(x)
            return self.head(self.pool(self.block3(self.block2(self.last))).flatten(1))

    network = Keeper()
    expected = outputs(network, images)
    network(torch.from_numpy(images))
    twin = clone_network(network)
    torch.testing.assert_close(outputs(twin, images), expected)


# ---------------------------------------------------------------------- protection
def full_state(classifier: PyTorchClassifier) -> dict[str, object]:
    modules = dict(classifier.model.named_modules())
    return {
        "weights": network_digest(classifier.model),
        "training": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("hooks")]
            for name, module in modules.items()
        },
        "parameters": {name: id(p) for name, p in classifier.model.named_parameters()},
        "frozen": {name: p.requires_grad for name, p in classifier.model.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.tolist() for name, p in classifier.model.named_parameters()},
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # type: ignore[index]  # noqa: NPY002
    }


def unusual(classifier: PyTorchClassifier) -> PyTorchClassifier:
    """Bring a classifier into a state in which nothing has its default value."""
    network = classifier.model
    network.train()
    network.block2.eval()
    network.head.weight.requires_grad_(False)
    network.block1[0].weight.grad = torch.ones_like(network.block1[0].weight)
    network.block3.register_forward_hook(lambda *_: None)
    return classifier


def havoc(network: Any) -> None:
    """Change everything that a model holds."""
    network.eval()
    network.block2.train()
    network(torch.rand(8, 1, 8, 8)).sum().backward()
    network.requires_grad_(False)
    network.head.weight.requires_grad_(True)
    network.block1.register_forward_hook(lambda *_: None)
    network.block2.register_full_backward_hook(lambda *_: None)
    network.block3._forward_hooks.clear()
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.add_(1)
        network.block1[0].weight.grad.mul_(5)
    network.block3[0].bias.grad = torch.ones_like(network.block3[0].bias)
    network.block3[0].weight = nn.Parameter(torch.zeros(1))
    network.block1[1].running_mean = torch.zeros(6)
    network.register_buffer("extra", torch.zeros(3))
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_guarded_gives_everything_back(make_classifier: Make, error: type[BaseException] | None) -> None:
    first, second = unusual(make_classifier()), unusual(make_classifier(1))
    before = full_state(first), full_state(second)

    def run() -> None:
        with guarded(first, second, "not a classifier"):
            havoc(first.model)
            havoc(second.model)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert (full_state(first), full_state(second)) == before


def test_guarded_without_weights_still_gives_flags_hooks_and_random_state_back(make_classifier: Make) -> None:
    classifier = unusual(make_classifier())
    before = full_state(classifier)
    with guarded(classifier, weights=False):
        classifier.model.eval().requires_grad_(False)
        classifier.model.block1.register_forward_hook(lambda *_: None)
        classifier.predict(np.zeros((3, 1, 8, 8), np.float32))
        torch.rand(3)
    assert full_state(classifier) == before


def test_guarded_bears_scripted_modules() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    classifier = wrap(nn.Sequential(scripted, nn.Identity()).train())
    with guarded(classifier, weights=False):
        classifier.model.eval()
    assert all(module.training for module in classifier.model.modules())


def test_guarded_keeps_optimisers_valid(make_classifier: Make) -> None:
    classifier = make_classifier()
    optimizer = torch.optim.SGD(classifier.model.parameters(), lr=0.1)
    with guarded(classifier):
        havoc(classifier.model)
    before = network_digest(classifier.model)
    classifier.model(torch.rand(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    assert network_digest(classifier.model) != before


# ---------------------------------------------------------------------- the white-box view
def test_the_view_is_the_network_behind_its_preprocessing(make_classifier: Make, images: np.ndarray) -> None:
    classifier = make_classifier(preprocessing=(np.array([0.4]), np.array([0.3])), postprocessing_defences=[Rounded(1)])
    plain = make_classifier(preprocessing=(np.array([0.4]), np.array([0.3])))
    view = check_classifier(classifier)
    expected = torch.from_numpy(plain.predict(images))
    for batch_size in (1, 7, 100):
        torch.testing.assert_close(view.predict(torch.from_numpy(images), batch_size), expected)
    assert view.kind == "logits"
    assert view.preprocess.differentiable
    x = torch.from_numpy(images).requires_grad_(True)
    (gradient,) = torch.autograd.grad(view(x)[:, 0].sum(), x)
    inner = ((torch.from_numpy(images) - 0.4) / 0.3).requires_grad_(True)
    (expected_gradient,) = torch.autograd.grad(plain.model(inner)[:, 0].sum(), inner)
    torch.testing.assert_close(gradient, expected_gradient / 0.3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 4), (3, 4, 3), (6,)])
@pytest.mark.parametrize("numbers", [(0, 1), (0.4, 0.3), (0.0, 0.5), (0.1, 1.0), "channels", "pixels"])
def test_standardisation_gives_the_numbers_of_art(shape: tuple[int, ...], numbers: Any) -> None:
    draws = np.random.default_rng(0)
    if isinstance(numbers, str):
        size = shape if numbers == "pixels" else shape[:1]
        numbers = draws.random(size), draws.random(size) + 0.5
    classifier = wrap(nn.Linear(1, 4), shape, preprocessing=numbers)
    preprocess = Preprocessing(classifier)
    assert preprocess.differentiable
    for n in (5, 2):
        x = torch.rand(n, *shape, requires_grad=True)
        expected, _ = classifier._apply_preprocessing(x, y=None, fit=False, no_grad=False)
        prepared = preprocess(x)
        assert torch.equal(prepared, expected)
        assert prepared.data_ptr() != x.data_ptr()
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (prepared, expected)), rtol=0, atol=0)
        assert not preprocess(x.detach()).requires_grad


class ScribblingDefence(PreprocessorPyTorch):
    """Writes to its input."""

    params: ClassVar[list[str]] = []

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return x.mul_(0.5), y


@pytest.mark.parametrize("preprocessing", [None, (0.0, 1.0), (0.5, 1.0)])
def test_networks_and_defences_that_write_to_their_inputs_do_not_reach_ours(preprocessing: Any) -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 4))
    for defence in (None, ScribblingDefence(is_fitted=True, apply_fit=False, apply_predict=True)):
        defences = None if defence is None else [defence]
        view = LogitsNetwork(wrap(network, preprocessing=preprocessing, preprocessing_defences=defences))
        x = torch.rand(5, 1, 8, 8) - 0.5
        before = x.clone()
        expected = view.predict(x)
        assert torch.equal(x, before)
        x.requires_grad_(True)
        torch.testing.assert_close(view(x), expected)
        assert torch.equal(x, before)


def test_preprocessing_without_gradient_is_applied_and_said(make_classifier: Make, images: np.ndarray) -> None:
    defence = JpegCompression(clip_values=(0.0, 1.0), quality=30, channels_first=True)
    classifier = make_classifier(preprocessing_defences=[defence])
    view = check_classifier(classifier)
    assert not view.preprocess.differentiable
    torch.testing.assert_close(view.predict(torch.from_numpy(images)), torch.from_numpy(classifier.predict(images)))


def test_probabilities_become_logits_with_the_same_differences(make_classifier: Make, images: np.ndarray) -> None:
    network = make_classifier().model
    soft = wrap(nn.Sequential(network, nn.Softmax(1)).eval())
    view = LogitsNetwork(soft)
    with pytest.warns(UserWarning, match="returns probabilities"):
        logits = view.predict(torch.from_numpy(images))
    assert view.kind == "probabilities"
    torch.testing.assert_close(logits, torch.log_softmax(outputs(network, images), 1), atol=1e-5, rtol=1e-5)
    assert LogitsNetwork(soft, "logits").predict(torch.from_numpy(images)).min() >= 0


def test_standardisation(make_classifier: Make) -> None:
    mean, std = LogitsNetwork(make_classifier(channels=3)).standardisation
    assert (mean.tolist(), std.tolist()) == ([0, 0, 0], [1, 1, 1])
    mean, std = LogitsNetwork(make_classifier(channels=3, preprocessing=(0.25, 0.5))).standardisation
    assert (mean.tolist(), std.tolist()) == ([0.25] * 3, [0.5] * 3)
    for column in ((3,), (3, 1, 1)):
        pair = tuple(np.array(values).reshape(column) for values in ([0, 0.25, 0.5], [0.5, 1, 2]))
        mean, std = LogitsNetwork(make_classifier(channels=3, preprocessing=pair)).standardisation
        assert (mean.tolist(), std.tolist()) == ([0, 0.25, 0.5], [0.5, 1, 2])
    per_pixel = make_classifier(channels=3, preprocessing=(np.zeros((3, 8, 8)), np.ones((3, 8, 8))))
    with pytest.raises(InvalidInputError, match="per pixel"):
        _ = LogitsNetwork(per_pixel).standardisation
    other = make_classifier(channels=3, preprocessing=JpegCompression((0, 1), channels_first=True))
    mean, std = LogitsNetwork(other).standardisation
    assert (mean.tolist(), std.tolist()) == ([0, 0, 0], [1, 1, 1])


def test_clip_bounds(make_classifier: Make) -> None:
    assert clip_bounds(make_classifier()) == (0.0, 1.0)
    assert clip_bounds(make_classifier(clip_values=None)) == (0.0, 1.0)
    assert clip_bounds(make_classifier(clip_values=(-2, 3))) == (-2.0, 3.0)


def test_batch_norm_is_noticed() -> None:
    assert has_batch_norm(TinyCNN())
    assert not has_batch_norm(nn.Linear(2, 2))


# ---------------------------------------------------------------------- what is unwrapped and what is refused
class Answers(nn.Module):
    """A network whose answer is made by a function."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda z: (z, z), "tuple"),
        (lambda z: {"logits": z}, "dict"),
        (lambda z: z[:, :1], "two-logit"),
        (lambda z: z[:, 0], "nb_classes"),
        (lambda z: z[:, :, None], "nb_classes"),
        (lambda z: z[:, :3], "3 scores"),
    ],
)
def test_networks_that_are_no_classifiers(answer: Callable[[Tensor], object], message: str) -> None:
    classifier = wrap(Answers(answer).train())
    before = network_digest(classifier.model)
    with pytest.raises(InvalidInputError, match=message):
        check_classifier(classifier)
    assert classifier.model.training
    assert network_digest(classifier.model) == before


def test_checking_does_not_decide_the_kind_on_grey_images() -> None:
    network = Answers(lambda z: z)
    with torch.no_grad():
        network.linear.weight.zero_()
        network.linear.bias.fill_(0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        view = check_classifier(wrap(network))
    assert view.kind == "auto"


def test_a_model_that_does_not_take_the_input_shape() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(InvalidInputError, match=r"input_shape=\(1, 9, 8\)"):
        check_classifier(wrap(network, input_shape=(1, 9, 8)))


def test_wrappers_are_taken_off(make_classifier: Make, images: np.ndarray) -> None:
    network = make_classifier().model
    parallel = wrap(nn.DataParallel(network))
    assert network_of(parallel) is network
    compiled: Any = torch.compile(network)
    assert network_of(wrap(compiled)) is network
    assert network_of(wrap(nn.DataParallel(compiled))) is network
    twin = clone_classifier(parallel)
    assert type(twin.model) is TinyCNN
    np.testing.assert_allclose(twin.predict(images), parallel.predict(images), atol=1e-6)
    assert check_classifier(parallel).network is network


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(make_classifier: Make) -> None:
    traced = torch.jit.trace(make_classifier().model, torch.rand(2, 1, 8, 8))
    with pytest.raises(InvalidInputError, match="TorchScript"):
        check_classifier(wrap(traced))


def test_quantised_layers_are_refused() -> None:
    quantised = pytest.importorskip("torch.ao.nn.quantized", reason="this torch has no eager quantisation")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), quantised.DeQuantize())
    with pytest.raises(InvalidInputError, match="quantised"):
        check_classifier(wrap(network))


def test_sequentials_with_their_own_forward_give_a_warning() -> None:
    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.warns(UserWarning, match="own forward"):
        network_of(wrap(Own(nn.Flatten(), nn.Linear(64, 4))))
