"""Two questions about verifiers that ask: does it help an attacker to have true labels (H3), and do AKH and Dataset
Inference find more together than each alone (H14)? On digits, with noisy copies of the test images.

Prints Markdown tables with AUCs and 95 % intervals. Run as ``python benchmarks/hypotheses.py h3 h14``; results stand in
docs/query-verifiers.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.stats import rankdata

from art_fingerprint.attacks import CompositeAttack, FineTuningAttack, KnockoffNetsAttack, RemovalNetAttack
from art_fingerprint.benchmark.materials import noisy
from art_fingerprint.core.seeding import derive_seed, numpy_generator
from art_fingerprint.evaluation.fidelity import accuracy
from art_fingerprint.evaluation.intervals import auc_interval
from art_fingerprint.evaluation.roc import roc_auc
from art_fingerprint.verifiers import AKHVerifier, DatasetInferenceVerifier, FBIVerifier, SACVerifier, Verifier
from art_fingerprint.zoo.dataset import Dataset, halves
from art_fingerprint.zoo.datasets import load_dataset
from art_fingerprint.zoo.presets import load_preset
from art_fingerprint.zoo.recipes import Recipe, train_victim

Scores = dict[str, float]
Zoo = Mapping[str, Sequence[Scores]]
NB_NEGATIVES, NB_KNOWN = 20, 10
DISTANCES = ("SAC", "SAC-labels", "FBI")
DRAWS = 4000


# ---------------------------------------------------------------------- numbers
def similarity(rows: Sequence[Scores], metric: str) -> np.ndarray:
    """Return one metric of all models, high for the victim's copies."""
    values = np.array([row[metric] for row in rows])
    return -values if metric in DISTANCES else values


def rank_average(*metrics: np.ndarray) -> np.ndarray:
    """Return the mean over metrics of each model's rank among all, ties at their mean rank."""
    return np.mean([rankdata(values) for values in metrics], axis=0)


