"""Robustness from result rows: the layout of the RemovalNet paper's Table IV, and robustness beside removal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from art_fingerprint.evaluation.removal import distance_gained
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.reporting.layout import mean_std, short
from art_fingerprint.reporting.published import published_robustness
from art_fingerprint.reporting.tables import ordered, rows_of_one_preset
from art_fingerprint.zoo.preset import NEGATIVES

Row = Mapping[str, Any]
#: Roles of the models that the comparison shows, in its order.
ROLES = ("victim", "surrogate", "negative")
_MISSING = "The rows have no robust accuracy: they are from an earlier version; run the bench anew in another folder."


def _models(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each suspect and seed of the newest rows, those that could be made."""
    first: dict[tuple[str, int], Row] = {}
    for row in ordered(rows_of_one_preset(rows)):
        if row["accuracy"] is not None:
            first.setdefault((row["suspect"], row["seed"]), row)
    return list(first.values())


def has_robustness(rows: Iterable[Row]) -> bool:
    """Tell whether any row holds a robust accuracy."""
    return any(row.get("robustness") for row in rows)


def table_four(rows: Iterable[Row], surrogate: str | None = None) -> list[list[str]]:
    """Return Table IV as text cells: an attack a line, Rob and RobD over seeds, the published values beside them.

    Of several kinds of negatives those of the victim's data are shown, else the first kind that there is, by its name.
    RobD of each seed is abs(Rob(victim) - Rob(suspect)), averaged over seeds. Then follow the largest share of
    examples that lie on the boundary within rounding, over the models shown (see :class:`.Robustness`), and the median
    L2 norm of the perturbations, mean over models.

    :param rows: Rows of one preset.
    :param surrogate: Row label of the surrogate; default the last one whose label begins with ``RemovalNet``, or the
        last surrogate, in the order of :func:`.label_place`.
    :raises InvalidInputError: rows without robust accuracy, or no such surrogate, or no victim.
    """
    models = _models(rows)
    if not has_robustness(models):
        raise InvalidInputError(_MISSING)
    victims = [row for row in models if row["role"] == "victim"]
    labels = list(dict.fromkeys(row["suspect"] for row in models if row["role"] == "surrogate"))
    if surrogate is None:
        named = [label for label in labels if label.startswith("RemovalNet")] or labels
        surrogate = named[-1] if named else ""
    elif surrogate not in labels:
        raise InvalidInputError(f"There is no surrogate {surrogate!r}; the rows have {', '.join(labels) or 'none'}.")
    if not victims:
        raise InvalidInputError("The rows have no victim.")
    negative = next((row["suspect"] for row in models if row["role"] == "negative"), NEGATIVES["same-data"])
    groups = {
        "victim": victims[:1],
        "surrogate": [row for row in models if row["suspect"] == surrogate and row["role"] == "surrogate"],
        "negative": [row for row in models if row["suspect"] == negative and row["role"] == "negative"],
    }
    kind = "negative" if negative == NEGATIVES["same-data"] else negative
    head = ["attack", "Rob(victim)", f"Rob({surrogate})", f"Rob({kind})", "RobD(surrogate)", f"RobD({kind})"]
    cells = [[*head, "on the boundary", "median L2 v, s, n", "paper (CIFAR10, VGG19): Rob v, s, n; RobD s, n"]]
    for attack in dict.fromkeys(name for row in models for name in row.get("robustness") or {}):
        found = {
            name: [row["robustness"][attack] for row in group if attack in (row.get("robustness") or {})]
            for name, group in groups.items()
        }
        rob = {name: [result["accuracy"] for result in results] for name, results in found.items()}
        distances = {
            name: [abs(rob["victim"][0] - value) for value in rob[name]] if rob["victim"] else []
            for name in ("surrogate", "negative")
        }
        undecided = max((result["undecided"] for results in found.values() for result in results), default=0.0)
        printed = published_robustness().get(attack)
        published = "-" if printed is None else ", ".join(f"{value:.3f}" for value in astuple(printed)[1:])
        values = [*(rob[name] for name in groups), *distances.values()]
        norms = ", ".join(_norm(results) for results in found.values())
        own = [*(mean_std(numbers, 3) for numbers in values), f"{100 * undecided:.0f}%", norms]
        cells.append([attack, *own, published])
    return cells


