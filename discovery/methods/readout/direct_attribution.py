"""Direct logit attribution: what each part of the model adds to the answer's logit by itself.

The last residual stream is the sum of the embedding, of every head's and every MLP's output, and of
the attention's output biases. With the scale of the last norm frozen at its value for this prompt,
the norm and the unembedding are linear, so the logit difference is a sum with one term for each of
these (Elhage et al. 2021; Wang et al. 2022, section 3.2). What a part does through later parts
is not in its term; ablation and path patching measure that.

- Norms behind the attention (Gemma 2, OLMo 2) are frozen at their scale too, so that heads add up.
- The terms are those of the unembedding's output, before a soft cap or a scale of the logits.
- For a set of answers, logsumexp is linearised at its value: each answer's logit counts with its
  softmax weight within the set. What this leaves out is the term `sets`.

    from discovery import direct_logit_attribution, load_model
    attribution = direct_logit_attribution(load_model("bundled"), "ioi")
    attribution.top(5), attribution.remainder
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.weights import ModelWeights
from discovery.engine import Block, Engine, Meter
from discovery.engine.cost import CostTimer, MeasurementCost
from discovery.methods.statistics import Interval, Resamples, interval_of_mean
from discovery.methods.subject import TaskLike, Token, format_token, resolve_subject
from discovery.metrics import PAD_TOKEN, gather_tokens, logit_difference
from discovery.progress import ProgressCallback
from discovery.sites import Site, head, mlp
from discovery.tasks.pairs import Prompt

PartKind = Literal["embed", "attention_head", "mlp", "attention_bias", "bias", "sets"]

MAX_REMAINDER = 1e-4  # of the sum of absolute contributions; larger ones are warned of


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one part of the model adds to the logit difference.

    Attributes:
        part: its name: a node (a9.h6, m5, embed), a9.bias for the output bias of an attention, bias
            for those of the last norm and of the unembedding, or sets.
        kind: what it is.
        layer: its layer; None for parts outside the layers.
        head: its number among the heads of its layer; None for other parts.
        value: the mean contribution over pairs, with its interval.
    """

    part: str
    kind: PartKind
    layer: int | None
    head: int | None
    value: Interval


@dataclass(frozen=True, kw_only=True)
class DirectAttribution:
    """The logit difference as a sum over the parts of the model.

    Attributes:
        task: the name of the task; "prompt" for a single prompt.
        n: the number of pairs.
        contributions: every part, in forward order.
        total: the sum of all contributions.
        logit_difference: what the model computes, before any soft cap.
        remainder: logit_difference − total.
        remainder_share: the largest absolute remainder of a pair, as a share of the sum of its
            absolute contributions.
        accumulated: for each layer, and at the end, the contribution of the stream at its input.
        per_pair: the contributions [pair part], in the order of `contributions`.
        answer: the text of the answer of a single pair; None for several pairs.
        wrong: the text of the wrong answer of a single pair; None for several pairs.
        warnings: what to know before the numbers are read.
        cost: the work and the time that it took.
    """

    task: str
    n: int
    contributions: tuple[Contribution, ...]
    total: Interval
    logit_difference: Interval
    remainder: float
    remainder_share: float
    accumulated: tuple[Interval, ...]
    per_pair: Float[Tensor, "pair part"] = field(repr=False)
    answer: str | None
    wrong: str | None
    warnings: tuple[str, ...]
    cost: MeasurementCost

    def top(self, k: int) -> tuple[Contribution, ...]:
        """Return the parts with the largest absolute mean, the largest first."""
        ranked = sorted(self.contributions, key=lambda part: -abs(part.value.mean))
        return tuple(ranked[:k])

    @property
    def heads(self) -> Float[Tensor, "layer head"]:
        """The mean contribution of every head."""
        of_heads = [part for part in self.contributions if part.kind == "attention_head"]
        values = torch.tensor([part.value.mean for part in of_heads])
        return values.reshape(1 + max(part.layer or 0 for part in of_heads), -1)


@dataclass(frozen=True, kw_only=True)
class _PartName:
    """A part of the model, apart from its number."""

    name: str
    kind: PartKind
    layer: int | None = None
    head: int | None = None


