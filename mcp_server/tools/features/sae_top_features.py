"""Features of a sparse autoencoder: which are active, and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from mcp_server.errors import ServerError
from mcp_server.session import DeviceJob as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    CONTROL_DIRECTIONS,
    DEFAULT_PAIRS,
    BoundedText,
    Detail,
    DetailLevel,
    ModelId,
    PairCount,
    PairList,
    Seed,
    TaskName,
    TokenIds,
    ToolContext,
    load_task_with_notes,
)
from mcp_server.tools.measure.check_task import IntervalView, MetricChoice
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    round_number,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.features import SAE
    from discovery.methods.features import Feature, TopFeatures
    from discovery.methods.statistics import Interval as Found

_PAIRS_LISTED = {"concise": 8, "detailed": 100}  # whose activation is listed
_TOKENS_LISTED = {
    "concise": (2, 3, 1),
    "detailed": (5, 5, 3),
}  # on which it fires, that it promotes, that it suppresses


class TokenView(Result):
    """A token, and how large a feature is there or how much it moves its logit."""

    token: int
    text: str | None
    value: float | None


class FeatureView(Result):
    """A feature; attribution and ablation in the metric's units, above 0 where it works for the behaviour."""

    index: int
    activation: IntervalView
    attribution: IntervalView | None
    ablation: IntervalView
    control_p: float | None = Field(
        description="By chance: random directions that do as much, of 19."
    )
    share_clean: float | None = Field(description="Clean prompts in which it fires.")
    share_corrupted: float | None
    share_unrelated: float | None
    fires_on: list[TokenView]
    promotes: list[TokenView]
    suppresses: list[TokenView]
    by_pair: list[float | None]
    link: str | None


class SaeTopFeaturesResult(Listing):
    """What sae_top_features gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("features", "warnings")
    narrowing_hint: ClassVar[str] = (
        "Raise k; detail='detailed' gives more tokens and pairs of each feature."
    )

    warnings: list[str] = Field(
        description="A poor reconstruction stands first: its features then explain little."
    )
    model_id: str
    sae: str
    reads: str
    metric: str
    metric_clean: float | None
    answer: str | None = Field(
        description="Of a prompt's metric: the likeliest next token, over `wrong`, the runner-up."
    )
    wrong: str | None
    n: int
    by: str
    variance_explained: float | None
    l0: float | None
    share_of_metric: float | None = Field(
        description="Of the behaviour, what survives the reconstruction."
    )
    features: list[FeatureView]
    by_pair_of: int = Field(description="How many of the n pairs, the first, `by_pair` holds.")
    total: int = Field(description="Features of the dictionary.")
    cost: CostView


async def sae_top_features(
    call: ToolContext,
    model_id: ModelId,
    sae: Annotated[
        str | None,
        Field(
            description="SAELens directory, run_id of train_sae, or release/sae_id of the hub; default: the bundled one.",
            max_length=1000,
        ),
    ] = None,
    prompt: Annotated[
        BoundedText | TokenIds | None, Field(description="One prompt; or give task.")
    ] = None,
    task: Annotated[
        TaskName | PairList | None, Field(description="As in check_task; or give prompt.")
    ] = None,
    positions: Annotated[
        list[StrictInt | str] | None,
        Field(
            description="From 0, from the end (-1), or labels of the task; all if left out.",
            max_length=500,
        ),
    ] = None,
    k: Annotated[int, Field(description="How many features.", ge=1, le=50)] = 10,
    by: Annotated[
        Literal["activation", "attribution", "ablation"] | None,
        Field(description="The order; left out: fits what is given."),
    ] = None,
    steps: Annotated[int, Field(description="Over 1: integrated gradients.", ge=1, le=64)] = 1,
    metric: MetricChoice = None,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, SaeTopFeaturesResult]:
    """Decomposes an activation with a sparse autoencoder and gives the features that matter: how active they are, by pair too, what
    removing each does to the metric beside random directions, on which tokens it fires, and which tokens it promotes.

    Use it to say what a place that patch_sweep found stands for. Read the reconstruction first: what the dictionary does not explain,
    none of its features explains. Not without an SAE trained on this very model and site (train_sae makes one). Cost: some forward
    passes per pair and feature, seconds.

    Example: sae_top_features(model_id="gpt2", sae="gpt2-small-res-jb/blocks.8.hook_resid_pre", task="ioi", positions=["end"]).
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)
    if (prompt is None) == (task is None):
        raise ServerError(
            "sae_top_features takes one of prompt and task.",
            "Give a prompt for a first look, a task for effects.",
        )

    def job(work: Job) -> SaeTopFeaturesResult:
        source = session.allowed_paths.resolve_sae(sae)
        read, notes = (
            (None, []) if task is None else load_task_with_notes(session, loaded, task, pairs, seed)
        )
        dictionary = opened(source, loaded.backend)
        found = lazy_discovery.sae_top_features(
            loaded.backend,
            dictionary,
            prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
            task=read,
            positions=positions,
            k=k,
            by=by,
            steps=steps,
            controls=CONTROL_DIRECTIONS,
            seed=seed,
            metric=metric,
            memory=session.settings.memory,
            progress=work,
        )
        shown = session.allowed_paths.format_path(source)
        return _make_result(
            model_id, loaded.backend, shown, found, dictionary.d_sae, k, detail, notes
        )

    return to_call_result(
        await session.devices.run(call, loaded.device, f"sae_top_features {model_id}", job),
        detailed=detail == "detailed",
    )


