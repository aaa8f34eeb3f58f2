"""The circuit record: read and written without loss, its rules, its content, and its features."""

from __future__ import annotations

import json
from typing import Any

import networkx
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from discovery.errors import StoreError
from discovery.graph import (
    CircuitEdge,
    CircuitGraph,
    CircuitNode,
    Cost,
    Effect,
    Provenance,
    SAEFacts,
)
from discovery.graph.captions import edge_line, node_lines
from discovery.report import draw_circuit
from tests.discovery.graph.example import SAE_FACTS, ioi_circuit, records, with_feature


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_json_and_networkx_lose_nothing(facts: dict[str, Any]) -> None:
    circuit = CircuitGraph.model_validate(facts)
    assert CircuitGraph.from_json(circuit.to_json()) == circuit
    assert CircuitGraph.from_json(circuit.to_json().encode()) == circuit
    assert CircuitGraph.from_networkx(circuit.to_networkx()) == circuit
    assert CircuitGraph.from_json(circuit.to_json()).to_json() == circuit.to_json()


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_the_graph_comes_back_as_it_was(facts: dict[str, Any]) -> None:
    circuit = CircuitGraph.model_validate(facts)
    graph = circuit.to_networkx()
    again = CircuitGraph.from_networkx(graph).to_networkx()
    assert again.graph == graph.graph
    assert list(again.nodes(data=True)) == list(graph.nodes(data=True))
    assert list(again.edges(data=True)) == list(graph.edges(data=True))


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_networkx_reads_the_file_itself(facts: dict[str, Any]) -> None:
    circuit = CircuitGraph.model_validate(facts)
    graph = networkx.node_link_graph(json.loads(circuit.to_json()), edges="edges")
    assert isinstance(graph, networkx.DiGraph)
    assert networkx.utils.graphs_equal(graph, circuit.to_networkx())


GRAPH_FIELDS = "schema run_id model task evaluation verdict reasons cost provenance"
MODEL_FIELDS = "name fingerprint backend dtype weight_processing n_layers n_heads"
TASK_FIELDS = "name metric fingerprint n_discovery n_heldout"
COST_FIELDS = "forward_equivalents seconds peak_memory_bytes"
PROVENANCE_FIELDS = "seed versions device command created"
NODE_FIELDS = "id kind layer head label effect sign positions role inclusion evidence"
EDGE_FIELDS = "source target effect inputs evidence"


def test_the_file_has_the_names_of_the_interface() -> None:
    data = json.loads(ioi_circuit().to_json())
    assert set(data) == {"directed", "multigraph", "graph", "nodes", "edges"}
    graph = data["graph"]
    assert set(graph) == set(GRAPH_FIELDS.split())
    assert graph["schema"] == "circuit-scout/circuit/2"
    assert set(MODEL_FIELDS.split()) <= set(graph["model"])
    assert set(TASK_FIELDS.split()) <= set(graph["task"])
    assert set(graph["cost"]) == set(COST_FIELDS.split())
    assert set(graph["provenance"]) == set(PROVENANCE_FIELDS.split())
    node = data["nodes"][1]
    assert set(node) == set(NODE_FIELDS.split())
    facts = tuple(node[name] for name in ("id", "kind", "layer", "head", "label"))
    assert facts == ("a9.h6", "attention_head", 9, 6, "L9H6")
    assert node["effect"]["denoising"] == {"mean": 0.52, "low": 0.48, "high": 0.56}
    edge = data["edges"][0]
    assert set(edge) == set(EDGE_FIELDS.split())
    assert set(edge["inputs"]) == {"q", "v"}


def test_both_ends_are_in_every_record_and_count_in_no_size() -> None:
    assert [node.id for node in CircuitGraph().nodes] == ["embed", "logits"]
    assert CircuitGraph().size == 0
    assert [str(node) for node in ioi_circuit().members] == ["a9.h6", "a10.h0"]


