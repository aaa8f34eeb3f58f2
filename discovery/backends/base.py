"""The contract between the science and an engine that runs models.

A backend does one thing: run these tokens, read these sites, apply these edits; optionally from a given layer's residual
stream, optionally after a prefix whose keys and values are known, optionally only up to a layer, optionally with
gradients. Algorithms never ask which backend they have. What a model allows (reusing a prefix, unembedding a few
columns) is found out by trying it at load, and recorded in `Abilities`: a shortcut that does not reproduce the plain
forward pass is not taken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.batch import Batch, Outcome
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
        return self.info.weights_bytes

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
