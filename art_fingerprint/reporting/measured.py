"""How rows were measured: data, models, settings, versions, seeds, and the commands that repeat it."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from art_fingerprint.reporting.layout import Sheet, one_line
from art_fingerprint.reporting.tables import label_place, rows_of_one_preset
from art_fingerprint.zoo.presets import PRESETS

Row = Mapping[str, Any]
_SOURCES = {"train": "training set", "subset": "subset of the training set", "apart": "held apart"}
_LONGEST = 300  # characters of a parameter
_NO_PLAN = "the folder has no plan of these rows"
_NOT_RECORDED = "not recorded in these rows"


@dataclass(frozen=True)
class Provenance:
    """What a folder knows about its rows beside them.

    :ivar plan: Its newest plan, as ``plan.json`` has it; empty if there is none.
    :ivar files: What is shown of its files, name to text.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def victim(self, preset: str) -> Mapping[str, Any]:
        """Return the plan's part about one victim; empty if the newest plan does not have it."""
        victims = self.plan.get("victims")
        found = victims.get(preset) if isinstance(victims, Mapping) else None
        return found if isinstance(found, Mapping) else {}


def facts(rows: Iterable[Row], given: Provenance) -> Sheet:
    """Return what the rows of one preset are about, a line for each fact.

    :param rows: Rows of one preset.
    :param given: What else is known.
    """
    kept = rows_of_one_preset(rows)
    plan = given.victim(str(kept[0]["preset"]))
    counts = Counter(str(row["status"]) for row in kept)
    lines = [
        ("Data set", str(kept[0]["dataset"]) + (f", {_arguments(o)}" if (o := plan.get("dataset_options")) else "")),
        ("Data, SHA-256", _data(kept)),
        ("Victim", f"{kept[0]['victim']} (digest of all that makes it)"),
        ("Architecture", str(plan.get("architecture", _NO_PLAN))),
        ("Seeds of the attacks", _listed(seeds_of(kept))),
        ("Reference models", _counted(kept, "reference")),
        ("Negatives", _counted(kept, "negative")),
        ("Thresholds", _thresholds(plan)),
        ("Versions", "; ".join(_distinct(_arguments(row["versions"], " ") for row in kept))),
        ("Device", ", ".join(_distinct(str(row["device"]) for row in kept))),
        ("Measured", _span(kept)),
        ("Cells", ", ".join(f"{counts[status]} {status}" for status in ("ok", "skipped", "failed"))),
        *given.files.items(),
    ]
    for key in ("victim_recipe", "negative_recipe", "robustness", "reason"):
        if plan.get(key):
            value = plan[key]
            lines.append((_TITLES[key], _arguments(value) if isinstance(value, Mapping) else str(value)))
    return Sheet([["Fact", "Value"], *([name, one_line(text)] for name, text in lines)])


def _counted(rows: Iterable[Row], role: str) -> str:
    """Return how many models have a role, and of which kinds where there are several."""
    counts = Counter(label for label, _ in {(str(r["suspect"]), r["seed"]) for r in rows if r["role"] == role})
    kinds = ", ".join(f"{counts[label]} {label}" for label in sorted(counts, key=label_place))
    return f"{counts.total()}: {kinds}" if len(counts) > 1 else str(counts.total())


_TITLES = {
    "victim_recipe": "Training of victim and references",
    "negative_recipe": "Training of negatives",
    "robustness": "Evasion attacks",
    "reason": "Why these settings",
}


def attacks(rows: Iterable[Row], given: Provenance) -> Sheet:
    """Return a line for each row label with an attack: data, parameters, and what it cost.

    :param rows: Rows of one preset.
    :param given: What else is known.
    """
    kept = rows_of_one_preset(rows)
    planned = given.victim(str(kept[0]["preset"])).get("attacks", {})
    cells = [["Model", "Attack", "Attacker's data", "Labels", "Seeds", "Forward passes", "Seconds", "Parameters"]]
    for label in _distinct(str(row["suspect"]) for row in kept if row["attack"]):
        own = [row for row in kept if row["suspect"] == label]
        setting = planned.get(label, {})
        passes = [(row.get("cost") or {}).get("forward_equivalents") for row in _one_a_model(own)]
        seconds = [row["attack_seconds"] for row in _one_a_model(own)]
        labels = "-" if "true_labels" not in setting else "true" if setting["true_labels"] else "the victim's"
        share = f", {100 * setting['ratio']:g} %" if setting.get("ratio") else ""
        cells.append(
            [
                one_line(label),
                str(own[-1]["attack"]),
                _SOURCES.get(setting.get("source", ""), "-") + share,
                labels,
                str(len({row["seed"] for row in own})),
                _median(passes, ",.0f"),
                _median(seconds, ".1f"),
                _arguments(own[-1]["attack_params"]) or "defaults",
            ]
        )
    note = "Medians over seeds. Forward passes of one sample; a sample that is trained on counts as three."
    return Sheet(cells, (note,))


