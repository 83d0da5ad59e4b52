"""How well each metric tells copies from independent models, without any threshold: areas under ROC curves.

Reads the rows of a bench run and prints a Markdown table: for every metric the area for fine-tuned, pruned and
distilled copies and for RemovalNet's surrogates, each against negatives and against the reference models, and the
values where copies and independent models come closest. 1 is perfect, 0.5 is chance. Run as
``python benchmarks/auc_per_metric.py runs/digits``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.evaluation.roc import roc_auc
from art_fingerprint.reporting.tables import latest_rows

COPIES, REMOVED, NEGATIVES, REFERENCES = "copies", "RemovalNet", "negatives", "references"
HEADINGS = (
    "metric",
    f"{COPIES} / {NEGATIVES}",
    f"{COPIES} / {REFERENCES}",
    f"{REMOVED} / {NEGATIVES}",
    f"{REMOVED} / {REFERENCES}",
    "farthest copy",
    "nearest negative",
    "nearest reference",
)


def group(row: Mapping[str, Any]) -> str | None:
    """Return the group that a row's suspect belongs to; ``None`` for the victim."""
    if row["role"] == "surrogate":
        return REMOVED if row["attack"] == "RemovalNetAttack" else COPIES
    return {"negative": NEGATIVES, "reference": REFERENCES}.get(row["role"])


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table, with the number of models of each group below it."""
    directions: dict[str, Any] = {}
    values: dict[tuple[str, str], list[float]] = {}
    models: dict[str, set[tuple[str, int]]] = {}
    for row in rows:
        kind = group(row)
        if kind is None or row["status"] != "ok":
            continue
        models.setdefault(kind, set()).add((row["suspect"], row["seed"]))
        for name, result in row["metrics"].items():
            if result["value"] is not None:
                directions[name] = result["direction"]
                values.setdefault((name, kind), []).append(result["value"])
    lines = [" | ".join(HEADINGS), "|".join(["---"] * len(HEADINGS))]
    for name, direction in directions.items():
        near, far = (min, max) if direction == "distance" else (max, min)

        def area(derived: str, independent: str, name: str = name) -> str:
            sides = values.get((name, derived)), values.get((name, independent))
            return f"{roc_auc(*sides, directions[name]):.3f}" if all(sides) else "-"

        def extreme(choose: Any, kind: str, name: str = name) -> str:
            return f"{choose(values[name, kind]):.3g}" if (name, kind) in values else "-"

        areas = [area(d, i) for d in (COPIES, REMOVED) for i in (NEGATIVES, REFERENCES)]
        ends = [extreme(far, COPIES), extreme(near, NEGATIVES), extreme(near, REFERENCES)]
        lines.append(" | ".join([name, *areas, *ends]))
    counts = ", ".join(f"{len(found)} {kind}" for kind, found in models.items())
    return "\n".join(f"| {line} |" for line in lines) + f"\n\nModels: {counts}."


def main() -> None:
    """Read a run's folder and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a bench run")
    print(markdown(latest_rows(read_rows(parser.parse_args().folder))))


if __name__ == "__main__":
    main()
