"""The values of mean ablation: means of outputs over reference prompts, computed once and kept.

docs/definitions.md, "Ablations", has the rule, and `reference_plan` applies it. `ReferenceMeans`
runs each reference prompt once through the model and keeps sums only, so its memory does not grow
with the number of prompts. Several engines of the same model and task share one. The sums are kept
for two halves of the prompts, so that f with the means of each half can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.backends.base import Backend
from discovery.backends.hardware.memory import read_free_memory
from discovery.engine.cached_runs import CachedRuns
from discovery.engine.cost import Meter
from discovery.engine.memory import BATCH_PERCENT, FREE_MEMORY_SHARE, HeapTrimmer, pair_bytes
from discovery.engine.prompts import Prompts
from discovery.engine.reference_plan import Cell, CellRule, ReferencePlan, plan_reference
from discovery.graph import RULES_VERSION, RulesVersion
from discovery.sites import Site
from discovery.tasks.reference import (
    HALVES,
    MAX_REFERENCE_PROMPTS,
    ReferencePrompt,
    ReferenceSource,
    divide_into_halves,
)
from discovery.tasks.task import EncodedPair

READ_PERCENT = 15
"""Percent of the memory for the outputs of one batch of reference prompts."""

PROGRESS_LABEL = "reference prompts"
"""The name of the step that runs reference prompts."""


class ReferenceMeans:
    """Sums of outputs over the reference prompts of one task, on one model.

    Attributes:
        backend: the model.
        source: where the prompts come from.
        rules: the version of the rule of mean ablation.
        per_group: how many prompts of each template and token count are used.
        version: how often prompts have been added; plans of an earlier version are out of date.
        spent: the forward-pass equivalents that running reference prompts has cost so far.
    """

    def __init__(
        self,
        backend: Backend,
        source: ReferenceSource,
        *,
        meter: Meter,
        memory: int | None = None,
        rules: RulesVersion = RULES_VERSION,
    ) -> None:
        """Prepare to compute means; nothing is drawn or run yet.

        Args:
            backend: the model.
            source: where the reference prompts come from.
            meter: counts the work.
            memory: the bytes that a batch of reference prompts may take, in the shares that an
                engine has; None means a share of what is free.
            rules: the version of the rule of mean ablation.
        """
        self.backend = backend
        self.source = source
        self.rules: RulesVersion = rules
        self.per_group = source.per_group
        self.version = 0
        self.spent = 0.0
        self._meter = meter
        self._memory = memory or int(FREE_MEMORY_SHARE * read_free_memory(backend.device))
        self._heap = HeapTrimmer(self._memory)
        self._prompts: tuple[ReferencePrompt, ...] | None = None
        self._halves: tuple[int, ...] = ()
        self._index: dict[Cell, int] = {}
        self._counts = torch.zeros(0, len(HALVES), dtype=torch.float64)  # [cell half]
        self._sums: dict[Site, Tensor] = {}  # [cell half feature]

    @property
    def prompts(self) -> tuple[ReferencePrompt, ...]:
        """The reference prompts; they are drawn when they are first asked for.

        Raises:
            TaskError: if the model's tokenizer leaves a built-in task too few words.
        """
        if self._prompts is None:
            self._prompts = self.source.draw(self.per_group)
            self._halves = divide_into_halves(self._prompts)
        return self._prompts

    def plan(self, pairs: Sequence[EncodedPair]) -> ReferencePlan:
        """Return over which positions of which prompts the means of some pairs are taken."""
        return plan_reference(pairs, self.prompts, self.rules)

    @property
    def rule(self) -> CellRule:
        """How positions are assigned to cells; it is the same for all plans."""
        return CellRule(self.rules, any(prompt.labels for prompt in self.prompts))

    def extend(self) -> bool:
        """Draw twice as many prompts, and add the new ones to every sum.

        Whatever was measured under mean ablation before is then out of date. Engines plan their
        means again, and sets have to be measured again.

        Returns:
            Whether there are more prompts now. There are none if the source has no more, or if
            `MAX_REFERENCE_PROMPTS` of each template and token count are in use.

        Raises:
            BudgetError: if the meter's budget does not suffice. Nothing has changed then.
        """
        if self.source.builtin is None or 2 * self.per_group > MAX_REFERENCE_PROMPTS:
            return False
        known = {prompt.key for prompt in self.prompts}
        prompts = self.source.draw(2 * self.per_group)
        halves = divide_into_halves(prompts)
        new = [number for number, prompt in enumerate(prompts) if prompt.key not in known]
        if not new:
            return False
        added = self._sum_over(
            [prompts[number] for number in new],
            [halves[number] for number in new],
            tuple(self._index),
            tuple(self._sums),
        )
        self._counts = self._counts + added.counts
        self._sums = {site: sums + added.sums[site] for site, sums in self._sums.items()}
        self._prompts = prompts
        self._halves = halves
        self.per_group *= 2
        self.version += 1
        return True

    def prepare(self, plan: ReferencePlan, sites: Sequence[Site]) -> None:
        """Make sure that the sums of these sites over the cells of a plan are there.

        Raises:
            BudgetError: if the meter's budget does not suffice. Nothing has changed then.
            MemoryLimitError: if the memory does not hold one prompt.
        """
        new_cells = tuple(cell for cell in plan.all_cells if cell not in self._index)
        known_sites = tuple(self._sums)
        if new_cells:
            new = self._sum_over(self.prompts, self._halves, new_cells, known_sites or sites)
            for cell in new_cells:
                self._index[cell] = len(self._index)
            self._counts = torch.cat([self._counts, new.counts])
            self._sums = {
                site: torch.cat([self._sums[site], sums]) if site in self._sums else sums
                for site, sums in new.sums.items()
            }
        new_sites = tuple(site for site in sites if site not in self._sums)
        if new_sites:
            new = self._sum_over(self.prompts, self._halves, tuple(self._index), new_sites)
            self._sums |= new.sums

    def cell_numbers(self, cells: Iterable[Cell]) -> list[int]:
        """Return the numbers of cells in `sums` and `counts`."""
        return [self._index[cell] for cell in cells]

    def half_of(self, number: int) -> int:
        """Return the half of the reference prompt of this number."""
        return self._halves[number]

    def sums(self, site: Site, half: int | None) -> Float[Tensor, "cell feature"]:
        """Return the sums of a site over each cell, for one half of the prompts or for both.

        Raises:
            RuntimeError: if the site has not been prepared.
        """
        if site not in self._sums:
            raise RuntimeError(f"prepare {site} before asking for its means")
        sums = self._sums[site]
        return sums.sum(1) if half is None else sums[:, half]

    def counts(self, half: int | None) -> Float[Tensor, "cell"]:
        """Return how many values each sum has, for one half of the prompts or for both."""
        return self._counts.sum(1) if half is None else self._counts[:, half]

    def _sum_over(
        self,
        prompts: Sequence[ReferencePrompt],
        halves: Sequence[int],
        cells: Sequence[Cell],
        sites: Sequence[Site],
    ) -> _CellSums:
        """Run the prompts that have values in these cells, and return the sums of their values."""
        numbers = {cell: number for number, cell in enumerate(cells)}
        rule = self.rule
        places = [_places(rule, prompt, numbers) for prompt in prompts]
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, own_places in enumerate(places):
            if own_places:
                by_length[len(prompts[number].tokens)].append(number)
        self._meter.begin(PROGRESS_LABEL, sum(map(len, by_length.values())))
        new = _CellSums(len(cells), sites, self.backend)
        for length, members in sorted(by_length.items()):
            runs = self._runs([prompts[number] for number in members])
            for part, result in runs.read_unchanged("corrupted", sites, self._max_rows(length)):
                slots = [
                    (row * length + position, len(HALVES) * cell + halves[number])
                    for row, number in enumerate(members[part])
                    for position, cell in places[number]
                ]
                rows, targets = (torch.tensor(column) for column in zip(*slots, strict=True))
                new.add(result.activations, rows, targets)
            self.spent += runs.estimate_pass()
        return new

    def _runs(self, prompts: Sequence[ReferencePrompt]) -> CachedRuns:
        """Return the runs of some prompts, which keep nothing.

        A pair of a prompt and itself stands for the prompt; its answers are not looked at.
        """
        pairs = [
            EncodedPair(clean=prompt.tokens, corrupted=prompt.tokens, answer=(0,), wrong=(0,))
            for prompt in prompts
        ]
        return CachedRuns(
            backend=self.backend,
            prompts=Prompts.of(pairs, self.backend.device),
            meter=self._meter,
            memory=self._memory * BATCH_PERCENT // 100,
            heap=self._heap,
        )

    def _max_rows(self, length: int) -> int:
        """Return how many prompts of a length may be read at once."""
        per_prompt = pair_bytes(self.backend.info, length)
        return max(1, self._memory * READ_PERCENT // 100 // per_prompt)


class _CellSums:
    """Sums over cells and halves that are still being added up.

    Attributes:
        counts: how many values each sum has, [cell half].
        sums: the sums of each site, [cell half feature].
    """

    def __init__(self, n_cells: int, sites: Sequence[Site], backend: Backend) -> None:
        """Start with sums of 0. They are at least float32, so that bfloat16 values add up."""
        info = backend.info
        self.counts = torch.zeros(n_cells, len(HALVES), dtype=torch.float64)
        dtype = torch.promote_types(getattr(torch, info.dtype), torch.float32)
        widths = dict.fromkeys(sites, info.d_model)
        widths |= {site: info.n_heads * info.d_head for site in sites if site.kind == "z"}
        self.sums = {
            site: torch.zeros(n_cells, len(HALVES), width, dtype=dtype, device=backend.device)
            for site, width in widths.items()
        }

    def add(
        self,
        activations: Mapping[Site, Tensor],
        rows: Int[Tensor, "value"],
        targets: Int[Tensor, "value"],
    ) -> None:
        """Add some rows [row·pos] of activations to the sums [cell·half] that are their targets."""
        ones = torch.ones(len(targets), dtype=torch.float64)
        self.counts.view(-1).index_add_(0, targets, ones)
        for site, sums in self.sums.items():
            activation = activations[site]
            flat = activation.reshape(activation.shape[0] * activation.shape[1], -1)
            values = flat[rows.to(flat.device)].to(sums)  # the device and dtype of the sums
            sums.view(-1, flat.shape[1]).index_add_(0, targets.to(sums.device), values)


def _places(
    rule: CellRule, prompt: ReferencePrompt, numbers: Mapping[Cell, int]
) -> list[tuple[int, int]]:
    """Return the positions of a prompt that are in numbered cells, with the cells' numbers."""
    return [
        (position, numbers[cell])
        for position, cells in enumerate(rule.cells_at(prompt))
        for cell in cells
        if cell in numbers
    ]


