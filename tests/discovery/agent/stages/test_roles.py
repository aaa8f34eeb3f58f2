"""A run records what each node of its circuit does, with the measurement behind each part of it."""

from __future__ import annotations

from discovery.agent import DiscoveryResult
from discovery.cli.summary import describe_circuit
from discovery.graph import CircuitGraph
from discovery.store import open_run
from mcp_server.tools.circuit_views import node_views


def test_a_run_records_roles_with_their_measurements(finished_run: DiscoveryResult) -> None:
    circuit = finished_run.circuit
    roles = {node.id: node.role for node in circuit.nodes if node.role}
    assert set(roles) == {"a0.h2", "a1.h1"}
    assert roles["a0.h2"].split("; ")[:2] == ["previous-token head", "feeds the keys of L1H1"]
    assert roles["a1.h1"].split("; ")[:2] == ["induction head", "answer mover"]
    run = open_run(finished_run.path.parent, finished_run.run_id)
    saved = {"roles-head_kinds", "roles-answer_attention", "roles-direct_attribution", "edges"}
    assert saved <= set(run.array_ids())
    for node in circuit.nodes:
        measured = [item.role for item in node.role_measurements]
        assert (node.role or "").split("; ") == list(dict.fromkeys(measured)) or not measured
        for item in node.role_measurements:
            assert item.evidence in run.array_ids()
            assert item.evidence in node.evidence
            assert item.mean is not None
    events = [event for event in run.events() if event["stage"] == "interpret"]
    assert events[-1]["measured"]["labels"] == roles
    assert 0 < events[-1]["measured"]["roles_cost"] < 100


def test_every_view_of_a_record_shows_the_roles(finished_run: DiscoveryResult) -> None:
    circuit = finished_run.circuit
    for text in (circuit.to_dot(), circuit.to_mermaid()):
        assert "previous-token head" in text
        assert "answer mover" in text
    for again in (
        CircuitGraph.from_graphml(circuit.to_graphml()),
        CircuitGraph.from_json(circuit.to_json()),
    ):
        assert again == circuit
    measured = "previous token score on repeated random tokens"
    assert measured in describe_circuit(circuit)
    assert measured in (finished_run.path / "report.html").read_text()
    brief, detailed = (
        {view.id: view.role for view in node_views(circuit, detailed=chosen)}
        for chosen in (False, True)
    )
    assert brief["a0.h2"] == circuit.nodes[1].role
    assert (detailed["a0.h2"] or "").startswith(f"previous-token head ({measured} 1.0 [1.0, 1.0]")
