"""A run can be stopped anywhere, resumed and repeated; a budget ends it early with a record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from benchmarks.random_models.tiny_models import GROUPED_LLAMAS, random_pairs, save_grouped_llama
from discovery import discover, load_model, load_task
from discovery.agent import DiscoveryResult, context, resume, verify_run
from discovery.agent.budget import STABILITY_SHARE
from discovery.agent.cost_estimate import StageEstimator
from discovery.agent.saved.run_folder import read_settings
from discovery.agent.stages import STAGES, behaviour, edges, stability
from discovery.agent.stages.stability import ResampleSearch
from discovery.backends.base import Backend
from discovery.errors import (
    BudgetError,
    Interrupted,
    MeasurementError,
    MemoryLimitError,
    StoreError,
)
from discovery.graph import CircuitGraph, Cost
from discovery.store import Run, open_run, read_candidate, read_ranking, run_ids
from discovery.tasks import Task


def stop_after(stage: str) -> Any:
    def on_event(event: Mapping[str, Any]) -> None:
        if event["stage"] == stage and event["kind"] == "stage":
            raise Interrupted("stopped by the test")

    return on_event


def is_same_circuit(one: DiscoveryResult, other: DiscoveryResult) -> bool:
    """Whether both are equal but for times, ids and cost.

    The cost differs because what was cached before the stop is computed again.
    """
    no_cost = {"cost": Cost()}
    other_circuit = other.circuit.model_copy(update=no_cost)
    return one.circuit.model_copy(update=no_cost).same_content(other_circuit)


def assert_readable_before_the_end(run: Run, stage: str) -> None:
    """Check what a run that was stopped after a stage shows.

    A ranking is in the journal from the stage "heads" on. circuit.json is written after the stage
    that the stop prevented from ending, so it is that of the stage before.
    """
    done = [*STAGES].index(stage) + 1
    events = run.events()
    assert bool(read_ranking(events)) == (done >= 2)
    assert bool(read_candidate(events)) == (done >= 3)
    if done < 4:
        assert not (run.path / "circuit.json").exists()
        return
    circuit = run.load_circuit()
    assert circuit.size == (2 if done > 4 else 3)  # of the candidate, the search drops one
    if done <= 5:
        assert (circuit.verdict, circuit.reasons) == ("inconclusive", ("not judged yet",))
    else:
        assert "not judged yet" not in circuit.reasons
    by_size = [abs(node.denoising or 0) + abs(node.noising or 0) for node in read_ranking(events)]
    assert max(by_size[:2]) == max(by_size) > 0


@pytest.mark.parametrize("stage", [*STAGES][:-1])
def test_stopped_after_any_stage_a_run_resumes_to_the_is_same_circuit(
    stage: str, model_and_task: tuple[Backend, Task], finished_run: DiscoveryResult, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted) as stopped:
        discover(*model_and_task, runs_dir=tmp_path, on_event=stop_after(stage))
    assert stopped.value.run_id is not None
    saved = open_run(tmp_path, stopped.value.run_id)
    assert saved.record.status == "interrupted"
    assert_readable_before_the_end(saved, stage)
    again = resume(stopped.value.run_id, runs_dir=tmp_path)
    assert is_same_circuit(again, finished_run)
    assert open_run(tmp_path, again.run_id).record.status == "completed"


def test_stopped_in_the_middle_of_a_stage_it_measures_the_stage_again(
    model_and_task: tuple[Backend, Task], finished_run: DiscoveryResult, tmp_path: Path
) -> None:
    ticks = 0

    def progress(done: float, total: float, what: str) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 40:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        discover(*model_and_task, runs_dir=tmp_path, progress=progress)
    assert stopped.value.run_id is not None
    assert is_same_circuit(resume(stopped.value.run_id, runs_dir=tmp_path), finished_run)


def test_a_ranking_by_resample_ablation_is_shown_before_the_mean_is_measured(
    model_and_task: tuple[Backend, Task], finished_run: DiscoveryResult, tmp_path: Path
) -> None:
    def stop_at_the_preview(event: Mapping[str, Any]) -> None:
        if event["kind"] == "preview":
            raise Interrupted("stopped by the test")

    with pytest.raises(Interrupted) as stopped:
        discover(*model_and_task, runs_dir=tmp_path, on_event=stop_at_the_preview)
    run = open_run(tmp_path, str(stopped.value.run_id))
    assert run.array_ids() == ["nodes-denoising", "nodes-noising"]
    final = read_ranking(open_run(finished_run.path.parent, finished_run.run_id).events())
    ranking = read_ranking(run.events())
    assert {node.node for node in ranking} == {node.node for node in final}
    assert ranking[0].node == final[0].node
    assert is_same_circuit(resume(run.id, runs_dir=tmp_path), finished_run)


def read_costs(run: Run, stage: str) -> list[float]:
    """Return what a run had spent at each event of a stage that says so."""
    events = [event for event in run.events() if event["stage"] == stage]
    return [event["forward_equivalents"] for event in events if "forward_equivalents" in event]


def test_a_search_that_is_stopped_keeps_what_it_measured_and_what_that_cost(
    model_and_task: tuple[Backend, Task],
    finished_run: DiscoveryResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop_at_a_decision(event: Mapping[str, Any]) -> None:
        if event["stage"] == "mend":
            raise Interrupted("stopped by the test")

    monkeypatch.setattr(context, "SAVE_SECONDS", 0)
    with pytest.raises(Interrupted) as stopped:
        discover(*model_and_task, runs_dir=tmp_path / "runs", on_event=stop_at_a_decision)
    run_id = str(stopped.value.run_id)
    shutil.copytree(tmp_path / "runs", tmp_path / "without")
    for path in (tmp_path / "without" / run_id / "arrays").glob("sets-*"):
        path.unlink()
    costs = {}
    for folder in ("runs", "without"):
        resumed = resume(run_id, runs_dir=tmp_path / folder)
        assert is_same_circuit(resumed, finished_run)
        first, again, *_ = read_costs(open_run(tmp_path / folder, run_id), "mend")
        costs[folder] = again - first
    assert 0 < costs["runs"] < costs["without"]
    (candidate,) = read_costs(open_run(tmp_path / "runs", run_id), "candidate")
    assert first > candidate, "what the decision cost stays counted"


def test_a_judgement_that_is_stopped_goes_on_with_the_conditions_that_are_left(
    model_and_task: tuple[Backend, Task],
    finished_run: DiscoveryResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop_after_minimality(event: Mapping[str, Any]) -> None:
        if event["concluded"] == "(d) measured":
            raise Interrupted("stopped by the test")

    monkeypatch.setattr(context, "SAVE_SECONDS", 0)
    with pytest.raises(Interrupted) as stopped:
        discover(*model_and_task, runs_dir=tmp_path, on_event=stop_after_minimality)
    run_id = str(stopped.value.run_id)
    assert is_same_circuit(resume(run_id, runs_dir=tmp_path), finished_run)
    run = open_run(tmp_path, run_id)
    whole = open_run(finished_run.path.parent, finished_run.run_id)
    *_, stopped_at = read_costs(open_run(tmp_path, run_id), "validate")[:3]
    (mended, judged) = (read_costs(whole, stage)[-1] for stage in ("mend", "validate"))
    spent_again = read_costs(run, "validate")[-1] - stopped_at
    assert spent_again < judged - mended, "(a) to (d) are not measured again"


def test_the_same_seed_gives_the_same_record(
    model_and_task: tuple[Backend, Task], finished_run: DiscoveryResult, tmp_path: Path
) -> None:
    assert discover(*model_and_task, runs_dir=tmp_path).circuit.same_content(finished_run.circuit)


def test_a_finished_run_is_returned_as_it_is(finished_run: DiscoveryResult) -> None:
    assert (
        resume(finished_run.run_id, runs_dir=finished_run.path.parent).circuit
        == finished_run.circuit
    )


def test_a_budget_that_ends_early_is_inconclusive_and_says_where(
    model_and_task: tuple[Backend, Task], tmp_path: Path
) -> None:
    run = discover(*model_and_task, runs_dir=tmp_path, budget=1500.0)
    assert run.circuit.verdict == "inconclusive"
    assert any("budget ended" in reason for reason in run.circuit.reasons)
    assert run.circuit.cost.forward_equivalents is not None
    assert run.circuit.cost.forward_equivalents <= 1500.0


@pytest.mark.slow
def test_a_run_whose_budget_ended_goes_on_with_a_larger_one_to_the_same_circuit(
    model_and_task: tuple[Backend, Task], finished_run: DiscoveryResult, tmp_path: Path
) -> None:
    run = discover(*model_and_task, runs_dir=tmp_path, budget=4000.0)
    assert run.circuit.verdict == "inconclusive"
    assert "the budget ended before validate" in run.circuit.reasons
    assert run.circuit.size == 2
    for refused in (4000.0, 100.0):
        with pytest.raises(MeasurementError, match="no larger"):
            resume(run.run_id, budget=refused, runs_dir=tmp_path)
    assert resume(run.run_id, runs_dir=tmp_path).circuit == run.circuit
    extended = resume(run.run_id, budget=1e6, runs_dir=tmp_path)
    assert is_same_circuit(extended, finished_run)
    assert read_settings(open_run(tmp_path, run.run_id)).budget == 1e6
    assert resume(run.run_id, budget=2e6, runs_dir=tmp_path).circuit == extended.circuit


@pytest.mark.slow
def test_stages_that_a_budget_does_not_reach_are_named_before_and_after(
    model_and_task: tuple[Backend, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What describes the circuit is left out as a whole, and the run is judged all the same."""
    dear = dict.fromkeys(("localise", "components"), 1e9)
    estimate = StageEstimator.estimate

    def with_dear_sweeps(self: StageEstimator, **sizes: int | None) -> dict[str, float]:
        return {**estimate(self, **sizes), **dear}

    monkeypatch.setattr(StageEstimator, "estimate", with_dear_sweeps)
    run = discover(*model_and_task, runs_dir=tmp_path, budget=60_000.0)
    plans = [e for e in open_run(tmp_path, run.run_id).events() if e["kind"] == "plan"]
    assert "left out: localise, components" in plans[0]["concluded"]
    assert plans[0]["measured"]["seconds_left"] > 0
    assert run.circuit.verdict == "verified"
    about_budget = tuple(r for r in run.circuit.reasons if not r.startswith("f under mean"))
    assert about_budget == tuple(
        f"the budget ended before {stage}, which enters no verdict" for stage in dear
    )
    assert run.circuit.edges
    assert "max_statistic" in run.circuit.evaluation.tests  # of the positions of its nodes
    assert verify_run(run.run_id, runs_dir=tmp_path).holds


