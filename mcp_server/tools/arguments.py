"""The arguments that several tools share, each with its description and bounds."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.server.mcpserver import Context
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from discovery.tasks import BUILTIN
from discovery.tasks.task_file import read_task_file
from mcp_server.session import Session
from mcp_server.session.models import LoadedModel

if TYPE_CHECKING:
    from discovery.tasks.task import Task

ToolContext = Context[Session, Any]
Detail = Literal["concise", "detailed"]
Axis = Literal["position", "label"]

MAX_PAIRS = 2000
CONTROL_DIRECTIONS = (
    19  # of a shuffled-decoder control: the fewest with which a p of 0.05 can be reached
)
MIN_VERDICT_PAIRS = 96  # pairs that a verdict needs
DEFAULT_PAIRS = 32  # pairs of a built-in task, where a call does not say
MAX_LENGTH = 20_000  # characters or token ids


def _check_length(value: Sized) -> Sized:
    """Checked here instead of in the schema, which a model has to read."""
    if len(value) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH:,}")
    return value


BoundedText = Annotated[str, AfterValidator(_check_length)]
TokenIds = Annotated[list[StrictInt], AfterValidator(_check_length)]
AnswerTokens = str | StrictInt | Annotated[list[str | StrictInt], AfterValidator(_check_length)]


class PairArgument(BaseModel):
    """A prompt pair; both prompts must have equally many tokens."""

    model_config = ConfigDict(extra="forbid")

    clean: BoundedText | TokenIds = Field(
        description="Prompt that shows the behaviour, or its token ids."
    )
    corrupted: BoundedText | TokenIds = Field(
        description="Same prompt with the words changed that carry it."
    )
    answer: AnswerTokens = Field(description="What follows `clean`, one token; a list is a set.")
    wrong: AnswerTokens = Field(description="What should not.")
    template: BoundedText | None = None
    labels: Annotated[dict[str, StrictInt], AfterValidator(_check_length)] | None = None


ModelId = Annotated[str, Field(description="Handle from load_model.", min_length=1, max_length=500)]
RunId = Annotated[
    str,
    Field(
        description="From discover_circuit, train_sae or list_runs.", min_length=1, max_length=200
    ),
]
TaskName = Annotated[str, Field(max_length=4096)]
PairList = Annotated[list[PairArgument], Field(min_length=1, max_length=MAX_PAIRS)]
TaskSource = Annotated[
    TaskName | PairList,
    Field(
        description="Built-in task (ioi, induction, greater_than, agreement), path of a .jsonl task file, or inline pairs."
    ),
]
PairCount = Annotated[
    int, Field(description="How many prompt pairs are drawn of the task.", ge=1, le=MAX_PAIRS)
]
Seed = Annotated[int, Field(description="Draws the pairs and their split.", ge=0, le=2**31 - 1)]
RowLimit = Annotated[int, Field(description="How many rows to list.", ge=1, le=500)]
NodeNames = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(
        description='Heads and MLPs: "a9.h6" (L9H6 and 9.6 too), "m5".',
        min_length=1,
        max_length=2000,
    ),
]
DetailLevel = Annotated[
    Detail, Field(description="detailed: up to 40,000 characters instead of 10,000.")
]
SaeName = Annotated[str | None, Field(description="As in sae_top_features.", max_length=1000)]
Budget = Annotated[
    float,
    Field(
        description="Most forward-pass equivalents to spend.", gt=0, le=1e12, allow_inf_nan=False
    ),
]


def to_task_input(task: TaskName | PairList) -> str | list[dict[str, Any]]:
    """A task argument as `load_task` takes it."""
    return task if isinstance(task, str) else [pair.model_dump(exclude_none=True) for pair in task]


def load_task_with_notes(
    session: Session, loaded: LoadedModel, task: TaskName | PairList, pairs: int, seed: int
) -> tuple[Task, list[str]]:
    """The pairs to measure, and a note where the caller's own are not all taken: how many those are is no accident."""
    source = to_task_input(task)
    read = session.get_task(loaded, source, pairs, seed)
    if (isinstance(source, str) and source in BUILTIN) or len(read) < pairs:
        return read, []
    place = session.resolve_task_source(source)
    given = len(read_task_file(Path(place))) if isinstance(place, str) else len(place)
    return read, [
        f"{len(read)} of {given} pairs were drawn; pairs={given} takes all."
    ] if given > len(read) else []
