"""The body of one nnsight trace, which reads and edits sites as the forward pass reaches them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from discovery.backends.base import Batch, forward_order
from discovery.backends.last_position import LastPosition, take_answer_position
from discovery.backends.nnsight.traced_model import TracedModel
from discovery.interventions import Edit, edits_by_site
from discovery.sites import Site


class TraceBody:
    """The body of one trace: it visits sites in forward order, and stops once it has everything.

    Attributes:
        activations: the sites that were asked for, after their edits.
        logits: the logits at the answer positions, or the input of the unembedding there if only
            some columns are wanted.
        output: what the module returned.
    """

    def __init__(
        self,
        traced_model: TracedModel,
        batch: Batch,
        reads: Sequence[Site],
        edits: Sequence[Edit],
        *,
        grad: bool,
        last_position: LastPosition,
    ) -> None:
        """Plan which sites to visit. The arguments are those of `Backend.run`."""
        self.traced_model = traced_model
        self.batch = batch
        self.grad = grad
        self.last_position = last_position
        self.activations: dict[Site, Tensor] = {}
        self.logits: Tensor | None = None
        self.output: Any = None
        self._residual = None if batch.residual is None else batch.residual.to(traced_model.dtype)
        self._edits = edits_by_site(edits)
        n_layers = len(traced_model.blocks)
        # An edit of resid_mid changes attn_out, by what it changes of resid_pre + attn_out.
        edited_mid = [site.layer for site in self._edits if site.kind == "resid_mid"]
        mid_inputs = {Site("resid_pre", layer) for layer in edited_mid}
        self._stored_sites = {*reads, *mid_inputs}
        is_put_in = batch.start == 0 and batch.residual is not None
        entry_sites = set()
        if batch.start < n_layers and (grad or batch.after_attention or is_put_in):
            entry_sites.add(Site("resid_pre", batch.start))
        self._cut_sites = set()
        if batch.last_position_only and batch.start < n_layers:
            self._cut_sites.add(Site("z", n_layers - 1))
        self._visits = sorted(
            {
                *reads,
                *self._edits,
                *mid_inputs,
                *(Site("attn_out", layer) for layer in edited_mid),
                *entry_sites,
                *self._cut_sites,
            },
            key=forward_order,
        )

    def __call__(self, tracer: Any) -> None:
        """Run inside the trace; every access waits until the forward pass gets there."""
        batch, model = self.batch, self.traced_model
        for block in model.blocks[: batch.start]:
            block.skip(model.as_block_output(self._residual))
        for site in self._visits:
            self._visit(site)
            if batch.after_attention and site == Site("resid_pre", batch.start):
                assert self._residual is not None
                attn = attrgetter(model.layout.attn)(model.blocks[batch.start])
                attn.skip((torch.zeros_like(self._residual), None))
        if batch.stop is not None or batch.answer_position is None:
            return tracer.stop()  # type: ignore[no-any-return]  # raises
        rows = torch.arange(len(batch.answer_position), device=batch.answer_position.device)
        answer = model.unembed.input[rows, batch.answer_position]
        if batch.columns is not None:
            self.logits = answer
            return tracer.stop()  # type: ignore[no-any-return]  # raises
        model.unembed.input = answer.unsqueeze(1)
        self.output = model.model.output
        self.logits = (self.output if isinstance(self.output, Tensor) else self.output.logits)[:, 0]

    def _visit(self, site: Site) -> None:
        """Read a site, apply its edits, and put the result back if it has changed."""
        envoy, side = self.traced_model.locate(site)
        io = getattr(envoy, side)
        whole = io[0] if isinstance(io, tuple) else io
        is_flat = whole.ndim == 2  # OPT's MLP works on [row·pos d_model]
        shaped = whole.unflatten(0, self.batch.tokens.shape) if is_flat else whole
        parts = self.traced_model.head_layout.split(site.kind, shaped)
        value = self._apply_edits(site, parts[0])
        # Only what is needed later is stored: the trace holds it, layer by layer, until its end.
        if site in self._stored_sites:
            self.activations[site] = value
        if site.kind == "attn_out":
            value = self._apply_resid_mid_edits(site.layer, value)
        if value is parts[0] and not self.grad and site not in self._cut_sites:
            return
        # With gradients, what was read becomes part of the graph.
        merged = self.traced_model.head_layout.merge(site.kind, value, parts)
        if site in self._cut_sites:
            merged = self.last_position.cut("z", merged)
        if is_flat:
            merged = merged.flatten(0, 1)
        setattr(envoy, side, (merged, *io[1:]) if isinstance(io, tuple) else merged)

    def _apply_resid_mid_edits(self, layer: int, attn_out: Tensor) -> Tensor:
        """Add to attn_out what the edits of the layer's resid_mid add to resid_pre + attn_out."""
        site = Site("resid_mid", layer)
        if site not in self._edits:
            return attn_out
        entered = self.activations[Site("resid_pre", layer)]
        if attn_out.shape[1] < entered.shape[1]:  # attn_out has the answer position only
            entered = take_answer_position(self.batch, entered)
        resid_mid = attn_out + entered
        edited = resid_mid
        for edit in self._edits[site]:
            edited = edit.apply(edited)
        return attn_out + (edited - resid_mid)

    def _apply_edits(self, site: Site, value: Tensor) -> Tensor:
        """Put in the residual stream at the start, and apply the site's own edits."""
        if site == Site("resid_pre", self.batch.start):
            if self._residual is not None:
                value = self._residual
            if self.grad and not value.requires_grad:
                value = value.detach().requires_grad_()
        if site.kind == "resid_mid":  # its edits have changed attn_out already
            return value
        for edit in self._edits.get(site, ()):
            value = edit.apply(value)
        return value
