"""How one verifier is tried: what makes it, on what, and what is true of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.testing.models import independent_classifier, tiny_classifier, tiny_images
from art_fingerprint.testing.signatures import parameters_of
from art_fingerprint.testing.state import (
    State,
    marked,
    module_state,
    random_state,
    torch_settings,
    weight_state,
)
from art_fingerprint.verifiers.fingerprint import Fingerprint


def _labels() -> np.ndarray:
    return np.arange(40) % 4


@dataclass(frozen=True)
class VerifierCase:
    """One verifier with cheap parameters, and the number of samples that its fingerprint says it will send.

    :ivar verifier: The class, a ``Verifier``.
    :ivar options: Parameters that make it quick; all others have their defaults.
    :ivar counts: Facts of the fingerprint whose sum, times :attr:`times`, is the number of queries for one suspect.
        Empty if it sends none.
    :ivar times: Samples that are sent for each that these facts count.
    :ivar label: Name of the case; default that of the class.
    :ivar victim: Returns a *new* victim, always with the same weights.
    :ivar independent: Returns a *new* model of a seed, not derived from the victim. Seeds 1 and 2 are suspects, 11 to
        15 reference models.
    :ivar x: Owner's images ``(n, *input_shape)`` float32.
    :ivar y: Labels for extraction, ``(n,)``.
    :ivar more: Further arguments of extraction.
    :ivar extremes: Whether the victim itself has similarity 1 or distance 0.
    :ivar extreme_tolerance: How far it may be from there by rounding, where probes lie on the boundary of two classes.
    :ivar adaptive: Whether the number of queries depends on the answers; the facts then say how many at most.
    :ivar stochastic: Whether the seed makes a difference.
    :ivar batch_tolerance: How far scores may move with the batch size.
    :ivar free: Parameter to types whose values cannot be told good from bad before the data are known, such as names of
        layers.
    """

    verifier: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    counts: tuple[str, ...] = ()
    times: int = 1
    label: str = ""
    victim: Callable[[], PyTorchClassifier] = tiny_classifier
    independent: Callable[[int], PyTorchClassifier] = independent_classifier
    x: np.ndarray = field(default_factory=tiny_images)
    y: np.ndarray = field(default_factory=_labels)
    more: Mapping[str, Any] = field(default_factory=dict)
    extremes: bool = True
    extreme_tolerance: float = 1e-6
    adaptive: bool = False
    stochastic: bool = True
    batch_tolerance: float = 1e-5
    free: Mapping[str, type | tuple[type, ...]] = field(default_factory=dict)
    _memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.verifier.__name__)

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's parameters and their defaults, without the victim."""
        found = parameters_of(self.verifier)
        return {name: p.default for name, p in found.items() if name != "classifier"}

    @property
    def asks(self) -> bool:
        """Whether some metric can be had of a suspect that only answers queries."""
        return bool(self.metrics("labels", "scores")) and bool(self.counts)

    def metrics(self, *access: str) -> list[str]:
        """Return the names of the metrics that need one of these kinds of access."""
        return [metric.name for metric in self.verifier.metrics if metric.access in access]

    def queries(self, fingerprint: Fingerprint) -> int:
        """Return the queries that the fingerprint's facts announce."""
        return self.times * sum(int(fingerprint.facts[name]) for name in self.counts)

    def make(self, victim: PyTorchClassifier | None = None, **changes: Any) -> Any:
        """Return the verifier of a victim, by default a new one."""
        return self.verifier(self.victim() if victim is None else victim, **{**self.options, **changes})

    def extracted(self, **changes: Any) -> Any:
        """Return a verifier that has extracted."""
        verifier = self.make(**changes)
        verifier.extract(self.x, self.y, **self.more)
        return verifier

    def references(self, count: int = 5) -> list[PyTorchClassifier]:
        """Return new reference models."""
        return [self.independent(seed) for seed in range(11, 11 + count)]

    def ready(self, **changes: Any) -> Any:
        """Return a calibrated verifier without a victim. Extraction and calibration are done once for all checks.

        :param changes: Parameters to change afterwards.
        """
        if "print" not in self._memo:
            verifier = self.extracted()
            verifier.calibrate(self.references())
            self._memo["print"] = verifier.fingerprint
        verifier = self.verifier.from_fingerprint(copy.deepcopy(self._memo["print"]))
        verifier.set_params(**changes)
        return verifier

    def observed(self, what: str) -> dict[str, tuple[State, State]]:
        """Return what there was before and after a call: of the model, the caller's images, and the process.

        :param what: ``"extract"`` or ``"verify"``.
        """
        if what not in self._memo:
            model = marked(self.victim() if what == "extract" else self.independent(1))
            x = self.x.copy()
            verifier = self.make(model, batch_size=7) if what == "extract" else self.ready(batch_size=7)

            def look() -> dict[str, State]:
                return {
                    "weights": weight_state(model),
                    "modules": module_state(model),
                    "random": random_state(),
                    "settings": torch_settings(),
                    "arrays": {"x": x.tobytes()},
                }

            before = look()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                verifier.extract(x, self.y, **self.more) if what == "extract" else verifier.verify(model)
            after = look()
            self._memo[what] = {name: (before[name], after[name]) for name in before}
        found: dict[str, tuple[State, State]] = self._memo[what]
        return found
