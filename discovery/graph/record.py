"""The parts of a circuit record: nodes, edges, and the facts about model, task, cost and features.

What was not measured is None, which is null in JSON; a number that is not finite counts as not
measured. A writer may add fields: those that are not declared here are kept and written back. The
numbers come from `methods` and `evaluation`, and `evidence` names the results that they come
from.
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
    """The effect of patching one node, in each direction.

    Attributes:
        denoising: the effect of its clean value in the corrupted run.
        noising: the effect of its corrupted value in the clean run.
    """

    denoising: Effect | None = None
    noising: Effect | None = None


class RoleMeasurement(JsonModel):
    """One measurement that gives a node a part of its role.

    Attributes:
        role: the part of the role that it gives.
        measure: what was measured, in words, with its unit.
        mean: the measurement; None if only a bound is known, which `measure` then says.
        low: the lower end of its 95% interval.
        high: the upper end of its 95% interval.
        chance: what it is by chance; None if that is not known.
        p: the p-value of not being chance, corrected for all that were tested; None if the interval
            decides.
        evidence: the id of the result that it comes from.
    """

    role: str
    measure: str
    mean: Number = None
    low: Number = None
    high: Number = None
    chance: Number = None
    p: Number = None
    evidence: str


class CircuitNode(OmitsEmptyFields):
    """One node of the circuit, and the evidence for it.

    `kind`, `layer`, `head` and `label` follow from `id` and need not be given. If they are given
    and contradict the id, the node is refused.

    Attributes:
        id: the name of the node: embed, a9.h6, m5, f8.1234 or logits.
        kind: embed, attention_head, mlp, feature or logits.
        layer: the layer of a head, an MLP or a feature.
        head: the index of a head in its layer.
        label: the name as people write it, such as L9H6.
        effect: the effect of patching it.
        sign: the direction in which it moves the metric: 1 up, −1 down, 0 neither.
        positions: the token positions or labels at which it acts. This describes the node; it does
            not narrow any ablation.
        role: what it does, as far as measurements say it; None if they say nothing.
        role_measurements: the measurements that the role rests on.
        inclusion: the share of the resamples of condition (f) whose circuit has it; None if (f) was
            not measured.
        feature: what is known of a feature; None for other nodes.
        evidence: the ids of the results that the numbers come from.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"feature", "role_measurements"})

    id: NodeId
    kind: NodeKind
    layer: int | None = None
    head: int | None = None
    label: str
    effect: NodeEffect | None = None
    sign: Literal[-1, 0, 1] | None = None
    positions: tuple[int | str, ...] | None = None
    role: str | None = None
    role_measurements: tuple[RoleMeasurement, ...] = ()
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
            feature = data.get("feature") or {}
            known = feature.model_dump() if isinstance(feature, FeatureFacts) else dict(feature)
            facts["feature"] = {**known, "index": node.feature, "site": node.site}
        return {**data, "id": name, **facts, "label": data.get("label") or node.label}

    @classmethod
    def of(cls, node: Node | str, **evidence: Any) -> CircuitNode:
        """Return a node of the record, with what is known of it."""
        return cls.model_validate({"id": str(node), **evidence})

    @property
    def node(self) -> Node:
        """The node itself."""
        return Node.parse(self.id)


class CircuitEdge(OmitsEmptyFields):
    """All that one node sends to a later node; there is at most one edge per ordered pair.

    Attributes:
        source: the id of the earlier node.
        target: the id of the later node.
        effect: the effect through all inputs of the target together.
        inputs: the effect through each input of the target that was measured: q, k, v, mlp, feature
            or logits.
        activation: for an edge into a feature, how far the edge moves the feature from its
            activation in the clean run to that in the corrupted run, as a share of the difference.
        evidence: the ids of the results that the numbers come from.
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
        name: the model as it was asked for.
        fingerprint: the sha256 of the weights; of a GGUF model, of its file.
        quantisation: how the weights of a GGUF file are quantised, as Q4_1; left out for other
            formats.
        backend: "transformerlens" or "nnsight".
        dtype: the dtype of its computations.
        weight_processing: how the weights were processed before, if they were.
        n_layers: the number of layers.
        n_heads: the number of attention heads in each layer.
        n_kv_heads: key-value heads in each layer if several heads share one; left out if each head
            has its own. An edge into k or v of a head changes what this head reads, and nothing for
            the others of its group.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"n_kv_heads", "quantisation"})

    name: str | None = None
    fingerprint: str | None = None
    quantisation: str | None = None
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
        name: the built-in name, or the name of the task file.
        metric: the number that is measured on each prompt.
        fingerprint: the sha256 of the pairs.
        n_discovery: the number of pairs that selected the circuit.
        n_heldout: the number of pairs that it was evaluated on.
        split: how the pairs were divided: by whole templates, or stratified by template.
    """

    name: str | None = None
    metric: MetricName | None = None
    fingerprint: str | None = None
    n_discovery: int | None = None
    n_heldout: int | None = None
    split: str | None = None


class Cost(JsonModel):
    """What a run took.

    Attributes:
        forward_equivalents: the work of matrix products in whole forward passes, summed over
            prompts.
        seconds: the wall-clock time.
        peak_memory_bytes: the most memory that the process held.
    """

    forward_equivalents: Number = None
    seconds: Number = None
    peak_memory_bytes: int | None = None


class Provenance(JsonModel):
    """How a run can be repeated.

    Attributes:
        seed: the seed of every random choice.
        versions: the version of each library.
        device: the device that it ran on.
        command: the command line; None if it was started from Python.
        created: when it began, in UTC, ISO 8601.
    """

    seed: int | None = None
    versions: Mapping[str, str] = Field(default_factory=dict)
    device: str | None = None
    command: str | None = None
    created: str | None = None


class FeatureFacts(JsonModel):
    """What is known of a feature beyond the effect of patching it.

    Effects are shares of m(clean) − m(corrupted), as for every node.

    Attributes:
        index: the number of the feature in its SAE.
        site: the site that it writes to, as in `dictionaries`.
        activation: its largest activation among the positions, as a mean over pairs, in its own
            units.
        attribution: the first-order estimate of its effect, on the pairs that it was found on.
        removal: the effect of setting it to 0. (The effect of the node sets it to its corrupted
            value.)
        control_p: the share of equally large changes along other features' directions that have as
            much effect.
        fires_on: the tokens that it fires on.
        promotes: the tokens whose logits it raises most, directly.
        suppresses: the tokens whose logits it lowers most, directly.
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
    """A sparse autoencoder whose features stand beside the circuit.

    The features enter no condition and no verdict.

    Attributes:
        sae: the SAE as it was asked for.
        fingerprint: the sha256 of its weights.
        layer: the layer of the site that it writes to.
        site: the site that it writes to.
        reads: the site that it encodes, as kind and layer. It differs from the site that it writes
            to only for transcoders.
        d_sae: the number of its features.
        positions: the positions that were looked at; None means all.
        variance_explained: variance explained on the pairs that the features were verified on.
        l0: the number of features that are not 0 at a position.
        share: the share of the metric that is left with its reconstruction.
        found_on: the number of pairs that the features were found on.
        verified_on: the number of pairs that the features were verified on.
        candidates: the features with the largest attribution, the largest first. Those that pass
            are nodes.
        warnings: warnings; a poor reconstruction comes first.
        note: what the features mean for the verdict.
        evidence: the ids of the results that the numbers come from.
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
