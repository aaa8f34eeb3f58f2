"""First-order effects of every site at once: attribution patching with integrated gradients.

The difference between the two runs at a site, times the gradient of the metric there, is what
patching that site would do if the model were linear (Nanda 2023, "Attribution patching"). A single
gradient vanishes if attention or a metric is saturated. So the gradient is averaged over runs
whose input embedding lies between those of the two prompts (EAP-IG-inputs; Hanna et al. 2024,
arXiv 2403.17806). One forward and one backward pass per step give the sites of every layer.
The result is an estimate and is never reported as a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine.block import Block
from discovery.engine.cost import BACKWARD_COST, forward_equivalents, row_macs
from discovery.engine.prompts import Side, other_side
from discovery.metrics import measure
from discovery.sites import ActivationKind, Site

INTEGRATION_STEPS = 5


def attribute_sites(
    block: Block, base: Side, kind: ActivationKind, steps: int = INTEGRATION_STEPS
) -> Float[Tensor, "pair layer pos ..."]:
    """Estimate what patching each cell of a site would add to the metric.

    An estimate is Σ (source − base) · ∂m/∂site, summed over the numbers of a cell. A cell is a
    position of a layer; q, k, v, z and pattern have one for each head too.

    Args:
        block: the pairs.
        base: the side whose run would be patched; the other side is the source.
        kind: the site.
        steps: over how many input embeddings between the two the gradient is averaged. The path is
            cut into `steps` equal parts, and the gradient is taken at the middle of each.

    Raises:
        MeasurementError: if the backend gives no gradients.
    """
    info = block.backend.info
    block.backend.require_gradients()
    # resid_mid = resid_pre + attn_out, so its gradient is that of attn_out.
    gradient_kind: ActivationKind = "attn_out" if kind == "resid_mid" else kind
    gradient_sites = [Site(gradient_kind, layer) for layer in range(info.n_layers)]
    differences = [
        block.activation(other_side(base), Site(kind, n)) - block.activation(base, Site(kind, n))
        for n in range(info.n_layers)
    ]
    block.meter.begin(f"{kind} screen", estimate_attributions(block, steps))
    estimates = [
        torch.stack(
            [
                _sum_cells(kind, difference[part] * gradient)
                for difference, gradient in zip(differences, gradients, strict=True)
            ],
            1,
        )
        for part, gradients in _gradients_in_batches(block, base, gradient_sites, steps)
    ]
    return torch.cat(estimates)


def average_gradients(
    block: Block, base: Side, sites: Sequence[Site], steps: int = INTEGRATION_STEPS
) -> dict[Site, Float[Tensor, "pair pos ..."]]:
    """Return the gradient of the metric at some sites, averaged over runs between the two prompts.

    The caller announces the cost to the meter; `estimate_attributions` gives it.

    Args:
        block: the pairs.
        base: the side from which the runs begin; they end at the other side.
        sites: the sites.
        steps: how many input embeddings between the two are run, as in `attribute_sites`.

    Raises:
        MeasurementError: if the backend gives no gradients.
    """
    block.backend.require_gradients()
    if not sites:
        return {}
    parts = [gradients for _, gradients in _gradients_in_batches(block, base, list(sites), steps)]
    return {site: torch.cat([part[n] for part in parts]) for n, site in enumerate(sites)}


def _gradients_in_batches(
    block: Block, base: Side, sites: list[Site], steps: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield the averaged gradient at each site, for one batch of pairs after the other."""
    prompts = block.prompts
    info = block.backend.info
    base_inputs = block.activation(base, Site("resid_pre", 0))
    source_inputs = block.activation(other_side(base), Site("resid_pre", 0))

    def average(part: slice) -> list[Tensor]:
        totals: list[Tensor] = []
        for step in range(steps):
            share = (step + 0.5) / steps
            inputs = base_inputs[part] + share * (source_inputs[part] - base_inputs[part])
            gradients = _run_backward(block, base, part, inputs, sites)
            if step:
                gradients = [a + b for a, b in zip(totals, gradients, strict=True)]
            totals = gradients
            block.meter.report()
        return [total / steps for total in totals]

    macs = _pass_macs(block)
    # The graph of a backward pass holds the activations of every layer.
    in_memory = max(1, block.rows_in_memory(0, prompts.width) // (2 * info.n_layers))
    max_rows = min(in_memory, block.backend.max_rows_by_work(macs))
    for part, gradients in block.in_batches(average, max_rows):
        lengths = prompts.length[part].tolist()
        block.meter.add(steps * forward_equivalents(info, macs, lengths))
        yield part, gradients


def estimate_attributions(block: Block, steps: int = INTEGRATION_STEPS) -> float:
    """Return the forward-pass equivalents that `attribute_sites` will count."""
    lengths = block.prompts.length.tolist()
    return steps * forward_equivalents(block.backend.info, _pass_macs(block), lengths)


def _pass_macs(block: Block) -> int:
    """The multiply-adds of one forward and one backward pass of a prompt."""
    info = block.backend.info
    return (1 + BACKWARD_COST) * row_macs(info, block.prompts.width, columns=info.n_logits)


def _run_backward(
    block: Block, base: Side, part: slice, inputs: Tensor, sites: list[Site]
) -> list[Tensor]:
    """The gradient of the metric at each site, of a run from these input embeddings."""
    prompts = block.prompts
    batch = Batch(
        prompts.tokens(base)[part],
        prompts.answer_position[part],
        residual=inputs.detach().requires_grad_(),
    )
    clean = block.logits("clean")[part] if block.metric == "kl_divergence" else None
    with torch.enable_grad():
        result = block.run(batch, sites, grad=True)
        assert result.logits is not None
        answer, wrong = prompts.answer[part], prompts.wrong[part]
        metric = measure(block.metric, result.logits, answer, wrong, clean)
        activations = [result.activations[site] for site in sites]
        return list(torch.autograd.grad(metric.sum(), activations, materialize_grads=True))


def _sum_cells(kind: ActivationKind, product: Tensor) -> Tensor:
    """Sum over a cell: over its numbers, or for a pattern over the positions looked at."""
    return product.sum(-1).transpose(1, 2) if kind == "pattern" else product.sum(-1)
