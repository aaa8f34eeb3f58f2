"""Interventions are values: at this site, in these rows, positions and heads, put that tensor.

An `Edit` is all that a backend knows of interventions. Everything named in the literature is one of them:
activation patching replaces with the value of another run, resample ablation with that of the pair's own corrupted
run, mean ablation with a mean over corrupted runs, zero ablation with nothing, steering adds, path patching adds to
the input of one reader. What the reference values are is decided here, once (`mean_reference`), so that no method does it twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from discovery.sites import Site
from discovery.tasks.task import Pair

MIN_REFERENCE = 8  # other prompts needed for a mean at the same position; below that, by label


@dataclass(frozen=True)
class Edit:
    """A change of one activation in every row of a batch.

    Attributes:
        site: which activation.
        value: [row pos …] as the site's shape, or anything that broadcasts to it.
        where: True where the change applies: [row pos] (z, q, k, v: [row pos head]) or broadcastable; None is everywhere.
        operation: replace by the value, add it, or scale by it.
    """

    site: Site
    value: Float[Tensor, "..."]
    where: Bool[Tensor, "..."] | None = None
    operation: Literal["replace", "add", "scale"] = "replace"

    def apply(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The activation with this change made."""
        value = self.value.to(activation.dtype)
        if self.operation == "add":
            changed = activation + value
        elif self.operation == "scale":
            changed = activation * value
        else:
            changed = value.expand_as(activation)
        if self.where is None:
            return changed
        return torch.where(self.where.unsqueeze(-1), changed, activation)

    def rows(self, first: int, last: int) -> Edit:
        """The same edit for rows first to last-1 (parts with one row serve all)."""
        value = self.value if self.value.shape[0] == 1 else self.value[first:last]
        where = self.where if self.where is None or self.where.shape[0] == 1 else self.where[first:last]
        return replace(self, value=value, where=where)


def replace_with(site: Site, value: Float[Tensor, "..."], where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Put `value` at the site."""
    return Edit(site, value, where)


def add(site: Site, value: Float[Tensor, "..."], where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Add `value` at the site."""
    return Edit(site, value, where, "add")


def scale(site: Site, factor: float, where: Bool[Tensor, "..."] | None = None) -> Edit:
    """Multiply the site by a factor; 0 is zero ablation."""
    return Edit(site, torch.tensor([factor]), where, "scale")


@dataclass(frozen=True)
class ReferencePlan:
    """Which corrupted positions are averaged for each pair and position, and how that was decided.

    Attributes:
        groups: for each distinct set, the (pair, position) members.
        use: for each pair, the group of each of its positions.
        alignment: "position", "label", "all", or several joined by "+", as recorded.
        size: the smallest number of values behind a mean.
    """

    groups: tuple[tuple[tuple[int, int], ...], ...]
    use: tuple[tuple[int, ...], ...]
    alignment: str
    size: int


def plan_reference(pairs: Sequence[Pair]) -> ReferencePlan:
    """Decide what each mean is over (INTERFACES, "Mean").

    At the same position over corrupted prompts of the same template and token count, leaving the pair itself out; with
    fewer than 8 such prompts, aligned by label (unlabelled positions: over all unlabelled positions); with no labels,
    over prompts and positions.
    """
    peers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        peers[pair.template, len(pair.clean)].append(index)
    members: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    keys: list[list[tuple[object, ...]]] = []
    any_labels = any(pair.labels for pair in pairs)
    for index, pair in enumerate(pairs):
        enough = len(peers[pair.template, len(pair.clean)]) - 1 >= MIN_REFERENCE
        named = {position: name for name, position in sorted(pair.labels.items(), reverse=True)}
        row: list[tuple[object, ...]] = []
        for position in range(len(pair.clean)):
            by_label: tuple[object, ...] = ("label", named.get(position)) if any_labels else ("all",)
            members[by_label].append((index, position))
            by_position = ("position", pair.template, len(pair.clean), position)
            members[by_position].append((index, position))
            row.append(by_position if enough else by_label)
        keys.append(row)
    used = list(dict.fromkeys(key for row in keys for key in row))
    number = {key: n for n, key in enumerate(used)}
    kinds = sorted({str(key[0]) for key in used})
    size = min(len(_without(members[key], index)) for index, row in enumerate(keys) for key in row)
    return ReferencePlan(
        tuple(tuple(members[key]) for key in used), tuple(tuple(number[key] for key in row) for row in keys), "+".join(kinds), size
    )


def _without(group: Sequence[tuple[int, int]], pair: int) -> list[tuple[int, int]]:
    return [member for member in group if member[0] != pair]


def mean_reference(
    plan: ReferencePlan, corrupted: Float[Tensor, "pair pos *feature"], index: Sequence[int] | None = None
) -> Float[Tensor, "some pos *feature"]:
    """Mean-ablation values for each pair and position, the pair itself left out.

    Args:
        plan: from `plan_reference`.
        corrupted: the site's values in every pair's corrupted run, right-padded.
        index: for which pairs; None is all.

    Where leaving the pair out leaves nothing (a single pair), the pair itself is the mean: the value is then the resample value.
    """
    chosen = range(corrupted.shape[0]) if index is None else index
    flat = corrupted.reshape(-1, *corrupted.shape[2:]).double()
    width = corrupted.shape[1]
    rows: list[Int[Tensor, "n"]] = [torch.tensor([p * width + t for p, t in group], device=flat.device) for group in plan.groups]
    sums = torch.stack([flat[row].sum(0) for row in rows])
    counts = torch.tensor([len(group) for group in plan.groups], device=flat.device)
    out = torch.zeros(len(chosen), *corrupted.shape[1:], dtype=flat.dtype, device=flat.device)
    own: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, group in enumerate(plan.groups):
        for pair, position in group:
            own[number, pair].append(pair * width + position)
    for row, pair in enumerate(chosen):
        for position, group_number in enumerate(plan.use[pair]):
            mine = own[group_number, pair]
            left = int(counts[group_number]) - len(mine)
            out[row, position] = (sums[group_number] - flat[mine].sum(0)) / left if left else flat[mine].mean(0)
    return out.to(corrupted.dtype)
