"""Full float32 inside the scope, whatever the caller set through either of torch's two interfaces; then that again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from art_fingerprint.core.precision import full_precision

backends: Any = torch.backends
NEW = hasattr(backends.cuda.matmul, "fp32_precision")


def _set(target: object, value: object, name: str = "fp32_precision") -> Callable[[], None]:
    return lambda: setattr(target, name, value)


OLD_STATES: dict[str, Callable[[], None]] = {
    "untouched": lambda: None,
    "matmul on": _set(backends.cuda.matmul, True, "allow_tf32"),
    "convolutions off": _set(backends.cudnn, False, "allow_tf32"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
}
NEW_STATES: dict[str, Callable[[], None]] = (
    {
        "new: matmul": _set(backends.cuda.matmul, "tf32"),
        "new: convolutions": _set(backends.cudnn.conv, "ieee"),
        "new: recurrent": _set(backends.cudnn.rnn, "ieee"),
        "new: bfloat16": _set(backends.mkldnn.matmul, "bf16"),
        "new: cudnn": _set(backends.cudnn, "tf32"),
        "new: all": _set(backends, "tf32"),
        "new: all full": _set(backends, "ieee"),
    }
    if NEW
    else {}
)


def readable(read: Callable[[], object]) -> object:
    try:
        return read()
    except RuntimeError:
        return "unreadable"


def snapshot() -> list[object]:
    old = [
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
    ]
    roots = (backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul)
    parts = (backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul) if NEW else ()
    return [*map(readable, old), *(getattr(each, "fp32_precision", None) for each in (*roots, *parts))]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = snapshot()
    yield
    if NEW:
        for target in (backends, backends.cudnn, backends.mkldnn, backends.cuda.matmul, backends.mkldnn.matmul):
            target.fp32_precision = "none"
        for part in (backends.cudnn.conv, backends.cudnn.rnn):
            part.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    if NEW:
        backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"
    assert snapshot() == before


@pytest.mark.parametrize("state", [*OLD_STATES, *NEW_STATES])
@pytest.mark.parametrize("fails", [False, True])
def test_full_precision_inside_and_the_callers_settings_afterwards(state: str, fails: bool) -> None:
    {**OLD_STATES, **NEW_STATES}[state]()
    before = snapshot()
    try:
        with full_precision():
            if NEW:
                lowered = ("tf32", "bf16")
                assert backends.cuda.matmul.fp32_precision not in lowered
                assert backends.mkldnn.matmul.fp32_precision not in lowered
                assert backends.cudnn.conv.fp32_precision not in lowered
                assert backends.cudnn.rnn.fp32_precision not in lowered
            assert readable(lambda: backends.cuda.matmul.allow_tf32) in (False, "unreadable")
            assert readable(lambda: backends.cudnn.allow_tf32) in (False, "unreadable")
            if fails:
                raise KeyError("half-way")
    except KeyError:
        assert fails
    assert snapshot() == before


def test_switches_stay_readable_where_they_were() -> None:
    with full_precision():
        assert backends.cudnn.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == "highest"


def test_scopes_nest() -> None:
    backends.cudnn.allow_tf32 = True
    with full_precision():
        with full_precision():
            pass
        assert backends.cudnn.allow_tf32 is False
    assert backends.cudnn.allow_tf32 is True
