"""What does this head do? One call that measures it in every way, and states only what holds.

Five aspects, each from its own technique, on the pairs of a task:

- *kind*: the kinds that `head_kinds` names it as, among all heads of the model.
- *reads*: where it looks from the answer position of the clean prompts, beside uniform attention.
- *matches*: whether its QK circuit matches tokens with themselves, beside shuffled tokens.
- *writes*: whether its OV circuit raises or lowers the token that it reads, beside shuffled tokens,
  and what it adds to the answer's logit difference by itself.
- *needed*: what its output restores in the corrupted run (denoising), what is lost with the output
  of the corrupted run in its place (noising, which for a whole head is resample ablation), and what
  is lost under mean ablation; the losses stand beside those of random heads.

A statement *holds* if its p is at most 0.05 after Holm's correction for all statements of the call
(kinds are corrected for all heads and kinds already), if its effect reaches the minimum that is
stated below, and, where there are random heads, if at most a tenth of them (or one) has as large an
effect: others of its circuit may be among them. What does not hold is reported as not known, with
its number.

    from discovery import interpret_head, load_model
    found = interpret_head(load_model("bundled"), "a2.h0", "ioi")
    print(found.summary)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError
from discovery.methods.ablation import ablate_heads
from discovery.methods.arguments import require_counts
from discovery.methods.controls import compare_with_controls
from discovery.methods.heads.attention_patterns import AttentionShare, measure_shares
from discovery.methods.heads.head_kinds import HeadKinds, head_kinds
from discovery.methods.heads.head_weights import HeadWeights, head_weights, require_head
from discovery.methods.heads.name_movers import has_name_labels
from discovery.methods.heads.vocabulary_circuit import ChanceScore
from discovery.methods.patching import patch_sweep
from discovery.methods.readout import direct_logit_attribution
from discovery.methods.statistics import (
    Interval,
    Resamples,
    holm,
    interval_of_ratio,
    sign_flip_test,
)
from discovery.methods.subject import TaskLike, resolve_task
from discovery.progress import ProgressCallback
from discovery.sites import Ablation, MetricName, Node
from discovery.tasks.task import Task

Aspect = Literal["kind", "reads", "matches", "writes", "needed"]

ALPHA = 0.05
DEFAULT_CONTROLS = 19
MINIMUM_SHARE = 0.1  # above chance: of attention, and of tokens
MINIMUM_EFFECT = 0.02  # of m(clean) − m(corrupted), or of the logit difference
MIN_GAP = 1e-6
CLAIM_OF_ABLATION: Mapping[Ablation, str] = {
    "resample": "Lost with its corrupted output (noising, resample ablation)",
    "mean": "Lost with its mean output (mean ablation)",
}


@dataclass(frozen=True, kw_only=True)
class HeadStatement:
    """One thing that was measured of a head, in words and with its number.

    Attributes:
        aspect: what it is about.
        claim: what the number says if it holds.
        value: the number, with its 95% interval.
        chance: what it is by chance, or for a loss the largest that a random head causes.
        p: corrected for all statements of the call (for kinds, for all heads and kinds).
        minimum: how far the number must be from chance, or from 0 for an effect.
        holds: whether it is beyond chance and reaches the minimum.
    """

    aspect: Aspect
    claim: str
    value: Interval
    chance: float | None
    p: float
    minimum: float
    holds: bool

    def __str__(self) -> str:
        low, high = self.value.low, self.value.high
        spread = "" if low == high else f" [{low:.2f}, {high:.2f}]"
        label = "a random head at most" if self.aspect == "needed" else "chance"
        chance = "" if self.chance is None else f", {label} {self.chance:.2f}"
        return f"{self.claim}: {self.value.mean:.2f}{spread}{chance}, p {self.p:.2g}"


@dataclass(frozen=True, kw_only=True, repr=False)
class HeadInterpretation:
    """What a head does on a task, as far as it is known.

    Attributes:
        node: the head.
        task: the name of the task.
        n: the number of its pairs.
        metric: what the effects are measured in.
        statements: everything that was tested, by aspect.
        looks_at: the sources that it looks at most from the answer position.
        weights: its circuits through the vocabulary, and its composition with other heads.
        warnings: what to know before the numbers are read, and what was not measured.
        cost: the work and the time that it took.
    """

    node: str
    task: str
    n: int
    metric: MetricName
    statements: tuple[HeadStatement, ...]
    looks_at: tuple[AttentionShare, ...]
    weights: HeadWeights
    warnings: tuple[str, ...]
    cost: MeasurementCost

    def __repr__(self) -> str:
        """Return what is known."""
        return f"<{self.summary}>"

    @property
    def known(self) -> tuple[HeadStatement, ...]:
        """The statements that hold."""
        return tuple(statement for statement in self.statements if statement.holds)

    @property
    def not_known(self) -> tuple[HeadStatement, ...]:
        """The statements that were tested and do not hold."""
        return tuple(statement for statement in self.statements if not statement.holds)

    @property
    def summary(self) -> str:
        """What the head does, one statement a line; "not known" if nothing is beyond chance."""
        if not self.known:
            return f"What {self.node} does on {self.task} is not known: nothing is beyond chance."
        lines = [f"{statement.aspect}: {statement}" for statement in self.known]
        return "\n".join([f"{self.node} on {self.task}, {self.n} pairs:", *lines])

    def panels(self) -> dict[str, list[tuple[str, float]]]:
        """Return named values by the title of their panel, for a picture."""
        panels: dict[str, list[tuple[str, float]]] = {}
        if self.looks_at:
            panels["looks at (share)"] = [
                (str(share.source), share.share.mean) for share in self.looks_at
            ]
        needed = [statement for statement in self.statements if statement.aspect == "needed"]
        if needed:
            panels["needed (share of the effect)"] = [
                (statement.claim, statement.value.mean) for statement in needed
            ]
        return panels | self.weights.panels()


def interpret_head(
    model: Backend,
    node: str | Node,
    task: TaskLike,
    *,
    metric: MetricName | None = None,
    pairs: int | None = 32,
    controls: int = DEFAULT_CONTROLS,
    tokens: int = 2048,
    kinds: HeadKinds | None = None,
    top: int = 5,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> HeadInterpretation:
    """Measure what a head looks at, matches, writes and is needed for, and state what holds.

    Args:
        node: the head.
        task: a task, or the name or path of one, which stands for `pairs` of its pairs.
        metric: what the effects are measured in; the task's own by default.
        controls: the number of random heads that its losses are compared with.
        tokens: the number of tokens that its circuits are read on.
        kinds: the result of `head_kinds` on this model, if it is known already.
        top: how many sources, entries and compositions to list.
        seed: seed of all draws.
        memory: bytes that caches and batches may take; 60% of the free memory by default.

    Raises:
        MeasurementError: if an argument is wrong, or if the weights are not on this machine.
        SiteError: if the model lacks the head, or if its attention cannot be read.
        MemoryLimitError: if the memory does not hold one pair.
    """
    began = time.monotonic()
    require_counts(controls=(controls, 1), top=(top, 1))
    head = require_head(model, node)
    loaded = resolve_task(task, model, seed, pairs)
    meter = Meter(progress=progress)
    timer = CostTimer(meter, began)
    engine = Engine(model, loaded, metric=metric, memory=memory, meter=meter)
    weights = head_weights(model, head, tokens=tokens, top=top, seed=seed)
    shares, tested_share = _state_reading(engine, head)
    drafts = [tested_share, *_state_circuits(weights)]
    warnings = list(weights.warnings)
    try:
        drafts += _state_direct_effect(engine, head, seed)
    except MeasurementError as fault:
        warnings.append(f"The direct effect was not measured: {fault.cause}")
    needed, cautions = _state_need(engine, head, controls, seed)
    drafts += needed
    if kinds is None:
        kinds = _find_kinds(engine, seed, warnings)
    meter.add(weights.cost.forward_equivalents)
    return HeadInterpretation(
        node=str(head),
        task=loaded.name,
        n=len(loaded),
        metric=engine.metric,
        statements=(*_state_kinds(kinds, head), *_correct(drafts)),
        looks_at=shares[:top],
        weights=weights,
        warnings=(*warnings, *cautions, *kinds.warnings),
        cost=timer.cost,
    )


def _find_kinds(engine: Engine, seed: int, warnings: list[str]) -> HeadKinds:
    """Name the kinds of all heads; those of names if the task has them and the model does it."""

    def find(task: Task | None) -> HeadKinds:
        return head_kinds(
            engine.backend,
            task=task,
            controls=0,
            seed=seed,
            memory=engine.memory,
            progress=engine.meter.progress,
        )

    try:
        kinds = find(engine.task if has_name_labels(engine.task) else None)
    except MeasurementError as fault:
        warnings.append(f"Name movers were not looked for: {fault.cause}")
        kinds = find(None)
    engine.meter.add(kinds.cost.forward_equivalents)
    return kinds


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A statement before its p is corrected.

    Attributes:
        statement: the statement, with its own p.
        beats_controls: whether few enough random heads have as large an effect.
    """

    statement: HeadStatement
    beats_controls: bool = True


