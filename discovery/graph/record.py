"""What a circuit record is made of: frozen values that know nothing of each other's whole.

Convention: what was not measured is None, null in JSON; a number that is not finite is not known either.
Fields may be added by whoever writes a record: those that are not declared here are kept, as JSON, and
written back. A record's numbers come from methods and evaluation; `evidence` names the results they came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from discovery.errors import SiteError
from discovery.graph.strict_json import clean
from discovery.sites import MetricName, Node, NodeKind, Slot

Number = Annotated[float | None, BeforeValidator(clean)]
"""A finite number, or None where it is not known (NaN and infinity become None)."""

Json = Annotated[JsonValue, BeforeValidator(clean)]
"""Anything strict JSON can hold."""


def _node_id(text: str) -> str:
    try:
        return str(Node.parse(text))
    except SiteError as fault:
        raise ValueError(fault.cause) from fault


NodeId = Annotated[str, BeforeValidator(str), AfterValidator(_node_id)]
"""A node in the field's grammar, written canonically: L9H6 becomes a9.h6; a `Node` is understood too."""


class Record(BaseModel):
    """The base of every part: frozen, and open to fields that are not declared, kept as strict JSON."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _added_fields_are_json(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        declared = {name for field, info in cls.model_fields.items() for name in (field, info.alias)}
        return {name: value if name in declared else clean(value) for name, value in data.items()}

    @classmethod
    def declared(cls) -> frozenset[str]:
        """The declared fields, named as in JSON."""
        return frozenset(info.alias or field for field, info in cls.model_fields.items())


class Effect(Record):
    """A mean over pairs and its 95% interval, as a share of m(clean) − m(corrupted).

    Attributes:
        mean: the effect; 1 restores (denoising) or destroys (noising) the whole difference.
        low: the interval's lower end.
        high: its upper end.
    """

    mean: Number = None
    low: Number = None
    high: Number = None


class NodeEffect(Record):
    """What patching one node does, in each direction.

    Attributes:
        denoising: its clean value put into the corrupted run.
        noising: its corrupted value put into the clean run.
    """

    denoising: Effect | None = None
    noising: Effect | None = None


class CircuitNode(Record):
    """One unit of the circuit and the evidence for it.

    `kind`, `layer`, `head` and `label` follow from `id` and need not be given; given wrongly they are refused.

    Attributes:
        id: in the field's grammar: embed, a9.h6, m5, logits.
        kind: embed, attention_head, mlp or logits.
        layer: of a head or MLP.
        head: of a head.
        label: as people write it: L9H6.
        effect: what patching it does.
        sign: which way it moves the metric: 1 up, −1 down, 0 neither.
        positions: where it matters, as token positions or labels; a description that narrows nothing.
        role: what it is thought to do.
        inclusion: the share of condition (f)'s resamples whose circuit has it; None where (f) was not measured.
        evidence: ids of the results that the numbers come from.
    """

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
    evidence: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _named_by_id(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "id" not in data:
            return data
        name = _node_id(str(data["id"]))
        node = Node.parse(name)
        facts: dict[str, str | int | None] = {"kind": node.kind, "layer": node.layer, "head": node.head}
        for field, fact in facts.items():
            if data.get(field, fact) != fact:
                raise ValueError(f"{name} has {field} {fact!r}, not {data[field]!r}")
        return {**data, "id": name, **facts, "label": data.get("label") or node.label}

    @classmethod
    def of(cls, node: Node | str, **evidence: Any) -> CircuitNode:
        """The record of `node`, with whatever is known of it."""
        return cls.model_validate({"id": str(node), **evidence})

    @property
    def node(self) -> Node:
        """The node itself."""
        return Node.parse(self.id)


class CircuitEdge(Record):
    """All that one node sends to a later one: at most one edge per ordered pair.

    Attributes:
        source: id of the earlier node.
        target: id of the later one.
        effect: of all its inputs together.
        inputs: the effect through each input of the target that was measured: q, k, v, mlp or logits.
        evidence: ids of the results that the numbers come from.
    """

    source: NodeId
    target: NodeId
    effect: Effect | None = None
    inputs: Mapping[Slot, Effect] = Field(default_factory=dict)
    evidence: tuple[str, ...] = ()


class ModelFacts(Record):
    """The model that was studied.

    Attributes:
        name: as it was asked for.
        fingerprint: sha256 of the weights.
        backend: transformerlens or nnsight.
        dtype: the numbers it computed in.
        weight_processing: what was folded into the weights before, if anything.
        n_layers: layers.
        n_heads: attention heads in each.
    """

    name: str | None = None
    fingerprint: str | None = None
    backend: str | None = None
    dtype: str | None = None
    weight_processing: Json = None
    n_layers: int | None = None
    n_heads: int | None = None


class TaskFacts(Record):
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


class Cost(Record):
    """What the run took.

    Attributes:
        forward_equivalents: matmul work in whole forward passes, summed over prompts.
        seconds: wall-clock time.
        peak_memory_bytes: the most memory held at once.
    """

    forward_equivalents: Number = None
    seconds: Number = None
    peak_memory_bytes: int | None = None


class Provenance(Record):
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
