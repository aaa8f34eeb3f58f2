"""The split of a task: which pairs select a circuit, and which pairs test it.

With at least three templates, whole templates are held out. A circuit tracks the wording of its
data set (Miller et al. 2024, arXiv 2407.08734; 2605.09129), so a circuit that only holds for the
wording that selected it is not a circuit of the behaviour. With fewer templates, each template is
halved.

A pair and its reverse (clean and corrupted exchanged) count as one pair, and only one of them is
used.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from discovery.tasks.task import EncodedPair, SplitName

MIN_HELDOUT_SHARE = 0.4
"""The smallest share of the pairs that whole templates may hold out."""

MAX_HELDOUT_SHARE = 0.6
"""The largest share of the pairs that whole templates may hold out."""

ENOUGH_PAIRS = 48
"""The held-out pairs that a verdict needs. Of twice as many pairs, so many are held out."""

MIN_TEMPLATES = 3
"""With fewer templates, none is held out as a whole."""

MAX_NAMED_TEMPLATES = 8
"""How many held-out templates the description of the split names before it counts the rest."""


def split_pairs(
    pairs: Sequence[EncodedPair], seed: int
) -> tuple[tuple[SplitName | None, ...], str]:
    """Assign each pair to a split, by seed.

    Returns:
        The split of each pair, and a description of how the pairs were divided. The split is None
        for a pair that repeats another one, or that is the reverse of a pair in use.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index in _drop_repeats_and_reverses(pairs):
        groups[pairs[index].template].append(index)
    rng = random.Random(f"split-{seed}")
    heldout, method = _hold_out_templates(groups, rng)
    if not heldout:
        method = f"50/50 within each template ({method})"
        heldout = _hold_out_halves(groups, rng)
    splits: list[SplitName | None] = [None] * len(pairs)
    for index in (index for members in groups.values() for index in members):
        splits[index] = "heldout" if index in heldout else "discovery"
    return tuple(splits), method


def _drop_repeats_and_reverses(pairs: Sequence[EncodedPair]) -> list[int]:
    """Return the indices of the pairs to use: one of each group of repeats and reverses.

    Within a template, the pair as written and its reverse are used in turn. Otherwise all answers
    could be the same, and a constant answer would be as accurate as the model.
    """
    same_key: dict[object, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        same_key[pair.key].append(index)
    indices = []
    reversed_pairs = Counter[str]()
    for first, *repeats in same_key.values():
        reverses = [index for index in repeats if pairs[index].clean == pairs[first].corrupted]
        template = pairs[first].template
        use_first = not reverses or reversed_pairs[template] % 2 == 0
        indices.append(first if use_first else reverses[0])
        reversed_pairs[template] += bool(reverses)
    return sorted(indices)


def _hold_out_templates(groups: dict[str, list[int]], rng: random.Random) -> tuple[set[int], str]:
    """Return the held-out pairs and how they were chosen, or an empty set and the reason for it."""
    if len(groups) < MIN_TEMPLATES:
        count = f"{len(groups)} template{'s' * (len(groups) != 1)}"
        return set(), f"{count}, and whole ones are held out from three on"
    names = sorted(groups)
    rng.shuffle(names)
    heldout_names = _choose_templates({name: len(groups[name]) for name in names})
    if not heldout_names:
        return set(), "no choice of whole templates holds 40-60% of the pairs"
    heldout = {index for name in heldout_names for index in groups[name]}
    listed = ", ".join(sorted(heldout_names)[:MAX_NAMED_TEMPLATES])
    unnamed = len(heldout_names) - MAX_NAMED_TEMPLATES
    more = f" and {unnamed} more" if unnamed > 0 else ""
    return heldout, f"whole templates held out: {listed}{more}"


def _choose_templates(sizes: dict[str, int]) -> list[str]:
    """Choose templates that together hold an allowed share of the pairs.

    Args:
        sizes: the number of pairs of each template, in the order in which templates are considered.

    Returns:
        The names, or an empty list if no choice fits.
    """
    total = sum(sizes.values())
    smallest = MIN_HELDOUT_SHARE * total
    largest = MAX_HELDOUT_SHARE * total
    names: list[str] = []
    heldout = 0
    for name, size in sizes.items():
        if heldout < smallest and heldout + size <= largest:
            names.append(name)
            heldout += size
    # 40% of 96 pairs are too few for a verdict, and half of them are enough.
    is_enough = heldout >= ENOUGH_PAIRS or total < 2 * ENOUGH_PAIRS
    if heldout >= smallest and is_enough:
        return names
    # The greedy choice got stuck, or holds too few pairs: compare every sum that can be reached.
    names_by_sum: dict[int, list[str]] = {0: []}
    for name, size in sizes.items():
        for reached, members in list(names_by_sum.items()):
            names_by_sum.setdefault(reached + size, [*members, name])
    fitting = [count for count in names_by_sum if smallest <= count <= largest]
    enough = [count for count in fitting if count >= ENOUGH_PAIRS]
    if total >= 2 * ENOUGH_PAIRS and enough:
        return names_by_sum[min(enough)]
    return names_by_sum[fitting[0]] if fitting else []


def _hold_out_halves(groups: dict[str, list[int]], rng: random.Random) -> set[int]:
    """Return one half of each template's pairs."""
    heldout: set[int] = set()
    extra = 0  # templates with an odd number give their extra pair to each side in turn
    for name in sorted(groups):
        members = list(groups[name])
        rng.shuffle(members)
        half, odd = divmod(len(members), 2)
        heldout.update(members[: half + (odd and extra)])
        extra ^= odd
    return heldout