def _draft(
    aspect: Aspect,
    claim: str,
    value: Interval,
    p: float,
    minimum: float,
    *,
    chance: float | None = None,
    beats_controls: bool = True,
) -> _Draft:
    statement = HeadStatement(
        aspect=aspect,
        claim=claim,
        value=value,
        chance=chance,
        p=p,
        minimum=minimum,
        holds=False,
    )
    return _Draft(statement=statement, beats_controls=beats_controls)


def _correct(drafts: Sequence[_Draft]) -> tuple[HeadStatement, ...]:
    """Correct the p-values for their number, and say which statements hold."""
    corrected = holm([draft.statement.p for draft in drafts])
    statements = []
    for draft, p in zip(drafts, corrected, strict=True):
        statement = draft.statement
        if statement.aspect == "needed" or statement.chance is None:
            excess = abs(statement.value.mean)
        else:
            excess = statement.value.mean - statement.chance
        holds = p <= ALPHA and excess >= statement.minimum and draft.beats_controls
        statements.append(replace(statement, p=p, holds=holds))
    return tuple(statements)


def _state_kinds(kinds: HeadKinds, node: Node) -> tuple[HeadStatement, ...]:
    """State the kinds that the head was named as."""
    minimum = {kind.kind: kind.minimum_effect for kind in kinds.kinds}
    return tuple(
        HeadStatement(
            aspect="kind",
            claim=f"Of the kind {name}; its score",
            value=score.score,
            chance=score.chance,
            p=score.p,
            minimum=minimum[name],
            holds=True,
        )
        for name, score in kinds.of(str(node))
    )


