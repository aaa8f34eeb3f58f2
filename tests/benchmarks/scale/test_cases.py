"""Seeds of the two sets never meet, and there are as many cases as the benchmark promises."""

from __future__ import annotations

from collections import Counter

import torch

from benchmarks.known_circuits.forward import run_forward
from benchmarks.known_circuits.truth import group_pairs
from benchmarks.scale.cases import CASE_KINDS, LARGE_SIZES, N_CASES, UNTRAINED, CaseKey, list_cases
from benchmarks.scale.constructions import list_program_seeds


def test_development_and_report_share_no_seed() -> None:
    dev, report = (
        {key.seed for key in list_cases(seeds, sizes=[*N_CASES])} for seeds in ("dev", "report")
    )
    assert not dev & report
    assert max(report) < len(list_program_seeds())
    assert {key.seed_set for key in list_cases("dev")} == {"dev"}
    assert {key.seed_set for key in list_cases("report")} == {"report"}


def test_there_are_enough_cases_of_each_kind() -> None:
    counts = Counter((key.kind, key.n_nodes) for key in list_cases("report"))
    assert counts == {
        (kind, n_nodes): N_CASES[n_nodes] for kind in CASE_KINDS for n_nodes in LARGE_SIZES
    }
    assert [N_CASES[n_nodes] for n_nodes in LARGE_SIZES] == [20, 6, 2]


def test_sizes_share_no_seed() -> None:
    seeds = [key.seed for key in list_cases("dev", ["program"], [*N_CASES])]
    assert len(seeds) == len(set(seeds))


def test_a_choice_of_cases_keeps_their_seeds() -> None:
    every = list(list_cases("dev"))
    chosen = list(list_cases("dev", ["or"], [156], limit=2))
    assert chosen == [key for key in every if key.kind == "or" and key.n_nodes == 156][:2]


def test_an_untrained_twin_is_alive_and_near_chance() -> None:
    case = CaseKey(kind=UNTRAINED, n_nodes=40, seed=3).build()
    assert case.truth == frozenset()
    clean = []
    changes = []
    for group in group_pairs(case.known_circuit, 60):
        passes = [
            run_forward(case.known_circuit.config, case.known_circuit.state, tokens).logits
            for tokens in (group.clean, group.corrupted)
        ]
        metrics = [group.metric(logits)[0] for logits in passes]
        clean.append(metrics[0])
        changes.append((metrics[0] - metrics[1]).abs())
    assert 0.35 < (torch.cat(clean) > 0).double().mean() < 0.65
    assert torch.cat(changes).mean() > 0.01
