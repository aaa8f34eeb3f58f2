"""Features put into a finished run, whose verdict and verification stay as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.known_circuits.truth import load_truth
from discovery import load_model, load_task
from discovery.agent import add_features_to_run, resume
from discovery.errors import FeatureError, Interrupted, StoreError
from discovery.features import load_sae
from discovery.graph import CircuitGraph, CircuitNode, ModelFacts, TaskFacts
from discovery.sites import Node
from discovery.store import ModelSource, Run, create_run, open_run
from tests.discovery.cli.conftest import CommandResult, scout  # noqa: F401  (a fixture)
from tests.tiny_saes import directions_module, save, signed_basis

SIDES = ("clean", "corrupted", "answer", "wrong")


@pytest.fixture
def finished_run(tmp_path: Path) -> tuple[Any, Run, Path, Path]:
    """A finished run, as `discover` leaves it, and an SAE of the stream between its layers."""
    folder = build_known_circuit("induction").save(tmp_path / "model")
    model = load_model(folder, device="cpu")
    task = load_task(folder / "task.jsonl", model, pairs=12)
    facts = {"task_name": task.name, "task_metric": task.metric, "split_method": task.split_method}
    lines = [
        {
            **{name: list(getattr(pair, name)) for name in SIDES},
            "template": pair.template,
            "labels": dict(pair.labels),
            "split": split,
        }
        for pair, split in zip(task.pairs, task.splits, strict=True)
    ]
    source = ModelSource(name="model", fingerprint=model.info.fingerprint)
    with create_run(
        tmp_path / "runs", "task", source, {**facts, "load": {"model": str(folder)}}, pairs=lines
    ) as run:
        circuit = CircuitGraph(
            run_id=run.id,
            model=ModelFacts(
                name="model", fingerprint=model.info.fingerprint, n_layers=2, n_heads=4
            ),
            task=TaskFacts(name=task.name, metric=task.metric, fingerprint=task.fingerprint),
            verdict="partial",
            nodes=tuple(CircuitNode.of(name) for name in load_truth("induction").nodes),
        )
        run.save_circuit(circuit)
        run.append_event({"stage": "record", "kind": "stage", "concluded": "done"})
        run.update(status="completed")
    sae = save(
        directions_module(signed_basis(model.info.d_model), "blocks.1.hook_resid_pre"),
        tmp_path / "sae",
    )
    return model, open_run(tmp_path / "runs", run.id), sae, tmp_path / "runs"


def test_a_run_gets_features_and_keeps_its_verdict(finished_run) -> None:
    model, run, sae, runs = finished_run
    before = run.load_circuit()
    result = add_features_to_run(run.id, load_sae(sae, model), model=model, k=2, runs_dir=runs)
    opened = open_run(runs, run.id)
    circuit = opened.load_circuit()
    assert circuit == result.circuit
    assert (circuit.verdict, circuit.members, circuit.evaluation) == (
        before.verdict,
        before.members,
        before.evaluation,
    )
    assert circuit.dictionaries[0].sae == "sae"  # a name, and no path of this machine
    assert opened.load_arrays(result.result_id)["noised"].shape[1] == len(result.candidates)
    event = opened.events()[-1]
    assert (event["stage"], event["kind"]) == ("features", "addition")
    assert set(event["measured"]) == {str(one.node) for one in result.candidates}
    assert "Features of sae" in (opened.path / "report.html").read_text(encoding="utf-8")
    assert opened.status == "completed"
    assert resume(run.id, runs_dir=runs).circuit == circuit


@pytest.mark.slow
def test_the_command_does_the_same_with_the_runs_own_model(
    finished_run,
    scout: Callable[..., CommandResult],  # noqa: F811
) -> None:
    model, run, sae, runs = finished_run
    result = add_features_to_run(run.id, load_sae(sae, model), model=model, k=2, runs_dir=runs)
    shown = scout("runs", "show", run.id, "--runs-dir", str(runs)).out
    lines = shown.partition("\nFeatures of sae beside the circuit:\n")[2].splitlines()
    assert lines[0].startswith(
        "  - this may be the wrong SAE"
    )  # what is doubtful comes before any number
    assert lines[1].startswith("  100.0% of the variance explained, L0 ")
    for node in result.circuit.nodes:
        if node.feature:
            [line] = [
                line for line in shown.splitlines() if line.strip().startswith(f"{node.label} ")
            ]
            edges = result.circuit.edges
            for way, ends in (
                ("from", [edge.source for edge in edges if edge.target == node.id]),
                ("to", [edge.target for edge in edges if edge.source == node.id]),
            ):
                assert f"{way} {' '.join(Node.parse(end).label for end in ends) or '—'}" in line
    again = scout(
        "runs",
        "features",
        run.id,
        "--sae",
        str(sae),
        "--candidates",
        "2",
        "--runs-dir",
        str(runs),
        "--json",
        "-q",
    )
    assert again.status == 0, again.err
    printed = json.loads(again.out)
    assert [one["node"] for one in printed["candidates"]] == [
        str(one.node) for one in result.candidates
    ]
    assert len(printed["circuit"]["graph"]["dictionaries"]) == 1


def test_the_id_of_a_training_in_the_same_runs_directory_names_its_dictionary(finished_run) -> None:
    model, run, sae, runs = finished_run
    with create_run(runs, "sae-x", ModelSource(), {}, kind="sae") as training:
        with pytest.raises(FeatureError, match="is running, and has no SAE yet"):
            add_features_to_run(run.id, training.id, model=model, k=1, runs_dir=runs)
        sae.rename(training.path / "sae")
        training.update(status="completed")
    result = add_features_to_run(run.id, training.id, model=model, k=1, runs_dir=runs)
    assert result.circuit.dictionaries[0].sae == training.id
    by_path = add_features_to_run(run.id, training.path / "sae", model=model, k=1, runs_dir=runs)
    assert by_path.circuit.dictionaries[0].sae == training.id
    with pytest.raises(StoreError, match="trains an SAE") as fault:
        add_features_to_run(training.id, training.id, runs_dir=runs)
    assert f"train_sae(run_id='{training.id}')" in fault.value.cure


def test_stopped_it_leaves_the_run_as_it_was(finished_run) -> None:
    model, run, sae, runs = finished_run
    before = run.load_circuit()

    def stop(done: float, total: float, label: str) -> None:
        if label == "feature noising":
            raise Interrupted

    with pytest.raises(Interrupted):
        add_features_to_run(run.id, sae, model=model, runs_dir=runs, progress=stop)
    opened = open_run(runs, run.id)
    assert opened.load_circuit() == before
    assert opened.status == "completed"
    assert open_run(runs, run.id, write=True).is_writable  # the lock was given back


def test_a_run_that_is_not_complete_has_nothing_to_put_them_beside(tmp_path: Path) -> None:
    with create_run(tmp_path, "ioi", ModelSource(), {}) as run:
        run.update(status="interrupted")
    with pytest.raises(StoreError, match=r"(?s)is not complete.*discover_circuit\(run_id="):
        add_features_to_run(run.id, "saes/none", runs_dir=tmp_path)
