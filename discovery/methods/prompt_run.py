"""What the model does on one prompt: its predictions, and any of its activations.

from discovery import load_model, run_with_cache
model = load_model("bundled")
run = run_with_cache(model, "When Anna and John went to the park, John gave a book to", ["z"])
run.predictions[0]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.backends.base import Backend, Batch, BatchResult
from discovery.backends.hardware.memory import convert_out_of_memory
from discovery.engine import prompt_macs, row_macs
from discovery.engine.cost import MeasurementCost
from discovery.errors import MeasurementError, SiteError, require_choice
from discovery.sites import ActivationKind, Site
from discovery.tasks.pairs import Prompt


@dataclass(frozen=True)
class Prediction:
    """One predicted next token.

    Attributes:
        token: its id.
        text: its text; None if the model has no tokenizer.
        probability: over the whole vocabulary.
        logit: as the model gives it.
    """

    token: int
    text: str | None
    probability: float
    logit: float


@dataclass(frozen=True, kw_only=True)
class PromptRun:
    """What the model does on one prompt.

    Attributes:
        tokens: the token ids of the prompt.
        texts: the text of each token; None if the model has no tokenizer.
        predictions: the most likely next tokens after the last one.
        residual_norm: the L2 norm of resid_post, [layer pos].
        attention_norm: the L2 norm of what each attention adds, [layer pos].
        mlp_norm: the L2 norm of what each MLP adds, [layer pos]; None if the model has no MLPs.
        activations: the sites that were asked for, without the batch axis.
        cost: the work and the time that it took.
        axes: the names of the axes of each activation; "kv_head" for k and v if query heads share
            them.
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


@dataclass(frozen=True, kw_only=True)
class ActivationSummary:
    """The moments of an activation, over its finite entries; each is None if it has none.

    Attributes:
        shape: the shape of the activation.
        mean: the mean.
        std: the standard deviation, with n in the denominator.
        low: the smallest entry.
        high: the largest entry.
        norm: the L2 norm of the last position's vector, or of the whole activation if it has no
            position axis; entries that are not finite count as 0.
        n_nonfinite: how many entries are NaN or infinite.
    """

    shape: tuple[int, ...]
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    norm: float | None
    n_nonfinite: int


def run_with_cache(
    model: Backend, prompt: Prompt, sites: Sequence[str | Site] = (), *, top: int = 10
) -> PromptRun:
    """Run one prompt and keep some of its activations.

    Args:
        model: the model.
        prompt: text, or token ids, which are used exactly as given.
        sites: what to keep: kinds of activation ("resid_pre", "z", "pattern" …; every layer is
            kept), or single sites.
        top: how many predictions to return.

    Raises:
        MeasurementError: if the prompt is empty, too long, or text for a model without a tokenizer.
        SiteError: if the model lacks a site.
        MemoryLimitError: if the memory does not suffice.
    """
    began = time.monotonic()
    ids = encode_prompt(model, prompt)
    kept_sites = [site for name in sites for site in _expand_sites(model, name)]
    info = model.info
    summary_kinds: list[ActivationKind] = ["resid_post", "attn_out"]
    if not info.attn_only:
        summary_kinds.append("mlp_out")
    summary_sites = [Site(kind, layer) for kind in summary_kinds for layer in range(info.n_layers)]
    tokens = torch.tensor([ids], device=model.device)
    batch = Batch(tokens, torch.tensor([len(ids) - 1], device=model.device))
    with convert_out_of_memory(
        f"There is not enough memory for {len(ids)} tokens and {len(kept_sites)} sites.",
        "Free memory, shorten the prompt, or ask for fewer sites.",
    ):
        result = model.run(batch, [*dict.fromkeys([*summary_sites, *kept_sites])])
    assert result.logits is not None
    norms = {kind: _norms(result, kind, info.n_layers) for kind in summary_kinds}
    work = row_macs(info, len(ids), columns=info.n_logits) / prompt_macs(info, len(ids))
    texts = tuple(model.tokenizer.decode([token]) for token in ids) if model.tokenizer else None
    return PromptRun(
        tokens=ids,
        texts=texts,
        predictions=_top_predictions(model, result.logits[0], top),
        residual_norm=norms["resid_post"],
        attention_norm=norms["attn_out"],
        mlp_norm=norms.get("mlp_out"),
        activations={site: result.activations[site][0] for site in kept_sites},
        cost=MeasurementCost(work, time.monotonic() - began),
        axes={site: info.axes(site) for site in kept_sites},
        warnings=info.key_value_warning(site.kind for site in kept_sites),
    )


def summarise_activation(
    values: Float[Tensor, "..."], position_axis: int | None = 0
) -> ActivationSummary:
    """Return the moments of an activation.

    Args:
        values: the activation.
        position_axis: the axis of positions, whose last entry gives `norm`; None if there is none.
    """
    wide = values.detach().to("cpu", torch.float64)
    finite = wide[wide.isfinite()]
    shape = tuple(wide.shape)
    n_nonfinite = wide.numel() - len(finite)
    if not len(finite):
        return ActivationSummary(
            shape=shape,
            mean=None,
            std=None,
            low=None,
            high=None,
            norm=None,
            n_nonfinite=n_nonfinite,
        )
    last = wide if position_axis is None else wide.select(position_axis, -1)
    return ActivationSummary(
        shape=shape,
        mean=float(finite.mean()),
        std=float(finite.std(unbiased=False)),
        low=float(finite.min()),
        high=float(finite.max()),
        norm=float(last.nan_to_num(0.0, 0.0, 0.0).norm()),
        n_nonfinite=n_nonfinite,
    )


def encode_prompt(model: Backend, prompt: Prompt) -> tuple[int, ...]:
    """Return the token ids of a prompt.

    Raises:
        MeasurementError: if it is empty, too long, or text for a model without a tokenizer, or if a
            token id does not exist.
    """
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
    if unknown := [token for token in ids if not 0 <= token < model.d_vocab]:
        raise MeasurementError(
            f"Token id {unknown[0]} does not exist.", f"Use ids from 0 to {model.d_vocab - 1}."
        )
    return ids


def _expand_sites(model: Backend, name: str | Site) -> list[Site]:
    if isinstance(name, Site):
        return [name]
    require_choice("site", name, ("head_out", *get_args(ActivationKind)), SiteError)
    kind = "z" if name == "head_out" else name
    # The check above makes `kind` an activation kind.
    return [Site(kind, layer) for layer in range(model.info.n_layers)]  # type: ignore[arg-type]


def _norms(result: BatchResult, kind: ActivationKind, n_layers: int) -> Float[Tensor, "layer pos"]:
    """Return the L2 norm of a kind of activation at each layer and position."""
    by_layer = [result.activations[Site(kind, layer)][0] for layer in range(n_layers)]
    return torch.stack([activation.float().norm(dim=-1) for activation in by_layer])


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
