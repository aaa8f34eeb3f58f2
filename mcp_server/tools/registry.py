"""The tools: each measures through `discovery`, shapes what came of it, and holds no mathematics of its own.

A tool is a function whose signature is its input schema and whose docstring is written to the assistant.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mcp.server.mcpserver.tools import Tool
from mcp.types import ToolAnnotations

from mcp_server.session.settings import TOOLSETS, Settings, Toolset
from mcp_server.tools.circuits import discover_circuit, evaluate_circuit
from mcp_server.tools.features import (
    circuit_features,
    edit_features,
    sae_examples,
    sae_top_features,
    train_sae,
)
from mcp_server.tools.measure import ablate_heads, check_task, patch_sweep, run_with_cache
from mcp_server.tools.models import load_model
from mcp_server.tools.runs import list_runs, run_status
from mcp_server.tools.schema import strict

__all__ = ["OFFERS", "Offer", "offered", "switched_off"]


@dataclass(frozen=True)
class Offer:
    """A tool and what is said of it.

    Attributes:
        toolset: the group it is switched on and off with.
        reads: it changes nothing outside this server's memory.
        destroys: it takes something away that another call does not bring back.
        repeats: the same call again changes nothing more.
        open_world: it may reach beyond this machine.
        writes: it is left out where the server is read-only.
    """

    function: Callable[..., Awaitable[Any]]
    title: str
    toolset: Toolset
    reads: bool = True
    destroys: bool = False
    repeats: bool = True
    open_world: bool = False
    writes: bool = False

    def tool(self) -> Tool:
        """The tool as the SDK has it, refusing arguments that it does not know."""
        hints = ToolAnnotations(
            title=self.title,
            read_only_hint=self.reads,
            destructive_hint=self.destroys,
            idempotent_hint=self.repeats,
            open_world_hint=self.open_world,
        )
        description = inspect.cleandoc(self.function.__doc__ or "")
        return strict(Tool.from_function(self.function, title=self.title, description=description, annotations=hints))


OFFERS: tuple[Offer, ...] = (
    Offer(load_model.load_model, "Load a model", "models", reads=False, open_world=True),
    Offer(load_model.list_models, "List models", "models"),
    Offer(load_model.unload_model, "Unload a model", "models", reads=False),
    Offer(check_task.check_task, "Does the model do the task?", "measure"),
    Offer(run_with_cache.run_with_cache, "Look into one prompt", "measure"),
    Offer(patch_sweep.patch_sweep, "Activation patching sweep", "measure"),
    Offer(ablate_heads.ablate_heads, "Ablate heads and MLPs", "measure"),
    Offer(sae_top_features.sae_top_features, "Top features of an SAE", "features", open_world=True),
    Offer(edit_features.edit_features, "Change features of an SAE", "features", open_world=True),
    Offer(sae_examples.sae_examples, "Where features fire", "features", open_world=True),
    Offer(circuit_features.circuit_features, "Features beside a circuit", "features", reads=False, open_world=True, writes=True),
    Offer(train_sae.train_sae, "Train an SAE", "features", reads=False, repeats=False, writes=True),
    Offer(evaluate_circuit.evaluate_circuit, "Evaluate a circuit", "circuits", reads=False),
    Offer(discover_circuit.discover_circuit, "Discover a circuit", "circuits", reads=False, repeats=False, writes=True),
    Offer(run_status.run_status, "How far is a run?", "runs"),
    Offer(run_status.cancel_run, "Stop a run", "runs", reads=False, writes=True),
    Offer(run_status.get_circuit, "The circuit of a run", "runs"),
    Offer(list_runs.list_runs, "List runs", "runs"),
)


def offered(settings: Settings) -> list[Tool]:
    """The tools that these settings switch on, in a fixed order: models always, and the runs with what starts one."""
    starts = {"circuits", "features"} & set(settings.toolsets)
    on = {"models", *settings.toolsets, *(("runs",) if starts else ())}
    return [offer.tool() for offer in OFFERS if offer.toolset in on and not (settings.read_only and offer.writes)]


def switched_off(settings: Settings) -> str:
    """Which tools these settings leave out, and how the user would have them; nothing where there are all."""
    here = {tool.name for tool in offered(settings)}
    missing = [offer.function.__name__ for offer in OFFERS if offer.function.__name__ not in here]
    if not missing:
        return ""
    flags = ["without --read-only"] if settings.read_only else []
    flags += ["with --toolsets all"] if set(settings.toolsets) != set(TOOLSETS) else []
    return f"This server was started without {', '.join(missing)}; to have them the user starts it {' and '.join(flags)}."
