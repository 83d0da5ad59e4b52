"""The attacker's data and what the victim says about it: whole in memory, or as a stream."""

from __future__ import annotations

from collections.abc import Callable

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_fingerprint.core.classifier import LogitsNetwork, direct_view
from art_fingerprint.core.cost import CostMeter
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.outputs import OutputKind, detect_kind, nonfinite_rows, to_logits
from art_fingerprint.core.queries import Suspect
from art_fingerprint.core.streams import DataStream, StreamBatches
from art_fingerprint.core.training import Batch, Batches, EpochBatches
from art_fingerprint.exceptions import InvalidInputError, NonFiniteOutputError


class SubstituteSet:
    """The attacker's data and what the victim says about it.

    What is asked with a batch (``..._of``) also works on a :class:`StreamedSet`; the tables and ``x`` do not.

    :ivar victim: The victim's white-box view, frozen and in evaluation mode.
    :ivar batch_size: Samples in a batch.
    :ivar hflip: Whether batches hold mirrored samples.
    :ivar cost: Counts the passes of the run. Passes of the whole network are counted by themselves; a cut's need
        :meth:`.CostMeter.watch_cut`.
    :ivar queries: Samples that the victim was asked about so far.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        victim: LogitsNetwork,
        batch_size: int,
        hflip: bool = False,
        cost: CostMeter | None = None,
    ) -> None:
        self._x = x
        self._y = y
        self.victim = victim
        self.batch_size = batch_size
        self.hflip = hflip
        self.cost = CostMeter() if cost is None else cost
        self.queries = 0
        # About the samples and their mirror images: what the victim said, on the host, where it is small beside them,
        # and what was asked for of it so far, on the device.
        self._answers: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._client: Suspect | None = None
        self._client_kind: OutputKind | None = None

    def ask_as_client(self, classifier: PyTorchClassifier) -> None:
        """Answer from now on what the victim's clients see, postprocessing defences and all, where that is not what its
        network says. Labels and probabilities become logits whose softmax they are.
        """
        if direct_view(classifier) is None:
            self._client = Suspect(classifier, self.batch_size, nan_policy="mismatch")

    @property
    def x(self) -> Tensor:
        """Raw inputs on the host, ``(n, *input_shape)`` float32."""
        return self._x

    @property
    def y(self) -> Tensor | None:
        """Labels given by the caller ``(n,)``, or ``None``."""
        return self._y

    @property
    def size(self) -> int | None:
        """Number of samples; ``None`` if a stream does not say."""
        return len(self.x)

    def needs_array(self, parameter: str) -> None:
        """Refuse a stream in the name of a parameter that needs the whole set at once."""

    # ------------------------------------------------------------------ batches
    def batches(self, seed: int) -> EpochBatches:
        """Return endless training batches; order and flips come from the seed."""
        return Batches(self.x, self.victim.preprocess, self.batch_size, self.victim.device, seed, self.hflip)

    def example(self, n: int) -> Batch:
        """Return the first n samples (or all), not mirrored, as a batch."""
        x = self.x[:n].to(self.victim.device)
        index = torch.arange(len(x), device=x.device)
        return Batch(self.victim.preprocess(x), index, torch.zeros_like(index))

    def labels_of(self, batch: Batch) -> Tensor:
        """Return the labels of a batch ``(B,)``: the caller's where given, else the victim's."""
        if self._y is None:
            return self.victim_labels_of(batch)
        self._y = self._y.to(self.victim.device)
        return self._y[batch.index]

    def victim_labels_of(self, batch: Batch) -> Tensor:
        """Return the victim's labels of a batch ``(B,)``. Cost: that of :meth:`victim_labels`, once."""
        return _picked(self._label_rows(self.hflip), batch)

    def victim_logits_of(self, batch: Batch) -> Tensor:
        """Return the victim's logits of a batch ``(B, K)``. Cost: that of :meth:`victim_logits`, once."""
        return _picked(self._logit_rows(self.hflip), batch)

    # ------------------------------------------------------------------ tables
    def victim_labels(self, hflip: bool) -> Tensor:
        """Return the victim's labels ``(1, n)``, or ``(2, n)`` with those of the mirrored samples, on its device.

        Cost: one query for each entry about which nothing was asked before, labels or logits.
        """
        return torch.stack(self._label_rows(hflip))

    def victim_logits(self, hflip: bool) -> Tensor:
        """Return the victim's logits ``(1, n, K)``, or ``(2, n, K)`` with those of the mirrored samples.

        Cost: that of :meth:`victim_labels`.
        """
        return torch.stack(self._logit_rows(hflip))

    def victim_probabilities(self, hflip: bool) -> Tensor:
        """Return the softmax of :meth:`victim_logits`."""
        return self.victim_logits(hflip).softmax(-1)

    def labels(self, hflip: bool) -> Tensor:
        """Return the caller's labels where given, else the victim's, in the form of :meth:`victim_labels`."""
        if self.y is None:
            return self.victim_labels(hflip)
        return self.y.to(self.victim.device).expand(1 + hflip, -1)

    def ask(self, x: Tensor) -> Tensor:
        """Return the victim's logits for any raw inputs, ``(n, K)`` on the host. Cost: n queries, which are counted.

        :raises NonFiniteOutputError: an answer is NaN or infinite.
        """
        self.queries += len(x)
        if self._client is not None:
            return self._as_client(self._client.rows(x))
        answers = self.victim.predict(x, self.batch_size)
        _check_answers(answers)
        return answers

    def _as_client(self, rows: Tensor) -> Tensor:
        _check_answers(rows)
        self._client_kind = self._client_kind or detect_kind(rows)  # decided once, as for a suspect
        return to_logits(rows) if self._client_kind == "probabilities" else rows

    def _label_rows(self, hflip: bool) -> list[Tensor]:
        return self._rows(self._labels, hflip, lambda answers: answers.argmax(1))

    def _logit_rows(self, hflip: bool) -> list[Tensor]:
        return self._rows(self._logits, hflip, lambda answers: answers)

    def _rows(self, kept: list[Tensor], hflip: bool, read: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return what ``read`` makes of the answers, on the device: of the samples, and of their mirror images."""
        for mirrored in range(len(self._answers), 1 + hflip):
            self._answers.append(self.ask(self.x.flip(-1) if mirrored else self.x))
        for answers in self._answers[len(kept) : 1 + hflip]:
            kept.append(read(answers).to(self.victim.device))
        return kept[: 1 + hflip]

    # ------------------------------------------------------------------ checks
    def check_classes(self, nb_classes: int, allow_degenerate: bool, labels: Tensor | None = None) -> None:
        """Refuse a set that the victim puts into one class; warn when it is close to that.

        :param labels: What the victim says, ``(n,)``; ``None``: :meth:`victim_labels`, of a stream those of a batch.
        """
        labels = self._seen_labels() if labels is None else labels
        counts = torch.bincount(labels.cpu(), minlength=nb_classes)
        present, share = int((counts > 0).sum()), float(counts.max()) / len(labels)
        if present == 1 and not allow_degenerate:
            raise InvalidInputError(
                f"The victim puts all {len(labels)} {self._samples} into class {int(counts.argmax())}; samples of "
                "several classes are needed (allow_degenerate=True lifts this check)."
            )
        if present < min(nb_classes, 3) or share > 0.9:
            warn_caller(
                f"The substitute set is unbalanced: the victim sees {present} of {nb_classes} classes in it and puts "
                f"{share:.0%} into one; expect a loss of accuracy."
            )

    _samples = "substitute samples"

    def _seen_labels(self) -> Tensor:
        return self.victim_labels(False)[0]


class StreamedSet(SubstituteSet):
    """A substitute set that is read batch by batch and never kept. The victim is asked about every batch anew.

    :param stream: Where samples come from.
    """

    _samples = "first samples of the DataGenerator (does it shuffle?)"

    def __init__(
        self, stream: DataStream, victim: LogitsNetwork, batch_size: int, hflip: bool, cost: CostMeter
    ) -> None:
        batch_size = batch_size if stream.size is None else min(batch_size, stream.size)
        super().__init__(torch.empty(0), None, victim, batch_size, hflip, cost)
        self._stream = stream

    @property
    def x(self) -> Tensor:
        raise InvalidInputError("The whole substitute set is needed at once: pass `x` as an array, no DataGenerator.")

    @property
    def y(self) -> Tensor | None:
        raise InvalidInputError("All labels are needed at once: pass `x` and `y` as arrays, no DataGenerator.")

    @property
    def size(self) -> int | None:
        return self._stream.size

    def needs_array(self, parameter: str) -> None:
        raise InvalidInputError(
            f"`{parameter}` needs the whole substitute set at once: pass `x` as an array, no DataGenerator, or leave "
            f"`{parameter}` at its default."
        )

    def ask_as_client(self, classifier: PyTorchClassifier) -> None:
        if direct_view(classifier) is None:
            raise InvalidInputError(
                "The victim's clients see something else than its network answers (postprocessing defences, or a "
                "predict() of its own): pass `x` as an array, no DataGenerator."
            )

    def batches(self, seed: int) -> EpochBatches:
        return StreamBatches(
            self._stream, self.victim.preprocess, self.batch_size, self.victim.device, seed, self.hflip
        )

    def example(self, n: int) -> Batch:
        x, y = self._stream.peek(min(n, self.batch_size))
        x = x.to(self.victim.device)
        none = torch.zeros(0, dtype=torch.long, device=x.device)
        labels = None if y is None else y.to(x.device)
        return Batch(self.victim.preprocess(x), none, none.new_zeros(len(x)), labels)

    def labels_of(self, batch: Batch) -> Tensor:
        return self.victim_labels_of(batch) if batch.y is None else batch.y

    def victim_labels_of(self, batch: Batch) -> Tensor:
        """Return the victim's labels of a batch ``(B,)``. Cost: its forward pass, every time."""
        return self.victim_logits_of(batch).argmax(1)

    @torch.no_grad()
    def victim_logits_of(self, batch: Batch) -> Tensor:
        """Return the victim's logits of a batch ``(B, K)``. Cost: its forward pass, every time.

        :raises NonFiniteOutputError: an answer to the first batch is NaN or infinite; later ones are not waited for.
        """
        answers = self.victim.logits(self.victim.network(batch.x)).float()
        if self.queries == 0:
            _check_answers(answers)
        self.queries += len(batch.x)
        return answers

    def _seen_labels(self) -> Tensor:
        return self.victim_labels_of(self.example(self.batch_size))


def _check_answers(answers: Tensor) -> None:
    bad = nonfinite_rows(answers)
    if bad:
        raise NonFiniteOutputError(f"The victim answered {bad} of {len(answers)} samples with NaN or infinite scores.")


def _picked(rows: list[Tensor], batch: Batch) -> Tensor:
    """Return the entries of a batch from a table of the samples and one of their mirror images."""
    found = rows[0][batch.index]
    if len(rows) == 1:
        return found
    mirrored = batch.flipped.bool().view(-1, *[1] * (found.ndim - 1))
    return torch.where(mirrored, rows[1][batch.index], found)
