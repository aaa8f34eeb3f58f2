"""The truth of a hidden circuit is measured, and a wrong truth is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale.constructions import KINDS, Kind
from benchmarks.scale.embedding import HiddenCircuit, hide_circuit
from benchmarks.scale.truth_check import check_truth


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_model_is_what_it_should_be(kind: Kind) -> None:
    assert check_truth(hide_circuit(kind, 20, 1)).failures() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_156_nodes_is_what_it_should_be(kind: Kind) -> None:
    """With this seed. With others, a bystander may be too large, and the benchmark refuses them."""
    check = check_truth(hide_circuit(kind, 156, 8))
    assert check.failures() == []
    median, _, _, largest = check.bystander_quantiles
    assert largest > 0.003, "the bystanders should not be silent"
    assert largest > 5 * median, "their effects should have a long tail"


@pytest.mark.slow
@pytest.mark.parametrize(("n_nodes", "seed"), [(300, 2), (1056, 8)])
def test_a_larger_model_is_what_it_should_be(n_nodes: int, seed: int) -> None:
    assert check_truth(hide_circuit("backup", n_nodes, seed)).failures() == []


@pytest.fixture(scope="module")
def backup_case() -> HiddenCircuit:
    return hide_circuit("backup", 20, 0)


def test_a_truth_without_the_backup_is_noticed(backup_case: HiddenCircuit) -> None:
    (spare,) = backup_case.known_circuit.nodes("backup")
    failures = check_truth(replace(backup_case, truth=backup_case.truth - {spare})).failures()
    assert any(failure.startswith("gap_inside") for failure in failures)
    assert any(failure.startswith("bystander is") for failure in failures)


def test_a_truth_with_a_bystander_is_noticed(backup_case: HiddenCircuit) -> None:
    reader = next(
        node
        for node, role in backup_case.known_circuit.roles.items()
        if role.startswith("bystander")
    )
    failures = check_truth(replace(backup_case, truth=backup_case.truth | {reader})).failures()
    assert any(failure.startswith("weakest_drop") for failure in failures)
    assert any("would pass for the circuit" in failure for failure in failures)
