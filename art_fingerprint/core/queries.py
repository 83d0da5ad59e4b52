"""The suspect as a verifier sees it: metered, limited to the access that was granted, one form of answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.answers import AnswerLog, differing
from art_fingerprint.core.checks import check_choice, check_number, is_classifier
from art_fingerprint.core.classifier import LogitsNetwork, check_output, client_answers, direct_view
from art_fingerprint.core.digests import array_digest
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.outputs import (
    ANSWER_KINDS,
    AnswerKind,
    detect_kind,
    labels_of,
    may_be_probabilities,
    nonfinite_rows,
    only_labels,
    to_logits,
    to_probabilities,
)
from art_fingerprint.core.taps import tapped
from art_fingerprint.exceptions import (
    AccessError,
    FingerprintError,
    IncompatibleSuspectError,
    InvalidInputError,
    MalformedAnswerError,
    NonFiniteOutputError,
    QueryBudgetError,
    SuspectFailedError,
)

NanPolicy = Literal["raise", "mismatch"]
NAN_POLICIES: tuple[NanPolicy, ...] = ("raise", "mismatch")
# so many answers that all show labels only come from a service that shows no more
_ENOUGH = 1000


class Suspect:
    """A query meter and an access limiter around any ART classifier.

    A PyTorch classifier is asked directly on its device. One with postprocessing defences, a ``predict`` of its own or
    a network that only runs (TorchScript, quantised) is asked through ``predict``, as all others are, so that
    what a real client would see is what the verifier sees. Samples are sent channels first, channels last or flat, as
    its ``input_shape`` asks; flat ones run over channels first.

    Answers are scores ``(n, K)`` or labels: class indices ``(n,)`` or ``(n, 1)``, or rows that show no more (see
    :func:`~art_fingerprint.core.outputs.only_labels`). What they are is decided once, on all answers that the first
    conversion is given, so that it does not depend on the batch size.

    :param classifier: The suspect. Only read; use it inside :func:`~art_fingerprint.core.guard.guarded`.
    :param batch_size: Samples in one query.
    :param outputs: What it answers: ``"logits"``, ``"probabilities"``, ``"labels"``, or ``"auto"``: labels if they
        show no more, probabilities if all rows are non-negative and sum to 1 within 1e-3, else logits.
    :param budget: Most samples that may be sent; ``None`` for no limit.
    :param nan_policy: A row that is NaN or infinite raises (``"raise"``), or has label -1 (``"mismatch"``), and raises
        where scores are needed.
    :param record: Keep the answers for :meth:`softened`.
    :param max_seconds: Time after which no more is sent, counted from the first query; ``None`` for no limit. A call
        that has begun is waited for.
    :param repeats: Probes that :meth:`doubts` asks about a second time.
    :ivar kind: What it answers, ``"auto"`` until decided.
    :ivar queries: Samples sent so far.
    """

    def __init__(
        self,
        classifier: Any,
        batch_size: int = 128,
        outputs: AnswerKind = "auto",
        budget: int | None = None,
        nan_policy: NanPolicy = "raise",
        record: bool = False,
        max_seconds: float | None = None,
        repeats: int = 0,
    ) -> None:
        if not is_classifier(classifier):
            raise InvalidInputError(f"The suspect must be an ART classifier, got {type(classifier).__name__}.")
        check_number("batch_size", batch_size, 1, integer=True)
        check_choice("outputs", outputs, ANSWER_KINDS)
        check_choice("nan_policy", nan_policy, NAN_POLICIES)
        if budget is not None:
            check_number("budget", budget, 1, integer=True)
        if max_seconds is not None:
            check_number("max_seconds", max_seconds, 0, open_low=True)
        check_number("repeats", repeats, 0, integer=True)
        self.classifier = classifier
        self.batch_size = int(batch_size)
        self.kind: AnswerKind = outputs
        self.budget = budget
        self.nan_policy = nan_policy
        self.queries = 0
        self.max_seconds = max_seconds
        self._started: float | None = None
        self._log = AnswerLog(repeats)
        self._recorded: list[Tensor] | None = [] if record else None
        self._nb_hard: int | None = 0  # answers so far if all of them showed labels only, else None
        self._view = direct_view(classifier)
        self._evaluating = False
        self.device = torch.device("cpu") if self._view is None else self._view.device
        if not classifier.input_shape or not self.nb_classes or self.nb_classes < 2:
            raise InvalidInputError(
                f"The {type(classifier).__name__} says input_shape={classifier.input_shape} and "
                f"nb_classes={self.nb_classes}: train it before it is wrapped, or say what they are."
            )

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

    # ------------------------------------------------------------------ answers
    def rows(self, x: Tensor) -> Tensor:
        """Return the answers to any number of samples as they came, labels as one-hot rows, ``(n, K)`` on the host."""
        return torch.cat([self._batch(part).cpu() for part in x.split(self.batch_size)])

    def raw(self, x: Tensor) -> Tensor:
        """Send one batch and return the scores as they came, ``(n, K)`` float32 on ``device``. Cost: n queries.

        :raises AccessError: the suspect answers labels.
        :raises QueryBudgetError: the batch would exceed the budget, or the time is over; it was not sent.
        :raises SuspectFailedError: the classifier raised an error of its own.
        :raises MalformedAnswerError: the answer is not one row of ``nb_classes`` scores for each sample.
        :raises NonFiniteOutputError: an answer is NaN or infinite, unless that is a mismatch.
        """
        self._need_scores()
        answer = self._batch(x)
        self._need_scores()
        return answer

    def logits(self, x: Tensor) -> Tensor:
        """Return logits for any number of samples, ``(n, K)`` float32 on the host (log-probabilities if need be)."""
        return self.as_logits(torch.cat([self.raw(part).cpu() for part in x.split(self.batch_size)]))

    def probabilities(self, x: Tensor) -> Tensor:
        """Return class probabilities for any number of samples, ``(n, K)`` float64 on the host."""
        return to_probabilities(self.logits(x))

    def labels(self, x: Tensor) -> Tensor:
        """Return predicted labels for any number of samples, ``(n,)`` int64 on the host; -1 for an answer that is none.

        That is a mismatch with any label, and gives a warning.
        """
        return self.as_labels(self.rows(x))

    def as_labels(self, answers: Tensor) -> Tensor:
        """Turn answers of :meth:`rows` into labels, ``(n,)`` int64, as :meth:`labels` does."""
        labels = labels_of(answers)
        bad = int((labels < 0).sum())
        if bad:
            warn_caller(
                f"The suspect answered {bad} of {len(answers)} probes with NaN or infinity: counted as mismatches."
            )
        return labels

    def as_logits(self, answers: Tensor) -> Tensor:
        """Turn answers as they came into logits, ``(n, K)`` on their device. The first call decides :attr:`kind`.

        :raises AccessError: they are labels.
        :raises NonFiniteOutputError: a row is NaN or infinite.
        """
        self.check_finite(answers)
        if self.kind == "auto":
            self.kind = "labels" if only_labels(answers) else detect_kind(answers)
            if self.kind == "logits" and may_be_probabilities(answers):
                warn_caller(
                    "The suspect's scores lie in [0, 1] without a sum of 1 and are taken for logits: pass "
                    "outputs='probabilities' if they are rounded or incomplete probabilities, or outputs='logits'."
                )
        self._need_scores()
        return to_logits(answers) if self.kind == "probabilities" else answers

    def check_finite(self, answers: Tensor) -> None:
        """Raise :class:`NonFiniteOutputError` if a row of ``(n, K)`` is NaN or infinite."""
        bad = nonfinite_rows(answers) if self.nan_policy == "mismatch" else 0  # else none came this far
        if bad:
            raise NonFiniteOutputError(f"The suspect answered {bad} of {len(answers)} probes with NaN or infinity.")

    def doubts(self) -> str:
        """Return why no verdict can rest on the answers so far, or empty: all are alike, or some are not repeatable.

        Cost: ``repeats`` queries, in batches as they were sent.
        """
        if self._log.constant:
            return self._log.constant
        apart = asked = 0
        for x, first in zip(self._log.asked, self._log.answered, strict=True):
            apart += differing(first, self._answer(x.to(self.device)).cpu())
            asked += len(x)
        return f"The suspect answered {apart} of {asked} repeated probes in another way." if apart else ""

    def recorded_digest(self) -> str:
        """Return a digest of all answers so far, empty unless they are recorded."""
        return array_digest(*(answer.cpu().numpy() for answer in self._recorded)) if self._recorded else ""

    def softened(self) -> Suspect:
        """Return a suspect that gives the recorded answers, which are logits, once more in their order, as
        probabilities. It is asked nothing."""
        return _Softened(self)

    def _need_scores(self) -> None:
        if self.kind == "labels":
            raise AccessError(
                "label-only suspect: this metric needs scores (if its answers are scores all the same, pass "
                "outputs='probabilities')"
            )

    def _batch(self, x: Tensor) -> Tensor:
        answer = self._answer(x)
        bad = nonfinite_rows(answer) if self.nan_policy == "raise" else 0
        if bad:
            raise NonFiniteOutputError(f"The suspect answered {bad} of {len(x)} probes with NaN or infinite scores.")
        self._log.note(x, answer)
        if self.kind == "auto" and self._nb_hard is not None:
            self._nb_hard = self._nb_hard + len(x) if only_labels(answer) else None
            if self._nb_hard is not None and self._nb_hard >= _ENOUGH:
                self.kind = "labels"
        if self._recorded is not None:
            self._recorded.append(answer)
        return answer

    def _answer(self, x: Tensor) -> Tensor:
        """Send one batch and return its answers as rows, ``(n, K)``."""
        self._spend(len(x))
        answer = self._ask(self._native(x))
        if answer.shape in ((len(x),), (len(x), 1)):
            return self._one_hot(answer.reshape(-1))
        if answer.shape != (len(x), self.nb_classes):
            raise MalformedAnswerError(
                f"The suspect answered {len(x)} samples with shape {tuple(answer.shape)}; class indices ({len(x)},) or "
                f"scores of two or more classes, ({len(x)}, {self.nb_classes}) by its nb_classes, were expected."
            )
        return answer

    def _ask(self, x: Tensor) -> Tensor:
        if self._view is None:
            with _answering():
                answer = client_answers(self.classifier, x.cpu().numpy().copy())  # to which it may write
                if np.iscomplexobj(answer):
                    raise TypeError("its scores are complex numbers")
                return torch.from_numpy(np.array(answer, dtype=np.float32))
        if not self._evaluating or self._view.network.training:  # once: it walks over all modules
            self._view.network.eval()
            self._evaluating = True
        with _answering(), torch.no_grad():
            output = self._view.network(self._view.preprocess(x))
        if isinstance(output, Tensor) and not output.is_floating_point() and output.ndim == 1:
            return output.float()
        try:
            return check_output(output).float()
        except InvalidInputError as error:
            raise MalformedAnswerError(str(error)) from error

    def _one_hot(self, answer: Tensor) -> Tensor:
        """Return class indices as rows; a NaN gives a row of NaN."""
        bad = ~torch.isfinite(answer)
        whole = bad | ((answer == answer.floor()) & (answer >= 0) & (answer < self.nb_classes))
        if self.kind in ("logits", "probabilities") or not whole.all():
            raise MalformedAnswerError(
                f"The suspect answered one number for each sample, in [{answer.min():g}, {answer.max():g}]: class "
                f"indices 0 to {self.nb_classes - 1} are labels; scores must be those of all classes, two or more."
            )
        self.kind = "labels"
        rows = torch.nn.functional.one_hot(answer.masked_fill(bad, 0).long(), self.nb_classes).float()
        return rows.masked_fill(bad[:, None], torch.nan)

    def _native(self, x: Tensor) -> Tensor:
        """Return samples on the device as the suspect wants them: channels last or flat if need be."""
        x = x.to(self.device)
        if not self._channels_first:
            return x.movedim(1, -1).contiguous()
        return x.flatten(1) if len(self.classifier.input_shape) == 1 else x

    # ------------------------------------------------------------------ layers
    @property
    def view(self) -> LogitsNetwork:
        """The white-box view. Only for PyTorch suspects.

        :raises AccessError: if the suspect is query-only, or its network is TorchScript or quantised.
        """
        if not isinstance(self.classifier, PyTorchClassifier):
            raise AccessError(
                f"This metric reads the suspect's layers, which a {type(self.classifier).__name__} does not show: use "
                "a PyTorchClassifier or a query-only verifier."
            )
        try:
            return self._view or LogitsNetwork(self.classifier, "logits")
        except InvalidInputError as error:  # TorchScript, or quantised layers
            raise AccessError(f"This metric reads the suspect's layers: {error}") from error

    def differentiable(self, x: Tensor) -> Tensor:
        """Send one batch that requires a gradient, and return logits on ``device`` with a graph back to it.

        Channels first. Cost: n queries, and a backward pass of n samples in the caller's hands.

        :raises AccessError: the suspect is query-only, or its preprocessing has no gradient.
        """
        view = self.view
        if not view.preprocess.differentiable:
            raise AccessError(
                "The suspect's preprocessing defences have no torch gradient: use their PyTorch versions, or move them "
                "into the model."
            )
        self._spend(len(x))
        view.network.eval()
        with _answering(FingerprintError), torch.enable_grad():
            logits = view(self._native(x))
        bad = nonfinite_rows(logits.detach())
        if bad:
            raise NonFiniteOutputError(f"The suspect answered {bad} of {len(x)} probes with NaN or infinite scores.")
        return logits

    @torch.no_grad()
    def activations(self, x: Tensor, layer: str, reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return one layer's output for any number of samples on the host; the forward pass stops at that layer.

        :param reduce: Applied to the layer's output of each batch on the device, so that whole feature maps need not be
            kept.
        """
        view = self.view
        view.network.eval()
        parts = []
        with tapped(view.network, layer) as run:
            for part in x.split(self.batch_size):
                self._spend(len(part))
                with _answering(FingerprintError):
                    output = run(view.preprocess(self._native(part).to(view.device)))
                parts.append((output if reduce is None else reduce(output)).cpu())
        return torch.cat(parts)

    def _spend(self, n: int) -> None:
        if self.budget is not None and self.queries + n > self.budget:
            raise QueryBudgetError(
                f"The next {n} queries would exceed the budget of {self.budget}; {self.queries} were sent."
            )
        self._started = time.monotonic() if self._started is None else self._started
        if self.max_seconds is not None and time.monotonic() - self._started > self.max_seconds:
            raise QueryBudgetError(f"The {self.max_seconds:g} s are over; {self.queries} queries were sent by then.")
        self.queries += n


class _Softened(Suspect):
    """Replays a suspect's answers as probabilities."""

    def __init__(self, suspect: Suspect) -> None:
        super().__init__(suspect.classifier, suspect.batch_size, "probabilities")
        self.device = suspect.device
        self._left = iter(suspect._recorded or ())

    def _ask(self, x: Tensor) -> Tensor:
        return to_probabilities(next(self._left))


@contextmanager
def _answering(*ours: type[Exception]) -> Iterator[None]:
    """Turn whatever a foreign model raises into one error of ours.

    :param ours: Errors that pass, where code of this package runs in the block.
    """
    try:
        yield
    except ours:
        raise
    except Exception as error:
        raise SuspectFailedError(
            f"The classifier raised {type(error).__name__} while it answered probes: {error}"
        ) from error
