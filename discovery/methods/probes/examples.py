"""Labelled prompts for a probe: from the fields of a task, or from a file.

A file is JSON Lines with one prompt a line:

    {"prompt": "The film was great, and I", "label": "positive", "template": "film",
     "labels": {"end": -1}}

`prompt` is a text or a list of token ids. `template` groups prompts of one wording, and `labels`
names positions, as in a task file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from discovery.backends.base import Backend
from discovery.errors import MeasurementError, TaskError
from discovery.methods.prompt_run import encode_prompt
from discovery.methods.subject import TaskLike, format_token, format_tokens, resolve_task
from discovery.tasks.pairs import shorten_repr
from discovery.tasks.task import EncodedPair, Task

MIN_CLASS_SIZE = 8
"""The fewest examples of a class with which a probe can be tested on other examples."""

MAX_CLASSES = 20
MAX_FILE_BYTES = 64 * 2**20

LABEL_FORMS = "side, answer, token:NAME, or before:NAME,NAME"
_FIELDS = ("prompt", "label", "template", "labels")

ExampleSource = str | Path | Sequence[Mapping[str, Any]]
"""The path of a file of labelled prompts, or the content of its lines."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled prompts.

    Attributes:
        task: the prompts as the clean sides of a task's pairs.
        classes: the name of each example's class.
        label: what the classes are, in words.
        pairs: the pairs of a task whose metric shows whether the model uses the label; None for
            prompts from a file, which have no answers. Example i belongs to pair i; with the label
            `side`, the corrupted prompts follow the clean ones.
        warnings: what is suspicious about the examples.
    """

    task: Task
    classes: tuple[str, ...]
    label: str
    pairs: Task | None
    warnings: tuple[str, ...] = ()

    @property
    def templates(self) -> tuple[str, ...]:
        """The template of each example."""
        return tuple(pair.template for pair in self.task.pairs)

    @property
    def groups(self) -> tuple[str, ...]:
        """What is never on both sides of a split: templates or, if all have one, pairs."""
        if len(set(self.templates)) > 1:
            return self.templates
        n_pairs = len(self.task) if self.pairs is None else len(self.pairs)
        return tuple(str(number % n_pairs) for number in range(len(self.task)))

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in alphabetical order."""
        return tuple(sorted(set(self.classes)))


def examples_of_task(
    model: Backend, task: TaskLike, label: str, seed: int, pairs: int | None
) -> Examples:
    """Label the prompts of a task by one of its own fields.

    Args:
        label: `side`: whether a prompt is clean or corrupted. `answer`: the right answer of the
            clean prompt. `token:NAME`: the token at a labelled position of the clean prompt.
            `before:A,B`: whether position A comes before position B.

    Raises:
        MeasurementError: if the label is malformed, or if a pair lacks a position that it names.
    """
    loaded = resolve_task(task, model, seed, pairs)
    if label == "side":
        sides = [("clean", pair.clean) for pair in loaded.pairs]
        sides += [("corrupted", pair.corrupted) for pair in loaded.pairs]
        originals = (*loaded.pairs, *loaded.pairs)
        examples = tuple(
            replace(pair, clean=tokens, corrupted=tokens)
            for pair, (_, tokens) in zip(originals, sides, strict=True)
        )
        classes = tuple(side for side, _ in sides)
    else:
        examples = loaded.pairs
        classes = tuple(_class_of(model, pair, label) for pair in loaded.pairs)
    prompts = Task(
        name=loaded.name,
        pairs=examples,
        splits=(None,) * len(examples),
        split_method="examples of a probe",
    )
    return _checked(Examples(task=prompts, classes=classes, label=label, pairs=loaded))


def _class_of(model: Backend, pair: EncodedPair, label: str) -> str:
    """Return the class of a clean prompt."""
    kind, _, names = label.partition(":")
    if label == "answer":
        return " ".join(text.strip() for text in format_tokens(model, sorted(pair.answer)))
    if kind == "token" and names:
        return format_token(model, pair.clean[_position(pair, names, label)]).strip()
    first, _, second = names.partition(",")
    if kind == "before" and first and second:
        is_before = _position(pair, first, label) < _position(pair, second, label)
        return f"{first} before {second}" if is_before else f"{second} before {first}"
    raise MeasurementError(f"label {label!r} is not known.", f"Give {LABEL_FORMS}.")


def _position(pair: EncodedPair, name: str, label: str) -> int:
    if name.strip() not in pair.labels:
        raise MeasurementError(
            f"label {label!r} names the position {name.strip()!r}, which a pair lacks.",
            f"This pair has {', '.join(sorted(pair.labels)) or 'no labelled positions'}.",
        )
    return pair.labels[name.strip()]


