"""A record whose verdict does not follow from its own numbers is told from one that is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from discovery.evaluation.verdict import find_contradictions
from discovery.graph import CircuitGraph
from tests.discovery.graph.example import ioi_circuit

OLDER_RECORDS = Path(__file__).parents[2] / "agent/older_records/version_1/complete"


@pytest.fixture(scope="module")
def honest() -> CircuitGraph:
    """A record of version 1 that a run wrote."""
    (path,) = OLDER_RECORDS.glob("*/circuit.json")
    return CircuitGraph.from_json(path.read_bytes(), str(path))


def change(record: CircuitGraph, **changes: Any) -> CircuitGraph:
    return CircuitGraph.model_validate({**record.model_dump(by_alias=True), **changes})


def change_faithfulness(record: CircuitGraph, **numbers: float) -> CircuitGraph:
    facts: Any = record.model_dump(by_alias=True)
    facts["evaluation"]["heldout"]["ablations"]["resample"]["faithfulness"].update(numbers)
    return CircuitGraph.model_validate(facts)


def test_the_record_of_a_run_is_sound(honest: CircuitGraph) -> None:
    assert honest.verdict is not None
    assert find_contradictions(honest) == ()


def test_another_verdict_is_named(honest: CircuitGraph) -> None:
    other = "partial" if honest.verdict == "verified" else "verified"
    (contradiction,) = find_contradictions(change(honest, verdict=other))
    assert f"recorded as {other}" in contradiction
    assert f"it is {honest.verdict}" in contradiction


def test_a_number_outside_its_bounds_is_named(honest: CircuitGraph) -> None:
    contradictions = find_contradictions(change_faithfulness(honest, value=0.2, low=0.1, high=0.3))
    assert "(a) under resample is recorded as holds" in contradictions[0]
    assert "it is fails" in contradictions[0]


def test_a_verdict_without_evidence_is_named() -> None:
    bare = CircuitGraph(verdict="verified", nodes=ioi_circuit().nodes)
    assert any("it is inconclusive" in words for words in find_contradictions(bare))


def test_a_record_that_claims_nothing_contradicts_nothing() -> None:
    assert find_contradictions(CircuitGraph()) == ()
    interim = CircuitGraph(
        verdict="inconclusive", nodes=ioi_circuit().nodes, reasons=("not judged yet",)
    )
    assert find_contradictions(interim) == ()
