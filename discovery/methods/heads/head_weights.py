"""What a head's weights say: which tokens it writes for which, which it matches, and which heads
it reads and is read by.

- *OV*: what the head adds to each token's logit if it reads a token: norm, W_V, W_O, the norm
  behind the attention if there is one, last norm, W_U. The scale of the last norm is left out, so
  entries are comparable with each other and are no logits.
- *QK*: the score of each token's query with each token's key, before the model's scale and cap.
- *Composition* with heads of other layers (`composition`).

A token is read as the stream has it in a text without other words: after the first layer, or for a
head of the first layer as it is embedded. No matrix of d_vocab × d_vocab entries is formed
(`vocabulary_circuit`). Query heads that share keys and values have OV and QK circuits of their own,
with shared W_K and W_V. Rotary positions turn queries and keys by their distance; QK entries and
compositions are those of a distance of 0, and a warning says so.

    from discovery import head_weights, load_model
    weights = head_weights(load_model("bundled"), "a2.h0")
    weights.ov.largest[0], weights.ov.same_token, weights.reads_from[0]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.weights import ModelWeights
from discovery.engine import Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError
from discovery.methods.arguments import require_counts
from discovery.methods.heads.composition import Composition, measure_compositions
from discovery.methods.heads.copying import draw_tokens, read_token_streams
from discovery.methods.heads.vocabulary_circuit import (
    CircuitFactors,
    VocabularyCircuit,
    read_circuit,
)
from discovery.methods.subject import format_token
from discovery.progress import ProgressCallback
from discovery.sites import Node, key_value_group

DEFAULT_TOKENS = 4096
MIN_TOKENS = 8
COLUMN_ENTRIES = 2**24  # of the columns of W_U that are multiplied at once


@dataclass(frozen=True, kw_only=True, repr=False)
class HeadWeights:
    """What the weights of a head say.

    Attributes:
        node: the head.
        key_value_head: the key-value head that it reads with, and the query heads that share it;
            None if it has its own.
        n_tokens: the number of tokens that are read.
        ov: what it writes for each of these tokens, over the whole vocabulary.
        qk: which of these tokens' queries match which of their keys; None if the model puts
            queries and keys through a norm of their own, so that there is no fixed map.
        reads_from: how strongly it reads each earlier head, the largest z first.
        writes_to: how strongly each later head reads it, the largest z first.
        warnings: what to know before the numbers are read.
        cost: the work and the time that it took.
    """

    node: str
    key_value_head: str | None
    n_tokens: int
    ov: VocabularyCircuit
    qk: VocabularyCircuit | None
    reads_from: tuple[Composition, ...]
    writes_to: tuple[Composition, ...]
    warnings: tuple[str, ...]
    cost: MeasurementCost

    def __repr__(self) -> str:
        """Return one line."""
        same, chance = self.ov.same_token.value, self.ov.same_token.chance.high
        return (
            f"<weights of {self.node} on {self.n_tokens} tokens: OV raises the token itself for "
            f"{same:.0%} (shuffled: at most {chance:.0%}); largest {self.ov.largest[0]}>"
        )

    def panels(self) -> dict[str, list[tuple[str, float]]]:
        """Return named values by the title of their panel, for a picture."""
        panels = {"OV: reads → writes": _label_entries(self.ov)}
        if self.qk is not None:
            panels["QK: looks → is looked at"] = _label_entries(self.qk)
        sides = {"reads (composition, z)": self.reads_from, "is read by (z)": self.writes_to}
        for title, pairs in sides.items():
            if pairs:
                panels[title] = [
                    (f"{pair.writer} → {pair.kind} of {pair.reader}", pair.z) for pair in pairs
                ]
        return panels


def _label_entries(circuit: VocabularyCircuit) -> list[tuple[str, float]]:
    entries = (*circuit.largest, *reversed(circuit.smallest))
    return [(f"{entry.row_text!r} → {entry.column_text!r}", entry.value) for entry in entries]


def head_weights(
    model: Backend,
    node: str | Node,
    *,
    tokens: Sequence[str | int] | int = DEFAULT_TOKENS,
    top: int = 10,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> HeadWeights:
    """Read a head's OV and QK circuits through the vocabulary, and its composition with others.

    Args:
        node: the head.
        tokens: the tokens that are read: so many of the vocabulary, drawn at random, or these, as
            texts of one token each or as ids.
        top: how many entries and compositions to list on each side.
        seed: seed of the draws and of what is compared with chance.

    Raises:
        MeasurementError: if an argument is wrong, if the weights are not on this machine, or if a
            norm of the model is of an unknown kind.
        SiteError: if the model lacks the head.
    """
    began = time.monotonic()
    require_counts(top=(top, 1))
    meter = Meter(progress=progress)
    timer = CostTimer(meter, began)
    chosen = require_head(model, node)
    ids = _resolve_tokens(model, tokens, seed)
    weights = ModelWeights(model)
    maps = HeadMaps(weights, chosen)
    streams = read_token_streams(model, ids, meter).read_by(maps.layer)
    texts = _Texts(model)
    ov = read_circuit(maps.ov(streams, ids), texts, top, seed)
    qk = None
    if not weights.normalises_queries:
        qk = read_circuit(maps.qk(streams, ids), texts, top, seed)
    reads_from, writes_to = measure_compositions(weights, chosen, seed)
    return HeadWeights(
        node=str(chosen),
        key_value_head=_key_value_head(model, chosen),
        n_tokens=len(ids),
        ov=ov,
        qk=qk,
        reads_from=reads_from[:top],
        writes_to=writes_to[:top],
        warnings=_warnings(model, weights),
        cost=timer.cost,
    )


class HeadMaps:
    """The maps of one head, applied to tokens."""

    def __init__(self, weights: ModelWeights, node: Node) -> None:
        """Find the weights of the head."""
        info = weights.backend.info
        self.layer = node.layer or 0
        self._head = node.head or 0
        self._shared = self._head // (info.n_heads // info.n_kv_heads)
        self._weights = weights
        self._norm = weights.attention_norm(self.layer)

    def ov(self, streams: Float[Tensor, "token d_model"], ids: Sequence[int]) -> CircuitFactors:
        """Return the OV circuit: rows are read, columns are the tokens of the whole vocabulary."""
        weights = self._weights
        output = weights.attention_output(self.layer)
        unembedding = weights.unembedding
        parts = []
        for columns in torch.split(unembedding, max(1, COLUMN_ENTRIES // len(unembedding)), 1):
            directions = weights.final_norm.read_direction(columns.T)
            parts.append(output.weights[self._head] @ output.norm.read_direction(directions).T)
        return CircuitFactors(
            rows=self._read(streams, "v", self._shared),
            columns=torch.cat(parts, 1),
            row_tokens=self._ids(ids),
            column_tokens=torch.arange(unembedding.shape[1], device=unembedding.device),
        )

    def qk(self, streams: Float[Tensor, "token d_model"], ids: Sequence[int]) -> CircuitFactors:
        """Return the QK circuit: rows look, columns are looked at."""
        return CircuitFactors(
            rows=self._read(streams, "q", self._head),
            columns=self._read(streams, "k", self._shared).T,
            row_tokens=self._ids(ids),
            column_tokens=self._ids(ids),
        )

    def _read(
        self, streams: Float[Tensor, "token d_model"], kind: str, index: int
    ) -> Float[Tensor, "token d_head"]:
        weight, bias = self._weights.reads(self.layer, kind)  # type: ignore[arg-type]
        return self._norm(streams.to(weight.dtype)) @ weight[index] + bias[index]

    def _ids(self, ids: Sequence[int]) -> Int[Tensor, "token"]:
        return torch.tensor(ids, device=self._weights.unembedding.device)


class _Texts(Sequence[str]):
    """The texts of a model's tokens by id, made when they are asked for."""

    def __init__(self, model: Backend) -> None:
        self._model = model

    def __getitem__(self, token: int) -> str:  # type: ignore[override]
        return format_token(self._model, token)

    def __len__(self) -> int:
        return self._model.n_logits


