"""Which positions of which prompts are looked at, and a single prompt as a task of one pair."""

from __future__ import annotations

from collections.abc import Sequence

from discovery.backends.base import Backend
from discovery.errors import MeasurementError
from discovery.methods.cache import run_with_cache
from discovery.tasks import load_task
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Pair, Task

NAMED = 32  # pairs of a task that is given by its name


def named_task(task: Task | str, model: Backend, seed: int) -> Task:
    """A task, or some pairs of the built-in one, or the file, of that name."""
    return load_task(task, model, pairs=NAMED, seed=seed) if isinstance(task, str) else task


Positions = Sequence[int | str] | slice | None  # from 0, from the end, labels of the task; a slice; None is all
Places = tuple[tuple[int, ...], ...]  # the chosen positions of each pair, in order


def prompt_task(model: Backend, prompt: Prompt) -> tuple[Task, float]:
    """A prompt as a task: the most likely next token against the runner-up; and the forward passes that took.

    Raises:
        MeasurementError: a prompt that is empty, too long, or text for a model without a tokenizer.
    """
    seen = run_with_cache(model, prompt, top=2)
    best, second = (prediction.token for prediction in seen.predictions)
    pair = Pair(seen.tokens, seen.tokens, (best,), (second,))
    return Task("prompt", (pair,), (None,), "a single prompt"), seen.cost.forward_equivalents


def places_of(task: Task, positions: Positions) -> Places:
    """The chosen positions of each pair, in order.

    Raises:
        MeasurementError: where a pair has none of them, or labels are asked for that no pair has.
    """
    if isinstance(positions, str) or (positions is not None and not isinstance(positions, slice) and not positions):
        raise MeasurementError(f"positions is {positions!r}.", "Give a list of positions or labels, a slice, or None for all.")
    if isinstance(positions, Sequence) and (odd := [place for place in positions if type(place) not in (int, str)]):
        raise MeasurementError(f"{odd[0]!r} is not a position.", "Give whole numbers, from 0 or backwards from -1, or labels of the task.")
    found = tuple(_places(pair, positions) for pair in task.pairs)
    if bare := [number for number, places in enumerate(found) if not places]:
        longest = max(len(pair.clean) for pair in task.pairs)
        raise MeasurementError(
            f"Pair {bare[0] + 1} has none of the positions {positions!r}.",
            f"Positions count from 0, or backwards from -1, in at most {longest} tokens; labels: {', '.join(_labels(task)) or 'none'}.",
        )
    return found


def _places(pair: Pair, positions: Positions) -> tuple[int, ...]:
    length = len(pair.clean)
    if positions is None or isinstance(positions, slice):
        return tuple(range(length)[positions or slice(None)])
    named = [pair.labels.get(place) if isinstance(place, str) else place for place in positions]
    return tuple(sorted({place % length for place in named if place is not None and -length <= place < length}))


def _labels(task: Task) -> list[str]:
    return sorted({name for pair in task.pairs for name in pair.labels})
