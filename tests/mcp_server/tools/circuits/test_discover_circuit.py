"""Discovery through the tools: waiting or not, stopping, going on, after a kill too."""

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
    INDUCTION_CIRCUIT,
    INDUCTION_TASK,
    call_tool_error,
    call_tool_ok,
    connect_over_stdio,
    make_server,
    server_environment,
)

pytestmark = pytest.mark.anyio


async def wait_for_end(client: Client, run_id: str, seconds: float = 120) -> dict[str, Any]:
    """The run's state once it is not at work."""
    with anyio.fail_after(seconds):
        while (state := await call_tool_ok(client, "run_status", run_id=run_id))[
            "status"
        ] == "running":
            await anyio.sleep(0.2)
    return state


def nodes_of(found: dict[str, Any]) -> set[str]:
    return {node["id"] for node in found["nodes"]}


async def test_waiting_for_the_end(models: Path, runs_dir: Path) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        told: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(done)

        result = await client.call_tool(
            "discover_circuit",
            {"model_id": "induction", "task": INDUCTION_TASK, "wait_seconds": 200},
            progress_callback=progress,
        )
        found = result.structured_content
        assert found is not None
        assert (found["status"], found["verdict"], nodes_of(found)) == (
            "completed",
            "verified",
            INDUCTION_CIRCUIT,
        )
        assert len(told) > 2
        assert told == sorted(told)
        assert len(json.dumps(found)) <= 10_000

        circuit = await call_tool_ok(client, "get_circuit", run_id=found["run_id"])
        assert nodes_of(circuit) == INDUCTION_CIRCUIT
        assert {condition["resample"] for condition in circuit["conditions"]} == {"holds"}
        assert len(json.dumps(circuit)) <= 10_000
        assert (
            len(
                json.dumps(
                    await call_tool_ok(
                        client, "get_circuit", run_id=found["run_id"], detail="detailed"
                    )
                )
            )
            <= 40_000
        )
        for uri in circuit["links"]:
            assert (await client.read_resource(uri)).contents
        [record] = (
            await client.read_resource(f"scout://runs/{found['run_id']}/circuit.json")
        ).contents
        assert json.loads(record.text)["graph"]["verdict"] == "verified"
        assert str(models) not in json.dumps(circuit)

        again = await call_tool_ok(client, "discover_circuit", run_id=found["run_id"])
        assert (again["status"], again["verdict"]) == ("completed", "verified")
        assert again["notes"] == []
        more = await call_tool_ok(
            client,
            "discover_circuit",
            run_id=found["run_id"],
            model_id="induction",
            task="ioi",
            budget=5,
        )
        assert more["notes"] == [
            "Ignored, for a resumed run goes on as it was begun: model_id, task, budget."
        ]
        listed = await call_tool_ok(client, "list_runs", status="completed")
        assert [run["run_id"] for run in listed["runs"]] == [found["run_id"]]


async def test_not_waiting_then_stopping_then_going_on(models: Path, runs_dir: Path) -> None:
    async with Client(make_server(models, runs_dir)) as client:
        await call_tool_ok(client, "load_model", model="induction")
        begun = await call_tool_ok(
            client, "discover_circuit", model_id="induction", task=INDUCTION_TASK, wait_seconds=0
        )
        run_id = begun["run_id"]
        assert begun["status"] == "running"
        assert "has no circuit yet" in await call_tool_error(client, "get_circuit", run_id=run_id)
        began = time.monotonic()
        stopped = await call_tool_ok(client, "cancel_run", run_id=run_id)
        assert stopped["status"] == "interrupted"
        assert time.monotonic() - began < 10
        assert run_id in stopped["next"]
        # the device is free again
        await call_tool_ok(client, "check_task", model_id="induction", task=INDUCTION_TASK, pairs=4)
    async with Client(make_server(models, runs_dir)) as later:  # a restart
        totals: list[float | None] = []

        async def heard(done: float, total: float | None, message: str | None) -> None:
            totals.append(total)

        asked = {"run_id": run_id, "wait_seconds": 200}
        result = await later.call_tool("discover_circuit", asked, progress_callback=heard)
        done = result.structured_content or {}
        assert (done["status"], nodes_of(done)) == ("completed", INDUCTION_CIRCUIT)
        assert any(totals), "a run that goes on has a total too"


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
        state = await wait_for_end(client, run["run_id"])
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
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    calls: list[tuple[str, dict[str, Any]]] = [
        ("load_model", {"model": "induction"}),
        ("discover_circuit", {"model_id": "induction", "task": INDUCTION_TASK, "wait_seconds": 0}),
    ]
    lines: list[dict[str, Any]] = [
        {"id": 0, "method": "initialize", "params": hello},
        {"method": "notifications/initialized"},
    ]
    try:
        for line in lines:
            process.stdin.write(json.dumps({"jsonrpc": "2.0", **line}) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        for number, (name, arguments) in enumerate(calls, start=1):
            line = {
                "jsonrpc": "2.0",
                "id": number,
                "method": "tools/call",
                "params": {"name": name, "arguments": arguments},
            }
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            while True:
                answer = json.loads(process.stdout.readline())
                if answer.get("id") == number:
                    break
        run_id = answer["result"]["structuredContent"]["run_id"]
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert open_run(runs_dir, run_id).status == "interrupted"
    async with Client(make_server(models, runs_dir)) as client:
        done = await call_tool_ok(client, "discover_circuit", run_id=run_id, wait_seconds=200)
        assert (done["verdict"], nodes_of(done)) == ("verified", INDUCTION_CIRCUIT)


@pytest.mark.slow
async def test_a_run_of_another_process_is_not_touched(models: Path, runs_dir: Path) -> None:
    async with connect_over_stdio(models, runs_dir) as other:
        await call_tool_ok(other, "load_model", model="induction")
        begun = await call_tool_ok(
            other, "discover_circuit", model_id="induction", task=INDUCTION_TASK, wait_seconds=0
        )
        async with Client(make_server(models, runs_dir)) as client:
            if (await call_tool_ok(client, "run_status", run_id=begun["run_id"]))[
                "status"
            ] == "running":
                assert "is being written by process" in await call_tool_error(
                    client, "discover_circuit", run_id=begun["run_id"]
                )
                assert "another process" in await call_tool_error(
                    client, "cancel_run", run_id=begun["run_id"]
                )
        await call_tool_ok(other, "cancel_run", run_id=begun["run_id"])


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
        begun = await call_tool_ok(
            client, "discover_circuit", model_id="induction", task=INDUCTION_TASK, wait_seconds=0
        )
        await call_tool_ok(client, "cancel_run", run_id=begun["run_id"])
    runs, found = server.session.runs, []
    threads = [
        threading.Thread(target=lambda: found.append(runs.resume(begun["run_id"])))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    with pytest.raises(StoreError, match="is being written by process"):
        open_run(
            runs_dir, begun["run_id"], write=True
        )  # held at once, not when the model has been loaded
    for thread in threads:
        thread.join(60)
    assert len({id(made) for made in found}) == 1
    assert runs.find(begun["run_id"]) is found[0]
    found[0].job.stop()
    assert found[0].end_event.wait(60)
    assert runs.find(begun["run_id"]) is None
    assert open_run(runs_dir, begun["run_id"]).status == "interrupted"
