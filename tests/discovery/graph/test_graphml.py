from __future__ import annotations

import io
import json
from typing import Any

import networkx
import pytest
from hypothesis import HealthCheck, given, settings

from discovery.errors import StoreError
from discovery.graph import CircuitGraph
from tests.discovery.graph.example import ioi_circuit, records


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_nothing_is_lost(facts: dict[str, Any]) -> None:
    circuit = CircuitGraph.model_validate(facts)
    assert CircuitGraph.from_graphml(circuit.to_graphml()) == circuit


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(records())
def test_networkx_reads_it(facts: dict[str, Any]) -> None:
    circuit = CircuitGraph.model_validate(facts)
    graph = networkx.read_graphml(io.BytesIO(circuit.to_graphml().encode()))
    assert type(graph) is networkx.DiGraph
    assert list(graph) == [node.id for node in circuit.nodes]
    assert list(graph.edges) == [(edge.source, edge.target) for edge in circuit.edges]


def test_other_tools_find_numbers_as_numbers_and_the_rest_as_json() -> None:
    graph = networkx.parse_graphml(ioi_circuit().to_graphml())
    node = graph.nodes["a9.h6"]
    assert (node["label"], node["layer"], node["head"], node["sign"], node["role"]) == (
        "L9H6",
        9,
        6,
        1,
        "name mover",
    )
    assert json.loads(node["effect"])["denoising"]["mean"] == 0.52
    assert json.loads(node["evidence"]) == ["head_out-1", "head_out-2"]
    assert json.loads(graph.edges["a9.h6", "a10.h0"]["inputs"])["q"]["mean"] == -0.1
    assert graph.graph["verdict"] == "partial"
    assert json.loads(graph.graph["evaluation"])["heldout_looks"] == 1
    assert "layer" not in graph.nodes["embed"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<graphml",
        "<html></html>",
        '{"directed": true}',
        '<!DOCTYPE x [<!ENTITY a "b">]><graphml>&b;</graphml>',
    ],
)
def test_what_is_not_graphml_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match="GraphML"):
        CircuitGraph.from_graphml(text)


def test_somebody_elses_graphml_is_refused() -> None:
    text = "\n".join(networkx.generate_graphml(networkx.DiGraph([("embed", "logits")])))
    with pytest.raises(StoreError, match="not written by Circuit Scout"):
        CircuitGraph.from_graphml(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00",
        "\x1b[0m",
        "\r\n",
        "\ufffe",
        "\uffff",
        "<&>\"']]>",
        "\U0010ffff",
        "true",
        "3",
    ],
)
def test_text_that_xml_cannot_hold_is_kept_too(text: str) -> None:
    circuit = CircuitGraph.model_validate(
        {
            "reasons": [text],
            "nodes": [{"id": "m0", "role": text, "x" + text: text}],
            text + "y": text,
        }
    )
    assert CircuitGraph.from_graphml(circuit.to_graphml()) == circuit
