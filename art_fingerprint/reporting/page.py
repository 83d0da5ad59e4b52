"""The frame of an HTML report: style, contents, sections, tables. No scripts, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from art_fingerprint.reporting.layout import Sheet

_MANY_COLUMNS = 10
_STYLE = """
:root{color-scheme:light;--ink:#1b1f24;--soft:#57606a;--line:#d8dee4;--faint:#f6f8fa;--accent:#0b5cad;
--right:#d9efe4;--wrong:#fbdccb}
*{box-sizing:border-box}
html{scroll-padding-top:1rem}
body{font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;margin:0;color:var(--ink);background:#fff}
header{padding:2rem 1.25rem 1.25rem;border-bottom:1px solid var(--line);background:var(--faint)}
header>*,.frame{max-width:86rem;margin-inline:auto}
header p{margin-top:.3rem;margin-bottom:0;max-width:86rem;color:var(--soft)}
.frame{padding:0 1.25rem 4rem;display:grid;grid-template-columns:minmax(0,1fr);gap:2rem}
nav{font-size:13.5px;line-height:1.4}nav ul{list-style:none;margin:0;padding:0}nav ul ul{padding-left:.9rem}
nav li{margin:.28rem 0;overflow-wrap:anywhere}nav a{color:var(--soft);text-decoration:none}
nav a:hover{color:var(--accent);text-decoration:underline}nav>ul>li>a{color:var(--ink);font-weight:600}
nav.top{margin-top:1rem}nav.side{display:none}
h1{font-size:1.75rem;line-height:1.2;margin:0;overflow-wrap:anywhere}
section{padding-top:1.1rem}section>h1{margin:2.2rem 0 0}
h2{font-size:1.28rem;margin:2.8rem 0 .5rem;padding-top:1.1rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.8rem 0 .3rem}h4{margin:1.2rem 0 .2rem;font-size:.95rem}
figcaption.head{font-size:13.5px;margin:0 0 .2rem;font-weight:600;overflow-wrap:anywhere}
h2,h3,h4{overflow-wrap:anywhere}
p{max-width:48rem;margin:.5rem 0}.note{color:var(--soft);font-size:13.5px}
ul.notes{color:var(--soft);font-size:13.5px;padding-left:1.2rem;max-width:56rem;margin:.5rem 0}
li{margin:.2rem 0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.7rem 0;background:linear-gradient(to right,#fff 30%,#fff0) left/2rem 100%,
linear-gradient(to left,#fff 30%,#fff0) right/2rem 100%,linear-gradient(to right,#0002,#0000) left/.7rem 100%,
linear-gradient(to left,#0002,#0000) right/.7rem 100%;background-repeat:no-repeat;
background-attachment:local,local,scroll,scroll}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;font-size:13px;line-height:1.4}
th,td{padding:.34rem .5rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{border-bottom:2px solid var(--ink);vertical-align:bottom;font-weight:600;white-space:normal}
th:first-child,td:first-child{text-align:left;padding-left:.2rem}
table.dense{font-size:12.5px}table.dense th,table.dense td{padding-inline:.34rem}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;background:#fff;z-index:1}
tbody tr:hover td{background-color:#1b1f240b}
tr.limit td{border-top:2px solid var(--ink);font-weight:600}
table.words td,table.words th{text-align:left;white-space:normal;vertical-align:top}
table.words td:last-child{min-width:14rem;overflow-wrap:anywhere}
table.facts{width:100%}table.facts td{white-space:normal;text-align:left;overflow-wrap:anywhere;vertical-align:top}
table.facts td:first-child{width:13rem;color:var(--soft)}
table.pairs tr:nth-child(even) td{border-bottom-color:#a9b3bd}
tbody tr td.right,.right{background:var(--right)}tbody tr td.wrong,.wrong{background:var(--wrong)}
td.wrong::after,.key.wrong::after{content:' \\2717';font-weight:700}
table.matrix td:not(:first-child),table.matrix th:not(:first-child){text-align:center;min-width:4.6rem}
.key{padding:.05rem .45rem;border-radius:.25rem}td .key{white-space:nowrap}
.dot{white-space:nowrap;margin-right:.6rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:1rem 0}
.tile{border:1px solid var(--line);border-radius:.5rem;padding:.65rem .8rem;min-width:0}
.tile b{display:block;font-size:1.3rem;line-height:1.25;overflow-wrap:anywhere}
.tile span{color:var(--soft);font-size:13px}
.blocks{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(26rem,100%),1fr));gap:.8rem;margin:.8rem 0;
align-items:start}.blocks details{margin:0;min-width:0}.blocks .many{grid-column:1/-1}
details{border:1px solid var(--line);border-radius:.5rem;padding:.15rem .9rem;margin:.8rem 0}
details[open]{padding-bottom:.6rem}
summary{cursor:pointer;font-weight:600;padding:.4rem 0}summary .note{font-weight:400}
.strips{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(26rem,100%),1fr));gap:1.4rem 2rem;margin:.6rem 0}
.strips .wide{margin:0}.strips svg{min-width:18rem}.strips text{fill:#333;font-size:12px}
.strips .grid{stroke:#e4e8ec}.strips .limit{stroke:#333;stroke-width:1.5}.strips .side{fill:#d55e00;fill-opacity:.12}
.strips circle{fill-opacity:.75;stroke:#fff;stroke-width:.7}
figure{margin:0;min-width:0}svg{display:block;width:100%;height:auto}img{display:block;height:auto;max-width:100%}
.picture{margin:1rem 0}.picture svg,.picture img{min-width:38rem}
code,pre{font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}code{overflow-wrap:anywhere}
pre{background:var(--faint);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem;overflow:auto;
max-height:24rem;margin:.6rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
@media(min-width:70rem){.frame{grid-template-columns:12rem minmax(0,1fr)}nav.top{display:none}
nav.side{display:block;position:sticky;top:0;align-self:start;max-height:100vh;overflow-y:auto;padding:2.2rem 0}}
@media(max-width:40rem){header{padding-top:1.3rem}.frame{padding-inline:.9rem}h1{font-size:1.45rem}
table.facts td{display:block;width:auto;border-bottom:0;padding:.1rem 0}
table.facts td:first-child{width:auto;padding-top:.5rem}
table.facts tr{border-bottom:1px solid var(--line);display:block;padding-bottom:.4rem}
table.facts,table.facts tbody{display:block}}
@media print{body{font-size:10.5pt}nav{display:none!important}.frame{display:block}
.wide,pre{overflow:visible;max-height:none}.wide table{font-size:7.5pt}th,td{padding:.15rem .3rem}
.picture svg,.picture img,.strips svg{min-width:0}figure,.tile,tr{break-inside:avoid}h2,h3,h4{break-after:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
details::details-content{content-visibility:visible;block-size:auto}}
"""


@dataclass(frozen=True)
class Part:
    """A heading with what stands below it.

    :ivar title: The heading, as text.
    :ivar body: What stands below it, as HTML.
    :ivar parts: Parts one level down, after the body.
    """

    title: str
    body: str
    parts: tuple[Part, ...] = ()


def page(title: str, subtitle: str, victims: Sequence[Part]) -> str:
    """Return an HTML document with a table of contents.

    :param title: Of the document, as text.
    :param subtitle: One sentence, as text.
    :param victims: One part for each victim, with its own parts; a single one needs no heading.
    """
    one = len(victims) == 1
    body, items = [], []
    for number, victim in enumerate(victims, 1):
        anchor = f"v{number}"
        sections, links = _sections(victim.parts, 2, anchor)
        heading = "" if one else f"<h1>{html.escape(victim.title)}</h1>"
        body.append(f"<section id='{anchor}'>{heading}{victim.body}{sections}</section>")
        items.append(links if one else f"<li>{_link(anchor, victim.title)}<ul>{links}</ul></li>")
    contents = f"<ul>{''.join(items)}</ul>"
    head = f"<h1>{html.escape(title)}</h1>" if one else f"<p><strong>{html.escape(title)}</strong></p>"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header>{head}<p>{html.escape(subtitle)}</p></header><div class='frame'>"
        f"<nav class='side' aria-label='Contents'>{contents}</nav><main>"
        f"<nav class='top' aria-label='Contents'><details><summary>Contents</summary>{contents}</details></nav>"
        f"{''.join(body)}</main></div></body></html>\n"
    )


def _sections(parts: Iterable[Part], level: int, prefix: str) -> tuple[str, str]:
    """Return parts with headings, and the links to them."""
    body, links = [], []
    for number, part in enumerate(parts, 1):
        anchor = f"{prefix}-{number}"
        inner, below = _sections(part.parts, level + 1, anchor)
        body.append(f"<h{level} id='{anchor}'>{html.escape(part.title)}</h{level}>{part.body}{inner}")
        links.append(f"<li>{_link(anchor, part.title)}{f'<ul>{below}</ul>' if below and level == 2 else ''}</li>")
    return "".join(body), "".join(links)


def _link(anchor: str, title: str) -> str:
    return f"<a href='#{anchor}'>{html.escape(title)}</a>"


def sheet(table: Sheet, style: str = "", mark: Callable[[int, int], str] = lambda _row, _column: "") -> str:
    """Return a table with its notes.

    :param table: The table.
    :param style: Classes of the table: ``words`` (text that wraps), ``facts`` (names and values, without a head),
        ``pairs`` (lines that belong together in twos), ``matrix``.
    :param mark: The class of a cell, by row and column of the body; empty for none.
    """
    head, *body = table.cells
    style = f"{style} dense".strip() if len(head) >= _MANY_COLUMNS else style
    lines = []
    for number, row in enumerate(body):
        limit = " class='limit'" if table.rule_before_last and number == len(body) - 1 else ""
        found = "".join(
            f"<td{_class(mark(number, column))}>{html.escape(value)}</td>" for column, value in enumerate(row)
        )
        lines.append(f"<tr{limit}>{found}</tr>")
    top = "".join(f"<th scope='col'>{html.escape(value)}</th>" for value in head)
    titles = "" if "facts" in style.split() else f"<thead><tr>{top}</tr></thead>"
    return (
        f"<div class='wide'><table{_class(style)}>{titles}<tbody>{''.join(lines)}</tbody></table></div>"
        f"{notes(table.notes)}"
    )


def notes(texts: Iterable[str]) -> str:
    """Return notes as a list; nothing for none."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<ul class='notes'>{items}</ul>" if items else ""


def paragraph(text: str, style: str = "") -> str:
    """Return text as a paragraph."""
    return f"<p{_class(style)}>{html.escape(text)}</p>"


def folded(summary: str, body: str, is_open: bool = False, style: str = "") -> str:
    """Return something that can be folded away.

    :param summary: What is seen of it, as text.
    :param body: The rest, as HTML.
    :param is_open: Whether it is unfolded at first.
    :param style: Classes.
    """
    return (
        f"<details{_class(style)}{' open' if is_open else ''}><summary>{html.escape(summary)}</summary>{body}</details>"
    )


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Return numbers with what they are, side by side."""
    found = (f"<div class='tile'><b>{html.escape(n)}</b><span>{html.escape(what)}</span></div>" for n, what in values)
    return f"<div class='tiles'>{''.join(found)}</div>"


def _class(names: str) -> str:
    return f" class='{names}'" if names else ""
