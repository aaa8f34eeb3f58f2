"""The body of one nnsight trace: it visits what is wanted in the order of the forward pass, and stops it once it has everything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from discovery.backends.base import Batch, forward_order
from discovery.backends.last_position import Narrowing, at_answer
from discovery.backends.nnsight.traced_model import Parts
from discovery.interventions import Edit
from discovery.sites import Site


class Walk:
    """The body of one trace: visits what is wanted, in the order of the forward pass.

    Attributes:
        seen: sites after their edits.
        logits: at the answer positions, or what is unembedded there where columns are wanted.
        out: what the module returned.
    """

    def __init__(self, parts: Parts, batch: Batch, reads: Sequence[Site], edits: Sequence[Edit], grad: bool, narrowing: Narrowing) -> None:
        self.parts, self.batch, self.grad, self.narrowing = parts, batch, grad, narrowing
        self.seen: dict[Site, Tensor] = {}
        self._kept = {*reads, *(Site("resid_pre", edit.site.layer) for edit in edits if edit.site.kind == "resid_mid")}
        self.logits: Tensor | None = None
        self.out: Any = None
        self._residual = None if batch.residual is None else batch.residual.to(parts.width)
        self._edits: dict[Site, list[Edit]] = defaultdict(list)
        for edit in edits:
            self._edits[edit.site].append(edit)
        middles = [site.layer for site in self._edits if site.kind == "resid_mid"]  # is changed through what it is the sum of
        enters = set()
        if batch.start < len(parts.blocks) and (grad or batch.middle or (batch.start == 0 and batch.residual is not None)):
            enters.add(batch.start)
        wanted = {*reads, *self._edits, *(Site("resid_pre", layer) for layer in (*middles, *enters))}
        last = len(parts.blocks) - 1
        self._cut = {Site("z", last)} if batch.narrow and batch.start <= last else set()
        self._wanted = sorted(wanted | {Site("attn_out", layer) for layer in middles} | self._cut, key=forward_order)

    def __call__(self, tracer: Any) -> None:
        """Run inside the trace; every access waits until the forward pass gets there."""
        batch, parts = self.batch, self.parts
        for block in parts.blocks[: batch.start]:
            block.skip(self._residual if parts.block_returns is None else (self._residual, *[None] * (parts.block_returns - 1)))
        for site in self._wanted:
            self._visit(site)
            if batch.middle and site == Site("resid_pre", batch.start):
                attn = attrgetter(parts.layout.attn)(parts.blocks[batch.start])
                attn.skip((torch.zeros_like(self._residual), None))  # type: ignore[arg-type]  # a start has one
        if batch.stop is not None or batch.last is None:
            return tracer.stop()  # type: ignore[no-any-return]  # raises
        answer = parts.last.input[torch.arange(len(batch.last), device=batch.last.device), batch.last]
        if batch.columns is not None:
            self.logits = answer
            return tracer.stop()  # type: ignore[no-any-return]  # raises
        parts.last.input = answer.unsqueeze(1)
        self.out = parts.net.output
        self.logits = (self.out if isinstance(self.out, Tensor) else self.out.logits)[:, 0]

    def _visit(self, site: Site) -> None:
        """Read a site, change it, and put it back where it changed."""
        envoy, side = self.parts.place(site)
        given = getattr(envoy, side)
        whole = given[0] if isinstance(given, tuple) else given
        flat = whole.ndim == 2  # OPT's MLP works on [row·pos d_model]
        found = whole.unflatten(0, self.batch.tokens.shape) if flat else whole
        pieces = self.parts.heads.apart(site.kind, found)
        now = self._changed(site, pieces[0])
        if site in self._kept:  # what merely enters would be held, layer by layer, until the end
            self.seen[site] = now
        if site.kind == "attn_out" and (middle := Site("resid_mid", site.layer)) in self._edits:
            entered = self.seen[Site("resid_pre", site.layer)]
            before = now + (at_answer(self.batch, entered) if now.shape[1] < entered.shape[1] else entered)
            after = before
            for edit in self._edits.get(middle, ()):
                after = edit.apply(after)
            now = now + (after - before)
        if now is pieces[0] and not self.grad and site not in self._cut:
            return
        put = self.parts.heads.together(site.kind, now, pieces)  # what was read is then part of the graph
        put = self.narrowing.cut("z", put) if site in self._cut else put
        put = put.flatten(0, 1) if flat else put
        setattr(envoy, side, (put, *given[1:]) if isinstance(given, tuple) else put)

    def _changed(self, site: Site, value: Tensor) -> Tensor:
        """With what enters there, and the site's own edits."""
        if site == Site("resid_pre", self.batch.start):
            value = value if self._residual is None else self._residual
            value = value.detach().requires_grad_() if self.grad and not value.requires_grad else value
        for edit in self._edits.get(site, ()) if site.kind != "resid_mid" else ():
            value = edit.apply(value)
        return value