@dataclass(frozen=True)
class Point:
    """One attack of the comparison: means over its seeds.

    :ivar label: Row label.
    :ivar role: ``"victim"``, ``"surrogate"`` or ``"negative"``.
    :ivar seeds: Number of seeds.
    :ivar accuracy: Test accuracy in [0, 1].
    :ivar robust_accuracy: Accuracy under the evasion attack, in [0, 1].
    :ivar gained: Verifier to distance gained, mean over its metrics: 0 is a copy, 1 an average independent model.
    """

    label: str
    role: str
    seeds: int
    accuracy: float
    robust_accuracy: float
    gained: Mapping[str, float]


def tradeoff(rows: Iterable[Row], attack: str = "PGD") -> list[Point]:
    """Return a point for the victim, every attack, and each kind of negatives: what it costs, and what it gains.

    Independent models are those of the first kind that there is: references, references of other data, known models.
    Metrics that the reference models do not move away from the victim are left out.

    :param rows: Rows of one preset, with victim and references.
    :param attack: The evasion attack behind the robust accuracy.
    :raises InvalidInputError: rows without this robust accuracy, without the victim or without reference models.
    """
    kept = ordered(rows_of_one_preset(rows))
    known = {name for row in kept for name in row.get("robustness") or {}}
    if attack not in known:
        raise InvalidInputError(_MISSING if not known else f"The rows have {', '.join(sorted(known))}, not {attack!r}.")
    values: dict[str, dict[str, dict[str, list[float]]]] = {}  # role or label, verifier, metric
    roles: dict[str, str] = {}
    for row in kept:
        if row["status"] != "ok":
            continue
        roles.setdefault(row["suspect"], row["role"])
        for metric, result in row["metrics"].items():
            if result["value"] is not None:
                own = values.setdefault(row["suspect"], {}).setdefault(row["verifier"], {})
                own.setdefault(metric, []).append(result["value"])
    if not {"victim", "reference"} <= set(roles.values()):
        raise InvalidInputError("The comparison needs rows of the victim and of reference models.")
    origin, far = (
        values.get(next(label for label, found in roles.items() if found == role), {})
        for role in ("victim", "reference")
    )
    points = []
    attacked = [row for row in _models(kept) if attack in (row.get("robustness") or {})]
    shown = [(label, role) for wanted in ROLES for label, role in roles.items() if role == wanted]
    for label, role in shown:
        models = [row for row in attacked if row["suspect"] == label]
        if not models:
            continue
        gained = {}
        for verifier, metrics in values.get(label, {}).items():
            shares = _shares(metrics, origin.get(verifier, {}), far.get(verifier, {}))
            if shares:
                gained[verifier] = statistics.fmean(shares)
        points.append(
            Point(
                label,
                role,
                len(models),
                statistics.fmean(row["accuracy"] for row in models),
                statistics.fmean(row["robustness"][attack]["accuracy"] for row in models),
                gained,
            )
        )
    return points


def _norm(results: Sequence[Mapping[str, Any]]) -> str:
    found = [result["median_l2"] for result in results if result.get("median_l2") is not None]
    return f"{statistics.fmean(found):.2f}" if found else "-"


def _shares(
    metrics: Mapping[str, Sequence[float]], origin: Mapping[str, Sequence[float]], far: Mapping[str, Sequence[float]]
) -> list[float]:
    found = [
        distance_gained(statistics.fmean(values), origin[name][0], far[name])
        for name, values in metrics.items()
        if name in origin and name in far
    ]
    return [share for share in found if math.isfinite(share)]


def tradeoff_cells(points: Sequence[Point], attack: str = "PGD") -> list[list[str]]:
    """Return the comparison as text cells."""
    verifiers = list(dict.fromkeys(name for point in points for name in point.gained))
    head = ["model", "seeds", "accuracy %", f"under {attack} %", *(f"gained: {short(name)}" for name in verifiers)]
    return [
        head,
        *(
            [
                point.label,
                str(point.seeds),
                f"{100 * point.accuracy:.2f}",
                f"{100 * point.robust_accuracy:.1f}",
                *(f"{point.gained[name]:.2f}" if name in point.gained else "-" for name in verifiers),
            ]
            for point in points
        ),
    ]
