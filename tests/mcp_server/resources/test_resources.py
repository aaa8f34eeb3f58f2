"""What can be read without a tool: tasks, skills, runs, and what is missing."""

from __future__ import annotations

import json

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import PromptReference, ResourceTemplateReference

pytestmark = pytest.mark.anyio


async def read(client: Client, uri: str) -> str:
    [content] = (await client.read_resource(uri)).contents
    return str(content.text)


async def test_what_is_listed_can_be_read(client: Client) -> None:
    listed = (await client.list_resources()).resources
    assert {"scout://runs", "scout://tasks/ioi", "scout://skills/find-circuit"} <= {str(resource.uri) for resource in listed}
    for resource in listed:
        assert await read(client, str(resource.uri))
        assert resource.description


async def test_the_templates_of_the_interface(client: Client) -> None:
    templates = {template.uri_template for template in (await client.list_resource_templates()).resource_templates}
    fixed = {f"scout://runs/{{run_id}}/{name}" for name in ("circuit.json", "run.json", "figures/{name}", "arrays/{name}")}
    assert fixed | {"scout://tasks/{name}"} <= templates


async def test_tasks_and_skills(client: Client) -> None:
    assert json.loads(await read(client, "scout://tasks/greater_than"))["metric"] == "probability_difference"
    assert "## 1. Question" in await read(client, "scout://skills/find-circuit")
    assert "# Pitfalls" in await read(client, "scout://skills/find-circuit/references/pitfalls.md")


@pytest.mark.parametrize(
    "uri",
    [
        "scout://tasks/nothing",
        "scout://skills/nothing",
        "scout://skills/find-circuit/references/no",
        "scout://results/x/grid.json",
        "scout://runs/x/run.json",
    ],
)
async def test_what_is_missing_is_said(client: Client, uri: str) -> None:
    with pytest.raises(MCPError, match="There is no"):
        await client.read_resource(uri)


async def test_completion_of_models(client: Client) -> None:

    models = await client.complete(PromptReference(name="find_circuit"), {"name": "model", "value": ""})
    assert {"bundled", "induction", "or_mlp"} <= set(models.completion.values)
    runs = await client.complete(ResourceTemplateReference(uri="scout://runs/{run_id}/run.json"), {"name": "run_id", "value": "zzz"})
    assert runs.completion.values == []
