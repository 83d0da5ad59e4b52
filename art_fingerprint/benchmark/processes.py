"""Tasks in worker processes: one for each GPU, or for each few cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from tqdm import tqdm

from art_fingerprint.benchmark.tasks import Event, Hands, Job, Task
from art_fingerprint.exceptions import FingerprintError

_PATIENCE_SECONDS = 5.0


class ProcessExecutor:
    """Does tasks in spawned workers, which get the job once and then one task after the other, through a pipe.

    A worker whose process dies, killed for memory say, is replaced, and its task reported. Workers die with the process
    that started them, however that ends. Where there are GPUs each worker sees one of them.

    :param job: The job.
    :param gpus: What each worker's ``CUDA_VISIBLE_DEVICES`` is, in turn; empty for no GPU.
    """

    def __init__(self, job: Job, gpus: list[str]) -> None:
        self._job = job
        self._gpus = gpus
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = [self._start(index) for index in range(job.nb_workers)]

    @property
    def free(self) -> bool:
        """Whether a worker is idle."""
        return any(worker.task is None for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Give a task to an idle worker."""
        worker = next(worker for worker in self._workers if worker.task is None)
        worker.task = task
        with suppress(BrokenPipeError, ConnectionResetError):  # it died while it was idle: `wait` finds out
            worker.connection.send(task)

    def wait(self) -> Event:
        """Wait for a worker to report something, or to die."""
        while True:
            busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                task = worker.task
                assert task is not None
                try:
                    event: Event = worker.connection.recv()
                except (EOFError, OSError):  # also in the middle of a message
                    return self._replace(worker, task)
                if event.row is None:
                    worker.task = None
                return event

    def close(self) -> None:
        """End all workers; what they are at is lost."""
        for worker in self._workers:
            if worker.task is not None:
                worker.process.terminate()
            worker.connection.close()  # an idle one ends by itself
        for worker in self._workers:
            worker.process.join(_PATIENCE_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _replace(self, worker: _Worker, task: Task) -> Event:
        worker.process.join()
        code = worker.process.exitcode
        worker.connection.close()
        index = self._workers.index(worker)
        self._workers[index] = self._start(index)
        how = f"exit status {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            how = f"signal {name}" + ", short of memory?" * (name == "SIGKILL")
        return Event(task, error=f"the worker process died ({how})", died=True)

    def _start(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._job), daemon=True, name=f"bench-{index}")
        variables = {"OMP_NUM_THREADS": str(self._job.most_threads)}
        if self._gpus:
            variables["CUDA_VISIBLE_DEVICES"] = self._gpus[index % len(self._gpus)]
        with _environment(variables):
            process.start()
        theirs.close()
        return _Worker(process, ours)


class _Worker:
    def __init__(self, process: BaseProcess, connection: Connection[Any, Any]) -> None:
        self.process = process
        self.connection = connection
        self.task: Task | None = None


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine as ``CUDA_VISIBLE_DEVICES`` names them, without beginning to use them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables that a process started in the block inherits."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection[Any, Any], job: Job) -> None:
    """Run in a worker: do tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which outlives a worker that is ended
    hands: Hands | None = None
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            hands = hands or Hands(job)
        except FingerprintError as error:  # of the folder
            connection.send(Event(task, error=str(error), fatal=True))
            continue
        for event in hands.work(task):
            connection.send(event)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
