"""What a run does again when it goes on with a larger budget than it began with."""

from __future__ import annotations

from discovery.agent.stages import DECIDING_STAGES
from discovery.agent.state import State

BUDGET_REASON = "the budget ended before"
"""How a reason begins that names what a budget did not reach."""

JUDGEMENT_FIELDS = (
    "evaluation",
    "verdict",
    "reasons",
    "stability",
    "cut_searches",
    "inclusion",
    "edges",
    "edge_counts",
    "positions",
    "labels",
    "role_measurements",
)
"""The fields of a state that belong to one circuit."""


def find_missing_stages(state: State) -> frozenset[str]:
    """Return the stages that a budget left out, ended early or cut short."""
    missing = {*state.left_out, *state.shortened}
    if state.cut_short is not None:  # a stage, or a condition such as "(c)" of the evaluation
        missing.add("validate" if state.cut_short.startswith("(") else state.cut_short)
    if state.cut_searches and state.stability is None:
        missing.add("stability")
    return frozenset(missing)


def reopen(state: State) -> State:
    """Return the state from which a run goes on with a larger budget.

    The missing stages are done again, and so is what rests on them: a longer search may find
    another circuit, which has to be judged. Sets that were measured are kept with the run, so that
    doing a stage again costs little up to where it ended.
    """
    missing = find_missing_stages(state)
    again = set(missing)
    changes: dict[str, object] = {
        "cut_short": None,
        "left_out": (),
        "shortened": (),
        "reasons": tuple(r for r in state.reasons if not r.startswith(BUDGET_REASON)),
    }
    if any(name in missing for name in DECIDING_STAGES[:-1]):
        first = min(DECIDING_STAGES.index(name) for name in missing if name in DECIDING_STAGES)
        again |= {*DECIDING_STAGES[first:], "edges", "interpret"}
        fresh = State()
        changes |= {name: getattr(fresh, name) for name in JUDGEMENT_FIELDS}
    elif "stability" in missing:
        changes |= {"cut_searches": 0, "inclusion": {}}
    return state.with_changes(
        **changes, done=tuple(name for name in state.done if name not in again)
    )
