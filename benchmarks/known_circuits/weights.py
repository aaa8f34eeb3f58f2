"""A residual stream cut into named one-hot subspaces, so that every weight can be written down by hand.

Heads and MLPs written by hand: each constructor returns the weights of one node and says what the node does.

Attention scores are divided by sqrt(d_head) in the model, so the key weights carry that factor and a `score` below is the
score that the softmax sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ResidualLayout:
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
        return (
            always
            + tuple((name, self.n_content) for name in self.extra)
            + tuple((name, 1) for name in self.flags)
        )

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


POSITION_SCORE = 12.0
MATCH_SCORE = 12.0
SINK_SCORE = 6.0


@dataclass(frozen=True)
class Head:
    """One head: W_Q, W_K, W_V [d_model d_head], W_O [d_head d_model], b_Q, b_K, b_V [d_head], and its role."""

    role: str
    W_Q: Array
    W_K: Array
    W_V: Array
    W_O: Array
    b_Q: Array
    b_K: Array
    b_V: Array


@dataclass(frozen=True)
class Mlp:
    """One MLP: W_in [d_model d_mlp], b_in, W_out [d_mlp d_model], b_out, and its role."""

    role: str
    W_in: Array
    b_in: Array
    W_out: Array
    b_out: Array


@dataclass(frozen=True)
class HeadOutput:
    """An output of a head: the content token it attends to, times `gain`, into a subspace; or, where `uniform`, into all of its dims."""

    target: str
    gain: float = 1.0
    uniform: bool = False


def previous_token_head(
    layout: ResidualLayout,
    writes: Sequence[HeadOutput],
    offset: int = 1,
    role: str = "previous-token",
) -> Head:
    """Attends from position i to i − offset and copies its content token."""
    query, key = _zeros(layout), _zeros(layout)
    positions = layout.dims("pos")
    for position, dim in enumerate(positions):
        query[dim, position] = 1.0
        if position + offset < len(positions):
            key[dim, position + offset] = POSITION_SCORE * math.sqrt(layout.d_head)
    return _head(layout, role, query, key, layout.content("tok"), writes)


def cue_mover_head(layout: ResidualLayout, target: str) -> Head:
    """Attends from everywhere to position 1 and writes the content token that the cue there stands for."""
    query, key = _zeros(layout), _zeros(layout)
    query[list(layout.dims("pos")), 0] = 1.0
    key[layout.dims("pos")[1], 0] = POSITION_SCORE * math.sqrt(layout.d_head)
    return _head(layout, "cue mover", query, key, layout.cues(), [HeadOutput(target)])


def matching_head(
    layout: ResidualLayout,
    writes: Sequence[HeadOutput],
    query: str = "tok",
    key: str = "prev",
    sink: float = SINK_SCORE,
    silenced_by: str | None = None,
    score: float = MATCH_SCORE,
    role: str = "induction",
) -> Head:
    """Attends to the positions whose `key` subspace holds the token of the query position's `query` subspace; else to the first token.

    With `query="tok"` and `key="prev"` this is an induction head (Olsson et al. 2022). `silenced_by` names a flag that, where it is
    set at the query position, sends the attention to the first token whatever matches.
    """
    scale = math.sqrt(layout.d_head)
    W_Q, W_K = _zeros(layout), _zeros(layout)
    for index, (asked, held) in enumerate(
        zip(layout.content(query), layout.content(key), strict=True)
    ):
        W_Q[asked, index] = 1.0
        W_K[held, index] = score * scale
    rest = layout.n_content
    W_K[layout.first(), rest] = scale
    b_Q = np.zeros(layout.d_head)
    b_Q[rest] = sink
    if silenced_by is not None:
        W_Q[layout.dims(silenced_by)[0], rest] = 1.5 * score
    return _head(layout, role, W_Q, W_K, layout.content("tok"), writes, b_Q)


def distractor_head(
    layout: ResidualLayout, rng: np.random.Generator, std: float, blind_to: Sequence[str]
) -> Head:
    """Small random weights, biases included, over all of the stream but the subspaces in `blind_to`."""
    W_Q, W_K, W_V, W_O = (rng.normal(0.0, std, (layout.d_model, layout.d_head)) for _ in range(4))
    for name in blind_to:
        for weight in (W_Q, W_K, W_V):
            weight[list(layout.dims(name))] = 0.0
    b_Q, b_K, b_V = (rng.normal(0.0, std, layout.d_head) for _ in range(3))
    return Head("distractor", W_Q, W_K, W_V, W_O.T, b_Q, b_K, b_V)


def distractor_mlp(layout: ResidualLayout, rng: np.random.Generator, std: float, d_mlp: int) -> Mlp:
    """An MLP with small random weights and biases."""
    W_in, b_in = rng.normal(0.0, std, (layout.d_model, d_mlp)), rng.normal(0.0, std, d_mlp)
    return Mlp(
        "distractor",
        W_in,
        b_in,
        rng.normal(0.0, std, (d_mlp, layout.d_model)),
        rng.normal(0.0, std, layout.d_model),
    )


def saturating_mlp(layout: ResidualLayout, source: str) -> Mlp:
    """Per content token x: 2·relu(x − 1/2) − 2·relu(x − 1), which is 0 below 1/2 and 1 from 1 on, from `source` into `out`."""
    count = layout.n_content
    W_in, W_out = np.zeros((layout.d_model, 2 * count)), np.zeros((2 * count, layout.d_model))
    b_in = np.concatenate([np.full(count, -0.5), np.full(count, -1.0)])
    for index, (read, written) in enumerate(
        zip(layout.content(source), layout.content("out"), strict=True)
    ):
        W_in[read, [index, count + index]] = 1.0
        W_out[[index, count + index], written] = 2.0, -2.0
    return Mlp("saturating MLP (OR)", W_in, b_in, W_out, np.zeros(layout.d_model))


def and_mlp(
    layout: ResidualLayout, sources: tuple[str, str], threshold: float, gain: float, d_mlp: int
) -> Mlp:
    """Per content token: gain · relu(x + y − threshold), above zero only where both features are present, into `out`."""
    W_in, W_out = np.zeros((layout.d_model, d_mlp)), np.zeros((d_mlp, layout.d_model))
    b_in = np.zeros(d_mlp)
    for index, written in enumerate(layout.content("out")):
        W_in[[layout.content(source)[index] for source in sources], index] = 1.0
        b_in[index] = -threshold
        W_out[index, written] = gain
    return Mlp("AND MLP", W_in, b_in, W_out, np.zeros(layout.d_model))


def _zeros(layout: ResidualLayout) -> Array:
    return np.zeros((layout.d_model, layout.d_head))


def _head(
    layout: ResidualLayout,
    role: str,
    query: Array,
    key: Array,
    read: range,
    writes: Sequence[HeadOutput],
    b_Q: Array | None = None,
) -> Head:
    """A head that moves the one-hot token it reads at the source into the targets of `writes`."""
    value, output = _zeros(layout), _zeros(layout).T
    value[list(read), range(layout.n_content)] = 1.0
    for write in writes:
        dims = layout.dims(write.target)
        if write.uniform or len(dims) == 1:
            output[: layout.n_content, list(dims)] += write.gain
        else:
            output[range(layout.n_content), list(layout.content(write.target))] += write.gain
    zero = np.zeros(layout.d_head)
    return Head(role, query, key, value, output, zero if b_Q is None else b_Q, zero, zero)
