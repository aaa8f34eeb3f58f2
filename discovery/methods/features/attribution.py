"""Attribution: how much of the metric each feature carries, to first order.

    attribution_f = Σ_positions z_f · s · <∂m/∂x, d_f>  ≈  m(clean) − m(feature removed)

that is gradient × activation, in the metric's own units (Marks et al. 2024, arXiv 2403.19647). With n steps the gradient is the mean
along the way from the features all removed (or all as in the corrupted run) to all there, at i/n of it (integrated gradients,
Sundararajan et al. 2017, arXiv 1703.01365, as EAP-IG takes them): one step is gradient × activation at the clean run, and with
many the attributions sum to what removing all features does. The decoder is linear and the error term is held fixed, so one gradient
with respect to the site serves every feature.
"""

from __future__ import annotations

import gc
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Batch
from discovery.engine import BACKWARD_COST, prompt_macs, row_macs
from discovery.errors import MemoryLimitError
from discovery.features import Codes
from discovery.interventions import Edit
from discovery.methods.features.splice import SplicedBlock, batch_pairs, stream_entry
from discovery.metrics import measure

PathStart = Literal[
    "nothing", "corrupted"
]  # what the way to the clean run begins at: no features, or those of the corrupted run


def mean_gradient(
    view: SplicedBlock, steps: int, path_start: PathStart = "nothing"
) -> Float[Tensor, "pair pos d_out"]:
    """∂m/∂x at the chosen positions (0 elsewhere), the mean over the steps; on the CPU."""
    block = view.block
    stream, _ = stream_entry(block.backend.info, view.sae.writes)
    block.load("clean", [stream])
    kept = max(
        1,
        block.rows_that_fit(0, block.prompts.width)
        // (2 * (block.backend.info.n_layers - stream.layer)),
    )  # the graph holds every layer
    block.meter.begin(
        "attribution", steps * _work(view, torch.arange(len(view), device=view.mask.device))
    )
    waiting = [piece for part in view.pair_batches() for piece in batch_pairs(part, kept)][::-1]
    out: dict[int, Tensor] = {}
    while waiting:
        part = waiting.pop()
        try:
            out[int(part[0])] = _gradient(view, part, steps, path_start).cpu()
        except (torch.OutOfMemoryError, MemoryError):
            if len(part) == 1:
                raise MemoryLimitError(
                    "Memory does not suffice for one prompt's gradient.",
                    "Free memory, or shorten the prompts.",
                ) from None
            gc.collect()
            waiting += batch_pairs(part, (len(part) + 1) // 2)[::-1]
    return torch.cat([out[begin] for begin in sorted(out)])


def _gradient(
    view: SplicedBlock, part: Tensor, steps: int, path_start: PathStart
) -> Float[Tensor, "n pos d_out"]:
    clean = view.target_activation(part)
    where = view.mask[part].unsqueeze(-1)
    total = torch.zeros_like(clean)
    carried: Tensor | float = 0.0
    if steps > 1:
        features = scale_features(view.codes(part))
        if path_start == "corrupted":
            features = features - scale_features(view.codes(part, "corrupted"))
        carried = torch.where(where, (features @ view.sae.directions()).to(clean), 0.0)
    for step in range(1, steps + 1):
        value = (clean - (1 - step / steps) * carried).detach().requires_grad_()
        with torch.enable_grad():
            total += torch.autograd.grad(_metric(view, part, value).sum(), value)[0]
    return torch.where(where, total / steps, 0.0)


def scale_features(codes: Codes) -> Float[Tensor, "row pos feature"]:
    """s·z: how far each feature moves what is written along its direction."""
    return codes.features * codes.scale


def _metric(view: SplicedBlock, part: Tensor, value: Tensor) -> Float[Tensor, "n"]:
    """The metric as a function of the dictionary's site."""
    block, site = view.block, view.sae.writes
    prompts, info = block.prompts, block.backend.info
    stream, itself = stream_entry(info, site)
    edits: list[Edit] = []
    residual = value
    if not itself:
        inner = block.activation("clean", site).shape[2:]
        edits = [Edit(site, value.reshape(*value.shape[:2], *inner))]
        residual = block.activation("clean", stream)[part]
    outcome = block.run(
        Batch(
            prompts.clean[part],
            prompts.answer_position[part],
            start=stream.layer,
            residual=residual,
        ),
        edits=edits,
        grad=True,
    )
    assert outcome.logits is not None
    block.meter.add(_work(view, part))
    clean = block.logits("clean")[part] if block.metric == "kl_divergence" else None
    return measure(block.metric, outcome.logits, prompts.answer[part], prompts.wrong[part], clean)


def _work(view: SplicedBlock, part: Tensor) -> float:
    """Forward-pass equivalents of one step's pass and its way back."""
    prompts, info = view.block.prompts, view.block.backend.info
    one = (1 + BACKWARD_COST) * row_macs(
        info,
        prompts.width,
        start=stream_entry(info, view.sae.writes)[0].layer,
        columns=info.d_vocab,
    )
    return sum(one / prompt_macs(info, length) for length in prompts.length[part].tolist())
