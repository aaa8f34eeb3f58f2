"""A traced module: which part of it carries each site, and how heads lie in what it carries.

z, q, k and v hold their heads one after another in the last dimension. If one Linear computes q, k
and v together, they lie side by side (GPT-2), or head by head (GPT-NeoX). An edit of one of them
must then leave the other two as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from discovery.backends.info import ModelInfo
from discovery.backends.nnsight.layout import QKV, ModuleLayout
from discovery.sites import ActivationKind, Site


@dataclass(frozen=True)
class HeadLayout:
    """How the heads of a model lie in its activations.

    Attributes:
        n_heads: the number of heads.
        n_kv_heads: the number of key-value heads.
        d_head: the width of a head.
        layout: says how q, k and v are computed.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    layout: ModuleLayout

    def split(self, kind: ActivationKind, whole: Tensor) -> list[Tensor]:
        """Split what a module reads or writes into heads.

        Returns:
            The site first, as [row pos head d_head] if it has heads. If one Linear computes q, k
            and v, all three follow, the site among them again.
        """
        if kind not in ("z", *QKV):
            return [whole]
        before = whole.shape[:-1]
        if kind == "z" or len(self.layout.qkv) == 3:
            return [whole.reshape(*before, -1, self.d_head)]
        if self.layout.qkv_is_by_head:
            parts = list(whole.reshape(*before, self.n_heads, 3, self.d_head).unbind(-2))
        else:
            ends = [self.n_heads * self.d_head, (self.n_heads + self.n_kv_heads) * self.d_head]
            slices = torch.tensor_split(whole, ends, -1)
            parts = [part.reshape(*before, -1, self.d_head) for part in slices]
        return [parts[QKV.index(kind)], *parts]

    def merge(self, kind: ActivationKind, value: Tensor, parts: list[Tensor]) -> Tensor:
        """Return what the module must hold so that the site has this value.

        Args:
            kind: the site.
            value: its new value.
            parts: what `split` returned for the old one.
        """
        if kind not in ("z", *QKV):
            return value
        if len(parts) == 1:
            return value.flatten(-2)
        merged = [value if slot == kind else old for slot, old in zip(QKV, parts[1:], strict=True)]
        if self.layout.qkv_is_by_head:
            return torch.stack(merged, -2).flatten(-3)
        return torch.cat([part.flatten(-2) for part in merged], -1)


@dataclass(frozen=True, kw_only=True)
class TracedModel:
    """A traced module and its parts.

    Attributes:
        model: nnsight's wrapper of the whole module.
        blocks: its layers.
        unembed: the Linear that unembeds.
        layout: where the module keeps its sites.
        head_layout: how heads lie in its activations.
        dtype: the dtype of its weights.
        block_tuple_length: the length of the tuple that a block returns; None if it returns a
            tensor.
    """

    model: Any
    blocks: Sequence[Any]
    unembed: Any
    layout: ModuleLayout
    head_layout: HeadLayout
    dtype: torch.dtype
    block_tuple_length: int | None

    @classmethod
    def of(
        cls,
        model: Any,
        unembed: nn.Module,
        layout: ModuleLayout,
        info: ModelInfo,
        block_tuple_length: int | None,
    ) -> TracedModel:
        """Find the parts of a module that nnsight has wrapped.

        Args:
            model: nnsight's wrapper.
            unembed: the plain Linear that unembeds.
            layout: where the module keeps its sites.
            info: the model's shape.
            block_tuple_length: the length of the tuple that a block returns; None if it returns a
                tensor.
        """
        return cls(
            model=model,
            blocks=list(attrgetter(layout.blocks)(model)),
            unembed=next(envoy for envoy in model.modules() if envoy._module is unembed),
            layout=layout,
            head_layout=HeadLayout(info.n_heads, info.n_kv_heads, info.d_head, layout),
            dtype=next(model._module.parameters()).dtype,
            block_tuple_length=block_tuple_length,
        )

    def locate(self, site: Site) -> tuple[Any, str]:
        """Return the traced part that carries a site, and "input" or "output", the side of it."""
        block = self.blocks[site.layer]
        paths, side = self.layout.locate(site.kind)
        for path in paths[:-1]:
            parent, _, name = path.rpartition(".")
            if hasattr(attrgetter(parent)(block), name):
                return attrgetter(path)(block), side
        return (attrgetter(paths[-1])(block) if paths[-1] else block), side

    def as_block_output(self, residual: Tensor | None) -> Any:
        """Return a residual stream in the form in which a block returns it."""
        if self.block_tuple_length is None:
            return residual
        return residual, *[None] * (self.block_tuple_length - 1)

    def enable_source_tracing(self, layer: int) -> None:
        """Let operations inside a layer's attention be traced, if the pattern is one of them.

        This must be done before the forward pass reaches the layer.
        """
        if path := self.layout.source_traced_module:
            attrgetter(path)(self.blocks[layer]).source  # noqa: B018  # a property that instruments
