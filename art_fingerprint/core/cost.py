"""The cost account of an attack: samples through each network, time and memory, measured where they happen."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from art_fingerprint.core.cut import LayerCut
from art_fingerprint.core.guard import evaluating

ROLES = ("surrogate", "victim")
_RUNNING: ContextVar[tuple[CostMeter, ...]] = ContextVar("running cost meters", default=())


class CostMeter:
    """Counts what a block costs. Passes are seen by a hook on each watched network, so no attack counts by itself.

    The account of a network, in samples:

    - ``forward``: samples that entered it. A pass that is stopped at a layer counts as a whole one.
    - ``backward``: samples whose gradient reached its output while some weight was trainable.
    - ``input_backward``: the same while none was: gradients of the input alone.
    - ``tail_forward``, ``tail_backward``: samples through the part above a :class:`.LayerCut`, run alone; gradients of
      the latent alone. ``tail_share`` is that part's share of the network's multiplications, for one sample.
    - ``forward_equivalents``: ``forward + 2 backward + input_backward + tail_share (tail_forward + tail_backward)``,
      in forward passes of one sample through this network. A backward pass counts as a whole one, however many layers
      are frozen.

    Memory is torch's peak of allocated bytes on a CUDA device during the block (its peak statistics are reset). On a
    CPU only the highest resident size of the process since it started is known, whatever caused it.

    :param device: Where the networks are.
    :ivar seconds: Wall time of the block, without what ran :func:`uncounted`. Known after it.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._shares: dict[str, float] = {}
        self._handles: list[Any] = []
        self._paused = False
        self._idle = 0.0
        self.seconds = 0.0

    def __enter__(self) -> CostMeter:
        self._token = _RUNNING.set((*_RUNNING.get(), self))
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _RUNNING.reset(self._token)
        for handle in self._handles:
            handle.remove()
        if self._device.type == "cuda" and error is None:
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._started - self._idle

    def watch(self, role: str, network: nn.Module) -> None:
        """Count the passes of a network until the block ends, as those of ``"surrogate"`` or ``"victim"``.

        It gets a copy of its input meanwhile, to which it may write: one batch is shown to both networks.
        """
        self._handles.append(network.register_forward_pre_hook(_Ear(lambda inputs: (inputs[0].clone(), *inputs[1:]))))
        self._listen(role, network, "")

    def watch_cut(self, role: str, cut: LayerCut, example: Tensor) -> None:
        """Count the passes of a cut network's parts too. Cost: one forward pass of one sample, and its tail's.

        The few samples on which the cut has checked itself went through its parts before, uncounted.

        :param example: Preprocessed inputs; the first one measures the tail's share.
        """
        if cut.parts is None:  # every tail pass runs the whole network, which is watched
            return
        head, tail = cut.parts
        self._listen(role, head, "")  # only run alone for side inputs
        self._listen(role, tail, "tail_")
        with torch.no_grad(), evaluating(cut.network):
            with FlopCounterMode(display=False) as whole:
                z, _ = cut.forward(example[:1])
            run = cut.tail_for(example[:1])
            with FlopCounterMode(display=False) as part:
                run(z)
        total = whole.get_total_flops()
        self._shares[role] = part.get_total_flops() / total if total else 1.0

    def add(self, role: str, kind: str, samples: int) -> None:
        """Count samples of a pass that no hook can see."""
        if not self._paused:
            self._counts[role, kind] += samples

    def _listen(self, role: str, module: nn.Module, part: str) -> None:
        weights = list(module.parameters())

        def enter(inputs: tuple[Tensor, ...]) -> None:
            self.add(role, part + "forward", len(inputs[0]))

        def leave(_inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                samples = len(output)
                trained = part == "" and any(weight.requires_grad for weight in weights)
                kind = part + ("backward" if trained or part else "input_backward")
                output.register_hook(lambda _gradient: self.add(role, kind, samples))

        self._handles += [module.register_forward_pre_hook(_Ear(enter)), module.register_forward_hook(_Ear(leave))]

    def account(self) -> dict[str, Any]:
        """Return the account as JSON values: one table for each network, the sum of their ``forward_equivalents``,
        ``seconds``, ``peak_memory_bytes``, and of what that is the peak (``peak_memory_of``: ``"device"``,
        ``"process"``, or ``None`` where it is unknown).
        """
        networks = {role: self._network(role) for role in ROLES}
        where, peak = self._memory()
        return {
            **networks,
            "forward_equivalents": sum(table["forward_equivalents"] for table in networks.values()),
            "seconds": self.seconds,
            "peak_memory_bytes": peak,
            "peak_memory_of": where,
        }

    def _network(self, role: str) -> dict[str, Any]:
        kinds = ("forward", "backward", "input_backward", "tail_forward", "tail_backward")
        table: dict[str, Any] = {kind: self._counts[role, kind] for kind in kinds}
        share = self._shares.get(role)
        whole = table["forward"] + 2 * table["backward"] + table["input_backward"]
        tail = table["tail_forward"] + table["tail_backward"]
        return {**table, "tail_share": share, "forward_equivalents": whole + (share or 0.0) * tail}

    def _memory(self) -> tuple[str | None, int | None]:
        if self._device.type == "cuda":
            return "device", torch.cuda.max_memory_allocated(self._device)
        try:
            import resource
        except ImportError:  # not on Windows
            return None, None
        unit = 1 if sys.platform == "darwin" else 1024
        return "process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Ear:
    """A hook that copies of its network do not take along, be they made by ``copy`` or ``pickle``: theirs does nothing.

    :param hear: Called with what the hook gets, but for the module.
    """

    def __init__(self, hear: Callable[..., Any]) -> None:
        self._hear = hear

    def __call__(self, _module: nn.Module, *passed: Any) -> Any:
        return self._hear(*passed)

    def __reduce__(self) -> tuple[type[_Ear], tuple[Callable[..., None]]]:
        return _Ear, (_hear_nothing,)


def _hear_nothing(*_passed: object) -> None:
    pass


def cost_so_far() -> dict[str, Any] | None:
    """Return the account, as :meth:`CostMeter.account`, of the innermost running meter up to now; ``None`` without one.

    For a callback of an attack, at its beginning: what the callback itself does is not counted.
    """
    meters = _RUNNING.get()
    if not meters:
        return None
    meter = meters[-1]
    if meter._device.type == "cuda":
        torch.cuda.synchronize(meter._device)
    meter.seconds = time.perf_counter() - meter._started - meter._idle
    return meter.account()


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave a block out of every running account, its passes and its time: a user's callback, say."""
    meters = [meter for meter in _RUNNING.get() if not meter._paused]
    started = time.perf_counter()
    for meter in meters:
        meter._paused = True
    try:
        yield
    finally:
        for meter in meters:
            meter._paused = False
            meter._idle += time.perf_counter() - started
