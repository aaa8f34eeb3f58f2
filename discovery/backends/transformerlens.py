"""The backend contract on TransformerLens 3.9's `TransformerBridge`.

The bridge hooks the Hugging Face module itself and keeps its weights as they are (no folding, no
centring), so its logits are those of the module.

Three things that the bridge does not offer are done here. They are verified when a model is loaded
(`backends.loading.checks` and `backends.loading.abilities`):

- Starting at a layer: the earlier blocks pass their input on, and the residual stream is put in at
  the start.
- Reusing keys and values of earlier positions, through the Hugging Face cache.
- Unembedding only the answer position, or only some columns there.

`resid_mid` is edited through attn_out, because the bridge's hook of that name changes only what the
MLP reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from discovery.backends.base import Backend, Batch, BatchResult, forward_order
from discovery.backends.info import Abilities, ModelInfo
from discovery.backends.kv_cache import forward_arguments, from_dynamic_cache
from discovery.backends.last_position import (
    LastPosition,
    restrict_edits,
    take_answer_position,
    unembed_columns,
)
from discovery.errors import SiteError
from discovery.interventions import Edit, edits_by_site
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
    """A TransformerBridge behind the contract; it runs one batch at a time."""

    def __init__(
        self,
        bridge: Any,
        info: ModelInfo,
        tokenizer: Tokenizer | None,
        *,
        block_tuple_length: int | None,
        takes_cache: bool,
    ) -> None:
        """Wrap a bridge.

        Args:
            bridge: the TransformerBridge.
            info: the model's shape and origin.
            tokenizer: None if the model directory has none.
            block_tuple_length: the length of the tuple that a block returns; None if it returns a
                tensor.
            takes_cache: whether the module takes and returns a Hugging Face cache.
        """
        self.bridge = bridge
        self.info = info
        self.tokenizer = tokenizer
        self.abilities = Abilities(pattern=True)  # until they have been tried
        self._block_tuple_length = block_tuple_length
        self._takes_cache = takes_cache
        self._hook_points: dict[str, Any] = dict(bridge.hook_dict)
        self._lock = threading.RLock()

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        return self.bridge.blocks[layer].attn.W_O.detach()  # type: ignore[no-any-return]

    @property
    def module(self) -> nn.Module:
        return self.bridge.original_model  # type: ignore[no-any-return]

    @property
    def unembedding(self) -> nn.Module:
        return self.bridge.unembed.original_component  # type: ignore[no-any-return]

    def block_module(self, layer: int) -> nn.Module:
        return self.bridge.blocks[layer]  # type: ignore[no-any-return]

    def input_weights(
        self, layer: int, kind: Literal["q", "k", "v"]
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "..."] | None]:
        attn = self.bridge.blocks[layer].attn
        letter = kind.upper()
        return getattr(attn, f"W_{letter}"), getattr(attn, f"b_{letter}", None)

    def run(
        self,
        batch: Batch,
        reads: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        *,
        keep_prefix: bool = False,
        grad: bool = False,
    ) -> BatchResult:
        self.check_run(batch, reads, edits, keep_prefix=keep_prefix, grad=grad)
        if batch.last_position_only:
            edits = restrict_edits(self.info, batch, reads, edits)
        hidden: list[Tensor] = []
        with self._lock, torch.set_grad_enabled(grad), ExitStack() as stack:
            self._start(stack, batch, grad)
            activations = self._hook_sites(stack, batch, reads, edits, grad)
            last_position = LastPosition(batch, stack)
            if batch.last_position_only and batch.start < self.info.n_layers:
                self._restrict_to_last_position(last_position)
            self._finish(stack, batch, hidden)
            arguments = forward_arguments(
                batch.input_ids,
                batch.prefix,
                takes_cache=self._takes_cache,
                keep_prefix=keep_prefix,
            )
            try:
                output = self.bridge.original_model(**arguments)
            except _Stop:
                output = None
        last_position.require_all_cut()
        logits = None
        if batch.columns is not None and batch.answer_position is not None:
            unembed = self.bridge.unembed.original_component
            logits = unembed_columns(unembed, hidden[0], batch.columns)
        elif output is not None:
            logits = (output if isinstance(output, Tensor) else output.logits)[:, 0]
        return BatchResult(
            logits,
            {site: activations[site] for site in reads},
            from_dynamic_cache(output.past_key_values) if keep_prefix else None,
        )

    def _start(self, stack: ExitStack, batch: Batch, grad: bool) -> None:
        """Skip the blocks before `start`, and put the residual stream in there."""
        blocks = list(self.bridge.blocks)
        for index, block in enumerate(blocks[: batch.start]):
            replacement = batch.residual if index == batch.start - 1 else None
            stack.enter_context(_replace_forward(block, partial(self._pass_through, replacement)))
        if batch.after_attention:
            stack.enter_context(_replace_forward(blocks[batch.start].attn, _skip_attention))
        if grad or (batch.residual is not None and batch.start == 0):

            def put(activation: Tensor, hook: Any) -> Tensor:
                stream = activation
                if batch.residual is not None:
                    stream = batch.residual.to(activation.dtype)
                if grad and not stream.requires_grad:
                    stream = stream.detach().requires_grad_()
                return stream

            self._hook(stack, Site("resid_pre", batch.start), put)

        for layer, arriving in batch.joins.items():

            def join(activation: Tensor, hook: Any, arriving: Tensor = arriving) -> Tensor:
                return torch.cat([activation, arriving.to(activation.dtype)])

            self._hook(stack, Site("resid_pre", layer), join)

    def _pass_through(self, replacement: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """The forward pass of a skipped block: it returns its input, or a replacement for it."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if replacement is not None:
            hidden = replacement.to(hidden.dtype)
        if self._block_tuple_length is None:
            return hidden
        return hidden, *[None] * (self._block_tuple_length - 1)

    def _hook_sites(
        self,
        stack: ExitStack,
        batch: Batch,
        reads: Sequence[Site],
        edits: Sequence[Edit],
        grad: bool,
    ) -> dict[Site, Tensor]:
        """Hook every site that is read or edited.

        Returns:
            A dictionary that the forward pass fills with the edited value of each site.
        """
        activations: dict[Site, Tensor] = {}
        edits_at = edits_by_site(edits)
        # In forward order: an edit of resid_mid sees the edited resid_pre and attn_out.
        for site in sorted({*reads, *edits_at}, key=forward_order):
            if site.kind == "resid_mid" and site in edits_at:
                self._edit_resid_mid(stack, site.layer, edits_at.pop(site), batch)

            def visit(
                activation: Tensor,
                hook: Any,
                site: Site = site,
                site_edits: Sequence[Edit] = tuple(edits_at.get(site, ())),
            ) -> Tensor | None:
                is_flat = activation.ndim == 2  # OPT's MLP works on [row·pos d_model]
                value = activation.reshape(*batch.tokens.shape, -1) if is_flat else activation
                for edit in site_edits:
                    value = edit.apply(value)
                activations[site] = value
                if not site_edits and not grad:
                    return None
                # With gradients, what was read becomes part of the graph.
                return value.flatten(0, 1) if is_flat else value

            self._hook(stack, site, visit)
        return activations

    def _edit_resid_mid(
        self, stack: ExitStack, layer: int, edits: Sequence[Edit], batch: Batch
    ) -> None:
        """Add to attn_out what the edits add to resid_mid."""
        entered: list[Tensor] = []
        is_restricted = batch.last_position_only and layer == self.info.n_layers - 1

        def remember(activation: Tensor, hook: Any) -> None:
            entered.append(take_answer_position(batch, activation) if is_restricted else activation)

        def shift(activation: Tensor, hook: Any) -> Tensor:
            resid_mid = entered[-1] + activation
            edited = resid_mid
            for edit in edits:
                edited = edit.apply(edited)
            return activation + (edited - resid_mid)

        self._hook(stack, Site("resid_pre", layer), remember)
        self._hook(stack, Site("attn_out", layer), shift)

    def _restrict_to_last_position(self, last_position: LastPosition) -> None:
        layer = self.info.n_layers - 1
        last_position.expect_cut("z")

        def cut(activation: Tensor, hook: Any) -> Tensor:
            return last_position.cut("z", activation)

        self._hook(last_position.stack, Site("z", layer), cut)  # after the edits of z
        if not self.info.attn_only:
            last_position.cut_module_input("MLP", self.bridge.blocks[layer].mlp)

    def _finish(self, stack: ExitStack, batch: Batch, hidden: list[Tensor]) -> None:
        """Stop early, or unembed the answer positions only.

        Args:
            hidden: gets the input of the unembedding, if only some columns are unembedded.
        """
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

    def _hook(self, stack: ExitStack, site: Site, visit: Callable[..., Tensor | None]) -> None:
        """Call `visit` on a site until the stack is closed."""
        name = f"blocks.{site.layer}.{HOOK_NAMES.get(site.kind, 'hook_' + site.kind)}"
        hook_point = self._hook_points.get(name)
        if hook_point is None:
            raise SiteError(
                f"This architecture ({self.info.architecture}) has no {site.kind}.",
                "Use resid_pre, attn_out, mlp_out or head_out.",
            )
        hook_point.add_hook(visit)
        stack.callback(hook_point.remove_hooks, "fwd")


def _skip_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The forward pass of a skipped attention: it adds nothing to the residual stream."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return torch.zeros_like(hidden), None


@contextmanager
def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
