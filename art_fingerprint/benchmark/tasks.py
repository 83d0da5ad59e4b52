"""The units of work of a bench, as data, and what does them: alike in this process, in a worker, or on another host."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from art_fingerprint.benchmark.plan import Plan
from art_fingerprint.benchmark.store import PLAN, Store
from art_fingerprint.benchmark.suspects import Suspect, reason_of
from art_fingerprint.benchmark.workbench import Row, Workbench
from art_fingerprint.exceptions import StoreError

Kind = Literal["model", "fingerprint", "rows"]


@dataclass(frozen=True)
class Task:
    """One unit of work; whoever does it finds everything else in files.

    :ivar kind: ``"model"``: train the victim or a reference. ``"fingerprint"``: extract and calibrate one verifier.
        ``"rows"``: make one suspect and score it with each verifier.
    :ivar preset: The victim's name in the plan.
    :ivar suspect: The model that is made.
    :ivar verifiers: Verifiers.
    :ivar broken: Verifiers among them that could not be made, with the reason.
    """

    kind: Kind
    preset: str
    suspect: Suspect
    verifiers: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the task, for people and to tell tasks of a plan apart."""
        if self.kind == "fingerprint":
            return f"{self.preset}: {self.verifiers[0]}"
        what = f"{self.preset}: {self.suspect.label} {self.suspect.seed}"
        return f"{what} (training)" if self.kind == "model" else what


@dataclass(frozen=True)
class Job:
    """What a worker is told once: the plan, and where everything is kept.

    :ivar plan: The plan.
    :ivar folder: Folder of the run, the same files for every worker.
    :ivar device_type: ``"gpu"`` or ``"cpu"``.
    :ivar cuda: Whether the workers have CUDA.
    :ivar nb_workers: Number of workers.
    :ivar default_threads: CPU threads of a worker, where a victim's preset does not say how many.
    :ivar token: Tells jobs apart.
    """

    plan: Plan
    folder: str
    device_type: str
    cuda: bool = False
    nb_workers: int = 1
    default_threads: int = 1
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def threads(self, preset: str) -> int:
        """Return the CPU threads for the work on one victim."""
        return next(p.threads for p in self.plan.presets if p.name == preset) or self.default_threads

    @property
    def most_threads(self) -> int:
        """CPU threads that a worker needs."""
        return max(self.threads(preset.name) for preset in self.plan.presets)


@dataclass(frozen=True)
class Event:
    """What an executor reports of a task: rows, one event each, then how it ended, the only event without a row.

    :ivar task: The task.
    :ivar row: A row that is known now; the task goes on.
    :ivar error: Where the task ended: why it failed, or ``None``.
    :ivar died: Whether its worker ended before it did.
    :ivar fatal: Whether the run cannot go on.
    """

    task: Task
    row: Row | None = None
    error: str | None = None
    died: bool = False
    fatal: bool = False


class Executor(Protocol):
    """Where tasks are done."""

    @property
    def free(self) -> bool:
        """Whether another task can be submitted."""

    def submit(self, task: Task) -> None:
        """Begin a task."""

    def wait(self) -> Event:
        """Return the next event of a submitted task, when there is one."""

    def close(self) -> None:
        """End everything, finished or not."""


class Hands:
    """Does tasks, one after the other, and keeps what several of them need.

    :param job: The job.
    :raises StoreError: the folder is not there, as on a host that does not share it.
    """

    def __init__(self, job: Job) -> None:
        if not os.path.isfile(os.path.join(job.folder, PLAN)):
            raise StoreError(
                f"The folder {job.folder} of this run is not to be seen from {platform.node()}: every host needs "
                "it under the same path, on a file system that they share."
            )
        self.job = job
        self.store = Store(job.folder)
        self._benches: dict[str, Workbench] = {}

    def bench(self, preset: str) -> Workbench:
        """Return the workbench of one victim; that of another is let go."""
        if preset not in self._benches:
            (chosen,) = (p for p in self.job.plan.presets if p.name == preset)
            job = self.job
            self._benches = {preset: Workbench(chosen, self.store, job.plan.seeds, job.device_type, job.cuda)}
        return self._benches[preset]

    def work(self, task: Task) -> Iterator[Event]:
        """Do a task: yield its rows as they come, then how it ended."""
        torch.set_num_threads(self.job.threads(task.preset))
        error: str | None = None
        try:
            bench = self.bench(task.preset)
            if task.kind == "rows":
                for row in bench.rows(task.suspect, task.verifiers, task.broken):
                    yield Event(task, row=row)
            elif task.kind == "model":
                bench.model(task.suspect)
            else:
                bench.verifier(task.verifiers[0])
        except StoreError as full:
            yield Event(task, error=str(full), fatal=True)
            return
        except Exception as failure:
            error = reason_of(failure)
        yield Event(task, error=error)


class SerialExecutor:
    """Does tasks in the calling process."""

    def __init__(self, job: Job) -> None:
        self._hands = Hands(job)
        self._events: Iterator[Event] | None = None

    @property
    def free(self) -> bool:
        """Whether another task can be submitted: one at a time."""
        return self._events is None

    def submit(self, task: Task) -> None:
        """Take a task."""
        self._events = self._hands.work(task)

    def wait(self) -> Event:
        """Work until there is something to report."""
        assert self._events is not None
        event = next(self._events)
        if event.row is None:
            self._events = None
        return event

    def close(self) -> None:
        """Leave the task that is running, if any."""
        self._events = None


def nb_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
