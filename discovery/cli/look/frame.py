"""What the subcommands of `look` share: the flags, the subject, and how a result is written.

A subcommand calls `add_technique` to make its parser, `load_subject` to get the model and the task
or prompt, and `write` to print its result and save its picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from discovery.cli.arguments import (
    LOAD_SETTINGS,
    MEMORY,
    Subparsers,
    UsageError,
    absolute_path,
    add_flag,
    add_json_flag,
    parse_text,
    parse_whole_number,
)
from discovery.cli.console import Console
from discovery.cli.model_and_task import (
    add_model_and_task_flags,
    add_placement_flags,
    load_request,
    load_requested_model,
    load_requested_task,
)

if TYPE_CHECKING:
    from discovery.backends.base import Backend
    from discovery.progress import ProgressCallback
    from discovery.tasks.pairs import Prompt
    from discovery.tasks.task import Task

DEFAULT_PAIRS = 32


class MeasuredMean(Protocol):
    """A mean with its interval, as `discovery` reports it."""

    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a subcommand looks at.

    Attributes:
        model: the model.
        task: the pairs of a task; None if a prompt was given.
        prompt: the prompt; None if a task was given.
        answer: for a prompt, the answer that was named.
        wrong: for a prompt, the wrong answer that was named.
        seed: the seed of every draw.
        metric: the metric that was named.
        memory: the most memory to use; None sets no limit.
        progress: the callback that draws the progress line.
    """

    model: Backend
    task: Task | None
    prompt: Prompt | None
    answer: str | int | None
    wrong: str | int | None
    seed: int
    metric: Any
    memory: int | None
    progress: ProgressCallback

    def options(self, *, with_metric: bool = True) -> dict[str, Any]:
        """Return the arguments that every technique takes, apart from the model and the task."""
        options = {
            "prompt": self.prompt,
            "answer": self.answer,
            "wrong": self.wrong,
            "seed": self.seed,
            "memory": self.memory,
            "progress": self.progress,
        }
        return options | ({"metric": self.metric} if with_metric else {})


def add_technique(
    verbs: Subparsers,
    parents: list[argparse.ArgumentParser],
    name: str,
    *,
    help: str,
    about: str,
    run: Callable[[argparse.Namespace, Console], None],
    takes_prompt: bool = True,
) -> argparse.ArgumentParser:
    """Add a subcommand with the flags that all techniques share, and return its parser.

    Args:
        verbs: the subcommands of `look`.
        parents: parsers whose flags the subcommand has too.
        name: the name of the subcommand.
        help: one line for the list of subcommands.
        about: a description for its own help.
        run: the function of the subcommand.
        takes_prompt: whether it can look at a prompt instead of a task.
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, parents=parents, help=help, description=about
    )
    parser.add_argument(
        "task",
        metavar="TASK",
        nargs="?",
        help="a built-in task or the path of a task file (default ioi)",
    )
    if takes_prompt:
        add_flag(parser, "--prompt", "TEXT", parse_text, "one prompt, instead of a task")
        add_flag(
            parser, "--tokens", "IDS", parse_token_ids, "one prompt as token ids, as in 0,12,7"
        )
        add_flag(
            parser, "--answer", "TOKEN", parse_token, "of a prompt: a text, or an id as in #12"
        )
        add_flag(parser, "--wrong", "TOKEN", parse_token, "of a prompt: what it is compared with")
    add_model_and_task_flags(parser)
    add_flag(parser, "--figure", "FILE", parse_figure_path, "save a picture as PNG")
    add_json_flag(parser)
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a subcommand that looks at a model and at no task."""
    for setting in LOAD_SETTINGS:
        setting.add_to(parser)
    add_placement_flags(parser)
    MEMORY.add_to(parser)


