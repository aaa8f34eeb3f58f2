"""The contract between the measurements and a library that runs models.

A backend does one thing: it runs a batch of tokens, reads sites and applies edits. A run may start
at a layer from a given residual stream, follow a prefix whose keys and values are known, stop at a
layer, or keep the graph for gradients. Algorithms never ask which backend they have.

Some shortcuts, such as reusing a prefix or unembedding a few columns, are not possible with every
model. Each is tried when the model is loaded and recorded in `Abilities`: a shortcut that does not
reproduce the plain forward pass is never taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from discovery.backends.info import Abilities, ModelInfo
from discovery.backends.kv_cache import Prefix
from discovery.errors import MeasurementError, SiteError
from discovery.interventions import Edit
from discovery.sites import LAYER_ORDER, Site
from discovery.tasks.pairs import Tokenizer


@dataclass(frozen=True)
class Batch:
    """The tokens of a run, where it starts and stops, and what is unembedded.

    Attributes:
        tokens: token ids, right-padded; in a causal model no position sees the padding behind it.
            After a prefix, these are the tokens that follow it.
        answer_position: each row's answer position within `tokens`; None if no logits are wanted.
        start: the first layer that is run, from `residual`. If it is n_layers, only the final norm
            and the unembedding are run.
        residual: resid_pre of the start layer [row pos d_model]; None at layer 0 means that the
            tokens are embedded.
        after_attention: `residual` is resid_mid of the start layer, whose attention is not run.
        stop: the first layer that is not run; there are no logits then.
        prefix: keys and values of the positions before `tokens`.
        columns: the only vocabulary entries to unembed for each row; -1 is padding, and its logit
            is unspecified.
        joins: for some layers, resid_pre [row pos d_model] of further rows that enter there, after
            the rows that are already in the run. One pass then serves rows that start at different
            layers. `tokens`, `answer_position` and `columns` are those of all rows in that order.
            `prefix` holds for each layer the rows that it works on (for skipped layers, any).
            Nothing can be read or edited in such a run.
        last_position_only: the last layer computes its output projection and its MLP at the answer
            position only. What they write then cannot be read.
    """

    tokens: Int[Tensor, "row pos"]
    answer_position: Int[Tensor, "row"] | None = None
    _: KW_ONLY
    start: int = 0
    residual: Float[Tensor, "_ pos d_model"] | None = None
    after_attention: bool = False
    stop: int | None = None
    prefix: Prefix | None = None
    columns: Int[Tensor, "row k"] | None = None
    joins: Mapping[int, Float[Tensor, "_ pos d_model"]] = field(default_factory=dict)
    last_position_only: bool = False

    @property
    def input_ids(self) -> Int[Tensor, "_ pos"]:
        """The tokens that the model is called with.

        The model makes its masks and positions for these rows. If rows join on the way, it is
        called with one row, whose mask serves any number of rows.
        """
        return self.tokens[:1] if self.joins else self.tokens

    def require_answer_position(self) -> Int[Tensor, "row"]:
        """Return each row's answer position.

        Raises:
            ValueError: if none was given.
        """
        if self.answer_position is None:
            raise ValueError("these rows have no answer position")
        return self.answer_position


@dataclass(frozen=True)
class BatchResult:
    """What a run gives.

    Attributes:
        logits: [row d_vocab] at the answer positions, or [row k] if columns were asked for; None if
            no logits were wanted.
        activations: the sites that were asked for, after their edits.
        prefix: the keys and values of every position, if they were asked for.
    """

    logits: Float[Tensor, "row k"] | None
    activations: dict[Site, Float[Tensor, "..."]] = field(default_factory=dict)
    prefix: Prefix | None = None


# The multiply-adds of the largest batch, by device: about a second's work. A core of a CPU does
# 5·10^10 multiply-adds of float32 in a second, and a GPU a hundred times as many. The limit counts
# work and not seconds, because a matrix product may round differently in batches of another size,
# and the numbers of a run must not depend on how busy the machine was.
MACS_PER_BATCH = {"cpu": 5 * 10**10, "cuda": 5 * 10**12, "mps": 10**12}


class Backend(ABC):
    """A loaded model behind the library that runs it.

    Attributes:
        info: the model's shape and origin.
        abilities: the shortcuts that work with this model.
        tokenizer: None if the model directory has none.
        tokens_per_batch: the number of tokens beyond which a larger batch gains nothing; None means
            the usual number for the device.
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
            batch: what to run.
            reads: the sites to return, with their edits applied.
            edits: changes, applied in forward order.
            keep_prefix: whether to return the keys and values of every position.
            grad: whether to keep the graph. The logits and the activations that are read can then
                be differentiated with respect to earlier activations and to `batch.residual`.

        Raises:
            SiteError: if the model lacks a site.
            MeasurementError: if gradients are asked for and this backend gives none.
            torch.OutOfMemoryError: if memory runs out. The caller may try a smaller batch.
        """

    @abstractmethod
    def head_weights(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Return W_O of each head of a layer."""

    @property
    def module(self) -> nn.Module:
        """The module that computes, as the library that runs it has wrapped it.

        Raises:
            MeasurementError: if its weights are not on this machine.
        """
        raise MeasurementError(
            f"The weights of {self.info.name} are not on this machine.",
            "Load the model here for techniques that read weights.",
        )

    @property
    def unembedding(self) -> nn.Module:
        """The last Linear, which gives the logits. Raises as `module` does."""
        return self.module

    def block_module(self, layer: int) -> nn.Module:
        """Return the module of a layer. Raises as `module` does."""
        return self.module

    def input_weights(
        self, layer: int, kind: Literal["q", "k", "v"]
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "..."] | None]:
        """Return W and b of a layer's queries, keys or values; b is None if there is none.

        Keys and values have key-value heads. Raises as `module` does.
        """
        raise MeasurementError(
            f"The weights of {self.info.name} are not on this machine.",
            "Load the model here for techniques that read weights.",
        )

    def __repr__(self) -> str:
        """Return one line; `info` has all facts."""
        info = self.info
        return (
            f"<{info.name}: {info.n_layers} layers × {info.n_heads} heads, d_model {info.d_model}, "
            f"{info.n_params:,} parameters, {info.dtype} on {info.device}, by {info.backend}>"
        )

    @property
    def d_vocab(self) -> int:
        """The number of token ids that a prompt may hold."""
        return self.info.d_vocab

    @property
    def n_logits(self) -> int:
        """The number of tokens that the model gives a logit for."""
        return self.info.n_logits

    @property
    def n_ctx(self) -> int:
        """The number of tokens of the longest prompt."""
        return self.info.n_ctx

    @property
    def device(self) -> torch.device:
        """The device on which tokens are given and results are returned."""
        return torch.device(self.info.device)

    @property
    def resident_weight_bytes(self) -> int:
        """Bytes of the weights that lie on the device that computes."""
        return self.info.weights_bytes

    def max_rows_by_work(self, macs: int) -> int:
        """Return how many rows a batch may have so that it takes about a second; at least 1.

        Whoever wants to stop the work, or to use the device between two batches, waits for the end
        of one.

        Args:
            macs: the multiply-adds of one row.
        """
        limit = MACS_PER_BATCH.get(self.device.type, MACS_PER_BATCH["cpu"])
        return max(1, limit // max(macs, 1))

    def require_gradients(self) -> None:
        """Check that runs can be differentiated.

        Raises:
            MeasurementError: if they cannot; the message says why, and what to do instead.
        """
        if not self.abilities.gradients:
            raise MeasurementError(
                f"{self.info.name} gives no gradients here.", "Measure every cell."
            )

    def require_site(self, site: Site) -> None:
        """Check that this model has a site.

        Raises:
            SiteError: if it does not.
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
            why = "the model has no MLPs"
            if self.info.parallel:
                why = "attention and MLP run in parallel in this model"
            raise SiteError(f"resid_mid does not exist: {why}.", "Use resid_pre or resid_post.")

    def check_run(
        self,
        batch: Batch,
        reads: Sequence[Site],
        edits: Sequence[Edit],
        *,
        keep_prefix: bool,
        grad: bool,
    ) -> None:
        """Check that a run is consistent and that the model allows it.

        Raises:
            SiteError: if the model lacks a site, or its attention pattern cannot be replaced.
            ValueError: if the batch contradicts itself or what is asked for.
            RuntimeError: if keys and values are asked for of a run that does not compute them all.
            MeasurementError: if gradients are asked for and this backend gives none.
        """
        for site in (*reads, *(edit.site for edit in edits)):
            self.require_site(site)
        if batch.joins and (reads or edits or grad):
            raise ValueError("a run that rows join on the way cannot read, edit or differentiate")
        if (batch.start or batch.after_attention) and batch.residual is None:
            raise ValueError("a run that starts at a layer needs a residual stream")
        is_full = batch.answer_position is not None and batch.stop is None and batch.columns is None
        if keep_prefix and not is_full:
            raise RuntimeError("keys and values are only complete after a full run")
        if not self.abilities.pattern and any(edit.site.kind == "pattern" for edit in edits):
            raise SiteError(
                "This model's attention pattern can be read but not replaced.",
                "Patch z, q, k or v instead.",
            )
        if grad:
            self.require_gradients()


def forward_order(site: Site) -> tuple[int, int]:
    """Return a key that sorts sites in the order in which a forward pass computes them."""
    return site.layer, LAYER_ORDER.index(site.kind)
