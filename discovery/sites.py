"""The names of places in a transformer: sites, nodes and edges; and the closed choices.

- A *site* is an activation that can be read or replaced.
- A *node* is a unit of a circuit: an attention head (``a9.h6``, printed L9H6), an MLP (``m5``), or
  one of the two ends, ``embed`` and ``logits``. A *feature* of a sparse autoencoder can be a node
  too: ``f8.1234`` (L8F1234) is a feature of the residual stream before layer 8, ``f8.1234@mlp_out``
  one of another site of that layer.
- An *edge* runs from a node to one input of a later node: ``a9.h6->a10.h0<q>``.
- If several heads share their keys and values (grouped-query attention), the sites ``k`` and ``v``
  are by *key-value head* (``a23.kv1``, printed L23KV1). A key-value head is not a node, and no
  function that takes heads takes one.

This module needs no torch, so that tool signatures and the command line can import it quickly.

    >>> Node.parse("L9H6").head, Node.parse("9.6").label
    (6, 'L9H6')
    >>> str(Edge.parse("m5->a10.h0<q>")), str(Node.parse("L8F12@mlp_out"))
    ('m5->a10.h0<q>', 'f8.12@mlp_out')
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import total_ordering
from typing import Literal, get_args

from discovery.errors import SiteError

SiteName = Literal[
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "head_out",
    "head_out_by_position",
    "q",
    "k",
    "v",
    "pattern",
]
Direction = Literal["denoising", "noising"]
Alignment = Literal["position", "label"]  # what the position axis of a grid counts
Ablation = Literal["resample", "mean", "zero"]
MetricName = Literal["logit_difference", "probability_difference", "kl_divergence"]
BackendName = Literal["auto", "transformerlens", "nnsight"]
DtypeName = Literal["float32", "float64", "float16", "bfloat16"]
DeviceKind = Literal["auto", "cpu", "cuda", "mps"]
Universe = Literal["all", "heads"]
NodeKind = Literal["embed", "attention_head", "mlp", "feature", "logits"]
Slot = Literal["q", "k", "v", "mlp", "feature", "logits"]

ActivationKind = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"
]
FeatureSite = Literal["resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]

SITE_NAMES: tuple[SiteName, ...] = get_args(SiteName)
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
DTYPE_NAMES: tuple[DtypeName, ...] = get_args(DtypeName)
DEVICE_KINDS: tuple[DeviceKind, ...] = get_args(DeviceKind)
SLOTS: tuple[Slot, ...] = get_args(Slot)
# The activations and nodes of one layer, in the order in which a forward pass computes them.
LAYER_ORDER = (
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "attention_head",
    "z",
    "attn_out",
    "resid_mid",
    "mlp",
    "mlp_out",
    "resid_post",
)

_HEAD = re.compile(r"a(\d+)\.h(\d+)|L(\d+)H(\d+)|(\d+)\.(\d+)")
_KEY_VALUE_HEAD = re.compile(r"a(\d+)\.kv(\d+)|L(\d+)KV(\d+)", re.IGNORECASE)
_MLP = re.compile(r"m(\d+)|MLP(\d+)", re.IGNORECASE)
_FEATURE = re.compile(rf"(?:f(\d+)\.(\d+)|L(\d+)F(\d+))(?:@({'|'.join(get_args(FeatureSite))}))?")
_DEFAULT_FEATURE_SITE: FeatureSite = "resid_pre"  # the site of a feature if its name gives none
_EDGE = re.compile(r"(?P<source>[^<>\s-]+)->(?P<target>[^<>\s-]+)<(?P<slot>\w+)>")


@dataclass(frozen=True, order=True)
class Site:
    """One activation of one layer, as a backend reads and replaces it.

    Shapes: residual stream, attn_out and mlp_out [row pos d_model]; z and q [row pos head d_head];
    k and v [row pos kv_head d_head]; pattern [row head dst src]. q and k are taken before any
    rotary embedding. A head's output is z·W_O[head].
    """

    kind: ActivationKind
    layer: int


@total_ordering
@dataclass(frozen=True)
class Node:
    """A unit of a circuit.

    Attributes:
        kind: embed, attention_head, mlp, feature or logits.
        layer: the layer of a head, an MLP or a feature; None for the two ends.
        head: the number of a head in its layer; None for other nodes.
        feature: the number of a feature in its dictionary; None for other nodes.
        site: the site that a feature is written to; None for other nodes.
    """

    kind: NodeKind
    layer: int | None = None
    head: int | None = None
    _: KW_ONLY
    feature: int | None = None
    site: FeatureSite | None = None

    @classmethod
    def parse(cls, text: str) -> Node:
        """Parse the name of a node.

        Args:
            text: for example ``a9.h6``, ``L9H6``, ``9.6``, ``m5``, ``f8.1234``,
                ``L8F1234@mlp_out``, ``embed`` or ``logits``.

        Raises:
            SiteError: if it is not the name of a node.
        """
        word = text.strip()
        if word == "embed":
            return EMBED
        if word == "logits":
            return LOGITS
        if match := _HEAD.fullmatch(word):
            layer, head = (int(part) for part in match.groups() if part is not None)
            return cls("attention_head", layer, head)
        if match := _MLP.fullmatch(word):
            return cls("mlp", int(match[1] or match[2]))
        if match := _FEATURE.fullmatch(word):
            layer, number = (int(part) for part in match.groups()[:4] if part is not None)
            site: FeatureSite = match[5] or _DEFAULT_FEATURE_SITE  # type: ignore[assignment]  # _FEATURE lists the sites
            return feature(layer, number, site)
        if key_value_place(word):
            raise SiteError(
                f"{text!r} is a key-value head, which several query heads share, and not a head.",
                "Name its query heads, each as a9.h6; patch_sweep lists them beside it.",
            )
        raise SiteError(
            f"{text!r} is not the name of a node.",
            "Write a head as a9.h6 (L9H6 and 9.6 are understood too), an MLP as m5, "
            "a feature as f8.1234.",
        )

    def __str__(self) -> str:
        if self.kind == "attention_head":
            return f"a{self.layer}.h{self.head}"
        if self.kind == "feature":
            return f"f{self.layer}.{self.feature}{self._site_suffix}"
        return f"m{self.layer}" if self.kind == "mlp" else self.kind

    @property
    def label(self) -> str:
        """The name that people read: L9H6, MLP5 or L8F1234."""
        if self.kind == "attention_head":
            return f"L{self.layer}H{self.head}"
        if self.kind == "feature":
            return f"L{self.layer}F{self.feature}{self._site_suffix}"
        return f"MLP{self.layer}" if self.kind == "mlp" else self.kind

    @property
    def order(self) -> tuple[int, int, int]:
        """A key that sorts nodes in forward order.

        embed comes first and logits last. Within a layer, heads come before the MLP, and a feature
        comes where its site is computed.
        """
        if self.layer is None:
            return (-1, 0, 0) if self.kind == "embed" else (1 << 30, 0, 0)
        return (
            self.layer,
            LAYER_ORDER.index(self.site or self.kind),
            self.head or self.feature or 0,
        )

    @property
    def _site_suffix(self) -> str:
        return "" if self.site in (None, _DEFAULT_FEATURE_SITE) else f"@{self.site}"

    def __lt__(self, other: Node) -> bool:
        return self.order < other.order

    def feeds(self, other: Node) -> bool:
        """Return whether this node's output can reach an input of `other`.

        The heads of one layer do not feed each other.
        """
        return self.order[:2] < other.order[:2]


@dataclass(frozen=True)
class KeyValueHead:
    """Keys and values that several query heads of a layer share (grouped-query attention).

    It is not a node of a circuit: a head's output belongs to one query head, but these keys and
    values belong to several.

        >>> shared = KeyValueHead(23, 1, (3, 4, 5))
        >>> str(shared), shared.label, shared.group
        ('a23.kv1', 'L23KV1', 'KV1 = heads 3–5')

    Attributes:
        layer: its layer.
        index: its number among the layer's key-value heads.
        query_heads: the heads that read it, which have consecutive numbers.
    """

    layer: int
    index: int
    query_heads: tuple[int, ...]

    def __str__(self) -> str:
        return f"a{self.layer}.kv{self.index}"

    @property
    def label(self) -> str:
        """The name that people read: L23KV1."""
        return f"L{self.layer}KV{self.index}"

    @property
    def group(self) -> str:
        """The heads that share it, without the layer: KV1 = heads 3–5."""
        return key_value_group(self.index, self.query_heads)


def key_value_group(index: int, query_heads: Sequence[int]) -> str:
    """Return which query heads share a key-value head: KV1 = heads 3–5."""
    return f"KV{index} = heads {query_heads[0]}–{query_heads[-1]}"


def key_value_place(text: str) -> tuple[int, int] | None:
    """Return layer and number of a key-value head such as ``a23.kv1``; None for other names."""
    match = _KEY_VALUE_HEAD.fullmatch(text.strip())
    if not match:
        return None
    layer, index = (int(part) for part in match.groups() if part is not None)
    return layer, index


def output_site(node: Node) -> Site:
    """Return the site that holds a node's output.

    It is z [row pos head d_head] for a head, and mlp_out [row pos d_model] for an MLP.
    """
    return Site("z" if node.kind == "attention_head" else "mlp_out", node.layer or 0)


EMBED = Node("embed")
LOGITS = Node("logits")


def head(layer: int, index: int) -> Node:
    """Return the attention head `index` of `layer`."""
    return Node("attention_head", layer, index)


def mlp(layer: int) -> Node:
    """Return the MLP of `layer`."""
    return Node("mlp", layer)


def feature(layer: int, number: int, site: FeatureSite = _DEFAULT_FEATURE_SITE) -> Node:
    """Return feature `number` of the dictionary at a site of `layer`."""
    return Node("feature", layer, feature=number, site=site)


@dataclass(frozen=True)
class Edge:
    """The connection from a node's output to one input of a later node.

    Attributes:
        source: the node whose output it is.
        target: the node that reads it.
        slot: which of the target's inputs it is.
    """

    source: Node
    target: Node
    slot: Slot

    @classmethod
    def parse(cls, text: str) -> Edge:
        """Parse the name of an edge, for example ``a9.h6->a10.h0<q>``.

        Raises:
            SiteError: if it is not the name of an edge, or if the edge cannot exist.
        """
        match = _EDGE.fullmatch(text.strip())
        if not match or match["slot"] not in SLOTS:
            raise SiteError(
                f"{text!r} is not an edge.",
                f"Write source->target<slot>, the slot one of {', '.join(SLOTS)}.",
            )
        source, target = Node.parse(match["source"]), Node.parse(match["target"])
        slot = match["slot"]
        if slot not in slots_of(target) or not source.feeds(target):
            raise SiteError(
                f"The edge {text!r} cannot exist.",
                "The source must come before the target, and the slot must be one of its inputs.",
            )
        return cls(source, target, slot)

    def __str__(self) -> str:
        return f"{self.source}->{self.target}<{self.slot}>"


def slots_of(node: Node) -> tuple[Slot, ...]:
    """Return the inputs of a node: q, k and v of a head; one input of any other node but embed."""
    if node.kind == "attention_head":
        return ("q", "k", "v")
    return () if node.kind == "embed" else (node.kind,)