def load_subject(args: argparse.Namespace, console: Console) -> Subject:
    """Load the model, and the task or the prompt that the flags name.

    Raises:
        UsageError: if a task and a prompt are given, or the answer of a task is named.
    """
    prompt = _require_one_prompt(args)
    if args.pairs is None:
        args.pairs = DEFAULT_PAIRS
    request = load_request(args)
    model = load_requested_model(request, console)
    seed = args.seed or 0
    task = None
    if prompt is None:
        task = load_requested_task(request, model, seed, console)
    return Subject(
        model=model,
        task=task,
        prompt=prompt,
        answer=getattr(args, "answer", None),
        wrong=getattr(args, "wrong", None),
        seed=seed,
        metric=args.metric,
        memory=MEMORY.resolve_value(args),
        progress=console.progress,
    )


def _require_one_prompt(args: argparse.Namespace) -> Prompt | None:
    """Return the prompt that the flags give; None if a task is meant."""
    text = getattr(args, "prompt", None)
    tokens = getattr(args, "tokens", None)
    given = {"TASK": args.task, "--prompt": text, "--tokens": tokens}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} were given.", "Give one of them.")
    prompt: Prompt | None = text if text is not None else tokens
    flags = [name for name in ("answer", "wrong") if getattr(args, name, None) is not None]
    if prompt is None and flags:
        raise UsageError(
            f"--{flags[0]} belongs to a prompt; the pairs of a task have their own answers.",
            "Leave it out, or give --prompt.",
        )
    return prompt


def write(
    args: argparse.Namespace,
    console: Console,
    result: Any,
    *,
    facts: Mapping[str, Any],
    text: str,
    picture: Callable[[], bytes | None],
) -> None:
    """Print a result as text or as JSON, and save its picture if --figure names a file.

    Args:
        result: the result, whose warnings are printed to standard error.
        facts: the result as JSON data; numbers that are not finite become null.
        text: the result for a person.
        picture: draws the picture; it is called only if it is wanted. None means that there is
            nothing to draw.
    """
    console.write_warning_notes(result.warnings)
    if args.figure is not None:
        png = picture()
        if png is None:
            raise UsageError(
                "There is nothing to draw in this result.", "Leave out --figure, or ask for more."
            )
        save_figure(args.figure, png)
        console.write_note(f"The picture is in {args.figure}.")
    if args.json:
        console.write_json(to_json(facts))
    else:
        console.write_result(text)


def save_figure(path: Path, png: bytes) -> None:
    """Write a picture to a file.

    Raises:
        StoreError: if the file cannot be written.
    """
    from discovery.store.files import write_bytes

    write_bytes(path, png)


def to_json(value: Any) -> Any:
    """Return nested results as JSON data; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields if field.repr}
    if isinstance(value, Mapping):
        return {str(name): to_json(inner) for name, inner in value.items()}
    if isinstance(value, str | bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Iterable):
        return [to_json(inner) for inner in value]
    return str(value)


def format_mean(interval: MeasuredMean, digits: int = 3) -> str:
    """Return a mean with its interval; a single number if there is no spread."""
    mean = f"{interval.mean:.{digits}f}"
    if interval.low == interval.high:
        return mean
    return f"{mean} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def format_subject(result: Any) -> str:
    """Return what a result is about: the task and how many pairs, or the prompt."""
    return "one prompt" if result.task == "prompt" else f"{result.task}, {result.n} pairs"


def parse_token_ids(name: str, word: str) -> tuple[int, ...]:
    """Return token ids with commas between them."""
    return tuple(parse_whole_number(0, name, part.strip()) for part in word.split(","))


def parse_token(name: str, word: str) -> str | int:
    """Return a token as text, or as an id if it is written as #12."""
    if word.startswith("#") and word[1:].isdigit():
        return int(word[1:])
    return parse_text(name, word)


def parse_figure_path(name: str, word: str) -> Path:
    """Return the absolute path of a picture, which ends in .png."""
    path = absolute_path(parse_text(name, word))
    if path.suffix.lower() != ".png":
        raise UsageError(
            f"{name} is {word!r}, and must end in .png.", f"Write {name} {path.stem}.png."
        )
    return path
