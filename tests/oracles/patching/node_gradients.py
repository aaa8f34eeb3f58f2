"""Gradients of the metric with respect to node values, from the weights of a native model alone.

Autograd differentiates the plain forward pass of `benchmarks.known_circuits.forward`, pair by pair
and in float64.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.known_circuits.forward import ForwardPass, run_forward
from discovery.backends.base import Backend
from discovery.sites import Node
from discovery.tasks.task import EncodedPair, Task


def attribute_by_autograd(model: Backend, task: Task, side: str) -> dict[Node, float]:
    """Return (clean − corrupted) · ∂m/∂node on one side's run, summed over positions and pairs.

    m is the difference between the logsumexp of the answers' and of the wrong answers' logits.
    """
    source = Path(model.info.source)
    config = json.loads((source / "tl_config.json").read_text())
    state = load_file(source / "model.safetensors")
    state["embed.W_E"].requires_grad_()  # so that every node's value is part of the graph

    def run(pair: EncodedPair, which: str) -> ForwardPass:
        return run_forward(config, state, torch.tensor([getattr(pair, which)]))

    total = dict.fromkeys(model.info.nodes(), 0.0)
    for pair in task.pairs:
        runs = {which: run(pair, which) for which in ("clean", "corrupted")}
        last = runs[side].logits[0, -1]
        metric = last[list(pair.answer)].logsumexp(0) - last[list(pair.wrong)].logsumexp(0)
        values = [runs[side].nodes[str(node)] for node in total]
        gradients = torch.autograd.grad(metric, values)
        for node, gradient in zip(total, gradients, strict=True):
            change = runs["clean"].nodes[str(node)] - runs["corrupted"].nodes[str(node)]
            total[node] += float((change.detach() * gradient).sum())
    return total
