"""Activation patching over every cell of a site."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from mcp.types import CallToolResult, ContentBlock
from pydantic import Field

from discovery.sites import Alignment, Direction, SiteName
from mcp_server.session import lazy_discovery
from mcp_server.session.artifacts import make_result_id
from mcp_server.tools.arguments import (
    DEFAULT_PAIRS,
    DetailLevel,
    MetricChoice,
    ModelId,
    PairCount,
    RowLimit,
    Seed,
    TaskSource,
    ToolContext,
)
from mcp_server.tools.measurement import Measurement, run_measurement, session_of
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

_MAX_COLUMNS = 160  # of a picture
_LARGE_EFFECT = 0.1  # counted in the summary of the grid


class CellView(Result):
    """One cell of the grid."""

    layer: int
    head: int | None
    kv_head: int | None = Field(
        description="For k and v: the key-value head, if query heads share it."
    )
    query_heads: list[int] = Field(description="The query heads that share the kv_head.")
    position: int | str | None
    node: str | None = Field(
        description="Name of the head or MLP for ablate_heads. It refuses a kv_head (a23.kv1).",
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
        description="Cells that no pair has, that a screen left out, or that have nothing to "
        "normalise by."
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
        description="What the position axis counts; empty if there is none."
    )
    warnings: list[str]
    values: str = Field(description="URI of the full grid as JSON.")
    figure: str | None = Field(description="URI of the heatmap.")
    cost: CostView


async def patch_sweep(
    context: ToolContext,
    model_id: ModelId,
    task: TaskSource,
    site: Annotated[
        SiteName,
        Field(
            description="Layer × position: resid_*, attn_out, mlp_out. Layer × head: head_out, q, "
            "pattern. k, v: layer × key-value head.",
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
        Alignment, Field(description="label: align pairs by their named positions.")
    ] = "position",
    screen: Annotated[
        bool,
        Field(description="For large models: measure only large-gradient cells and a sample."),
    ] = False,
    pairs: PairCount = DEFAULT_PAIRS,
    seed: Seed = 0,
    top: RowLimit = 10,
    detail: DetailLevel = "concise",
) -> Annotated[CallToolResult, PatchSweepResult]:
    """Activation patching: exchanges one activation at a time between the clean and the corrupted
    run, for every cell of `site`, and measures how much of the behaviour comes back (denoising) or
    is lost (noising); 1 is all of it. Returns the largest cells, a heatmap and a link to the grid.
    The numbers are exact and over all pairs; cells that `screen` leaves out are null.

    Use it to find where a behaviour sits: resid_pre first, then head_out, then q, k, v or
    head_out_by_position. Run both directions: redundant heads show in one, or in neither. Not
    before check_task, and not as a proof: ablate_heads and evaluate_circuit test. Cost: about a
    forward pass per cell and pair; ioi in the bundled model 1 to 5 s.

    Example: patch_sweep(model_id="bundled", task="ioi", site="head_out").
    """

    def measure(measurement: Measurement) -> tuple[PatchSweepResult, bytes | None]:
        loaded_task, notes = measurement.load_task(task, pairs, seed)
        measurement.job.show_status(f"{site} {direction}")
        sweep = lazy_discovery.patch_sweep(
            measurement.backend,
            loaded_task,
            site,
            direction=direction,
            metric=metric,
            by=by,
            screen=screen,
            seed=seed,
            memory=measurement.memory,
            progress=measurement.job,
        )
        result_id = _make_result_id(model_id, loaded_task, sweep, by)
        return _make_result(measurement, result_id, loaded_task, sweep, top, notes)

    description = f"patch_sweep {site} {model_id}"
    result, heatmap = await run_measurement(context, model_id, description, measure)
    content: list[ContentBlock] = []
    if heatmap is not None and session_of(context).settings.images == "include":
        content.append(make_image(heatmap))
    content.append(make_link(result.values, "full grid", "application/json"))
    if heatmap is not None and result.figure is not None:
        content.append(make_link(result.figure, "heatmap", "image/png", len(heatmap)))
    return to_call_result(result, content, detailed=detail == "detailed")


def _make_result_id(model_id: str, task: Task, sweep: Sweep, by: str) -> str:
    parts = (
        "sweep",
        model_id,
        task.name,
        task.fingerprint[:8],
        sweep.site,
        sweep.direction,
        sweep.metric,
        by if by != "position" else "",
        f"screened{task.seed}" if sweep.screen else "",
    )
    return make_result_id(*parts)


def _make_result(
    measurement: Measurement, result_id: str, task: Task, sweep: Sweep, top: int, notes: list[str]
) -> tuple[PatchSweepResult, bytes | None]:
    """Keep the grid and its heatmap as artifacts, and return the result with the heatmap."""
    artifacts = measurement.session.artifacts
    document = {"result_id": result_id, **_grid_document(sweep)}
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    values_uri = artifacts.add(result_id, "grid.json", text.encode())
    heatmap = _draw_heatmap(sweep, task)
    figure_uri = None if heatmap is None else artifacts.add(result_id, "heatmap.png", heatmap)
    grid = _grid_view(sweep)
    total = sweep.values.numel() - grid.n_nonfinite
    result = PatchSweepResult(
        model_id=measurement.model.model_id,
        result_id=result_id,
        task=task.name,
        n=len(task),
        site=sweep.site,
        direction=sweep.direction,
        metric=sweep.metric,
        metric_clean=round_number(float(sweep.metric_clean.mean())),
        metric_corrupted=round_number(float(sweep.metric_corrupted.mean())),
        top=[_cell_view(cell) for cell in lazy_discovery.top_cells(sweep, top)],
        grid=grid,
        positions=list(sweep.positions),
        warnings=[*notes, *sweep.warnings],
        values=values_uri,
        figure=figure_uri,
        total=total,
        truncated=total > top,
        cost=cost_view(sweep.cost),
    )
    return result, heatmap


def _grid_document(sweep: Sweep) -> dict[str, Any]:
    """Return the whole grid as JSON data, with null for a cell that has no number."""
    document = {
        "site": sweep.site,
        "direction": sweep.direction,
        "metric": sweep.metric,
        "axes": list(sweep.axes),
        "positions": list(sweep.positions),
        "values": round_numbers(sweep.values.tolist()),
        "n_null": int((~sweep.values.isfinite()).sum()),
    }
    if sweep.query_heads:
        groups = enumerate(sweep.query_heads)
        document["kv_heads"] = [{"kv_head": n, "query_heads": list(heads)} for n, heads in groups]
    if sweep.screen is None:
        return document
    estimates = sweep.screen.estimates
    return document | {
        "gradient_estimates": round_numbers(estimates.tolist()),
        "n_null_estimates": int((~estimates.isfinite()).sum()),
        "screen": sweep.screen.caution,
    }


def _grid_view(sweep: Sweep) -> GridView:
    effects = sweep.values[~sweep.values.isnan()]
    n_effects = int(effects.numel())
    return GridView(
        shape=list(sweep.values.shape),
        axes=list(sweep.axes),
        largest=round_number(float(effects.max())) if n_effects else None,
        smallest=round_number(float(effects.min())) if n_effects else None,
        n_above_0_1=int((effects.abs() > _LARGE_EFFECT).sum()),
        n_nonfinite=int(sweep.values.numel()) - n_effects,
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


def _draw_heatmap(sweep: Sweep, task: Task) -> bytes | None:
    """Return a heatmap of a grid with two axes; None for other grids and for empty ones."""
    values = sweep.values
    if values.ndim != 2 or not 0 < values.shape[1] <= _MAX_COLUMNS or bool(values.isnan().all()):
        return None
    if sweep.positions:
        columns = [str(position) for position in sweep.positions]
        column_axis = "position"
    else:
        columns = sweep.head_labels
        column_axis = "key-value head" if sweep.query_heads else "head"
    return lazy_discovery.draw_heatmap(
        values.detach().cpu().numpy(),
        [str(layer) for layer in range(values.shape[0])],
        columns,
        title=f"{task.name}: {sweep.site}, {sweep.direction}",
        row_axis="layer",
        column_axis=column_axis,
    )