def _state_reading(engine: Engine, node: Node) -> tuple[tuple[AttentionShare, ...], _Draft]:
    """State the source that the head looks at most from the answer position."""
    measured = measure_shares(engine, node)
    best = min(measured, key=lambda source: (source.p, -source.share.share.mean))
    share = best.share
    name = f"position {share.source}" if isinstance(share.source, int) else share.source
    draft = _draft(
        "reads",
        f"From the answer position it looks at {name}",
        share.share,
        min(1.0, best.p * len(measured)),
        MINIMUM_SHARE,
        chance=best.uniform,
    )
    shares = sorted((source.share for source in measured), key=lambda found: -found.share.mean)
    return tuple(shares), draft


def _state_circuits(weights: HeadWeights) -> list[_Draft]:
    """State whether tokens match themselves, and whether they are copied or kept away."""
    scores: list[tuple[Aspect, str, ChanceScore]] = [
        ("writes", "It raises the token that it reads; share of tokens", weights.ov.same_token),
        ("writes", "It lowers the token that it reads; share of tokens", weights.ov.opposite),
    ]
    if weights.qk is not None:
        same, opposite = weights.qk.same_token, weights.qk.opposite
        scores += [
            ("matches", "Tokens look at themselves; share of tokens", same),
            ("matches", "Tokens look away from themselves; share of tokens", opposite),
        ]
    return [
        _draft(
            aspect,
            claim,
            Interval(score.value, score.value, score.value),
            score.p,
            MINIMUM_SHARE,
            chance=score.chance.mean,
        )
        for aspect, claim, score in scores
    ]


