"""What one victim of a plan needs: its models, fingerprints and rows, each computed at most once in a run's folder."""

from __future__ import annotations

import functools
import json
import logging
import os
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_fingerprint.attacks import RemovalAttack
from art_fingerprint.benchmark.independents import Independents
from art_fingerprint.benchmark.materials import dataset, owners_data, plain, robustness_of, substitute_data
from art_fingerprint.benchmark.plan import Factory, architecture_name, load_architecture, saying
from art_fingerprint.benchmark.store import ADDED_KEYS, KEYS, Store, cell_key
from art_fingerprint.benchmark.suspects import Suspect, derive, derive_checkpoints, reason_of
from art_fingerprint.benchmark.validation import check_architecture, check_independents, check_preset
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.parameters import as_json
from art_fingerprint.core.seeding import forked_random_state
from art_fingerprint.core.versions import versions
from art_fingerprint.evaluation.fidelity import accuracy_drop, label_agreement, predicted_labels
from art_fingerprint.exceptions import AccessError, IncompatibleSuspectError, StoreError
from art_fingerprint.verifiers.base import Verifier
from art_fingerprint.zoo.dataset import Dataset, halves
from art_fingerprint.zoo.loading import attack_class, verifier_class
from art_fingerprint.zoo.preset import VICTIM
from art_fingerprint.zoo.presets import AttackSetting, Preset
from art_fingerprint.zoo.recipes import train_victim, wrap

logger = logging.getLogger(__name__)

Row = dict[str, Any]
# A cell that is impossible by its suspect's nature is skipped, and not tried again; any other error fails it.
_IMPOSSIBLE = (IncompatibleSuspectError, AccessError)


