"""Interventions are values: at this site, in these rows, positions and heads, put that tensor.

An `Edit` is all that a backend knows of interventions. Everything named in the literature is one of them:
activation patching replaces with the value of another run, resample ablation with that of the pair's own corrupted
run, mean ablation with a mean over corrupted runs, zero ablation with nothing, steering adds, path patching adds to
the input of one reader. What the reference values are is decided here, once (`MeanReference`), so that no method does it twice.
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

MIN_REFERENCE_PROMPTS = (
    8  # other prompts needed for a mean at the same position; below that, by label
)


@dataclass(frozen=True)
class Edit:
    """A change of one activation in every row of a batch.

    Attributes:
        site: which activation.
        value: [row pos …] as the site's shape, or anything that broadcasts to it; with `index`, [pair pos …].
        where: True where the change applies: [row pos] (z, q, k, v: [row pos head]) or broadcastable; None is everywhere.
        operation: replace by the value, add it, or scale by it.
        index: each row's pair; the values are then gathered only when they are needed.
    """

    site: Site
    value: Float[Tensor, "..."]
    where: Bool[Tensor, "..."] | None = None
    operation: Literal["replace", "add", "scale"] = "replace"
    index: Int[Tensor, "row"] | None = None

    def apply(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The activation with this change made."""
        value = (self.value if self.index is None else self.value[self.index]).to(
            activation
        )  # its device and dtype
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
        """The same change for a batch that holds one position of each row.

        Args:
            position: of each row.
            ndim: of the activation, whose second dimension is then 1.
        """
        value = _take_position(self.value, position, ndim, self.index)
        return replace(
            self,
            value=value,
            where=None if self.where is None else _take_position(self.where, position, ndim - 1),
            index=None,
        )


def _take_position(
    values: Tensor, position: Int[Tensor, "row"], ndim: int, index: Tensor | None = None
) -> Tensor:
    """[row 1 …] of what broadcasts to [row pos …]."""
    if values.ndim < ndim - 1:
        return values
    rows = values if values.ndim == ndim else values[None]
    own = (
        torch.zeros_like(position)
        if len(rows) == 1
        else torch.arange(len(position), device=position.device)
        if index is None
        else index
    )
    return rows[own, torch.zeros_like(position) if rows.shape[1] == 1 else position].unsqueeze(1)


def replace_with(
    site: Site, value: Float[Tensor, "..."], where: Bool[Tensor, "..."] | None = None
) -> Edit:
    """Put `value` at the site."""
    return Edit(site, value, where)


