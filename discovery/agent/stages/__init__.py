"""The stages of a discovery, in order: functions from (state, context) to the next state.

Each stage measures, writes an event with its reasons, and returns the state to resume from.
"""

from __future__ import annotations

from collections.abc import Callable

from discovery.agent.context import RunContext
from discovery.agent.stages.behaviour import check_behaviour
from discovery.agent.stages.candidate import choose_candidate, refine_candidate
from discovery.agent.stages.edges import describe_edges
from discovery.agent.stages.interpretation import interpret
from discovery.agent.stages.localisation import localise, localise_components
from discovery.agent.stages.nodes import rank_nodes
from discovery.agent.stages.stability import measure_stability
from discovery.agent.stages.validation import validate
from discovery.agent.state import State

Stage = Callable[[State, RunContext], State]

# The names of the stages are those in events.jsonl. What costs least and says most comes first: a
# ranking, a circuit, its verdict. What only describes the circuit and enters no verdict is last.
STAGES: dict[str, Stage] = {
    "check": check_behaviour,
    "heads": rank_nodes,
    "candidate": choose_candidate,
    "mend": refine_candidate,
    "validate": validate,
    "stability": measure_stability,
    "localise": localise,
    "components": localise_components,
    "edges": describe_edges,
    "interpret": interpret,
}

DECIDING_STAGES = ("check", "heads", "candidate", "mend", "validate", "stability")
"""The stages that decide the verdict. Each rests on those before it."""
