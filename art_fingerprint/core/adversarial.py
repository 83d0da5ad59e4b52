"""Adversarial examples for an ART classifier: torchattacks, ART's evasion attacks and our own engines behind one call.

torchattacks wants images in [0, 1] and a module that returns logits; it restores only the root's training flag, fills
parameter gradients, and draws from the global random state. All of that is dealt with here, and nowhere else.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError
from torch import Tensor, nn
from tqdm import tqdm

from art_fingerprint.core.art_attacks import ArtFactory, bound, plain_params
from art_fingerprint.core.checks import (
    check_choice,
    check_flag,
    check_images,
    check_labels,
    check_number,
    check_seed,
    shown,
)
from art_fingerprint.core.classifier import LogitsNetwork, check_classifier, clip_bounds
from art_fingerprint.core.deepfool import deepfool
from art_fingerprint.core.guard import guarded
from art_fingerprint.core.outputs import OutputKind
from art_fingerprint.core.parameters import as_json
from art_fingerprint.core.perturbation import linf_ascent, per_channel
from art_fingerprint.core.precision import full_precision
from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.core.taps import near_names
from art_fingerprint.exceptions import FingerprintError, InvalidInputError

EPS_SPACES = ("pixel", "normalised")
ENGINES = ("auto", "torchattacks")
#: Parameters of the authors' utilities for the paper's Table IV; torchattacks' own defaults apply elsewhere.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "FGSM": {"eps": 5 / 255},
    "PGD": {"eps": 5 / 255, "alpha": 2 / 255, "steps": 10, "random_start": True},
    "DeepFool": {"steps": 40, "overshoot": 0.02},
}
# They take other attacks or training data instead of a model alone.
_COMPOSED = ("MultiAttack", "LGV")
# What our own DeepFool takes beyond torchattacks' parameters.
_OWN_PARAMS = {"DeepFool": ("nb_candidates",)}
_LENGTHS = ("eps", "alpha", "max_epsilon", "overshoot")


@dataclass(frozen=True)
class Evasion:
    """An evasion attack from torchattacks by its class name, with its parameters.

    Lengths (``eps``, ``alpha``) are shares of the classifier's input range, as in torchattacks, where images lie in
    [0, 1]: with ``clip_values=(0, 255)`` an eps of 5/255 is five grey levels. FGSM and PGD have the defaults of the
    authors' utilities for the paper's Table IV (eps 5/255, step 2/255, 10 steps, random start), DeepFool 40 steps and
    overshoot 0.02; every other class has its own.

    :ivar name: Class name in torchattacks.
    :ivar params: Constructor arguments of that class; for DeepFool also ``nb_candidates``, see :func:`.deepfool`. A
        ``seed`` that is not given is ``None`` and drawn anew for each batch.
    :ivar eps_space: ``"pixel"``, or ``"normalised"`` for FGSM and PGD: lengths are for standardised inputs, and are
        multiplied by the standard deviation of the classifier's standardisation per channel. The authors' loaders
        deliver standardised images, so their eps of 5/255 is about 1.2/255 in CIFAR10's pixels.
    :ivar engine: ``"auto"``: our batched DeepFool, and our FGSM and PGD in normalised space (one step for each channel,
        which torchattacks cannot); torchattacks otherwise. ``"torchattacks"``: always that.
    :raises InvalidInputError: an unknown name (near names are listed), unknown parameters or bad values.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    eps_space: str = "pixel"
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_choice("eps_space", self.eps_space, EPS_SPACES)
        check_choice("engine", self.engine, ENGINES)
        accepted = _parameters(self.name)
        if not isinstance(self.params, Mapping):
            raise InvalidInputError(f"`params` must be a mapping, got {shown(self.params)}.")
        own = _OWN_PARAMS.get(self.name, ()) if self.engine == "auto" else ()
        unknown = [name for name in self.params if name not in (*accepted, *own)]
        if unknown:
            raise InvalidInputError(
                f"torchattacks' {self.name} has no parameter {', '.join(map(repr, unknown))}; it has "
                f"{', '.join((*accepted, *own)) or 'none'}."
            )
        if self.eps_space == "normalised" and (self.name not in ("FGSM", "PGD") or self.engine == "torchattacks"):
            raise InvalidInputError(
                f"eps_space='normalised' is for FGSM and PGD with engine='auto', not for {self.name} with "
                f"engine={self.engine!r}."
            )
        if "seed" in accepted:  # torchattacks would take the time, or always 0
            accepted["seed"] = None
        merged = {**accepted, **DEFAULTS.get(self.name, {}), **self.params}
        for name in merged:
            if name in _LENGTHS:
                check_number(name, merged[name], 0, open_low=name != "overshoot")
            elif name == "steps" or (name == "nb_candidates" and merged[name] is not None):
                check_number(name, merged[name], 1, integer=True)
            elif name == "random_start":
                check_flag(name, merged[name])
        object.__setattr__(self, "params", merged)

    def describe(self) -> dict[str, Any]:
        """Return name, all parameters and version as JSON values, for a result's record."""
        return {
            "attack": self.name,
            "params": as_json(dict(self.params)),
            "eps_space": self.eps_space,
            "engine": self.engine,
            "torchattacks": _version(),
        }

    def examples(
        self, view: LogitsNetwork, x: Tensor, y: Tensor, nb_classes: int, bounds: tuple[float, float]
    ) -> Tensor:
        """Return adversarial examples of one batch on the device, in the classifier's own range.

        Draws come from the global random state.

        :param view: White-box view in evaluation mode, frozen.
        :param x: Images ``(n, ...)`` within ``bounds``.
        :param y: Labels ``(n,)`` int64.
        :param nb_classes: What attacks on all classes are told; torchattacks takes 10 for granted.
        :param bounds: The classifier's range.
        """
        low, high = bounds
        network = _UnitRange(view, low, high).eval()  # else torchattacks leaves it in training mode
        unit = ((x - low) / (high - low)).clamp(0, 1)
        if self.engine == "auto" and self.name == "DeepFool":
            options = {"nb_candidates": self.params.get("nb_candidates"), "overshoot": self.params["overshoot"]}
            found = deepfool(network, unit, y, max_iter=self.params["steps"], **options)
        elif self.eps_space == "normalised":
            return self._ascend(view, x, y, low, high)
        else:
            found = self._torchattacks(network, unit, y, nb_classes)
        return (low + (high - low) * found).clamp(low, high)

    def _torchattacks(self, network: nn.Module, unit: Tensor, y: Tensor, nb_classes: int) -> Tensor:
        known: dict[str, Any] = {"n_classes": nb_classes} if "n_classes" in self.params else {}
        if "seed" in self.params and self.params["seed"] is None:
            known["seed"] = int(torch.randint(2**31, ()))
        attack = _torchattacks_class(self.name)(network, **{**self.params, **known})
        attack.set_device(unit.device)
        with torch.enable_grad():
            found: Tensor = attack(unit, y)
        if not isinstance(found, Tensor) or found.shape != unit.shape:
            raise InvalidInputError(f"torchattacks' {self.name} did not return images of shape {tuple(unit.shape)}.")
        return found.detach()

    def _ascend(self, view: LogitsNetwork, x: Tensor, y: Tensor, low: float, high: float) -> Tensor:
        _, std = view.standardisation
        unit = per_channel(std, x.ndim).to(x)
        radius = self.params["eps"] * unit
        start = None
        if self.params.get("random_start"):
            start = x + radius * (2 * torch.rand_like(x) - 1)
        return linf_ascent(
            lambda points: F.cross_entropy(view(points), y, reduction="none"),
            x,
            radius=radius,
            step=radius if self.name == "FGSM" else self.params["alpha"] * unit,
            max_iter=1 if self.name == "FGSM" else self.params["steps"],
            low=low,
            high=high,
            start=start,
        )


