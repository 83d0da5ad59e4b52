"""Pictures inside an HTML file: figures as inline SVG with text as text, and image files as data. No links."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from art_fingerprint.reporting.layout import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PNG = b"\x89PNG\r\n\x1a\n"
#: Larger image files are named, not embedded: the report is to go by mail.
MOST_BYTES = 2_000_000
# Text is placed with the widths of the first, and looks the same in the second.
_FONTS = "'DejaVu Sans',Verdana,sans-serif"


# What matplotlib adds and a page must not have: addresses, and a style for everything on the page.
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|(?<=>)\s+(?=<)", re.DOTALL)
_SHORTER = (
    (r'<g id="[^"]*"', "<g"),
    ("xlink:href", "href"),
    (r"'DejaVu Sans'[^;\"]*sans-serif", _FONTS),
    (r"(\d\.\d\d)\d+", r"\1"),
    (r"\s*\n\s*", " "),
)


@dataclass(frozen=True)
class Exhibit:
    """What a report shows of one experiment.

    :ivar name: Its name, ``fig4`` say.
    :ivar title: What it shows.
    :ivar rows: The rows behind it.
    :ivar sheets: Name to table; the name of the only one is empty.
    :ivar figure: Draws its figure; ``None`` where there is none, or where it needs more than rows.
    :ivar image: A picture that was written before, PNG.
    :ivar notes: What must be known, e.g. why there is no picture.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Any]] = ()
    sheets: Mapping[str, Sheet] = field(default_factory=dict)
    figure: Callable[[], Figure] | None = None
    image: bytes | None = None
    notes: tuple[str, ...] = ()


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """Return a figure as an ``svg`` element: no links, text as text, identifiers that begin with a prefix.

    :param figure: A matplotlib figure.
    :param prefix: Differs from figure to figure of a page; letters, digits and hyphens.
    :param label: What the figure shows, for readers who cannot see it.
    """
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    _, _, svg = out.getvalue().partition("<svg")
    head, _, body = svg.partition(">")
    (box,) = re.findall(r'viewBox="([^"]*)"', head)
    body = _DROPPED.sub("", body)
    names: dict[str, str] = {}  # matplotlib's own differ from run to run
    body = re.sub(r"<[^>]*>", lambda tag: _shorter(tag[0], prefix, names), body)  # not what stands between tags
    width = float(box.split()[2])
    return (
        f"<svg viewBox='{box}' role='img' aria-label='{html.escape(label)}' stroke-linejoin='round' "
        f"style='max-width:{width * 1.25:.0f}px'>{body.strip()}"
    )


def inline_png(content: bytes, label: str) -> str:
    """Return a PNG as an ``img`` element with its data.

    :raises ValueError: not a PNG, or larger than :data:`MOST_BYTES`.
    """
    if not content.startswith(_PNG):
        raise ValueError("it is not a PNG file")
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"it has {len(content) / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that are embedded"
        )
    width, height = (int.from_bytes(content[place : place + 4], "big") for place in (16, 20))
    data = base64.b64encode(content).decode("ascii")
    return (
        f"<img src='data:image/png;base64,{data}' width='{width}' height='{height}' alt='{html.escape(label)}' "
        f"style='max-width:min(100%,{width * 2 // 3}px)'>"
    )


def _shorter(tag: str, prefix: str, names: dict[str, str]) -> str:
    def named(found: re.Match[str]) -> str:
        return found[1] + names.setdefault(found[2], f"{prefix}-{len(names) + 1}")

    for pattern, instead in _SHORTER:
        tag = re.sub(pattern, instead, tag)
    return re.sub(r'(\bid="|href="#|url\(#)([^")]+)', named, tag)
