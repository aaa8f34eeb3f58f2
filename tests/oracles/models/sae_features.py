"""Measurements on SAE features by plain runs: nothing cached, nothing batched, nothing streamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.interventions import Edit
from discovery.methods.features import Sampling
from discovery.metrics import measure
from discovery.sites import Site
from discovery.tasks.task import EncodedPair, Task


def task_tensors(task: Task) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return padded clean tokens [pair pos], last positions, answers and wrong answers."""
    pairs = task.pairs
    width = max(len(pair.clean) for pair in pairs)
    tokens = torch.tensor([[*pair.clean, *[0] * (width - len(pair.clean))] for pair in pairs])
    last = torch.tensor([len(pair.clean) - 1 for pair in pairs])
    answer = torch.tensor([pair.answer for pair in pairs])
    wrong = torch.tensor([pair.wrong for pair in pairs])
    return tokens, last, answer, wrong


def real_positions(task: Task) -> Tensor:
    """Return which positions [pair pos] are not padding."""
    tokens, last, *_ = task_tensors(task)
    return torch.arange(tokens.shape[1]) <= last.unsqueeze(1)


def metric_by_plain_runs(
    model: Backend, task: Task, site: Site, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the metric of each pair after `change` of a site's activation."""
    tokens, last, answer, wrong = task_tensors(task)
    clean = model.run(Batch(tokens, last), [site]).activations[site]
    logits = model.run(Batch(tokens, last), edits=[Edit(site, change(clean))]).logits
    return measure(task.metric, logits, answer, wrong)


def corrupted_metric(model: Backend, pair: EncodedPair) -> float:
    """Return the logit difference of a pair's corrupted prompt."""
    tokens = torch.tensor([pair.corrupted])
    logits = model.run(Batch(tokens, torch.tensor([len(pair.corrupted) - 1]))).logits
    assert logits is not None
    return float(logits[0, pair.answer[0]] - logits[0, pair.wrong[0]])


def greedy_continuation(
    model: Backend,
    prompt: Sequence[int],
    count: int,
    edits: Callable[[Backend, Batch], list[Edit]] | None = None,
) -> tuple[int, ...]:
    """Append the most likely token `count` times, each time by a run of the whole text so far."""
    ids = list(prompt)
    for _ in range(count):
        batch = Batch(torch.tensor([ids]), torch.tensor([len(ids) - 1]))
        logits = model.run(batch, edits=edits(model, batch) if edits else ()).logits
        assert logits is not None
        ids.append(int(logits[0].argmax()))
    return tuple(ids[len(prompt) :])


def contexts_by_brute_force(
    case: SimpleNamespace, feature: int, sampling: Sampling
) -> tuple[dict[Any, float], list[float], int]:
    """Find every context of a feature that reads the stream before layer 1.

    Args:
        case: model, rows of token ids, and the directions of a dictionary [feature d_in].

    Returns:
        The largest activation of each context, which is identified by its tokens and its peak;
        every activation that counts; and the number of windows in which the feature fires.
    """
    best: dict[Any, float] = defaultdict(float)
    activations: list[float] = []
    n_windows = 0
    site = Site("resid_pre", 1)
    for row in case.rows:
        for first in range(0, len(row), sampling.window):
            part = row[first : first + sampling.window]
            run = case.model.run(Batch(torch.tensor([part]), stop=2), [site])
            z = (run.activations[site][0] @ case.directions[feature]).relu()
            counted = z[sampling.skip :].tolist()
            activations += counted
            if not any(counted):
                continue
            n_windows += 1
            peak = counted.index(max(counted)) + sampling.skip
            begin = max(0, peak - sampling.around)
            context = tuple(part[begin : peak + sampling.around + 1])
            key = (context, peak - begin)
            best[key] = max(best[key], max(counted))
    return best, activations, n_windows
