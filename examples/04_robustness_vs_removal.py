"""Every attack of the package on one victim: what it gains against each verifier, and what robustness it loses.

Run:  python examples/04_robustness_vs_removal.py [--quick] [--out DIR]     (under three minutes on two CPU cores)

Writes the rows of the run, tradeoff.md and, with matplotlib, tradeoff.png. A second run in that folder repeats nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.exceptions import MissingDependencyError
from art_fingerprint.reporting import layout
from art_fingerprint.reporting.robustness import table_four, tradeoff, tradeoff_cells
from art_fingerprint.reporting.tradeoff_plot import plot_tradeoff
from art_fingerprint.zoo.presets import AttackSetting, load_preset

TRAINED = {
    "FT(0.5)": ("FineTuningAttack", {"ratio": 0.5}),
    **{name: ("LayerFineTuningAttack", {"variant": name}) for name in ("FTLL", "FTAL", "RTLL", "RTAL")},
    "Label smoothing": ("LabelSmoothingAttack", {}),
    "Regularization": ("RegularizationAttack", {}),
    "Adversarial FT": ("AdversarialFineTuningAttack", {"eps": 0.05, "eps_step": 0.02, "max_iter_attack": 5}),
    "WP(0.5)": ("WeightPruningAttack", {"ratio": 0.5}),
    "Fine-pruning": ("FinePruningAttack", {"ratio": 0.3}),
    "Weight shifting": ("WeightShiftingAttack", {}),
    "Quantization": ("WeightQuantizationAttack", {}),
    "Distill": ("DistillationAttack", {}),
    "Logit distillation": ("LogitDistillationAttack", {}),
    "KnockoffNets": ("KnockoffNetsAttack", {}),
    "Retraining": ("RetrainingAttack", {}),
}


def attacks(max_iter: int) -> dict[str, AttackSetting]:
    """All attacks with the victim's training images and the same number of steps."""
    steps = {"max_iter": max_iter, "hflip": False}
    found = {
        label: AttackSetting(name, {**params, **steps}, "train", True) for label, (name, params) in TRAINED.items()
    }
    found["Feature permutation"] = AttackSetting("FeaturePermutationAttack", {}, "train", True)
    found["Noise"] = AttackSetting("WeightNoiseAttack", {}, "train", True)
    row = [("WeightPruningAttack", {"ratio": 0.5, **steps}), ("FineTuningAttack", {"ratio": 1.0, **steps})]
    found["Prune, then tune"] = AttackSetting("CompositeAttack", {"attacks": row}, "train", True)
    removal = load_preset("digits").attacks["RemovalNet(train)"]
    return {**found, "RemovalNet": replace(removal, params={**removal.params, "max_iter": max_iter}, source="train")}


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, fewer verifiers")
    parser.add_argument("--out", help="folder (default: a temporary one)")
    options = parser.parse_args()
    folder, preset = Path(options.out or tempfile.mkdtemp()), load_preset("digits")
    chosen = {name: preset.verifiers[name] for name in list(preset.verifiers)[-2 if options.quick else 0 :]}
    recipe = replace(preset.victim_recipe, max_iter=80 if options.quick else 400)
    negative = replace(preset.negative_recipe, max_iter=recipe.max_iter)
    preset = replace(preset, name="digits-all-attacks", victim_recipe=recipe, negative_recipe=negative, nb_references=5)
    preset = replace(preset, attacks=attacks(20 if options.quick else 150), verifiers=chosen)
    Bench(Plan.from_preset(preset, seeds=1), folder).run()
    points = tradeoff(rows := read_rows(folder), "PGD")
    print(layout.text(tradeoff_cells(points)), layout.text(table_four(rows)), sep="\n\n")
    (folder / "tradeoff.md").write_text(layout.markdown(tradeoff_cells(points)), encoding="utf-8")
    try:
        plot_tradeoff(points, folder / "tradeoff.png")
    except MissingDependencyError as error:
        print(error)
    print(f"\nWritten to {folder}")


if __name__ == "__main__":
    main()
