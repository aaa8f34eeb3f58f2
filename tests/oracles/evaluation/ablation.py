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
from discovery.tasks.reference import ReferencePrompt
from discovery.tasks.task import EncodedPair
from tests.oracles.evaluation.mean_reference import MeanOracle
from tests.oracles.patching.activation_patching import metric_of


def reference_activations(
    checkpoint: NativeCheckpoint,
    pairs: Sequence[EncodedPair],
    ablation: Ablation,
    prompts: Sequence[ReferencePrompt] | None = None,
) -> list[dict[str, Tensor]]:
    """Return what the nodes of each pair are replaced by: node -> [1 pos d_model].

    Args:
        checkpoint: the model's weights.
        pairs: the pairs.
        ablation: resample, mean or zero.
        prompts: the reference prompts of mean ablation; None means the pairs' corrupted prompts.
    """
    runs = [_run_tokens(checkpoint, pair.corrupted) for pair in pairs]
    if ablation == "resample":
        return [dict(run) for run in runs]
    if ablation == "zero":
        return [{node: torch.zeros_like(value) for node, value in run.items()} for run in runs]
    prompts = [pair.as_reference for pair in pairs] if prompts is None else prompts
    references = [_run_tokens(checkpoint, prompt.tokens) for prompt in prompts]
    oracles = {node: MeanOracle(prompts, [run[node][0] for run in references]) for node in runs[0]}
    return [
        {node: _mean(oracles[node], pair, value[0]) for node, value in run.items()}
        for pair, run in zip(pairs, runs, strict=True)
    ]


def _run_tokens(checkpoint: NativeCheckpoint, tokens: Sequence[int]) -> Mapping[str, Tensor]:
    """Return the outputs of every node for one prompt: node -> [1 pos d_model]."""
    return run_forward(checkpoint.config, checkpoint.state, torch.tensor([tokens])).nodes


def _mean(oracle: MeanOracle, pair: EncodedPair, own_value: Tensor) -> Tensor:
    """Return the mean that replaces one node in one pair, position by position."""
    positions = range(len(pair.clean))
    return torch.stack([oracle.mean(pair, own_value, position)[0] for position in positions])[None]


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
