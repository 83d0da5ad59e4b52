"""One self-contained HTML file from result rows: no scripts, no network."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.layout import Sheet
from art_fingerprint.reporting.robustness import table_four, tradeoff, tradeoff_cells
from art_fingerprint.reporting.tables import COLUMNS, Table, by_preset, cells, table_one
from art_fingerprint.reporting.verdict_tables import verdict_sheet, verifier_sheet
from art_fingerprint.verifiers.verdict import combine

Row = Mapping[str, Any]

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{margin-bottom:.2rem}h2{margin:2.2rem 0 .3rem}h3{font-size:1rem;margin:0}p{max-width:60rem}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th{border-bottom:2px solid #333;vertical-align:bottom}th:first-child,td:first-child{text-align:left}
tr.limit td{border-top:2px solid #333;font-weight:600}
.right{background:#d9eed9}.wrong{background:#f9d6cf}.key{padding:.1rem .5rem;border-radius:.2rem}
.strips{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:1.2rem 2rem}
figure{margin:0}svg{width:100%;height:auto;display:block}svg text{fill:#333;font-size:12px}
.note{color:#555}code{font-size:13px;overflow-wrap:anywhere}li{margin:.15rem 0}
"""
# Okabe and Ito's palette: the roles differ for colour-blind readers, too.
_COLOURS = {"victim": "#000", "surrogate": "#d55e00", "negative": "#0072b2", "reference": "#999"}


def report(rows: Iterable[Row]) -> str:
    """Return the report of the rows as an HTML document, a part for each preset.

    :raises InvalidInputError: no rows.
    """
    groups = by_preset(rows)
    titles = {
        preset: f"art_fingerprint: {preset if len(groups) > 1 else table_one(kept).title}"
        for preset, kept in groups.items()
    }
    title = html.escape(next(iter(titles.values())) if len(groups) == 1 else f"art_fingerprint: {', '.join(groups)}")
    parts = "".join(f"<h1>{html.escape(titles[preset])}</h1>{_part(kept)}" for preset, kept in groups.items())
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{parts}</body></html>\n"
    )


def _part(kept: list[Row]) -> str:
    """Everything about one preset."""
    table = table_one(kept)
    newest = kept[-1]
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    strips = "".join(_strip(name, heading, kept, table) for name, heading, _ in COLUMNS)
    roles = "".join(
        f" <span style='color:{colour}'>&#9679;</span> {role}"
        for role, colour in _COLOURS.items()
        if any(row["role"] == role for row in kept)
    )
    warnings = "".join(f"<p><b class='key wrong'>{html.escape(text)}</b></p>" for text in table.warnings)
    return (
        f"{warnings}<p>Which models do the verifiers recognise as derived from the victim? Layout of the RemovalNet "
        "paper's Table I; mean ± sample standard deviation over seeds. <em>Ownership?</em> is Yes if most metrics of "
        "most seeds pass their threshold: <span class='key right'>right</span> for a model derived from the victim, "
        "<span class='key wrong'>wrong</span> for an independent one, and the other way round.</p>"
        f"{_table(table)}<h2>Verifier by verifier</h2>{_plain(verifier_sheet(kept))}"
        f"<h2>Attack by attack</h2>{_plain(verdict_sheet(kept))}<h2>Every model, metric by metric</h2>"
        f"<p>Each point is one model:{roles}. The line is the threshold; on the shaded side a model is judged "
        f"derived.</p><div class='strips'>{strips}</div>{_robustness(kept)}<h2>Settings</h2>"
        f"<p class='note'>preset {html.escape(str(newest['preset']))}; {html.escape(versions)}; "
        f"device {html.escape(str(newest['device']))}</p>{_settings(kept)}"
    )


def _robustness(rows: list[Row]) -> str:
    """Table IV, and robustness beside removal, as far as the rows have them."""
    parts = []
    with suppress(InvalidInputError):  # rows of an earlier version, or without a victim
        parts += [
            "<h2>Robustness against evasion</h2><p>Layout of Table IV: accuracy under attack (Rob), each model "
            "attacked with its own examples, and its distance to the victim's (RobD). The last but one column says how "
            "many of an attack's examples lie so close to a decision boundary that their class is a matter of "
            "rounding.</p>",
            _plain(Sheet(table_four(rows))),
        ]
    with suppress(InvalidInputError):  # no reference models, or other evasion attacks
        parts += [
            "<h2>Robustness and removal</h2><p>What each attack gains and what it costs. Distance gained, for each "
            "verifier: 0 is a copy of the victim, 1 an average reference model. A good removal attack keeps both "
            "accuracies and gains a distance of 1 from every verifier.</p>",
            _plain(Sheet(tradeoff_cells(tradeoff(rows)))),
        ]
    return "".join(parts)