def test_a_run_without_a_budget_is_not_given_one(
    finished_run: DiscoveryResult,
) -> None:
    with pytest.raises(MeasurementError, match="has no budget"):
        resume(finished_run.run_id, budget=1e9, runs_dir=finished_run.path.parent)


def test_the_outlook_of_a_run_ends_where_the_run_does(finished_run: DiscoveryResult) -> None:
    """Each plan in the journal says what is left; what is left after the last is near the truth."""
    events = open_run(finished_run.path.parent, finished_run.run_id).events()
    plans = [event for event in events if event["kind"] == "plan"]
    assert len(plans) == 3
    total = finished_run.circuit.cost.forward_equivalents
    assert total is not None
    last = plans[-1]
    predicted = last["forward_equivalents"] + last["measured"]["forward_equivalents_left"]
    assert total / 2 < predicted < total * 2


def test_a_run_writes_everything_it_says(finished_run: DiscoveryResult) -> None:
    names = {path.name for path in finished_run.path.iterdir()}
    assert {
        "run.json",
        "task.jsonl",
        "events.jsonl",
        "circuit.json",
        "arrays",
        "figures",
        "report.html",
    } <= names
    events = open_run(finished_run.path.parent, finished_run.run_id).events()
    assert [event["stage"] for event in events if event["kind"] == "stage"] == [*STAGES]
    assert all(event["concluded"] and event["why"] for event in events)
    arrays = set(open_run(finished_run.path.parent, finished_run.run_id).array_ids())
    cited = {
        result
        for part in (*finished_run.circuit.nodes, *finished_run.circuit.edges)
        for result in part.evidence
    }
    assert cited <= arrays


