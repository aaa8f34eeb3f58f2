"""Prompts that a user picks. Each sets an assistant to work, with the tools by name."""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver import MCPServer
from pydantic import Field

from discovery.backends.loading.source import BUNDLED
from discovery.tasks import BUILTIN
from mcp_server.session import Session

BehaviourText = Annotated[
    str,
    Field(description=f"What the model does, in words, or a built-in task: {', '.join(BUILTIN)}."),
]
HeadName = Annotated[str, Field(description="A head, as a9.h6 or L9H6.")]
ClaimText = Annotated[
    str, Field(description="What is claimed, e.g. 'heads a5.h5 and a6.h9 do induction'.")
]
ModelName = Annotated[
    str, Field(description="bundled, a model directory, a GGUF file, or a hub name.")
]
TaskChoice = Annotated[
    str, Field(description="Built-in task or task file that shows the behaviour.")
]

_REPORTING_RULES = (
    "Quote verdicts and intervals as the tools give them. Say what would have falsified the claim, "
    "and what was not tested. If the pairs or the behaviour are unclear in a way that changes the "
    "answer, ask me first."
)


def add_prompts(server: MCPServer[Session], missing_tools: str = "") -> None:
    """Add the prompts to a server.

    Args:
        server: the server.
        missing_tools: what to say about tools that are switched off; empty if all are there.
    """
    rules = f"{_REPORTING_RULES} {missing_tools}".strip()
    _add_find_circuit(server, rules)
    _add_what_does_this_head_do(server, rules)
    _add_validate_claim(server, rules)


def _add_find_circuit(server: MCPServer[Session], rules: str) -> None:
    @server.prompt(title="Find the circuit behind a behaviour")
    def find_circuit(behaviour: BehaviourText, model: ModelName = BUNDLED) -> str:
        """From a question to a circuit with a verdict."""
        return f"""Find the circuit behind this behaviour of the model {model}: {behaviour}

Read the resource scout://skills/find-circuit and follow it:
1. State the hypothesis and what would falsify it.
2. load_model(model="{model}"). Use a built-in task if one fits; otherwise write at least 96
   prompt pairs in three or more templates.
3. check_task. If behaviour is false, stop and say why, or correct the pairs.
4. discover_circuit; poll run_status while it runs; then get_circuit.
5. Read the verdict with its reasons, consider alternatives, and write up.
{rules}"""


def _add_what_does_this_head_do(server: MCPServer[Session], rules: str) -> None:
    @server.prompt(title="What does this head do?")
    def what_does_this_head_do(
        head: HeadName, task: TaskChoice = "ioi", model: ModelName = BUNDLED
    ) -> str:
        """Measure what one attention head contributes, and at which positions."""
        return f"""What does the head {head} of the model {model} do on the task {task}?

1. load_model(model="{model}") gives the model_id; then check_task(model_id="{model}",
   task="{task}").
2. interpret_head(model_id="{model}", node="{head}", task="{task}"): only what is in `known` is
   an answer.
3. patch_sweep site=head_out_by_position: at which positions? Then q, k, v and pattern: through
   which input? A cell of k or v named as a23.kv1 belongs to all its query_heads, not to {head}
   alone.
4. Go on as the resource scout://skills/interpret-head says.
Say what is measured and what is conjecture; attention alone proves nothing. {rules}"""


def _add_validate_claim(server: MCPServer[Session], rules: str) -> None:
    @server.prompt(title="Validate a claim about a circuit")
    def validate_claim(
        claim: ClaimText, task: TaskChoice = "ioi", model: ModelName = BUNDLED
    ) -> str:
        """Put a claimed circuit to the test, on pairs that it was not made from."""
        return f"""Test this claim about the model {model}, on the task {task}: {claim}

1. Write down which nodes the claim names, and which result would refute it, before measuring.
2. load_model(model="{model}") gives the model_id; then check_task(model_id="{model}",
   task="{task}", pairs=200).
3. ablate_heads with these nodes, per_node=true, controls=20, under resample and under mean.
4. evaluate_circuit with these nodes, pairs=200, final=true, once: the held-out pairs are an
   honest test only the first time.
5. Compare with what discover_circuit finds without knowing the claim.
Downgrade the claim if a condition fails or is undecided. {rules}"""
