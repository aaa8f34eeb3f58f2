"""What is trained on: a file as it is, or tasks and prompts, whose token ids are then written into the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from discovery.backends.base import Backend
from discovery.errors import FeatureError
from discovery.features.training.pieces import Pieces
from discovery.features.training.recipe import Recipe
from discovery.features.training.rows import Rows
from discovery.graph.strict_json import dumps
from discovery.tasks import BUILTIN, TEXT_PAIRS, load_task
from discovery.tasks.pairs import Prompt
from discovery.tasks.task import Task

ROWS = "rows.jsonl"

Text = str | Path | Task | Sequence[Task] | Sequence[Prompt]


@dataclass(frozen=True)
class Source:
    """A text.

    Attributes:
        path: of a file; else None, and content is what `rows.jsonl` holds.
    """

    name: str
    path: Path | None
    content: bytes | None = None

    def rows(self, model: Backend, recipe: Recipe) -> Rows:
        """Its rows, some set aside.

        Raises:
            FeatureError: a text that cannot be read or is too short.
        """
        return Rows(model, Pieces.of(self.path or Path(ROWS), recipe.context, self.content), recipe)


def source_of(model: Backend, text: Text) -> Source:
    """What a caller gave; the name of a built-in task stands for `TEXT_PAIRS` pairs of it.

    Raises:
        FeatureError: nothing, or what is no text.
    """
    if isinstance(text, str) and text in BUILTIN:
        return source_of(model, load_task(text, model, pairs=TEXT_PAIRS))
    if isinstance(text, str | Path):
        path = Path(text).expanduser().absolute()
        return Source(path.name, path)
    given = [text] if isinstance(text, Task) else list(text)
    tasks = [part for part in given if isinstance(part, Task)]
    if tasks and len(tasks) < len(given):
        raise FeatureError("Tasks and prompts were given together.", "Give one kind.")
    name = "+".join(task.name for task in tasks) or "prompts"
    prompts: list[Prompt] = [prompt for task in tasks for pair in task.pairs for prompt in (pair.clean, pair.corrupted)] if tasks else given  # type: ignore[assignment]
    lines: dict[tuple[int, ...], None] = {}
    for prompt in prompts:
        if isinstance(prompt, str) and model.tokenizer is None:
            raise FeatureError("A prompt is text, and this model has no tokenizer.", "Give token ids.")
        if not isinstance(prompt, str) and not all(type(token) is int for token in prompt):
            raise FeatureError(f"{prompt!r} is no prompt.", "Give texts, or tuples of token ids.")
        ids = model.tokenizer.encode(prompt) if model.tokenizer is not None and isinstance(prompt, str) else prompt
        lines[tuple(ids)] = None  # type: ignore[arg-type]  # a prompt that is no text is ids
    return Source(name, None, "".join(dumps({"tokens": list(ids)}) + "\n" for ids in lines).encode("ascii"))