@pytest.mark.parametrize(("name", "kv_heads"), [("llama_9_3", 3), ("llama_4_4", None)])
def test_a_record_says_that_heads_share_keys_and_values(
    name: str,
    kv_heads: int | None,
    tmp_path: Path,
) -> None:
    """The exports that can be read back say so too."""
    model = load_model(save_grouped_llama(tmp_path / name, name))
    pairs = [
        {
            "clean": list(pair.clean),
            "corrupted": list(pair.corrupted),
            "answer": list(pair.answer),
            "wrong": list(pair.wrong),
        }
        for pair in random_pairs((5,) * 8, seed=2)
    ]
    run = discover(model, load_task(pairs, model), runs_dir=tmp_path / "runs")
    circuit = run.circuit
    assert (circuit.model.n_heads, circuit.model.n_kv_heads) == (GROUPED_LLAMAS[name][0], kv_heads)
    written = json.loads(circuit.to_json())["graph"]["model"]
    assert ("n_kv_heads" in written) is (kv_heads is not None)
    assert CircuitGraph.from_graphml(circuit.to_graphml()).model == circuit.model


def test_a_run_refuses_other_weights(
    tmp_path: Path,
) -> None:
    folder = build_known_circuit("or_mlp").save(tmp_path / "other")
    other = load_model(folder)
    with pytest.raises(Interrupted) as stopped:
        discover(
            other,
            load_task(folder / "task.jsonl", other, pairs=120),
            runs_dir=tmp_path / "runs",
            on_event=stop_after("check"),
        )
    build_known_circuit("or_mlp").random_twin(1).save(folder)
    with pytest.raises(StoreError, match="other weights"):
        resume(str(stopped.value.run_id), runs_dir=tmp_path / "runs")


