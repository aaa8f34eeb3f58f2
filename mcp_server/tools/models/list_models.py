"""The models in memory, and those that can be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from mcp.types import CallToolResult
from pydantic import Field

from discovery.backends.loading.source import BUNDLED
from mcp_server.session import Session
from mcp_server.session.models import LoadedModel
from mcp_server.tools.arguments import ToolContext
from mcp_server.tools.measurement import session_of
from mcp_server.tools.result import Listing, Result, to_call_result, to_megabytes


class LoadedModelView(Result):
    """One line of list_models."""

    model_id: str
    n_layers: int
    n_heads: int
    n_params: int
    device: str
    dtype: str
    tasks: list[str] = Field(description="The built-in tasks that suit its tokenizer.")


class LoadableModelView(Result):
    """A model that load_model takes."""

    model: str
    megabytes: float | None


class ListModelsResult(Listing):
    """What list_models gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("loadable", "loaded")
    narrowing_hint: ClassVar[str] = (
        "Not all directories and files are listed: load_model takes the others by name too."
    )

    loaded: list[LoadedModelView]
    loadable: list[LoadableModelView]
    hub: str = Field(description="Whether hub names can be loaded too.")


async def list_models(context: ToolContext) -> Annotated[CallToolResult, ListModelsResult]:
    """Lists the models in memory with their `model_id`, and those that load_model can load from
    this machine.

    Use it when a model_id was lost, or to see which directories and GGUF files may be loaded. Not
    needed before load_model(model="bundled"). Cost: none.

    Example: list_models() -> loaded [{"model_id": "bundled", "tasks": ["ioi", ...], ...}], loadable
    [{"model": "bundled"}, ...].
    """
    session = session_of(context)
    loaded = [_loaded_model_view(model) for model in session.models.list_loaded()]
    bundled = LoadableModelView(model=BUNDLED, megabytes=None)
    paths = session.allowed_paths.list_models()
    loadable = [bundled, *(_loadable_model_view(session, path) for path in paths)]
    hub = (
        "only those already on this machine: the server is read-only"
        if session.settings.read_only
        else "yes, downloaded when first asked for"
    )
    result = ListModelsResult(
        loaded=loaded, loadable=loadable, hub=hub, total=len(loaded) + len(loadable)
    )
    return to_call_result(result)


def _loaded_model_view(loaded: LoadedModel) -> LoadedModelView:
    info = loaded.backend.info
    return LoadedModelView(
        model_id=loaded.model_id,
        n_layers=info.n_layers,
        n_heads=info.n_heads,
        n_params=info.n_params,
        device=loaded.device,
        dtype=info.dtype,
        tasks=list(loaded.fitting_tasks),
    )


def _loadable_model_view(session: Session, path: Path) -> LoadableModelView:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    n_bytes = sum(file.stat().st_size for file in files)
    return LoadableModelView(
        model=session.allowed_paths.format_path(str(path)), megabytes=to_megabytes(n_bytes)
    )