def _state_direct_effect(engine: Engine, node: Node, seed: int) -> list[_Draft]:
    """State what the head adds to the logit difference by itself, as a share of it."""
    found = direct_logit_attribution(
        engine.backend, engine.task, memory=engine.memory, progress=engine.meter.progress
    )
    engine.meter.add(found.cost.forward_equivalents)
    if abs(found.logit_difference.mean) < MIN_GAP:
        raise MeasurementError("The mean logit difference is 0.", "Use another task.")
    column = [part.part for part in found.contributions].index(str(node))
    own = found.per_pair[:, column]
    whole = torch.full_like(own, found.logit_difference.mean)
    effect, _ = interval_of_ratio(own, whole, Resamples.of(engine.task))
    p = sign_flip_test(own.double().numpy(), seed)
    claim = "It writes to the answer's logit difference itself; share of it"
    return [_draft("writes", claim, effect, p, MINIMUM_EFFECT)]


def _state_need(
    engine: Engine, node: Node, controls: int, seed: int
) -> tuple[list[_Draft], tuple[str, ...]]:
    """State what the head restores and what is lost without it, beside random heads."""
    layer, index = node.layer or 0, node.head or 0
    within = torch.zeros(
        engine.backend.info.n_layers, engine.backend.info.n_heads, dtype=torch.bool
    )
    within[layer, index] = True
    sweep = patch_sweep(engine.backend, engine.task, "head_out", within=within, engine=engine)
    clean = sweep.metric_clean.double().cpu()
    corrupted = sweep.metric_corrupted.double().cpu()
    if abs(float((clean - corrupted).mean())) < MIN_GAP:
        caution = "m(clean) is m(corrupted): whether the head is needed was not measured."
        return [], (caution,)
    change = sweep.per_pair[:, layer, index].double().cpu() - corrupted
    effect, _ = interval_of_ratio(change, clean - corrupted, Resamples.of(engine.task))
    restored = _draft(
        "needed",
        "Restored by its clean output (denoising)",
        effect,
        sign_flip_test(change.numpy(), seed),
        MINIMUM_EFFECT,
    )
    lost = [
        _state_loss(engine, node, ablation, clean, clean - corrupted, controls, seed)
        for ablation in CLAIM_OF_ABLATION
    ]
    return [restored, *lost], ()


def _state_loss(
    engine: Engine,
    node: Node,
    ablation: Ablation,
    clean: Float[Tensor, "pair"],
    gap: Float[Tensor, "pair"],
    controls: int,
    seed: int,
) -> _Draft:
    """State what is lost without the head under one ablation, beside random heads."""
    model, task = engine.backend, engine.task
    ablated = ablate_heads(model, task, [node], ablation=ablation, engine=engine)
    compared = compare_with_controls(
        model,
        task,
        [node],
        ablation=ablation,
        per_node=False,
        controls=controls,
        seed=seed,
        engine=engine,
    )
    lost = clean - ablated.per_pair.double().cpu()
    mean_clean, mean_gap = float(clean.mean()), float(gap.mean())
    of_controls = [(mean_clean - metric) / mean_gap for metric in compared.controls]
    return _draft(
        "needed",
        CLAIM_OF_ABLATION[ablation],
        interval_of_ratio(lost, gap, Resamples.of(task))[0],
        sign_flip_test(lost.numpy(), seed),
        MINIMUM_EFFECT,
        chance=max(of_controls, key=abs, default=None),
        beats_controls=_beats(compared.as_large, len(of_controls)),
    )


def _beats(as_large: int, n_controls: int) -> bool:
    """Return whether few enough of some random heads have as large an effect."""
    return as_large <= max(1, n_controls // 10)
