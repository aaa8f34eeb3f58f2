"""One job at a time, progress that only grows, and an end within one batch of a cancel."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from discovery.errors import Interrupted
from mcp_server.errors import BusyError
from mcp_server.session import devices
from mcp_server.session.devices import DeviceJob, DeviceQueues

pytestmark = pytest.mark.anyio


def test_progress_of_several_pieces_only_grows() -> None:
    work = DeviceJob()
    seen: list[tuple[float, float]] = []
    for done, total, label in (
        (0, 10, "a"),
        (4, 10, "a"),
        (10, 10, "a"),
        (0, 5, "b"),
        (5, 5, "b"),
        (0, 3, "b"),
        (3, 3, "b"),
    ):
        work(done, total, label)
        seen.append(work.progress[:2])
    assert seen[-1] == (18, 18)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(done <= total for done, total in seen)


def test_a_stopped_job_is_told_at_its_next_batch() -> None:
    work = DeviceJob()
    work(1, 2, "a")
    work.stop()
    with pytest.raises(Interrupted):
        work(2, 2, "a")


async def test_a_cancelled_call_frees_its_device_within_a_batch() -> None:
    queue, batches = DeviceQueues(), 0

    def endless(work: DeviceJob) -> None:
        nonlocal batches
        while True:
            time.sleep(0.05)
            batches += 1
            work(batches, 1000, "sweep")

    with anyio.move_on_after(0.5) as scope:
        await queue.run(None, "cpu", "sweep", endless)
    assert scope.cancelled_caught
    before = batches
    assert await queue.run(None, "cpu", "next", lambda work: "done") == "done"
    assert batches == before  # nothing of the stopped job ran after it


async def test_one_job_at_a_time_on_a_device_and_others_beside_it() -> None:
    queue = DeviceQueues()
    running, most = 0, 0
    guard = threading.Lock()

    def job(work: DeviceJob) -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with guard:
            running -= 1

    async with anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(queue.run, None, "cpu", "job", job)
    assert most == 1
    both = threading.Barrier(2, timeout=5)
    async with anyio.create_task_group() as group:
        for device in ("cuda:0", "cuda:1"):
            group.start_soon(queue.run, None, device, "job", lambda work: both.wait() and None)


async def test_faults_come_out_as_they_are() -> None:
    def faulty(work: DeviceJob) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await DeviceQueues().run(None, "cpu", "job", faulty)


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MAX_WAITING_CALLS", 0)
    with pytest.raises(BusyError, match="wait for cpu"):
        await DeviceQueues().run(None, "cpu", "job", lambda work: None)


async def test_the_end_of_the_server_stops_what_waits() -> None:
    queue = DeviceQueues()
    queue.closing.set()
    with pytest.raises(Interrupted):
        await queue.run(None, "cpu", "job", lambda work: None)
