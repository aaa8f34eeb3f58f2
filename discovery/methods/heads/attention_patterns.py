"""Where attention heads look from one position: by token, by label, and how spread out it is.

A pattern is what the model itself weighs its values with: after its mask, its soft cap, its
positional terms and its softmax. Only the clean prompts are read. Attention says what a head reads,
not that it matters: ablate_heads and patch_sweep measure that.

    from discovery import attention_patterns, load_model
    looks = attention_patterns(load_model("bundled"), "ioi", nodes=["a2.h0"])
    looks.heads[0].sources
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Engine, Meter, Side
from discovery.engine.cached_runs import CachedRuns
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.errors import MeasurementError
from discovery.methods.ablation import parse_nodes
from discovery.methods.arguments import locate_positions, require_counts
from discovery.methods.heads.kinds import p_above
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.methods.subject import TaskLike, format_tokens, resolve_subject
from discovery.progress import ProgressCallback
from discovery.sites import Node, Site
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task

PATTERN_MEMORY_SHARE = 0.25  # of the memory for batches, for the patterns of one pass
CAUTION = "Attention says what a head reads, not that it matters: ablate_heads measures that."


@dataclass(frozen=True, kw_only=True)
class AttentionShare:
    """How much of its attention a head pays to one source.

    Attributes:
        source: a label of the task, or a position as it is counted (see `AttentionPatterns`).
        text: the text of the token there, if a single prompt is read; else None.
        share: the mean share over the pairs that have this source, with its interval.
    """

    source: int | str
    text: str | None
    share: Interval


@dataclass(frozen=True, kw_only=True)
class HeadAttention:
    """Where one head looks.

    Attributes:
        node: the head.
        entropy: the mean entropy of its attention, in nats.
        uniform_entropy: the mean entropy of looking everywhere equally: the largest there can be.
        first: the mean share on the first token.
        sources: where it looks most, the largest share first.
    """

    node: str
    entropy: Interval
    uniform_entropy: float
    first: Interval
    sources: tuple[AttentionShare, ...]


@dataclass(frozen=True, kw_only=True)
class AttentionPatterns:
    """Where heads look from one position.

    Attributes:
        task: the name of the task; "prompt" for a single prompt.
        n: the number of pairs that have the position.
        position: the position from which they look.
        counts: what the sources count: "label" (positions without a label are left out),
            "position" from 0, or "offset" backwards from the position that looks (0 is itself).
        heads: where each head looks, in forward order.
        tokens: the texts of the tokens of a single prompt; empty for several pairs.
        patterns: the whole patterns [head dst src] of the named heads on the first pair; None if no
            heads were named.
        warnings: what to know before the numbers are read.
        cost: the work and the time that it took.
    """

    task: str
    n: int
    position: int | str
    counts: str
    heads: tuple[HeadAttention, ...]
    tokens: tuple[str, ...]
    patterns: Float[Tensor, "head dst src"] | None = field(repr=False)
    warnings: tuple[str, ...]
    cost: MeasurementCost


def attention_patterns(
    model: Backend,
    task: TaskLike | None = None,
    *,
    prompt: Prompt | None = None,
    nodes: Sequence[str | Node] | None = None,
    position: int | str = -1,
    top: int = 5,
    pairs: int | None = 32,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> AttentionPatterns:
    """Measure where heads look from one position of the clean prompts.

    Args:
        task: a task, or the name or path of one, which stands for `pairs` of its pairs. If its
            pairs have labels, sources are counted by label.
        prompt: a single prompt; give either this or a task.
        nodes: the heads; None means all of them, without whole patterns.
        position: where they look from: a position that counts from 0 or from the end, or a label.
        top: how many sources to list for each head.
        memory: bytes that caches and batches may take; 60% of the free memory by default.

    Raises:
        MeasurementError: if the arguments are wrong.
        SiteError: if the model lacks a head, or if its attention pattern cannot be read.
    """
    began = time.monotonic()
    require_counts(top=(top, 1))
    subject = resolve_subject(model, task, prompt, pairs=pairs, seed=seed)
    chosen = _heads(model, nodes)
    places = [row[0] for row in locate_positions(subject, [position])]
    kept = [index for index, place in enumerate(places) if place is not None]
    queries = [place for place in places if place is not None]
    present = Task(
        name=subject.name,
        pairs=tuple(subject.pairs[index] for index in kept),
        splits=(None,) * len(kept),
        split_method=subject.split_method,
        metric="logit_difference",
    )
    engine = Engine(model, present, memory=memory, meter=Meter(progress=progress))
    timer = CostTimer(engine.meter, began)
    rows, whole = read_rows(engine, chosen, queries, keep_whole=nodes is not None)
    counts, source_names, where = _sources(present, queries)
    tokens = format_tokens(model, present.pairs[0].clean) if len(present) == 1 else ()
    summary = _Summary(
        rows=rows,
        queries=queries,
        where=where,
        names=source_names,
        whole=Resamples.of(present),
        resamples=_resamples_by_source(present, where),
        tokens=tokens,
        top=top,
    )
    return AttentionPatterns(
        task=subject.name,
        n=len(present),
        position=position,
        counts=counts,
        heads=tuple(summary.of_head(index, node) for index, node in enumerate(chosen)),
        tokens=tokens,
        patterns=whole,
        warnings=(CAUTION,),
        cost=timer.cost,
    )


def read_patterns(
    runs: CachedRuns, side: Side, layers: Sequence[int]
) -> Iterator[tuple[slice, dict[int, Float[Tensor, "pair head dst src"]]]]:
    """Run prompts and yield their patterns, batch by batch; nothing is kept.

    Only as many layers are read in one pass as fit in a share of the memory for batches, so that
    memory stays bounded for long prompts.

    Args:
        runs: the prompts.
        side: clean or corrupted.
        layers: the layers whose patterns are read.

    Yields:
        The slice of the prompts that form a batch, and the patterns of some layers.
    """
    info = runs.backend.info
    per_layer = info.itemsize * info.n_heads * runs.prompts.width**2
    budget = int(PATTERN_MEMORY_SHARE * runs.memory)
    at_once = max(1, min(len(layers), budget // per_layer))
    for begin in range(0, len(layers), at_once):
        group = layers[begin : begin + at_once]
        max_rows = max(1, budget // (per_layer * len(group)))
        sites = [Site("pattern", layer) for layer in group]
        for part, result in runs.read_unchanged(side, sites, max_rows):
            activations = result.activations
            yield part, {site.layer: activations[site].float() for site in sites}


def _heads(model: Backend, nodes: Sequence[str | Node] | None) -> tuple[Node, ...]:
    """Return the heads that were named, or all of them, in forward order.

    Raises:
        MeasurementError: if an MLP is named.
    """
    if nodes is None:
        return tuple(model.info.nodes("heads"))
    chosen = tuple(sorted(parse_nodes(model, nodes)))
    if not chosen:
        raise MeasurementError("nodes is empty.", "Name at least one head, as a0.h0.")
    for node in chosen:
        if node.kind != "attention_head":
            raise MeasurementError(f"{node} is no head, and looks nowhere.", "Name heads: a0.h0.")
    return chosen


def read_rows(
    engine: Engine, heads: Sequence[Node], queries: Sequence[int], *, keep_whole: bool
) -> tuple[Float[Tensor, "pair head src"], Float[Tensor, "head first first"] | None]:
    """Return the attention of each head from each pair's position, and whole patterns of pair 0."""
    width = max(len(pair.clean) for pair in engine.task.pairs)
    rows = torch.zeros(len(engine), len(heads), width)
    first_length = len(engine.task.pairs[0].clean)
    whole = torch.zeros(len(heads), first_length, first_length) if keep_whole else None
    layers = sorted({node.layer or 0 for node in heads})
    columns = {
        layer: [index for index, node in enumerate(heads) if node.layer == layer]
        for layer in layers
    }
    for first, block in engine.blocks():
        label = engine.block_label("attention patterns", first, block)
        engine.meter.begin(label, block.estimate_pass())
        for part, patterns in read_patterns(block, "clean", layers):
            numbers = range(len(block.prompts))[part]
            for layer, pattern in patterns.items():
                at = columns[layer]
                mine = pattern[:, [heads[index].head for index in at]].cpu()
                for row, number in enumerate(numbers):
                    query = queries[first + number]
                    values = mine[row, :, query]
                    rows[first + number, at, : values.shape[-1]] = values
                if whole is not None and first + numbers[0] == 0:
                    whole[at] = mine[0, :, :first_length, :first_length]
    return rows, whole


