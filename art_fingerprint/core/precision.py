"""Scopes of float32 arithmetic: without the caller's autocast and defaults, and without TF32 or bfloat16 inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch


@contextmanager
def plain_torch() -> Iterator[None]:
    """Leave the caller's autocast, inference mode, default device and default dtype out of a block.

    Inside, new tensors are float32 on the CPU unless the code says otherwise, as it expects.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype is not torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in full float32 (see also :func:`plain_torch`), and give the caller's settings back afterwards, errors
    included.

    TF32 keeps 10 bits of a factor's fraction, which can move the label of a probe near a decision boundary even for the
    victim itself; cuDNN uses it for convolutions unless told otherwise.
    """
    # torch has two interfaces to one state: switches for all backends and, since 2.9, a setting for each backend. What
    # was set through the second may be unreadable through the first.
    settings = [(backend, backend.fp32_precision) for backend in _backends()]
    try:
        switches = (torch.get_float32_matmul_precision(), bool(torch.backends.cudnn.allow_tf32))
    except RuntimeError:
        switches = None
    try:
        if switches is None:
            for backend, _ in settings:
                backend.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        with plain_torch():
            yield
    finally:
        if switches is not None:
            torch.set_float32_matmul_precision(switches[0])
            torch.backends.cudnn.allow_tf32 = switches[1]
        for backend, precision in settings:
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


@cache
def _backends() -> list[Any]:
    roots: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (torch.backends.cuda, ("matmul",)),
        (torch.backends.cudnn, ("conv", "rnn")),
        (torch.backends.mkldnn, ("matmul", "conv", "rnn")),
    )
    found = [getattr(root, name, None) for root, names in roots for name in names]
    return [backend for backend in found if hasattr(backend, "fp32_precision")]
