"""Figure 7: what KnockoffNets, which starts from nothing, needs to be as accurate as RemovalNet."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.experiments.experiment import (
    Experiment,
    Findings,
    Model,
    Row,
    Seeds,
    band,
    base_label,
    checkpoints,
    max_iter_of,
    models_of,
    places,
    planned,
    removal_rows,
    without_negatives,
    without_verdicts,
)
from art_fingerprint.experiments.learning import tidy
from art_fingerprint.reporting.figures import colour_of, legend_entries, marker_of, new_figure
from art_fingerprint.reporting.layout import Sheet, mean_std
from art_fingerprint.zoo.presets import AttackSetting, Preset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTOR = 10  # the paper: 10,000 iterations against 1000
NB_CHECKPOINTS = 20
_SHARED = ("batch_size", "hflip", "allow_degenerate")  # parameters of RemovalNet's row that its rival gets, too
UNITS = ("iterations", "forward-equivalents", "seconds")


def plan(preset: Preset, seeds: Seeds) -> Plan:
    """Return RemovalNet's rows, and for each of them KnockoffNets on the same data, ten times as long."""
    rows = removal_rows(preset)
    attacks = dict(rows)
    for label, setting in rows.items():
        last = FACTOR * max_iter_of(setting.params)
        shared = {name: setting.params[name] for name in _SHARED if name in setting.params}
        knock = AttackSetting("KnockoffNetsAttack", {"max_iter": last, **shared}, setting.source, False, setting.ratio)
        steps = (round(index * last / NB_CHECKPOINTS) for index in range(NB_CHECKPOINTS + 1))
        attacks.update(checkpoints(rival(label), knock, steps))
    return planned("fig7", preset, seeds, attacks, **without_negatives(preset), **without_verdicts(preset))


def rival(label: str) -> str:
    """Return the label of KnockoffNets on the data of a RemovalNet row."""
    return label.replace("RemovalNet", "KnockoffNets") if "RemovalNet" in label else f"KnockoffNets({label})"


@dataclass(frozen=True)
class Contest:
    """RemovalNet and KnockoffNets on the same data, means over seeds.

    :ivar label: RemovalNet's row.
    :ivar accuracy: RemovalNet's accuracies in percent, one a seed.
    :ivar cost: Its cost in each unit of :data:`UNITS`; ``None`` where the rows lack it.
    :ivar curve: KnockoffNets: step to its accuracies, one a seed; without steps that have none.
    :ivar curve_cost: Step to its cost in each unit.
    """

    label: str
    accuracy: tuple[float, ...]
    cost: tuple[float | None, ...]
    curve: Mapping[int, tuple[float, ...]]
    curve_cost: Mapping[int, tuple[float | None, ...]]

    @property
    def held(self) -> bool:
        """Whether there is anything to compare: both have results."""
        return bool(self.accuracy and self.curve)

    @property
    def caught_up(self) -> int | None:
        """KnockoffNets' first checkpoint at which its mean accuracy is RemovalNet's or more."""
        if not self.held:
            return None
        wanted = statistics.fmean(self.accuracy)
        return next((step for step, found in sorted(self.curve.items()) if statistics.fmean(found) >= wanted), None)

    @property
    def compared(self) -> int | None:
        """KnockoffNets' step whose cost is compared: that at which it has caught up, else its end."""
        return max(self.curve, default=None) if self.caught_up is None else self.caught_up

    def saving(self, unit: int) -> float | None:
        """Return 1 - RemovalNet's cost / KnockoffNets' when it has caught up, or at its end if it never does.

        In the second case the saving is at least so much. ``None`` where there is nothing to compare.
        """
        if not self.held or self.compared is None:
            return None
        theirs = self.curve_cost[self.compared][unit]
        mine = self.cost[unit]
        return None if mine is None or not theirs else 1 - mine / theirs


def contests(models: Sequence[Model], iterations: Mapping[str, int], checkpoints: Mapping[str, float]) -> list[Contest]:
    """Return the contests of a run.

    :param models: All models.
    :param iterations: RemovalNet's rows, with its iterations.
    :param checkpoints: KnockoffNets' rows, with their steps.
    """
    found = []
    for label, last in iterations.items():
        mine = [model for model in models if model.label == label]
        steps = {int(step): name for name, step in checkpoints.items() if base_label(name) == rival(label)}
        found_at = {step: [model for model in models if model.label == name] for step, name in sorted(steps.items())}
        theirs = {step: own for step, own in found_at.items() if own}  # a network that cannot start afresh has none
        common = {m.seed for m in mine}.intersection(*({m.seed for m in own} for own in theirs.values()))
        if common and theirs:  # both sides of the contest, where they can be had
            mine = [m for m in mine if m.seed in common]
            theirs = {step: [m for m in own if m.seed in common] for step, own in theirs.items()}
        found.append(
            Contest(
                label,
                tuple(model.accuracy for model in mine),
                _cost(mine, last),
                {step: tuple(model.accuracy for model in own) for step, own in theirs.items()},
                {step: _cost(own, step) for step, own in theirs.items()},
            )
        )
    return found


