"""Gradients that attribution methods are held against."""

from __future__ import annotations

import torch

from benchmarks.methods.transformer_lens_tools import sum_over_node
from benchmarks.recovery import new_evaluator
from discovery.backends.base import Backend, Batch, forward_order
from discovery.engine import Side
from discovery.metrics import measure
from discovery.sites import Node, Site, output_site
from discovery.tasks.task import Task


def node_attributions_by_autograd(model: Backend, task: Task, side: Side) -> dict[Node, float]:
    """(clean − corrupted) · ∂m/∂node on one side's run, summed over positions and pairs, by autograd on our own pass."""
    [(_, block)] = new_evaluator(model, task).engine.blocks()
    prompts = block.prompts
    sites = {node: output_site(node) for node in model.info.nodes()}
    order = sorted(set(sites.values()), key=forward_order)
    inputs = block.activation(side, Site("resid_pre", 0)).clone().requires_grad_()
    with torch.enable_grad():
        outcome = model.run(
            Batch(prompts.tokens(side), prompts.answer_position, start=0, residual=inputs),
            order,
            grad=True,
        )
        assert outcome.logits is not None
        metric = measure(block.metric, outcome.logits, prompts.answer, prompts.wrong, None).sum()
        slopes = dict(
            zip(
                order,
                torch.autograd.grad(metric, [outcome.activations[site] for site in order]),
                strict=True,
            )
        )
    changes = {
        site: block.activation("clean", site) - block.activation("corrupted", site)
        for site in order
    }
    products = {site: changes[site] * slopes[site] for site in order}
    return {node: sum_over_node(products[site], node) for node, site in sites.items()}
