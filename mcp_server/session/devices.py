"""One job at a time on each device, off the event loop, with progress and a way to stop it.

A job is a function in a worker thread. It is handed a `Work`, which is a `discovery.engine.Progress`: called after each batch, it
notes how far the job is and raises `Interrupted` once the job is to stop. So a cancelled call frees its device within one batch, and
the device is never shared with what is still ending.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from mcp.server.mcpserver import Context

from discovery.errors import Interrupted
from mcp_server.errors import BusyError

T = TypeVar("T")
MAX_WAITING_CALLS = 64  # calls for one device
_REPORT_SECONDS = 0.25  # seconds between two reports
_POLL_SECONDS = 0.05  # seconds between two looks at a held device


class DeviceJob:
    """How far a job is, and whether it is to stop; shared between its thread and the event loop."""

    def __init__(self, closing: threading.Event | None = None) -> None:
        self._stop = threading.Event()
        self._closing = closing or threading.Event()
        self._lock = threading.Lock()
        self._before = self._done = self._total = 0.0
        self.label = "waiting"

    def __call__(self, done: float, total: float, label: str) -> None:
        """Note progress; each piece of work counts from 0, and the sum of them only grows."""
        self.raise_if_stopped()
        with self._lock:
            if done < self._done or _piece(label) != _piece(self.label):
                self._before += self._done
                self._done = 0.0
            self._done, self._total, self.label = max(done, self._done), max(total, done), label

    def show_status(self, label: str) -> None:
        """Note what happens without counting."""
        with self._lock:
            self._before += self._done
            self._done = self._total = 0.0
            self.label = label

    def show_wait(self, status: str) -> None:
        """Note what a model elsewhere waits for; raises Interrupted where the job is to stop."""
        self.raise_if_stopped()
        self.show_status(status)

    @property
    def progress(self) -> tuple[float, float, str]:
        """Done and total so far, in forward-pass equivalents, and what is done now."""
        with self._lock:
            return (
                self._before + self._done,
                self._before + max(self._total, self._done),
                self.label,
            )

    def stop(self) -> None:
        """Ask the job to end at its next batch."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set() or self._closing.is_set()

    def raise_if_stopped(self) -> None:
        """Raises Interrupted where the job is to stop."""
        if self.is_stopping:
            raise Interrupted("stopped")


def _piece(label: str) -> str:
    """What is done, without what it waits for elsewhere."""
    return label.partition(" · ")[
        0
    ]  # `discovery.backends.remote.status.PART`, which needs no torch but stands among what does


class DeviceQueues:
    """The queue of every device.

    Attributes:
        closing: set when the server ends; every job stops then.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._waiting: dict[str, int] = defaultdict(int)
        self._guard = threading.Lock()
        self.holder_names: dict[str, str] = {}

    def new_job(self) -> DeviceJob:
        """A new job's."""
        return DeviceJob(self.closing)

    @contextmanager
    def hold(self, device: str, what: str, work: DeviceJob) -> Iterator[None]:
        """The device is this job's in here; waits for it.

        Raises:
            BusyError: where too many wait already.
            Interrupted: where the job was stopped while it waited.
        """
        with self._guard:
            lock = self._locks[device]
            if self._waiting[device] >= MAX_WAITING_CALLS:
                raise BusyError(
                    f"{MAX_WAITING_CALLS} calls wait for {device} already.",
                    "Try again in a minute, or cancel a run with cancel_run.",
                )
            self._waiting[device] += 1
        try:
            while not lock.acquire(timeout=_POLL_SECONDS):
                work.show_status(
                    f"waiting for {device}, which {self.holder_names.get(device, 'another call')} has"
                )
                work.raise_if_stopped()
        finally:
            with self._guard:
                self._waiting[device] -= 1
        try:
            work.raise_if_stopped()
            self.holder_names[device] = what
            yield
        finally:
            lock.release()

    async def run(
        self,
        call: Context[Any, Any] | None,
        device: str | None,
        description: str,
        job: Callable[[DeviceJob], T],
    ) -> T:
        """Do a job in a thread, telling the client how far it is.

        Args:
            call: of the tool, for progress and cancelling.
            device: to be waited for; None for a job that needs none.
        """
        work = self.new_job()

        def carried() -> T:
            if device is None:
                return job(work)
            with self.hold(device, description, work):
                work.show_status(description)
                return job(work)

        outcome: list[T] = []
        fault: list[Exception] = []
        async with anyio.create_task_group() as group:
            group.start_soon(_report_progress, work, call)
            try:
                outcome.append(await run_in_thread(carried))
            except Interrupted as stopped:
                await anyio.lowlevel.checkpoint()  # a cancelled call ends here
                fault.append(stopped)
            except Exception as raised:  # noqa: BLE001  # carried out of the task group as it is
                fault.append(raised)
            group.cancel_scope.cancel()
        if fault:
            raise fault[0]
        return outcome[0]


async def run_in_thread(job: Callable[[], T]) -> T:
    """Run a function in a thread of its own pool, waiting for its end even where the call is cancelled."""
    return await anyio.to_thread.run_sync(job, limiter=anyio.CapacityLimiter(1))


async def _report_progress(work: DeviceJob, call: Context[Any, Any] | None) -> None:
    """Report progress until cancelled, which stops the job."""
    told = -1.0
    try:
        while True:
            await anyio.sleep(_REPORT_SECONDS)
            done, total, label = work.progress
            if call is not None:
                told = max(done, told + 1e-6)  # a client may only be told of more
                await call.report_progress(told, max(total, told), label)
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        return  # the client left
    finally:
        work.stop()


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Wait in a thread, at most so long; whether it came about."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return done()
