"""The rule of all fuzz tests, stated once: a correct result, or an error that says which argument was wrong."""

from __future__ import annotations

import faulthandler
import re
import signal
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from art.exceptions import EstimatorError

from art_fingerprint.exceptions import FingerprintError

#: What bad input may raise; ``EstimatorError`` is ART's own for a wrong classifier, whose words are fixed.
REFUSALS = (FingerprintError, ValueError, EstimatorError)
#: What reading a file may cost beside a multiple of its size: parsers, messages, caches.
FIXED_MEMORY = 4_000_000
#: The same for the whole process, whose memory comes and goes in large pieces.
FIXED_RESIDENT = 64_000_000


class Hang(BaseException):
    """A call took far longer than it may. No ``except Exception`` catches it."""


class Refused:
    """What :func:`outcome_is_allowed` returns for an error that is allowed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def must_name(self, names: Sequence[str]) -> None:
        """Fail if the message is empty, or holds none of the names."""
        kind, message = type(self.error).__name__, str(self.error)
        assert message.strip(), f"{kind} without a message"
        named = not names or isinstance(self.error, EstimatorError) or any(name in message for name in names)
        assert named, f"{kind} names none of {names}: {message[:500]}"


def outcome_is_allowed(
    call: Callable[[], Any], *names: str, seconds: float = 20.0, also: tuple[type[Exception], ...] = ()
) -> Any:
    """Return the result of ``call``, or :class:`Refused`. Everything else fails the test.

    Allowed errors are :data:`REFUSALS` with a message, in which one of ``names`` occurs: argument or file.

    :param call: What is tested.
    :param names: Of the argument that may be wrong; none: any message will do.
    :param seconds: Limit of the time it may take; a case takes milliseconds.
    :param also: Further errors that are allowed.
    """
    try:
        with warnings.catch_warnings(), time_limit(seconds):
            warnings.simplefilter("ignore")
            return call()
    except (*REFUSALS, *also) as error:
        found = Refused(error)
    found.must_name(names)
    return found


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`Hang` in a block that takes too long; if not even that helps, show where and end the process."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 60, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Fail if a block takes more memory at a time than ten times ``size``, and a fixed amount.

    What Python and NumPy ask for is counted; where the system tells it, also what the whole process touches.
    """
    before = _resident(reset=True)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 10 * size + FIXED_MEMORY, f"{peak:,} bytes for an input of {size:,}"
    grown = _resident() - before
    assert grown <= 10 * size + FIXED_RESIDENT, f"{grown:,} bytes of the process for an input of {size:,}"


def _resident(reset: bool = False) -> int:
    """Return the largest resident memory of this process since it was reset; 0 where that is not known."""
    if not sys.platform.startswith("linux"):
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return 1024 * int(found[1]) if found else 0
