"""Stage 10 ("interpret"): at which positions each node acts, and a label for how it acts.

The labels rest on what nodes do alone and in pairs: "opposing" lowers the metric, "redundant" has
partners that do its work, "hidden" has no effect alone, "joint" is necessary but not sufficient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from discovery.agent.context import RunContext
from discovery.agent.stages.position_sweeps import run_sweep, save_sweep
from discovery.agent.state import State
from discovery.backends.info import ModelInfo
from discovery.evaluation import thresholds
from discovery.graph.base import mean_of
from discovery.methods.patching import Sweep
from discovery.sites import Node, SiteName

MIN_POSITION_SHARE = 0.25  # of the effect at the node's strongest position


def interpret(state: State, context: RunContext) -> State:
    """Find the positions of the circuit's nodes, and label the nodes."""
    if not state.circuit:
        return context.finish_stage(
            state, "interpret", {}, "nothing to interpret", "there is no circuit"
        )
    positions: dict[str, tuple[int | str, ...]] = {}
    cautions: dict[str, object] = {}
    for site, mask in _circuit_cells(state, context.model.info).items():
        sweep = run_sweep(context, site, "noising", mask)
        if site == "head_out_by_position":  # "components" keeps the MLPs' own sweep
            state = save_sweep(context, state, sweep)
        if sweep.screen is not None:
            cautions[f"{site}, screen"] = sweep.screen.caution
        positions |= _positions_by_node(state, sweep)
    labels = {name: label for name in state.circuit if (label := _describe_role(state, name))}
    descriptions = [
        f"{name} at {', '.join(map(str, positions[name])) or 'no single position'}"
        for name in state.circuit
        if name in positions
    ]
    return context.finish_stage(
        state.with_changes(positions=positions, labels=labels),
        "interpret",
        {"labels": labels, **cautions},
        ", ".join(descriptions) or "no position was measured",
        f"positions with at least {MIN_POSITION_SHARE:.0%} of the strongest noising effect, on "
        f"{len(context.description_engine)} pairs",
    )


def _circuit_cells(state: State, info: ModelInfo) -> dict[SiteName, Bool[Tensor, "layer ..."]]:
    """Return for each site the cells of the circuit's nodes, as masks that broadcast to a grid."""
    heads = torch.zeros(info.n_layers, info.n_heads, 1, dtype=torch.bool)
    mlps = torch.zeros(info.n_layers, 1, dtype=torch.bool)
    for node in state.circuit_nodes:
        if node.kind == "mlp":
            mlps[node.layer] = True
        else:
            heads[node.layer, node.head] = True
    masks: dict[SiteName, Tensor] = {"head_out_by_position": heads, "mlp_out": mlps}
    return {site: mask for site, mask in masks.items() if bool(mask.any())}


def _positions_by_node(state: State, sweep: Sweep) -> dict[str, tuple[int | str, ...]]:
    """Return the positions of the circuit's nodes that have a measured cell in the sweep."""
    positions: dict[str, tuple[int | str, ...]] = {}
    for name in state.circuit:
        node = Node.parse(name)
        if (node.kind == "mlp") != (sweep.site == "mlp_out"):
            continue
        effects = sweep.values[node.layer]
        effects = effects if node.kind == "mlp" else effects[node.head]
        if bool(effects.isfinite().any()):
            strong = _strong_positions(effects)
            positions[name] = tuple(sweep.positions[column] for column in strong)
    return positions


def _strong_positions(effects: Tensor) -> list[int]:
    """Return the columns whose effect is at least a quarter of the strongest, and at least 0.02."""
    sizes = effects.nan_to_num(0.0).abs()
    least = max(MIN_POSITION_SHARE * float(sizes.max()), thresholds.MIN_DROP)
    columns: list[int] = (sizes >= least).nonzero().flatten().tolist()
    return columns


def _describe_role(state: State, name: str) -> str | None:
    """Return a label for how a node acts; None if nothing about it is unusual."""
    effect = state.effects[name]
    noising = mean_of(effect.noising) or 0.0
    denoising = mean_of(effect.denoising) or 0.0
    small = thresholds.MIN_DROP
    large = thresholds.MAX_GAP_OUT
    if min(noising, denoising) < -small and max(noising, denoising) < small:
        return "opposing"
    if partners := state.partners.get(name):
        labels = ", ".join(Node.parse(partner).label for partner in partners)
        return f"redundant with {labels}: taking out both costs more than each alone"
    if abs(noising) < small and abs(denoising) < small:
        return "hidden: no effect alone in either direction"
    if abs(noising) < small and abs(denoising) >= large:
        return "redundant: sufficient, not necessary"
    if abs(denoising) < small and abs(noising) >= large:
        return "joint: necessary, not sufficient"
    return None