def _cost(models: Sequence[Model], step: int) -> tuple[float | None, ...]:
    passes = [model.passes for model in models if model.passes is not None]
    seconds = [model.seconds for model in models if model.seconds is not None]
    return (float(step), *(statistics.fmean(values) if values else None for values in (passes, seconds)))


def read(rows: Sequence[Row]) -> Findings:
    """Return where KnockoffNets catches up and what RemovalNet saves, the curves, and the figure."""
    models = models_of(rows)
    steps = places(rows)
    iterations = {
        str(row["suspect"]): max_iter_of(row["attack_params"])
        for row in rows
        if row["role"] == "surrogate" and row["suspect"] not in steps
    }
    found = contests(models, iterations, steps)
    sheets = {"": Sheet(cells(found), _NOTES), "curves": Sheet(curve_cells(found))}
    victim = next((model.accuracy for model in models if model.role == "victim"), None)
    return Findings(sheets, lambda: draw(found, victim))


_NOTES = (
    "saving: 1 - RemovalNet's cost / KnockoffNets' where it first has RemovalNet's mean accuracy; > where it never "
    "gets there, taken at its end.",
    "The paper counts iterations. One of RemovalNet's costs more passes than one of KnockoffNets'.",
)


def cells(found: Sequence[Contest]) -> list[list[str]]:
    """Return a line for each contest."""
    lines = [
        [
            "data",
            "RemovalNet accuracy %",
            "KnockoffNets at its end %",
            "caught up at iteration",
            *(f"RemovalNet {unit}" for unit in UNITS),
            *(f"KnockoffNets {unit}" for unit in UNITS),
            *(f"saving in {unit}" for unit in UNITS),
        ]
    ]
    for contest in found:
        step, at, end = contest.caught_up, contest.compared, max(contest.curve, default=None)
        theirs = (None,) * len(UNITS) if at is None else contest.curve_cost[at]
        mark = "> " if step is None else ""
        savings = (contest.saving(unit) for unit in range(len(UNITS)))
        lines.append(
            [
                contest.label,
                mean_std(contest.accuracy, 2),
                mean_std(() if end is None else contest.curve[end], 2),
                "-" if not contest.held else "never" if step is None else str(step),
                *map(_number, contest.cost),
                *map(_number, theirs),
                *("-" if saving is None else f"{mark}{100 * saving:.0f}%" for saving in savings),
            ]
        )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def curve_cells(found: Sequence[Contest]) -> list[list[str]]:
    """Return a line for each checkpoint of KnockoffNets."""
    lines = [["data", *UNITS, "KnockoffNets accuracy %"]]
    for contest in found:
        for step, accuracies in contest.curve.items():
            costs = map(_number, contest.curve_cost[step])
            lines.append([contest.label, *costs, mean_std(accuracies, 2)])
    return lines


def draw(found: Sequence[Contest], victim: float | None) -> Figure:
    """Draw KnockoffNets' learning curves over each unit of cost; RemovalNet is a point with a line at its accuracy."""
    from matplotlib.ticker import EngFormatter

    figure = new_figure(11.0, 4.0)
    panels = figure.subplots(1, len(UNITS), sharey=True)
    for unit, axes in enumerate(panels):
        for index, contest in enumerate(found):
            theirs = rival(contest.label)
            points = [(contest.curve_cost[step][unit], band(values)) for step, values in contest.curve.items()]
            known = [(x, b) for x, b in points if x is not None and b is not None]
            x = [place for place, _ in known]
            colour, marker = colour_of(theirs), marker_of(theirs)
            axes.plot(
                x, [b.mean for _, b in known], color=colour, marker=marker, markersize=3.5, label=theirs, gid=theirs
            )
            axes.fill_between(
                x, [b.low for _, b in known], [b.high for _, b in known], color=colour, alpha=0.15, linewidth=0
            )
            own, place = band(contest.accuracy), contest.cost[unit]
            if own is not None:
                mine = colour_of(contest.label)
                axes.axhline(own.mean, color=mine, linestyle=("--", "-.")[index % 2], linewidth=1)
                if place is not None:
                    point = {"color": mine, "marker": "*X"[index % 2], "markersize": 11, "linestyle": "none"}
                    axes.plot([place], [own.mean], label=contest.label, gid=contest.label, **point)
        if victim is not None:
            axes.axhline(victim, color=colour_of("Victim"), linestyle=":", linewidth=1, label="Victim")
        axes.set_xlabel(UNITS[unit], fontsize=8)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel("accuracy %", fontsize=8)
    trained = [value for c in found for step, values in c.curve.items() if step > 0 for value in values]
    shown = [*trained, *(value for c in found for value in c.accuracy), *([] if victim is None else [victim])]
    if trained:  # a network without training would take up most of the height
        panels[0].set_ylim(min(shown) - 1, max(shown) + 1)
    tidy(panels)
    figure.legend(*legend_entries(panels), loc="outside right center", fontsize=8, frameon=False)
    figure.supxlabel(
        "large marks: RemovalNet's cost, dashed: its mean accuracy; dotted: the victim; bands: least to greatest over "
        "seeds" + ("\nKnockoffNets begins below the picture, at chance" if trained else ""),
        fontsize=8,
        color="#555555",
    )
    return figure


FIG7 = Experiment("KnockoffNets against RemovalNet: accuracy over cost", plan, from_rows=read)
