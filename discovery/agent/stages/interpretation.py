"""Stage 10 ("interpret"): at which positions each node acts, and a label for how it acts.

The labels rest on what nodes do alone and in pairs: "opposing" lowers the metric, "redundant" has
partners that do its work, "hidden" has no effect alone, "joint" is necessary but not sufficient.
"""

from __future__ import annotations

from torch import Tensor

from discovery.agent.context import RunContext, join_names
from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.graph.base import mean_of
from discovery.methods.patching import Sweep, align_by_label, patch_sweep
from discovery.sites import Node, SiteName

MIN_POSITION_SHARE = 0.25  # of the effect at the node's strongest position


def interpret(state: State, context: RunContext) -> State:
    """Find the positions of the circuit's nodes, and label the nodes."""
    if not state.circuit:
        return context.finish_stage(
            state, "interpret", {}, "nothing to interpret", "there is no circuit"
        )
    heads = _sweep_positions(context, "head_out_by_position")
    context.save_arrays(
        "head_out_by_position-noising",
        {"values": heads.values},
        {"positions": join_names(heads.positions)},
    )
    effects = {
        f"a{layer}.h{head}": heads.values[layer, head]
        for layer in range(heads.values.shape[0])
        for head in range(heads.values.shape[1])
    }
    if not context.model.info.attn_only:
        mlps = _sweep_positions(context, "mlp_out")
        effects |= {f"m{layer}": mlps.values[layer] for layer in range(mlps.values.shape[0])}
    positions = {
        name: tuple(heads.positions[n] for n in _strong_positions(effects[name]))
        for name in state.circuit
    }
    labels = {name: label for name in state.circuit if (label := _describe_role(state, name))}
    descriptions = [
        f"{name} at {', '.join(map(str, strong)) or 'no single position'}"
        for name, strong in positions.items()
    ]
    return context.finish_stage(
        state.with_changes(positions=positions, labels=labels),
        "interpret",
        {"labels": labels},
        ", ".join(descriptions),
        f"positions with at least {MIN_POSITION_SHARE:.0%} of the strongest noising effect",
    )


def _sweep_positions(context: RunContext, site: SiteName) -> Sweep:
    engine = context.evaluator("discovery").engine
    sweep = patch_sweep(context.model, engine.task, site, direction="noising", engine=engine)
    return align_by_label(sweep, engine.task)


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
