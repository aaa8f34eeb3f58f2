"""Each model does its task, the corruption removes it, and the project can read its files."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.known_circuits.forward import run_forward
from benchmarks.known_circuits.hand_built import (
    KNOWN_CIRCUITS,
    PAIRS_PER_TEMPLATE,
    build_known_circuit,
)
from benchmarks.known_circuits.known_circuit import KnownCircuit
from benchmarks.known_circuits.truth import ABLATIONS, group_pairs, measure_f, measure_subsets

ALL_PAIRS = 10**6


def behaviour(case: KnownCircuit) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the metric of every pair on the clean and on the corrupted side."""
    clean = []
    corrupted = []
    for part in group_pairs(case, ALL_PAIRS):
        clean.append(part.metric(run_forward(case.config, case.state, part.clean).logits)[0])
        corrupted.append(
            part.metric(run_forward(case.config, case.state, part.corrupted).logits)[0]
        )
    return torch.cat(clean), torch.cat(corrupted)


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_the_model_does_the_task_and_the_corruption_removes_it(name):
    case = build_known_circuit(name)
    clean, corrupted = behaviour(case)
    assert (clean > 0).all()
    assert clean.mean() - corrupted.mean() >= 0.9 * clean.mean()


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_nothing_is_left_when_all_is_ablated(name):
    case = build_known_circuit(name)
    parts = group_pairs(case)
    everything = 2 ** len(case.universe) - 1
    for ablation in ABLATIONS:
        empty, full = measure_subsets(case, parts, ablation, [0, everything]).tolist()
        assert full - empty > 0.7 * full > 0
        assert measure_f(case, parts, ablation, [case.universe, ()]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_a_random_twin_does_not_do_the_task(name):
    case = build_known_circuit(name)
    twin = case.random_twin(3)
    assert {key: value.shape for key, value in twin.state.items()} == {
        key: value.shape for key, value in case.state.items()
    }
    assert twin.pairs == case.pairs
    clean, corrupted = behaviour(twin)
    assert 0.35 < (clean > 0).double().mean() < 0.65
    # The twin is not dead: the corruption reaches its logits.
    assert (clean - corrupted).abs().mean() > 0.05
    assert not torch.equal(case.random_twin(4).state["embed.W_E"], twin.state["embed.W_E"])
    assert torch.equal(case.random_twin(3).state["embed.W_E"], twin.state["embed.W_E"])


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_the_pairs_are_a_good_task(name):
    case = build_known_circuit(name)
    templates = Counter(pair.template for pair in case.pairs)
    assert len(templates) == 4
    assert set(templates.values()) == {PAIRS_PER_TEMPLATE}
    assert len({pair.clean for pair in case.pairs}) == len(case.pairs) >= 200
    assert Counter(pair.answer for pair in case.pairs).most_common(1)[0][1] < 0.2 * len(case.pairs)
    for template in templates:
        assert len({len(pair.clean) for pair in case.pairs if pair.template == template}) == 1
    for pair in case.pairs:
        assert len(pair.clean) == len(pair.corrupted) <= case.config["n_ctx"] <= 16
        assert pair.clean[-1] == pair.corrupted[-1]
        assert pair.clean != pair.corrupted
        assert pair.wrong != pair.answer
        assert max(*pair.clean, *pair.corrupted) < case.config["d_vocab"] <= 40
        assert pair.clean[pair.labels["B1"]] == pair.answer
        assert all(-1 <= position < len(pair.clean) for position in pair.labels.values())


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_the_universe_is_larger_than_the_circuit_in_every_layer(name):
    case = build_known_circuit(name)
    assert len(case.universe) <= 12
    assert case.config["d_model"] <= 128
    for layer in range(case.config["n_layers"]):
        assert "distractor" in {
            case.roles[node] for node in case.universe if node.startswith(f"a{layer}.")
        }
    assert set(case.roles) == set(case.universe)


@pytest.mark.parametrize("name", KNOWN_CIRCUITS)
def test_saved_files_hold_the_case(name, tmp_path):
    case = build_known_circuit(name)
    case.save(tmp_path / name)
    assert json.loads((tmp_path / name / "tl_config.json").read_text()) == case.config
    state = load_file(tmp_path / name / "model.safetensors")
    assert set(state) == set(case.state)
    assert all(torch.equal(state[key], value) for key, value in case.state.items())
    lines = [json.loads(line) for line in (tmp_path / name / "task.jsonl").read_text().splitlines()]
    assert lines == [pair.record() for pair in case.pairs]


def test_the_big_heads_are_the_biggest_and_their_values_change():
    case = build_known_circuit("big_no_effect")
    part = group_pairs(case)[0]
    clean, corrupted = (
        run_forward(case.config, case.state, tokens).nodes
        for tokens in (part.clean, part.corrupted)
    )
    norms = {node: float(value.norm(dim=-1).max()) for node, value in clean.items()}
    changes = {
        node: float((value - corrupted[node]).norm(dim=-1).max()) for node, value in clean.items()
    }
    big_heads = set(case.nodes("large without effect"))
    assert len(big_heads) == 2
    for size in (norms, changes):
        largest_of_others = max(size[node] for node in case.universe if node not in big_heads)
        assert min(size[node] for node in big_heads) > 10 * largest_of_others


def test_the_twins_cancel():
    """Each twin writes 0.4 of the answer, and together they write nothing."""
    case = build_known_circuit("cancelling_twins", noise=0.0)
    nodes = run_forward(case.config, case.state, group_pairs(case)[0].clean).nodes
    plus, minus = (nodes[node] for node in case.nodes("twin"))
    assert plus[:, -1].abs().max() > 0.39
    torch.testing.assert_close(plus, -minus)


def test_the_backup_is_silent_until_the_main_head_is_gone():
    case = build_known_circuit("backup", noise=0.0)
    part = group_pairs(case)[0]
    (main,) = case.nodes("induction")
    (spare,) = case.nodes("backup")
    corrupted = run_forward(case.config, case.state, part.corrupted).nodes
    with_main = run_forward(case.config, case.state, part.clean)
    without_main = run_forward(case.config, case.state, part.clean, {main: corrupted[main]})
    rows = torch.arange(len(part.answers))
    answer_dims = [case.layout.dims("out")[token] for token in part.answers]
    assert with_main.nodes[spare][rows, -1, answer_dims].abs().max() < 0.05
    assert without_main.nodes[spare][rows, -1, answer_dims].min() > 0.78
