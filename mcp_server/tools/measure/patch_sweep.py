"""Activation patching over every cell of a site."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcp.types import CallToolResult, ContentBlock
from pydantic import Field

from discovery.sites import Direction, SiteName
from mcp_server.session import DeviceJob as Job
from mcp_server.session import Session, lazy_discovery
from mcp_server.session.artifacts import make_result_id
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    Axis,
    DetailLevel,
    ModelId,
    PairCount,
    RowLimit,
    Seed,
    TaskSource,
    ToolContext,
    load_task_with_notes,
)
from mcp_server.tools.measure.check_task import MetricChoice
from mcp_server.tools.result import (
    CostView,
    Listing,
    Result,
    cost_view,
    make_image,
    make_link,
    round_number,
    round_numbers,
    to_call_result,
)

if TYPE_CHECKING:
    from discovery.methods.patching import Sweep
    from discovery.tasks.task import Task

_MAX_COLUMNS = 160  # columns of a picture


class CellView(Result):
    """One cell of the grid."""

    layer: int
    head: int | None
    kv_head: int | None = Field(description="Of k, v if query heads share it: not a head.")
    query_heads: list[int] = Field(description="Those that share the kv_head.")
    position: int | str | None
    node: str | None = Field(
        description="Head or MLP, as ablate_heads takes it; a kv_head's a23.kv1, which it refuses.",
    )
    label: str | None = Field(description="As people write it.")
    effect: float | None = Field(
        description="Share of clean − corrupted; negative works against the behaviour."
    )


class GridView(Result):
    """The whole grid in four numbers."""

    shape: list[int]
    axes: list[str]
    largest: float | None
    smallest: float | None
    n_above_0_1: int = Field(description="Cells whose absolute effect is above 0.1.")
    n_nonfinite: int = Field(
        description="Cells that no pair has, that a screen left out, or with nothing to normalise by."
    )


class PatchSweepResult(Listing):
    """What patch_sweep gives."""

    shortened_fields: ClassVar[tuple[str, ...]] = ("positions", "top")
    narrowing_hint: ClassVar[str] = (
        "Raise `top` and take detail='detailed'; `values` holds every cell and position."
    )

    model_id: str
    result_id: str
    task: str
    n: int
    site: str
    direction: str
    metric: str
    metric_clean: float | None
    metric_corrupted: float | None
    top: list[CellView]
    grid: GridView
    positions: list[int | str] = Field(
        description="What the position axis counts; empty where there is none."
    )
    warnings: list[str]
    values: str = Field(description="URI of the full grid as JSON.")
    figure: str | None = Field(description="URI of the heatmap.")
    cost: CostView


async def patch_sweep(
    call: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    site: Annotated[
        SiteName,
        Field(
            description="Layer × position: resid_*, attn_out, mlp_out. Layer × head: head_out, q, pattern. k, v: layer × key-value head.",
        ),
    ] = "resid_pre",
    direction: Annotated[
        Direction,
        Field(
            description="denoising: clean activation into the corrupted run; noising: the reverse."
        ),
    ] = "denoising",
    metric: MetricChoice = None,
    by: Annotated[
        Axis, Field(description="label: align pairs by their named positions.")
    ] = "position",
    screen: Annotated[
        bool, Field(description="For large models: only large-gradient cells and a sample.")
    ] = False,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
    top: RowLimit = 10,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, PatchSweepResult]:
    """Activation patching: exchanges one activation at a time between clean and corrupted runs, for
    every cell of `site`, and measures how much of the behaviour comes back (denoising) or is lost
    (noising); 1 is all. Returns the largest cells, a heatmap, a link to the grid. Exact, on every
    pair; what `screen` leaves out is null.

    Use it to find where a behaviour sits: resid_pre first, then head_out, then q, k, v or head_out_by_position. Run both directions:
    redundant heads show in one, or in neither. An effect is no proof: ablate_heads and evaluate_circuit test. Not before check_task.
    Cost: about a pass per cell and pair; ioi in the bundled model 1 to 5 s.

    Example: patch_sweep(model_id="bundled", task="ioi", site="head_out").
    """
    session = call.request_context.lifespan_context
    loaded = session.models.get(model_id)

    def job(work: Job) -> tuple[PatchSweepResult, bytes | None]:
        read, notes = load_task_with_notes(session, loaded, task, pairs, seed)
        work.show_status(f"{site} {direction}")
        found = lazy_discovery.patch_sweep(
            loaded.backend,
            read,
            site,
            direction=direction,
            metric=metric,
            by=by,
            screen=screen,
            seed=seed,
            memory=session.settings.memory,
            progress=work,
        )
        return _make_result(session, model_id, read, found, top, by, notes)

    found, png = await session.devices.run(
        call, loaded.device, f"patch_sweep {site} {model_id}", job
    )
    beside: list[ContentBlock] = (
        [make_image(png)] if png is not None and session.settings.images == "include" else []
    )
    beside += [make_link(found.values, "full grid", "application/json")]
    beside += (
        [make_link(found.figure, "heatmap", "image/png", len(png))] if found.figure and png else []
    )
    return to_call_result(found, beside, detailed=detail == "detailed")


def _make_result(
    session: Session, model_id: str, task: Task, found: Sweep, top: int, by: str, notes: list[str]
) -> tuple[PatchSweepResult, bytes | None]:
    name = make_result_id(
        "sweep",
        model_id,
        task.name,
        task.fingerprint[:8],
        found.site,
        found.direction,
        found.metric,
        by if by != "position" else "",
        f"screened{task.seed}" if found.screen else "",
    )
    text = json.dumps(
        {"result_id": name, **_grid_document(found)}, allow_nan=False, separators=(",", ":")
    )
    uri = session.artifacts.add(name, "grid.json", text.encode())
    png = _draw_heatmap(found, task)
    grid = _grid_view(found)
    total = found.values.numel() - grid.n_nonfinite
    return PatchSweepResult(
        model_id=model_id,
        result_id=name,
        task=task.name,
        n=len(task),
        site=found.site,
        direction=found.direction,
        metric=found.metric,
        metric_clean=round_number(float(found.metric_clean.mean())),
        metric_corrupted=round_number(float(found.metric_corrupted.mean())),
        top=[_cell_view(cell) for cell in lazy_discovery.top_cells(found, top)],
        grid=grid,
        positions=list(found.positions),
        warnings=[*notes, *found.warnings],
        values=uri,
        figure=None if png is None else session.artifacts.add(name, "heatmap.png", png),
        total=total,
        truncated=total > top,
        cost=cost_view(found.cost),
    ), png


def _grid_document(found: Sweep) -> dict[str, Any]:
    """The whole grid; null where a cell has no number."""
    document = {
        "site": found.site,
        "direction": found.direction,
        "metric": found.metric,
        "axes": list(found.axes),
        "positions": list(found.positions),
        "values": round_numbers(found.values.tolist()),
        "n_null": int((~found.values.isfinite()).sum()),
    }
    if found.query_heads:
        groups = enumerate(found.query_heads)
        document["kv_heads"] = [{"kv_head": n, "query_heads": list(heads)} for n, heads in groups]
    if found.screen is None:
        return document
    estimates = found.screen.estimates
    return document | {
        "gradient_estimates": round_numbers(estimates.tolist()),
        "n_null_estimates": int((~estimates.isfinite()).sum()),
        "screen": found.screen.caution,
    }


def _grid_view(found: Sweep) -> GridView:
    known = found.values[~found.values.isnan()]
    total = int(known.numel())
    return GridView(
        shape=list(found.values.shape),
        axes=list(found.axes),
        largest=round_number(float(known.max())) if total else None,
        smallest=round_number(float(known.min())) if total else None,
        n_above_0_1=int((known.abs() > 0.1).sum()),
        n_nonfinite=int(found.values.numel()) - total,
    )


def _cell_view(cell: lazy_discovery.Cell) -> CellView:
    return CellView(
        layer=cell.layer,
        head=cell.head,
        kv_head=cell.kv_head,
        query_heads=list(cell.query_heads),
        position=cell.position,
        node=None if cell.unit is None else str(cell.unit),
        label=None if cell.unit is None else cell.unit.label,
        effect=round_number(cell.value),
    )


def _draw_heatmap(found: Sweep, task: Task) -> bytes | None:
    """A heatmap of a grid of two axes."""
    if (
        found.values.ndim != 2
        or not 0 < found.values.shape[1] <= _MAX_COLUMNS
        or bool(found.values.isnan().all())
    ):
        return None
    columns, axis = found.head_labels, "key-value head" if found.query_heads else "head"
    if found.positions:
        columns, axis = [str(position) for position in found.positions], "position"
    return lazy_discovery.draw_heatmap(
        found.values.detach().cpu().numpy(),
        [str(layer) for layer in range(found.values.shape[0])],
        columns,
        title=f"{task.name}: {found.site}, {found.direction}",
        row_axis="layer",
        column_axis=axis,
    )
