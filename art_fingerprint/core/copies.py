"""True copies of networks and of classifiers.

ART's own cloning and pickling write weights to disk and share objects; both are avoided here.
"""

from __future__ import annotations

import copy
import inspect
import logging
from types import MethodType
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn.utils import prune

from art_fingerprint.core.classifier import LogitsNetwork, clip_bounds, network_of
from art_fingerprint.core.guard import HOOK_DICTS, evaluating
from art_fingerprint.core.seeding import forked_random_state, torch_generator
from art_fingerprint.exceptions import InvalidInputError

logger = logging.getLogger(__name__)

# Re-parametrisations live in pre-hooks of these modules; without them a copy would compute something else.
_PARAMETRISATION_MODULES = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm", "torch.nn.utils.prune")


def clone_network(network: nn.Module) -> nn.Module:
    """Deep-copy a network: no shared storage, no hooks, no gradients, pruning made permanent, no files written.

    :raises InvalidInputError: it holds what cannot be copied, or weights that hooks compute.
    """
    # Re-parametrised weights are results of autograd, which deepcopy refuses: hand it detached copies of those.
    memo: dict[int, Any] = {}
    for module in network.modules():
        _check_hooks(module)
        for value in (*vars(module).values(), *module._buffers.values()):
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, Tensor) and not part.is_leaf:
                    memo[id(part)] = part.detach().clone()
    twin: nn.Module = _copied(network, "The classifier's model", memo)
    for module in twin.modules():
        inner = getattr(module, "_orig_mod", None)
        if isinstance(inner, nn.Module):  # a compiled part: the copy's program would be the original's
            module.forward = inner.forward
            continue
        # A forward put on the instance is a closure over the *original* weights (HuggingFace wrappers do this), unless
        # it is a method, which deepcopy binds to the copy.
        patched = vars(module).get("forward")
        if patched is not None and not (isinstance(patched, MethodType) and patched.__self__ is module):
            logger.info("A %s has a forward() put on the instance; the copy has its class's.", type(module).__name__)
            del module.forward
        for name in HOOK_DICTS:
            hooks = getattr(module, name, None)
            if hooks:
                for key in [k for k, hook in hooks.items() if not _reparametrises(hook)]:
                    del hooks[key]
        for name in [n[: -len("_orig")] for n, _ in module.named_parameters(recurse=False) if n.endswith("_orig")]:
            if hasattr(module, f"{name}_mask"):
                prune.remove(module, name)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin


def _reparametrises(hook: object) -> bool:
    return type(hook).__module__ in _PARAMETRISATION_MODULES


def _check_hooks(module: nn.Module) -> None:
    """Refuse weights that a hook of the user's computes from parameters: without it they would stay as they are."""
    if all(_reparametrises(hook) for hook in module._forward_pre_hooks.values()):
        return
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and any(known.startswith(f"{name}_") for known in module._parameters):
            raise InvalidInputError(
                f"A {type(module).__name__} of the model computes its {name!r} in a forward pre-hook, which copies do "
                "not take over: use torch.nn.utils.parametrize instead."
            )


def _copied(thing: Any, what: str, memo: dict[int, Any] | None = None) -> Any:
    try:
        return copy.deepcopy(thing, memo)
    except Exception as error:  # locks, open files, results of autograd, whatever user code refuses
        raise InvalidInputError(
            f"{what} cannot be copied ({type(error).__name__}: {error}): take out of it what is no part of the model, "
            "or give its class a __deepcopy__."
        ) from error


def check_copy(classifier: PyTorchClassifier, twin: nn.Module) -> None:
    """Raise unless a copy of a classifier's network answers as the network does, on two random samples.

    Cost: three forward passes.

    :raises InvalidInputError: it does not, though the network answers the same twice.
    """
    view = LogitsNetwork(classifier, "logits")
    low, high = clip_bounds(classifier)
    unit = torch.rand((2, *classifier.input_shape), generator=torch_generator(0, "check_copy"))
    x = (low + (high - low) * unit).to(view.device)
    with torch.no_grad(), forked_random_state(), evaluating(view.network), evaluating(twin):
        first, again, own = (net(view.preprocess(x.clone())) for net in (view.network, view.network, twin))
    if not all(isinstance(output, Tensor) for output in (first, again, own)):
        return  # others refuse it, and say why
    if torch.equal(first, again) and not torch.allclose(own, first, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
        raise InvalidInputError(
            "A copy of the model answers otherwise than the model: hooks, and a forward() put on the instance, are not "
            "copied. Write what they do into the forward() of the model's class."
        )


def clone_classifier(
    classifier: PyTorchClassifier, network: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
) -> PyTorchClassifier:
    """Return a new classifier with the metadata of ``classifier`` around a copy of its network (or around ``network``).

    Loss, shapes, class count, clip values, channel order, preprocessing, defences and device are kept.

    :param classifier: The classifier to copy. It is only read.
    :param network: Network of the new classifier, used as it is. Default: a :func:`clone_network` of the original's.
    :param optimizer: Optimiser of the new classifier. Default: one of the original's type and settings on the new
        parameters, or none if the original has none.
    :raises InvalidInputError: it has a HuggingFace processor.
    """
    if getattr(classifier, "processor", None) is not None:
        raise InvalidInputError(
            f"The {type(classifier).__name__} has a `processor`, which a PyTorchClassifier cannot take over: wrap "
            "model and processor in one nn.Module that returns the logits."
        )
    network = clone_network(network_of(classifier)) if network is None else network
    if optimizer is None and classifier.optimizer is not None:
        optimizer = _optimizer_like(classifier.optimizer, network)
    device = classifier.device
    with torch.cuda.device(device if device.type == "cuda" else -1):
        return PyTorchClassifier(
            model=network,
            loss=_copied(classifier.loss, "The classifier's loss"),
            input_shape=tuple(classifier.input_shape),
            nb_classes=classifier.nb_classes,
            optimizer=optimizer,
            channels_first=classifier.channels_first,
            clip_values=copy.deepcopy(classifier.clip_values),
            preprocessing_defences=copy.deepcopy(classifier.preprocessing_defences),
            postprocessing_defences=copy.deepcopy(classifier.postprocessing_defences),
            preprocessing=copy.deepcopy(classifier.preprocessing),
            device_type="cpu" if device.type == "cpu" else "gpu",
        )


def _optimizer_like(optimizer: torch.optim.Optimizer, network: nn.Module) -> torch.optim.Optimizer | None:
    # `initial_lr` is a scheduler's trace; most other keys of a group are constructor arguments, AdamW's
    # `decoupled_weight_decay` is not.
    group = optimizer.param_groups[0]
    options = copy.deepcopy({k: v for k, v in group.items() if k not in ("params", "initial_lr")})
    accepted = inspect.signature(type(optimizer)).parameters
    try:
        twin = type(optimizer)(
            network.parameters(),
            **{k: v for k, v in options.items() if k in accepted},  # type: ignore[arg-type]
        )
    except (TypeError, ValueError) as error:
        logger.info("The victim's %s cannot be rebuilt (%s); the copy has none.", type(optimizer).__name__, error)
        return None
    twin.param_groups[0].update(options)
    return twin
