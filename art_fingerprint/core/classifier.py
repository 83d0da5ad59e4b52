"""Access to an ART ``PyTorchClassifier``: its network, its preprocessing, its logits.

ART's activation taps are never removed. They are avoided here, and no other module of the package touches ART's private
attributes.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from art.defences.postprocessor import ClassLabels
from art.estimators.classification import BlackBoxClassifier, BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn

from art_fingerprint.core.guard import check_initialised, evaluating, guarded
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.outputs import OutputKind, detect_kind, to_logits
from art_fingerprint.exceptions import InvalidInputError


def network_of(classifier: PyTorchClassifier) -> nn.Module:
    """Return the user's module behind a classifier, without ``DataParallel`` or ``torch.compile`` wrappers.

    :raises InvalidInputError: for TorchScript and quantised modules, which can be neither trained nor cut, and for lazy
        ones without weights.
    """
    network: nn.Module = classifier.model
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            break
    check_initialised(network)
    if isinstance(network, torch.jit.ScriptModule):
        raise InvalidInputError("The classifier's model is a TorchScript module; pass the nn.Module it was made from.")
    if any(".quantized" in type(module).__module__ for module in network.modules()):
        raise InvalidInputError("The classifier's model has quantised layers; pass the float model.")
    if isinstance(network, nn.Sequential) and type(network).forward is not nn.Sequential.forward:
        warnings.warn(
            f"{type(network).__name__} is an nn.Sequential with its own forward(), which ART's predict() ignores: "
            "wrap it in a plain nn.Module, or predictions differ between ART and this package.",
            stacklevel=2,
        )
    return network


def has_batch_norm(network: nn.Module) -> bool:
    """Tell whether the network has layers that take statistics over the batch in training mode."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


