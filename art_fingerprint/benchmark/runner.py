"""Run a plan in a folder: whatever is not done yet, on one of three executors, one row for each cell."""

from __future__ import annotations

import logging
import os
import pickle
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from tqdm import tqdm

from art_fingerprint.benchmark.estimate import Line, lines, task_passes
from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.store import ROWS, Store, cell_key, is_done, kept, read_rows
from art_fingerprint.benchmark.tasks import Event, Executor, Job, Kind, SerialExecutor, Task, nb_cores
from art_fingerprint.benchmark.workbench import Row, Workbench
from art_fingerprint.core.checks import check_choice, check_number
from art_fingerprint.exceptions import InvalidInputError, StoreError
from art_fingerprint.zoo.preset import VICTIM

logger = logging.getLogger(__name__)

ExecutorName = Literal["serial", "process", "ray"]
_POLL_SECONDS = 0.5
_BEFORE: dict[Kind, tuple[Kind, ...]] = {"model": (), "fingerprint": ("model",), "rows": ("model", "fingerprint")}
_TRIES = 2  # of a task whose worker dies
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"


class Bench:
    """Runs a plan in a folder. A second run in the same folder repeats nothing that is done.

    The plan is checked in full first. Models, fingerprints and measurements are kept under a digest of everything that
    makes them, so a changed setting is computed anew. A suspect that cannot be made or scored, or a verifier that
    cannot extract or calibrate, gives rows with status ``failed`` and the reason, and the rest goes on; the next run
    tries them again. A cell that is impossible by nature, such as a layer's metric on another architecture, is
    ``skipped``. A worker that dies gets its task again once. Several runs may share a folder, and then share the work.

    The rows of the three executors are equal, but for times, as long as each work has the same number of CPU threads
    (``Preset.threads``). ``"process"`` imports the calling script in each worker, which must therefore do its work
    under ``if __name__ == "__main__"``.

    :param plan: What to run.
    :param folder: Where rows, models and fingerprints go.
    :param executor: ``"serial"``, ``"process"`` (workers on this machine) or ``"ray"`` (extra ``ray``).
    :param workers: Number of workers on this machine; ``None``: one for each GPU, else as many as the cores have room
        for.
    :param ray_address: Address of a Ray cluster; ``None`` starts Ray on this machine.
    :param device_type: ``"gpu"`` (CUDA where there is one) or ``"cpu"``.
    :param verbose: Show a progress bar.
    :raises InvalidInputError: something in the plan is wrong. Nothing has run.
    """

    def __init__(
        self,
        plan: Plan,
        folder: str | os.PathLike[str],
        executor: ExecutorName = "serial",
        workers: int | None = None,
        ray_address: str | None = None,
        device_type: str = "gpu",
        verbose: bool = True,
    ) -> None:
        check_choice("executor", executor, get_args(ExecutorName))
        if workers is not None:
            check_number("workers", workers, 1, integer=True)
        if executor == "serial" and workers not in (None, 1):
            raise InvalidInputError(f"`workers`={workers} needs executor='process' or 'ray'.")
        if executor != "ray" and ray_address is not None:
            raise InvalidInputError("`ray_address` needs executor='ray'.")
        self.plan = plan
        self.folder = Path(folder)
        self.executor = executor
        self.ray_address = ray_address
        self.device_type = device_type
        self.verbose = verbose
        self._cuda = self._has_cuda()
        self.benches = {p.name: Workbench(p, self.folder, plan.seeds, device_type, self._cuda) for p in plan.presets}
        for bench in self.benches.values():
            bench.check()
        self.workers = 1 if executor == "serial" else workers or self._default_workers()
        if executor != "serial":
            self._check_sendable()

    def _has_cuda(self) -> bool:
        """Tell whether the work is done on CUDA: on a cluster, that is not for this process to say."""
        if self.device_type == "gpu" and self.ray_address is not None:
            from art_fingerprint.benchmark.on_ray import cluster_has_gpus

            return cluster_has_gpus(self.ray_address)
        return self.device_type == "gpu" and torch.cuda.is_available()

    def _default_workers(self) -> int:
        if self._cuda and self.ray_address is None:
            return torch.cuda.device_count()
        return max(1, nb_cores() // max(preset.threads or 1 for preset in self.plan.presets))

    def _check_sendable(self) -> None:
        for preset in self.plan.presets:
            try:
                pickle.dumps(preset)
            except Exception as error:  # pickle raises what it likes
                raise InvalidInputError(
                    f"Victim {preset.name!r} cannot be sent to a worker: {error}. Its `architecture`, and whatever "
                    "else is a function, must be one of a module, not a lambda or an inner function."
                ) from error

    def outline(self) -> list[Line]:
        """Return what a run would do now, one line for each kind of model and for each verifier. Nothing is written."""
        rows = read_rows(self.folder) if (self.folder / ROWS).exists() else []
        done = {row["key"] for row in rows if is_done(row)}
        there = kept(self.folder)
        return [line for bench in self.benches.values() for line in lines(bench, done, there)]

    def rows(self) -> list[Row]:
        """Return the newest row of each of the plan's cells that has one, in the plan's order.

        :raises InvalidInputError: as :func:`.read_rows`.
        """
        newest = {row["key"]: row for row in read_rows(self.folder)}
        cells = (
            bench.cell(suspect, verifier)
            for bench in self.benches.values()
            for suspect in bench.suspects
            for verifier in bench.preset.verifiers
        )
        return [newest[key] for key in cells if key in newest]

    def run(self) -> Path:
        """Run every cell that is not done yet and return the path of the rows.

        :raises InvalidInputError: the folder cannot be used, or it holds lines that are no rows.
        :raises StoreError: the folder cannot be written to any more. What was finished is kept.
        """
        store = Store(self.folder)
        threads = torch.get_num_threads()
        try:
            schedule = _Schedule(self.benches, store, f"bench {', '.join(self.benches)}", self.verbose)
            if schedule.todo:
                store.save_plan(self.plan.to_dict())
                with warnings.catch_warnings():
                    if all(preset.scale == "smoke" for preset in self.plan.presets):
                        warnings.simplefilter("ignore", UserWarning)  # too few probes, one class: that is smoke scale
                    schedule.run(self._executor)
        finally:
            torch.set_num_threads(threads)
        return store.rows_path

    def _executor(self) -> Executor:
        serial = self.executor == "serial"
        threads = torch.get_num_threads() if serial else max(1, nb_cores() // self.workers)
        job = Job(self.plan, str(self.folder.resolve()), self.device_type, self._cuda, self.workers, threads)
        if serial:
            return SerialExecutor(job)
        if self.executor == "process":
            from art_fingerprint.benchmark.processes import ProcessExecutor, visible_gpus

            return ProcessExecutor(job, visible_gpus() if self.device_type == "gpu" else [])
        from art_fingerprint.benchmark.on_ray import RayExecutor

        return RayExecutor(job, self.ray_address)


class _Schedule:
    """What is to be done, what runs, and what has ended.

    A victim's models come first, then its fingerprints, then its suspects. A task is claimed before it begins, so that
    another run in the same folder leaves it alone, and what that run has finished meanwhile is left out.
    """

    def __init__(self, benches: dict[str, Workbench], store: Store, title: str, verbose: bool) -> None:
        self._benches = benches
        self._store = store
        self._title = title
        self._verbose = verbose
        self._done: set[str] = set()
        self._running: dict[str, Callable[[], None]] = {}
        self._broken: dict[tuple[str, str], str] = {}  # (victim, model's label or verifier) to reason
        self._deaths: Counter[str] = Counter()
        self._cells: set[str] = set()
        self.todo: list[Task] = []
        self._plan(store.new_rows())
        self._open = Counter((task.preset, task.kind) for task in self.todo)

    def _plan(self, rows: list[Row]) -> None:
        done = {row["key"]: row for row in rows if is_done(row)}
        newest = {(row["preset"], row["suspect"], row["seed"], row["verifier"]): row["key"] for row in rows}
        shown = {row["preset"]: row["victim"] for row in rows}  # tables keep to the victim of the last row
        self._done = set(done)
        for name, bench in self._benches.items():
            tasks = []
            for suspect in bench.suspects:
                cells = {verifier: bench.cell(suspect, verifier) for verifier in bench.preset.verifiers}
                self._cells |= set(cells.values())
                for verifier, key in cells.items():  # a setting that was changed and changed back: its row counts again
                    last = newest.get((name, suspect.label, suspect.seed, verifier))
                    if key in done and (last != key or shown[name] != bench.victim_key):
                        self._store.append(done[key])
                left = tuple(verifier for verifier, key in cells.items() if key not in done)
                if left:
                    tasks.append(Task("rows", name, suspect, left))
            if tasks:
                wanted = sorted({verifier for task in tasks for verifier in task.verifiers})
                roles = ("victim",) if all(map(bench.has_fingerprint, wanted)) else ("victim", "reference")
                models = [suspect for suspect in bench.suspects if suspect.role in roles]
                self.todo += [Task("model", name, suspect) for suspect in models]
                self.todo += [Task("fingerprint", name, bench.suspects[0], (verifier,)) for verifier in wanted]
                self.todo += tasks

    # ------------------------------------------------------------------ the loop
    def run(self, make_executor: Callable[[], Executor]) -> None:
        """Do everything."""
        there = kept(self._store.folder)
        self._passes = {task.name: task_passes(self._benches[task.preset], task, there) for task in self.todo}
        total = sum(self._passes.values())
        with tqdm(total=total, desc=self._title, disable=not self._verbose, bar_format=_BAR) as self._bar:
            executor = make_executor()
            try:
                while self.todo or self._running:
                    self._submit(executor)
                    done = len(self._cells & self._done)
                    self._bar.set_postfix_str(f"{done}/{len(self._cells)} cells; {'; '.join(self._running)}")
                    if self._running:
                        self._handle(executor.wait())
                    elif self.todo:
                        time.sleep(_POLL_SECONDS)  # another run is at all that is left
            finally:
                executor.close()
                for release in self._running.values():
                    release()

    def _finish(self, task: Task) -> None:
        self._open[task.preset, task.kind] -= 1
        self._bar.update(self._passes[task.name])

    def _submit(self, executor: Executor) -> None:
        for task in list(self.todo):
            if not executor.free:
                return
            if not self._is_ready(task):
                continue
            release = self._store.claim(_claim(self._benches[task.preset], task))
            if release is None:
                continue
            self.todo.remove(task)
            self._done |= {row["key"] for row in self._store.new_rows() if is_done(row)}
            begun = self._begun(task)
            if begun is None:
                release()
                self._finish(task)
            else:
                self._running[task.name] = release
                executor.submit(begun)

    def _is_ready(self, task: Task) -> bool:
        return not any(self._open[task.preset, kind] for kind in _BEFORE[task.kind])

    def _begun(self, task: Task) -> Task | None:
        """Return the task as it is to be done now, or ``None`` where nothing is left or possible of it."""
        if task.kind == "model":
            return task
        if task.kind == "fingerprint":
            (verifier,) = task.verifiers
            bench = self._benches[task.preset]
            needed = () if bench.has_fingerprint(verifier) else bench.models_for(verifier)
            for label in needed:
                if (task.preset, label) in self._broken:
                    self._broken[task.preset, verifier] = self._broken[task.preset, label]
                    return None
            return task
        left = self._left(task)
        if left and (task.preset, VICTIM) in self._broken:
            self._fail(task, self._broken[task.preset, VICTIM])
            return None
        broken = {name: self._broken[task.preset, name] for name in left if (task.preset, name) in self._broken}
        return replace(task, verifiers=left, broken=broken) if left else None

    def _left(self, task: Task) -> tuple[str, ...]:
        bench = self._benches[task.preset]
        return tuple(name for name in task.verifiers if bench.cell(task.suspect, name) not in self._done)

    def _handle(self, event: Event) -> None:
        task = event.task
        if event.fatal:
            raise StoreError(str(event.error))
        if event.row is not None:
            self._store.append(event.row)
            if is_done(event.row):
                self._done.add(event.row["key"])
            return
        self._running.pop(task.name)()
        if event.died:
            self._deaths[task.name] += 1
            logger.warning("%s: %s", task.name, event.error)
            if self._deaths[task.name] < _TRIES:
                self.todo.insert(0, task)
                return
        self._finish(task)
        if event.error is None:
            return
        logger.warning("%s failed: %s", task.name, event.error)
        if task.kind == "model":
            label = task.suspect.label
            which = "the victim" if label == VICTIM else f"{label} {task.suspect.seed}"
            self._broken.setdefault((task.preset, label), f"{which} could not be made: {event.error}")
        elif task.kind == "fingerprint":
            self._broken[task.preset, task.verifiers[0]] = event.error
        else:
            self._fail(task, event.error)

    def _fail(self, task: Task, reason: str) -> None:
        for row in self._benches[task.preset].failed_rows(task.suspect, self._left(task), reason):
            self._store.append(row)


def _claim(bench: Workbench, task: Task) -> str:
    """Return the name under which runs tell each other that they are at a task."""
    what = bench.fingerprint_key(task.verifiers[0]) if task.kind == "fingerprint" else task.suspect.key
    return cell_key(kind=task.kind, what=what, label=task.suspect.label)
