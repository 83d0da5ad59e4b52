"""A grid of attacks, verifiers and seeds on Ray: on this machine, or on the cluster whose address you give.

Run:  python examples/06_grid_on_ray.py [--quick] [--out DIR] [--address auto]     (five minutes on two CPU cores)

Needs `pip install "art-fingerprint[ray]"`. Every host of a cluster needs this package and DIR under the same path.
Stop it and run it again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.runner import Bench
from art_fingerprint.benchmark.store import read_rows
from art_fingerprint.exceptions import MissingDependencyError
from art_fingerprint.reporting.layout import render
from art_fingerprint.reporting.verdict_tables import verdict_sheet, verifier_sheet
from art_fingerprint.zoo.presets import AttackSetting, load_preset


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two verifiers, short training, one seed")
    parser.add_argument("--out", help="folder (default: a temporary one)")
    parser.add_argument("--address", help="a Ray cluster, e.g. auto (default: Ray on this machine)")
    options = parser.parse_args()

    preset = load_preset("digits")
    extra = AttackSetting("KnockoffNetsAttack", {"max_iter": 300, "hflip": False}, "apart", False)
    preset = replace(preset, attacks={**preset.attacks, "KnockoffNets": extra})
    if options.quick:
        attacks = {
            label: replace(setting, params={**setting.params, "max_iter": 10})
            for label, setting in preset.attacks.items()
        }
        names = ("ModelDiffVerifier", "IPGuardVerifier")
        preset = replace(
            preset,
            victim_recipe=replace(preset.victim_recipe, max_iter=60),
            negative_recipe=replace(preset.negative_recipe, max_iter=60),
            attacks=attacks,
            verifiers={name: preset.verifiers[name] for name in names},
            nb_references=5,
        )
    folder = options.out or tempfile.mkdtemp()
    plan = Plan.from_preset(preset, seeds=1 if options.quick else 3)
    try:
        Bench(plan, folder, executor="ray", workers=None if options.address else 2, ray_address=options.address).run()
    except MissingDependencyError as error:
        raise SystemExit(str(error)) from None
    rows = read_rows(folder)
    print(render({"who is recognised": verdict_sheet(rows), "each metric": verifier_sheet(rows)}, "txt", named=True))
    print(f"{len(rows)} rows in {folder}; tables and report.html: art-fingerprint report {folder}")


if __name__ == "__main__":
    main()
