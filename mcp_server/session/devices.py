"""Jobs that compute: one at a time on each device, in a worker thread, with progress.

A job is a function that runs in a thread beside the event loop. It receives a `DeviceJob`, which is
the progress callback of its measurements. After each batch it notes how far the job is, and raises
`Interrupted` once the job is to stop. So a cancelled call frees its device within one batch, and no
other job starts on the device before that. A run in the background also gives way there: while it
is inside the callback, calls that wait for the device are served (`device_queue.py`). Nothing of a
batch is under way at that moment, so the run computes the same numbers as if it had been alone.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from mcp.server.mcpserver import Context

from discovery.errors import Interrupted
from discovery.progress import Progress, ProgressListener
from mcp_server.errors import BusyError
from mcp_server.session.device_queue import DeviceQueue, Place
from mcp_server.session.job_memory import run_and_return_memory

T = TypeVar("T")
MAX_WAITING_CALLS = 64  # that wait for one device
_REPORT_SECONDS = 0.25  # between two reports of progress to the client


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """How far a whole job is, over all its steps.

    Attributes:
        done: the work that is done, in forward-pass equivalents (in tokens for a training).
        total: the work that is known of: what is done and the rest of the present step, or the
            estimate of the whole job if that is larger.
        estimated_total: the estimate of the whole job, never below `done`; None if there is none.
        label: what the job does at present.
    """

    done: float
    total: float
    estimated_total: float | None
    label: str


class DeviceJob(ProgressListener):
    """A job that a worker thread carries out: how far it is, and whether it is to stop.

    The thread and the event loop share it. It is the progress callback of the measurements that
    the job makes.

    Args:
        closing: set when the server ends, which stops the job too.
    """

    def __init__(self, closing: threading.Event | None = None) -> None:
        self._stop = threading.Event()
        self._closing = closing or threading.Event()
        self._lock = threading.Lock()
        self._step = ""
        self._done_before = 0.0  # work of the steps before the present one
        self._step_done = 0.0
        self._step_total = 0.0
        self._expected: float | None = None
        self._label = "waiting"
        self._give_way: Callable[[], None] | None = None

    def update(self, progress: Progress) -> None:
        """Note how far the present step is. The work of the whole job only grows.

        A new step begins when the name of the step changes, or when its work falls back. A run
        gives way to waiting calls here, unless the batch of a remote model is under way.

        Raises:
            Interrupted: if the job is to stop.
        """
        self.raise_if_stopped()
        with self._lock:
            if progress.done < self._step_done or progress.step != self._step:
                self._begin_step(progress.step)
            self._step_done = max(progress.done, self._step_done)
            self._step_total = max(progress.total, progress.done)
            self._label = progress.label
        if self._give_way is not None and progress.waiting_for is None:
            self._give_way()

    def give_way_by(self, give_way: Callable[[], None] | None) -> None:
        """Set what is called between two batches, so that others can use the device meanwhile."""
        self._give_way = give_way

    def expect(self, total: float) -> None:
        """Note the estimated work of the whole job."""
        with self._lock:
            self._expected = total

    def show_status(self, status: str) -> None:
        """Note what happens while no work is counted."""
        with self._lock:
            self._begin_step("")
            self._step_total = 0.0
            self._label = status

    def show_remote_status(self, status: str) -> None:
        """Note what a model on another machine waits for.

        Raises:
            Interrupted: if the job is to stop.
        """
        self.raise_if_stopped()
        self.show_status(status)

    @property
    def progress(self) -> JobProgress:
        """How far the job is."""
        with self._lock:
            done = self._done_before + self._step_done
            known = self._done_before + max(self._step_total, self._step_done)
            estimate = None if self._expected is None else max(self._expected, done)
            return JobProgress(
                done=done,
                total=known if estimate is None else estimate,
                estimated_total=estimate,
                label=self._label,
            )

    def stop(self) -> None:
        """Ask the job to end after its present batch."""
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        """Whether the job was asked to end."""
        return self._stop.is_set() or self._closing.is_set()

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if the job was asked to end."""
        if self.is_stopping:
            raise Interrupted("stopped")

    def _begin_step(self, step: str) -> None:
        self._done_before += self._step_done
        self._step_done = 0.0
        self._step = step


