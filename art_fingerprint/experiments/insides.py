"""Figures 9 and 10: what RemovalNet does to a model's saliency maps, and to its answers in the plane."""

from __future__ import annotations

from typing import Any

import numpy as np

from art_fingerprint.attacks import FineTuningAttack
from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.core.seeding import numpy_generator
from art_fingerprint.evaluation.fidelity import predicted_labels
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.experiments.experiment import (
    Experiment,
    Findings,
    Run,
    Seeds,
    checkpoints,
    max_iter_of,
    planned,
    removal_rows,
    without_negatives,
    without_verdicts,
)
from art_fingerprint.reporting.embedding import embed, plot_embedding, probabilities, shift
from art_fingerprint.reporting.layout import Sheet, mean_std
from art_fingerprint.reporting.saliency import MapDifference, compare_maps, saliency_maps
from art_fingerprint.reporting.saliency_plot import plot_saliency
from art_fingerprint.zoo.loading import attack_class
from art_fingerprint.zoo.presets import Preset

IMAGES = slice(30, 60)  # of the test set, as in the paper's code
DRAWN = 8
SHARE = 0.2
PER_CLASS = 100
MOST_IMAGES = 1000  # those of the paper's ten classes


# ---------------------------------------------------------------------- Fig. 9
def plan_maps(preset: Preset, seeds: Seeds) -> Plan:
    """Return the RemovalNet rows and, to compare with, the first fine-tuning row; negatives come by themselves."""
    rows = removal_rows(preset)
    tuned = {k: s for k, s in preset.attacks.items() if issubclass(attack_class(s.attack), FineTuningAttack)}
    return planned("fig9", preset, seeds, {**dict(list(tuned.items())[:1]), **rows}, **without_verdicts(preset))


def read_maps(run: Run) -> Findings:
    """Return how far each model's maps differ from the victim's at the layer that is attacked, and the figure.

    :raises InvalidInputError: fewer test images than 31, or no RemovalNet surrogate.
    """
    x = np.asarray(run.bench.data.x_test[IMAGES], dtype=np.float32)
    if not len(x):
        raise InvalidInputError(f"Maps are drawn of test images from number {IMAGES.start}; there are fewer.")
    victim = run.bench.victim
    classes = predicted_labels(victim, x)
    layer = _layer(run)
    own = saliency_maps(victim, x, layer, classes)
    shown = {"Victim": own}
    lines = [["model", "seeds", "mean |CAM difference|", f"IoU of the top {100 * SHARE:.0f} %"]]
    negatives = dict.fromkeys(str(row["suspect"]) for row in run.rows if row["role"] == "negative")
    for label in (*run.preset.attacks, *negatives):
        found: list[MapDifference] = []
        for suspect in run.suspects(label):
            maps = saliency_maps(run.bench.model(suspect), x, layer, classes)
            found.append(compare_maps(own, maps, SHARE))
            shown.setdefault(label, maps)
        distances, overlaps = [f.distance for f in found], [f.overlap for f in found]
        lines.append([label, str(len(found)), mean_std(distances, 3), mean_std(overlaps, 3)])
    notes = (
        f"LayerCAM at {layer} for the class that the victim predicts; {len(x)} test images from number "
        f"{IMAGES.start}. Two random regions have an IoU of {SHARE / (2 - SHARE):.2f}.",
    )
    captions = [str(label) for label in classes[:DRAWN]]
    first = {name: maps[:DRAWN] for name, maps in shown.items()}
    return Findings({"": Sheet(lines, notes)}, lambda: plot_saliency(x[:DRAWN], first, captions))


def _layer(run: Run) -> str:
    """Return the layer that RemovalNet cut at."""
    for label in removal_rows(run.preset):
        for suspect in run.suspects(label):
            info: dict[str, Any] = run.bench.model(suspect).surrogate_info
            if "layer" in info:
                return str(info["layer"])
    raise InvalidInputError("No RemovalNet surrogate could be made, so there are no maps to compare; see the rows.")


# ---------------------------------------------------------------------- Fig. 10
def plan_plane(preset: Preset, seeds: Seeds) -> Plan:
    """Return four checkpoints of every RemovalNet row: the start, a tenth, half of the way, the end."""
    attacks = {}
    for label, setting in removal_rows(preset).items():
        last = max_iter_of(setting.params)
        attacks.update(checkpoints(label, setting, (0, round(last / 10), round(last / 2), last)))
    return planned("fig10", preset, seeds, attacks, **without_negatives(preset), **without_verdicts(preset))


def read_plane(run: Run) -> Findings:
    """Return how far each checkpoint's answers lie from the victim's, and the figure: one embedding of the first seed.

    Up to 100 test images of each class and about 1000 in all, drawn at random.
    """
    data = run.bench.data
    chosen = some_of_each(np.asarray(data.y_test), min(PER_CLASS, -(-MOST_IMAGES // data.nb_classes)))
    x, labels = np.asarray(data.x_test[chosen], dtype=np.float32), np.asarray(data.y_test)[chosen]
    own = probabilities(run.bench.victim, x)
    first: dict[str, np.ndarray] = {"Victim": own}
    distances: dict[str, list[float]] = {}
    for label in run.preset.attacks:
        for suspect in run.suspects(label):
            answers = probabilities(run.bench.model(suspect), x)
            first.setdefault(label, answers)
            distances.setdefault(label, []).append(float(np.abs(answers - own).sum(1).mean()))
    if len(first) < 2:
        raise InvalidInputError("No RemovalNet surrogate could be made, so there is nothing to embed; see the rows.")
    points = embed(first)
    lines = [["model", "seeds", "mean L1 distance of probabilities", "shift in the embedding"]]
    for label, found in distances.items():
        moved = shift(points["Victim"], points[label])
        lines.append([label, str(len(found)), mean_std(found, 3), f"{moved:.2f}"])
    notes = (
        f"{len(labels)} test images. The shift is the mean distance between an image's two points, over the spread of "
        "the embedding; of the first seed, as the figure.",
    )
    return Findings({"": Sheet(lines, notes)}, lambda: plot_embedding(points, labels))


def some_of_each(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Return ascending positions of up to ``most`` samples of each class, drawn at random."""
    draws = numpy_generator(seed, "some of each class")
    parts = [draws.permutation(np.flatnonzero(labels == label))[:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(parts))


FIG9 = Experiment("LayerCAM maps of victim and surrogates", plan_maps, from_models=read_maps)
FIG10 = Experiment("answers of victim and checkpoints in one t-SNE embedding", plan_plane, from_models=read_plane)
