"""What all figures share: matplotlib, imported when it is needed, and colours that follow a name. Extra ``plots``."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from art_fingerprint.exceptions import InvalidInputError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart. What stands in many figures has a fixed colour.
_PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_NAMED = {
    "Victim": "#000000",
    "Negative": "#0072b2",
    "Reference": "#999999",
    "RemovalNet(train)": "#d55e00",
    "RemovalNet(apart)": "#cc79a7",
    "KnockoffNets(train)": "#009e73",
    "KnockoffNets(apart)": "#56b4e9",
    "LOD": "#882255",
    "LAD": "#e69f00",
    "NOD": "#994f00",
    "NAD": "#b8a200",
    "RobD": "#666666",
    "JSD": "#999999",
    "ZEST-L2": "#0072b2",
    "ZEST-cosine": "#56b4e9",
    "ZEST-L1": "#004c78",
    "ZEST-Linf": "#8fb8d8",
    "DDV": "#009e73",
    "MR": "#7a5230",
    "WA": "#d55e00",
    "AKH": "#cc79a7",
    "SAC": "#332288",
    "SAC-labels": "#8877cc",
    "FBI": "#44aa99",
    "DI": "#117733",
    "RobD-FGSM": "#aa4499",
    "RobD-PGD": "#661100",
    "RobD-DeepFool": "#6699cc",
}
_MARKERS = "osD^vPX*<>hp"


def colour_of(name: str) -> str:
    """Return the colour of a method, model or metric: the same in every figure, whatever else is drawn."""
    return _NAMED.get(name) or _PALETTE[zlib.crc32(name.encode()) % len(_PALETTE)]


def marker_of(name: str) -> str:
    """Return the marker of a method, model or metric, a second way to tell names apart."""
    known = list(_NAMED)
    place = known.index(name) if name in known else zlib.crc32(name.encode())
    return _MARKERS[place % len(_MARKERS)]


def legend_entries(panels: Iterable[Any]) -> tuple[list[Any], list[str]]:
    """Return handles and names of all that is drawn in some panel, each name once: not every panel has all of it."""
    drawn: dict[str, Any] = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        drawn |= {name: handle for name, handle in zip(names, handles, strict=True) if name not in drawn}
    return list(drawn.values()), list(drawn)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure outside pyplot: no window, no global state.

    :param width: In inches.
    :param height: In inches.
    :raises MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Figures need matplotlib, which is not installed: pip install 'art-fingerprint[plots]'."
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str] | None, **options: Any) -> Figure:
    """Write a figure where a path is given, and return it.

    :raises InvalidInputError: a format that matplotlib cannot write.
    """
    if path is not None:
        try:
            figure.savefig(path, dpi=150, **options)
        except ValueError as error:
            raise InvalidInputError(f"The figure cannot be written to {os.fspath(path)}: {error}") from error
    return figure
