"""Features of a sparse autoencoder: which are active, and what they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import Field, StrictInt

from mcp_server.errors import ServerError
from mcp_server.session import Work as Job
from mcp_server.session import lazy_discovery
from mcp_server.tools.arguments import DRAWN, DRAWS, Call, Count, Detail, DetailLevel, Ids, ModelId, Pairs, Seed, TaskName, Text, drawn
from mcp_server.tools.measure.check_task import Interval, Metric
from mcp_server.tools.result import Listing, Result, Work, answer, cost, number

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.features import SAE
    from discovery.methods.features import Feature, TopFeatures
    from discovery.methods.statistics import Interval as Found

_PAIRS = {"concise": 8, "detailed": 100}  # whose activation is listed
_TOKENS = {"concise": (2, 3, 1), "detailed": (5, 5, 3)}  # on which it fires, that it promotes, that it suppresses


class Token(Result):
    """A token, and how large a feature is there or how much it moves its logit."""

    token: int
    text: str | None
    value: float | None


class FeatureView(Result):
    """A feature; attribution and ablation in the metric's units, above 0 where it works for the behaviour."""

    index: int
    activation: Interval
    attribution: Interval | None
    ablation: Interval
    control_p: float | None = Field(description="By chance: random directions that do as much, of 19.")
    share_clean: float | None = Field(description="Clean prompts in which it fires.")
    share_corrupted: float | None
    share_unrelated: float | None
    fires_on: list[Token]
    promotes: list[Token]
    suppresses: list[Token]
    by_pair: list[float | None]
    link: str | None


class Features(Listing):
    """What sae_top_features gives."""

    lists: ClassVar[tuple[str, ...]] = ("features", "warnings")
    rest: ClassVar[str] = "Raise k; detail='detailed' gives more tokens and pairs of each feature."

    warnings: list[str] = Field(description="A poor reconstruction stands first: its features then explain little.")
    model_id: str
    sae: str
    reads: str
    metric: str
    metric_clean: float | None
    answer: str | None = Field(description="Of a prompt's metric: the likeliest next token, over `wrong`, the runner-up.")
    wrong: str | None
    n: int
    by: str
    variance_explained: float | None
    l0: float | None
    share_of_metric: float | None = Field(description="Of the behaviour, what survives the reconstruction.")
    features: list[FeatureView]
    by_pair_of: int = Field(description="How many of the n pairs, the first, `by_pair` holds.")
    total: int = Field(description="Features of the dictionary.")
    cost: Work


async def sae_top_features(
    call: Call,
    model_id: ModelId,
    sae: Annotated[
        str | None,
        Field(
            description="SAELens directory, run_id of train_sae, or release/sae_id of the hub; default: the bundled one.", max_length=1000
        ),
    ] = None,
    prompt: Annotated[Text | Ids | None, Field(description="One prompt; or give task.")] = None,
    task: Annotated[TaskName | Pairs | None, Field(description="As in check_task; or give prompt.")] = None,
    positions: Annotated[
        list[StrictInt | str] | None,
        Field(description="From 0, from the end (-1), or labels of the task; all if left out.", max_length=500),
    ] = None,
    k: Annotated[int, Field(description="How many features.", ge=1, le=50)] = 10,
    by: Annotated[
        Literal["activation", "attribution", "ablation"] | None, Field(description="The order; left out: fits what is given.")
    ] = None,
    steps: Annotated[int, Field(description="Over 1: integrated gradients.", ge=1, le=64)] = 1,
    metric: Metric = None,
    pairs: Count = DRAWN,
    seed: Seed = 0,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, Features]:
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
        raise ServerError("sae_top_features takes one of prompt and task.", "Give a prompt for a first look, a task for effects.")

    def job(work: Job) -> Features:
        source = session.places.dictionary(sae)
        read, notes = (None, []) if task is None else drawn(session, loaded, task, pairs, seed)
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
            controls=DRAWS,
            seed=seed,
            metric=metric,
            memory=session.settings.memory,
            progress=work,
        )
        shown = session.places.shown(source)
        return _features(model_id, loaded.backend, shown, found, dictionary.d_sae, k, detail, notes)

    return answer(await session.devices.run(call, loaded.device, f"sae_top_features {model_id}", job), detailed=detail == "detailed")


def opened(source: str | Path, model: Backend) -> SAE:
    """The dictionary; what reads it is imported here, for it needs torch."""
    opened: SAE = lazy_discovery.open_sae(source, model)
    return opened


def _features(
    model_id: str, model: Backend, sae: str, found: TopFeatures, width: int, asked: int, detail: Detail, notes: list[str]
) -> Features:
    """The result; the features that are listed are all that do anything here where there are fewer than asked for."""
    whole = found.reconstruction
    return Features(
        model_id=model_id,
        sae=sae,
        reads=f"{found.reads.kind}.{found.reads.layer}",
        metric=found.metric,
        metric_clean=number(found.metric_clean),
        answer=_read(model, found.answer),
        wrong=_read(model, found.wrong),
        n=found.n_pairs,
        by=found.by,
        warnings=[*found.warnings, *notes],
        variance_explained=number(whole.variance_explained),
        l0=number(whole.l0),
        share_of_metric=number(whole.share.mean) if whole.share else None,
        features=[_view(feature, detail) for feature in found.features],
        by_pair_of=min(found.n_pairs, _PAIRS[detail]),
        total=width,
        truncated=len(found.features) == asked < width,
        cost=cost(found.cost),
    )


def _view(feature: Feature, detail: Detail) -> FeatureView:
    seen, (fires, promotes, suppresses) = feature.consistency, _TOKENS[detail]
    return FeatureView(
        index=feature.index,
        activation=_interval(feature.activation),
        attribution=_interval(feature.attribution) if feature.attribution else None,
        ablation=_interval(feature.ablation),
        control_p=number(feature.control.p, 3) if feature.control else None,
        share_clean=number(seen.clean.share, 3),
        share_corrupted=number(seen.corrupted.share, 3) if seen.corrupted else None,
        share_unrelated=number(seen.unrelated.share, 3),
        fires_on=[Token(token=token.token, text=token.text, value=number(token.largest, 4)) for token in feature.tokens[:fires]],
        promotes=[Token(token=token.token, text=token.text, value=number(token.logit, 4)) for token in feature.direct.promoted[:promotes]],
        suppresses=[
            Token(token=token.token, text=token.text, value=number(token.logit, 4)) for token in feature.direct.suppressed[:suppresses]
        ],
        by_pair=[number(value, 3) for value in feature.by_pair[: _PAIRS[detail]]],
        link=feature.link,
    )


def _read(model: Backend, token: int | None) -> str | None:
    """A token as text, or its number where the model has no tokenizer."""
    if token is None:
        return None
    return model.tokenizer.decode([token]) if model.tokenizer else str(token)


def _interval(found: Found) -> Interval:
    return Interval(mean=number(found.mean, 4), low=number(found.low, 4), high=number(found.high, 4))
