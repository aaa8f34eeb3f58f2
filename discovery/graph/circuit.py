"""The circuit record: what a run found, as one frozen value that converts to networkx and to files.

Every edge runs from an earlier node to a later one, in forward order. `embed` and `logits` are in
every record and count in no size. In networkx and in files an attribute is plain JSON data;
circuit.json is what ``networkx.node_link_graph(json.load(f), edges="edges")`` reads. The
functions `_check_…` hold the rules that every record meets.

    >>> edge = CircuitEdge(source="a9.h6", target="logits")
    >>> circuit = CircuitGraph(nodes=(CircuitNode.of("a9.h6"),), edges=(edge,))
    >>> [node.id for node in circuit.nodes], circuit.size
    (['embed', 'a9.h6', 'logits'], 1)
    >>> CircuitGraph.from_networkx(circuit.to_networkx()) == circuit
    True

The same seed, machine and versions give the same content. Not part of the content are the times
and ids: `run_id`, `cost.seconds`, `cost.peak_memory_bytes`, `provenance.created` and
`provenance.command` (which names run ids and folders). Result ids are replaced by their order of
appearance, so that the content still says which results support which node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, assert_never

import networkx
from pydantic import Field, ValidationError, field_validator, model_validator

from discovery.errors import StoreError
from discovery.graph.base import DiGraph, Graph, OmitsEmptyFields, locate_first_error
from discovery.graph.dot import write_dot
from discovery.graph.evaluation import RULES_VERSION, Evaluation, RulesVersion, Verdict
from discovery.graph.graphml import read_graphml, write_graphml
from discovery.graph.mermaid import write_mermaid
from discovery.graph.record import (
    CircuitEdge,
    CircuitNode,
    Cost,
    ModelFacts,
    Provenance,
    SAEFacts,
    TaskFacts,
)
from discovery.graph.strict_json import dumps, loads
from discovery.sites import EMBED, LOGITS, Node, slots_of

Schema = Literal["circuit-scout/circuit/1", "circuit-scout/circuit/2"]
SCHEMAS: Mapping[RulesVersion, Schema] = {
    1: "circuit-scout/circuit/1",
    2: "circuit-scout/circuit/2",
}
SCHEMA = SCHEMAS[RULES_VERSION]
ExportFormat = Literal["json", "graphml", "dot", "mermaid"]

_CURE = "Restore the file from `circuit-scout runs export`, or run the discovery again."


class CircuitGraph(OmitsEmptyFields):
    """A circuit with its evidence, its evaluation and its verdict.

    Nodes and edges are kept in forward order, whatever order they are given in.

    Attributes:
        schema_: the schema, `schema` in JSON. Its number is the version of the rules of evaluation.
        run_id: the run that found the circuit.
        model: the model that was studied.
        task: the behaviour that was studied.
        evaluation: every number behind the verdict.
        verdict: the verdict, which `discovery.evaluation` computes; None before that.
        reasons: the reasons for the verdict.
        cost: what the run took.
        provenance: how the run can be repeated.
        dictionaries: sparse autoencoders whose features are among the nodes, at most one per site.
        nodes: `embed`, the circuit's heads and MLPs, and `logits`. Features may stand beside them;
            they count in no size and enter no condition.
        edges: at most one edge for each ordered pair of nodes.
    """

    omitted_when_empty: ClassVar[frozenset[str]] = frozenset({"dictionaries"})

    schema_: Schema = Field(default=SCHEMA, alias="schema")
    run_id: str | None = None
    model: ModelFacts = ModelFacts()
    task: TaskFacts = TaskFacts()
    evaluation: Evaluation = Evaluation()
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    cost: Cost = Cost()
    provenance: Provenance = Provenance()
    dictionaries: tuple[SAEFacts, ...] = ()
    nodes: tuple[CircuitNode, ...] = Field(default=(), validate_default=True)
    edges: tuple[CircuitEdge, ...] = ()

    @field_validator("nodes")
    @classmethod
    def _add_ends_and_sort(cls, nodes: tuple[CircuitNode, ...]) -> tuple[CircuitNode, ...]:
        ids = {node.id for node in nodes}
        ends = tuple(CircuitNode.of(end) for end in (EMBED, LOGITS) if str(end) not in ids)
        return tuple(sorted(nodes + ends, key=lambda node: node.node))

    @field_validator("edges")
    @classmethod
    def _sort_edges(cls, edges: tuple[CircuitEdge, ...]) -> tuple[CircuitEdge, ...]:
        return tuple(sorted(edges, key=_edge_order))

    @model_validator(mode="after")
    def _check_consistency(self) -> CircuitGraph:
        ids = [node.id for node in self.nodes]
        pairs = [(edge.source, edge.target) for edge in self.edges]
        _check_unique("node", ids)
        _check_unique("edge", [f"{source}->{target}" for source, target in pairs])
        for edge in self.edges:
            _check_edge(edge, set(ids))
        for node in (*self.members, *self.features):
            _check_bounds(node, self.model)
        if self.verdict == "no_behaviour" and (self.size or self.features):
            raise ValueError(
                "a record with the verdict no_behaviour has no circuit, so it can have no heads, "
                "MLPs or features"
            )
        _check_unique("dictionary of", [f"{sae.site} {sae.layer}" for sae in self.dictionaries])
        _check_features(self.features, self.dictionaries)
        return self

    @property
    def rules(self) -> RulesVersion:
        """The version of the rules that the record was evaluated by."""
        return next(rules for rules, schema in SCHEMAS.items() if schema == self.schema_)

    @property
    def members(self) -> tuple[Node, ...]:
        """The circuit C: its heads and MLPs, without `embed` and `logits`."""
        return tuple(node.node for node in self.nodes if node.kind in ("attention_head", "mlp"))

    @property
    def features(self) -> tuple[Node, ...]:
        """The features of sparse autoencoders that stand beside the circuit."""
        return tuple(node.node for node in self.nodes if node.kind == "feature")

    @property
    def size(self) -> int:
        """The number of heads and MLPs."""
        return len(self.members)

    def to_networkx(self) -> DiGraph:
        """Return the record as a DiGraph whose attributes are plain JSON data."""
        graph: DiGraph = networkx.DiGraph()
        facts: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        for node in facts.pop("nodes"):
            graph.add_node(node.pop("id"), **node)
        for edge in facts.pop("edges"):
            graph.add_edge(edge.pop("source"), edge.pop("target"), **edge)
        graph.graph.update(facts)
        return graph

    @classmethod
    def from_networkx(cls, graph: Graph) -> CircuitGraph:
        """Return the record that a graph holds.

        Raises:
            StoreError: if it is not the graph of a circuit.
        """
        if not graph.is_directed() or graph.is_multigraph():
            raise StoreError(
                "A circuit is a networkx.DiGraph, not an undirected or multigraph.",
                "Give one edge per ordered pair of nodes.",
            )
        nodes = [{**facts, "id": name} for name, facts in graph.nodes(data=True)]
        edges = [
            {**facts, "source": source, "target": target}
            for source, target, facts in graph.edges(data=True)
        ]
        return cls._read(graph.graph, nodes, edges, "The graph")

    def to_node_link(self) -> dict[str, Any]:
        """Return the content of circuit.json: networkx node-link data with the key `edges`."""
        facts: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        nodes, edges = facts.pop("nodes"), facts.pop("edges")
        return {
            "directed": True,
            "multigraph": False,
            "graph": facts,
            "nodes": nodes,
            "edges": edges,
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return circuit.json as text: strict JSON that ends with a newline."""
        return dumps(self.to_node_link(), indent=indent) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "circuit.json") -> CircuitGraph:
        """Read circuit.json.

        Args:
            text: the content of the file.
            source: the name of the file, for error messages.

        Raises:
            StoreError: if it is damaged, or has a schema that this version does not read.
        """
        data = loads(text, source)
        match data:
            case {
                "directed": True,
                "multigraph": False,
                "graph": dict(facts),
                "nodes": list(nodes),
                "edges": list(edges),
            }:
                return cls._read(facts, nodes, edges, source)
        raise StoreError(
            f"{source} is not a circuit record: it is not networkx node-link data of a DiGraph "
            "with the key `edges`.",
            _CURE,
        )

    @classmethod
    def _read(
        cls, facts: Mapping[str, Any], nodes: list[Any], edges: list[Any], source: str
    ) -> CircuitGraph:
        schema = facts.get("schema")
        if schema not in SCHEMAS.values():
            readable = " and ".join(map(repr, SCHEMAS.values()))
            raise StoreError(
                f"{source} has the schema {schema!r}; this version reads {readable}.",
                "Use the version that wrote it.",
            )
        try:
            return cls.model_validate({**facts, "nodes": nodes, "edges": edges})
        except (ValidationError, TypeError) as fault:
            raise StoreError(
                f"{source} is not a circuit record: {_first_error(fault)}.", _CURE
            ) from fault

    def to_graphml(self) -> str:
        """Return GraphML, for Gephi, Cytoscape, yEd and networkx.

        Text and numbers are written as they are, everything else as JSON strings.
        """
        return write_graphml(self.to_networkx())

    @classmethod
    def from_graphml(cls, text: str) -> CircuitGraph:
        """Read what `to_graphml` wrote, without loss.

        Raises:
            StoreError: if it is damaged.
        """
        return cls.from_networkx(read_graphml(text))

    def to_dot(self) -> str:
        """Return Graphviz DOT with one row for each layer. Graphviz is not needed for this."""
        return write_dot(self.to_networkx())

    def to_mermaid(self) -> str:
        """Return a Mermaid flowchart, for Markdown."""
        return write_mermaid(self.to_networkx())

    def export(self, format: ExportFormat) -> str:
        """Return the record as text. Only "json" and "graphml" can be read back."""
        match format:
            case "json":
                return self.to_json()
            case "graphml":
                return self.to_graphml()
            case "dot":
                return self.to_dot()
            case "mermaid":
                return self.to_mermaid()
        assert_never(format)

    def content_hash(self) -> str:
        """Return the sha256 of what the same seed, machine and versions reproduce.

        That is everything but times and ids.
        """
        return hashlib.sha256(
            dumps(_reproducible_content(self.to_node_link()), sort_keys=True).encode()
        ).hexdigest()

    def same_content(self, other: CircuitGraph) -> bool:
        """Return whether another record is the same but for times and ids."""
        return self.content_hash() == other.content_hash()


