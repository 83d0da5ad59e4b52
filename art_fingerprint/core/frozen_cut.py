"""A cut whose tail takes many passes between two changes of the weights, and is made fast for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, fx, nn

from art_fingerprint.core.cut import LayerCut, copied
from art_fingerprint.core.folding import FoldedConv, fold_batch_norm
from art_fingerprint.core.notices import warn_caller
from art_fingerprint.core.weight_format import equal_but_for_rounding

logger = logging.getLogger(__name__)


class FrozenCut(LayerCut):
    """A :class:`.LayerCut` with BatchNorm folded into the convolutions of the tail, where the tail is a graph.

    :meth:`tail_for` takes the weights over as they are when it is called (elementwise work on the tail's weights, no
    pass); what it returns keeps them. Values differ from the plain tail's by rounding; a tail that differs by more on
    ``example`` is not folded. Parameters as there; two tail passes more for the check.

    :ivar nb_folded: Number of BatchNorm layers folded.
    """

    nb_folded = 0

    def tail_for(self, prepared: Tensor) -> Callable[[Tensor], Tensor]:
        """Return g for these inputs, as the weights are now; see :meth:`.LayerCut.tail_for`."""
        if self.method == "graph":
            self._frozen.refresh()
        return super().tail_for(prepared)

    def compile_tail(self, prepared: Tensor) -> bool:
        """Run the tail through ``torch.compile`` for batches of ``len(prepared)``; others run as before.

        The program is made here, for forward and backward pass (seconds to minutes), so that a failure is found here:
        it gives one warning, and the tail runs as before. Call it in the gradient and autocast mode of the passes.

        :return: Whether it worked.
        """
        if self.method == "hooks":
            warn_caller(f"The cut at {self.layer!r} works by hooks, which cannot be compiled; it runs as it is.")
            return False
        with torch.no_grad():
            z, _ = self.forward(prepared)
        try:
            self._frozen.compile_for(len(prepared))
            latent = z.float().requires_grad_(True)
            with torch.enable_grad():
                torch.autograd.grad(self.tail_for(prepared)(latent).sum(), latent)
        except Exception as error:  # a missing compiler, an operation that is not supported, ...
            self._frozen.compiled_size = None
            reason = str(error).strip().split("\n")[0]
            warn_caller(f"torch.compile failed, the tail runs as it is ({type(error).__name__}: {reason}).")
            return False
        return True

    def _split(self, example: Tensor, output: Tensor, strict: bool) -> None:
        super()._split(example, output, strict)
        if self.method == "hooks":
            return
        plain = cast(fx.GraphModule, self._tail)
        tail, folded = fold_batch_norm(plain)
        if folded:
            with torch.no_grad():
                again = tail(*map(copied, self._head(example)))
            if not equal_but_for_rounding(again, output):
                logger.info("Folding BatchNorm behind %s changes the output; it is left as it is.", self.layer)
                tail, folded = plain, []
        self.nb_folded = len(folded)
        self._tail = self._frozen = _FrozenTail(tail, folded)


class _FrozenTail(nn.Module):
    """The tail as one module, whatever runs inside."""

    def __init__(self, module: nn.Module, folded: list[FoldedConv]) -> None:
        super().__init__()
        self.module = module
        self.compiled_size: int | None = None
        self._folded = folded

    def refresh(self) -> None:
        for conv in self._folded:
            conv.refresh()

    def compile_for(self, size: int) -> None:
        self._program = torch.compile(self.module, dynamic=False)
        self.compiled_size = size

    def forward(self, z: Tensor, *side: object) -> Tensor:
        run = self._program if len(z) == self.compiled_size else self.module
        return run(z, *side)  # type: ignore[no-any-return]
