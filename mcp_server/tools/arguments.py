"""The arguments that several tools share, each with its description and its bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Sized
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from discovery.sites import MetricName
from discovery.tasks import BUILTIN
from mcp_server.errors import ServerError
from mcp_server.session import Session

ToolContext = Context[Session, Any]
Detail = Literal["concise", "detailed"]

MAX_PAIRS = 2000
DEFAULT_PAIRS = 32  # pairs of a built-in task, if a call does not say
MIN_VERDICT_PAIRS = 96  # pairs that a verdict needs
MAX_LENGTH = 20_000  # characters of a text, or token ids of a prompt
# Directions in the control of a feature: the fewest with which a p of 0.05 can be reached.
CONTROL_DIRECTIONS = 19


def _check_length(value: Sized) -> Sized:
    """Check a length here and not in the schema, which a model has to read."""
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
        description="The same prompt with the words changed that carry the behaviour."
    )
    answer: AnswerTokens = Field(
        description="What follows `clean`, one token; a list is a set of answers."
    )
    wrong: AnswerTokens = Field(description="What should not follow.")
    template: BoundedText | None = Field(
        default=None, description="The name of the wording that the pair has."
    )
    labels: Annotated[dict[str, StrictInt], AfterValidator(_check_length)] | None = Field(
        default=None, description='Positions by name, as {"S2": 9, "end": -1}.'
    )


# Stands in the description of a task in place of the schema of a pair, which is ten times as long.
PAIRS_FORM = (
    'pairs [{"clean": "Ann met Bob. Bob saw", "corrupted": "Ann met Bob. Ann saw", "answer": '
    '" Ann", "wrong": " Bob"}]: equally many tokens on both sides, one token as answer; or '
    'token ids, sets of answers; "template" and "labels" {"S2": 5} are optional'
)


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
    Field(description=f"Built-in ({', '.join(BUILTIN)}), .jsonl task file, or {PAIRS_FORM}."),
]
MetricChoice = Annotated[
    MetricName | None,
    Field(description="What is measured at the answer; default: the task's own metric."),
]
PairCount = Annotated[
    int, Field(description="How many prompt pairs of the task to use.", ge=1, le=MAX_PAIRS)
]
Seed = Annotated[
    int, Field(description="Seed for drawing and splitting the pairs.", ge=0, le=2**31 - 1)
]
RowLimit = Annotated[int, Field(description="How many rows to list.", ge=1, le=500)]
HeadName = Annotated[
    str, Field(description='One head: "a9.h6" (also "L9H6" or "9.6").', max_length=40)
]
NodeNames = Annotated[
    list[Annotated[str, Field(max_length=40)]],
    Field(
        description='Heads and MLPs: "a9.h6" (also "L9H6" or "9.6"), "m5".',
        min_length=1,
        max_length=2000,
    ),
]
DetailLevel = Annotated[
    Detail, Field(description="detailed: up to 40,000 characters instead of 10,000.")
]
SaeName = Annotated[str | None, Field(description="SAE, as in sae_top_features.", max_length=1000)]
Budget = Annotated[
    float,
    Field(
        description="Forward-pass equivalents (one prompt, once through the model) that may be "
        "spent in all.",
        gt=0,
        le=1e12,
        allow_inf_nan=False,
    ),
]


TimeLimit = Annotated[
    str,
    Field(
        description='As "10 min": a budget, at the rate measured here.',
        max_length=40,
    ),
]

_SECONDS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


def parse_time_limit(text: str) -> float:
    """Return the seconds of a time limit, such as "10 min" or "1 h 30 min".

    Raises:
        ServerError: if the text is no such time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.lower())
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*([a-z]+)", "", text.lower()).strip()
    seconds = sum(float(number) * _SECONDS.get(unit, math.nan) for number, unit in parts)
    if rest or not seconds > 0:
        raise ServerError(
            f"time_limit is {text!r}.", 'Give a number and s, min or h, such as "10 min".'
        )
    return seconds


def to_task_input(task: TaskName | PairList) -> str | list[dict[str, Any]]:
    """Return a task argument in the form that `load_task` takes."""
    return task if isinstance(task, str) else [pair.model_dump(exclude_none=True) for pair in task]
