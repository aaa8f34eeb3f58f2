"""Stage 10 ("interpret"): at which positions each node acts, and what it does (`stages.roles`).

Nothing here enters the verdict. A node has a role only if a measurement gives it one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from discovery.agent.context import RunContext
from discovery.agent.stages.position_sweeps import run_sweep, save_sweep
from discovery.agent.stages.roles import CircuitRoles, describe_roles
from discovery.agent.state import State
from discovery.backends.info import ModelInfo
from discovery.evaluation import thresholds
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
    roles = describe_roles(state, context)
    if roles.warnings:
        cautions["roles"] = list(roles.warnings)
    return context.finish_stage(
        state.with_changes(
            positions=positions, labels=roles.labels, role_measurements=roles.measurements
        ),
        "interpret",
        {"labels": roles.labels, "roles_cost": round(roles.cost, 1), **cautions},
        "; ".join(_describe_node(name, positions, roles) for name in state.circuit),
        f"positions with at least {MIN_POSITION_SHARE:.0%} of the strongest noising effect, on "
        f"{len(context.description_engine)} pairs; roles that a measurement gives beyond chance, "
        f"for {roles.cost:,.0f} forward-pass equivalents",
    )


def _describe_node(
    name: str, positions: Mapping[str, tuple[int | str, ...]], roles: CircuitRoles
) -> str:
    """Return in words where a node acts, and its role."""
    at = "not measured by position"
    if name in positions:
        at = f"at {', '.join(map(str, positions[name])) or 'no single position'}"
    role = roles.labels.get(name, "role not known").replace("; ", " and ")
    return f"{name} {at}, {role}"


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
