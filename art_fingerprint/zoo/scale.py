"""Presets in miniature: the same files, pipeline, attacks and verifiers, with so little work that all of it can be seen
to run in minutes on a CPU. Numbers of a smoke run say nothing about any method.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from torch import nn

from art_fingerprint.core.adversarial import DEFAULTS
from art_fingerprint.core.checks import check_choice
from art_fingerprint.verifiers.calibration import allowed_positives
from art_fingerprint.zoo.loading import attack_class, verifier_class
from art_fingerprint.zoo.paper_presets import inception_v3, inception_v3_smoke, vit_b32, vit_b32_smoke
from art_fingerprint.zoo.preset import AttackSetting, Preset, Scale
from art_fingerprint.zoo.recipes import Recipe

SCALES = get_args(Scale)
SUFFIX = "-smoke"

#: Most samples of each part. The test set reaches beyond the images of Fig. 9, and 2 % of the attacker's data, the
#: least share of Fig. 6, are a batch.
SAMPLES: Mapping[str, int] = {"train": 200, "apart": 200, "test": 40}
BATCH = 4
#: Highest learning rate: the gradients of random weights on four images throw deep networks out of range in one step.
RATE = 1e-4
#: Steps of a negative's recipe: three stages, each of a step or more.
_NEGATIVE_STEPS = 4
_VICTIM_STEPS = 2
#: Upper limits of an attack's parameters, if it has them; ``None`` stays ``None``.
ATTACK_LIMITS: Mapping[str, float] = {
    "batch_size": BATCH,
    "bn_recalibrate": 1,
    "inner_steps": 2,
    "label_queries": 2,
    "learning_rate": RATE,
    "max_iter": 2,
    "max_iter_attack": 2,
    "nb_adversarial": 4,
    "nb_epochs": 1,
    "nb_stolen": 16,
    "patience": 1,
    "ramp_stages": 1,
    "strong_epochs": 1,
}
#: Upper limits of a verifier's parameters. DeepJudge's ``multiplier``: no neuron gets to a multiple of its largest
#: activation in two steps, but the image that gives the largest activation is beyond half of it from the start.
VERIFIER_LIMITS: Mapping[str, float] = {
    "cw_max_iter": 2,
    "deepfool_steps": 2,
    "max_iter": 2,
    "max_iter_attack": 2,
    "max_steps": 2,
    "min_errors": 2,
    "multiplier": 0.5,
    "nb_draws": 2,
    "nb_epochs": 2,
    "nb_fit": 8,
    "nb_images": 4,
    "nb_masks": 16,
    "nb_pairs": 4,
    "nb_probes": 8,
    "nb_seeds": 8,
    "nb_seeds_whitebox": 4,
    "nb_targets": 2,
    "nb_test": 8,
    "neurons": 8,
    "search_iterations": 2,
    "steps": 2,
}
#: Verifiers' parameters whose ``None`` means all there are.
_OF_ALL: Mapping[str, int] = {"neurons": 8, "max_tests_per_neuron": 2}
_EVASION_STEPS = 2
# Instead of networks that take minutes: others of their kind, and the size of their images.
_LIGHTER: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    f"{made.__module__}:{made.__qualname__}": (lighter, size)
    for made, lighter, size in ((inception_v3, inception_v3_smoke, 75), (vit_b32, vit_b32_smoke, 64))
}


def at_scale(preset: Preset, scale: str) -> Preset:
    """Return a preset at a scale.

    ``"full"``: as it is. ``"smoke"``: its pipeline, with every attack and every verifier, but

    - at most 200 training images, 200 held apart and 40 for tests, in batches of 4; of a data set of your own, which
      need not know ``max_samples``, all there are;
    - two optimiser steps of a low rate for each victim, reference and attack, three for a negative: weights are all but
      random;
    - as few probes, masks and neurons as verifiers work with, as few references as the calibration rule takes (two at
      least), one negative (of each kind, where kinds are counted), one known model;
    - of ImageNet's ViT-B/32, four blocks of random weights on images of 64 pixels; GTSRB's InceptionV3 with the stem
      for large images, on 75 pixels, which is less work. Other networks stay as they are.

    Its name ends with ``-smoke``, rows say ``"scale": "smoke"``, and tables and reports carry a note, so that nobody
    takes its numbers for results. The smoke form of a smoke form is that form.

    :param preset: The preset.
    :param scale: ``"full"`` or ``"smoke"``.
    :raises InvalidInputError: another scale, or the preset names an unknown attack or verifier.
    """
    check_choice("scale", scale, SCALES)
    if scale == "full":
        return preset
    architecture, size = _LIGHTER.get(_name_of(preset.architecture), (preset.architecture, None))
    lighter = size is not None
    by_seeds = 1 if preset.negatives is None else None
    return replace(
        preset,
        name=preset.name.removesuffix(SUFFIX) + SUFFIX,
        scale="smoke",
        architecture=architecture,
        independent_architecture=None if lighter else preset.independent_architecture,  # random weights are independent
        dataset_options=_data(preset, {"size": size} if lighter else {}),
        victim_recipe=_recipe(preset.victim_recipe, _VICTIM_STEPS),
        negative_recipe=_recipe(preset.negative_recipe, _NEGATIVE_STEPS),
        attacks={label: _attack(setting) for label, setting in preset.attacks.items()},
        verifiers={name: _verifier(name, params) for name, params in preset.verifiers.items()},
        nb_references=min(preset.nb_references, _references(preset.calibration)),
        nb_negatives=by_seeds if preset.nb_negatives is None else min(preset.nb_negatives, 1),
        negatives=None if preset.negatives is None else {kind: min(n, 1) for kind, n in preset.negatives.items()},
        nb_other_data_references=min(preset.nb_other_data_references, _references(preset.calibration)),
        nb_known=min(preset.nb_known, 1),
        robustness={name: _evasion(name, params) for name, params in preset.robustness.items()},
        nb_robustness=min(preset.nb_robustness, 2),
    )


def _name_of(made: Any) -> str:
    """Return the name of what makes a network: that of a plan's factory, or of the function itself."""
    return str(getattr(made, "name", f"{getattr(made, '__module__', '')}:{getattr(made, '__qualname__', '')}"))


