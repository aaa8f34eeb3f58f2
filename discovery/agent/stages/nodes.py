"""Stage 4: the effect of every single head and MLP, in both directions and under both ablations."""

from __future__ import annotations

import torch
from torch import Tensor

from discovery.agent.context import Context
from discovery.agent.search.fit import singles
from discovery.agent.state import State
from discovery.evaluation import ranked, singles_of
from discovery.graph import Effect, NodeEffect
from discovery.methods.patching.nodes import NodeEffects, node_effects
from discovery.methods.statistics import Resamples, interval_of_ratio

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
    by_mean = singles(bench.f("mean"), noising.nodes, "nodes, mean ablation")
    context.save_sets()
    context.save("nodes-mean", {"effects": torch.tensor(list(by_mean.values()))}, {"nodes": ",".join(map(str, by_mean))})
    effects = _effects(noising, denoising, clean, corrupted, Resamples.of(bench.engine.task))
    order = ranked(singles_of(noising, denoising), by_mean)
    names = [str(node) for node in order]
    measured = {name: {"noising": _mean(effects[name].noising), "denoising": _mean(effects[name].denoising)} for name in names[:TOP]}
    return context.finish(
        state.with_(
            ranking=tuple(names),
            effects=effects,
            evidence=dict.fromkeys(names, ("nodes-noising", "nodes-denoising", "nodes-mean")),
        ),
        "heads",
        measured,
        f"largest effects: {', '.join(node.label for node in order[:TOP])}",
        "|noising| + |denoising| of each node alone, at all positions, by resample ablation; by mean ablation where neither reaches 0.02",
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
