"""Discovery through the tools: waiting or not, stopping, and resuming, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from discovery.errors import StoreError
from discovery.store import open_run
from tests.mcp_server.servers import (
    HELLO,
    INDUCTION_CIRCUIT,
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    connect_over_stdio,
    exchange,
    make_server,
    server_environment,
    wait_for_run,
)

pytestmark = pytest.mark.anyio


def nodes_of(result: dict[str, Any]) -> set[str]:
    return {node["id"] for node in result["nodes"]}


async def test_waiting_for_the_end(models: Path, runs_dir: Path) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        reported: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            reported.append(done)

        call_result = await client.call_tool(
            "discover_circuit",
            {"model_id": "induction", "task": INDUCTION_TASK, "wait_seconds": 200},
            progress_callback=progress,
        )
        result = call_result.structured_content
        assert result is not None
        assert (result["status"], result["verdict"], nodes_of(result)) == (
            "completed",
            "verified",
            INDUCTION_CIRCUIT,
        )
        assert len(reported) > 2
        assert reported == sorted(reported)
        assert len(json.dumps(result)) <= 10_000

        await check_circuit(client, result["run_id"], models)
        await check_completed_run(client, result["run_id"])


async def check_circuit(client: Client, run_id: str, models: Path) -> None:
    """The circuit, its links and its record belong together."""
    circuit = await call_tool_ok(client, "get_circuit", run_id=run_id)
    assert nodes_of(circuit) == INDUCTION_CIRCUIT
    assert {condition["resample"] for condition in circuit["conditions"]} == {"holds"}
    assert len(json.dumps(circuit)) <= 10_000
    detailed = await call_tool_ok(client, "get_circuit", run_id=run_id, detail="detailed")
    assert len(json.dumps(detailed)) <= 40_000
    for uri in circuit["links"]:
        assert (await client.read_resource(uri)).contents
    [record] = (await client.read_resource(f"scout://runs/{run_id}/circuit.json")).contents
    assert json.loads(record.text)["graph"]["verdict"] == "verified"
    assert str(models) not in json.dumps(circuit)


async def check_completed_run(client: Client, run_id: str) -> None:
    """A call that resumes a completed run only shows it."""
    again = await call_tool_ok(client, "discover_circuit", run_id=run_id)
    assert (again["status"], again["verdict"]) == ("completed", "verified")
    assert again["notes"] == []
    more = await call_tool_ok(
        client,
        "discover_circuit",
        run_id=run_id,
        model_id="induction",
        task="ioi",
        time_limit="5 min",
    )
    assert more["notes"] == [
        "Ignored, because a resumed run keeps its own arguments: model_id, task, time_limit."
    ]
    assert "has no budget" in await call_tool_error(
        client, "discover_circuit", run_id=run_id, budget=5
    )
    listed = await call_tool_ok(client, "list_runs", status="completed")
    assert [run["run_id"] for run in listed["runs"]] == [run_id]


async def test_not_waiting_then_stopping_then_going_on(models: Path, runs_dir: Path) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        started = await call_tool_ok(
            client, "discover_circuit", model_id="induction", task=INDUCTION_TASK, wait_seconds=0
        )
        run_id = started["run_id"]
        assert started["status"] == "running"
        assert "neither a circuit nor a ranking yet" in await call_tool_error(
            client, "get_circuit", run_id=run_id
        )
        start = time.monotonic()
        stopped = await call_tool_ok(client, "cancel_run", run_id=run_id)
        assert stopped["status"] == "interrupted"
        assert time.monotonic() - start < 10
        assert run_id in stopped["next"]
        # the device is free again
        await call_tool_ok(client, "check_task", model_id="induction", task=INDUCTION_TASK, pairs=4)
    async with Client(make_server(models, runs_dir)) as later:  # a restart
        totals: list[float | None] = []

        async def note_total(done: float, total: float | None, message: str | None) -> None:
            totals.append(total)

        arguments = {"run_id": run_id, "wait_seconds": 200}
        call_result = await later.call_tool(
            "discover_circuit", arguments, progress_callback=note_total
        )
        result = call_result.structured_content or {}
        assert (result["status"], nodes_of(result)) == ("completed", INDUCTION_CIRCUIT)
        assert any(totals), "a resumed run has a total too"


@pytest.mark.slow
async def test_a_cancelled_wait_leaves_the_run_at_work(models: Path, runs_dir: Path) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        with anyio.move_on_after(1.0):
            await client.call_tool(
                "discover_circuit",
                {"model_id": "induction", "task": INDUCTION_TASK, "wait_seconds": 100},
            )
        [run] = (await call_tool_ok(client, "list_runs"))["runs"]
        state = await wait_for_run(client, run["run_id"])
        assert (state["status"], state["verdict"]) == ("completed", "verified")


@pytest.mark.slow
async def test_a_killed_server_leaves_a_run_that_goes_on(models: Path, runs_dir: Path) -> None:
    words = [sys.executable, "-m", "mcp_server", "serve", "--models-dir", str(models)]
    process = subprocess.Popen(
        words,
        env=server_environment(runs_dir),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    tool_calls = [
        ("load_model", {"model": "induction"}),
        ("discover_circuit", {"model_id": "induction", "task": INDUCTION_TASK, "wait_seconds": 0}),
    ]
    messages = [
        {"id": 0, "method": "initialize", "params": HELLO},
        {"method": "notifications/initialized"},
        *(
            {
                "id": number,
                "method": "tools/call",
                "params": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(tool_calls, start=1)
        ),
    ]
    try:
        *_, answer = exchange(process.stdin, process.stdout, *messages)
        run_id = answer["result"]["structuredContent"]["run_id"]
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert open_run(runs_dir, run_id).status == "interrupted"
    async with Client(make_server(models, runs_dir)) as client:
        result = await call_tool_ok(client, "discover_circuit", run_id=run_id, wait_seconds=200)
        assert (result["verdict"], nodes_of(result)) == ("verified", INDUCTION_CIRCUIT)


@pytest.mark.slow
async def test_a_run_of_another_process_is_not_touched(models: Path, runs_dir: Path) -> None:
    async with connect_over_stdio(models, runs_dir) as other:
        await call_tool_ok(other, "load_model", model="induction")
        started = await call_tool_ok(
            other, "discover_circuit", model_id="induction", task=INDUCTION_TASK, wait_seconds=0
        )
        async with Client(make_server(models, runs_dir)) as client:
            if (await call_tool_ok(client, "run_status", run_id=started["run_id"]))[
                "status"
            ] == "running":
                assert "is being written by process" in await call_tool_error(
                    client, "discover_circuit", run_id=started["run_id"]
                )
                assert "another process" in await call_tool_error(
                    client, "cancel_run", run_id=started["run_id"]
                )
        await call_tool_ok(other, "cancel_run", run_id=started["run_id"])


async def test_a_dry_run_says_what_a_budget_buys(models: Path, runs_dir: Path) -> None:
    """Work and time by stage; nothing is kept."""
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        arguments = {"model_id": "induction", "task": INDUCTION_TASK, "dry_run": True}
        whole = await call_tool_ok(client, "discover_circuit", **arguments)
        assert (whole["status"], whole["run_id"]) == ("estimated", None)
        estimate = whole["estimate"]
        assert estimate["reaches_verdict"]
        assert estimate["seconds"] == pytest.approx(
            estimate["forward_equivalents"] / estimate["rate"], rel=0.01
        )
        assert [share for _, _, share in estimate["stages"].values()] == [None] * 10
        small = await call_tool_ok(client, "discover_circuit", **arguments, budget=1500)
        assert not small["estimate"]["reaches_verdict"]
        assert "cannot reach a verdict: about" in small["notes"][-1]
        timed = await call_tool_ok(client, "discover_circuit", **arguments, time_limit="1 s")
        assert timed["notes"][0].startswith("1 seconds buy about")
        assert sum(share for _, _, share in timed["estimate"]["stages"].values()) > 0
        assert "time_limit is 'soon'" in await call_tool_error(
            client, "discover_circuit", **arguments, time_limit="soon"
        )
        assert (await call_tool_ok(client, "list_runs"))["total"] == 0


@pytest.mark.slow
async def test_a_small_budget_shows_a_ranking_and_can_be_raised(
    models: Path, runs_dir: Path
) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        ended = await call_tool_ok(
            client,
            "discover_circuit",
            model_id="induction",
            task=INDUCTION_TASK,
            budget=4000,
            wait_seconds=200,
        )
        run_id = ended["run_id"]
        assert (ended["status"], ended["verdict"]) == ("completed", "inconclusive")
        circuit = await call_tool_ok(client, "get_circuit", run_id=run_id)
        assert circuit["nodes"] or circuit["ranking"]
        assert "no larger" in await call_tool_error(
            client, "discover_circuit", run_id=run_id, budget=4000
        )
        raised = await call_tool_ok(
            client, "discover_circuit", run_id=run_id, budget=1e6, wait_seconds=200
        )
        assert (raised["verdict"], nodes_of(raised)) == ("verified", INDUCTION_CIRCUIT)


async def test_what_is_missing_is_said(client: Client) -> None:
    assert "needs task" in await call_tool_error(client, "discover_circuit", model_id="induction")
    assert "needs model_id" in await call_tool_error(client, "discover_circuit", task="ioi")
    assert "There is no run" in await call_tool_error(
        client, "discover_circuit", run_id="ioi-nobody-20260101-000000-0000"
    )
    assert "cannot be the id of a run" in await call_tool_error(
        client, "run_status", run_id="../../etc"
    )


async def test_of_many_resumes_at_once_one_goes_on(models: Path, runs_dir: Path) -> None:
    server = make_server(models, runs_dir)
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="induction")
        started = await call_tool_ok(
            client, "discover_circuit", model_id="induction", task=INDUCTION_TASK, wait_seconds=0
        )
        await call_tool_ok(client, "cancel_run", run_id=started["run_id"])
    runs, resumed = server.session.runs, []
    threads = [
        threading.Thread(target=lambda: resumed.append(runs.resume(started["run_id"])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with pytest.raises(StoreError, match="is being written by process"):
        open_run(
            runs_dir, started["run_id"], write=True
        )  # held as soon as it is resumed, not when the model has been loaded
    assert len({id(run) for run in resumed}) == 1
    assert runs.find(started["run_id"]) is resumed[0]
    resumed[0].job.stop()
    assert resumed[0].end_event.wait(60)
    assert runs.find(started["run_id"]) is None
    assert open_run(runs_dir, started["run_id"]).status == "interrupted"
