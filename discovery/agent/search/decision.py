"""What a search tells its caller while it works: each decision, with the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from discovery.errors import BudgetError
from discovery.sites import Node


@dataclass(frozen=True)
class Decision:
    """One decision of a search, as it enters the journal.

    Attributes:
        measured: the numbers that the decision rests on.
        concluded: what the search does.
        why: the reason, in words.
        stopped: what ended the search, if this decision ends it: the budget, or the limit on the
            number of sets.
    """

    measured: Mapping[str, object]
    concluded: str
    why: str
    stopped: Literal["budget", "limit"] | None = None


OnDecision = Callable[[Decision], None]


def ignore_decision(decision: Decision) -> None:
    """Take no notice of a decision, in a search whose journal nobody reads."""


def stop_for_budget(fault: BudgetError, measured: Mapping[str, object] | None = None) -> Decision:
    """Return the decision to stop because the budget is spent."""
    return Decision(measured or {}, "stop: the budget is spent", fault.cause, stopped="budget")


def format_nodes(nodes: Iterable[Node]) -> str:
    """Return the names of the nodes in forward order, separated by commas."""
    return ", ".join(map(str, sorted(nodes)))
