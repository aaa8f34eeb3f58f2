"""The tools, and which of them a server offers.

A tool is a function. Its signature is its input schema, and its docstring is written to the
assistant. It measures through `discovery` and shapes the result; it does no mathematics of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mcp.server.mcpserver.tools import Tool
from mcp.types import ToolAnnotations

from mcp_server.session.settings import TOOLSETS, ServerSettings, Toolset
from mcp_server.tools.circuits.discover_circuit import discover_circuit
from mcp_server.tools.circuits.evaluate_circuit import evaluate_circuit
from mcp_server.tools.features.circuit_features import circuit_features
from mcp_server.tools.features.edit_features import edit_features
from mcp_server.tools.features.sae_examples import sae_examples
from mcp_server.tools.features.sae_top_features import sae_top_features
from mcp_server.tools.features.train_sae import train_sae
from mcp_server.tools.measure.ablate_heads import ablate_heads
from mcp_server.tools.measure.check_task import check_task
from mcp_server.tools.measure.patch_sweep import patch_sweep
from mcp_server.tools.measure.run_with_cache import run_with_cache
from mcp_server.tools.models.list_models import list_models
from mcp_server.tools.models.load_model import load_model
from mcp_server.tools.models.unload_model import unload_model
from mcp_server.tools.runs.cancel_run import cancel_run
from mcp_server.tools.runs.get_circuit import get_circuit
from mcp_server.tools.runs.list_runs import list_runs
from mcp_server.tools.runs.run_status import run_status
from mcp_server.tools.schema import close_schema
from mcp_server.tools.techniques.attention_patterns import attention_patterns
from mcp_server.tools.techniques.direct_logit_attribution import direct_logit_attribution
from mcp_server.tools.techniques.head_kinds import head_kinds
from mcp_server.tools.techniques.head_weights import head_weights
from mcp_server.tools.techniques.interpret_head import interpret_head
from mcp_server.tools.techniques.logit_lens import logit_lens
from mcp_server.tools.techniques.probe import probe
from mcp_server.tools.techniques.run_with_edits import run_with_edits

__all__ = ["TOOL_SPECS", "ToolSpec", "build_tools", "describe_missing_tools"]


@dataclass(frozen=True, kw_only=True)
class ToolSpec:
    """A tool, and what clients are told about it.

    Attributes:
        function: the tool itself; its name is the tool's name.
        title: the name that people see.
        toolset: the group with which it is switched on and off.
        is_read_only: it changes nothing outside this server's memory.
        is_destructive: it takes something away that another call does not bring back.
        is_idempotent: the same call again changes nothing more.
        is_open_world: it may reach beyond this machine.
        needs_write_access: a read-only server does not offer it.
    """

    function: Callable[..., Awaitable[Any]]
    title: str
    toolset: Toolset
    is_read_only: bool = True
    is_destructive: bool = False
    is_idempotent: bool = True
    is_open_world: bool = False
    needs_write_access: bool = False

    @property
    def name(self) -> str:
        """The name of the tool."""
        return self.function.__name__

    def build_tool(self) -> Tool:
        """Return the tool as the SDK has it; it refuses arguments that it does not know."""
        hints = ToolAnnotations(
            title=self.title,
            read_only_hint=self.is_read_only,
            destructive_hint=self.is_destructive,
            idempotent_hint=self.is_idempotent,
            open_world_hint=self.is_open_world,
        )
        tool = Tool.from_function(
            self.function,
            title=self.title,
            description=inspect.cleandoc(self.function.__doc__ or ""),
            annotations=hints,
        )
        return close_schema(tool)


TOOL_SPECS: tuple[ToolSpec, ...] = (
    ToolSpec(
        function=load_model,
        title="Load a model",
        toolset="models",
        is_read_only=False,
        is_open_world=True,
    ),
    ToolSpec(function=list_models, title="List models", toolset="models"),
    ToolSpec(function=unload_model, title="Unload a model", toolset="models", is_read_only=False),
    ToolSpec(function=check_task, title="Does the model do the task?", toolset="measure"),
    ToolSpec(function=run_with_cache, title="Look into one prompt", toolset="measure"),
    ToolSpec(function=patch_sweep, title="Activation patching sweep", toolset="measure"),
    ToolSpec(function=ablate_heads, title="Ablate heads and MLPs", toolset="measure"),
    ToolSpec(function=logit_lens, title="Where the answer appears", toolset="techniques"),
    ToolSpec(
        function=direct_logit_attribution, title="Who writes the answer", toolset="techniques"
    ),
    ToolSpec(function=run_with_edits, title="Run with edits", toolset="techniques"),
    ToolSpec(function=attention_patterns, title="Where heads look", toolset="techniques"),
    ToolSpec(function=head_kinds, title="Which kinds of heads", toolset="techniques"),
    ToolSpec(function=head_weights, title="What a head's weights do", toolset="techniques"),
    ToolSpec(function=interpret_head, title="What does this head do?", toolset="techniques"),
    ToolSpec(function=probe, title="What can be read where", toolset="techniques"),
    ToolSpec(
        function=sae_top_features,
        title="Top features of an SAE",
        toolset="features",
        is_open_world=True,
    ),
    ToolSpec(
        function=edit_features,
        title="Change features of an SAE",
        toolset="features",
        is_open_world=True,
    ),
    ToolSpec(
        function=sae_examples, title="Where features fire", toolset="features", is_open_world=True
    ),
    ToolSpec(
        function=circuit_features,
        title="Features beside a circuit",
        toolset="features",
        is_read_only=False,
        is_open_world=True,
        needs_write_access=True,
    ),
    ToolSpec(
        function=train_sae,
        title="Train an SAE",
        toolset="features",
        is_read_only=False,
        is_idempotent=False,
        needs_write_access=True,
    ),
    ToolSpec(
        function=evaluate_circuit,
        title="Evaluate a circuit",
        toolset="circuits",
        is_read_only=False,
    ),
    ToolSpec(
        function=discover_circuit,
        title="Discover a circuit",
        toolset="circuits",
        is_read_only=False,
        is_idempotent=False,
        needs_write_access=True,
    ),
    ToolSpec(function=run_status, title="How far is a run?", toolset="runs"),
    ToolSpec(
        function=cancel_run,
        title="Stop a run",
        toolset="runs",
        is_read_only=False,
        needs_write_access=True,
    ),
    ToolSpec(function=get_circuit, title="The circuit of a run", toolset="runs"),
    ToolSpec(function=list_runs, title="List runs", toolset="runs"),
)


def build_tools(settings: ServerSettings) -> list[Tool]:
    """Return the tools that these settings switch on, in a fixed order.

    The tools on models are always there. The tools on runs are there with any tool that starts one.
    """
    switched_on = {"models", *settings.toolsets}
    if {"circuits", "features"} & switched_on:
        switched_on.add("runs")
    return [
        spec.build_tool()
        for spec in TOOL_SPECS
        if spec.toolset in switched_on and not (settings.read_only and spec.needs_write_access)
    ]


def describe_missing_tools(settings: ServerSettings) -> str:
    """Return which tools these settings leave out, and how the user can have them.

    The text is empty if no tool is left out.
    """
    offered = {tool.name for tool in build_tools(settings)}
    missing = [spec.name for spec in TOOL_SPECS if spec.name not in offered]
    if not missing:
        return ""
    changes = []
    if settings.read_only:
        changes.append("without --read-only")
    if set(settings.toolsets) != set(TOOLSETS):
        changes.append("with --toolsets all")
    return (
        f"This server was started without {', '.join(missing)}; to have them the user starts it "
        f"{' and '.join(changes)}."
    )