def _first_error(fault: ValidationError | TypeError) -> str:
    if isinstance(fault, TypeError):
        return str(fault)
    place, message = locate_first_error(fault)
    return f"{place}: {message}" if place else message


def _edge_order(edge: CircuitEdge) -> tuple[Node, Node]:
    """Return what sorts edges in forward order: source, then target."""
    return Node.parse(edge.source), Node.parse(edge.target)


def _check_unique(what: str, names: list[str]) -> None:
    """Check that no name occurs twice."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the {what} {repeated[0]} is there twice")


def _check_edge(edge: CircuitEdge, ids: set[str]) -> None:
    """Check that an edge runs forward between nodes of the record, into inputs of its target."""
    source, target = _edge_order(edge)
    for end in (edge.source, edge.target):
        if end not in ids:
            raise ValueError(
                f"the edge {source}->{target} has an end that is not a node of the circuit: {end}"
            )
    if not source.feeds(target):
        raise ValueError(
            f"the edge {source}->{target} runs backwards: the source must come before the target"
        )
    unknown = sorted(set(edge.inputs) - set(slots_of(target)))
    if unknown:
        raise ValueError(
            f"{target} has no input {unknown[0]!r}; it has {', '.join(slots_of(target))}"
        )


def _check_bounds(node: Node, model: ModelFacts) -> None:
    """Check that the model has a node, if the record says how large the model is."""
    for index, limit, what in (
        (node.layer, model.n_layers, "layers"),
        (node.head, model.n_heads, "heads in each layer"),
    ):
        if index is not None and limit is not None and index >= limit:
            raise ValueError(f"{node} is not in the model, which has {limit} {what}")


def _check_features(features: Sequence[Node], dictionaries: Sequence[SAEFacts]) -> None:
    """Check that each feature is in a dictionary that the record names."""
    n_features = {(sae.layer, sae.site): sae.d_sae for sae in dictionaries}
    for node in features:
        limit = n_features.get((node.layer or 0, node.site or "resid_pre"))
        if limit is None:
            raise ValueError(f"{node} is a feature of a dictionary that the record does not name")
        if (node.feature or 0) >= limit:
            raise ValueError(f"{node} is not in its dictionary, which has {limit} features")


def _reproducible_content(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of node-link data: everything but times and ids."""
    facts: dict[str, Any] = {
        name: value for name, value in record["graph"].items() if name != "run_id"
    }
    facts["cost"] = _drop_fields(facts["cost"], "seconds", "peak_memory_bytes")
    facts["provenance"] = _drop_fields(facts["provenance"], "created", "command")
    names: dict[str, str] = {}
    return {
        "graph": facts,
        "nodes": [_renumber_results(node, names) for node in record["nodes"]],
        "edges": [_renumber_results(edge, names) for edge in record["edges"]],
    }


def _drop_fields(facts: Mapping[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in fields}


def _renumber_results(part: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return a node or an edge with its result ids replaced; `names` receives each new id."""
    results: Iterable[str] = part["evidence"]
    return {
        **part,
        "evidence": [names.setdefault(result, f"result-{len(names)}") for result in results],
    }
