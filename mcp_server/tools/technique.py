"""What the tools of the techniques share: a prompt or a task, and how pictures are answered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from mcp.types import CallToolResult, ContentBlock
from pydantic import Field, StrictInt

from mcp_server.errors import ServerError
from mcp_server.session.artifacts import make_result_id
from mcp_server.tools.arguments import BoundedText, PairList, TaskName, TokenIds, ToolContext
from mcp_server.tools.measurement import Measurement, session_of
from mcp_server.tools.result import Result, make_image, make_link, to_call_result

if TYPE_CHECKING:
    from discovery.tasks.task import Task

PromptChoice = Annotated[
    BoundedText | TokenIds | None, Field(description="One prompt; or give task.")
]
TaskChoice = Annotated[
    TaskName | PairList | None,
    Field(
        description="Built-in task, .jsonl file, or pairs [{clean, corrupted, answer, wrong}]; or "
        "give prompt."
    ),
]
NamedToken = Annotated[
    BoundedText | StrictInt | None,
    Field(description="Of a prompt; default: the model's own prediction."),
]
OtherToken = Annotated[
    BoundedText | StrictInt | None, Field(description="Of a prompt; default: the runner-up.")
]
Figure = Annotated[str | None, Field(description="URI of the picture.")]


def require_one(tool: str, prompt: object, task: object) -> None:
    """Check that a tool got either a prompt or a task.

    Raises:
        ServerError: if it got both or neither.
    """
    if (prompt is None) == (task is None):
        raise ServerError(
            f"{tool} takes one of prompt and task.",
            "Give a prompt for a first look, a task for intervals over pairs.",
        )


def load_subject(
    measurement: Measurement,
    prompt: str | list[int] | None,
    task: TaskName | PairList | None,
    pairs: int,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that every technique takes, and notes about the pairs."""
    loaded_task: Task | None = None
    notes: list[str] = []
    if task is not None:
        loaded_task, notes = measurement.load_task(task, pairs, seed)
    arguments = {
        "task": loaded_task,
        "prompt": tuple(prompt) if isinstance(prompt, list) else prompt,
        "seed": seed,
        "memory": measurement.memory,
        "progress": measurement.job,
    }
    return arguments, notes


def keep_picture(
    measurement: Measurement, tool: str, request: object, draw: Callable[[], bytes]
) -> tuple[str, bytes]:
    """Draw a picture, keep it among the results, and return its URI and its bytes."""
    digest = hashlib.sha256(repr(request).encode()).hexdigest()[:8]
    result_id = make_result_id(tool, measurement.model.model_id, digest)
    png = draw()
    return measurement.session.artifacts.add(result_id, "picture.png", png), png


def answer_with_picture(
    context: ToolContext,
    result: Result,
    uri: str | None,
    png: bytes | None,
    *,
    detailed: bool = False,
) -> CallToolResult:
    """Return a result with its picture, unless the client wants none, and a link to it."""
    content: list[ContentBlock] = []
    if uri is not None and png is not None:
        if session_of(context).settings.images == "include":
            content.append(make_image(png))
        content.append(make_link(uri, "picture", "image/png", len(png)))
    return to_call_result(result, content, detailed=detailed)
