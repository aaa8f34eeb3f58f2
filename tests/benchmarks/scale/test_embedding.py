"""Each hidden circuit is where its truth says, and the model does the task."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks.known_circuits.truth import compute_fingerprint
from benchmarks.scale.bystanders import MAX_CARRIER_SUM, MAX_SIDE_SHARE, TOTAL_SHARES
from benchmarks.scale.constructions import KINDS, Kind, list_program_seeds
from benchmarks.scale.embedding import GEOMETRIES, hide_circuit

N_CASES = 56  # programs that the development and the report seeds need together


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_nodes", [20, 156])
def test_a_model_has_the_nodes_that_were_asked_for(kind: Kind, n_nodes: int) -> None:
    case = hide_circuit(kind, n_nodes, 0)
    assert case.n_nodes == n_nodes == GEOMETRIES[n_nodes].n_nodes
    assert case.truth <= set(case.known_circuit.universe)
    assert 2 <= len(case.truth) <= 8
    roles = case.known_circuit.roles
    assert all(not roles[node].startswith("bystander") for node in case.truth)
    without_part = {node for node, role in roles.items() if not role.startswith("bystander")}
    if kind != "program":  # a program may have parts that brute force found to have no effect
        assert without_part == case.truth
    assert all(torch.isfinite(weight).all() for weight in case.known_circuit.state.values())


def test_a_seed_gives_one_model_and_seeds_differ() -> None:
    first, again, other = (hide_circuit("backup", 40, seed) for seed in (3, 3, 4))
    assert compute_fingerprint(first.known_circuit) == compute_fingerprint(again.known_circuit)
    assert first.truth == again.truth
    assert compute_fingerprint(first.known_circuit) != compute_fingerprint(other.known_circuit)


def test_bystanders_have_every_job_and_few_are_silent() -> None:
    roles = Counter(hide_circuit("chain", 156, 1).known_circuit.roles.values())
    jobs = ("reader", "side reader", "source", "weak carrier", "booster", "echo", "speck")
    assert all(roles[f"bystander: {job}"] for job in jobs)
    assert roles["bystander: speck"] < 156 / 2


def test_the_limits_leave_room_below_the_joint_bound() -> None:
    """All direct readers, all readers of SIDE and the weak carriers together stay below 0.1."""
    assert TOTAL_SHARES[1] + MAX_SIDE_SHARE + 0.5 * MAX_CARRIER_SUM < 0.1


def test_there_are_programs_for_all_cases() -> None:
    seeds = list_program_seeds()
    assert len(seeds) >= N_CASES
    with pytest.raises(ValueError, match=f"Programs are counted to {len(seeds) - 1}"):
        hide_circuit("program", 156, len(seeds))


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="no geometry of 157 nodes"):
        hide_circuit("chain", 157, 0)
