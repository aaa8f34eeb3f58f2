from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from discovery.graph import CircuitGraph, CircuitNode
from tests.discovery.graph.example import ioi_circuit, records

LABEL = r'"((?:[\w .,:+\-/()]|<br/>|#\d+;)*)"'
NODE = re.compile(
    r"  (embed|logits|a\d+_h\d+|m\d+|f\d+_\d+\w*)"
    rf"(?:\(\[{LABEL}\]\)|\[{LABEL}\]|\{{\{{{LABEL}\}}\}}):::(up|down|flat|end_)"
)
EDGE = re.compile(rf"  (\w+) (-->|-\.->)(?:\|{LABEL}\|)? (\w+)")
CLASS = re.compile(r"  classDef (\w+) [\w:#,\- ]+")


def parse(text: str) -> tuple[dict[str, str], dict[tuple[str, str], str], str]:
    """Return nodes with labels, edges with labels, and the comment; no other line may occur."""
    comment, kind, *lines = text.rstrip("\n").split("\n")
    assert re.fullmatch(r"%% [\w .,:+\-/()#;]*", comment)
    assert kind == "flowchart BT"
    nodes: dict[str, str] = {}
    edges: dict[tuple[str, str], str] = {}
    classes: set[str] = set()
    used: set[str] = set()
    for line in lines:
        if node := NODE.fullmatch(line):
            nodes[node[1]] = unescaped(node[2] or node[3] or node[4])
            used.add(node[5])
        elif edge := EDGE.fullmatch(line):
            edges[edge[1], edge[4]] = f"{edge[2]} {unescaped(edge[3] or '')}".strip()
        elif style := CLASS.fullmatch(line):
            classes.add(style[1])
        else:
            raise AssertionError(f"not a line of a flowchart: {line!r}")
    assert used <= classes
    assert {end for pair in edges for end in pair} <= set(nodes)
    return nodes, edges, comment


def unescaped(text: str) -> str:
    return re.sub(r"#(\d+);", lambda entity: chr(int(entity[1])), text)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_every_record_is_a_flowchart_with_its_nodes_and_edges(facts: dict[str, Any]) -> None:
    circuit = CircuitGraph.model_validate(facts)
    nodes, edges, _ = parse(circuit.to_mermaid())
    name = str.maketrans(".@", "__")
    assert list(nodes) == [node.id.translate(name) for node in circuit.nodes]
    assert list(edges) == [
        (edge.source.translate(name), edge.target.translate(name)) for edge in circuit.edges
    ]


def test_labels_say_what_is_known() -> None:
    nodes, edges, comment = parse(ioi_circuit().to_mermaid())
    assert nodes["a9_h6"] == "L9H6<br/>name mover<br/>+0.52"
    assert edges == {("a9_h6", "a10_h0"): "-.-> q v -0.12", ("a10_h0", "logits"): "-->"}
    assert comment == "%% ioi in bundled: partial"


@pytest.mark.parametrize(
    "role",
    ['"] --> evil["', "%%{init: {}}%%", "`md`", "#quot;", "<script>", "a;b|c", "end", "é 中"],
)
def test_hostile_text_stays_text(role: str) -> None:
    nodes, edges, _ = parse(CircuitGraph(nodes=(CircuitNode.of("m0", role=role),)).to_mermaid())
    assert nodes["m0"] == f"MLP0<br/>{role}"
    assert not edges
