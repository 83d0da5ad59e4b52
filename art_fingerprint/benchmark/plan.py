"""What a bench runs, as data: victims, attacks, verifiers and seeds, from a preset's name, a file, or Python."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn, get_args

from torch import nn

from art_fingerprint.core.checks import check_number, check_seed, check_sequence, shown
from art_fingerprint.core.parameters import as_json
from art_fingerprint.core.taps import near_names
from art_fingerprint.exceptions import FingerprintError, InvalidInputError
from art_fingerprint.zoo.loading import load_network, verifier_class
from art_fingerprint.zoo.presets import PRESETS, AttackSetting, Preset, Source, load_preset
from art_fingerprint.zoo.recipes import Recipe
from art_fingerprint.zoo.scale import at_scale

_MOST_SEEDS = 100_000
_PLAN_KEYS = ("seeds", "victims", "attacks", "verifiers")
_VICTIM_KEYS = ("preset", *(f.name for f in fields(Preset) if f.name != "name"))


@dataclass(frozen=True)
class Factory:
    """A network by its name, ``package.module:function`` or ``timm:NAME``: data that can go to another process.

    :ivar name: The name.
    :ivar nb_classes: For timm: number of classes.
    :ivar channels: For timm: channels of the images.
    """

    name: str
    nb_classes: int | None = None
    channels: int | None = None

    def __call__(self) -> nn.Module:
        """Return the network."""
        return load_network(self.name, self.nb_classes, self.channels)


@dataclass(frozen=True, eq=False)
class Plan:
    """A grid of victims x attacks x verifiers x seeds.

    :ivar presets: One for each victim, with its data, attacks and verifiers. Names differ: rows tell victims apart by
        them.
    :ivar seeds: Seeds of the attacks, and of negatives where a preset does not count them.
    :raises InvalidInputError: no victim, two of one name, or bad seeds.
    """

    presets: tuple[Preset, ...]
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        presets = check_sequence("presets", self.presets)
        for preset in presets:
            if not isinstance(preset, Preset):
                raise InvalidInputError(f"`presets` must hold presets, got {shown(preset)}.")
            _text("a preset's name", preset.name)
        object.__setattr__(self, "presets", presets)
        names = [preset.name for preset in presets]
        if not names or len(set(names)) < len(names):
            raise InvalidInputError(f"A plan needs one or more victims of different names, got {names}.")
        object.__setattr__(self, "seeds", _seeds(self.seeds))

    @classmethod
    def from_preset(
        cls,
        preset: str | Preset,
        seeds: int | Iterable[int] = 3,
        attacks: Iterable[str] | None = None,
        verifiers: Iterable[str] | None = None,
    ) -> Plan:
        """Return the plan of one preset.

        :param preset: A preset or its name.
        :param seeds: Seeds, or how many: 3 means 0, 1, 2.
        :param attacks: Row labels to run; default all.
        :param verifiers: Verifiers to run; default all. See :meth:`restricted`.
        :raises InvalidInputError: unknown names or bad seeds.
        """
        chosen = load_preset(preset) if isinstance(preset, str) else preset
        return cls((chosen,), _seeds(seeds)).restricted(attacks, verifiers)

    def restricted(self, attacks: Iterable[str] | None = None, verifiers: Iterable[str] | None = None) -> Plan:
        """Return the plan with some of its attacks, and with these verifiers.

        :param attacks: Row labels that every victim has; default all.
        :param verifiers: Names of verifiers, short or whole; one that a victim does not have gets its own defaults.
        :raises InvalidInputError: an unknown name.
        """
        presets = self.presets
        if attacks is not None:
            labels = check_sequence("attacks", attacks)
            presets = tuple(replace(p, attacks=_attacks(p.name, labels, p.attacks)) for p in presets)
        if verifiers is not None:
            names = check_sequence("verifiers", verifiers)
            presets = tuple(replace(p, verifiers=_verifiers(p.name, names, p.verifiers)) for p in presets)
        return Plan(presets, self.seeds)

    def with_seeds(self, seeds: int | Iterable[int]) -> Plan:
        """Return the plan with other seeds, or how many."""
        return Plan(self.presets, _seeds(seeds))

    def at_scale(self, scale: str) -> Plan:
        """Return the plan with every victim ``"full"`` (as it is) or ``"smoke"`` (in miniature): :func:`.at_scale`."""
        return Plan(tuple(at_scale(preset, scale) for preset in self.presets), self.seeds)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, in the form that :func:`plan_from` reads."""
        return {"seeds": list(self.seeds), "victims": {preset.name: _described(preset) for preset in self.presets}}


