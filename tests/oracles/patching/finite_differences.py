"""The gradient of a metric along one cell's change, by central differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine import Block, Side
from discovery.interventions import Edit
from discovery.metrics import measure
from discovery.sites import ActivationKind, Site


def attribute_cell(
    block: Block,
    base: Side,
    site: Site,
    position: int,
    head: int | None,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """Return the slope of each pair's metric along (source − base) at one cell.

    The slope is averaged over input embeddings between the two prompts, as in `attribute_sites`.

    Args:
        head: the cell's head; None for sites without heads.
        steps: how many input embeddings.
        step_size: the share of the change by which the cell is moved to either side.
    """
    prompts = block.prompts
    source: Side = "clean" if base == "corrupted" else "corrupted"
    change = block.activation(source, site) - block.activation(base, site)
    where = _select_cell(change, site.kind, position, head)
    base_inputs = block.activation(base, Site("resid_pre", 0))
    source_inputs = block.activation(source, Site("resid_pre", 0))
    clean = block.logits("clean") if block.metric == "kl_divergence" else None
    total = torch.zeros(len(prompts), dtype=base_inputs.dtype)
    for n in range(steps):
        stream = base_inputs + (n + 0.5) / steps * (source_inputs - base_inputs)
        batch = Batch(prompts.tokens(base), prompts.answer_position, residual=stream)
        for sign in (1, -1):
            edit = Edit(site, sign * step_size * change, where, operation="add")
            logits: Any = block.backend.run(batch, edits=[edit]).logits
            metric = measure(block.metric, logits, prompts.answer, prompts.wrong, clean)
            total += sign * metric / (2 * step_size * steps)
    return total


def _select_cell(change: Tensor, kind: ActivationKind, position: int, head: int | None) -> Tensor:
    """Where the cell is: [1 pos], [1 pos head], or [1 head pos] for a pattern."""
    is_pattern = kind == "pattern"
    at_position = torch.arange(change.shape[2 if is_pattern else 1]) == position
    if head is None:
        return at_position[None]
    at_head = torch.arange(change.shape[1 if is_pattern else 2]) == head
    where = at_position[None, :, None] & at_head
    return where.transpose(1, 2) if is_pattern else where
