"""The stages of a discovery, in order. Each is `(state, context) -> state` and writes its reasons as events."""

from __future__ import annotations

from collections.abc import Callable

from discovery.agent.context import Context
from discovery.agent.stages.behaviour import check
from discovery.agent.stages.candidate import candidate, mending
from discovery.agent.stages.edges import edges
from discovery.agent.stages.interpretation import interpret
from discovery.agent.stages.localisation import components, localise
from discovery.agent.stages.nodes import heads
from discovery.agent.stages.stability import stability
from discovery.agent.stages.validation import validate
from discovery.agent.state import State

Stage = Callable[[State, Context], State]

STAGES: dict[str, Stage] = {
    "check": check,
    "localise": localise,
    "components": components,
    "heads": heads,
    "candidate": candidate,
    "mend": mending,
    "validate": validate,
    "stability": stability,
    "edges": edges,
    "interpret": interpret,
}
"""What the verdict needs most comes first, so that a budget that ends early still gives one: edges enter none."""
