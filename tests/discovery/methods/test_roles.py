"""Roles of nodes rest on measurements, and nodes whose measurements say nothing have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from benchmarks.known_circuits.forward import run_forward
from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.known_circuit import KnownCircuit
from benchmarks.known_circuits.truth import load_truth
from discovery.backends.base import Backend
from discovery.engine import Meter
from discovery.errors import BudgetError
from discovery.methods.roles import RoleReport, estimate_roles, measure_roles
from discovery.tasks.task import Task

PAIRS = 16


def measure(name: str, folder: Path) -> tuple[RoleReport, Backend, Task]:
    model, task = build_known_circuit(name).load(folder / name, PAIRS, device="cpu")
    return measure_roles(model, task, load_truth(name, "resample").nodes), model, task


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        (
            "cancelling_twins",
            {
                "a0.h2": "previous-token head",
                "a1.h0": "induction head; answer mover",
                "a1.h3": "induction head; negative answer mover",
                "a2.h1": "induction head; answer mover",
            },
        ),
        (
            "or_mlp",
            {
                "a0.h3": "previous-token head",
                "a1.h0": "induction head",
                "a1.h2": "induction head",
                "m1": "writes the answer",
            },
        ),
    ],
)
def test_constructed_nodes_have_the_roles_that_they_were_built_for(
    name: str, roles: dict[str, str], tmp_path: Path
) -> None:
    report, _, task = measure(name, tmp_path)
    assert {node: report.role(node) for node in report.evidence} == roles
    assert not report.warnings
    for items in report.evidence.values():
        for item in items:
            assert item.p <= 0.05
            assert item.value.low <= item.value.mean <= item.value.high
            assert abs(item.value.mean - item.chance) >= 0.05
    assert report.cost.forward_equivalents <= 1.3 * estimate_roles(len(task))


def test_attention_and_direct_shares_are_those_of_a_plain_forward_pass(tmp_path: Path) -> None:
    name = "cancelling_twins"
    circuit = build_known_circuit(name)
    report, _, task = measure(name, tmp_path)
    attention, direct = plain_measurements(circuit, task, report)
    answer = report.arrays["answer_attention"]
    assert_close(answer["attention"], attention, atol=1e-5, rtol=0)
    assert_close(
        answer["chance"], torch.tensor([1 / len(pair.clean) for pair in task.pairs]).double()
    )
    assert_close(report.arrays["direct_attribution"]["share"], direct, atol=1e-4, rtol=0)


def plain_measurements(
    circuit: KnownCircuit, task: Task, report: RoleReport
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention to the answer [pair head] and the direct shares [pair node]."""
    attention, direct, differences = [], [], []
    for pair in task.pairs:
        run = run_forward(circuit.config, circuit.state, torch.tensor([pair.clean]))
        place = pair.clean.index(pair.answer[0])
        heads = report.columns["answer_attention"]
        attention.append(torch.stack([run.patterns[name][0, -1, place] for name in heads]))
        columns = circuit.state["unembed.W_U"].double()
        read = columns[:, pair.answer[0]] - columns[:, pair.wrong[0]]
        nodes = report.columns["direct_attribution"]
        direct.append(torch.stack([run.nodes[name][0, -1] @ read for name in nodes]))
        differences.append(run.logits[0, -1, pair.answer[0]] - run.logits[0, -1, pair.wrong[0]])
    return torch.stack(attention), torch.stack(direct) / torch.stack(differences).mean()


def test_nodes_of_an_untrained_model_have_no_role(tmp_path: Path) -> None:
    """Beyond chance and above the minimum effect: random weights give neither."""
    for seed in range(3):
        twin = build_known_circuit("or_mlp").random_twin(seed)
        model, task = twin.load(tmp_path / twin.name, PAIRS, device="cpu")
        report = measure_roles(model, task, twin.universe)
        kinds = {item.role for items in report.evidence.values() for item in items}
        assert not kinds & {"previous-token head", "induction head", "answer mover"}, (
            report.evidence
        )


def test_a_budget_that_does_not_suffice_measures_nothing(tmp_path: Path) -> None:
    model, task = build_known_circuit("induction").load(tmp_path / "model", PAIRS, device="cpu")
    meter = Meter(limit=estimate_roles(len(task)) - 1)
    with pytest.raises(BudgetError, match="roles needs 80 forward-pass equivalents"):
        measure_roles(model, task, ["a0.h2"], meter=meter)
    assert meter.spent == 0