def _plain(sheet: Sheet) -> str:
    head, *body = sheet.cells
    lines = "".join(f"<tr>{_cells(row)}</tr>" for row in body)
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in sheet.notes)
    return (
        f"<div class='wide'><table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>{lines}</tbody></table></div>"
        f"{notes}"
    )


def _cells(values: Iterable[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)


def _table(table: Table) -> str:
    head, *body, limits = cells(table)
    parts = [f"<div class='wide'><table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>"]
    for line, row in zip(table.lines, body, strict=True):
        owned = combine(line.derived)
        mark = "" if owned is None else " class='right'" if owned is (line.role == "surrogate") else " class='wrong'"
        parts.append(f"<tr>{_cells(row[:-1])}<td{mark}>{html.escape(row[-1])}</td></tr>")
    parts.append(f"<tr class='limit'>{_cells(limits)}</tr></tbody></table></div>")
    if table.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
        parts.append(f"<p>Cells without a result:</p><ul>{notes}</ul>")
    return "".join(parts)


def _strip(name: str, heading: str, rows: list[Row], table: Table) -> str:
    """One metric as a strip plot: a line for each suspect, a point for each seed."""
    order = {"victim": 0, "surrogate": 1, "negative": 2, "reference": 3}
    points = [
        (row, row["metrics"][name])
        for row in sorted(rows, key=lambda row: order.get(row["role"], 4))
        if row["status"] == "ok" and name in row["metrics"] and row["metrics"][name]["value"] is not None
    ]
    if not points:
        return ""
    tau = table.thresholds.get(name)
    values = [result["value"] for _, result in points] + ([] if tau is None else [tau])
    ticks = _ticks(min(0.0, *values), max(values))
    low, span = ticks[0], (ticks[-1] - ticks[0])
    labels = list(dict.fromkeys(row["suspect"] for row, _ in points))
    short = {label: label if len(label) <= 30 else f"{label[:29]}…" for label in labels}
    left, width, line = 20 + 7 * max(map(len, short.values())), 420, 20
    bottom = line * len(labels) + 8

    def x_of(value: float) -> float:
        return left + width * (value - low) / span

    svg = [
        f"<svg viewBox='0 0 {left + width + 20} {bottom + 22}' role='img' aria-label='{html.escape(heading)}'>",
        *(
            f"<line x1='{x_of(tick):.1f}' x2='{x_of(tick):.1f}' y1='4' y2='{bottom}' stroke='#e4e4e4'/>"
            f"<text x='{x_of(tick):.1f}' y='{bottom + 16}' text-anchor='middle'>{tick:.4g}</text>"
            for tick in ticks
        ),
    ]
    says = ""
    if tau is not None:
        below = points[0][1]["direction"] == "distance"
        start, end = (left, x_of(tau)) if below else (x_of(tau), left + width)
        says = f": derived {'below' if below else 'above'} {tau:.3g}"
        svg.append(
            f"<rect x='{start:.1f}' y='4' width='{max(end - start, 0):.1f}' height='{bottom - 4}' fill='#5b7fb8' "
            f"fill-opacity='.15'/><line x1='{x_of(tau):.1f}' x2='{x_of(tau):.1f}' y1='4' y2='{bottom}' stroke='#333'/>"
        )
    for index, label in enumerate(labels):
        y = 6 + line * (index + 0.5)
        svg.append(f"<text x='{left - 10}' y='{y + 4:.1f}' text-anchor='end'>{html.escape(short[label])}</text>")
        for row, result in points:
            if row["suspect"] == label:
                tip = html.escape(f"{label}, seed {row['seed']}: {result['value']:.4g}")
                svg.append(
                    f"<circle cx='{x_of(result['value']):.1f}' cy='{y:.1f}' r='4.5' stroke='#fff' stroke-width='.7' "
                    f"fill='{_COLOURS.get(row['role'], '#666')}' fill-opacity='.75'><title>{tip}</title></circle>"
                )
    return f"<figure><h3>{html.escape(heading + says)}</h3>{''.join(svg)}</svg></figure>"


def _ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers from at most ``low`` to at least ``high``."""
    raw = ((high - low) or 1.0) / 6
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), max(math.ceil(high / step - 1e-9), 1)
    return [index * step for index in range(first, last + 1)]


def _settings(rows: list[Row]) -> str:
    lines = {}
    for row in rows:
        if row["attack"]:
            lines[row["suspect"]] = f"{row['attack']}({_arguments(row['attack_params'])})"
        lines[row["verifier"]] = f"{row['verifier']}({_arguments(row['verifier_params'])})"
    items = "".join(
        f"<li><b>{html.escape(name)}</b>: <code>{html.escape(text)}</code></li>" for name, text in lines.items()
    )
    return f"<ul>{items}</ul>"


def _arguments(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in params.items())
