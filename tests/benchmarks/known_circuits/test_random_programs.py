"""Random programs: the same from the same seed, with a truth that brute force gives again."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from benchmarks.known_circuits.random_programs import (
    N_PROGRAMS,
    compile_program,
    compute_program,
    load_programs,
)
from benchmarks.known_circuits.truth import compute_fingerprint

LEAST = 100


def test_a_seed_gives_one_program() -> None:
    assert compute_fingerprint(compile_program(3)) == compute_fingerprint(compile_program(3))
    assert compute_fingerprint(compile_program(3)) != compute_fingerprint(compile_program(4))
    assert all(torch.isfinite(weight).all() for weight in compile_program(3).state.values())


def test_there_are_many_and_they_differ() -> None:
    found = list(load_programs())
    assert LEAST <= len(found) <= N_PROGRAMS
    assert len({compute_fingerprint(program.known_circuit) for program in found}) == len(found)
    norms = [program.known_circuit.config["normalization_type"] for program in found]
    assert min(norms.count("LN"), norms.count(None)) >= LEAST // 5
    assert {len(program.truth) for program in found} >= {2, 3, 4, 5}
    assert {len(program.known_circuit.universe) for program in found} == {8, 10, 12}


def test_the_nodes_that_were_placed_are_the_truth_or_known_to_do_nothing() -> None:
    for program in islice(load_programs(), 30):
        for node, role in program.known_circuit.roles.items():
            if role == "distractor":
                assert node not in program.truth, program.known_circuit.name


@pytest.mark.parametrize("nodes", [8, 10])
def test_a_stored_truth_is_what_brute_force_gives(nodes: int) -> None:
    program = next(made for made in load_programs() if len(made.known_circuit.universe) == nodes)
    again = compute_program(program.seed)
    assert again is not None
    assert again.truth == program.truth
