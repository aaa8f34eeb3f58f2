"""What a circuit record is made of: frozen values that know nothing of each other's whole.

Convention: what was not measured is None, null in JSON; a number that is not finite is not known either.
Fields may be added by whoever writes a record: those that are not declared here are kept, as JSON, and
written back. A record's numbers come from methods and evaluation; `evidence` names the results they came from.

Features of sparse autoencoders in a record: what is known of each, and of the dictionary that it is from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from discovery.graph.base import (
    Effect,
    Json,
    JsonModel,
    NodeId,
    Number,
    OmitsEmptyFields,
    canonical_node_id,
)
from discovery.sites import FeatureSite, MetricName, Node, NodeKind, Slot


class NodeEffect(JsonModel):
    """What patching one node does, in each direction.

    Attributes:
        denoising: its clean value put into the corrupted run.
        noising: its corrupted value put into the clean run.
    """

    denoising: Effect | None = None
    noising: Effect | None = None


class CircuitNode(OmitsEmptyFields):
    """One unit of the circuit and the evidence for it.

    `kind`, `layer`, `head` and `label` follow from `id` and need not be given; given wrongly they are refused.

    Attributes:
        id: in the field's grammar: embed, a9.h6, m5, f8.1234, logits.
        kind: embed, attention_head, mlp, feature or logits.
        layer: of a head, an MLP or a feature.
        head: of a head.
        label: as people write it: L9H6.
        effect: what patching it does.
        sign: which way it moves the metric: 1 up, −1 down, 0 neither.
        positions: where it matters, as token positions or labels; a description that narrows nothing.
        role: what it is thought to do.
        inclusion: the share of condition (f)'s resamples whose circuit has it; None where (f) was not measured.
        feature: of a feature.
        evidence: ids of the results that the numbers come from.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"feature"})

    id: NodeId
    kind: NodeKind
    layer: int | None = None
    head: int | None = None
    label: str
    effect: NodeEffect | None = None
    sign: Literal[-1, 0, 1] | None = None
    positions: tuple[int | str, ...] | None = None
    role: str | None = None
    inclusion: float | None = None
    feature: FeatureFacts | None = None
    evidence: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _complete_from_id(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "id" not in data:
            return data
        name = canonical_node_id(str(data["id"]))
        node = Node.parse(name)
        facts: dict[str, Any] = {"kind": node.kind, "layer": node.layer, "head": node.head}
        for field, fact in facts.items():
            if data.get(field, fact) != fact:
                raise ValueError(f"{name} has {field} {fact!r}, not {data[field]!r}")
        if node.kind == "feature":
            given = data.get("feature") or {}
            known = given.model_dump() if isinstance(given, FeatureFacts) else dict(given)
            facts["feature"] = {**known, "index": node.feature, "site": node.site}
        return {**data, "id": name, **facts, "label": data.get("label") or node.label}

    @classmethod
    def of(cls, node: Node | str, **evidence: Any) -> CircuitNode:
        """The record of `node`, with whatever is known of it."""
        return cls.model_validate({"id": str(node), **evidence})

    @property
    def node(self) -> Node:
        """The node itself."""
        return Node.parse(self.id)


class CircuitEdge(OmitsEmptyFields):
    """All that one node sends to a later one: at most one edge per ordered pair.

    Attributes:
        source: id of the earlier node.
        target: id of the later one.
        effect: of all its inputs together.
        inputs: the effect through each input of the target that was measured: q, k, v, mlp, feature or logits.
        activation: of an edge into a feature: how far it moves from its activation in the clean run to that in the corrupted one, as a
            share of the whole way.
        evidence: ids of the results that the numbers come from.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"activation"})

    source: NodeId
    target: NodeId
    effect: Effect | None = None
    inputs: Mapping[Slot, Effect] = Field(default_factory=dict)
    activation: Effect | None = None
    evidence: tuple[str, ...] = ()


class ModelFacts(OmitsEmptyFields):
    """The model that was studied.

    Attributes:
        name: as it was asked for.
        fingerprint: sha256 of the weights.
        backend: transformerlens or nnsight.
        dtype: the numbers it computed in.
        weight_processing: what was folded into the weights before, if anything.
        n_layers: layers.
        n_heads: attention heads in each.
        n_kv_heads: key-value heads in each layer if several heads share one; left out if each head
            has its own. An edge into k or v of a head changes what this head reads, and nothing for
            the others of its group.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"n_kv_heads"})

    name: str | None = None
    fingerprint: str | None = None
    backend: str | None = None
    dtype: str | None = None
    weight_processing: Json = None
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None

    @property
    def shares_key_values(self) -> bool:
        """Whether several query heads share each key-value head, as far as the record says."""
        if self.n_kv_heads is None or self.n_heads is None:
            return False
        return self.n_kv_heads < self.n_heads


