"""Features in a record: named by its dictionaries, counted in no size, drawn as hexagons, absent from records without any."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from discovery.graph import CircuitGraph, SAEFacts
from discovery.graph.captions import edge_line, node_lines
from discovery.report import draw_circuit, render_page
from tests.discovery.graph.example import ioi_circuit

KNOWN = {
    "sae": "saes/eight",
    "fingerprint": "ef" * 32,
    "layer": 10,
    "site": "resid_pre",
    "reads": "resid_pre.10",
    "d_sae": 2000,
}


def with_feature(**changes: Any) -> CircuitGraph:
    """The IOI example with one feature between its heads."""
    facts = json.loads(ioi_circuit().to_json())
    feature = {
        "fires_on": [" John", " Mary"],
        "promotes": [" <script>"],
        "removal": {"mean": 0.2},
        "link": None,
    }
    node = {
        "id": "f10.1234",
        "effect": {"noising": {"mean": 0.3, "low": 0.2, "high": 0.4}},
        "sign": 1,
        "feature": feature,
    }
    into = {
        "source": "a9.h6",
        "target": "f10.1234",
        "effect": {"mean": 0.2},
        "inputs": {"feature": {"mean": 0.2}},
    }
    out = {
        "source": "f10.1234",
        "target": "a10.h0",
        "effect": {"mean": 0.25},
        "inputs": {"k": {"mean": 0.24}},
    }
    made = {
        **facts["graph"],
        "dictionaries": [
            {**KNOWN, "candidates": ["f10.1234", "f10.7"], "warnings": ["it is small"]}
        ],
        "nodes": [*facts["nodes"], node],
        "edges": [*facts["edges"], {**into, "activation": {"mean": 0.8}}, out],
    }
    return CircuitGraph.model_validate({**made, **changes})


def test_a_feature_stands_in_forward_order_and_counts_in_no_size() -> None:
    circuit = with_feature()
    assert [node.id for node in circuit.nodes] == ["embed", "a9.h6", "f10.1234", "a10.h0", "logits"]
    assert [str(node) for node in circuit.members] == ["a9.h6", "a10.h0"]
    assert [str(node) for node in circuit.features] == ["f10.1234"]
    assert circuit.size == ioi_circuit().size
    node = circuit.nodes[2]
    assert (node.kind, node.layer, node.head, node.label) == ("feature", 10, None, "L10F1234")
    assert (node.feature.index, node.feature.site) == (1234, "resid_pre")


def test_records_without_features_are_written_as_before() -> None:
    data = json.loads(ioi_circuit().to_json())
    assert "dictionaries" not in data["graph"]
    assert all("feature" not in node for node in data["nodes"])
    assert all("activation" not in edge for edge in data["edges"])


def test_it_travels_through_json_and_graphml() -> None:
    circuit = with_feature()
    assert CircuitGraph.from_json(circuit.to_json()) == circuit
    assert CircuitGraph.from_graphml(circuit.to_graphml()) == circuit
    data = json.loads(circuit.to_json())
    assert data["graph"]["schema"] == "circuit-scout/circuit/1"
    assert data["graph"]["dictionaries"][0]["d_sae"] == 2000
    assert data["nodes"][2]["feature"]["promotes"] == [" <script>"]


def test_what_drawings_say_of_it() -> None:
    graph = with_feature().to_networkx()
    assert node_lines("f10.1234", graph.nodes["f10.1234"]) == [
        "L10F1234",
        "fires on John Mary",
        "+0.30",
    ]
    assert edge_line(graph.edges["a9.h6", "f10.1234"]) == "+0.80"  # of the feature's own change
    assert edge_line(graph.edges["f10.1234", "a10.h0"]) == "k +0.25"
    assert draw_circuit(with_feature()).startswith(b"\x89PNG")


def test_the_page_shows_it_apart_from_the_circuit() -> None:
    page = render_page(with_feature(), {}, [])
    assert "2 nodes: L9H6, L10H0" in page
    assert "Features of saes/eight (resid_pre of layer 10)" in page
    assert "Did not hold: L10F7." in page
    assert "it is small" in page
    assert "&lt;script&gt;" in page
    assert "of the feature&#x27;s change: +0.80" in page or "of the feature's change: +0.80" in page


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"dictionaries": []},
            "f10.1234 is a feature of a dictionary that the record does not name",
        ),
        ({"dictionaries": [KNOWN | {"site": "mlp_out"}]}, "does not name"),
        ({"dictionaries": [KNOWN | {"d_sae": 1234}]}, "which has 1234 features"),
        ({"dictionaries": [KNOWN, KNOWN]}, "dictionary of resid_pre 10 is there twice"),
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
def test_a_record_that_contradicts_itself_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        with_feature(**changes)


def test_a_dictionary_has_a_site_that_features_can_have() -> None:
    with pytest.raises(ValidationError):
        SAEFacts.model_validate(KNOWN | {"site": "pattern"})