def plan_from(data: object) -> Plan:
    """Build a plan from plain data.

    ``seeds``: a number or a list. ``victims``: names of presets, or a mapping of names of your own to a mapping with
    ``preset`` (whose values hold where nothing else is said; the name itself, if it is a preset's) and any field of
    :class:`.Preset`; with ``scale: smoke`` the whole victim is made small, and ``-smoke`` is added to its name;
    ``architecture`` is ``package.module:function`` or ``timm:NAME``, recipes are merged field by
    field. ``attacks`` and ``verifiers``, for all victims or inside one: a list of names that the preset has, or a
    mapping. An attack's entry has ``attack``, ``params``, ``source`` (``train``, ``subset``, ``apart``),
    ``true_labels``, ``ratio`` and ``step``; a verifier's has its parameters, and ``profile``. Where the preset has an
    entry of this name, its values hold where nothing else is said.

    :raises InvalidInputError: an unknown key (near names are listed) or a value of a wrong kind.
    """
    content = _mapping("the plan", data, _PLAN_KEYS)
    victims = content.get("victims")
    if isinstance(victims, str):
        victims = [victims]
    if isinstance(victims, list | tuple):
        victims = {_text("a victim's name", name): None for name in victims}
    if not isinstance(victims, Mapping) or not victims:
        raise InvalidInputError(
            f"`victims` must name one or more victims, presets are {', '.join(PRESETS)}; got {shown(victims)}."
        )
    presets = tuple(_preset(_text("a victim's name", name), entry, content) for name, entry in victims.items())
    return Plan(presets, _seeds(content.get("seeds", 3)))


def load_architecture(made: Callable[[], nn.Module] | str, nb_classes: int, channels: int) -> Callable[[], nn.Module]:
    """Return what makes a network, from its name or itself; timm is told the data set's classes and channels."""
    factory = Factory(made) if isinstance(made, str) else made
    return replace(factory, nb_classes=nb_classes, channels=channels) if isinstance(factory, Factory) else factory


# ---------------------------------------------------------------------- parts of a plan
def _preset(name: str, entry: object, plan: Mapping[str, Any]) -> Preset:
    where = f"victim {name!r}"
    given = dict(_mapping(where, {} if entry is None else entry, _VICTIM_KEYS))
    scale = given.pop("scale", "full")
    base_name = given.pop("preset", name if name in PRESETS else None)
    if base_name is None and not given:
        _unknown("preset", str(name), PRESETS)
    base = None if base_name is None else load_preset(_text(f"`preset` of {where}", base_name))
    known_attacks = {} if base is None else _with_share(base, given.get("subset_ratio", base.subset_ratio))
    known_verifiers = {} if base is None else base.verifiers
    if (spec := given.pop("attacks", plan.get("attacks"))) is not None:
        given["attacks"] = _attacks(name, spec, known_attacks)
    elif base is not None:
        given["attacks"] = known_attacks
    if (spec := given.pop("verifiers", plan.get("verifiers"))) is not None:
        given["verifiers"] = _verifiers(name, spec, known_verifiers)
    if "architecture" in given and not callable(given["architecture"]):
        given["architecture"] = Factory(_text(f"`architecture` of {where}", given["architecture"]))
    if "dataset" in given:
        _text(f"`dataset` of {where}", given["dataset"])
    if "dataset_options" in given:
        _mapping(f"`dataset_options` of {where}", given["dataset_options"])
    for key in ("victim_recipe", "negative_recipe"):
        if key in given:
            given[key] = _recipe(f"`{key}` of {where}", given[key], None if base is None else getattr(base, key))
    if base is not None:
        return _scaled(where, replace(base, name=name, **given), scale)
    if "victim_recipe" in given:
        given.setdefault("negative_recipe", replace(given["victim_recipe"], linear_l2=0.0))
    defaults = {"subset_ratio": 0.2, "attacks": {}, "nb_references": 8}
    needed = [key for key in ("dataset", "architecture", "victim_recipe", "verifiers") if key not in given]
    if needed:
        raise InvalidInputError(f"{where} has no `preset`, and lacks {', '.join(needed)}.")
    return _scaled(where, Preset(name=name, **{**defaults, **given}), scale)


def _with_share(base: Preset, share: Any) -> dict[str, AttackSetting]:
    """Return a preset's attacks for another share of the attacker's data, on which a learning rate may depend."""
    return {
        label: replace(setting, params={**setting.params, "subset_ratio": share})
        if setting.source == "subset" and setting.params.get("subset_ratio") == base.subset_ratio
        else setting
        for label, setting in base.attacks.items()
    }


def _scaled(where: str, preset: Preset, scale: Any) -> Preset:
    with saying(where):
        return at_scale(preset, scale)


def _attacks(victim: str, spec: object, known: Mapping[str, AttackSetting]) -> dict[str, AttackSetting]:
    if not isinstance(spec, Mapping):
        return _chosen(victim, spec, known)
    found = {}
    for label, entry in spec.items():
        where = f"attack {label!r} of victim {victim!r}"
        keys = [f.name for f in fields(AttackSetting)]
        given = dict(_mapping(where, {} if entry is None else entry, keys))
        base = known.get(label)
        if base is None and "attack" not in given:
            if not given:
                _unknown(f"attack row of victim {victim!r}", str(label), known)
            raise InvalidInputError(f"{where} has no `attack`, the name of its class.")
        same = base is not None and given.get("attack", base.attack) == base.attack
        params = _mapping(f"`params` of {where}", given.get("params", {}))
        setting = AttackSetting(
            attack=_text(f"`attack` of {where}", given.get("attack", base and base.attack)),
            params={**(base.params if base is not None and same else {}), **params},
            source=given.get("source", base.source if base else "train"),
            true_labels=given.get("true_labels", base.true_labels if base else False),
            ratio=given.get("ratio", base.ratio if base else None),
            step=given.get("step", base.step if base else None),
        )
        if setting.source not in get_args(Source):
            raise InvalidInputError(
                f"`source` of {where} must be one of {get_args(Source)}, got {shown(setting.source)}."
            )
        if not isinstance(setting.true_labels, bool):
            raise InvalidInputError(
                f"`true_labels` of {where} must be true or false, got {shown(setting.true_labels)}."
            )
        found[_text("an attack's label", label)] = setting
    return found


