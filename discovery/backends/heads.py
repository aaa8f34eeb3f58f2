"""A site by heads, cut out of what a Linear makes or reads, and put back.

z, q, k and v stand in the last dimension head by head. Where one Linear makes q, k and v together, they lie side by side (GPT-2), or
each head's three beside each other (GPT-NeoX): an edit of one must leave the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from discovery.backends.layout import Layout
from discovery.sites import ActivationKind

SLOTS = ("q", "k", "v")


@dataclass(frozen=True)
class Heads:
    """How a model's heads lie in its activations."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    layout: Layout

    def apart(self, kind: ActivationKind, whole: Tensor) -> list[Tensor]:
        """The site first, [row pos head d_head] where it has heads; behind it all that one Linear made along with it."""
        if kind not in ("z", *SLOTS):
            return [whole]
        before = whole.shape[:-1]
        if kind == "z" or len(self.layout.qkv) == 3:
            return [whole.reshape(*before, -1, self.d_head)]
        if self.layout.by_head:
            parts = list(whole.reshape(*before, self.n_heads, 3, self.d_head).unbind(-2))
        else:
            ends = [self.n_heads * self.d_head, (self.n_heads + self.n_kv_heads) * self.d_head]
            parts = [part.reshape(*before, -1, self.d_head) for part in torch.tensor_split(whole, ends, -1)]
        return [parts[SLOTS.index(kind)], *parts]

    def together(self, kind: ActivationKind, value: Tensor, parts: list[Tensor]) -> Tensor:
        """What stands in the module once the site has this value; `parts` are those of `apart`."""
        if kind not in ("z", *SLOTS):
            return value
        if len(parts) == 1:
            return value.flatten(-2)
        made = [value if slot == kind else part for slot, part in zip(SLOTS, parts[1:], strict=True)]
        return torch.stack(made, -2).flatten(-3) if self.layout.by_head else torch.cat([part.flatten(-2) for part in made], -1)