class _UnitRange(nn.Module):
    """A classifier's logits for inputs in [0, 1]."""

    def __init__(self, view: LogitsNetwork, low: float, high: float) -> None:
        super().__init__()
        self.view = view
        self.low = low
        self.span = high - low

    def forward(self, x: Tensor) -> Tensor:
        return self.view(self.low + self.span * x)


def evasion(attack: object, **params: Any) -> Evasion | EvasionAttack | ArtFactory:
    """Return what :func:`adversarial_examples` takes: an :class:`Evasion` for a torchattacks name, others as they are.

    :param attack: Name of a torchattacks class, an :class:`Evasion`, an ART ``EvasionAttack``, or a function that makes
        one for a classifier.
    :param params: Only with a name: parameters, ``eps_space``, ``engine``.
    :raises InvalidInputError: something else, or parameters for an attack that has its own.
    """
    if isinstance(attack, str):
        options = {name: params.pop(name) for name in ("eps_space", "engine") if name in params}
        return Evasion(attack, params, **options)
    if not (isinstance(attack, Evasion | EvasionAttack) or (callable(attack) and not inspect.isclass(attack))):
        raise InvalidInputError(
            "`attack` must be the name of a torchattacks class, an Evasion, an ART EvasionAttack, or a function that "
            f"makes one for a classifier, got {shown(attack)}."
        )
    if params:
        raise InvalidInputError(f"Parameters {', '.join(params)} go with the name of an attack only.")
    return attack  # type: ignore[return-value]


