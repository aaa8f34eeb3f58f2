"""Which pairs select a circuit and which test it.

With at least three templates whole templates are held out, because circuits track the wording of a data set
(Miller et al. 2024, arXiv 2407.08734; 2605.09129): a circuit that only holds for the wording it was found on is no
circuit of the behaviour. With fewer, each template is cut in half.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from discovery.tasks.task import EncodedPair, SplitName

MIN_HELDOUT_SHARE, MAX_HELDOUT_SHARE = (
    0.4,
    0.6,
)  # the share of pairs that may be held out when whole templates are
MAX_NAMED_TEMPLATES = 8  # templates that the method names


def split_pairs(
    pairs: Sequence[EncodedPair], seed: int
) -> tuple[tuple[SplitName | None, ...], str]:
    """Assign each pair to a split, by seed.

    Returns:
        One split name for each pair (None for a pair that repeats another or is the reverse of one that is kept), and how it was done.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index in _drop_repeats_and_reverses(pairs):
        groups[pairs[index].template].append(index)
    rng = random.Random(f"split-{seed}")
    held, method = _hold_out_templates(groups, rng)
    if not held:
        held, why = _hold_out_halves(groups, rng), method
        method = f"50/50 within each template ({why})"
    kept = {index for members in groups.values() for index in members}
    names: list[SplitName | None] = [
        ("heldout" if i in held else "discovery") if i in kept else None for i in range(len(pairs))
    ]
    return tuple(names), method


def _drop_repeats_and_reverses(pairs: Sequence[EncodedPair]) -> list[int]:
    """Each pair once: of a pair and its reverse now the one and now the other is kept, in each template, or all answers would be alike."""
    same: dict[object, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        same[pair.key].append(index)
    kept, turns = [], Counter[str]()
    for first, *others in same.values():
        back = next(
            (index for index in others if pairs[index].clean == pairs[first].corrupted), None
        )
        template = pairs[first].template
        kept.append(first if back is None or turns[template] % 2 == 0 else back)
        turns[template] += back is not None
    return sorted(kept)


def _hold_out_templates(groups: dict[str, list[int]], rng: random.Random) -> tuple[set[int], str]:
    if len(groups) < 3:
        return (
            set(),
            f"{len(groups)} template{'s' * (len(groups) != 1)}, and whole ones are held out from three on",
        )
    total = sum(len(members) for members in groups.values())
    names = sorted(groups)
    rng.shuffle(names)
    chosen: list[str] = []
    for name in names:
        held = sum(len(groups[other]) for other in chosen)
        if (
            held < MIN_HELDOUT_SHARE * total
            and held + len(groups[name]) <= MAX_HELDOUT_SHARE * total
        ):
            chosen.append(name)
    if (
        sum(len(groups[name]) for name in chosen) < MIN_HELDOUT_SHARE * total
    ):  # the greedy choice got stuck: look at every sum
        reached: dict[int, list[str]] = {0: []}
        for name in names:
            for size, members in list(reached.items()):
                reached.setdefault(size + len(groups[name]), [*members, name])
        chosen = next(
            (
                members
                for size, members in reached.items()
                if MIN_HELDOUT_SHARE * total <= size <= MAX_HELDOUT_SHARE * total
            ),
            [],
        )
    if not chosen:
        return set(), "no choice of whole templates holds 40-60% of the pairs"
    held_pairs = {index for name in chosen for index in groups[name]}
    more = (
        f" and {len(chosen) - MAX_NAMED_TEMPLATES} more"
        if len(chosen) > MAX_NAMED_TEMPLATES
        else ""
    )
    return (
        held_pairs,
        f"whole templates held out: {', '.join(sorted(chosen)[:MAX_NAMED_TEMPLATES])}{more}",
    )


def _hold_out_halves(groups: dict[str, list[int]], rng: random.Random) -> set[int]:
    held: set[int] = set()
    spare = 0  # odd templates give their extra pair to each side in turn
    for name in sorted(groups):
        members = list(groups[name])
        rng.shuffle(members)
        half, odd = divmod(len(members), 2)
        held.update(members[: half + (odd and spare)])
        spare ^= odd
    return held
