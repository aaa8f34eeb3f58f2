"""One job at a time, progress that only grows, and an end within one batch of a cancel."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from discovery.errors import Interrupted
from discovery.progress import Progress
from mcp_server.errors import BusyError
from mcp_server.session import devices
from mcp_server.session.devices import DeviceJob, DeviceQueues

pytestmark = pytest.mark.anyio


def test_progress_of_several_pieces_only_grows() -> None:
    job = DeviceJob()
    reported: list[tuple[float, float]] = []
    for done, total, label in (
        (0, 10, "a"),
        (4, 10, "a"),
        (10, 10, "a"),
        (0, 5, "b"),
        (5, 5, "b"),
        (0, 3, "b"),
        (3, 3, "b"),
    ):
        job(done, total, label)
        reported.append((job.progress.done, job.progress.total))
    assert reported[-1] == (18, 18)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert all(done <= total for done, total in reported)


def test_the_share_that_is_done_never_shrinks() -> None:
    """Even if the job takes more work than was expected of it."""
    job = DeviceJob()
    job.expect(100.0)
    shares = [0.0]
    steps = (("a", (0, 10, 20)), ("b", (0, 5)), ("b", (0, 40)), ("c", (0, 30, 60, 90)))
    for step, amounts in steps:
        for done in amounts:
            job(done, 2 * done, step)
            shares.append(job.progress.done / job.progress.total)
    assert shares == sorted(shares)
    assert shares[3] == 0.2
    assert (job.progress.done, job.progress.total) == (155.0, 155.0)
    assert job.progress.estimated_total == 155.0


def test_the_status_of_a_remote_model_begins_no_new_step() -> None:
    """Otherwise each change of its status would count the work of the step once more."""
    job = DeviceJob()
    for done, waiting_for in ((0, "NDIF: queued"), (0, None), (4, "NDIF: running"), (4, None)):
        job.update(Progress(step="sweep", done=done, total=10, waiting_for=waiting_for))
    assert (job.progress.done, job.progress.total) == (4, 10)
    job.update(Progress(step="sweep", done=6, total=10, waiting_for="NDIF: running"))
    assert job.progress.label == "sweep · NDIF: running"


def test_a_stopped_job_is_told_at_its_next_batch() -> None:
    job = DeviceJob()
    job(1, 2, "a")
    job.stop()
    with pytest.raises(Interrupted):
        job(2, 2, "a")


async def test_a_cancelled_call_frees_its_device_within_a_batch() -> None:
    queue, batches = DeviceQueues(), 0

    def endless(job: DeviceJob) -> None:
        nonlocal batches
        while True:
            time.sleep(0.05)
            batches += 1
            job(batches, 1000, "sweep")

    with anyio.move_on_after(0.5) as scope:
        await queue.run(None, "cpu", "sweep", endless)
    assert scope.cancelled_caught
    before = batches
    assert await queue.run(None, "cpu", "next", lambda job: "done") == "done"
    assert batches == before  # nothing of the stopped job ran after it


async def test_one_job_at_a_time_on_a_device_and_others_beside_it() -> None:
    queue = DeviceQueues()
    running, max_running = 0, 0
    guard = threading.Lock()

    def job(device_job: DeviceJob) -> None:
        nonlocal running, max_running
        with guard:
            running += 1
            max_running = max(max_running, running)
        time.sleep(0.02)
        with guard:
            running -= 1

    async with anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(queue.run, None, "cpu", "job", job)
    assert max_running == 1
    barrier = threading.Barrier(2, timeout=5)
    async with anyio.create_task_group() as group:
        for device in ("cuda:0", "cuda:1"):
            group.start_soon(
                queue.run, None, device, "job", lambda device_job: barrier.wait() and None
            )


async def test_faults_come_out_as_they_are() -> None:
    def faulty(job: DeviceJob) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await DeviceQueues().run(None, "cpu", "job", faulty)


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "MAX_WAITING_CALLS", 0)
    with pytest.raises(BusyError, match="wait for cpu"):
        await DeviceQueues().run(None, "cpu", "job", lambda job: None)


async def test_the_end_of_the_server_stops_what_waits() -> None:
    queue = DeviceQueues()
    queue.closing.set()
    with pytest.raises(Interrupted):
        await queue.run(None, "cpu", "job", lambda job: None)
