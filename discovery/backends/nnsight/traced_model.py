"""A site by heads, cut out of what a Linear makes or reads, and put back.

z, q, k and v stand in the last dimension head by head. Where one Linear makes q, k and v together, they lie side by side (GPT-2), or
each head's three beside each other (GPT-NeoX): an edit of one must leave the others as they were.

Where in a traced module the sites are: which part of it carries each, and on which side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from discovery.backends.nnsight.layout import SHARED_PATTERN, WRAPPED_PATTERN, ModuleLayout
from discovery.sites import ActivationKind, Site

QKV = ("q", "k", "v")


@dataclass(frozen=True)
class HeadLayout:
    """How a model's heads lie in its activations."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    layout: ModuleLayout

    def split(self, kind: ActivationKind, whole: Tensor) -> list[Tensor]:
        """The site first, [row pos head d_head] where it has heads; behind it all that one Linear made along with it."""
        if kind not in ("z", *QKV):
            return [whole]
        before = whole.shape[:-1]
        if kind == "z" or len(self.layout.qkv) == 3:
            return [whole.reshape(*before, -1, self.d_head)]
        if self.layout.by_head:
            parts = list(whole.reshape(*before, self.n_heads, 3, self.d_head).unbind(-2))
        else:
            ends = [self.n_heads * self.d_head, (self.n_heads + self.n_kv_heads) * self.d_head]
            parts = [
                part.reshape(*before, -1, self.d_head)
                for part in torch.tensor_split(whole, ends, -1)
            ]
        return [parts[QKV.index(kind)], *parts]

    def merge(self, kind: ActivationKind, value: Tensor, parts: list[Tensor]) -> Tensor:
        """What stands in the module once the site has this value; `parts` are those of `apart`."""
        if kind not in ("z", *QKV):
            return value
        if len(parts) == 1:
            return value.flatten(-2)
        made = [value if slot == kind else part for slot, part in zip(QKV, parts[1:], strict=True)]
        return (
            torch.stack(made, -2).flatten(-3)
            if self.layout.by_head
            else torch.cat([part.flatten(-2) for part in made], -1)
        )


@dataclass(frozen=True)
class TracedModel:
    """A traced module, taken apart.

    Attributes:
        net: all of it. blocks: its layers. last: the Linear that unembeds.
        width: dtype of its weights.
        block_returns: length of the tuple that a block returns, or None where it returns a tensor.
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
        net: Any,
        unembed: nn.Module,
        layout: ModuleLayout,
        heads: HeadLayout,
        width: torch.dtype,
        block_tuple_length: int | None,
    ) -> TracedModel:
        """Of nnsight's model of a module whose last Linear is `unembed`."""
        last = next(envoy for envoy in net.modules() if envoy._module is unembed)
        return cls(
            net,
            list(attrgetter(layout.blocks)(net)),
            last,
            layout,
            heads,
            width,
            block_tuple_length,
        )

    def locate(self, site: Site) -> tuple[Any, str]:
        """The traced module, and which side of it, that carries a site."""
        layout, block = self.layout, self.blocks[site.layer]
        if site.kind in QKV:
            return attrgetter(layout.qkv[QKV.index(site.kind) % len(layout.qkv)])(block), "output"
        if site.kind in ("resid_pre", "resid_post"):
            return block, "input" if site.kind == "resid_pre" else "output"
        inputs, outputs = (
            {"z": layout.out, "resid_mid": layout.resid_mid},
            {"attn_out": layout.attn_out, "mlp_out": layout.mlp_out},
        )
        path = self._pattern(block) if site.kind == "pattern" else {**inputs, **outputs}[site.kind]
        assert path is not None  # refused before
        return attrgetter(path)(block), "input" if site.kind in inputs else "output"

    def _pattern(self, block: Any) -> str | None:
        path = self.layout.pattern
        if path is None or not path.endswith(SHARED_PATTERN):
            return path
        shared = path.removesuffix(f".{SHARED_PATTERN}")
        operations = attrgetter(f"{shared}.{SHARED_PATTERN.rpartition('.')[0]}")(block)
        return (
            path
            if hasattr(operations, SHARED_PATTERN.rpartition(".")[2])
            else f"{shared}.{WRAPPED_PATTERN}"
        )

    def enable_source_tracing(self, layer: int) -> None:
        """Let what stands inside a layer's attention be traced; too late once the layer's forward pass has begun."""
        if self.layout.pattern is not None and ".source." in self.layout.pattern:
            attrgetter(self.layout.pattern.partition(".source.")[0])(self.blocks[layer]).source  # noqa: B018  # a property that instruments
