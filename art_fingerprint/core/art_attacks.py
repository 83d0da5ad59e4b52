"""ART's evasion attacks: their parameters, and one attack made anew for another classifier."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from art.attacks.attack import EvasionAttack
from art.estimators import BaseEstimator
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.core.parameters import as_json
from art_fingerprint.exceptions import InvalidInputError

ArtFactory: TypeAlias = Callable[[PyTorchClassifier], EvasionAttack]


def bound(attack: EvasionAttack | ArtFactory, classifier: PyTorchClassifier) -> EvasionAttack:
    """Return the ART attack for this classifier, made anew if it belongs to another."""
    if isinstance(attack, EvasionAttack):
        if attack.estimator is classifier:
            return attack
        accepted = inspect.signature(type(attack)).parameters
        params = {name: value for name, value in _art_params(attack).items() if name in accepted}
        try:
            if any(_holds_model(value) for value in params.values()):
                raise InvalidInputError("its parameters hold attacks or models")
            return type(attack)(classifier, **params)
        except Exception as error:
            raise InvalidInputError(
                f"ART's {type(attack).__name__} cannot be made anew for another classifier ({error}): pass a function "
                "that makes it, lambda classifier: YourAttack(classifier, ...)."
            ) from error
    made = attack(classifier)
    if not isinstance(made, EvasionAttack):
        raise InvalidInputError(f"The function must return an ART EvasionAttack, it returned {type(made).__name__}.")
    return made


def plain_params(attack: EvasionAttack) -> dict[str, Any]:
    """Return an ART attack's parameters as JSON values, or the text of what JSON has no form for."""
    values = as_json(_art_params(attack))
    return {name: value if _is_plain(value) else _text(value) for name, value in values.items()}


def _art_params(attack: EvasionAttack) -> dict[str, Any]:
    """Return an ART attack's parameters: some classes name what they lack."""
    return {n: getattr(attack, n) for n in attack.attack_params if n != "summary_writer" and hasattr(attack, n)}


def _holds_model(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, EvasionAttack | BaseEstimator) for part in parts)


def _text(value: object) -> str:
    return type(value).__name__ if _holds_model(value) or callable(value) else repr(value)


def _is_plain(value: object) -> bool:
    """Tell whether JSON can keep a value, which it cannot with ART's ``norm=np.inf`` or arrays."""
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