class Workbench:
    """Makes and scores the models of one victim. Everything is kept in the store, under a digest of what makes it.

    :param preset: The victim, its attacks and verifiers.
    :param store: Folder of the run, or its path while nothing is written yet.
    :param seeds: Seeds of the attacks.
    :param device_type: ``"gpu"`` (CUDA where there is one) or ``"cpu"``.
    :param cuda: Whether models are made on CUDA, which changes their digests; ``None``: as in this process.
    :ivar attack_passes: Expected passes of each attack by its label, kept here since some cost passes to find out.
    :ivar queries: Expected queries of each verifier; they take an untrained classifier to look at, which takes time.
    :raises InvalidInputError: the data set or the architecture cannot be had.
    """

    def __init__(
        self,
        preset: Preset,
        store: Store | str | os.PathLike[str],
        seeds: Collection[int],
        device_type: str = "gpu",
        cuda: bool | None = None,
    ) -> None:
        self.preset = preset
        self.seeds = tuple(seeds)
        self.device_type = device_type
        with saying(f"victim {preset.name!r}"):
            check_independents(preset)
        whole = dataset(preset.dataset, json.dumps(as_json(preset.dataset_options), sort_keys=True))
        other: Dataset | None
        self.data, other = halves(whole) if preset.halved else (whole, None)
        self._folder = store
        self._architecture = load_architecture(preset.architecture, whole.nb_classes, whole.input_shape[0])
        with forked_random_state(0):
            check_architecture(self._architecture, whole.nb_classes)
        untrained = self.untrained
        self._device = str(untrained.device)
        self._made_from = {
            "data": self.data.digest,
            "architecture": [architecture_name(self._architecture), str(network_of(untrained))],
            "versions": versions(),
            "device": untrained.device.type if cuda is None else "cuda" if cuda else "cpu",
        }
        self.independents = Independents(preset, self.seeds, self.data, other, self._made_from, device_type)
        self.attack_passes: dict[str, float] = {}
        self.queries: dict[str, float | None] = {}
        self._verifiers: dict[str, Verifier] = {}
        self._networks: dict[str, str] = {}
        self._independent_models: dict[str, list[PyTorchClassifier]] = {}

    def check(self) -> None:
        """Refuse settings that cannot run, before anything does; see :func:`.check_preset`."""
        attacks = self.preset.attacks.items()
        resolved = {label: replace(setting, params=self._arguments(setting)) for label, setting in attacks}
        check_preset(replace(self.preset, attacks=resolved), self.untrained)
        for label, setting in resolved.items():
            if "surrogate_factory" in setting.params:
                with saying(f"victim {self.preset.name!r}, attack {label!r}"):
                    self._own_network(setting)

    @functools.cached_property
    def store(self) -> Store:
        """Folder of the run; made when it is first needed."""
        return self._folder if isinstance(self._folder, Store) else Store(self._folder)

    def attack(self, setting: AttackSetting, victim: PyTorchClassifier, seed: int) -> RemovalAttack:
        """Return an attack of the plan on a victim."""
        return attack_class(setting.attack)(victim, seed=seed, **self._arguments(setting))

    def judge(self, name: str, victim: PyTorchClassifier | None = None) -> Verifier:
        """Return a verifier of the plan for a victim, without a fingerprint; by default for an untrained one."""
        return verifier_class(name)(victim or self.untrained, **self.preset.verifiers[name])

    @functools.cached_property
    def untrained(self) -> PyTorchClassifier:
        """A classifier of the victim's architecture with random weights, to look at."""
        return self._untrained()

    # ------------------------------------------------------------------ what there is to do
    @functools.cached_property
    def suspects(self) -> list[Suspect]:
        """Every model that is scored: the victim itself, references, negatives, then the attacks' surrogates."""
        victim = Suspect(VICTIM, "victim", self.preset.victim_seed, self.victim_key)
        found = [victim, *self.independents.suspects()]
        for label, setting in self.preset.attacks.items():
            found += [Suspect(label, "surrogate", seed, self._surrogate_key(setting, seed)) for seed in self.seeds]
        return found

    def cell(self, suspect: Suspect, verifier: str) -> str:
        """Return the key of one cell: a digest of everything that can change its row, but for times."""
        return cell_key(
            suspect=suspect.key,
            label=suspect.label,
            preset=self.preset.name,
            fingerprint=self.fingerprint_key(verifier),
            facts=self.facts_key(suspect),
        )

    @functools.cached_property
    def victim_key(self) -> str:
        """Digest of what makes the victim."""
        recipe = asdict(self.preset.victim_recipe)
        return cell_key(kind="victim", start=None, recipe=recipe, seed=self.preset.victim_seed, **self._made_from)

    def fingerprint_key(self, verifier: str) -> str:
        """Return the digest of what makes a fingerprint and its thresholds."""
        preset = self.preset
        return cell_key(
            victim=self.victim_key,
            verifier=verifier,
            params=as_json(preset.verifiers[verifier]),
            nb_references=preset.nb_references,
            calibration=as_json(preset.calibration),
            **self.independents.facts_of(verifier_class(verifier)),
        )

    def _surrogate_key(self, setting: AttackSetting, seed: int) -> str:
        described = {name: value for name, value in vars(setting).items() if value is not None}
        facts: dict[str, Any] = {"setting": {**described, "params": plain(setting.params)}}
        if setting.source == "subset" and setting.ratio is None:
            facts["subset_ratio"] = self.preset.subset_ratio
        if setting.source == "apart" and setting.ratio is not None:  # rows of former versions: of the training set
            facts["share_of"] = "source"
        if "surrogate_factory" in setting.params:
            facts["network"] = self._own_network(setting)
        return cell_key(victim=self.victim_key, seed=seed, **facts)

    def _own_network(self, setting: AttackSetting) -> str:
        """Return what an attack's own network is made of: its name would not change with its definition."""
        name = json.dumps(plain(setting.params))
        if name not in self._networks:
            self._networks[name] = str(network_of(self._untrained(setting)))
        return self._networks[name]

    def checkpoints(self, setting: AttackSetting, seed: int) -> dict[int, str]:
        """Return step to key of all checkpoints that come from the same run as this one; none for what is not one."""
        if setting.step is None:
            return {}
        found = {}
        for other in self.preset.attacks.values():
            whole = [self._surrogate_key(replace(s, step=None), seed) for s in (setting, other)]
            if other.step is not None and whole[0] == whole[1]:
                found[other.step] = self._surrogate_key(other, seed)
        return found

    def facts_key(self, suspect: Suspect) -> str:
        """Return the digest of what is measured on a suspect, whoever judges it."""
        preset = self.preset
        return cell_key(
            model=suspect.key,
            victim=self.victim_key,
            robustness=as_json(preset.robustness),
            nb_robustness=preset.nb_robustness,
        )

    # ------------------------------------------------------------------ models
    @functools.cached_property
    def victim(self) -> PyTorchClassifier:
        """The victim, trained or loaded on first use."""
        return self.model(self.suspects[0])

    def model(self, suspect: Suspect) -> PyTorchClassifier:
        """Return a suspect's classifier: kept weights, or trained and kept now."""
        setting = self._setting(suspect)
        independent = suspect.role in ("reference", "negative")
        notes = None
        if self.store.has_model(suspect.key):  # a large network takes a second to make
            found = self.independents.untrained(suspect) if independent else self._untrained(setting)
            notes = self.store.load_model(suspect.key, found)
        if notes is None:
            found = self.independents.train(suspect) if independent else self._make(suspect, setting)
            notes = dict(getattr(found, "surrogate_info", {}))
            self.store.save_model(suspect.key, found, notes)
        network_of(found).eval()
        found.surrogate_info = notes
        return found

    def _make(self, suspect: Suspect, setting: AttackSetting | None) -> PyTorchClassifier:
        if setting is not None:
            return self._surrogate(suspect, setting)
        recipe = self.preset.victim_recipe
        return train_victim(self._architecture, self.data, recipe, suspect.seed, self.device_type)

    def _surrogate(self, suspect: Suspect, setting: AttackSetting) -> PyTorchClassifier:
        ratios = (self.preset.subset_ratio, suspect.seed, setting.ratio)
        x, y = substitute_data(self.data, self.victim, setting.source, *ratios)
        attack, labels = self.attack(setting, self.victim, suspect.seed), y if setting.true_labels else None
        steps = self.checkpoints(setting, suspect.seed)
        if not steps:
            return derive(attack, x, labels)
        found = self._untrained(setting)
        with self.store.alone(self._surrogate_key(replace(setting, step=None), suspect.seed)):
            notes = self.store.load_model(suspect.key, found)  # another worker may have run the attack meanwhile
            if notes is None:
                derive_checkpoints(attack, x, labels, steps, self.store.save_model)
                notes = self.store.load_model(suspect.key, found)
        found.surrogate_info = notes or {}
        return found

    def _setting(self, suspect: Suspect) -> AttackSetting | None:
        return self.preset.attacks[suspect.label] if suspect.role == "surrogate" else None

    def _untrained(self, setting: AttackSetting | None = None) -> PyTorchClassifier:
        """Return a classifier that weights can be put into, of the victim's architecture or of the attack's own."""
        make = None if setting is None else self._arguments(setting).get("surrogate_factory")
        with forked_random_state():
            return wrap((make or self._architecture)(), self.data, self.device_type)

    def _arguments(self, setting: AttackSetting) -> dict[str, Any]:
        """Return an attack's parameters, with the network that a name stands for in place of the name."""
        factory = setting.params.get("surrogate_factory")
        if not isinstance(factory, str):
            return dict(setting.params)
        made = Factory(factory, self.data.nb_classes, self.data.input_shape[0])
        return {**setting.params, "surrogate_factory": made}

    # ------------------------------------------------------------------ fingerprints
    def has_fingerprint(self, name: str) -> bool:
        """Tell whether a verifier's fingerprint is kept, sound or not."""
        return self.store.has_fingerprint(self.fingerprint_file(name))

    def models_for(self, name: str) -> tuple[str, ...]:
        """Return the labels of the models that a verifier's extraction and calibration need."""
        kind = verifier_class(name)
        known = self.independents.known_of(kind)
        return (VICTIM, self.independents.references_of(kind), *(() if known is None else (known,)))

    def fingerprint_file(self, name: str) -> str:
        """Return the name under which a verifier's fingerprint is kept."""
        return f"{verifier_class(name).__name__}.{self.fingerprint_key(name)}"

    def verifier(self, name: str) -> Verifier:
        """Return a calibrated verifier: from its kept fingerprint, or extracted and kept now."""
        if name not in self._verifiers:
            kind, key = verifier_class(name), self.fingerprint_file(name)
            fingerprint = self.store.load_fingerprint(key)
            if fingerprint is None:
                verifier = self.judge(name, self.victim)
                known = self.independents.known_of(kind)
                more: dict[str, Any] = {} if known is None else {"negatives": self._independent(known)}
                fingerprint = verifier.extract(*owners_data(self.data, kind, self.preset), **more)
                references = self._independent(self.independents.references_of(kind))
                verifier.calibrate(references, **self.preset.calibration)
                self.store.save_fingerprint(key, fingerprint)
            self._verifiers[name] = kind.from_fingerprint(fingerprint)
        return self._verifiers[name]

    def _independent(self, label: str) -> list[PyTorchClassifier]:
        """Read the independent models of a label once for all verifiers; :meth:`rows` lets them go."""
        if label not in self._independent_models:
            mine = [suspect for suspect in self.suspects if suspect.label == label]
            self._independent_models[label] = [self.model(suspect) for suspect in mine]
        return self._independent_models[label]

    # ------------------------------------------------------------------ rows
    def rows(self, suspect: Suspect, names: Collection[str], broken: Mapping[str, str] | None = None) -> Iterator[Row]:
        """Make and score one suspect: one row for each verifier, as soon as it is known.

        :param names: Verifiers.
        :param broken: Verifiers that could not be made, with the reason.
        :raises StoreError: the folder cannot be written to. Any other error gives rows that say so.
        """
        self._independent_models = {}
        broken = broken or {}
        base = self._base(suspect)
        try:
            model = self.model(suspect)
            base |= {
                **self._facts(suspect, model),
                "attack_seconds": model.surrogate_info.get("seconds"),
                "cost": model.surrogate_info.get("cost"),
            }
        except StoreError:
            raise
        except Exception as error:
            logger.warning("%s seed %d failed: %s", suspect.label, suspect.seed, error)
            yield from (base | self._unscored(suspect, name, reason_of(error), error) for name in names)
            return
        for name in names:
            yield base | (
                self._unscored(suspect, name, broken[name]) if name in broken else self._score(suspect, name, model)
            )

    def failed_rows(self, suspect: Suspect, names: Collection[str], reason: str) -> list[Row]:
        """Return rows of a suspect that was never begun, or that took its worker down."""
        return [self._base(suspect) | self._unscored(suspect, name, reason) for name in names]

    def _base(self, suspect: Suspect) -> Row:
        setting = self._setting(suspect)
        return {
            **dict.fromkeys((*KEYS, *ADDED_KEYS)),
            "preset": self.preset.name,
            "dataset": self.preset.dataset,
            "data": self.data.digest,
            "victim": self.victim_key,
            "suspect": suspect.label,
            "role": suspect.role,
            "attack": None if setting is None else attack_class(setting.attack).__name__,
            "attack_params": {} if setting is None else plain(setting.params),
            "seed": suspect.seed,
            "model": suspect.key,
            "versions": versions(),
            "device": self._device,
            "scale": self.preset.scale,
        }

    def _facts(self, suspect: Suspect, model: PyTorchClassifier) -> dict[str, Any]:
        """Return accuracy, agreement with the victim, and robustness: measured once, then read."""
        key = self.facts_key(suspect)
        facts = self.store.load_facts(key)
        if facts is None:
            labels = predicted_labels(model, self.data.x_test)
            truth = self.data.y_test
            accuracy = float((labels == truth).mean())
            facts = {
                "accuracy": accuracy,
                "accuracy_drop": accuracy_drop(float((self._victim_labels == truth).mean()), accuracy),
                "agreement": label_agreement(self._victim_labels, labels),
                "robustness": robustness_of(model, self.data, self.preset),
            }
            self.store.save_facts(key, facts)
        return facts

    @functools.cached_property
    def _victim_labels(self) -> np.ndarray:
        return predicted_labels(self.victim, self.data.x_test)

    def _score(self, suspect: Suspect, name: str, model: PyTorchClassifier) -> Row:
        started = time.perf_counter()
        try:
            verdict = self.verifier(name).verify(model, allow_reference=suspect.role == "reference")
        except StoreError:
            raise
        except _IMPOSSIBLE as error:
            return self._unscored(suspect, name, reason_of(error), status="skipped")
        except Exception as error:
            logger.warning("%s on %s seed %d failed: %s", name, suspect.label, suspect.seed, error)
            return self._unscored(suspect, name, reason_of(error), error)
        metrics = {
            metric: {name: value for name, value in asdict(result).items() if name != "reason"}
            | {"value": result.value if np.isfinite(result.value) else None}
            for metric, result in verdict.metrics.items()
        }
        return {
            **self._cell_facts(suspect, name),
            "metrics": metrics,
            "derived": verdict.derived,
            "verify_seconds": time.perf_counter() - started,
            "queries": verdict.queries,
            "status": "ok" if verdict.complete else "failed",
            "reason": verdict.reason,
        }

    def _unscored(
        self, suspect: Suspect, name: str, reason: str, error: Exception | None = None, status: str = "failed"
    ) -> Row:
        trace = None if error is None else "".join(traceback.format_exception(error))
        return {
            **self._cell_facts(suspect, name),
            "metrics": {},
            "derived": None,
            "status": status,
            "reason": reason,
            "traceback": trace,
        }

    def _cell_facts(self, suspect: Suspect, name: str) -> Row:
        return {
            "key": self.cell(suspect, name),
            "verifier": name,
            "verifier_params": plain(self.preset.verifiers[name]),
            "fingerprint": self.fingerprint_key(name),
            "finished_seconds": round(time.time(), 1),
        }