class Preprocessing:
    """The classifier's preprocessing as one callable on tensors, on the device.

    What it returns never shares memory with its argument, for networks and defences may write to their inputs.

    :ivar differentiable: whether every step runs in torch, so that gradients reach the raw input.
    """

    def __init__(self, classifier: PyTorchClassifier) -> None:
        self._classifier = classifier
        self.differentiable = bool(classifier.all_framework_preprocessing)
        operations = classifier.preprocessing_operations
        alone: Any = operations[0] if len(operations) == 1 else None
        plain = type(alone) is StandardisationMeanStdPyTorch and alone.apply_predict
        self._mean_std = (alone.mean, alone.std) if plain else None
        self._identity = plain and not alone.mean.any() and bool((alone.std == 1).all())
        self._constants: list[Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._identity:
            prepared = x.clone()
        elif self._mean_std is not None:
            prepared = self._standardised(x, *self._mean_std)
        elif self.differentiable:
            own = x.clone()
            prepared, _ = self._classifier._apply_preprocessing(own, y=None, fit=False, no_grad=not x.requires_grad)
        else:
            array, _ = self._classifier._apply_preprocessing(x.detach().cpu().numpy().copy(), y=None, fit=False)
            prepared = torch.from_numpy(np.ascontiguousarray(array))
        prepared = prepared.to(device=x.device, dtype=torch.float32)
        # of a HuggingFaceClassifierPyTorch, which hides it between its preprocessing and its model
        processor = getattr(self._classifier, "processor", None)
        return prepared if processor is None else processor(prepared)

    def _standardised(self, x: Tensor, mean: np.ndarray, std: np.ndarray) -> Tensor:
        # The numbers of ART's own step, which sends its two constants to the device with every batch.
        if self._constants is None:
            constants = broadcastable_mean_std(x, mean, std)
            self._constants = [torch.tensor(value, device=x.device, dtype=torch.float32) for value in constants]
        return (x - self._constants[0]) / self._constants[1]


class LogitsNetwork(nn.Module):
    """A classifier as a plain network: raw input in ``clip_values`` to logits, preprocessing inside the graph.

    Postprocessing defences are not applied: this is the white-box view. Shares the classifier's parameters.

    :param classifier: The classifier to look into.
    :param outputs: What its model returns: ``"logits"``, ``"probabilities"`` or ``"auto"`` (decided on the first
        batch). Probabilities become logits by ``log(max(p, 1e-30))``, which keeps all differences of logits.
    """

    def __init__(self, classifier: PyTorchClassifier, outputs: OutputKind = "auto") -> None:
        super().__init__()
        self.network = network_of(classifier)
        self.preprocess = Preprocessing(classifier)
        self.kind: OutputKind = outputs
        self.device: torch.device = classifier.device
        self._standardiser = classifier.preprocessing
        self._input_shape = tuple(classifier.input_shape)

    @property
    def standardisation(self) -> tuple[Tensor, Tensor]:
        """Per-channel mean and standard deviation of the preprocessing, ``(C,)`` each; 0 and 1 without one.

        :raises InvalidInputError: mean and standard deviation are given per pixel.
        """
        channels = self._input_shape[0]
        # `preprocessing` may also be any other preprocessor
        mean, std = getattr(self._standardiser, "mean", 0.0), getattr(self._standardiser, "std", 1.0)
        per_channel = [np.asarray(value, dtype=np.float32).reshape(-1) for value in (mean, std)]
        if any(len(value) not in (1, channels) for value in per_channel):
            raise InvalidInputError(
                "The classifier standardises per pixel; this option needs per-channel mean and std."
            )
        return tuple(torch.from_numpy(np.broadcast_to(v, channels).copy()) for v in per_channel)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.network(self.preprocess(x)))

    def logits(self, raw: object) -> Tensor:
        """Turn what the network returned into logits."""
        output = check_output(raw)
        if self.kind == "auto":
            self.kind = detect_kind(output.detach())
            if self.kind == "probabilities":
                warnings.warn("The model returns probabilities; their logarithm is used as logits.", stacklevel=2)
        return to_logits(output) if self.kind == "probabilities" else output

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 128) -> Tensor:
        """Return the logits of ``x`` on the host, ``(n, nb_classes)`` float32, ``batch_size`` samples at a time.

        Cost: one forward sample each.
        """
        return torch.cat([self(part.to(self.device)).float().cpu() for part in x.split(batch_size)])


def check_output(raw: object) -> Tensor:
    """Return a network's output if it is one tensor of class scores, else say what to do."""
    if not isinstance(raw, Tensor):
        raise InvalidInputError(
            f"The model returns {type(raw).__name__}, but one tensor of logits (n, nb_classes) is needed: wrap it in "
            "an nn.Module that returns the logits alone (torchvision's Inception: aux_logits=False)."
        )
    if raw.ndim != 2 or raw.shape[1] < 2:
        raise InvalidInputError(
            f"The model returns shape {tuple(raw.shape)}, but (n, nb_classes) with nb_classes >= 2 is needed: a "
            "single-logit head must become a two-logit head (0, z)."
        )
    return raw


def check_classifier(classifier: PyTorchClassifier) -> LogitsNetwork:
    """Check on two mid-range samples that a classifier fits together, and return its white-box view.

    :raises InvalidInputError: if the model is not a float network, does not run on ``input_shape``, or its output is
        not ``(n, nb_classes)``.
    """
    view = LogitsNetwork(classifier, "logits")
    if classifier.nb_classes < 2:
        raise InvalidInputError(
            f"nb_classes is {classifier.nb_classes}; a classifier of two or more classes is needed."
        )
    low, high = clip_bounds(classifier)
    if classifier.clip_values is not None and any(np.ptp(bound) for bound in classifier.clip_values):
        warn_caller(
            f"The classifier's clip_values differ from one input value to the next; their extremes, {low:g} and "
            f"{high:g}, are taken for all of them."
        )
    middle = float((low + high) / 2)
    x = torch.full((2, *classifier.input_shape), middle, dtype=torch.float32, device=classifier.device)
    with guarded(classifier, weights=False), torch.no_grad():
        view.network.eval()
        try:
            width = view(x).shape[1]
        except InvalidInputError:
            raise
        except Exception as error:  # the model's own code raises anything
            shape = tuple(classifier.input_shape)
            raise InvalidInputError(
                f"The model fails on two samples of input_shape={shape}: {type(error).__name__}: {error}"
            ) from error
    if width != classifier.nb_classes:
        raise InvalidInputError(
            f"The classifier says nb_classes={classifier.nb_classes}, but its model returns {width} scores."
        )
    view.kind = "auto"  # to be decided on real data: the scores of two grey images may sum to one by chance
    return view


