"""One self-contained HTML file from result rows: no scripts, no network."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from art_fingerprint.reporting.tables import COLUMNS, Table, cells, latest_rows, table_one

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}tr.limit td{border-top:2px solid #333;font-weight:600}
.yes{background:#f8d3cd}.no{background:#d5ecd4}svg{max-width:100%;height:auto}small,.note{color:#555}
"""
_COLOURS = {"surrogate": "#c0392b", "negative": "#2e7d32", "reference": "#7f8c8d"}


def report(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the report of one preset's rows as an HTML document."""
    kept = latest_rows(rows)
    table = table_one(kept)
    first = kept[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    title = f"art_fingerprint: {table.dataset}"
    strips = "".join(_strip(name, heading, kept, table) for name, heading, _ in COLUMNS)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>"
        "<p>Which models do the verifiers recognise as derived from the victim? Layout of the RemovalNet paper's "
        "Table I; mean ± sample standard deviation over seeds; a suspect is owned if most metrics pass their "
        f"threshold.</p>{_table(table)}<h2>Every model, metric by metric</h2><p>Each point is one model. The line is "
        "the threshold; the shaded side means <em>derived</em>.</p>"
        f"{strips}<h2>Settings</h2><p class='note'>preset {html.escape(str(first['preset']))}; "
        f"{html.escape(versions)}; device {html.escape(str(first['device']))}</p>{_settings(kept)}</body></html>\n"
    )


def _table(table: Table) -> str:
    head, *body = cells(table)
    parts = ["<table><thead><tr>", *(f"<th>{html.escape(cell)}</th>" for cell in head), "</tr></thead><tbody>"]
    for index, row in enumerate(body):
        parts.append("<tr class='limit'>" if index == len(body) - 1 else "<tr>")
        for cell in row:
            mark = " class='yes'" if cell.startswith("Yes") else " class='no'" if cell.startswith("No (") else ""
            parts.append(f"<td{mark}>{html.escape(cell)}</td>")
        parts.append("</tr>")
    failed = [reason for line in table.lines for reason in line.failed]
    notes = "".join(f"<li>{html.escape(reason)}</li>" for reason in failed)
    return "".join(parts) + "</tbody></table>" + (f"<p>Failed cells:</p><ul>{notes}</ul>" if failed else "")


def _strip(name: str, heading: str, rows: list[Mapping[str, Any]], table: Table) -> str:
    """One metric as a strip plot: a line for each suspect, a point for each seed."""
    points = [
        (row["suspect"], row["role"], result["value"], result["direction"])
        for row in rows
        if row["role"] in _COLOURS
        for metric, result in row["metrics"].items()
        if metric == name and result["value"] is not None
    ]
    if not points:
        return ""
    tau = table.thresholds.get(name)
    values = [value for _, _, value, _ in points] + ([] if tau is None else [tau])
    low, high = min(0.0, *values), max(values)
    span = (high - low) or 1.0
    labels = list(dict.fromkeys(label for label, _, _, _ in points))
    left, width, line = 150, 640, 20
    height = line * len(labels) + 34

    def x_of(value: float) -> float:
        return left + width * (value - low) / span

    svg = [f"<svg viewBox='0 0 {left + width + 30} {height}' role='img' aria-label='{html.escape(heading)}'>"]
    if tau is not None:
        start, end = (left, x_of(tau)) if points[0][3] == "distance" else (x_of(tau), left + width)
        svg.append(
            f"<rect x='{start:.1f}' y='4' width='{max(end - start, 0):.1f}' height='{height - 30}' fill='#f8d3cd'/>"
        )
        svg.append(f"<line x1='{x_of(tau):.1f}' x2='{x_of(tau):.1f}' y1='4' y2='{height - 26}' stroke='#333'/>")
    for index, label in enumerate(labels):
        y = 4 + line * (index + 0.5)
        svg.append(f"<text x='{left - 8}' y='{y + 4:.1f}' font-size='12' text-anchor='end'>{html.escape(label)}</text>")
        svg += [
            f"<circle cx='{x_of(value):.1f}' cy='{y:.1f}' r='4' fill='{_COLOURS[role]}' fill-opacity='.7'/>"
            for suspect, role, value, _ in points
            if suspect == label
        ]
    for tick in range(5):
        value = low + span * tick / 4
        svg.append(
            f"<text x='{x_of(value):.1f}' y='{height - 8}' font-size='11' text-anchor='middle'>{value:.3g}</text>"
        )
    return f"<h3>{html.escape(heading)}</h3>{''.join(svg)}</svg>"


def _settings(rows: list[Mapping[str, Any]]) -> str:
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
