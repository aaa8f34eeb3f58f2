"""The cells of a patching grid at one layer, as rows for the engine.

A cell gets no row if the patched value equals the value that is there already: its effect is
exactly 0. If the architecture allows it (`Abilities`), a patch becomes a changed residual stream
right behind the patched site, so that nothing before it is run again:

    resid_pre l                start at layer l
    resid_post l, mlp_out l    start at layer l + 1
    resid_mid l                start at layer l, after its attention
    attn_out l, head_out l     start at layer l, after its attention; at layer l + 1 if the layer
                               has no MLP, or one that runs in parallel with the attention

Otherwise the site is edited inside its layer. In this package the *base* side of a pair is the run
that is patched, and the *source* side is the run that the values come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.backends.base import Backend
from discovery.engine import Block, Rows, Side, Window, base_side, is_pointwise, other_side
from discovery.errors import MeasurementError
from discovery.interventions import Edit
from discovery.sites import Direction, Site, SiteName
from discovery.tasks.task import Task

POSITION_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True)
class LayerCells:
    """The cells of one layer of a grid.

    Attributes:
        exists: which cells each pair has, [pair position], [pair head] or [pair head position].
        rows: the cells that can change something.
        index: for each row, its indices into `exists`, one tensor an axis.
    """

    exists: Bool[Tensor, "pair ..."]
    rows: Rows
    index: tuple[Int[Tensor, "row"], ...]

    def restrict_to(self, mask: Bool[Tensor, "..."]) -> LayerCells:
        """Keep only the cells in a mask of shape [position], [head] or [head position]."""
        row = mask[self.index[1:]].nonzero(as_tuple=True)[0]
        return LayerCells(
            self.exists & mask, self.rows.take(row), tuple(axis[row] for axis in self.index)
        )


@dataclass(frozen=True, kw_only=True)
class _HeadRows:
    """The cells of heads that can change something.

    Attributes:
        exists: which cells each pair has.
        index: for each row, its indices into `exists`: pair, head and, by position, column.
        first: for each row, the first position that can differ from the base run.
        position: for each row, the one position that is patched; None if all of them are.
    """

    exists: Bool[Tensor, "pair ..."]
    index: tuple[Int[Tensor, "row"], ...]
    first: Int[Tensor, "row"]
    position: Int[Tensor, "row"] | None

    def take(self, mask: Bool[Tensor, "row"]) -> _HeadRows:
        """Keep only some rows."""
        return _HeadRows(
            exists=self.exists,
            index=tuple(axis[mask] for axis in self.index),
            first=self.first[mask],
            position=None if self.position is None else self.position[mask],
        )


def list_columns(task: Task, site: SiteName, by: str) -> tuple[int | str, ...]:
    """List what the position axis of a grid counts.

    Returns:
        Positions from 0 if all prompts have one length, positions from the end (−1 is the last
        token) if they do not, or labels in the order of their mean position. Empty for a grid that
        has no position axis.

    Raises:
        MeasurementError: if labels are asked for and no pair has any.
    """
    if site not in (*POSITION_SITES, "head_out_by_position"):
        return ()
    if by == "label":
        positions: dict[str, list[int]] = {}
        for pair in task.pairs:
            for name, position in pair.labels.items():
                positions.setdefault(name, []).append(position)
        if not positions:
            raise MeasurementError(
                f"The task {task.name!r} has no labels.",
                "Use by='position', or add labels to its pairs.",
            )
        mean = {name: sum(values) / len(values) for name, values in positions.items()}
        return tuple(sorted(mean, key=lambda name: (mean[name], name)))
    width = max(len(pair.clean) for pair in task.pairs)
    return tuple(range(width)) if task.has_one_length else tuple(range(-width, 0))


def build_all_cells(
    block: Block,
    model: Backend,
    site: SiteName,
    direction: Direction,
    columns: tuple[int | str, ...],
) -> Iterator[LayerCells]:
    """Build the cells of a site, layer by layer."""
    for layer in range(model.info.n_layers):
        yield build_cells(block, model, site, layer, direction, columns)


def build_cells(
    block: Block,
    model: Backend,
    site: SiteName,
    layer: int,
    direction: Direction,
    columns: tuple[int | str, ...],
) -> LayerCells:
    """Build the cells of a site at one layer.

    Args:
        block: the pairs.
        model: the model that is patched.
        site: the site, as in `patch_sweep`.
        layer: the layer.
        direction: denoising or noising.
        columns: what the position axis counts, as `list_columns` gives it.

    Raises:
        SiteError: if the model lacks the site.
    """
    base = base_side(direction)
    if site in POSITION_SITES:
        # Every name in POSITION_SITES is an activation kind too.
        stream_site = Site(site, layer)  # type: ignore[arg-type]
        return _stream_cells(block, model, stream_site, base, columns)
    # The remaining names (q, k, v, pattern) are activation kinds too.
    kind = "z" if site.startswith("head_out") else site
    head_site = Site(kind, layer)  # type: ignore[arg-type]
    return _head_cells(block, model, head_site, base, columns)


def locate_columns(
    block: Block, columns: tuple[int | str, ...]
) -> tuple[Int[Tensor, "pair column"], Bool[Tensor, "pair column"]]:
    """Return each column's position in each pair (0 if it has none), and whether it has one."""

    def locate(column: int | str, labels: Mapping[str, int], length: int) -> int:
        if isinstance(column, str):
            return labels.get(column, -1)
        return column if column >= 0 else length + column

    table = []
    for pair in block.prompts.pairs:
        length = len(pair.clean)
        positions = [locate(column, pair.labels, length) for column in columns]
        table.append([position if 0 <= position < length else -1 for position in positions])
    located = torch.tensor(table, device=block.prompts.length.device)
    return located.clamp(min=0), located >= 0


