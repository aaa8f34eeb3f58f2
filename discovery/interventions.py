"""Interventions as values: an `Edit` says which tensor to put at a site, and where in it.

An `Edit` is all that a backend knows of interventions. Those of the literature differ only in the
tensor and the operation:

- Activation patching replaces a site by its value in another run.
- Resample ablation replaces it by its value in the pair's own corrupted run.
- Mean ablation replaces it by a mean over corrupted runs, and zero ablation by 0.
- Steering adds a direction.
- Path patching adds a difference to the input of one node.

`engine.reference_means` computes the values of mean ablation, so that all methods use the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.sites import Site


@dataclass(frozen=True)
class Edit:
    """A change of one activation in every row of a batch.

    Attributes:
        site: the activation.
        value: a tensor of the site's shape [row pos …], or one that broadcasts to it. With `index`
            it is [pair pos …].
        where: True where the change applies, [row pos] or [row pos head] (for z, q, k and v), or a
            tensor that broadcasts to it. None means everywhere.
        operation: replace the activation by the value, add the value, or multiply by it.
        index: each row's pair, if the value is stored by pair. The rows' values are then gathered
            only when they are needed.
    """

    site: Site
    value: Float[Tensor, "..."]
    where: Bool[Tensor, "..."] | None = None
    _: KW_ONLY
    operation: Literal["replace", "add", "scale"] = "replace"
    index: Int[Tensor, "row"] | None = None

    def apply(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the activation with this change applied."""
        by_row = self.value if self.index is None else self.value[self.index]
        value = by_row.to(activation)  # its device and dtype
        if self.operation == "add":
            changed = activation + value
        elif self.operation == "scale":
            changed = activation * value
        else:
            changed = value.expand_as(activation)
        if self.where is None:
            return changed
        return torch.where(self.where.unsqueeze(-1), changed, activation)

    def at_position(self, position: Int[Tensor, "row"], ndim: int) -> Edit:
        """Return the same change for an activation that holds one position of each row.

        Args:
            position: the position of each row.
            ndim: the number of dimensions of the activation, whose second one has length 1.
        """
        value = _take_position(self.value, position, ndim, self.index)
        where = self.where
        if where is not None:
            where = _take_position(where, position, ndim - 1)
        return replace(self, value=value, where=where, index=None)


def _take_position(
    values: Tensor, position: Int[Tensor, "row"], ndim: int, index: Tensor | None = None
) -> Tensor:
    """Return one position of each row [row 1 …] of values that broadcast to [row pos …]."""
    if values.ndim < ndim - 1:
        return values
    by_row = values if values.ndim == ndim else values[None]
    if len(by_row) == 1:  # the same for every row
        row = torch.zeros_like(position)
    elif index is not None:
        row = index
    else:
        row = torch.arange(len(position), device=position.device)
    if by_row.shape[1] == 1:  # the same at every position
        position = torch.zeros_like(position)
    return by_row[row, position].unsqueeze(1)


def edits_by_site(edits: Sequence[Edit]) -> dict[Site, list[Edit]]:
    """Return the edits of each site, in their order."""
    groups: dict[Site, list[Edit]] = {}
    for edit in edits:
        groups.setdefault(edit.site, []).append(edit)
    return groups


def replace_with(
    site: Site, value: Float[Tensor, "..."], where: Bool[Tensor, "..."] | None = None
) -> Edit:
    """Return an edit that puts `value` at the site."""
    return Edit(site, value, where)


def add(site: Site, value: Float[Tensor, "..."], where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Return an edit that adds `value` at the site."""
    return Edit(site, value, where, operation="add")


def scale(site: Site, factor: float, where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Return an edit that multiplies the site by a factor; 0 is zero ablation."""
    return Edit(site, torch.tensor(float(factor)), where, operation="scale")
