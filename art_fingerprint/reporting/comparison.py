"""Our lines of Table I beside the RemovalNet paper's: numbers, verdicts, settings, and why they differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from art_fingerprint.attacks.removalnet_presets import preset_row
from art_fingerprint.reporting.layout import Sheet, mean_std, one_line
from art_fingerprint.reporting.published import PublishedTable, plain_name
from art_fingerprint.reporting.published.differences import REASONS, REMOVAL_ROWS, SETTINGS
from art_fingerprint.reporting.tables import COLUMNS, Line, Table, has_metric, rows_of_one_preset, table_one
from art_fingerprint.verifiers.calibration import is_derived
from art_fingerprint.verifiers.verdict import combine
from art_fingerprint.zoo.loading import attack_class, verifier_class

Row = Mapping[str, Any]
_WORDS = {True: "derived", False: "not derived"}
_UNKNOWN = "not known"
_NO_WHY = "-"
_HEADINGS = {name: heading for name, heading, _ in COLUMNS}


def beside_published(table: Table, published: PublishedTable, same: bool | None = None) -> Sheet:
    """Return the paper's lines, each below ours of the same label; ``-`` for what either does not have.

    Rows that the paper does not have are named in a note.

    :param table: Our table.
    :param published: The paper's, for one data set.
    :param same: Whether that is ours, see ``Counterpart``; ``None``: if it has our name.
    """
    same = plain_name(table.dataset) == plain_name(published.dataset) if same is None else same
    shown = [
        (name, heading, digits)
        for name, heading, digits in COLUMNS
        if name in published.thresholds or has_metric(table, name)
    ]
    ours, theirs = f"ours: {one_line(table.dataset)}", f"paper: {published.dataset}"
    dashes = ["-"] * len(shown)
    own_accuracy = "-" if table.victim_accuracy is None else f"{table.victim_accuracy:.2f}"
    cells = [
        ["Model", "Source", "Accuracy %", "Drop", *(heading for _, heading, _ in shown), "Ownership?"],
        ["Victim", ours, own_accuracy, "-", *dashes, "-"],
        ["Victim", theirs, published.victim_accuracy.printed, "-", *dashes, "-"],
    ]
    lines = {line.label: line for line in table.lines}
    for row in published.rows:
        values = [row.metrics[name].printed if name in row.metrics else "-" for name, _, _ in shown]
        cells.append([row.label, ours, *_own(lines.get(row.label), shown)])
        cells.append([row.label, theirs, row.accuracy.printed, row.drop.printed, *values, row.ownership])
    own_limits = [f"{table.thresholds[n]:.{d}f}" if n in table.thresholds else "-" for n, _, d in shown]
    limits = [published.thresholds[n].printed if n in published.thresholds else "-" for n, _, _ in shown]
    cells += [["threshold", ours, "-", "-", *own_limits, "-"], ["threshold", theirs, "-", "-", *limits, "-"]]
    return Sheet(cells, _notes(table, published, same))


def _own(line: Line | None, shown: list[tuple[str, str, int]]) -> list[str]:
    if line is None:
        return ["-"] * (len(shown) + 3)
    values = [mean_std(line.metrics.get(name, ()), digits) for name, _, digits in shown]
    return [mean_std(line.accuracy, 2), mean_std(line.drop, 2), *values, line.ownership]


def _notes(table: Table, published: PublishedTable, same: bool) -> tuple[str, ...]:
    notes = ["Paper: mean ± spread over 10 models, as printed."]
    if not same:
        notes.append("Other images and other networks: compare the order of the lines, not the size of the numbers.")
    known = {row.label for row in published.rows}
    apart = [one_line(line.label) for line in table.lines if line.label not in known]
    if apart:
        notes.append(f"Not in the paper's table: {', '.join(apart)}.")
    return (*notes, *published.notes)


# ---------------------------------------------------------------------- verdicts
@dataclass(frozen=True)
class Agreement:
    """How often a metric of ours is on the same side of its threshold as the paper's.

    :ivar same: Pairs of verdicts, of a metric or the ownership, that agree.
    :ivar total: All pairs.
    :ivar sheet: Those that differ, with the reason where one is known.
    """

    same: int
    total: int
    sheet: Sheet


def agreement(rows: Iterable[Row], published: PublishedTable) -> Agreement:
    """Compare verdicts: ours by majority over seeds, the paper's mean against its threshold.

    :param rows: Rows of one preset.
    :param published: The paper's table.
    """
    kept = rows_of_one_preset(rows)
    table = table_one(kept)
    lines = {line.label: line for line in table.lines}
    same = total = 0
    cells = [["Model", "Verdict of", "Paper", "Ours", "Why"]]
    for row in published.rows:
        line = lines.get(row.label)
        if line is None:
            continue
        pairs = []
        for name, value in row.metrics.items():
            flags, direction = _flags(kept, row.label, name)
            ours = combine(flags)
            if ours is not None and name in published.thresholds:
                theirs = is_derived(value.mean, published.thresholds[name].mean, direction)
                share = f"{flags.count(True)} of {len(flags)} derived"
                pairs.append((name, theirs, ours, value.printed, share))
        owned = combine(line.derived)
        if owned is not None:
            pairs.append(("majority", row.ownership.startswith("Yes"), owned, row.ownership, line.ownership))
        for name, theirs, ours, printed, share in pairs:
            total += 1
            same += theirs is ours
            if theirs is not ours:
                why = _reason(kept, table.dataset, name, row.label)
                cells.append(
                    [
                        row.label,
                        _HEADINGS.get(name, name),
                        f"{_WORDS[theirs]} ({printed})",
                        f"{_WORDS[ours]} ({share})",
                        why,
                    ]
                )
    return Agreement(same, total, Sheet(cells))


def _flags(rows: Iterable[Row], label: str, metric: str) -> tuple[list[bool], Any]:
    found = [row["metrics"][metric] for row in rows if row["suspect"] == label and metric in row["metrics"]]
    decided = [result for result in found if result["derived"] is not None]
    return [result["derived"] for result in decided], decided[0]["direction"] if decided else None


def _reason(rows: Iterable[Row], dataset: str, metric: str, label: str) -> str:
    for reason in REASONS.get(plain_name(dataset), ()):
        fits = label.startswith(reason.rows) and (not reason.metrics or metric in reason.metrics)
        if fits and all(value in _values(rows, *key).values() for key, value in reason.needs.items()):
            return reason.text
    return _UNKNOWN


# ---------------------------------------------------------------------- settings
def settings_beside(rows: Iterable[Row], published: PublishedTable) -> Sheet | None:
    """Return the settings that differ from the paper's or its code's, with the reason; ``None`` if all are the same.

    :param rows: Rows of one preset.
    :param published: The paper's table.
    """
    kept = rows_of_one_preset(rows)
    removal = REMOVAL_ROWS.get(published.dataset, {})
    cells = [["Setting", "Paper and its code", "Here", "Why"]]
    for setting in SETTINGS:
        found = []
        for label, value in _values(kept, setting.of, setting.name).items():
            if setting.of == "RemovalNetAttack" and label not in removal:
                continue
            paper = preset_row(removal[label])[setting.name] if setting.paper is None else setting.paper
            if value != paper:
                found.append((paper, value))
        if found:
            theirs, ours = (", ".join(dict.fromkeys(map(_plain, column))) for column in zip(*found, strict=True))
            explained, why = setting.why.get(plain_name(str(kept[0]["dataset"])), (None, _NO_WHY))
            holds = all(value == explained for _, value in found)
            cells.append([setting.says, theirs, ours, why if holds else _NO_WHY])
    return Sheet(cells) if len(cells) > 1 else None


def _values(rows: Iterable[Row], of: str, name: str) -> dict[str, Any]:
    """Return the values of a parameter by row label (of a verifier: by its name); a class's default where not given."""
    found = {}
    for row in rows:
        for kind, label in (("attack", "suspect"), ("verifier", "verifier")):
            if row[kind] == of:
                found[str(row[label])] = row[f"{kind}_params"].get(name, _default(kind, of, name))
    return found


def _default(kind: str, of: str, name: str) -> Any:
    known = attack_class(of) if kind == "attack" else verifier_class(of)
    return inspect.signature(known).parameters[name].default


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
