"""What is known about a model: its sizes, where it is, and which shortcuts reproduce its numbers.

`ModelDescription` follows from a configuration alone, `ModelInfo` from a loaded model, and
`Abilities` from trying the shortcuts when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from discovery.errors import ModelError, SiteError, require_choice
from discovery.sites import (
    DTYPE_NAMES,
    Node,
    Site,
    Universe,
    head,
    key_value_group,
    key_value_place,
    mlp,
)

_MAX_LISTED_GROUPS = 8  # a message writes out at most this many groups or heads


def require_dtype(dtype: str) -> None:
    """Check that a dtype is one in which models can be loaded.

    Raises:
        ModelError: if it is not; the message lists the dtypes that are.
    """
    require_choice("dtype", dtype, DTYPE_NAMES, ModelError)


def bytes_per_number(dtype: str) -> int:
    """Return how many bytes one number of this dtype takes."""
    return int(getattr(torch, dtype).itemsize)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What a configuration says about a model, whether the model is loaded or not.

    Attributes:
        name: the name that the user gave.
        source: the directory, GGUF file or hub name that the model comes from.
        revision: the commit, if the model comes from the hub.
        quantisation: how the weights are quantised in the GGUF file from which they were
            dequantised, as Q4_1; None for other formats.
        architecture: the class name of the wrapped module.
        dtype: the dtype of the weights in memory.
        n_kv_heads: the number of key-value heads of a layer. It is below n_heads if heads share
            keys and values (grouped-query attention).
        d_vocab: the number of token ids that a prompt may contain.
        d_vocab_out: the number of logits, if it differs from d_vocab.
        n_ctx: the length of the longest prompt, in tokens.
        n_params: the number of parameters; tied weights count once.
        copied: how many of the parameters the backend holds a second time.
        attn_only: whether the model has no MLPs.
        macs_attention: matmul multiply-adds of one attention layer for one position, without the
            attention scores.
        macs_mlp: matmul multiply-adds of one MLP for one position.
    """

    name: str
    source: str
    revision: str | None = None
    quantisation: str | None = None
    architecture: str
    dtype: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    d_vocab_out: int | None = None
    n_ctx: int
    n_params: int
    copied: int = 0
    attn_only: bool
    macs_attention: int
    macs_mlp: int

    @property
    def n_logits(self) -> int:
        """The number of tokens that can be an answer."""
        return self.d_vocab_out or self.d_vocab

    @property
    def shares_key_values(self) -> bool:
        """Whether several query heads share each key-value head."""
        return self.n_kv_heads < self.n_heads

    def query_heads(self, index: int) -> tuple[int, ...]:
        """Return the query heads that read key-value head `index` of a layer.

        Every key-value head is read by the same number of adjacent query heads.
        """
        group_size = self.n_heads // self.n_kv_heads
        return tuple(range(index * group_size, (index + 1) * group_size))

    def key_value_groups(self, site: str) -> tuple[tuple[int, ...], ...]:
        """Return the query heads of each entry of a site's head axis, if it counts key-value heads.

        The result is empty if the axis counts query heads, or if the site has no head axis.
        """
        if site not in ("k", "v") or not self.shares_key_values:
            return ()
        return tuple(self.query_heads(index) for index in range(self.n_kv_heads))

    def axes(self, site: Site) -> tuple[str, ...]:
        """Return the names of a site's axes within one prompt."""
        if site.kind == "pattern":
            return ("head", "dst", "src")
        if site.kind in ("z", "q", "k", "v"):
            return ("pos", "kv_head" if self.key_value_groups(site.kind) else "head", "d_head")
        return ("pos", "d_model")

    def key_value_warning(self, sites: Iterable[str]) -> tuple[str, ...]:
        """Return a warning that names the sites whose head axis counts key-value heads.

        The result is empty if no site does.
        """
        shared = [site for site in dict.fromkeys(sites) if self.key_value_groups(site)]
        if not shared:
            return ()
        query_heads = self.key_value_groups(shared[0])
        groups = [key_value_group(index, heads) for index, heads in enumerate(query_heads)]
        if len(groups) > _MAX_LISTED_GROUPS:
            groups = [*groups[:2], "…", groups[-1]]
        return (
            f"{' and '.join(shared)}: the rows are key-value heads shared by query heads "
            f"({', '.join(groups)}). What a row holds belongs to all its query heads; "
            "ablate_heads takes query heads only.",
        )

    @property
    def itemsize(self) -> int:
        """The number of bytes that one weight takes."""
        return bytes_per_number(self.dtype)

    @property
    def weights_bytes(self) -> int:
        """The bytes that the weights take if all of them are in memory."""
        return self.itemsize * (self.n_params + self.copied)


