"""Features of a sparse autoencoder: which are active, and what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from mcp_server.errors import ServerError
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import (
    CONTROL_DIRECTIONS,
    DEFAULT_PAIRS,
    BoundedText,
    Detail,
    DetailLevel,
    MetricChoice,
    ModelId,
    PairCount,
    PairList,
    Seed,
    TaskName,
    TokenIds,
    ToolContext,
)
from mcp_server.tools.measurement import Measurement, run_measurement
from mcp_server.tools.result import (
    CostView,
    IntervalView,
    Listing,
    Result,
    cost_view,
    interval_view,
    round_number,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.methods.features import Feature, TopFeatures

_PAIRS_SHOWN: dict[Detail, int] = {"concise": 8, "detailed": 100}  # with their activation
_FIRES_ON_SHOWN: dict[Detail, int] = {"concise": 2, "detailed": 5}  # tokens
_PROMOTES_SHOWN: dict[Detail, int] = {"concise": 3, "detailed": 5}  # tokens
_SUPPRESSES_SHOWN: dict[Detail, int] = {"concise": 1, "detailed": 3}  # tokens
_DIGITS = 4


class TokenView(Result):
    """A token, with the feature's activation on it or its effect on the token's logit."""

    token: int
    text: str | None
    value: float | None


class FeatureView(Result):
    """A feature; attribution and ablation in the metric's units, above 0 if it helps."""

    index: int
    activation: IntervalView
    attribution: IntervalView | None
    ablation: IntervalView
    control_p: float | None = Field(
        description="p-value against 19 random directions; at least 0.05."
    )
    share_clean: float | None = Field(description="Share of clean prompts in which it fires.")
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
        description="A poor reconstruction comes first: its features then explain little."
    )
    model_id: str
    sae: str
    reads: str
    metric: str
    metric_clean: float | None
    answer: str | None = Field(
        description="For a prompt: the likeliest next token; the metric sets it against `wrong`, "
        "the runner-up."
    )
    wrong: str | None
    n: int
    by: str
    variance_explained: float | None
    l0: float | None
    share_of_metric: float | None = Field(
        description="How much of the behaviour survives the reconstruction."
    )
    features: list[FeatureView]
    by_pair_of: int = Field(description="How many of the n pairs `by_pair` holds: the first ones.")
    total: int = Field(description="Features of the dictionary.")
    cost: CostView


async def sae_top_features(
    context: ToolContext,
    model_id: ModelId,
    sae: Annotated[
        str | None,
        Field(
            description="SAELens directory, run_id of train_sae, or release/sae_id of the hub; "
            "default: the bundled one.",
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
            description="From 0, from the end (-1), or labels of the task; default: all.",
            max_length=500,
        ),
    ] = None,
    k: Annotated[int, Field(description="How many features.", ge=1, le=50)] = 10,
    by: Annotated[
        Literal["activation", "attribution", "ablation"] | None,
        Field(description="The order; default: fits what is given."),
    ] = None,
    steps: Annotated[int, Field(description="Above 1: integrated gradients.", ge=1, le=64)] = 1,
    metric: MetricChoice = None,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, SaeTopFeaturesResult]:
    """Decomposes an activation with a sparse autoencoder and gives the features that matter: how
    active they are (by pair too), what removing each does to the metric beside random directions,
    on which tokens it fires, and which tokens it promotes.

    Use it to say what a place that patch_sweep found stands for. Read the reconstruction first:
    what the SAE does not explain, none of its features explains. Not without an SAE trained on
    this very model and site (train_sae makes one). Cost: some forward passes per pair and feature,
    seconds.

    Example: sae_top_features(model_id="gpt2", sae="gpt2-small-res-jb/blocks.8.hook_resid_pre",
    task="ioi", positions=["end"]).
    """
    if (prompt is None) == (task is None):
        raise ServerError(
            "sae_top_features takes one of prompt and task.",
            "Give a prompt for a first look, a task for effects.",
        )

    def measure(measurement: Measurement) -> SaeTopFeaturesResult:
        dictionary, name = measurement.open_sae(sae)
        loaded_task = None
        notes: list[str] = []
        if task is not None:
            loaded_task, notes = measurement.load_task(task, pairs, seed)
        top_features = lazy_discovery.sae_top_features(
            measurement.backend,
            dictionary,
            prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
            task=loaded_task,
            positions=positions,
            k=k,
            by=by,
            steps=steps,
            controls=CONTROL_DIRECTIONS,
            seed=seed,
            metric=metric,
            memory=measurement.memory,
            progress=measurement.job,
        )
        return _make_result(
            measurement,
            top_features,
            sae=name,
            n_features=dictionary.d_sae,
            k=k,
            detail=detail,
            notes=notes,
        )

    result = await run_measurement(context, model_id, f"sae_top_features {model_id}", measure)
    return to_call_result(result, detailed=detail == "detailed")