def _stream_cells(
    block: Block, model: Backend, site: Site, base: Side, columns: tuple[int | str, ...]
) -> LayerCells:
    model.require_site(site)
    before = block.activation(base, site)
    after = block.activation(other_side(base), site)
    positions, exists = locate_columns(block, columns)
    differs = (before != after).any(-1)  # [pair pos]
    is_late = positions >= block.prompts.first_difference.unsqueeze(1)
    can_change = exists & differs.gather(1, positions) & is_late
    pair, column = can_change.nonzero(as_tuple=True)
    position = positions[pair, column]
    entry = _entry_point(model, site)
    if entry is None:
        return LayerCells(exists, _edit_rows(site, base, after, pair, position), (pair, column))
    start, after_attention = entry
    if is_pointwise(start, after_attention, model.info.n_layers):
        at_answer = position == block.prompts.answer_position[pair]
        pair = pair[at_answer]
        column = column[at_answer]
        position = position[at_answer]

    def residual(window: Window) -> Tensor:
        changed = block.stream(base, start, window, after_attention=after_attention).clone()
        row_position = position[window.index]
        at = row_position - window.first
        rows = torch.arange(len(at), device=at.device)
        source_value = after[window.pair, row_position]
        if site.kind.startswith("resid"):
            changed[rows, at] = source_value
        else:
            changed[rows, at] += source_value - before[window.pair, row_position]
        return changed

    rows = Rows(
        base=base,
        pair=pair,
        first=position,
        start=start,
        after_attention=after_attention,
        residual=residual,
    )
    return LayerCells(exists, rows, (pair, column))


def _entry_point(model: Backend, site: Site) -> tuple[int, bool] | None:
    """Find the place in the residual stream right behind a site.

    Returns:
        The layer, and whether it is after that layer's attention. None if the site cannot be
        patched from there and must be edited inside its layer.
    """
    info = model.info
    abilities = model.abilities
    if site.kind == "resid_pre":
        return site.layer, False
    if site.kind == "resid_post":
        return site.layer + 1, False
    if site.kind == "resid_mid":
        return (site.layer, True) if abilities.after_attention else None
    if not abilities.linear_heads or site.kind not in ("attn_out", "mlp_out"):
        return None
    if site.kind == "mlp_out" or info.attn_only or info.parallel:
        return site.layer + 1, False
    return (site.layer, True) if abilities.after_attention else None


def _edit_rows(site: Site, base: Side, after: Tensor, pair: Tensor, position: Tensor) -> Rows:
    def edits(window: Window) -> list[Edit]:
        span = torch.arange(window.first, window.end, device=position.device)
        where = span == position[window.index].unsqueeze(1)
        return [Edit(site, after[:, window.first : window.end], where, index=window.pair)]

    return Rows(base=base, pair=pair, first=position, start=site.layer, edits=edits)


