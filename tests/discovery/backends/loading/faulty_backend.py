"""A backend whose answers can be changed: what the checks at load are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.interventions import Edit
from discovery.sites import Site


class FaultyBackend(Backend):
    """A sound backend, some of whose answers are changed."""

    def __init__(self, inner: Any, lie: Any) -> None:
        self.inner, self.alter = inner, lie
        self.info, self.tokenizer, self.abilities = inner.info, None, inner.abilities

    def run(
        self,
        batch: Batch,
        reads: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        *,
        keep_prefix: bool = False,
        grad: bool = False,
    ) -> BatchResult:
        out: BatchResult = self.inner.run(batch, reads, edits, keep_prefix=keep_prefix, grad=grad)
        return self.alter(batch, edits, out)  # type: ignore[no-any-return]

    def head_weights(self, layer: int) -> Any:
        return self.inner.head_weights(layer)


def shift_logits(out: BatchResult) -> BatchResult:
    return replace(out, logits=None if out.logits is None else out.logits + 1)
