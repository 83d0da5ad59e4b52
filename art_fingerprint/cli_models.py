"""The verbs of the command line that work on single models: attack, extract, verify, doctor."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

import art_fingerprint.verifiers as verifiers
from art_fingerprint.core.checks import check_choice, check_number
from art_fingerprint.core.digests import network_digest
from art_fingerprint.core.files import regular_file, write_whole
from art_fingerprint.core.parameters import strict_json
from art_fingerprint.core.versions import versions
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.verifiers.calibration import Calibration, check_rule
from art_fingerprint.verifiers.fingerprint import Fingerprint, check_facts
from art_fingerprint.zoo.loading import (
    attack_class,
    check_parameters,
    classifier_of,
    load_arrays,
    load_network,
    load_weights,
    save_weights,
    verifier_class,
)

_OPTIONAL = {"matplotlib": "plots", "ray": "ray", "skimage": "zest", "tensorboardX": "tensorboard"}


def attack(arguments: argparse.Namespace) -> None:
    """Derive a surrogate and write its weights."""
    kind = attack_class(arguments.attack)
    parameters = _parameters(arguments)
    check_parameters(kind, parameters)
    victim, x, y = _victim(arguments)
    surrogate = kind(victim, **parameters).generate(x, None if arguments.no_labels else y)
    save_weights(surrogate, arguments.out, surrogate.surrogate_info)
    print(f"{kind.__name__}: surrogate written to {arguments.out}")


def extract(arguments: argparse.Namespace) -> None:
    """Extract a fingerprint, calibrate it where references are given, and write it.

    :raises InvalidInputError: options about thresholds without references, or too few of them for the rule.
    """
    kind = verifier_class(arguments.verifier)
    rule: Any = "extreme" if arguments.rule is None else arguments.rule
    if arguments.references:
        check_rule(rule, len(arguments.references))
    elif arguments.rule is not None or arguments.thresholds is not None:
        raise InvalidInputError("--rule and --thresholds need --references, the weights of independent models.")
    parameters = _parameters(arguments)
    check_parameters(kind, parameters)
    victim, x, y = _victim(arguments)
    verifier = kind.from_profile(victim, arguments.profile, **parameters)
    references = [_model(arguments, path, x.shape[1:]) for path in arguments.references]
    fingerprint = verifier.extract(x, y)
    fingerprint.save(arguments.out)  # before a reference can fail
    if references:
        verifier.calibrate(references, rule=rule)
        fingerprint.save(arguments.out)
    print(f"{fingerprint!r}\nwritten to {arguments.out}")
    if arguments.thresholds is not None and fingerprint.calibration is not None:
        text = json.dumps(fingerprint.calibration.to_dict(), indent=2)
        write_whole(arguments.thresholds, text.encode())
    if not references and not kind.decides_alone:
        print("Without --references there are no thresholds: verdicts will be undecided.")


def verify(arguments: argparse.Namespace) -> bool | None:
    """Check a suspect, print the verdict, and return it."""
    fingerprint = Fingerprint.load(arguments.fingerprint)
    if arguments.thresholds is not None:
        fingerprint.calibration = load_thresholds(arguments.thresholds)
    named = arguments.verifier or fingerprint.verifier
    kind = verifier_class(named, own=arguments.verifier is not None, committee=True)
    if arguments.thresholds is not None and fingerprint.calibration is not None:
        known = [metric.name for metric in getattr(kind, "metrics", ())]
        for name in fingerprint.calibration.thresholds if known else ():  # a committee has none of its own
            check_choice(f"metric in {arguments.thresholds}", name, known)
    check_facts(fingerprint)
    low, high = fingerprint.facts["clip_values"]
    arguments.clip = arguments.clip or (low, high)
    arguments.nb_classes = arguments.nb_classes or fingerprint.facts["nb_classes"]
    suspect = _model(arguments, arguments.weights, fingerprint.facts["input_shape"])
    verdict = kind.from_fingerprint(fingerprint).verify(
        suspect,
        budget=arguments.budget,
        outputs=arguments.outputs,
        max_seconds=arguments.max_seconds,
        repeats=arguments.repeats,
    )
    print(json.dumps(verdict.to_dict(), indent=2, default=str) if arguments.json else verdict)
    return verdict.derived


def doctor() -> bool:
    """Print what a report of a problem needs, and whether a verifier runs. Return whether all is well."""
    for name, version in versions().items():
        print(f"{name:<18}{version}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'devices':<18}{', '.join(devices) or 'no CUDA device'}; {torch.get_num_threads()} CPU threads")
    sound = True
    for name in ("torchvision", "timm", "torchattacks", "safetensors", "sklearn", "scipy"):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a broken build raises anything
            sound = False
            print(f"{name:<18}CANNOT BE IMPORTED: {type(error).__name__}: {error}")
        else:
            print(f"{name:<18}{getattr(module, '__version__', 'installed')}")
    for name, extra in _OPTIONAL.items():
        found = importlib.util.find_spec(name) is not None
        print(f"{name:<18}{'installed' if found else f'not installed (optional, extra {extra!r})'}")
    try:
        derived = _tiny_run()
        sound &= derived
        print(f"{'verifier run':<18}{'a copy is recognised' if derived else 'WRONG: a copy is not recognised'}")
    except Exception as error:
        sound = False
        print(f"{'verifier run':<18}FAILED: {type(error).__name__}: {error}")
    print("All is well." if sound else "Something is wrong: see the lines in capitals.")
    return sound


def _tiny_run() -> bool:
    from art_fingerprint.core.copies import clone_classifier
    from art_fingerprint.core.seeding import forked_random_state, numpy_generator
    from art_fingerprint.zoo.architectures import SmallCNN

    def model(seed: int) -> PyTorchClassifier:
        with forked_random_state(seed):
            return classifier_of(SmallCNN(width=4), (1, 8, 8))

    x = numpy_generator(0, "doctor").random((40, 1, 8, 8), dtype=np.float32)
    victim = model(0)
    verifier = verifiers.ZestVerifier(victim, nb_images=12, nb_masks=40, segmenter="grid", grid_cells=3)
    verifier.extract(x)
    verifier.calibrate([model(seed) for seed in range(1, 6)])
    return verifier.verify(clone_classifier(victim)).derived is True


def _parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    if "seed" in arguments.set:
        raise InvalidInputError("--set seed=... is --seed.")
    return {"verbose": not arguments.quiet, **arguments.set, "seed": arguments.seed}


def _model(arguments: argparse.Namespace, weights: Path | None, shape: Sequence[int]) -> PyTorchClassifier:
    _check_model_options(arguments)
    make = partial(load_network, arguments.model, arguments.nb_classes, shape[0])
    network = make(seed=0)
    if weights is not None:
        load_weights(network, weights)
    elif network_digest(network) != network_digest(make(seed=1)):
        raise InvalidInputError(
            f"{arguments.model} makes a model with random weights: say with --weights which ones it has."
        )
    return classifier_of(
        network, tuple(shape), arguments.clip or (0.0, 1.0), arguments.mean, arguments.std, arguments.device
    )


def _check_model_options(arguments: argparse.Namespace) -> None:
    if arguments.clip is not None and not (np.isfinite(arguments.clip).all() and arguments.clip[0] < arguments.clip[1]):
        raise InvalidInputError(f"--clip needs two finite numbers, the smaller one first, got {arguments.clip}.")
    if (arguments.mean is None) != (arguments.std is None):
        raise InvalidInputError("--mean and --std go together.")
    if not all(np.isfinite(value) and value > 0 for value in arguments.std or ()):
        raise InvalidInputError(f"--std needs numbers above 0, got {arguments.std}.")
    if arguments.nb_classes is not None:
        check_number("--nb-classes", arguments.nb_classes, 2, integer=True)


def _check_outputs(outputs: Sequence[Path], inputs: Sequence[Path | None]) -> None:
    """Refuse files that cannot be written, or that are read or written otherwise: now rather than after hours."""
    given = [os.path.realpath(path) for path in inputs if path is not None]
    for place, path in enumerate(outputs):
        if not path.parent.is_dir():
            raise InvalidInputError(f"There is no folder {path.parent} for {path.name}.")
        if path.exists() and not path.is_file():
            raise InvalidInputError(f"{path} is a folder, a pipe or a device: name a file.")
        if os.path.realpath(path) in given:
            raise InvalidInputError(f"{path} is read and would be overwritten: name another file.")
        if path in outputs[:place]:
            raise InvalidInputError(f"{path} would be written twice: name two files.")
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be written: {error.strerror}.") from error


def _victim(arguments: argparse.Namespace) -> tuple[PyTorchClassifier, np.ndarray, np.ndarray | None]:
    thresholds = getattr(arguments, "thresholds", None)
    outputs = [arguments.out] if thresholds is None else [arguments.out, thresholds]
    _check_outputs(outputs, [arguments.data, arguments.weights, *getattr(arguments, "references", ())])
    x, y = load_arrays(arguments.data)
    if x.ndim != 4:
        raise InvalidInputError(f"'x' in {arguments.data} must be images (n, C, H, W), got shape {x.shape}.")
    return _model(arguments, arguments.weights, x.shape[1:]), x, y


def load_thresholds(path: Path) -> Calibration:
    """Return thresholds from JSON: those that ``extract --thresholds`` wrote, or metric name to number."""
    path = regular_file(path, "thresholds file")
    try:
        data = strict_json(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and "references" not in data:
            data = {"references": {}, "thresholds": data, "rule": "extreme", "alpha": 1.0, "confidence": 0.99}
        return Calibration.from_dict(data)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise InvalidInputError(
            f"{path} holds no thresholds: JSON with metric names and numbers, or a calibration, is needed ({error})."
        ) from error