@pytest.mark.parametrize("bad", [{"budget": 0.0}, {"metric": "accuracy"}, {"universe": "mlps"}])
def test_bad_arguments_are_refused_before_anything_is_written(
    bad: dict[str, Any], model_and_task: tuple[Backend, Task], tmp_path: Path
) -> None:
    with pytest.raises(MeasurementError):
        discover(*model_and_task, runs_dir=tmp_path, **bad)
    assert not list(tmp_path.iterdir())


def test_a_run_that_ran_out_of_memory_outside_the_batches_can_be_resumed(
    model_and_task: tuple[Backend, Task],
    finished_run: DiscoveryResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes."
        )

    with monkeypatch.context() as patched:
        patched.setattr(edges, "measure_edges", full)
        with pytest.raises(MemoryLimitError, match="Memory ran out"):
            discover(*model_and_task, runs_dir=tmp_path)
    (run_id,) = run_ids(tmp_path)
    record = open_run(tmp_path, run_id).record
    assert (record.status, record.problem) == ("interrupted", "out of memory")
    assert is_same_circuit(resume(run_id, runs_dir=tmp_path), finished_run)


def test_a_bug_is_recorded_as_failed_and_raised(
    model_and_task: tuple[Backend, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise RuntimeError("not about memory")

    monkeypatch.setattr(behaviour, "check_task", broken)
    with pytest.raises(RuntimeError, match="not about memory"):
        discover(*model_and_task, runs_dir=tmp_path)
    assert open_run(tmp_path, run_ids(tmp_path)[0]).record.status == "failed"


def test_killed_as_soon_as_its_folder_is_there_a_run_can_be_resumed(
    model_and_task: tuple[Backend, Task], finished_run: DiscoveryResult, tmp_path: Path
) -> None:
    """A kill leaves the folder as it is at that moment, without the lock.

    So does an exception that nobody catches.
    """

    def killed(run_id: str) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        discover(*model_and_task, runs_dir=tmp_path, on_begin=killed)
    (run_id,) = run_ids(tmp_path)
    assert open_run(tmp_path, run_id).status == "interrupted"
    assert is_same_circuit(resume(run_id, runs_dir=tmp_path), finished_run)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda text: text[:-1], "cut off"),
        (lambda text: text[: text[:-1].rindex("\n") + 1], "other pairs"),
    ],
)
def test_a_run_goes_on_with_its_own_pairs_only(
    damage: Any, cause: str, model_and_task: tuple[Backend, Task], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted) as stopped:
        discover(*model_and_task, runs_dir=tmp_path, on_event=stop_after("check"))
    pairs = tmp_path / str(stopped.value.run_id) / "task.jsonl"
    pairs.write_text(damage(pairs.read_text()))
    with pytest.raises(StoreError, match=cause):
        resume(str(stopped.value.run_id), runs_dir=tmp_path)