def require_head(model: Backend, node: str | Node) -> Node:
    """Return the head of this name.

    Raises:
        SiteError: if the model lacks it.
        MeasurementError: if it is an MLP.
    """
    chosen = model.info.parse(node)
    if chosen.kind != "attention_head":
        raise MeasurementError(
            f"{chosen} is no attention head.", "Name a head, as a0.h0; MLPs have no OV circuit."
        )
    return chosen


def _resolve_tokens(
    model: Backend, tokens: Sequence[str | int] | int, seed: int
) -> tuple[int, ...]:
    """Return the ids of the tokens that are read.

    Raises:
        MeasurementError: if there are too few, or if one does not exist.
    """
    if isinstance(tokens, str):
        raise MeasurementError(f"tokens is the text {tokens!r}.", f"Write [{tokens!r}, …].")
    if isinstance(tokens, int):
        require_counts(tokens=(tokens, MIN_TOKENS))
        return draw_tokens(model, seed, tokens)
    ids = tuple(dict.fromkeys(_token_id(model, token) for token in tokens))
    if len(ids) < MIN_TOKENS:
        raise MeasurementError(
            f"tokens names {len(ids)} tokens.",
            f"Name at least {MIN_TOKENS}: means and chance are those of the named tokens.",
        )
    return ids


def _token_id(model: Backend, token: str | int) -> int:
    limit = min(model.d_vocab, model.n_logits)
    if isinstance(token, int):
        if not 0 <= token < limit:
            raise MeasurementError(f"Token {token} does not exist.", f"Use 0 to {limit - 1}.")
        return token
    if model.tokenizer is None:
        raise MeasurementError(
            f"{token!r} is a text, and {model.info.name} has no tokenizer.", "Give token ids."
        )
    prefix = tuple(model.tokenizer.encode(""))
    encoded = tuple(model.tokenizer.encode(token))[len(prefix) :]
    if len(encoded) != 1:
        raise MeasurementError(
            f"{token!r} is {len(encoded)} tokens.",
            "Name single tokens, with the space before a word, or give ids.",
        )
    return encoded[0]


def _key_value_head(model: Backend, node: Node) -> str | None:
    info = model.info
    if not info.shares_key_values:
        return None
    index = (node.head or 0) // (info.n_heads // info.n_kv_heads)
    return f"a{node.layer}.kv{index}, {key_value_group(index, info.query_heads(index))}"


def _warnings(model: Backend, weights: ModelWeights) -> tuple[str, ...]:
    warnings = [
        "Weights say what a head would do if it looked there; attention_patterns says where it "
        "looks, ablate_heads whether it matters."
    ]
    position = model.info.positional_embedding
    if weights.normalises_queries:
        warnings.append(
            "Queries and keys go through a norm of their own, so there is no fixed QK circuit: QK "
            "and the Q and K compositions are left out."
        )
    elif position == "rotary":
        warnings.append(
            "Positions are rotary: QK and the Q and K compositions are those of a distance of 0, "
            "and change with the distance."
        )
    elif position == "alibi":
        warnings.append("Positions are biases by distance, which QK leaves out.")
    return tuple(warnings)
