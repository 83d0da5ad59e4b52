"""What a plan will cost, before it runs: for `--dry-run`, and for the time that a progress bar says is left."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from art_fingerprint.benchmark.materials import nb_owners_images, share_of_source
from art_fingerprint.benchmark.suspects import Suspect
from art_fingerprint.benchmark.tasks import Task
from art_fingerprint.benchmark.workbench import Workbench
from art_fingerprint.core.adversarial import DEFAULTS
from art_fingerprint.exceptions import InvalidInputError
from art_fingerprint.zoo.recipes import Recipe
from art_fingerprint.zoo.substitutes import nb_selected

# Forward-equivalents of a sample that is trained on: one pass forward, one backward that counts twice.
_TRAINED = 3
# Of an evasion attack on one sample, where it does not say its steps.
_EVASION_STEPS = 50


@dataclass(frozen=True)
class Line:
    """One line of a plan's outline.

    :ivar preset: The victim's name.
    :ivar what: A verifier's fingerprint, or a suspect's label.
    :ivar seeds: Number of models.
    :ivar cells: Number of rows.
    :ivar done: How many of them are there already.
    :ivar passes: Expected forward-equivalents of what is left, in samples; ``None`` where it is not known.
    :ivar problem: Why its rows will fail, as far as that can be said beforehand; empty: no reason is known.
    """

    preset: str
    what: str
    seeds: int
    cells: int
    done: int
    passes: float | None
    problem: str = ""


def lines(bench: Workbench, done: Collection[str], kept: Collection[str]) -> list[Line]:
    """Return the outline of one victim: its fingerprints, then its suspects by label.

    :param done: Keys of the cells that are done.
    :param kept: What a folder keeps, see :func:`.kept`: it costs nothing any more.
    """
    preset = bench.preset
    left = {
        suspect: [name for name in preset.verifiers if bench.cell(suspect, name) not in done]
        for suspect in bench.suspects
    }
    any_left = {name for names in left.values() for name in names}
    found = []
    for name in preset.verifiers:
        passes = _fingerprint_passes(bench, name, kept) if name in any_left else 0.0
        found.append(Line(preset.name, f"fingerprint {name}", 1, 0, 0, passes))
    for label in dict.fromkeys(suspect.label for suspect in bench.suspects):
        mine = [suspect for suspect in bench.suspects if suspect.label == label]
        cells = len(mine) * len(preset.verifiers)
        todo = sum(len(left[suspect]) for suspect in mine)
        try:
            parts = [_suspect_passes(bench, suspect, left[suspect], kept) for suspect in mine if left[suspect]]
            passes, problem = (_sum(parts) if todo else 0.0), ""
        except InvalidInputError as error:
            passes, problem = 0.0, str(error)
        found.append(Line(preset.name, label, len(mine), cells, cells - todo, passes, problem))
    return found


def task_passes(bench: Workbench, task: Task, kept: Collection[str]) -> float:
    """Return the expected forward-equivalents of one task, in samples; at least one.

    :param kept: As in :func:`lines`.
    """
    if task.kind == "model":
        found: float | None = _made(bench, task.suspect, kept)
    elif task.kind == "fingerprint":
        found = _fingerprint_passes(bench, task.verifiers[0], kept)
    elif task.suspect.role in ("victim", "reference"):  # made by a task of their own
        found = _scored(bench, task.suspect, task.verifiers, kept)
    else:
        try:
            found = _suspect_passes(bench, task.suspect, task.verifiers, kept)
        except InvalidInputError:  # too little data, say: the task itself fails, and its rows say why
            found = None
    return max(1.0, found or 0.0)


def _suspect_passes(bench: Workbench, suspect: Suspect, names: Collection[str], kept: Collection[str]) -> float | None:
    return _sum([_made(bench, suspect, kept), _scored(bench, suspect, names, kept)])


def _made(bench: Workbench, suspect: Suspect, kept: Collection[str]) -> float:
    preset = bench.preset
    if suspect.key in kept:
        return 0.0
    if suspect.role == "negative":
        return _trained(preset.negative_recipe)
    if suspect.role != "surrogate":
        return _trained(preset.victim_recipe)
    if suspect.label not in bench.attack_passes:
        bench.attack_passes[suspect.label] = _attacked(bench, suspect)
    return bench.attack_passes[suspect.label]


def _attacked(bench: Workbench, suspect: Suspect) -> float:
    preset, data = bench.preset, bench.data
    setting = preset.attacks[suspect.label]
    size = len(data.x_apart if setting.source == "apart" else data.x_train)
    share = share_of_source(setting.source, preset.subset_ratio, setting.ratio)
    attack = bench.attack(setting, bench.untrained, suspect.seed)
    passes = attack.expected_passes(size if share is None else nb_selected(size, share), setting.true_labels)
    return passes / max(len(bench.checkpoints(setting, suspect.seed)), 1)  # one run makes them all


def _scored(bench: Workbench, suspect: Suspect, names: Iterable[str], kept: Collection[str]) -> float | None:
    queries = [_queries(bench, name) for name in names]
    return _sum([0.0 if bench.facts_key(suspect) in kept else _tested(bench), *queries])


def _queries(bench: Workbench, name: str) -> float | None:
    if name not in bench.queries:
        bench.queries[name] = bench.judge(name).expected_queries()
    return bench.queries[name]


def _tested(bench: Workbench) -> float:
    preset = bench.preset
    tests = float(len(bench.data.x_test))
    attacked = min(len(bench.data.x_test), preset.nb_robustness)
    for name, params in preset.robustness.items():
        known = {"steps": 1 if name == "FGSM" else _EVASION_STEPS, **DEFAULTS.get(name, {}), **params}["steps"]
        steps = known if isinstance(known, int) else _EVASION_STEPS
        tests += attacked * (2.0 * steps + 1)  # a step is one pass forward and one to the input; then the answer
    return tests


def _fingerprint_passes(bench: Workbench, name: str, kept: Collection[str]) -> float | None:
    if bench.fingerprint_file(name) in kept:
        return 0.0
    judge, queries = bench.judge(name), _queries(bench, name)
    kind, independents = type(judge), bench.independents
    references = independents.count(independents.references_of(kind))
    images, choosers = nb_owners_images(bench.data, kind, bench.preset), independents.known_of(kind)
    return _sum(
        [
            judge.expected_extraction_passes(images),
            None if choosers is None else float(images * independents.count(choosers)),
            None if queries is None else references * queries,
        ]
    )


def _trained(recipe: Recipe) -> float:
    return float(_TRAINED * recipe.max_iter * recipe.batch_size)


def _sum(parts: Iterable[float | None]) -> float | None:
    """Return the sum of what is known, or ``None`` where nothing is."""
    known = [part for part in parts if part is not None]
    return sum(known) if known else None
