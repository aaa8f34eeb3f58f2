"""Sweeps by position, which describe a circuit and enter no verdict, at a bounded cost.

A grid of layers and positions grows with the model and the prompts, and each of its cells costs a
part of a pass in every pair. So a run takes at most `max_description_cost` for all these sweeps
together, in equal parts: they use MAX_DESCRIPTION_PAIRS discovery pairs, drawn by the seed, and a
grid whose part does not suffice is screened by gradients (`methods.patching.screening`): only its
most promising cells and a random sample are measured. `exhaustive` measures every cell in every
discovery pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.backends.info import ModelInfo
from discovery.evaluation import thresholds
from discovery.graph.base import Json
from discovery.methods.patching import Sweep, align_by_label, patch_sweep, plan_sweep
from discovery.methods.statistics import max_statistic_test
from discovery.sites import Direction, SiteName, Universe
from discovery.store import Run, join_names

DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")

DESCRIPTION_COST = 1500.0  # forward-pass equivalents, for any model
DESCRIPTION_COST_PER_NODE = 25.0
MAX_DESCRIPTION_COST = 6000.0
DESCRIPTION_BUDGET_SHARE = 0.1  # of a budget


def max_description_cost(info: ModelInfo, universe: Universe, budget: float | None) -> float:
    """Return what all sweeps by position may cost together; the edges may cost as much again.

    Args:
        info: the model.
        universe: what can be ablated.
        budget: the budget of the run; None means no limit.
    """
    n_nodes = len(info.nodes(universe))
    cost = min(DESCRIPTION_COST + DESCRIPTION_COST_PER_NODE * n_nodes, MAX_DESCRIPTION_COST)
    return cost if budget is None else min(cost, DESCRIPTION_BUDGET_SHARE * budget)


def component_sites(info: ModelInfo) -> list[SiteName]:
    """Return the sites at which a layer adds to the residual stream."""
    return ["attn_out"] if info.attn_only else ["attn_out", "mlp_out"]


def max_sweep_cost(
    info: ModelInfo, universe: Universe, budget: float | None, *, exhaustive: bool
) -> float | None:
    """Return what one sweep may cost before it is screened by gradients.

    Args:
        info: the model.
        universe: what can be ablated.
        budget: the budget of the run; None means no limit.
        exhaustive: whether every cell is measured, so that there is no limit.
    """
    if exhaustive:
        return None
    # The residual stream and each component in both directions, then heads and MLPs in one.
    n_components = len(component_sites(info))
    n_sweeps = 2 + 2 * n_components + n_components
    return max_description_cost(info, universe, budget) / n_sweeps


def run_sweep(
    context: RunContext,
    site: SiteName,
    direction: Direction,
    within: Bool[Tensor, "layer ..."] | None = None,
) -> Sweep:
    """Sweep a site by position, within the cost of one sweep.

    Args:
        context: the run.
        site: the site.
        direction: denoising or noising.
        within: the cells that are asked for, as in `patch_sweep`.
    """
    engine = context.description_engine
    settings = context.settings
    max_cost = max_sweep_cost(
        context.model.info, context.universe, settings.budget, exhaustive=settings.exhaustive
    )
    screen = max_cost is not None and plan_sweep(engine, site, direction, max_cost, within)[1]
    sweep = patch_sweep(
        context.model,
        engine.task,
        site,
        direction=direction,
        screen=screen,
        seed=context.seed,
        within=within,
        max_cost=max_cost,
        engine=engine,
    )
    return align_by_label(sweep, engine.task)


def save_sweep(context: RunContext, state: State, grid: Sweep) -> State:
    """Keep the arrays of a sweep, and return the state with what it measured.

    The state says how many pairs and cells there are, how many cells were measured, and how many
    of them have an effect beyond chance, corrected for looking at all of them.
    """
    arrays = {
        "values": grid.values,
        "per_pair": grid.per_pair,
        "metric_clean": grid.metric_clean,
        "metric_corrupted": grid.metric_corrupted,
    }
    if grid.screen is not None:
        arrays["gradient_estimates"] = grid.screen.estimates
    result_id = f"{grid.site}-{grid.direction}"
    context.save_arrays(
        result_id, arrays, {"positions": join_names(grid.positions), "metric": grid.metric}
    )
    facts = describe_saved_sweep(context.run, result_id, context.seed)
    assert facts is not None
    return state.with_changes(sweeps={**state.sweeps, result_id: facts})


def describe_saved_sweep(run: Run, result_id: str, seed: int) -> dict[str, Json] | None:
    """Return what a sweep measured, from its arrays; None if the arrays are no sweep's.

    Args:
        run: the run that holds the arrays.
        result_id: the id of the arrays, which ends with the direction.
        seed: the seed of the test of significance.
    """
    arrays = run.load_arrays(result_id)
    if not {"values", "per_pair", "metric_clean", "metric_corrupted"} <= set(arrays):
        return None
    is_noising = result_id.rpartition("-")[2] == "noising"
    base = arrays["metric_clean" if is_noising else "metric_corrupted"].astype(float)
    patched = arrays["per_pair"].reshape(len(base), -1).astype(float)
    p_values = max_statistic_test(patched - base[:, None], seed=seed)
    return {
        "pairs": len(base),
        "cells": int(np.isfinite(arrays["values"]).sum()),
        "cells_in_grid": math.prod(arrays["values"].shape),
        "significant": int((p_values <= thresholds.SIGNIFICANCE_LEVEL).sum()),
    }


def describe_extent(facts: Mapping[str, Json]) -> str:
    """Return in words how many pairs and cells a sweep measured."""
    return f"{facts['cells']} of {facts['cells_in_grid']} cells measured on {facts['pairs']} pairs"
