"""The suspect as a verifier sees it: metered, limited to the access that was granted, one form of answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.checks import check_choice, check_number, is_classifier
from art_fingerprint.core.classifier import LogitsNetwork
from art_fingerprint.core.outputs import OutputKind, detect_kind, nonfinite_rows, to_logits, to_probabilities
from art_fingerprint.core.taps import tap
from art_fingerprint.exceptions import (
    AccessError,
    FingerprintError,
    IncompatibleSuspectError,
    InvalidInputError,
    NonFiniteOutputError,
    QueryBudgetError,
    SuspectFailedError,
)


class Suspect:
    """A query meter and an access limiter around any ART classifier.

    A PyTorch classifier without postprocessing defences is asked directly on its device; every other one through its
    ``predict``, so that what a real client would see is what the verifier sees.

    :param classifier: The suspect. Only read; use it inside :func:`~art_fingerprint.core.classifier.guarded`.
    :param batch_size: Samples in one query.
    :param outputs: What it returns, ``"logits"``, ``"probabilities"`` or ``"auto"`` (decided on the first answer).
    :param budget: Most samples that may be sent; ``None`` for no limit.
    :ivar queries: Samples sent so far.
    """

    def __init__(
        self,
        classifier: Any,
        batch_size: int = 128,
        outputs: OutputKind = "auto",
        budget: int | None = None,
    ) -> None:
        if not is_classifier(classifier):
            raise InvalidInputError(f"The suspect must be an ART classifier, got {type(classifier).__name__}.")
        check_number("batch_size", batch_size, 1, integer=True)
        check_choice("outputs", outputs, ("auto", "logits", "probabilities"))
        self.classifier = classifier
        self.batch_size = batch_size
        self.kind: OutputKind = outputs
        self.budget = budget
        self.queries = 0
        direct = isinstance(classifier, PyTorchClassifier) and not classifier.postprocessing_defences
        self._view = LogitsNetwork(classifier, "logits") if direct else None
        self.device = classifier.device if direct else torch.device("cpu")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the verifier sends it, channels first."""
        shape = tuple(self.classifier.input_shape)
        return shape if self._channels_first else (shape[-1], *shape[:-1])

    @property
    def nb_classes(self) -> int:
        return int(self.classifier.nb_classes)

    @property
    def _channels_first(self) -> bool:
        # scikit-learn classifiers have flat inputs and no channel order
        return bool(getattr(self.classifier, "channels_first", True)) or len(self.classifier.input_shape) != 3

    def check_shape(self, input_shape: tuple[int, ...]) -> None:
        """Raise :class:`IncompatibleSuspectError` unless the suspect takes samples of this shape."""
        if tuple(input_shape) != self.input_shape and self.input_shape != (int(np.prod(input_shape)),):
            raise IncompatibleSuspectError(
                f"The fingerprint's probes have shape {tuple(input_shape)}, the suspect takes {self.input_shape}. "
                "Probes are never resized: wrap the suspect if its inputs differ."
            )

    def raw(self, x: Tensor) -> Tensor:
        """Send one batch and return the answer as it came, ``(n, K)`` float32 on :attr:`device`. Cost: n queries.

        :raises QueryBudgetError: the batch would exceed the budget; it was not sent.
        :raises SuspectFailedError: the classifier raised an error of its own.
        :raises IncompatibleSuspectError: the answer is not one row of two or more scores for each sample.
        :raises NonFiniteOutputError: an answer is NaN or infinite.
        """
        self._spend(len(x))
        with _answering():
            answer = self._ask(self._native(x))
        if answer.ndim != 2 or len(answer) != len(x) or answer.shape[1] < 2:
            raise IncompatibleSuspectError(
                f"The suspect answered {len(x)} samples with shape {tuple(answer.shape)}; (n, nb_classes) with two or "
                "more classes was expected: return the scores of both classes."
            )
        bad = nonfinite_rows(answer)
        if bad:
            raise NonFiniteOutputError(f"The suspect answered {bad} of {len(x)} probes with NaN or infinite scores.")
        if self.kind == "auto":
            self.kind = detect_kind(answer)
        return answer

    def logits(self, x: Tensor) -> Tensor:
        """Return logits for any number of samples, ``(n, K)`` float32 on the host (log-probabilities if need be)."""
        return torch.cat([self._as_logits(self.raw(part)).cpu() for part in x.split(self.batch_size)])

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities for any number of samples, ``(n, K)`` float64 on the host."""
        return to_probabilities(self.logits(x))

    def labels(self, x: Tensor) -> Tensor:
        """Return predicted labels for any number of samples, ``(n,)`` int64 on the host."""
        return torch.cat([self.raw(part).argmax(1).cpu() for part in x.split(self.batch_size)])

    def _ask(self, x: Tensor) -> Tensor:
        if self._view is None:
            return torch.from_numpy(np.array(self.classifier.predict(x.cpu().numpy()), dtype=np.float32))
        with torch.no_grad():
            self._view.network.eval()
            return self._view(x.to(self.device)).float()

    def _native(self, x: Tensor) -> Tensor:
        """Return samples as the suspect wants them: channels last or flat if need be."""
        if not self._channels_first:
            return x.movedim(1, -1).contiguous()
        return x.flatten(1) if len(self.classifier.input_shape) == 1 else x

    def _as_logits(self, answer: Tensor) -> Tensor:
        return to_logits(answer) if self.kind == "probabilities" else answer

    @property
    def view(self) -> LogitsNetwork:
        """The white-box view. Only for PyTorch suspects.

        :raises AccessError: if the suspect is query-only.
        """
        if not isinstance(self.classifier, PyTorchClassifier):
            raise AccessError(
                f"This metric reads the suspect's layers, which a {type(self.classifier).__name__} does not show: use "
                "a PyTorchClassifier or a query-only verifier."
            )
        return self._view if self._view is not None else LogitsNetwork(self.classifier, "logits")

    @torch.no_grad()
    def activations(self, x: Tensor, layer: str, reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return one layer's output for any number of samples on the host; the forward pass stops at that layer.

        :param reduce: Applied to the layer's output of each batch on the device, so that whole feature maps need not be
            kept.
        """
        view = self.view
        view.network.eval()
        parts = []
        for part in x.split(self.batch_size):
            self._spend(len(part))
            with _answering():
                output = tap(view.network, layer, view.preprocess(self._native(part).to(view.device)))
            parts.append((output if reduce is None else reduce(output)).cpu())
        return torch.cat(parts)

    def _spend(self, n: int) -> None:
        if self.budget is not None and self.queries + n > self.budget:
            raise QueryBudgetError(
                f"The next {n} queries would exceed the budget of {self.budget}; {self.queries} were sent."
            )
        self.queries += n


@contextmanager
def _answering() -> Iterator[None]:
    """Turn whatever a foreign model raises into one error of ours."""
    try:
        yield
    except FingerprintError:
        raise
    except Exception as error:
        raise SuspectFailedError(
            f"The classifier raised {type(error).__name__} while it answered probes: {error}"
        ) from error


def same_space(kind: OutputKind, other: OutputKind) -> bool:
    """Warn and return ``False`` when one model gives logits and the other probabilities: compare probabilities then."""
    if kind == other:
        return True
    warnings.warn(
        f"The victim's answers are {kind}, the suspect's are {other}: both are compared as probabilities.", stacklevel=5
    )
    return False
