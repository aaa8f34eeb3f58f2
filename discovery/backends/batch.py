"""What a backend is asked to run, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from discovery.sites import Site

WITHIN_A_LAYER = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


def forward_order(site: Site) -> tuple[int, int]:
    """Sorts sites as a forward pass meets them."""
    return site.layer, WITHIN_A_LAYER.index(site.kind)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of earlier positions, layer by layer, as the attention uses them (rotated where it rotates).

    Attributes:
        keys, values: one [row kv_head prefix d_head] for each layer; as many rows as are at work there.
    """

    keys: tuple[Float[Tensor, "_ kv_head prefix d_head"], ...]
    values: tuple[Float[Tensor, "_ kv_head prefix d_head"], ...]

    def take(self, rows: Int[Tensor, "n"], length: int) -> Prefix:
        """The first `length` positions of these rows."""
        return Prefix(tuple(k[rows, :, :length] for k in self.keys), tuple(v[rows, :, :length] for v in self.values))

    def stairs(self, rows: Int[Tensor, "n"], counts: Sequence[int], length: int) -> Prefix:
        """The first `length` positions; in each layer, of so many of the first rows (of one at least)."""
        most = [rows[: max(count, 1)] for count in counts]
        keys = tuple(k[own, :, :length] for k, own in zip(self.keys, most, strict=True))
        return Prefix(keys, tuple(v[own, :, :length] for v, own in zip(self.values, most, strict=True)))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.keys, *self.values))


@dataclass(frozen=True)
class Batch:
    """What to run.

    Attributes:
        tokens: ids, right-padded; a causal model's earlier positions never see the padding. After a prefix: the rest.
        last: each row's answer position within `tokens`; None where no logits are wanted.
        start: the first layer that is run; `residual` is its resid_pre [row pos d_model]. n_layers: only norm and unembedding.
        middle: `residual` is the start layer's resid_mid, and its attention is not run.
        stop: the first layer that is not run (then there are no logits).
        prefix: keys and values of the positions before `tokens`.
        columns: unembed only these vocabulary entries of each row; -1 is padding (its logit is unspecified).
        joins: layer -> resid_pre [row pos d_model] of further rows that enter there, behind those already at work. `tokens`, `last` and
            `columns` are of all rows in that order; `prefix` holds, layer by layer, the rows that are at work (skipped layers: any).
            Nothing is read or edited then. One pass over the layers serves rows that start at different ones.
        narrow: the last layer's output projection and MLP are computed at the answer position only; nothing behind its z is read then.
    """

    tokens: Int[Tensor, "row pos"]
    last: Int[Tensor, "row"] | None = None
    start: int = 0
    residual: Float[Tensor, "_ pos d_model"] | None = None
    middle: bool = False
    stop: int | None = None
    prefix: Prefix | None = None
    columns: Int[Tensor, "row k"] | None = None
    joins: Mapping[int, Float[Tensor, "_ pos d_model"]] = field(default_factory=dict)
    narrow: bool = False

    @property
    def answers(self) -> Int[Tensor, "row"]:
        """Each row's answer position.

        Raises:
            ValueError: where none was given.
        """
        if self.last is None:
            raise ValueError("these rows have no answer position")
        return self.last


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        logits: [row d_vocab] at `last`, or [row k] where columns were asked for; None where none were.
        activations: the sites read, after edits.
        prefix: every position's keys and values, where asked for.
    """

    logits: Float[Tensor, "row k"] | None
    activations: dict[Site, Float[Tensor, "..."]] = field(default_factory=dict)
    prefix: Prefix | None = None