def _sources(
    task: Task, queries: Sequence[int]
) -> tuple[str, list[int | str], Float[Tensor, "source pair"]]:
    """Return what the sources count, their names, and each pair's position (NaN if it has none)."""
    pairs = task.pairs
    labels = sorted({name for pair in pairs for name in pair.labels})
    names: list[int | str] = [*labels]
    if labels:
        counts = "label"
        where = [[pair.labels.get(name) for pair in pairs] for name in labels]
    elif len({(len(pair.clean), query) for pair, query in zip(pairs, queries, strict=True)}) == 1:
        counts = "position"
        names = list(range(queries[0] + 1))
        where = [[number] * len(pairs) for number in range(queries[0] + 1)]
    else:
        counts = "offset"
        names = [-offset for offset in range(max(queries) + 1)]
        where = [[query - offset for query in queries] for offset in range(max(queries) + 1)]
    places = [
        [
            number if number is not None and 0 <= number <= query else float("nan")
            for number, query in zip(row, queries, strict=True)
        ]
        for row in where
    ]
    return counts, names, torch.tensor(places, dtype=torch.float64)


def _resamples_by_source(task: Task, where: Float[Tensor, "source pair"]) -> tuple[Resamples, ...]:
    """Return for each source draws of the pairs that have it; of all pairs if none has."""
    found: dict[tuple[bool, ...], Resamples] = {}
    known = [tuple(row) for row in where.isfinite().tolist()]
    for row in known:
        if row not in found:
            pairs = tuple(pair for pair, has in zip(task.pairs, row, strict=True) if has)
            pairs = pairs or task.pairs
            splits = (None,) * len(pairs)
            found[row] = Resamples.of(replace(task, pairs=pairs, splits=splits))
    return tuple(found[row] for row in known)


