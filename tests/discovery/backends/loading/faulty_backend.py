"""A backend whose answers can be changed, to test the checks that run when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.info import Abilities
from discovery.interventions import Edit
from discovery.sites import Site

ALL_ABILITIES = Abilities(
    prefix=True,
    columns=True,
    linear_heads=True,
    after_attention=True,
    pattern=True,
    joins=True,
    last_position_only=True,
)


class FaultyBackend(Backend):
    """A sound backend whose results pass through a function that may change them.

    Attributes:
        alter: gets the batch, the edits and the result of each run, and returns what is answered.
    """

    def __init__(
        self,
        inner: Backend,
        alter: Callable[[Batch, Sequence[Edit], BatchResult], BatchResult],
    ) -> None:
        self.inner = inner
        self.alter = alter
        self.info = inner.info
        self.tokenizer = None
        self.abilities = inner.abilities

    def run(
        self,
        batch: Batch,
        reads: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        *,
        keep_prefix: bool = False,
        grad: bool = False,
    ) -> BatchResult:
        out = self.inner.run(batch, reads, edits, keep_prefix=keep_prefix, grad=grad)
        return self.alter(batch, edits, out)

    def head_weights(self, layer: int) -> Any:
        return self.inner.head_weights(layer)


def shift_logits(out: BatchResult) -> BatchResult:
    """Add 1 to all logits, if there are any."""
    return replace(out, logits=None if out.logits is None else out.logits + 1)