def test_nodes_and_edges_stand_in_forward_order_however_they_are_given() -> None:
    nodes = [CircuitNode.of(name) for name in ("logits", "m9", "a10.h2", "a9.h11", "a9.h6")]
    edges = [CircuitEdge(source="m9", target="logits"), CircuitEdge(source="a9.h6", target="m9")]
    circuit = CircuitGraph(nodes=tuple(nodes), edges=tuple(edges))
    assert [node.id for node in circuit.nodes] == [
        "embed",
        "a9.h6",
        "a9.h11",
        "m9",
        "a10.h2",
        "logits",
    ]
    assert circuit == CircuitGraph(nodes=tuple(reversed(nodes)), edges=tuple(reversed(edges)))
    assert [edge.source for edge in circuit.edges] == ["a9.h6", "m9"]


def test_names_are_written_canonically() -> None:
    assert (
        CircuitNode.of("L9H6").id
        == CircuitNode(id="9.6", kind="attention_head", label="L9H6").id
        == "a9.h6"
    )
    assert CircuitEdge(source="L9H6", target="MLP10").target == "m10"


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"nodes": [{"id": "a9.h6"}, {"id": "L9H6"}]}, "node a9.h6 is there twice"),
        ({"nodes": [{"id": "a9"}]}, "not the name of a node"),
        ({"nodes": [{"id": "a9.kv1"}]}, "a9.kv1' is a key-value head"),
        ({"nodes": [{"id": "a9.h6", "layer": 8}]}, "a9.h6 has layer 9, not 8"),
        (
            {"nodes": [{"id": "m1"}], "edges": [{"source": "a0.h0", "target": "m1"}]},
            "not a node of the circuit: a0.h0",
        ),
        (
            {"nodes": [{"id": "m1"}], "edges": [{"source": "logits", "target": "m1"}]},
            "runs backwards",
        ),
        (
            {
                "nodes": [{"id": "a1.h0"}, {"id": "a1.h1"}],
                "edges": [{"source": "a1.h0", "target": "a1.h1"}],
            },
            "runs backwards",
        ),
        (
            {
                "nodes": [{"id": "m1"}],
                "edges": [{"source": "embed", "target": "m1", "inputs": {"q": {}}}],
            },
            "m1 has no input 'q'",
        ),
        (
            {"nodes": [{"id": "m1"}], "edges": [{"source": "embed", "target": "m1"}] * 2},
            "edge embed->m1 is there twice",
        ),
        (
            {"nodes": [{"id": "a3.h0"}], "model": {"n_layers": 3}},
            "a3.h0 is not in the model, which has 3 layers",
        ),
        ({"nodes": [{"id": "a0.h4"}], "model": {"n_heads": 4}}, "4 heads in each layer"),
        ({"nodes": [{"id": "m1"}], "verdict": "no_behaviour"}, "no_behaviour"),
        ({"verdict": "proved"}, "verified"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(broken: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CircuitGraph.model_validate(broken)
    facts = {
        "schema": "circuit-scout/circuit/2",
        **{name: broken[name] for name in broken if name not in ("nodes", "edges")},
    }
    data = {
        "directed": True,
        "multigraph": False,
        "graph": facts,
        "nodes": broken.get("nodes", []),
        "edges": broken.get("edges", []),
    }
    with pytest.raises(StoreError, match=says):
        CircuitGraph.from_json(json.dumps(data))


HEADER = '{"directed": true, "multigraph": false, '
SCHEMA_ONLY = '"graph": {"schema": "circuit-scout/circuit/1"}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "damaged"),
        ('{"directed": true, "gra', "damaged"),
        ("[]", "not networkx node-link data"),
        (HEADER + SCHEMA_ONLY + ', "nodes": []}', "node-link data"),
        (HEADER + SCHEMA_ONLY + ', "nodes": [3], "edges": []}', "nodes.0"),
        (HEADER + '"graph": {"x": NaN}, "nodes": [], "edges": []}', "NaN is not JSON"),
        (HEADER + '"graph": {"x": 1e999}, "nodes": [], "edges": []}', "too large for a double"),
        ("[" * 100_000, "damaged"),
        (b"\xff\xfe", "damaged"),
    ],
)
def test_a_damaged_file_is_named(text: str | bytes, says: str) -> None:
    with pytest.raises(StoreError, match=says) as caught:
        CircuitGraph.from_json(text, "runs/x/circuit.json")
    assert caught.value.cause.startswith("runs/x/circuit.json")


