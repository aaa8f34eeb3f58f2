"""The cells of a patching grid at one layer, as rows for the engine.

A cell is left out where the patched value equals the value that is there: its effect is exactly 0. Wherever the
architecture allows it (`Abilities`), a patch becomes a changed residual stream right behind the patched site, so that
nothing before it is run again:

    resid_pre l            start at l            resid_post l, mlp_out l     start at l + 1
    resid_mid l            start at l, middle    attn_out l, head_out l      start at l, middle (no MLP, or parallel: l + 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Block, Rows, Side, Window, is_pointwise
from discovery.errors import MeasurementError
from discovery.interventions import Edit
from discovery.sites import Direction, Site, SiteName
from discovery.tasks.task import Task

POSITION_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True)
class LayerCells:
    """One layer's cells.

    Attributes:
        exists: which cells each pair has, [pair position], [pair head] or [pair head position].
        rows: the cells that can change something.
        place: where their results belong: indices into `exists`.
    """

    exists: Bool[Tensor, "pair ..."]
    rows: Rows
    index: tuple[Int[Tensor, "row"], ...]

    def restrict_to(self, chosen: Bool[Tensor, "..."]) -> LayerCells:
        """Only the chosen cells, [position], [head] or [head position]."""
        kept = chosen[self.index[1:]].nonzero(as_tuple=True)[0]
        return LayerCells(
            self.exists & chosen, self.rows.take(kept), tuple(axis[kept] for axis in self.index)
        )


def list_columns(task: Task, site: SiteName, by: str) -> tuple[int | str, ...]:
    """What the position axis counts: positions from 0, from the end, or labels; empty for head grids.

    Raises:
        MeasurementError: where labels are asked for and no pair has any.
    """
    if site not in (*POSITION_SITES, "head_out_by_position"):
        return ()
    if by == "label":
        names = {name for pair in task.pairs for name in pair.labels}
        if not names:
            raise MeasurementError(
                f"The task {task.name!r} has no labels.",
                "Use by='position', or add labels to its pairs.",
            )
        mean = {name: [p.labels[name] for p in task.pairs if name in p.labels] for name in names}
        return tuple(sorted(names, key=lambda name: (sum(mean[name]) / len(mean[name]), name)))
    width = max(len(pair.clean) for pair in task.pairs)
    return tuple(range(width)) if task.has_one_length else tuple(range(-width, 0))


def build_cells(
    block: Block,
    model: Backend,
    site: SiteName,
    layer: int,
    direction: Direction,
    columns: tuple[int | str, ...],
) -> LayerCells:
    """The cells of a site at a layer."""
    base: Side = "corrupted" if direction == "denoising" else "clean"
    if site in POSITION_SITES:
        return _stream_cells(block, model, Site(site, layer), base, columns)  # type: ignore[arg-type]  # STREAM are activation kinds
    kind = "z" if site.startswith("head_out") else site
    return _head_cells(block, model, Site(kind, layer), base, columns)  # type: ignore[arg-type]  # the rest are too


def locate_columns(
    block: Block, columns: tuple[int | str, ...]
) -> tuple[Int[Tensor, "pair column"], Bool[Tensor, "pair column"]]:
    """Each column's position in each pair, and whether the pair has it."""
    rows = []
    for pair in block.prompts.pairs:
        length = len(pair.clean)
        found = [
            pair.labels.get(c, -1) if isinstance(c, str) else (c if c >= 0 else length + c)
            for c in columns
        ]
        rows.append([t if 0 <= t < length else -1 for t in found])
    table = torch.tensor(rows, device=block.prompts.length.device)
    return table.clamp(min=0), table >= 0


def _stream_cells(
    block: Block, model: Backend, site: Site, base: Side, columns: tuple[int | str, ...]
) -> LayerCells:
    model.require_site(site)
    source: Side = "clean" if base == "corrupted" else "corrupted"
    before, after = block.activation(base, site), block.activation(source, site)
    positions, exists = locate_columns(block, columns)
    differs = (before != after).any(-1)  # [pair pos]
    active = (
        exists
        & differs.gather(1, positions)
        & (positions >= block.prompts.first_difference.unsqueeze(1))
    )
    pair, column = active.nonzero(as_tuple=True)
    position = positions[pair, column]
    entry = _entry_point(model, site)
    if entry is None:
        return LayerCells(exists, _edit_rows(site, base, after, pair, position), (pair, column))
    start, middle = entry

    def residual(window: Window) -> Tensor:
        here = block.stream(base, start, window, after_attention=middle)
        at = position[window.index] - window.first
        rows = torch.arange(len(at), device=at.device)
        changed = here.clone()
        difference = (
            after[window.pair, position[window.index]] - before[window.pair, position[window.index]]
        )
        if site.kind.startswith("resid"):
            changed[rows, at] = after[window.pair, position[window.index]]
        else:
            changed[rows, at] += difference
        return changed

    if is_pointwise(start, middle, model.info.n_layers):
        kept = (
            position == block.prompts.answer_position[pair]
        )  # nothing moves between positions any more
        pair, column, position = pair[kept], column[kept], position[kept]
    return LayerCells(
        exists,
        Rows(base, pair, position, start=start, after_attention=middle, residual=residual),
        (pair, column),
    )