def opened(source: str | Path, model: Backend) -> SAE:
    """The dictionary; what reads it is imported here, for it needs torch."""
    opened: SAE = lazy_discovery.open_sae(source, model)
    return opened


def _make_result(
    model_id: str,
    model: Backend,
    sae: str,
    found: TopFeatures,
    width: int,
    asked: int,
    detail: Detail,
    notes: list[str],
) -> SaeTopFeaturesResult:
    """The result; the features that are listed are all that do anything here where there are fewer than asked for."""
    whole = found.reconstruction
    return SaeTopFeaturesResult(
        model_id=model_id,
        sae=sae,
        reads=f"{found.reads.kind}.{found.reads.layer}",
        metric=found.metric,
        metric_clean=round_number(found.metric_clean),
        answer=_decode_token(model, found.answer),
        wrong=_decode_token(model, found.wrong),
        n=found.n_pairs,
        by=found.by,
        warnings=[*found.warnings, *notes],
        variance_explained=round_number(whole.variance_explained),
        l0=round_number(whole.l0),
        share_of_metric=round_number(whole.share.mean) if whole.share else None,
        features=[_feature_view(feature, detail) for feature in found.features],
        by_pair_of=min(found.n_pairs, _PAIRS_LISTED[detail]),
        total=width,
        truncated=len(found.features) == asked < width,
        cost=cost_view(found.cost),
    )


def _feature_view(feature: Feature, detail: Detail) -> FeatureView:
    seen, (fires, promotes, suppresses) = feature.consistency, _TOKENS_LISTED[detail]
    return FeatureView(
        index=feature.index,
        activation=interval_view(feature.activation),
        attribution=interval_view(feature.attribution) if feature.attribution else None,
        ablation=interval_view(feature.ablation),
        control_p=round_number(feature.control.p, 3) if feature.control else None,
        share_clean=round_number(seen.clean.share, 3),
        share_corrupted=round_number(seen.corrupted.share, 3) if seen.corrupted else None,
        share_unrelated=round_number(seen.unrelated.share, 3),
        fires_on=[
            TokenView(token=token.token, text=token.text, value=round_number(token.largest, 4))
            for token in feature.tokens[:fires]
        ],
        promotes=[
            TokenView(token=token.token, text=token.text, value=round_number(token.logit, 4))
            for token in feature.direct.promoted[:promotes]
        ],
        suppresses=[
            TokenView(token=token.token, text=token.text, value=round_number(token.logit, 4))
            for token in feature.direct.suppressed[:suppresses]
        ],
        by_pair=[round_number(value, 3) for value in feature.by_pair[: _PAIRS_LISTED[detail]]],
        link=feature.link,
    )


def _decode_token(model: Backend, token: int | None) -> str | None:
    """A token as text, or its number where the model has no tokenizer."""
    if token is None:
        return None
    return model.tokenizer.decode([token]) if model.tokenizer else str(token)


def interval_view(found: Found) -> IntervalView:
    return IntervalView(
        mean=round_number(found.mean, 4),
        low=round_number(found.low, 4),
        high=round_number(found.high, 4),
    )
