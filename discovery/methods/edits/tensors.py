"""Edits of a set as tensors for the pairs of a block.

Shapes are those of `sites.Site`: [pair pos …], and [pair head dst src] for an attention pattern. An
edit applies to the positions that it names in each pair; what it puts elsewhere does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from discovery.backends.base import Backend, Batch
from discovery.engine import Block, Engine, row_macs
from discovery.engine.cost import forward_equivalents
from discovery.errors import MeasurementError, SiteError
from discovery.interventions import Edit
from discovery.methods.arguments import locate_positions
from discovery.methods.edits.edit_set import (
    HEAD_SITES,
    AddEdit,
    AnyEdit,
    EditSet,
    MeanEdit,
    ReplaceEdit,
    ResampleEdit,
    ScaleEdit,
)
from discovery.methods.prompt_run import encode_prompt
from discovery.sites import Site
from discovery.tasks.task import Task

# For each pair, the positions that an edit changes, each with the item that named it; None if the
# edit applies at all positions.
Places = tuple[tuple[tuple[int, int | str], ...], ...] | None


@dataclass(frozen=True, kw_only=True)
class NamedRun:
    """The unedited run of a named prompt.

    Attributes:
        length: its number of tokens.
        activations: the sites that edits take from it, without the batch axis.
    """

    length: int
    activations: Mapping[Site, Tensor] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class PlacedEdit:
    """An edit whose site and positions have been checked against the model and the task.

    Attributes:
        edit: the edit.
        site: the site that the backend changes.
        head: the head or key-value head; None for a site without heads.
        places: where it applies in each pair.
    """

    edit: AnyEdit
    site: Site
    head: int | None
    places: Places

    def missing(self, n_pairs: int) -> Bool[Tensor, "pair"]:
        """Return which pairs have none of its positions."""
        if self.places is None:
            return torch.zeros(n_pairs, dtype=torch.bool)
        return torch.tensor([not places for places in self.places])


def place_edits(model: Backend, task: Task, edits: EditSet) -> tuple[PlacedEdit, ...]:
    """Check edits against a model and a task, and find their positions.

    Raises:
        SiteError: if the model lacks a site or a head.
        MeasurementError: if a vector has the wrong length, if no pair has a position, or if an
            operation is not possible at a site.
    """
    placed = []
    for number, edit in enumerate(edits.edits):
        site = Site(edit.kind, edit.layer)
        model.require_site(site)
        head = _require_head(model, edit, number)
        _require_operation(model, edit, number)
        places = None if edit.positions is None else _find_places(task, edit.positions)
        placed.append(PlacedEdit(edit=edit, site=site, head=head, places=places))
    return tuple(placed)


def _find_places(task: Task, positions: Sequence[int | str]) -> Places:
    located = locate_positions(task, positions)
    return tuple(
        tuple({at: item for at, item in zip(row, positions, strict=True) if at is not None}.items())
        for row in located
    )


def _require_head(model: Backend, edit: AnyEdit, number: int) -> int | None:
    """Return the head or key-value head of an edit; None for a site without heads."""
    given = {name: getattr(edit, name) for name in ("head", "kv_head")}
    given = {name: value for name, value in given.items() if value is not None}
    if edit.site not in HEAD_SITES:
        if given:
            raise SiteError(
                f"edits.{number} names a {next(iter(given))}, and {edit.site} has none.",
                f"Leave it out, or use one of {', '.join(HEAD_SITES)}.",
            )
        return None
    groups = model.info.key_value_groups(edit.site)
    name = "kv_head" if groups else "head"
    count = len(groups) or (
        model.info.n_kv_heads if edit.site in ("k", "v") else model.info.n_heads
    )
    if list(given) != [name]:
        listed = ", ".join(given) or "none"
        reason = "query heads share it here" if groups else "this site is by head"
        raise SiteError(
            f"edits.{number} must name a {name} of {edit.site}, because {reason}; given: {listed}.",
            f"Give {name}, from 0 to {count - 1}.",
        )
    if given[name] >= count:
        raise SiteError(
            f"edits.{number} names {name} {given[name]}, which does not exist.",
            f"Give {name}, from 0 to {count - 1}.",
        )
    return int(given[name])


def _require_operation(model: Backend, edit: AnyEdit, number: int) -> None:
    """Check that an operation is possible at its site, and the length of its vector."""
    if isinstance(edit, MeanEdit) and edit.site in ("q", "k", "v", "pattern"):
        raise MeasurementError(
            f"edits.{number} takes a mean of {edit.site}; means are taken of outputs only.",
            "Use resample here, or a mean of head_out.",
        )
    if not isinstance(edit, ReplaceEdit | AddEdit):
        return
    if edit.site == "pattern":
        raise MeasurementError(
            f"edits.{number} puts a vector into a pattern, whose length varies.",
            "Use zero, scale or resample.",
        )
    width = model.info.d_head if edit.site in HEAD_SITES else model.info.d_model
    if len(edit.value) != width:
        raise MeasurementError(
            f"edits.{number} has a vector of {len(edit.value)} numbers; {edit.site} of this model "
            f"has {width}.",
            f"Give {width} numbers.",
        )


def run_named_prompts(
    engine: Engine, edits: EditSet, placed: Sequence[PlacedEdit]
) -> dict[str, NamedRun]:
    """Run each named prompt that an edit takes values from, and keep these values.

    Raises:
        MeasurementError: if a prompt is empty, too long, or text for a model without a tokenizer.
    """
    sites: dict[str, list[Site]] = {}
    for item in placed:
        if isinstance(item.edit, ResampleEdit) and item.edit.source in edits.prompts:
            sites.setdefault(item.edit.source, []).append(item.site)
    runs = {}
    info = engine.backend.info
    for name, wanted in sites.items():
        ids = encode_prompt(engine.backend, edits.prompts[name])
        tokens = torch.tensor([ids], device=engine.backend.device)
        work = forward_equivalents(info, row_macs(info, len(ids), columns=0), [len(ids)])
        engine.meter.begin(f"prompt {name}", work)
        result = engine.backend.run(Batch(tokens), list(dict.fromkeys(wanted)))
        engine.meter.add(work)
        activations = {site: result.activations[site][0] for site in wanted}
        runs[name] = NamedRun(length=len(ids), activations=activations)
    return runs


def build_edit(
    placed: PlacedEdit, engine: Engine, first: int, block: Block, runs: Mapping[str, NamedRun]
) -> Edit:
    """Return an edit for all pairs of a block.

    Args:
        placed: the edit.
        engine: the engine, whose means are prepared if the edit takes one.
        first: the number of the block's first pair.
        block: the block.
        runs: the runs of the named prompts.
    """
    where = _where(placed, first, block)
    edit, site = placed.edit, placed.site
    if isinstance(edit, ScaleEdit):
        return Edit(site=site, value=torch.tensor(edit.factor), where=where, operation="scale")
    if isinstance(edit, AddEdit):
        value = edit.factor * torch.tensor(edit.value)
        return Edit(site=site, value=value, where=where, operation="add")
    if isinstance(edit, ReplaceEdit):
        return Edit(site=site, value=torch.tensor(edit.value), where=where)
    if isinstance(edit, MeanEdit):
        value = engine.reference_values("mean", first, block, site)
        return Edit(site=site, value=value, where=where)
    if isinstance(edit, ResampleEdit):
        if edit.source in ("clean", "corrupted"):
            # The comparison above leaves the two sides of a pair.
            value = block.activation(edit.source, site)  # type: ignore[arg-type]
        else:
            value = _named_values(placed, first, block, runs[edit.source])
        return Edit(site=site, value=value, where=where)
    return Edit(site=site, value=torch.tensor(0.0), where=where)


def _where(placed: PlacedEdit, first: int, block: Block) -> Bool[Tensor, "..."]:
    """Return where an edit applies: [pair pos], [pair pos head], or [pair head pos] (pattern)."""
    device = block.prompts.length.device
    span = torch.arange(block.prompts.width, device=device)
    where = span < block.prompts.length[:, None]
    if placed.places is not None:
        chosen = torch.zeros_like(where)
        for row, places in enumerate(placed.places[first : first + len(block.prompts)]):
            chosen[row, [at for at, _ in places]] = True
        where = where & chosen
    if placed.head is None:
        return where
    info = block.backend.info
    count = info.n_kv_heads if placed.site.kind in ("k", "v") else info.n_heads
    is_head = torch.arange(count, device=device) == placed.head
    if placed.site.kind == "pattern":
        return where[:, None, :] & is_head[:, None]
    return where[:, :, None] & is_head


def _named_values(
    placed: PlacedEdit, first: int, block: Block, run: NamedRun
) -> Float[Tensor, "pair pos ..."]:
    """Return what a named prompt has at the positions of an edit.

    A position from 0 or from the end is the same one of the named prompt. A label, all positions,
    and an attention pattern need a named prompt with as many tokens as the pair.

    Raises:
        MeasurementError: if the named prompt has no such position, or another length.
    """
    source = run.activations[placed.site]
    is_pattern = placed.site.kind == "pattern"
    if is_pattern:  # [head dst src] -> [dst head src], as other sites have their positions first
        source = source.transpose(0, 1)
    width = block.prompts.width
    tail = (source.shape[1], width) if is_pattern else tuple(source.shape[1:])
    values = source.new_zeros(len(block.prompts), width, *tail)
    for row, length in enumerate(block.prompts.length.tolist()):
        pairs = _source_positions(placed, first + row, length, run.length, is_pattern)
        for at, source_at in pairs:
            if is_pattern:
                values[row, at, :, :length] = source[source_at]
            else:
                values[row, at] = source[source_at]
    return values.transpose(1, 2) if is_pattern else values


def _source_positions(
    placed: PlacedEdit, pair: int, length: int, source_length: int, same_length: bool
) -> list[tuple[int, int]]:
    """Return for each position of a pair the position of the named prompt that it is taken from."""
    same_length = same_length or placed.places is None
    result = []
    items = [(at, at) for at in range(length)] if placed.places is None else placed.places[pair]
    for at, item in items:
        if (same_length or isinstance(item, str)) and length != source_length:
            raise MeasurementError(
                f"The named prompt has {source_length} tokens, and pair {pair + 1} has {length}.",
                "Give a prompt of the same length, or name positions by number.",
            )
        source_at = at if same_length or isinstance(item, str) else item % source_length
        if not isinstance(item, str) and not -source_length <= item < source_length:
            raise MeasurementError(
                f"The named prompt has {source_length} tokens, and no position {item}.",
                f"Use positions from {-source_length} to {source_length - 1}.",
            )
        result.append((at, source_at))
    return result
