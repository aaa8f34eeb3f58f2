"""A head's circuit through the vocabulary, read in blocks.

Elhage et al. (2021, "A mathematical framework for transformer circuits") describe what a head
writes (OV) and what it matches (QK) as a matrix from tokens to tokens. That matrix has d_vocab ×
d_vocab entries, but it is the product of a [row d_head] and a [d_head column] factor, so everything
here works with the factors and forms at most a block of rows.

Both factors are centred: the mean over rows is what the head does whatever it reads, and the mean
over columns changes no softmax. Chance is what the same matrix gives if the tokens of its rows are
shuffled, so a matrix with a few large columns copies nothing by having them.

- *same token*: the share of tokens whose own entry is among the largest twentieth of their row.
- *opposite*: the share of tokens whose own entry is among the smallest twentieth.
- *eigenvalue share*: Σ Re(λ) / Σ |λ| over the eigenvalues of the matrix on the tokens that are both
  rows and columns; 1 if the circuit raises what it reads, −1 if it lowers it. A product of rank
  d_head has the non-zero eigenvalues of the d_head × d_head product of its factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.methods.statistics import Interval

TAIL = 0.05  # of a row; what counts as large or small, and about the chance level
PERMUTATIONS = 399  # with which a p of 0.0025 can be reached
EIGENVALUE_PERMUTATIONS = 99  # fewer, because eigenvalues of a large d_head take long
BLOCK_ENTRIES = 2**24  # of a block of rows; 64 MiB in float32


@dataclass(frozen=True, kw_only=True)
class CircuitEntry:
    """One entry of a circuit.

    Attributes:
        row: the id of the token that is read (OV), or that looks (QK).
        column: the id of the token that is written (OV), or that is looked at (QK).
        row_text: its text.
        column_text: its text.
        value: the centred entry.
    """

    row: int
    column: int
    row_text: str
    column_text: str
    value: float

    def __str__(self) -> str:
        return f"{self.row_text!r} → {self.column_text!r} {self.value:.2f}"


@dataclass(frozen=True, kw_only=True)
class ChanceScore:
    """A score beside what it is if the tokens are shuffled.

    Attributes:
        value: the score.
        chance: the mean, and the range that holds 95%, of the score with shuffled tokens.
        p: the share of shuffled scores that are at least as large, the score itself counted.
    """

    value: float
    chance: Interval
    p: float


@dataclass(frozen=True, kw_only=True)
class VocabularyCircuit:
    """What a head writes for each token that it reads, or which tokens it matches.

    Attributes:
        n_rows: the number of tokens that are read (OV) or that look (QK).
        n_columns: the number of tokens that are written (OV) or looked at (QK).
        largest: the largest entries, at most one for each row.
        smallest: the most negative entries, at most one for each row.
        same_token: the share of tokens that the circuit maps to themselves.
        opposite: the share of tokens that it keeps away from themselves.
        eigenvalue_share: from −1 to 1; p counts the shuffled shares that are as far from zero.
    """

    n_rows: int
    n_columns: int
    largest: tuple[CircuitEntry, ...]
    smallest: tuple[CircuitEntry, ...]
    same_token: ChanceScore
    opposite: ChanceScore
    eigenvalue_share: ChanceScore


@dataclass(frozen=True, kw_only=True)
class CircuitFactors:
    """A token-to-token matrix as two factors, whose product is never formed as a whole.

    Attributes:
        rows: the factor of the tokens that are read.
        columns: the factor of the tokens that are written.
        row_tokens: the id of each row.
        column_tokens: the id of each column.
    """

    rows: Float[Tensor, "row d_head"]
    columns: Float[Tensor, "d_head column"]
    row_tokens: Int[Tensor, "row"]
    column_tokens: Int[Tensor, "column"]

    def centre(self) -> CircuitFactors:
        """Return the factors of the matrix without its mean row and its mean column."""
        return CircuitFactors(
            rows=self.rows - self.rows.mean(0),
            columns=self.columns - self.columns.mean(1, keepdim=True),
            row_tokens=self.row_tokens,
            column_tokens=self.column_tokens,
        )

    @property
    def own_columns(self) -> Int[Tensor, "row"]:
        """The column of each row's own token; -1 if there is none."""
        size = 1 + int(torch.cat([self.row_tokens, self.column_tokens]).max())
        column_of = torch.full((size,), -1, device=self.column_tokens.device)
        column_of[self.column_tokens] = torch.arange(
            len(self.column_tokens), device=column_of.device
        )
        return column_of[self.row_tokens]


