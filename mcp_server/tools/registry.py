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

from mcp_server.session.settings import TOOLSETS, ServerSettings, Toolset
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
from mcp_server.tools.schema import close_schema

__all__ = ["TOOL_SPECS", "ToolSpec", "build_tools", "describe_missing_tools"]


@dataclass(frozen=True)
class ToolSpec:
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
    is_read_only: bool = True
    is_destructive: bool = False
    is_idempotent: bool = True
    is_open_world: bool = False
    needs_write_access: bool = False

    def build_tool(self) -> Tool:
        """The tool as the SDK has it, refusing arguments that it does not know."""
        hints = ToolAnnotations(
            title=self.title,
            read_only_hint=self.is_read_only,
            destructive_hint=self.is_destructive,
            idempotent_hint=self.is_idempotent,
            open_world_hint=self.is_open_world,
        )
        description = inspect.cleandoc(self.function.__doc__ or "")
        return close_schema(
            Tool.from_function(
                self.function, title=self.title, description=description, annotations=hints
            )
        )


TOOL_SPECS: tuple[ToolSpec, ...] = (
    ToolSpec(
        load_model.load_model, "Load a model", "models", is_read_only=False, is_open_world=True
    ),
    ToolSpec(load_model.list_models, "List models", "models"),
    ToolSpec(load_model.unload_model, "Unload a model", "models", is_read_only=False),
    ToolSpec(check_task.check_task, "Does the model do the task?", "measure"),
    ToolSpec(run_with_cache.run_with_cache, "Look into one prompt", "measure"),
    ToolSpec(patch_sweep.patch_sweep, "Activation patching sweep", "measure"),
    ToolSpec(ablate_heads.ablate_heads, "Ablate heads and MLPs", "measure"),
    ToolSpec(
        sae_top_features.sae_top_features, "Top features of an SAE", "features", is_open_world=True
    ),
    ToolSpec(
        edit_features.edit_features, "Change features of an SAE", "features", is_open_world=True
    ),
    ToolSpec(sae_examples.sae_examples, "Where features fire", "features", is_open_world=True),
    ToolSpec(
        circuit_features.circuit_features,
        "Features beside a circuit",
        "features",
        is_read_only=False,
        is_open_world=True,
        needs_write_access=True,
    ),
    ToolSpec(
        train_sae.train_sae,
        "Train an SAE",
        "features",
        is_read_only=False,
        is_idempotent=False,
        needs_write_access=True,
    ),
    ToolSpec(
        evaluate_circuit.evaluate_circuit, "Evaluate a circuit", "circuits", is_read_only=False
    ),
    ToolSpec(
        discover_circuit.discover_circuit,
        "Discover a circuit",
        "circuits",
        is_read_only=False,
        is_idempotent=False,
        needs_write_access=True,
    ),
    ToolSpec(run_status.run_status, "How far is a run?", "runs"),
    ToolSpec(
        run_status.cancel_run, "Stop a run", "runs", is_read_only=False, needs_write_access=True
    ),
    ToolSpec(run_status.get_circuit, "The circuit of a run", "runs"),
    ToolSpec(list_runs.list_runs, "List runs", "runs"),
)


def build_tools(settings: ServerSettings) -> list[Tool]:
    """The tools that these settings switch on, in a fixed order: models always, and the runs with what starts one."""
    starts = {"circuits", "features"} & set(settings.toolsets)
    on = {"models", *settings.toolsets, *(("runs",) if starts else ())}
    return [
        offer.build_tool()
        for offer in TOOL_SPECS
        if offer.toolset in on and not (settings.read_only and offer.needs_write_access)
    ]


def describe_missing_tools(settings: ServerSettings) -> str:
    """Which tools these settings leave out, and how the user would have them; nothing where there are all."""
    here = {tool.name for tool in build_tools(settings)}
    missing = [
        offer.function.__name__ for offer in TOOL_SPECS if offer.function.__name__ not in here
    ]
    if not missing:
        return ""
    flags = ["without --read-only"] if settings.read_only else []
    flags += ["with --toolsets all"] if set(settings.toolsets) != set(TOOLSETS) else []
    return f"This server was started without {', '.join(missing)}; to have them the user starts it {' and '.join(flags)}."
