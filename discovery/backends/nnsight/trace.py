"""The body of one nnsight trace: it visits what is wanted in the order of the forward pass, and stops it once it has everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from discovery.backends.base import Batch, forward_order
from discovery.backends.last_position import LastPosition, take_answer_position
from discovery.backends.nnsight.traced_model import TracedModel
from discovery.interventions import Edit
from discovery.sites import Site


class TraceBody:
    """The body of one trace: visits what is wanted, in the order of the forward pass.

    Attributes:
        seen: sites after their edits.
        logits: at the answer positions, or what is unembedded there where columns are wanted.
        out: what the module returned.
    """

    def __init__(
        self,
        parts: TracedModel,
        batch: Batch,
        reads: Sequence[Site],
        edits: Sequence[Edit],
        grad: bool,
        last_position: LastPosition,
    ) -> None:
        self.parts, self.batch, self.grad, self.last_position = parts, batch, grad, last_position
        self.activations: dict[Site, Tensor] = {}
        self._stored_sites = {
            *reads,
            *(
                Site("resid_pre", edit.site.layer)
                for edit in edits
                if edit.site.kind == "resid_mid"
            ),
        }
        self.logits: Tensor | None = None
        self.output: Any = None
        self._residual = None if batch.residual is None else batch.residual.to(parts.dtype)
        self._edits: dict[Site, list[Edit]] = defaultdict(list)
        for edit in edits:
            self._edits[edit.site].append(edit)
        middles = [
            site.layer for site in self._edits if site.kind == "resid_mid"
        ]  # is changed through what it is the sum of
        enters = set()
        if batch.start < len(parts.blocks) and (
            grad or batch.after_attention or (batch.start == 0 and batch.residual is not None)
        ):
            enters.add(batch.start)
        wanted = {
            *reads,
            *self._edits,
            *(Site("resid_pre", layer) for layer in (*middles, *enters)),
        }
        last = len(parts.blocks) - 1
        self._cut = {Site("z", last)} if batch.last_position_only and batch.start <= last else set()
        self._wanted = sorted(
            wanted | {Site("attn_out", layer) for layer in middles} | self._cut, key=forward_order
        )

    def __call__(self, tracer: Any) -> None:
        """Run inside the trace; every access waits until the forward pass gets there."""
        batch, parts = self.batch, self.parts
        for block in parts.blocks[: batch.start]:
            block.skip(
                self._residual
                if parts.block_tuple_length is None
                else (self._residual, *[None] * (parts.block_tuple_length - 1))
            )
        for site in self._wanted:
            self._visit(site)
            if batch.after_attention and site == Site("resid_pre", batch.start):
                attn = attrgetter(parts.layout.attn)(parts.blocks[batch.start])
                attn.skip((torch.zeros_like(self._residual), None))  # type: ignore[arg-type]  # a start has one
        if batch.stop is not None or batch.answer_position is None:
            return tracer.stop()  # type: ignore[no-any-return]  # raises
        answer = parts.unembed.input[
            torch.arange(len(batch.answer_position), device=batch.answer_position.device),
            batch.answer_position,
        ]
        if batch.columns is not None:
            self.logits = answer
            return tracer.stop()  # type: ignore[no-any-return]  # raises
        parts.unembed.input = answer.unsqueeze(1)
        self.output = parts.model.output
        self.logits = (self.output if isinstance(self.output, Tensor) else self.output.logits)[:, 0]

    def _visit(self, site: Site) -> None:
        """Read a site, change it, and put it back where it changed."""
        envoy, side = self.parts.locate(site)
        given = getattr(envoy, side)
        whole = given[0] if isinstance(given, tuple) else given
        flat = whole.ndim == 2  # OPT's MLP works on [row·pos d_model]
        found = whole.unflatten(0, self.batch.tokens.shape) if flat else whole
        pieces = self.parts.head_layout.split(site.kind, found)
        now = self._apply_edits(site, pieces[0])
        if (
            site in self._stored_sites
        ):  # what merely enters would be held, layer by layer, until the end
            self.activations[site] = now
        if site.kind == "attn_out" and (middle := Site("resid_mid", site.layer)) in self._edits:
            entered = self.activations[Site("resid_pre", site.layer)]
            before = now + (
                take_answer_position(self.batch, entered)
                if now.shape[1] < entered.shape[1]
                else entered
            )
            after = before
            for edit in self._edits.get(middle, ()):
                after = edit.apply(after)
            now = now + (after - before)
        if now is pieces[0] and not self.grad and site not in self._cut:
            return
        put = self.parts.head_layout.merge(
            site.kind, now, pieces
        )  # what was read is then part of the graph
        put = self.last_position.cut("z", put) if site in self._cut else put
        put = put.flatten(0, 1) if flat else put
        setattr(envoy, side, (put, *given[1:]) if isinstance(given, tuple) else put)

    def _apply_edits(self, site: Site, value: Tensor) -> Tensor:
        """With what enters there, and the site's own edits."""
        if site == Site("resid_pre", self.batch.start):
            value = value if self._residual is None else self._residual
            value = (
                value.detach().requires_grad_() if self.grad and not value.requires_grad else value
            )
        for edit in self._edits.get(site, ()) if site.kind != "resid_mid" else ():
            value = edit.apply(value)
        return value
