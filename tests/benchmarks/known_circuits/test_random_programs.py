"""Random programs: the same from the same seed, with a truth that brute force gives again."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from benchmarks.known_circuits.random_programs import WANTED, accepted, draw, stored
from benchmarks.known_circuits.truth import fingerprint

LEAST = 100


def test_a_seed_gives_one_program() -> None:
    assert fingerprint(draw(3)) == fingerprint(draw(3))
    assert fingerprint(draw(3)) != fingerprint(draw(4))
    assert all(torch.isfinite(weight).all() for weight in draw(3).state.values())


def test_there_are_many_and_they_differ() -> None:
    found = list(stored())
    assert LEAST <= len(found) <= WANTED
    assert len({fingerprint(program.case) for program in found}) == len(found)
    norms = [program.case.config["normalization_type"] for program in found]
    assert min(norms.count("LN"), norms.count(None)) >= LEAST // 5
    assert {len(program.truth) for program in found} >= {2, 3, 4, 5}
    assert {len(program.case.universe) for program in found} == {8, 10, 12}


def test_the_nodes_that_were_placed_are_the_truth_or_known_to_do_nothing() -> None:
    for program in islice(stored(), 30):
        for node, role in program.case.roles.items():
            if role == "distractor":
                assert node not in program.truth, program.case.name


@pytest.mark.parametrize("nodes", [8, 10])
def test_a_stored_truth_is_what_brute_force_gives(nodes: int) -> None:
    program = next(made for made in stored() if len(made.case.universe) == nodes)
    again = accepted(program.seed)
    assert again is not None
    assert again.truth == program.truth
