"""What an experiment is: a plan made from a preset, and what is read off its rows and models."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from art_fingerprint.attacks import RemovalNetAttack
from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.suspects import Suspect
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.layout import Sheet, one_line
from art_fingerprint.reporting.tables import COLUMNS, latest_rows
from art_fingerprint.zoo.loading import attack_class
from art_fingerprint.zoo.presets import AttackSetting, Preset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Seeds = Sequence[int]


@dataclass(frozen=True)
class Run:
    """A finished run: what was planned, what came out, and the models.

    :ivar plan: The plan, of one victim.
    :ivar rows: Its newest rows.
    :ivar bench: Gives the models that the rows are about, as they are kept.
    """

    plan: Plan
    rows: Sequence[Row]
    bench: Workbench

    @property
    def preset(self) -> Preset:
        """The victim."""
        return self.plan.presets[0]

    def suspects(self, label: str) -> list[Suspect]:
        """Return the models of one row label whose rows say that they could be made, in order of their seeds."""
        made = {(row["suspect"], row["seed"]) for row in self.rows if row["accuracy"] is not None}
        return [s for s in self.bench.suspects if s.label == label and (s.label, s.seed) in made]


@dataclass(frozen=True)
class Findings:
    """What an experiment writes.

    :ivar sheets: Name to table; the name is a part of the file's name, empty for the only table.
    :ivar figure: Draws the figure, or ``None`` where the paper has a table.
    """

    sheets: Mapping[str, Sheet]
    figure: Callable[[], Figure] | None = None


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper.

    :ivar title: What it shows.
    :ivar plan: The grid, from a preset and seeds.
    :ivar from_rows: Tables and figure, from the rows of a finished run; ``None`` where they need its models.
    :ivar from_models: The same from rows and models, where rows are not enough.
    """

    title: str
    plan: Callable[[Preset, Seeds], Plan]
    from_rows: Callable[[Sequence[Row]], Findings] | None = None
    from_models: Callable[[Run], Findings] | None = None

    def read(self, run: Run) -> Findings:
        """Return tables and figure of a finished run."""
        if self.from_rows is not None:
            return self.from_rows(run.rows)
        assert self.from_models is not None
        return self.from_models(run)


@dataclass(frozen=True)
class Model:
    """One model of a run, all its rows together.

    :ivar label: Row label.
    :ivar role: ``"victim"``, ``"reference"``, ``"negative"`` or ``"surrogate"``.
    :ivar seed: Its seed.
    :ivar accuracy: Test accuracy in percent.
    :ivar metrics: Metric to value, those that have one.
    :ivar passes: Forward-equivalents of its attack, ``None`` where there is none.
    :ivar seconds: Wall time of its attack.
    """

    label: str
    role: str
    seed: int
    accuracy: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    passes: float | None = None
    seconds: float | None = None


def models_of(rows: Iterable[Row]) -> list[Model]:
    """Return the models of the newest rows that could be made, in order of appearance."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in latest_rows(rows):
        if row["accuracy"] is not None:
            groups.setdefault((row["suspect"], row["seed"]), []).append(row)
    found = []
    for (label, seed), own in groups.items():
        metrics = {
            name: result["value"]
            for row in own
            if row["status"] == "ok"
            for name, result in row["metrics"].items()
            if result["value"] is not None
        }
        passes = (own[0].get("cost") or {}).get("forward_equivalents")
        accuracy = 100 * own[0]["accuracy"]
        found.append(Model(label, own[0]["role"], seed, accuracy, metrics, passes, own[0]["attack_seconds"]))
    return found


def failures(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return a sentence for all rows that lack results for one reason: what a table says is about the other seeds."""
    newest: dict[str, dict[int, list[Row]]] = {}
    for row in latest_rows(rows):
        newest.setdefault(row["suspect"], {}).setdefault(row["seed"], []).append(row)
    alike: dict[tuple[str, str], list[str]] = {}  # places of one curve fail together: its labels share a sentence
    for label in in_order(newest):
        seeds = newest[label]
        broken: dict[tuple[str, ...], list[Row]] = {}  # verifiers without a result to one row of each seed
        for own in seeds.values():
            failed = [row for row in own if row["status"] == "failed"]
            if failed:
                what = () if len(failed) == len(own) else tuple(row["verifier"] for row in failed)
                broken.setdefault(what, []).append(failed[0])
        for verifiers, failed in broken.items():
            of = f" of {', '.join(verifiers)}" if verifiers else ""
            whose = f" for {len(failed)} of {len(seeds)} seeds; numbers are of the others"
            text = (
                f"no result{of}{'' if len(failed) == len(seeds) else whose}. "
                f"Seed {failed[0]['seed']}: {failed[0]['reason']}"
            )
            alike.setdefault((base_label(label), text), []).append(label)
    return tuple(one_line(f"{_together(labels)}: {text}") for (_, text), labels in alike.items())


def _together(labels: Sequence[str]) -> str:
    """Return labels that differ in what follows their ``@``, in short."""
    first, *others = labels
    if len(labels) > 3:
        return f"{first} to @{labels[-1].rpartition('@')[2]} ({len(labels)} rows)"
    return ", ".join([first, *(f"@{label.rpartition('@')[2]}" for label in others)])