def _data(preset: Preset, changes: Mapping[str, Any]) -> dict[str, Any]:
    if ":" in preset.dataset:
        return dict(preset.dataset_options)
    given = preset.dataset_options.get("max_samples", {})
    limits = given if isinstance(given, Mapping) else dict.fromkeys(SAMPLES, given)
    few = {part: min(most, limits[part]) if limits.get(part) else most for part, most in SAMPLES.items()}
    return {**preset.dataset_options, **changes, "max_samples": few}


def _recipe(recipe: Recipe, steps: int) -> Recipe:
    return replace(
        recipe,
        max_iter=min(recipe.max_iter, steps),
        batch_size=min(recipe.batch_size, BATCH),
        learning_rate=min(recipe.learning_rate, RATE),
    )


def _attack(setting: AttackSetting) -> AttackSetting:
    params = _attack_params(setting.attack, setting.params)
    step = setting.step if setting.step is None else min(setting.step, params.get("max_iter", setting.step))
    return replace(setting, params=params, step=step)


def _attack_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    kind = attack_class(name)
    found = _limited(kind, kind.attack_params, params, ATTACK_LIMITS)
    if found.get("nb_epochs", _default(kind, "nb_epochs")) and "max_iter" in kind.attack_params:
        found.setdefault("max_iter", ATTACK_LIMITS["max_iter"])  # fewer steps than an epoch
    if "allow_degenerate" in kind.attack_params:  # random weights may see one class in all images
        found["allow_degenerate"] = True
    steps = found.get("attacks")
    if isinstance(steps, tuple | list):  # of a composite attack: pairs of name and parameters
        found["attacks"] = tuple((step, _attack_params(step, own)) for step, own in steps)
    return found


def _verifier(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    kind = verifier_class(name)
    found = _limited(kind, kind.verifier_params, params, VERIFIER_LIMITS)
    for parameter, number in _OF_ALL.items():
        if parameter in kind.verifier_params and found.get(parameter) is None:
            found[parameter] = number
    if "keep" in kind.verifier_params:  # two steps may lead nowhere
        found["keep"] = "all"
    return found


def _limited(kind: type, known: list[str], params: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, Any]:
    """Return parameters with those above their limit, given or by default, at the limit."""
    found = dict(params)
    for name in set(known) & set(limits):
        value = found.get(name, _default(kind, name))
        if isinstance(value, int | float) and value > limits[name]:
            found[name] = limits[name]
    return dict(sorted(found.items()))


def _default(kind: type, name: str) -> Any:
    """Return the default of a constructor argument, which a base class may have."""
    for base in kind.__mro__:
        own = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        if name in own and own[name].default is not inspect.Parameter.empty:
            return own[name].default
    return None


def _evasion(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    steps = {**DEFAULTS.get(name, {}), **params}.get("steps")
    return {**params, "steps": min(steps, _EVASION_STEPS)} if isinstance(steps, int) else dict(params)


def _references(calibration: Mapping[str, Any]) -> int:
    """Return the least number of references for a threshold rule; two, so that they differ."""
    rate = calibration.get("false_positive_rate", 0.05)
    few = calibration.get("rule") != "fpr" or not rate
    return 2 if few else next(n for n in range(2, 10_000) if allowed_positives(n, rate))