def _entry_point(model: Backend, site: Site) -> tuple[int, bool] | None:
    """(start, middle) of the residual stream right behind a site, or None where it must be edited inside the block."""
    info, can = model.info, model.abilities
    if site.kind == "resid_pre":
        return site.layer, False
    if site.kind == "resid_post":
        return site.layer + 1, False
    if site.kind == "resid_mid":
        return (site.layer, True) if can.after_attention else None
    if not can.linear_heads:
        return None
    if site.kind == "mlp_out" or info.attn_only or info.parallel:
        return site.layer + 1, False
    return (site.layer, True) if can.after_attention else None


def _edit_rows(site: Site, base: Side, after: Tensor, pair: Tensor, position: Tensor) -> Rows:
    def edits(window: Window) -> list[Edit]:
        span = torch.arange(window.first, window.end, device=position.device)
        where = span == position[window.index].unsqueeze(1)
        return [Edit(site, after[:, window.first : window.end], where, index=window.pair)]

    return Rows(base, pair, position, start=site.layer, edits=edits)


def _head_cells(
    block: Block, model: Backend, site: Site, base: Side, columns: tuple[int | str, ...]
) -> LayerCells:
    model.require_site(site)
    source: Side = "clean" if base == "corrupted" else "corrupted"
    before, after = block.activation(base, site), block.activation(source, site)
    if site.kind == "pattern":  # [pair head dst src]: a position is a row of the pattern
        before, after = before.transpose(1, 2), after.transpose(1, 2)
    inside = torch.arange(before.shape[1], device=before.device) < block.prompts.length.unsqueeze(1)
    late = torch.arange(
        before.shape[1], device=before.device
    ) >= block.prompts.first_difference.unsqueeze(1)
    differs = (before != after).any(-1) & (inside & late).unsqueeze(-1)  # [pair pos head]
    if columns:
        positions, has = locate_columns(block, columns)
        at_column = positions.unsqueeze(-1).expand(*positions.shape, differs.shape[-1])
        active = differs.gather(1, at_column).transpose(1, 2) & has.unsqueeze(
            1
        )  # [pair head column]
        exists = has.unsqueeze(1).expand_as(active)
        pair, head, column = active.nonzero(as_tuple=True)
        place: tuple[Tensor, ...] = (pair, head, column)
        position: Tensor | None = positions[pair, column]
    else:
        active = differs.any(1)
        exists = torch.ones_like(active)
        pair, head = active.nonzero(as_tuple=True)
        place, position = (pair, head), None
    first = block.prompts.first_difference[pair] if position is None else position
    if (
        site.kind == "z"
        and (entry := _entry_point(model, Site("attn_out", site.layer))) is not None
    ):
        return _head_cells_in_stream(
            block, model, site, base, exists, place, first, position, entry
        )

    def edits(window: Window) -> list[Edit]:
        return [_head_edit(site, after, window, head, position)]

    return LayerCells(exists, Rows(base, pair, first, start=site.layer, edits=edits), place)


def _head_edit(
    site: Site, after: Tensor, window: Window, head: Tensor, position: Tensor | None
) -> Edit:
    heads = torch.arange(after.shape[2], device=head.device)
    where = (heads == head[window.index].unsqueeze(1)).unsqueeze(1)  # [row 1 head]
    if position is not None:
        span = torch.arange(window.first, window.end, device=head.device)
        where = where & (span == position[window.index].unsqueeze(1)).unsqueeze(-1)
    value = after[:, window.first : window.end]
    if site.kind == "pattern":
        return Edit(
            site, value.transpose(1, 2)[..., : window.end], where.transpose(1, 2), index=window.pair
        )
    return Edit(site, value, where, index=window.pair)


def _head_cells_in_stream(
    block: Block,
    model: Backend,
    site: Site,
    base: Side,
    exists: Tensor,
    place: tuple[Tensor, ...],
    first: Tensor,
    position: Tensor | None,
    entry: tuple[int, bool],
) -> LayerCells:
    """Head outputs enter the residual stream right behind the attention: (z_source − z_base)·W_O is added there."""
    start, middle = entry
    source: Side = "clean" if base == "corrupted" else "corrupted"
    change = block.activation(source, site) - block.activation(base, site)  # [pair pos head d_head]
    output = model.head_weights(site.layer).to(change.dtype)
    pair, head = place[0], place[1]
    if is_pointwise(start, middle, model.info.n_layers):
        kept = (
            first == block.prompts.answer_position[pair]
            if position is not None
            else torch.ones_like(pair, dtype=torch.bool)
        )
        place, first = tuple(axis[kept] for axis in place), first[kept]
        pair, head = place[0], place[1]
        position = None if position is None else position[kept]

    def residual(window: Window) -> Tensor:
        here = block.stream(base, start, window, after_attention=middle)
        heads = head[window.index]
        if position is None:
            moved = change[window.pair, window.first : window.end, heads]  # [row pos d_head]
            return here + torch.bmm(moved, output[heads])
        at = position[window.index]
        rows = torch.arange(len(at), device=at.device)
        changed = here.clone()
        changed[rows, at - window.first] += torch.einsum(
            "rd,rdm->rm", change[window.pair, at, heads], output[heads]
        )
        return changed

    # the output projection of one head; at one position only, it is as good as nothing beside the row
    making = change.shape[-1] * model.info.d_model if position is None else 0
    return LayerCells(
        exists,
        Rows(
            base,
            pair,
            first,
            start=start,
            after_attention=middle,
            residual=residual,
            residual_macs=making,
        ),
        place,
    )
