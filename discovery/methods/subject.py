"""What a technique looks at: the pairs of a task, or a single prompt.

A prompt becomes a task of one pair with the same prompt on both sides. Its answer and its wrong
answer are the tokens that the caller names, or else the two tokens that the model gives the
largest logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

Token = str | int
"""A token as its text after the prompt, or as its id."""


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


def make_prompt_task(
    model: Backend, prompt: Prompt, answer: Token | None = None, wrong: Token | None = None
) -> tuple[Task, float]:
    """Make a task of one pair from a prompt, with the same prompt on both sides.

    Args:
        answer: the token whose logit is of interest; None means the model's most likely next token.
        wrong: the token that it is compared with; None means the most likely other token.

    Returns:
        The task, and the forward-pass equivalents that it took to find the two tokens.

    Raises:
        MeasurementError: if the prompt is empty, too long, or text for a model without a tokenizer,
            or if the answer is not one token.
    """
    prompt_run = run_with_cache(model, prompt, top=3)
    likely = [prediction.token for prediction in prompt_run.predictions]
    chosen_answer = _token_id(model, prompt, prompt_run.tokens, answer, "answer")
    chosen_wrong = _token_id(model, prompt, prompt_run.tokens, wrong, "wrong")
    if chosen_answer is None:
        chosen_answer = next(token for token in likely if token != chosen_wrong)
    if chosen_wrong is None:
        chosen_wrong = next(token for token in likely if token != chosen_answer)
    if chosen_answer == chosen_wrong:
        raise MeasurementError(
            f"The answer and the wrong answer are the same token, {chosen_answer}.",
            "Name another wrong answer, or leave it out.",
        )
    pair = EncodedPair(
        clean=prompt_run.tokens,
        corrupted=prompt_run.tokens,
        answer=(chosen_answer,),
        wrong=(chosen_wrong,),
    )
    task = Task(name="prompt", pairs=(pair,), splits=(None,), split_method="a single prompt")
    return task, prompt_run.cost.forward_equivalents


def resolve_subject(
    model: Backend,
    task: TaskLike | None,
    prompt: Prompt | None,
    *,
    answer: Token | None = None,
    wrong: Token | None = None,
    pairs: int | None = DEFAULT_TASK_PAIRS,
    seed: int = 0,
) -> Task:
    """Return the pairs that a technique looks at.

    Args:
        task: a task, whose clean prompts are measured; or
        prompt: a single prompt.
        answer: for a prompt, the token whose logit is of interest.
        wrong: for a prompt, the token that it is compared with.
        pairs: how many pairs of a task are loaded if it is given by its name or path.
        seed: seed of the pairs that a built-in task draws.

    Raises:
        MeasurementError: if not exactly one of task and prompt is given, or if the answer of a task
            is named a second time.
    """
    if (task is None) == (prompt is None):
        given = "neither" if task is None else "both"
        raise MeasurementError(
            f"A technique looks at a task or at a prompt, and {given} was given.",
            "Give one of task and prompt.",
        )
    if prompt is not None:
        return make_prompt_task(model, prompt, answer, wrong)[0]
    if answer is not None or wrong is not None:
        raise MeasurementError(
            "answer and wrong belong to a prompt; the pairs of a task have their own.",
            "Leave them out, or give a prompt.",
        )
    assert task is not None
    return resolve_task(task, model, seed, pairs)


def format_token(model: Backend, token: int) -> str:
    """Return a token as text, or as its id if the model has no tokenizer."""
    return model.tokenizer.decode([token]) if model.tokenizer else str(token)


def format_tokens(model: Backend, tokens: Sequence[int]) -> tuple[str, ...]:
    """Return each token as text, or as its id if the model has no tokenizer."""
    return tuple(format_token(model, token) for token in tokens)


def _token_id(
    model: Backend, prompt: Prompt, tokens: tuple[int, ...], token: Token | None, name: str
) -> int | None:
    """Return the id of a token that was named as text or as an id; None if it was not named.

    Raises:
        MeasurementError: if the text is not exactly one token after the prompt, or if the id does
            not exist.
    """
    if token is None:
        return None
    if isinstance(token, int):
        if not 0 <= token < model.n_logits:
            raise MeasurementError(
                f"{name} is the token id {token}, which does not exist.",
                f"Use ids from 0 to {model.n_logits - 1}.",
            )
        return token
    if model.tokenizer is None or not isinstance(prompt, str):
        raise MeasurementError(
            f"{name} is the text {token!r}, and the prompt is given as token ids.",
            f"Give {name} as a token id.",
        )
    continued = tuple(model.tokenizer.encode(prompt + token))
    if continued[: len(tokens)] != tokens or len(continued) != len(tokens) + 1:
        raise MeasurementError(
            f"{name} {token!r} does not continue the prompt by exactly one token.",
            "Use a word that is one token, check the space before it, or give a token id.",
        )
    return continued[-1]