def describe(attack: Evasion | EvasionAttack | ArtFactory) -> dict[str, Any]:
    """Return an attack's name and parameters as JSON values."""
    if isinstance(attack, Evasion):
        return attack.describe()
    if isinstance(attack, EvasionAttack):
        return {"attack": type(attack).__name__, "params": plain_params(attack)}
    return {"attack": getattr(attack, "__name__", type(attack).__name__), "params": {}}


def adversarial_examples(
    classifier: PyTorchClassifier,
    attack: Evasion | EvasionAttack | ArtFactory | str,
    x: np.ndarray,
    y: np.ndarray,
    *,
    outputs: OutputKind = "auto",
    batch_size: int = 128,
    seed: int = 0,
    verbose: bool = False,
) -> np.ndarray:
    """Return untargeted adversarial examples of a classifier, ``(n, *input_shape)`` float32 in its ``clip_values``.

    The attack sees logits with the classifier's preprocessing in the graph, every module in evaluation mode and frozen
    parameters, in full float32. The classifier is given back exactly as it was, also after an error: mixed
    train/eval flags, gradients, hooks. Postprocessing defences are not seen.

    Draws, such as PGD's random start, come from a random state of its own. One draw for each input value, as PGD's,
    does not depend on the batch size on a CPU; those of other attacks and of CUDA devices do.

    :param classifier: Whose examples to make.
    :param attack: See :func:`evasion`. An ART attack that belongs to another classifier is made anew for this one with
        its own parameters.
    :param x: Images in ``clip_values``.
    :param y: True labels, indices or one-hot.
    :param outputs: What the model returns. With ``"auto"`` a model of probabilities is refused.
    :param batch_size: Samples in a batch.
    :param seed: Seed of all draws.
    :param verbose: Show a progress bar.
    :raises EstimatorError: not a ``PyTorchClassifier``.
    :raises InvalidInputError: images outside ``clip_values``, bad labels, probabilities without saying so,
        preprocessing without a torch gradient, or an attack that fails.
    """
    attack = evasion(attack)
    if not isinstance(classifier, PyTorchClassifier):
        raise EstimatorError(Evasion, (PyTorchClassifier,), classifier)
    check_number("batch_size", batch_size, 1, integer=True)
    check_seed(seed)
    low, high = clip_bounds(classifier)
    images = check_images(x, tuple(classifier.input_shape))
    if images.min() < low - 1e-6 or images.max() > high + 1e-6:
        raise InvalidInputError(
            f"`x` lies in [{images.min():g}, {images.max():g}], outside the classifier's clip_values ({low:g}, "
            f"{high:g}): scale them, or give the classifier its true range."
        )
    labels = check_labels(y, len(images), classifier.nb_classes)
    if not isinstance(attack, Evasion):
        return _by_art(attack, classifier, images, labels, seed)
    view = check_classifier(classifier)
    if not view.preprocess.differentiable:
        raise InvalidInputError(
            "The classifier's preprocessing has no torch gradient, which evasion attacks need: use the PyTorch version "
            "of each defence, or move it into the model."
        )
    parts = []
    with (
        guarded(classifier),
        full_precision(),
        forked_random_state(seed, attack.name),
        tqdm(total=len(images), desc=attack.name, disable=not verbose) as bar,
    ):
        view.network.eval().requires_grad_(False)
        view.kind = _kind(view, images, outputs, batch_size)
        for start in range(0, len(images), batch_size):
            part = torch.from_numpy(images[start : start + batch_size]).to(view.device)
            wanted = torch.from_numpy(labels[start : start + batch_size]).to(view.device)
            try:
                found = attack.examples(view, part, wanted, classifier.nb_classes, (low, high))
            except FingerprintError:
                raise
            except Exception as error:
                raise InvalidInputError(
                    f"{attack.name} failed on images {start} to {start + len(part) - 1}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            parts.append(found.float().cpu())
            bar.update(len(part))
    return _finite(torch.cat(parts).numpy(), attack.name)


def _kind(view: LogitsNetwork, images: np.ndarray, outputs: OutputKind, batch_size: int) -> OutputKind:
    """Decide what the model returns; refuse probabilities that nobody spoke of."""
    check_choice("outputs", outputs, ("auto", "logits", "probabilities"))
    if outputs != "auto":
        return outputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below
        view.kind = "auto"
        view.predict(torch.from_numpy(images[:batch_size]), batch_size)
    found: OutputKind = view.kind
    if found == "probabilities":
        raise InvalidInputError(
            "The model returns probabilities. Where they saturate at 0 and 1 they have no gradient, and the model "
            "would pass for robust: wrap a model that returns logits, or pass outputs='probabilities' to attack their "
            "logarithm all the same."
        )
    return found


def _by_art(
    attack: EvasionAttack | ArtFactory, classifier: PyTorchClassifier, images: np.ndarray, labels: np.ndarray, seed: int
) -> np.ndarray:
    own = bound(attack, classifier)
    name = type(own).__name__
    if getattr(own, "targeted", False):
        raise InvalidInputError(f"{name} is targeted; robust accuracy needs an untargeted attack.")
    with guarded(classifier), forked_random_state(seed, name):
        try:
            found = np.asarray(own.generate(images.copy(), labels))
        except FingerprintError:
            raise
        except Exception as error:
            raise InvalidInputError(f"ART's {name} failed: {type(error).__name__}: {error}") from error
    if found.shape != images.shape:
        raise InvalidInputError(f"ART's {name} returned shape {found.shape} for images of shape {images.shape}.")
    return _finite(np.clip(found.astype(np.float32), *clip_bounds(classifier)), name)


def _finite(examples: np.ndarray, name: str) -> np.ndarray:
    bad = int((~np.isfinite(examples)).reshape(len(examples), -1).any(1).sum())
    if bad:
        raise InvalidInputError(
            f"{name} made {bad} of {len(examples)} images NaN or infinite: the model's logits or gradients are not "
            "finite there, or do not depend on the input."
        )
    return examples


def _torchattacks_class(name: object) -> type:
    import torchattacks
    from torchattacks.attack import Attack

    known = {
        key: value
        for key, value in vars(torchattacks).items()
        if inspect.isclass(value) and issubclass(value, Attack) and value is not Attack and key not in _COMPOSED
    }
    given = name if isinstance(name, str) else ""
    if given in known:
        return known[given]
    near = near_names(known, given) or sorted({*known} & {given.upper()})
    hint = f" Near names: {', '.join(near)}." if near else f" It has {', '.join(sorted(known))}."
    raise InvalidInputError(f"torchattacks has no attack {shown(name)} on a single model.{hint}")


def _parameters(name: str) -> dict[str, Any]:
    """Return a torchattacks class's constructor arguments with their defaults."""
    known = inspect.signature(_torchattacks_class(name)).parameters
    return {key: found.default for key, found in known.items() if found.default is not found.empty}


def _version() -> str:
    import torchattacks

    return str(torchattacks.__version__)