@pytest.mark.parametrize("schema", ["circuit-scout/circuit/3", "circuit-tracer/1", None])
def test_another_schema_is_refused_by_name(schema: str | None) -> None:
    data = json.loads(ioi_circuit().to_json())
    data["graph"]["schema"] = schema
    with pytest.raises(
        StoreError, match=r"this version reads 'circuit-scout/circuit/1' and"
    ) as caught:
        CircuitGraph.from_json(json.dumps(data))
    assert repr(schema) in caught.value.cause


def test_only_a_digraph_is_a_circuit() -> None:
    graph = ioi_circuit().to_networkx()
    for other in (graph.to_undirected(), networkx.MultiDiGraph(graph)):
        with pytest.raises(StoreError, match="DiGraph"):
            CircuitGraph.from_networkx(other)


def test_a_notebook_may_annotate_the_graph() -> None:
    graph = ioi_circuit().to_networkx()
    graph.nodes["a9.h6"]["role"] = "S-inhibition"
    graph.nodes["a9.h6"]["colour"] = ("red", 3)
    graph.graph["note"] = {"by": "me"}
    circuit = CircuitGraph.from_networkx(graph)
    assert circuit.nodes[1].role == "S-inhibition"
    assert circuit.to_networkx().nodes["a9.h6"]["colour"] == ["red", 3]
    assert circuit.to_networkx().graph["note"] == {"by": "me"}
    graph.graph["note"] = object()
    with pytest.raises(StoreError, match="is not JSON"):
        CircuitGraph.from_networkx(graph)


def test_a_record_is_frozen() -> None:
    circuit = ioi_circuit()
    with pytest.raises(ValidationError, match="frozen"):
        circuit.verdict = "verified"
    circuit.to_networkx().nodes["a9.h6"]["effect"]["denoising"]["mean"] = 9.0
    assert circuit == ioi_circuit()


def test_the_same_record_gives_the_same_bytes() -> None:
    for format in ("json", "graphml", "dot", "mermaid"):
        assert ioi_circuit().export(format) == ioi_circuit().export(format)


def test_times_and_ids_are_not_content() -> None:
    first = ioi_circuit()
    node = first.nodes[1].model_copy(update={"evidence": ("x7", "x9")})
    again = ioi_circuit(
        run_id="another",
        cost=Cost(forward_equivalents=1234.5, seconds=1.0, peak_memory_bytes=None),
        provenance=first.provenance.model_copy(
            update={
                "created": "2031-01-01T00:00:00Z",
                "command": "circuit-scout discover --runs-dir x",
            }
        ),
        nodes=(node, first.nodes[2]),
        edges=tuple(
            edge.model_copy(update={"evidence": tuple(f"y-{name}" for name in edge.evidence)})
            for edge in first.edges
        ),
    )
    assert again != first
    assert again.same_content(first)
    assert again.content_hash() == first.content_hash()


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "verified"},
        {"reasons": ()},
        {"cost": Cost(forward_equivalents=1234.6, seconds=61.2)},
        {"provenance": Provenance(seed=1)},
        {"nodes": (CircuitNode.of("a9.h6"), CircuitNode.of("a10.h0"), CircuitNode.of("m11"))},
        {"edges": (CircuitEdge(source="a9.h6", target="a10.h0", effect=Effect(mean=-0.12000001)),)},
        {"note": "an added field"},
    ],
)
def test_anything_else_is_content(change: dict[str, Any]) -> None:
    assert not ioi_circuit(**change).same_content(ioi_circuit())