def area(sides: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the AUC of derived against independent models."""
    return roc_auc(*sides, "similarity")


def gain_interval(
    first: Callable[[np.ndarray, np.ndarray], float], nb_derived: int, nb_independent: int, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a difference of AUCs; models are drawn anew within each side.

    :param first: Takes indices of derived and of independent models and returns the difference.
    """
    draws = numpy_generator(seed, "bootstrap")
    found = [
        first(draws.integers(0, nb_derived, nb_derived), draws.integers(0, nb_independent, nb_independent))
        for _ in range(DRAWS)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def with_interval(sides: tuple[np.ndarray, np.ndarray]) -> str:
    """Return an AUC and its interval as text."""
    found = area(sides)
    low, high = auc_interval(found, len(sides[0]), len(sides[1]))
    return f"{found:.2f} [{low:.2f}, {high:.2f}]"


# ---------------------------------------------------------------------- models
def trained(data: Dataset, recipe: Recipe, seed: int) -> PyTorchClassifier:
    """Return a network of the digits preset."""
    return train_victim(load_preset("digits").architecture, data, recipe, seed, "cpu")


def scored(verifiers: Mapping[str, Verifier], models: Sequence[PyTorchClassifier], data: Dataset) -> list[Scores]:
    """Return all scores of some models, with their accuracy on the test images."""
    rows = []
    for model in models:
        row = {"accuracy": accuracy(model, data.x_test, data.y_test)}
        for name, verifier in verifiers.items():
            found = verifier.score(model)
            row |= {"AKH-ref": found["AKH"], "AKH-soft": found["AKH-soft"]} if name == "AKH-ref" else found
        rows.append(row)
    return rows


def error_verifiers(
    victim: PyTorchClassifier, data: Dataset, known: Sequence[PyTorchClassifier], seed: int
) -> dict[str, Verifier]:
    """Return verifiers of the victim's errors on the test images and five noisy copies of each."""
    x, y = noisy(data.x_test, data.y_test, 5, 0.2, seed)
    common: dict[str, Any] = {"seed": seed, "batch_size": 512}
    found: dict[str, Any] = {
        "AKH": AKHVerifier(victim, fill="none", **common),
        "AKH-ref": AKHVerifier(victim, fill="none", **common),
        "SAC": SACVerifier(victim, **common),
        "FBI": FBIVerifier(victim, nb_probes=100, symbols="labels", **common),
    }
    for name, verifier in found.items():
        verifier.extract(x, y, **({"negatives": known} if name == "AKH-ref" else {}))
    return found


def errors_kept(victim: PyTorchClassifier, model: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of the victim's errors on these images that a model repeats, label for label."""
    own, answers = victim.predict(x).argmax(1), model.predict(x).argmax(1)
    return float((answers == own)[own != y].mean())


# ---------------------------------------------------------------------- H3
def h3(seeds: int) -> Zoo:
    """Compare RemovalNet's label sources on a victim that errs often enough: accuracy about 95 %."""
    data, preset = load_dataset("digits"), load_preset("digits")
    recipe = replace(preset.victim_recipe, max_iter=120, learning_rate=1e-2)
    victim = trained(data, recipe, preset.victim_seed)
    known = [trained(data, recipe, derive_seed(seed, "known")) for seed in range(NB_KNOWN)]
    negatives = [trained(data, recipe, derive_seed(seed, "negative")) for seed in range(NB_NEGATIVES)]
    settings = dict(preset.attacks["RemovalNet(apart)"].params)
    row = [
        ("RemovalNetAttack", {k: v for k, v in settings.items() if k not in ("batch_size", "hflip")}),
        ("FineTuningAttack", {"ratio": 1.0, "max_iter": 100}),
    ]
    sources: dict[str, Callable[[int], Any]] = {
        "victim's labels": lambda seed: RemovalNetAttack(victim, seed=seed, **settings),
        "and repair, weight 1": lambda seed: RemovalNetAttack(victim, seed=seed, error_repair=1.0, **settings),
        "and repair, weight 5": lambda seed: RemovalNetAttack(victim, seed=seed, error_repair=5.0, **settings),
        "then true labels": lambda seed: CompositeAttack(victim, row, seed=seed, batch_size=64, hflip=False),
    }
    models: dict[str, list[PyTorchClassifier]] = {"negatives": negatives}
    for name, attack in sources.items():
        models[name] = [attack(seed).generate(data.x_apart, data.y_apart) for seed in range(seeds)]
    verifiers = error_verifiers(victim, data, known, 0)
    x, y = data.x_test, data.y_test
    zoo = {name: scored(verifiers, found, data) for name, found in models.items()}
    for name, found in models.items():
        for scores, model in zip(zoo[name], found, strict=True):
            scores["kept"] = errors_kept(victim, model, x, y)
    facts = {name: verifier.fingerprint.facts for name, verifier in verifiers.items() if verifier.fingerprint}
    print(
        f"\nVictim: {accuracy(victim, x, y):.3f}; errors: {int((victim.predict(x).argmax(1) != y).sum())} of {len(y)}, "
        f"of the attacker's {len(data.y_apart)} images "
        f"{int((victim.predict(data.x_apart).argmax(1) != data.y_apart).sum())}; queries: "
        f"{ {name: fact['nb_probes'] for name, fact in facts.items()} }; {seeds} seeds, {NB_NEGATIVES} negatives\n"
    )
    metrics = ["AKH", "AKH-ref", "AKH-soft", "SAC", "SAC-labels", "FBI"]
    print("| label source | accuracy | errors kept | " + " | ".join(metrics) + " |")
    print("|" + "---|" * (len(metrics) + 3))
    for name, rows in zoo.items():
        means = [f"{np.mean([row[key] for row in rows]):.3f}" for key in ("accuracy", "kept")]
        cells = ["-"] * len(metrics)
        if name != "negatives":
            cells = [with_interval((similarity(rows, m), similarity(zoo["negatives"], m))) for m in metrics]
        print(f"| {name} | " + " | ".join([*means, *cells]) + " |")
    first = next(iter(sources))
    print(f"\nAUC minus that of {first!r}, 95 % bootstrap over models:\n")
    for name in list(sources)[1:]:
        cells = []
        for metric in metrics:
            a, b, n = (similarity(zoo[key], metric) for key in (name, first, "negatives"))

            def difference(
                i: np.ndarray, j: np.ndarray, a: np.ndarray = a, b: np.ndarray = b, n: np.ndarray = n
            ) -> float:
                return area((a[i], n[j])) - area((b[i], n[j]))

            everything = difference(np.arange(len(a)), np.arange(len(n)))
            low, high = gain_interval(difference, len(a), len(n))
            cells.append(f"{metric} {everything:+.2f} [{low:+.2f}, {high:+.2f}]")
        print(f"- {name}: " + "; ".join(cells))
    return zoo


# ---------------------------------------------------------------------- H14
def mislabelled(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return labels of which a share is wrong, which a model can only learn by heart."""
    draws = numpy_generator(seed, "mislabelled")
    wrong = draws.random(len(y)) < share
    return np.where(wrong, (y + draws.integers(1, 10, len(y))) % 10, y)


def h14(seeds: int) -> Zoo:
    """Fuse AKH and Dataset Inference by rank average; independent models have other training images."""
    print(f"\n{seeds} seeds of each attack, {NB_NEGATIVES} negatives of the other half of the training images\n")
    print("| wrong labels | attack | accuracy | AKH | DI | both | both minus the better |")
    print("|---|---|---|---|---|---|---|")
    found: dict[str, Sequence[Scores]] = {}
    for share in (0.0, 0.1):
        zoo, says = _memorised(share, seeds)
        for name, rows in zoo.items():
            found[f"{share:.0%}: {name}"] = rows
            mean = np.mean([row["accuracy"] for row in rows])
            cells = f"{says} | | | |" if name == "negatives" else f"{_fused(rows, zoo['negatives'])} |"
            print(f"| {share:.0%} | {name} | {mean:.3f} | {cells}", flush=True)
    return found


def _memorised(share: float, seeds: int) -> tuple[Zoo, str]:
    """Return the scores of a zoo whose victim has learned a share of wrong labels by heart, and a note on it."""
    preset = load_preset("digits")
    recipe = replace(preset.victim_recipe, max_shift=0, weight_decay=0.0, linear_l2=0.0, max_iter=500)
    removal = dict(preset.attacks["RemovalNet(apart)"].params)
    own, other = (
        replace(half, y_train=mislabelled(half.y_train, share, number))
        for number, half in enumerate(halves(load_dataset("digits")))
    )
    victim = trained(own, recipe, preset.victim_seed)
    akh = AKHVerifier(victim, fill="none", batch_size=512)
    akh.extract(*noisy(own.x_test, own.y_test, 5, 0.2, 0))
    inference = DatasetInferenceVerifier(
        victim, nb_fit=200, nb_test=100, noise=16.0, nb_draws=5, max_steps=30, batch_size=1024
    )
    # unseen images have wrong labels, too, or the walks would tell right labels from wrong ones
    inference.extract(own.x_train, own.y_train, own.x_test, mislabelled(own.y_test, share, 2))
    verifiers: dict[str, Verifier] = {"AKH": akh, "DI": inference}

    def tuned(seed: int) -> PyTorchClassifier:
        attack = FineTuningAttack(victim, ratio=0.5, max_iter=200, hflip=False, seed=seed)
        return attack.generate(own.x_train, own.y_train)

    attacks: dict[str, Callable[[int], PyTorchClassifier]] = {
        "FT(0.5)": tuned,
        "RemovalNet, subset": lambda seed: RemovalNetAttack(victim, seed=seed, **removal).generate(own.x_train[:200]),
        "RemovalNet, apart": lambda seed: RemovalNetAttack(victim, seed=seed, **removal).generate(own.x_apart),
        "KnockoffNets": lambda seed: KnockoffNetsAttack(victim, max_iter=500, hflip=False, seed=seed).generate(
            own.x_apart
        ),
    }
    zoo = {name: scored(verifiers, [attack(seed) for seed in range(seeds)], own) for name, attack in attacks.items()}
    independent = [trained(other, recipe, derive_seed(seed, "other data")) for seed in range(NB_NEGATIVES)]
    zoo["negatives"] = scored(verifiers, independent, own)
    asked, own_p = (verifier.fingerprint.facts[name] for verifier, name in ((akh, "nb_probes"), (inference, "own_p")))  # type: ignore[union-attr]
    right = accuracy(victim, own.x_test, own.y_test)
    return zoo, f"victim: accuracy {right:.3f}, {asked} queries, own p of DI {own_p:.2g}"


def _fused(rows: Sequence[Scores], negatives: Sequence[Scores]) -> str:
    both = [np.concatenate([similarity(side, metric) for side in (rows, negatives)]) for metric in ("AKH", "DI")]
    n = len(rows)

    def areas(i: np.ndarray, j: np.ndarray) -> list[float]:
        drawn = [np.concatenate([values[:n][i], values[n:][j]]) for values in both]
        return [area((values[: len(i)], values[len(i) :])) for values in (*drawn, rank_average(*drawn))]

    def gain(i: np.ndarray, j: np.ndarray) -> float:
        alone, other, together = areas(i, j)
        return together - max(alone, other)

    everything = (np.arange(n), np.arange(len(negatives)))
    low, high = gain_interval(gain, n, len(negatives))
    fused = rank_average(*both)
    cells = [with_interval((values[:n], values[n:])) for values in (*both, fused)]
    return " | ".join([*cells, f"{gain(*everything):+.3f} [{low:+.3f}, {high:+.3f}]"])


def main() -> None:
    """Answer the questions that are asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known: dict[str, Callable[[int], Zoo]] = {"h3": h3, "h14": h14}
    parser.add_argument("questions", nargs="+", choices=list(known))
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each attack")
    parser.add_argument("--out", type=Path, help="JSON file for every score")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for question in arguments.questions:
        started = time.perf_counter()
        found[question] = known[question](arguments.seeds)
        print(f"\n{question}: {time.perf_counter() - started:.0f} s", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