def _head_cells(
    block: Block, model: Backend, site: Site, base: Side, columns: tuple[int | str, ...]
) -> LayerCells:
    model.require_site(site)
    before = block.activation(base, site)
    after = block.activation(other_side(base), site)
    if site.kind == "pattern":  # [pair head dst src]: a position is a row of the pattern
        before = before.transpose(1, 2)
        after = after.transpose(1, 2)
    head_rows = _find_head_rows(block, before, after, columns)
    if site.kind == "z":
        entry = _entry_point(model, Site("attn_out", site.layer))
        if entry is not None:
            return _head_cells_in_stream(block, model, site, base, head_rows, entry)
    head = head_rows.index[1]
    position = head_rows.position

    def edits(window: Window) -> list[Edit]:
        return [_head_edit(site, after, window, head, position)]

    rows = Rows(
        base=base,
        pair=head_rows.index[0],
        first=head_rows.first,
        start=site.layer,
        edits=edits,
    )
    return LayerCells(head_rows.exists, rows, head_rows.index)


def _find_head_rows(
    block: Block,
    before: Float[Tensor, "pair pos head ..."],
    after: Float[Tensor, "pair pos head ..."],
    columns: tuple[int | str, ...],
) -> _HeadRows:
    """Find the cells at which the two runs differ, by head, or by head and position."""
    span = torch.arange(before.shape[1], device=before.device)
    inside = (span < block.prompts.length.unsqueeze(1)) & (
        span >= block.prompts.first_difference.unsqueeze(1)
    )
    differs = (before != after).any(-1) & inside.unsqueeze(-1)  # [pair pos head]
    if not columns:
        can_change = differs.any(1)
        pair, head = can_change.nonzero(as_tuple=True)
        return _HeadRows(
            exists=torch.ones_like(can_change),
            index=(pair, head),
            first=block.prompts.first_difference[pair],
            position=None,
        )
    positions, has_column = locate_columns(block, columns)
    at_column = positions.unsqueeze(-1).expand(*positions.shape, differs.shape[-1])
    # [pair head column]
    can_change = differs.gather(1, at_column).transpose(1, 2) & has_column.unsqueeze(1)
    pair, head, column = can_change.nonzero(as_tuple=True)
    position = positions[pair, column]
    return _HeadRows(
        exists=has_column.unsqueeze(1).expand_as(can_change),
        index=(pair, head, column),
        first=position,
        position=position,
    )


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
        value = value.transpose(1, 2)[..., : window.end]
        where = where.transpose(1, 2)
    return Edit(site, value, where, index=window.pair)


def _head_cells_in_stream(
    block: Block,
    model: Backend,
    site: Site,
    base: Side,
    head_rows: _HeadRows,
    entry: tuple[int, bool],
) -> LayerCells:
    """Patch head outputs by adding (z_source − z_base)·W_O to the stream behind the attention."""
    start, after_attention = entry
    # [pair pos head d_head]
    change = block.activation(other_side(base), site) - block.activation(base, site)
    output_weights = model.head_weights(site.layer).to(change.dtype)
    if head_rows.position is not None and is_pointwise(start, after_attention, model.info.n_layers):
        answer_position = block.prompts.answer_position[head_rows.index[0]]
        head_rows = head_rows.take(head_rows.first == answer_position)
    pair, head = head_rows.index[:2]
    position = head_rows.position

    def residual(window: Window) -> Tensor:
        unchanged = block.stream(base, start, window, after_attention=after_attention)
        heads = head[window.index]
        if position is None:
            head_change = change[window.pair, window.first : window.end, heads]  # [row pos d_head]
            return unchanged + torch.bmm(head_change, output_weights[heads])
        at = position[window.index]
        rows = torch.arange(len(at), device=at.device)
        changed = unchanged.clone()
        changed[rows, at - window.first] += torch.einsum(
            "rd,rdm->rm", change[window.pair, at, heads], output_weights[heads]
        )
        return changed

    # Multiplying one head's change by W_O is work that counts if it is done at every position; at a
    # single position it is negligible beside the rest of the row.
    residual_macs = change.shape[-1] * model.info.d_model if position is None else 0
    rows = Rows(
        base=base,
        pair=pair,
        first=head_rows.first,
        start=start,
        after_attention=after_attention,
        residual=residual,
        residual_macs=residual_macs,
    )
    return LayerCells(head_rows.exists, rows, head_rows.index)