def check_gradient(view: LogitsNetwork, x: Tensor) -> None:
    """Raise unless a classifier's answers have a gradient in its inputs. Cost: one forward pass.

    :param view: The classifier.
    :param x: Samples, of which the first is taken.
    """
    if not view.preprocess.differentiable:
        raise InvalidInputError(
            "The victim's preprocessing defences have no torch gradient, which this verifier's extraction needs: "
            "use their PyTorch versions, or move them into the model."
        )
    with evaluating(view.network):
        logits = view.network(view.preprocess(x[:1].to(view.device, copy=True).requires_grad_()))
    if not check_output(logits).requires_grad:
        raise InvalidInputError(
            "The victim's answers have no gradient in its inputs (tokens, rounding, detach()), which this verifier's "
            "extraction needs."
        )


def direct_view(classifier: Any) -> LogitsNetwork | None:
    """Return a view of a classifier whose ``predict`` shows what its network answers, ``None`` for any other."""
    own = getattr(classifier.predict, "__func__", None) is not PyTorchClassifier.predict
    if not isinstance(classifier, PyTorchClassifier) or own or classifier.postprocessing_defences:
        return None
    try:
        return LogitsNetwork(classifier, "logits")
    except InvalidInputError:  # TorchScript, or quantised layers
        return None


def client_answers(classifier: Any, x: np.ndarray) -> np.ndarray:
    """Return what a client of a classifier sees, for one batch: what ``predict`` answers, or would but for two defects.

    ART's black boxes copy what their function returns into an array ``(n, nb_classes)``, where class indices ``(n,)``
    fail, or pass for scores if n happens to be 1 or ``nb_classes``: here the function is called itself. ART's
    ``ClassLabels`` marks the labels of a whole batch in every row: here it sees one sample at a time.

    :param classifier: An ART classifier of any framework.
    :param x: Samples ``(n, *input_shape)``.
    """
    defences = getattr(classifier, "postprocessing_defences", None) or ()
    if len(x) > 1 and any(isinstance(defence, ClassLabels) for defence in defences):
        return np.concatenate([client_answers(classifier, row[None]) for row in x])
    if type(classifier).predict not in (BlackBoxClassifier.predict, BlackBoxClassifierNeuralNetwork.predict):
        return np.asarray(classifier.predict(x))
    prepared, _ = classifier._apply_preprocessing(x, y=None, fit=False)
    answer = np.asarray(classifier._predict_fn(prepared))
    return answer if answer.ndim == 1 else np.asarray(classifier._apply_postprocessing(preds=answer, fit=False))


def clip_bounds(classifier: PyTorchClassifier) -> tuple[float, float]:
    """Return the classifier's ``clip_values`` as two floats; ``(0, 1)`` if it has none.

    :raises InvalidInputError: they are not finite.
    """
    if classifier.clip_values is None:
        return 0.0, 1.0
    low, high = (float(pick(bound)) for pick, bound in zip((np.min, np.max), classifier.clip_values, strict=True))
    if not np.isfinite([low, high]).all():
        raise InvalidInputError(f"clip_values must be finite, got ({low:g}, {high:g}); None stands for (0, 1).")
    return low, high