class BlockMeans:
    """The means that replace the outputs of some pairs, for any site.

    The pair itself is left out of its means. If nothing is left of a mean, the mean of the pair's
    own values takes its place.
    """

    def __init__(
        self, means: ReferenceMeans, plan: ReferencePlan, pairs: range, half: int | None = None
    ) -> None:
        """Prepare the means of some pairs of a plan, whose sums are prepared.

        Args:
            means: the sums over reference prompts.
            plan: which mean each position of each pair gets.
            pairs: the numbers of the pairs in the plan.
            half: the half of the reference prompts to use; None means all of them.
        """
        self._means = means
        self._half = half
        self._shape = (len(pairs), max(len(plan.cells[pair]) for pair in pairs))
        targets: list[tuple[int, int, int]] = []  # place, cell, slot
        own: list[tuple[int, int]] = []  # place, slot
        is_left_out: list[bool] = []  # of each slot
        for row, pair in enumerate(pairs):
            number = plan.own[pair]
            left_out = number is not None and half in (None, means.half_of(number))
            slots: dict[Cell, int] = {}
            for cell in dict.fromkeys(plan.cells[pair]):
                slots[cell] = len(is_left_out)
                is_left_out.append(left_out)
            first = row * self._shape[1]
            cells = means.cell_numbers(plan.cells[pair])
            targets += [
                (first + position, cells[position], slots[cell])
                for position, cell in enumerate(plan.cells[pair])
            ]
            own += [
                (first + position, slot)
                for position, slot in _places(plan.rule, plan.pairs[pair], slots)
            ]
        columns = (torch.tensor(column) for column in zip(*targets, strict=True))
        self._place, self._cell, self._slot = columns
        self._own_place, self._own_slot = (torch.tensor(c) for c in zip(*own, strict=True))
        self._own_counts = torch.bincount(self._own_slot, minlength=len(is_left_out)).double()
        self._is_left_out = torch.tensor(is_left_out, dtype=torch.float64)
        own_counts = (self._is_left_out * self._own_counts)[self._slot]
        self._counts = means.counts(half)[self._cell] - own_counts

    @property
    def needs_own_values(self) -> bool:
        """Whether the pairs' own values enter their means."""
        return bool(self._is_left_out.any()) or bool((self._counts == 0).any())

    def values(
        self, site: Site, corrupted: Float[Tensor, "pair pos ..."] | None
    ) -> Float[Tensor, "pair pos feature"]:
        """Return what mean ablation puts at a site; positions after a prompt's end get 0.

        Args:
            site: the site.
            corrupted: the pairs' own values, right-padded; None if `needs_own_values` is false.
        """
        sums = self._means.sums(site, self._half)
        device = sums.device
        place, cell, slot = (t.to(device) for t in (self._place, self._cell, self._slot))
        counts = self._counts.to(device, sums.dtype).unsqueeze(1)
        means = sums[cell]
        if corrupted is not None:
            flat = corrupted.reshape(corrupted.shape[0] * corrupted.shape[1], -1).to(sums.dtype)
            own_counts = self._own_counts.to(device, sums.dtype).unsqueeze(1)
            own_sums = flat.new_zeros(len(own_counts), flat.shape[1])
            own_sums.index_add_(0, self._own_slot.to(device), flat[self._own_place.to(device)])
            left_out = self._is_left_out.to(device, sums.dtype).unsqueeze(1)
            means = means - (left_out * own_sums)[slot]
            own_means = (own_sums / own_counts)[slot]
            means = torch.where(counts > 0, means / counts.clamp(min=1), own_means)
        else:
            means = means / counts
        values = means.new_zeros(self._shape[0] * self._shape[1], means.shape[1])
        values[place] = means
        return values.reshape(*self._shape, -1)
