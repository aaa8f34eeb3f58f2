"""One prompt looked into: what the model predicts, and any of its activations.

from discovery import load_model, run_with_cache
model = load_model("bundled")
seen = run_with_cache(model, "When Anna and John went to the park, John gave a book to", ["z"])
seen.predictions[0]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.backends.hardware.memory import convert_out_of_memory
from discovery.engine import prompt_macs, row_macs
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError, SiteError
from discovery.sites import ActivationKind, Site
from discovery.tasks.pairs import Prompt


@dataclass(frozen=True)
class Prediction:
    """A next token."""

    token: int
    text: str | None
    probability: float
    logit: float


@dataclass(frozen=True)
class PromptRun:
    """What one prompt does in the model.

    Attributes:
        tokens: ids, and their texts where the model has a tokenizer.
        predictions: the most likely next tokens after the last one.
        residual_norm: L2 norm of resid_post, [layer pos]. attention_norm, mlp_norm: of what each layer adds.
        activations: the sites asked for, without the batch axis.
        axes: the names of each one's axes; "kv_head" for k and v if query heads share them.
        warnings: says which query heads share them.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...] | None
    predictions: tuple[Prediction, ...]
    residual_norm: Float[Tensor, "layer pos"]
    attention_norm: Float[Tensor, "layer pos"]
    mlp_norm: Float[Tensor, "layer pos"] | None
    activations: dict[Site, Float[Tensor, "..."]]
    cost: MeasurementCost
    axes: dict[Site, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def run_with_cache(
    model: Backend, prompt: Prompt, sites: Sequence[str | Site] = (), *, top: int = 10
) -> PromptRun:
    """Run one prompt and keep what is asked for.

    Args:
        prompt: text, or token ids used exactly as given.
        sites: kinds ("resid_pre", "z", "pattern" …: every layer), or single sites.
        top: how many predictions.

    Raises:
        MeasurementError: a prompt that is empty, too long, or text for a model without a tokenizer.
        SiteError: a site this model lacks.
        MemoryLimitError: memory ran out.
    """
    began = time.monotonic()
    ids = _encode_prompt(model, prompt)
    wanted = [site for name in sites for site in _expand_sites(model, name)]
    info = model.info
    kinds: list[ActivationKind] = ["resid_post", "attn_out"]
    if not info.attn_only:
        kinds.append("mlp_out")
    summary = [Site(kind, layer) for kind in kinds for layer in range(info.n_layers)]
    tokens = torch.tensor([ids], device=model.device)
    with convert_out_of_memory(
        f"Memory does not suffice for {len(ids)} tokens and {len(wanted)} sites.",
        "Free memory, shorten it, or ask for less.",
    ):
        outcome = model.run(
            Batch(tokens, torch.tensor([len(ids) - 1], device=model.device)),
            [*dict.fromkeys([*summary, *wanted])],
        )
    assert outcome.logits is not None
    norms = {
        kind: torch.stack(
            [
                outcome.activations[Site(kind, layer)][0].float().norm(dim=-1)
                for layer in range(info.n_layers)
            ]
        )
        for kind in kinds
    }
    work = row_macs(info, len(ids), columns=info.n_logits) / prompt_macs(info, len(ids))
    texts = tuple(model.tokenizer.decode([token]) for token in ids) if model.tokenizer else None
    return PromptRun(
        ids,
        texts,
        _top_predictions(model, outcome.logits[0], top),
        norms["resid_post"],
        norms["attn_out"],
        norms.get("mlp_out"),
        {site: outcome.activations[site][0] for site in wanted},
        MeasurementCost(work, time.monotonic() - began),
        {site: info.axes(site) for site in wanted},
        info.key_value_warning(site.kind for site in wanted),
    )


def _encode_prompt(model: Backend, prompt: Prompt) -> tuple[int, ...]:
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise MeasurementError(
                "The prompt is text, and this model has no tokenizer.",
                "Give the prompt as a list of token ids.",
            )
        ids = tuple(model.tokenizer.encode(prompt))
    else:
        ids = tuple(prompt)
    if not ids or len(ids) > model.n_ctx:
        raise MeasurementError(
            f"The prompt has {len(ids)} tokens.", f"This model takes 1 to {model.n_ctx}."
        )
    if bad := [token for token in ids if not 0 <= token < model.d_vocab]:
        raise MeasurementError(
            f"Token id {bad[0]} does not exist.", f"Use ids from 0 to {model.d_vocab - 1}."
        )
    return ids


def _expand_sites(model: Backend, name: str | Site) -> list[Site]:
    if isinstance(name, Site):
        return [name]
    kind = "z" if name == "head_out" else name
    if kind not in get_args(ActivationKind):
        raise SiteError(
            f"site {name!r} is not known.",
            f"Allowed: head_out, {', '.join(get_args(ActivationKind))}.",
        )
    return [Site(kind, layer) for layer in range(model.info.n_layers)]  # type: ignore[arg-type]  # checked above


def _top_predictions(
    model: Backend, logits: Float[Tensor, "d_vocab"], top: int
) -> tuple[Prediction, ...]:
    probabilities = logits.float().softmax(-1)
    best = probabilities.topk(min(max(top, 1), len(probabilities)))
    decode = model.tokenizer.decode if model.tokenizer else None
    return tuple(
        Prediction(token, decode([token]) if decode else None, p, float(logits[token]))
        for p, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    )