def add(site: Site, value: Float[Tensor, "..."], where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Add `value` at the site."""
    return Edit(site, value, where, "add")


def scale(site: Site, factor: float, where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Multiply the site by a factor; 0 is zero ablation."""
    return Edit(site, torch.tensor(float(factor)), where, "scale")


@dataclass(frozen=True)
class ReferencePlan:
    """Which corrupted positions are averaged for each pair and position, and how that was decided.

    Attributes:
        group: for each pair, the key of the mean that each of its positions gets.
        members: for each key, how often each pair is in it: the (pair, position) list.
        alignment: "position", "label", "all", or several joined by "+", as recorded.
        size: the smallest number of other prompts' values behind a mean.
    """

    group: tuple[tuple[int, ...], ...]
    members: tuple[tuple[tuple[int, int], ...], ...]
    alignment: str
    size: int


def plan_reference(pairs: Sequence[EncodedPair]) -> ReferencePlan:
    """Decide what each mean is over (INTERFACES, "Mean").

    At the same position over corrupted prompts of the same template and token count, leaving the pair itself out; with
    fewer than 8 such prompts, aligned by label (unlabelled positions: over all unlabelled positions); with no labels,
    over prompts and positions.
    """
    peers = Counter((pair.template, len(pair.clean)) for pair in pairs)
    labelled = any(pair.labels for pair in pairs)
    members: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    keys: list[list[tuple[object, ...]]] = []
    for index, pair in enumerate(pairs):
        enough = peers[pair.template, len(pair.clean)] - 1 >= MIN_REFERENCE_PROMPTS
        names = {position: name for name, position in sorted(pair.labels.items(), reverse=True)}
        keys.append([])
        for position in range(len(pair.clean)):
            same_position = ("position", pair.template, len(pair.clean), position)
            same_label = ("label", names.get(position)) if labelled else ("all",)
            members[same_position].append((index, position))
            members[same_label].append((index, position))
            keys[index].append(same_position if enough else same_label)
    used = list(dict.fromkeys(key for row in keys for key in row))
    number = {key: n for n, key in enumerate(used)}
    sizes = {key: len(members[key]) for key in used}
    own = Counter((key, pair) for key in used for pair, _ in members[key])
    return ReferencePlan(
        tuple(tuple(number[key] for key in row) for row in keys),
        tuple(tuple(members[key]) for key in used),
        "+".join(sorted({str(key[0]) for key in used})),
        min(sizes[key] - own[key, index] for index, row in enumerate(keys) for key in row),
    )


class MeanReference:
    """Mean-ablation values of one site: summed over all pairs first, then, for any of them, its own share taken out.

    Where leaving a pair out leaves nothing (`plan.size` is 0: a single pair), its own corrupted values are the mean.
    """

    def __init__(self, plan: ReferencePlan) -> None:
        self.plan = plan
        self._sums: Tensor | None = None
        self._counts = torch.tensor([len(group) for group in plan.members])

    def add(self, first: int, corrupted: Float[Tensor, "pair pos ..."]) -> None:
        """Add the site's values in the corrupted runs of the pairs from `first` on, right-padded."""
        flat, places, groups = self._flat(first, corrupted)
        if self._sums is None:
            self._sums = flat.new_zeros(len(self.plan.members), flat.shape[1])
        self._sums.index_add_(0, groups, flat[places])

    def values(
        self, first: int, corrupted: Float[Tensor, "pair pos ..."]
    ) -> Float[Tensor, "pair pos ..."]:
        """What replaces the site for the pairs from `first` on, given their own corrupted values."""
        if self._sums is None:
            raise RuntimeError("add every pair's values before asking for a mean")
        flat, places, groups = self._flat(first, corrupted)
        count, width = corrupted.shape[:2]
        slot = groups * count + places // width  # one for each (group, pair)
        own, inverse = torch.unique(slot, return_inverse=True)
        sums = flat.new_zeros(len(own), flat.shape[1]).index_add_(0, inverse, flat[places])
        counts = torch.zeros(len(own), device=flat.device).index_add_(
            0, inverse, torch.ones_like(places, dtype=torch.float)
        )
        wanted = [
            (row, t, g) for row in range(count) for t, g in enumerate(self.plan.group[first + row])
        ]
        rows, positions, wanted_groups = (
            torch.tensor(column, device=flat.device) for column in zip(*wanted, strict=True)
        )
        mine = torch.searchsorted(own, wanted_groups * count + rows)
        left = self._counts.to(flat.device)[wanted_groups] - counts[mine]
        others = (self._sums[wanted_groups] - sums[mine]) / left.clamp(min=1).unsqueeze(1)
        mean = torch.where(left.unsqueeze(1) > 0, others, sums[mine] / counts[mine].unsqueeze(1))
        out = torch.zeros_like(flat)
        out[rows * width + positions] = mean
        return out.to(corrupted.dtype).reshape(corrupted.shape)

    def _flat(self, first: int, corrupted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The values as [pair·pos feature], and (place, group) of every membership of these pairs."""
        count, width = corrupted.shape[:2]
        found = [
            ((p - first) * width + t, g)
            for g, group in enumerate(self.plan.members)
            for p, t in group
            if first <= p < first + count
        ]
        places, groups = (
            torch.tensor(column, device=corrupted.device) for column in zip(*found, strict=True)
        )
        return corrupted.reshape(count * width, -1).double(), places, groups
