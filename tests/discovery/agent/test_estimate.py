"""What a run is said to cost, against what its parts then cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from discovery import discover, load_model, load_task, patch_sweep
from discovery.agent.estimate import Estimate, estimate
from discovery.agent.stages import STAGES
from discovery.engine import Engine
from discovery.store import open_run
from tests.handbuilt.models import build

PAIRS = 64


@pytest.fixture(scope="module", params=["induction", "or_mlp"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = build(request.param).save(tmp_path_factory.mktemp("model"))
    model = load_model(folder)
    return model, load_task(folder / "task.jsonl", model, pairs=PAIRS)


@pytest.fixture(scope="module")
def planned(opened: Any) -> Estimate:
    return estimate(*opened)


def test_it_is_the_sum_of_its_stages(planned: Estimate) -> None:
    assert planned.forward_equivalents == pytest.approx(sum(planned.stages.values()))
    assert set(planned.stages) <= set(STAGES)
    assert all(cost > 0 for cost in planned.stages.values())
    assert json.loads(json.dumps(planned.to_json())) == planned.to_json()


def test_it_costs_only_the_cached_passes(planned: Estimate, opened: Any) -> None:
    """Each side of each discovery prompt, once for each kind of site."""
    kinds = 3 if opened[0].info.attn_only else 4
    assert planned.spent <= 2 * kinds * len(opened[1].discovery)


def test_sweeps_are_planned_to_the_row(planned: Estimate, opened: Any) -> None:
    model, task = opened
    grids: dict[str, list[Any]] = {
        "localise": ["resid_pre"],
        "components": ["attn_out"] if model.info.attn_only else ["attn_out", "mlp_out"],
    }
    for stage, sites in grids.items():
        counted = 0.0
        for site in sites:
            for direction in ("denoising", "noising"):
                engine = Engine(model, task.discovery)
                patch_sweep(model, task.discovery, site, direction=direction, engine=engine)  # caches and rows
                before = engine.meter.spent
                patch_sweep(model, task.discovery, site, direction=direction, engine=engine)  # rows
                counted += engine.meter.spent - before
        assert planned.stages[stage] == pytest.approx(counted, rel=1e-6)


@pytest.mark.slow
def test_a_run_costs_about_that(planned: Estimate, opened: Any, tmp_path: Path) -> None:
    """Localise and components but for the passes that cache their sites, the whole within a factor of three."""
    run = discover(*opened, runs_dir=tmp_path)
    spent, before = {}, 0.0
    for event in open_run(tmp_path, run.run_id).events():
        if event["kind"] == "stage":
            spent[event["stage"]] = event["forward_equivalents"] - before
            before = event["forward_equivalents"]
    for stage in ("localise", "components"):
        cached = spent[stage] - planned.stages[stage]
        assert -1e-6 <= cached <= 2 * 4 * len(opened[1].discovery) + 1e-6, stage  # four kinds of site, both sides
    total = run.circuit.cost.forward_equivalents
    assert total is not None
    assert planned.forward_equivalents / 3 < total < planned.forward_equivalents * 3, (spent, dict(planned.stages))


def test_a_budget_that_will_not_do_is_named(opened: Any, planned: Estimate) -> None:
    assert "more than the budget of 10" in estimate(*opened, budget=10.0).note
    assert "budget" not in planned.note
    assert "budget" not in estimate(*opened, budget=10 * planned.forward_equivalents).note


def test_fewer_nodes_and_fewer_pairs_cost_less(opened: Any, planned: Estimate) -> None:
    model, task = opened
    heads = estimate(model, task, universe="heads").forward_equivalents
    assert heads < planned.forward_equivalents if not model.info.attn_only else heads == pytest.approx(planned.forward_equivalents)
    few = estimate(model, load_task([pair_record(pair) for pair in task.pairs[::2]], model))
    assert few.forward_equivalents < planned.forward_equivalents


def pair_record(pair: Any) -> dict[str, Any]:
    return {name: list(getattr(pair, name)) for name in ("clean", "corrupted", "answer", "wrong")} | {"template": pair.template}
