"""Interventions as values: an `Edit` says which tensor to put at a site, and where in it.

An `Edit` is all that a backend knows of interventions. Those of the literature differ only in the
tensor and the operation:

- Activation patching replaces a site by its value in another run.
- Resample ablation replaces it by its value in the pair's own corrupted run.
- Mean ablation replaces it by a mean over corrupted runs, and zero ablation by 0.
- Steering adds a direction.
- Path patching adds a difference to the input of one node.

The values of mean ablation are computed here (`MeanReference`), so that all methods use the same.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.sites import Site
from discovery.tasks.task import EncodedPair

# The number of other prompts that a mean at the same position needs. If there are fewer, positions
# are aligned by label.
MIN_REFERENCE_PROMPTS = 8


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
    return Edit(site, value, where, "add")


def scale(site: Site, factor: float, where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Return an edit that multiplies the site by a factor; 0 is zero ablation."""
    return Edit(site, torch.tensor(float(factor)), where, "scale")


@dataclass(frozen=True)
class ReferencePlan:
    """Which corrupted positions are averaged for each pair and position, and why.

    Attributes:
        group: for each pair and each of its positions, the number of the group whose mean it gets.
        members: for each group, the (pair, position) values that are averaged.
        alignment: "position", "label", "all", or several of them joined by "+". It is recorded.
        size: the smallest number of other prompts' values in any mean.
    """

    group: tuple[tuple[int, ...], ...]
    members: tuple[tuple[tuple[int, int], ...], ...]
    alignment: str
    size: int


def plan_reference(pairs: Sequence[EncodedPair]) -> ReferencePlan:
    """Decide over which positions of which prompts each mean of a mean ablation is taken.

    The rule is that of docs/definitions.md, "Ablations".

    A mean is taken at the same position over the corrupted prompts of the same template and token
    count, without the pair itself. If there are fewer than 8 such prompts, positions are aligned by
    label, and all unlabelled positions form one group. If no pair has labels, the mean is taken
    over all prompts and positions.
    """
    peers = Counter((pair.template, len(pair.clean)) for pair in pairs)
    has_labels = any(pair.labels for pair in pairs)
    members: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    keys: list[list[tuple[object, ...]]] = []
    for index, pair in enumerate(pairs):
        has_peers = peers[pair.template, len(pair.clean)] - 1 >= MIN_REFERENCE_PROMPTS
        names = {position: name for name, position in sorted(pair.labels.items(), reverse=True)}
        keys.append([])
        for position in range(len(pair.clean)):
            same_position = ("position", pair.template, len(pair.clean), position)
            same_label = ("label", names.get(position)) if has_labels else ("all",)
            members[same_position].append((index, position))
            members[same_label].append((index, position))
            keys[index].append(same_position if has_peers else same_label)
    groups = list(dict.fromkeys(key for row in keys for key in row))
    number = {key: n for n, key in enumerate(groups)}
    own_count = Counter((key, pair) for key in groups for pair, _ in members[key])
    other_counts = [
        len(members[key]) - own_count[key, index] for index, row in enumerate(keys) for key in row
    ]
    return ReferencePlan(
        group=tuple(tuple(number[key] for key in row) for row in keys),
        members=tuple(tuple(members[key]) for key in groups),
        alignment="+".join(sorted({str(key[0]) for key in groups})),
        size=min(other_counts),
    )


class MeanReference:
    """The mean-ablation values of one site.

    The values of all pairs are summed first. The mean for a pair is then computed from the sum
    without the pair's own values. If nothing is left (`plan.size` is 0: a group of a single pair),
    its own corrupted values are the mean.
    """

    def __init__(self, plan: ReferencePlan) -> None:
        """Start with no values; `add` must be called with those of every pair."""
        self.plan = plan
        self._sums: Tensor | None = None
        self._counts = torch.tensor([len(group) for group in plan.members])

    def add(self, first: int, corrupted: Float[Tensor, "pair pos ..."]) -> None:
        """Add the site's values in the corrupted runs of some pairs.

        Args:
            first: the number of the first of these pairs.
            corrupted: their values, right-padded.
        """
        flat, places, groups = self._flat(first, corrupted)
        if self._sums is None:
            self._sums = flat.new_zeros(len(self.plan.members), flat.shape[1])
        self._sums.index_add_(0, groups, flat[places])

    def values(
        self, first: int, corrupted: Float[Tensor, "pair pos ..."]
    ) -> Float[Tensor, "pair pos ..."]:
        """Return what mean ablation puts at the site, for some pairs.

        Args:
            first: the number of the first of these pairs.
            corrupted: their own values, right-padded.

        Raises:
            RuntimeError: if no values have been added.
        """
        if self._sums is None:
            raise RuntimeError("add every pair's values before asking for a mean")
        flat, places, groups = self._flat(first, corrupted)
        count, width = corrupted.shape[:2]
        # The sum and the number of each pair's own values in each of its groups.
        slot = groups * count + places // width  # one for each (group, pair)
        slots, inverse = torch.unique(slot, return_inverse=True)
        own_sums = flat.new_zeros(len(slots), flat.shape[1]).index_add_(0, inverse, flat[places])
        own_counts = torch.zeros(len(slots), device=flat.device).index_add_(
            0, inverse, torch.ones_like(places, dtype=torch.float)
        )
        targets = [
            (row, position, group)
            for row in range(count)
            for position, group in enumerate(self.plan.group[first + row])
        ]
        rows, positions, target_groups = (
            torch.tensor(column, device=flat.device) for column in zip(*targets, strict=True)
        )
        own = torch.searchsorted(slots, target_groups * count + rows)
        other_counts = self._counts.to(flat.device)[target_groups] - own_counts[own]
        other_sums = self._sums[target_groups] - own_sums[own]
        other_means = other_sums / other_counts.clamp(min=1).unsqueeze(1)
        own_means = own_sums[own] / own_counts[own].unsqueeze(1)
        means = torch.where(other_counts.unsqueeze(1) > 0, other_means, own_means)
        values = torch.zeros_like(flat)
        values[rows * width + positions] = means
        return values.to(corrupted.dtype).reshape(corrupted.shape)

    def _flat(self, first: int, corrupted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values as [pair·pos feature], and the groups that they belong to.

        The second and third tensor hold, for each membership of these pairs, the row of the value
        and the number of the group.
        """
        count, width = corrupted.shape[:2]
        memberships = [
            ((pair - first) * width + position, number)
            for number, members in enumerate(self.plan.members)
            for pair, position in members
            if first <= pair < first + count
        ]
        places, groups = (
            torch.tensor(column, device=corrupted.device)
            for column in zip(*memberships, strict=True)
        )
        return corrupted.reshape(count * width, -1).double(), places, groups
