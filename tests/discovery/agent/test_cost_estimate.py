"""The estimated cost of a run, against what its parts then cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.known_circuits.hand_built import build_known_circuit
from discovery import discover, load_model, load_task, patch_sweep
from discovery.agent.context import MAX_DESCRIPTION_PAIRS
from discovery.agent.cost_estimate import TIMED_SETS, CostEstimate, estimate_cost
from discovery.agent.stages import STAGES
from discovery.agent.stages.position_sweeps import DIRECTIONS
from discovery.engine import Engine, Meter
from discovery.engine.memory import sweep_bytes
from discovery.evaluation import SplitEvaluator
from discovery.store import open_run

PAIRS = 64


@pytest.fixture(scope="module", params=["induction", "or_mlp"])
def model_and_task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = build_known_circuit(request.param).save(tmp_path_factory.mktemp("model"))
    model = load_model(folder)
    return model, load_task(folder / "task.jsonl", model, pairs=PAIRS)


@pytest.fixture(scope="module")
def run_estimate(model_and_task: Any) -> CostEstimate:
    return estimate_cost(*model_and_task)


def test_it_is_the_sum_of_its_stages(run_estimate: CostEstimate) -> None:
    assert run_estimate.forward_equivalents == pytest.approx(sum(run_estimate.stages.values()))
    assert set(run_estimate.stages) <= set(STAGES)
    assert all(cost > 0 for cost in run_estimate.stages.values())
    assert json.loads(json.dumps(run_estimate.to_dict())) == run_estimate.to_dict()


def test_it_costs_only_the_cached_passes(run_estimate: CostEstimate, model_and_task: Any) -> None:
    """Each side of 16 prompts, for the logits and for all sites (1.5: padding), and timed sets."""
    timed = TIMED_SETS * MAX_DESCRIPTION_PAIRS
    assert run_estimate.spent <= 1.5 * 2 * 2 * MAX_DESCRIPTION_PAIRS + timed
    assert run_estimate.rate > 0
    assert run_estimate.seconds == pytest.approx(
        run_estimate.forward_equivalents / run_estimate.rate
    )


def test_sweeps_are_planned_to_the_row(run_estimate: CostEstimate, model_and_task: Any) -> None:
    """The pass that caches their sites counts with the first of them."""
    model, task = model_and_task
    mlps: list[Any] = [] if model.info.attn_only else ["mlp_out"]
    evaluator = SplitEvaluator.of(
        model, task.discovery, "all", 0, metric=None, memory=None, meter=Meter()
    )
    engine = evaluator.first(MAX_DESCRIPTION_PAIRS).engine
    assert engine.baseline("clean").shape == engine.baseline("corrupted").shape
    for stage, sites, directions in (
        ("localise", ["resid_pre"], DIRECTIONS),
        ("components", ["attn_out", *mlps], DIRECTIONS),
    ):
        before = engine.meter.spent
        for site in sites:
            for direction in directions:
                patch_sweep(model, engine.task, site, direction=direction, engine=engine)
        assert run_estimate.stages[stage] == pytest.approx(engine.meter.spent - before, rel=1e-6), (
            stage
        )


@pytest.mark.slow
def test_more_pairs_than_fit_in_memory_are_planned_too_and_end_with_the_same_verdict(
    model_and_task: Any, tmp_path: Path
) -> None:
    """Each measurement goes through all blocks again, and that cost is counted and planned."""
    model, task = model_and_task
    width = max(len(pair.clean) for pair in task.pairs)
    memory = sweep_bytes(model.info, width, pairs=2 * len(task.discovery) // 3)
    assert len(list(Engine(model, task.discovery, memory=memory).blocks())) == 2
    run_estimate = estimate_cost(model, task, memory=memory)
    run = discover(model, task, memory=memory, runs_dir=tmp_path)
    spent = read_stage_costs(tmp_path, run.run_id)
    # The plan that a run makes before the ranking caches its pairs, and times a few sets.
    planning = {"heads": 1.5 * 2 * 2 * MAX_DESCRIPTION_PAIRS}
    for stage in ("localise", "components", "heads"):
        expected = run_estimate.stages[stage] + planning.get(stage, 0.0)
        assert spent[stage] == pytest.approx(expected, rel=0.15 if stage in planning else 0.1), (
            stage,
            spent,
            dict(run_estimate.stages),
        )
    whole = discover(model, task, runs_dir=tmp_path)
    assert (run.circuit.verdict, run.circuit.members) == (
        whole.circuit.verdict,
        whole.circuit.members,
    )
    assert run.circuit.evaluation.conditions == whole.circuit.evaluation.conditions


def read_stage_costs(runs_dir: Path, run_id: str) -> dict[str, float]:
    """Return what each stage of a run cost."""
    spent = {}
    before = 0.0
    for event in open_run(runs_dir, run_id).events():
        if event["kind"] == "stage":
            spent[event["stage"]] = event["forward_equivalents"] - before
            before = event["forward_equivalents"]
    return spent


@pytest.mark.slow
def test_a_run_costs_about_that(
    run_estimate: CostEstimate, model_and_task: Any, tmp_path: Path
) -> None:
    """The check to the row, the sweeps up to their cached passes, the whole within a factor."""
    run = discover(*model_and_task, runs_dir=tmp_path)
    spent = read_stage_costs(tmp_path, run.run_id)
    assert spent["check"] == pytest.approx(run_estimate.stages["check"], rel=1e-6)
    # The plan that a run makes after the check has cached their 16 pairs.
    cached = 1.5 * 2 * 2 * MAX_DESCRIPTION_PAIRS
    for stage in ("localise", "components"):
        assert run_estimate.stages[stage] - cached <= spent[stage], stage
        assert spent[stage] <= run_estimate.stages[stage] * (1 + 1e-6), stage
    total = run.circuit.cost.forward_equivalents
    assert total is not None
    assert run_estimate.forward_equivalents / 3 < total < run_estimate.forward_equivalents * 3, (
        spent,
        dict(run_estimate.stages),
    )


def test_a_budget_that_is_too_small_is_named(
    model_and_task: Any, run_estimate: CostEstimate
) -> None:
    short = estimate_cost(*model_and_task, budget=10.0)
    assert "the run ends at the budget of 10" in short.note
    assert short.forward_equivalents == 10.0
    assert "budget" not in run_estimate.note
    assert (
        "budget"
        not in estimate_cost(*model_and_task, budget=10 * run_estimate.forward_equivalents).note
    )


def test_fewer_nodes_and_fewer_pairs_cost_less(
    model_and_task: Any, run_estimate: CostEstimate
) -> None:
    model, task = model_and_task
    heads = estimate_cost(model, task, universe="heads").forward_equivalents
    assert (
        heads < run_estimate.forward_equivalents
        if not model.info.attn_only
        else heads == pytest.approx(run_estimate.forward_equivalents)
    )
    few = estimate_cost(model, load_task([pair_record(pair) for pair in task.pairs[::2]], model))
    assert few.forward_equivalents < run_estimate.forward_equivalents


def pair_record(pair: Any) -> dict[str, Any]:
    return {
        name: list(getattr(pair, name)) for name in ("clean", "corrupted", "answer", "wrong")
    } | {"template": pair.template}