def verifiers(rows: Iterable[Row]) -> Sheet:
    """Return a line for each verifier: parameters and the digest of what makes its fingerprint.

    :param rows: Rows of one preset.
    """
    kept = rows_of_one_preset(rows)
    cells = [["Verifier", "Fingerprint", "Parameters"]]
    for name in _distinct(str(row["verifier"]) for row in kept):
        newest = [row for row in kept if row["verifier"] == name][-1]
        digest = str(newest.get("fingerprint") or "-")
        cells.append([one_line(name), digest, _arguments(newest["verifier_params"]) or "defaults"])
    return Sheet(cells)


def commands(
    preset: str, rows: Sequence[Row], experiments: Mapping[str, Sequence[Row]], given: Provenance
) -> list[str]:
    """Return the commands that repeat what a preset's rows show; those that are known.

    :param preset: The preset.
    :param rows: Rows of its own grid, if there are any.
    :param experiments: Experiment to its rows.
    :param given: What else is known.
    """
    found = []
    name = shlex.quote(preset)
    if rows and given.victim(preset):
        found.append("art-fingerprint bench --plan plan.json --out DIR")
    elif rows and preset in PRESETS:
        found.append(f"art-fingerprint bench --preset {name} {_seeds_argument(seeds_of(rows))}")
    if preset in PRESETS:
        found += [
            f"art-fingerprint experiment {label} --preset {name} {_seeds_argument(seeds_of(own))}"
            for label, own in experiments.items()
        ]
    return [*found, "art-fingerprint report DIR"]


def seeds_of(rows: Iterable[Row]) -> list[int]:
    """Return the seeds of the attacks, of negatives where there are no attacks."""
    kept = list(rows)
    for role in ("surrogate", "negative"):
        seeds = sorted({row["seed"] for row in kept if row["role"] == role})
        if seeds:
            return seeds
    return []


def _seeds_argument(seeds: Sequence[int]) -> str:
    if list(seeds) == list(range(len(seeds))):
        return f"--seeds {len(seeds) or 1} --out DIR"
    if len(seeds) == 1:  # a number alone says how many
        return f"--out DIR  # with seeds: [{seeds[0]}], from Python or a plan"
    return f"--seeds {','.join(map(str, seeds))} --out DIR"


def _data(rows: Sequence[Row]) -> str:
    digests = _distinct(str(row["data"]) for row in rows if row.get("data"))
    return ", ".join(digests) or f"{_NOT_RECORDED}; the victim's digest covers it"


def _thresholds(plan: Mapping[str, Any]) -> str:
    if "calibration" not in plan:
        return _NO_PLAN
    return _arguments(plan["calibration"]) or "the value of the reference nearest to the victim"


def _span(rows: Sequence[Row]) -> str:
    times = [row["finished_seconds"] for row in rows if row.get("finished_seconds")]
    if not times:
        return _NOT_RECORDED
    first, last = (f"{datetime.fromtimestamp(t, timezone.utc):%Y-%m-%d %H:%M}" for t in (min(times), max(times)))
    missing = f"; {len(rows) - len(times)} rows without a time" if len(times) < len(rows) else ""
    return (first if first == last else f"{first} to {last}") + f" UTC{missing}"


def _one_a_model(rows: Sequence[Row]) -> list[Row]:
    return list({row["seed"]: row for row in rows}.values())


def _median(values: Iterable[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(statistics.median(known), form) if known else "-"


def _listed(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or "-"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _arguments(params: Mapping[str, Any], between: str = "=") -> str:
    return ", ".join(f"{name}{between}{_value(value, between == ' ')}" for name, value in params.items())


def _value(value: object, bare: bool) -> str:
    text = value if bare and isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
