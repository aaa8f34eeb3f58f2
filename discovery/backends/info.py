"""What is known of a model: its shape, where it lies, and which shortcuts hold for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from discovery.errors import SiteError
from discovery.sites import Node, Site, Universe, head, key_value_group, key_value_place, mlp

_MOST_GROUPS = 8  # so many groups or heads are written out in a message


def bytes_per_number(dtype: str) -> int:
    """Bytes of one number."""
    return int(getattr(torch, dtype).itemsize)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What a configuration says of a model, loaded or not.

    Attributes:
        name: as the user gave it; source: directory or hub name; revision: commit of a hub name.
        architecture: class name of the wrapped module.
        n_kv_heads: fewer than n_heads where heads share keys and values (grouped-query attention).
        d_vocab: how many token ids a prompt may hold; d_vocab_out: how many logits there are, where they are fewer.
        n_params: tied weights count once; copied: how many of them the engine holds a second time.
        attn_only: no MLPs.
        macs_*: matmul multiply-adds for one position (attention scores apart).
    """

    name: str
    source: str
    revision: str | None = None
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
        """How many tokens can be an answer."""
        return self.d_vocab_out or self.d_vocab

    @property
    def shares_key_values(self) -> bool:
        """Whether several query heads share each key-value head."""
        return self.n_kv_heads < self.n_heads

    def query_heads(self, index: int) -> tuple[int, ...]:
        """The query heads that read a layer's key-value head: as many, side by side, for each."""
        each = self.n_heads // self.n_kv_heads
        return tuple(range(index * each, (index + 1) * each))

    def key_value_groups(self, site: str) -> tuple[tuple[int, ...], ...]:
        """The query heads of each entry of a site's head axis, if that counts key-value heads.

        Empty if the axis counts heads, or if there is none.
        """
        if site not in ("k", "v") or not self.shares_key_values:
            return ()
        return tuple(self.query_heads(index) for index in range(self.n_kv_heads))

    def axes(self, site: Site) -> tuple[str, ...]:
        """The names of a site's axes within one prompt."""
        if site.kind == "pattern":
            return ("head", "dst", "src")
        if site.kind in ("z", "q", "k", "v"):
            return ("pos", "kv_head" if self.key_value_groups(site.kind) else "head", "d_head")
        return ("pos", "d_model")

    def key_value_warning(self, sites: Iterable[str]) -> tuple[str, ...]:
        """What must be said of the sites whose head axis counts key-value heads."""
        shared = [site for site in dict.fromkeys(sites) if self.key_value_groups(site)]
        if not shared:
            return ()
        shares = self.key_value_groups(shared[0])
        groups = [key_value_group(index, heads) for index, heads in enumerate(shares)]
        if len(groups) > _MOST_GROUPS:
            groups = [*groups[:2], "…", groups[-1]]
        return (
            f"{' and '.join(shared)}: the rows are key-value heads shared by query heads "
            f"({', '.join(groups)}), not heads. What one holds belongs to all its query heads; "
            "ablate_heads takes query heads only.",
        )

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return bytes_per_number(self.dtype)

    @property
    def weights_bytes(self) -> int:
        """What the loaded model takes, where all of it is held."""
        return self.itemsize * (self.n_params + self.copied)


@dataclass(frozen=True, kw_only=True)
class ModelInfo(ModelDescription):
    """What is known of a loaded model.

    Attributes:
        fingerprint: sha256 of the weights' files.
        parallel: attention and MLP read the same residual stream, so resid_mid does not exist.
        weight_processing: "none": the weights are used as they are.
        chosen: why this engine.
        device_map: how the weights are spread over several places, as it was asked for; None where they are not.
        remote: the server that computes; None is this machine. `device` is then where results are worked on, `fingerprint` a name.
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
        """Every head and, unless `universe` is "heads", every MLP, in forward order."""
        found = [head(layer, h) for layer in range(self.n_layers) for h in range(self.n_heads)]
        if universe == "all" and not self.attn_only:
            found += [mlp(layer) for layer in range(self.n_layers)]
        return tuple(sorted(found))

    def parse(self, name: str | Node) -> Node:
        """The node of this model that has a name.

        Raises:
            SiteError: the name is no head or MLP of this model; says what it is instead.
        """
        if isinstance(name, Node):
            return self.require_node(name)
        if place := key_value_place(name):
            raise self._no_head(name, *place)
        return self.require_node(Node.parse(name))

    def _no_head(self, name: str, layer: int, index: int) -> SiteError:
        """The refusal of a key-value head, which says whose it is."""
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
        shared_by = f"query heads {heads[0].head} to {heads[-1].head}"
        return SiteError(
            f"{name!r} is not a head but a key-value head, shared by {shared_by}.",
            f"Name the query heads that you mean: {', '.join(map(str, heads[:_MOST_GROUPS]))}"
            f"{f' … {heads[-1]}' if len(heads) > _MOST_GROUPS else ''}.",
        )

    @property
    def _range(self) -> str:
        return f"layers are 0 to {self.n_layers - 1}, heads 0 to {self.n_heads - 1}"

    def require_node(self, node: Node) -> Node:
        """The node itself, if this model has it.

        Raises:
            SiteError: names what exists.
        """
        if node.kind == "feature":
            raise SiteError(
                f"{node} is a feature, no head or MLP.",
                "Name heads and MLPs here; features are changed by edit_features.",
            )
        if node.kind in ("embed", "logits") or (node.kind == "mlp" and self.attn_only):
            why = (
                "is never ablated"
                if node.kind in ("embed", "logits")
                else "does not exist in an attention-only model"
            )
            raise SiteError(
                f"{node} {why}.", f"Name heads (a0.h0){'' if self.attn_only else ' or MLPs (m0)'}."
            )
        if not (0 <= (node.layer or 0) < self.n_layers and 0 <= (node.head or 0) < self.n_heads):
            raise SiteError(f"{node} does not exist in this model.", f"Its {self._range}.")
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
    after_attention: bool = False
    pattern: bool = False
    joins: bool = False
    last_position_only: bool = False
    gradients: bool = True
