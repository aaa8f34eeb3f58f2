"""The contract between the science and an engine that runs models.

A backend does one thing: run these tokens, read these sites, apply these edits; optionally from a given layer's residual
stream, optionally after a prefix whose keys and values are known, optionally only up to a layer, optionally with
gradients. Algorithms never ask which backend they have. What a model allows (reusing a prefix, unembedding a few
columns) is found out by trying it at load, and recorded in `Abilities`: a shortcut that does not reproduce the plain
forward pass is not taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.errors import MeasurementError, SiteError
from discovery.interventions import Edit
from discovery.sites import Node, Site, Universe, head, mlp
from discovery.tasks.pairs import Tokenizer

Width = Literal["float32", "float16", "bfloat16", "float64"]
WITHIN_A_LAYER = ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


def forward_order(site: Site) -> tuple[int, int]:
    """Sorts sites as a forward pass meets them."""
    return site.layer, WITHIN_A_LAYER.index(site.kind)


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a loaded model.

    Attributes:
        name: as the user gave it; source: directory or hub name; revision: commit of a hub name.
        fingerprint: sha256 of the weights' files.
        architecture: class name of the wrapped module.
        attn_only: no MLPs. parallel: attention and MLP read the same residual stream, so resid_mid does not exist.
        weight_processing: "none": the weights are used as they are.
        macs_*: matmul multiply-adds for one position (attention scores apart).
        copied: how many weights the engine holds a second time; chosen: why this engine.
        d_vocab: how many token ids a prompt may hold; d_vocab_out: how many logits there are, where they are fewer.
        device_map: how the weights are spread over several places, as it was asked for; None where they are not.
        remote: the server that computes; None is this machine. `device` is then where results are worked on, `fingerprint` a name.
    """

    name: str
    source: str
    fingerprint: str
    architecture: str
    backend: str
    device: str
    dtype: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_params: int
    attn_only: bool
    parallel: bool
    positions: str
    normalization: str
    macs_attention: int
    macs_mlp: int
    revision: str | None = None
    weight_processing: str = "none"
    warnings: tuple[str, ...] = ()
    d_vocab_out: int | None = None
    copied: int = 0
    chosen: str = ""
    remote: str | None = None
    device_map: str | None = None

    @property
    def n_logits(self) -> int:
        """How many tokens can be an answer."""
        return self.d_vocab_out or self.d_vocab

    def nodes(self, universe: Universe = "all") -> tuple[Node, ...]:
        """Every head and, unless `universe` is "heads", every MLP, in forward order."""
        found = [head(layer, h) for layer in range(self.n_layers) for h in range(self.n_heads)]
        if universe == "all" and not self.attn_only:
            found += [mlp(layer) for layer in range(self.n_layers)]
        return tuple(sorted(found))

    def check(self, node: Node) -> Node:
        """The node itself, if this model has it.

        Raises:
            SiteError: names what exists.
        """
        layers, heads = f"layers are 0 to {self.n_layers - 1}", f"heads 0 to {self.n_heads - 1}"
        if node.kind == "feature":
            raise SiteError(f"{node} is a feature, no head or MLP.", "Name heads and MLPs here; features are changed by edit_features.")
        if node.kind in ("embed", "logits") or (node.kind == "mlp" and self.attn_only):
            why = "is never ablated" if node.kind in ("embed", "logits") else "does not exist in an attention-only model"
            raise SiteError(f"{node} {why}.", f"Name heads (a0.h0){'' if self.attn_only else ' or MLPs (m0)'}.")
        if not (0 <= (node.layer or 0) < self.n_layers and 0 <= (node.head or 0) < self.n_heads):
            raise SiteError(f"{node} does not exist in this model.", f"Its {layers}, {heads}.")
        return node


@dataclass(frozen=True)
class Abilities:
    """Shortcuts that were tried at load and gave the plain forward pass's numbers.

    Attributes:
        prefix: keys and values of earlier positions can be reused.
        columns: single columns of the unembedding give the logits (no soft cap or scale after it).
        linear_heads: attn_out = Σ_h z_h·W_O[h] + b_O, and what a block adds is attn_out + mlp_out.
        middle: a layer can be started after its attention.
        pattern: a replaced attention pattern weighs the values (some engines only show it, and would ignore the replacement).
        joins: rows can enter at different layers of one pass.
        narrow: what the last layer does behind its attention can be done at the answer position only.
        gradients: runs can be differentiated (known of an engine, and of how the weights lie; not tried).
    """

    prefix: bool = False
    columns: bool = False
    linear_heads: bool = False
    middle: bool = False
    pattern: bool = False
    joins: bool = False
    narrow: bool = False
    gradients: bool = True


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


class Backend(ABC):
    """A loaded model behind one engine.

    Attributes:
        info: what it is.
        abilities: which shortcuts hold for it.
        tokenizer: None where the model directory has none.
        batch_tokens: beyond so many tokens a batch gains nothing; None: as the device has it.
    """

    batch_tokens: int | None = None
    info: ModelInfo
    abilities: Abilities
    tokenizer: Tokenizer | None

    @abstractmethod
    def run(
        self, batch: Batch, reads: Sequence[Site] = (), edits: Sequence[Edit] = (), *, keep_prefix: bool = False, grad: bool = False
    ) -> Outcome:
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
    def held(self) -> int:
        """Bytes of its weights that lie where it computes."""
        width: torch.dtype = getattr(torch, self.info.dtype)
        return width.itemsize * (self.info.n_params + self.info.copied)

    def require_gradients(self) -> None:
        """Check that runs can be differentiated.

        Raises:
            MeasurementError: where they cannot; says why, and what to do instead.
        """
        if not self.abilities.gradients:
            raise MeasurementError(f"{self.info.name} gives no gradients here.", "Measure every cell.")

    def require(self, site: Site) -> None:
        """Check that this model has a site.

        Raises:
            SiteError: where it does not.
        """
        if not 0 <= site.layer < self.info.n_layers:
            raise SiteError(f"Layer {site.layer} does not exist.", f"This model's layers are 0 to {self.info.n_layers - 1}.")
        if site.kind == "mlp_out" and self.info.attn_only:
            raise SiteError("mlp_out does not exist in an attention-only model.", "Use attn_out, head_out or a residual-stream site.")
        if site.kind == "resid_mid" and (self.info.parallel or self.info.attn_only):
            why = "attention and MLP run in parallel here" if self.info.parallel else "the model has no MLPs"
            raise SiteError(f"resid_mid does not exist: {why}.", "Use resid_pre or resid_post.")