def direct_logit_attribution(
    model: Backend,
    task: TaskLike | None = None,
    *,
    prompt: Prompt | None = None,
    answer: Token | None = None,
    wrong: Token | None = None,
    pairs: int | None = 32,
    seed: int = 0,
    memory: int | None = None,
    progress: ProgressCallback | None = None,
) -> DirectAttribution:
    """Write the logit difference as a sum over the embedding, heads, MLPs and biases.

    The logit difference is that of the answer and the wrong answer at the answer position of the
    clean prompts, whatever the metric of the task.

    Args:
        task: a task, or the name or path of one, which stands for `pairs` of its pairs.
        prompt: a single prompt; give either this or a task.
        answer: for a prompt, the answer; the default is the model's own prediction.
        wrong: for a prompt, what the answer is compared with; the default is the runner-up.
        memory: bytes that caches and batches may take; 60% of the free memory by default.

    Raises:
        MeasurementError: if the arguments are wrong, if the weights are not on this machine, or if
            the model's layers do not add up to its stream.
        MemoryLimitError: if the memory does not hold one pair.
    """
    began = time.monotonic()
    subject = resolve_subject(
        model, task, prompt, answer=answer, wrong=wrong, pairs=pairs, seed=seed
    )
    weights = ModelWeights(model)
    weights.require_sums()
    meter = Meter(progress=progress)
    engine = Engine(model, subject, metric="logit_difference", memory=memory, meter=meter)
    timer = CostTimer(engine.meter, began)
    parts = []
    differences = []
    for first, block in engine.blocks():
        engine.meter.begin(engine.block_label("attribution", first, block), block.estimate_pass())
        values, difference = _attribute(block, weights)
        parts.append(values)
        differences.append(difference)
    return _summarise(engine, torch.cat(parts), torch.cat(differences), timer)


def _summarise(
    engine: Engine,
    contributions: Float[Tensor, "pair part"],
    differences: Float[Tensor, "pair"],
    timer: CostTimer,
) -> DirectAttribution:
    """Return the means over pairs, and how far the sum is from the logit difference."""
    model = engine.backend
    pairs = engine.task.pairs
    per_pair = contributions.double().cpu()
    difference = differences.double().cpu()
    names = _part_names(model)
    resamples = Resamples.of(engine.task)
    single = pairs[0] if len(pairs) == 1 else None
    rest = difference - per_pair.sum(1)
    share = float((rest.abs() / per_pair.abs().sum(1)).max())
    return DirectAttribution(
        task=engine.task.name,
        n=len(pairs),
        contributions=tuple(
            Contribution(
                part=part.name,
                kind=part.kind,
                layer=part.layer,
                head=part.head,
                value=interval_of_mean(per_pair[:, column], resamples),
            )
            for column, part in enumerate(names)
        ),
        total=interval_of_mean(per_pair.sum(1), resamples),
        logit_difference=interval_of_mean(difference, resamples),
        remainder=float(rest.mean()),
        remainder_share=share,
        accumulated=_accumulate(per_pair, names, model.info.n_layers, resamples),
        per_pair=per_pair,
        answer=format_token(model, single.answer[0]) if single else None,
        wrong=format_token(model, single.wrong[0]) if single else None,
        warnings=_warnings(model, share),
        cost=timer.cost,
    )


def answer_directions(
    block: Block, weights: ModelWeights, stream: Float[Tensor, "pair d_model"]
) -> tuple[Float[Tensor, "pair d_model"], Tensor, Tensor, Tensor]:
    """Return what the logit difference reads from the last stream, with the norm's scale frozen.

    Args:
        stream: the last stream at the answer positions.

    Returns:
        The direction whose product with a part of the stream is that part's contribution; the
        constant that the biases add; the difference between logsumexp and its linear part; and the
        logit difference itself, before any soft cap.
    """
    norm = weights.final_norm
    prompts = block.prompts
    logits = norm(stream) @ weights.unembedding + weights.unembedding_bias
    read = torch.zeros_like(stream)
    constant = torch.zeros_like(stream[:, 0])
    sets = torch.zeros_like(constant)
    for tokens, sign in ((prompts.answer, 1.0), (prompts.wrong, -1.0)):
        own = gather_tokens(logits, tokens)
        share = own.softmax(1)
        columns = weights.unembedding.T[tokens.clamp(min=0)]
        read += sign * torch.einsum("rk,rkm->rm", share, columns)
        bias = weights.unembedding_bias[tokens.clamp(min=0)]
        constant += sign * (share * bias).sum(1)
        linear = (share * own.masked_fill(tokens == PAD_TOKEN, 0.0)).sum(1)
        sets += sign * (own.logsumexp(1) - linear)
    constant = constant + (read * norm.bias).sum(1)
    difference = logit_difference(logits, prompts.answer, prompts.wrong)
    return norm.read_direction(read) / norm.scale(stream), constant, sets, difference


