"""After a job its memory is back, whether the job ended, failed or was cancelled."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp import Client

from discovery.backends.hardware.memory import read_resident_memory
from discovery.errors import MeasurementError
from discovery.progress import Progress
from mcp_server.server.server import CircuitScoutServer
from mcp_server.session.devices import DeviceJob
from tests.mcp_server.servers import call_tool_error, call_tool_ok

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MAX_GROWTH = 100 * 2**20
SWEEP: dict[str, Any] = {"model_id": "bundled", "task": "ioi", "site": "head_out_by_position"}


@pytest.mark.parametrize("seconds", [3.0, 6.0])
async def test_a_cancelled_sweep_gives_its_memory_back(
    server: CircuitScoutServer, seconds: float
) -> None:
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        await call_tool_ok(client, "patch_sweep", **SWEEP, pairs=8)
        await cancel_sweep(client, 15.0)  # draws the pairs, which are kept
        before = read_resident_memory()
        for _ in range(3):
            await cancel_sweep(client, seconds)
            assert read_resident_memory() - before < MAX_GROWTH


async def cancel_sweep(client: Client, seconds: float) -> None:
    """Cancel a sweep that takes minutes, and wait until the device is free."""
    with anyio.move_on_after(seconds) as scope:
        await client.call_tool("patch_sweep", {**SWEEP, "pairs": 2000})
    assert scope.cancelled_caught
    await call_tool_ok(client, "run_with_cache", model_id="bundled", prompt="When Anna and John")


@pytest.mark.parametrize("error", [MeasurementError("broken", "mend it"), RuntimeError("a bug")])
async def test_a_failed_sweep_gives_its_memory_back(
    error: Exception, server: CircuitScoutServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the error is a bug, of which the log has the traceback."""
    update = DeviceJob.update
    updates = 0

    def fail_after_some_batches(job: DeviceJob, progress: Progress) -> None:
        nonlocal updates
        updates += 1
        if updates > 40:
            raise error
        update(job, progress)

    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        await call_tool_ok(client, "patch_sweep", **SWEEP, pairs=8)
        await cancel_sweep(client, 15.0)  # draws the pairs, which are kept
        before = read_resident_memory()
        with monkeypatch.context() as patched:
            patched.setattr(DeviceJob, "update", fail_after_some_batches)
            for _ in range(3):
                updates = 0
                await call_tool_error(client, "patch_sweep", **SWEEP, pairs=2000)
                assert updates > 40
                assert read_resident_memory() - before < MAX_GROWTH


async def test_a_completed_sweep_gives_its_memory_back(server: CircuitScoutServer) -> None:
    sweep = SWEEP | {"site": "resid_pre"}
    async with Client(server) as client:
        await call_tool_ok(client, "load_model", model="bundled")
        await call_tool_ok(client, "patch_sweep", **sweep, pairs=8)
        before = read_resident_memory()
        for seed in range(2):
            await call_tool_ok(client, "patch_sweep", **sweep, pairs=1000, seed=seed)
            assert read_resident_memory() - before < MAX_GROWTH
