"""Over which positions of which reference prompts each mean of a mean ablation is taken.

The rule is that of docs/definitions.md, "Ablations". A *cell* is a set of positions of reference
prompts that share one mean: a position of the prompts of one template and token count, a label, or
all positions. A plan says which cell replaces each position of each pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from discovery.graph import RULES_VERSION, RulesVersion
from discovery.tasks.reference import ReferencePrompt
from discovery.tasks.task import EncodedPair

MIN_REFERENCE_PROMPTS = 8
"""The number of other prompts that a mean at the same position needs.

If there are fewer, positions are aligned by label.
"""

Cell = tuple[object, ...]
"""("position", template, token count, position), ("label", name or None), ("all",) or ("first",).

The label of an unlabelled position is None.
"""


@dataclass(frozen=True)
class CellRule:
    """How positions are assigned to cells.

    Attributes:
        version: the version of the evaluation rules.
        has_labels: whether any reference prompt has labels.
    """

    version: RulesVersion
    has_labels: bool

    def cells_at(self, prompt: ReferencePrompt) -> list[tuple[Cell, Cell]]:
        """Return two cells for each position: its own, and the fallback.

        The fallback is for groups with too few prompts.

        Version 2 gives the first position a mean of its own if there are no labels. In many models
        its values are far larger than those of any other position.
        """
        names = {position: name for name, position in sorted(prompt.labels.items(), reverse=True)}
        length = len(prompt.tokens)
        cells: list[tuple[Cell, Cell]] = []
        for position in range(length):
            other: Cell = ("label", names.get(position)) if self.has_labels else ("all",)
            if not self.has_labels and position == 0 and self.version > 1:
                other = ("first",)
            cells.append((("position", prompt.template, length, position), other))
        return cells


@dataclass(frozen=True, kw_only=True)
class ReferencePlan:
    """Which mean each position of each pair gets.

    Attributes:
        rule: how positions are assigned to cells.
        cells: for each pair and each of its positions, the cell whose mean it gets.
        pairs: for each pair, its corrupted prompt as a reference prompt.
        own: for each pair, the number of the reference prompt that is the pair itself; None if
            there is none.
        alignment: "position", "label", "all", or several of them joined by "+". It is recorded.
        size: the smallest number of other prompts in any mean. Version 1 counts values instead.
    """

    rule: CellRule
    cells: tuple[tuple[Cell, ...], ...]
    pairs: tuple[ReferencePrompt, ...]
    own: tuple[int | None, ...]
    alignment: str
    size: int

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        """Every cell that some position needs, once."""
        return tuple(dict.fromkeys(cell for row in self.cells for cell in row))


def plan_reference(
    pairs: Sequence[EncodedPair],
    prompts: Sequence[ReferencePrompt],
    version: RulesVersion = RULES_VERSION,
) -> ReferencePlan:
    """Decide over which positions of which reference prompts each mean is taken.

    A mean is taken at the same position over the reference prompts of the same template and token
    count, without the pair itself. If there are fewer than 8 such prompts, positions are aligned by
    label, and all unlabelled positions share one mean. If nothing has labels, the mean is taken
    over all prompts and positions.
    """
    rule = CellRule(version, any(prompt.labels for prompt in prompts))
    group_sizes = Counter((prompt.template, len(prompt.tokens)) for prompt in prompts)
    numbers = {prompt.key: number for number, prompt in enumerate(prompts)}
    count = _count_values if version == 1 else _count_prompts
    counts = Counter[Cell]()
    for prompt in prompts:
        counts.update(count(rule, prompt))
    as_prompts = tuple(pair.as_reference for pair in pairs)
    own = tuple(numbers.get(prompt.key) for prompt in as_prompts)
    rows: list[tuple[Cell, ...]] = []
    sizes: list[int] = []
    for prompt, number in zip(as_prompts, own, strict=True):
        is_reference = number is not None
        peers = group_sizes[prompt.template, len(prompt.tokens)] - is_reference
        column = 0 if peers >= MIN_REFERENCE_PROMPTS else 1
        row = tuple(cells[column] for cells in rule.cells_at(prompt))
        own_counts = count(rule, prompt) if is_reference else Counter[Cell]()
        rows.append(row)
        sizes += [counts[cell] - own_counts[cell] for cell in row]
    kinds = {"all" if cell[0] == "first" else str(cell[0]) for row in rows for cell in row}
    return ReferencePlan(
        rule=rule,
        cells=tuple(rows),
        pairs=as_prompts,
        own=own,
        alignment="+".join(sorted(kinds)),
        size=min(sizes),
    )


def _count_values(rule: CellRule, prompt: ReferencePrompt) -> Counter[Cell]:
    """Count a prompt's values in each cell."""
    return Counter(cell for cells in rule.cells_at(prompt) for cell in cells)


def _count_prompts(rule: CellRule, prompt: ReferencePrompt) -> Counter[Cell]:
    """Count a prompt once in each cell that it has values in."""
    return Counter(set(_count_values(rule, prompt)))
