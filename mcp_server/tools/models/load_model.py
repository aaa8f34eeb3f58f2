"""Loading, listing and dropping models."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from discovery.errors import ModelError
from discovery.sites import BackendName, DtypeName
from mcp_server.session import lazy_discovery
from mcp_server.session.devices import DeviceJob as Job
from mcp_server.session.models import LoadedModel, ModelRequest
from mcp_server.tools.arguments import ModelId, ToolContext
from mcp_server.tools.result import Listing, Result, round_number, to_call_result

if TYPE_CHECKING:
    from discovery.backends.info import ModelDescription
    from discovery.backends.loading.outline import Outline

_SHAPE_FIELDS = (
    "architecture",
    "dtype",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "d_model",
    "d_head",
    "d_vocab",
    "n_ctx",
    "n_params",
    "attn_only",
)
DeviceName = Annotated[
    str,
    Field(
        description="auto, cpu, cuda, cuda:1 or mps.",
        max_length=20,
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,2})?)$",
    ),
]


class MemoryView(BaseModel):
    """Megabytes."""

    loading: float | None = Field(
        description="At most while the weights are loaded; null where that is done."
    )
    weights: float | None = Field(description="Of the model in memory.")
    sweep_pair: float | None = Field(
        description="A patch_sweep beside it (q, k, v and pattern take more): one pair of `tokens` tokens after the other, within 15%."
    )
    sweep: float | None = Field(description="The same with `pairs` pairs at once.")
    tokens: int
    pairs: int
    free: float | None = Field(description="Where the model runs.")


class LoadModelResult(Result):
    """A model in memory, or one that could be."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("warnings",)

    model_id: str = Field(description="Handle for the other tools.")
    model: str
    already_loaded: bool
    loaded: bool = Field(
        description="False where load was false: load_model without it loads the model under this model_id."
    )
    architecture: str
    backend: str
    chosen: str = Field(description="Why this backend.")
    device: str
    dtype: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int
    n_params: int
    n_nodes: int = Field(description="Heads and MLPs: what a circuit is chosen from.")
    attn_only: bool
    tokenizer: bool = Field(
        description="False: prompts must be token ids, and built-in tasks do not apply."
    )
    fingerprint: str | None = Field(
        description="sha256 of the weights; null where they are not loaded."
    )
    memory: MemoryView
    seconds: float | None
    warnings: list[str]


class LoadedModelView(Result):
    """One line of list_models."""

    model_id: str
    n_layers: int
    n_heads: int
    n_params: int
    device: str
    dtype: str


class LoadableModelView(Result):
    """A model that load_model takes."""

    model: str
    megabytes: float | None


