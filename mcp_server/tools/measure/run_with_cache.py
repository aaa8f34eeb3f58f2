"""A first look at one prompt: predictions, norms and activations."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult, ContentBlock
from pydantic import Field

from mcp_server.session import lazy_discovery
from mcp_server.session.artifacts import make_result_id
from mcp_server.tools.arguments import BoundedText, DetailLevel, ModelId, TokenIds, ToolContext
from mcp_server.tools.measurement import Measurement, run_measurement
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    make_link,
    round_number,
    shorten_text,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.methods.prompt_run import ActivationSummary, PromptRun
    from discovery.sites import Site

_MAX_TOKEN_TEXT = 40  # characters

SiteKindList = Annotated[
    list[Annotated[str, Field(max_length=30)]],
    Field(
        description="Summarised in every layer: resid_pre, resid_mid, resid_post, attn_out, "
        "mlp_out, q, k, v, pattern, z (a head's output before W_O; head_out gives it too).",
        max_length=12,
    ),
]


class PredictionView(Result):
    """A next token."""

    token: int
    text: str | None
    probability: float | None
    logit: float | None


class LayerNormsView(Result):
    """L2 norms at the last position: of the stream after the layer, and of what it adds."""

    layer: int
    residual: float | None
    attention: float | None
    mlp: float | None


class ActivationView(Result):
    """Summary of one activation."""

    site: str
    shape: list[int]
    axes: list[str] = Field(description="kv_head: shared by several query heads.")
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    norm: float | None = Field(description="At the last position.")


class RunWithCacheResult(Listing):
    """What run_with_cache gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("sites", "tokens", "layers", "predictions")
    narrowing_hint: ClassVar[str] = (
        "Ask for fewer sites or a smaller top, or take detail='detailed'; `activations` holds "
        "every number of the sites."
    )

    model_id: str
    result_id: str
    n_tokens: int
    tokens: list[str]
    predictions: list[PredictionView]
    layers: list[LayerNormsView]
    sites: list[ActivationView]
    n_nonfinite: int = Field(description="Entries that are NaN or infinite.")
    warnings: list[str]
    activations: str | None = Field(description="URI of every number, as safetensors.")
    cost: CostView


async def run_with_cache(
    context: ToolContext,
    model_id: ModelId,
    prompt: Annotated[
        BoundedText | TokenIds, Field(description="Text, or token ids used exactly as given.")
    ],
    sites: SiteKindList = [],  # noqa: B006  # published as the default; never changed
    top: Annotated[int, Field(description="How many next tokens.", ge=1, le=100)] = 10,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, RunWithCacheResult]:
    """Runs one prompt and says what the model predicts next, and how large the residual stream and
    each layer's contributions are. For the sites asked for it adds a summary of each activation
    (shape, mean, spread, norm); all their numbers are behind the link `activations`.

    Use it for a first look at a prompt, or to check how the prompt is split into tokens. Not for
    finding what matters: large activations often do nothing, and patch_sweep measures effects.
    Cost: one forward pass, under 1 s.

    Example: run_with_cache(model_id="bundled", sites=["pattern"],
    prompt="When Anna and John went to the park, John gave a book to").
    """

    def measure(measurement: Measurement) -> tuple[RunWithCacheResult, int]:
        prompt_run = lazy_discovery.run_with_cache(
            measurement.backend,
            prompt if isinstance(prompt, str) else tuple(prompt),
            sites,
            top=top,
        )
        request = repr((prompt, sites)).encode()
        result_id = make_result_id("cache", model_id, hashlib.sha256(request).hexdigest()[:8])
        return _make_result(measurement, result_id, prompt_run)

    description = f"run_with_cache {model_id}"
    result, n_bytes = await run_measurement(context, model_id, description, measure)
    content: list[ContentBlock] = []
    if result.activations:
        link = make_link(result.activations, "activations", "application/octet-stream", n_bytes)
        content.append(link)
    return to_call_result(result, content, detailed=detail == "detailed")


def _make_result(
    measurement: Measurement, result_id: str, prompt_run: PromptRun
) -> tuple[RunWithCacheResult, int]:
    """Keep the activations as an artifact, and return the result with their size in bytes."""
    summaries = {
        site: lazy_discovery.summarise_activation(values, 1 if site.kind == "pattern" else 0)
        for site, values in prompt_run.activations.items()
    }
    packed = _pack_activations(prompt_run)
    uri = None
    if packed:
        uri = measurement.session.artifacts.add(result_id, "activations.safetensors", packed)
    texts = prompt_run.texts or map(str, prompt_run.tokens)
    result = RunWithCacheResult(
        model_id=measurement.model.model_id,
        result_id=result_id,
        n_tokens=len(prompt_run.tokens),
        tokens=[shorten_text(text, _MAX_TOKEN_TEXT) for text in texts],
        predictions=[
            PredictionView(
                token=prediction.token,
                text=prediction.text,
                probability=round_number(prediction.probability),
                logit=round_number(prediction.logit),
            )
            for prediction in prompt_run.predictions
        ],
        layers=_layer_views(prompt_run),
        sites=[
            _activation_view(site, summary, prompt_run.axes[site])
            for site, summary in summaries.items()
        ],
        warnings=list(prompt_run.warnings),
        n_nonfinite=sum(summary.n_nonfinite for summary in summaries.values()),
        activations=uri,
        total=len(summaries),
        cost=cost_view(prompt_run.cost),
    )
    return result, len(packed)


def _pack_activations(prompt_run: PromptRun) -> bytes:
    """Return the activations of the requested sites as safetensors; nothing if there are none."""
    if not prompt_run.activations:
        return b""
    tensors = {
        f"{site.kind}.{site.layer}": values for site, values in prompt_run.activations.items()
    }
    warnings = prompt_run.warnings
    metadata = {"warnings": "\n".join(warnings)} if warnings else None
    return lazy_discovery.pack_safetensors(tensors, metadata)


def _layer_views(prompt_run: PromptRun) -> list[LayerNormsView]:
    """Return the norms of each layer at the last position."""
    norms = {
        "residual": prompt_run.residual_norm,
        "attention": prompt_run.attention_norm,
        "mlp": prompt_run.mlp_norm,
    }
    last = {
        name: grid[:, -1].tolist() if grid is not None else None for name, grid in norms.items()
    }

    def norm(name: str, layer: int) -> float | None:
        values = last[name]
        return round_number(values[layer]) if values else None

    return [
        LayerNormsView(
            layer=layer,
            residual=norm("residual", layer),
            attention=norm("attention", layer),
            mlp=norm("mlp", layer),
        )
        for layer in range(len(prompt_run.residual_norm))
    ]


def _activation_view(
    site: Site, summary: ActivationSummary, axes: tuple[str, ...]
) -> ActivationView:
    return ActivationView(
        site=f"{site.kind}.{site.layer}",
        shape=list(summary.shape),
        axes=list(axes),
        mean=round_number(summary.mean),
        std=round_number(summary.std),
        min=round_number(summary.low),
        max=round_number(summary.high),
        norm=round_number(summary.norm),
    )
