"""One self-contained HTML file from result rows: no scripts, no network."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from art_fingerprint.exceptions import FingerprintError, InvalidInputError, MissingDependencyError
from art_fingerprint.reporting import measured
from art_fingerprint.reporting.attack_tables import attack_sheet
from art_fingerprint.reporting.comparison import agreement, beside_published, settings_beside
from art_fingerprint.reporting.layout import Sheet
from art_fingerprint.reporting.measured import Provenance
from art_fingerprint.reporting.page import Part, folded, notes, page, paragraph, sheet, tiles
from art_fingerprint.reporting.pictures import Exhibit, inline_png, inline_svg
from art_fingerprint.reporting.published.differences import FIGURES, GENERAL, VICTIMS, Counterpart, counterpart
from art_fingerprint.reporting.robustness import table_four, tradeoff, tradeoff_cells
from art_fingerprint.reporting.strips import MOST_STRIPS, ROLE_COLOURS, drawn, strips
from art_fingerprint.reporting.tables import SMOKE_TITLE, Table, by_preset, cells, table_one, warnings_of
from art_fingerprint.reporting.tradeoff_plot import plot_tradeoff
from art_fingerprint.reporting.verdict_tables import verdict_lines, verdict_sheet, verifier_lines, verifier_sheet
from art_fingerprint.verifiers.verdict import combine

Row = Mapping[str, Any]
_NO_GRID = "These rows are of experiments alone: art-fingerprint bench gives tables and verdicts of the whole grid."
_MOST_NOTES = 8  # cells without a result that are listed unfolded
_KEY = (
    "<span class='key right'>right</span> for a model derived from the victim, <span class='key wrong'>wrong</span> "
    "for an independent one, and the other way round"
)


def report(
    rows: Iterable[Row],
    exhibits: Mapping[str, Sequence[Exhibit]] | None = None,
    given: Provenance | None = None,
    published: Mapping[str, Counterpart | None] | None = None,
) -> str:
    """Return the report of the rows as an HTML document, a part for each preset.

    :param rows: Rows of the presets' own grids.
    :param exhibits: Preset to what its experiments found; a preset may have those alone.
    :param given: What is known beside the rows.
    :param published: Preset to the paper's table to hold beside its rows; default that of its data set, or the nearest.
    :raises InvalidInputError: no rows and no exhibits.
    """
    exhibits, given = exhibits or {}, given or Provenance()
    kept = list(rows)
    groups = by_preset(kept) if kept or not exhibits else {}
    presets = list(dict.fromkeys([*groups, *exhibits]))
    names, victims = [], []
    for number, preset in enumerate(presets, 1):
        own = groups.get(preset, [])
        inner = {exhibit.name: exhibit.rows for exhibit in exhibits.get(preset, ())}
        newest = own or [row for found in inner.values() for row in found]
        dataset = str(newest[0]["dataset"]) if newest else preset
        beside = counterpart(dataset) if published is None else published.get(preset)
        parts = [] if not own else _own_parts(own, beside, f"v{number}")
        parts += _exhibits(exhibits.get(preset, ()), f"v{number}")
        parts.append(_how(preset, own, inner, given))
        names.append((preset if len(presets) > 1 else dataset) + (SMOKE_TITLE if warnings_of(newest) else ""))
        first = "".join(f"<p><b class='key wrong'>{html.escape(text)}</b></p>" for text in warnings_of(newest))
        first += _glance(own) if own else paragraph(_NO_GRID, "note")
        victims.append(Part(names[-1], first, tuple(parts)))
    subtitle = "Which models do the verifiers recognise as derived from the victim, and which do they accuse wrongly?"
    return page(f"art_fingerprint: {', '.join(names)}", subtitle, victims)


def _own_parts(rows: Sequence[Row], beside: Counterpart | None, prefix: str) -> list[Part]:
    """Everything that the rows of a preset's own grid show."""
    table = table_one(rows)
    parts = [
        Part("Verdicts, attack by attack", _matrix(rows)),
        Part("Table I", _table(table)),
        Part("Verifier by verifier", sheet(verifier_sheet(rows))),
        Part("Every attack, metric by metric", folded("AUC and TPR with intervals", sheet(attack_sheet(rows)))),
        Part("Every model, metric by metric", _strips(rows)),
    ]
    if beside is not None:
        parts.append(_published(rows, table, beside))
    return [*parts, *_robustness(rows, prefix)]


