"""The contract between the science and an engine that runs models.

A backend does one thing: run these tokens, read these sites, apply these edits; optionally from a given layer's residual
stream, optionally after a prefix whose keys and values are known, optionally only up to a layer, optionally with
gradients. Algorithms never ask which backend they have. What a model allows (reusing a prefix, unembedding a few
columns) is found out by trying it at load, and recorded in `Abilities`: a shortcut that does not reproduce the plain
forward pass is not taken.

What a backend is asked to run, and what it gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.backends.info import Abilities, ModelInfo
from discovery.errors import MeasurementError, SiteError
from discovery.interventions import Edit
from discovery.sites import Site
from discovery.tasks.pairs import Tokenizer


class Backend(ABC):
    """A loaded model behind one engine.

    Attributes:
        info: what it is.
        abilities: which shortcuts hold for it.
        tokenizer: None where the model directory has none.
        batch_tokens: beyond so many tokens a batch gains nothing; None: as the device has it.
    """

    tokens_per_batch: int | None = None
    info: ModelInfo
    abilities: Abilities
    tokenizer: Tokenizer | None

    @abstractmethod
    def run(
        self,
        batch: Batch,
        reads: Sequence[Site] = (),
        edits: Sequence[Edit] = (),
        *,
        keep_prefix: bool = False,
        grad: bool = False,
    ) -> BatchResult:
        """Run a batch.

        Args:
            reads: sites wanted, after their edits.
            edits: applied in forward order.
            keep_prefix: also return all keys and values.
            grad: keep the graph: reads and logits are differentiable with respect to each other and to `residual`.

        Raises:
            SiteError: where the model lacks a site.
            torch.OutOfMemoryError: left to the caller, who halves the batch.
        """

    @abstractmethod
    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """W_O of each head."""

    @property
    def d_vocab(self) -> int:
        return self.info.d_vocab

    @property
    def n_logits(self) -> int:
        return self.info.n_logits

    @property
    def n_ctx(self) -> int:
        return self.info.n_ctx

    @property
    def device(self) -> torch.device:
        return torch.device(self.info.device)

    @property
    def resident_weight_bytes(self) -> int:
        """Bytes of its weights that lie where it computes."""
        return self.info.weights_bytes

    def require_gradients(self) -> None:
        """Check that runs can be differentiated.

        Raises:
            MeasurementError: where they cannot; says why, and what to do instead.
        """
        if not self.abilities.gradients:
            raise MeasurementError(
                f"{self.info.name} gives no gradients here.", "Measure every cell."
            )

    def require_site(self, site: Site) -> None:
        """Check that this model has a site.

        Raises:
            SiteError: where it does not.
        """
        if not 0 <= site.layer < self.info.n_layers:
            raise SiteError(
                f"Layer {site.layer} does not exist.",
                f"This model's layers are 0 to {self.info.n_layers - 1}.",
            )
        if site.kind == "mlp_out" and self.info.attn_only:
            raise SiteError(
                "mlp_out does not exist in an attention-only model.",
                "Use attn_out, head_out or a residual-stream site.",
            )
        if site.kind == "resid_mid" and (self.info.parallel or self.info.attn_only):
            why = (
                "attention and MLP run in parallel here"
                if self.info.parallel
                else "the model has no MLPs"
            )
            raise SiteError(f"resid_mid does not exist: {why}.", "Use resid_pre or resid_post.")


ACTIVATION_ORDER = (
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_out",
    "resid_post",
)


def forward_order(site: Site) -> tuple[int, int]:
    """Sorts sites as a forward pass meets them."""
    return site.layer, ACTIVATION_ORDER.index(site.kind)


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
        return Prefix(
            tuple(k[rows, :, :length] for k in self.keys),
            tuple(v[rows, :, :length] for v in self.values),
        )

    def take_by_layer(self, rows: Int[Tensor, "n"], counts: Sequence[int], length: int) -> Prefix:
        """The first `length` positions; in each layer, of so many of the first rows (of one at least)."""
        most = [rows[: max(count, 1)] for count in counts]
        keys = tuple(k[own, :, :length] for k, own in zip(self.keys, most, strict=True))
        return Prefix(
            keys, tuple(v[own, :, :length] for v, own in zip(self.values, most, strict=True))
        )

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
    answer_position: Int[Tensor, "row"] | None = None
    start: int = 0
    residual: Float[Tensor, "_ pos d_model"] | None = None
    after_attention: bool = False
    stop: int | None = None
    prefix: Prefix | None = None
    columns: Int[Tensor, "row k"] | None = None
    joins: Mapping[int, Float[Tensor, "_ pos d_model"]] = field(default_factory=dict)
    last_position_only: bool = False

    @property
    def require_answer_position(self) -> Int[Tensor, "row"]:
        """Each row's answer position.

        Raises:
            ValueError: where none was given.
        """
        if self.answer_position is None:
            raise ValueError("these rows have no answer position")
        return self.answer_position


@dataclass(frozen=True)
class BatchResult:
    """What a run gave.

    Attributes:
        logits: [row d_vocab] at `last`, or [row k] where columns were asked for; None where none were.
        activations: the sites read, after edits.
        prefix: every position's keys and values, where asked for.
    """

    logits: Float[Tensor, "row k"] | None
    activations: dict[Site, Float[Tensor, "..."]] = field(default_factory=dict)
    prefix: Prefix | None = None
