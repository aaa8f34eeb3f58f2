"""A sweep's positions by name: prompts of unequal length share labels, and what no label names counts from the end.

A sweep by label alone is blind to a behaviour that passes through an unlabelled token; one by position from the end mixes different
words. Here each pair's own token decides: its label where it has one, else its place from the end. No new pass is run.
"""

from __future__ import annotations

from dataclasses import replace

from discovery.methods.patching import Sweep, normalise
from discovery.tasks.task import Pair, Task


def named(sweep: Sweep, task: Task) -> Sweep:
    """The same measurements with the position axis named; each cell averages the pairs that have it.

    Args:
        sweep: by position, over every pair of the task. Where the prompts have one length, or the sweep was screened (its cells were
            chosen by position), it is returned as it is.
    """
    if task.one_length or not sweep.positions or sweep.screen is not None:
        return sweep
    names = [_names(pair) for pair in task.pairs]
    places: dict[str | int, list[int]] = {}
    for own in names:
        for place, name in own.items():
            places.setdefault(name, []).append(place)
    columns = sorted(places, key=lambda name: (sum(places[name]) / len(places[name]), str(name)))
    shape = (*sweep.per_pair.shape[:-1], len(columns))
    per_pair = sweep.per_pair.new_full(shape, float("nan"))
    at = {position: n for n, position in enumerate(sweep.positions)}
    for number, own in enumerate(names):
        for place, name in own.items():
            per_pair[number, ..., columns.index(name)] = sweep.per_pair[number, ..., at[place]]
    values, warnings = normalise(per_pair, sweep.metric_clean, sweep.metric_corrupted, sweep.direction)
    return replace(sweep, per_pair=per_pair, values=values, positions=tuple(columns), warnings=warnings)


def _names(pair: Pair) -> dict[int, str | int]:
    """Place from the end -> its label, or itself."""
    length = len(pair.clean)
    labels = {position - length: name for name, position in sorted(pair.labels.items(), reverse=True)}
    return {place: labels.get(place, place) for place in range(-length, 0)}