def test_repeating_the_search_takes_no_more_than_its_share_of_a_budget(
    model_and_task: tuple[Backend, Task], tmp_path: Path
) -> None:
    """It comes after conditions (a) to (e), so that a budget that ends in it leaves a verdict."""
    budget = 20_000.0
    run = discover(*model_and_task, runs_dir=tmp_path, budget=budget)
    spent = {
        event["stage"]: event["forward_equivalents"]
        for event in open_run(tmp_path, run.run_id).events()
        if event["kind"] == "stage"
    }
    assert list(spent).index("validate") + 1 == list(spent).index("stability")
    assert spent["stability"] - spent["validate"] <= STABILITY_SHARE * budget + 1e-6


def test_a_budget_that_ends_while_the_search_is_repeated_leaves_the_verdict_without_it(
    model_and_task: tuple[Backend, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(*args: Any) -> Any:
        raise BudgetError("unchanged prompts need more than is left.", "Raise the budget.")

    monkeypatch.setattr(stability, "draw_bootstrap_weights", spent)
    circuit = discover(*model_and_task, runs_dir=tmp_path).circuit
    assert circuit.verdict == "partial"
    relative, *others = [r for r in circuit.reasons if r.startswith("f under mean ablation")]
    assert not others
    assert set(circuit.reasons) == {
        "not run: (f) stable",
        relative,
        "the budget ended before stability",
    }


def test_searches_that_were_cut_are_recorded_without_a_mean(
    model_and_task: tuple[Backend, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record keeps which nodes the other searches chose, and (f) counts as not run."""
    search = stability._search_resample
    numbers: dict[bytes, int] = {}

    def cut_every_second(*arguments: Any) -> ResampleSearch:
        number = numbers.setdefault(arguments[-1].numpy().tobytes(), len(numbers))
        if number % 2:
            return ResampleSearch(frozenset(), cut_off="the share")
        return search(*arguments)

    monkeypatch.setattr(stability, "_search_resample", cut_every_second)
    run = discover(*model_and_task, runs_dir=tmp_path)
    recorded: Any = run.circuit.evaluation.tests["stability"]
    assert (recorded["mean_jaccard"], recorded["cut_searches"]) == (None, 10)
    assert recorded["inclusion"] == {
        node.id: node.inclusion
        for node in run.circuit.nodes
        if node.kind in ("attention_head", "mlp")
    }
    assert any("they could decide it" in reason for reason in run.circuit.reasons)
    again = verify_run(run.run_id, runs_dir=tmp_path)
    assert again.holds, again.differences


def test_a_run_that_could_measure_nothing_leaves_nothing(
    model_and_task: tuple[Backend, Task], tmp_path: Path
) -> None:
    with pytest.raises(MemoryLimitError):
        discover(*model_and_task, runs_dir=tmp_path, memory=1)
    assert run_ids(tmp_path) == []
    assert not list(tmp_path.iterdir())
