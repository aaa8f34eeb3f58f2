"""Stage 9: where each node acts, and how: signs and labels that follow from numbers already measured."""

from __future__ import annotations

from discovery.agent.context import Context
from discovery.agent.state import State
from discovery.evaluation import thresholds
from discovery.methods.naming import named
from discovery.methods.patching import patch_sweep

SHARE = 0.25  # of the node's strongest position


def interpret(state: State, context: Context) -> State:
    """Positions of the circuit's nodes, and labels (opposing, redundant, needed jointly)."""
    if not state.circuit:
        return context.finish(state, "interpret", {}, "nothing to interpret", "there is no circuit")
    engine = context.bench("discovery").engine
    heads = named(patch_sweep(context.model, engine.task, "head_out_by_position", direction="noising", engine=engine), engine.task)
    context.save("head_out_by_position-noising", {"values": heads.values}, {"positions": ",".join(map(str, heads.positions))})
    rows = {f"a{layer}.h{h}": heads.values[layer, h] for layer in range(heads.values.shape[0]) for h in range(heads.values.shape[1])}
    if not context.model.info.attn_only:
        mlps = named(patch_sweep(context.model, engine.task, "mlp_out", direction="noising", engine=engine), engine.task)
        rows |= {f"m{layer}": mlps.values[layer] for layer in range(mlps.values.shape[0])}
    positions = {}
    for name in state.circuit:
        row = rows[name].nan_to_num(0.0).abs()
        strongest = float(row.max())
        positions[name] = tuple(heads.positions[n] for n in (row >= max(SHARE * strongest, thresholds.DROP)).nonzero().flatten().tolist())
    labels = {name: label for name in state.circuit if (label := _label(state, name))}
    described = ", ".join(f"{name} at {', '.join(map(str, where)) or 'no single position'}" for name, where in positions.items())
    return context.finish(
        state.with_(positions=positions, labels=labels),
        "interpret",
        {"labels": labels},
        described,
        f"positions with at least {SHARE:.0%} of the strongest noising effect",
    )


def _label(state: State, name: str) -> str | None:
    """How a node acts, from its single effects."""
    effect = state.effects[name]
    noising = (effect.noising and effect.noising.mean) or 0.0
    denoising = (effect.denoising and effect.denoising.mean) or 0.0
    small = thresholds.DROP
    if min(noising, denoising) < -small and max(noising, denoising) < small:
        return "opposing"
    if abs(noising) < small and abs(denoising) < small:
        return "hidden: no effect alone in either direction"
    if abs(noising) < small <= abs(denoising):
        return "redundant: sufficient, not necessary"
    if abs(denoising) < small <= abs(noising):
        return "joint: necessary, not sufficient"
    return None
