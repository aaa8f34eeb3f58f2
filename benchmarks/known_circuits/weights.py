"""Weights of hand-built heads and MLPs, and the subspaces of the residual stream they use.

The residual stream is cut into named one-hot subspaces, so that every weight can be written down by
hand. Each constructor returns the weights of one node together with the node's role.

The model divides attention scores by sqrt(d_head). The key weights carry that factor, so a `score`
below is the score that the softmax sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
POSITION_SCORE = 12.0
MATCH_SCORE = 12.0
SINK_SCORE = 6.0


@dataclass(frozen=True, kw_only=True)
class ResidualLayout:
    """The subspaces of the residual stream, in order, and the vocabulary.

    Token ids: 0 is the first token of every prompt ("^"); 1 to n_content are the content tokens,
    which a task asks about. A cued vocabulary continues with one cue token for each content token
    and ends with the query mark "=".

    Attributes:
        n_content: the number of content tokens.
        n_ctx: the largest number of positions.
        extra: subspaces beside `tok`, `pos` and `out`, with one dimension for each content token.
        flags: subspaces with a single dimension.
        cued: whether the vocabulary has cue tokens and the query mark.
    """

    n_content: int
    n_ctx: int
    extra: tuple[str, ...] = ("prev",)
    flags: tuple[str, ...] = ()
    cued: bool = False

    @property
    def d_vocab(self) -> int:
        """The size of the vocabulary."""
        return 1 + self.n_content + (self.n_content + 1 if self.cued else 0)

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """The name and size of every subspace, in order."""
        always = (("tok", self.d_vocab), ("pos", self.n_ctx), ("out", self.d_vocab))
        return (
            always
            + tuple((name, self.n_content) for name in self.extra)
            + tuple((name, 1) for name in self.flags)
        )

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return sum(size for _, size in self.sizes)

    @property
    def d_head(self) -> int:
        """A width that suffices to match content tokens plus a sink, and to match positions."""
        return max(self.n_content + 1, self.n_ctx)

    def dims(self, name: str) -> range:
        """Return the dimensions of one subspace."""
        start = 0
        for subspace, size in self.sizes:
            if subspace == name:
                return range(start, start + size)
            start += size
        raise KeyError(name)

    def content(self, name: str) -> range:
        """Return the dimensions of a subspace that stand for the content tokens, in order of id."""
        dims = self.dims(name)
        return dims[1 : 1 + self.n_content] if name in ("tok", "out") else dims

    def cues(self) -> range:
        """Return the dimensions of `tok` that stand for the cue tokens."""
        return self.dims("tok")[1 + self.n_content : 1 + 2 * self.n_content]

    def first(self) -> int:
        """Return the dimension of `tok` for the first token, where attention rests by default."""
        return self.dims("tok")[0]


@dataclass(frozen=True, kw_only=True)
class Head:
    """The weights of one head and its role.

    W_Q, W_K and W_V are [d_model d_head], W_O is [d_head d_model], and the biases are [d_head].
    """

    role: str
    W_Q: Array
    W_K: Array
    W_V: Array
    W_O: Array
    b_Q: Array
    b_K: Array
    b_V: Array


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """The weights of one MLP and its role.

    W_in is [d_model d_mlp], b_in [d_mlp], W_out [d_mlp d_model] and b_out [d_model].
    """

    role: str
    W_in: Array
    b_in: Array
    W_out: Array
    b_out: Array


@dataclass(frozen=True)
class HeadOutput:
    """One thing that a head writes: the content token that it attends to, scaled, into a subspace.

    Attributes:
        target: the subspace that is written to.
        gain: the factor on what is written.
        uniform: whether the head writes `gain` into all dimensions of the subspace instead of the
            dimension of the token.
    """

    target: str
    gain: float = 1.0
    uniform: bool = False


def previous_token_head(
    layout: ResidualLayout,
    outputs: Sequence[HeadOutput],
    offset: int = 1,
    role: str = "previous-token",
) -> Head:
    """Make a head that attends from position i to i − offset and copies its content token."""
    query = _zeros(layout)
    key = _zeros(layout)
    positions = layout.dims("pos")
    for position, dim in enumerate(positions):
        query[dim, position] = 1.0
        if position + offset < len(positions):
            key[dim, position + offset] = POSITION_SCORE * math.sqrt(layout.d_head)
    return _copying_head(layout, role, query, key, layout.content("tok"), outputs)


def cue_mover_head(layout: ResidualLayout, target: str) -> Head:
    """Make a head that attends to position 1 and writes the content token of the cue there."""
    query = _zeros(layout)
    key = _zeros(layout)
    query[list(layout.dims("pos")), 0] = 1.0
    key[layout.dims("pos")[1], 0] = POSITION_SCORE * math.sqrt(layout.d_head)
    return _copying_head(layout, "cue mover", query, key, layout.cues(), [HeadOutput(target)])


def matching_head(
    layout: ResidualLayout,
    outputs: Sequence[HeadOutput],
    *,
    query: str = "tok",
    key: str = "prev",
    sink: float = SINK_SCORE,
    silenced_by: str | None = None,
    score: float = MATCH_SCORE,
    role: str = "induction",
) -> Head:
    """Make a head that attends to matching positions, and to the first token if nothing matches.

    A position matches if its `key` subspace holds the token that the `query` subspace holds at the
    query position. With `query="tok"` and `key="prev"` this is an induction head (Olsson et al.
    2022).

    Args:
        layout: the subspaces of the residual stream.
        outputs: what the head writes.
        query: the subspace that is read at the query position.
        key: the subspace that is read at the source positions.
        sink: the score of the first token.
        silenced_by: a flag that, when it is set at the query position, sends the attention to the
            first token whatever matches.
        score: the score of a match.
        role: the role of the head.
    """
    scale = math.sqrt(layout.d_head)
    W_Q = _zeros(layout)
    W_K = _zeros(layout)
    read_dims = zip(layout.content(query), layout.content(key), strict=True)
    for index, (query_dim, key_dim) in enumerate(read_dims):
        W_Q[query_dim, index] = 1.0
        W_K[key_dim, index] = score * scale
    sink_dim = layout.n_content
    W_K[layout.first(), sink_dim] = scale
    b_Q = np.zeros(layout.d_head)
    b_Q[sink_dim] = sink
    if silenced_by is not None:
        W_Q[layout.dims(silenced_by)[0], sink_dim] = 1.5 * score
    return _copying_head(layout, role, W_Q, W_K, layout.content("tok"), outputs, b_Q)


def distractor_head(
    layout: ResidualLayout, rng: np.random.Generator, std: float, blind_to: Sequence[str]
) -> Head:
    """Make a head with small random weights and biases that does not read `blind_to` subspaces."""
    W_Q, W_K, W_V, W_O = (rng.normal(0.0, std, (layout.d_model, layout.d_head)) for _ in range(4))
    for name in blind_to:
        for weight in (W_Q, W_K, W_V):
            weight[list(layout.dims(name))] = 0.0
    b_Q, b_K, b_V = (rng.normal(0.0, std, layout.d_head) for _ in range(3))
    return Head(role="distractor", W_Q=W_Q, W_K=W_K, W_V=W_V, W_O=W_O.T, b_Q=b_Q, b_K=b_K, b_V=b_V)


def distractor_mlp(layout: ResidualLayout, rng: np.random.Generator, std: float, d_mlp: int) -> Mlp:
    """Make an MLP with small random weights and biases."""
    W_in = rng.normal(0.0, std, (layout.d_model, d_mlp))
    b_in = rng.normal(0.0, std, d_mlp)
    W_out = rng.normal(0.0, std, (d_mlp, layout.d_model))
    b_out = rng.normal(0.0, std, layout.d_model)
    return Mlp(role="distractor", W_in=W_in, b_in=b_in, W_out=W_out, b_out=b_out)


def saturating_mlp(layout: ResidualLayout, source: str) -> Mlp:
    """Make an MLP that is 0 up to 1/2 and saturates at 1, for each content token on its own.

    It computes 2·relu(x − 1/2) − 2·relu(x − 1), read from `source` and written to `out`.
    """
    count = layout.n_content
    W_in = np.zeros((layout.d_model, 2 * count))
    W_out = np.zeros((2 * count, layout.d_model))
    b_in = np.concatenate([np.full(count, -0.5), np.full(count, -1.0)])
    dims = zip(layout.content(source), layout.content("out"), strict=True)
    for index, (source_dim, out_dim) in enumerate(dims):
        W_in[source_dim, [index, count + index]] = 1.0
        W_out[index, out_dim] = 2.0
        W_out[count + index, out_dim] = -2.0
    b_out = np.zeros(layout.d_model)
    return Mlp(role="saturating MLP (OR)", W_in=W_in, b_in=b_in, W_out=W_out, b_out=b_out)


def and_mlp(
    layout: ResidualLayout, sources: tuple[str, str], threshold: float, gain: float, d_mlp: int
) -> Mlp:
    """Make an MLP that writes a content token to `out` only if both source features are present.

    It computes gain · relu(x + y − threshold) for each content token.
    """
    W_in = np.zeros((layout.d_model, d_mlp))
    W_out = np.zeros((d_mlp, layout.d_model))
    b_in = np.zeros(d_mlp)
    for index, out_dim in enumerate(layout.content("out")):
        W_in[[layout.content(source)[index] for source in sources], index] = 1.0
        b_in[index] = -threshold
        W_out[index, out_dim] = gain
    b_out = np.zeros(layout.d_model)
    return Mlp(role="AND MLP", W_in=W_in, b_in=b_in, W_out=W_out, b_out=b_out)


def echo_head(layout: ResidualLayout, gain: float, role: str = "echo") -> Head:
    """Make a head that attends to its own position and writes `gain` times what `out` holds."""
    query = _zeros(layout)
    key = _zeros(layout)
    for position, dim in enumerate(layout.dims("pos")):
        query[dim, position] = 1.0
        key[dim, position] = POSITION_SCORE * math.sqrt(layout.d_head)
    return _copying_head(
        layout, role, query, key, layout.content("out"), (HeadOutput("out", gain),)
    )


def ramp_mlp(
    layout: ResidualLayout,
    source: str,
    target: str,
    gains: Array,
    *,
    d_mlp: int,
    ceiling: float | None = None,
    role: str = "ramp",
) -> Mlp:
    """Make an MLP that writes gain · relu(x), for each content token on its own.

    Args:
        layout: the subspaces of the residual stream.
        source: the subspace that is read.
        target: the subspace that is written to.
        gains: the gain of every content token, [n_content].
        d_mlp: the number of hidden units, at least 2 · n_content. Those not needed are zero.
        ceiling: the value of x from which on the output no longer rises. None lets it rise.
        role: the role of the MLP.
    """
    count = layout.n_content
    W_in = np.zeros((layout.d_model, d_mlp))
    W_out = np.zeros((d_mlp, layout.d_model))
    b_in = np.zeros(d_mlp)
    dims = zip(layout.content(source), layout.content(target), strict=True)
    for index, (source_dim, target_dim) in enumerate(dims):
        W_in[source_dim, index] = 1.0
        W_out[index, target_dim] = gains[index]
        if ceiling is not None:
            W_in[source_dim, count + index] = 1.0
            b_in[count + index] = -ceiling
            W_out[count + index, target_dim] = -gains[index]
    return Mlp(role=role, W_in=W_in, b_in=b_in, W_out=W_out, b_out=np.zeros(layout.d_model))


def _zeros(layout: ResidualLayout) -> Array:
    return np.zeros((layout.d_model, layout.d_head))


def _copying_head(
    layout: ResidualLayout,
    role: str,
    W_Q: Array,
    W_K: Array,
    source: range,
    outputs: Sequence[HeadOutput],
    b_Q: Array | None = None,
) -> Head:
    """Make a head that copies the one-hot token in the `source` dimensions to its outputs."""
    W_V = _zeros(layout)
    W_O = _zeros(layout).T
    W_V[list(source), range(layout.n_content)] = 1.0
    for output in outputs:
        dims = layout.dims(output.target)
        if output.uniform or len(dims) == 1:
            W_O[: layout.n_content, list(dims)] += output.gain
        else:
            W_O[range(layout.n_content), list(layout.content(output.target))] += output.gain
    zero = np.zeros(layout.d_head)
    return Head(
        role=role,
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        W_O=W_O,
        b_Q=zero if b_Q is None else b_Q,
        b_K=zero,
        b_V=zero,
    )
