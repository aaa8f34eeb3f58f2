"""What to say of an array that is too large to be read: its largest cells, or its moments.

from discovery import load_model, load_task, patch_sweep
from discovery.methods.summary import top_cells
model = load_model("bundled"); task = load_task("ioi", model)
top_cells(patch_sweep(model, task, "head_out"), 5)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.methods.patching.sweep import Sweep
from discovery.sites import KeyValueHead, Node


@dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    Attributes:
        layer: always there. position: as the grid counts it, where it has positions.
        head: if the grid has heads. kv_head: instead of it if the grid has key-value heads that
            query heads share.
        unit: the head, key-value head (with its query heads) or MLP that was patched; None of
            other sites.
        value: the normalised effect.
    """

    layer: int
    head: int | None
    position: int | str | None
    value: float
    kv_head: int | None = None
    unit: Node | KeyValueHead | None = None

    @property
    def query_heads(self) -> tuple[int, ...]:
        """The query heads that share the key-value head; empty if the cell is of none."""
        return self.unit.query_heads if isinstance(self.unit, KeyValueHead) else ()


@dataclass(frozen=True)
class ActivationSummary:
    """Moments of an activation; those of its finite entries.

    Attributes:
        norm: L2 norm of the last position's vector, or of everything where there is no position axis.
    """

    shape: tuple[int, ...]
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    norm: float | None
    n_nonfinite: int


def top_cells(sweep: Sweep, count: int) -> tuple[Cell, ...]:
    """The cells with the largest absolute effect, ties in forward order; cells that do not exist are left out."""
    flat = sweep.values.detach().to("cpu", torch.float64).flatten()
    known = (~flat.isnan()).nonzero(as_tuple=True)[0]
    order = flat[known].abs().mul(1e9).round().argsort(descending=True, stable=True)[:count]
    places = torch.stack(torch.unravel_index(known[order], sweep.values.shape), 1).tolist()
    return tuple(
        _cell(sweep, place, float(flat[index]))
        for place, index in zip(places, known[order].tolist(), strict=True)
    )


def _cell(sweep: Sweep, place: list[int], value: float) -> Cell:
    at = dict(zip(sweep.axes, place, strict=True))
    position = sweep.positions[at["position"]] if "position" in at else None
    unit = sweep.unit(at["layer"], at.get("kv_head", at.get("head")))
    return Cell(at["layer"], at.get("head"), position, value, at.get("kv_head"), unit)


def summarise_activation(
    values: Float[Tensor, "..."], position_axis: int | None = 0
) -> ActivationSummary:
    """Moments of `values`.

    Args:
        position_axis: whose last entry `norm` is taken of; None for the norm of everything.
    """
    wide = values.detach().to("cpu", torch.float64)
    finite = wide[wide.isfinite()]
    last = wide if position_axis is None else wide.select(position_axis, -1)
    if not len(finite):
        return ActivationSummary(tuple(wide.shape), None, None, None, None, None, wide.numel())
    norm = float(last.nan_to_num(0.0, 0.0, 0.0).norm())
    std = float(finite.std(unbiased=False))
    return ActivationSummary(
        tuple(wide.shape),
        float(finite.mean()),
        std,
        float(finite.min()),
        float(finite.max()),
        norm,
        wide.numel() - len(finite),
    )