def directions(rows: Iterable[Row]) -> dict[str, str]:
    """Return metric to ``"distance"`` or ``"similarity"``, the paper's metrics first, in its order."""
    found = {name: result["direction"] for row in rows for name, result in row["metrics"].items()}
    order = [name for name, _, _ in COLUMNS if name in found]
    return {name: found[name] for name in (*order, *(name for name in found if name not in order))}


def thresholds(rows: Iterable[Row]) -> dict[str, float]:
    """Return metric to threshold, for those that have one."""
    return {
        name: result["threshold"]
        for row in rows
        for name, result in row["metrics"].items()
        if result["threshold"] is not None
    }


def place_of(label: str) -> float | None:
    """Return the number after a label's ``@``; ``None`` where there is none."""
    _, mark, text = label.rpartition("@")
    if mark:
        with suppress(ValueError):
            return int(text) if text.isdecimal() else float(text)
    return None


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels in order of appearance, but those of one curve together and by place: workers end in any order."""
    curves: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        curves.setdefault(label if place_of(label) is None else base_label(label), []).append(label)
    return [label for own in curves.values() for label in sorted(own, key=lambda name: place_of(name) or 0.0)]


def places(rows: Iterable[Row]) -> dict[str, float]:
    """Return the surrogates that stand for a place of a curve, a step or a share, with the number after their ``@``.

    :raises InvalidInputError: there are none.
    """
    labels = dict.fromkeys(str(row["suspect"]) for row in rows if row["role"] == "surrogate")
    found = {label: place for label in labels if (place := place_of(label)) is not None}
    if not found:
        raise InvalidInputError("The rows have no surrogate with a step or a share, LABEL@NUMBER.")
    return found


def scaled(models: Sequence[Model], metric: str, direction: str | None) -> dict[tuple[str, int], float]:
    """Return (label, seed) to a metric scaled by the least and greatest of all models given: 0 to 1.

    A metric that all models share has no extremes: 0, turned round or not.

    :param direction: ``"similarity"``: turned round, so that 1 is the farthest from the victim. ``None``: as it is.
    """
    values = {(model.label, model.seed): model.metrics[metric] for model in models if metric in model.metrics}
    if not values:
        return {}
    low, high = min(values.values()), max(values.values())
    nearest = high if direction == "similarity" else low
    span = (high - low) or 1.0
    return {key: abs(value - nearest) / span for key, value in values.items()}


@dataclass(frozen=True)
class Band:
    """A value over seeds: mean, least and greatest."""

    mean: float
    low: float
    high: float


def band(values: Iterable[float]) -> Band | None:
    """Return the band of some values, ``None`` of none."""
    numbers = list(values)
    return Band(statistics.fmean(numbers), min(numbers), max(numbers)) if numbers else None


# ---------------------------------------------------------------------- plans
def planned(name: str, preset: Preset, seeds: Seeds, attacks: Mapping[str, AttackSetting], **changes: Any) -> Plan:
    """Return the plan of an experiment: the preset with other attacks, under a name of its own.

    Models do not depend on that name, so that experiments in one folder share victim, references and negatives. Evasion
    attacks are left out.
    """
    return Plan(
        (replace(preset, name=f"{preset.name} {name}", attacks=dict(attacks), robustness={}, **changes),), tuple(seeds)
    )


def without_verdicts(preset: Preset) -> dict[str, Any]:
    """Return what to change where only accuracies or models are wanted: one verifier, few references."""
    wanted = "IPGuardVerifier" if "IPGuardVerifier" in preset.verifiers else next(iter(preset.verifiers))
    return {
        "verifiers": {wanted: preset.verifiers[wanted]},
        "nb_references": min(2, preset.nb_references),
        "nb_other_data_references": min(2, preset.nb_other_data_references),
        "nb_known": min(1, preset.nb_known),
        "calibration": {},
    }


def without_negatives(preset: Preset) -> dict[str, Any]:
    """Return what to change where no negatives are wanted. One of other data stays if it alone halves the images."""
    if preset.negatives is None:
        return {"nb_negatives": 0}
    alone = preset.negatives.get("other-data") and not preset.nb_other_data_references
    return {"negatives": {"other-data": 1} if alone else {}}


def removal_rows(preset: Preset) -> dict[str, AttackSetting]:
    """Return the RemovalNet rows of a preset, with steps that can be counted on: no ``keep_best``.

    :raises InvalidInputError: it has none.
    """
    found = {
        label: replace(setting, params={k: v for k, v in setting.params.items() if k not in ("keep_best", "patience")})
        for label, setting in preset.attacks.items()
        if issubclass(attack_class(setting.attack), RemovalNetAttack) and setting.step is None
    }
    if not found:
        raise InvalidInputError(
            f"The preset {preset.name!r} has no row of RemovalNetAttack, which this experiment needs."
        )
    return found


def max_iter_of(params: Mapping[str, Any]) -> int:
    """Return the number of steps of a RemovalNet row with these parameters."""
    return int(params.get("max_iter", 1000))


def checkpoints(label: str, setting: AttackSetting, steps: Iterable[int]) -> dict[str, AttackSetting]:
    """Return a row for each checkpoint of an attack."""
    return {f"{label}@{step}": replace(setting, step=step) for step in sorted(set(steps))}


def base_label(label: str) -> str:
    """Return a checkpoint's label without its step."""
    return label.rpartition("@")[0] or label
