"""m(S) as defined (docs/definitions.md, "Universe"), one pair at a time.

It uses the independent forward pass of a native model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.known_circuits.forward import node_names, run_forward
from benchmarks.random_models.tiny_models import NativeCheckpoint
from discovery.sites import Ablation, MetricName
from discovery.tasks.task import EncodedPair
from tests.oracles.mean_reference import mean_by_definition
from tests.oracles.patching import metric_of


def reference_activations(
    checkpoint: NativeCheckpoint, pairs: Sequence[EncodedPair], ablation: Ablation
) -> list[dict[str, Tensor]]:
    """Return what the nodes of each pair are replaced by: node -> [1 pos d_model]."""
    runs = [
        run_forward(checkpoint.config, checkpoint.state, torch.tensor([pair.corrupted])).nodes
        for pair in pairs
    ]
    if ablation == "resample":
        return [dict(run) for run in runs]
    if ablation == "zero":
        return [{node: torch.zeros_like(value) for node, value in run.items()} for run in runs]
    return [
        {node: _mean(pairs, [run[node][0] for run in runs], number) for node in runs[number]}
        for number in range(len(pairs))
    ]


def _mean(pairs: Sequence[EncodedPair], values: Sequence[Tensor], number: int) -> Tensor:
    """Return the mean that replaces one node in one pair, position by position."""
    positions = range(len(pairs[number].clean))
    means = [mean_by_definition(pairs, values, number, position)[0] for position in positions]
    return torch.stack(means)[None]


def metric_with_ablated(
    checkpoint: NativeCheckpoint,
    pairs: Sequence[EncodedPair],
    references: Sequence[Mapping[str, Tensor]],
    ablated: Collection[str],
    metric: MetricName = "logit_difference",
) -> Tensor:
    """Return the metric of every pair's clean prompt with some nodes replaced, [pair]."""
    assert set(ablated) <= set(node_names(checkpoint.config))
    values = []
    for pair, reference in zip(pairs, references, strict=True):
        tokens = torch.tensor([pair.clean])
        clean, changed = (
            run_forward(checkpoint.config, checkpoint.state, tokens, replacements).logits[0, -1]
            for replacements in ({}, {node: reference[node] for node in ablated})
        )
        values.append(metric_of(metric, changed, pair, clean))
    return torch.tensor(values, dtype=torch.float64)
