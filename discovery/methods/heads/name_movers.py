"""Name movers, negative name movers and S-inhibition heads, as Wang et al. (2022) define them.

("Interpretability in the wild", section 3.) The task has two names: IO, the answer, and S, which
occurs twice. A head must pass every test of its kind:

- *name_mover*: it looks from the answer position at IO, its OV circuit copies names (as
  `copying`, among the names of the task), and what it writes raises the logit difference.
- *negative_name_mover*: it looks at IO, its OV circuit keeps names away from themselves, and what
  it writes lowers the logit difference.
- *s_inhibition*: it looks from the answer position at S2, and changing what the queries of the name
  movers read of it (path patching from the corrupted run) lowers the metric. Without name movers
  there is nothing that it could act on, and it is not tested.

The score is the effect: the direct contribution as a share of the logit difference, or the effect
of the paths as a share of m(clean) − m(corrupted). Attention is tested against looking everywhere
equally and must be at least 0.1 above it; copying must be at least 0.3 above chance. The p of a
head is the largest of its tests, so all must pass, corrected by Holm for all heads and the three
kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.weights import ModelWeights
from discovery.engine import Engine
from discovery.errors import MeasurementError
from discovery.methods.ablation import SetMetric
from discovery.methods.heads.attention_patterns import read_rows
from discovery.methods.heads.copying import TAIL, copying_scores, read_token_streams, self_logits
from discovery.methods.heads.kinds import (
    ALPHA,
    MINIMUM_EFFECT,
    AblationCheck,
    HeadKind,
    HeadScore,
    KindName,
    p_above,
    t_interval,
)
from discovery.methods.heads.repeated_tokens import draw_head_sets
from discovery.methods.patching.edges import measure_edges
from discovery.methods.readout import direct_logit_attribution
from discovery.methods.statistics import holm
from discovery.sites import Node
from discovery.tasks.task import Task

LABELS = ("IO", "S2")
MINIMUM_ATTENTION = 0.1  # above uniform attention
MINIMUM_COPYING = 0.3  # above chance
MIN_NAMES = 8
MIN_GAP = 1e-6


@dataclass(frozen=True)
class _Effects:
    """What each head does to the metric, as a share, and the p of passing all tests of the kind.

    Attributes:
        values: the effect of each pair and head.
        p: of each head, before correction; 1 if a test that has no p fails.
    """

    values: Float[Tensor, "pair head"]
    p: Float[np.ndarray, "head"]


def has_name_labels(task: Task) -> bool:
    """Return whether every pair of a task has the labels that name movers are found by."""
    return all(label in pair.labels for pair in task.pairs for label in LABELS)


def require_name_labels(task: Task) -> None:
    """Check that every pair of a task has the labels IO and S2.

    Raises:
        MeasurementError: if one has not.
    """
    if not has_name_labels(task):
        raise MeasurementError(
            f"The task {task.name} has pairs without the labels {' and '.join(LABELS)}.",
            "Name movers are found on ioi, or on pairs that label IO (the answer) and S2 (where "
            "the other name comes again).",
        )


def measure_name_movers(
    engine: Engine, weights: ModelWeights, controls: int, top: int, seed: int
) -> tuple[HeadKind, ...]:
    """Name the heads of the three kinds on a task with the labels IO and S2.

    Args:
        engine: the model and the pairs.
        weights: the model's weights.
        controls: the number of random sets of heads for each causal check; 0 for no checks.
        top: how many heads to list for each kind beside the named ones.
        seed: seed of the random sets.

    Raises:
        MeasurementError: if the task lacks the labels, or if the model does not do it.
    """
    require_name_labels(engine.task)
    heads = engine.backend.info.nodes("heads")
    attention, uniform = _look_at_labels(engine, heads)
    looks = {
        label: np.where(
            (share - uniform).mean(0).numpy() >= MINIMUM_ATTENTION,
            p_above((share - uniform).numpy()),
            1.0,
        )
        for label, share in attention.items()
    }
    copied, kept_away = _copies_names(engine, weights)
    direct = _direct_effects(engine, heads)
    effects: dict[KindName, _Effects] = {}
    movers_of: dict[KindName, tuple[float, Bool[np.ndarray, "head"]]] = {
        "name_mover": (1.0, copied),
        "negative_name_mover": (-1.0, kept_away),
    }
    for kind, (sign, copies) in movers_of.items():
        tests = np.stack(
            [looks["IO"], np.where(copies, 0.0, 1.0), p_above((sign * direct).numpy())]
        )
        effects[kind] = _Effects(sign * direct, tests.max(0))
    named = _score(heads, effects)
    movers = [score.node for score in named["name_mover"] if score.is_named]
    if movers:
        lost = _paths_into_queries(
            engine, heads, [Node.parse(node) for node in movers], looks["S2"]
        )
        tests = np.stack([looks["S2"], p_above(lost.numpy())])
        effects["s_inhibition"] = _Effects(lost, tests.max(0))
        named = _score(heads, effects)
    return tuple(
        _describe(engine, kind, scores, controls, top, seed) for kind, scores in named.items()
    )


def _look_at_labels(
    engine: Engine, heads: Sequence[Node]
) -> tuple[dict[str, Float[Tensor, "pair head"]], Float[Tensor, "pair one"]]:
    """Return the attention from the answer position to each label, and uniform attention."""
    pairs = engine.task.pairs
    queries = [len(pair.clean) - 1 for pair in pairs]
    rows, _ = read_rows(engine, heads, queries, keep_whole=False)
    shares = {}
    for label in LABELS:
        places = torch.tensor([pair.labels[label] for pair in pairs])
        shares[label] = rows[torch.arange(len(pairs)), :, places].double()
    return shares, 1 / (1 + torch.tensor(queries, dtype=torch.float64)[:, None])


def _copies_names(
    engine: Engine, weights: ModelWeights
) -> tuple[Bool[np.ndarray, "head"], Bool[np.ndarray, "head"]]:
    """Return for each head whether it copies the names of the task, and whether it keeps them away.

    Raises:
        MeasurementError: if the task has too few names.
    """
    names = sorted({t for pair in engine.task.pairs for t in (*pair.answer, *pair.wrong)})
    if len(names) < MIN_NAMES:
        raise MeasurementError(
            f"The pairs have {len(names)} different answers.",
            f"Copying of names needs at least {MIN_NAMES}; use more pairs.",
        )
    chance = max(1, round(TAIL * len(names))) / len(names)
    ids = torch.tensor(names, device=engine.backend.device)
    streams = read_token_streams(engine.backend, names, engine.meter)
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for layer in range(engine.backend.info.n_layers):
        logits = self_logits(weights, layer, streams.read_by(layer), ids)
        for side, score in zip(sides, copying_scores(logits), strict=True):
            side.append(score.mean(1))
    shares = [torch.cat(side).cpu().numpy() - chance >= MINIMUM_COPYING for side in sides]
    return shares[0], shares[1]


def _direct_effects(engine: Engine, heads: Sequence[Node]) -> Float[Tensor, "pair head"]:
    """Return what each head adds to the logit difference itself, as a share of its mean.

    Raises:
        MeasurementError: if the logit difference is 0.
    """
    found = direct_logit_attribution(
        engine.backend, engine.task, memory=engine.memory, progress=engine.meter.progress
    )
    engine.meter.add(found.cost.forward_equivalents)
    mean = found.logit_difference.mean
    if mean < MIN_GAP:
        raise MeasurementError(
            f"The mean logit difference on {engine.task.name} is {mean:.3f}.",
            "The model does not do this task, so no head moves names in it.",
        )
    column_of = {part.part: column for column, part in enumerate(found.contributions)}
    return found.per_pair[:, [column_of[str(node)] for node in heads]] / mean


def _paths_into_queries(
    engine: Engine,
    heads: Sequence[Node],
    movers: Sequence[Node],
    looks: Float[np.ndarray, "head"],
) -> Float[Tensor, "pair head"]:
    """Return what is lost through the queries of the name movers, for heads that look at S2.

    The effects of a head's paths into the single name movers are added. Heads that do not look at
    S2, or that come after the name movers, are not measured and have 0.
    """
    clean, corrupted = (
        torch.cat([block.baseline(side) for _, block in engine.blocks()]).double().cpu()
        for side in ("clean", "corrupted")
    )
    gap = float((clean - corrupted).mean())
    lost = torch.zeros(len(engine), len(heads), dtype=torch.float64)
    edges = [
        (source, mover)
        for source, p in zip(heads, looks, strict=True)
        for mover in movers
        if p <= ALPHA and source.feeds(mover)
    ]
    if abs(gap) < MIN_GAP or not edges:
        return lost
    column_of = {node: column for column, node in enumerate(heads)}
    for effect in measure_edges(engine, edges):
        change = clean - effect.inputs["q"].double().cpu()
        lost[:, column_of[effect.source]] += change / gap
    return lost


def _score(
    heads: Sequence[Node], effects: Mapping[KindName, _Effects]
) -> dict[KindName, tuple[HeadScore, ...]]:
    """Correct all tests together, and sort the heads of each kind by effect."""
    corrected = iter(holm([float(p) for effect in effects.values() for p in effect.p]))
    scored: dict[KindName, tuple[HeadScore, ...]] = {}
    for kind, effect in effects.items():
        scores = []
        for column, node in enumerate(heads):
            p = next(corrected)
            interval = t_interval(effect.values[:, column].numpy())
            is_named = p <= ALPHA and interval.mean >= MINIMUM_EFFECT[kind]
            scores.append(
                HeadScore(node=str(node), score=interval, chance=0.0, p=p, is_named=is_named)
            )
        scored[kind] = tuple(sorted(scores, key=lambda score: -score.score.mean))
    return scored


def _describe(
    engine: Engine,
    kind: KindName,
    scores: Sequence[HeadScore],
    controls: int,
    top: int,
    seed: int,
) -> HeadKind:
    """Return the named heads of a kind with their causal check, and the next ones."""
    named = tuple(score for score in scores if score.is_named)
    check = None
    if named and controls:
        ablated = frozenset(Node.parse(score.node) for score in named)
        check = _check(engine, ablated, controls, seed)
    return HeadKind(
        kind=kind,
        minimum_effect=MINIMUM_EFFECT[kind],
        heads=named,
        runners_up=tuple(score for score in scores if not score.is_named)[:top],
        check=check,
    )


def _check(engine: Engine, ablated: frozenset[Node], controls: int, seed: int) -> AblationCheck:
    """Ablate the named heads by resampling, and as many random heads."""
    model: Backend = engine.backend
    sets = draw_head_sets(model.info.nodes("heads"), ablated, len(ablated), controls, seed)
    metric = SetMetric(engine, "resample")
    everything = metric.everything
    kept = [everything, everything - ablated, *(everything - heads for heads in sets)]
    clean, own, *others = metric(kept, "causal check").double().cpu()
    of_sets = tuple(float((other - clean).mean()) for other in others)
    change = own - clean
    as_large = sum(abs(value) >= abs(float(change.mean())) for value in of_sets)
    return AblationCheck(
        measure=engine.metric,
        n_heads=len(ablated),
        intact=float(clean.mean()),
        change=t_interval(change.numpy()),
        controls=of_sets,
        p=(1 + as_large) / (1 + len(of_sets)),
    )