class TaskFacts(JsonModel):
    """The behaviour that was studied.

    Attributes:
        name: built-in name or the task file's.
        metric: the number per prompt that everything is measured by.
        fingerprint: sha256 of the pairs used.
        n_discovery: pairs that selected the circuit.
        n_heldout: pairs that judged it.
        split: how they were parted: whole templates, or stratified by template.
    """

    name: str | None = None
    metric: MetricName | None = None
    fingerprint: str | None = None
    n_discovery: int | None = None
    n_heldout: int | None = None
    split: str | None = None


class Cost(JsonModel):
    """What the run took.

    Attributes:
        forward_equivalents: matmul work in whole forward passes, summed over prompts.
        seconds: wall-clock time.
        peak_memory_bytes: the most memory held at once.
    """

    forward_equivalents: Number = None
    seconds: Number = None
    peak_memory_bytes: int | None = None


class Provenance(JsonModel):
    """How to do it again.

    Attributes:
        seed: of every random choice.
        versions: library -> version.
        device: what it ran on.
        command: the command line.
        created: when, in UTC, ISO 8601.
    """

    seed: int | None = None
    versions: Mapping[str, str] = Field(default_factory=dict)
    device: str | None = None
    command: str | None = None
    created: str | None = None


class FeatureFacts(JsonModel):
    """What is known of a feature beyond what patching it does. Effects are shares of m(clean) − m(corrupted), as a node's.

    Attributes:
        index: its number in the dictionary.
        site: where it is written, as in `dictionaries`.
        activation: the largest among the positions looked at, mean over pairs, in its own units.
        attribution: what patching it does to first order, on the pairs that it was found on.
        removal: what setting it to 0 does, beside the node's effect, which sets it to its corrupted value.
        control_p: the share of pushes as far along other features' directions that do as much.
        fires_on: tokens. promotes, suppresses: tokens whose logits it moves most directly.
        link: its page on Neuronpedia.
    """

    index: int
    site: FeatureSite
    activation: Effect | None = None
    attribution: Effect | None = None
    removal: Effect | None = None
    control_p: Number = None
    fires_on: tuple[str, ...] = ()
    promotes: tuple[str, ...] = ()
    suppresses: tuple[str, ...] = ()
    link: str | None = None


class SAEFacts(JsonModel):
    """A sparse autoencoder whose features stand beside the circuit. They enter no condition and no verdict.

    Attributes:
        sae: as it was asked for.
        fingerprint: sha256 of its weights.
        layer: of the site that it writes.
        site: what it writes. reads: what it encodes, the same but for transcoders: kind and layer.
        d_sae: how many features it has.
        positions: those looked at; None is all.
        variance_explained: on the pairs that the features were verified on.
        l0: features that are not 0 at a position.
        share: of the metric that survives its reconstruction.
        found_on: how many pairs the features were found on; verified_on: how many they were verified on.
        candidates: features that attribution put first, the first first; those that hold are nodes.
        warnings: a poor reconstruction stands first.
        note: what the features are to the verdict.
        evidence: ids of the results that the numbers come from.
    """

    sae: str
    fingerprint: str
    layer: int
    site: FeatureSite
    reads: str
    d_sae: int
    positions: tuple[int | str, ...] | None = None
    variance_explained: Number = None
    l0: Number = None
    share: Number = None
    found_on: int | None = None
    verified_on: int | None = None
    candidates: tuple[NodeId, ...] = ()
    warnings: tuple[str, ...] = ()
    note: str | None = None
    evidence: tuple[str, ...] = ()