@dataclass(frozen=True, kw_only=True)
class TestedShare:
    """The attention to one source, tested against uniform attention.

    Attributes:
        share: the share.
        uniform: the mean share of looking everywhere equally.
        p: of a one-sided t-test over the pairs that have the source; 1 for a single pair.
    """

    share: AttentionShare
    uniform: float
    p: float


def measure_shares(engine: Engine, node: Node) -> tuple[TestedShare, ...]:
    """Measure and test the attention of one head from the answer position to every source."""
    task = engine.task
    queries = [len(pair.clean) - 1 for pair in task.pairs]
    rows, _ = read_rows(engine, [node], queries, keep_whole=False)
    _, names, where = _sources(task, queries)
    uniform = 1 / (1 + torch.tensor(queries, dtype=torch.float64))
    tested = []
    for name, places, resamples in zip(
        names, where, _resamples_by_source(task, where), strict=True
    ):
        known = places.isfinite()
        if not bool(known.any()):
            continue
        values = rows[known, 0, places[known].long()].double()
        share = AttentionShare(source=name, text=None, share=interval_of_mean(values, resamples))
        chance = uniform[known]
        tested.append(
            TestedShare(
                share=share,
                uniform=float(chance.mean()),
                p=float(p_above((values - chance)[:, None].numpy())[0]),
            )
        )
    return tuple(tested)


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """Summarises the attention of each head.

    Attributes:
        rows: the attention from each pair's position [pair head src].
        queries: the position of each pair.
        where: for each source, its position in each pair; NaN if the pair has none.
        names: the name of each source.
        whole: draws of all pairs.
        resamples: for each source, draws of the pairs that have it.
        tokens: the texts of a single prompt.
        top: how many sources to list.
    """

    rows: Float[Tensor, "pair head src"]
    queries: Sequence[int]
    where: Float[Tensor, "source pair"]
    names: Sequence[int | str]
    whole: Resamples
    resamples: Sequence[Resamples]
    tokens: Sequence[str]
    top: int

    def of_head(self, index: int, node: Node) -> HeadAttention:
        """Return where one head looks."""
        attention = self.rows[:, index].double()
        entropy = -torch.special.xlogy(attention, attention).sum(1)
        uniform = torch.tensor([query + 1.0 for query in self.queries]).log().mean()
        found = (self._share(attention, number) for number in range(len(self.names)))
        shares = [share for share in found if share is not None]
        ranked = sorted(shares, key=lambda share: -share.share.mean)
        return HeadAttention(
            node=str(node),
            entropy=interval_of_mean(entropy, self.whole),
            uniform_entropy=float(uniform),
            first=interval_of_mean(attention[:, 0], self.whole),
            sources=tuple(ranked[: self.top]),
        )

    def _share(self, attention: Float[Tensor, "pair src"], number: int) -> AttentionShare | None:
        """Return the mean share of one source; None if no pair has it before its position."""
        where = self.where[number]
        known = where.isfinite()
        if not bool(known.any()):
            return None
        values = torch.zeros_like(attention[:, 0])
        values[known] = attention[known, where[known].long()]
        share = interval_of_mean(values[known], self.resamples[number])
        name = self.names[number]
        text = self.tokens[int(where[known][0])] if self.tokens else None
        return AttentionShare(source=name, text=text, share=share)
