"""Every metric of every verifier as a strip plot: a line for each suspect, a point for each model. No matplotlib."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from art_fingerprint.reporting.tables import COLUMNS, rows_of_one_preset

Row = Mapping[str, Any]

# Okabe and Ito's palette: the roles differ for colour-blind readers, too.
ROLE_COLOURS = {"victim": "#000000", "surrogate": "#d55e00", "negative": "#0072b2", "reference": "#999999"}
#: Strips of one victim that are drawn; the values of all metrics stand in the table of verifiers.
MOST_STRIPS = 36
_HEADINGS = {name: heading for name, heading, _ in COLUMNS}
_LONGEST = 30
_WIDTH, _LINE, _RADIUS = 320, 20, 4.5
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Strip:
    """One metric of a verifier.

    :ivar heading: The paper's name of the metric, with the space where suspects were compared in several.
    :ivar direction: ``"distance"``: derived below the threshold; ``"similarity"``: above it.
    :ivar threshold: The threshold, if the rows have one.
    :ivar points: Row label, role, seed and value of each model: the victim first, then surrogates, negatives,
        references.
    """

    heading: str
    direction: str
    threshold: float | None
    points: tuple[tuple[str, str, int, float], ...]


def strips(rows: Iterable[Row]) -> dict[str, list[Strip]]:
    """Return verifier to strips, those of the paper's metrics first; metrics without any value are left out.

    :param rows: Rows of one preset.
    :raises InvalidInputError: no rows, or rows of several presets.
    """
    kept = [row for row in rows_of_one_preset(rows) if row["status"] == "ok"]
    order = {role: place for place, role in enumerate(ROLE_COLOURS)}
    kept.sort(key=lambda row: order.get(row["role"], len(order)))
    found: dict[str, list[Strip]] = {}
    for verifier in dict.fromkeys(row["verifier"] for row in rows_of_one_preset(rows)):
        own = [row for row in kept if row["verifier"] == verifier]
        names = dict.fromkeys(name for row in own for name in row["metrics"])
        for name in sorted(names, key=lambda name: name not in _HEADINGS):
            mine = [(row, row["metrics"][name]) for row in own if name in row["metrics"]]
            spaces = list(dict.fromkeys(result.get("space") or "" for _, result in mine))
            for space in spaces:
                here = [(row, result) for row, result in mine if (result.get("space") or "") == space]
                points = tuple(
                    (str(row["suspect"]), str(row["role"]), row["seed"], float(result["value"]))
                    for row, result in here
                    if result["value"] is not None and math.isfinite(result["value"])
                )
                limits = [result["threshold"] for _, result in here if result["threshold"] is not None]
                heading = _HEADINGS.get(name, name) + (f" ({space})" if len(spaces) > 1 and space else "")
                if points:
                    strip = Strip(heading, here[0][1]["direction"], limits[-1] if limits else None, points)
                    found.setdefault(verifier, []).append(strip)
    return found


def drawn(strip: Strip) -> str:
    """Return a strip as an HTML ``figure``."""
    tau = strip.threshold
    values = [value for *_, value in strip.points] + ([] if tau is None else [tau])
    marks = ticks(min(0.0, *values), max(values))
    low, span = marks[0], marks[-1] - marks[0]
    labels = list(dict.fromkeys(label for label, *_ in strip.points))
    short = {label: label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…" for label in labels}
    left = 20 + 7 * max(map(len, short.values()))
    bottom = _LINE * len(labels) + 8

    def x_of(value: float) -> float:
        return left + _WIDTH * (value - low) / span

    heading = strip.heading
    if tau is not None:
        heading += f": derived {'below' if strip.direction == 'distance' else 'above'} {tau:.3g}"
    svg = [f"<svg viewBox='0 0 {left + _WIDTH + 20} {bottom + 22}' role='img' aria-label='{html.escape(heading)}'>"]
    if tau is not None:
        start, end = (left, x_of(tau)) if strip.direction == "distance" else (x_of(tau), left + _WIDTH)
        svg.append(
            f"<rect x='{start:.1f}' y='4' width='{max(end - start, 0):.1f}' height='{bottom - 4}' class='side'/>"
        )
    svg += [
        f"<line x1='{x_of(mark):.1f}' x2='{x_of(mark):.1f}' y1='4' y2='{bottom}' class='grid'/>"
        f"<text x='{x_of(mark):.1f}' y='{bottom + 16}' text-anchor='middle'>{mark:.4g}</text>"
        for mark in marks
    ]
    if tau is not None:
        svg.append(f"<line x1='{x_of(tau):.1f}' x2='{x_of(tau):.1f}' y1='4' y2='{bottom}' class='limit'/>")
    for index, label in enumerate(labels):
        y = 6 + _LINE * (index + 0.5)
        svg.append(f"<text x='{left - 10}' y='{y + 4:.1f}' text-anchor='end'>{html.escape(short[label])}</text>")
        own = [point for point in strip.points if point[0] == label]
        svg += [_circle(point, x_of(point[3]), y + _shift(place, len(own))) for place, point in enumerate(own)]
    caption = f"<figcaption class='head'>{html.escape(heading)}</figcaption>"
    return f"<figure>{caption}<div class='wide'>{''.join(svg)}</svg></div></figure>"


def _circle(point: tuple[str, str, int, float], x: float, y: float) -> str:
    label, role, seed, value = point
    tip = html.escape(f"{label}, seed {seed}: {value:.4g}")
    colour = ROLE_COLOURS.get(role, "#666666")
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{_RADIUS}' fill='{colour}'><title>{tip}</title></circle>"


def _shift(place: int, count: int) -> float:
    """Return how far a point is moved off its line, so that many stay apart, in the same way every time."""
    return 0.0 if count < 4 else (_LINE - 2 * _RADIUS) * (place * _GOLDEN % 1 - 0.5)


def ticks(low: float, high: float) -> Sequence[float]:
    """Return a few round numbers from at most ``low`` to at least ``high``."""
    raw = ((high - low) or 1.0) / 6
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), 1)
    return [index * step for index in range(first, last + 1)]