def test_which_result_supports_which_node_is_content() -> None:
    def with_evidence(*ids: str) -> CircuitGraph:
        return CircuitGraph(
            nodes=tuple(
                CircuitNode.of(name, evidence=(result,))
                for name, result in zip(("m0", "m1"), ids, strict=True)
            )
        )

    assert with_evidence("r1", "r2").same_content(with_evidence("s1", "s2"))
    assert not with_evidence("r1", "r2").same_content(with_evidence("s1", "s1"))


def test_a_feature_stands_in_forward_order_and_counts_in_no_size() -> None:
    circuit = with_feature()
    assert [node.id for node in circuit.nodes] == ["embed", "a9.h6", "f10.1234", "a10.h0", "logits"]
    assert [str(node) for node in circuit.members] == ["a9.h6", "a10.h0"]
    assert [str(node) for node in circuit.features] == ["f10.1234"]
    assert circuit.size == ioi_circuit().size
    node = circuit.nodes[2]
    assert (node.kind, node.layer, node.head, node.label) == ("feature", 10, None, "L10F1234")
    assert node.feature is not None
    assert (node.feature.index, node.feature.site) == (1234, "resid_pre")


def test_records_without_features_are_written_as_before() -> None:
    data = json.loads(ioi_circuit().to_json())
    assert "dictionaries" not in data["graph"]
    assert all("feature" not in node for node in data["nodes"])
    assert all("activation" not in edge for edge in data["edges"])


def test_json_and_graphml_keep_features() -> None:
    circuit = with_feature()
    assert CircuitGraph.from_json(circuit.to_json()) == circuit
    assert CircuitGraph.from_graphml(circuit.to_graphml()) == circuit
    data = json.loads(circuit.to_json())
    assert data["graph"]["schema"] == "circuit-scout/circuit/2"
    assert data["graph"]["dictionaries"][0]["d_sae"] == 2000
    assert data["nodes"][2]["feature"]["promotes"] == [" <script>"]


def test_drawings_show_features() -> None:
    graph = with_feature().to_networkx()
    assert node_lines("f10.1234", graph.nodes["f10.1234"]) == [
        "L10F1234",
        "fires on John Mary",
        "+0.30",
    ]
    assert edge_line(graph.edges["a9.h6", "f10.1234"]) == "+0.80"  # of the feature's own change
    assert edge_line(graph.edges["f10.1234", "a10.h0"]) == "k +0.25"
    assert draw_circuit(with_feature()).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"dictionaries": []},
            "f10.1234 is a feature of a dictionary that the record does not name",
        ),
        ({"dictionaries": [SAE_FACTS | {"site": "mlp_out"}]}, "does not name"),
        ({"dictionaries": [SAE_FACTS | {"d_sae": 1234}]}, "which has 1234 features"),
        ({"dictionaries": [SAE_FACTS, SAE_FACTS]}, "dictionary of resid_pre 10 is there twice"),
        ({"model": {"n_layers": 10}}, "not in the model, which has 10 layers"),
        (
            {
                "nodes": [{"id": "f10.5", "feature": {"index": 5}}],
                "verdict": "no_behaviour",
                "edges": [],
            },
            "no_behaviour",
        ),
        (
            {
                "nodes": [{"id": "f10.5"}, {"id": "a10.h0"}],
                "edges": [{"source": "a10.h0", "target": "f10.5"}],
            },
            "runs backwards",
        ),
        (
            {
                "nodes": [{"id": "f10.5"}],
                "edges": [{"source": "embed", "target": "f10.5", "inputs": {"q": {}}}],
            },
            "f10.5 has no input 'q'",
        ),
    ],
)
def test_features_that_contradict_the_record_are_refused(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        with_feature(**changes)


def test_a_dictionary_has_a_site_that_features_can_have() -> None:
    with pytest.raises(ValidationError):
        SAEFacts.model_validate(SAE_FACTS | {"site": "pattern"})
