"""Where in a text features fire most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from discovery.tasks import BUILTIN
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    MAX_PAIRS,
    BoundedText,
    Detail,
    DetailLevel,
    ModelId,
    SaeName,
    ToolContext,
)
from mcp_server.tools.measurement import Measurement, run_measurement
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
    from discovery.tasks.task import Task

_TOP_SHOWN: dict[Detail, int] = {"concise": 3, "detailed": 10}  # contexts of strongest activation
_PER_BIN_SHOWN: dict[Detail, int] = {"concise": 1, "detailed": 3}  # contexts of each bin
_MAX_CONTEXT_TEXT = 400  # characters


class ExampleView(Result):
    """A context, its peak between « and »."""

    value: float | None
    text: str
    document: int


class BinView(Result):
    """Contexts whose peak lies between two sizes of activation."""

    low: float | None
    high: float | None
    examples: list[ExampleView]


class CardView(Result):
    """Where one feature fires."""

    index: int
    density: float | None = Field(description="Share of positions at which it fires.")
    mean: float | None
    top: list[ExampleView]
    bins: list[BinView] = Field(description="Of equally many peaks each, the strongest first.")
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
    cached: bool = Field(description="Found by an earlier call, and given again.")
    features: list[CardView]
    cost: CostView


async def sae_examples(
    context: ToolContext,
    model_id: ModelId,
    features: Annotated[
        list[StrictInt], Field(description="Numbers of the features.", min_length=1, max_length=50)
    ],
    text: Annotated[
        Annotated[str, Field(max_length=4096)]
        | Annotated[list[BoundedText], Field(min_length=1, max_length=MAX_PAIRS)],
        Field(
            description="Path of a text file (a document a line) or .jsonl, a built-in task, or "
            "the texts themselves."
        ),
    ],
    sae: SaeName = None,
    field: Annotated[
        str, Field(description="Field of .jsonl that holds the text.", max_length=100)
    ] = "text",
    most: Annotated[int, Field(description="Positions to read at most.", ge=1, le=10**8)] = 200_000,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, SaeExamplesResult]:
    """Reads a text once, and gives the contexts in which features fire most (repetitions left out)
    and contexts of weaker activation by quantile: what a feature stands for must fit both.

    Use it to name a feature that sae_top_features found. The text should be of the kind that the
    model was trained on. Not for effects: edit_features measures them. Results are kept on disk, so
    the same call again costs nothing. Cost: one pass over the text up to the SAE's layer.

    Example: sae_examples(model_id="bundled", features=[60], text="ioi").
    """

    def measure(measurement: Measurement) -> SaeExamplesResult:
        dictionary, name = measurement.open_sae(sae)
        examples = lazy_discovery.feature_examples(
            measurement.backend,
            dictionary,
            _resolve_text(measurement, text),
            features,
            field=field,
            sampling=lazy_discovery.Sampling(most=most),
            cache=not measurement.session.settings.read_only,
            progress=measurement.job,
        )
        return _make_result(model_id, name, examples, detail)

    result = await run_measurement(context, model_id, f"sae_examples {model_id}", measure)
    return to_call_result(result, detailed=detail == "detailed")


def _resolve_text(measurement: Measurement, text: str | list[str]) -> list[str] | Task | Path:
    """Return what is read: the texts themselves, a task, or a file that may be read.

    Raises:
        PathNotAllowedError: if the file may not be read.
    """
    if isinstance(text, list):
        return text
    session = measurement.session
    if text in BUILTIN:
        return session.get_task(measurement.model, text, None, 0)
    return session.allowed_paths.resolve_text_file(
        text, "Name a built-in task, give the texts themselves"
    )


def _make_result(
    model_id: str, sae: str, examples: FeatureExamples, detail: Detail
) -> SaeExamplesResult:
    return SaeExamplesResult(
        warnings=list(examples.warnings),
        model_id=model_id,
        sae=sae,
        text=examples.text,
        documents=examples.documents,
        positions=examples.positions,
        cached=examples.cached,
        features=[_card_view(dashboard, detail) for dashboard in examples.features],
        total=len(examples.features),
        cost=cost_view(examples.cost),
    )


def _card_view(dashboard: FeatureDashboard, detail: Detail) -> CardView:
    n_top = _TOP_SHOWN[detail]
    n_per_bin = _PER_BIN_SHOWN[detail]
    return CardView(
        index=dashboard.feature,
        density=round_number(dashboard.density, 3),
        mean=round_number(dashboard.mean, 4),
        top=[_example_view(example) for example in dashboard.top[:n_top]],
        bins=[
            BinView(
                low=round_number(part.low, 3),
                high=round_number(part.high, 3),
                examples=[_example_view(example) for example in part.examples[:n_per_bin]],
            )
            for part in dashboard.bins
        ],
        link=dashboard.link,
    )


def _example_view(example: ActivatingExample) -> ExampleView:
    return ExampleView(
        value=round_number(example.value, 4),
        text=example.text[:_MAX_CONTEXT_TEXT],
        document=example.document,
    )