def read_circuit(
    factors: CircuitFactors, texts: Sequence[str], top: int, seed: int
) -> VocabularyCircuit:
    """Read a circuit: its largest entries, and whether it maps tokens to themselves.

    Args:
        factors: the circuit; at least one token is both a row and a column.
        texts: the text of every token id.
        top: how many entries to list on each side.
        seed: seed of the shuffles.
    """
    centred = factors.centre()
    own = centred.own_columns
    shuffled = _shuffle(own, seed)
    per_block = max(1, BLOCK_ENTRIES // centred.columns.shape[1])
    extremes: list[Tensor] = []
    counts = torch.zeros(2, shuffled.shape[1], dtype=torch.float64)
    for begin in range(0, len(own), per_block):
        part = slice(begin, begin + per_block)
        block = centred.rows[part] @ centred.columns
        extremes.append(_row_extremes(block))
        counts += _count_tails(block, shuffled[part])
    n_shared = int((own >= 0).sum())
    same, opposite = counts / n_shared
    largest, smallest = _list_extremes(centred, torch.cat(extremes, 1), texts, top)
    return VocabularyCircuit(
        n_rows=len(own),
        n_columns=centred.columns.shape[1],
        largest=largest,
        smallest=smallest,
        same_token=_beside_chance(same, same),
        opposite=_beside_chance(opposite, opposite),
        eigenvalue_share=eigenvalue_share(centred, shuffled[:, : 1 + EIGENVALUE_PERMUTATIONS]),
    )


def eigenvalue_share(centred: CircuitFactors, shuffled: Int[Tensor, "row draw"]) -> ChanceScore:
    """Return Σ Re(λ) / Σ |λ| of the circuit on the tokens that are rows and columns.

    Args:
        centred: the circuit.
        shuffled: for each row its own column first, then a shuffled one; -1 for rows without one.
    """
    has_column = shuffled[:, 0] >= 0
    rows = centred.rows[has_column]
    products = [
        centred.columns[:, shuffled[has_column, draw]] @ rows for draw in range(shuffled.shape[1])
    ]
    values = torch.linalg.eigvals(torch.stack(products).cpu().double())
    shares = values.real.sum(1) / values.abs().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    return _beside_chance(shares, shares.abs())


def _shuffle(own: Int[Tensor, "row"], seed: int) -> Int[Tensor, "row draw"]:
    """Return the own column of each row, and shuffles of these; rows without one keep -1."""
    generator = torch.Generator().manual_seed(seed)
    places = (own >= 0).nonzero()[:, 0]
    drawn = own[:, None].repeat(1, 1 + PERMUTATIONS)
    for draw in range(1, 1 + PERMUTATIONS):
        order = torch.randperm(len(places), generator=generator).to(own.device)
        drawn[places, draw] = own[places[order]]
    return drawn


def _count_tails(
    block: Float[Tensor, "row column"], shuffled: Int[Tensor, "row draw"]
) -> Float[Tensor, "side draw"]:
    """Count the rows whose (own or shuffled) column is among their largest and smallest entries.

    A tie counts against the head: one that writes nothing copies nothing.
    """
    tail = max(1, round(TAIL * block.shape[1]))
    known = shuffled[:, 0] >= 0
    rows = block[known]
    entries = rows.gather(1, shuffled[known])
    # The first entry outside each tail; a row without one has too few columns for tails.
    first_outside = min(tail + 1, rows.shape[1])
    upper = -(-rows).kthvalue(first_outside, 1, keepdim=True).values
    lower = rows.kthvalue(first_outside, 1, keepdim=True).values
    counts = torch.stack([(entries > upper).sum(0), (entries < lower).sum(0)])
    return counts.cpu().double()


def _row_extremes(block: Float[Tensor, "row column"]) -> Float[Tensor, "side row two"]:
    """Return the largest and the smallest entry of each row, each with its column."""
    sides = []
    for values, indices in (block.max(1), block.min(1)):
        sides.append(torch.stack([values.cpu().double(), indices.cpu().double()], 1))
    return torch.stack(sides)


def _list_extremes(
    factors: CircuitFactors,
    extremes: Float[Tensor, "side row two"],
    texts: Sequence[str],
    top: int,
) -> tuple[tuple[CircuitEntry, ...], tuple[CircuitEntry, ...]]:
    """Return the rows with the largest, and those with the most negative entry."""
    sides = []
    for side, is_descending in ((0, True), (1, False)):
        order = extremes[side, :, 0].argsort(descending=is_descending)[:top]
        pairs = []
        for row in order.tolist():
            value, column = extremes[side, row].tolist()
            row_token = int(factors.row_tokens[row])
            column_token = int(factors.column_tokens[int(column)])
            pairs.append(
                CircuitEntry(
                    row=row_token,
                    column=column_token,
                    row_text=texts[row_token],
                    column_text=texts[column_token],
                    value=value,
                )
            )
        sides.append(tuple(pairs))
    return sides[0], sides[1]


def _beside_chance(scores: Float[Tensor, "draw"], extremity: Float[Tensor, "draw"]) -> ChanceScore:
    """Return the first score beside the others, which are shuffled.

    Args:
        scores: the score, and those with shuffled tokens.
        extremity: by which they are compared.
    """
    by_chance = scores[1:]
    bounds = by_chance.quantile(torch.tensor([0.025, 0.975], dtype=by_chance.dtype))
    as_large = int((extremity[1:] >= extremity[0] - 1e-12).sum())
    return ChanceScore(
        value=float(scores[0]),
        chance=Interval(float(by_chance.mean()), float(bounds[0]), float(bounds[1])),
        p=(1 + as_large) / (1 + len(by_chance)),
    )
