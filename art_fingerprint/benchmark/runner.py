"""Run a preset: train or load the models, derive the surrogates, score every suspect, append one row for each cell."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from tqdm import tqdm

import art_fingerprint.attacks as attacks
import art_fingerprint.verifiers as verifiers
from art_fingerprint.benchmark.store import ADDED_KEYS, KEYS, Store, cell_key
from art_fingerprint.core.classifier import network_of
from art_fingerprint.core.parameters import as_json
from art_fingerprint.core.seeding import derive_seed, forked_random_state
from art_fingerprint.core.versions import versions
from art_fingerprint.evaluation.fidelity import accuracy, accuracy_drop, agreement
from art_fingerprint.evaluation.robustness import robustness
from art_fingerprint.exceptions import FingerprintFileError, InvalidInputError
from art_fingerprint.verifiers.fingerprint import Fingerprint
from art_fingerprint.zoo.datasets import Dataset, load_dataset
from art_fingerprint.zoo.presets import AttackSetting, Preset
from art_fingerprint.zoo.recipes import train_negative, train_victim, wrap
from art_fingerprint.zoo.substitutes import select_substitute

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SuspectModel:
    """A model to be scored, with what a row says about it."""

    label: str
    role: str
    seed: int
    key: str
    make: Callable[[], PyTorchClassifier]
    attack: str | None = None
    attack_params: Mapping[str, Any] | None = None


class Bench:
    """Runs a preset in a folder. A second run in the same folder repeats nothing that is done.

    Weights and fingerprints are kept under a digest of everything that makes them, so a changed setting is computed
    anew. A suspect that cannot be made or scored, or a verifier that cannot extract or calibrate, gives rows with
    status ``failed`` and the reason, and the rest goes on. Failed cells are tried again by the next run.

    :param preset: What to run.
    :param folder: Where rows, weights and fingerprints go.
    :param seeds: Number of seeds of every attack and of negatives.
    :param only_attacks: Row labels to run; default all.
    :param only_verifiers: Verifier names to run; default all.
    :param device_type: ``"gpu"`` (CUDA where there is one) or ``"cpu"``.
    :param verbose: Show a progress bar.
    :raises InvalidInputError: unknown row label or verifier, or a folder that cannot be used.
    """

    def __init__(
        self,
        preset: Preset,
        folder: str | os.PathLike[str],
        seeds: int = 3,
        only_attacks: Iterable[str] | None = None,
        only_verifiers: Iterable[str] | None = None,
        device_type: str = "gpu",
        verbose: bool = True,
    ) -> None:
        if seeds < 1:
            raise InvalidInputError(f"`seeds` must be at least 1, got {seeds}.")
        self.preset = preset
        self.seeds = seeds
        self.device_type = device_type
        self.verbose = verbose
        self.attack_labels = _chosen("attack row", only_attacks, preset.attacks)
        self.verifier_names = _chosen("verifier", only_verifiers, preset.verifiers)
        self.store = Store(folder)
        self.data = load_dataset(preset.dataset)
        cuda = device_type == "gpu" and torch.cuda.is_available()
        self._made_from = {
            "data": self.data.digest,
            "architecture": str(self._untrained().model),
            "versions": versions(),
            "device": "cuda" if cuda else "cpu",
        }

    # ------------------------------------------------------------------ run
    def run(self) -> Path:
        """Run every cell that is not done yet and return the path of the rows."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.preset.threads or threads)
        try:
            self._run()
        finally:
            torch.set_num_threads(threads)
        return self.store.rows_path

    def _run(self) -> None:
        rows = self.store.rows()
        done = {row["key"]: row for row in rows if row["status"] == "ok"}
        newest = {(row["suspect"], row["seed"], row["verifier"]): row["key"] for row in rows}
        suspects = self.suspects()
        total = len(suspects) * len(self.verifier_names)
        with tqdm(total=total, desc=f"bench {self.preset.name}", disable=not self.verbose, unit="cell") as bar:
            todo = [(s, [v for v in self.verifier_names if self._cell(s, v) not in done]) for s in suspects]
            todo = [(suspect, names) for suspect, names in todo if names]
            bar.update(total - sum(len(names) for _, names in todo))
            for suspect in suspects:  # a setting that was changed and changed back: its rows count again
                for name in self.verifier_names:
                    key = self._cell(suspect, name)
                    if key in done and newest[suspect.label, suspect.seed, name] != key:
                        self.store.append(done[key])
            if todo:
                bar.set_postfix_str("victim and reference models")
                self._prepare({name for _, names in todo for name in names})
            for suspect, names in todo:
                bar.set_postfix_str(f"{suspect.label} seed {suspect.seed}")
                self._run_suspect(suspect, names)
                bar.update(len(names))

    def _prepare(self, names: set[str]) -> None:
        self.victim = self._victim()
        self.victim_accuracy = accuracy(self.victim, self.data.x_test, self.data.y_test)
        self.verifiers: dict[str, verifiers.Verifier | Exception] = {}
        # Read once for all verifiers, only if one is not calibrated yet, and let go afterwards.
        references = functools.cache(lambda: [self._reference(index)() for index in range(self.preset.nb_references)])
        for name in sorted(names):
            try:
                self.verifiers[name] = self._verifier(name, references)
            except Exception as error:
                logger.exception("%s failed on the victim", name)
                self.verifiers[name] = error

    def _run_suspect(self, suspect: SuspectModel, names: list[str]) -> None:
        base: dict[str, Any] = {
            **dict.fromkeys((*KEYS, *ADDED_KEYS)),
            "preset": self.preset.name,
            "dataset": self.preset.dataset,
            "victim": self._key("victim", self.preset.victim_seed),
            "suspect": suspect.label,
            "role": suspect.role,
            "attack": suspect.attack,
            "attack_params": dict(suspect.attack_params or {}),
            "seed": suspect.seed,
            "versions": versions(),
            "device": str(self.victim.device),
        }
        try:
            model = suspect.make()
            score = accuracy(model, self.data.x_test, self.data.y_test)
            base |= {
                "accuracy": score,
                "accuracy_drop": accuracy_drop(self.victim_accuracy, score),
                "agreement": agreement(self.victim, model, self.data.x_test),
                "attack_seconds": getattr(model, "surrogate_info", {}).get("seconds"),
                "cost": getattr(model, "surrogate_info", {}).get("cost"),
                "robustness": self._robustness(suspect, model),
            }
        except Exception as error:
            logger.exception("%s seed %d failed", suspect.label, suspect.seed)
            for name in names:
                self.store.append({**base, **self._unscored(suspect, name, error)})
            return
        for name in names:
            self.store.append({**base, **self._score(suspect, name, model)})

    def _robustness(self, suspect: SuspectModel, model: PyTorchClassifier) -> dict[str, Any]:
        """Attack a model with its own examples. An attack that fails is missed in the rows, and ends nothing."""
        x, y = (array[: self.preset.nb_robustness] for array in (self.data.x_test, self.data.y_test))
        found = {}
        for name, params in self.preset.robustness.items():
            try:
                found[name] = robustness(model, x, y, name, **params).to_dict()
            except InvalidInputError:
                logger.exception("%s on %s seed %d failed", name, suspect.label, suspect.seed)
        return found

    def _unscored(self, suspect: SuspectModel, name: str, error: Exception) -> dict[str, Any]:
        return {
            "key": self._cell(suspect, name),
            "verifier": name,
            "verifier_params": as_json(self.preset.verifiers[name]),
            "metrics": {},
            "derived": None,
            "status": "failed",
            "reason": f"{type(error).__name__}: {error}",
        }

    def _score(self, suspect: SuspectModel, name: str, model: PyTorchClassifier) -> dict[str, Any]:
        verifier = self.verifiers[name]
        if isinstance(verifier, Exception):
            return self._unscored(suspect, name, verifier)
        started = time.perf_counter()
        try:
            verdict = verifier.verify(model, allow_reference=suspect.role == "reference")
        except Exception as error:
            logger.exception("%s on %s seed %d failed", name, suspect.label, suspect.seed)
            return self._unscored(suspect, name, error)
        metrics = {
            metric: {name: value for name, value in asdict(result).items() if name != "reason"}
            | {"value": result.value if np.isfinite(result.value) else None}
            for metric, result in verdict.metrics.items()
        }
        return {
            "key": self._cell(suspect, name),
            "verifier": name,
            "verifier_params": as_json(self.preset.verifiers[name]),
            "metrics": metrics,
            "derived": verdict.derived,
            "verify_seconds": time.perf_counter() - started,
            "queries": verdict.queries,
            "status": "ok" if verdict.complete else "failed",
            "reason": verdict.reason,
        }

    # ------------------------------------------------------------------ models
    def suspects(self) -> list[SuspectModel]:
        """Return every model that is scored: the victim itself, references, negatives, then the attacks' surrogates."""
        preset = self.preset
        found = [
            SuspectModel("Victim", "victim", preset.victim_seed, self._key("victim", preset.victim_seed), self._victim)
        ]
        for index in range(preset.nb_references):
            seed = derive_seed(preset.victim_seed, "reference", index)
            found.append(
                SuspectModel("Reference", "reference", index, self._key("victim", seed), self._reference(index))
            )
        for seed in range(self.seeds):
            found.append(SuspectModel("Negative", "negative", seed, self._key("negative", seed), self._negative(seed)))
        for label in self.attack_labels:
            setting = preset.attacks[label]
            for seed in range(self.seeds):
                found.append(
                    SuspectModel(
                        label,
                        "surrogate",
                        seed,
                        self._surrogate_key(setting, seed),
                        self._surrogate(setting, seed),
                        setting.attack,
                        as_json(setting.params),
                    )
                )
        return found

    def _key(self, kind: str, seed: int) -> str:
        recipe = self.preset.negative_recipe if kind == "negative" else self.preset.victim_recipe
        return cell_key(kind=kind, recipe=asdict(recipe), seed=seed, **self._made_from)

    def _surrogate_key(self, setting: AttackSetting, seed: int) -> str:
        return cell_key(
            victim=self._key("victim", self.preset.victim_seed),
            setting=asdict(setting),
            subset_ratio=self.preset.subset_ratio,
            seed=seed,
        )

    def _cell(self, suspect: SuspectModel, verifier: str) -> str:
        return cell_key(suspect=suspect.key, label=suspect.label, fingerprint=self._fingerprint_key(verifier))

    def _fingerprint_key(self, verifier: str) -> str:
        preset = self.preset
        return cell_key(
            victim=self._key("victim", preset.victim_seed),
            verifier=verifier,
            params=as_json(preset.verifiers[verifier]),
            nb_references=preset.nb_references,
        )

    def _untrained(self) -> PyTorchClassifier:
        with forked_random_state():
            return wrap(self.preset.architecture(), self.data, self.device_type)

    def _kept(self, key: str, make: Callable[[], PyTorchClassifier]) -> PyTorchClassifier:
        model = self._untrained()
        notes = self.store.load_weights(key, network_of(model))
        if notes is None:
            model = make()
            notes = dict(getattr(model, "surrogate_info", {}))
            self.store.save_weights(key, network_of(model), notes)
        network_of(model).eval()
        model.surrogate_info = notes
        return model

    def _victim(self) -> PyTorchClassifier:
        return self._trained("victim", self.preset.victim_seed)

    def _reference(self, index: int) -> Callable[[], PyTorchClassifier]:
        return lambda: self._trained("victim", derive_seed(self.preset.victim_seed, "reference", index))

    def _negative(self, seed: int) -> Callable[[], PyTorchClassifier]:
        return lambda: self._trained("negative", seed)

    def _trained(self, kind: str, seed: int) -> PyTorchClassifier:
        train, recipe = (
            (train_negative, self.preset.negative_recipe)
            if kind == "negative"
            else (train_victim, self.preset.victim_recipe)
        )
        return self._kept(
            self._key(kind, seed),
            lambda: train(self.preset.architecture, self.data, recipe, seed, self.device_type),
        )

    def _surrogate(self, setting: AttackSetting, seed: int) -> Callable[[], PyTorchClassifier]:
        def derive() -> PyTorchClassifier:
            attack = getattr(attacks, setting.attack)(self.victim, seed=seed, **setting.params)
            x, y = substitute_data(self.data, self.victim, setting.source, self.preset.subset_ratio, seed)
            surrogate: PyTorchClassifier = attack.generate(x, y if setting.true_labels else None)
            return surrogate

        return lambda: self._kept(self._surrogate_key(setting, seed), derive)

    def _verifier(self, name: str, references: Callable[[], list[PyTorchClassifier]]) -> verifiers.Verifier:
        path = self.store.fingerprints / f"{name}.{self._fingerprint_key(name)}.safetensors"
        kind: type[verifiers.Verifier] = getattr(verifiers, name)
        try:
            return kind.from_fingerprint(Fingerprint.load(path))
        except FingerprintFileError:
            pass
        verifier = kind(self.victim, **self.preset.verifiers[name])
        fingerprint = verifier.extract(self.data.x_train, self.data.y_train)
        verifier.calibrate(references())
        fingerprint.save(path)
        return verifier


def substitute_data(
    data: Dataset, victim: PyTorchClassifier, source: str, subset_ratio: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the attacker's images and labels: ``"train"``, a stratified ``"subset"`` of it, or ``"apart"``."""
    if source == "train":
        return data.x_train, data.y_train
    if source == "apart":
        return data.x_apart, data.y_apart
    chosen = select_substitute(victim.predict(data.x_train).argmax(1), subset_ratio, seed=seed)
    return data.x_train[chosen], data.y_train[chosen]


def _chosen(kind: str, wanted: Iterable[str] | None, known: Mapping[str, Any]) -> list[str]:
    names = list(known) if wanted is None else list(dict.fromkeys(wanted))
    for name in names:
        if name not in known:
            raise InvalidInputError(f"The preset has no {kind} {name!r}; it has {', '.join(known)}.")
    return names
