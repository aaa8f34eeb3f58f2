"""The agent finds the known circuit of a model, and nothing in an untrained twin of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from benchmarks.known_circuits.hand_built import KNOWN_CIRCUITS, build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from discovery import discover, load_model, load_task
from discovery.graph import EVIDENCE_ABLATIONS
from discovery.sites import BackendName

PAIRS = 160
TWINS = range(10)

# Each of the other models takes 10 to 60 s under the shape checks.
QUICK = {"induction", "or_softmax", "big_no_effect", "slight_head"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(KNOWN_CIRCUITS)
    ],
)
def test_the_discovered_set_is_the_truth(name: str, tmp_path: Path) -> None:
    model = load_model(build_known_circuit(name).save(tmp_path / "model"))
    run = discover(
        model,
        load_task(tmp_path / "model" / "task.jsonl", model, pairs=PAIRS),
        runs_dir=tmp_path / "runs",
    )
    members = {str(node) for node in run.circuit.members}
    assert members == set(load_truth(name, "resample").nodes) == set(load_truth(name, "mean").nodes)
    conditions = run.circuit.evaluation.conditions
    for condition in "abcde":
        assert {conditions.under(condition, a) for a in EVIDENCE_ABLATIONS} == {"holds"}, condition
    assert run.circuit.verdict in ("verified", "partial")


@pytest.mark.parametrize("name", ["induction", pytest.param("or_mlp", marks=pytest.mark.slow)])
def test_both_backends_discover_the_same_circuit(name: str, tmp_path: Path) -> None:
    folder = build_known_circuit(name).save(tmp_path / "model")
    results = []
    for backend in get_args(BackendName)[1:]:
        model = load_model(folder, backend=backend)
        run = discover(
            model, load_task(folder / "task.jsonl", model, pairs=PAIRS), runs_dir=tmp_path / backend
        )
        circuit = run.circuit
        effects = {
            f"{edge.source}->{edge.target}": edge.effect.mean
            for edge in circuit.edges
            if edge.effect is not None
        }
        results.append((backend, circuit.verdict, {str(node) for node in circuit.members}, effects))
    (first, *theirs, their_effects), (second, *ours, our_effects) = results
    assert (first, second) == ("transformerlens", "nnsight")
    assert ours == theirs
    assert our_effects == pytest.approx(their_effects, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KNOWN_CIRCUITS))
def test_untrained_twins_have_no_behaviour(name: str, tmp_path: Path) -> None:
    verdicts = []
    for seed in TWINS:
        folder = build_known_circuit(name).random_twin(seed).save(tmp_path / f"twin{seed}")
        model = load_model(folder)
        run = discover(
            model, load_task(folder / "task.jsonl", model, pairs=PAIRS), runs_dir=tmp_path / "runs"
        )
        verdicts.append(run.circuit.verdict)
        assert run.circuit.size == 0 or run.circuit.verdict not in ("verified", "partial")
    assert verdicts.count("no_behaviour") >= 9, verdicts


def test_one_untrained_twin_gives_a_record_without_nodes(tmp_path: Path) -> None:
    folder = build_known_circuit("induction").random_twin(0).save(tmp_path / "twin")
    model = load_model(folder)
    run = discover(
        model, load_task(folder / "task.jsonl", model, pairs=PAIRS), runs_dir=tmp_path / "runs"
    )
    assert run.circuit.verdict == "no_behaviour"
    assert run.circuit.size == 0
    assert run.circuit.reasons
    assert (run.path / "report.html").exists()
