"""One prompt looked into."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from mcp_server.session import DeviceJob as Job
from mcp_server.session import Session, lazy_discovery
from mcp_server.session.artifacts import make_result_id
from mcp_server.tools.arguments import BoundedText, DetailLevel, ModelId, TokenIds, ToolContext
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    make_link,
    round_number,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.methods.prompt_run import PromptRun

SiteKindList = Annotated[
    list[Annotated[str, Field(max_length=30)]],
    Field(
        description="Summarised in every layer: resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, pattern, z (a head's output "
        "before W_O; head_out gives it too).",
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
    """L2 norms at the last position: of the stream behind the layer, and of what the layer adds."""

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
        "Ask for fewer sites or a smaller top, or take detail='detailed'; `activations` holds every number of the sites."
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
    call: ToolContext,
    model_id: ModelId,
    prompt: Annotated[
        BoundedText | TokenIds, Field(description="Text, or token ids used exactly as given.")
    ],
    sites: SiteKindList = [],  # noqa: B006  # published as the default; never changed
    top: Annotated[int, Field(description="How many next tokens.", ge=1, le=100)] = 10,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, RunWithCacheResult]:
    """Runs one prompt and says what the model predicts next, how large the residual stream and each layer's contributions are, and,
    for the sites asked for, a summary of each activation (shape, mean, spread, norm); all their numbers are behind the link
    `activations`.

    Use it for a first look at a prompt, or to check how it is split into tokens. Not for finding what matters: large activations often
    do nothing; patch_sweep measures effects. Cost: one forward pass, under 1 s.

    Example: run_with_cache(model_id="bundled", prompt="When Anna and John went to the park, John gave a book to", sites=["pattern"]).
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> tuple[RunWithCacheResult, int]:
        seen = lazy_discovery.run_with_cache(
            loaded.backend, prompt if isinstance(prompt, str) else tuple(prompt), sites, top=top
        )
        return _make_result(session, model_id, seen, prompt, sites)

    found, size = await session.devices.run(call, loaded.device, f"run_with_cache {model_id}", job)
    beside = (
        [make_link(found.activations, "activations", "application/octet-stream", size)]
        if found.activations
        else []
    )
    return to_call_result(found, beside, detailed=detail == "detailed")


def _make_result(
    session: Session, model_id: str, seen: PromptRun, prompt: object, sites: list[str]
) -> tuple[RunWithCacheResult, int]:
    summaries = {
        site: lazy_discovery.summarise_activation(values, 1 if site.kind == "pattern" else 0)
        for site, values in seen.activations.items()
    }
    name = make_result_id(
        "cache", model_id, hashlib.sha256(repr((prompt, sites)).encode()).hexdigest()[:8]
    )
    named = {f"{site.kind}.{site.layer}": values for site, values in seen.activations.items()}
    notes = {"warnings": "\n".join(seen.warnings)} if seen.warnings else None
    packed = lazy_discovery.pack_safetensors(named, notes) if summaries else b""
    uri = session.artifacts.add(name, "activations.safetensors", packed) if packed else None
    norms = {"residual": seen.residual_norm, "attention": seen.attention_norm, "mlp": seen.mlp_norm}
    last = {
        kind: grid[:, -1].tolist() if grid is not None else None for kind, grid in norms.items()
    }
    rows = [
        ActivationView(
            site=f"{site.kind}.{site.layer}",
            shape=list(s.shape),
            axes=list(seen.axes[site]),
            mean=round_number(s.mean),
            std=round_number(s.std),
            min=round_number(s.low),
            max=round_number(s.high),
            norm=round_number(s.norm),
        )
        for site, s in summaries.items()
    ]
    texts = [
        text if len(text) <= 40 else f"{text[:37]}..."
        for text in seen.texts or map(str, seen.tokens)
    ]
    return RunWithCacheResult(
        model_id=model_id,
        result_id=name,
        n_tokens=len(seen.tokens),
        tokens=texts,
        predictions=[
            PredictionView(
                token=p.token,
                text=p.text,
                probability=round_number(p.probability),
                logit=round_number(p.logit),
            )
            for p in seen.predictions
        ],
        layers=[
            LayerNormsView(
                layer=n,
                **{
                    kind: round_number(values[n]) if values else None
                    for kind, values in last.items()
                },
            )
            for n in range(len(seen.residual_norm))
        ],
        sites=rows,
        warnings=list(seen.warnings),
        n_nonfinite=sum(s.n_nonfinite for s in summaries.values()),
        activations=uri,
        total=len(rows),
        cost=cost_view(seen.cost),
    ), len(packed)