def _verifiers(victim: str, spec: object, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    listed = () if isinstance(spec, Mapping) else check_sequence("verifiers", spec)
    entries = spec if isinstance(spec, Mapping) else {_text("a verifier's name", name): None for name in listed}
    found: dict[str, Mapping[str, Any]] = {}
    for given, entry in entries.items():
        name = _text("a verifier's name", given)
        kind = verifier_class(name)
        name = name if ":" in name else kind.__name__
        where = f"{name} of victim {victim!r}"
        params = dict(_mapping(where, {} if entry is None else entry))
        profile = params.pop("profile", None)
        if profile is None:
            start = known.get(name, {})
        elif isinstance(profile, str) and profile in kind.profiles:
            start = kind.profiles[profile]
        else:
            raise InvalidInputError(
                f"`profile` of {where} must be one of {', '.join(kind.profiles)}, got {shown(profile)}."
            )
        if name in found:
            raise InvalidInputError(f"Victim {victim!r} has {name} twice.")
        found[name] = {**start, **params}
    if not found:
        raise InvalidInputError(f"Victim {victim!r} has no verifiers.")
    return found


def _chosen(victim: str, wanted: object, known: Mapping[str, AttackSetting]) -> dict[str, AttackSetting]:
    """Return the named attacks, in the order that they are named in."""
    labels = [_text("an attack's label", label) for label in check_sequence("attacks", wanted)]
    for label in labels:
        if label not in known:
            has = ", ".join(known) or "none"
            raise InvalidInputError(f"The preset has no attack row {label!r}; it has {has}. Victim: {victim}.")
    return {label: known[label] for label in labels}


def _recipe(where: str, entry: object, base: Recipe | None) -> Recipe:
    given = dict(_mapping(where, entry, [f.name for f in fields(Recipe)]))
    needed = [name for name in ("learning_rate", "max_iter") if base is None and name not in given]
    if needed:
        raise InvalidInputError(f"{where} lacks {', '.join(needed)}.")
    with saying(where):
        return Recipe(**given) if base is None else replace(base, **given)


def _seeds(value: object) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        check_number("seeds", value, 1, _MOST_SEEDS, integer=True)
        return tuple(range(value))
    seeds = check_sequence("seeds", value)
    for seed in seeds:
        check_seed(seed)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InvalidInputError(f"`seeds` must be a number, or different seeds, got {list(seeds)}.")
    return seeds


@contextmanager
def saying(where: str) -> Iterator[None]:
    """Let errors about a part of a plan say which part that is."""
    try:
        yield
    except (FingerprintError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{where}: {error}") from error


def _mapping(where: str, value: object, known: Iterable[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{where} must be a mapping, got {shown(value)}.")
    for key in value:
        if not isinstance(key, str):
            raise InvalidInputError(f"{where} has the key {shown(key)}; names are needed.")
        if known is not None and key not in known:
            _unknown(f"key of {where}", key, known)
    return value


def _unknown(what: str, name: str, known: Iterable[str]) -> NoReturn:
    names = list(known)
    near = near_names(names, name)
    hint = f"Near names: {', '.join(near)}." if near else f"There are {', '.join(names) or 'none'}."
    raise InvalidInputError(f"There is no {what} {name!r}. {hint}")


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(f"{what} must be a name, got {shown(value)}.")
    return value


# ---------------------------------------------------------------------- as data
def _described(preset: Preset) -> dict[str, Any]:
    given = {f.name: getattr(preset, f.name) for f in fields(Preset) if f.name not in ("name", "architecture")}
    for key in ("victim_recipe", "negative_recipe"):
        given[key] = vars(given[key])
    given["attacks"] = {label: vars(setting) for label, setting in given["attacks"].items()}
    described: dict[str, Any] = as_json({"architecture": architecture_name(preset.architecture), **given})
    # JSON has no type for what a setting may hold beside plain values, an array say
    with saying(f"victim {preset.name!r}"):
        return dict(json.loads(json.dumps(described, default=repr)))


def architecture_name(made: Callable[[], nn.Module]) -> str:
    """Return the name of what makes a network, ``package.module:function`` where it has one."""
    if isinstance(made, Factory):
        return made.name
    if isinstance(made, functools.partial):
        return f"{architecture_name(made.func)}(*{made.args!r}, **{made.keywords!r})"
    return f"{made.__module__}:{getattr(made, '__qualname__', type(made).__qualname__)}"
