"""The contract on TransformerLens 3.9's `TransformerBridge`, which hooks the Hugging Face module itself.

The bridge keeps the weights as they are (no folding, no centring), so its logits are those of the module. Three things it
does not offer are done here, and verified at load by `backends.check`: starting at a layer (the earlier blocks are
replaced by the identity and the residual stream is put in at the start), reusing keys and values of earlier positions
(through the Hugging Face cache), and unembedding only the answer position, or only some columns there.
`resid_mid` is edited through attn_out, because the bridge's hook of that name feeds the MLP alone.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from discovery.backends.base import Backend, Batch, BatchResult, forward_order
from discovery.backends.info import Abilities, ModelInfo
from discovery.backends.kv_cache import from_dynamic_cache, to_dynamic_cache
from discovery.backends.last_position import LastPosition, restrict_edits, take_answer_position
from discovery.errors import SiteError
from discovery.interventions import Edit
from discovery.sites import Site
from discovery.tasks.pairs import Tokenizer

HOOK_NAMES = {
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
}


class _Stop(Exception):  # noqa: N818  (leaves the forward pass early; never escapes `run`)
    """Raised inside the forward pass once everything asked for has been computed."""


class TransformerLensBackend(Backend):
    """A TransformerBridge behind the contract; one run at a time."""

    def __init__(
        self,
        bridge: Any,
        info: ModelInfo,
        tokenizer: Tokenizer | None,
        *,
        block_returns: int | None,
        cached: bool,
    ) -> None:
        """Take over a bridge.

        Args:
            block_returns: length of the tuple that a block returns, or None where it returns a tensor.
            cached: whether the module takes and returns a Hugging Face cache.
        """
        self.bridge, self.info, self.tokenizer = bridge, info, tokenizer
        self.abilities = Abilities(pattern=True)  # until it has been tried
        self._block_returns, self._cached = block_returns, cached
        self._points: dict[str, Any] = dict(bridge.hook_dict)
        self._lock = threading.RLock()

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        return self.bridge.blocks[layer].attn.W_O.detach()  # type: ignore[no-any-return]

    def run(
        self,
        batch: Batch,
        reads: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        *,
        keep_prefix: bool = False,
        grad: bool = False,
    ) -> BatchResult:
        for site in (*reads, *(edit.site for edit in edits)):
            self.require_site(site)
        if batch.joins and (reads or edits or grad):
            raise ValueError(
                "nothing can be read, edited or differentiated where rows join on the way"
            )
        seen: dict[Site, Tensor] = {}
        hidden: list[Tensor] = []
        edits = (
            restrict_edits(self.info, batch, reads, edits) if batch.last_position_only else edits
        )
        with self._lock, torch.set_grad_enabled(grad), ExitStack() as stack:
            self._start(stack, batch, grad)
            self._visit(stack, batch, reads, edits, seen, grad)
            last_position = LastPosition(batch, stack)
            if batch.last_position_only and batch.start < self.info.n_layers:
                self._restrict_to_last_position(last_position)
            self._finish(stack, batch, hidden)
            # Masks and positions are made for these rows: of one row, they serve however many there are at a layer.
            arguments: dict[str, Any] = {
                "input_ids": batch.tokens[:1] if batch.joins else batch.tokens
            }
            if self._cached:
                cached = keep_prefix or batch.prefix is not None
                arguments |= {
                    "use_cache": cached,
                    "past_key_values": to_dynamic_cache(batch.prefix) if cached else None,
                }
            try:
                out = self.bridge.original_model(**arguments)
            except _Stop:
                out = None
        last_position.require_all_cut()
        logits = None
        if batch.columns is not None and batch.answer_position is not None:
            logits = self._unembed_columns(hidden[0], batch.columns)
        elif out is not None:
            logits = (out if isinstance(out, Tensor) else out.logits)[:, 0]
        if keep_prefix and out is None:
            raise RuntimeError("keys and values are only complete after a full run")
        return BatchResult(
            logits,
            {site: seen[site] for site in reads},
            from_dynamic_cache(out.past_key_values) if keep_prefix else None,
        )

    def _start(self, stack: ExitStack, batch: Batch, grad: bool) -> None:
        """Skip the blocks before `start` and put the residual stream in there."""
        if (batch.start or batch.after_attention) and batch.residual is None:
            raise ValueError("a start layer needs a residual stream")
        blocks = list(self.bridge.blocks)
        for index, block in enumerate(blocks[: batch.start]):
            handed_on = batch.residual if index == batch.start - 1 else None
            stack.enter_context(_replace_forward(block, partial(self._pass_through, handed_on)))
        if batch.after_attention:
            stack.enter_context(_replace_forward(blocks[batch.start].attn, _skip_attention))
        if grad or (batch.residual is not None and batch.start == 0):

            def put(activation: Tensor, hook: Any) -> Tensor:
                put_in = (
                    activation if batch.residual is None else batch.residual.to(activation.dtype)
                )
                return (
                    put_in if put_in.requires_grad or not grad else put_in.detach().requires_grad_()
                )

            self._hook(stack, Site("resid_pre", batch.start), put)

        for layer, arriving in batch.joins.items():

            def join(activation: Tensor, hook: Any, arriving: Tensor = arriving) -> Tensor:
                return torch.cat([activation, arriving.to(activation.dtype)])

            self._hook(stack, Site("resid_pre", layer), join)

    def _pass_through(self, handed_on: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        arrived: Tensor = args[0] if args else kwargs["hidden_states"]
        hidden = arrived if handed_on is None else handed_on.to(arrived.dtype)
        return (
            hidden if self._block_returns is None else (hidden, *[None] * (self._block_returns - 1))
        )

    def _visit(
        self,
        stack: ExitStack,
        batch: Batch,
        reads: Sequence[Site],
        edits: Sequence[Edit],
        seen: dict[Site, Tensor],
        grad: bool,
    ) -> None:
        """Hook every site that is read or edited; reads see the edited value."""
        by_site: dict[Site, list[Edit]] = defaultdict(list)
        for edit in edits:
            by_site[edit.site].append(edit)
        for site in sorted(
            {*reads, *by_site}, key=forward_order
        ):  # an edited resid_mid stands on the edited resid_pre and attn_out
            if site.kind == "resid_mid" and site in by_site:
                self._edit_resid_mid(stack, site.layer, by_site.pop(site), batch)
            changes = by_site.get(site, [])
            if changes and site.kind == "pattern" and not self.abilities.pattern:
                raise SiteError(
                    "This model's attention pattern can be read but not replaced.",
                    "Patch z, q, k or v instead.",
                )

            def visit(
                activation: Tensor, hook: Any, site: Site = site, changes: list[Edit] = changes
            ) -> Tensor | None:
                flat = activation.ndim == 2  # OPT's MLP works on [row·pos d_model]
                seen[site] = activation.reshape(*batch.tokens.shape, -1) if flat else activation
                for change in changes:
                    seen[site] = change.apply(seen[site])
                if not changes and not grad:
                    return None
                return (
                    seen[site].flatten(0, 1) if flat else seen[site]
                )  # what was read is then part of the graph

            self._hook(stack, site, visit)

    def _edit_resid_mid(
        self, stack: ExitStack, layer: int, changes: list[Edit], batch: Batch
    ) -> None:
        before: list[Tensor] = []
        one = batch.last_position_only and layer == self.info.n_layers - 1

        def remember(activation: Tensor, hook: Any) -> None:
            before.append(take_answer_position(batch, activation) if one else activation)

        def shift(activation: Tensor, hook: Any) -> Tensor:
            middle = changed = before[-1] + activation
            for change in changes:
                changed = change.apply(changed)
            return activation + (changed - middle)

        self._hook(stack, Site("resid_pre", layer), remember)
        self._hook(stack, Site("attn_out", layer), shift)

    def _restrict_to_last_position(self, last_position: LastPosition) -> None:
        layer = self.info.n_layers - 1
        last_position.expect_cut("z")
        self._hook(
            last_position.stack,
            Site("z", layer),
            lambda activation, hook: last_position.cut("z", activation),
        )  # behind z's own edits
        if not self.info.attn_only:
            last_position.cut_module_input("MLP", self.bridge.blocks[layer].mlp)

    def _finish(self, stack: ExitStack, batch: Batch, hidden: list[Tensor]) -> None:
        """Stop early, or unembed the answer positions only."""
        if batch.stop is not None or batch.answer_position is None:
            last = (self.info.n_layers if batch.stop is None else batch.stop) - 1

            def halt(activation: Tensor, hook: Any) -> None:
                raise _Stop

            self._hook(stack, Site("resid_post", last), halt)
            return

        def gather(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            answer = take_answer_position(batch, inputs[0])
            if batch.columns is not None:
                hidden.append(answer[:, 0])
                raise _Stop
            return (answer,)

        handle = self.bridge.unembed.register_forward_pre_hook(gather)
        stack.callback(handle.remove)

    def _unembed_columns(
        self, hidden: Float[Tensor, "row d_model"], columns: Tensor
    ) -> Float[Tensor, "row k"]:
        unembed = self.bridge.unembed.original_component
        weights = unembed.weight[columns.clamp(min=0)]  # [row k d_model]
        logits = torch.einsum("rd,rkd->rk", hidden, weights)
        return logits if unembed.bias is None else logits + unembed.bias[columns.clamp(min=0)]

    def _hook(self, stack: ExitStack, site: Site, visit: Callable[..., Tensor | None]) -> None:
        point = self._points.get(
            f"blocks.{site.layer}.{HOOK_NAMES.get(site.kind, 'hook_' + site.kind)}"
        )
        if point is None:
            cause = f"This architecture ({self.info.architecture}) has no {site.kind}."
            raise SiteError(cause, "Use resid_pre, attn_out, mlp_out or head_out.")
        point.add_hook(visit)
        stack.callback(point.remove_hooks, "fwd")


def _skip_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    hidden = args[0] if args else kwargs["hidden_states"]
    return torch.zeros_like(hidden), None


@contextmanager
def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
