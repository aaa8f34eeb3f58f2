"""Which positions of which prompts are looked at, and a single prompt as a task of one pair.

Arguments that count something.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from discovery.backends.base import Backend
from discovery.errors import MeasurementError
from discovery.methods.prompt_run import run_with_cache
from discovery.tasks import PromptPair, load_task
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import EncodedPair, Task

DEFAULT_TASK_PAIRS = 32  # pairs of a task that is given by its name

TaskLike = (
    Task | str | Path | Sequence[PromptPair | Mapping[str, Any]]
)  # a task, or what `load_task` makes one of


def resolve_task(
    task: TaskLike, model: Backend, seed: int, pairs: int | None = DEFAULT_TASK_PAIRS
) -> Task:
    """A task; so many pairs of the built-in one, or of the file, of that name (None: all); or the pairs of a list."""
    if isinstance(task, Task):
        return task
    return load_task(task, model, pairs=pairs if isinstance(task, str | Path) else None, seed=seed)


Positions = (
    Sequence[int | str] | slice | None
)  # from 0, from the end, labels of the task; a slice; None is all
PairPositions = tuple[tuple[int, ...], ...]  # the chosen positions of each pair, in order


def make_prompt_task(model: Backend, prompt: Prompt) -> tuple[Task, float]:
    """A prompt as a task: the most likely next token against the runner-up; and the forward passes that took.

    Raises:
        MeasurementError: a prompt that is empty, too long, or text for a model without a tokenizer.
    """
    seen = run_with_cache(model, prompt, top=2)
    best, second = (prediction.token for prediction in seen.predictions)
    pair = EncodedPair(clean=seen.tokens, corrupted=seen.tokens, answer=(best,), wrong=(second,))
    return Task(
        name="prompt", pairs=(pair,), splits=(None,), split_method="a single prompt"
    ), seen.cost.forward_equivalents


def resolve_positions(task: Task, positions: Positions) -> PairPositions:
    """The chosen positions of each pair, in order.

    Raises:
        MeasurementError: where a pair has none of them, or no pair has one of them.
    """
    listed: object = () if positions is None or isinstance(positions, slice) else positions
    if (
        isinstance(listed, str)
        or not isinstance(listed, Collection)
        or (listed is positions and not listed)
    ):
        raise MeasurementError(
            f"positions is {positions!r}.",
            "Give a list of positions or labels, a slice, or None for all.",
        )
    if odd := [place for place in listed if type(place) not in (int, str)]:
        raise MeasurementError(
            f"{odd[0]!r} is not a position.",
            "Give whole numbers, from 0 or backwards from -1, or labels of the task.",
        )
    found = tuple(_places(pair, positions) for pair in task.pairs)
    lacking = [
        f"Pair {number} has none of the positions {positions!r}."
        for number, places in enumerate(found, start=1)
        if not places
    ]
    lacking += [
        f"No pair has the position {place!r}."
        for place in listed
        if not any(_places(pair, [place]) for pair in task.pairs)
    ]
    if lacking:
        longest = max(len(pair.clean) for pair in task.pairs)
        raise MeasurementError(
            lacking[0],
            f"Positions count from 0, or backwards from -1, in at most {longest} tokens; labels: {', '.join(_labels(task)) or 'none'}.",
        )
    return found


def _places(pair: EncodedPair, positions: Positions) -> tuple[int, ...]:
    length = len(pair.clean)
    if positions is None or isinstance(positions, slice):
        return tuple(range(length)[positions or slice(None)])
    named = [pair.labels.get(place) if isinstance(place, str) else place for place in positions]
    return tuple(
        sorted(
            {place % length for place in named if place is not None and -length <= place < length}
        )
    )


def _labels(task: Task) -> list[str]:
    return sorted({name for pair in task.pairs for name in pair.labels})


def require_counts(**counts: tuple[object, int]) -> None:
    """Check that each is a whole number and no less than its least.

    Args:
        counts: the value and its least, by the argument's name.

    Raises:
        MeasurementError: names the first that is not.
    """
    for name, (value, least) in counts.items():
        if type(value) is not int or value < least:
            raise MeasurementError(
                f"{name} is {value!r}.", f"Give a whole number of at least {least}."
            )
