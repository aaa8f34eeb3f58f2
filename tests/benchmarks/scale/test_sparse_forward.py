"""The sparse pass agrees with the plain one, in which every node is computed by itself."""

from __future__ import annotations

import pytest
import torch

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.truth import ABLATIONS, Ablation, group_pairs, measure_f
from benchmarks.scale.constructions import KINDS, Kind
from benchmarks.scale.embedding import HiddenCircuit, hide_circuit
from benchmarks.scale.sparse_forward import SparseForward

PER_TEMPLATE = 4


@pytest.fixture(scope="module")
def backup_case() -> HiddenCircuit:
    return hide_circuit("backup", 20, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_f_agrees_with_the_plain_pass(kind: Kind, ablation: Ablation) -> None:
    case = hide_circuit(kind, 20, 1)
    circuit = case.known_circuit
    half = circuit.universe[::2]
    without = [node for node in circuit.universe if node not in case.truth]
    subsets = [sorted(case.truth), half, without, circuit.universe[:7]]
    expected = measure_f(circuit, group_pairs(circuit, PER_TEMPLATE), ablation, subsets)
    forward = SparseForward(circuit, PER_TEMPLATE)
    measured = torch.tensor([forward.f(subset, ablation) for subset in subsets])
    torch.testing.assert_close(measured.double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_changing_one_node_agrees_with_a_new_set(
    backup_case: HiddenCircuit, ablation: Ablation
) -> None:
    forward = SparseForward(backup_case.known_circuit, PER_TEMPLATE)
    universe = backup_case.known_circuit.universe
    for context in (backup_case.truth, frozenset(universe[1::2])):
        changed = forward.f_with_one_changed(context, universe, ablation)
        assert list(changed) == list(universe)
        for node in universe:
            assert changed[node] == pytest.approx(forward.f(context ^ {node}, ablation), abs=1e-4)


def test_the_whole_model_and_the_empty_set_are_the_ends(backup_case: HiddenCircuit) -> None:
    forward = SparseForward(backup_case.known_circuit, PER_TEMPLATE)
    for ablation in ABLATIONS:
        assert forward.f(backup_case.known_circuit.universe, ablation) == pytest.approx(1.0)
        assert forward.f((), ablation) == 0.0


def test_models_without_mlps_are_refused() -> None:
    with pytest.raises(ValueError, match="induction has norms or no MLPs"):
        SparseForward(build_known_circuit("induction"))
