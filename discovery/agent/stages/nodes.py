"""Stage 4: the effect of every single head and MLP, in both directions and under both ablations."""

from __future__ import annotations

import torch
from torch import Tensor

from discovery.agent.context import Context
from discovery.agent.state import State
from discovery.evaluation import ranked
from discovery.graph import Effect, NodeEffect
from discovery.methods.bootstrap import Resamples, interval_of_ratio
from discovery.methods.nodes import NodeEffects, node_effects

TOP = 10


def heads(state: State, context: Context) -> State:
    """Rank the universe by effect, noising and denoising combined: one direction alone misses an OR."""
    bench = context.bench("discovery")
    noising, denoising = (node_effects(bench.engine, direction, context.universe) for direction in ("noising", "denoising"))
    clean, corrupted = bench.engine.baseline("clean"), bench.engine.baseline("corrupted")
    for found in (noising, denoising):
        context.save(
            f"nodes-{found.direction}", {"values": found.values, "per_pair": found.per_pair}, {"nodes": ",".join(map(str, found.nodes))}
        )
    f = bench.f("mean")
    by_mean = (1 - f([f.everything - {node} for node in noising.nodes], "nodes, mean ablation")).tolist()
    effects = _effects(noising, denoising, clean, corrupted, Resamples.of(bench.engine.task))
    order = ranked(noising, denoising)
    names = [str(node) for node in order]
    measured = {name: {"noising": _mean(effects[name].noising), "denoising": _mean(effects[name].denoising)} for name in names[:TOP]}
    return context.finish(
        state.with_(
            ranking=tuple(names),
            effects=effects,
            noising_mean={str(node): value for node, value in zip(noising.nodes, by_mean, strict=True)},
            evidence=dict.fromkeys(names, ("nodes-noising", "nodes-denoising")),
        ),
        "heads",
        measured,
        f"largest effects: {', '.join(node.label for node in order[:TOP])}",
        "|noising| + |denoising| of each node alone, at all positions, resample ablation",
    )


def _effects(noising: NodeEffects, denoising: NodeEffects, clean: Tensor, corrupted: Tensor, resamples: Resamples) -> dict[str, NodeEffect]:
    gap = clean - corrupted
    made = {}
    for n, node in enumerate(noising.nodes):
        made[str(node)] = NodeEffect(
            noising=_effect(clean - noising.per_pair[:, n], gap, resamples),
            denoising=_effect(denoising.per_pair[:, n] - corrupted, gap, resamples),
        )
    return made


def _effect(change: Tensor, gap: Tensor, resamples: Resamples) -> Effect:
    interval, _ = interval_of_ratio(change, gap, resamples)
    return Effect(mean=interval.mean, low=interval.low, high=interval.high)


def _mean(effect: Effect | None) -> float | None:
    return effect.mean if effect else None


def effect_of(change: Tensor, gap: Tensor, resamples: Resamples) -> Effect:
    """A normalised effect with its interval; constant data give a zero-width one."""
    return _effect(change, torch.as_tensor(gap), resamples)
