"""Loading a model, or describing what would be loaded."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mcp.types import CallToolResult
from pydantic import BaseModel, Field

from discovery.errors import ModelError
from discovery.sites import BackendName, DtypeName
from mcp_server.session import DeviceJob, lazy_discovery
from mcp_server.session.models import LoadedModel, ModelCache, ModelRequest
from mcp_server.tools.arguments import ToolContext
from mcp_server.tools.measurement import session_of
from mcp_server.tools.result import Result, round_number, to_call_result, to_megabytes

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
        description="The most while the weights are loaded; null if they are loaded already."
    )
    weights: float | None = Field(description="Of the model in memory.")
    sweep_pair: float | None = Field(
        description="A patch_sweep beside it (q, k, v and pattern take more): one pair of `tokens` "
        "tokens after the other, within 15%."
    )
    sweep: float | None = Field(description="The same with `pairs` pairs at once.")
    tokens: int
    pairs: int
    free: float | None = Field(description="Where the model runs.")


class LoadModelResult(Result):
    """A model in memory, or one that could be loaded."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("warnings",)

    model_id: str = Field(description="Handle for the other tools.")
    model: str
    already_loaded: bool
    loaded: bool = Field(
        description="False if load was false: load_model without it loads the model under this "
        "model_id."
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
    tasks: list[str] | None = Field(
        description="The built-in tasks that suit its tokenizer; null if it is not loaded."
    )
    fingerprint: str | None = Field(
        description="sha256 of the weights; null if they are not loaded."
    )
    memory: MemoryView
    seconds: float | None
    warnings: list[str]


async def load_model(
    context: ToolContext,
    model: Annotated[
        str,
        Field(
            description="bundled, a model directory, a GGUF file, or a hub name (gpt2).",
            min_length=1,
            max_length=1000,
        ),
    ],
    backend: Annotated[
        BackendName | None, Field(description="Engine; default: as the server was started.")
    ] = None,
    device: DeviceName | None = None,
    dtype: Annotated[
        DtypeName | None,
        Field(description="Default: as the server was started (float32 unless set)."),
    ] = None,
    device_map: Annotated[
        Literal["auto"] | None,
        Field(description="auto: spread over the server's devices, memory and disk (slow)."),
    ] = None,
    remote: Annotated[
        bool,
        Field(
            description="Run it on NDIF with the server's key: prompts and activations are sent "
            "there."
        ),
    ] = False,
    load: Annotated[
        bool,
        Field(
            description="False: only describe it and the memory it takes, from its configuration."
        ),
    ] = True,
) -> Annotated[CallToolResult, LoadModelResult]:
    """Loads a language model and returns the `model_id` that every other tool takes. Call it first.
    The same arguments give the same id again, at no cost. `bundled` is a small model that is always
    there and does the built-in task ioi.

    Use it once per model. If memory may be short, call it with load=false first: that reads no
    weights, and downloads none of a hub model. Not for seeing which models there are: list_models.
    Cost: bundled about 5 s the first time (libraries are loaded then), gpt2 about 10 s; a hub model
    that is not on this machine yet is downloaded first. The least recently used model is dropped
    when memory is short.

    Example: load_model(model="bundled") -> model_id "bundled".
    """
    session = session_of(context)

    def load_or_describe(job: DeviceJob) -> LoadModelResult:
        request = session.models.resolve_request(
            model, backend, device, dtype, remote=remote, spread=device_map is not None
        )
        model_id = session.models.make_model_id(request)
        is_loaded = session.models.is_loaded(model_id)
        if not load and not is_loaded:
            return _outline_result(request, model_id, session.models.read_outline(request))
        loading_bytes = (
            None if is_loaded else _announce_loading(session.models, request, model_id, job)
        )

        def hold(device: str) -> AbstractContextManager[None]:
            return session.devices.hold(device, f"loading {model_id}", job)

        with lazy_discovery.listen_to_status(job.show_remote_status):
            loaded, was_loaded = session.models.load(request, hold)
        return _loaded_result(request, loaded, was_loaded, loading_bytes)

    return to_call_result(await session.devices.run(context, None, "loading", load_or_describe))


def _announce_loading(
    models: ModelCache, request: ModelRequest, model_id: str, job: DeviceJob
) -> int | None:
    """Show what is loaded as progress, and return the bytes that loading takes; None if unknown."""
    job.show_status(f"loading {model_id}")
    loading_bytes = None
    with suppress(ModelError):  # a model that cannot be described may load all the same
        outline = models.read_outline(request)
        loading_bytes, _ = lazy_discovery.estimate_load_memory(
            outline, request.build_placement(), remote=request.remote
        )
        place = (
            "on NDIF"
            if request.remote
            else f"at most {loading_bytes / 1e6:,.0f} MB while they are loaded"
        )
        job.show_status(f"loading {model_id}: {outline.n_params:,} parameters, {place}")
    return loading_bytes


def _outline_result(request: ModelRequest, model_id: str, outline: Outline) -> LoadModelResult:
    """Describe a model that is not loaded.

    Raises:
        ModelError: if the backend that was asked for does not know the model.
    """
    plan = lazy_discovery.plan_load(
        outline,
        backend=request.backend,
        device=request.device,
        placement=request.build_placement(),
        remote=request.remote,
    )
    description = plan.choice.outline
    return LoadModelResult(
        **_shape_fields(description),
        model_id=model_id,
        model=request.model,
        already_loaded=False,
        loaded=False,
        backend=plan.choice.backend,
        chosen=plan.choice.reason,
        device=plan.device,
        n_nodes=description.n_nodes,
        tokenizer=description.tokenizer,
        tasks=None,
        fingerprint=None,
        memory=_memory_view(description, plan.loading_bytes, plan.resident_bytes, plan.device),
        seconds=None,
        warnings=[] if plan.misfit is None else [str(plan.misfit)],
    )


def _loaded_result(
    request: ModelRequest, loaded: LoadedModel, was_loaded: bool, loading_bytes: int | None
) -> LoadModelResult:
    """Describe a model in memory."""
    info = loaded.backend.info
    return LoadModelResult(
        **_shape_fields(info),
        model_id=loaded.model_id,
        model=request.model,
        already_loaded=was_loaded,
        loaded=True,
        backend=info.backend,
        chosen=info.backend_reason,
        device=loaded.device,
        n_nodes=len(info.nodes()),
        tokenizer=loaded.backend.tokenizer is not None,
        tasks=list(loaded.fitting_tasks),
        fingerprint=info.fingerprint,
        memory=_memory_view(
            info,
            None if was_loaded else loading_bytes,
            loaded.backend.resident_weight_bytes,
            info.device,
        ),
        seconds=round_number(0.0 if was_loaded else loaded.load_seconds, 3),
        warnings=list(info.warnings),
    )


def _shape_fields(model: ModelDescription) -> dict[str, Any]:
    """Return the facts that a model has whether it is loaded or not."""
    return {name: getattr(model, name) for name in _SHAPE_FIELDS}


def _memory_view(
    model: ModelDescription, loading: int | None, weights: int, device: str
) -> MemoryView:
    need = lazy_discovery.MemoryNeed.of(model)
    return MemoryView(
        loading=to_megabytes(loading),
        weights=to_megabytes(weights),
        sweep_pair=to_megabytes(need.sweep_pair),
        sweep=to_megabytes(need.sweep),
        tokens=need.tokens,
        pairs=need.pairs,
        free=to_megabytes(lazy_discovery.read_free_memory(device)),
    )
