"""A measured cell of a patching sweep as a set of edits."""

from __future__ import annotations

from typing import Any

from discovery.errors import MeasurementError
from discovery.methods.edits.edit_set import EditSet
from discovery.methods.patching.grid import Cell, Sweep
from discovery.tasks.pairs import shorten_repr


def cell_edits(sweep: Sweep, cell: Cell) -> EditSet:
    """Return the edits that do what a sweep did in one of its cells.

    `run_with_edits` on the same task gives the effect of the cell.

    Args:
        sweep: the sweep.
        cell: one of its cells, for example one of `top_cells(sweep, 5)`.

    Raises:
        MeasurementError: if the cell is not one that the sweep measured.
    """
    _require_measured(sweep, cell)
    is_denoising = sweep.direction == "denoising"
    side, source = ("corrupted", "clean") if is_denoising else ("clean", "corrupted")
    site = "head_out" if sweep.site == "head_out_by_position" else sweep.site
    edit: dict[str, Any] = {
        "operation": "resample",
        "site": site,
        "layer": cell.layer,
        "source": source,
    }
    if cell.head is not None:
        edit["head"] = cell.head
    if cell.kv_head is not None:
        edit["kv_head"] = cell.kv_head
    if cell.position is not None:
        edit["positions"] = [cell.position]
    place = f" at {cell.position}" if cell.position is not None else ""
    unit = getattr(cell.unit, "label", f"layer {cell.layer}")
    return EditSet.of(
        {
            "description": f"{sweep.direction} of {sweep.site}: {unit}{place}",
            "side": side,
            "edits": [edit],
        }
    )


def _require_measured(sweep: Sweep, cell: Cell) -> None:
    """Check that a cell belongs to a sweep and was measured there."""
    names = {"layer": cell.layer, "head": cell.head, "kv_head": cell.kv_head}
    index: list[int] = []
    for axis, size in zip(sweep.axes, sweep.values.shape, strict=True):
        number = names.get(axis)
        if axis == "position":
            known = cell.position in sweep.positions
            number = sweep.positions.index(cell.position) if known else None
        if number is None or not 0 <= number < size:
            raise MeasurementError(
                f"{shorten_repr(cell)} is not a cell of this sweep of {sweep.site}.",
                f"Its axes are {', '.join(sweep.axes)}, with {tuple(sweep.values.shape)} cells.",
            )
        index.append(number)
    if bool(sweep.per_pair.movedim(0, -1)[tuple(index)].isnan().all()):
        raise MeasurementError(
            f"{shorten_repr(cell)} was not measured in this sweep.",
            "Give a cell that was measured, for example one of top_cells.",
        )