def read_examples(model: Backend, source: ExampleSource) -> Examples:
    """Read labelled prompts.

    Raises:
        TaskError: if the file cannot be read or a line is not a labelled prompt; it names the line.
        MeasurementError: if a prompt does not suit the model, or if a class has too few examples.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        name, lines = path.stem, _read_lines(path)
    else:
        name = "labelled prompts"
        lines = {f"prompt {number}": dict(item) for number, item in enumerate(source, start=1)}
    pairs, classes = [], []
    for location, fields in lines.items():
        pairs.append(_example(model, fields, location))
        classes.append(fields["label"])
    if not pairs:
        raise TaskError("There are no labelled prompts.", "Give one JSON object a line.")
    task = Task(
        name=name,
        pairs=tuple(pairs),
        splits=(None,) * len(pairs),
        split_method="examples of a probe",
    )
    return _checked(Examples(task=task, classes=tuple(classes), label="label", pairs=None))


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TaskError(f"{path.name} is larger than 64 MiB.", "Use fewer prompts.")
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise TaskError(
            f"The file of labelled prompts {str(path)!r} cannot be read ({reason}).",
            "Check its path and permissions.",
        ) from None
    lines = {}
    for number, text in enumerate(texts, start=1):
        if text.strip():
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError):
                fields = None
            if not isinstance(fields, dict):
                raise TaskError(
                    f"line {number}: not a JSON object.", 'Write {"prompt": …, "label": …}.'
                )
            lines[f"line {number}"] = fields
    return lines


def _example(model: Backend, fields: Mapping[str, Any], location: str) -> EncodedPair:
    """Return a labelled prompt as a pair of the prompt and itself; its answers are not used."""
    if unknown := [name for name in fields if name not in _FIELDS]:
        raise TaskError(
            f"{location}: unknown field {shorten_repr(unknown[0])}.",
            f"The fields are {', '.join(_FIELDS)}.",
        )
    prompt, label = fields.get("prompt"), fields.get("label")
    if isinstance(prompt, list | tuple):
        prompt = tuple(prompt) if all(type(token) is int for token in prompt) else list(prompt)
    if not isinstance(prompt, str | tuple) or not isinstance(label, str) or not label:
        raise TaskError(
            f"{location}: prompt is {shorten_repr(prompt)}, label is {shorten_repr(label)}.",
            "Each line needs a prompt (a text or token ids) and a label (a text).",
        )
    tokens = encode_prompt(model, prompt)
    template, positions = fields.get("template") or "", fields.get("labels") or {}
    if not isinstance(template, str) or not isinstance(positions, Mapping):
        raise TaskError(
            f"{location}: template is {shorten_repr(template)}, labels {shorten_repr(positions)}.",
            'Write "template": "film", "labels": {"end": -1}.',
        )
    for name, at in positions.items():
        if type(at) is not int or not -len(tokens) <= at < len(tokens):
            raise TaskError(
                f"{location}: label {name!r} is at {shorten_repr(at)}, and the prompt has "
                f"{len(tokens)} tokens.",
                f"Use a position from {-len(tokens)} to {len(tokens) - 1}.",
            )
    return EncodedPair(
        clean=tokens,
        corrupted=tokens,
        answer=(0,),
        wrong=(1,),
        template=template,
        labels={name: at % len(tokens) for name, at in positions.items()},
    )


def _checked(examples: Examples) -> Examples:
    """Return the examples with warnings.

    Raises:
        MeasurementError: if there are too few or too many classes, or too few examples of one.
    """
    sizes = Counter(examples.classes)
    if not 2 <= len(sizes) <= MAX_CLASSES:
        raise MeasurementError(
            f"The label {examples.label!r} has {len(sizes)} classes.",
            f"A probe takes 2 to {MAX_CLASSES}; labels of a task are {LABEL_FORMS}.",
        )
    rarest = min(sizes, key=lambda name: (sizes[name], name))
    if sizes[rarest] < MIN_CLASS_SIZE:
        raise MeasurementError(
            f"The class {rarest!r} has {sizes[rarest]} examples.",
            f"Give at least {MIN_CLASS_SIZE} of each class: more pairs, or another label.",
        )
    if len({pair.template for pair in examples.task.pairs}) >= 2:
        return examples
    warning = (
        "All examples have one template, so training and test prompts share their wording: a probe "
        "may read the wording."
    )
    return replace(examples, warnings=(warning,))
