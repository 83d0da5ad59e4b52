"""Tables as lists of text cells, headings first, in the forms that people read."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Cells = Sequence[Sequence[str]]

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "%_&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
    }
)


@dataclass(frozen=True)
class Sheet:
    """A table that :func:`render` can bring into every form.

    :ivar cells: Headings first.
    :ivar notes: Sentences below the table.
    :ivar rule_before_last: Whether a line sets off the last row.
    """

    cells: Cells
    notes: tuple[str, ...] = ()
    rule_before_last: bool = False


def render(sheets: Mapping[str, Sheet], form: str, named: bool = False) -> str:
    """Return tables as ``"txt"``, ``"md"``, ``"csv"`` or ``"tex"``, one below the other.

    :param sheets: Name to table.
    :param form: The form.
    :param named: Write the name above each table. In comma-separated values it is the first cell of every line, since
        the tables may differ in their headings.
    """
    parts = []
    for name, sheet in sheets.items():
        title = one_line(name)
        if form == "csv":
            parts.append(comma_separated([[title, *row] for row in sheet.cells] if named else sheet.cells))
        elif form == "md":
            parts.append((f"## {_markdown(title)}\n\n" if named else "") + markdown(sheet.cells, sheet.notes))
        elif form == "tex":
            parts.append((f"% {title}\n" if named else "") + latex(sheet.cells, sheet.rule_before_last))
        else:
            parts.append((f"{title}\n" if named else "") + text(sheet.cells, sheet.rule_before_last, sheet.notes))
    return {"csv": "", "md": "\n", "tex": "\n"}.get(form, "\n\n").join(parts)


def one_line(text: str) -> str:
    """Return a text without line breaks."""
    return " ".join(text.split())


def mean_std(values: Iterable[float], digits: int) -> str:
    """Return ``mean±std`` (sample standard deviation), the mean alone for one value, ``-`` for none."""
    numbers = list(values)
    if not numbers:
        return "-"
    mean = f"{round(statistics.fmean(numbers), digits) + 0.0:.{digits}f}"  # no -0.00
    return f"{mean}±{statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def short(verifier: str) -> str:
    """Return a verifier's name without ``Verifier``."""
    return verifier.removesuffix("Verifier")


def text(rows: Cells, rule_before_last: bool = False, notes: Iterable[str] = ()) -> str:
    """Return columns for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    body = [*lines[1:-1], rule, lines[-1]] if rule_before_last else lines[1:]
    return "\n".join([lines[0], rule, *body, *notes])


def markdown(rows: Cells, notes: Iterable[str] = ()) -> str:
    """Return a Markdown table, with notes as a list below it."""
    lines = ["| " + " | ".join(map(_markdown, row)) + " |" for row in rows]
    listed = [f"- {_markdown(note)}" for note in notes]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:], "", *listed]).rstrip() + "\n"


def comma_separated(rows: Cells) -> str:
    """Return comma-separated values."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def latex(rows: Cells, rule_before_last: bool = False) -> str:
    """Return a LaTeX ``tabular``."""
    body = [" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in rows]
    spec = "l" + "r" * (len(rows[0]) - 2) + "l"
    head, tail = rf"\begin{{tabular}}{{{spec}}}", r"\end{tabular}"
    inner = [*body[1:-1], r"\hline", body[-1]] if rule_before_last else body[1:]
    return "\n".join([head, r"\hline", body[0], r"\hline", *inner, r"\hline", tail]) + "\n"


def _markdown(cell: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", cell)
