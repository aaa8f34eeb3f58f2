"""Which kinds of heads a model has, each beside its chance level and with a causal check.

Kinds by attention, on repeated random tokens (`repeated_tokens`), as a mean over positions:

- *previous_token*: the share on the token before.
- *first_token*: the share on the first token ("resting": McDougall et al. 2023; Xiao et al. 2023).
- *local*: the share on the four tokens before the current one and on itself.
- *duplicate_token*: in the second copy, the share on the same token in the first.
- *induction*: in the second copy, the share on the token that followed it there.

Chance is uniform attention for the first three, and for the last two the head's own attention at
the same distance in the control, where nothing is repeated, so that a head of a fixed distance is
no induction head. Kinds by weights (`copying`): *copying* and *anti_copying*.

A head is *named* if its score is above chance in a one-sided t-test over sequences (or tokens),
with p at most 0.05 after Holm's correction for all heads and all kinds together, and if the score
is at least the kind's stated minimum above chance. A kind may have no head.

On a task that labels them, name movers, negative name movers and S-inhibition heads are named too
(`name_movers`).

The causal check ablates the named heads of a kind together, and as many random heads, and measures
what the model loses on the second copy of repeated tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.weights import ModelWeights
from discovery.engine import Engine, Meter, Side
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError
from discovery.methods.arguments import require_counts
from discovery.methods.heads.attention_patterns import read_patterns
from discovery.methods.heads.copying import (
    TAIL,
    copying_scores,
    draw_tokens,
    read_token_streams,
    self_logits,
)
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
from discovery.methods.heads.name_movers import measure_name_movers, require_name_labels
from discovery.methods.heads.repeated_tokens import (
    RepeatedLoss,
    draw_head_sets,
    make_repeated_task,
)
from discovery.methods.statistics import holm
from discovery.methods.subject import TaskLike, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import Node
from discovery.tasks.task import Task

LOCAL_WIDTH = 4
CHECKED_SEQUENCES = 8  # of the causal check


@dataclass(frozen=True, kw_only=True)
class HeadKinds:
    """The kinds of heads of a model.

    Attributes:
        kinds: every kind that was measured.
        n_sequences: the number of sequences of repeated tokens.
        half: the number of tokens of one copy.
        n_tokens: the number of tokens that copying was tried with.
        n_heads: the number of heads that were tested.
        scores: for each kind, the score of each head [layer head].
        warnings: what to know before the numbers are read.
        cost: the work and the time that it took.
    """

    kinds: tuple[HeadKind, ...]
    n_sequences: int
    half: int
    n_tokens: int
    n_heads: int
    scores: Mapping[str, Float[Tensor, "layer head"]] = field(repr=False)
    warnings: tuple[str, ...]
    cost: MeasurementCost

    def of(self, node: str) -> tuple[tuple[KindName, HeadScore], ...]:
        """Return the kinds that a head was named as, with its scores."""
        return tuple(
            (kind.kind, score) for kind in self.kinds for score in kind.heads if score.node == node
        )


@dataclass(frozen=True)
class _Samples:
    """The scores of one kind, and what they are by chance, sample by sample.

    Attributes:
        score: [sample head], a sample being a sequence or a token.
        chance: the same by chance; it broadcasts to `score`.
    """

    score: Float[Tensor, "sample head"]
    chance: Float[Tensor, "sample #head"]


def head_kinds(
    model: Backend,
    *,
    task: TaskLike | None = None,
    pairs: int | None = 32,
    sequences: int = 24,
    controls: int = 10,
    top: int = 3,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> HeadKinds:
    """Name the heads that copy, look back, or look for repetitions, beyond chance.

    Args:
        task: a task whose pairs label IO and S2, such as ioi, or what `load_task` accepts: name
            movers, negative name movers and S-inhibition heads are then named on it too.
        pairs: how many pairs of that task are used if it is given by its name or path.
        sequences: the number of sequences of repeated random tokens.
        controls: the number of random sets of heads for each causal check; 0 for no checks.
        top: how many heads to list for each kind beside the named ones.
        memory: bytes that caches and batches may take; 60% of the free memory by default.

    Raises:
        MeasurementError: if an argument is wrong, if the model takes too few tokens, or if the task
            lacks the labels or the model does not do it.
        SiteError: if its attention patterns cannot be read.
    """
    began = time.monotonic()
    require_counts(sequences=(sequences, 4), controls=(controls, 0), top=(top, 0))
    meter = Meter(progress=progress)
    names = None if task is None else _resolve_names(task, model, seed, pairs)
    repeated, n_prefix, half = make_repeated_task(model, sequences, seed)
    engine = Engine(model, repeated, metric="logit_difference", memory=memory, meter=meter)
    timer = CostTimer(meter, began)
    samples = _attention_samples(engine, n_prefix, half)
    tokens = draw_tokens(model, seed)
    warnings: tuple[str, ...] = ()
    try:
        samples |= _copying_samples(ModelWeights(model), tokens, meter)
    except MeasurementError as fault:
        warnings = (f"Copying was not measured: {fault.cause}",)
    scored = _score_all(model, samples)
    loss = None
    if controls:
        checked = make_repeated_task(model, CHECKED_SEQUENCES, seed + 1)[0]
        meter.begin("causal checks", _estimate_checks(model, scored, controls, checked))
        loss = RepeatedLoss(model, checked, n_prefix, half, meter)
    kinds = [
        _describe_kind(model, kind, scores, loss, controls, top, seed)
        for kind, scores in scored.items()
    ]
    if names is not None:
        on_names = Engine(model, names, memory=memory, meter=meter)
        kinds += measure_name_movers(on_names, ModelWeights(model), controls, top, seed)
    return HeadKinds(
        kinds=tuple(kinds),
        n_sequences=sequences,
        half=half,
        n_tokens=len(tokens),
        n_heads=len(model.info.nodes("heads")),
        scores=_mean_scores(model, samples),
        warnings=warnings,
        cost=timer.cost,
    )


def _resolve_names(task: TaskLike, model: Backend, seed: int, pairs: int | None) -> Task:
    """Return the task on which name movers are looked for.

    Raises:
        MeasurementError: if its pairs lack the labels.
    """
    names = resolve_task(task, model, seed, pairs)
    require_name_labels(names)
    return names


def _mean_scores(
    model: Backend, samples: Mapping[KindName, _Samples]
) -> dict[str, Float[Tensor, "layer head"]]:
    """Return the mean score of each head, for each kind."""
    return {
        kind: sample.score.mean(0).reshape(model.info.n_layers, -1).float()
        for kind, sample in samples.items()
    }


def _describe_kind(
    model: Backend,
    kind: KindName,
    scores: Sequence[HeadScore],
    loss: RepeatedLoss | None,
    controls: int,
    top: int,
    seed: int,
) -> HeadKind:
    """Return the named heads of a kind, with their causal check, and the next ones."""
    named = tuple(score for score in scores if score.is_named)
    check = None
    if loss is not None and named:
        check = _check(model, loss, [score.node for score in named], controls, seed)
    return HeadKind(
        kind=kind,
        minimum_effect=MINIMUM_EFFECT[kind],
        heads=named,
        runners_up=tuple(score for score in scores if not score.is_named)[:top],
        check=check,
    )


def _estimate_checks(
    model: Backend, scored: Mapping[KindName, Sequence[HeadScore]], controls: int, task: Task
) -> float:
    """Return about how many forward-pass equivalents the causal checks take."""
    n_checked = sum(any(score.is_named for score in scores) for scores in scored.values())
    return float(len(task) * (1 + n_checked * (2 + controls)))


def attention_scores(
    pattern: Float[Tensor, "row head dst src"], n_prefix: int, half: int
) -> dict[KindName, Float[Tensor, "row head"]]:
    """Return the mean attention of each head to the sources of each kind.

    Args:
        pattern: the patterns on sequences of a prefix and two copies (or copy and control).
        n_prefix: the number of tokens before the first copy.
        half: the number of tokens of one copy.
    """
    length = pattern.shape[-1]
    every = torch.arange(1, length, device=pattern.device)
    second = torch.arange(n_prefix + half, length, device=pattern.device)
    local = torch.zeros_like(pattern[:, :, 0, 0])
    for offset in range(LOCAL_WIDTH + 1):
        dst = every[every >= offset]
        local = local + pattern[:, :, dst, dst - offset].sum(-1)
    return {
        "previous_token": pattern[:, :, every, every - 1].mean(-1),
        "first_token": pattern[:, :, every, 0].mean(-1),
        "local": local / len(every),
        "duplicate_token": pattern[:, :, second, second - half].mean(-1),
        "induction": pattern[:, :, second, second - half + 1].mean(-1),
    }


def _uniform_scores(length: int, n_prefix: int, half: int) -> dict[KindName, float]:
    """Return the scores of a head that looks everywhere equally."""
    uniform = torch.ones(length, length).tril()
    uniform = uniform / uniform.sum(1, keepdim=True)
    scores = attention_scores(uniform[None, None], n_prefix, half)
    return {kind: float(score) for kind, score in scores.items()}


def _attention_samples(engine: Engine, n_prefix: int, half: int) -> dict[KindName, _Samples]:
    """Measure the kinds by attention on every sequence and its control."""
    info = engine.backend.info
    by_side: dict[Side, dict[KindName, Tensor]] = {}
    sides: tuple[Side, Side] = ("clean", "corrupted")
    for side in sides:
        found: dict[KindName, Tensor] = {}
        for first, block in engine.blocks():
            label = engine.block_label(f"attention on {side} sequences", first, block)
            engine.meter.begin(label, block.estimate_pass())
            for part, patterns in read_patterns(block, side, range(info.n_layers)):
                rows = torch.tensor(range(len(block.prompts))[part]) + first
                for layer, pattern in patterns.items():
                    for kind, score in attention_scores(pattern, n_prefix, half).items():
                        shape = (len(engine), info.n_layers, info.n_heads)
                        whole = found.setdefault(kind, torch.zeros(shape, dtype=torch.float64))
                        whole[rows, layer] = score.double().cpu()
        by_side[side] = {kind: score.flatten(1) for kind, score in found.items()}
    uniform = _uniform_scores(n_prefix + 2 * half, n_prefix, half)
    samples = {}
    for kind, score in by_side["clean"].items():
        chance = torch.full_like(score, uniform[kind])
        if kind in ("duplicate_token", "induction"):
            chance = torch.maximum(by_side["corrupted"][kind], chance)
        samples[kind] = _Samples(score, chance)
    return samples


def _copying_samples(
    weights: ModelWeights, tokens: tuple[int, ...], meter: Meter
) -> dict[KindName, _Samples]:
    """Measure copying and anti-copying of every head on every token."""
    info = weights.backend.info
    streams = read_token_streams(weights.backend, tokens, meter)
    ids = torch.tensor(tokens, device=weights.backend.device)
    copied = []
    anti_copied = []
    for layer in range(info.n_layers):
        scores = copying_scores(self_logits(weights, layer, streams.read_by(layer), ids))
        copied.append(scores[0].T)
        anti_copied.append(scores[1].T)
    chance = torch.tensor(max(1, round(TAIL * len(tokens))) / len(tokens)).double()
    return {
        "copying": _Samples(torch.cat(copied, 1).cpu(), chance.expand(len(tokens), 1)),
        "anti_copying": _Samples(torch.cat(anti_copied, 1).cpu(), chance.expand(len(tokens), 1)),
    }


def _score_all(
    model: Backend, samples: Mapping[KindName, _Samples]
) -> dict[KindName, tuple[HeadScore, ...]]:
    """Test every head for every kind, correct for all tests, and sort by score."""
    heads = model.info.nodes("heads")
    p_values: list[float] = []
    for sample in samples.values():
        p_values += p_above((sample.score - sample.chance).numpy()).tolist()
    corrected = iter(holm(p_values))
    scored = {}
    for kind, sample in samples.items():
        scores = []
        chance = sample.chance.expand_as(sample.score).mean(0)
        for column, node in enumerate(heads):
            values = sample.score[:, column].numpy()
            p = next(corrected)
            excess = float(values.mean() - chance[column])
            scores.append(
                HeadScore(
                    node=str(node),
                    score=t_interval(values),
                    chance=float(chance[column]),
                    p=p,
                    is_named=p <= ALPHA and excess >= MINIMUM_EFFECT[kind],
                )
            )
        scored[kind] = tuple(sorted(scores, key=lambda score: -score.score.mean))
    return scored


def _check(
    model: Backend, loss: RepeatedLoss, nodes: Sequence[str], controls: int, seed: int
) -> AblationCheck:
    """Ablate the named heads together, and as many random heads."""
    ablated = frozenset(Node.parse(name) for name in nodes)
    clean = loss()
    change = (loss(ablated) - clean).numpy()
    sets = draw_head_sets(model.info.nodes("heads"), ablated, len(ablated), controls, seed)
    of_sets = tuple(float((loss(heads) - clean).mean()) for heads in sets)
    as_large = sum(value >= float(change.mean()) for value in of_sets)
    return AblationCheck(
        measure="loss on repeated tokens",
        n_heads=len(ablated),
        intact=float(clean.mean()),
        change=t_interval(change),
        controls=of_sets,
        p=(1 + as_large) / (1 + len(of_sets)),
    )
