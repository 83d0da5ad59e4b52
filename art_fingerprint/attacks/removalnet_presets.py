"""RemovalNet's settings for each data set of the paper, as rows of :class:`.RemovalNetAttack` parameters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from art_fingerprint.core.taps import near_names
from art_fingerprint.exceptions import InvalidInputError


def _row(
    alpha: float = 0.2,
    beta: float = 2.0,
    gamma: float = 0.8,
    temperature: float = 20.0,
    learning_rate: float = 1e-2,
    shuffle_ratio: float = 0.1,
    inner_steps: int = 30,
    max_iter: int = 1000,
) -> Mapping[str, Any]:
    # Layer index 2 is that of the authors' command and of most of their scripts; momentum, decay, schedule and batch
    # are the same everywhere and are the defaults of the class.
    return MappingProxyType({"layer": 2, **locals()})


#: Victim's data, and the substitute set's where that changes the row. Source: the rules of the authors' code
#: (github.com/grasses/RemovalNet), which are keyed on the victim's data set and then on the substitute set's. Rules
#: that leave a value unset there (CINIC10 as victim, the fall-back) cannot run and have no row. Layer 2 of a vision
#: transformer is a quarter of the way up; the authors' one is cut behind the last norm whatever the index.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cifar10": _row(gamma=0.6, learning_rate=8e-3, shuffle_ratio=0.02, inner_steps=20),  # substitutes: also CINIC10
        "celeba": _row(),  # attributes 20 and 31
        "celeba31-vggface2": _row(learning_rate=6e-3),
        "celeba20-lfw": _row(learning_rate=3e-3),
        "skin-lesion": _row(),  # HAM10000
        "skin-lesion-bcn20000": _row(alpha=0.22, learning_rate=6e-3),
        "gtsrb": _row(temperature=10.0),  # substitutes: all of its variants
        "tsrd": _row(beta=1.0, temperature=10.0, learning_rate=1e-3),
        "imagenet": _row(alpha=0.4, beta=4.0, shuffle_ratio=0.2, max_iter=2000),
    }
)


def preset_row(name: object) -> Mapping[str, Any]:
    """Return the row of this name.

    :raises InvalidInputError: there is none; near names are listed.
    """
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    near = near_names(PRESETS, str(name))
    hint = f" Near names: {', '.join(near)}." if near else ""
    raise InvalidInputError(f"There is no preset {name!r}.{hint} Presets: {', '.join(PRESETS)}.")
