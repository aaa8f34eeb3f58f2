"""The field's grammar for places in a transformer: sites, nodes, edges, and the closed choices.

A *node* is a unit of a circuit: an attention head (``a9.h6``, printed L9H6), an MLP (``m5``), or one of
the two ends, ``embed`` and ``logits``. An *edge* runs from a node to one input of a later node:
``a9.h6->a10.h0<q>``. A *site* is an activation that can be read or replaced. Needs no torch, so that
tool signatures and the command line can use it at once.

    >>> Node.parse("L9H6"), Node.parse("9.6").label, str(Edge.parse("m5->a10.h0<q>"))
    (Node(kind='attention_head', layer=9, head=6), 'L9H6', 'm5->a10.h0<q>')
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal, get_args

from discovery.errors import SiteError

SiteName = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out", "head_out_by_position", "q", "k", "v", "pattern"
]
Direction = Literal["denoising", "noising"]
Ablation = Literal["resample", "mean", "zero"]
MetricName = Literal["logit_difference", "probability_difference", "kl_divergence"]
BackendName = Literal["auto", "transformerlens", "nnsight"]
Universe = Literal["all", "heads"]
NodeKind = Literal["embed", "attention_head", "mlp", "logits"]
Slot = Literal["q", "k", "v", "mlp", "logits"]

ActivationKind = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]

SITE_NAMES: tuple[SiteName, ...] = get_args(SiteName)
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
SLOTS: tuple[Slot, ...] = get_args(Slot)

_HEAD = re.compile(r"a(\d+)\.h(\d+)|L(\d+)H(\d+)|(\d+)\.(\d+)")
_MLP = re.compile(r"m(\d+)|MLP(\d+)", re.IGNORECASE)
_EDGE = re.compile(r"(?P<source>[^<>\s-]+)->(?P<target>[^<>\s-]+)<(?P<slot>\w+)>")


@dataclass(frozen=True, order=True)
class Site:
    """One activation of one layer, as a backend reads and replaces it.

    Shapes: residual stream, attn_out and mlp_out [row pos d_model]; z and q [row pos head d_head]; k and v
    [row pos kv_head d_head], before any rotation; pattern [row head dst src]. A head's output is z·W_O[head].
    """

    kind: ActivationKind
    layer: int


@total_ordering
@dataclass(frozen=True)
class Node:
    """A unit of a circuit.

    Attributes:
        kind: embed, attention_head, mlp or logits.
        layer: of a head or MLP, else None.
        head: of a head, else None.
    """

    kind: NodeKind
    layer: int | None = None
    head: int | None = None

    @classmethod
    def parse(cls, text: str) -> Node:
        """Read ``a9.h6``, ``L9H6``, ``9.6``, ``m5``, ``embed`` or ``logits``.

        Raises:
            SiteError: for anything else.
        """
        word = text.strip()
        if word == "embed":
            return EMBED
        if word == "logits":
            return LOGITS
        if found := _HEAD.fullmatch(word):
            layer, head = (int(part) for part in found.groups() if part is not None)
            return cls("attention_head", layer, head)
        if found := _MLP.fullmatch(word):
            return cls("mlp", int(found[1] or found[2]))
        raise SiteError(
            f"{text!r} is not the name of a node.",
            "Write a head as a9.h6 (L9H6 and 9.6 are understood too), an MLP as m5.",
        )

    def __str__(self) -> str:
        if self.kind == "attention_head":
            return f"a{self.layer}.h{self.head}"
        return f"m{self.layer}" if self.kind == "mlp" else self.kind

    @property
    def label(self) -> str:
        """How people write it: L9H6, MLP5."""
        if self.kind == "attention_head":
            return f"L{self.layer}H{self.head}"
        return f"MLP{self.layer}" if self.kind == "mlp" else self.kind

    @property
    def order(self) -> tuple[int, int, int]:
        """Forward order: embed, then layer by layer the heads before the MLP, then logits."""
        if self.layer is None:
            return (-1, 0, 0) if self.kind == "embed" else (1 << 30, 0, 0)
        return (self.layer, int(self.kind == "mlp"), self.head or 0)

    def __lt__(self, other: Node) -> bool:
        return self.order < other.order

    def feeds(self, other: Node) -> bool:
        """Whether this node's output can reach an input of `other` (heads of one layer do not see each other)."""
        return self.order[:2] < other.order[:2]


EMBED = Node("embed")
LOGITS = Node("logits")


def head(layer: int, index: int) -> Node:
    """The attention head `index` of `layer`."""
    return Node("attention_head", layer, index)


def mlp(layer: int) -> Node:
    """The MLP of `layer`."""
    return Node("mlp", layer)


@dataclass(frozen=True)
class Edge:
    """One node's output arriving at one input of a later node."""

    source: Node
    target: Node
    slot: Slot

    @classmethod
    def parse(cls, text: str) -> Edge:
        """Read ``a9.h6->a10.h0<q>``.

        Raises:
            SiteError: for anything else, or where the source comes after the target.
        """
        found = _EDGE.fullmatch(text.strip())
        if not found or found["slot"] not in SLOTS:
            raise SiteError(f"{text!r} is not an edge.", f"Write source->target<slot>, the slot one of {', '.join(SLOTS)}.")
        source, target, slot = Node.parse(found["source"]), Node.parse(found["target"]), found["slot"]
        if slot not in slots_of(target) or not source.feeds(target):
            raise SiteError(f"The edge {text!r} cannot exist.", "The source must come before the target, and have one of its inputs.")
        return cls(source, target, slot)

    def __str__(self) -> str:
        return f"{self.source}->{self.target}<{self.slot}>"


def slots_of(node: Node) -> tuple[Slot, ...]:
    """The inputs of a node: q, k, v of a head; mlp; logits."""
    by_kind: dict[NodeKind, tuple[Slot, ...]] = {"attention_head": ("q", "k", "v"), "mlp": ("mlp",), "logits": ("logits",), "embed": ()}
    return by_kind[node.kind]
