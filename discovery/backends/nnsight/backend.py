"""The contract on nnsight 0.8, which traces any torch module: the very one that Hugging Face or TransformerLens built.

Each run is one trace. Its body, which runs in step with the forward pass, walks the sites that are wanted in forward order: it puts in
the residual stream, skips blocks, applies edits, keeps what is read, and stops the pass once it has everything. Norms are never frozen
and weights are used as they are. `backends.layout` says which module's input or output is which site.

Importing nnsight changes the whole process: a method `save` on every object, and `Tensor.backward`. So it is imported here only, when a
model asks for it, and `save`, with which a later `import mcp` would fail, is taken back (unless whoever imported it first uses it).
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.hardware.placement import (
    NO_GRADIENTS_CAUSE,
    NO_GRADIENTS_CURE,
    load_offloaded_weights,
    resident_weight_bytes,
)
from discovery.backends.info import Abilities, ModelInfo
from discovery.backends.kv_cache import from_dynamic_cache, to_dynamic_cache
from discovery.backends.last_position import LastPosition, restrict_edits
from discovery.backends.nnsight.layout import ModuleLayout
from discovery.backends.nnsight.trace import TraceBody
from discovery.backends.nnsight.traced_model import HeadLayout, TracedModel
from discovery.errors import MeasurementError, SiteError
from discovery.interventions import Edit
from discovery.sites import Site
from discovery.tasks.pairs import Tokenizer


def import_nnsight() -> Any:
    """nnsight, which is imported now."""
    theirs = "nnsight" in sys.modules
    import nnsight

    if not theirs and nnsight._c.unmount is not None and hasattr(object, "save"):
        nnsight._c.unmount("save")
    return nnsight


def wrap_module(module: nn.Module, device: torch.device) -> Any:
    """A module in nnsight, that takes its tokens on a device, wherever its first weight lies."""
    return type("NNsight", (import_nnsight().NNsight,), {"device": property(lambda _: device)})(
        module
    )


def check_run(
    info: ModelInfo,
    abilities: Abilities,
    layout: ModuleLayout,
    batch: Batch,
    reads: Sequence[Site],
    edits: Sequence[Edit],
    *,
    keep_prefix: bool,
    grad: bool,
) -> None:
    """Check that a run contradicts neither itself nor what the model allows.

    Raises:
        SiteError, ValueError, RuntimeError: where it does.
    """
    if batch.joins and (reads or edits or grad):
        raise ValueError("nothing can be read, edited or differentiated where rows join on the way")
    if (batch.start or batch.after_attention) and batch.residual is None:
        raise ValueError("a start layer needs a residual stream")
    if keep_prefix and (
        batch.answer_position is None or batch.stop is not None or batch.columns is not None
    ):
        raise RuntimeError("keys and values are only complete after a full run")
    if not abilities.pattern and any(edit.site.kind == "pattern" for edit in edits):
        raise SiteError(
            "This model's attention pattern can be read but not replaced.",
            "Patch z, q, k or v instead.",
        )
    if layout.pattern is None and any(
        site.kind == "pattern" for site in (*reads, *(edit.site for edit in edits))
    ):
        cause = f"The nnsight backend has no attention pattern of this architecture ({info.architecture})."
        raise SiteError(cause, "Patch z, q, k or v instead.")


class NnsightBackend(Backend):
    """A traced module behind the contract; one run at a time."""

    def __init__(
        self,
        module: nn.Module,
        unembed: nn.Module,
        layout: ModuleLayout,
        info: ModelInfo,
        tokenizer: Tokenizer | None,
        *,
        block_returns: int | None,
    ) -> None:
        """Take over a module.

        Args:
            unembed: its last Linear.
            block_returns: length of the tuple that a block returns, or None where it returns a tensor.
        """
        self.module, self.info, self.tokenizer, self.layout = module, info, tokenizer, layout
        self.abilities = Abilities(pattern=True)  # until it has been tried
        heads, width = (
            HeadLayout(info.n_heads, info.n_kv_heads, info.d_head, layout),
            next(module.parameters()).dtype,
        )
        self.traced_model = TracedModel.of(
            wrap_module(module, self.device), unembed, layout, heads, width, block_returns
        )
        self._lock = threading.RLock()

    @property
    def resident_weight_bytes(self) -> int:
        return (
            resident_weight_bytes(self.module, self.device)
            if self.info.device_map
            else super().resident_weight_bytes
        )

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        out = attrgetter(self.layout.out)(attrgetter(self.layout.blocks)(self.module)[layer])
        with load_offloaded_weights(out):
            weight = out.weight.detach().to(self.device)
        mixes = (
            weight.T if isinstance(out, nn.Linear) else weight
        )  # GPT-2's Conv1D has it the other way round
        return mixes.reshape(self.info.n_heads, self.info.d_head, self.info.d_model)  # type: ignore[no-any-return]

    def require_gradients(self) -> None:
        if not self.abilities.gradients:
            raise MeasurementError(NO_GRADIENTS_CAUSE, NO_GRADIENTS_CURE)

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
        check_run(
            self.info,
            self.abilities,
            self.layout,
            batch,
            reads,
            edits,
            keep_prefix=keep_prefix,
            grad=grad,
        )
        if grad:
            self.require_gradients()
        # Masks and positions are made for these rows: of one row, they serve however many there are at a layer.
        arguments: dict[str, Any] = {"input_ids": batch.tokens[:1] if batch.joins else batch.tokens}
        if self.layout.takes_cache:
            cached = keep_prefix or batch.prefix is not None
            arguments |= {
                "use_cache": cached,
                "past_key_values": to_dynamic_cache(batch.prefix) if cached else None,
            }
        with self._lock, ExitStack() as stack:
            last_position = LastPosition(batch, stack)
            walk = TraceBody(
                self.traced_model,
                batch,
                reads,
                restrict_edits(self.info, batch, reads, edits)
                if batch.last_position_only
                else edits,
                grad,
                last_position,
            )
            if (
                batch.last_position_only
                and batch.start < self.info.n_layers
                and not self.info.attn_only
            ):
                last_position.cut_module_input(
                    "MLP",
                    attrgetter(self.layout.mlp[0])(attrgetter(self.layout.blocks)(self.module)[-1]),
                )
            for layer in {
                site.layer
                for site in (*reads, *(edit.site for edit in edits))
                if site.kind == "pattern"
            }:
                self.traced_model.enable_source_tracing(layer)
            for layer, arriving in batch.joins.items():
                stack.callback(self._join(layer, arriving).remove)
            with torch.set_grad_enabled(grad), self.traced_model.model.trace(**arguments) as tracer:
                walk(tracer)
            gc.collect(0)  # a trace is left in a cycle, with every tensor it met
        last_position.require_all_cut()
        logits = (
            walk.logits
            if batch.columns is None or walk.logits is None
            else self._columns(walk.logits, batch.columns)
        )
        return BatchResult(
            logits,
            {site: walk.activations[site] for site in reads},
            from_dynamic_cache(walk.output.past_key_values) if keep_prefix else None,
        )

    def _join(self, layer: int, arriving: Tensor) -> RemovableHandle:
        """Let further rows enter a layer. A hook of torch: the trace would hold every layer's rows until its end."""

        def join(
            _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            before = given[0] if given else named["hidden_states"]
            now = torch.cat([before, arriving.to(before)])
            return ((now, *given[1:]), named) if given else (given, named | {"hidden_states": now})

        block: nn.Module = attrgetter(self.layout.blocks)(self.module)[layer]
        return block.register_forward_pre_hook(join, with_kwargs=True)

    def _columns(
        self, hidden: Float[Tensor, "row d_model"], columns: Tensor
    ) -> Float[Tensor, "row k"]:
        unembed, columns = self.traced_model.unembed._module, columns.clamp(min=0)
        with load_offloaded_weights(unembed):
            there = columns.to(unembed.weight.device)
            weights = unembed.weight[there].to(hidden.device)  # [row k d_model]
            bias = None if unembed.bias is None else unembed.bias[there].to(hidden.device)
        logits = torch.einsum("rd,rkd->rk", hidden, weights)
        return logits if bias is None else logits + bias
