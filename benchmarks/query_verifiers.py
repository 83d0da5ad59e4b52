"""What the query-only verifiers see of copies, of RemovalNet's surrogates and of independent models, on one preset.

Trains the preset's models in a folder (or reads them there), with 20 references and 20 negatives unless told otherwise,
scores all of them with AKH, SAC and FBI, and prints Markdown tables: AUC and TPR at 5 % FPR by `evaluation.roc`. Every
score goes to ``scores.json`` in the folder. Run as ``python benchmarks/query_verifiers.py digits runs/query-digits
--copies 5 --noise 0.2 --extractions 5``; results stand in docs/query-verifiers.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.benchmark.materials import noisy
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.core.copies import clone_classifier
from art_fingerprint.core.seeding import derive_seed
from art_fingerprint.evaluation.fidelity import accuracy
from art_fingerprint.evaluation.roc import roc_auc, tpr_at_fpr
from art_fingerprint.verifiers import AKHVerifier, FBIVerifier, SACVerifier, Verifier
from art_fingerprint.zoo.presets import load_preset

Scores = dict[str, float]
LOWER = ("SAC", "SAC-labels", "SAC-m", "FBI-ranks", "FBI-labels")


def permuted(model: PyTorchClassifier) -> PyTorchClassifier:
    """Return a copy whose classes have other numbers, each the next one's."""
    twin = clone_classifier(model)
    last = [module for module in twin.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, 0))
        last.bias.copy_(last.bias.roll(1, 0))
    return twin


def extracted(
    bench: Workbench, known: Sequence[PyTorchClassifier], seed: int, copies: int, noise: float
) -> dict[str, Verifier]:
    """Return the verifiers of the comparison by name, with their fingerprints.

    :param known: Models that choose queries for AKH with negatives.
    :param copies: Noisy copies of each test image, so that a good victim errs on enough of them.
    """
    data, victim = bench.data, bench.victim
    x, y = noisy(data.x_test, data.y_test, copies, noise, seed)
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
        verifier.extract(x, y, **({"negatives": known} if name == "AKH-ref" else {}))
    return found


def scores_of(verifiers: Mapping[str, Verifier], model: PyTorchClassifier) -> Scores:
    """Return all scores of one model."""
    scores: Scores = {}
    for name, verifier in verifiers.items():
        found = verifier.score(model)
        if name == "SAC":
            scores |= found
        elif name == "AKH-ref":
            scores |= {"AKH-ref": found["AKH"], "AKH-soft": found["AKH-soft"]}
        else:
            scores[name] = next(iter(found.values()))
    return scores


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
                derived, others = (
                    [row[metric] for row in rows if row["extraction"] == extraction]
                    for rows in (scores[group], witnesses)
                )
                found.append((roc_auc(derived, others, direction), tpr_at_fpr(derived, others, direction)))
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
    parser.add_argument("--attacks", nargs="*", help="rows of the preset to run; default all")
    parser.add_argument("--extractions", type=int, default=1, help="seeds of the fingerprints")
    parser.add_argument("--copies", type=int, default=0, help="noisy copies of the test images")
    parser.add_argument("--noise", type=float, default=0.3, help="their standard deviation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    preset = load_preset(arguments.preset)
    wanted = preset.attacks if arguments.attacks is None else arguments.attacks
    preset = replace(
        preset,
        nb_references=arguments.references,
        nb_negatives=arguments.negatives,
        attacks={label: preset.attacks[label] for label in wanted},
    )
    bench = Workbench(preset, arguments.folder, range(arguments.seeds), device_type="cpu")
    ready = [(suspect.label, suspect.seed, bench.model(suspect)) for suspect in bench.suspects]
    ready += [(f"{group}, permuted", n, permuted(m)) for group, n, m in ready if "RemovalNet" in group]
    known = [model for group, _, model in ready if group == "Reference"][: arguments.known]
    scores: dict[str, list[Scores]] = {}
    for extraction in range(arguments.extractions):
        seed = derive_seed(extraction, "query")
        verifiers = extracted(bench, known, seed, arguments.copies, arguments.noise)
        for name, verifier in verifiers.items():
            print(name, {k: v for k, v in verifier.fingerprint.facts.items() if k.startswith("nb_")}, flush=True)
        for group, number, model in ready:
            row = scores_of(verifiers, model)
            row["accuracy"] = accuracy(model, bench.data.x_test, bench.data.y_test)
            scores.setdefault(group, []).append({**row, "number": number, "extraction": extraction})
        (arguments.folder / "scores.json").write_text(json.dumps(scores))
    metrics = [name for name in scores["Victim"][0] if name[:2] in ("AK", "SA", "FB")]
    derived = [name for name in scores if name not in ("Victim", "Reference", "Negative")]
    for independent in ("Negative", "Reference"):
        if scores.get(independent):
            print(f"\n{independent}:\n\n{table(scores, independent, derived, metrics, arguments.known)}")
    print("\n| group | models | " + " | ".join(metrics) + " | accuracy |")
    print("|" + "---|" * (len(metrics) + 3))
    for group, rows in scores.items():
        cells = [f"{np.mean([row[name] for row in rows]):.3g}" for name in (*metrics, "accuracy")]
        print(f"| {group} | {len(rows)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
