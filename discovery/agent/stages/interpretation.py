"""Stage 10: where each node acts, and how: labels from what nodes do alone, and in pairs."""

from __future__ import annotations

from discovery.agent.context import RunContext
from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.methods.patching import align_by_label, patch_sweep
from discovery.sites import Node

MIN_POSITION_SHARE = 0.25  # of the node's strongest position


def interpret(state: State, context: RunContext) -> State:
    """Positions of the circuit's nodes, and labels (opposing, redundant, needed jointly)."""
    if not state.circuit:
        return context.finish_stage(
            state, "interpret", {}, "nothing to interpret", "there is no circuit"
        )
    engine = context.evaluator("discovery").engine
    heads = align_by_label(
        patch_sweep(
            context.model, engine.task, "head_out_by_position", direction="noising", engine=engine
        ),
        engine.task,
    )
    context.save_arrays(
        "head_out_by_position-noising",
        {"values": heads.values},
        {"positions": ",".join(map(str, heads.positions))},
    )
    rows = {
        f"a{layer}.h{h}": heads.values[layer, h]
        for layer in range(heads.values.shape[0])
        for h in range(heads.values.shape[1])
    }
    if not context.model.info.attn_only:
        mlps = align_by_label(
            patch_sweep(context.model, engine.task, "mlp_out", direction="noising", engine=engine),
            engine.task,
        )
        rows |= {f"m{layer}": mlps.values[layer] for layer in range(mlps.values.shape[0])}
    positions = {}
    for name in state.circuit:
        row = rows[name].nan_to_num(0.0).abs()
        strongest = float(row.max())
        positions[name] = tuple(
            heads.positions[n]
            for n in (row >= max(MIN_POSITION_SHARE * strongest, thresholds.MIN_DROP))
            .nonzero()
            .flatten()
            .tolist()
        )
    labels = {name: label for name in state.circuit if (label := _describe_role(state, name))}
    described = ", ".join(
        f"{name} at {', '.join(map(str, where)) or 'no single position'}"
        for name, where in positions.items()
    )
    return context.finish_stage(
        state.with_changes(positions=positions, labels=labels),
        "interpret",
        {"labels": labels},
        described,
        f"positions with at least {MIN_POSITION_SHARE:.0%} of the strongest noising effect",
    )


def _describe_role(state: State, name: str) -> str | None:
    """How a node acts, from what it does alone and from whom it does it with."""
    effect = state.effects[name]
    noising = (effect.noising and effect.noising.mean) or 0.0
    denoising = (effect.denoising and effect.denoising.mean) or 0.0
    small, large = thresholds.MIN_DROP, thresholds.MAX_GAP_OUT
    if min(noising, denoising) < -small and max(noising, denoising) < small:
        return "opposing"
    if partners := state.partners.get(name):
        return f"redundant with {', '.join(Node.parse(other).label for other in partners)}: taking out both costs more than each alone"
    if abs(noising) < small and abs(denoising) < small:
        return "hidden: no effect alone in either direction"
    if abs(noising) < small and abs(denoising) >= large:
        return "redundant: sufficient, not necessary"
    if abs(denoising) < small and abs(noising) >= large:
        return "joint: necessary, not sufficient"
    return None
