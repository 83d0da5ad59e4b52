"""Models of a bench that were not derived from its victim: references, negatives of three kinds, known models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_fingerprint.benchmark.plan import architecture_name, load_architecture
from art_fingerprint.benchmark.store import cell_key
from art_fingerprint.benchmark.suspects import Suspect
from art_fingerprint.benchmark.validation import check_architecture
from art_fingerprint.core.seeding import derive_seed, forked_random_state
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.verifiers.error_verifier import ErrorVerifier
from art_fingerprint.zoo.dataset import Dataset
from art_fingerprint.zoo.preset import KNOWN, NEGATIVES, OTHER_DATA_REFERENCE, REFERENCE, Preset
from art_fingerprint.zoo.recipes import Recipe, train_negative, train_victim, wrap


@dataclass(frozen=True)
class _Group:
    """Independent models of one row label.

    :ivar role: ``"reference"`` or ``"negative"``.
    :ivar seeds: Their seeds in the rows.
    :ivar make: Makes their network.
    :ivar start: What stands for that network in digests.
    :ivar data: What they are trained on.
    :ivar seed: Seed in the rows to seed of the training.
    """

    role: str
    seeds: tuple[int, ...]
    make: Callable[[], nn.Module]
    start: Any
    data: Dataset
    seed: Callable[[int], int]


class Independents:
    """References, known models and negatives, by their row labels.

    References and known models are trained as the victim was, negatives by the negatives' recipe. All start from other
    random weights than the victim, and no two groups have a seed of training in common, but for ``Negative``, whose
    seeds are those of the rows.

    :param preset: How many there are of each kind.
    :param seeds: Seeds of negatives of the victim's data, where the preset does not count them.
    :param own: The victim's data.
    :param other: Training images that the victim was not trained on; ``None`` where nobody needs them.
    :param made_from: What is in the digest of every model.
    :param device_type: ``"gpu"`` or ``"cpu"``.
    :raises InvalidInputError: an architecture cannot be had, or does not fit the data.
    """

    def __init__(
        self,
        preset: Preset,
        seeds: Iterable[int],
        own: Dataset,
        other: Dataset | None,
        made_from: Mapping[str, Any],
        device_type: str,
    ) -> None:
        self._preset = preset
        self._made_from = made_from
        self._device_type = device_type
        facts = (own.nb_classes, own.input_shape[0])
        make = load_architecture(preset.independent_architecture or preset.architecture, *facts)
        # the victim's own network has been checked, and is in the digest of every model
        start = _described(make, own.nb_classes) if preset.independent_architecture else architecture_name(make)
        same = (make, start, own)
        apart = (make, start, own if other is None else other)
        counts = preset.negatives or {}
        judged = counts.get("same-data", 0) if preset.negatives is not None else preset.nb_negatives
        first = tuple(seeds) if judged is None else tuple(range(judged))
        derived = functools.partial(derive_seed, preset.victim_seed)
        self._groups = {
            REFERENCE: _Group(
                "reference", _count(preset.nb_references), *same, functools.partial(derived, "reference")
            ),
            OTHER_DATA_REFERENCE: self._group(
                "reference", OTHER_DATA_REFERENCE, preset.nb_other_data_references, *apart
            ),
            KNOWN: self._group("reference", KNOWN, preset.nb_known, *same),
            NEGATIVES["same-data"]: _Group("negative", first, *same, int),
            NEGATIVES["other-data"]: self._group(
                "negative", NEGATIVES["other-data"], counts.get("other-data", 0), *apart
            ),
        }
        if preset.other_architecture is not None and counts.get("other-architecture", 0):
            label = NEGATIVES["other-architecture"]
            foreign = load_architecture(preset.other_architecture, *facts)
            start = _described(foreign, own.nb_classes, own.input_shape)
            self._groups[label] = self._group("negative", label, counts["other-architecture"], foreign, start, own)

    def _group(
        self, role: str, label: str, count: int, make: Callable[[], nn.Module], start: Any, data: Dataset
    ) -> _Group:
        seed = functools.partial(derive_seed, self._preset.victim_seed, "independent", label)
        return _Group(role, _count(count), make, start, data, seed)

    def suspects(self) -> list[Suspect]:
        """Return all of them: references, known models, negatives."""
        return [
            Suspect(label, group.role, seed, self._key(group, seed))
            for label, group in self._groups.items()
            for seed in group.seeds
        ]

    def _recipe(self, group: _Group) -> Recipe:
        return self._preset.negative_recipe if group.role == "negative" else self._preset.victim_recipe

    def _key(self, group: _Group, seed: int) -> str:
        made_from = {**self._made_from, "data": group.data.digest}
        kind = "negative" if group.role == "negative" else "victim"
        recipe = asdict(self._recipe(group))
        return cell_key(kind=kind, start=group.start, recipe=recipe, seed=group.seed(seed), **made_from)

    def untrained(self, suspect: Suspect) -> PyTorchClassifier:
        """Return a classifier that a model's weights can be put into."""
        group = self._groups[suspect.label]
        with forked_random_state():
            return wrap(group.make(), group.data, self._device_type)

    def train(self, suspect: Suspect) -> PyTorchClassifier:
        """Train a model."""
        group = self._groups[suspect.label]
        train = train_negative if group.role == "negative" else train_victim
        return train(group.make, group.data, self._recipe(group), group.seed(suspect.seed), self._device_type)

    # ------------------------------------------------------------------ what verifiers are given
    def references_of(self, kind: type[Verifier]) -> str:
        """Return the row label of the references that calibrate a verifier.

        Whoever asks whether the victim's training images were used can learn the answer "no" only from models that were
        not trained on them; see :attr:`.Preset.nb_other_data_references`.
        """
        asks_for_data = kind.extraction_data == "training" and self._preset.nb_other_data_references
        return OTHER_DATA_REFERENCE if asks_for_data else REFERENCE

    def known_of(self, kind: type[Verifier]) -> str | None:
        """Return the row label of the models that help a verifier choose its queries, or ``None`` if none do."""
        return KNOWN if self._preset.nb_known and issubclass(kind, ErrorVerifier) else None

    def count(self, label: str) -> int:
        """Return the number of models of a row label."""
        return len(self._groups[label].seeds)

    def facts_of(self, kind: type[Verifier]) -> dict[str, Any]:
        """Return what a fingerprint depends on besides the victim, its references' number and its parameters."""
        preset = self._preset
        facts: dict[str, Any] = {}
        if self.references_of(kind) == OTHER_DATA_REFERENCE:
            facts["other_data_references"] = preset.nb_other_data_references
        if self.known_of(kind) is not None:
            facts["known"] = preset.nb_known
        if preset.held_out_noise and kind.extraction_data == "held-out":
            facts["held_out_noise"] = dict(preset.held_out_noise)
        if preset.independent_architecture is not None:
            facts["references_start"] = self._groups[REFERENCE].start
        return facts


def _described(make: Callable[[], nn.Module], nb_classes: int, input_shape: tuple[int, ...] | None = None) -> list[str]:
    """Return what stands for a network in digests, whose name alone would not change with its definition.

    :raises InvalidInputError: as :func:`.check_architecture`.
    """
    with forked_random_state(0):
        return [architecture_name(make), str(check_architecture(make, nb_classes, input_shape))]


def _count(number: int) -> tuple[int, ...]:
    return tuple(range(number))
