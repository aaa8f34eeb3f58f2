"""Where in a traced module the sites are: which part of it carries each, and on which side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from discovery.backends.heads import SLOTS, Heads
from discovery.backends.layout import BEHIND, SHARED, Layout
from discovery.sites import Site


@dataclass(frozen=True)
class Parts:
    """A traced module, taken apart.

    Attributes:
        net: all of it. blocks: its layers. last: the Linear that unembeds.
        width: dtype of its weights.
        block_returns: length of the tuple that a block returns, or None where it returns a tensor.
    """

    net: Any
    blocks: Sequence[Any]
    last: Any
    layout: Layout
    heads: Heads
    width: torch.dtype
    block_returns: int | None

    @classmethod
    def of(cls, net: Any, unembed: nn.Module, layout: Layout, heads: Heads, width: torch.dtype, block_returns: int | None) -> Parts:
        """Of nnsight's model of a module whose last Linear is `unembed`."""
        last = next(envoy for envoy in net.modules() if envoy._module is unembed)
        return cls(net, list(attrgetter(layout.blocks)(net)), last, layout, heads, width, block_returns)

    def place(self, site: Site) -> tuple[Any, str]:
        """The traced module, and which side of it, that carries a site."""
        layout, block = self.layout, self.blocks[site.layer]
        if site.kind in SLOTS:
            return attrgetter(layout.qkv[SLOTS.index(site.kind) % len(layout.qkv)])(block), "output"
        if site.kind in ("resid_pre", "resid_post"):
            return block, "input" if site.kind == "resid_pre" else "output"
        inputs, outputs = {"z": layout.out, "resid_mid": layout.middle}, {"attn_out": layout.attn_out, "mlp_out": layout.mlp_out}
        path = self._pattern(block) if site.kind == "pattern" else {**inputs, **outputs}[site.kind]
        assert path is not None  # refused before
        return attrgetter(path)(block), "input" if site.kind in inputs else "output"

    def _pattern(self, block: Any) -> str | None:
        path = self.layout.pattern
        if path is None or not path.endswith(SHARED):
            return path
        shared = path.removesuffix(f".{SHARED}")
        operations = attrgetter(f"{shared}.{SHARED.rpartition('.')[0]}")(block)
        return path if hasattr(operations, SHARED.rpartition(".")[2]) else f"{shared}.{BEHIND}"

    def open(self, layer: int) -> None:
        """Let what stands inside a layer's attention be traced; too late once the layer's forward pass has begun."""
        if self.layout.pattern is not None and ".source." in self.layout.pattern:
            attrgetter(self.layout.pattern.partition(".source.")[0])(self.blocks[layer]).source  # noqa: B018  # a property that instruments
