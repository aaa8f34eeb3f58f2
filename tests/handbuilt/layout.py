"""A residual stream cut into named one-hot subspaces, so that every weight can be written down by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """The subspaces of the residual stream, in order, and the vocabulary.

    Ids: 0 is the first token ("^"); 1..n_content are content tokens, which a task asks about; then, where the vocabulary has
    them, as many cue tokens (cue c' stands for content token c) and the query mark "=".
    Subspaces `tok`, `pos` and `out` are always there; each subspace named in `extra` has one dimension per content token,
    and each in `flags` a single one.
    """

    n_content: int
    n_ctx: int
    extra: tuple[str, ...] = ("prev",)
    flags: tuple[str, ...] = ()
    cued: bool = False

    @property
    def d_vocab(self) -> int:
        return 1 + self.n_content + (self.n_content + 1 if self.cued else 0)

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        always = (("tok", self.d_vocab), ("pos", self.n_ctx), ("out", self.d_vocab))
        return always + tuple((name, self.n_content) for name in self.extra) + tuple((name, 1) for name in self.flags)

    @property
    def d_model(self) -> int:
        return sum(size for _, size in self.sizes)

    @property
    def d_head(self) -> int:
        """Wide enough for a match on content tokens plus a sink, and for a match on positions."""
        return max(self.n_content + 1, self.n_ctx)

    def dims(self, name: str) -> range:
        """The dimensions of one subspace."""
        start = 0
        for other, size in self.sizes:
            if other == name:
                return range(start, start + size)
            start += size
        raise KeyError(name)

    def content(self, name: str) -> range:
        """The dimensions that stand for the content tokens in a subspace, in the order of their ids."""
        dims = self.dims(name)
        return dims[1 : 1 + self.n_content] if name in ("tok", "out") else dims

    def cues(self) -> range:
        """The dimensions of `tok` that stand for the cue tokens."""
        return self.dims("tok")[1 + self.n_content : 1 + 2 * self.n_content]

    def first(self) -> int:
        """The dimension of `tok` that stands for the first token, where attention rests when nothing matches."""
        return self.dims("tok")[0]