def _make_result(
    measurement: Measurement,
    top_features: TopFeatures,
    *,
    sae: str,
    n_features: int,
    k: int,
    detail: Detail,
    notes: list[str],
) -> SaeTopFeaturesResult:
    features = top_features.features
    reconstruction = top_features.reconstruction
    share = reconstruction.share
    return SaeTopFeaturesResult(
        model_id=measurement.model.model_id,
        sae=sae,
        reads=f"{top_features.reads.kind}.{top_features.reads.layer}",
        metric=top_features.metric,
        metric_clean=round_number(top_features.metric_clean),
        answer=_decode_token(measurement.backend, top_features.answer),
        wrong=_decode_token(measurement.backend, top_features.wrong),
        n=top_features.n_pairs,
        by=top_features.by,
        warnings=[*top_features.warnings, *notes],
        variance_explained=round_number(reconstruction.variance_explained),
        l0=round_number(reconstruction.l0),
        share_of_metric=round_number(share.mean) if share else None,
        features=[_feature_view(feature, detail) for feature in features],
        by_pair_of=min(top_features.n_pairs, _PAIRS_SHOWN[detail]),
        total=n_features,
        # If fewer features than asked for are listed, the others do nothing here.
        truncated=len(features) == k < n_features,
        cost=cost_view(top_features.cost),
    )


def _feature_view(feature: Feature, detail: Detail) -> FeatureView:
    consistency = feature.consistency
    corrupted = consistency.corrupted
    attribution = feature.attribution
    fires_on = feature.tokens[: _FIRES_ON_SHOWN[detail]]
    promoted = feature.direct.promoted[: _PROMOTES_SHOWN[detail]]
    suppressed = feature.direct.suppressed[: _SUPPRESSES_SHOWN[detail]]
    return FeatureView(
        index=feature.index,
        activation=interval_view(feature.activation, _DIGITS),
        attribution=interval_view(attribution, _DIGITS) if attribution else None,
        ablation=interval_view(feature.ablation, _DIGITS),
        control_p=round_number(feature.control.p, 3) if feature.control else None,
        share_clean=round_number(consistency.clean.share, 3),
        share_corrupted=round_number(corrupted.share, 3) if corrupted else None,
        share_unrelated=round_number(consistency.unrelated.share, 3),
        fires_on=[_token_view(token.token, token.text, token.largest) for token in fires_on],
        promotes=[_token_view(token.token, token.text, token.logit) for token in promoted],
        suppresses=[_token_view(token.token, token.text, token.logit) for token in suppressed],
        by_pair=[round_number(value, 3) for value in feature.by_pair[: _PAIRS_SHOWN[detail]]],
        link=feature.link,
    )


def _token_view(token: int, text: str | None, value: float) -> TokenView:
    return TokenView(token=token, text=text, value=round_number(value, _DIGITS))


def _decode_token(model: Backend, token: int | None) -> str | None:
    """Return a token as text, or its number if the model has no tokenizer."""
    if token is None:
        return None
    return model.tokenizer.decode([token]) if model.tokenizer else str(token)