class ListModelsResult(Listing):
    """What list_models gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("loadable", "loaded")
    narrowing_hint: ClassVar[str] = (
        "Not all directories are listed: load_model takes the others by name too."
    )

    loaded: list[LoadedModelView]
    loadable: list[LoadableModelView]
    hub: str = Field(description="Whether hub names can be loaded too.")


class UnloadModelResult(Result):
    """What unload_model gives."""

    model_id: str
    loaded: list[str] = Field(description="What is still in memory.")


async def load_model(
    call: ToolContext,
    model: Annotated[
        str,
        Field(
            description="bundled, a model directory, or a hub name (gpt2).",
            min_length=1,
            max_length=1000,
        ),
    ],
    backend: Annotated[
        BackendName | None, Field(description="Engine; the server's default where left out.")
    ] = None,
    device: DeviceName | None = None,
    dtype: Annotated[
        DtypeName | None, Field(description="The server's default (float32) where left out.")
    ] = None,
    device_map: Annotated[
        Literal["auto"] | None,
        Field(description="auto: over the server's devices, memory and disk (slow)."),
    ] = None,
    remote: Annotated[
        bool,
        Field(
            description="Run it on NDIF with the server's key: prompts and activations are sent there."
        ),
    ] = False,
    load: Annotated[
        bool,
        Field(
            description="False: only say what it is and what memory it takes, from its configuration."
        ),
    ] = True,
) -> Annotated[CallToolResult, LoadModelResult]:
    """Loads a language model and returns the `model_id` that every other tool takes. Call it first; the same arguments again cost
    nothing and give the same id. `bundled` is a small model that is always there and does the built-in task ioi.

    Use it once per model; with load=false first where memory may be short: that reads no weights, and downloads none of a hub model.
    Not for looking what is there: list_models. Cost: bundled about 5 s the first time (libraries are loaded then), gpt2 about 10 s; a
    hub model not yet on this machine is downloaded first. The least recently used model is dropped when memory is short.

    Example: load_model(model="bundled") -> model_id "bundled".
    """
    session = call.request_context.lifespan_context

    def job(work: Job) -> LoadModelResult:
        asked = session.models.resolve_request(
            model, backend, device, dtype, remote=remote, spread=device_map is not None
        )
        model_id = session.models.make_model_id(asked)
        if not load and not session.models.is_loaded(model_id):
            return _make_outline_result(asked, model_id, session.models.read_outline(asked))
        loading = None
        if not session.models.is_loaded(model_id):
            work.show_status(f"loading {model_id}")
            with suppress(
                ModelError
            ):  # what cannot be described may still be loaded, or is refused there
                found = session.models.read_outline(asked)
                loading, _ = lazy_discovery.estimate_load_memory(
                    found, asked.build_placement(), remote=asked.remote
                )
                here = (
                    "on NDIF"
                    if asked.remote
                    else f"at most {loading / 1e6:,.0f} MB while they are loaded"
                )
                work.show_status(f"loading {model_id}: {found.n_params:,} parameters, {here}")
        with lazy_discovery.listen_to_status(work.show_remote_status):
            return _make_loaded_result(asked, *session.models.load(asked), loading)

    return to_call_result(await session.devices.run(call, None, "loading", job))


async def list_models(call: ToolContext) -> Annotated[CallToolResult, ListModelsResult]:
    """Lists the models in memory with their `model_id`, and those that load_model can load from this machine.

    Use it when a model_id was lost, or to see which directories may be loaded. Not needed before load_model(model="bundled").
    Cost: none.

    Example: list_models() -> loaded [{"model_id": "bundled", ...}], loadable [{"model": "bundled"}, ...].
    """
    session = call.request_context.lifespan_context
    places = session.allowed_paths
    loaded = [_loaded_model_view(found) for found in session.models.list_loaded()]
    found = [
        (
            places.format_path(str(path)),
            sum(file.stat().st_size for file in path.glob("*.safetensors")),
        )
        for path in places.list_model_directories()
    ]
    loadable = [
        LoadableModelView(model="bundled", megabytes=None),
        *(LoadableModelView(model=name, megabytes=_to_megabytes(size)) for name, size in found),
    ]
    hub = (
        "only those already on this machine: the server is read-only"
        if session.settings.read_only
        else "yes, downloaded when first asked for"
    )
    return to_call_result(
        ListModelsResult(
            loaded=loaded, loadable=loadable, hub=hub, total=len(loaded) + len(loadable)
        )
    )


async def unload_model(
    call: ToolContext, model_id: ModelId
) -> Annotated[CallToolResult, UnloadModelResult]:
    """Drops a model from memory. Runs and results made with it stay; a run at work finishes with it.

    Use it to make room before a larger model. Not needed otherwise: models are dropped by themselves when memory is short. Cost: none.

    Example: unload_model(model_id="bundled").
    """
    session = call.request_context.lifespan_context
    session.models.unload(model_id)
    return to_call_result(
        UnloadModelResult(
            model_id=model_id, loaded=[found.model_id for found in session.models.list_loaded()]
        )
    )


def _make_outline_result(asked: ModelRequest, model_id: str, found: Outline) -> LoadModelResult:
    """A model that is not loaded.

    Raises:
        ModelError: where the backend that was asked for does not know it.
    """
    plan = lazy_discovery.plan_load(
        found,
        backend=asked.backend,
        device=asked.device,
        placement=asked.build_placement(),
        remote=asked.remote,
    )
    found = plan.choice.outline
    return LoadModelResult(
        **_shape_fields(found),
        model_id=model_id,
        model=asked.model,
        already_loaded=False,
        loaded=False,
        backend=plan.choice.backend,
        chosen=plan.choice.reason,
        device=plan.device,
        n_nodes=found.n_nodes,
        tokenizer=found.tokenizer,
        fingerprint=None,
        memory=_memory_view(found, plan.loading_bytes, plan.resident_bytes, plan.device),
        seconds=None,
        warnings=[] if plan.misfit is None else [str(plan.misfit)],
    )


def _make_loaded_result(
    asked: ModelRequest, loaded: LoadedModel, before: bool, loading: int | None
) -> LoadModelResult:
    """A model in memory; `before`: it was there already."""
    info = loaded.backend.info
    return LoadModelResult(
        **_shape_fields(info),
        model_id=loaded.model_id,
        model=asked.model,
        already_loaded=before,
        loaded=True,
        backend=info.backend,
        chosen=info.backend_reason,
        device=loaded.device,
        n_nodes=len(info.nodes()),
        tokenizer=loaded.backend.tokenizer is not None,
        fingerprint=info.fingerprint,
        memory=_memory_view(
            info, None if before else loading, loaded.backend.resident_weight_bytes, info.device
        ),
        seconds=round_number(0.0 if before else loaded.load_seconds, 3),
        warnings=list(info.warnings),
    )


def _shape_fields(found: ModelDescription) -> dict[str, Any]:
    """What a model says of itself, loaded or not."""
    return {name: getattr(found, name) for name in _SHAPE_FIELDS}


def _memory_view(
    found: ModelDescription, loading: int | None, weights: int, device: str
) -> MemoryView:
    need = lazy_discovery.MemoryNeed.of(found)
    return MemoryView(
        loading=_to_megabytes(loading),
        weights=_to_megabytes(weights),
        sweep_pair=_to_megabytes(need.sweep_pair),
        sweep=_to_megabytes(need.sweep),
        tokens=need.tokens,
        pairs=need.pairs,
        free=_to_megabytes(lazy_discovery.read_free_memory(device)),
    )


def _to_megabytes(count: int | None) -> float | None:
    return None if count is None else round_number(count / 1e6, 3)


def _loaded_model_view(found: LoadedModel) -> LoadedModelView:
    info = found.backend.info
    return LoadedModelView(
        model_id=found.model_id,
        n_layers=info.n_layers,
        n_heads=info.n_heads,
        n_params=info.n_params,
        device=found.device,
        dtype=info.dtype,
    )
