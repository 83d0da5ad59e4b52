"""How one attack is tried: what makes it, on what, and what is true of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.testing.models import tiny_classifier, tiny_images
from art_fingerprint.testing.signatures import parameters_of
from art_fingerprint.testing.state import (
    State,
    marked,
    module_state,
    random_state,
    torch_settings,
    weight_state,
)


def _other_labels() -> np.ndarray:
    return np.arange(1, 41) % 4


@dataclass(frozen=True)
class AttackCase:
    """One attack with the options of a short run.

    :ivar attack: The class, a ``RemovalAttack``.
    :ivar options: Parameters that make it quick; all others have their defaults.
    :ivar label: Name of the case; default that of the class.
    :ivar victim: Returns a *new* victim, always with the same weights.
    :ivar x: Images ``(n, *input_shape)`` float32; n - 1 should be a multiple of 13, which leaves a batch of one.
    :ivar y: Labels ``(n,)``, not those that the victim gives.
    :ivar zero: Options of zero strength, under which the surrogate has the victim's parameters; ``None`` if the attack
        has no such options.
    :ivar stochastic: Whether the seed makes a difference.
    :ivar needs_labels: Whether it refuses to run without y.
    :ivar free: Parameter to types whose values cannot be told good from bad before the data are known, such as names of
        layers.
    """

    attack: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    victim: Callable[[], PyTorchClassifier] = tiny_classifier
    x: np.ndarray = field(default_factory=tiny_images)
    y: np.ndarray = field(default_factory=_other_labels)
    zero: Mapping[str, Any] | None = None
    stochastic: bool = True
    needs_labels: bool = False
    free: Mapping[str, type | tuple[type, ...]] = field(default_factory=dict)
    _memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.attack.__name__)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's parameters and their defaults, without the estimator and ART's summary writer."""
        found = parameters_of(self.attack)
        return {name: p.default for name, p in found.items() if name not in ("classifier", "summary_writer")}

    def make(self, victim: PyTorchClassifier | None = None, **changes: Any) -> Any:
        """Return the attack on a victim, by default a new one."""
        return self.attack(self.victim() if victim is None else victim, **{**self.options, **changes})

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of x and y."""
        return self.x.copy(), self.y.copy()

    def surrogate(self) -> tuple[PyTorchClassifier, PyTorchClassifier]:
        """Return a victim and its surrogate, only to be looked at: they are made once for all checks."""
        if "surrogate" not in self._memo:
            victim = self.victim()
            self._memo["surrogate"] = victim, self.make(victim).generate(*self.data())
        found: tuple[PyTorchClassifier, PyTorchClassifier] = self._memo["surrogate"]
        return found

    def observed(self) -> dict[str, tuple[State, State]]:
        """Return what there was before and after a run: of the victim, the caller's arrays, and the process."""
        if "observed" not in self._memo:
            victim = marked(self.victim())
            x, y = self.data()
            attack = self.make(victim)

            def look() -> dict[str, State]:
                return {
                    "weights": weight_state(victim),
                    "modules": module_state(victim),
                    "random": random_state(),
                    "settings": torch_settings(),
                    "arrays": {"x": x.tobytes(), "y": y.tobytes()},
                }

            before = look()
            attack.generate(x, y)
            after = look()
            self._memo["observed"] = {name: (before[name], after[name]) for name in before}
        found: dict[str, tuple[State, State]] = self._memo["observed"]
        return found
