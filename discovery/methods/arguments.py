"""Arguments that measurements share: positions, numbers and choices.

`resolve_positions` turns the user's positions into whole numbers for each pair. The other functions
check arguments and name what is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from discovery.errors import MeasurementError
from discovery.tasks.task import EncodedPair, Task

# Positions that count from 0 or (negative) from the end, labels of the task, a slice, or None for
# all positions.
Positions = Sequence[int | str] | slice | None

PairPositions = tuple[tuple[int, ...], ...]  # for each pair, its chosen positions in order


def resolve_positions(task: Task, positions: Positions) -> PairPositions:
    """Return the chosen positions of each pair, in order and counted from 0.

    Raises:
        MeasurementError: if the argument is malformed, if a pair has none of the positions, or if
            no pair has one of them.
    """
    items = _list_positions(positions)
    by_pair = tuple(_positions_of_pair(pair, positions) for pair in task.pairs)
    problems = [
        f"Pair {number} has none of the positions {positions!r}."
        for number, pair_positions in enumerate(by_pair, start=1)
        if not pair_positions
    ]
    problems += [
        f"No pair has the position {item!r}."
        for item in items
        if not any(_positions_of_pair(pair, [item]) for pair in task.pairs)
    ]
    if problems:
        longest = max(len(pair.clean) for pair in task.pairs)
        labels = sorted({name for pair in task.pairs for name in pair.labels})
        raise MeasurementError(
            problems[0],
            f"Positions count from 0, or backwards from -1, in at most {longest} tokens; "
            f"labels: {', '.join(labels) or 'none'}.",
        )
    return by_pair


def locate_positions(
    task: Task, positions: Sequence[int | str]
) -> tuple[tuple[int | None, ...], ...]:
    """Return where each pair has each position, counted from 0; None if it lacks the position.

    Raises:
        MeasurementError: if the argument is malformed, or if no pair has one of the positions.
    """
    items = _list_positions(positions)
    places = tuple(
        tuple(next(iter(_positions_of_pair(pair, [item])), None) for item in items)
        for pair in task.pairs
    )
    for item, column in zip(items, zip(*places, strict=True), strict=True):
        if all(place is None for place in column):
            labels = sorted({name for pair in task.pairs for name in pair.labels})
            raise MeasurementError(
                f"No pair has the position {item!r}.",
                f"Positions count from 0, or backwards from -1; "
                f"labels: {', '.join(labels) or 'none'}.",
            )
    return places


def _list_positions(positions: Positions) -> Collection[int | str]:
    """Check the form of the argument, and return its items; there are none for a slice or None."""
    if positions is None or isinstance(positions, slice):
        return ()
    items: object = positions
    if isinstance(items, str) or not isinstance(items, Collection) or not items:
        raise MeasurementError(
            f"positions is {positions!r}.",
            "Give a list of positions or labels, a slice, or None for all.",
        )
    if wrong := [item for item in items if type(item) not in (int, str)]:
        raise MeasurementError(
            f"{wrong[0]!r} is not a position.",
            "Give whole numbers, from 0 or backwards from -1, or labels of the task.",
        )
    return items


def _positions_of_pair(pair: EncodedPair, positions: Positions) -> tuple[int, ...]:
    length = len(pair.clean)
    if positions is None or isinstance(positions, slice):
        return tuple(range(length)[positions or slice(None)])
    numbers = [pair.labels.get(item) if isinstance(item, str) else item for item in positions]
    existing = {n % length for n in numbers if n is not None and -length <= n < length}
    return tuple(sorted(existing))


def require_counts(**counts: tuple[object, int]) -> None:
    """Check that each argument is a whole number and not below its minimum.

    Args:
        counts: for each argument name, the value and its minimum.

    Raises:
        MeasurementError: names the first argument that is wrong.
    """
    for name, (value, minimum) in counts.items():
        if type(value) is not int or value < minimum:
            raise MeasurementError(
                f"{name} is {value!r}.", f"Give a whole number of at least {minimum}."
            )