def head_contributions(
    block: Block,
    weights: ModelWeights,
    layer: int,
    direction: Float[Tensor, "pair d_model"],
    rows: Int[Tensor, "pair"],
    position: Int[Tensor, "pair"],
) -> tuple[Float[Tensor, "pair head"], Float[Tensor, "pair"]]:
    """Return what each head of a layer, and the bias of its attention, add along a direction.

    Args:
        direction: a direction in the residual stream for each pair.
        rows: the pairs.
        position: the position of each pair at which the heads write.
    """
    output = weights.attention_output(layer)
    z = block.activation("clean", Site("z", layer))[rows, position].to(direction)
    written = output.sum_heads(z)
    # The norm behind the attention, frozen, is moved to the direction's side.
    read = output.norm.read_direction(direction) / output.norm.scale(written)
    by_head = torch.einsum("rhd,hdm,rm->rh", z, output.weights, read)
    bias = (read * output.bias).sum(1) + (direction * output.norm.bias).sum(1)
    return by_head, bias


def _attribute(
    block: Block, weights: ModelWeights
) -> tuple[Float[Tensor, "pair part"], Float[Tensor, "pair"]]:
    """Return the contributions of a block's pairs, and their logit differences."""
    info = block.backend.info
    prompts = block.prompts
    block.load("clean", block.shared_sites)
    rows = torch.arange(len(prompts), device=prompts.length.device)
    position = prompts.answer_position

    def read(site: Site) -> Tensor:
        return block.activation("clean", site)[rows, position].to(weights.unembedding.dtype)

    stream = read(Site("resid_post", info.n_layers - 1))
    direction, constant, sets, difference = answer_directions(block, weights, stream)
    if block.backend.abilities.columns:  # nothing follows the unembedding: the model's own number
        difference = block.baseline("clean")
    columns = [(read(Site("resid_pre", 0)) * direction).sum(1, keepdim=True)]
    for layer in range(info.n_layers):
        by_head, bias = head_contributions(block, weights, layer, direction, rows, position)
        columns += [by_head, bias[:, None]]
        if not info.attn_only:
            written = read(Site("mlp_out", layer))
            columns.append((written * direction).sum(1, keepdim=True))
    columns += [constant[:, None], sets[:, None]]
    return torch.cat(columns, 1), difference


def _part_names(model: Backend) -> tuple[_PartName, ...]:
    """Return the parts in the order of the contributions."""
    info = model.info
    names = [_PartName(name="embed", kind="embed")]
    for layer in range(info.n_layers):
        names += [
            _PartName(name=str(head(layer, n)), kind="attention_head", layer=layer, head=n)
            for n in range(info.n_heads)
        ]
        names.append(_PartName(name=f"a{layer}.bias", kind="attention_bias", layer=layer))
        if not info.attn_only:
            names.append(_PartName(name=str(mlp(layer)), kind="mlp", layer=layer))
    return (*names, _PartName(name="bias", kind="bias"), _PartName(name="sets", kind="sets"))


def _accumulate(
    per_pair: Float[Tensor, "pair part"],
    names: tuple[_PartName, ...],
    n_layers: int,
    resamples: Resamples,
) -> tuple[Interval, ...]:
    """Return the contribution of the stream at each layer's input, and at the end."""
    intervals = []
    for layer in range(n_layers + 1):
        earlier = torch.tensor(
            [
                part.kind == "embed" or (part.layer is not None and part.layer < layer)
                for part in names
            ]
        )
        intervals.append(interval_of_mean(per_pair[:, earlier].sum(1), resamples))
    return tuple(intervals)


def _warnings(model: Backend, remainder_share: float) -> tuple[str, ...]:
    warnings = [
        "Only what a part writes straight to the logits counts; what later parts make of it does "
        "not."
    ]
    if not model.abilities.columns:
        warnings.append("The model caps or scales its logits: contributions are those before that.")
    if remainder_share > MAX_REMAINDER:
        warnings.append(
            f"The contributions miss the logit difference by up to {remainder_share:.1e} of their "
            f"sum of absolute values (rounding in {model.info.dtype})."
        )
    return tuple(warnings)