@dataclass(frozen=True, kw_only=True)
class ModelInfo(ModelDescription):
    """What is known about a loaded model.

    Attributes:
        fingerprint: sha256 of the weight files. For a remote model it is its name and commit.
        backend: the backend that runs it.
        device: the device that computes. For a remote model it is the device on which this
            process works with the results.
        parallel: whether attention and MLP read the same residual stream, so that resid_mid does
            not exist.
        positional_embedding: how tokens know their positions: standard, rotary or alibi.
        normalization: the kind of the norms, as LN or RMS.
        weight_processing: always "none": the weights are used as they are.
        warnings: what a user should know before relying on the numbers.
        backend_reason: why this backend runs the model, as a clause.
        remote: the address of the server that computes, or None for this machine.
        device_map: how the weights are spread over several devices, as it was asked for, or None
            if they are not.
    """

    fingerprint: str
    backend: str
    device: str
    parallel: bool
    positional_embedding: str
    normalization: str
    weight_processing: str = "none"
    warnings: tuple[str, ...] = ()
    backend_reason: str = ""
    remote: str | None = None
    device_map: str | None = None

    def nodes(self, universe: Universe = "all") -> tuple[Node, ...]:
        """Return every head and, unless `universe` is "heads", every MLP, in forward order."""
        nodes = [head(layer, h) for layer in range(self.n_layers) for h in range(self.n_heads)]
        if universe == "all" and not self.attn_only:
            nodes += [mlp(layer) for layer in range(self.n_layers)]
        return tuple(sorted(nodes))

    def parse(self, name: str | Node) -> Node:
        """Return the head or MLP of this model that has this name.

        Raises:
            SiteError: if the name is not that of a head or MLP of this model; the message says
                what it is instead.
        """
        if isinstance(name, Node):
            return self.require_node(name)
        if place := key_value_place(name):
            raise self._key_value_head_error(name, *place)
        return self.require_node(Node.parse(name))

    def _key_value_head_error(self, name: str, layer: int, index: int) -> SiteError:
        """Build the error for the name of a key-value head; it says which query heads share it."""
        if layer >= self.n_layers or index >= self.n_kv_heads:
            return SiteError(
                f"{name!r} is not a head, and this model has no such key-value head either.",
                f"Name heads, as a0.h0; {self._range}.",
            )
        heads = [head(layer, h) for h in self.query_heads(index)]
        if len(heads) == 1:
            return SiteError(
                f"{name!r} is not a head: in this model each head has keys and values of its own.",
                f"Write the head itself: {heads[0]}.",
            )
        listed = ", ".join(map(str, heads[:_MAX_LISTED_GROUPS]))
        if len(heads) > _MAX_LISTED_GROUPS:
            listed += f" … {heads[-1]}"
        return SiteError(
            f"{name!r} is not a head but a key-value head, shared by query heads "
            f"{heads[0].head} to {heads[-1].head}.",
            f"Name the query heads that you mean: {listed}.",
        )

    @property
    def _range(self) -> str:
        return f"layers are 0 to {self.n_layers - 1}, heads 0 to {self.n_heads - 1}"

    def require_node(self, node: Node) -> Node:
        """Return the node if it is a head or MLP of this model.

        Raises:
            SiteError: if it is not; the message says what exists.
        """
        if node.kind == "feature":
            raise SiteError(
                f"{node} is a feature of a sparse autoencoder, not a head or an MLP.",
                "Name heads and MLPs here; features are changed by edit_features.",
            )
        if node.kind in ("embed", "logits"):
            raise SiteError(f"{node} is never ablated.", self._naming_cure)
        if node.kind == "mlp" and self.attn_only:
            raise SiteError(f"{node} does not exist in an attention-only model.", self._naming_cure)
        if not (0 <= (node.layer or 0) < self.n_layers and 0 <= (node.head or 0) < self.n_heads):
            raise SiteError(f"{node} does not exist in this model.", f"Its {self._range}.")
        return node

    @property
    def _naming_cure(self) -> str:
        return "Name heads (a0.h0)." if self.attn_only else "Name heads (a0.h0) or MLPs (m0)."


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """The shortcuts that reproduced the plain forward pass's numbers when the model was loaded.

    Attributes:
        prefix: keys and values of earlier positions can be reused.
        columns: single columns of the unembedding give the logits; no soft cap or scale follows.
        linear_heads: attn_out = Σ_h z_h·W_O[h] + b_O, and a block adds attn_out + mlp_out to the
            residual stream.
        after_attention: a run can start in a layer after its attention, from resid_mid.
        pattern: a replaced attention pattern weighs the values. Some implementations only return
            the pattern, and would ignore a replacement.
        joins: rows can enter one pass at different layers.
        last_position_only: what the last layer does after its attention can be computed at the
            answer position only.
        gradients: runs can be differentiated. This is not tried: it is known from the backend and
            from where the weights are.
    """

    prefix: bool = False
    columns: bool = False
    linear_heads: bool = False
    after_attention: bool = False
    pattern: bool = False
    joins: bool = False
    last_position_only: bool = False
    gradients: bool = True
