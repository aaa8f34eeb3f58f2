"""What can be read without a tool: tasks, skills, runs, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import PromptReference, ResourceTemplateReference

from discovery.graph import Provenance
from discovery.store import ModelSource, create_run, open_run
from tests.discovery.graph.example import ioi_circuit
from tests.mcp_server.servers import call_tool_error, call_tool_ok, make_server

pytestmark = pytest.mark.anyio

RECORD = '{"schema": "circuit-scout/run/1", "run_id": "ID"}'
DOCUMENTS = ("run.json", "circuit.json", "report.html")


async def read(client: Client, uri: str) -> str:
    [content] = (await client.read_resource(uri)).contents
    return str(content.text)


async def test_what_is_listed_can_be_read(client: Client) -> None:
    listed = (await client.list_resources()).resources
    assert {"scout://runs", "scout://tasks/ioi", "scout://skills/find-circuit"} <= {
        str(resource.uri) for resource in listed
    }
    for resource in listed:
        assert await read(client, str(resource.uri))
        assert resource.description


async def test_the_templates_of_the_interface(client: Client) -> None:
    templates = {
        template.uri_template
        for template in (await client.list_resource_templates()).resource_templates
    }
    fixed = {
        f"scout://runs/{{run_id}}/{name}"
        for name in ("circuit.json", "run.json", "figures/{name}", "arrays/{name}")
    }
    assert fixed | {"scout://tasks/{name}"} <= templates


async def test_tasks_and_skills(client: Client) -> None:
    assert (
        json.loads(await read(client, "scout://tasks/greater_than"))["metric"]
        == "probability_difference"
    )
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

    models = await client.complete(
        PromptReference(name="find_circuit"), {"name": "model", "value": ""}
    )
    assert {"bundled", "induction", "or_mlp"} <= set(models.completion.values)
    runs = await client.complete(
        ResourceTemplateReference(uri="scout://runs/{run_id}/run.json"),
        {"name": "run_id", "value": "zzz"},
    )
    assert runs.completion.values == []


@pytest.fixture
def elsewhere(tmp_path: Path, runs_dir: Path) -> tuple[Path, str]:
    """A model outside every directory of the server, and a run of it."""
    model = tmp_path / "elsewhere" / "good & bad"
    command = f"circuit-scout discover '{model}/task.jsonl' --model '{model}'"
    load = {"model": str(model), "task": str(model / "task.jsonl")}
    with create_run(
        runs_dir,
        "toy",
        ModelSource(name=str(model)),
        {"load": load},
        provenance=Provenance(command=command),
    ) as run:
        circuit = ioi_circuit()
        run.save_circuit(
            circuit.model_copy(
                update={"model": circuit.model.model_copy(update={"name": str(model)})}
            )
        )
        run.save_report(f"<p>{model}</p><p>{str(model).replace('&', '&amp;')}/task.jsonl</p>")
        run.update(status="completed", problem=f"{model} is gone")
    return model, run.id


async def test_no_document_says_where_a_model_lies(
    models: Path, runs_dir: Path, elsewhere: tuple[Path, str]
) -> None:
    model, run_id = elsewhere
    async with Client(make_server(models, runs_dir, is_local=False)) as client:
        texts = {
            uri: await read(client, uri)
            for uri in ("scout://runs", *(f"scout://runs/{run_id}/{name}" for name in DOCUMENTS))
        }
        for name in ("run_status", "get_circuit"):
            texts[name] = json.dumps(await call_tool_ok(client, name, run_id=run_id))
    assert [
        uri for uri, text in texts.items() if str(model.parent) in text or str(runs_dir) in text
    ] == []
    assert json.loads(texts["scout://runs"])["runs"][0]["model"] == model.name
    assert (
        json.loads(texts[f"scout://runs/{run_id}/run.json"])["configuration"]["load"]["model"]
        == model.name
    )


async def test_a_run_of_a_model_elsewhere_does_not_go_on_here(
    models: Path, runs_dir: Path, elsewhere: tuple[Path, str]
) -> None:
    model, run_id = elsewhere
    with open_run(runs_dir, run_id, write=True) as run:
        run.update(status="interrupted")
    async with Client(make_server(models, runs_dir)) as client:
        message = await call_tool_error(client, "discover_circuit", run_id=run_id)
    assert "is in no directory that this server may read" in message
    assert str(model.parent) not in message


async def test_completion_of_pages_and_behaviours(client: Client) -> None:
    page = ResourceTemplateReference(uri="scout://skills/{name}/references/{page}")
    pages = await client.complete(page, {"name": "page", "value": ""}, {"name": "find-circuit"})
    assert pages.completion.values == ["features.md", "pitfalls.md", "technique.md"]
    for name in pages.completion.values:
        assert await read(client, f"scout://skills/find-circuit/references/{name}")
    assert (await client.complete(page, {"name": "page", "value": "te"})).completion.values == [
        "technique.md"
    ]
    assert (
        await client.complete(page, {"name": "page", "value": ""}, {"name": "nothing"})
    ).completion.values == []
    assert (await client.complete(page, {"name": "name", "value": ""})).completion.values == [
        "find-circuit",
        "interpret-head",
    ]
    behaviours = await client.complete(
        PromptReference(name="find_circuit"), {"name": "behaviour", "value": "i"}
    )
    assert behaviours.completion.values[:2] == ["ioi", "induction"]


async def test_no_link_leads_out_of_a_run(models: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    runs = tmp_path / "runs"
    for run_id, name in (("a", "circuit.json"), ("b", "report.html"), ("c", "run.json")):
        (runs / run_id).mkdir(parents=True)
        (runs / run_id / "run.json").write_text(RECORD.replace("ID", run_id))
        (runs / run_id / name).unlink(missing_ok=True)
        (runs / run_id / name).symlink_to(secret)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text(RECORD.replace("ID", "d"))
    (runs / "d").symlink_to(elsewhere)
    async with Client(make_server(models, runs)) as client:
        for uri in ("a/circuit.json", "b/report.html", "c/run.json", "d/run.json"):
            with pytest.raises(MCPError) as error:
                await client.read_resource(f"scout://runs/{uri}")
            assert "s3cret" not in str(error.value)
            assert "leads out" in str(error.value) or "damaged" in str(error.value)