def _glance(rows: Sequence[Row]) -> str:
    """The numbers to begin with."""
    table, lines = table_one(rows), verifier_lines(rows)
    one_each = {line.name: line for line in lines}.values()  # lines of a verifier differ in their negatives alone
    shares = {
        name: (sum(share.judged for share in found), sum(share.total for share in found))
        for name, found in (
            ("recognised", [line.recognised for line in one_each]),
            ("accused", [line.accused for line in lines]),
        )
    }
    missing = sum(row["status"] != "ok" for row in rows)
    models = {(row["suspect"], row["seed"]) for row in rows}
    values = [
        ("-" if table.victim_accuracy is None else f"{table.victim_accuracy:.2f} %", "accuracy of the victim"),
        (str(len(models)), "models, the victim and references among them"),
        (str(len(one_each)), "verifiers"),
        ("{} of {}".format(*shares["recognised"]), "verdicts on derived models say so"),
        ("{} of {}".format(*shares["accused"]), "verdicts on independent models accuse them"),
        (str(missing), f"of {len(rows)} cells without a result"),
    ]
    return tiles(values)


def _matrix(rows: Sequence[Row]) -> str:
    """Verdicts by model and verifier, right and wrong ones marked."""
    lines = verdict_lines(rows)

    def mark(row: int, column: int) -> str:
        if column < 2:
            return ""
        line = lines[row]
        outcomes = list(line.outcomes.values())[column - 2]
        judged = combine([True] * outcomes.get("derived", 0) + [False] * outcomes.get("not", 0))
        return _mark(judged, line.truth == "derived")

    return (
        f"<p>By majority over seeds: {_KEY}. The last rows are models that have nothing to do with the victim.</p>"
        f"{sheet(verdict_sheet(rows), 'matrix', mark)}"
    )


def _mark(judged: bool | None, derived: bool) -> str:
    return "" if judged is None else "right" if judged is derived else "wrong"


def _table(table: Table) -> str:
    found = cells(table)
    last = len(found[0]) - 1

    def mark(row: int, column: int) -> str:
        if column < last or row >= len(table.lines):
            return ""
        line = table.lines[row]
        return _mark(combine(line.derived), line.role == "surrogate")

    return (
        "<p>Layout of the RemovalNet paper's Table I; mean ± sample standard deviation over seeds. <em>Ownership?</em> "
        f"is Yes if most metrics of most seeds pass their threshold: {_KEY}.</p>"
        f"{sheet(Sheet(found, rule_before_last=True), mark=mark)}{_missing(table.notes)}"
    )


def _missing(texts: Sequence[str]) -> str:
    """Name the cells without a result."""
    if not texts:
        return ""
    listed = notes(texts)
    return folded(f"Cells without a result: {len(texts)} reasons", listed, len(texts) <= _MOST_NOTES)


def _strips(rows: Sequence[Row]) -> str:
    roles = "".join(
        f" <span class='dot'><span style='color:{colour}'>&#9679;</span> {role}</span>"
        for role, colour in ROLE_COLOURS.items()
        if any(row["role"] == role for row in rows)
    )
    legend = (
        f"<p>Each point is one model: {roles} The line is the threshold; on the shaded side a model is judged derived. "
        "Point at a model for its value.</p>"
    )
    blocks, left = [], MOST_STRIPS
    for verifier, found in strips(rows).items():
        shown, left = found[:left], max(left - len(found), 0)
        body = f"<div class='strips'>{''.join(map(drawn, shown))}</div>" if shown else ""
        rest = [strip.heading for strip in found[len(shown) :]]
        if rest:
            body += paragraph(f"Not drawn: {', '.join(rest)}. Verifier by verifier has their numbers.", "note")
        count = f"{len(found)} metric{'s' if len(found) > 1 else ''}"
        blocks.append(folded(f"{verifier}: {count}", body, bool(shown), "many" if len(found) > 1 else ""))
    return f"{legend}<div class='blocks'>{''.join(blocks)}</div>"


def _published(rows: Sequence[Row], table: Table, beside: Counterpart) -> Part:
    """The paper's numbers, verdicts and settings beside ours."""
    paper = beside.table
    victim = f"{paper.dataset} ({VICTIMS.get(paper.dataset, '-')})"
    about = f"The paper's lines are those of {victim}, each below ours of the same label."
    if not beside.same:
        about = (
            f"The paper's lines are those of {victim}, each below ours of the same label: another data set and another "
            f"network than {table.dataset}. Compare the order of the lines and the verdicts, not the size of the "
            "numbers."
        )
    numbers = beside_published(table, paper, beside.same)
    head, *body = numbers.cells
    short = [[label, source.partition(":")[0], *values] for label, source, *values in body]
    parts = [paragraph(about), sheet(Sheet([head, *short], numbers.notes), "pairs")]
    found = agreement(rows, paper)
    if found.total:
        parts.append("<h3>Verdicts that differ</h3>")
        parts.append(
            paragraph(
                f"{found.same} of {found.total} verdicts, of each metric and by majority, are the paper's: ours by "
                "most seeds, the paper's by its mean and its threshold."
            )
        )
        if found.same < found.total:
            parts.append(sheet(found.sheet, "words"))
    settings = settings_beside(rows, paper)
    if settings is not None:
        parts += ["<h3>Settings that differ</h3>", sheet(settings, "words")]
    return Part("The paper's numbers beside ours", "".join([*parts, "<h3>How to read it</h3>", notes(GENERAL)]))


