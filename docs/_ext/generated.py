"""Tables of the docs that are made from the classes and from the command line's parser.

Pages hold them between `<!-- begin NAME -->` and `<!-- end NAME -->`, so that they can be read without a build.
`python docs/_ext/generated.py` writes them anew; tests/docs/test_generated.py says when that is due.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from art.estimators.classification import PyTorchClassifier

from art_fingerprint import attacks, cli, verifiers
from art_fingerprint.attacks.stealing import StealingAttack
from art_fingerprint.zoo.architectures import SmallCNN
from art_fingerprint.zoo.loading import classifier_of

DOCS = Path(__file__).parents[1]
NB_IMAGES = 1000
NO_BREAK = "\N{NO-BREAK SPACE}"

# What no class knows of itself: source, and how far the published method is there.
VERIFIERS: dict[str, tuple[str, str]] = {
    "AKHVerifier": ("Godinot et al., AAAI 2025", "complete"),
    "CommitteeVerifier": ("Fisher, Cauchy, Holm on p-values; ours", "complete"),
    "DatasetInferenceVerifier": ("Maini et al., ICLR 2021", "complete; for victims that have memorised their data"),
    "DeepJudgeVerifier": ("Chen et al., S&P 2022", "complete"),
    "FBIVerifier": ("Maho et al., TIFS 2023", "without the search among many known models"),
    "IPGuardVerifier": ("Cao et al., AsiaCCS 2021", "complete"),
    "ModelDiffVerifier": ("Li et al., ISSTA 2021", "complete"),
    "RobustnessVerifier": ("RemovalNet, section 5.1", "complete; thresholds ours"),
    "SACVerifier": ("Guan et al., NeurIPS 2022", "complete; SAC-w by models of your own"),
    "WeightAlignmentVerifier": ("ours; matching after Git Re-Basin, ICLR 2023", "complete"),
    "ZestVerifier": ("Jia et al., ICLR 2022", "complete"),
}
SOK = "toolbox of Lukas et al., S&P 2022"
ATTACKS: dict[str, tuple[str, str]] = {
    "AdversarialFineTuningAttack": ("fine-tuning on adversarial examples, too", SOK),
    "CompositeAttack": ("attacks in a row", "ours"),
    "DistillationAttack": ("a copy trained while late features stay close to the victim's", "RemovalNet, Table I"),
    "FeaturePermutationAttack": ("channels reordered, and rescaled if asked to; every answer stays", f"{SOK}; ours"),
    "FinePruningAttack": ("least active channels silenced, then fine-tuning", "Liu et al., RAID 2018"),
    "FineTuningAttack": ("the last share of the parameters is trained, FT(p)", "RemovalNet, Table I"),
    "KnockoffNetsAttack": ("a network learns the victim's answers", "Orekondy et al., CVPR 2019"),
    "LabelSmoothingAttack": ("fine-tuning on softened answers", SOK),
    "LayerFineTuningAttack": ("FTLL, FTAL, RTLL, RTAL", "DeepJudge"),
    "LogitDistillationAttack": ("a network learns the victim's softened answers", "Hinton et al., 2015"),
    "RegularizationAttack": ("strong weight decay, then fine-tuning", SOK),
    "RemovalNetAttack": ("features and boundary moved away from the victim's, bilevel", "Yao et al., TDSC 2023"),
    "RetrainingAttack": ("a network trained on the victim's labels or answers", SOK),
    "WeightNoiseAttack": ("Gaussian noise on the weights, then fine-tuning if asked to", "ours"),
    "WeightPruningAttack": ("the smallest share of the weights zeroed, then fine-tuning, WP(p)", "RemovalNet, Table I"),
    "WeightQuantizationAttack": ("few values left for each tensor, then fine-tuning", SOK),
    "WeightShiftingAttack": ("filters moved off their mean, then fine-tuning", SOK),
}
BASES = {"Verifier", "RemovalAttack"}
IMAGES = {"any": "any", "held-out": "labelled, not trained on", "training": "of the training set, and unseen ones"}
ROWS = {  # labels in the paper's tables
    "FineTuningAttack": "FT(p)",
    "WeightPruningAttack": "WP(p)",
    "DistillationAttack": "Distill",
    "RemovalNetAttack": "RemovalNet",
}


def victim() -> PyTorchClassifier:
    """Return the network that costs are counted on: that of the digits preset."""
    return classifier_of(SmallCNN(), (1, 8, 8))


def concrete(package: Any, ending: str) -> dict[str, Any]:
    """Return the exported classes of a kind by name, without their base."""
    return {n: getattr(package, n) for n in package.__all__ if n.endswith(ending) and n not in BASES}


def rounded(number: float | None) -> str:
    """Return a number with two significant digits, or a dash."""
    if number is None:
        return "-"
    digits = 0 if number < 1 else max(0, int(math.log10(number)) - 1)
    return f"{round(number / 10**digits) * 10**digits:,}"


def verifier_rows() -> list[list[str]]:
    """Return what each verifier needs, from the classes, at default parameters."""
    rows = [["verifier", "metrics", "access to the victim", "access to the suspect", "images", "references"]]
    for name, kind in concrete(verifiers, "Verifier").items():
        if kind is verifiers.CommitteeVerifier:
            rows.append([code(name), *["those of its members"] * 4, "yes"])
            continue
        access: dict[str, list[str]] = {}
        for metric in kind.metrics:
            access.setdefault(metric.access, []).append(metric.name)
        needs = "; ".join(f"{what}: {', '.join(names)}" if len(access) > 1 else what for what, names in access.items())
        metrics = ", ".join(f"{m.name}{NO_BREAK}{'↑' if m.direction == 'similarity' else '↓'}" for m in kind.metrics)
        data = IMAGES[kind.extraction_data]
        rows.append([code(name), metrics, kind.source_access, needs, data, "no" if decides_alone(kind) else "yes"])
    return rows


def verifier_costs() -> list[list[str]]:
    """Return what each verifier costs, where it comes from and how far it goes."""
    rows = [["verifier", "queries", "passes", "source", "status"]]
    for name, kind in concrete(verifiers, "Verifier").items():
        costs = ["-", "-"]
        if kind is not verifiers.CommitteeVerifier:
            verifier = kind(victim())
            costs = [rounded(verifier.expected_queries()), rounded(verifier.expected_extraction_passes(NB_IMAGES))]
        rows.append([code(name), *costs, *VERIFIERS[name]])
    return rows


def decides_alone(kind: Any) -> bool:
    """Tell whether a verifier gives a verdict without reference models. Tested on real verdicts."""
    return kind is verifiers.WeightAlignmentVerifier


def short_verifiers() -> list[list[str]]:
    """Return what the README says of each verifier."""
    needs = columns(verifier_rows(), "verifier", "metrics", "access to the suspect")
    costs = columns(verifier_costs(), "source", "status")
    return [[*need, *cost] for need, cost in zip(needs, costs, strict=True)]


def attack_rows() -> list[list[str]]:
    """Return what each attack does, and where it comes from."""
    rows = [["attack", "what it does", "in Table I", "source"]]
    for name in concrete(attacks, "Attack"):
        rows.append([code(name), ATTACKS[name][0], ROWS.get(name, ""), ATTACKS[name][1]])
    return rows


def attack_needs() -> list[list[str]]:
    """Return what each attack needs and costs, from the classes, at default parameters."""
    rows = [["attack", "starts from", "network", "labels", "queries", "passes", "streams"]]
    for name, kind in concrete(attacks, "Attack").items():
        attack = kind(victim())
        bare, labelled = (attack.expected_passes(NB_IMAGES, labelled=known) for known in (False, True))
        queries = attack._expected_queries(NB_IMAGES, False) / NB_IMAGES
        start = "fresh weights" if issubclass(kind, StealingAttack) else "the victim"
        network = "any" if "surrogate_factory" in kind.attack_params else "the victim's"
        labels = "y, if given" if labelled < bare else "the victim's" if queries else "none"
        streams = "yes" if kind.reads_streams else "no"
        rows.append([code(name), start, network, labels, f"{queries:g}", rounded(bare), streams])
    return rows


def command_line() -> str:
    """Return the verbs and their options, from the parser."""
    parser = cli._parser()
    verbs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = {action.dest: action.help for action in verbs._choices_actions}
    parts = []
    for name, verb in verbs.choices.items():
        rows = [["argument", "what it is"]]
        for action in verb._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            shown = action.option_strings[-1] if action.option_strings else ""
            if action.nargs != 0:
                value = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
                shown = f"{shown} {' '.join(value) if isinstance(value, tuple) else value}".strip()
            needed = "needed" if action.required and action.option_strings else ""
            text = ", ".join(filter(None, [action.help, needed]))
            rows.append([f"`{shown}`".replace("|", "\\|"), text.replace("|", "\\|")])
        parts.append(f"### {name}\n\n{about[name].capitalize()}.\n\n{table(rows) if rows[1:] else ''}".strip())
    return "\n\n".join(parts)


def columns(rows: Sequence[Sequence[str]], *names: str) -> list[list[str]]:
    """Return some columns of rows, by the names in the first."""
    places = [rows[0].index(name) for name in names]
    return [[row[place] for place in places] for row in rows]


def code(name: str) -> str:
    """Return a class name in code type."""
    return f"`{name}`"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table, the first as its head."""
    lines = ["| " + " | ".join(cell for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "verifiers": ("matrix.md", lambda: table(verifier_rows())),
    "verifiers' costs": ("matrix.md", lambda: table(verifier_costs())),
    "attacks": ("matrix.md", lambda: table(attack_rows())),
    "attacks' needs": ("matrix.md", lambda: table(attack_needs())),
    "verbs": ("command-line.md", command_line),
    "readme's verifiers": ("../README.md", lambda: table(short_verifiers())),
    "readme's attacks": ("../README.md", lambda: table(columns(attack_rows(), "attack", "what it does", "source"))),
}


def updated(page: str, name: str, text: str) -> str:
    """Return a page with one part put in anew."""
    start, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if page.count(start) != 1 or page.count(end) != 1:
        raise ValueError(f"The page has no place for {name!r}.")
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n\n{end}", page, flags=re.DOTALL)


def main() -> None:
    """Write all parts."""
    for name, (page, make) in PARTS.items():
        path = DOCS / page
        path.write_text(updated(path.read_text(encoding="utf-8"), name, make()), encoding="utf-8")


if __name__ == "__main__":
    main()
