"""What declarative edits do: the metric and the predictions before and after them.

    from discovery import load_model, run_with_edits
    model = load_model("bundled")
    edits = [{"operation": "zero", "site": "mlp_out", "layer": 0}]
    run_with_edits(model, edits, "ioi").change          # m(edited) − m(unedited), with its interval

The edited side is run from the first token on, with all edits in one pass. `effect` is normalised
as in a patching sweep, so an exported cell of a sweep gives the sweep's own number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import Block, Engine, Meter, row_macs
from discovery.engine.cost import CostTimer, MeasurementCost, forward_equivalents
from discovery.errors import MeasurementError, NotFiniteError
from discovery.interventions import Edit
from discovery.methods.arguments import require_counts
from discovery.methods.edits.edit_set import EditSet, EditSide, EditsSource, MeanEdit, ResampleEdit
from discovery.methods.edits.tensors import (
    PlacedEdit,
    build_edit,
    place_edits,
    run_named_prompts,
)
from discovery.methods.patching.grid import MIN_METRIC_GAP
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.methods.subject import TaskLike, Token, format_token, resolve_subject
from discovery.metrics import measure
from discovery.progress import ProgressCallback
from discovery.sites import MetricName
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TokenChange:
    """A token that is likely before or after the edits.

    Attributes:
        token: its id.
        text: its text, or its id if the model has no tokenizer.
        before: its mean probability over pairs without the edits.
        after: its mean probability with them.
    """

    token: int
    text: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class EditRun:
    """What a set of edits does.

    Attributes:
        task: the name of the task; "prompt" for a single prompt.
        edits: the edits.
        side: which prompt of each pair was edited.
        metric: what was measured.
        n: the number of pairs that were measured.
        before: the metric without the edits, with its 95% interval over pairs.
        after: the metric with the edits.
        change: after − before, pair by pair.
        effect: the change as a share of m(clean) − m(corrupted), as in a patching sweep: of clean
            prompts what is lost, of corrupted ones what is restored. None for a single prompt, or
            if that difference is too small to divide by.
        tokens: the most likely tokens before or after, those before first.
        per_pair: the metric of each pair with the edits; NaN for a pair that was left out.
        per_pair_before: the metric of each pair without the edits.
        warnings: which pairs were left out.
        cost: the work and the time that it took.
    """

    task: str
    edits: EditSet = field(repr=False)
    side: EditSide
    metric: MetricName
    n: int
    before: Interval
    after: Interval
    change: Interval
    effect: float | None
    tokens: tuple[TokenChange, ...]
    per_pair: Float[Tensor, "pair"] = field(repr=False)
    per_pair_before: Float[Tensor, "pair"] = field(repr=False)
    warnings: tuple[str, ...]
    cost: MeasurementCost


def run_with_edits(
    model: Backend,
    edits: EditsSource,
    task: TaskLike | None = None,
    *,
    prompt: Prompt | None = None,
    answer: Token | None = None,
    wrong: Token | None = None,
    metric: MetricName | None = None,
    top: int = 5,
    pairs: int | None = 32,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> EditRun:
    """Run the pairs of a task, or one prompt, with edits, and compare with the unedited run.

    Args:
        edits: an `EditSet`, the path of an edits.json, its content, or a list of edits.
        task: a task. The name of a built-in task or the path of a task file stands for `pairs` of
            its pairs. A pair that has none of an edit's positions is left out.
        prompt: a single prompt; give either this or a task.
        answer: for a prompt, the token to look for; the default is the model's own prediction.
        wrong: for a prompt, the token that the metric compares it with.
        metric: what is measured; the task's own by default.
        top: how many tokens before and after the edits to list.
        memory: bytes that caches and batches may take; 60% of the free memory by default.

    Raises:
        SiteError: if the model lacks a site or a head.
        MeasurementError: if the edits are not valid or do not suit the model or the task.
        MemoryLimitError: if the memory does not hold one pair.
    """
    began = time.monotonic()
    require_counts(top=(top, 1))
    edit_set = EditSet.of(edits)
    subject = resolve_subject(
        model, task, prompt, answer=answer, wrong=wrong, pairs=pairs, seed=seed
    )
    if prompt is not None:
        _require_one_sided(edit_set)
    placed = place_edits(model, subject, edit_set)
    left_out = torch.stack([item.missing(len(subject)) for item in placed]).any(0)
    if bool(left_out.all()):
        raise MeasurementError(
            "Every pair lacks the positions of one of the edits.", "Name positions that occur."
        )
    engine = Engine(model, subject, metric=metric, memory=memory, meter=Meter(progress=progress))
    timer = CostTimer(engine.meter, began)
    changes = _measure(engine, edit_set, placed, left_out)
    kept = ~left_out
    resamples = Resamples.of(_take_pairs(subject, kept))
    change = (changes.after - changes.before)[kept]
    return EditRun(
        task=subject.name,
        edits=edit_set,
        side=edit_set.side,
        metric=engine.metric,
        n=int(kept.sum()),
        before=interval_of_mean(changes.before[kept], resamples),
        after=interval_of_mean(changes.after[kept], resamples),
        change=interval_of_mean(change, resamples),
        effect=None if prompt is not None else _effect(engine, edit_set.side, change, kept),
        tokens=changes.top_tokens(model, top),
        per_pair=changes.after,
        per_pair_before=changes.before,
        warnings=_warnings(left_out),
        cost=timer.cost,
    )


@dataclass(frozen=True, kw_only=True)
class _Changes:
    """The metric of each pair, and the sums of probabilities over pairs, without and with edits."""

    before: Float[Tensor, "pair"]
    after: Float[Tensor, "pair"]
    probability_before: Float[Tensor, "d_vocab"]
    probability_after: Float[Tensor, "d_vocab"]
    n: int

    def top_tokens(self, model: Backend, top: int) -> tuple[TokenChange, ...]:
        """Return the most likely tokens before and after."""
        count = min(top, len(self.probability_before))
        numbers = [
            *self.probability_before.topk(count).indices.tolist(),
            *self.probability_after.topk(count).indices.tolist(),
        ]
        return tuple(
            TokenChange(
                token=token,
                text=format_token(model, token),
                before=float(self.probability_before[token]) / self.n,
                after=float(self.probability_after[token]) / self.n,
            )
            for token in dict.fromkeys(numbers)
        )


def _measure(
    engine: Engine,
    edits: EditSet,
    placed: Sequence[PlacedEdit],
    left_out: Bool[Tensor, "pair"],
) -> _Changes:
    """Run every pair without and with the edits."""
    for item in placed:
        if item.edit.site in ("q", "k", "v", "pattern"):
            engine.reserve_memory(item.edit.site)
    mean_sites = [item.site for item in placed if isinstance(item.edit, MeanEdit)]
    if mean_sites:
        engine.prepare_means(list(dict.fromkeys(mean_sites)))
    runs = run_named_prompts(engine, edits, placed)
    n_pairs, n_logits = len(engine), engine.backend.info.n_logits
    before = torch.full((n_pairs,), float("nan"), dtype=torch.float64)
    after = before.clone()
    sums = torch.zeros(2, n_logits, dtype=torch.float64)
    for first, block in engine.blocks():
        rows = (~left_out[first : first + len(block.prompts)]).nonzero()[:, 0]
        before[first + rows] = block.baseline(edits.side).double().cpu()[rows]
        tensors = [build_edit(item, engine, first, block, runs) for item in placed]
        rows = rows.to(block.prompts.length.device)
        label = engine.block_label("edits", first, block)
        engine.meter.begin(label, _row_cost(block) * len(rows))
        for part in torch.split(rows, block.rows_that_fit(0, block.prompts.width)):
            logits = _run_edited(block, edits.side, part, tensors)
            after[first + part.cpu()] = _metric(block, part, logits).double().cpu()
            unedited = block.logits(edits.side)[part]
            for sum_, values in zip(sums, (unedited, logits), strict=True):
                sum_ += values.double().softmax(-1).sum(0).cpu()
    return _Changes(
        before=before,
        after=after,
        probability_before=sums[0],
        probability_after=sums[1],
        n=int((~left_out).sum()),
    )


def _run_edited(
    block: Block, side: EditSide, rows: Int[Tensor, "row"], edits: Sequence[Edit]
) -> Float[Tensor, "row d_vocab"]:
    """Return the logits at the answer position of some pairs with all edits."""
    batch = Batch(block.prompts.tokens(side)[rows], block.prompts.answer_position[rows])
    own = [
        replace(
            edit,
            where=None if edit.where is None else edit.where[rows],
            index=rows if edit.value.ndim > 1 else None,
        )
        for edit in edits
    ]
    logits = block.run(batch, edits=own).logits
    assert logits is not None
    block.meter.add(_row_cost(block) * len(rows))
    return logits


def _metric(
    block: Block, rows: Int[Tensor, "row"], logits: Float[Tensor, "row d_vocab"]
) -> Float[Tensor, "row"]:
    """Return the metric of some pairs.

    Raises:
        NotFiniteError: if it is NaN or infinite.
    """
    prompts = block.prompts
    clean = block.logits("clean")[rows] if block.metric == "kl_divergence" else None
    values = measure(block.metric, logits, prompts.answer[rows], prompts.wrong[rows], clean)
    if not bool(values.isfinite().all()):
        raise NotFiniteError(
            "With these edits, the metric is NaN or infinite.",
            "Use smaller vectors or factors, or dtype float32.",
        )
    return values


def _row_cost(block: Block) -> float:
    """Return the forward-pass equivalents of one edited prompt; lengths are averaged."""
    info = block.backend.info
    macs = row_macs(info, block.prompts.width, columns=info.n_logits)
    lengths = block.prompts.length.tolist()
    return forward_equivalents(info, macs, lengths) / len(lengths)


def _effect(
    engine: Engine, side: EditSide, change: Float[Tensor, "n"], kept: Bool[Tensor, "pair"]
) -> float | None:
    """Return the change as a share of m(clean) − m(corrupted), as a patching sweep counts it."""
    gap = (engine.baseline("clean") - engine.baseline("corrupted")).double().cpu()[kept].mean()
    if abs(float(gap)) < MIN_METRIC_GAP:
        return None
    share = float(change.mean() / gap)
    return share if side == "corrupted" else -share


def _take_pairs(task: Task, kept: Bool[Tensor, "pair"]) -> Task:
    pairs = tuple(task.pairs[number] for number in kept.nonzero()[:, 0].tolist())
    return replace(task, pairs=pairs, splits=(None,) * len(pairs))


def _warnings(left_out: Bool[Tensor, "pair"]) -> tuple[str, ...]:
    count = int(left_out.sum())
    if not count:
        return ()
    return (f"{count} of {len(left_out)} pairs lack the positions of an edit and were left out.",)


def _require_one_sided(edits: EditSet) -> None:
    """Check that edits of a single prompt need neither another side nor a task.

    Raises:
        MeasurementError: if they do.
    """
    if edits.side != "clean":
        raise MeasurementError(
            "The edits are of the corrupted side, and a single prompt has none.",
            "Give a task, or set side to clean.",
        )
    for number, edit in enumerate(edits.edits):
        if isinstance(edit, MeanEdit):
            raise MeasurementError(
                f"edits.{number} takes a mean over a task's reference prompts, and there is only a "
                "prompt.",
                "Give a task, or take the value from a named prompt.",
            )
        if isinstance(edit, ResampleEdit) and edit.source == "corrupted":
            raise MeasurementError(
                f"edits.{number} takes its value from the corrupted side, and a single prompt has "
                "none.",
                "Give a task, or name another prompt under `prompts`.",
            )