class DeviceQueues:
    """The queue of every device.

    Attributes:
        closing: set when the server ends; every job stops then.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self._queues: dict[str, DeviceQueue] = defaultdict(DeviceQueue)
        self._guard = threading.Lock()

    def new_job(self) -> DeviceJob:
        """Return a job that stops when the server ends."""
        return DeviceJob(self.closing)

    @contextmanager
    def hold(
        self, device: str, description: str, job: DeviceJob, *, gives_way: bool = False
    ) -> Iterator[None]:
        """Hold the device for the job inside the block, after waiting for it.

        Args:
            device: the device, as models name it.
            description: what the job does, shown to the jobs that wait for the device.
            job: the job, which can be stopped while it waits.
            gives_way: whether the job is a run, which lets calls have the device between its
                batches.

        Raises:
            BusyError: if too many calls wait for the device already.
            Interrupted: if the job is stopped while it waits.
        """
        place = Place(description, gives_way=gives_way)
        with self._guard:
            queue = self._queues["cuda:0" if device == "cuda" else device]
            if not gives_way and queue.n_waiting_calls >= MAX_WAITING_CALLS:
                raise BusyError(
                    f"{MAX_WAITING_CALLS} calls wait for {device} already.",
                    "Try again in a minute, or cancel a run with cancel_run.",
                )
            queue.enter(place)

        def give_way() -> None:
            if queue.give_way(place):
                _wait_for_turn(place, job)

        try:
            if not place.turn.is_set():
                _wait_for_turn(
                    place, job, lambda: f"waiting for {device}, which {queue.holder_name} has"
                )
                job.show_status(description)
            job.raise_if_stopped()
            if gives_way:
                job.give_way_by(give_way)
            yield
        finally:
            job.give_way_by(None)
            queue.leave(place)

    async def run(
        self,
        context: Context[Any, Any] | None,
        device: str | None,
        description: str,
        function: Callable[[DeviceJob], T],
    ) -> T:
        """Run a function in a thread and report its progress to the client.

        Args:
            context: the call of the tool, to which progress is reported; None reports nothing.
            device: the device that the function needs; None if it needs none.
            description: what the function does, shown as progress and to waiting calls.
            function: what is run; a cancelled call stops the job that it receives.

        Raises:
            BusyError: if too many calls wait for the device already.
            Interrupted: if the job is stopped.
        """
        job = self.new_job()

        def run_on_device() -> T:
            if device is None:
                return run_and_return_memory(lambda: function(job))
            with self.hold(device, description, job):
                job.show_status(description)
                return run_and_return_memory(lambda: function(job))

        outcomes: list[T] = []
        errors: list[Exception] = []
        async with anyio.create_task_group() as group:
            group.start_soon(_report_until_cancelled, job, context)
            try:
                outcomes.append(await run_in_thread(run_on_device))
            except Interrupted as error:
                await anyio.lowlevel.checkpoint()  # a cancelled call ends here
                errors.append(error)
            # It is raised again outside the task group, which would wrap it.
            except Exception as error:  # noqa: BLE001
                errors.append(error)
            group.cancel_scope.cancel()
        try:
            if errors:
                raise errors[0]
            return outcomes[0]
        finally:
            errors.clear()  # the traceback of an error in this frame refers to this frame


async def run_in_thread(function: Callable[[], T]) -> T:
    """Run a function in a worker thread and wait for its end, even if the call is cancelled."""
    return await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(1))


def _wait_for_turn(place: Place, job: DeviceJob, status: Callable[[], str] | None = None) -> None:
    """Wait until a job has its device.

    Args:
        place: the job's place in the queue of the device.
        job: the job.
        status: says what the job waits for, if its progress is to show that.

    Raises:
        Interrupted: if the job is stopped meanwhile.
    """
    while not place.turn.wait(_REPORT_SECONDS):
        if status is not None:
            job.show_status(status())
        job.raise_if_stopped()
    job.raise_if_stopped()


async def _report_until_cancelled(job: DeviceJob, context: Context[Any, Any] | None) -> None:
    """Report the job's progress until this task is cancelled or the client has left.

    Either stops the job. In older versions of the protocol, the SDK does not cancel the call when
    the client closes its connection, and nobody could fetch the result later.
    """
    reported = -1.0
    request = None if context is None else context.request_context.request
    try:
        while True:
            await anyio.sleep(_REPORT_SECONDS)
            progress = job.progress
            if request is not None and await request.is_disconnected():
                return
            if context is not None:
                reported = max(progress.done, reported + 1e-6)  # must grow with every report
                total = max(progress.total, reported)
                await context.report_progress(reported, total, progress.label)
    except (anyio.ClosedResourceError, anyio.BrokenResourceError):
        return  # the client has left
    finally:
        job.stop()
