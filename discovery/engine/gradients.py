"""First-order effects of every site at once: attribution patching with integrated gradients.

The difference between the two runs at a site, times the gradient of the metric there, is what patching that site would do were the
model linear (Nanda 2023, "Attribution patching"). The gradient is averaged over runs whose input embedding lies between the two prompts'
(EAP-IG-inputs; Hanna et al. 2024, arXiv 2403.17806), since a single gradient vanishes where attention or a metric is saturated. One
forward and one backward pass per step give every layer's sites. An estimate, never a measurement.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine.block import Block
from discovery.engine.cost import BACKWARD_COST, prompt_macs, row_macs
from discovery.engine.prompts import Side, other_side
from discovery.metrics import measure
from discovery.sites import ActivationKind, Site

INTEGRATION_STEPS = 5


def attribute_sites(
    block: Block, base: Side, kind: ActivationKind, steps: int = INTEGRATION_STEPS
) -> Float[Tensor, "pair layer pos ..."]:
    """Σ (source − base) · ∂m/∂site at each layer and position (q, k, v, z, pattern: and head), the gradient averaged over `steps`.

    Args:
        base: the run that would be patched; the other side is the source.
        steps: input embeddings between the two, at the middle of as many equal parts.

    Raises:
        MeasurementError: where the backend gives no gradients.
    """
    prompts, info = block.prompts, block.backend.info
    block.backend.require_gradients()
    behind: ActivationKind = (
        "attn_out" if kind == "resid_mid" else kind
    )  # resid_mid = resid_pre + attn_out: the same gradient
    sites = [Site(behind, layer) for layer in range(info.n_layers)]
    change = [
        block.activation(other_side(base), Site(kind, n)) - block.activation(base, Site(kind, n))
        for n in range(info.n_layers)
    ]
    near, far = (block.activation(side, Site("resid_pre", 0)) for side in (base, other_side(base)))
    block.meter.begin(f"{kind} screen", estimate_attributions(block, steps))
    one = _pass_macs(block)
    out: list[Tensor] = []
    begin, most = (
        0,
        max(1, block.rows_that_fit(0, prompts.width) // (2 * info.n_layers)),
    )  # the graph holds every layer
    while begin < len(prompts):
        part = slice(begin, min(begin + most, len(prompts)))
        try:
            total = [torch.zeros_like(delta[part]) for delta in change]
            for step in range(steps):
                inputs = near[part] + (step + 0.5) / steps * (far[part] - near[part])
                total = [
                    a + b
                    for a, b in zip(
                        total, _run_backward(block, base, part, inputs, sites), strict=True
                    )
                ]
        except (RuntimeError, MemoryError) as fault:
            most = block.halve_batch(part.stop - begin, prompts.width, fault)
            continue
        block.meter.add(
            steps * sum(one / prompt_macs(info, n) for n in prompts.length[part].tolist())
        )
        parts = [
            _sum_cells(kind, delta[part] * slope / steps)
            for delta, slope in zip(change, total, strict=True)
        ]
        out.append(torch.stack(parts, 1))
        begin = part.stop
    return torch.cat(out)


def estimate_attributions(block: Block, steps: int = INTEGRATION_STEPS) -> float:
    """Forward-pass equivalents of `attribute_sites`."""
    return steps * sum(
        _pass_macs(block) / prompt_macs(block.backend.info, n)
        for n in block.prompts.length.tolist()
    )


def _pass_macs(block: Block) -> int:
    """Of one prompt's pass and its way back."""
    info = block.backend.info
    return (1 + BACKWARD_COST) * row_macs(info, block.prompts.width, columns=info.n_logits)


def _run_backward(
    block: Block, base: Side, part: slice, inputs: Tensor, sites: list[Site]
) -> list[Tensor]:
    prompts = block.prompts
    with torch.enable_grad():
        outcome = block.run(
            Batch(
                prompts.tokens(base)[part],
                prompts.answer_position[part],
                0,
                inputs.detach().requires_grad_(),
            ),
            sites,
            grad=True,
        )
        assert outcome.logits is not None
        clean = block.logits("clean")[part] if block.metric == "kl_divergence" else None
        metric = measure(
            block.metric, outcome.logits, prompts.answer[part], prompts.wrong[part], clean
        )
        return list(
            torch.autograd.grad(
                metric.sum(), [outcome.activations[site] for site in sites], materialize_grads=True
            )
        )


def _sum_cells(kind: ActivationKind, product: Tensor) -> Tensor:
    """Over what a cell holds: features, and for a pattern the positions looked at."""
    return product.sum(-1).transpose(1, 2) if kind == "pattern" else product.sum(-1)
