"""Reading a task file (JSON Lines), with the line and a cure in each message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from discovery.errors import TaskError
from discovery.tasks.pairs import Answer, Prompt, PromptPair, shorten_repr

FIELDS = ("clean", "corrupted", "answer", "wrong", "template", "labels")
MAX_FILE_BYTES = 64 * 2**20


def read_task_file(path: Path) -> dict[str, PromptPair]:
    """Read a task file: its pairs under "line 1", "line 2", …

    Raises:
        TaskError: where the file cannot be read, or a line is not a pair; names the line.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TaskError(
                f"{path.name} is larger than 64 MiB.",
                "A few thousand pairs are enough: use --pairs or a smaller file.",
            )
        lines = path.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # not splitlines: JSON text may hold U+2028 and its like
    except UnicodeDecodeError:
        raise TaskError(
            f"The task file {str(path)!r} is not UTF-8 text.", "Save it as UTF-8."
        ) from None
    except OSError as fault:
        raise TaskError(
            f"The task file {str(path)!r} cannot be read ({fault.strerror}).",
            "Check its path and permissions.",
        ) from None
    filled = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        raise TaskError(
            f"The task file {path.name!r} has no pairs.",
            "Write one JSON object a line: clean, corrupted, answer, wrong.",
        )
    return {f"line {number}": _pair_from_line(line, f"line {number}") for number, line in filled}


def _pair_from_line(line: str, at: str) -> PromptPair:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as fault:
        why = (
            f"{fault.msg}, column {fault.colno}"
            if isinstance(fault, json.JSONDecodeError)
            else "a number too long, or nested too deeply"
        )
        raise TaskError(f"{at}: not JSON ({why}).", "Write one JSON object on each line.") from None
    if not isinstance(fields, dict):
        raise TaskError(
            f"{at}: a {type(fields).__name__}, not an object.",
            'Write {"clean": …, "corrupted": …, "answer": …, "wrong": …}.',
        )
    return pair_from_fields(fields, at)


def pair_from_fields(fields: Mapping[str, Any], at: str) -> PromptPair:
    """Build a pair from the fields of a task file's line.

    Raises:
        TaskError: for a missing, unknown or misshapen field.
    """
    for name in fields:
        if name not in FIELDS:
            raise TaskError(
                f"{at}: unknown field {shorten_repr(name)}.", f"The fields are {', '.join(FIELDS)}."
            )
    for name in FIELDS[:4]:
        if name not in fields:
            raise TaskError(
                f"{at}: the field {name!r} is missing.",
                "Each pair needs clean, corrupted, answer and wrong.",
            )
    template, labels = fields.get("template"), fields.get("labels")
    labels = {} if labels is None else labels
    if template is not None and not _is_text(template):
        raise TaskError(
            f"{at}: template is {shorten_repr(template)}.", "Name the template with a text."
        )
    if not isinstance(labels, Mapping) or not all(
        _is_text(k) and _is_int(v) for k, v in labels.items()
    ):
        raise TaskError(
            f"{at}: labels is {shorten_repr(labels)}.", 'Write labels as {"S2": 9, "end": -1}.'
        )
    clean, corrupted = (_parse_prompt(fields[name], f"{at}, {name}") for name in FIELDS[:2])
    answer, wrong = (_parse_answer(fields[name], f"{at}, {name}") for name in FIELDS[2:4])
    return PromptPair(clean, corrupted, answer, wrong, template, dict(labels))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    """Whether it is text that a tokenizer takes: JSON can write half a character, an escaped surrogate alone."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _parse_prompt(value: Any, at: str) -> Prompt:
    if _is_text(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and all(_is_int(member) for member in value):
        return tuple(value)
    raise TaskError(
        f"{at}: {shorten_repr(value)} is not a prompt.", "Give a text or a list of token ids."
    )


def _parse_answer(value: Any, at: str) -> Answer:
    if _is_text(value) or _is_int(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and all(
        _is_text(member) or _is_int(member) for member in value
    ):
        return tuple(value)
    raise TaskError(
        f"{at}: {shorten_repr(value)} is not an answer.",
        "Give a text, a token id, or a list of these.",
    )
