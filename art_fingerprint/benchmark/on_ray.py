"""Tasks on a Ray cluster, or on the Ray of this machine."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Any

from art_fingerprint.benchmark.tasks import Event, Hands, Job, Task
from art_fingerprint.exceptions import FingerprintError, InvalidInputError, MissingDependencyError

_PATIENCE_SECONDS = 10.0
_PER_WORKER = 2  # tasks in Ray's queue for each that runs, so that none waits for us


class RayExecutor:
    """Does tasks on Ray: each takes one GPU where the cluster has GPUs, and none where it has none.

    Every host needs the folder of the run under the same path, and this package. A Ray that is already running in this
    process is used and left running.

    :param job: The job.
    :param address: Address of a cluster, ``"auto"`` say; ``None`` starts Ray on this machine.
    :raises MissingDependencyError: Ray is not installed.
    :raises InvalidInputError: there is no cluster at the address.
    """

    def __init__(self, job: Job, address: str | None = None) -> None:
        self._ray = ray = _import_ray()
        self._ours = _connect(ray, address, None if address else job.nb_workers * job.most_threads)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if job.cuda else 0
        cpus = int(resources.get("CPU", 1))
        self._slots = _PER_WORKER * max(1, gpus or (cpus // job.most_threads if address else job.nb_workers))
        # Workers find the modules that this process finds: a plan may name networks of the current folder.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        environment = {"env_vars": {"PYTHONPATH": path}}
        self._work = ray.remote(
            num_cpus=job.most_threads, num_gpus=1 if gpus else 0, max_retries=0, runtime_env=environment
        )(_work)
        self._job = ray.put(job)
        self._running: dict[Any, Task] = {}
        self._events: list[Event] = []

    @property
    def free(self) -> bool:
        """Whether Ray's queue of our tasks has room."""
        return len(self._running) < self._slots

    def submit(self, task: Task) -> None:
        """Hand a task to Ray."""
        self._running[self._work.remote(self._job, task)] = task

    def wait(self) -> Event:
        """Wait for a task to end; its rows come first."""
        while not self._events:
            (ready, *_), _ = self._ray.wait(list(self._running), num_returns=1)
            task = self._running.pop(ready)
            try:
                self._events += self._ray.get(ready)
            except self._ray.exceptions.RayError as died:  # an error of the work itself comes back as a value
                how = " ".join(str(died).split())
                self._events.append(Event(task, error=f"the Ray worker died ({how[:300]})", died=True))
        return self._events.pop(0)

    def close(self) -> None:
        """End our tasks, and Ray where we started it."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._ours:
            self._ray.shutdown()


def cluster_has_gpus(address: str) -> bool:
    """Tell whether a cluster has GPUs, which this process may lack.

    :raises MissingDependencyError: Ray is not installed.
    :raises InvalidInputError: there is no cluster at the address.
    """
    ray = _import_ray()
    ours = _connect(ray, address, None)
    try:
        return bool(ray.cluster_resources().get("GPU", 0) >= 1)
    finally:
        if ours:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "The executor 'ray' needs Ray: python -m pip install 'art-fingerprint[ray]'."
        ) from error
    return ray


def _connect(ray: Any, address: str | None, nb_cpus: int | None) -> bool:
    """Connect to a cluster, or start Ray on this machine, unless this process has one. Return whether it was we."""
    if ray.is_initialized():
        return False
    if address is not None:
        _check_listening(address)
    options: dict[str, Any] = {"address": address} if address else {"num_cpus": nb_cpus, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise InvalidInputError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from error
    return True


def _check_listening(address: str) -> None:
    """Raise if nobody listens at ``host:port``, where Ray would try again for a quarter of an hour."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):  # "auto", "local": Ray knows at once
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InvalidInputError(f"Ray cannot be reached at {address}: {error}") from error


def _work(job: Job, task: Task) -> list[Event]:
    """Run on a Ray worker: do one task and return all there is to report of it."""
    if job.token not in _HANDS:
        _HANDS.clear()
        try:
            _HANDS[job.token] = Hands(job)
        except FingerprintError as error:  # of the folder
            return [Event(task, error=str(error), fatal=True)]
    return list(_HANDS[job.token].work(task))


_HANDS: dict[str, Hands] = {}  # what the tasks of one job share, as long as Ray keeps this worker