def _robustness(rows: Sequence[Row], prefix: str) -> list[Part]:
    """Table IV, and robustness beside removal, as far as the rows have them."""
    parts = []
    with suppress(InvalidInputError):  # rows of an earlier version, or without a victim
        parts.append(
            Part(
                "Robustness against evasion",
                "<p>Layout of Table IV: accuracy under attack (Rob), each model attacked with its own examples, and "
                "its distance to the victim's (RobD). <em>On the boundary</em>: how many of an attack's examples lie "
                "so close to a decision boundary that their class is a matter of rounding. <em>Median L2</em>: how far "
                "an attack moves the images of victim, surrogate and negative.</p>"
                f"{sheet(Sheet(table_four(rows)))}",
            )
        )
    with suppress(InvalidInputError):  # no reference models, or other evasion attacks
        points = tradeoff(rows)
        picture = _picture(Exhibit("tradeoff", "Robustness and removal", figure=lambda: plot_tradeoff(points)), prefix)
        parts.append(
            Part(
                "Robustness and removal",
                "<p>What each attack gains and what it costs. Distance gained, for each verifier: 0 is a copy of the "
                "victim, 1 an average reference model. A good removal attack keeps both accuracies and gains a "
                f"distance of 1 from every verifier.</p>{picture}{sheet(Sheet(tradeoff_cells(points)))}",
            )
        )
    return parts


def _exhibits(found: Sequence[Exhibit], prefix: str) -> list[Part]:
    parts = []
    for exhibit in found:
        paper = FIGURES.get(exhibit.name)
        body = "" if paper is None else paragraph(f"The paper, on its data: {paper}", "note")
        body += _picture(exhibit, prefix) + notes(exhibit.notes)
        for name, table in exhibit.sheets.items():
            long = len(table.cells) > 16
            one = sheet(table)
            body += folded(f"{name.capitalize() or 'Numbers'}: {len(table.cells) - 1} rows", one) if long else one
        parts.append(Part(f"{_spoken(exhibit.name)}: {exhibit.title}", body))
    return [Part("The paper's experiments", "", tuple(parts))] if parts else []


def _spoken(name: str) -> str:
    return name.replace("fig", "Fig. ").replace("table", "Table ")


def _picture(exhibit: Exhibit, prefix: str) -> str:
    """Return an exhibit's picture: drawn now, else the one that was written before, else why there is none."""
    label, why = f"{_spoken(exhibit.name)}: {exhibit.title}", ""
    found = ""
    if exhibit.figure is not None:
        try:
            found = inline_svg(exhibit.figure(), f"{prefix}-{exhibit.name}", label)
        except MissingDependencyError as error:
            why = str(error)
        except FingerprintError as error:
            why = f"There is no picture: {error}"
    if not found and exhibit.image is not None:
        try:
            found, why = inline_png(exhibit.image, label), ""
        except ValueError as error:
            why = f"The picture is not shown: {error}."
    if found:
        return f"<figure class='picture'><div class='wide'>{found}</div></figure>"
    return paragraph(why, "note") if why else ""


def _how(preset: str, own: Sequence[Row], inner: Mapping[str, Sequence[Row]], given: Provenance) -> Part:
    """How everything was measured, and how to repeat it."""
    commands = "\n".join(measured.commands(preset, own, inner, given))
    parts = []
    for name, rows in {"": own, **inner}.items():
        if not rows:
            continue
        body = (
            sheet(measured.facts(rows, given), "facts")
            + "<h3>Attacks</h3>"
            + sheet(measured.attacks(rows, given), "words")
            + "<h3>Verifiers</h3>"
            + sheet(measured.verifiers(rows), "words")
            + _missing(table_one(rows).notes)
        )
        parts.append(body if not name else folded(f"{_spoken(name)}: settings", body))
    text = f"To repeat it:<pre>{html.escape(commands)}</pre>"
    victims = given.plan.get("victims")
    if given.victim(preset) and own:
        assert isinstance(victims, Mapping)
        plan = json.dumps({**given.plan, "victims": {preset: victims[preset]}}, indent=2)
        parts.append(folded("The plan: save it as plan.json", f"<pre>{html.escape(plan)}</pre>"))
    return Part("How this was measured", text + "".join(parts))
