"""One job at a time, progress that only grows, and an end within one batch of a cancel."""

from __future__ import annotations

import gc
import statistics
import threading
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

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


class PacedRun:
    """A run whose batches are counted, and which computes one only when it may.

    Attributes:
        batches: the batches that were computed.
        ended: set at the end of the run.
    """

    def __init__(self, queues: DeviceQueues) -> None:
        self.batches = 0
        self.ended = threading.Event()
        self.job = queues.new_job()
        self._queues = queues
        self._permits = threading.Semaphore(0)
        self._began = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()
        assert self._began.wait(5)

    def allow_batch(self) -> None:
        self._permits.release()

    def _work(self) -> None:
        try:
            with self._queues.hold("cpu", "run", self.job, gives_way=True):
                self._began.set()
                while True:
                    assert self._permits.acquire(timeout=10)
                    self.batches += 1
                    self.job(self.batches, 1000, "sweep")
        except Interrupted:
            pass
        finally:
            self.ended.set()


async def wait_until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


async def test_a_call_waits_for_at_most_one_batch_of_a_run() -> None:
    queues = DeviceQueues()
    run = PacedRun(queues)
    waits: list[int] = []
    for _ in range(4):
        before = run.batches
        async with anyio.create_task_group() as group:

            async def call(before: int = before) -> None:
                waits.append(
                    await queues.run(None, "cpu", "call", lambda job: run.batches - before)
                )

            group.start_soon(call)
            await anyio.sleep(0.05)
            assert run.batches == before
            for _ in range(3):  # the run could compute three batches, but gives way after one
                run.allow_batch()
        await wait_until(lambda before=before: run.batches == before + 3)
    assert waits == [1, 1, 1, 1]
    run.job.stop()
    run.allow_batch()
    assert run.ended.wait(5)


async def test_a_run_that_gives_way_can_be_stopped() -> None:
    queues = DeviceQueues()
    run = PacedRun(queues)
    is_served, may_end = threading.Event(), threading.Event()

    def call(job: DeviceJob) -> bool:
        is_served.set()
        return may_end.wait(10)

    async with anyio.create_task_group() as group:
        group.start_soon(queues.run, None, "cpu", "call", call)
        await anyio.sleep(0.05)
        run.allow_batch()
        await wait_until(is_served.is_set)
        run.job.stop()
        await wait_until(run.ended.is_set)
        may_end.set()
    assert run.batches == 1
    assert await queues.run(None, "cpu", "next", lambda job: "done") == "done"


async def test_fifty_clients_are_served_in_order() -> None:
    """So the longest wait is near the median, whatever order the threads wake up in."""
    queues = DeviceQueues()
    served: list[int] = []

    async def client(number: int) -> None:
        for _ in range(3):
            await queues.run(None, "cpu", "call", lambda job: served.append(number))

    blocker = PacedRun(queues)
    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(client, number)
        await anyio.sleep(0.3)  # all wait, while the run computes its batch
        blocker.job.stop()
        blocker.allow_batch()
    places = {number: [n for n, who in enumerate(served) if who == number] for number in range(50)}
    # Between two calls of one client, every other client is served about once.
    gaps = [late - early for turns in places.values() for early, late in pairwise(turns)]
    assert max(gaps) <= 1.5 * statistics.median(gaps)
    assert len(served) == 150


class ClosedRequest:
    """An HTTP request whose client has closed the connection."""

    async def is_disconnected(self) -> bool:
        return True


async def test_a_job_is_stopped_if_its_client_has_left() -> None:
    context: Any = SimpleNamespace(request_context=SimpleNamespace(request=ClosedRequest()))
    batches = 0

    def endless(job: DeviceJob) -> None:
        nonlocal batches
        while batches < 1000:
            time.sleep(0.02)
            batches += 1
            job(batches, 1000, "sweep")

    with pytest.raises(Interrupted):
        await DeviceQueues().run(context, "cpu", "sweep", endless)
    assert batches < 1000


@pytest.mark.parametrize("kind", [Interrupted, RuntimeError])
async def test_the_memory_of_a_failed_job_does_not_outlive_it(kind: type[Exception]) -> None:
    """The exception refers to the frames of the job, and so to what their variables hold."""
    alive: list[weakref.ref[threading.Event]] = []

    def failing(job: DeviceJob) -> None:
        value = threading.Event()
        alive.append(weakref.ref(value))
        raise kind("the job fails")

    gc.disable()
    try:
        with pytest.raises(kind, match="the job fails"):
            await DeviceQueues().run(None, "cpu", "job", failing)
        assert alive[0]() is None
    finally:
        gc.enable()


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
