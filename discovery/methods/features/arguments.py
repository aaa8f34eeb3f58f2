"""Arguments that the feature measurements share: the task, the positions, numbers and choices.

A measurement accepts a task in several forms, or a single prompt. `resolve_task` and
`make_prompt_task` turn them into one `Task`, and `resolve_positions` turns the user's positions
into whole numbers for each pair. The other functions check arguments and name what is wrong.
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

DEFAULT_TASK_PAIRS = 32  # pairs that are loaded if a task is given by its name or path

# A task, or anything that `load_task` accepts: a name, the path of a task file, or pairs.
TaskLike = Task | str | Path | Sequence[PromptPair | Mapping[str, Any]]

# Positions that count from 0 or (negative) from the end, labels of the task, a slice, or None for
# all positions.
Positions = Sequence[int | str] | slice | None

PairPositions = tuple[tuple[int, ...], ...]  # for each pair, its chosen positions in order


def resolve_task(
    task: TaskLike, model: Backend, seed: int, pairs: int | None = DEFAULT_TASK_PAIRS
) -> Task:
    """Load a task unless it is loaded already.

    Args:
        task: a loaded task is returned as it is, and a list of pairs is used completely.
        seed: seed of the pairs that a built-in task draws.
        pairs: how many pairs of a built-in task or a task file are used; None uses as many as
            `load_task` gives by default.
    """
    if isinstance(task, Task):
        return task
    return load_task(task, model, pairs=pairs if isinstance(task, str | Path) else None, seed=seed)


def make_prompt_task(model: Backend, prompt: Prompt) -> tuple[Task, float]:
    """Make a task of one pair from a prompt, with the same prompt on both sides.

    The answer is the model's most likely next token, and the wrong answer is the runner-up.

    Returns:
        The task, and the forward-pass equivalents that it took to find the two tokens.

    Raises:
        MeasurementError: if the prompt is empty, too long, or text for a model without a tokenizer.
    """
    prompt_run = run_with_cache(model, prompt, top=2)
    best, second = (prediction.token for prediction in prompt_run.predictions)
    pair = EncodedPair(
        clean=prompt_run.tokens, corrupted=prompt_run.tokens, answer=(best,), wrong=(second,)
    )
    task = Task(name="prompt", pairs=(pair,), splits=(None,), split_method="a single prompt")
    return task, prompt_run.cost.forward_equivalents


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


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that an argument is one of its choices.

    Raises:
        MeasurementError: names the argument and what is allowed.
    """
    if value not in choices:
        raise MeasurementError(f"{name} {value!r} is not known.", f"Allowed: {', '.join(choices)}.")
