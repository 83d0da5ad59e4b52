"""What the RemovalNet paper (IEEE TDSC 2023) prints in Tables I, II and IV, as data."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from art_fingerprint.core.taps import near_names
from art_fingerprint.exceptions import InvalidInputError

METRICS = ("LOD", "LAD", "ZEST-L2", "ZEST-cosine", "DDV", "MR")
# The row labels of the presets for the paper's two kinds of substitute data.
_LABELS = {"training subset": "RemovalNet(train)", "surrogate data": "RemovalNet(apart)"}
_NOTES = {"ImageNet": ("The paper prints ZEST-Cosine of ImageNet on a larger scale than that of its other data sets.",)}


@dataclass(frozen=True)
class PublishedValue:
    """One number of a table.

    :ivar mean: The number.
    :ivar spread: What the paper prints after ±; ``None`` where it prints nothing.
    :ivar printed: Both with the digits of the paper.
    """

    mean: float
    spread: float | None
    printed: str


@dataclass(frozen=True)
class PublishedRow:
    """One line of Table I or II: a kind of suspect.

    :ivar label: The row label of the presets, e.g. ``FT(0.5)``. The paper's RemovalNet with a training subset is
        ``RemovalNet(train)`` here, that with surrogate data ``RemovalNet(apart)``.
    :ivar accuracy: In percent.
    :ivar drop: Points lost against the victim, as printed; not always the difference of the printed accuracies.
    :ivar metrics: Metric name to value; without those that the paper does not have.
    :ivar ownership: How many models were judged derived, e.g. ``Yes (10/10)``.
    """

    label: str
    accuracy: PublishedValue
    drop: PublishedValue
    metrics: Mapping[str, PublishedValue]
    ownership: str


@dataclass(frozen=True)
class PublishedTable:
    """Table I or II for one data set.

    :ivar dataset: Its name in the paper.
    :ivar victim_accuracy: In percent.
    :ivar rows: The paper's lines in its order.
    :ivar thresholds: Metric name to threshold; the metrics of this data set.
    :ivar notes: What must be known to read the numbers.
    """

    dataset: str
    victim_accuracy: PublishedValue
    rows: tuple[PublishedRow, ...]
    thresholds: Mapping[str, PublishedValue]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedRobustness:
    """One line of Table IV (CIFAR10, VGG19): accuracy under attack, and its distance to the victim's.

    The paper prints the distances of FGSM; those of PGD and DeepFool are differences of the accuracies that it prints.
    """

    attack: str
    rob_victim: float
    rob_surrogate: float
    rob_negative: float
    robd_surrogate: float
    robd_negative: float


def published_datasets() -> tuple[str, ...]:
    """Return the data sets of Tables I and II, by the paper's names.

    CIFAR10, GTSRB, Skin Lesion, CelebA+20 and CelebA+31 have all six metrics and eight lines. ImageNet has neither LOD
    nor LAD, and no RemovalNet with surrogate data.
    """
    return tuple(table.dataset for table in _tables().values())


def published_table(dataset: str) -> PublishedTable:
    """Return Table I or II for one data set; case and punctuation of the name do not matter.

    :raises InvalidInputError: the paper has no such data set. The message lists those it has, the nearest first.
    """
    tables, wanted = _tables(), plain_name(dataset)
    if wanted not in tables:
        names = [tables[key].dataset for key in dict.fromkeys([*near_names(tables, wanted), *tables])]
        raise InvalidInputError(f"The paper has no table of the data set {dataset!r}; it has {', '.join(names)}.")
    return tables[wanted]


@functools.cache
def published_robustness() -> Mapping[str, PublishedRobustness]:
    """Return Table IV, evasion attack to line."""
    found = {}
    for line in _lines("table_4.csv"):
        attack, *numbers = line.values()
        found[attack] = PublishedRobustness(attack, *map(float, numbers))
    return MappingProxyType(found)


def plain_name(dataset: str) -> str:
    """Return the letters and digits of a data set's name, in lower case: ``skin-lesion`` is the paper's Skin Lesion."""
    return "".join(character for character in str(dataset).lower() if character.isalnum())


@functools.cache
def _tables() -> Mapping[str, PublishedTable]:
    groups: dict[str, list[dict[str, str]]] = {}
    for line in _lines("tables_1_2.csv"):
        groups.setdefault(line["dataset"], []).append(line)
    return {plain_name(name): _table(name, lines) for name, lines in groups.items()}


def _table(name: str, lines: list[dict[str, str]]) -> PublishedTable:
    rows = tuple(
        PublishedRow(
            label=_LABELS.get(line["substitute"], line["row"]),
            accuracy=_value(line, "accuracy"),
            drop=_value(line, "drop"),
            metrics=_metrics(line),
            ownership=line["ownership"],
        )
        for line in lines
        if line["row"] != "threshold"
    )
    (limits,) = (line for line in lines if line["row"] == "threshold")
    return PublishedTable(name, _value(limits, "victim_accuracy"), rows, _metrics(limits), _NOTES.get(name, ()))


def _metrics(line: Mapping[str, str]) -> Mapping[str, PublishedValue]:
    return MappingProxyType({name: _value(line, name) for name in METRICS if line[name]})


def _value(line: Mapping[str, str], name: str) -> PublishedValue:
    mean, spread = line[name], line.get(f"{name}_spread")
    return PublishedValue(float(mean), float(spread) if spread else None, f"{mean}±{spread}" if spread else mean)


def _lines(file: str) -> list[dict[str, str]]:
    text = (resources.files(__name__) / file).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
