"""Where in a text features fire most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from discovery.tasks import BUILTIN
from mcp_server.session import DeviceJob as Job
from mcp_server.session import Session, lazy_discovery
from mcp_server.session.models import LoadedModel
from mcp_server.tools.arguments import (
    MAX_PAIRS,
    BoundedText,
    DetailLevel,
    ModelId,
    SaeName,
    ToolContext,
)
from mcp_server.tools.features.sae_top_features import opened
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    round_number,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.methods.features import FeatureExamples
    from discovery.methods.features.examples.dashboards import ActivatingExample, FeatureDashboard

_EXAMPLES_LISTED = {"concise": (3, 1), "detailed": (10, 3)}  # of the strongest, of each bin


class ExampleView(Result):
    """A context, its peak between « and »."""

    value: float | None
    text: str
    document: int


class BinView(Result):
    """Contexts of a share of the peaks, between two sizes of activation."""

    low: float | None
    high: float | None
    examples: list[ExampleView]


class CardView(Result):
    """Where one feature fires."""

    index: int
    density: float | None = Field(description="Share of positions at which it fires.")
    mean: float | None
    top: list[ExampleView]
    bins: list[BinView] = Field(description="Of equal share, the strongest first.")
    link: str | None


class SaeExamplesResult(Listing):
    """What sae_examples gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("features", "warnings")
    narrowing_hint: ClassVar[str] = (
        "Ask for fewer features at a time; detail='detailed' gives more contexts of each."
    )

    warnings: list[str]
    model_id: str
    sae: str
    text: str
    documents: int
    positions: int
    cached: bool = Field(description="Found before, and given again.")
    features: list[CardView]
    cost: CostView


async def sae_examples(
    call: ToolContext,
    model_id: ModelId,
    features: Annotated[
        list[StrictInt], Field(description="Their numbers.", min_length=1, max_length=50)
    ],
    text: Annotated[
        Annotated[str, Field(max_length=4096)]
        | Annotated[list[BoundedText], Field(min_length=1, max_length=MAX_PAIRS)],
        Field(
            description="Path of a text (a document a line) or .jsonl, a built-in task, or texts."
        ),
    ],
    sae: SaeName = None,
    field: Annotated[
        str, Field(description="Of .jsonl, what holds the text.", max_length=100)
    ] = "text",
    most: Annotated[int, Field(description="Positions to read at most.", ge=1, le=10**8)] = 200_000,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, SaeExamplesResult]:
    """Reads a text once and gives the contexts in which features fire most, repetitions left out, and contexts of lesser activation by
    quantile: what a feature stands for shows in both.

    Use it to name a feature that sae_top_features found. The text should be of the kind that the model was trained on. Kept on disk: the
    same call again costs nothing. Cost: one pass over the text up to the SAE's layer.

    Example: sae_examples(model_id="bundled", features=[60], text="ioi").
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> SaeExamplesResult:
        source = session.allowed_paths.resolve_sae(sae)
        dictionary = opened(source, loaded.backend)
        found = lazy_discovery.feature_examples(
            loaded.backend,
            dictionary,
            _resolve_text(session, loaded, text),
            features,
            field=field,
            sampling=lazy_discovery.Sampling(most=most),
            cache=not session.settings.read_only,
            progress=work,
        )
        return _make_result(model_id, session.allowed_paths.format_path(source), found, detail)

    return to_call_result(
        await session.devices.run(call, loaded.device, f"sae_examples {model_id}", job),
        detailed=detail == "detailed",
    )


def _resolve_text(session: Session, loaded: LoadedModel, text: str | list[str]) -> Any:
    """What is read: the texts themselves, a task, or a file that may be read."""
    if isinstance(text, list):
        return text
    return (
        session.get_task(loaded, text, None, 0)
        if text in BUILTIN
        else session.allowed_paths.resolve_text_file(
            text, "Name a built-in task, give the texts themselves"
        )
    )


def _make_result(model_id: str, sae: str, found: FeatureExamples, detail: str) -> SaeExamplesResult:
    return SaeExamplesResult(
        warnings=list(found.warnings),
        model_id=model_id,
        sae=sae,
        text=found.text,
        documents=found.documents,
        positions=found.positions,
        cached=found.cached,
        features=[_card_view(card, *_EXAMPLES_LISTED[detail]) for card in found.features],
        total=len(found.features),
        cost=cost_view(found.cost),
    )


def _card_view(card: FeatureDashboard, top: int, each: int) -> CardView:
    return CardView(
        index=card.feature,
        density=round_number(card.density, 3),
        mean=round_number(card.mean, 4),
        top=[_example_view(example) for example in card.top[:top]],
        bins=[
            BinView(
                low=round_number(part.low, 3),
                high=round_number(part.high, 3),
                examples=[_example_view(one) for one in part.examples[:each]],
            )
            for part in card.bins
        ],
        link=card.link,
    )


def _example_view(example: ActivatingExample) -> ExampleView:
    return ExampleView(
        value=round_number(example.value, 4), text=example.text[:400], document=example.document
    )
