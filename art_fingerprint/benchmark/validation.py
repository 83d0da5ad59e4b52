"""Everything about a plan that can be found wrong before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint.benchmark.plan import saying
from art_fingerprint.core.adversarial import evasion
from art_fingerprint.core.checks import check_choice, check_flag, check_number, check_seed, shown
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.guard import evaluating
from art_fingerprint.core.layers import resolve_layer
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.calibration import check_rule
from art_fingerprint.zoo.loading import attack_class, check_parameters, verifier_class
from art_fingerprint.zoo.preset import KNOWN, NEGATIVES, OTHER_DATA_REFERENCE, REFERENCE, VICTIM
from art_fingerprint.zoo.presets import AttackSetting, Preset, Source
from art_fingerprint.zoo.recipes import Recipe

RESERVED_LABELS = (VICTIM, REFERENCE, OTHER_DATA_REFERENCE, KNOWN, *NEGATIVES.values())
_CALIBRATION = ("rule", "alpha", "confidence", "false_positive_rate")


def check_preset(preset: Preset, classifier: PyTorchClassifier) -> None:
    """Refuse a victim of a plan that cannot run as it is written.

    Every attack and verifier is made with its parameters around an untrained network of the victim's architecture, and
    layers are looked up in it. What depends on trained weights or on other suspects' architectures is found out later,
    and fails its own cells.

    :param preset: The victim with its attacks and verifiers.
    :param classifier: An untrained classifier of its architecture.
    :raises InvalidInputError: the message names victim, attack or verifier, and parameter.
    """
    victim = f"victim {preset.name!r}"
    with saying(victim):
        _check_numbers(preset)
        check_calibration(preset.calibration, preset.nb_references)
        if preset.nb_other_data_references:
            check_calibration(preset.calibration, preset.nb_other_data_references)
    if not preset.verifiers:
        raise InvalidInputError(f"{victim} has no verifiers.")
    for label, setting in preset.attacks.items():
        if not isinstance(setting, AttackSetting):
            raise InvalidInputError(f"`attacks` of {victim} must hold AttackSettings, got {shown(setting)}.")
        if label in RESERVED_LABELS:
            raise InvalidInputError(f"{victim} has an attack {label!r}: rows of this name are those of other models.")
        with saying(f"{victim}, attack {label!r}"):
            kind = attack_class(setting.attack)
            _check_mapping("params", setting.params)
            check_parameters(kind, setting.params)
            _reserved(setting.params)
            kind(classifier, seed=0, **setting.params)._check_params()
            _check_setting(setting)
            _check_layer(setting.params.get("layer"), classifier)
    for name, params in preset.verifiers.items():
        with saying(f"{victim}, {name}"):
            judge = verifier_class(name)
            if judge.extraction_data == "training" and not preset.nb_other_data_references:
                raise InvalidInputError(
                    "it asks whether a model has seen the victim's training images, as the references have: set "
                    "`nb_other_data_references`, models of other images that calibrate it."
                )
            _check_mapping("params", params)
            check_parameters(judge, params)
            judge(classifier, **params)._check_params()
            if params.get("layer") != "auto":
                _check_layer(params.get("layer"), classifier)
    for name, params in preset.robustness.items():
        with saying(f"{victim}, robustness under {name!r}"):
            _check_mapping("params", params)
            evasion(name, **params)


def _check_numbers(preset: Preset) -> None:
    check_number("subset_ratio", preset.subset_ratio, 0, 1, open_low=True)
    check_number("nb_references", preset.nb_references, 1, integer=True)
    check_number("nb_robustness", preset.nb_robustness, 1, integer=True)
    check_seed(preset.victim_seed, "victim_seed")
    for name in ("threads", "nb_negatives"):
        if getattr(preset, name) is not None:
            check_number(name, getattr(preset, name), 1 if name == "threads" else 0, integer=True)
    for name in ("attacks", "verifiers", "robustness", "calibration", "dataset_options", "held_out_noise"):
        _check_mapping(name, getattr(preset, name))
    for name in ("victim_recipe", "negative_recipe"):
        if not isinstance(getattr(preset, name), Recipe):
            raise InvalidInputError(f"`{name}` must be a Recipe, got {shown(getattr(preset, name))}.")
    if noise := preset.held_out_noise:
        if set(noise) != {"copies", "std"}:
            raise InvalidInputError(f"`held_out_noise` needs `copies` and `std`, and has {', '.join(noise)}.")
        check_number("copies of `held_out_noise`", noise["copies"], 1, integer=True)
        check_number("std of `held_out_noise`", noise["std"], 0, open_low=True)


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"`{name}` must be a mapping, got {shown(value)}.")


def check_independents(preset: Preset) -> None:
    """Refuse counts of independent models that say nothing, or two things; before any data are read."""
    for name in ("nb_other_data_references", "nb_known"):
        check_number(name, getattr(preset, name), 0, integer=True)
    if preset.negatives is None:
        return
    if not isinstance(preset.negatives, Mapping):
        raise InvalidInputError(f"`negatives` must be a mapping, got {shown(preset.negatives)}.")
    if preset.nb_negatives is not None:
        raise InvalidInputError("`negatives` and `nb_negatives` both count the negatives: leave one out.")
    for kind, count in preset.negatives.items():
        check_choice("kind of `negatives`", kind, tuple(NEGATIVES))
        check_number(f"{kind} of `negatives`", count, 0, integer=True)
    if preset.negatives.get("other-architecture") and preset.other_architecture is None:
        raise InvalidInputError(
            "`negatives` of another architecture need `other_architecture`, which makes their network: "
            "package.module:function or timm:NAME."
        )


def check_calibration(given: Mapping[str, Any], nb_references: int) -> None:
    """Refuse arguments of ``Verifier.calibrate`` that it would refuse after hours."""
    unknown = [name for name in given if name not in _CALIBRATION]
    if unknown:
        raise InvalidInputError(f"`calibration` has {', '.join(unknown)}; it may have {', '.join(_CALIBRATION)}.")
    check_rule(given.get("rule", "extreme"), nb_references, **{k: v for k, v in given.items() if k != "rule"})


def check_architecture(
    make: Callable[[], nn.Module], nb_classes: int, input_shape: tuple[int, ...] | None = None
) -> nn.Module:
    """Return the network that is made, or refuse what makes none, or none for images of this shape, if one is given."""
    network = make()
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"`architecture` makes a {type(network).__name__}; an nn.Module is needed.")
    if nb_classes < 2:
        raise InvalidInputError(f"The data set has {nb_classes} classes; two or more are needed.")
    if input_shape is None:
        return network
    try:
        with evaluating(network), torch.no_grad():
            shape = tuple(network(torch.zeros(2, *input_shape)).shape)
    except Exception as error:  # whatever a foreign network raises
        raise InvalidInputError(f"`other_architecture` does not take images of {input_shape}: {error}") from error
    if shape != (2, nb_classes):
        raise InvalidInputError(
            f"`other_architecture` answers two images with {shape}; {(2, nb_classes)} logits are needed."
        )
    return network


def _check_layer(layer: object, classifier: PyTorchClassifier) -> None:
    if not isinstance(layer, str | int):
        return
    view = LogitsNetwork(classifier, "logits")
    example = torch.zeros(2, *classifier.input_shape, device=view.device)
    with evaluating(view.network), torch.no_grad():
        resolve_layer(view.network, layer, view.preprocess(example))


def _check_setting(setting: AttackSetting) -> None:
    check_choice("source", setting.source, get_args(Source))
    check_flag("true_labels", setting.true_labels)
    if setting.ratio is not None:
        check_number("ratio", setting.ratio, 0, 1, open_low=True)
        if setting.source == "train":
            raise InvalidInputError("`ratio` needs the source 'subset' or 'apart'; 'train' is the whole training set.")
    if setting.step is None:
        return
    check_number("step", setting.step, 0, integer=True)
    if setting.params.get("keep_best") is not None:
        raise InvalidInputError("`step` and `keep_best` exclude each other: both say which iterate is wanted.")
    last = setting.params.get("max_iter")
    if isinstance(last, int) and setting.step > last:
        raise InvalidInputError(f"`step`={setting.step} is beyond the last of `max_iter`={last} steps.")


def _reserved(params: Mapping[str, Any]) -> None:
    for name in ("seed", "callback", "summary_writer"):
        if name in params:
            raise InvalidInputError(f"`{name}` is the bench's own, and cannot be set in a plan.")
