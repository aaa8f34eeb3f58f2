"""A seed always gives the same program, and brute force gives its stored truth again."""

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

MIN_PROGRAMS = 100


def test_a_seed_gives_one_program() -> None:
    assert compute_fingerprint(compile_program(3)) == compute_fingerprint(compile_program(3))
    assert compute_fingerprint(compile_program(3)) != compute_fingerprint(compile_program(4))
    assert all(torch.isfinite(weight).all() for weight in compile_program(3).state.values())


def test_there_are_many_and_they_differ() -> None:
    programs = list(load_programs())
    assert MIN_PROGRAMS <= len(programs) <= N_PROGRAMS
    assert len({compute_fingerprint(program.known_circuit) for program in programs}) == len(
        programs
    )
    norms = [program.known_circuit.config["normalization_type"] for program in programs]
    assert min(norms.count("LN"), norms.count(None)) >= MIN_PROGRAMS // 5
    assert {len(program.truth) for program in programs} >= {2, 3, 4, 5}
    assert {len(program.known_circuit.universe) for program in programs} == {8, 10, 12}


def test_no_distractor_is_in_the_truth() -> None:
    for program in islice(load_programs(), 30):
        for node, role in program.known_circuit.roles.items():
            if role == "distractor":
                assert node not in program.truth, program.known_circuit.name


@pytest.mark.parametrize("nodes", [8, 10])
def test_a_stored_truth_is_what_brute_force_gives(nodes: int) -> None:
    program = next(
        program for program in load_programs() if len(program.known_circuit.universe) == nodes
    )
    recomputed = compute_program(program.seed)
    assert recomputed is not None
    assert recomputed.truth == program.truth
