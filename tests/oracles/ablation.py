"""m(S) as INTERFACES defines it, one pair at a time, on the independent forward pass of a native model."""

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
    made: NativeCheckpoint, pairs: Sequence[EncodedPair], ablation: Ablation
) -> list[dict[str, Tensor]]:
    """What each pair's nodes are replaced by: node -> [1 pos d_model]."""
    runs = [
        run_forward(made.config, made.state, torch.tensor([pair.corrupted])).nodes for pair in pairs
    ]
    if ablation == "resample":
        return [dict(run) for run in runs]
    if ablation == "zero":
        return [{node: torch.zeros_like(value) for node, value in run.items()} for run in runs]
    return [
        {node: _means(pairs, [run[node][0] for run in runs], number) for node in runs[number]}
        for number in range(len(pairs))
    ]


def _means(pairs: Sequence[EncodedPair], values: Sequence[Tensor], number: int) -> Tensor:
    return torch.stack(
        [
            mean_by_definition(pairs, values, number, position)[0]
            for position in range(len(pairs[number].clean))
        ]
    )[None]


def metric_with_ablated(
    made: NativeCheckpoint,
    pairs: Sequence[EncodedPair],
    given: Sequence[Mapping[str, Tensor]],
    ablated: Collection[str],
    metric: MetricName = "logit_difference",
) -> Tensor:
    """The metric of every pair's clean prompt with some nodes replaced, [pair]."""
    assert set(ablated) <= set(node_names(made.config))
    out = []
    for pair, reference in zip(pairs, given, strict=True):
        tokens = torch.tensor([pair.clean])
        clean, changed = (
            run_forward(made.config, made.state, tokens, replace).logits[0, -1]
            for replace in ({}, {node: reference[node] for node in ablated})
        )
        out.append(metric_of(metric, changed, pair, clean))
    return torch.tensor(out, dtype=torch.float64)
