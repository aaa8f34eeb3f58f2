"""The logit lens: what the model would predict if it stopped at a layer (nostalgebraist 2020).

The residual stream at a layer's input is handed to the model's own final norm and unembedding, with
its soft cap if it has one; this is what the model itself does with the stream after the last layer.
The reading "after layer n_layers" is therefore the model's own output.

The last norm and the unembedding were trained on the last stream only. An early stream may hold the
answer in a form that they do not read, so a low rank at an early layer does not show that the
answer is missing there. `agreement` says how often the lens already has the model's final
prediction.

    from discovery import load_model, logit_lens
    model = load_model("bundled")
    logit_lens(model, "ioi").answer_layer
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import Block, Engine, Meter, row_macs
from discovery.engine.cost import CostTimer, MeasurementCost, forward_equivalents
from discovery.methods.arguments import locate_positions, require_counts
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.methods.subject import TaskLike, Token, format_token, resolve_subject
from discovery.metrics import PAD_TOKEN, gather_tokens, measure
from discovery.progress import ProgressCallback
from discovery.sites import MetricName, Site
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task

MAX_ROWS = 512  # streams that are unembedded together
CAUTION = (
    "The lens reads each stream with the last norm and unembedding, which were trained on the last "
    "stream only: an early layer may hold the answer in a form that the lens does not show."
)


@dataclass(frozen=True, kw_only=True)
class LensToken:
    """A token that the lens predicts.

    Attributes:
        token: its id.
        text: its text, or its id if the model has no tokenizer.
        probability: its mean probability over pairs; where it is not among a pair's top tokens, it
            counts as 0.
        share: the share of pairs that have it among their top tokens.
    """

    token: int
    text: str
    probability: float
    share: float


@dataclass(frozen=True, kw_only=True)
class LensReading:
    """What the lens reads at one layer and position.

    Attributes:
        layer: the layer whose input is read; n_layers is the place after the last layer.
        position: the position, as it was asked for.
        n: the number of pairs that have this position.
        metric: the metric with its interval over pairs.
        probability: the probability of the answer (of a set: their sum).
        logit: the logit of the answer (of a set: logsumexp).
        rank: the median over pairs of the rank of the best answer; 1 is the most likely token.
        agreement: the share of pairs for which the most likely token is that of the model's own
            output at this position.
        top: the most likely tokens, the most likely first.
    """

    layer: int
    position: int | str
    n: int
    metric: Interval
    probability: Interval
    logit: Interval
    rank: float
    agreement: float
    top: tuple[LensToken, ...]


@dataclass(frozen=True, kw_only=True)
class LogitLens:
    """The readings of all layers at the positions that were asked for.

    Attributes:
        task: the name of the task; "prompt" for a single prompt.
        metric: the name of the metric.
        n: the number of pairs.
        positions: the positions.
        readings: for each layer, then for each position, what the lens reads.
        per_pair: the metric [pair layer position]; NaN if a pair lacks a position.
        answer: the text of the answer of a single pair; None for several pairs.
        wrong: the text of the wrong answer of a single pair; None for several pairs.
        warnings: what to know before the numbers are read.
        cost: the work and the time that it took.
    """

    task: str
    metric: MetricName
    n: int
    positions: tuple[int | str, ...]
    readings: tuple[LensReading, ...]
    per_pair: Float[Tensor, "pair layer position"] = field(repr=False)
    answer: str | None
    wrong: str | None
    warnings: tuple[str, ...]
    cost: MeasurementCost

    def at(self, position: int | str) -> tuple[LensReading, ...]:
        """Return the readings of every layer at one position, from the first layer on."""
        return tuple(reading for reading in self.readings if reading.position == position)

    @property
    def answer_layer(self) -> int | None:
        """The first layer from which on the answer's median rank at the last position is 1.

        None if it is not 1 in the model's own output.
        """
        first = None
        for reading in reversed(self.at(self.positions[-1])):
            if reading.rank > 1:
                break
            first = reading.layer
        return first


def logit_lens(
    model: Backend,
    task: TaskLike | None = None,
    *,
    prompt: Prompt | None = None,
    answer: Token | None = None,
    wrong: Token | None = None,
    positions: Sequence[int | str] | None = None,
    metric: MetricName | None = None,
    top: int = 5,
    pairs: int | None = 32,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> LogitLens:
    """Read the residual stream at each layer as if the model stopped there.

    Args:
        task: a task, whose clean prompts are read. The name of a built-in task or the path of a
            task file stands for `pairs` of its pairs.
        prompt: a single prompt; give either this or a task.
        answer: for a prompt, the token to look for; the default is the model's own prediction.
        wrong: for a prompt, the token that the metric compares it with.
        positions: positions that count from 0 or (negative) from the end, or labels of the task.
            The default is the answer position, -1.
        metric: what is measured; the task's own by default.
        top: how many tokens to list for each reading.
        memory: bytes that caches and batches may take; 60% of the free memory by default.

    Raises:
        MeasurementError: if not exactly one of task and prompt is given, or if an argument is
            wrong.
        MemoryLimitError: if the memory does not hold one pair.
    """
    began = time.monotonic()
    require_counts(top=(top, 1))
    subject = resolve_subject(
        model, task, prompt, answer=answer, wrong=wrong, pairs=pairs, seed=seed
    )
    chosen = tuple(positions) if positions is not None else (-1,)
    places = locate_positions(subject, chosen)
    engine = Engine(model, subject, metric=metric, memory=memory, meter=Meter(progress=progress))
    timer = CostTimer(engine.meter, began)
    readings = _Readings(engine, chosen, places, top)
    for first, block in engine.blocks():
        readings.read(first, block)
    single = subject.pairs[0] if len(subject) == 1 else None
    return LogitLens(
        task=subject.name,
        metric=engine.metric,
        n=len(subject),
        positions=chosen,
        readings=tuple(readings.summarise()),
        per_pair=readings.metric,
        answer=format_token(model, single.answer[0]) if single else None,
        wrong=format_token(model, single.wrong[0]) if single else None,
        warnings=(CAUTION,),
        cost=timer.cost,
    )


class _Readings:
    """Collects the readings of all pairs, block by block.

    Attributes:
        metric: the metric [pair layer position]; NaN if a pair lacks a position.
    """

    def __init__(
        self,
        engine: Engine,
        positions: Sequence[int | str],
        places: Sequence[Sequence[int | None]],
        top: int,
    ) -> None:
        self._engine = engine
        self._positions = positions
        self._places = places
        self._top = top
        shape = (len(engine), engine.backend.info.n_layers + 1, len(positions))
        self.metric = torch.full(shape, float("nan"), dtype=torch.float64)
        self._probability = self.metric.clone()
        self._logit = self.metric.clone()
        self._rank = self.metric.clone()
        self._best = torch.full(shape, PAD_TOKEN)
        self._tokens: dict[tuple[int, int], dict[int, list[float]]] = defaultdict(dict)

    def read(self, first: int, block: Block) -> None:
        """Read the pairs of a block, whose first pair has the number `first`."""
        n_layers = self._engine.backend.info.n_layers
        work = _row_cost(block) * len(self._positions) * (n_layers + 1) * len(block.prompts)
        block.load("clean", block.shared_sites)
        label = self._engine.block_label("logit lens", first, block)
        self._engine.meter.begin(label, work)
        where, exists = self._find_positions(first, block)
        for layer in range(n_layers + 1):
            site = Site("resid_pre", layer)
            if layer == n_layers:
                site = Site("resid_post", layer - 1)
            stream = block.activation("clean", site)
            for column in range(len(self._positions)):
                rows = exists[:, column].nonzero()[:, 0]
                for part in torch.split(rows, _max_rows(block)):
                    logits = _unembed(block, stream[part, where[part, column]], part)
                    self._record(first, block, part, layer, column, logits)

    def _find_positions(
        self, first: int, block: Block
    ) -> tuple[Int[Tensor, "pair position"], Bool[Tensor, "pair position"]]:
        """Return where each pair has each position, and whether it has it at all."""
        places = self._places[first : first + len(block.prompts)]
        where = torch.tensor(
            [[PAD_TOKEN if place is None else place for place in row] for row in places],
            device=block.prompts.length.device,
        )
        return where, where >= 0

    def _record(
        self,
        first: int,
        block: Block,
        rows: Int[Tensor, "n"],
        layer: int,
        column: int,
        logits: Float[Tensor, "n d_vocab"],
    ) -> None:
        prompts = block.prompts
        answers, wrong = prompts.answer[rows], prompts.wrong[rows]
        wide = logits.float() if logits.itemsize < 4 else logits
        clean = None
        if self._engine.metric == "kl_divergence":
            clean = block.logits("clean")[rows]
        metric = measure(self._engine.metric, wide, answers, wrong, clean)
        of_answers = gather_tokens(wide, answers)
        log_total = wide.logsumexp(1)
        best = of_answers.max(1).values
        at = (rows.cpu() + first, layer, column)
        self.metric[at] = metric.double().cpu()
        self._logit[at] = of_answers.logsumexp(1).double().cpu()
        self._probability[at] = (of_answers.logsumexp(1) - log_total).exp().double().cpu()
        self._rank[at] = 1 + (wide > best[:, None]).sum(1).double().cpu()
        largest = wide.topk(min(self._top, wide.shape[1]), dim=1)
        self._best[at] = largest.indices[:, 0].cpu()
        probabilities = (largest.values - log_total[:, None]).exp()
        sums = self._tokens[layer, column]
        for token, probability in zip(
            largest.indices.flatten().tolist(), probabilities.flatten().tolist(), strict=True
        ):
            sums.setdefault(token, []).append(probability)

    def summarise(self) -> Iterator[LensReading]:
        """Yield the mean over pairs of every layer and position."""
        for layer in range(self.metric.shape[1]):
            for column, position in enumerate(self._positions):
                yield self._summarise_one(layer, column, position)

    def _summarise_one(self, layer: int, column: int, position: int | str) -> LensReading:
        known = self.metric[:, layer, column].isfinite()
        rows = known.nonzero()[:, 0].tolist()
        task = self._engine.task
        pairs = tuple(task.pairs[row] for row in rows)
        part = Task(name=task.name, pairs=pairs, splits=(None,) * len(pairs), split_method="")
        resamples = Resamples.of(part)
        best = self._best[known, layer, column]
        return LensReading(
            layer=layer,
            position=position,
            n=len(rows),
            metric=interval_of_mean(self.metric[known, layer, column], resamples),
            probability=interval_of_mean(self._probability[known, layer, column], resamples),
            logit=interval_of_mean(self._logit[known, layer, column], resamples),
            rank=float(self._rank[known, layer, column].quantile(0.5)),
            agreement=float((best == self._best[known, -1, column]).double().mean()),
            top=self._top_tokens(layer, column, len(rows)),
        )

    def _top_tokens(self, layer: int, column: int, n: int) -> tuple[LensToken, ...]:
        sums = self._tokens[layer, column].items()
        ranked = sorted(sums, key=lambda item: (-sum(item[1]), item[0]))[: self._top]
        return tuple(
            LensToken(
                token=token,
                text=format_token(self._engine.backend, token),
                probability=sum(probabilities) / n,
                share=len(probabilities) / n,
            )
            for token, probabilities in ranked
        )


def _unembed(
    block: Block, stream: Float[Tensor, "n d_model"], rows: Int[Tensor, "n"]
) -> Float[Tensor, "n d_vocab"]:
    """Return the logits that the model makes of a stream after its last layer."""
    answer_position = torch.zeros_like(rows)
    batch = Batch(
        torch.zeros_like(rows)[:, None],
        answer_position,
        start=block.backend.info.n_layers,
        residual=stream[:, None],
    )
    logits = block.run(batch).logits
    assert logits is not None
    block.meter.add(_row_cost(block) * len(rows))
    return logits


def _row_cost(block: Block) -> float:
    """Return the forward-pass equivalents of unembedding one stream; lengths are averaged."""
    info = block.backend.info
    macs = row_macs(info, 1, start=info.n_layers, columns=info.n_logits)
    lengths = block.prompts.length.tolist()
    return forward_equivalents(info, macs, lengths) / len(lengths)


def _max_rows(block: Block) -> int:
    return min(MAX_ROWS, block.rows_in_memory(0, 1))
