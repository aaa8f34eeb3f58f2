"""How strongly a head reads what an earlier head writes: Q, K and V composition.

With W_OV = W_V · W_O of the earlier head and W_QK = W_Q · W_K^T of the later one, and rows
multiplied from the left, the scores of Elhage et al. (2021, "A mathematical framework for
transformer circuits") are ratios of Frobenius norms:

    Q: |W_OV · W_QK| / (|W_OV| · |W_QK|)        K: the same with W_QK^T        V: with W_OV

The gains of the norms, and the centring of a LayerNorm, are folded in; the norm behind an attention
is part of W_O. Each matrix is the product of two thin factors, so only d_head × d_head products are
formed.

Chance is the score after a random rotation of the residual stream between the two heads. Its root
mean square is 1 / √d_model whatever the heads are, and draws give its spread. Trained heads share
directions of the stream, so most of them exceed a random rotation a little: compare scores with
each other too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from discovery.backends.weights import ModelWeights
from discovery.methods.statistics import holm
from discovery.sites import Node, head

CompositionKind = Literal["q", "k", "v"]
ROTATIONS = 40


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How strongly one head reads another.

    Attributes:
        writer: the earlier head.
        reader: the later head.
        kind: whether it enters the reader's queries, keys or values.
        score: the composition score, from 0 to 1.
        chance: the mean score after random rotations.
        z: how many standard deviations of these the score is above `chance`.
        p: one-sided, from z, corrected for all scores that were computed with it.
    """

    writer: str
    reader: str
    kind: CompositionKind
    score: float
    chance: float
    z: float
    p: float

    def __str__(self) -> str:
        return f"{self.writer} → {self.kind} of {self.reader} {self.score:.3f} (z {self.z:.1f})"


@dataclass(frozen=True)
class Read:
    """One way in which a head reads the stream: a matrix as basis · core.

    Attributes:
        basis: an orthonormal basis of what is read.
        core: the matrix in that basis, without the orthonormal basis on its other side.
    """

    basis: Float[Tensor, "d_model d_head"]
    core: Float[Tensor, "d_head d_head"]


@dataclass(frozen=True, kw_only=True)
class HeadFactors:
    """The maps of a head as thin factors, with norms folded in.

    Attributes:
        written: an orthonormal basis of what the head writes.
        write: W_OV before that basis, without the orthonormal basis of what is read.
        reads: W_QK, its transpose and W_OV, as the queries, keys and values read them.
    """

    written: Float[Tensor, "d_head d_model"]
    write: Float[Tensor, "d_head d_head"]
    reads: Mapping[CompositionKind, Read]


def layer_factors(weights: ModelWeights, layer: int) -> tuple[HeadFactors, ...]:
    """Return the factors of every head of a layer.

    Queries and keys are left out if the model puts them through a norm of their own, because W_QK
    is no fixed map then.
    """
    info = weights.backend.info
    group = info.n_heads // info.n_kv_heads
    norm = weights.attention_norm(layer)
    output = weights.attention_output(layer)
    value, _ = weights.reads(layer, "v")
    value = norm.fold(value)
    one = torch.ones_like(output.weights[..., :1])  # the scale of the norm behind the attention
    written = output.norm.apply_frozen(output.weights, one)
    query = norm.fold(weights.reads(layer, "q")[0])
    key = norm.fold(weights.reads(layer, "k")[0])
    factors = []
    for index in range(info.n_heads):
        shared = index // group
        value_basis, value_core = torch.linalg.qr(value[shared])
        write_basis, write_core = torch.linalg.qr(written[index].T)
        query_basis, query_core = torch.linalg.qr(query[index])
        key_basis, key_core = torch.linalg.qr(key[shared])
        write = value_core @ write_core.T
        reads: dict[CompositionKind, Read] = {"v": Read(value_basis, write)}
        if not weights.normalises_queries:
            reads["q"] = Read(query_basis, query_core @ key_core.T)
            reads["k"] = Read(key_basis, key_core @ query_core.T)
        factors.append(HeadFactors(written=write_basis.T, write=write, reads=reads))
    return tuple(factors)


def measure_compositions(
    weights: ModelWeights, node: Node, seed: int
) -> tuple[tuple[Composition, ...], tuple[Composition, ...]]:
    """Measure what a head reads of every earlier head, and what every later head reads of it.

    Args:
        weights: the model.
        node: the head.
        seed: seed of the rotations.

    Returns:
        The compositions with earlier heads, and those with later heads; the largest z first.
    """
    info = weights.backend.info
    layer = node.layer or 0
    own = layer_factors(weights, layer)[node.head or 0]
    rotations = draw_rotations(info.d_model, own.write.shape[0], seed, own.write)
    pairs: list[Composition] = []
    for other in range(info.n_layers):
        if other == layer:
            continue
        for index, factors in enumerate(layer_factors(weights, other)):
            name = head(other, index)
            if other < layer:
                pairs += _compose(name, factors, node, own, rotations)
            else:
                pairs += _compose(node, own, name, factors, rotations)
    corrected = holm([float(stats.norm.sf(pair.z)) for pair in pairs])
    compositions = [replace(pair, p=p) for pair, p in zip(pairs, corrected, strict=True)]
    ranked = sorted(compositions, key=lambda pair: -pair.z)
    return (
        tuple(pair for pair in ranked if pair.reader == str(node)),
        tuple(pair for pair in ranked if pair.writer == str(node)),
    )


def draw_rotations(
    d_model: int, d_head: int, seed: int, like: Tensor
) -> Float[Tensor, "draw d_head d_head"]:
    """Draw what a random rotation does between two subspaces of d_head dimensions each.

    The product of a fixed basis, a random rotation and another fixed basis is distributed as the
    first rows of a random orthonormal frame.
    """
    generator = torch.Generator().manual_seed(seed)
    width = min(d_head, d_model)
    normal = torch.randn(ROTATIONS, d_model, width, generator=generator, dtype=like.dtype)
    frames: Tensor = torch.linalg.qr(normal)[0]
    return frames[:, :width].to(like.device)


def _compose(
    writer: Node,
    earlier: HeadFactors,
    reader: Node,
    later: HeadFactors,
    rotations: Float[Tensor, "draw d_head d_head"],
) -> Iterator[Composition]:
    """Yield the Q, K and V composition of two heads, before correction."""
    of_writer = earlier.write.norm()
    for kind, read in later.reads.items():
        scale = of_writer * read.core.norm()
        if not float(scale) > 0:
            continue  # one of them reads or writes nothing
        inner = earlier.write @ (earlier.written @ read.basis) @ read.core
        score = float(inner.norm() / scale)
        by_chance = (earlier.write @ rotations @ read.core).flatten(1).norm(dim=1) / scale
        chance = float(by_chance.mean())
        z = (score - chance) / float(by_chance.std())
        yield Composition(
            writer=str(writer),
            reader=str(reader),
            kind=kind,
            score=score,
            chance=chance,
            z=z,
            p=1.0,
        )
