"""The stages of a discovery, in order: functions from (state, context) to the next state.

Each stage measures, writes an event with its reasons, and returns the state to resume from.
"""

from __future__ import annotations

from collections.abc import Callable

from discovery.agent.context import RunContext
from discovery.agent.stages.behaviour import check_behaviour
from discovery.agent.stages.candidate import choose_candidate, refine_candidate
from discovery.agent.stages.edges import measure_edges
from discovery.agent.stages.interpretation import interpret
from discovery.agent.stages.localisation import localise, localise_components
from discovery.agent.stages.nodes import rank_nodes
from discovery.agent.stages.stability import measure_stability
from discovery.agent.stages.validation import validate
from discovery.agent.state import State

Stage = Callable[[State, RunContext], State]

# The names of the stages are those in events.jsonl. What the verdict needs comes first, so that a
# budget that ends early still gives a verdict: edges and interpretation enter none.
STAGES: dict[str, Stage] = {
    "check": check_behaviour,
    "localise": localise,
    "components": localise_components,
    "heads": rank_nodes,
    "candidate": choose_candidate,
    "mend": refine_candidate,
    "validate": validate,
    "stability": measure_stability,
    "edges": measure_edges,
    "interpret": interpret,
}
