"""What the query-only verifiers see of copies, of RemovalNet's surrogates and of independent models, on one preset.

Trains the preset's models in a folder (or reads them there), with 20 references and 20 negatives unless told otherwise,
and as many models of other data (the images held apart); scores all of them with AKH, SAC, FBI and Dataset Inference,
and prints Markdown tables: AUC and TPR at 5 % FPR by `evaluation.roc`. Every score goes to ``scores.json`` in the
folder. Run as ``python benchmarks/query_verifiers.py digits runs/query-digits --copies 5 --noise 0.2 --di-noise 8``;
results stand in docs/query-verifiers.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.core.classifier import clone_classifier
from art_fingerprint.core.seeding import derive_seed, numpy_generator
from art_fingerprint.evaluation.fidelity import accuracy
from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.verifiers import AKHVerifier, DatasetInferenceVerifier, FBIVerifier, SACVerifier, Verifier
from art_fingerprint.zoo.datasets import Dataset, split_by_class
from art_fingerprint.zoo.presets import load_preset

Scores = dict[str, float]
Options = dict[str, Any]
LOWER = ("SAC", "SAC-labels", "SAC-m", "FBI-ranks", "FBI-labels", "DI-p", "DI-p10")


def harder(x: np.ndarray, y: np.ndarray, copies: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labelled images with noise, so that a good victim errs on enough of them."""
    if copies == 0:
        return x, y
    draws = numpy_generator(seed, "harder")
    noisy = [np.clip(x + noise * draws.standard_normal(x.shape, dtype=np.float32), 0, 1) for _ in range(copies)]
    return np.concatenate([x, *noisy]), np.tile(y, copies + 1)


def small(data: Dataset, count: int) -> Dataset:
    """Return a set whose victim has few training images, that it learns by heart; as many others are held apart."""
    parts = split_by_class(data.y_train, (count, count), 0, "query-verifiers")
    (x, x_apart), (y, y_apart) = ([side[part] for part in parts] for side in (data.x_train, data.y_train))
    return replace(data, x_train=x, y_train=y, x_apart=x_apart, y_apart=y_apart)


def permuted(model: PyTorchClassifier) -> PyTorchClassifier:
    """Return a copy whose classes have other numbers, each the next one's."""
    twin = clone_classifier(model)
    last = [module for module in twin.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, 0))
        last.bias.copy_(last.bias.roll(1, 0))
    return twin


def extracted(
    bench: Bench, known: Sequence[PyTorchClassifier], seed: int, copies: int, noise: float, inference: Options
) -> dict[str, Verifier]:
    """Return the verifiers of the comparison by name, with their fingerprints.

    :param known: Models that choose queries for AKH with negatives.
    """
    data, victim = bench.data, bench.victim
    x, y = harder(data.x_test, data.y_test, copies, noise, seed)
    common: dict[str, Any] = {"seed": seed, "batch_size": 512}
    found: dict[str, Verifier] = {
        "AKH": AKHVerifier(victim, fill="none", **common),
        "AKH-20": AKHVerifier(victim, fill="none", nb_probes=20, **common),
        "AKH-ref": AKHVerifier(victim, fill="none", **common),
        "SAC": SACVerifier(victim, **common),
        "SAC-m": SACVerifier(victim, samples="cutmix", metric_names=("SAC",), **common),
        "FBI-ranks": FBIVerifier(victim, nb_probes=100, **common),
        "FBI-labels": FBIVerifier(victim, nb_probes=100, symbols="labels", **common),
    }
    for name, verifier in found.items():
        more = {"negatives": known} if name == "AKH-ref" else {}
        verifier.extract(x, y, **more)
    if not inference["nb_test"]:
        return found
    judge = DatasetInferenceVerifier(victim, **inference, **common)
    judge.extract(data.x_train, data.y_train, data.x_test, data.y_test)
    return {**found, "DI": judge}


def scores_of(verifiers: Mapping[str, Verifier], model: PyTorchClassifier) -> Scores:
    """Return all scores of one model, with queries and seconds of Dataset Inference."""
    scores: Scores = {}
    for name, verifier in verifiers.items():
        started = time.perf_counter()
        found = verifier.score(model)
        if name == "DI":
            scores |= {**found, "DI seconds": time.perf_counter() - started}
        elif name == "SAC":
            scores |= found
        elif name == "AKH-ref":
            scores |= {"AKH-ref": found["AKH"], "AKH-soft": found["AKH-soft"]}
        else:
            scores[name] = next(iter(found.values()))
    return scores


def models(bench: Bench, apart: Bench, nb_apart: int) -> Iterator[tuple[str, int, Callable[[], PyTorchClassifier]]]:
    """Yield group, number and maker of every model that is scored."""
    for suspect in bench.suspects():
        yield (suspect.label, suspect.seed, suspect.make)
    for index in range(nb_apart):
        yield "Other data", index, apart._reference(index)


