"""The backend contract on nnsight 0.8, which traces any torch module.

The module is the one that Hugging Face or TransformerLens built; its weights are used as they are,
and norms are never frozen. Each run is one trace, whose body (`TraceBody`) runs in step with the
forward pass. `layout` says which module's input or output is which site.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from operator import attrgetter
from typing import Any, Literal

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
from discovery.backends.kv_cache import forward_arguments, from_dynamic_cache
from discovery.backends.last_position import LastPosition, restrict_edits, unembed_columns
from discovery.backends.nnsight.layout import ModuleLayout, require_pattern_path
from discovery.backends.nnsight.trace import TraceBody
from discovery.backends.nnsight.traced_model import TracedModel
from discovery.errors import MeasurementError
from discovery.interventions import Edit
from discovery.sites import Site
from discovery.tasks.pairs import Tokenizer


def import_nnsight() -> Any:
    """Import nnsight and return it.

    A later `import mcp` would fail with the method `save` that nnsight adds to every object. So the
    method is removed again, unless somebody else had imported nnsight before and may use it.
    """
    was_imported = "nnsight" in sys.modules
    import nnsight

    if not was_imported and nnsight._c.unmount is not None and hasattr(object, "save"):
        nnsight._c.unmount("save")
    return nnsight


def wrap_module(module: nn.Module, device: torch.device) -> Any:
    """Return nnsight's wrapper of a module, which takes its tokens on a given device.

    By itself, the wrapper would take the device of the module's first weight, and weights may be
    spread over several devices.
    """
    base = import_nnsight().NNsight
    wrapper = type("NNsight", (base,), {"device": property(lambda _: device)})
    return wrapper(module)


class NnsightBackend(Backend):
    """A traced module behind the contract; it runs one batch at a time."""

    def __init__(
        self,
        module: nn.Module,
        unembed: nn.Module,
        layout: ModuleLayout,
        info: ModelInfo,
        tokenizer: Tokenizer | None,
        *,
        block_tuple_length: int | None,
    ) -> None:
        """Wrap a module.

        Args:
            module: the plain module.
            unembed: its last Linear, which gives the logits.
            layout: where the module keeps its sites.
            info: the model's shape and origin.
            tokenizer: None if the model directory has none.
            block_tuple_length: the length of the tuple that a block returns; None if it returns a
                tensor.
        """
        self._module = module
        self._unembedding = unembed
        self.info = info
        self.tokenizer = tokenizer
        self.layout = layout
        self.abilities = Abilities(pattern=True)  # until they have been tried
        self.traced_model = TracedModel.of(
            wrap_module(module, self.device), unembed, layout, info, block_tuple_length
        )
        self._lock = threading.RLock()

    @property
    def resident_weight_bytes(self) -> int:
        if self.info.device_map:
            return resident_weight_bytes(self.module, self.device)
        return super().resident_weight_bytes

    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        projection = attrgetter(self.layout.output_projection)(self._block(layer))
        with load_offloaded_weights(projection):
            weight = projection.weight.detach().to(self.device)
        if isinstance(projection, nn.Linear):  # GPT-2's Conv1D stores it transposed already
            weight = weight.T
        return weight.reshape(self.info.n_heads, self.info.d_head, self.info.d_model)  # type: ignore[no-any-return]

    @property
    def module(self) -> nn.Module:
        return self._module

    @property
    def unembedding(self) -> nn.Module:
        return self._unembedding

    def block_module(self, layer: int) -> nn.Module:
        return self._block(layer)

    def input_weights(
        self, layer: int, kind: Literal["q", "k", "v"]
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "..."] | None]:
        paths, _ = self.layout.locate(kind)
        projection = attrgetter(paths[0])(self._block(layer))
        with load_offloaded_weights(projection):
            weight = projection.weight.detach().to(self.device)
            bias = getattr(projection, "bias", None)
            bias = None if bias is None else bias.detach().to(self.device)
        if isinstance(projection, nn.Linear):  # GPT-2's Conv1D stores it transposed already
            weight = weight.T
        split = self.traced_model.head_layout.split
        by_head = split(kind, weight)[0].transpose(0, 1)
        return by_head, None if bias is None else split(kind, bias)[0]

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
        self.check_run(batch, reads, edits, keep_prefix=keep_prefix, grad=grad)
        sites = [*reads, *(edit.site for edit in edits)]
        require_pattern_path(self.layout, self.info.architecture, sites)
        if batch.last_position_only:
            edits = restrict_edits(self.info, batch, reads, edits)
        arguments = forward_arguments(
            batch.input_ids,
            batch.prefix,
            takes_cache=self.layout.takes_cache,
            keep_prefix=keep_prefix,
        )
        with self._lock, ExitStack() as stack:
            last_position = LastPosition(batch, stack)
            body = TraceBody(
                self.traced_model, batch, reads, edits, grad=grad, last_position=last_position
            )
            self._restrict_to_last_position(last_position)
            for layer in {site.layer for site in sites if site.kind == "pattern"}:
                self.traced_model.enable_source_tracing(layer)
            for layer, arriving in batch.joins.items():
                stack.callback(self._join(layer, arriving).remove)
            with torch.set_grad_enabled(grad), self.traced_model.model.trace(**arguments) as tracer:
                body(tracer)
            gc.collect(0)  # a trace is left in a cycle, with every tensor it met
        last_position.require_all_cut()
        logits = body.logits
        if batch.columns is not None and logits is not None:
            unembed = self.traced_model.unembed._module
            with load_offloaded_weights(unembed):
                logits = unembed_columns(unembed, logits, batch.columns)
        return BatchResult(
            logits,
            {site: body.activations[site] for site in reads},
            from_dynamic_cache(body.output.past_key_values) if keep_prefix else None,
        )

    def _block(self, layer: int) -> nn.Module:
        block: nn.Module = attrgetter(self.layout.blocks)(self.module)[layer]
        return block

    def _restrict_to_last_position(self, last_position: LastPosition) -> None:
        """Give the last layer's MLP the answer position only, if the batch asks for it."""
        batch = last_position.batch
        if not batch.last_position_only or batch.start >= self.info.n_layers:
            return
        if not self.info.attn_only:
            mlp = attrgetter(self.layout.mlp[0])(self._block(-1))
            last_position.cut_module_input("MLP", mlp)

    def _join(self, layer: int, arriving: Tensor) -> RemovableHandle:
        """Let further rows enter at a layer.

        This is a hook of torch, because a trace would hold every layer's rows until its end.
        """

        def join(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            hidden = args[0] if args else kwargs["hidden_states"]
            joined = torch.cat([hidden, arriving.to(hidden)])
            if args:
                return (joined, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": joined}

        return self._block(layer).register_forward_pre_hook(join, with_kwargs=True)
