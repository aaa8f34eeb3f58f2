"""The arguments that several tools share, each with its description and bounds."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mcp.server.mcpserver import Context
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from discovery.tasks import BUILTIN
from discovery.tasks.task_file import read_file
from mcp_server.session import Session
from mcp_server.session.models import Loaded

if TYPE_CHECKING:
    from discovery.tasks.task import Task

Call = Context[Session, Any]
Detail = Literal["concise", "detailed"]
Axis = Literal["position", "label"]

MOST_PAIRS = 2000
DRAWS = 19  # of a shuffled-decoder control: the fewest with which a p of 0.05 can be reached
ENOUGH = 96  # pairs that a verdict needs
DRAWN = 32  # pairs of a built-in task, where a call does not say
MOST_LONG = 20_000  # characters or token ids


def _bounded(value: Sized) -> Sized:
    """Checked here instead of in the schema, which a model has to read."""
    if len(value) > MOST_LONG:
        raise ValueError(f"longer than {MOST_LONG:,}")
    return value


Text = Annotated[str, AfterValidator(_bounded)]
Ids = Annotated[list[StrictInt], AfterValidator(_bounded)]
Answer = str | StrictInt | Annotated[list[str | StrictInt], AfterValidator(_bounded)]


class Pair(BaseModel):
    """A prompt pair; both prompts must have equally many tokens."""

    model_config = ConfigDict(extra="forbid")

    clean: Text | Ids = Field(description="Prompt that shows the behaviour, or its token ids.")
    corrupted: Text | Ids = Field(description="Same prompt with the words changed that carry it.")
    answer: Answer = Field(description="What follows `clean`, one token; a list is a set.")
    wrong: Answer = Field(description="What should not.")
    template: Text | None = None
    labels: Annotated[dict[str, StrictInt], AfterValidator(_bounded)] | None = None


ModelId = Annotated[str, Field(description="Handle from load_model.", min_length=1, max_length=500)]
RunId = Annotated[str, Field(description="From discover_circuit, train_sae or list_runs.", min_length=1, max_length=200)]
TaskName = Annotated[str, Field(max_length=4096)]
Pairs = Annotated[list[Pair], Field(min_length=1, max_length=MOST_PAIRS)]
TaskSource = Annotated[
    TaskName | Pairs,
    Field(description="Built-in task (ioi, induction, greater_than, agreement), path of a .jsonl task file, or inline pairs."),
]
Count = Annotated[int, Field(description="How many prompt pairs are drawn of the task.", ge=1, le=MOST_PAIRS)]
Seed = Annotated[int, Field(description="Draws the pairs and their split.", ge=0, le=2**31 - 1)]
Top = Annotated[int, Field(description="How many rows to list.", ge=1, le=500)]
Nodes = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(description='Heads and MLPs: "a9.h6" (L9H6 and 9.6 too), "m5".', min_length=1, max_length=2000),
]
DetailLevel = Annotated[Detail, Field(description="detailed: up to 40,000 characters instead of 10,000.")]
SaeName = Annotated[str | None, Field(description="As in sae_top_features.", max_length=1000)]
Budget = Annotated[float, Field(description="Most forward-pass equivalents to spend.", gt=0, le=1e12, allow_inf_nan=False)]


def pairs_given(task: TaskName | Pairs) -> str | list[dict[str, Any]]:
    """A task argument as `load_task` takes it."""
    return task if isinstance(task, str) else [pair.model_dump(exclude_none=True) for pair in task]


def drawn(session: Session, loaded: Loaded, task: TaskName | Pairs, pairs: int, seed: int) -> tuple[Task, list[str]]:
    """The pairs to measure, and a note where the caller's own are not all taken: how many those are is no accident."""
    source = pairs_given(task)
    read = session.task(loaded, source, pairs, seed)
    if (isinstance(source, str) and source in BUILTIN) or len(read) < pairs:
        return read, []
    place = session.task_source(source)
    given = len(read_file(Path(place))) if isinstance(place, str) else len(place)
    return read, [f"{len(read)} of {given} pairs were drawn; pairs={given} takes all."] if given > len(read) else []