def table(
    scores: Mapping[str, Sequence[Scores]], negatives: str, groups: Sequence[str], metrics: Sequence[str], known: int
) -> str:
    """Return one Markdown table: rows metrics, columns groups, each AUC / TPR at 5 % FPR against the negatives.

    Both are means over fingerprints, whose scores are not compared with each other. Models that have chosen the
    queries of a metric are no witnesses for it.
    """
    lines = ["| metric | " + " | ".join(groups) + " |", "|" + "---|" * (len(groups) + 1)]
    for metric in metrics:
        direction: Any = "distance" if metric in LOWER else "similarity"
        first = known if negatives == "Reference" and metric in ("AKH-ref", "AKH-soft") else 0
        witnesses = [row for row in scores[negatives] if row["number"] >= first]
        cells = []
        for group in groups:
            found = []
            for extraction in sorted({row["extraction"] for row in witnesses}):
                sides = [
                    [row[metric] for row in rows if row["extraction"] == extraction]
                    for rows in (scores[group], witnesses)
                ]
                found.append((roc_auc(*sides, direction), tpr_at_fpr(*sides, direction)))
            cells.append(" / ".join(f"{mean:.2f}" for mean in np.mean(found, axis=0)) if found else "-")
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train or load, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every attack")
    parser.add_argument("--references", type=int, default=20)
    parser.add_argument("--known", type=int, default=10, help="references that choose queries for AKH with negatives")
    parser.add_argument("--negatives", type=int, default=20)
    parser.add_argument("--other-data", type=int, default=20, help="models of the images held apart")
    parser.add_argument("--attacks", nargs="*", help="rows of the preset to run; default all")
    parser.add_argument("--extractions", type=int, default=1, help="seeds of the fingerprints")
    parser.add_argument("--copies", type=int, default=0, help="noisy copies of the test images")
    parser.add_argument("--noise", type=float, default=0.3, help="their standard deviation")
    parser.add_argument("--train", type=int, help="train victim and attacks on so few images, without shifts")
    parser.add_argument("--iterations", type=int, help="training steps of every model; default the preset's")
    parser.add_argument("--di-noise", type=float, default=1.0, help="factor of Dataset Inference's noise")
    parser.add_argument("--di-fit", type=int, default=200, help="images of each side that train Dataset Inference")
    parser.add_argument(
        "--di-test", type=int, default=50, help="images of each side that it asks about; 0: leave it out"
    )
    arguments = parser.parse_args()
    inference = {"noise": arguments.di_noise, "nb_fit": arguments.di_fit, "nb_test": arguments.di_test}
    torch.set_num_threads(1)
    preset = replace(load_preset(arguments.preset), nb_references=arguments.references)
    changed = {
        **({"max_shift": 0} if arguments.train else {}),
        **({"max_iter": arguments.iterations} if arguments.iterations else {}),
    }
    recipes = {name: replace(getattr(preset, name), **changed) for name in ("victim_recipe", "negative_recipe")}
    preset = replace(preset, **recipes)
    bench = Bench(preset, arguments.folder, arguments.seeds, arguments.attacks, device_type="cpu", verbose=False)
    apart = Bench(preset, arguments.folder / "apart", 1, [], device_type="cpu", verbose=False)
    if arguments.train:
        bench.data = small(bench.data, arguments.train)
    apart.data = replace(bench.data, x_train=bench.data.x_apart, y_train=bench.data.y_apart)
    bench.victim = bench._victim()
    references = [bench._reference(index)() for index in range(arguments.references)]
    scores: dict[str, list[Scores]] = {}
    wanted = [m for m in models(bench, apart, arguments.other_data) if m[0] != "Negative"]
    wanted += [("Negative", index, bench._negative(index)) for index in range(arguments.negatives)]
    ready = [(group, number, make()) for group, number, make in wanted]
    ready += [(f"{group}, permuted", n, permuted(m)) for group, n, m in ready if "RemovalNet" in group]
    for extraction in range(arguments.extractions):
        seed = derive_seed(extraction, "query")
        verifiers = extracted(bench, references[: arguments.known], seed, arguments.copies, arguments.noise, inference)
        for name, verifier in verifiers.items():
            print(name, {k: v for k, v in verifier.fingerprint.facts.items() if k.startswith("nb_")}, flush=True)
        for group, number, model in ready:
            row = scores_of(verifiers, model)
            row["accuracy"] = accuracy(model, bench.data.x_test, bench.data.y_test)
            scores.setdefault(group, []).append({**row, "number": number, "extraction": extraction})
        (arguments.folder / "scores.json").write_text(json.dumps(scores))
    metrics = [name for name in scores["Victim"][0] if name[:2] in ("AK", "SA", "FB", "DI") and "seconds" not in name]
    derived = [name for name in scores if name not in ("Victim", "Reference", "Negative", "Other data")]
    for independent in ("Negative", "Reference", "Other data"):
        if scores.get(independent):
            print(f"\n{independent}:\n\n{table(scores, independent, derived, metrics, arguments.known)}")
    print("\n| group | models | " + " | ".join(metrics) + " | accuracy |")
    print("|" + "---|" * (len(metrics) + 3))
    for group, rows in scores.items():
        cells = [f"{np.mean([row[name] for row in rows]):.3g}" for name in (*metrics, "accuracy")]
        print(f"| {group} | {len(rows)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
